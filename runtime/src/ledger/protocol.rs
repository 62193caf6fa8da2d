//! The whole conversation of a shard with its ledger: what the ledger wants done, and the values that it is told and tells.
//! In: nothing; plain values. Out: the words in which the ledger, its shard and the simulator speak.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cron::Planned;
use super::gates::{Ended, Gates};
use super::routes::Bindings;
use crate::clock::Millis;
use crate::handler::{AfterDeadLetter, RetryPolicy};
use crate::handlers::run::{RunItem, Stored, TurnEnd};
use crate::handlers::{Handlers, Service};
use crate::message::{Positions, TakenId};
use crate::settings::Settings;
use crate::store::query::DeadFilter;
use crate::store::{Commit, DeadPlace, Epoch, Runnable, ServiceKey, Trim};

/// What the ledger wants done.
#[derive(Debug)]
pub enum Action {
    /// Read what the store has of these keys; answer with [`Ledger::loaded`].
    Load(Vec<(SlotIx, u64)>, Vec<ServiceKey>),
    /// Ask which of these ids, two for each place and each with the message's own, wait or were given up; answer with
    /// [`Ledger::checked`].
    Check(Vec<(SlotIx, u64)>, Vec<(TakenId, String)>),
    /// Look for dead letters behind a number that were given up before a time; answer with [`Ledger::old_found`].
    FindOld(u64, Millis),
    /// Hand a run to an actor; it answers with [`Ledger::ran`].
    Run(ActorIx, RunOrder),
    /// A turn of a service (by its index) is to start, one that was unavailable before if so; answer with
    /// [`Ledger::permit`] when it may.
    AskPermit(u16, bool),
    /// A turn with a permit of this service ended, or will not start.
    PermitEnded(u16, Ended),
    /// Start this many more actors; each answers with [`Ledger::actor_ready`].
    Spawn(u32),
    /// Something is to be committed: call [`Ledger::gate`] when the store has room for a commit.
    CommitReady,
    /// Write this; answer with [`Ledger::commit_ended`].
    Commit(Arc<Commit>),
    /// The store cannot write now: try [`Action::Commit`] again after a pause; the number counts the tries.
    CommitLater(Arc<Commit>, u32),
    /// Take the shard over from oneself; answer with [`Ledger::retaken`].
    Retake(Epoch),
    /// Ask for keys that are due, at most this many; answer with [`Ledger::due`].
    FetchDue(Runnable, usize),
    /// Ask for keys whose head was settled before a crash; answer with [`Ledger::orphans`].
    FetchOrphans(Runnable, Option<ServiceKey>, usize),
    /// Read the timers of schedules; answer with [`Ledger::schedules`].
    FetchSchedules,
    /// Ask for timers that are due, at most this many; answer with [`Ledger::timers_due`].
    FetchTimers(Runnable, usize),
    /// Read rows of a key after a number, at most so many; answer with [`Ledger::paged`].
    Page(SlotIx, u64, ServiceKey, u64, usize),
    /// Find dead letters for an operator's command behind a place, at most so many; answer with [`Ledger::dead_found`].
    FindDead(i64, DeadFilter, Option<DeadPlace>, usize),
    /// Find what waits for a service, for an operator's command, at most so many of each; answer with
    /// [`Ledger::service_found`].
    FindService(i64, Arc<str>, usize),
    /// The source may hand over this many deliveries more.
    Credit(u16, usize),
    /// So many bytes of the source's deliveries are not in hand any more.
    Room(u16, usize),
    /// The source's deliveries up to these positions are durable.
    Acknowledge(u16, Positions),
    /// Events are durable: publish what the sinks want of them; dispatchers answer with [`Ledger::published`].
    Publish(Arc<Commit>),
    /// Remove what is no longer needed.
    Trim(Trim),
    /// The shard is given up: its last commit is durable.
    Drained,
    /// Stop the shard and drop its memory: another owner has it, or it cannot go on.
    Stop(String),
}

/// What the ledger knows of a service.
#[derive(Clone, Debug)]
pub struct ServiceInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Its number in the store: part of its ids.
    pub number: u16,
    /// Its retry policy.
    pub retry: RetryPolicy,
    /// What happens behind a dead letter.
    pub after_dead_letter: AfterDeadLetter,
    /// Whether each of its turns needs a permit: see [`Action::AskPermit`].
    pub guarded: bool,
    /// Its messages that come by the clock, of whichever shards' keys.
    pub schedules: Arc<[Planned]>,
}

/// What the ledger knows of a source.
#[derive(Clone, Debug)]
pub struct SourceInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Whether its deliveries have positions to resume from.
    pub ordered: bool,
}

/// What a shard's ledger is made with.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    /// The settings.
    pub settings: Arc<Settings>,
    /// The services, in the order of their indices.
    pub services: Arc<[ServiceInfo]>,
    /// The sources, in the order of their indices.
    pub sources: Arc<[SourceInfo]>,
    /// Where events go within the store.
    pub bindings: Arc<Bindings>,
    /// Key under which ids are hashed.
    pub hash_key: [u8; 32],
    /// Actors that this shard may have.
    pub actors_max: u32,
    /// Seed of the jitter.
    pub seed: u64,
}

/// A run: consecutive turns of one key handed over together.
#[derive(Debug)]
pub struct RunOrder {
    /// The key's slot.
    pub slot: SlotIx,
    /// Number of the run.
    pub no: u64,
    /// The service's index.
    pub service: u16,
    /// The state to start from; `None`: the one the actor has.
    pub state: Option<Stored>,
    /// The messages, in order.
    pub items: Vec<RunItem>,
}

/// What an actor answers for a run: for each turn in order, up to the one where it stopped.
#[derive(Debug)]
pub struct RunReport {
    /// The actor.
    pub actor: ActorIx,
    /// The key's slot.
    pub slot: SlotIx,
    /// Number of the run.
    pub no: u64,
    /// The turns that ended.
    pub turns: Vec<TurnEnd>,
    /// The state after them, if a turn succeeded.
    pub state: Option<Stored>,
    /// The messages that were not answered for are to be run one at a time.
    pub alone: bool,
    /// Whether the run is over; otherwise a turn of it is still under way.
    pub done: bool,
    /// Whether the actor ends with it: it takes no other run.
    pub gone: bool,
}

/// Index of a slot; reused, so answers carry the slot's token as well.
pub type SlotIx = u32;

/// Index of a key actor in the shard's pool.
pub type ActorIx = u32;

/// The services of `handlers` as the ledger knows them.
pub(crate) fn describe(
    handlers: &Handlers,
    numbers: &BTreeMap<Arc<str>, u16>,
    settings: &Settings,
    gates: &Gates,
    schedules: Vec<Arc<[Planned]>>,
) -> Vec<ServiceInfo> {
    type Described<'a> = ((u16, &'a Arc<dyn Service>), Arc<[Planned]>);
    let describe = |((index, service), schedules): Described<'_>| ServiceInfo {
        guarded: gates.guards(index),
        name: service.name().into(),
        number: numbers.get(service.name()).copied().unwrap_or(u16::MAX),
        retry: service.retry().unwrap_or_else(|| (&settings.retry).into()),
        after_dead_letter: service.after_dead_letter(),
        schedules,
    };
    (0..).zip(handlers.all()).zip(schedules).map(describe).collect()
}
