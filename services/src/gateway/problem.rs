//! The problems that a front door answers with: a closed set, the same in every protocol.
//! In: a kind, and the detail of this case. Out: RFC 9457 problem details.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

/// A problem as it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The kind of problem.
    pub kind: Kind,
    /// The detail of this case, and what to do about it.
    pub detail: String,
    /// The places in the input that are wrong, if any.
    pub errors: Vec<FieldError>,
    /// The time after which to try again, if that may help.
    pub retry_after: Option<Duration>,
    /// True if it was answered before, under the same key.
    pub replayed: bool,
}

/// A place in the input, and its problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// JSON pointer into the body.
    pub pointer: String,
    /// The problem.
    pub detail: String,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $status:literal $code:literal $title:literal: $meaning:literal;)*) => {
        /// The kinds of problems.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name for programs.
            pub fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// Its HTTP status.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Its name for people.
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// Its meaning, and what to do about it.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$name => $meaning,)* }
            }
        }
    };
}

kinds! {
    /// The input cannot be understood.
    Malformed = 400 "malformed" "The request is malformed":
        "The input cannot be understood; errors tells where. Correct it: nothing was stored under the key.";
    /// No key is given though one is required.
    KeyMissing = 400 "key_missing" "Idempotency-Key is missing":
        "This operation needs an Idempotency-Key header of the client's own.";
    /// Not a valid key.
    KeyMalformed = 400 "key_malformed" "Idempotency-Key is malformed":
        "A key is one string of 1 to 255 printable ASCII characters, such as \"8e03978e-40d5-43dd-bc93-6894a57f9324\".";
    /// No token is given, or an unknown one.
    Unauthenticated = 401 "unauthenticated" "A token is needed":
        "Send a token: Authorization: Bearer TOKEN.";
    /// The payment provider declined.
    Declined = 402 "declined" "The payment was declined":
        "The payment provider said no. The same key tells the same; a new charge of the order is not made.";
    /// The token does not allow it.
    Forbidden = 403 "forbidden" "The token does not allow this":
        "The token's principal lacks the role that this needs.";
    /// The entity does not exist.
    NotFound = 404 "not_found" "There is no such thing":
        "Nothing of this address or id is there for this tenant.";
    /// The address exists, for other methods.
    MethodNotAllowed = 405 "method_not_allowed" "The address has other methods":
        "See the header Allow, or /api/openapi.json.";
    /// The client was too slow.
    TooSlow = 408 "too_slow" "The request took too long to arrive":
        "Send it again, faster: nothing was stored under the key.";
    /// An identical request still runs.
    InFlight = 409 "in_flight" "A request is outstanding for this Idempotency-Key":
        "The same request still runs. Ask again after Retry-After, with the same key.";
    /// The entity exists already.
    AlreadyExists = 409 "already_exists" "It exists already":
        "A thing with this id was made by another request.";
    /// The entity is in a state in which this cannot be done.
    Conflict = 409 "conflict" "Its state does not allow this":
        "What came first stands.";
    /// Several entities match.
    Ambiguous = 409 "ambiguous" "Several have this id":
        "Accounts have ids of their own. Ask for a page of the account that you mean.";
    /// The body is too large.
    TooLarge = 413 "too_large" "The request is too large":
        "The body has more bytes than gateway.body_bytes_max, or the answer more than gateway.answer_bytes_max.";
    /// The body is of a type that is not supported.
    UnsupportedMedia = 415 "unsupported_media_type" "The body is of another type":
        "Send JSON: Content-Type: application/json.";
    /// The body is encoded in a way that is not supported.
    UnsupportedEncoding = 415 "unsupported_content_encoding" "The body is encoded":
        "Send the body as it is, without a Content-Encoding (Accept-Encoding: identity).";
    /// The key belongs to another request.
    Mismatch = 422 "key_reused" "Idempotency-Key is already used":
        "The key was used for a request that asked for something else. Use a new key for a new request.";
    /// There is not enough of something.
    Insufficient = 422 "insufficient" "Not enough is there":
        "What the request needs is not there; it had no effect.";
    /// The handler refused it.
    Rejected = 422 "rejected" "The request was refused":
        "What it asks for cannot be done; it had no effect. The same key tells the same.";
    /// The tenant sends too many requests.
    RateLimited = 429 "rate_limited" "Too many requests":
        "The tenant sends more requests a second than gateway.rate. Ask again after Retry-After.";
    /// The tenant has too many keys.
    TooManyKeys = 429 "too_many_keys" "Too many keys":
        "The tenant has as many keys in the store as gateway.keys_max. They expire after gateway.keep.";
    /// The request failed in every attempt.
    Failed = 500 "failed" "The request failed":
        "It was tried as often as it may be. It had no effect in the store; what it asked of others may have happened. The \
         same key tells the same; operators have a dead letter.";
    /// An error that should not happen.
    Internal = 500 "internal" "Something went wrong here":
        "This should not happen; the log has more. Ask again with the same key.";
    /// The settings lack a dependency.
    NotConfigured = 501 "not_configured" "This is not set up here":
        "The operation has a dependency that the settings do not configure; detail names the setting. Nothing was stored under the key.";
    /// There is no room now.
    Overloaded = 503 "overloaded" "There is no room for the request now":
        "Nothing was stored under the key. Ask again after Retry-After.";
    /// The store does not answer, or the process ends.
    Unavailable = 503 "unavailable" "The store does not answer":
        "Whether the request took effect is not known. Ask again after Retry-After, with the same key.";
}

impl Kind {
    /// The kind of this name.
    pub fn of_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.code() == code)
    }

    /// The kind for a handler's refusal, by its code.
    pub fn of_refusal(code: &str) -> Self {
        match Self::of_code(code) {
            Some(kind @ (Self::AlreadyExists | Self::NotFound | Self::Conflict | Self::Insufficient)) => kind,
            _ => Self::Rejected,
        }
    }
}

impl FieldError {
    /// An error at this place.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: shortened(pointer.into()), detail: shortened(detail.into()) }
    }
}

/// The most errors of a request that are listed: an answer does not grow with them.
pub const ERRORS_MAX: usize = 20;

/// The most bytes of a text that quotes the input.
const SAID_BYTES_MAX: usize = 2 << 10;

/// A problem's text, cut to a bound however much it quotes.
pub fn shortened(mut text: String) -> String {
    if text.len() > SAID_BYTES_MAX {
        text.truncate(text.floor_char_boundary(SAID_BYTES_MAX));
        text.push('…');
    }
    text
}

/// The address of the contract, for the header `Link` of each problem.
pub const POLICY: &str = "/.well-known/idempotency";

/// Media type of problem details.
pub const CONTENT_TYPE: &str = "application/problem+json";

impl Problem {
    /// A problem of this kind.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: shortened(detail.into()), errors: Vec::new(), retry_after: None, replayed: false }
    }

    /// A problem with one place of the input.
    pub fn at(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        let (pointer, detail) = (pointer.into(), detail.into());
        let said = if pointer.is_empty() { detail.clone() } else { format!("{pointer}: {detail}") };
        Self { errors: vec![FieldError::new(pointer, detail)], ..Self::new(Kind::Malformed, said) }
    }

    /// A problem with these places of the input; only the first ones are listed.
    pub fn malformed(mut errors: Vec<FieldError>) -> Self {
        errors.truncate(ERRORS_MAX);
        let said = errors.iter().map(|error| format!("{}: {}", error.pointer, error.detail)).collect::<Vec<_>>();
        Self { errors, ..Self::new(Kind::Malformed, said.join("; ")) }
    }

    /// Adds a time after which to try again.
    #[must_use]
    pub fn retry_after(self, pause: Duration) -> Self {
        Self { retry_after: Some(pause), ..self }
    }

    /// Seconds for the header `Retry-After`: rounded up, as a client that comes too early comes twice.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(|pause| u64::try_from(pause.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX).max(1))
    }

    /// The document; `instance` is the path of the request.
    pub fn document(&self, instance: &str) -> Value {
        let kind = self.kind;
        let mut document = json!({
            "type": format!("/api/problems/{}", kind.code()),
            "title": kind.title(),
            "status": kind.status(),
            "detail": self.detail,
            "instance": instance,
            "code": kind.code(),
        });
        if !self.errors.is_empty() {
            document["errors"] = json!(self.errors);
        }
        if let Some(pause) = self.retry_after {
            document["retry_after_ms"] = json!(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_found_again() {
        let codes: BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.code()).collect();
        assert_eq!(codes.len(), Kind::ALL.len());
        assert!(Kind::ALL.iter().all(|kind| Kind::of_code(kind.code()) == Some(*kind)));
    }

    #[test]
    fn a_refusals_code_decides_and_no_code_makes_it_an_error_of_the_server() {
        for (code, kind) in [
            ("already_exists", Kind::AlreadyExists),
            ("not_found", Kind::NotFound),
            ("insufficient", Kind::Insufficient),
            ("rejected", Kind::Rejected),
            ("internal", Kind::Rejected),
            ("something else", Kind::Rejected),
        ] {
            assert_eq!(Kind::of_refusal(code), kind, "{code}");
        }
    }

    #[test]
    fn a_problem_is_no_larger_for_what_it_quotes() {
        let long = "é".repeat(1 << 20);
        for problem in [
            Problem::at(format!("/{long}"), &long),
            Problem::malformed(vec![FieldError::new(&long, &long); 100_000]),
            Problem::new(Kind::NotFound, &long),
        ] {
            let told = problem.document("/").to_string();
            assert!(told.len() < 100_000 && told.contains('…'), "{}", told.len());
        }
    }

    #[test]
    fn a_problem_says_where_when_and_what() {
        let problem = Problem::at("/amount", "is missing").retry_after(Duration::from_millis(1_200));
        assert_eq!((problem.detail.as_str(), problem.retry_after_seconds()), ("/amount: is missing", Some(2)));
        let document = problem.document("/api/orders");
        assert_eq!((&document["code"], &document["status"]), (&"malformed".into(), &400.into()));
        assert_eq!(document["errors"], json!([{ "pointer": "/amount", "detail": "is missing" }]));
        assert_eq!((&document["instance"], &document["retry_after_ms"]), (&"/api/orders".into(), &1_200.into()));
    }
}
