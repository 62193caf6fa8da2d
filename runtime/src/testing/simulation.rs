//! The whole pipeline in memory, on virtual time, with faults drawn from a seed.
//! In: handlers, messages, settings, a seed. Out: a report, or the first promise that was broken.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::checker::{Checker, DeliveryPlace, Effect, Seen};
use super::disk::SimDisk;
use super::fault_plan::Refusals;
use super::plan::{Faults, INTAKE, SimPlan, StartError};
use super::sim::Sim;
use super::transports::{SimTransport, SourceKind};
use crate::clock::{Clock, Dice};
use crate::handler::Handler;
use crate::handlers::Handlers;
use crate::ledger::routes::What;
use crate::message::{Message, SourceIx, murmur2, shard_of};
use crate::settings::{Overflow, Settings};
use crate::store::memory::MemoryStore;
use crate::transport::embedded::EmbeddedLog;
use crate::transport::{Content, Delivery, Transport};

/// The time at which a simulation begins, in milliseconds since the epoch.
const START: u64 = 1_000_000;

/// A simulation of a program with all its shards, sources and handlers.
///
/// All events and their times follow from the seed: a simulation that fails can be run again. Whatever the faults, each
/// message must count once for each service that takes it, or end as a dead letter; those of one key and one origin in
/// their order; and nothing may be acknowledged before it is durable.
///
/// ```
/// use perkey::testing::Simulation;
/// use perkey::Draft;
/// use perkey::{Fault, Handler, Key, Turn};
/// use serde::{Deserialize, Serialize};
///
/// struct Balances;
///
/// #[derive(Deserialize)]
/// struct Posted { account: String, amount: i64 }
///
/// #[derive(Clone, Default, Serialize, Deserialize)]
/// struct Balance { cents: i64 }
///
/// impl Handler for Balances {
///     const SERVICE: &'static str = "balances";
///     type Message = Posted;
///     type State = Balance;
///
///     fn key(&self, message: &Posted) -> Key {
///         message.account.as_str().into()
///     }
///
///     async fn handle(&self, balance: &mut Balance, message: Posted, _: &mut Turn) -> Result<(), Fault> {
///         balance.cents += message.amount;
///         Ok(())
///     }
/// }
///
/// let messages = (0..50).map(|n| {
///     let (id, key) = (format!("posting-{n}"), format!("account-{}", n % 5));
///     let payload = format!(r#"{{"account":"{key}","amount":1}}"#);
///     Draft { id: &id, key: &key, kind: "posted", payload: payload.as_bytes(), ..Draft::default() }.build().unwrap()
/// });
/// let report = Simulation::new(7).handler(Balances).messages("balances", messages).run();
///
/// // Some messages ended as dead letters, as the seed said: all others counted once.
/// for n in 0..5 {
///     let key = format!("account-{n}");
///     let counted = report.effects().iter().filter(|effect| effect.key == key).count() as i64;
///     let balance: Option<Balance> = report.state("balances", &key);
///     assert_eq!(balance.unwrap_or_default().cents, counted);
/// }
/// ```
pub struct Simulation {
    seed: u64,
    handlers: Handlers,
    settings: Settings,
    faults: Faults,
    contents: Vec<Content>,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}: after {after:?} of simulated time: {problem}")]
pub struct Broken {
    /// The seed that shows it.
    pub seed: u64,
    /// The simulated time at which it was broken.
    pub after: Duration,
    /// The promise, and how it was broken.
    pub problem: String,
}

/// The result of a simulation.
#[derive(Clone)]
pub struct Report {
    store: Arc<MemoryStore>,
    effects: Vec<Effect>,
    seen: Seen,
    simulated: Duration,
}

impl Simulation {
    /// A simulation with this seed: all faults, and settings drawn from the seed under which every bound is reached.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            handlers: Handlers::new(),
            settings: small(&mut Dice::seeded(seed)),
            faults: Faults::all(),
            contents: Vec::new(),
        }
    }

    /// Adds a handler.
    #[must_use]
    pub fn handler(mut self, handler: impl Handler) -> Self {
        self.handlers = self.handlers.with(handler);
        self
    }

    /// Changes the settings.
    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Draws only these faults.
    #[must_use]
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// Adds messages for a service. Those of one key come in this order.
    #[must_use]
    pub fn messages(mut self, service: &str, messages: impl IntoIterator<Item = Message>) -> Self {
        let service: Arc<str> = service.into();
        self.contents.extend(messages.into_iter().map(|message| Content::For(service.clone(), message)));
        self
    }

    /// Adds anything that a source can hand over: messages that bindings route, and bytes that are not messages.
    #[must_use]
    pub fn contents(mut self, contents: impl IntoIterator<Item = Content>) -> Self {
        self.contents.extend(contents);
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics If a promise was broken; the message says which, and how to run the same again.
    #[track_caller]
    #[expect(clippy::panic, reason = "a broken promise fails the test that simulates")]
    pub fn run(self) -> Report {
        let seed = self.seed;
        match self.try_run() {
            Ok(report) => report,
            Err(broken) => panic!("{broken}\nthe same again: PERKEY_SEED={seed} cargo test <this test>"),
        }
    }

    /// Runs it to its end, or to the first promise that is broken.
    pub fn try_run(self) -> Result<Report, Broken> {
        self.try_run_on(Arc::new(MemoryStore::new()))
    }

    /// Runs it to its end, or to the first promise that is broken, on a store that the caller has prepared.
    pub fn try_run_on(self, store: Arc<MemoryStore>) -> Result<Report, Broken> {
        let seed = self.seed;
        let broken = |error: StartError| Broken { seed, after: Duration::ZERO, problem: error.to_string() };
        let mut sim = self.sim(store).map_err(broken)?;
        let ended = sim.run();
        let after = Duration::from_micros(sim.now);
        match ended {
            Ok(()) => Ok(Report {
                store: sim.disk.store.clone(),
                effects: sim.checker.effects,
                seen: sim.checker.stats,
                simulated: after,
            }),
            Err(violation) => Err(Broken { seed, after, problem: violation.to_string() }),
        }
    }

    fn sim(self, store: Arc<MemoryStore>) -> Result<Sim, StartError> {
        let clock = Clock::manual(START);
        let plan = SimPlan::new(self.seed, self.faults, self.settings, self.handlers, &store, &clock)?;
        let refusals = Arc::new(Refusals::new(self.seed, self.faults));
        let check = refusals.clone();
        store.refuse_rows(move |row| check.check(row));
        let mut dice = Dice::seeded(self.seed ^ 0x5eed);
        let horizon = 500 + self.contents.len() as u64 * (5 + dice.below(20));
        let all = self.contents.len() as u64;
        // Some programs start with a backlog.
        let backlog = if dice.below(2) == 0 { all / 3 } else { 0 };
        let mut stock = Stock::new(&plan, &clock, &store, horizon);
        for (nth, content) in (0_u64..).zip(&self.contents) {
            stock.put(nth.saturating_sub(backlog) * horizon / all, content, &mut dice);
        }
        let Stock { log, queue, table, checker, .. } = stock;
        let embedded = EmbeddedLog::new(store.clone(), plan.settings.log.poll);
        let transports: Vec<Box<dyn Transport>> =
            vec![Box::new(embedded), Box::new(log), Box::new(queue), Box::new(table)];
        let disk = SimDisk { store, away_until: 0 };
        Sim::new(plan, disk, refusals, checker, clock, transports, horizon * 1_250)
    }
}

/// The contents that the sources will hand over.
struct Stock<'a> {
    plan: &'a SimPlan,
    log: SimTransport,
    queue: SimTransport,
    table: SimTransport,
    checker: Checker,
    horizon: u64,
}

impl<'a> Stock<'a> {
    fn new(plan: &'a SimPlan, clock: &Clock, store: &Arc<MemoryStore>, horizon: u64) -> Self {
        let log = SimTransport::new("log", SourceKind::Log, clock.clone());
        let queue = SimTransport::new("queue", SourceKind::Queue, clock.clone());
        let table = SimTransport::new(INTAKE, SourceKind::Table(store.clone()), clock.clone());
        Self { plan, log, queue, table, checker: Checker::default(), horizon }
    }

    /// Puts a content where its key belongs, and sometimes a copy of it somewhere else.
    fn put(&mut self, at: u64, content: &Content, dice: &mut Dice) {
        let home = murmur2(key(content).as_bytes()) >> 8;
        self.append(home, at, content);
        let copied = dice.below(10) == 0;
        if self.plan.faults.duplicates && self.plan.remembers() && copied {
            let (elsewhere, later) = (dice.below(15), dice.below(self.horizon / 3));
            let place = if dice.below(2) == 0 { home } else { u32::try_from(elsewhere).unwrap_or(0) };
            self.append(place, at + later, content);
        }
    }

    fn append(&mut self, place: u32, at: u64, content: &Content) {
        let (index, source) = match place % 5 {
            0 | 1 => (1, &self.log),
            2 | 3 => (2, &self.queue),
            _ => (3, &self.table),
        };
        // The table's rows have one number for all of a shard.
        let origin: Arc<str> = if index == 3 { INTAKE.into() } else { format!("origin-{}", place / 5 % 3).into() };
        // Some messages lie where their key does not belong, as in a topic with another number of partitions.
        let (shards, astray) = (self.plan.shards(), murmur2(key(content).as_bytes()) >> 16);
        let shard = (shard_of(key(content), shards) + u32::from(astray.is_multiple_of(4))) % shards;
        let position = source.append(shard, &origin, START + at, content.clone());
        let delivery = Delivery { origin: origin.clone(), position, content: content.clone() };
        let arrivals = self.plan.bindings.arrivals(source.name(), delivery);
        let messages: Vec<_> = arrivals
            .into_iter()
            .filter_map(|arrival| match arrival.what {
                What::Message(service, message) => Some((Some(service), message, false)),
                What::Refused(service, message, _) => Some((service, message, true)),
                What::Absent(..) | What::Unbound => None,
            })
            .collect();
        let place = DeliveryPlace { shard, source: SourceIx::nth(index), origin, position };
        self.checker.delivered(self.plan, place, &messages);
    }
}

fn key(content: &Content) -> &str {
    match content {
        Content::For(_, message) | Content::Unrouted(message) | Content::Unreadable { message, .. } => message.key(),
    }
}

/// Settings under which a few hundred messages reach every bound.
fn small(dice: &mut Dice) -> Settings {
    let mut draw = |from: u64, to: u64| from + dice.below(to - from + 1);
    let mut settings = Settings::default();
    let size = |number: u64| usize::try_from(number).unwrap_or(1);
    settings.ownership.shards = u32::try_from(draw(1, 3)).unwrap_or(1);
    settings.ingress.credits = size(draw(16, 40));
    settings.ingress.ahead_max = size(draw(1, 12));
    settings.ingress.batch_max = size(draw(1, 12));
    settings.actors.resident_max = settings.ownership.shards as usize * size(draw(1, 6));
    settings.actors.run_max = size(draw(1, 6));
    settings.actors.passivate_after = Duration::from_millis(draw(20, 400));
    settings.commit.turns_max = size(draw(1, 12));
    settings.pending.max_per_key = draw(2, 12);
    settings.pending.max_per_shard = settings.pending.max_per_key + draw(0, 30);
    settings.pending.page = size(draw(1, 5));
    settings.pending.spill_after = Duration::from_millis(draw(30, 150));
    settings.outbox.window = size(draw(2, 12));
    settings.outbox.max_pending = draw(20, 200);
    settings.retry.base = Duration::from_millis(draw(1, 30));
    settings.retry.cap = Duration::from_millis(draw(30, 300));
    settings.commit.bytes_max = size(draw(200, 6_000));
    if draw(0, 1) == 0 {
        // Ids are forgotten while their messages may be handed over again.
        settings.dedup.max_ids = size(draw(1, 60));
        settings.dedup.window = Duration::from_millis(draw(20, 2_000));
        settings.dedup.window_min = Duration::from_millis(draw(1, 20));
        settings.dedup.overflow = if draw(0, 1) == 0 { Overflow::Shrink } else { Overflow::Pause };
    }
    settings.suspects.calm_after = Duration::from_millis(draw(50, 3_000));
    // Owners die here again and again within a turn's time: no turn ends them.
    settings.suspects.trial = Duration::from_millis(draw(1, 10));
    settings.suspects.starts = u32::MAX;
    settings
}

impl Report {
    /// The turns that counted, in the order of their commits.
    pub fn effects(&self) -> &[Effect] {
        &self.effects
    }

    /// The number of times that each thing happened.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// The time that passed for the simulated program.
    pub fn simulated(&self) -> Duration {
        self.simulated
    }

    /// The store as it was left.
    pub fn store(&self) -> &MemoryStore {
        &self.store
    }

    /// The state of a key, if it has one.
    pub fn state<S: serde::de::DeserializeOwned>(&self, service: &str, key: &str) -> Option<S> {
        let states = self.store.states();
        let (_, json) = states.get(&(Arc::from(service), Arc::from(key)))?;
        serde_json::from_slice(json).ok()
    }

    /// Messages that ended as dead letters.
    pub fn dead_letters(&self) -> Vec<Message> {
        self.store.dead_letters().into_values().map(|letter| letter.message).collect()
    }

    /// The payloads of the events of one type, by key, in the order in which they were emitted; each once, even if an
    /// operator had one published again.
    pub fn events(&self, kind: &str) -> BTreeMap<String, Vec<serde_json::Value>> {
        let mut events: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut known = HashSet::new();
        for event in self.store.journal().into_iter().flat_map(|commit| commit.events) {
            if event.message.kind() == kind && known.insert(event.message.id().to_owned()) {
                let payload = serde_json::from_slice(event.message.payload()).unwrap_or_default();
                events.entry(event.message.key().to_owned()).or_default().push(payload);
            }
        }
        events
    }
}

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Report").field("seen", &self.seen).field("simulated", &self.simulated).finish_non_exhaustive()
    }
}
