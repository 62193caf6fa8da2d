//! Several workers over one store: each shard has one of them, whichever of them comes, goes, freezes or fails.
//! In: engines that share a store, real processes that are killed and frozen. Out: each message counted once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::clock::Clock;
use perkey::unstable::metrics::{Child, Metrics};
use perkey::unstable::settings::Intensity;
use perkey::unstable::store::memory::MemoryStore;
use perkey::unstable::store::query::DeadFilter;
use perkey::unstable::store::{Setup, Store};
use perkey::{Engine, Fault, Handler, Handlers, Key, Settings, Turn};
use perkey_chaos::Verdict;
use perkey_chaos::check::check;
use perkey_chaos::postings::{Postings, SERVICE};
use perkey_chaos::process::{Place, Running, built, until};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::postgres_place::{Database, open};
use crate::support::{Count, Counted, Counting, append, count, handlers};

const SOON: Duration = Duration::from_secs(30);

/// A second of lease is enough where nobody else uses the machine's time.
fn settings(worker: &str) -> Settings {
    let mut settings = Settings::default();
    settings.ownership.worker = worker.to_owned();
    settings.ownership.lease_ttl = Duration::from_millis(1_500);
    settings.ownership.heartbeat = Duration::from_millis(100);
    settings.ownership.cool_down = Duration::from_millis(1_500);
    settings.store.statement_timeout = Duration::from_secs(1);
    settings.log.poll = Duration::from_millis(20);
    settings
}

/// A worker, and what it measures.
struct Worker {
    engine: Engine,
    metrics: Arc<Metrics>,
}

impl Worker {
    async fn start(name: &str, shared: &Shared) -> Self {
        Self::with(&settings(name), shared, handlers()).await
    }

    async fn with(settings: &Settings, shared: &Shared, handlers: Handlers) -> Self {
        let (metrics, store) = (Metrics::new(), shared.store().await);
        let engine = Engine::start(settings, handlers, store, Arc::clone(&metrics)).await.unwrap();
        Self { engine, metrics }
    }

    fn owned(&self) -> usize {
        self.engine.owned().len()
    }
}

/// A store that several workers share, each with its own way to it.
enum Shared {
    Memory(Arc<MemoryStore>),
    Postgres(Database),
}

impl Shared {
    fn memory() -> Self {
        Self::Memory(Arc::new(MemoryStore::shared(Clock::system())))
    }

    async fn postgres() -> Self {
        Self::Postgres(Database::new().await)
    }

    async fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Memory(store) => Arc::clone(store) as Arc<dyn Store>,
            Self::Postgres(database) => open(&database.url).await,
        }
    }
}

/// The setup of a store of these tests.
fn setup() -> Setup {
    let handlers = handlers();
    Setup { shards: 8, services: handlers.services(), tables: handlers.tables(), code: handlers.code() }
}

/// Waits until each of the workers has this many shards.
async fn owned(workers: &[&Worker], each: &[std::ops::RangeInclusive<usize>]) {
    let what = format!("not each has its shards: {each:?}");
    until(&what, SOON, async || {
        let mut all = workers.iter().zip(each);
        let sum: usize = workers.iter().map(|worker| worker.owned()).sum();
        sum == 8 && all.all(|(worker, each)| each.contains(&worker.owned()))
    })
    .await
    .unwrap();
    for worker in workers {
        until("a worker is not ready", SOON, async || worker.engine.health().await.ready).await.unwrap();
    }
}

/// Of each key the counts that its messages caused, in order.
async fn counts(store: &dyn Store) -> BTreeMap<String, Vec<u64>> {
    let mut counts: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for shard in 0..Settings::default().ownership.shards {
        for row in store.queries().events(shard, 0, 1_000_000).await.unwrap() {
            let event: serde_json::Value = serde_json::from_slice(row.event.message.payload()).unwrap();
            counts.entry(row.event.message.key().to_owned()).or_default().push(event["n"].as_u64().unwrap());
        }
    }
    counts
}

/// Adds messages `from..to`, over 200 keys.
async fn feed(store: &dyn Store, from: usize, to: usize) {
    let messages: Vec<_> = (from..to).map(|n| count(&format!("m{n}"), &format!("k{}", n % 200), None)).collect();
    append(store, Settings::default().ownership.shards, "counting", &messages).await;
}

/// Waits until everything is handled, and checks that each of `total` messages counted once, in order.
async fn counted_once(store: &dyn Store, total: usize) {
    let read = async || store.queries().shards().await.is_ok_and(|rows| rows.iter().all(|row| row.unread == 0));
    until("not everything is handled", SOON, read).await.unwrap();
    let counts = counts(store).await;
    for (key, n) in &counts {
        assert!(n.iter().copied().eq(1..=n.len() as u64), "{key}: {n:?}");
    }
    assert_eq!(counts.values().map(Vec::len).sum::<usize>(), total);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_share_the_shards_in_memory() {
    come_and_go(&Shared::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_share_the_shards_on_postgresql() {
    come_and_go(&Shared::postgres().await).await;
}

async fn come_and_go(shared: &Shared) {
    let a = Worker::start("a", shared).await;
    let store = shared.store().await;
    if let Shared::Postgres(_) = shared {
        store.prepare(setup()).await.unwrap();
    }
    owned(&[&a], &[8..=8]).await;
    feed(&*store, 0, 2_000).await;
    let b = Worker::start("b", shared).await;
    owned(&[&a, &b], &[4..=4, 4..=4]).await;
    feed(&*store, 2_000, 4_000).await;
    let c = Worker::start("c", shared).await;
    owned(&[&a, &b, &c], &[2..=3, 2..=3, 2..=3]).await;
    feed(&*store, 4_000, 6_000).await;
    a.engine.drain().await.unwrap();
    feed(&*store, 6_000, 8_000).await;
    owned(&[&b, &c], &[4..=4, 4..=4]).await;
    counted_once(&*store, 8_000).await;
    b.engine.idle().await;
    let living = [b.engine.owner(), c.engine.owner()];
    let fleet = c.engine.look().await.unwrap().unwrap();
    assert_eq!(fleet.workers.len(), 2, "the one that drained has left: {fleet:?}");
    let rows = store.queries().shards().await.unwrap();
    assert!(rows.iter().all(|row| row.unclean == 0), "every hand-over was clean: {rows:?}");
    let known = async || c.engine.owner_of("k7").is_some_and(|owner| living.contains(&owner.worker.id));
    until("its owner does not get known", SOON, known).await.unwrap();
    assert!(b.metrics.encode().contains("perkey_owned_shards 4\n"), "{}", b.metrics.encode());
    assert!(b.metrics.encode().contains("perkey_takeovers_total{reason=\"free\"}"));
    b.engine.drain().await.unwrap();
    c.engine.drain().await.unwrap();
    let fleet = store.leases().unwrap().fleet().await.unwrap();
    assert!(fleet.workers.is_empty() && fleet.shards.iter().all(|row| row.owner.is_none()), "{fleet:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_cannot_renew_stops_and_comes_back_as_another() {
    let shared = Shared::memory();
    let Shared::Memory(memory) = &shared else { unreachable!() };
    let store = shared.store().await;
    let a = Worker::start("a", &shared).await;
    owned(&[&a], &[8..=8]).await;
    let before = a.engine.owner();
    memory.refuse_renewals(true);
    until("it did not stop its shards", SOON, async || a.owned() == 0).await.unwrap();
    let health = a.engine.health().await;
    assert!(!health.ready && health.problems[0].contains("no lease is in force"), "{health:?}");
    assert!(a.metrics.encode().contains("perkey_alarm{alarm=\"lease_lost\"} 1\n"));
    feed(&*store, 0, 1_000).await;
    memory.refuse_renewals(false);
    owned(&[&a], &[8..=8]).await;
    assert_ne!(a.engine.owner(), before, "another incarnation");
    assert!(a.metrics.encode().contains("perkey_alarm{alarm=\"lease_lost\"} 0\n"));
    counted_once(&*store, 1_000).await;
    a.engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_fails_too_often_goes_to_another_worker() {
    let shared = Shared::memory();
    let store = shared.store().await;
    let mut once = settings("a");
    once.supervision.shard = Intensity { restarts: 0, ..Intensity::default() };
    let a = Worker::with(&once, &shared, handlers()).await;
    owned(&[&a], &[8..=8]).await;
    let b = Worker::start("b", &shared).await;
    owned(&[&a, &b], &[4..=4, 4..=4]).await;
    let failing = a.engine.owned()[0];
    a.engine.kill(failing as usize, Child::Shard).await;
    until("the other did not take it", SOON, async || b.engine.owned().contains(&failing)).await.unwrap();
    assert!(!a.engine.owned().contains(&failing));
    feed(&*store, 0, 1_000).await;
    counted_once(&*store, 1_000).await;
    a.engine.drain().await.unwrap();
    b.engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_last_shard_is_given_up_ends() {
    let shared = Shared::memory();
    let store = shared.store().await;
    let mut once = settings("a");
    once.ownership.shards = 1;
    once.supervision.shard = Intensity { restarts: 0, ..Intensity::default() };
    let a = Worker::with(&once, &shared, handlers()).await;
    until("it has no shard", SOON, async || a.owned() == 1).await.unwrap();
    a.engine.kill(0, Child::Shard).await;
    let reason = tokio::time::timeout(SOON, a.engine.failed()).await.unwrap();
    assert!(reason.contains("shard 0, the last one here, failed too often"), "{reason}");
    assert_eq!(store.leases().unwrap().fleet().await.unwrap().shards[0].owner, None, "it was given back");
}

/// A later version of [`Counting`]: its states are stored in another form.
struct Later;

#[derive(Clone, Default, Serialize, Deserialize)]
struct Tally {
    total: Counted,
}

impl Handler for Later {
    const SERVICE: &'static str = "counting";
    const STATE_VERSION: u32 = 2;
    type Message = Count;
    type State = Tally;

    fn key(&self, message: &Count) -> Key {
        message.key.as_str().into()
    }

    fn upgrade(version: u32, stored: Value) -> Result<Tally, Fault> {
        match version {
            1 => Ok(Tally { total: serde_json::from_value(stored)? }),
            other => Err(Fault::reject(format!("there never was a version {other}"))),
        }
    }

    async fn handle(&self, tally: &mut Tally, message: Count, turn: &mut Turn) -> Result<(), Fault> {
        Counting.handle(&mut tally.total, message, turn).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_rolls_forward_and_an_older_program_leaves_newer_shards_alone() {
    roll(&Shared::memory()).await;
    roll(&Shared::postgres().await).await;
}

async fn roll(shared: &Shared) {
    let newer = || Handlers::new().with(Later);
    let old = Worker::start("old", shared).await;
    let store = shared.store().await;
    store.prepare(setup()).await.unwrap();
    owned(&[&old], &[8..=8]).await;
    feed(&*store, 0, 500).await;
    let new = Worker::with(&settings("new"), shared, newer()).await;
    owned(&[&old, &new], &[4..=4, 4..=4]).await;
    feed(&*store, 500, 1_000).await;
    old.engine.drain().await.unwrap();
    owned(&[&new], &[8..=8]).await;
    counted_once(&*store, 1_000).await;
    // Back is refused, and says what to do.
    let back = Worker::start("back", shared).await;
    until("it is ready for nothing", SOON, async || back.engine.health().await.ready).await.unwrap();
    assert_eq!((back.owned(), new.owned()), (0, 8), "what is newer stays where it is");
    new.engine.drain().await.unwrap();
    let told = async || {
        let health = back.engine.health().await;
        !health.ready && health.problems.iter().any(|problem| problem.contains("run the newer program"))
    };
    until("it does not say why", SOON, told).await.unwrap();
    assert!(back.metrics.encode().contains("perkey_alarm{alarm=\"code_version_too_low\"} 1\n"));
    assert_eq!(back.owned(), 0);
    let again = Worker::with(&settings("again"), shared, newer()).await;
    until("the newer program does not go on", SOON, async || again.owned() == 8).await.unwrap();
    again.engine.drain().await.unwrap();
    back.engine.drain().await.unwrap();
}

/// Lease of the processes: they share the machine with all other tests.
const TTL: Duration = Duration::from_secs(3);

/// Real workers on one database.
struct Processes {
    place: Place,
    given: Postings,
    store: Arc<dyn Store>,
    _folder: tempfile::TempDir,
    _database: Database,
}

impl Processes {
    async fn new() -> Self {
        let binary = tokio::task::spawn_blocking(built).await.unwrap().unwrap();
        let (folder, database) = (tempfile::tempdir().unwrap(), Database::new().await);
        let mut place = Place::new(&binary, folder.path());
        place.url.clone_from(&database.url);
        let store = open(&database.url).await;
        Self { place, given: Postings::new(11, 300), store, _folder: folder, _database: database }
    }

    fn start(&self, name: &str) -> Running {
        let worker = format!("ownership.worker={name}");
        let ttl = format!("ownership.lease_ttl={}s", TTL.as_secs());
        let mut args = vec!["worker"];
        let own = [worker.as_str(), &ttl, "ownership.heartbeat=300ms", "store.statement_timeout=2s"];
        for set in own.into_iter().chain(["admin.listen=127.0.0.1:0"]) {
            args.extend(["--set", set]);
        }
        self.place.start(&format!("{name}.log"), &args).unwrap()
    }

    /// Adds postings to the embedded log.
    async fn feed(&mut self, count: usize) {
        let messages: Vec<_> = (0..count).map(|_| self.given.make().message().unwrap()).collect();
        append(&*self.store, 8, SERVICE, &messages).await;
    }

    async fn leases(&self) -> Value {
        let output = self.place.run(&["leases", "--output", "json"], SOON).await.unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Waits until these workers own all shards, each its share.
    async fn share(&self, names: &[&str]) {
        let mut seen = Value::Null;
        let what = format!("not each of {names:?} has its share");
        let shared = until(&what, SOON * 2, async || {
            seen = self.leases().await;
            let shards = seen["shards"].as_array().cloned().unwrap_or_default();
            let owned = |name: &str| {
                let mine = |row: &&Value| row["owner"].as_str().is_some_and(|id| id.starts_with(&format!("{name} (")));
                shards.iter().filter(mine).count()
            };
            let alive = shards.iter().all(|row| row["state"] == "owned");
            shards.len() == 8 && alive && names.iter().all(|name| owned(name) >= 8 / names.len())
        });
        if let Err(error) = shared.await {
            let logs: Vec<_> = ["a", "b", "c"].iter().map(|name| self.place.tail(&format!("{name}.log"))).collect();
            panic!("{error}\n{seen:#}\n{}", logs.join("\n"));
        }
    }

    async fn handled(&self) {
        let read =
            async || self.store.queries().shards().await.is_ok_and(|rows| rows.iter().all(|row| row.unread == 0));
        until("not everything is handled", SOON * 2, read).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_somebody_holds_open_raises_an_alarm() {
    let database = Database::new().await;
    let mut other = database.connection().await;
    let shared = Shared::Postgres(database);
    let mut settings = settings("a");
    settings.store.transaction_age_max = Duration::from_millis(500);
    let worker = Worker::with(&settings, &shared, handlers()).await;
    let says = async |value: u8| {
        let line = format!("perkey_alarm{{alarm=\"long_transaction\"}} {value}\n");
        until(&line, SOON, async || worker.metrics.encode().contains(&line)).await.unwrap();
    };
    sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM shards")
        .execute(&mut other)
        .await
        .unwrap();
    says(1).await;
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    says(0).await;
    worker.engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_are_killed_frozen_and_drained_under_load_and_each_message_counts_once() {
    let mut fleet = Processes::new().await;
    let (mut a, mut b, mut c) = (fleet.start("a"), fleet.start("b"), fleet.start("c"));
    fleet.share(&["a", "b", "c"]).await;
    fleet.store.prepare(setup()).await.unwrap();

    fleet.feed(4_000).await;
    assert!(a.kill().await.unwrap(), "it was alive");
    fleet.feed(4_000).await;
    fleet.share(&["b", "c"]).await;
    a = fleet.start("a");
    fleet.feed(2_000).await;
    fleet.share(&["a", "b", "c"]).await;

    fleet.feed(4_000).await;
    b.signal("STOP").await.unwrap();
    let frozen = perkey::unstable::clock::Stopwatch::start();
    fleet.feed(2_000).await;
    fleet.share(&["a", "c"]).await;
    until("", SOON, async || frozen.elapsed() > TTL * 3).await.unwrap();
    b.signal("CONT").await.unwrap();
    fleet.feed(2_000).await;
    fleet.share(&["a", "b", "c"]).await;
    let text = std::fs::read_to_string(fleet.place.folder.join("b.log")).unwrap();
    assert!(text.contains("all shards are stopped") && text.contains("worker joins again"), "{text}");

    fleet.feed(2_000).await;
    c.terminate().await.unwrap();
    assert_eq!(c.ends(SOON).await.unwrap().code(), Some(0), "{}", fleet.place.tail("c.log"));
    fleet.share(&["a", "b"]).await;
    fleet.handled().await;
    for worker in [&mut a, &mut b] {
        worker.terminate().await.unwrap();
        assert_eq!(worker.ends(SOON).await.unwrap().code(), Some(0));
    }
    let left = fleet.leases().await;
    let states: Vec<_> = left["workers"].as_array().unwrap().iter().map(|row| &row["state"]).collect();
    assert!(states.iter().all(|state| **state == "expired"), "all but the killed one have left: {left:#}");
    assert!(left["shards"].as_array().unwrap().iter().all(|row| row["state"] == "free"), "{left:#}");
    let mut verdict = Verdict::default();
    check(&fleet.place.url, &fleet.given, &mut verdict).await.unwrap();
    let dead = fleet.store.queries().peek(DeadFilter::default(), 1).await.unwrap();
    assert!(verdict.violations.is_empty(), "{}\n{dead:?}", verdict.violations.join("\n"));
}
