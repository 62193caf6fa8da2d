//! An id that comes again with other content is told, at every door: a dead letter, and never a repeat.
//! In: messages with one id and several contents. Out: the first of them handled, each other one a dead letter, once.

use std::time::Duration;

use futures_util::future::join_all;
use perkey::unstable::store::query::{DeadFilter, OperatorAction};
use perkey::{Draft, Engine, Message};
use perkey_chaos::process::until;

use crate::ahead::{Case, Door, Place, Wait};
use crate::pauses::tell;
use crate::postgres_place::Database;

const SOON: Duration = Duration::from_secs(60);
const REASON: &str = "the id \"1\" was taken before with other content";

fn said(id: &str, key: &str, text: &str) -> Message {
    let payload = serde_json::json!({ "key": key, "text": text }).to_string();
    let draft = Draft { id, key, kind: "count", source: "test", payload: payload.as_bytes(), ..Draft::default() };
    draft.build().unwrap()
}

/// The message that comes first, or another one with its id.
fn one(text: &str) -> Message {
    said("1", "a", text)
}

struct Doorway {
    case: Case,
    sent: u64,
}

impl Doorway {
    async fn counter(&self, name: &str) -> u64 {
        self.case.store.queries().shards().await.unwrap()[0].counters.get(name).copied().unwrap_or(0)
    }

    /// Sends messages, and waits until all are taken or dropped.
    async fn send(&mut self, messages: &[Message]) {
        self.case.send(messages).await;
        self.sent += messages.len() as u64;
        let all = async || self.counter("taken").await + self.counter("duplicates").await >= self.sent;
        until("all are taken or dropped", SOON, all).await.unwrap();
        assert_eq!(self.counter("taken").await + self.counter("duplicates").await, self.sent);
    }

    /// The texts of the dead letters, all of which have the wanted reason.
    async fn letters(&self) -> Vec<String> {
        let letters = self.case.store.queries().peek(DeadFilter::default(), 9).await.unwrap();
        let text = |(_, letter): &(u32, perkey::unstable::store::DeadLetter)| {
            let told = (letter.error.as_str(), letter.message.id(), &*letter.service, letter.holds_key);
            assert_eq!(told, (REASON, "1", "counting", false));
            let payload: serde_json::Value = serde_json::from_slice(letter.message.payload()).unwrap();
            payload["text"].as_str().unwrap().to_owned()
        };
        let mut texts: Vec<_> = letters.iter().map(text).collect();
        texts.sort();
        texts
    }

    async fn counted(&self) -> u64 {
        self.case.counted("counting", &["a"]).await
    }

    async fn numbers(&self) -> (u64, u64, u64) {
        (self.counted().await, self.counter("conflicts").await, self.counter("duplicates").await)
    }
}

async fn tells(place: Place, from: Door) {
    let case = Case::new(place, from, Wait::KeyPaused).await;
    let engine = case.start("a").await;
    let mut door = Doorway { case, sent: 0 };
    // The same content is a copy, whoever it is a copy of.
    door.send(&[one("x"), one("y"), one("x"), one("y"), said("2", "a", "x")]).await;
    assert_eq!((door.numbers().await, door.letters().await), ((2, 1, 2), vec!["y".to_owned()]), "{from:?}");

    // Another owner knows what was said under each id.
    let engine = again(&door.case, engine).await;
    door.send(&[one("y"), one("x"), one("z")]).await;
    assert_eq!(door.numbers().await, (2, 2, 4), "{from:?}");
    assert_eq!(door.letters().await, ["y", "z"], "{from:?}");

    // What an operator makes of a letter runs, and copies of what it was stay copies.
    tell(&*door.case.store, OperatorAction::Replay).await;
    until("both are replayed", SOON, async || door.counted().await == 4).await.unwrap();
    door.send(&[one("x"), one("y"), one("z")]).await;
    assert_eq!((door.numbers().await, door.letters().await.len()), ((4, 2, 7), 0), "{from:?}");
    door.send(&[one("w")]).await;
    let payload = br#"{"key":"a","text":"edited"}"#.to_vec();
    tell(&*door.case.store, OperatorAction::Edit { payload: payload.into(), id: "edited".to_owned() }).await;
    until("the edited one is handled", SOON, async || door.counted().await == 5).await.unwrap();
    door.send(&[one("x"), one("w")]).await;
    assert_eq!((door.numbers().await, door.letters().await.len()), ((5, 3, 9), 0), "{from:?}");

    // A letter's message counts at any age: its id, and that of the first, have left the window.
    door.send(&[one("v")]).await;
    for round in 0..6 {
        let others: Vec<_> = (0..10).map(|n| said(&format!("o-{round}-{n}"), "b", "")).collect();
        door.send(&others).await;
    }
    let engine = again(&door.case, engine).await;
    door.send(&[one("v")]).await;
    assert_eq!((door.numbers().await, door.letters().await), ((5, 4, 10), vec!["v".to_owned()]), "{from:?}");
    engine.drain().await.unwrap();
}

async fn again(case: &Case, engine: Engine) -> Engine {
    engine.drain().await.unwrap();
    case.start("a").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_with_other_content_is_a_dead_letter_once_at_every_door() {
    let sqlite = || Place::Sqlite(tempfile::tempdir().unwrap());
    let cases = [
        (sqlite(), Door::Log),
        (sqlite(), Door::Kafka),
        (sqlite(), Door::Rabbitmq),
        (Place::Postgres(Database::new().await), Door::Log),
        (Place::Postgres(Database::new().await), Door::Intake),
    ];
    join_all(cases.map(|(place, from)| tells(place, from))).await;
}
