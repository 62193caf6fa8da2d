//! The whole engine on SQLite, from messages in the log to states, events and dead letters.

use std::collections::BTreeMap;

use perkey::Settings;
use perkey::unstable::store::Store;
use perkey::unstable::store::query::DeadFilter;

use crate::support::{append, count, handlers, open, start};

async fn counts(store: &dyn Store, settings: &Settings) -> BTreeMap<String, Vec<u64>> {
    let mut counts: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for shard in 0..settings.ownership.shards {
        for row in store.queries().events(shard, 0, 100_000).await.unwrap() {
            let event: serde_json::Value = serde_json::from_slice(row.event.message.payload()).unwrap();
            counts.entry(row.event.message.key().to_owned()).or_default().push(event["n"].as_u64().unwrap());
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_message_counts_once_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::default();
    let store = open(&dir.path().join("s.db")).await;
    let engine = start(&settings, store.clone(), handlers()).await;
    let mut messages: Vec<_> = (0..20_000).map(|n| count(&format!("m{n}"), &format!("k{}", n % 700), None)).collect();
    messages.extend((0..1_000).map(|n| count(&format!("m{n}"), &format!("k{}", n % 700), None)));
    append(&*store, settings.ownership.shards, "counting", &messages).await;
    engine.idle().await;
    let counts = counts(&*store, &settings).await;
    assert_eq!(counts.len(), 700);
    for (key, n) in &counts {
        assert!(n.iter().copied().eq(1..=n.len() as u64), "{key}: {n:?}");
    }
    assert_eq!(counts.values().map(Vec::len).sum::<usize>(), 20_000);
    let rows = store.queries().shards().await.unwrap();
    assert_eq!(rows.iter().map(|row| row.counters["duplicates"]).sum::<u64>(), 1_000);
    engine.drain().await.unwrap();
    let rows = store.queries().shards().await.unwrap();
    assert!(rows.iter().all(|row| row.owner.is_none()), "given up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_key_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::default();
    let store = open(&dir.path().join("s.db")).await;
    let shards = settings.ownership.shards;
    // In one run, by itself, and with the state read from the store.
    let laid: [&[Option<&str>]; 3] = [&[None, None, Some("forget"), None], &[Some("forget")], &[None, None]];
    let mut id = 0;
    for messages in laid {
        let engine = start(&settings, store.clone(), handlers()).await;
        let messages = messages.iter().map(|what| {
            id += 1;
            count(&format!("m{id}"), "k", *what)
        });
        let messages: Vec<_> = messages.collect();
        append(&*store, shards, "counting", &messages).await;
        engine.idle().await;
        engine.drain().await.unwrap();
    }
    assert_eq!(counts(&*store, &settings).await.remove("k"), Some(vec![1, 2, 3, 1, 2, 1, 2]));
    let shard = perkey::unstable::message::shard_of("k", shards);
    let key = perkey::unstable::store::ServiceKey { service: "counting".into(), key: "k".into() };
    let row = store.load(shard, vec![key]).await.unwrap().remove(0);
    assert_eq!(row.state.unwrap().1, &br#"{"n":2}"#[..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_messages_wait_or_die_and_their_followers_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.retry.base = std::time::Duration::from_millis(5);
    settings.retry.cap = std::time::Duration::from_millis(20);
    let store = open(&dir.path().join("s.db")).await;
    let engine = start(&settings, store.clone(), handlers()).await;
    let fail = |n: usize| match n {
        5 => Some("once"),
        17 => Some("reject"),
        23 => Some("always"),
        31 => Some("panic"),
        _ => None,
    };
    let messages: Vec<_> = (0..400).map(|n| count(&format!("m{n}"), &format!("k{}", n % 4), fail(n))).collect();
    append(&*store, settings.ownership.shards, "counting", &messages).await;
    let queries = store.queries();
    loop {
        engine.idle().await;
        let rows = queries.shards().await.unwrap();
        if rows.iter().all(|row| row.pending == 0) {
            break;
        }
    }
    let dead = queries.peek(DeadFilter::default(), 10).await.unwrap();
    let mut ids: Vec<_> = dead.iter().map(|(_, letter)| (letter.message.id(), letter.history.len())).collect();
    ids.sort_unstable();
    assert_eq!(ids, [("m17", 1), ("m23", 7), ("m31", 7)]);
    let counts = counts(&*store, &settings).await;
    assert_eq!(counts.values().map(Vec::len).collect::<Vec<_>>(), [100, 99, 100, 98]);
    for (key, n) in &counts {
        assert!(n.iter().copied().eq(1..=n.len() as u64), "{key}: {n:?}");
    }
    engine.drain().await.unwrap();
}
