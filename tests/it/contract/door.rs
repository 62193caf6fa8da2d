//! A front door as the rows see it, whatever it speaks.
//! In: a client's requests. Out: its answers, in words that all protocols share.

use futures_util::future::BoxFuture;
use serde_json::Value;

/// The values of the key's header, as they are sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys(pub(crate) Vec<Vec<u8>>);

impl Keys {
    /// One key, in quotes.
    pub(crate) fn of(key: &str) -> Self {
        Self::raw(format!("\"{key}\""))
    }

    /// One value, as it is.
    pub(crate) fn raw(value: impl Into<Vec<u8>>) -> Self {
        Self(vec![value.into()])
    }
}

/// A request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    /// The operation's name.
    pub(crate) operation: &'static str,
    /// The thing that it is about, if its path names one.
    pub(crate) target: Option<String>,
    /// The key.
    pub(crate) keys: Keys,
    /// The body.
    pub(crate) body: Value,
    /// The bearer token.
    pub(crate) token: Option<String>,
}

impl Sent {
    pub(crate) fn new(operation: &'static str, key: &str, body: Value) -> Self {
        Self { operation, keys: Keys::of(key), body, ..Self::default() }
    }

    /// The request with this token.
    pub(crate) fn by(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answered {
    /// The problem's code; empty when it was done.
    pub(crate) code: String,
    /// The answer as it came, without what differs between a first answer and its repeat by contract.
    pub(crate) bytes: Vec<u8>,
    /// True if it says that it was given before.
    pub(crate) replayed: bool,
    /// The seconds after which it says to come again.
    pub(crate) retry_after: Option<f64>,
    /// True if it leads to the contract.
    pub(crate) documented: bool,
}

impl Answered {
    /// The document: what begins with its first brace.
    pub(crate) fn json(&self) -> Value {
        let from = self.bytes.iter().position(|byte| *byte == b'{').unwrap_or_default();
        serde_json::from_slice(&self.bytes[from..]).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn is_new(&self) -> Value {
        assert!(self.code.is_empty() && !self.replayed, "{self:?}");
        self.json()
    }

    #[track_caller]
    pub(crate) fn replays(&self, first: &Self) {
        assert!(self.replayed && !first.replayed, "{self:?} after {first:?}");
        assert_eq!((&self.code, &self.bytes), (&first.code, &first.bytes));
    }

    /// It says the same, whether it was given before or not.
    #[track_caller]
    pub(crate) fn is_same(&self, other: &Self) {
        assert_eq!((&self.code, &self.bytes), (&other.code, &other.bytes));
    }

    #[track_caller]
    pub(crate) fn is(&self, code: &str) {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.documented, "a problem without a link to the contract: {self:?}");
    }
}

/// A front door.
pub(crate) trait Door: Send + Sync {
    /// Sends a command.
    fn send(&self, sent: Sent) -> BoxFuture<'_, Answered>;

    /// Sends a body that no value says (doubled members, large numbers); nothing if the protocol has no such text.
    fn send_text<'a>(&'a self, sent: Sent, body: &'a str) -> Option<BoxFuture<'a, Answered>>;

    /// Reads one of an entity (`transaction`, `account`).
    fn one<'a>(&'a self, entity: &'a str, id: &'a str, token: Option<&'a str>) -> BoxFuture<'a, Answered>;
}
