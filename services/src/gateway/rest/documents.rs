//! The documents that describe the front doors: OpenAPI, the published policy, the catalogue of problems.
//! In: nothing but the settings. Out: JSON.

use axum::Router;
use axum::extract::{Path, Request};
use axum::response::Response;
use axum::routing::get;
use serde_json::{Value, json};

use super::answer::{self, Echo};
use super::{Rest, openapi};
use crate::gateway::key::KEY_BYTES_MAX;
use crate::gateway::problem::{Kind, POLICY, Problem};

/// The templates of [`routes`].
pub(super) const TEMPLATES: [&str; 4] = [OPENAPI, POLICY, PROBLEMS, PROBLEM];

const OPENAPI: &str = "/api/openapi.json";
const PROBLEMS: &str = "/api/problems";
const PROBLEM: &str = "/api/problems/{code}";

pub(super) fn routes(rest: &Rest) -> Router {
    let (described, policy) = (openapi::document(rest.front.tables()), policy(rest));
    Router::new()
        .route(OPENAPI, get(move || async move { answer::document(&described) }))
        .route(POLICY, get(move || async move { answer::document(&policy) }))
        .route(PROBLEMS, get(|| async { answer::document(&catalogue()) }))
        .route(PROBLEM, get(problem))
}

/// The idempotency policy that the draft of the header asks to publish.
fn policy(rest: &Rest) -> Value {
    let settings = rest.front.settings();
    json!({
        "header": "Idempotency-Key",
        "syntax": "one structured-field string (RFC 8941), such as \"8e03978e-40d5-43dd-bc93-6894a57f9324\"",
        "plain_tokens": settings.lenient_keys,
        "key_length_max": KEY_BYTES_MAX,
        "scope": "tenant, principal, operation (method and route), key",
        "fingerprint": "operation, target and body as RFC 8785 has it; another under the same key is refused (422)",
        "expires_after_seconds": settings.keep.as_secs(),
        "required_for": settings.require_key,
        "without_a_key": "one is made and told by the answer's header Idempotency-Key",
        "stored": "successes, refusals by the operation itself, and failures after the last attempt",
        "not_stored": "400, 401, 403, 413, 415, 422 key_reused, 429 and 503: the same key may be used again",
        "replayed_header": "Idempotent-Replayed: true",
        "in_flight": { "status": 409, "header": "Retry-After: 1" },
        "problems": "/api/problems",
        "api": "/api/openapi.json",
    })
}

fn catalogue() -> Value {
    Kind::ALL.iter().map(|kind| described(*kind)).collect()
}

fn described(kind: Kind) -> Value {
    json!({ "code": kind.code(), "status": kind.status(), "title": kind.title(), "meaning": kind.meaning() })
}

async fn problem(Path(code): Path<String>) -> Response {
    match Kind::of_code(&code) {
        Some(kind) => answer::document(&described(kind)),
        None => missing(&format!("/api/problems/{code}")),
    }
}

fn missing(path: &str) -> Response {
    let problem = Problem::new(Kind::NotFound, format!("there is nothing at {path}; see /api/openapi.json"));
    answer::problem(&problem, path, &Echo::default())
}

pub(super) async fn not_found(request: Request) -> Response {
    missing(request.uri().path())
}

pub(super) async fn no_method(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let problem = Problem::new(Kind::MethodNotAllowed, format!("{path} does not know {method}"));
    answer::problem(&problem, path, &Echo::default())
}
