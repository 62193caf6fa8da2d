//! Messages for services that the program which takes them does not have, as in a rolling deploy.
//! In: a program without a service, then one with it. Out: nothing is lost or handled twice, each key's order is kept.

use perkey::unstable::store::Store;
use perkey::unstable::store::query::{DeadFilter, NewCommand, OperatorAction};
use perkey::{Fault, Handler, Handlers, Key, Settings, Turn};
use serde::{Deserialize, Serialize};

use crate::support::{append, count, handlers, open, start, state};

/// The service that only the older program has.
struct Other;

impl Handler for Other {
    const SERVICE: &'static str = "other";
    type Message = serde_json::Value;
    type State = ();

    fn key(&self, _: &Self::Message) -> Key {
        "k".into()
    }

    async fn handle(&self, (): &mut (), _: Self::Message, _: &mut Turn) -> Result<(), Fault> {
        Ok(())
    }
}

/// Remembers the order of what it is told.
struct Listing;

#[derive(Clone, Default, Serialize, Deserialize)]
struct Listed(Vec<String>);

impl Handler for Listing {
    const SERVICE: &'static str = "counting";
    type Message = crate::support::Count;
    type State = Listed;

    fn key(&self, message: &Self::Message) -> Key {
        message.key.as_str().into()
    }

    async fn handle(&self, listed: &mut Listed, _: Self::Message, turn: &mut Turn) -> Result<(), Fault> {
        listed.0.push(turn.id().to_owned());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_program_takes_for_a_service_that_it_lacks_waits_for_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::default();
    let shards = settings.ownership.shards;
    let store = open(&dir.path().join("s.db")).await;
    let older = || Handlers::new().with(Other);
    let newer = || Handlers::new().with(Other).with(Listing);
    let messages: Vec<_> = (0..300).map(|n| count(&format!("m{n}"), &format!("k{}", n % 20), None)).collect();
    let sums = async || {
        let rows = store.queries().shards().await.unwrap();
        (rows.iter().map(|row| row.pending).sum::<u64>(), rows.iter().map(|row| row.dead_letters).sum::<u64>())
    };
    // The newer program has been there, as in a rolling deploy, and its messages come while older ones own the shards.
    start(&settings, store.clone(), newer()).await.drain().await.unwrap();
    for part in messages.chunks(100) {
        let engine = start(&settings, store.clone(), older()).await;
        // A copy, too.
        append(&*store, shards, "counting", &messages[..10]).await;
        append(&*store, shards, "counting", part).await;
        engine.idle().await;
        engine.drain().await.unwrap();
    }
    assert_eq!(sums().await, (300, 0), "they wait, and none is a dead letter");
    let engine = start(&settings, store.clone(), newer()).await;
    append(&*store, shards, "counting", &messages).await;
    while sums().await.0 > 0 {
        engine.idle().await;
    }
    engine.drain().await.unwrap();
    assert_eq!(sums().await, (0, 0));
    for key in 0..20 {
        let listed: Vec<String> = state(&*store, "counting", &format!("k{key}")).await.unwrap();
        let wanted: Vec<_> = (0..15).map(|n| format!("m{}", n * 20 + key)).collect();
        assert_eq!(listed, wanted, "k{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_for_a_service_that_no_program_had_is_a_dead_letter_that_can_be_replayed_once_one_has() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::default();
    let store = open(&dir.path().join("s.db")).await;
    let engine = start(&settings, store.clone(), Handlers::new().with(Other)).await;
    append(&*store, settings.ownership.shards, "counting", &[count("m", "k", None)]).await;
    engine.idle().await;
    engine.drain().await.unwrap();
    let dead = store.queries().peek(DeadFilter::default(), 10).await.unwrap();
    let [(_, letter)] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!((&*letter.service, &*letter.key), ("counting", "k"));
    assert!(letter.error.contains("there is no service \"counting\""), "{}", letter.error);
    store.close().await;
    let store = open(&dir.path().join("s.db")).await;
    let engine = start(&settings, store.clone(), handlers()).await;
    let (action, filter, who) = (OperatorAction::Replay, DeadFilter::default(), "me".to_owned());
    let command = NewCommand { action, filter, who, why: "a program has it now".to_owned(), matched: 1, at: 1 };
    store.queries().command(command).await.unwrap();
    while state::<serde_json::Value>(&*store, "counting", "k").await.is_none() {
        engine.idle().await;
    }
    engine.drain().await.unwrap();
    assert_eq!(state::<serde_json::Value>(&*store, "counting", "k").await, Some(serde_json::json!({ "n": 1 })));
}
