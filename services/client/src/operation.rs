//! A logical operation: it takes effect once, however often it is sent.
//! In: a method, a path, a body, a key of the caller's own. Out: the same, checked.

use serde::Serialize;
use serde_json::Value;

use crate::CallError;
use crate::chance;

/// The most characters of a key.
const KEY_BYTES_MAX: usize = 255;

/// An operation, with its idempotency key: whoever sends it again sends the same one.
///
/// ```
/// # use perkey_client::{CallError, Operation};
/// let order = Operation::post("/api/orders", &serde_json::json!({ "order": "o-1" }))?;
/// let again = order.clone();
/// assert_eq!(again.idempotency_key(), order.idempotency_key(), "sent again, it takes effect once");
/// # Ok::<(), CallError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) key: Option<String>,
    pub(crate) site: String,
    pub(crate) traceparent: Option<String>,
}

impl Operation {
    /// Makes something: `POST`.
    ///
    /// ```
    /// # use perkey_client::{CallError, Operation};
    /// let paid = serde_json::json!({ "account": "a-1", "amount": 1250, "currency": "USD" });
    /// let operation = Operation::post("/api/transactions", &paid)?;
    /// # Ok::<(), CallError>(())
    /// ```
    pub fn post(path: &str, body: &impl Serialize) -> Result<Self, CallError> {
        Self::new("POST", path, Some(value(body)?))
    }

    /// Changes something: `PATCH`.
    ///
    /// ```
    /// # use perkey_client::{CallError, Operation};
    /// let operation = Operation::patch("/api/expenses/e-1", &serde_json::json!({ "memo": "taxi" }))?;
    /// # Ok::<(), CallError>(())
    /// ```
    pub fn patch(path: &str, body: &impl Serialize) -> Result<Self, CallError> {
        Self::new("PATCH", path, Some(value(body)?))
    }

    /// A question: `GET`. It has no key.
    ///
    /// ```
    /// # use perkey_client::{CallError, Operation};
    /// let question = Operation::get("/api/accounts/a-1/balance")?;
    /// assert_eq!(question.idempotency_key(), None);
    /// # Ok::<(), CallError>(())
    /// ```
    pub fn get(path: &str) -> Result<Self, CallError> {
        Self::new("GET", path, None)
    }

    /// By the method's name: `GET`, `POST`, `PUT`, `PATCH` or `DELETE`.
    ///
    /// ```
    /// # use perkey_client::{CallError, Operation};
    /// let operation = Operation::new("DELETE", "/api/expenses/e-1", None)?;
    /// assert!(Operation::new("FETCH", "/api/expenses", None).is_err());
    /// # Ok::<(), CallError>(())
    /// ```
    pub fn new(method: &str, path: &str, body: Option<Value>) -> Result<Self, CallError> {
        let known = ["GET", "POST", "PUT", "PATCH", "DELETE"];
        let method = known.into_iter().find(|name| name.eq_ignore_ascii_case(method)).ok_or_else(|| {
            CallError::Invalid(format!("there is no method {method:?}: it is one of {}", known.join(", ")))
        })?;
        if !path.starts_with('/') {
            return Err(CallError::Invalid(format!("the path {path:?} does not begin with /")));
        }
        if method == "GET" && body.is_some() {
            return Err(CallError::Invalid("a GET has no body".to_owned()));
        }
        Ok(Self {
            method,
            path: path.to_owned(),
            body: body.map(|body| body.to_string().into_bytes()),
            key: (method != "GET").then(chance::key),
            site: site(method, path),
            traceparent: None,
        })
    }

    /// Under a key of the caller's own, such as one that it has written down before: 1 to 255 printable ASCII characters.
    ///
    /// ```
    /// # use perkey_client::{CallError, Operation};
    /// let operation = Operation::post("/api/orders", &())?.key("order-o-1")?;
    /// assert_eq!(operation.idempotency_key(), Some("order-o-1"));
    /// # Ok::<(), CallError>(())
    /// ```
    pub fn key(self, key: &str) -> Result<Self, CallError> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX || !key.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            let text = format!("a key has 1 to {KEY_BYTES_MAX} printable ASCII characters, and {key:?} does not");
            return Err(CallError::Invalid(text));
        }
        if self.method == "GET" {
            return Err(CallError::Invalid("a GET changes nothing: it has no key".to_owned()));
        }
        Ok(Self { key: Some(key.to_owned()), ..self })
    }

    /// Sets the name of the call site: retries are counted together for all operations of that name. By default the
    /// method and the first two parts of the path are the name.
    ///
    /// ```
    /// # use perkey_client::{CallError, Operation};
    /// let operation = Operation::post("/api/orders", &())?.site("checkout");
    /// # Ok::<(), CallError>(())
    /// ```
    #[must_use]
    pub fn site(self, name: &str) -> Self {
        Self { site: name.to_owned(), ..self }
    }

    /// As part of a trace: the value of the header `traceparent`.
    ///
    /// ```
    /// # use perkey_client::{CallError, Operation};
    /// let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    /// let operation = Operation::get("/api/orders/o-1")?.traceparent(trace);
    /// # Ok::<(), CallError>(())
    /// ```
    #[must_use]
    pub fn traceparent(self, value: &str) -> Self {
        Self { traceparent: Some(value.to_owned()), ..self }
    }

    /// Its idempotency key; a question has none.
    ///
    /// ```
    /// # use perkey_client::{CallError, Operation};
    /// let operation = Operation::post("/api/orders", &())?;
    /// println!("written down before it is sent: {:?}", operation.idempotency_key());
    /// # Ok::<(), CallError>(())
    /// ```
    pub fn idempotency_key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

/// A key as the header has it: a string of RFC 8941.
pub(crate) fn quoted(key: &str) -> String {
    format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""))
}

fn value(body: &impl Serialize) -> Result<Value, CallError> {
    serde_json::to_value(body)
        .map_err(|error| CallError::Invalid(format!("the body cannot be written as JSON: {error}")))
}

fn site(method: &str, path: &str) -> String {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let parts: Vec<&str> = path.split('/').skip(1).take(2).collect();
    format!("{method} /{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_has_one_key_however_often_it_is_sent() {
        let operation = Operation::post("/api/orders", &serde_json::json!({})).unwrap();
        let key = operation.idempotency_key().unwrap().to_owned();
        assert_eq!(operation.idempotency_key(), Some(key.as_str()));
        let other = Operation::post("/api/orders", &serde_json::json!({})).unwrap();
        assert_ne!(other.idempotency_key(), Some(key.as_str()));
        assert_eq!(other.key("mine").unwrap().idempotency_key(), Some("mine"));
        assert_eq!(Operation::get("/api/orders/1").unwrap().idempotency_key(), None);
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        assert!(Operation::new("BREW", "/pot", None).is_err());
        assert!(Operation::get("api").is_err());
        assert!(Operation::new("GET", "/api", Some(Value::Null)).is_err());
        for key in ["", "é", "a\nb", &"x".repeat(256)] {
            assert!(Operation::post("/api", &1).unwrap().key(key).is_err(), "{key:?}");
        }
        assert!(Operation::get("/api").unwrap().key("mine").is_err());
    }

    #[test]
    fn keys_are_quoted_and_sites_have_no_ids() {
        assert_eq!(quoted(r#"a "b\c"#), r#""a \"b\\c""#);
        let site = |path| Operation::new("post", path, None).unwrap().site;
        assert_eq!(site("/api/orders/o-1/cancel?x=1"), "POST /api/orders");
        assert_eq!(site("/charge?x=/y"), "POST /charge");
    }
}
