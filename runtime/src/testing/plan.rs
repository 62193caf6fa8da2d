//! The constant part of a simulation.
//! In: handlers, settings, the wanted faults. Out: configurations for ledgers and runs.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Dice, Millis};
use crate::handler::{Column, ColumnKind, Table, TurnLimits};
use crate::handlers::{Handlers, RunContext};
use crate::ledger::gates::Gates;
use crate::ledger::outbox::publisher::Window;
use crate::ledger::protocol::{LedgerConfig, ServiceInfo, SourceInfo, describe};
use crate::ledger::routes::Bindings;
use crate::ledger::{Ledger, cron};
use crate::message::{ServiceIx, ShardNo, TakenId};
use crate::settings::Settings;
use crate::store::memory::{MemoryStore, at_once};
use crate::store::{InboxRows, Setup, Store, StoreError, TakenShard};
use crate::transport::embedded;

/// Names of the simulated sources: the store's log, a log, a queue that redelivers what was not acknowledged, and a
/// table without order whose rows go with the commits that take them.
pub(super) const SOURCES: [&str; 4] = [embedded::NAME, "log", "queue", INTAKE];

/// Name of the simulated table.
pub(super) const INTAKE: &str = "intake";

/// The table with a row for each turn that counted, from which the simulator learns which turns those were.
pub(super) const PROBE: Table = Table {
    name: "simulation_effects",
    columns: &[
        Column::new("turn", ColumnKind::Integer),
        Column::new("service", ColumnKind::Text),
        Column::new("key", ColumnKind::Text),
        Column::new("id", ColumnKind::Text),
    ],
    primary_key: &["service", "id", "turn"],
    key_column: None,
    indexes: &[],
};

/// The kinds of faults that a simulation draws from its seed.
///
/// ```
/// use perkey::testing::Faults;
///
/// let deaths = Faults { crashes: true, children: true, ..Faults::none() };
/// assert_ne!(deaths, Faults::all());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// A shard's owner dies, with a commit in hand or not, and another one takes over.
    pub crashes: bool,
    /// An owner stands still, is taken over from, and goes on as if nothing had happened.
    pub freezes: bool,
    /// Key actors, committers, ingresses and dispatchers die.
    pub children: bool,
    /// Answers to commits are lost; the store is away for a while.
    pub store: bool,
    /// The store refuses rows of some messages, a few times or always.
    pub refusals: bool,
    /// Sources hand over messages again, later or from another source.
    pub duplicates: bool,
    /// Turns of some messages fail: tried again, deferred, rejected, or dead with their actor.
    pub turns: bool,
    /// Shards are drained and taken again.
    pub drains: bool,
    /// Operators replay and discard dead letters, pause and resume services and keys while everything runs.
    pub operators: bool,
    /// Sinks are away for a while, break, and refuse some events.
    pub sinks: bool,
}

impl Faults {
    /// All faults.
    pub fn all() -> Self {
        Self {
            crashes: true,
            freezes: true,
            children: true,
            store: true,
            refusals: true,
            duplicates: true,
            turns: true,
            drains: true,
            operators: true,
            sinks: true,
        }
    }

    /// No faults: everything goes well.
    pub fn none() -> Self {
        Self {
            crashes: false,
            freezes: false,
            children: false,
            store: false,
            refusals: false,
            duplicates: false,
            turns: false,
            drains: false,
            operators: false,
            sinks: false,
        }
    }
}

/// The program under simulation.
pub(super) struct SimPlan {
    pub(super) seed: u64,
    pub(super) faults: Faults,
    pub(super) settings: Arc<Settings>,
    pub(super) handlers: Handlers,
    pub(super) services: Arc<[ServiceInfo]>,
    pub(super) sources: Arc<[SourceInfo]>,
    pub(super) bindings: Arc<Bindings>,
    pub(super) sinks: Arc<[Arc<str>]>,
    pub(super) hash_key: [u8; 32],
    pub(super) context: RunContext,
    pub(super) actors_max: u32,
}

/// The reason why a simulation cannot begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The settings and the handlers do not fit.
    #[error("{0}")]
    Settings(String),
    #[error(transparent)]
    Runtime(std::io::Error),
}

impl SimPlan {
    /// The bounds on a shard's events that are on their way to one sink.
    pub(super) fn window(&self) -> Window {
        let (settings, ends) = (&self.settings, self.sources.len() + self.sinks.len());
        Window { events: settings.outbox.window, bytes: settings.memory.share(settings.ownership.shards, ends) }
    }

    pub(super) fn new(
        seed: u64,
        faults: Faults,
        settings: Settings,
        handlers: Handlers,
        store: &MemoryStore,
        clock: &Clock,
    ) -> Result<Self, StartError> {
        let mut tables = handlers.tables();
        tables.push(PROBE);
        let setup =
            Setup { shards: settings.ownership.shards, services: handlers.services(), tables, code: handlers.code() };
        let identity = at_once(store.prepare(setup))?;
        let limits = TurnLimits {
            rows_max: settings.limits.turn_rows_max,
            events_max: settings.limits.turn_events_max,
            bytes_max: settings.limits.turn_bytes_max,
        };
        // Slices are cut by the seed and not by the machine's clock.
        let slice = Duration::from_secs(3_600);
        let bindings = Arc::new(Bindings::new(&settings, handlers.clone()).map_err(StartError::Settings)?);
        let schedules = cron::plan(&handlers, &settings, clock.now())
            .map_err(|problems| StartError::Settings(problems.join("; ")))?;
        let gates = gates(&handlers, &settings, seed);
        let services = describe(&handlers, &identity.services, &settings, &gates, schedules);
        Ok(Self {
            seed,
            faults,
            services: services.into(),
            sources: SOURCES
                .iter()
                .map(|name| SourceInfo { name: Arc::from(*name), ordered: *name != INTAKE })
                .collect(),
            sinks: bindings.sinks(),
            bindings,
            hash_key: identity.hash_key,
            context: RunContext { clock: clock.clone(), limits, slice, hash_key: identity.hash_key },
            actors_max: u32::try_from(settings.actors.resident_max / settings.ownership.shards as usize).unwrap_or(1),
            settings: Arc::new(settings),
            handlers,
        })
    }

    /// True if ids are remembered for as long as it runs: copies are recognised by them.
    pub(super) fn remembers(&self) -> bool {
        let default = Settings::default().dedup;
        self.settings.dedup.max_ids >= default.max_ids && self.settings.dedup.window >= default.window
    }

    pub(super) fn shards(&self) -> ShardNo {
        self.settings.ownership.shards
    }

    pub(super) fn ledger(&self, taken: TakenShard, inbox: InboxRows, dice: &mut Dice, now: Millis) -> Ledger {
        let config = LedgerConfig {
            settings: self.settings.clone(),
            services: self.services.clone(),
            sources: self.sources.clone(),
            bindings: self.bindings.clone(),
            hash_key: self.hash_key,
            actors_max: self.actors_max,
            seed: dice.below(u64::MAX),
        };
        Ledger::new(config, taken, inbox, now)
    }

    /// The id of a message as `service` takes it; a message without a service has a scope of its own.
    pub(super) fn taken_id(&self, service: Option<ServiceIx>, message: &crate::Message) -> TakenId {
        let number = service.map_or(u16::MAX, |service| self.services[service].number);
        TakenId::of(message, number, &self.hash_key)
    }
}

/// The gates of a simulated program.
pub(super) fn gates(handlers: &Handlers, settings: &Settings, seed: u64) -> Gates {
    Gates::new(&handlers.needs(), settings, seed)
}
