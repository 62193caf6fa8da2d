//! `up` and `worker`: the engine, its front doors and the admin listener in one process, until told to stop.
//! In: settings. Out: a process that drains in order at the first signal and ends at once at the second.

use std::sync::Arc;

use perkey::unstable::engine::host::{Drained, Signals, drain};
use perkey::unstable::metrics::Metrics;
use perkey::unstable::settings::load::redact;
use perkey::unstable::store::{self, Access};
use perkey::{Engine, Settings};
use tokio::net::TcpListener;
use tracing::info;

use super::{Done, Ended, Failure, handlers};
use crate::gateway::front::Front;
use crate::gateway::{self, Doors, Open};
use crate::operator::admin::{self, Admin, Stage};

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
    // First of all: another process that runs the store matters more than its port.
    let store = store::open(settings, Access::Run).await?.store();
    let (listener, address) = admin_listener(settings).await?;
    let doors = Doors::bind(settings).await.map_err(Failure::Failed)?;
    let metrics = Metrics::new();
    let admin = Admin::new(settings, Arc::clone(&metrics));
    let engine = async {
        let handlers = handlers(settings)?;
        let engine = Engine::start(settings, handlers.clone(), Arc::clone(&store), Arc::clone(&metrics)).await?;
        admin.set(Stage::Running(engine.clone()));
        let front = Front::new(settings, &handlers, store, engine.calls(), &metrics);
        let open = gateway::start(doors, front, metrics);
        let store = redact("store.url", &settings.store.url);
        let shards = settings.ownership.shards;
        info!(%store, shards, metrics = %address, "messages are being handled");
        run(engine, open, &admin, &mut signals).await
    };
    tokio::select! {
        ended = Box::pin(engine) => ended,
        () = admin::serve(listener, Arc::clone(&admin)) => Err(admin::failed()),
    }
}

/// Takes the address for metrics and health, and logs where they are.
pub(crate) async fn admin_listener(settings: &Settings) -> Result<(TcpListener, String), Failure> {
    let listen = &settings.admin.listen;
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        Failure::Failed(format!(
            "cannot listen on {listen} for metrics and health: {error}; is another process of this kind running? Else choose another \
             address with --set admin.listen=HOST:PORT"
        ))
    })?;
    let address = listener.local_addr().map_or_else(|_| listen.clone(), |address| address.to_string());
    Ok((listener, format!("http://{address}/metrics")))
}

async fn run(engine: Engine, open: Open, admin: &Admin, signals: &mut Signals) -> Ended {
    tokio::select! {
        reason = engine.failed() => return Err(Failure::Failed(format!("the engine gave up: {reason}"))),
        () = signals.next() => (),
    }
    info!("draining; a second signal ends the process at once");
    admin.set(Stage::Draining);
    // Calls that clients wait for need the engine: the doors are shut first.
    if !shut(open, signals).await {
        return Ok(Done::Interrupted);
    }
    leave(engine, signals).await
}

/// Shuts the front doors in order; returns false if a signal cut it short.
pub(crate) async fn shut(open: Open, signals: &mut Signals) -> bool {
    tokio::select! {
        () = open.shut() => true,
        () = signals.next() => {
            store::leave_open();
            false
        }
    }
}

/// Drains the engine in order; another signal cuts it short.
pub async fn leave(engine: Engine, signals: &mut Signals) -> Ended {
    Ok(match drain(engine, signals).await? {
        Drained::InOrder => Done::All,
        Drained::CutShort => Done::Interrupted,
    })
}
