//! Operators' commands on a key that a dead letter holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::Store;
use perkey::unstable::store::query::{DeadFilter, NewCommand, OperatorAction};
use perkey::{AfterDeadLetter, Engine, Fault, Handler, Handlers, Key, Settings, Turn, sleep};

use crate::postgres_place::Database;
use crate::support::{Count, append, count, open, start};

/// Rejects what is told to fail until it is healed; a key waits behind what it rejected.
struct Holding(Arc<AtomicBool>);

impl Handler for Holding {
    const SERVICE: &'static str = "holding";
    type Message = Count;
    type State = ();

    fn key(&self, message: &Count) -> Key {
        message.key.as_str().into()
    }

    async fn handle(&self, (): &mut (), message: Count, turn: &mut Turn) -> Result<(), Fault> {
        if message.fail.is_some() && !self.0.load(Ordering::Acquire) {
            return Err(Fault::reject("not healed"));
        }
        turn.emit("handled", &turn.id().to_owned())
    }

    fn after_dead_letter(&self) -> AfterDeadLetter {
        AfterDeadLetter::HoldKey
    }
}

async fn handled(store: &dyn Store, settings: &Settings) -> Vec<String> {
    let mut ids = Vec::new();
    for shard in 0..settings.ownership.shards {
        for row in store.queries().events(shard, 0, 1_000).await.unwrap() {
            ids.push(serde_json::from_slice(row.event.message.payload()).unwrap());
        }
    }
    ids
}

/// The order in which the messages of a held key are handled once an operator has decided about its head.
async fn decided(action: OperatorAction, restart: bool) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.log.poll = Duration::from_millis(10);
    let shards = settings.ownership.shards;
    let healed = Arc::new(AtomicBool::new(false));
    let handlers = || Handlers::new().with(Holding(healed.clone()));
    let store = open(&dir.path().join("s.db")).await;
    let mut engine = start(&settings, store.clone(), handlers()).await;
    let messages = [count("a", "k", None), count("bad", "k", Some("reject")), count("b", "k", None)];
    append(&*store, shards, "holding", &messages).await;
    engine.idle().await;
    if restart {
        engine.drain().await.unwrap();
        engine = start(&settings, store.clone(), handlers()).await;
    }
    append(&*store, shards, "holding", &[count("c", "k", None)]).await;
    engine.idle().await;
    assert_eq!(handled(&*store, &settings).await, ["a"], "the key waits");

    healed.store(true, Ordering::Release);
    let queries = store.queries();
    let filter = DeadFilter::default();
    let (who, why) = ("test".to_owned(), String::new());
    let id = queries.command(NewCommand { action, filter, who, why, matched: 1, at: 0 }).await.unwrap();
    let everything = async {
        loop {
            let state = queries.command_state(id).await.unwrap();
            let rows = queries.shards().await.unwrap();
            if state.shards_done == shards && rows.iter().all(|row| row.pending + row.dead_letters == 0) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), everything).await.expect("the key goes on");
    engine.drain().await.unwrap();
    handled(&*store, &settings).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_head_runs_before_what_waited_behind_it() {
    for restart in [false, true] {
        assert_eq!(decided(OperatorAction::Replay, restart).await, ["a", "bad", "b", "c"], "restart: {restart}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discarded_head_lets_the_key_go_on() {
    for restart in [false, true] {
        assert_eq!(decided(OperatorAction::Discard, restart).await, ["a", "b", "c"], "restart: {restart}");
    }
}

/// More letters than are found at once stand in front and cannot be replayed.
async fn replayed_past_what_stays(store: Arc<dyn Store>) {
    let mut settings = Settings::default();
    settings.ownership.shards = 1;
    let healed = Arc::new(AtomicBool::new(false));
    let handlers = Handlers::new().with(Holding(healed.clone()));
    let engine = Engine::start(&settings, handlers, store.clone(), Metrics::new()).await.unwrap();
    let lost: Vec<_> = (0..700).map(|n| count(&format!("lost{n}"), &format!("a{n}"), None)).collect();
    append(&*store, 1, "nobody", &lost).await;
    append(&*store, 1, "holding", &[count("bad", "z", Some("reject"))]).await;
    let queries = store.queries();
    until("not all are dead", async || queries.count_dead(DeadFilter::default()).await.unwrap() == 701).await;
    healed.store(true, Ordering::Release);
    let (filter, who, why) = (DeadFilter::default(), "ann".to_owned(), "healed".to_owned());
    let command = NewCommand { action: OperatorAction::Replay, filter, who, why, matched: 701, at: 1 };
    let id = queries.command(command).await.unwrap();
    until("it is not done", async || queries.command_state(id).await.unwrap().shards_done == 1).await;
    assert_eq!(queries.command_state(id).await.unwrap().affected, 1);
    until("it did not run", async || handled(&*store, &settings).await == ["bad"]).await;
    engine.drain().await.unwrap();
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let held = async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), held).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_replayed_keeps_nothing_behind_it_from_it() {
    let dir = tempfile::tempdir().unwrap();
    replayed_past_what_stays(open(&dir.path().join("s.db")).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_replayed_keeps_nothing_behind_it_from_it_on_postgresql() {
    let database = Database::new().await;
    replayed_past_what_stays(crate::postgres_place::open(&database.url).await).await;
}
