//! Processor time of each stage a message passes, measured one stage at a time on the ledger workload.
//! In: `--messages N --keys N --rounds N`. Out: CPU-µs a message by stage (medians), and what the stages add up to.
//!
//! Each stage does what it does in the pipeline, with its neighbours taken away: the ledger is driven directly, with
//! runs and commits that end at once; the store writes the commits that the ledger made.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use budget_actors::Balances;
use budget_actors::balances::Balance;
use futures_util::FutureExt;
use perkey::testing::TurnLimits;
use perkey::unstable::handlers::run::TurnEnd;
use perkey::unstable::ledger::Ledger;
use perkey::unstable::ledger::protocol::{
    self, Action, ActorIx, Answer, LedgerConfig, Question, RunOrder, RunReport, ServiceInfo, SourceInfo,
};
use perkey::unstable::ledger::routes::{Arrival, Bindings, What};
use perkey::unstable::message::{Positions, ServiceIx, ShardNo, SourceIx};
use perkey::unstable::store::{Commit, Event, InboxRows, KeyRow, Outcome, Store};
use perkey::unstable::transport::embedded::{self, EmbeddedLog};
use perkey::unstable::transport::{Content, Delivery, Transport};
use perkey::{AfterDeadLetter, Draft, Handler, Handlers, Message, RetryPolicy, Settings, Turn};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::runtime::Runtime;

use super::workload::Workload;
use super::{Options, meter, prepared};

const SHARDS: u32 = 8;

const STAGES: [&str; 6] = [
    "log: read and decode",
    "ledger: intake, runs, settling, commits",
    "handler: decode, handle, encode",
    "actor hops: a run there, its report back",
    "store: encode and write the commits",
    "all of these",
];

pub(crate) fn run(runtime: &Runtime, options: &Options) {
    let (messages, keys) = (options.number("--messages", 200_000), options.number("--keys", 20_000));
    let workload = Workload::new(messages, keys, 1);
    let count = workload.messages.len() as f64;
    let mut figures: [Vec<f64>; STAGES.len()] = Default::default();
    for round in 0..options.number("--rounds", 3) {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let path = dir.path().join("bench.db");
        let store = runtime.block_on(async {
            let store = prepared(&path).await;
            workload.append(&*store, SHARDS).await;
            store
        });
        let (deliveries, log) = metered(|| runtime.block_on(read(store.clone(), messages)));
        let (handled, handler) = metered(|| handle(&workload));
        let mut drives: Vec<Drive> = (0..SHARDS).map(|shard| Drive::new(shard, runtime, &store)).collect();
        let ((), ledger) = metered(|| {
            for (drive, deliveries) in drives.iter_mut().zip(deliveries) {
                drive.all(deliveries, &handled);
            }
        });
        let runs = drives.iter().map(|drive| drive.runs).sum();
        let ((), hops) = metered(|| runtime.block_on(hop(runs)));
        let commits: Vec<_> = drives.iter_mut().map(|drive| std::mem::take(&mut drive.commits)).collect();
        let total: usize = commits.iter().map(Vec::len).sum();
        let ((), write) = metered(|| runtime.block_on(write(&*store, commits)));
        runtime.block_on(store.close());
        let stages = [log, ledger, handler, hops, write].map(|seconds| seconds * 1e6 / count);
        println!("round {round}: {} runs ({:.1} messages each), {total} commits", runs, count / runs as f64);
        for (figures, micros) in figures.iter_mut().zip(stages.iter().copied().chain([stages.iter().sum()])) {
            figures.push(micros);
        }
    }
    for (stage, figures) in STAGES.iter().zip(&figures) {
        println!("{stage:42} {:>6.2} CPU-µs a message", meter::median(figures));
    }
}

/// The result of `work`, and the processor time that it took.
fn metered<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let before = meter::cpu_seconds();
    let result = work();
    (result, meter::cpu_seconds() - before)
}

async fn read(store: Arc<dyn Store>, messages: usize) -> Vec<Vec<Delivery>> {
    let settings = Settings::default();
    let log = EmbeddedLog::new(store, settings.log.poll);
    let mut shards = Vec::new();
    for shard in 0..SHARDS {
        let mut source = log.open(shard, Positions::new()).await.expect("a source");
        let mut deliveries = Vec::with_capacity(messages / SHARDS as usize);
        // The end of the log is where nothing comes for a while.
        while let Ok(more) =
            tokio::time::timeout(Duration::from_millis(50), source.fetch(settings.ingress.batch_max)).await
        {
            deliveries.extend(more.expect("the log can be read"));
        }
        shards.push(deliveries);
    }
    shards
}

/// The handler's results for one message.
struct Handled {
    event: Event,
    state: bytes::Bytes,
}

/// The handler's part of all messages, as a key's actor does it: in the workload's order, copies included.
fn handle(workload: &Workload) -> HashMap<String, Handled> {
    let mut states: HashMap<&str, Balance> = HashMap::new();
    let service: Arc<str> = Balances::SERVICE.into();
    let mut handled = HashMap::with_capacity(workload.messages.len());
    for message in &workload.messages {
        let state = states.entry(message.key()).or_default();
        // The copy that a fault would restore.
        std::hint::black_box(state.clone());
        let mut turn = Turn::new(message.clone(), 1, 0, TurnLimits::default());
        let posting = serde_json::from_slice(message.payload()).expect("a posting");
        let done = Balances.handle(state, posting, &mut turn).now_or_never();
        done.expect("nothing is awaited").expect("no fault");
        let effects = turn.into_effects();
        let emitted = &effects.events[0];
        let draft = Draft {
            id: message.id(),
            key: message.key(),
            kind: &emitted.kind,
            source: "perkey:balances",
            payload: &emitted.payload,
            ..Draft::default()
        };
        let event = Event { service: service.clone(), cause: [0; 16], message: draft.build().expect("an event") };
        let state = serde_json::to_vec(state).expect("a state").into();
        handled.insert(message.id().to_owned(), Handled { event, state });
    }
    handled
}

/// A ledger whose every wish is granted at once.
struct Drive {
    shard: ShardNo,
    ledger: Ledger,
    now: u64,
    credits: usize,
    gate: bool,
    actors: usize,
    runs: usize,
    commits: Vec<Arc<Commit>>,
}

impl Drive {
    fn new(shard: ShardNo, runtime: &Runtime, store: &Arc<perkey::unstable::store::sqlite::SqliteStore>) -> Self {
        let settings = Settings::default();
        let handlers = Handlers::new().with(Balances);
        let taken = runtime.block_on(store.take(shard, "bench")).expect("the shard");
        let service = ServiceInfo {
            guarded: false,
            name: Balances::SERVICE.into(),
            number: 0,
            retry: RetryPolicy::from(&settings.retry),
            after_dead_letter: AfterDeadLetter::Continue,
            schedules: Arc::default(),
        };
        let config = LedgerConfig {
            bindings: Arc::new(Bindings::new(&settings, handlers).expect("no bindings")),
            actors_max: u32::try_from(settings.actors.resident_max).expect("a small number") / SHARDS,
            settings: Arc::new(settings),
            services: [service].into(),
            sources: [SourceInfo { name: embedded::NAME.into(), ordered: true }].into(),
            hash_key: [7; 32],
            seed: 1,
        };
        let ledger = Ledger::new(config, taken, InboxRows::default(), 1);
        Self { shard, ledger, now: 1, credits: 0, gate: false, actors: 0, runs: 0, commits: Vec::new() }
    }

    fn all(&mut self, deliveries: Vec<Delivery>, handled: &HashMap<String, Handled>) {
        let mut deliveries = deliveries.into_iter().map(arrival).peekable();
        let batch_max = Settings::default().ingress.batch_max;
        loop {
            self.settle(handled);
            let arrivals: Vec<_> = deliveries.by_ref().take(self.credits.min(batch_max)).collect();
            if !arrivals.is_empty() {
                self.credits -= arrivals.len();
                self.ledger.step(protocol::Event::Fetched(SourceIx::FIRST, arrivals), self.now);
            } else if std::mem::take(&mut self.gate) {
                self.now += 1;
                self.ledger.step(protocol::Event::Gate, self.now);
            } else {
                break;
            }
        }
        assert!(deliveries.peek().is_none() && self.ledger.is_idle(), "shard {} did all its work", self.shard);
    }

    fn settle(&mut self, handled: &HashMap<String, Handled>) {
        loop {
            let actions = self.ledger.actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                match action {
                    Action::Ask(Question::Load(slots, keys)) => self.ledger.step(
                        protocol::Event::Answered(Answer::Loaded(slots, vec![KeyRow::default(); keys.len()])),
                        self.now,
                    ),
                    Action::Spawn(more) => (0..more).for_each(|_| {
                        self.ledger.step(protocol::Event::ActorReady(ActorIx::nth(self.actors)), self.now);
                        self.actors += 1;
                    }),
                    Action::Run(actor, order) => {
                        self.runs += 1;
                        self.ledger.step(protocol::Event::Ran(report(actor, &order, handled)), self.now);
                    }
                    Action::CommitReady => self.gate = true,
                    Action::Commit(commit) => {
                        self.ledger
                            .step(protocol::Event::CommitEnded(commit.epoch, commit.no, Outcome::Committed), self.now);
                        self.commits.push(commit);
                    }
                    Action::Credit(_, more) => self.credits += more,
                    Action::Ask(Question::Due(..)) => self.ledger.step(
                        protocol::Event::Answered(Answer::Due(perkey::unstable::store::Due::default())),
                        self.now,
                    ),
                    Action::Ask(Question::Schedules) => {
                        self.ledger.step(protocol::Event::Answered(Answer::Schedules(Vec::new())), self.now)
                    }
                    Action::Ask(Question::Timers(..)) => self.ledger.step(
                        protocol::Event::Answered(Answer::Timers(perkey::unstable::store::DueTimers::default())),
                        self.now,
                    ),
                    Action::Ask(Question::Orphans(..)) => {
                        self.ledger.step(protocol::Event::Answered(Answer::Orphans(Vec::new())), self.now)
                    }
                    _ => {}
                }
            }
        }
    }
}

fn arrival(delivery: Delivery) -> Arrival {
    let Content::For(_, message) = delivery.content else { unreachable!("the log holds messages for services") };
    Arrival {
        origin: delivery.origin,
        position: delivery.position,
        last: true,
        what: What::Message(ServiceIx::FIRST, message),
    }
}

fn report(actor: ActorIx, order: &RunOrder, handled: &HashMap<String, Handled>) -> RunReport {
    let found = |message: &Message| &handled[message.id()];
    let turn = |message: &Message| TurnEnd::Done {
        events: vec![found(message).event.clone()],
        sent: Vec::new(),
        rows: Vec::new(),
        timers: Vec::new(),
        statements: Vec::new(),
        reply: None,
    };
    let turns = order.items.iter().map(|item| turn(&item.message)).collect();
    let state = order.items.last().map(|item| (1, found(&item.message).state.clone()));
    RunReport {
        actor,
        slot: order.slot,
        no: order.no,
        turns,
        state: Some(state),
        alone: false,
        done: true,
        gone: false,
    }
}

struct Echo;

impl Actor for Echo {
    type Msg = (u64, tokio::sync::mpsc::UnboundedSender<u64>);
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Self::Msg>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        (no, reply): Self::Msg,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        Ok(reply.send(no)?)
    }
}

/// So many orders to actors and reports back, 64 on their way at a time.
async fn hop(runs: usize) {
    let mut actors = Vec::new();
    for _ in 0..1_024 {
        actors.push(Actor::spawn(None, Echo, ()).await.expect("an actor").0);
    }
    let (reply, mut reports) = tokio::sync::mpsc::unbounded_channel();
    for run in 0..runs + 64 {
        if run < runs {
            actors[run % actors.len()].cast((run as u64, reply.clone())).expect("it lives");
        }
        if run >= 64 {
            reports.recv().await.expect("each order is answered");
        }
    }
    actors.iter().for_each(|actor| actor.stop(None));
}

/// The shards' commits, each shard's one after the other, all shards at once.
async fn write(store: &dyn Store, shards: Vec<Vec<Arc<Commit>>>) {
    let shards = shards.iter().map(async |commits| {
        for commit in commits {
            let outcome = store.commit(commit).await;
            assert!(matches!(outcome, Outcome::Committed), "{outcome:?}");
        }
    });
    futures_util::future::join_all(shards).await;
}
