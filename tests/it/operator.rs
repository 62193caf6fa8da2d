//! Operators' commands on a key that a dead letter holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use perkey::clock::sleep;
use perkey::settings::Settings;
use perkey::store::Store;
use perkey::store::query::{Action, DeadFilter, NewCommand};
use perkey::{AfterDeadLetter, Fault, Handler, Handlers, Key, Turn};

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
async fn decided(action: Action, restart: bool) -> Vec<String> {
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
        assert_eq!(decided(Action::Replay, restart).await, ["a", "bad", "b", "c"], "restart: {restart}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_discarded_head_lets_the_key_go_on() {
    for restart in [false, true] {
        assert_eq!(decided(Action::Discard, restart).await, ["a", "b", "c"], "restart: {restart}");
    }
}
