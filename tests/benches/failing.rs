//! The cost of one failing key for the others: a message that fails each time, with followers, under a steady load.
//! In: `--seconds N --rounds N --percent N --keys N`. Out: p50 and p99 with and without it, the attempts and their delays.
//!
//! The load is an open loop: each message is due at its time, whatever became of the ones before it, and its latency is
//! counted from then to the store's answer for the commit that took it. The capacity is measured first, with the same
//! messages fed as fast as they are taken.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use perkey::unstable::clock::Stopwatch;
use perkey::unstable::message::shard_of;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::query::DeadFilter;
use perkey::unstable::store::sqlite::SqliteStore;
use perkey::unstable::store::{Commit, CommitOutcome, Store};
use perkey::{Draft, Engine, Fault, Handler, Handlers, Key, Message, Millis, Settings, Turn, sleep};
use perkey_tests::{Tapped, Taps};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use super::workload::append;
use super::{Options, meter, open};

const SHARDS: u32 = 8;
/// The time between two appends of the messages that are due.
const EVERY: Duration = Duration::from_millis(5);
/// Unread messages above which the feed waits while the capacity is measured.
const UNREAD: u64 = 20_000;
/// Messages appended at once while the capacity is measured: many, so that it is not the feed's.
const FEED: usize = 4_000;
/// The key whose first message fails each time, and how often a follower comes.
const FAILING: &str = "failing";
const FOLLOWER_EVERY: Duration = Duration::from_millis(100);
/// Messages at the start of a round that are not counted: the first keys are cold.
const WARM_UP: Duration = Duration::from_secs(2);

struct Counting;

#[derive(Clone, Default, Serialize, Deserialize)]
struct Count {
    n: u64,
}

#[derive(Serialize, Deserialize)]
struct Step {
    fail: bool,
    memo: String,
}

impl Handler for Counting {
    const SERVICE: &'static str = "counting";
    type Message = Step;
    type State = Count;

    fn key(&self, _: &Step) -> Key {
        // Of whichever key it came under.
        "".into()
    }

    async fn handle(&self, state: &mut Count, step: Step, turn: &mut Turn) -> Result<(), Fault> {
        if step.fail {
            return Err(Fault::retry("as told"));
        }
        state.n += 1;
        turn.emit("counted", &*state)
    }
}

pub(crate) fn run(runtime: &Runtime, options: &Options) {
    let keys = options.number("--keys", 20_000);
    let capacity = runtime.block_on(capacity(keys, options.number("--messages", 200_000)));
    let rate = capacity * options.number("--percent", 50) as f64 / 100.0;
    println!("capacity {capacity:.0} messages/s, appended and handled; fed with {rate:.0} messages/s");
    let seconds = Duration::from_secs(options.number("--seconds", 15) as u64);
    let mut figures: [[Vec<f64>; 2]; 2] = Default::default();
    for round in 0..options.number("--rounds", 3) {
        for (failing, figures) in [false, true].into_iter().zip(&mut figures) {
            let load = Load { keys, rate, seconds, failing };
            let (mut latencies, lateness) = runtime.block_on(once(&load));
            latencies.sort_by(f64::total_cmp);
            let [p50, p99, worst] = [0.5, 0.99, 1.0].map(|share| meter::percentile(&latencies, share));
            let name = if failing { "with a failing key" } else { "without" };
            println!(
                "round {round}: {name:20} p50 {p50:>7.1} ms, p99 {p99:>7.1} ms, longest {worst:>7.1} ms \
                 ({} messages, fed at most {lateness:.0} ms late)",
                latencies.len()
            );
            figures[0].push(p50);
            figures[1].push(p99);
        }
    }
    let [without, with] = figures.map(|figures| figures.map(|values| meter::median(&values)));
    println!("median without: p50 {:.1} ms, p99 {:.1} ms", without[0], without[1]);
    println!("median with:    p50 {:.1} ms, p99 {:.1} ms = {:.2} x", with[0], with[1], with[1] / without[1]);
}

struct Load {
    keys: usize,
    rate: f64,
    seconds: Duration,
    failing: bool,
}

/// Messages per second when they are appended as fast as they are handled.
async fn capacity(keys: usize, messages: usize) -> f64 {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let (probe, engine) = start(&dir.path().join("bench.db")).await;
    let watch = Stopwatch::start();
    for first in (0..messages).step_by(FEED) {
        let batch: Vec<_> = (first..(first + FEED).min(messages)).map(|no| counted(no, keys)).collect();
        while probe.queries().unread_imports().await.expect("a number") > UNREAD {
            sleep(Duration::from_millis(2)).await;
        }
        append(&*probe, Counting::SERVICE, &batch, SHARDS).await;
    }
    while probe.taps.seen() < messages {
        sleep(Duration::from_millis(2)).await;
    }
    let took = watch.elapsed();
    engine.drain().await.expect("a drain");
    probe.store.close().await;
    messages as f64 / took.as_secs_f64()
}

/// One round: the latencies in milliseconds, and how late the feed was at the worst.
async fn once(load: &Load) -> (Vec<f64>, f64) {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let (probe, engine) = start(&dir.path().join("bench.db")).await;
    let total = (load.rate * load.seconds.as_secs_f64()) as usize;
    let due = |no: usize| Duration::from_secs_f64(no as f64 / load.rate);
    let (mut fed, mut follower, mut late) = (0, 0_u32, Duration::ZERO);
    let mut places = Vec::new();
    probe.taps.begin();
    let watch = Stopwatch::start();
    while fed < total {
        let now = watch.elapsed();
        let until = total.min((now.as_secs_f64() * load.rate) as usize);
        late = late.max(now.saturating_sub(due(fed)));
        let mut batch: Vec<_> = (fed..until).map(|no| counted(no, load.keys)).collect();
        fed = until;
        // The failing message comes once the keys are warm.
        while load.failing && WARM_UP + FOLLOWER_EVERY * follower < now {
            batch.push(step(uuid::Uuid::from_u64_pair(2, u64::from(follower)), FAILING, follower == 0));
            follower += 1;
        }
        if !batch.is_empty() {
            append(&*probe, Counting::SERVICE, &batch, SHARDS).await;
        }
        if load.failing && places.len() < now.as_secs() as usize {
            places.push(place(&*probe).await);
        }
        sleep((now + EVERY).saturating_sub(watch.elapsed())).await;
    }
    while probe.taps.seen() < total {
        sleep(EVERY).await;
    }
    if load.failing {
        tell(&probe, places).await;
    }
    engine.drain().await.expect("a drain");
    probe.store.close().await;
    let committed = std::mem::take(&mut *probe.taps.committed.lock().expect("no holder panics"));
    let counted = committed.into_iter().filter(|(no, _)| due(*no) >= WARM_UP);
    let latencies = counted.map(|(no, at)| at.saturating_sub(due(no)).as_secs_f64() * 1e3).collect();
    (latencies, late.as_secs_f64() * 1e3)
}

/// The position of the failing key's shard in its source, and the number of its messages that wait.
async fn place(probe: &dyn Store) -> (u64, u64) {
    let rows = probe.queries().shards().await.expect("rows");
    let row = &rows[shard_of(FAILING, SHARDS) as usize];
    let position = row.positions.values().flatten().map(|(_, position)| position.no).max();
    (position.unwrap_or(0), row.pending)
}

/// Waits for the dead letter; says what became of the message and that the position moved on meanwhile.
async fn tell(probe: &Tapped<SqliteStore, Probe>, places: Vec<(u64, u64)>) {
    let waited: Vec<u64> = places.iter().filter(|(_, pending)| *pending > 0).map(|(no, _)| *no).collect();
    let moved = waited.windows(2).filter(|pair| pair[1] > pair[0]).count();
    println!("  looked {} times while it waited: the position had moved on {moved} times", waited.len());
    let letter = loop {
        let letters = probe.queries().peek(DeadFilter::default(), 1).await.expect("dead letters");
        if let Some((_, letter)) = letters.into_iter().next() {
            break letter;
        }
        sleep(Duration::from_millis(100)).await;
    };
    let retry = Settings::default().retry;
    let mut bound = retry.base;
    let mut told = Vec::new();
    for delay in probe.taps.delays.lock().expect("no holder panics").iter() {
        told.push(format!("{delay} of {}", bound.as_millis()));
        assert!(Duration::from_millis(*delay) <= bound, "a delay of {delay} ms");
        bound = bound.mul_f64(retry.factor).min(retry.cap);
    }
    println!("  dead after {} attempts; delays in ms, of at most: {}", letter.history.len(), told.join(", "));
    let delays = probe.taps.delays.lock().expect("no holder panics").len();
    let attempts = retry.attempts as usize;
    assert_eq!((letter.history.len(), delays), (attempts, attempts - 1), "each attempt is in its history");
}

/// A message with a key that follows from its number; neighbouring numbers have different keys.
fn counted(no: usize, keys: usize) -> Message {
    let key = format!("key-{:05}", no.wrapping_mul(7_919) % keys);
    step(uuid::Uuid::from_u64_pair(1, no as u64), &key, false)
}

fn step(id: uuid::Uuid, key: &str, fail: bool) -> Message {
    let payload = serde_json::to_vec(&Step { fail, memo: "a memo as long as many are".repeat(4) }).expect("JSON");
    let draft = Draft { id: &id.to_string(), key, kind: "step", payload: &payload, ..Draft::default() };
    draft.build().expect("a message")
}

async fn start(path: &Path) -> (Arc<Tapped<SqliteStore, Probe>>, Engine) {
    let store = open(path).await;
    let watch = Mutex::new(Stopwatch::start());
    let taps = Probe { watch, committed: Mutex::default(), delays: Mutex::default() };
    let probe = Arc::new(Tapped { store, taps });
    let handlers = Handlers::new().with(Counting);
    let engine = Engine::start(&Settings::default(), handlers, probe.clone(), Metrics::new()).await;
    (probe, engine.expect("an engine"))
}

/// Remembers when each message was committed.
struct Probe {
    watch: Mutex<Stopwatch>,
    committed: Mutex<Vec<(usize, Duration)>>,
    /// The delays before the failing message's next attempts, as they were drawn.
    delays: Mutex<Vec<Millis>>,
}

impl Probe {
    fn begin(&self) {
        *self.watch.lock().expect("no holder panics") = Stopwatch::start();
    }

    fn seen(&self) -> usize {
        self.committed.lock().expect("no holder panics").len()
    }

    fn record(&self, commit: &Commit) {
        let at = self.watch.lock().expect("no holder panics").elapsed();
        let half = |raw: &[u8]| raw.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let counted = commit.ids().filter(|id| half(&id.0[..8]) == 1);
        let numbers = counted.map(|id| (half(&id.0[8..16]) as usize, at));
        self.committed.lock().expect("no holder panics").extend(numbers);
        for row in commit.parts.iter().flat_map(|part| &part.pending) {
            if let (Some(due), Some(failed)) = (row.due_at, row.history.last()) {
                self.delays.lock().expect("no holder panics").push(due - failed.at);
            }
        }
    }
}

impl Taps for Probe {
    fn commit<'a>(&'a self, store: &'a dyn Store, commit: &'a Commit) -> BoxFuture<'a, CommitOutcome> {
        Box::pin(async move {
            let outcome = store.commit(commit).await;
            if matches!(outcome, CommitOutcome::Committed) {
                self.record(commit);
            }
            outcome
        })
    }
}
