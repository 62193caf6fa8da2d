//! The rules for every route of the listener, whatever its protocol.
//! In: a request. Out: its answer, in time, and a count of its outcome.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use perkey::unstable::clock::Stopwatch;
use perkey::unstable::metrics::{HttpOutcome, RouteMetrics};
use perkey::unstable::telemetry::traces;
use tracing::{Instrument, Span};

use super::answer::{self, Echo, REPLAYED};
use super::{Rest, changes};
use crate::gateway::problem::{Kind, Problem};

/// The time that a request may take beyond its reading and its wait.
const SPARE: Duration = Duration::from_secs(20);

/// Names of this machine that a client of loopback uses.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// The header that names the trace that a request is part of.
const TRACEPARENT: &str = "traceparent";

/// The route of requests that have none.
const OTHER: &str = "other";

/// The state of the guard of a listener.
#[derive(Clone)]
pub(super) struct Guard {
    rest: Rest,
    /// The handles of the listener's routes, by their templates.
    routes: Arc<HashMap<String, RouteMetrics>>,
}

impl Guard {
    /// The guard of these routes: what becomes of their requests is shown from now on.
    pub(super) fn of(rest: &Rest, templates: Vec<String>) -> Self {
        let all = templates.into_iter().chain([OTHER.to_owned()]);
        let routes = all.map(|route| (route.clone(), rest.metrics.route(&route))).collect();
        Self { rest: rest.clone(), routes: Arc::new(routes) }
    }
}

pub(super) async fn guard(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let Guard { rest, routes } = guard;
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or(OTHER, MatchedPath::as_str);
    let span = traced(&mut request, route);
    let watch = Stopwatch::start();
    let response = bounded(&rest, request, next).instrument(span.clone()).await;
    let elapsed = watch.elapsed();
    traces::answered(&span, response.status().as_u16());
    let outcome = outcome(&response);
    match routes.get(route) {
        Some(handles) => handles.record(outcome, elapsed),
        None => rest.metrics.route(route).record(outcome, elapsed),
    }
    response
}

/// The request's span. Work that the request causes has this span as its parent, instead of the client's.
fn traced(request: &mut Request, route: &str) -> Span {
    let given = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
    let span = traces::request(request.method().as_str(), route, given);
    if let Some(own) = traces::traceparent(&span).and_then(|own| HeaderValue::from_str(&own).ok()) {
        request.headers_mut().insert(TRACEPARENT, own);
    }
    span
}

/// The answer, or a problem when it takes too long.
async fn bounded(rest: &Rest, request: Request, next: Next) -> Response {
    let instance = request.uri().path().to_owned();
    let settings = rest.front.settings();
    let within = settings.read_timeout + settings.wait + SPARE;
    let refused = rest.auth.is_open().then(|| from_elsewhere(&request, settings.local_origins)).flatten();
    let told = |problem: &Problem| answer::problem(problem, &instance, &Echo::default());
    match refused {
        Some(problem) => told(&problem),
        None => tokio::time::timeout(within, next.run(request)).await.unwrap_or_else(|_| {
            let detail = "the request took too long here: ask again with the same key";
            let mut late = told(&Problem::new(Kind::Unavailable, detail).retry_after(Duration::from_secs(2)));
            late.extensions_mut().insert(HttpOutcome::TimedOut);
            late
        }),
    }
}

/// The problem of a request from another site. Without tokens a page of another site must not reach this listener:
/// neither by a name of its own that leads to this machine, nor by a request of its own. Pages of other ports of this
/// machine count as another site's, too, unless the setting allows them.
pub fn from_elsewhere(request: &Request, local_origins: bool) -> Option<Problem> {
    let text = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    let host = request.uri().authority().map(|authority| authority.as_str()).or_else(|| text(header::HOST));
    if let Some(host) = host
        && !is_loopback(host)
    {
        let detail = format!("without tokens only this machine is served, and {host:?} is not its name: use localhost");
        return Some(Problem::new(Kind::Forbidden, detail));
    }
    let origin = text(header::ORIGIN).filter(|_| changes(request.method()))?;
    let site = origin.split_once("://").map_or(origin, |(_, site)| site);
    let is_own = host.is_some_and(|host| host.eq_ignore_ascii_case(site));
    if is_own || local_origins && is_loopback(site) {
        return None;
    }
    let detail = format!("without tokens no page of another site is served: {origin:?} (gateway.local_origins)");
    Some(Problem::new(Kind::Forbidden, detail))
}

/// Returns whether a host, with or without its port, is this machine. Host names ignore case (RFC 3986, 3.2.2).
fn is_loopback(host: &str) -> bool {
    LOOPBACK.iter().any(|name| name.eq_ignore_ascii_case(name_of(host)))
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn outcome(response: &Response) -> HttpOutcome {
    // What a status does not tell: its place in the code does.
    if let Some(outcome) = response.extensions().get::<HttpOutcome>() {
        return *outcome;
    }
    // An error of gRPC is a 200 with another status in it.
    let grpc = response.headers().get("grpc-status").and_then(|code| code.to_str().ok()).unwrap_or("0");
    match response.status() {
        _ if response.headers().contains_key(&REPLAYED) => HttpOutcome::Replayed,
        StatusCode::OK if grpc != "0" => of_grpc(grpc),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => HttpOutcome::Forbidden,
        StatusCode::REQUEST_TIMEOUT => HttpOutcome::TimedOut,
        StatusCode::CONFLICT => HttpOutcome::Conflict,
        StatusCode::TOO_MANY_REQUESTS => HttpOutcome::Limited,
        StatusCode::SERVICE_UNAVAILABLE => HttpOutcome::Unavailable,
        status if status.is_server_error() => HttpOutcome::Failed,
        status if status.is_client_error() => HttpOutcome::Refused,
        _ => HttpOutcome::Done,
    }
}

/// The outcome for a gRPC status, by its number.
fn of_grpc(code: &str) -> HttpOutcome {
    match code {
        "7" | "16" => HttpOutcome::Forbidden,
        "4" => HttpOutcome::TimedOut,
        "6" => HttpOutcome::Conflict,
        // Only a request that still runs is told so.
        "10" => HttpOutcome::InFlight,
        "8" => HttpOutcome::Limited,
        "14" => HttpOutcome::Unavailable,
        "2" | "13" | "15" => HttpOutcome::Failed,
        _ => HttpOutcome::Refused,
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn asked(host: &str, origin: Option<&str>) -> Request {
        let mut request = Request::post("/api/orders").header(header::HOST, host);
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        request.body(Body::empty()).unwrap()
    }

    #[test]
    fn without_tokens_only_this_machine_is_served() {
        for (host, origin) in [
            ("localhost:8080", None),
            ("127.0.0.1", None),
            ("[::1]:8080", None),
            ("LocalHost:8080", Some("http://LOCALHOST:3000")),
            ("localhost", Some("http://localhost:3000")),
        ] {
            assert_eq!(from_elsewhere(&asked(host, origin), true), None, "{host} {origin:?}");
        }
        for (host, origin) in [
            ("evil.example:8080", None),
            ("127.0.0.1.evil.example", None),
            ("localhost:8080", Some("https://evil.example")),
            ("localhost:8080", Some("null")),
        ] {
            let problem = from_elsewhere(&asked(host, origin), true).unwrap();
            assert_eq!(problem.kind, Kind::Forbidden, "{host} {origin:?}");
        }
    }

    #[test]
    fn outcomes_tell_a_deadline_and_a_running_request_from_a_conflict() {
        let of = |kind| outcome(&answer::problem(&Problem::new(kind, "x"), "/", &Echo::default()));
        assert_eq!(of(Kind::TooSlow), HttpOutcome::TimedOut);
        assert_eq!(of(Kind::InFlight), HttpOutcome::InFlight);
        assert_eq!(of(Kind::AlreadyExists), HttpOutcome::Conflict);
        assert_eq!(of(Kind::Unavailable), HttpOutcome::Unavailable);
        let codes = ["4", "6", "10"].map(of_grpc);
        assert_eq!(codes, [HttpOutcome::TimedOut, HttpOutcome::Conflict, HttpOutcome::InFlight]);
    }

    #[test]
    fn pages_of_other_ports_of_this_machine_are_served_where_that_is_set() {
        let own = asked("localhost:8080", Some("http://LocalHost:8080"));
        let other = asked("localhost:8080", Some("http://localhost:3000"));
        assert_eq!((from_elsewhere(&own, false), from_elsewhere(&other, true)), (None, None));
        assert!(from_elsewhere(&other, false).unwrap().detail.contains("gateway.local_origins"));
    }
}
