//! The pure ledger under ends of its process: those that a message brings about, and those that aim at its starts.
//! In: lives of a process, killed at an age or ended by a turn. Out: what became of each message, how many lives that took,
//! and at which ages a kill would have counted.

use std::collections::{BTreeMap, VecDeque};

use perkey::unstable::handlers::run::TurnEnd;
use perkey::unstable::ledger::protocol::{Action, ActorIx, Event, LedgerConfig, RunOrder, RunReport};
use perkey::unstable::ledger::routes::{Arrival, What};
use perkey::unstable::ledger::{Ledger, Line};
use perkey::unstable::message::{Position, ServiceIx, SourceIx};
use perkey::unstable::store::memory::{MemoryStore, at_once};
use perkey::unstable::store::{PendingKind, Store};
use perkey::{Draft, Message, Settings};

use crate::ledger_model::{answer, listing};

/// Milliseconds between two looks at the time: while something runs, and while nothing does.
const TICKS: [u64; 2] = [25, 50];
/// Over this long starts alone are spread, at the settings' defaults.
const SPREAD: u64 = 160 * 200;
/// The start that is the first one alone.
const FIRST_ALONE: u32 = 4;
/// Starts that are taken back are stored above this.
const TAKEN_BACK: u32 = 1_000;
/// A turn that nothing waits for the end of.
const LONG: u64 = 10_000;

/// A message of a key of its own.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// The time that its turn takes.
    turn: u64,
    /// The time after the beginning of its turn at which the process ends.
    deadly: Option<u64>,
}

const fn innocent(turn: u64) -> Plan {
    Plan { turn, deadly: None }
}

const fn deadly(after: u64) -> Plan {
    Plan { turn: u64::MAX, deadly: Some(after) }
}

/// The end of a life of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Killed,
    Ended,
    /// Nothing is left to do.
    Done,
}

struct World {
    store: MemoryStore,
    config: LedgerConfig,
    plans: Vec<Plan>,
    now: u64,
    lives: u64,
    /// The number of times that each message's turn began.
    started: Vec<u32>,
    /// The most starts that a row had when the process was killed.
    counted: u32,
}

/// The messages that one process has in hand.
struct Process {
    ledger: Ledger,
    runs: BTreeMap<ActorIx, (RunOrder, u64)>,
    fed: bool,
    actors: usize,
    /// Permits for starts alone: who asked, in order, and whether one is out.
    asked: VecDeque<Line>,
    out: bool,
}

impl World {
    fn new(plans: Vec<Plan>, seed: u64) -> Self {
        let store = MemoryStore::new();
        let mut settings = Settings::default();
        settings.ownership.shards = 1;
        let config = listing(&store, settings, 8, seed);
        let started = vec![0; plans.len()];
        Self { store, config, plans, now: 1_000_000, lives: 0, started, counted: 0 }
    }

    /// The message of a plan; its key is its id.
    fn message(at: usize) -> Message {
        let id = at.to_string();
        Draft { id: &id, key: &id, kind: "t", payload: b"null", ..Draft::default() }.build().unwrap()
    }

    /// Starts as the store has them, of the one message there is.
    fn stored(&self) -> u32 {
        let starts =
            |row: &perkey::unstable::store::PendingRow| (row.kind == PendingKind::Suspect).then_some(row.starts);
        self.store.pending().values().filter_map(starts).max().unwrap_or(0)
    }

    fn dead(&self) -> Vec<String> {
        let mut dead: Vec<String> =
            self.store.dead_letters().values().map(|letter| letter.message.id().to_owned()).collect();
        dead.sort_unstable();
        dead
    }

    /// One life after the other until nothing is left, at most so many.
    fn live_on(&mut self, most: u64) {
        while self.live(None) != Life::Done {
            assert!(self.lives < most, "{} lives were not enough: started {:?}", self.lives, self.started);
        }
    }

    /// A life that is killed at this age, or never.
    fn live(&mut self, kill: Option<u64>) -> Life {
        let mut process = self.begin();
        let begun = self.now;
        // What is wanted from the beginning is there before time first passes.
        self.perform(&mut process);
        loop {
            if kill.is_some_and(|age| self.now >= begun + age) {
                self.counted = self.counted.max(self.stored() % TAKEN_BACK);
                return Life::Killed;
            }
            if self.step(&mut process) {
                return Life::Ended;
            }
            if process.fed && process.runs.is_empty() && process.ledger.is_idle() && self.store.pending().is_empty() {
                return Life::Done;
            }
        }
    }

    fn begin(&mut self) -> Process {
        self.lives += 1;
        let seed = self.config.seed.wrapping_mul(1_000_003).wrapping_add(self.lives);
        let config = LedgerConfig { seed, ..self.config.clone() };
        let taken = at_once(self.store.take(0, &format!("process {}", self.lives))).unwrap();
        let ledger = Ledger::new(config, taken, at_once(self.store.inbox(0, 0, 1_000_000)).unwrap(), self.now);
        Process { ledger, runs: BTreeMap::new(), fed: false, actors: 0, asked: VecDeque::new(), out: false }
    }

    /// A moment passes; whether a turn has ended the process.
    fn step(&mut self, process: &mut Process) -> bool {
        let now = self.now;
        let plan = |order: &RunOrder| {
            assert_eq!(order.items.len(), 1, "each key has one message");
            self.plans[order.items[0].message.id().parse::<usize>().unwrap()]
        };
        let ends = |(order, since): &(RunOrder, u64)| plan(order).deadly.is_some_and(|after| now >= *since + after);
        if process.runs.values().any(ends) {
            return true;
        }
        let done = |(order, since): &(RunOrder, u64)| now.saturating_sub(*since) >= plan(order).turn;
        let done: Vec<ActorIx> = process.runs.iter().filter(|(_, run)| done(run)).map(|(actor, _)| *actor).collect();
        for actor in done {
            let (RunOrder { slot, no, .. }, _) = process.runs.remove(&actor).unwrap();
            let end = TurnEnd::Done {
                events: Vec::new(),
                sent: Vec::new(),
                rows: Vec::new(),
                timers: Vec::new(),
                statements: Vec::new(),
                reply: None,
            };
            let (turns, state) = (vec![end], Some(Some((1, b"null"[..].into()))));
            process.ledger.step(
                Event::Ran(RunReport { actor, slot, no, turns, state, alone: false, done: true, gone: false }),
                now,
            );
        }
        process.ledger.step(Event::Tick, now);
        self.perform(process);
        self.now += TICKS[usize::from(process.runs.is_empty())];
        false
    }

    /// Does what the ledger wants, until it wants nothing more.
    fn perform(&mut self, process: &mut Process) {
        let mut actions: VecDeque<_> = process.ledger.actions().into();
        while let Some(action) = actions.pop_front() {
            self.act(process, action);
            if let Some(line) = process.asked.pop_front_if(|_| !process.out) {
                process.out = true;
                process.ledger.step(Event::Permit(line), self.now);
            }
            actions.extend(process.ledger.actions());
        }
    }

    fn act(&mut self, Process { ledger, runs, fed, actors, asked, out }: &mut Process, action: Action) {
        let (store, now) = (&self.store, self.now);
        match action {
            Action::Ask(question) => {
                if let Some(answer) = answer(store, &question, now) {
                    ledger.step(Event::Answered(answer), now);
                }
            }
            Action::Run(actor, order) => {
                self.started[order.items[0].message.id().parse::<usize>().unwrap()] += 1;
                runs.insert(actor, (order, now));
            }
            Action::Spawn(more) => {
                let first = *actors;
                *actors += more as usize;
                (first..*actors).map(ActorIx::nth).for_each(|actor| ledger.step(Event::ActorReady(actor), now));
            }
            Action::CommitReady => ledger.step(Event::Gate, now),
            Action::Commit(commit) | Action::CommitLater(commit, _) => {
                ledger.step(Event::CommitEnded(commit.epoch, commit.no, store.apply(&commit)), now);
            }
            Action::Credit(..) if !std::mem::replace(fed, true) => {
                let arrival = |at: usize| {
                    let position = Position::new(1 + u64::try_from(at).unwrap(), 0);
                    Arrival {
                        origin: "one".into(),
                        position,
                        last: true,
                        what: What::Message(ServiceIx::FIRST, Self::message(at)),
                    }
                };
                ledger.step(Event::Fetched(SourceIx::FIRST, (0..self.plans.len()).map(arrival).collect()), now);
            }
            Action::AskPermit(line, _) => asked.push_back(line),
            Action::PermitEnded(..) => *out = false,
            Action::Stop(reason) => panic!("the ledger stopped: {reason}"),
            _ => {}
        }
    }
}

#[test]
fn kills_that_aim_at_starts_alone_make_no_message_a_dead_letter() {
    // While a suspect has its first start alone, which is right after a takeover; and later, as a probe would.
    for (age, lives, seeds) in [(50, 60, 10), (100, 60, 10), (150, 60, 10), (1_000, 40, 4), (9_000, 20, 2)] {
        for seed in 0..seeds {
            let mut world = World::new(vec![innocent(LONG)], seed);
            for _ in 0..lives {
                assert_eq!(world.live(Some(age)), Life::Killed);
                assert!(world.dead().is_empty(), "{age} ms, seed {seed}: dead after {} lives", world.lives);
            }
            // It was aimed well: more than the starts that all suspects share were hit.
            assert!(age > 150 || world.counted >= FIRST_ALONE, "{age} ms, seed {seed}: {} starts", world.counted);
            world.live_on(lives + 1);
            assert!(world.dead().is_empty(), "{age} ms, seed {seed}");
        }
    }
}

#[test]
fn a_kill_at_any_age_hits_a_start_that_is_spread_one_time_in_a_hundred_at_most() {
    const SEEDS: u64 = 160;
    const PARTS: u64 = 8;
    let mut begun = [0; PARTS as usize];
    for seed in 0..SEEDS {
        let mut world = World::new(vec![innocent(LONG)], seed);
        while world.stored() != FIRST_ALONE {
            assert_eq!(world.live(Some(50)), Life::Killed);
        }
        // In this life the next start is recorded, and taken back.
        let (takeover, mut process) = (world.now, world.begin());
        while world.stored() != FIRST_ALONE + 1 {
            assert!(!world.step(&mut process) && world.now < takeover + 2 * SPREAD, "seed {seed}: it has no start");
        }
        let recorded = world.now;
        while world.stored() < TAKEN_BACK {
            assert!(!world.step(&mut process) && world.now < recorded + LONG, "seed {seed}: it is not taken back");
        }
        assert!(world.now - recorded <= SPREAD / 100, "seed {seed}: a kill counts for {} ms", world.now - recorded);
        begun[usize::try_from(((recorded - takeover) * PARTS / SPREAD).min(PARTS - 1)).unwrap()] += 1;
    }
    let even = SEEDS / PARTS;
    assert!(begun.iter().all(|part| (even / 2..=even * 2).contains(part)), "not spread: {begun:?}");
}

#[test]
fn a_message_that_ends_its_process_is_a_dead_letter_however_long_that_takes() {
    for (after, seeds) in [(0, 10), (100, 10), (700, 3), (5_000, 1)] {
        for seed in 0..seeds {
            let mut world = World::new(vec![deadly(after)], seed);
            let since = world.now;
            // One life more than its starts, and two for the starts that turn out to be too short a time.
            world.live_on(10);
            assert_eq!(world.dead(), ["0"], "{after} ms, seed {seed}");
            let letter = world.store.dead_letters().into_values().next().unwrap();
            assert!((since..=world.now).contains(&letter.at), "{} is no time of this world", letter.at);
            assert!(letter.error.contains("nothing of it is in the store, what it asked of others may have happened"));
            let most = world.config.settings.suspects.starts;
            assert!((most..=most + 2).contains(&world.started[0]), "{after} ms, seed {seed}: {:?}", world.started);
            assert!(after > 100 || world.started[0] == most, "{after} ms, seed {seed}: {:?}", world.started);
            // Three waits: the time that counts was doubled until it was longer than the turn.
            let waits = 3 * SPREAD * (1 + 2 * after / 200);
            assert!(world.now - since <= waits + world.lives * (after + 1_000), "{} ms", world.now - since);
        }
    }
}

#[test]
fn of_several_messages_those_that_end_the_process_are_dead_letters_and_no_others() {
    for seed in 0..10 {
        let plans = vec![innocent(100), deadly(0), innocent(300), deadly(50), innocent(0), deadly(100)];
        let mut world = World::new(plans, seed);
        world.live_on(3 * 7 + 3);
        assert_eq!(world.dead(), ["1", "3", "5"], "seed {seed}");
    }
}
