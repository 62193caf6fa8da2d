//! Several workers over one store: each shard has one of them, whoever comes, goes, freezes or fails.
//! In: engines that share a store, real processes that are killed and frozen. Out: each message counted once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use perkey::clock::Clock;
use perkey::metrics::{Child, Metrics};
use perkey::settings::{Intensity, Settings};
use perkey::store::Store;
use perkey::store::memory::MemoryStore;
use perkey::{Engine, Handlers};
use perkey_chaos::process::until;

use crate::support::{append, count, handlers};

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
    async fn start(name: &str, store: &Arc<dyn Store>) -> Self {
        Self::with(&settings(name), store, handlers()).await
    }

    async fn with(settings: &Settings, store: &Arc<dyn Store>, handlers: Handlers) -> Self {
        let metrics = Metrics::new();
        let engine = Engine::start(settings, handlers, Arc::clone(store), Arc::clone(&metrics)).await.unwrap();
        Self { engine, metrics }
    }

    fn owned(&self) -> usize {
        self.engine.owned().len()
    }
}

fn memory() -> (Arc<MemoryStore>, Arc<dyn Store>) {
    let store = Arc::new(MemoryStore::shared(Clock::system()));
    (Arc::clone(&store), store)
}

/// Waits until each of the workers has so many shards.
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
async fn workers_share_the_shards_as_they_come_and_go() {
    let (_, store) = memory();
    let a = Worker::start("a", &store).await;
    owned(&[&a], &[8..=8]).await;
    feed(&*store, 0, 2_000).await;
    let b = Worker::start("b", &store).await;
    owned(&[&a, &b], &[4..=4, 4..=4]).await;
    feed(&*store, 2_000, 4_000).await;
    let c = Worker::start("c", &store).await;
    owned(&[&a, &b, &c], &[2..=3, 2..=3, 2..=3]).await;
    feed(&*store, 4_000, 6_000).await;
    a.engine.drain().await.unwrap();
    feed(&*store, 6_000, 8_000).await;
    owned(&[&b, &c], &[4..=4, 4..=4]).await;
    counted_once(&*store, 8_000).await;
    b.engine.idle().await;
    let fleet = c.engine.look().await.unwrap().unwrap();
    assert_eq!(fleet.workers.len(), 2, "the one that drained has left: {fleet:?}");
    let rows = store.queries().shards().await.unwrap();
    assert!(rows.iter().all(|row| row.unclean == 0), "every hand-over was clean: {rows:?}");
    let owner = c.engine.owner_of("k7").unwrap().worker.id;
    assert!([b.engine.owner(), c.engine.owner()].contains(&owner), "{owner}");
    assert!(b.metrics.encode().contains("perkey_owned_shards 4\n"), "{}", b.metrics.encode());
    assert!(b.metrics.encode().contains("perkey_takeovers_total{reason=\"free\"}"));
    b.engine.drain().await.unwrap();
    c.engine.drain().await.unwrap();
    let fleet = store.leases().unwrap().fleet().await.unwrap();
    assert!(fleet.workers.is_empty() && fleet.shards.iter().all(|row| row.owner.is_none()), "{fleet:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_cannot_renew_stops_and_comes_back_as_another() {
    let (memory, store) = memory();
    let a = Worker::start("a", &store).await;
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
    let (_, store) = memory();
    let mut once = settings("a");
    once.supervision.shard = Intensity { restarts: 0, ..Intensity::default() };
    let a = Worker::with(&once, &store, handlers()).await;
    owned(&[&a], &[8..=8]).await;
    let b = Worker::start("b", &store).await;
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
    let (_, store) = memory();
    let mut once = settings("a");
    once.ownership.shards = 1;
    once.supervision.shard = Intensity { restarts: 0, ..Intensity::default() };
    let a = Worker::with(&once, &store, handlers()).await;
    until("it has no shard", SOON, async || a.owned() == 1).await.unwrap();
    a.engine.kill(0, Child::Shard).await;
    let reason = tokio::time::timeout(SOON, a.engine.failed()).await.unwrap();
    assert!(reason.contains("shard 0, the last one here, failed too often"), "{reason}");
    assert_eq!(store.leases().unwrap().fleet().await.unwrap().shards[0].owner, None, "it was given back");
}
