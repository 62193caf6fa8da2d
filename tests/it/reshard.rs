//! Another number of shards: nothing is lost by it and no effect repeats, on either database.
//! In: a store with history: handled, waiting and dead messages. Out: the same after each change of the number.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use perkey::unstable::message::{Position, Stretch};
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::postgres::PgStore;
use perkey::unstable::store::query::DeadFilter;
use perkey::unstable::store::reshard::{ReshardError, Resharded};
use perkey::unstable::store::sqlite::SqliteStore;
use perkey::unstable::store::{Access, Commit, CommitOutcome, Setup, Store};
use perkey::{Engine, Message, Settings, StoreError};
use perkey_chaos::process::until;

use crate::postgres_place::{BOUNDS, Database};
use crate::support::{append, count, handlers};

const SOON: Duration = Duration::from_secs(30);

/// A store that is opened again for each step.
trait Kept {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>>;
    fn reshard(&self, to: u32) -> BoxFuture<'_, Result<Resharded, ReshardError>>;
}

struct Sqlite(tempfile::TempDir);

impl Sqlite {
    async fn sqlite(&self) -> SqliteStore {
        let url = format!("sqlite://{}", self.0.path().join("s.db").display());
        loop {
            match SqliteStore::open(&url, Access::Run).await {
                Ok(store) => return store,
                // One that was dropped gives its lock up a little later.
                Err(StoreError::Locked(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Kept for Sqlite {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        Box::pin(async { Arc::new(self.sqlite().await) as Arc<dyn Store> })
    }

    fn reshard(&self, to: u32) -> BoxFuture<'_, Result<Resharded, ReshardError>> {
        Box::pin(async move {
            let store = self.sqlite().await;
            let resharded = store.reshard(to, Vec::new()).await;
            store.close().await;
            resharded
        })
    }
}

impl Kept for Database {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        Box::pin(async { crate::postgres_place::open(&self.url).await as Arc<dyn Store> })
    }

    fn reshard(&self, to: u32) -> BoxFuture<'_, Result<Resharded, ReshardError>> {
        Box::pin(async move {
            let store = PgStore::open(&self.url, BOUNDS, Access::Run).await.unwrap();
            store.reshard(to, Vec::new()).await
        })
    }
}

fn settings(shards: u32) -> Settings {
    let mut settings = Settings::default();
    settings.ownership.shards = shards;
    settings.ownership.lease_ttl = Duration::from_millis(1_500);
    settings.ownership.heartbeat = Duration::from_millis(100);
    settings.store.statement_timeout = Duration::from_secs(1);
    // What fails once waits until this test is over.
    settings.retry.base = Duration::from_secs(3_600);
    settings.retry.cap = Duration::from_secs(3_600);
    settings
}

/// The messages `from..to`: some are rejected, one waits for a retry with a follower behind it.
fn messages(from: usize, to: usize) -> Vec<Message> {
    let fail = |n: usize| match n {
        40 => Some("once"),
        n if n % 97 == 13 => Some("reject"),
        _ => None,
    };
    (from..to).map(|n| count(&format!("m{n}"), &format!("k{}", n % 50), fail(n))).collect()
}

/// Runs the store until it has handled these, and drains it.
async fn run(kept: &dyn Kept, shards: u32, messages: &[Message]) {
    let store = kept.open().await;
    let engine = Engine::start(&settings(shards), handlers(), Arc::clone(&store), Metrics::new()).await.unwrap();
    append(&*store, shards, "counting", messages).await;
    until("it is not ready", SOON, async || engine.health().await.ready).await.unwrap();
    tokio::time::timeout(SOON, engine.idle()).await.unwrap();
    engine.drain().await.unwrap();
}

#[derive(Debug, PartialEq)]
struct Seen {
    /// Of each key the counts that its messages caused, in order.
    counts: BTreeMap<String, Vec<u64>>,
    /// Key, message and attempts of the dead letters.
    dead: Vec<(String, String, usize)>,
    pending: u64,
    taken: u64,
}

async fn seen(kept: &dyn Kept) -> Seen {
    let store = kept.open().await;
    let rows = store.queries().shards().await.unwrap();
    let mut counts: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for row in &rows {
        let mut last = 0;
        for event in store.queries().events(row.shard, 0, 100_000).await.unwrap() {
            assert!(event.seq > last && event.seq <= row.outbox_seq, "events are numbered in order");
            last = event.seq;
            let value: serde_json::Value = serde_json::from_slice(event.event.message.payload()).unwrap();
            counts.entry(event.event.message.key().to_owned()).or_default().push(value["n"].as_u64().unwrap());
        }
    }
    let dead = store.queries().peek(DeadFilter::default(), 1_000).await.unwrap();
    let mut dead: Vec<_> = dead
        .iter()
        .map(|(_, letter)| (letter.key.to_string(), letter.message.id().to_owned(), letter.history.len()))
        .collect();
    dead.sort();
    let taken = rows.iter().filter_map(|row| row.counters.get("taken")).sum();
    Seen { counts, dead, pending: rows.iter().map(|row| row.pending).sum(), taken }
}

#[tokio::test]
async fn a_worker_that_slept_through_it_takes_no_shard_and_ends() {
    let database = Database::new().await;
    let slept = Kept::open(&database).await;
    let engine = Engine::start(&settings(4), handlers(), Arc::clone(&slept), Metrics::new()).await.unwrap();
    until("it is not ready", SOON, async || engine.health().await.ready).await.unwrap();
    // As it finds the store when it wakes up: the shards are others, and nobody's.
    let mut connection = database.connection().await;
    let shards = "WITH gone AS (DELETE FROM shards)
        INSERT INTO shards (shard, epoch) SELECT no, 100 FROM generate_series(4, 6) no";
    sqlx::query(shards).execute(&mut connection).await.unwrap();
    let refused = slept.take(1, "slept").await.unwrap_err();
    assert_eq!(refused, StoreError::Shards { recorded: 3, wanted: 4 });
    let failed = tokio::time::timeout(SOON, engine.failed()).await.unwrap();
    assert!(failed.contains("made with 3 shards, the settings say 4"), "{failed}");
}

async fn resharded(kept: &dyn Kept) {
    run(kept, 8, &messages(0, 1_000)).await;
    let before = seen(kept).await;
    assert!(before.pending > 1 && before.dead.len() > 5, "{before:?}");
    let moved = kept.reshard(3).await.unwrap();
    let expected = (8, 3, before.pending, before.dead.len() as u64);
    assert_eq!((moved.from, moved.to, moved.pending, moved.dead_letters), expected);
    assert_eq!(seen(kept).await, before, "nothing is lost and nothing changes its order");

    // All that was handled comes once more, and is dropped; what is new is handled.
    run(kept, 3, &messages(0, 1_200)).await;
    let after = seen(kept).await;
    for (key, n) in &after.counts {
        assert!(n.iter().copied().eq(1..=n.len() as u64), "{key}: {n:?}");
    }
    assert_eq!(after.taken, 1_200, "each message was taken once");
    assert_eq!(after.dead.len(), messages(0, 1_200).len().div_ceil(97), "{:?}", after.dead);

    // Unread messages are in the way.
    let store = kept.open().await;
    append(&*store, 3, "counting", &messages(1_200, 1_300)).await;
    drop(store);
    let Err(ReshardError::Refused(why)) = kept.reshard(5).await else { panic!("it went through") };
    assert!(why.len() == 1 && why[0].contains("100 messages of the embedded log are not read"), "{why:?}");
    run(kept, 3, &[]).await;
    assert_eq!(kept.reshard(16).await.unwrap().to, 16);
    run(kept, 16, &messages(0, 1_400)).await;
    let last = seen(kept).await;
    assert_eq!(last.taken, 1_400);
    for (key, n) in &last.counts {
        assert!(n.iter().copied().eq(1..=n.len() as u64), "{key}: {n:?}");
    }
    let Err(ReshardError::Refused(why)) = kept.reshard(16).await else { panic!("it went through") };
    assert!(why[0].contains("already"), "{why:?}");
}

/// Checks the messages that several shards did above the position of a partition which each of them read at some time.
async fn keeps_what_is_done_ahead(kept: &dyn Kept) {
    let store = kept.open().await;
    let identity = store.prepare(setup(8)).await.unwrap();
    assert_eq!(identity.services.len(), 1);
    let stretch = |from, to| Stretch { from: Position::new(from, 0), to: Position::new(to, 0), services: Vec::new() };
    for shard in 0..8 {
        let epoch = store.take(shard, "me").await.unwrap().epoch;
        let at = u64::from(shard);
        let positions = BTreeMap::from([("t/0".into(), Position::new(10 + at, 0))]);
        let ahead = BTreeMap::from([("t/0".into(), vec![stretch(12 + at, 13 + at), stretch(30 + at, 40)])]);
        let log = BTreeMap::from([("import".into(), vec![stretch(3, 4)])]);
        let commit = Commit {
            shard,
            epoch,
            no: 1,
            at: 1,
            positions: BTreeMap::from([("kafka".into(), positions)]),
            ahead: BTreeMap::from([("kafka".into(), ahead), ("embedded".into(), log)]),
            first_seq: 1,
            release: true,
            ..Commit::default()
        };
        let outcome = store.commit(&commit).await;
        assert!(matches!(outcome, CommitOutcome::Committed), "{outcome:?}");
    }
    drop(store);
    kept.reshard(3).await.unwrap();
    let store = kept.open().await;
    store.prepare(setup(3)).await.unwrap();
    let all = [stretch(16, 20), stretch(30, 40)];
    for shard in 0..3 {
        let taken = store.take(shard, "me").await.unwrap();
        assert_eq!(taken.positions["kafka"]["t/0"], Position::new(17, 0));
        let known = &taken.ahead["kafka"]["t/0"];
        let reach = |of: &[Stretch]| of.iter().map(|of| (of.from.no.max(18), of.to.no)).collect::<Vec<_>>();
        assert_eq!(reach(known), reach(&all), "{known:?}");
        assert_eq!(taken.ahead.len(), 1, "the log begins anew");
    }
}

fn setup(shards: u32) -> Setup {
    let handlers = handlers();
    let (services, tables, code) = (handlers.services(), handlers.tables(), handlers.code());
    Setup { shards, services, tables, code }
}

#[tokio::test]
async fn what_is_done_ahead_is_known_to_every_shard_after_a_reshard() {
    keeps_what_is_done_ahead(&Sqlite(tempfile::tempdir().unwrap())).await;
    keeps_what_is_done_ahead(&Database::new().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_effect_repeats_after_a_reshard_on_sqlite() {
    resharded(&Sqlite(tempfile::tempdir().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_effect_repeats_after_a_reshard_on_postgresql() {
    resharded(&Database::new().await).await;
}
