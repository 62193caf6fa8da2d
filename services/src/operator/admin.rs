//! The admin listener: `/metrics`, `/livez`, `/readyz`.
//! In: probes. Out: metrics as OpenMetrics or classic text, and whether messages are being handled, with the problems if not.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use perkey::host::Failure;
use perkey::unstable::engine::calls::Calls;
use perkey::unstable::metrics::{CLASSIC_CONTENT_TYPE, CONTENT_TYPE, Metrics};
use perkey::unstable::store::Store;
use perkey::{Engine, Settings};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::defaults;
use crate::gateway::rest::from_elsewhere;
use crate::gateway::server::{self, Bounds};

/// The time for an answer: the prober would not see a later one.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// The state that the listener answers from.
#[derive(Debug)]
pub struct Admin {
    metrics: Arc<Metrics>,
    /// Notes about its settings, which do not make it unready.
    notes: Vec<&'static str>,
    stage: Mutex<Stage>,
}

/// The stages of the process's life.
#[derive(Clone)]
pub enum Stage {
    /// The engine is not up yet.
    Starting,
    /// The engine runs.
    Running(Engine),
    /// There is no engine here: only this store is needed.
    Reading(Arc<dyn Store>, Arc<Calls>),
    /// The engine is being drained.
    Draining,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Starting => "Starting",
            Self::Running(_) => "Running",
            Self::Reading(..) => "Reading",
            Self::Draining => "Draining",
        })
    }
}

impl Admin {
    /// The listener of an engine that will start with these settings.
    pub fn new(settings: &Settings, metrics: Arc<Metrics>) -> Arc<Self> {
        let notes = defaults::lacks(settings).into_iter().map(|lack| lack.what).collect();
        Arc::new(Self { metrics, notes, stage: Mutex::new(Stage::Starting) })
    }

    /// Sets the stage of the process.
    pub fn set(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    async fn readiness(&self) -> (bool, Vec<String>) {
        let stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let engine = match stage {
            Stage::Starting => return not_ready("the engine is starting"),
            Stage::Running(engine) => engine,
            Stage::Reading(store, calls) => return readable(&*store, &calls).await,
            Stage::Draining => return not_ready("the engine is being drained"),
        };
        match tokio::time::timeout(ANSWER_WITHIN, engine.health()).await {
            Ok(health) => (health.ready, health.problems),
            Err(_) => not_ready("the engine does not answer"),
        }
    }
}

/// The most connections at once: probes and collectors of metrics need few.
const CONNECTIONS_MAX: usize = 64;

/// The time for a client to send a request's head, and its body, which is not read.
const BOUNDS: Bounds = Bounds {
    connections: CONNECTIONS_MAX,
    read: Duration::from_secs(5),
    body_bytes: 1 << 10,
    drain: Duration::from_secs(1),
};

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    let is_local = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
    let mut routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .with_state(admin);
    if is_local {
        routes = routes.layer(from_fn(local));
    }
    let (_stop, stopped) = watch::channel(false);
    server::serve(listener, None, routes, BOUNDS, stopped).await;
}

/// Refuses foreign host names if the listener is on loopback: a page of a site whose name leads here is not served.
async fn local(request: Request, next: Next) -> Response {
    match from_elsewhere(&request, false) {
        Some(problem) => (StatusCode::FORBIDDEN, format!("{}\n", problem.detail)).into_response(),
        None => next.run(request).await,
    }
}

/// The reason why the process has to end when the listener has.
pub fn failed() -> Failure {
    Failure::Failed("the admin listener has ended".to_owned())
}

async fn readable(store: &dyn Store, calls: &Calls) -> (bool, Vec<String>) {
    match tokio::time::timeout(ANSWER_WITHIN, store.queries().pauses()).await {
        Ok(Ok(_)) => calls.trouble().map_or((true, Vec::new()), |trouble| not_ready(&trouble)),
        Ok(Err(error)) => not_ready(&format!("the store cannot be read: {error}")),
        Err(_) => not_ready("the store does not answer"),
    }
}

fn not_ready(problem: &str) -> (bool, Vec<String>) {
    (false, vec![problem.to_owned()])
}

async fn metrics(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let all = headers.get_all(header::ACCEPT).into_iter().filter_map(|accept| accept.to_str().ok());
    let (kind, text) = match wants_classic(&all.collect::<Vec<_>>().join(",")) {
        true => (CLASSIC_CONTENT_TYPE, admin.metrics.encode_classic()),
        false => (CONTENT_TYPE, admin.metrics.encode()),
    };
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// True if a client would rather have the classic text format of metrics than OpenMetrics.
fn wants_classic(accept: &str) -> bool {
    quality(accept, "text", "plain") > quality(accept, "application", "openmetrics-text")
}

/// The quality of a media type to a client, from 0 to 1: what it says of the type itself counts before what it says of
/// many (RFC 9110, 12.5.1).
fn quality(accept: &str, kind: &str, sub: &str) -> f32 {
    let is = |said: &str, name: &str| said.eq_ignore_ascii_case(name);
    let wanted = accept.split(',').filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let exact = match parts.next()?.split_once('/')? {
            ("*", "*") => 0,
            (top, "*") if is(top, kind) => 1,
            (top, below) if is(top, kind) && is(below, sub) => 2,
            _ => return None,
        };
        let given = parts.filter_map(|part| part.split_once('=')).find(|(name, _)| is(name.trim(), "q"));
        Some((exact, given.map_or(1.0, |(_, q)| q.trim().parse::<f32>().unwrap_or(0.0))))
    });
    wanted.fold((0, 0.0), |best, next| if next >= best { next } else { best }).1
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let (ready, problems) = admin.readiness().await;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({ "ready": ready, "problems": problems, "notes": admin.notes }).to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_ready_only_while_its_engine_runs() {
        let admin = Admin::new(&defaults::settings(), Metrics::new());
        for stage in [Stage::Starting, Stage::Draining] {
            admin.set(stage);
            let answer = readyz(State(Arc::clone(&admin))).await;
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        assert_eq!(admin.readiness().await.1, ["the engine is being drained"]);
    }

    #[tokio::test]
    async fn metrics_are_openmetrics() {
        let admin = Admin::new(&defaults::settings(), Metrics::new());
        let answer = metrics(State(admin), HeaderMap::new()).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(answer.headers()[header::CONTENT_TYPE].to_str().unwrap().starts_with("application/openmetrics-text"));
    }

    #[test]
    fn the_classic_format_is_for_those_who_ask_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;\
                          q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for open in ["", "*/*", prometheus, "text/html, */*;q=0.8", "application/openmetrics-text", "text/plain;q=x"] {
            assert!(!wants_classic(open), "{open}");
        }
        for classic in [
            "text/plain",
            "text/*",
            "TEXT/Plain; version=0.0.4 ; Q=0.9, */*;q=0.1",
            "text/plain, application/openmetrics-text;q=0.5",
            "*/*;q=0.2, application/openmetrics-text;q=0",
        ] {
            assert!(wants_classic(classic), "{classic}");
        }
    }
}
