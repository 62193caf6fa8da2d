//! Replays of the events that the ledger of a running program was told: it decides the same again.
//! In: an engine on SQLite with a recorder; messages, one of which fails. Out: the commits of the store, reproduced.

use std::sync::Arc;

use perkey::testing::Recorder;
use perkey::unstable::ledger::protocol::Action;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::Store;
use perkey::{Draft, Engine, Fault, Handler, Handlers, Key, Settings, Turn};

use crate::support::{Count, Counted, append, open};

/// Counts, and fails once for each message that wants it.
struct Twice;

impl Handler for Twice {
    const SERVICE: &'static str = "counting";
    type Message = Count;
    type State = Counted;

    fn key(&self, message: &Count) -> Key {
        message.key.as_str().into()
    }

    async fn handle(&self, counted: &mut Counted, message: Count, turn: &mut Turn) -> Result<(), Fault> {
        counted.n += 1;
        if message.key == "fails" && turn.attempt() == 1 { Err(Fault::retry("once")) } else { Ok(()) }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorded_ledger_decides_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("s.db")).await;
    let mut settings = Settings::default();
    settings.ownership.shards = 2;
    settings.retry.base = std::time::Duration::from_millis(20);
    let recorder = Arc::new(Recorder::default());
    let handlers = Handlers::new().with(Twice);
    let engine = Engine::start_recorded(&settings, handlers, store.clone(), Metrics::new(), Arc::clone(&recorder));
    let engine = engine.await.unwrap();
    for n in 0..30 {
        let (id, key) = (format!("m{n}"), ["a", "b", "fails"][n % 3]);
        let payload = serde_json::json!({ "key": key }).to_string();
        let draft =
            Draft { id: &id, key, kind: "count", source: "test", payload: payload.as_bytes(), ..Draft::default() };
        append(&*store, 2, "counting", &[draft.build().unwrap()]).await;
    }
    engine.idle().await;
    engine.drain().await.unwrap();
    let recordings = recorder.recordings();
    assert_eq!(recordings.len(), 2, "one ledger for each shard");
    let stored = store.queries().shards().await.unwrap();
    let mut retried = 0;
    for recording in &recordings {
        let decisions = recording.replay();
        assert_eq!(decisions.len(), 1 + recording.events.len());
        let commits = decisions.iter().flat_map(|decision| &decision.actions).filter_map(|action| match action {
            Action::Commit(commit) => Some(commit),
            _ => None,
        });
        let commits: Vec<_> = commits.collect();
        let row = stored.iter().find(|row| row.shard == recording.taken.shard).unwrap();
        assert_eq!(commits.last().map_or(0, |commit| commit.no), row.commit_no, "the replay ends where the store does");
        retried += commits.last().map_or(0, |commit| commit.counters.get("retries").copied().unwrap_or(0));
        let again = recording.replay();
        assert_eq!(format!("{again:?}"), format!("{decisions:?}"), "it is the same each time");
    }
    assert_eq!(retried, 10, "the ten faults are in the record, with what was decided about them");
}
