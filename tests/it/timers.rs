//! Timers of keys: once, in time, not after they were cancelled, whatever restarts between.
//! In: handlers that set timers, on stores and across engines. Out: the messages that they have seen.

use std::time::Duration;

use perkey::unstable::store::Store;
use perkey::{Draft, Fault, Handler, Handlers, Key, Settings, Turn};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::support::{append, open, start, state};

/// Notes what rang, and when in relation to when it should.
struct Alarms;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Alarm {
    /// Sets a timer that rings after so many milliseconds.
    Set {
        key: String,
        name: String,
        after: u64,
    },
    Cancel {
        key: String,
        name: String,
    },
    Ring {
        key: String,
        name: String,
        at: u64,
        fail: u32,
    },
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Rung(Vec<(String, i64)>);

impl Handler for Alarms {
    const SERVICE: &'static str = "alarms";
    type Message = Alarm;
    type State = Rung;

    fn key(&self, alarm: &Alarm) -> Key {
        let (Alarm::Set { key, .. } | Alarm::Cancel { key, .. } | Alarm::Ring { key, .. }) = alarm;
        key.as_str().into()
    }

    async fn handle(&self, rung: &mut Rung, alarm: Alarm, turn: &mut Turn) -> Result<(), Fault> {
        match alarm {
            Alarm::Set { key, name, after } => {
                let at = turn.now() + after;
                let fail = u32::from(name.starts_with("fails"));
                turn.schedule(&name, at, &json!({ "ring": { "key": key, "name": name, "at": at, "fail": fail } }))
            }
            Alarm::Cancel { name, .. } => turn.cancel(&name),
            Alarm::Ring { fail, .. } if turn.attempt() <= fail => Err(Fault::retry("as told")),
            Alarm::Ring { name, at, .. } => {
                rung.0.push((name, turn.now().cast_signed() - at.cast_signed()));
                Ok(())
            }
        }
    }
}

async fn rung(store: &dyn Store, key: &str) -> Vec<(String, i64)> {
    state(store, "alarms", key).await.unwrap_or_default()
}

fn message(id: &str, key: &str, payload: &serde_json::Value) -> perkey::Message {
    let payload = payload.to_string();
    Draft { id, key, kind: "alarm", payload: payload.as_bytes(), ..Draft::default() }.build().unwrap()
}

fn set(id: &str, key: &str, name: &str, after: u64) -> perkey::Message {
    message(id, key, &json!({ "set": { "key": key, "name": name, "after": after } }))
}

fn cancel(id: &str, key: &str, name: &str) -> perkey::Message {
    message(id, key, &json!({ "cancel": { "key": key, "name": name } }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timers_ring_once_across_restarts_and_never_when_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.retry.base = Duration::from_millis(5);
    let store = open(&dir.path().join("s.db")).await;
    let handlers = || Handlers::new().with(Alarms);
    let shards = settings.ownership.shards;
    let engine = start(&settings, store.clone(), handlers()).await;
    let first = [
        set("1", "a", "soon", 50),
        set("2", "a", "later", 1_500),
        set("3", "a", "never", 1_500),
        set("4", "b", "moved", 60_000),
        set("5", "b", "fails once", 100),
        set("6", "c", "gone", 300),
    ];
    append(&*store, shards, "alarms", &first).await;
    let soon = async || !rung(&*store, "a").await.is_empty() && !rung(&*store, "b").await.is_empty();
    perkey_chaos::process::until("the first ring", Duration::from_secs(20), soon).await.unwrap();
    append(
        &*store,
        shards,
        "alarms",
        &[cancel("7", "a", "never"), set("8", "b", "moved", 200), cancel("9", "c", "gone")],
    )
    .await;
    engine.idle().await;
    engine.drain().await.unwrap();
    // What was due while nobody ran it rings when somebody does.
    perkey::sleep(Duration::from_millis(1_600)).await;
    let engine = start(&settings, store.clone(), handlers()).await;
    let rest = async || rung(&*store, "a").await.len() + rung(&*store, "b").await.len() >= 4;
    perkey_chaos::process::until("the others ring", Duration::from_secs(20), rest).await.unwrap();
    perkey::sleep(Duration::from_millis(300)).await;
    engine.idle().await;
    engine.drain().await.unwrap();
    let names = |rung: Vec<(String, i64)>| {
        assert!(rung.iter().all(|(_, late)| *late >= 0), "too early: {rung:?}");
        rung.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(names(rung(&*store, "a").await), ["soon", "later"]);
    assert_eq!(names(rung(&*store, "b").await), ["fails once", "moved"]);
    // Its time may have come before it was cancelled.
    assert!(rung(&*store, "c").await.len() <= 1);
    let left = store.queries().scheduled(None, None, 10).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}
