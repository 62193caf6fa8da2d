//! The client: sends an operation until it has its final answer, or time is up.
//! In: operations. Out: answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response, Url};

use crate::answer::{Answer, CallError, Last, Problem};
use crate::budget::Budget;
use crate::chance;
use crate::operation::{Operation, quoted};
use crate::pause::retry_after;
use crate::policy::{Came, Pauses};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The options of a client.
///
/// ```
/// use std::time::Duration;
/// use perkey_client::{Client, Options};
///
/// let options = Options { deadline: Duration::from_secs(5), token: Some("secret".to_owned()), ..Options::default() };
/// let client = Client::new("https://budget.example.com", options)?;
/// # Ok::<(), perkey_client::CallError>(())
/// ```
#[derive(Clone)]
pub struct Options {
    /// The bearer token, if any.
    pub token: Option<String>,
    /// The time for a call in all, with its retries and pauses.
    pub deadline: Duration,
    /// The time for one attempt. A front door waits up to `gateway.wait` (10 s) for the end of a call.
    pub attempt_timeout: Duration,
    /// The time to make a connection.
    pub connect_timeout: Duration,
    /// The first pause is up to this long, each further one up to twice as long.
    pub pause: Duration,
    /// The longest pause, unless the server asks for a longer one.
    pub pause_max: Duration,
    /// The longest pause that a server may ask for.
    pub retry_after_max: Duration,
    /// Retries as a share of the calls of a call site, …
    pub retry_share: f64,
    /// … and in addition this many a second.
    pub retries_per_second: f64,
    /// The most bytes of an answer's body.
    pub body_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: None,
            deadline: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(3),
            pause: Duration::from_millis(100),
            pause_max: Duration::from_secs(5),
            retry_after_max: Duration::from_secs(60),
            retry_share: 0.2,
            retries_per_second: 10.0,
            body_bytes_max: 16 << 20,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "…");
        f.debug_struct("Options").field("token", &token).field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// A client of one front door. Clones share connections and the budget of retries.
///
/// ```
/// use perkey_client::{CallError, Client, Operation};
///
/// async fn balance(client: &Client, account: &str) -> Result<serde_json::Value, CallError> {
///     let answer = client.call(Operation::get(&format!("/api/accounts/{account}/balance"))?).await?;
///     Ok(answer.json().unwrap_or_default())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Arc<str>,
    options: Arc<Options>,
    started: Instant,
    budget: Arc<Mutex<Budget>>,
}

impl Client {
    /// A client of the front door at `base_url`, such as `http://127.0.0.1:8080`.
    ///
    /// ```
    /// # use perkey_client::{Client, Options};
    /// assert!(Client::new("http://127.0.0.1:8080", Options::default()).is_ok());
    /// assert!(Client::new("127.0.0.1", Options::default()).is_err());
    /// ```
    pub fn new(base_url: &str, options: Options) -> Result<Self, CallError> {
        let base = Url::parse(base_url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(base) = base.filter(|url| url.query().is_none() && url.fragment().is_none()) else {
            return Err(CallError::Invalid(format!("{base_url:?} is not an address: write http://host:port")));
        };
        let mut headers = HeaderMap::new();
        if let Some(token) = &options.token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value = value.map_err(|_| CallError::Invalid("the token cannot be sent in a header".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(options.connect_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| CallError::Invalid(format!("no connections can be made: {}", deepest(&error))))?;
        let budget = Budget::new(options.retry_share, options.retries_per_second);
        Ok(Self {
            http,
            base: base.as_str().trim_end_matches('/').into(),
            options: Arc::new(options),
            started: chance::now(),
            budget: Arc::new(Mutex::new(budget)),
        })
    }

    /// Sends the operation until it has its final answer. The operation takes effect once, or not at all; if there is
    /// no final answer it may be called again, with the same key.
    ///
    /// ```
    /// # use perkey_client::{CallError, Client, Operation};
    /// async fn order(client: &Client) -> Result<(), CallError> {
    ///     let answer = client.call(Operation::post("/api/orders", &serde_json::json!({ "order": "o-1" }))?).await?;
    ///     match answer.problem() {
    ///         None => println!("done with attempt {}", answer.attempts),
    ///         Some(problem) => println!("refused: {}", problem.detail.unwrap_or_default()),
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub async fn call(&self, operation: Operation) -> Result<Answer, CallError> {
        let began = chance::now();
        self.budget(|budget, now| budget.called(&operation.site, now));
        let (headers, pauses) = (headers(&operation)?, self.pauses());
        let mut attempts = 1;
        loop {
            let left = self.options.deadline.saturating_sub(began.elapsed());
            let (came, last) = match self.attempt(&operation, &headers, left).await? {
                Attempt::Answer(came, answer) => {
                    let answer = Answer { attempts, ..answer };
                    if !came.is_passing() {
                        return Ok(answer);
                    }
                    (came, Last::Answer(Box::new(answer)))
                }
                Attempt::NoConnection(error) => (Came::NoConnection, Last::NoConnection(error)),
                Attempt::Lost(error) => (Came::Nothing, Last::Lost(error)),
            };
            let pause = pauses.before(attempts + 1, &came, chance::unit());
            let key = operation.key.clone();
            if began.elapsed() + pause >= self.options.deadline {
                return Err(CallError::Deadline { deadline: self.options.deadline, attempts, key, last });
            }
            if !self.budget(|budget, now| budget.may_retry(&operation.site, now)) {
                return Err(CallError::Budget { attempts, key, last });
            }
            chance::sleep(pause).await;
            attempts += 1;
        }
    }

    fn pauses(&self) -> Pauses {
        let Options { pause, pause_max, retry_after_max, .. } = &*self.options;
        Pauses { base: *pause, longest: *pause_max, asked_max: *retry_after_max }
    }

    fn budget<T>(&self, what: impl FnOnce(&mut Budget, Duration) -> T) -> T {
        what(&mut self.budget.lock().unwrap_or_else(PoisonError::into_inner), self.started.elapsed())
    }

    async fn attempt(&self, operation: &Operation, headers: &HeaderMap, left: Duration) -> Result<Attempt, CallError> {
        let url = Url::parse(&format!("{}{}", self.base, operation.path));
        let url =
            url.map_err(|error| CallError::Invalid(format!("the path {:?} is not valid: {error}", operation.path)))?;
        let method = Method::from_bytes(operation.method.as_bytes()).unwrap_or(Method::POST);
        let mut request = self.http.request(method, url).headers(headers.clone());
        if let Some(body) = &operation.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        let within = self.options.attempt_timeout.min(left);
        match tokio::time::timeout(within, self.answered(operation, request)).await {
            Ok(attempt) => attempt,
            Err(_) => Ok(Attempt::Lost(format!("nothing came within {within:?}"))),
        }
    }

    async fn answered(&self, operation: &Operation, request: reqwest::RequestBuilder) -> Result<Attempt, CallError> {
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_builder() => return Err(CallError::Invalid(deepest(&error))),
            Err(error) if error.is_connect() => return Ok(Attempt::NoConnection(deepest(&error))),
            Err(error) => return Ok(Attempt::Lost(deepest(&error))),
        };
        let status = response.status().as_u16();
        let mut body = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if body.len() + chunk.len() > self.options.body_bytes_max => {
                    return Err(CallError::TooLarge { status, max: self.options.body_bytes_max });
                }
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break,
                // Half an answer counts as none.
                Err(error) => return Ok(Attempt::Lost(deepest(&error))),
            }
        }
        Ok(read(&response, operation.key.clone(), body))
    }
}

enum Attempt {
    NoConnection(String),
    Lost(String),
    Answer(Came, Answer),
}

fn headers(operation: &Operation) -> Result<HeaderMap, CallError> {
    let mut headers = HeaderMap::new();
    let given = [(KEY, operation.key.as_deref().map(quoted)), (TRACEPARENT, operation.traceparent.clone())];
    for (name, value) in given {
        let Some(value) = value else { continue };
        let value = HeaderValue::from_str(&value);
        let value = value.map_err(|_| CallError::Invalid(format!("{name} cannot be sent in a header")))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

fn read(response: &Response, key: Option<String>, body: Vec<u8>) -> Attempt {
    let status = response.status().as_u16();
    let header = |name: HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    let replayed = header(REPLAYED).is_some_and(|value| value.trim().eq_ignore_ascii_case("true"));
    let code = if status < 400 { None } else { serde_json::from_slice::<Problem>(&body).ok() };
    let came = Came::Answer {
        status,
        replayed,
        code: code.and_then(|problem| problem.code),
        retry_after: header(RETRY_AFTER).and_then(|value| retry_after(value, chance::wall_seconds())),
    };
    let location = header(LOCATION).map(str::to_owned);
    Attempt::Answer(came, Answer { status, replayed, location, key, attempts: 0, body })
}

/// The innermost error: the layers above it say where, and hide the cause.
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}
