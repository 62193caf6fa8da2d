//! Connections: bounded in number and slowness, over TLS if that is configured; drained in order.
//! In: a listener and routes. Out: answers over HTTP/1.1 and HTTP/2, until it is told to stop.

mod body;
mod crowd;
mod preface;
mod tls;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use perkey::sleep;
use perkey::unstable::settings::GatewaySettings;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower::ServiceExt;
use tracing::{debug, warn};

pub use self::body::BodyError;
use self::body::Bounded;
use self::crowd::{Activity, Crowd, Run};
pub use self::tls::{Tls, tls};

/// The most streams at once on a connection of HTTP/2.
const STREAMS_MAX: u32 = 128;

/// The most headers of a request.
const HEADERS_MAX: usize = 100;

/// The most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Time without a request after which a connection is closed.
const IDLE: Duration = Duration::from_secs(60);

/// The interval at which a connection that waits for room looks for some.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The pause after the system refused a connection: it has no room for more files, say.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The bounds of connections.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once.
    pub connections: usize,
    /// Time of a TLS handshake, of a request's head, and of its body.
    pub read: Duration,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// The time for running requests to end when it is told to stop.
    pub drain: Duration,
}

impl Bounds {
    /// The bounds in the settings.
    pub fn of(settings: &GatewaySettings) -> Self {
        Self {
            connections: settings.connections_max,
            read: settings.read_timeout,
            body_bytes: settings.body_bytes_max,
            drain: settings.wait,
        }
    }
}

/// The state that all connections of a listener share.
struct Shared {
    tls: Option<Tls>,
    router: Router,
    bounds: Bounds,
}

/// Serves until `stop` is true, or its sender is gone; then lets running requests end.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    router: Router,
    bounds: Bounds,
    mut stop: watch::Receiver<bool>,
) {
    let shared = Arc::new(Shared { tls, router, bounds });
    let (mut open, mut crowd) = (JoinSet::new(), Crowd::default());
    // A connection that has come and has no room: later ones wait in the system.
    let mut newcomer = None;
    loop {
        tokio::select! {
            accepted = accept(&listener), if newcomer.is_none() => newcomer = accepted,
            () = sleep(LOOK_AGAIN), if newcomer.is_some() => {}
            () = stopped(&mut stop) => break,
            Some(ended) = open.join_next_with_id() => crowd.left(ended.map_or_else(|error| error.id(), |(id, ())| id)),
        }
        let has_room = newcomer.is_some() && (crowd.len() < bounds.connections || crowd.make_room());
        if let Some((stream, peer)) = newcomer.take_if(|_| has_room) {
            let (shared, mut stop, activity) = (Arc::clone(&shared), stop.clone(), Activity::start());
            let its = Arc::clone(&activity);
            let task = open.spawn(async move {
                if let Err(error) = connection(stream, &shared, &its, &mut stop).await {
                    debug!(%error, "a connection has ended");
                }
            });
            crowd.enter(peer, activity, task);
        }
    }
    drop((listener, newcomer));
    let all = async { while open.join_next().await.is_some() {} };
    if timeout(bounds.drain, all).await.is_err() {
        warn!(connections = open.len(), "connections are cut off: their requests took too long");
    }
}

/// The next connection, and its peer.
async fn accept(listener: &TcpListener) -> Option<(TcpStream, IpAddr)> {
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer.ip())),
        Err(error) => {
            warn!(%error, "a connection could not be accepted");
            sleep(ACCEPT_AGAIN).await;
            None
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Without a sender nobody holds the server any more.
    stop.wait_for(|stop| *stop).await.ok();
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn connection(
    stream: TcpStream,
    shared: &Shared,
    activity: &Arc<Activity>,
    stop: &mut watch::Receiver<bool>,
) -> Ended {
    stream.set_nodelay(true)?;
    match &shared.tls {
        None => speak(stream, shared, activity, stop).await,
        Some(tls) => {
            let stream = timeout(shared.bounds.read, tls.accept(stream)).await??;
            Box::pin(speak(stream, shared, activity, stop)).await
        }
    }
}

/// Answers one connection's requests.
async fn speak<I>(io: I, shared: &Shared, activity: &Arc<Activity>, stop: &mut watch::Receiver<bool>) -> Ended
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let bounds = shared.bounds;
    let (is_h2, io) = timeout(bounds.read, preface::look(io)).await??;
    let builder = builder(bounds, is_h2);
    let service = service_fn({
        let activity = Arc::clone(activity);
        let router = shared.router.clone();
        move |request: hyper::Request<Incoming>| {
            let run = Run::of(&activity);
            let request: Request<_> = request.map(|body| Bounded::new(body, bounds.body_bytes, bounds.read));
            let answer = router.clone().oneshot(request);
            async move {
                let answer = answer.await;
                drop(run);
                answer
            }
        }
    });
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut leaving = false;
    let mut seen = activity.seen();
    loop {
        let idle = sleep(if leaving { bounds.drain } else { IDLE });
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = stopped(stop), if !leaving => leaving = true,
            // A client that does not read its answer would keep its place for ever.
            () = idle => if leaving {
                return Err("it was told to end, and did not".into());
            } else {
                let now = activity.seen();
                leaving = now == seen && activity.is_idle();
                seen = now;
            }
        }
        if leaving {
            connection.as_mut().graceful_shutdown();
        }
    }
}

fn builder(bounds: Bounds, is_h2: bool) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    let mut h1 = builder.http1();
    h1.timer(TokioTimer::new()).header_read_timeout(bounds.read);
    h1.max_headers(HEADERS_MAX).max_buf_size(HEAD_BYTES_MAX);
    let mut h2 = builder.http2();
    h2.timer(TokioTimer::new()).keep_alive_interval(bounds.read).keep_alive_timeout(bounds.read);
    h2.max_concurrent_streams(STREAMS_MAX).max_header_list_size(HEAD_BYTES_MAX as u32);
    if is_h2 { builder.http2_only() } else { builder.http1_only() }
}

/// Takes an address; `setting` is the setting that names it.
pub async fn bind(setting: &str, address: &str) -> Result<(TcpListener, SocketAddr), String> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!(
            "cannot listen on {address} ({setting}): {error}; is another process of this kind running? Else choose \
             another address with --set {setting}=HOST:PORT"
        )
    })?;
    let address = listener.local_addr().map_err(|error| format!("{setting}: {error}"))?;
    Ok((listener, address))
}
