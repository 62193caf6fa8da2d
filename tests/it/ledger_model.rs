//! The pure ledger against the plainest model there is: one queue for each key, handled from its head.
//! In: interleavings of arrivals, answers, faults, takeovers. Out: states that list the handled messages, in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::handlers::run::{TurnEnd, TurnFault};
use perkey::unstable::ledger::protocol::{
    self, Action, ActorIx, Answer, LedgerConfig, Question, ReaderKind, RunOrder, RunReport, ServiceInfo, SourceInfo,
};
use perkey::unstable::ledger::routes::{Arrival, Bindings, What};
use perkey::unstable::ledger::{Ledger, OTHER_CONTENT};
use perkey::unstable::message::{Position, ServiceIx, SourceIx, shard_of};
use perkey::unstable::store::lease::Code;
use perkey::unstable::store::memory::{MemoryStore, at_once};
use perkey::unstable::store::query::Queries;
use perkey::unstable::store::{Commit, CommitOutcome, EmittedEvent, Setup, Store};
use perkey::{AfterDeadLetter, Draft, Fault, Handler, Handlers, Key, Message, RetryPolicy, Settings, Turn};
use proptest::prelude::*;

struct Listing;

impl Handler for Listing {
    const SERVICE: &'static str = "listing";
    type Message = ();
    type State = ();

    fn key(&self, (): &()) -> Key {
        "never asked".into()
    }

    async fn handle(&self, (): &mut (), (): (), _: &mut Turn) -> Result<(), Fault> {
        Ok(())
    }
}

/// The fate of a message, which travels as the message's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Succeeds,
    FailsTwice,
    Defers,
    Rejects,
    FailsAlways,
    Unwritable,
}

impl Fate {
    const ALL: [(&'static str, Self); 6] = [
        ("succeeds", Self::Succeeds),
        ("fails twice", Self::FailsTwice),
        ("defers", Self::Defers),
        ("rejects", Self::Rejects),
        ("fails always", Self::FailsAlways),
        ("unwritable", Self::Unwritable),
    ];

    fn of(message: &Message) -> Self {
        Self::ALL.into_iter().find(|(name, _)| *name == message.kind()).unwrap().1
    }

    fn counts(self) -> bool {
        matches!(self, Self::Succeeds | Self::FailsTwice | Self::Defers)
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Op {
    /// A message arrives for one of a few keys.
    Arrive(u8, usize),
    /// An earlier message arrives again.
    Again(prop::sample::Index),
    /// Another message arrives with the id of an earlier one: what it says, of a few things.
    Other(prop::sample::Index, u8),
    /// The next of what was asked is done: loads, questions, commits, or the run of an actor.
    Load,
    Answer,
    Commit(Ending),
    Work(u8, bool),
    Die(u8),
    Tick(u64),
    /// Another owner takes the shard over: all that was not durable comes again.
    Takeover,
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Well,
    Unavailable,
    Unknown { written: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let ending = prop_oneof![
        6 => Just(Ending::Well),
        1 => Just(Ending::Unavailable),
        1 => any::<bool>().prop_map(|written| Ending::Unknown { written }),
    ];
    let fate = prop_oneof![6 => Just(0usize), 5 => 1usize..6];
    prop_oneof![
        6 => (0u8..4, fate).prop_map(|(key, fate)| Op::Arrive(key, fate)),
        1 => any::<prop::sample::Index>().prop_map(Op::Again),
        1 => (any::<prop::sample::Index>(), 0u8..3).prop_map(|(which, says)| Op::Other(which, says)),
        4 => Just(Op::Load),
        4 => Just(Op::Answer),
        6 => ending.prop_map(Op::Commit),
        8 => (any::<u8>(), prop::bool::weighted(0.7)).prop_map(|(actor, all)| Op::Work(actor, all)),
        1 => any::<u8>().prop_map(Op::Die),
        3 => (0u64..400).prop_map(Op::Tick),
        1 => Just(Op::Takeover),
    ]
}

/// Bytes in hand: about four messages.
const IN_HAND: isize = 200;

struct World {
    store: Arc<MemoryStore>,
    config: LedgerConfig,
    ledger: Ledger,
    now: u64,
    /// The source: everything that was ever delivered, in order.
    log: Vec<Message>,
    read: usize,
    credits: usize,
    /// Bytes that may still be taken in hand.
    room: isize,
    loads: VecDeque<Question>,
    questions: VecDeque<Question>,
    commits: VecDeque<Action>,
    runs: BTreeMap<ActorIx, VecDeque<RunOrder>>,
    /// The messages that each actor's state holds.
    held: BTreeMap<ActorIx, Vec<String>>,
    spawned: usize,
    /// Put off once.
    deferred: BTreeSet<String>,
}

fn config(store: &MemoryStore, small: [u64; 3]) -> LedgerConfig {
    let mut settings = Settings::default();
    settings.ownership.shards = 1;
    settings.ingress.credits = 16;
    settings.memory.in_hand = IN_HAND as u64;
    settings.actors.run_max = 1 + usize::try_from(small[0] % 4).unwrap();
    settings.pending.max_per_key = 2 + small[1] % 6;
    settings.pending.max_per_shard = settings.pending.max_per_key + 6;
    settings.pending.page = 1 + usize::try_from(small[2] % 4).unwrap();
    settings.commit.turns_max = 3;
    settings.actors.passivate_after = Duration::from_millis(200);
    settings.retry.base = Duration::from_millis(20);
    settings.retry.cap = Duration::from_millis(100);
    settings.retry.attempts = 4;
    listing(store, settings, 2, small[0])
}

/// The configuration of a ledger of the service `listing` and of one source, on a new store of one shard.
pub(crate) fn listing(store: &MemoryStore, settings: Settings, actors_max: u32, seed: u64) -> LedgerConfig {
    let services = vec![Arc::from("listing")];
    let setup = Setup { shards: 1, services, tables: Vec::new(), code: Code::numbered(1) };
    let identity = at_once(store.prepare(setup)).unwrap();
    LedgerConfig {
        services: Arc::new([ServiceInfo {
            guarded: false,
            name: "listing".into(),
            number: identity.services["listing"],
            retry: RetryPolicy::from(&settings.retry),
            after_dead_letter: AfterDeadLetter::Continue,
            schedules: Arc::default(),
        }]),
        sources: Arc::new([SourceInfo { name: "log".into(), ordered: true }]),
        bindings: Arc::new(Bindings::new(&settings, Handlers::new().with(Listing)).unwrap()),
        hash_key: identity.hash_key,
        actors_max,
        seed,
        settings: Arc::new(settings),
    }
}

impl World {
    fn new(small: [u64; 3]) -> Self {
        let store = Arc::new(MemoryStore::new());
        let config = config(&store, small);
        let ledger = Self::owner(&store, &config);
        let mut world = Self {
            store,
            config,
            ledger,
            now: 1_000,
            log: Vec::new(),
            read: 0,
            credits: 0,
            room: IN_HAND,
            loads: VecDeque::new(),
            questions: VecDeque::new(),
            commits: VecDeque::new(),
            runs: BTreeMap::new(),
            held: BTreeMap::new(),
            spawned: 0,
            deferred: BTreeSet::new(),
        };
        world.perform();
        world
    }

    fn owner(store: &MemoryStore, config: &LedgerConfig) -> Ledger {
        let (taken, inbox) = (at_once(store.take(0, "owner")).unwrap(), at_once(store.inbox(0, 0, 1_000_000)).unwrap());
        Ledger::new(config.clone(), taken, inbox, 1_000)
    }

    fn happen(&mut self, op: Op) {
        match op {
            Op::Arrive(key, fate) => {
                let (id, key) = (format!("m{}", self.log.len()), format!("k{key}"));
                let kind = Fate::ALL[fate].0;
                let draft = Draft { id: &id, key: &key, kind, payload: b"null", ..Draft::default() };
                self.log.push(draft.build().unwrap());
                self.fetch();
            }
            Op::Again(which) => {
                if !self.log.is_empty() {
                    self.log.push(which.get(&self.log).clone());
                    self.fetch();
                }
            }
            Op::Other(which, says) => {
                if !self.log.is_empty() {
                    let first = which.get(&self.log);
                    let payload = says.to_string();
                    let (id, key, kind) = (first.id(), first.key(), first.kind());
                    let draft = Draft { id, key, kind, payload: payload.as_bytes(), ..Draft::default() };
                    self.log.push(draft.build().unwrap());
                    self.fetch();
                }
            }
            Op::Load => self.load(),
            Op::Answer => self.answer(),
            Op::Commit(ending) => self.commit(ending),
            Op::Work(actor, all) => {
                let busy: Vec<_> = self.runs.iter().filter(|(_, runs)| !runs.is_empty()).map(|(ix, _)| *ix).collect();
                if let Some(actor) = busy.get(usize::from(actor) % busy.len().max(1)) {
                    self.work(*actor, all);
                }
            }
            Op::Die(actor) if self.spawned > 0 => {
                let actor = ActorIx::nth(usize::from(actor) % self.spawned);
                self.runs.remove(&actor);
                self.ledger.step(protocol::Event::ActorDied(actor, "killed".to_owned()), self.now);
                self.perform();
                self.ledger.step(protocol::Event::ActorReady(actor), self.now);
            }
            Op::Die(_) => {}
            Op::Tick(by) => {
                self.now += by;
                self.ledger.step(protocol::Event::Tick, self.now);
            }
            Op::Takeover => {
                let credits = self.config.settings.ingress.credits;
                self.ledger = Self::owner(&self.store, &self.config);
                (self.loads, self.questions, self.commits) = Default::default();
                (self.runs, self.held, self.spawned, self.credits) = Default::default();
                self.room = IN_HAND;
                let stored = self.ledger.received(SourceIx::FIRST).get("one").map_or(0, |position| position.no);
                self.read = usize::try_from(stored).unwrap();
                self.perform();
                assert_eq!(self.credits, credits, "all credits are free");
            }
        }
        self.perform();
        self.fetch();
    }

    /// The source hands over what there are credits and room for.
    fn fetch(&mut self) {
        let mut end = self.read;
        while end < self.log.len().min(self.read + self.credits) && self.room > 0 {
            self.room -= self.log[end].frame().len().cast_signed();
            end += 1;
        }
        let arrivals = (self.read..end).map(|at| Arrival {
            origin: "one".into(),
            position: Position::new(at as u64 + 1, 0),
            last: true,
            what: What::Message(ServiceIx::FIRST, self.log[at].clone()),
        });
        let arrivals: Vec<_> = arrivals.collect();
        self.credits -= arrivals.len();
        self.read = end;
        self.ledger.step(protocol::Event::Fetched(SourceIx::FIRST, arrivals), self.now);
        self.perform();
        assert_eq!(
            self.room,
            self.ledger.room_free(SourceIx::FIRST),
            "what the ledger holds is what was handed over and is not free"
        );
    }

    fn perform(&mut self) {
        for action in self.ledger.actions() {
            match action {
                Action::Ask(question) if question.reader() == ReaderKind::Keys => self.loads.push_back(question),
                Action::Ask(question) => self.questions.push_back(question),
                Action::Run(actor, order) => self.runs.entry(actor).or_default().push_back(order),
                Action::Spawn(more) => {
                    (self.spawned..self.spawned + more as usize)
                        .map(ActorIx::nth)
                        .for_each(|actor| self.ledger.step(protocol::Event::ActorReady(actor), self.now));
                    self.spawned += more as usize;
                    self.perform();
                }
                Action::CommitReady | Action::Commit(_) | Action::CommitLater(..) => self.commits.push_back(action),
                Action::Credit(_, more) => self.credits += more,
                Action::Room(_, bytes) => self.room += bytes.cast_signed(),
                Action::Acknowledge(_, positions) => {
                    let durable = self.store.take_positions();
                    for (origin, position) in positions {
                        assert!(
                            durable.get(&origin).is_some_and(|stored| *stored >= position),
                            "{origin} {position:?}"
                        );
                    }
                }
                Action::Stop(reason) => panic!("the ledger stopped: {reason}"),
                Action::AskPermit(..) | Action::PermitEnded(..) | Action::Publish(_) | Action::Drained => {}
            }
        }
    }

    fn load(&mut self) {
        if let Some(question) = self.loads.pop_front() {
            self.ask(&question);
        }
    }

    fn answer(&mut self) {
        if let Some(question) = self.questions.pop_front() {
            self.ask(&question);
        }
    }

    fn ask(&mut self, question: &Question) {
        if let Some(answer) = answer(&self.store, question, self.now) {
            self.ledger.step(protocol::Event::Answered(answer), self.now);
        }
    }

    fn commit(&mut self, ending: Ending) {
        match self.commits.pop_front() {
            Some(Action::CommitReady) => self.ledger.step(protocol::Event::Gate, self.now),
            Some(Action::Commit(commit) | Action::CommitLater(commit, _)) => {
                let outcome = match ending {
                    Ending::Well => self.write(&commit),
                    Ending::Unavailable => CommitOutcome::Unavailable("away".to_owned()),
                    Ending::Unknown { written } => {
                        if written {
                            self.write(&commit);
                        }
                        CommitOutcome::Unknown("lost".to_owned())
                    }
                };
                self.ledger.step(protocol::Event::CommitEnded(commit.epoch, commit.no, outcome), self.now);
            }
            _ => {}
        }
    }

    fn write(&self, commit: &Commit) -> CommitOutcome {
        if commit.events().any(|event| Fate::of(&event.message) == Fate::Unwritable) {
            return CommitOutcome::Refused { permanent: true, error: "unwritable".to_owned() };
        }
        self.store.apply(commit)
    }

    /// An actor performs a run: all of it, or only its first turn.
    fn work(&mut self, actor: ActorIx, all: bool) {
        let Some(order) = self.runs.get_mut(&actor).and_then(VecDeque::pop_front) else { return };
        if let Some(stored) = order.state {
            let list = stored.map_or_else(Vec::new, |(_, json)| serde_json::from_slice(&json).unwrap());
            self.held.insert(actor, list);
        }
        let list = self.held.get_mut(&actor).unwrap();
        let mut turns = Vec::new();
        for item in order.items.into_iter().take(if all { usize::MAX } else { 1 }) {
            let fault = match Fate::of(&item.message) {
                Fate::FailsTwice if item.attempt <= 2 => TurnFault::Retry("fails twice".to_owned()),
                Fate::FailsAlways => TurnFault::Retry("fails always".to_owned()),
                Fate::Rejects => TurnFault::Reject("rejects".to_owned()),
                Fate::Defers if self.deferred.insert(item.message.id().to_owned()) => TurnFault::Defer(50),
                _ => {
                    list.push(item.message.id().to_owned());
                    let event = EmittedEvent { service: "listing".into(), cause: [0; 16], message: item.message };
                    turns.push(TurnEnd::Done {
                        events: vec![event],
                        sent: Vec::new(),
                        rows: Vec::new(),
                        timers: Vec::new(),
                        statements: Vec::new(),
                        reply: None,
                    });
                    continue;
                }
            };
            let stop = !matches!(fault, TurnFault::Reject(_));
            turns.push(TurnEnd::Fault(fault));
            if stop {
                break;
            }
        }
        let changed = turns.iter().any(|turn| matches!(turn, TurnEnd::Done { .. }));
        let state = changed.then(|| Some((1, serde_json::to_vec(list).unwrap().into())));
        self.ledger.step(
            protocol::Event::Ran(RunReport {
                actor,
                slot: order.slot,
                no: order.no,
                turns,
                state,
                alone: false,
                done: true,
                gone: false,
            }),
            self.now,
        );
    }

    /// Everything that is left is done, and goes well.
    fn finish(&mut self) {
        for round in 0.. {
            assert!(round < 5_000, "it never ends: {:?}", self.ledger.gauges(self.now));
            let read = self.read == self.log.len() && self.ledger.is_idle();
            if read && self.store.pending().is_empty() && self.commits.is_empty() {
                assert_eq!(self.room, IN_HAND, "nothing is in hand");
                return;
            }
            for op in [Op::Load, Op::Answer, Op::Work(0, true), Op::Work(1, true), Op::Tick(7)] {
                self.happen(op);
            }
            self.happen(Op::Commit(Ending::Well));
        }
    }

    /// The messages that each key should have handled, by the model.
    fn expected(&self) -> BTreeMap<String, Vec<String>> {
        let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for message in self.log.iter().filter(|message| Fate::of(message).counts()) {
            let list = expected.entry(message.key().to_owned()).or_default();
            if !list.iter().any(|id| id == message.id()) {
                list.push(message.id().to_owned());
            }
        }
        expected
    }

    /// The messages that came with an id under which another one had come before, each once.
    fn others(&self) -> Vec<(String, String)> {
        let mut first = BTreeMap::new();
        let all = self.log.iter().map(said);
        let others: BTreeSet<_> =
            all.filter(|(id, says)| first.entry(id.clone()).or_insert_with(|| says.clone()) != says).collect();
        others.into_iter().collect()
    }

    /// Dead letters: those that are such others, and the rest.
    fn dead(&self) -> (Vec<(String, String)>, Vec<Message>) {
        let letters = self.store.dead_letters().into_values();
        let (others, rest): (Vec<_>, Vec<_>) = letters.partition(|letter| letter.error.ends_with(OTHER_CONTENT));
        let mut others: Vec<_> = others.iter().map(|letter| said(&letter.message)).collect();
        others.sort();
        (others, rest.into_iter().map(|letter| letter.message).collect())
    }

    fn found(&self) -> BTreeMap<String, Vec<String>> {
        let states = self.store.states().into_iter();
        states.map(|((_, key), (_, json))| (key.to_string(), serde_json::from_slice(&json).unwrap())).collect()
    }
}

pub(crate) fn answer(store: &MemoryStore, question: &Question, now: u64) -> Option<Answer> {
    at_once(question.answer(store, 0, now)).unwrap()
}

/// A message's id, and what it says.
fn said(message: &Message) -> (String, String) {
    (message.id().to_owned(), String::from_utf8(message.payload().to_vec()).unwrap())
}

trait Positions {
    fn take_positions(&self) -> perkey::unstable::message::Positions;
}

impl Positions for MemoryStore {
    /// The positions of the source, as the store has them.
    fn take_positions(&self) -> perkey::unstable::message::Positions {
        let rows = at_once(self.shards()).unwrap();
        rows[0].positions.get("log").cloned().unwrap_or_default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn each_key_is_handled_like_a_queue(ops in prop::collection::vec(op(), 1..160), small: [u64; 3]) {
        let mut world = World::new(small);
        for op in ops {
            world.happen(op);
        }
        world.finish();
        prop_assert_eq!(world.found(), world.expected());
        let (others, rest) = world.dead();
        prop_assert_eq!(others, world.others(), "each once");
        let dead = rest.iter().filter(|message| Fate::of(message).counts()).count();
        prop_assert_eq!(dead, 0, "only what must die does");
        prop_assert_eq!(world.credits, 16, "all credits are back");
        prop_assert_eq!(world.ledger.gauges(world.now).pending, 0);
    }
}

#[test]
fn positions_of_a_source_that_a_process_does_not_have_are_kept() {
    let mut world = World::new([0, 0, 0]);
    world.happen(Op::Arrive(0, 0));
    world.finish();
    let before = world.store.take_positions();
    assert!(!before.is_empty());
    let sources = Arc::new([SourceInfo { name: "another".into(), ordered: true }]);
    let mut without = World::owner(&world.store, &LedgerConfig { sources, ..world.config.clone() });
    without.step(protocol::Event::Drain, world.now);
    without.step(protocol::Event::Gate, world.now);
    let commits = without.actions().into_iter().filter_map(|action| match action {
        Action::Commit(commit) => Some(commit),
        _ => None,
    });
    let commits: Vec<_> = commits.collect();
    assert_eq!(commits.len(), 1, "the last one");
    assert!(matches!(world.store.apply(&commits[0]), CommitOutcome::Committed));
    assert_eq!(world.store.take_positions(), before);
}

impl World {
    /// Goes on until this commit, or the next, is to be written.
    fn next_commit(&mut self) -> Arc<Commit> {
        for _ in 0..100 {
            if let Some(Action::Commit(commit) | Action::CommitLater(commit, _)) = self.commits.front() {
                return commit.clone();
            }
            for op in [Op::Load, Op::Answer, Op::Work(0, true), Op::Work(1, true), Op::Commit(Ending::Well)] {
                if !matches!(self.commits.front(), Some(Action::Commit(_) | Action::CommitLater(..))) {
                    self.happen(op);
                }
            }
        }
        panic!("nothing is to be committed");
    }
}

#[test]
fn a_commit_whose_outcome_is_unknown_again_and_again_is_halved() {
    let mut world = World::new([3, 0, 3]);
    for key in 0..2 {
        world.happen(Op::Arrive(key, 0));
    }
    let mut both = world.next_commit();
    while both.parts.len() < 2 {
        // Each key's first turn settles by itself.
        world.happen(Op::Commit(Ending::Well));
        (0..2).for_each(|key| world.happen(Op::Arrive(key, 0)));
        both = world.next_commit();
    }
    let mut sizes = vec![both.parts.len()];
    for _ in 0..5 {
        let large = world.next_commit().parts.len() > 1;
        world.happen(Op::Commit(if large { Ending::Unknown { written: false } } else { Ending::Well }));
        world.happen(Op::Answer);
        sizes.push(world.next_commit().parts.len());
    }
    assert_eq!(sizes[..6], [2, 2, 2, 0, 1, 1], "three times, the fence alone, then each by itself: {sizes:?}");
    world.finish();
    assert_eq!(world.found(), world.expected());
}

#[test]
fn a_message_is_late_by_when_its_outcome_is_committed() {
    let mut world = World::new([3, 0, 3]);
    let mut late = |key, fate, waits| {
        world.happen(Op::Arrive(key, fate));
        let commit = world.next_commit();
        assert!(commit.parts.iter().any(|part| part.ids.len() == 1), "it is taken with this commit");
        world.happen(Op::Tick(waits));
        world.happen(Op::Commit(Ending::Well));
        world.ledger.tally().late.values().sum::<u64>()
    };
    assert_eq!(late(0, 0, 5_000), 0, "not later than metrics.late_after");
    assert_eq!(late(1, 0, 5_001), 1);
    let rejects = Fate::ALL.iter().position(|(_, fate)| matches!(fate, Fate::Rejects)).unwrap();
    assert_eq!(late(2, rejects, 5_001), 1, "a dead letter is an outcome, too");
    let fails = Fate::ALL.iter().position(|(_, fate)| matches!(fate, Fate::FailsAlways)).unwrap();
    assert_eq!(late(3, fails, 5_001), 0, "a retry is none");
}

#[test]
fn a_commit_is_cut_at_its_bytes() {
    let mut world = World::new([3, 0, 3]);
    let mut settings = Settings::clone(&world.config.settings);
    settings.commit.turns_max = 1_000;
    settings.commit.bytes_max = 1_000;
    settings.ownership.shards = 2;
    world.config.settings = Arc::new(settings);
    world.ledger = World::owner(&world.store, &world.config);
    let key = (0..).map(|n| format!("k{n}")).find(|key| shard_of(key, 2) == 1).unwrap();
    let arrivals = (1..=16).map(|no| {
        let (id, payload) = (format!("m{no}"), [b' '; 300]);
        let message = Draft { id: &id, key: &key, kind: "t", payload: &payload, ..Draft::default() }.build().unwrap();
        Arrival {
            origin: "one".into(),
            position: Position::new(no, 0),
            last: true,
            what: What::Message(ServiceIx::FIRST, message),
        }
    });
    world.ledger.step(protocol::Event::Fetched(SourceIx::FIRST, arrivals.collect()), 1_000);
    let (mut read, mut rows) = (0, 0);
    while read < 16 {
        world.ledger.step(protocol::Event::Gate, 1_000);
        let commits = world.ledger.actions().into_iter().filter_map(|action| match action {
            Action::Commit(commit) => Some(commit),
            _ => None,
        });
        let commit = commits.last().unwrap();
        assert!(commit.log[0].messages.len() < 1_400, "{}", commit.log[0].messages.len());
        (read, rows) = (read + commit.log[0].count, rows + 1);
        assert_eq!(commit.positions["log"]["one"].no, u64::from(read), "the position goes with what was passed on");
        let outcome = world.store.apply(&commit);
        world.ledger.step(protocol::Event::CommitEnded(commit.epoch, commit.no, outcome), 1_000);
    }
    assert!((6..=10).contains(&rows), "{rows}");
}
