//! `up` and `worker`: the engine and the admin listener in one process, until told to stop.
//! In: settings. Out: a process that drains in order at the first signal and ends at once at the second.

use std::sync::Arc;
use std::time::Duration;

use perkey::clock::sleep;
use perkey::engine::Engine;
use perkey::metrics::Metrics;
use perkey::settings::Settings;
use perkey::settings::load::redact;
use perkey::store::{self, Access};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use super::{Done, Ended, Failure, handlers};
use crate::operator::admin::{self, Admin, Stage};

const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A drain ends within this, whatever happens.
const DRAIN_MAX: Duration = Duration::from_secs(25);

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// Takes the signals over: from now on they no longer end the process by themselves.
    pub fn take() -> Result<Self, Failure> {
        let take = |kind| signal(kind).map_err(|error| Failure::Failed(format!("cannot watch for signals: {error}")));
        Ok(Self { term: take(SignalKind::terminate())?, int: take(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => (),
            _ = self.int.recv() => (),
        }
    }
}

/// Runs everything in this process.
pub async fn up(settings: &Settings) -> Ended {
    if store::is_shared(settings) {
        let shown = redact("store.url", &settings.store.url);
        let why =
            format!("store.url: `up` runs the embedded default in one file, not {shown}: use `budget-manager worker`");
        return Err(Failure::Settings(vec![why]));
    }
    serve(settings).await
}

/// Runs one worker of a fleet.
pub async fn worker(settings: &Settings) -> Ended {
    if !store::is_shared(settings) {
        let shown = redact("store.url", &settings.store.url);
        let why = format!(
            "store.url: `worker` is one of several that share a store, and {shown} is run by one process: set \
             store.url = \"postgres://user@host/database\", or use `budget-manager up`"
        );
        return Err(Failure::Settings(vec![why]));
    }
    serve(settings).await
}

async fn serve(settings: &Settings) -> Ended {
    let mut signals = Signals::take()?;
    // First of all: whether another process runs the store matters more than its port.
    let store = store::open(settings, Access::Run).await?.store();
    let listen = &settings.admin.listen;
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        Failure::Failed(format!(
            "cannot listen on {listen} for metrics and health: {error}; is another process of this kind running? Else choose another \
             address with --set admin.listen=HOST:PORT"
        ))
    })?;
    let address = listener.local_addr().map_or_else(|_| listen.clone(), |address| address.to_string());
    let metrics = Metrics::new();
    let admin = Admin::new(Arc::clone(&metrics));
    let engine = async {
        let engine = Engine::start(settings, handlers(settings)?, store, metrics).await?;
        let engine = Arc::new(engine);
        admin.set(Stage::Running(Arc::downgrade(&engine)));
        let store = redact("store.url", &settings.store.url);
        let shards = settings.ownership.shards;
        info!(%store, shards, metrics = %format!("http://{address}/metrics"), "messages are being handled");
        run(engine, &admin, &mut signals).await
    };
    tokio::select! {
        ended = engine => ended,
        ended = admin::serve(listener, Arc::clone(&admin)) => {
            let reason = ended.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string());
            Err(Failure::Failed(format!("the admin listener failed: {reason}")))
        }
    }
}

async fn run(engine: Arc<Engine>, admin: &Admin, signals: &mut Signals) -> Ended {
    tokio::select! {
        reason = engine.failed() => return Err(Failure::Failed(format!("the engine gave up: {reason}"))),
        () = signals.next() => (),
    }
    info!("draining; a second signal ends the process at once");
    admin.set(Stage::Draining);
    drain(owned(engine).await, signals).await
}

/// Drains the engine in order; a signal meanwhile cuts it short.
pub async fn drain(engine: Engine, signals: &mut Signals) -> Ended {
    tokio::select! {
        ended = tokio::time::timeout(DRAIN_MAX, engine.drain()) => match ended {
            Ok(drained) => {
                drained?;
                info!("drained");
                Ok(Done::All)
            }
            Err(_) => Err(Failure::Failed(format!("the drain did not end within {DRAIN_MAX:?}"))),
        },
        () = signals.next() => {
            warn!("told to stop a second time; what was in hand is handled again at the next start");
            Ok(Done::Interrupted)
        }
    }
}

/// Waits for the probes that look at the engine just now: they hold it for a second at most.
async fn owned(mut engine: Arc<Engine>) -> Engine {
    loop {
        match Arc::try_unwrap(engine) {
            Ok(engine) => return engine,
            Err(shared) => engine = shared,
        }
        sleep(LOOK_EVERY).await;
    }
}
