//! The start of an engine: all problems are reported at once, then the tree is built.
//! In: settings, handlers, a store, sources and sinks. Out: a running engine, or the problems in its way.

use std::sync::Arc;

use ractor::{Actor, SpawnErr};
use tokio::sync::{Semaphore, watch};
use tracing::info;

use super::cache::{self, ReplayCache};
use super::calls::Calls;
use super::entry::Entry;
use super::{Engine, EngineError};
use crate::clock::{Clock, Dice};
use crate::fleet;
use crate::fleet::root::{Root, RootArgs};
use crate::handlers::Handlers;
use crate::ledger::cron;
use crate::ledger::gates::Gates;
use crate::ledger::protocol::describe;
use crate::ledger::routes::{Bindings, sinks_of};
use crate::metrics::{Metrics, UNKNOWN_SERVICE};
use crate::settings::Settings;
use crate::settings::load::or_near;
use crate::shard::env::Env;
use crate::shard::env::recorder::Recorder;
use crate::shard::env::troubles::Troubles;
use crate::shard::permits::PermitPool;
use crate::shard::worker::Ownership;
use crate::store::{Setup, Store, StoreError};
use crate::transport::open::Ends;
use crate::transport::{self, SinkTransport, Transport};

/// Starts an engine with the sources and sinks that the settings name.
pub(super) async fn open(
    settings: &Settings,
    handlers: Handlers,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    recorder: Option<Arc<Recorder>>,
) -> Result<Engine, EngineError> {
    let opened = transport::open::open(settings, &store, &metrics);
    let Ends { sources, sinks } = opened.map_err(|error| EngineError::Settings(error.to_string()))?;
    launch(settings, handlers, store, metrics, sources, sinks, recorder).await
}

/// Builds the tree of an engine and starts it.
pub(super) async fn launch(
    settings: &Settings,
    handlers: Handlers,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    transports: Vec<Arc<dyn Transport>>,
    sinks: Vec<Arc<dyn SinkTransport>>,
    recorder: Option<Arc<Recorder>>,
) -> Result<Engine, EngineError> {
    let mut problems = settings.problems();
    let bindings = Bindings::new(settings, handlers.clone());
    problems.extend(bindings.as_ref().err().map(ToString::to_string));
    let schedules = cron::plan(&handlers, settings, Clock::system().now());
    problems.extend(schedules.as_ref().err().into_iter().flatten().cloned());
    let wanted = sinks_of(settings);
    let (found, missing) = routed(settings, &transports, &wanted, &sinks);
    problems.extend(missing);
    let (Ok(bindings), Ok(schedules), true) = (bindings, schedules, problems.is_empty()) else {
        return Err(EngineError::Settings(problems.join("; ")));
    };
    let identity = store.prepare(setup(settings, &handlers)).await?;
    let gates = Gates::new(&handlers.needs(), settings, Dice::from_system().below(u64::MAX));
    let services: Arc<[_]> = describe(&handlers, &identity.services, settings, &gates, schedules).into();
    let in_flight = store.writes_in_parallel().then(|| Arc::new(Semaphore::new(settings.commit.in_flight)));
    metrics.set_build(env!("CARGO_PKG_VERSION"), handlers.code().number);
    // Dead letters of no service that is known here are counted, too, from 0.
    metrics.service(UNKNOWN_SERVICE);
    let fleet = store.leases().map(|_| Ownership::new(&fleet::worker(settings, handlers.code())));
    let secret = store.calls().secret().await?;
    let cache = cache::open(settings, &secret, &metrics).map_err(|error| EngineError::Settings(error.to_string()))?;
    let env = Arc::new(Env {
        pending: Arc::default(),
        in_flight,
        fleet,
        gates: Arc::new(PermitPool::new(gates, Clock::system(), metrics.clone())),
        service_metrics: services.iter().map(|service| metrics.service(&service.name)).collect(),
        services,
        troubles: Troubles::new(settings.ownership.shards),
        settings: Arc::new(settings.clone()),
        handlers,
        bindings: Arc::new(bindings),
        store,
        transports,
        sinks: found,
        metrics,
        clock: Clock::system(),
        recorder,
        identity,
        // Process ids come again: the incarnation tells two of them apart.
        process: format!("pid {} ({:08x})", std::process::id(), Dice::from_system().below(1 << 32)),
    });
    let (failed, watch) = watch::channel(None);
    let args = RootArgs { env: env.clone(), failed };
    let (root, _) = Actor::spawn(None, Root, args).await.map_err(start_error)?;
    info!(shards = settings.ownership.shards, "engine started");
    let entry = Arc::new(Entry::new(Arc::clone(&env), watch.clone()));
    let calls = calls(&env, cache);
    Ok(Engine { env, root, failed: watch, entry, calls })
}

/// The setup of a store by a program that runs it: its shards, services, tables and code versions.
pub fn setup(settings: &Settings, handlers: &Handlers) -> Setup {
    Setup {
        shards: settings.ownership.shards,
        services: handlers.services(),
        tables: handlers.tables(),
        code: handlers.code(),
    }
}

/// The entry for calls of a process that runs shards.
fn calls(env: &Arc<Env>, cache: Arc<dyn ReplayCache>) -> Arc<Calls> {
    let here = Arc::clone(env);
    let is_here = move |shard| here.fleet.as_ref().is_none_or(|fleet| fleet.view().running.contains(&shard));
    let (settings, handlers) = (Arc::clone(&env.settings), env.handlers.clone());
    let (store, metrics, pending) = (Arc::clone(&env.store), Arc::clone(&env.metrics), Arc::clone(&env.pending));
    Calls::with(settings, handlers, store, cache, metrics, pending, Box::new(is_here))
}

/// The sinks that events are routed to; and every source or sink that a route names and nobody brought.
fn routed(
    settings: &Settings,
    transports: &[Arc<dyn Transport>],
    wanted: &[Arc<str>],
    sinks: &[Arc<dyn SinkTransport>],
) -> (Vec<Arc<dyn SinkTransport>>, Vec<String>) {
    let sources: Vec<&str> = transports.iter().map(|transport| transport.name()).collect();
    let names: Vec<&str> = sinks.iter().map(|sink| sink.name()).collect();
    let problems = unrouted(settings, &sources, &names);
    let found = wanted.iter().filter_map(|name| sinks.iter().find(|sink| sink.name() == &**name).cloned());
    (found.collect(), problems)
}

/// Every source and sink that a route names and that is not among these.
pub(super) fn unrouted(settings: &Settings, sources: &[&str], sinks: &[&str]) -> Vec<String> {
    let listed = |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let mut problems = Vec::new();
    for bind in settings.bind.iter().filter(|bind| !sources.contains(&bind.source.as_str())) {
        let (source, kind, near) = (&bind.source, &bind.kind, or_near(&bind.source, sources.iter().copied()));
        problems.push(format!(
            "bind of type {kind:?}: there is no source {source:?}; there are: {}{near}",
            listed(sources)
        ));
    }
    for name in sinks_of(settings).iter().filter(|name| !sinks.contains(&&***name)) {
        let publish = settings.publish.iter().find(|publish| *publish.sink == **name);
        let what = publish.map_or_else(
            || "kafka.dead_letter_topic".to_owned(),
            |publish| format!("publish of type {:?}", publish.kind),
        );
        let near = or_near(name, sinks.iter().copied());
        problems.push(format!("{what}: there is no sink {name:?}; there are: {}{near}", listed(sinks)));
    }
    problems
}

/// The error of a start that failed in the tree: a store keeps its own words.
fn start_error(error: SpawnErr) -> EngineError {
    match error {
        SpawnErr::StartupFailed(cause) => match cause.downcast::<SpawnErr>() {
            Ok(inner) => start_error(*inner),
            Err(cause) => match cause.downcast::<StoreError>() {
                Ok(error) => EngineError::Store(*error),
                Err(cause) => EngineError::Start(cause.to_string()),
            },
        },
        SpawnErr::ActorAlreadyStarted | SpawnErr::ActorAlreadyRegistered(_) => EngineError::Start(error.to_string()),
    }
}
