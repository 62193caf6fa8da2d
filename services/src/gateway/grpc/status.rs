//! Problems in gRPC's form.
//! In: a problem. Out: a status with google.rpc's details, and metadata.

use std::collections::HashMap;
use std::time::Duration;

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::gateway::problem::{Kind, POLICY, Problem};

/// The domain of the reasons of errors.
const DOMAIN: &str = "budget-manager";

/// The metadata of answers and errors that were given before.
pub(super) const REPLAYED: &str = "idempotent-replayed";

/// The metadata with the pause before the next attempt, as gRPC's retries understand it.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// The status of a problem.
pub(super) fn status(problem: &Problem) -> Status {
    let kind = problem.kind;
    let about = HashMap::from([("status".to_owned(), kind.status().to_string())]);
    let mut details = ErrorDetails::with_error_info(kind.code(), DOMAIN, about);
    details.add_help_link(kind.title(), POLICY);
    for error in &problem.errors {
        details.add_bad_request_violation(field(&error.pointer), error.detail.as_str());
    }
    let mut metadata = MetadataMap::new();
    if let Some(pause) = problem.retry_after {
        details.set_retry_info(Some(pause));
        metadata.insert(PUSHBACK, MetadataValue::from(milliseconds(pause)));
    }
    if problem.replayed {
        metadata.insert(REPLAYED, MetadataValue::from_static("true"));
    }
    Status::with_error_details_and_metadata(code(kind), problem.detail.as_str(), details, metadata)
}

fn milliseconds(pause: Duration) -> u64 {
    u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)
}

/// A JSON pointer as a path of protobuf fields: `/lines/0/amount` is `lines.0.amount`.
fn field(pointer: &str) -> String {
    let parts = pointer.split('/').skip(1).map(|part| part.replace("~1", "/").replace("~0", "~"));
    parts.collect::<Vec<_>>().join(".")
}

/// gRPC's code for a kind of problem. Client libraries retry `Unavailable` and `Aborted` by themselves.
fn code(kind: Kind) -> Code {
    match kind {
        Kind::Malformed
        | Kind::KeyMissing
        | Kind::KeyMalformed
        | Kind::UnsupportedMedia
        | Kind::UnsupportedEncoding => Code::InvalidArgument,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::Forbidden => Code::PermissionDenied,
        Kind::NotFound => Code::NotFound,
        Kind::MethodNotAllowed | Kind::NotConfigured => Code::Unimplemented,
        Kind::TooSlow => Code::DeadlineExceeded,
        Kind::InFlight => Code::Aborted,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::Declined | Kind::Conflict | Kind::Ambiguous | Kind::Mismatch | Kind::Insufficient | Kind::Rejected => {
            Code::FailedPrecondition
        }
        Kind::TooLarge | Kind::RateLimited | Kind::TooManyKeys => Code::ResourceExhausted,
        Kind::Failed | Kind::Internal => Code::Internal,
        Kind::Overloaded | Kind::Unavailable => Code::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_all_that_the_problem_does() {
        let problem = Problem { replayed: true, ..Problem::at("/lines/0/a~1b", "is not an amount") };
        let told = status(&problem.retry_after(Duration::from_millis(1_500)));
        assert_eq!(told.code(), Code::InvalidArgument);
        let details = told.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "malformed");
        let violations = &details.bad_request().unwrap().field_violations;
        assert_eq!(
            (violations[0].field.as_str(), violations[0].description.as_str()),
            ("lines.0.a/b", "is not an amount")
        );
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(1_500)));
        let said = |name| told.metadata().get(name).and_then(|value| value.to_str().ok());
        assert_eq!((said(PUSHBACK), said(REPLAYED)), (Some("1500"), Some("true")));
    }

    #[test]
    fn only_what_may_be_tried_again_is_told_as_such() {
        let again: Vec<_> =
            Kind::ALL.iter().filter(|kind| matches!(code(**kind), Code::Aborted | Code::Unavailable)).collect();
        assert_eq!(again, [&Kind::InFlight, &Kind::Overloaded, &Kind::Unavailable]);
        let plain = status(&Problem::new(Kind::Mismatch, "x"));
        assert_eq!((plain.code(), plain.metadata().len()), (Code::FailedPrecondition, 0));
    }
}
