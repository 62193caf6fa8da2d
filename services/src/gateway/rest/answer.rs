//! Answers in HTTP's form.
//! In: replies and problems. Out: responses with their headers.

use std::time::Duration;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_TYPE, HeaderName, LINK, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, Response as HttpResponse, StatusCode};
use axum::response::Response;
use perkey::unstable::metrics::HttpOutcome;
use serde_json::Value;

use crate::gateway::front::Reply;
use crate::gateway::key::{self, IdempotencyKey};
use crate::gateway::problem::{self, Kind, POLICY, Problem};

/// The header that marks an answer which was given before.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The key of a request as its answer repeats it.
#[derive(Clone, Debug, Default)]
pub(super) struct Echo(Option<HeaderValue>);

impl Echo {
    /// The key as it was sent; else the one that was made.
    pub(super) fn of(sent: Option<HeaderValue>, key: &IdempotencyKey) -> Self {
        Self(sent.or_else(|| HeaderValue::from_str(&key.quoted()).ok()))
    }

    fn put(&self, headers: &mut HeaderMap, replayed: bool) {
        if let Some(key) = &self.0 {
            headers.insert(key::HEADER, key.clone());
        }
        if replayed {
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
    }
}

pub(super) fn reply(reply: Reply, echo: &Echo) -> Response {
    let status = if reply.created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = with(status, "application/json", reply.body.into());
    if let Some(place) = reply.location.and_then(|place| HeaderValue::from_str(&place).ok()) {
        response.headers_mut().insert(LOCATION, place);
    }
    echo.put(response.headers_mut(), reply.replayed);
    response
}

pub(super) fn json(value: &Value) -> Response {
    with(StatusCode::OK, "application/json", value.to_string().into())
}

pub(super) fn problem(problem: &Problem, instance: &str, echo: &Echo) -> Response {
    let status = StatusCode::from_u16(problem.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = problem.document(instance).to_string();
    let mut response = with(status, problem::CONTENT_TYPE, body.into());
    let headers = response.headers_mut();
    let link = HeaderValue::from_str(&format!("<{POLICY}>; rel=\"describedby\""));
    headers.extend(link.ok().map(|link| (LINK, link)));
    headers.extend(problem.retry_after_seconds().map(|seconds| (RETRY_AFTER, HeaderValue::from(seconds))));
    headers.extend(wanted(problem.kind));
    echo.put(headers, problem.replayed);
    if problem.kind == Kind::InFlight {
        response.extensions_mut().insert(HttpOutcome::InFlight);
    }
    response
}

/// The header that tells a client what it should have sent.
pub fn wanted(kind: Kind) -> Option<(HeaderName, HeaderValue)> {
    match kind {
        Kind::Unauthenticated => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        // Only here: beside another reason it would say that the coding is at fault (RFC 9110, 12.5.3).
        Kind::UnsupportedEncoding => Some((ACCEPT_ENCODING, HeaderValue::from_static("identity"))),
        _ => None,
    }
}

fn with(status: StatusCode, kind: &'static str, body: Body) -> Response {
    let mut response = HttpResponse::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A document that stays the same: it may be cached for an hour.
pub(super) fn document(value: &Value) -> Response {
    let mut response = json(value);
    let age = format!("max-age={}", Duration::from_secs(3_600).as_secs());
    response.headers_mut().extend(HeaderValue::from_str(&age).ok().map(|age| (CACHE_CONTROL, age)));
    response
}

/// The parameters of a query.
pub(super) fn query(query: &str) -> Result<Vec<(String, String)>, Problem> {
    let uri = axum::http::Uri::builder().path_and_query(format!("/?{query}")).build();
    let uri = uri.map_err(|error| Problem::new(Kind::Malformed, format!("the query: {error}")))?;
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri);
    pairs.map(|pairs| pairs.0).map_err(|error| Problem::new(Kind::Malformed, error.body_text()))
}
