//! Several handlers together on virtual time, for tests of sagas.
//! In: handlers, messages, time that passes, kills. Out: states, rows, events, timers and dead letters as they are
//! then.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::checker::{Checker, DeliveryPlace};
use super::disk::SimDisk;
use super::fault_plan::Refusals;
use super::plan::{Faults, INTAKE, SimPlan, StartError};
use super::sim::Sim;
use super::transports::{SimTransport, SourceKind};
use crate::clock::{Clock, Dice, Millis};
use crate::handler::Handler;
use crate::handlers::{Handlers, decode};
use crate::message::{Draft, SourceIx, shard_of};
use crate::settings::Settings;
use crate::store::memory::MemoryStore;
use crate::store::{DeadLetter, Timer};
use crate::transport::embedded::EmbeddedLog;
use crate::transport::{Content, Transport};

/// The time at which a stage begins: 2026-01-01T00:00:00Z.
const START: Millis = 1_767_225_600_000;
/// Steps between two looks at whether there is anything left to do.
const STEPS: usize = 16;
/// The time that work in hand and its retries may take, in microseconds.
const QUIET_WITHIN: u64 = 24 * 3_600_000_000;
/// The time that work may wait for something outside, in microseconds.
const OUTSIDE_WITHIN: u64 = 60_000_000;

/// A program with all its handlers, in memory and on virtual time.
///
/// Messages take the way that they take in a running program: the same ledgers, commits, timers, retries, circuit
/// breakers and answers. Time passes only by [`Stage::advance`], for retries, and while handlers wait with
/// [`crate::sleep`]; what happens, and in which order, follows from the seed. If Perkey breaks a promise, the test
/// fails.
///
/// ```
/// use std::time::Duration;
/// use perkey::testing::Stage;
/// use perkey::{Fault, Handler, Handlers, Key, Turn};
/// use serde::{Deserialize, Serialize};
/// use perkey::json;
///
/// /// Remembers what is to be done, and says so when it was not done in time.
/// struct Reminders;
///
/// #[derive(Deserialize)]
/// #[serde(tag = "told", rename_all = "snake_case")]
/// enum Told { Remember { what: String }, Done { what: String }, Late { what: String } }
///
/// impl Handler for Reminders {
///     const SERVICE: &'static str = "reminders";
///     type Message = Told;
///     type State = Vec<String>;
///
///     fn key(&self, told: &Told) -> Key {
///         let (Told::Remember { what } | Told::Done { what } | Told::Late { what }) = told;
///         what.as_str().into()
///     }
///
///     async fn handle(&self, late: &mut Vec<String>, told: Told, turn: &mut Turn) -> Result<(), Fault> {
///         match told {
///             Told::Remember { what } => {
///                 turn.schedule("late", turn.now() + 60_000, &json!({ "told": "late", "what": what }))
///             }
///             Told::Done { .. } => turn.cancel("late"),
///             Told::Late { what } => {
///                 late.push(what);
///                 turn.emit("reminder.late", &late)
///             }
///         }
///     }
/// }
///
/// let mut stage = Stage::of(Handlers::new().with(Reminders));
/// for what in ["tea", "mail"] {
///     stage.send::<Reminders>(&json!({ "told": "remember", "what": what }));
/// }
/// stage.advance(Duration::from_secs(30));
/// stage.send::<Reminders>(&json!({ "told": "done", "what": "mail" })).run_until_quiet();
/// assert_eq!(stage.timers().len(), 1);
/// stage.advance(Duration::from_secs(31));
/// assert_eq!(stage.state::<Reminders>("tea"), ["tea"]);
/// assert_eq!(stage.events(), [("tea".to_owned(), "reminder.late".to_owned())]);
/// ```
pub struct Stage {
    sim: Sim,
    log: SimTransport,
    dice: Dice,
    kills: u64,
    sent: u64,
}

impl Stage {
    /// A stage with these handlers, default settings and two shards.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// let mut stage = Stage::of(Handlers::new().with(Points));
    /// stage.send::<Points>(&json!({ "member": "ann", "points": 30 })).run_until_quiet();
    /// assert_eq!(stage.state::<Points>("ann"), 30);
    /// ```
    #[track_caller]
    pub fn of(handlers: Handlers) -> Self {
        Self::with(handlers, 0, |_| ())
    }

    /// A stage with these handlers, under settings that `change` changes; all chance follows from the seed.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// let handlers = Handlers::new().with(Points);
    /// let mut stage = Stage::with(handlers, 7, |settings| settings.retry.attempts = 2);
    /// stage.send::<Points>(&json!({ "member": "ann", "points": 30 })).run_until_quiet();
    /// ```
    #[track_caller]
    #[expect(clippy::panic, reason = "what cannot start fails the test")]
    pub fn with(handlers: Handlers, seed: u64, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::default();
        settings.ownership.shards = 2;
        change(&mut settings);
        let problems = settings.problems();
        match begin(handlers, seed, settings) {
            Ok((sim, log)) if problems.is_empty() => {
                Self { sim, log, dice: Dice::seeded(seed ^ 0x6b69_6c6c), kills: 0, sent: 0 }
            }
            Ok(_) => panic!("the settings are wrong: {}", problems.join("; ")),
            Err(problem) => panic!("the handlers cannot be run: {problem}"),
        }
    }

    /// Lets a shard's owner die at about one of `one_in` steps from now on, at any moment, also between a turn and its
    /// commit; another one takes over. 0 ends this.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// # let mut stage = Stage::of(Handlers::new().with(Points));
    /// stage.kills(5);
    /// stage.send::<Points>(&json!({ "member": "ann", "points": 30 })).run_until_quiet();
    /// assert_eq!(stage.state::<Points>("ann"), 30);
    /// ```
    pub fn kills(&mut self, one_in: u64) -> &mut Self {
        self.kills = one_in;
        self
    }

    /// Sends a message to the key that its handler gives it. It is given as a value that becomes its JSON; its id is
    /// `message-1`, `message-2`, and so on.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// # let mut stage = Stage::of(Handlers::new().with(Points));
    /// stage.send::<Points>(&json!({ "member": "ann", "points": 30 })).run_until_quiet();
    /// assert_eq!(stage.state::<Points>("ann"), 30);
    /// ```
    #[track_caller]
    pub fn send<H: Handler>(&mut self, message: &impl Serialize) -> &mut Self {
        self.sent += 1;
        let id = format!("message-{}", self.sent);
        self.send_as::<H>(&id, message)
    }

    /// Sends a message under this id: a second message with the same id is a copy, and changes nothing.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// # let mut stage = Stage::of(Handlers::new().with(Points));
    /// for _ in 0..2 {
    ///     stage.send_as::<Points>("line-1", &json!({ "member": "ann", "points": 30 }));
    /// }
    /// stage.run_until_quiet();
    /// assert_eq!(stage.state::<Points>("ann"), 30, "the copy changed nothing");
    /// ```
    #[track_caller]
    pub fn send_as<H: Handler>(&mut self, id: &str, message: &impl Serialize) -> &mut Self {
        let payload = serde_json::to_vec(message).expect("a message becomes JSON");
        let plan = &self.sim.plan;
        let key = plan.handlers.key_of(H::SERVICE, &payload).expect("a handler gives its messages keys");
        let draft = Draft { id, key: key.as_str(), kind: "sent", payload: &payload, ..Draft::default() };
        let message = draft.build().expect("id and key are usable");
        let (shard, service) = (shard_of(message.key(), plan.shards()), plan.handlers.index_of(H::SERVICE));
        let (origin, now) = (Arc::from("stage"), self.sim.clock.now());
        let position = self.log.append(shard, &origin, now, Content::For(H::SERVICE.into(), message.clone()));
        let sent = [(service, message, false)];
        let place = DeliveryPlace { shard, source: SourceIx::nth(1), origin, position };
        self.sim.checker.delivered(&self.sim.plan, place, &sent);
        self
    }

    /// Runs until nothing is in hand and nothing is to be tried again. Timers do not count: see [`Stage::advance`].
    /// Messages that need something outside which is not available are waited for a minute.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// # let mut stage = Stage::of(Handlers::new().with(Points));
    /// stage.send::<Points>(&json!({ "member": "ann", "points": 30 })).run_until_quiet();
    /// assert_eq!(stage.timers().len(), 1, "timers stay where they are");
    /// ```
    #[track_caller]
    pub fn run_until_quiet(&mut self) -> &mut Self {
        let (begin, end) = (self.sim.now, self.sim.now + QUIET_WITHIN);
        loop {
            if let Some(busy) = self.settle(end) {
                self.fails(&format!("it does not become quiet: {busy}"));
            }
            let blocked = self.sim.blocked();
            match self.sim.next_retry() {
                Some(at) => self.run_to(at),
                None if blocked && self.sim.now < begin + OUTSIDE_WITHIN => self.run_to(self.sim.now + 50_000),
                None => return self,
            }
        }
    }

    /// Lets this much time pass, with all that comes due in it. Work that is under way by then goes on with the next
    /// call.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// # let mut stage = Stage::of(Handlers::new().with(Points));
    /// use std::time::Duration;
    ///
    /// stage.send::<Points>(&json!({ "member": "ann", "points": 30 })).advance(Duration::from_secs(61)).run_until_quiet();
    /// assert_eq!(stage.state::<Points>("ann"), 0, "the points are lost again");
    /// ```
    #[track_caller]
    pub fn advance(&mut self, time: Duration) -> &mut Self {
        let to = self.sim.now + u64::try_from(time.as_micros()).unwrap_or(u64::MAX / 4);
        self.run_to(to);
        self
    }

    /// The time of the program, in milliseconds since the epoch.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// # let mut stage = Stage::of(Handlers::new().with(Points));
    /// let before = stage.now();
    /// stage.advance(std::time::Duration::from_secs(1));
    /// assert_eq!(stage.now(), before + 1_000);
    /// ```
    pub fn now(&self) -> Millis {
        self.sim.clock.now()
    }

    /// The state of a key; the default where it has none.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// # let mut stage = Stage::of(Handlers::new().with(Points));
    /// stage.send::<Points>(&json!({ "member": "ann", "points": 30 })).run_until_quiet();
    /// assert_eq!((stage.state::<Points>("ann"), stage.state::<Points>("bob")), (30, 0));
    /// ```
    #[track_caller]
    pub fn state<H: Handler>(&self, key: &str) -> H::State {
        let states = self.store().states();
        let stored = states.get(&(Arc::from(H::SERVICE), Arc::from(key))).cloned();
        decode::<H>(stored).expect("what a handler stored is what it reads")
    }

    /// The rows of a handler's table as JSON objects, in the order of their primary key.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// # let mut stage = Stage::of(Handlers::new().with(Points));
    /// stage.send::<Points>(&json!({ "member": "ann", "points": 30 })).run_until_quiet();
    /// assert_eq!(stage.rows("balances"), [json!({ "member": "ann", "points": 30 })]);
    /// ```
    pub fn rows(&self, table: &str) -> Vec<Value> {
        self.store().rows(table)
    }

    /// Key and type of each event, in the order of commits.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// # let mut stage = Stage::of(Handlers::new().with(Points));
    /// stage.send::<Points>(&json!({ "member": "ann", "points": 30 })).run_until_quiet();
    /// assert_eq!(stage.events(), [("ann".to_owned(), "points.earned".to_owned())]);
    /// ```
    pub fn events(&self) -> Vec<(String, String)> {
        let events = self.store().journal().into_iter().flat_map(|commit| commit.events);
        events.map(|event| (event.message.key().to_owned(), event.message.kind().to_owned())).collect()
    }

    /// The payloads of the events of a type, in the order of commits.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// # let mut stage = Stage::of(Handlers::new().with(Points));
    /// stage.send::<Points>(&json!({ "member": "ann", "points": 30 })).run_until_quiet();
    /// assert_eq!(stage.payloads("points.earned"), [json!({ "member": "ann", "points": 30 })]);
    /// ```
    pub fn payloads(&self, kind: &str) -> Vec<Value> {
        let events = self.store().journal().into_iter().flat_map(|commit| commit.events);
        let meant = events.filter(|event| event.message.kind() == kind);
        meant.map(|event| serde_json::from_slice(event.message.payload()).unwrap_or_default()).collect()
    }

    /// The dead letters, oldest first.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// # let mut stage = Stage::of(Handlers::new().with(Points));
    /// stage.send::<Points>(&json!({ "member": "ann", "points": 500 })).run_until_quiet();
    /// assert_eq!(stage.dead_letters()[0].error, "too many at once");
    /// ```
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        let mut letters: Vec<_> = self.store().dead_letters().into_values().collect();
        letters.sort_by_key(|letter| letter.at);
        letters
    }

    /// The timers that are set, those of schedules too, first due first.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// # let mut stage = Stage::of(Handlers::new().with(Points));
    /// stage.send::<Points>(&json!({ "member": "ann", "points": 30 })).run_until_quiet();
    /// assert_eq!(&*stage.timers()[0].name, "expiry");
    /// ```
    pub fn timers(&self) -> Vec<Timer> {
        let mut timers = self.store().timers();
        timers.sort_by_key(|timer| timer.due_at);
        timers
    }

    /// The number of messages that wait durably: for another attempt, for something outside, or behind such a message.
    ///
    /// ```
    /// # use perkey::{Handlers, json, testing::Stage};
    /// # use perkey::unstable::handler::example::Points;
    /// # let mut stage = Stage::of(Handlers::new().with(Points));
    /// stage.send::<Points>(&json!({ "member": "ann", "points": 30 })).run_until_quiet();
    /// assert_eq!(stage.waiting(), 0);
    /// ```
    pub fn waiting(&self) -> usize {
        self.store().pending().len()
    }

    fn store(&self) -> &MemoryStore {
        &self.sim.disk.store
    }

    /// Runs what is in hand; returns the work that is left at `end`.
    #[track_caller]
    fn settle(&mut self, end: u64) -> Option<String> {
        loop {
            let busy = self.sim.restless();
            if busy.is_none() || self.sim.now >= end {
                return busy;
            }
            self.steps(end);
        }
    }

    /// Lets time pass up to `to`, in one leap where nothing happens.
    #[track_caller]
    fn run_to(&mut self, to: u64) {
        while self.sim.now < to {
            self.steps(to);
            if self.sim.restless().is_none() && !self.sim.blocked() {
                let next = self.sim.next_due().unwrap_or(u64::MAX);
                self.sim.leap(next.min(to));
            }
        }
    }

    /// Performs some steps, none of them after `end`.
    #[track_caller]
    fn steps(&mut self, end: u64) {
        for _ in 0..STEPS {
            if self.kills > 0 && self.dice.below(self.kills) == 0 {
                let shard = self.dice.below(u64::from(self.sim.plan.shards())) as usize;
                if let Some(owner) = self.sim.current[shard] {
                    self.sim.leave(owner);
                }
            }
            if self.sim.next_at().is_none_or(|at| at > end) {
                return self.sim.leap(end);
            }
            if let Err(problem) = self.sim.step() {
                self.fails(&problem.to_string());
            }
        }
    }

    #[track_caller]
    #[expect(clippy::panic, reason = "a broken promise fails the test")]
    fn fails(&self, problem: &str) -> ! {
        panic!(
            "after {:?} of virtual time (seed {}): {problem}",
            Duration::from_micros(self.sim.now),
            self.sim.plan.seed
        )
    }
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("now", &self.now()).field("sent", &self.sent).finish_non_exhaustive()
    }
}

/// A simulation in which nothing goes wrong by itself.
fn begin(handlers: Handlers, seed: u64, settings: Settings) -> Result<(Sim, SimTransport), StartError> {
    let (clock, store, faults) = (Clock::manual(START), Arc::new(MemoryStore::new()), Faults::none());
    let plan = SimPlan::new(seed, faults, settings, handlers, &store, &clock)?;
    let source = |name, kind| SimTransport::new(name, kind, clock.clone());
    let log = source("log", SourceKind::Log);
    let transports: Vec<Box<dyn Transport>> = vec![
        Box::new(EmbeddedLog::new(store.clone(), plan.settings.log.poll)),
        Box::new(log.clone()),
        Box::new(source("queue", SourceKind::Queue)),
        Box::new(source(INTAKE, SourceKind::Table(store.clone()))),
    ];
    let (disk, refusals) = (SimDisk { store, away_until: 0 }, Arc::new(Refusals::new(seed, faults)));
    Ok((Sim::new(plan, disk, refusals, Checker::default(), clock, transports, 0)?, log))
}
