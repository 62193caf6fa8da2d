//! The outcome of a call.
//! In: HTTP answers. Out: an answer that will not change, or the reason why there is none.

use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A final answer: the same operation under the same key would be given it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// True if it had been given before: the operation took effect earlier, and not again.
    pub replayed: bool,
    /// The location of the thing that was made.
    pub location: Option<String>,
    /// The idempotency key of the request; a `GET` has none.
    pub key: Option<String>,
    /// The number of attempts.
    pub attempts: u32,
    /// The body.
    pub body: Vec<u8>,
}

/// Problem details (RFC 9457), as far as they are there.
///
/// ```
/// # use perkey_client::Answer;
/// # let answer = |status, body: &str| Answer {
/// #     status, replayed: false, location: None, key: None, attempts: 1, body: body.as_bytes().to_vec(),
/// # };
/// let problem = answer(409, r#"{"code":"already_exists","detail":"o-1 is there"}"#).problem().unwrap_or_default();
/// assert_eq!(problem.code.as_deref(), Some("already_exists"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// Its name for programs.
    pub code: Option<String>,
    /// Its name for people.
    pub title: Option<String>,
    /// The specific explanation.
    pub detail: Option<String>,
}

impl Answer {
    /// Returns whether the operation was done.
    ///
    /// ```
    /// # use perkey_client::Answer;
    /// # let answer = |status, body: &str| Answer {
    /// #     status, replayed: false, location: None, key: None, attempts: 1, body: body.as_bytes().to_vec(),
    /// # };
    /// assert!(answer(201, "{}").is_success());
    /// assert!(!answer(409, "{}").is_success());
    /// ```
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as `T`.
    ///
    /// ```
    /// # use perkey_client::Answer;
    /// # let answer = |status, body: &str| Answer {
    /// #     status, replayed: false, location: None, key: None, attempts: 1, body: body.as_bytes().to_vec(),
    /// # };
    /// let balance: u64 = answer(200, "1250").json()?;
    /// assert_eq!(balance, 1250);
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }

    /// The problem, if the operation was not done and the body explains why.
    pub fn problem(&self) -> Option<Problem> {
        if self.is_success() { None } else { self.json().ok() }
    }
}

/// The last result of a call that has no final answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Last {
    /// No connection: the last attempt sent nothing.
    #[error("no connection: {0}")]
    NoConnection(String),
    /// No answer: it is not known whether the operation took effect.
    #[error("no answer: {0}")]
    Lost(String),
    /// An answer that may change.
    #[error("status {} ({})", .0.status, .0.problem().and_then(|problem| problem.detail).unwrap_or_default())]
    Answer(Box<Answer>),
}

/// A reason why a call has no final answer. Called again under the same key, the operation still takes effect once.
///
/// ```
/// use perkey_client::CallError;
///
/// /// Whether the operation may have taken effect: called again under the same key, it takes effect once.
/// fn is_open(error: &CallError) -> bool {
///     matches!(error, CallError::Deadline { .. } | CallError::Budget { .. })
/// }
/// assert!(!is_open(&CallError::Invalid("a GET has no body".to_owned())));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The operation cannot be sent as it is.
    #[error("{0}")]
    Invalid(String),
    /// Time is up.
    #[error("no final answer within {deadline:?}, after {attempts} attempts under the key {}: {last}", shown(key))]
    Deadline {
        /// The deadline.
        deadline: Duration,
        /// The number of attempts.
        attempts: u32,
        /// Its idempotency key.
        key: Option<String>,
        /// The last result.
        last: Last,
    },
    /// Too many calls of this kind are tried again already.
    #[error(
        "no more retries are allowed now (Options::retry_share), after {attempts} attempts under the key {}: {last}",
        shown(key)
    )]
    Budget {
        /// The number of attempts.
        attempts: u32,
        /// Its idempotency key.
        key: Option<String>,
        /// The last result.
        last: Last,
    },
    /// The answer is larger than it may be.
    #[error("an answer with status {status} has more than {max} bytes (Options::body_bytes_max)")]
    TooLarge {
        /// Its status.
        status: u16,
        /// The bound.
        max: usize,
    },
}

fn shown(key: &Option<String>) -> &str {
    key.as_deref().unwrap_or("(none)")
}
