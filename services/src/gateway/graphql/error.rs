//! Problems in GraphQL's form.
//! In: a problem. Out: an error with `extensions`.

use async_graphql::{Error, ErrorExtensions, ServerError, Value};
use serde_json::json;

use crate::gateway::problem::{POLICY, Problem};

/// The error of a field.
pub(super) fn error(problem: &Problem) -> Error {
    Error::new(problem.detail.as_str()).extend_with(|_, extensions| {
        let kind = problem.kind;
        extensions.set("code", kind.code());
        extensions.set("status", i32::from(kind.status()));
        extensions.set("describedBy", POLICY);
        if let Some(pause) = problem.retry_after {
            extensions.set("retryAfterMs", u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        }
        if problem.replayed {
            extensions.set("replayed", true);
        }
        if !problem.errors.is_empty() {
            extensions.set("errors", Value::from_json(json!(problem.errors)).unwrap_or_default());
        }
    })
}

/// The error of a request of which no part ran.
pub(super) fn whole(problem: &Problem) -> ServerError {
    let Error { message, extensions, .. } = error(problem);
    let mut whole = ServerError::new(message, None);
    whole.extensions = extensions;
    whole
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::gateway::problem::Kind;

    #[test]
    fn an_error_says_all_that_the_problem_does() {
        let problem = Problem { replayed: true, ..Problem::at("/amount", "is not an amount") };
        let told = serde_json::to_value(whole(&problem.retry_after(Duration::from_millis(1_500)))).unwrap();
        let expected = json!({
            "code": "malformed", "status": 400, "retryAfterMs": 1_500, "replayed": true, "describedBy": POLICY,
            "errors": [{ "pointer": "/amount", "detail": "is not an amount" }],
        });
        assert_eq!((&told["message"], &told["extensions"]), (&json!("/amount: is not an amount"), &expected));
        let plain = serde_json::to_value(whole(&Problem::new(Kind::Mismatch, "x"))).unwrap();
        assert_eq!(plain["extensions"], json!({ "code": "key_reused", "status": 422, "describedBy": POLICY }));
    }
}
