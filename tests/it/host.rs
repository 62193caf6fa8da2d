//! Messages that a program sends to its own engine, and states that it reads.
//! In: ids and messages, many calls at once, some of them dropped. Out: each id once; a log within its bound.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt;
use futures_util::future::join_all;
use perkey::unstable::metrics::Metrics;
use perkey::{Engine, Fault, Handler, Key, SendError, Settings, Turn};
use serde_json::json;
use tempfile::TempDir;

use crate::postgres_place::Database;
use crate::support::{Counted, Counting, handlers, open, start};

/// A handler that no engine here has.
struct Absent;

impl Handler for Absent {
    const SERVICE: &'static str = "absent";
    type Message = String;
    type State = u64;

    fn key(&self, message: &String) -> Key {
        message.as_str().into()
    }

    async fn handle(&self, _: &mut u64, _: String, _: &mut Turn) -> Result<(), Fault> {
        Ok(())
    }
}

async fn engine(settings: &Settings) -> (TempDir, Engine) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("s.db")).await;
    (folder, start(settings, store, handlers()).await)
}

async fn counted(engine: &Engine, key: &str) -> Option<u64> {
    engine.state::<Counting>(key).await.unwrap().map(|Counted { n }| n)
}

/// Calls at once, each id twice, and some of it once more in bulk.
async fn each_id_counts_once_on(engine: Engine) {
    assert_eq!(counted(&engine, "k0").await, None);
    let sends = (0..400).map(|n| {
        let (id, key) = (format!("m{}", n % 200), format!("k{}", n % 4));
        let engine = engine.clone();
        async move { engine.send::<Counting>(&id, &json!({ "key": key })).await }
    });
    assert!(join_all(sends).await.into_iter().all(|sent| sent == Ok(())));
    let many = (150..352).map(|n| (format!("m{n}"), json!({ "key": format!("k{}", n % 4) })));
    engine.send_all::<Counting, _>(many).await.unwrap();
    engine.idle().await;
    for key in 0..4 {
        assert_eq!(counted(&engine, &format!("k{key}")).await, Some(88), "of 352 ids");
    }
    engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_messages_sent_with_one_id_one_takes_effect_on_sqlite() {
    let (_folder, engine) = engine(&Settings::default()).await;
    each_id_counts_once_on(engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_messages_sent_with_one_id_one_takes_effect_on_postgresql() {
    let database = Database::new().await;
    let (settings, store) = (Settings::default(), crate::postgres_place::open(&database.url).await);
    each_id_counts_once_on(Engine::start(&settings, handlers(), store, Metrics::new()).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_dropped_takes_no_other_with_it() {
    let (_folder, engine) = engine(&Settings::default()).await;
    let send = |id: String| {
        let engine = engine.clone();
        Box::pin(async move { engine.send::<Counting>(&id, &json!({ "key": "k" })).await })
    };
    for round in 0..20 {
        let mut calls = ["a", "b", "c"].map(|call| send(format!("{round}-{call}")));
        // The first begins to write for itself, the others wait in line.
        let begun = calls.each_mut().map(|call| call.as_mut().now_or_never());
        assert_eq!(begun, [None, None, None], "a write takes its time");
        let [first, mut second, third] = calls;
        drop(first);
        // The second begins to write for itself and the third, and is dropped, too.
        assert_eq!(second.as_mut().now_or_never(), None);
        drop(second);
        assert_eq!(third.await, Ok(()));
    }
    engine.idle().await;
    let found = counted(&engine, "k").await.unwrap();
    assert!((20..=60).contains(&found), "{found} of 60, 20 of them were waited for");
    engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_handled_is_refused_at_once() {
    let mut settings = Settings::default();
    settings.ingress.message_bytes_max = 2_000;
    let (_folder, engine) = engine(&settings).await;
    let long = "x".repeat(300);
    for (id, message, part) in [
        ("m1", json!({ "k": "a" }), "missing field `key`"),
        ("", json!({ "key": "a" }), "the id is empty"),
        ("m1", json!({ "key": "" }), "the key is empty"),
        ("m1", json!({ "key": long }), "the key has 300 bytes"),
        ("m1", json!({ "key": "a", "more": "x".repeat(2_000) }), "ingress.message_bytes_max"),
    ] {
        let sent = engine.send::<Counting>(id, &message).await;
        assert!(matches!(&sent, Err(SendError::Refused(why)) if why.contains(part)), "{sent:?} lacks {part}");
    }
    let sent = engine.send::<Absent>("m1", &"a").await;
    assert!(matches!(&sent, Err(SendError::Refused(why)) if why.contains("has: counting")), "{sent:?}");
    assert_eq!(engine.queries().unread_imports().await.unwrap(), 0);
    engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_too_fast_waits_for_room_in_the_log() {
    let mut settings = Settings::default();
    settings.log.max_unread = 1_000;
    let (_folder, engine) = engine(&settings).await;
    let done = AtomicBool::new(false);
    let sends = async {
        let send = async |lane: u64| {
            let many = (0..2_500).map(|n| (format!("{lane}-{n}"), json!({ "key": format!("k{}", n % 50) })));
            engine.send_all::<Counting, _>(many).await
        };
        assert!(join_all((0..4).map(send)).await.into_iter().all(|sent| sent == Ok(())));
        done.store(true, Ordering::Release);
    };
    let look = async {
        while !done.load(Ordering::Acquire) {
            let unread = engine.queries().unread_imports().await.unwrap();
            assert!(unread <= 1_000, "{unread} messages are unread");
        }
    };
    tokio::join!(sends, look);
    engine.idle().await;
    for key in 0..50 {
        assert_eq!(counted(&engine, &format!("k{key}")).await, Some(200));
    }
    engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_to_an_engine_that_has_ended_waits_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("s.db")).await;
    let mut settings = Settings::default();
    settings.log.max_unread = 1_000;
    let engine = start(&settings, store.clone(), handlers()).await;
    let late = engine.clone();
    engine.drain().await.unwrap();
    let many = |from: u64| (from..from + 1_000).map(|n| (format!("m{n}"), json!({ "key": "k" })));
    late.send_all::<Counting, _>(many(0)).await.unwrap();
    // Nobody makes room any more: it is told, and not waited for.
    assert_eq!(late.send_all::<Counting, _>(many(1_000)).await, Err(SendError::Ended));
    let engine = start(&settings, store, handlers()).await;
    engine.idle().await;
    assert_eq!(counted(&engine, "k").await, Some(1_000));
    engine.drain().await.unwrap();
}
