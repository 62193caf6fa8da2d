//! The front doors: one contract over REST, GraphQL and gRPC. Start with `operations`, then `front`.
//! In: requests of clients. Out: answers, each effect once.

pub mod auth;
pub mod front;
pub mod graphql;
pub mod grpc;
pub mod json;
pub mod key;
pub mod operations;
pub mod problem;
pub mod rest;
pub mod server;
mod typed;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use perkey::Settings;
use perkey::unstable::engine::host::{files_fit, raise_files};
use perkey::unstable::metrics::Metrics;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use self::auth::Auth;
use self::front::Front;
use self::rest::Rest;
use self::server::{Bounds, Tls};

/// The time beyond `gateway.wait` in which connections end when the process is told to.
const SPARE: Duration = Duration::from_secs(1);

/// The number of open files besides the doors' connections: the admin listener's, the store's, the log, lines to
/// brokers.
const FILES: u64 = 256;

/// The doors, still closed: their addresses are taken, so clients wait.
pub struct Doors {
    http: Option<(TcpListener, SocketAddr)>,
    grpc: Option<(TcpListener, SocketAddr)>,
    tls: Option<Tls>,
    auth: Arc<Auth>,
}

impl std::fmt::Debug for Doors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doors").field("http", &self.http).field("grpc", &self.grpc).finish_non_exhaustive()
    }
}

/// The doors, open. When dropped, they are shut at once.
#[derive(Debug)]
pub struct Open {
    stop: watch::Sender<bool>,
    serving: JoinSet<()>,
    patience: Duration,
}

impl Doors {
    /// Takes the addresses that the settings name; an empty one is skipped.
    pub async fn bind(settings: &Settings) -> Result<Self, String> {
        let gateway = &settings.gateway;
        let http = bind("gateway.listen", &gateway.listen).await?;
        let grpc = bind("gateway.grpc_listen", &gateway.grpc_listen).await?;
        let listens: Vec<_> = http.iter().chain(&grpc).map(|(_, address)| *address).collect();
        let auth = Arc::new(Auth::open(&gateway.tokens, &listens)?);
        if gateway.tls_cert.is_empty()
            && let Some(address) = listens.iter().find(|address| !address.ip().is_loopback())
        {
            warn!(%address, "the gateway speaks plain text: anybody on the way can read the tokens");
        }
        let connections = (listens.len() * gateway.connections_max) as u64;
        let needed = connections + u64::from(settings.store.connections) + FILES;
        if let Err(problem) = files_fit(raise_files(), needed) {
            warn!(%problem, "connections may be refused");
        }
        Ok(Self { http, grpc, tls: server::tls(gateway)?, auth })
    }
}

async fn bind(setting: &str, address: &str) -> Result<Option<(TcpListener, SocketAddr)>, String> {
    if address.is_empty() {
        return Ok(None);
    }
    server::bind(setting, address).await.map(Some)
}

/// Opens the doors. It must be called in a tokio runtime.
pub fn start(doors: Doors, front: Arc<Front>, metrics: Arc<Metrics>) -> Open {
    let Doors { http, grpc, tls, auth } = doors;
    auth.tell(Arc::clone(&metrics));
    let bounds = Bounds::of(front.settings());
    let patience = bounds.drain + SPARE;
    let (stop, stopped) = watch::channel(false);
    let rest = Rest { front, auth, metrics };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut serving = JoinSet::new();
    if let Some((listener, address)) = http {
        info!(address = %format!("{scheme}://{address}"), "the gateway listens");
        let routes = rest::guarded(&rest, http_routes(&rest), http_templates());
        serving.spawn(server::serve(listener, tls.clone(), routes, bounds, stopped.clone()));
    }
    if let Some((listener, address)) = grpc {
        info!(address = %format!("{scheme}://{address}"), "the gateway listens for gRPC");
        let (routes, readiness) = grpc::routes(&rest);
        serving.spawn(readiness.follow(stopped.clone()));
        let routes = rest::guarded(&rest, routes, grpc::templates());
        serving.spawn(server::serve(listener, tls, routes, bounds, stopped));
    }
    Open { stop, serving, patience }
}

/// The routes of the listener of `gateway.listen`.
fn http_routes(rest: &Rest) -> Router {
    rest::routes(rest).merge(graphql::routes(rest))
}

fn http_templates() -> Vec<String> {
    rest::templates().into_iter().chain(graphql::TEMPLATES.map(str::to_owned)).collect()
}

impl Open {
    /// Takes no new requests and lets running ones end, within their time.
    pub async fn shut(mut self) {
        self.stop.send_replace(true);
        let all = async { while self.serving.join_next().await.is_some() {} };
        if timeout(self.patience, all).await.is_err() {
            warn!("the gateway was shut before all of its requests had ended");
        }
    }
}

/// Compares a file of `docs/api` with the served one; with `BLESS=1` in the environment it is written.
#[cfg(test)]
#[track_caller]
fn published(file: &str, served: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api").join(file);
    if std::env::var_os("BLESS").is_some_and(|bless| bless == "1") {
        std::fs::write(&path, served).unwrap();
    }
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(published, served, "{} is another: run this test with BLESS=1", path.display());
}
