//! A handler whose payloads are Protobuf: in the test kit, from a topic to a topic, and in operators' hands.
//! In: payloads that are Protobuf, JSON and neither. Out: states, events, dead letters and their display.

use std::collections::BTreeMap;
use std::time::Duration;

use perkey::testing::Given;
use perkey::unstable::handlers::Shown;
use perkey::unstable::store::Store;
use perkey::unstable::store::query::{DeadFilter, NewCommand, OperatorAction};
use perkey::{
    Bind, Codec, Draft, Fault, Handler, Handlers, IdWithin, Key, KeyFrom, Payload, Protobuf, Publish, Schema, Settings,
    Turn, sleep,
};
use rdkafka::message::{Headers, Message as _};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::kafka_topic::{Topic, Written};
use crate::support::{append, open, start, state};

const SCHEMA: &str = r#"
    syntax = "proto3";
    package shop.v1;
    message Placed { string order_id = 1; int64 amount = 2; }
    message Counted { string order_id = 1; int64 total = 2; uint32 n = 3; }
    message Other { double order_id = 1; }
"#;
const PROTOBUF: &str = "application/protobuf";

/// Sums the amounts of each order.
struct Shop {
    placed: Protobuf,
    counted: Protobuf,
}

#[derive(Deserialize)]
struct Placed {
    order_id: String,
    amount: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Total {
    n: u32,
    total: i64,
}

impl Handler for Shop {
    const SERVICE: &'static str = "shop";
    type Message = Placed;
    type State = Total;

    fn codec(&self) -> &dyn Codec<Placed> {
        &self.placed
    }

    fn key(&self, placed: &Placed) -> Key {
        placed.order_id.as_str().into()
    }

    async fn handle(&self, sum: &mut Total, placed: Placed, turn: &mut Turn) -> Result<(), Fault> {
        if placed.amount < 0 {
            return Err(Fault::reject("an amount below 0"));
        }
        sum.n += 1;
        sum.total += placed.amount;
        let event = json!({ "order_id": placed.order_id, "total": sum.total, "n": sum.n });
        turn.emit_as(&self.counted, "order.counted", &event)?;
        turn.emit("order.told", &event)
    }
}

fn schema(message: &str) -> Protobuf {
    Protobuf::from_proto(SCHEMA, message).unwrap()
}

fn shop() -> Shop {
    Shop { placed: schema("shop.v1.Placed"), counted: schema("shop.v1.Counted") }
}

fn placed(order: &str, amount: i64) -> Vec<u8> {
    schema("shop.v1.Placed").encode(&json!({ "order_id": order, "amount": amount })).unwrap()
}

#[test]
fn the_kit_speaks_the_handlers_schema() {
    let counted = schema("shop.v1.Counted");
    Given::handler(shop())
        .messages([json!({ "order_id": "o", "amount": 3 })])
        .when(json!({ "order_id": "o", "amount": 4 }))
        .then_state(json!({ "n": 2, "total": 7 }))
        .then_events(["order.counted", "order.told"])
        .then_event_as(0, &counted, json!({ "order_id": "o", "total": 7, "n": 2 }))
        .then_event(1, json!({ "order_id": "o", "total": 7, "n": 2 }));
    Given::handler(shop())
        .when_payload(&placed("o", 5), None)
        .then_state(json!({ "n": 1, "total": 5 }))
        .when(json!({ "order_id": "o", "amount": -1 }))
        .then_rejects("below 0");
    Given::handler(shop())
        .when_payload(br#"{"order_id":"o","amount":5}"#, Some("application/json"))
        .then_state(json!({ "n": 1, "total": 5 }));
}

#[test]
fn what_does_not_decode_is_rejected_with_its_type_and_content_type() {
    let other = schema("shop.v1.Other").encode(&json!({ "order_id": 1.5 })).unwrap();
    for (payload, content_type, words) in [
        (&b"\xff\xff"[..], Some(PROTOBUF), "content type application/protobuf"),
        (&other, None, "it is not a Protobuf message shop.v1.Placed"),
        (b"<order/>", Some("text/xml"), "it is text/xml, this service reads Protobuf and JSON"),
        (br#"{"order":1}"#, None, "missing field"),
    ] {
        let given = || Given::handler(shop()).when_payload(payload, content_type);
        given().then_rejects(words).then_rejects("the payload does not decode").then_rejects("type \"given\"");
    }
}

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.log.poll = Duration::from_millis(10);
    settings
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !holds().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_of_protobuf_becomes_one_and_what_is_none_a_dead_letter() {
    let (source, sink, dead) = (Topic::new(8).await, Topic::new(8).await, Topic::new(8).await);
    let json = br#"{"order_id":"o-1","amount":2}"#;
    let first = placed("o-1", 1);
    for (id, payload, content_type) in [
        ("m-1", &first[..], PROTOBUF),
        ("m-2", json, "application/json"),
        ("m-3", b"\xff\xfe", PROTOBUF),
        ("m-4", &placed("o-2", 9), "application/x-protobuf"),
    ] {
        let headers: &[(&str, &[u8])] =
            &[("id", id.as_bytes()), ("ce_type", b"order.placed"), ("content-type", content_type.as_bytes())];
        source.write(Written { partition: 3, key: Some(b"k"), payload: Some(payload), headers, time: None });
    }
    let (of, kind, service) = ("kafka".to_owned(), "order.placed".to_owned(), "shop".to_owned());
    let mut settings = Settings {
        kafka: source.settings(),
        bind: vec![Bind { source: of, kind, service, key: KeyFrom::Handler, id: IdWithin::Key }],
        ..settings()
    };
    let route = json!({ "type": "order.*", "sink": "kafka", "topic": sink.name });
    settings.publish = vec![serde_json::from_value::<Publish>(route).unwrap()];
    settings.kafka.dead_letter_topic.clone_from(&dead.name);
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s.db")).await;
    let engine = start(&settings, store.clone(), Handlers::new().with(shop())).await;
    let arrived = |topic: &Topic| topic.records().into_iter().flatten().collect::<Vec<_>>();
    until("6 events and a dead letter arrive", async || arrived(&sink).len() == 6 && arrived(&dead).len() == 1).await;

    let total = async |key| state::<Total>(&*store, "shop", key).await;
    assert_eq!(total("o-1").await, Some(Total { n: 2, total: 3 }), "the key is the one that the codec reads");
    assert_eq!(total("o-2").await, Some(Total { n: 1, total: 9 }));
    let mut kinds: BTreeMap<String, Vec<serde_json::Value>> = BTreeMap::new();
    let counted = schema("shop.v1.Counted");
    for record in arrived(&sink) {
        let header = |name: &str| {
            let found = record.headers().unwrap().iter().find(|header| header.key == name);
            String::from_utf8(found.unwrap().value.unwrap().to_vec()).unwrap()
        };
        let said = header("content-type");
        let payload = Payload::new(record.payload().unwrap(), "order.counted", Some(&said));
        kinds.entry(said.clone()).or_default().push(counted.to_json(&payload).unwrap());
    }
    assert_eq!(kinds.keys().collect::<Vec<_>>(), ["application/json", PROTOBUF]);
    assert_eq!(kinds[PROTOBUF].len(), 3);
    assert!(kinds[PROTOBUF].contains(&json!({ "order_id": "o-1", "total": 3, "n": 2 })), "{kinds:?}");

    // Byte for byte, in the topic and in what operators see.
    assert_eq!(arrived(&dead)[0].payload(), Some(&b"\xff\xfe"[..]));
    let letters = store.queries().peek(DeadFilter::default(), 9).await.unwrap();
    let (_, letter) = &letters[0];
    assert!(letters.len() == 1 && letter.error.contains("content type application/protobuf"), "{letter:?}");
    assert_eq!(Handlers::new().with(shop()).shown("shop", &letter.message), Shown::Base64("//4=".to_owned()));
    engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_shown_and_edited_as_json_and_runs_as_protobuf() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, handlers) = (settings(), Handlers::new().with(shop()));
    let store = open(&dir.path().join("s.db")).await;
    let engine = start(&settings, store.clone(), handlers.clone()).await;
    let (headers, payload) = ([("content-type", PROTOBUF)], placed("o", -200));
    let draft =
        Draft { id: "m", key: "o", kind: "order.placed", headers: &headers, payload: &payload, ..Draft::default() };
    append(&*store, settings.ownership.shards, "shop", &[draft.build().unwrap()]).await;
    engine.idle().await;
    let (_, letter) = store.queries().peek(DeadFilter::default(), 9).await.unwrap().remove(0);
    let shown = handlers.shown("shop", &letter.message);
    assert_eq!(shown, Shown::Decoded(json!({ "order_id": "o", "amount": -200 })));

    let unfit = handlers.written("shop", br#"{"order":"o"}"#.to_vec(), Some(&letter.message)).unwrap_err().to_string();
    assert!(unfit.contains("does not fit the Protobuf message shop.v1.Placed"), "{unfit}");
    let json = br#"{"order_id":"o","amount":200}"#.to_vec();
    let (edited, _) = handlers.written("shop", json, Some(&letter.message)).unwrap();
    assert!(std::str::from_utf8(&edited).is_err(), "bytes that no text can hold are what is tested");
    let action = OperatorAction::Edit { payload: edited.into(), id: "m-2".to_owned() };
    let (filter, who, why) = (DeadFilter::default(), "test".to_owned(), String::new());
    let queries = store.queries();
    queries.command(NewCommand { action, filter, who, why, matched: 1, at: 0 }).await.unwrap();
    let total = async || state::<Total>(&*store, "shop", "o").await;
    until("the edited message runs", async || total().await == Some(Total { n: 1, total: 200 })).await;
    engine.drain().await.unwrap();
}

#[test]
fn a_payload_is_written_as_the_one_before_it() {
    let handlers = Handlers::new().with(shop());
    let json = br#"{"order_id":"o","amount":5}"#.to_vec();
    let like = |headers: &[(&str, &str)], payload: &[u8]| {
        let draft = Draft { id: "m", key: "o", kind: "order.placed", headers, payload, ..Draft::default() };
        handlers.written("shop", json.clone(), Some(&draft.build().unwrap())).unwrap()
    };
    assert_eq!(like(&[("content-type", "application/json")], b"{}"), (json.clone(), None));
    assert_eq!(like(&[], b"{\"order_id\":7}"), (json.clone(), None), "it was JSON without saying so");
    assert_eq!(like(&[], b"\xff").0, placed("o", 5));
    // What is imported is written anew.
    assert_eq!(handlers.written("shop", json.clone(), None).unwrap(), (placed("o", 5), Some(PROTOBUF)));
    let plain = crate::support::handlers();
    assert_eq!(plain.written("counting", json.clone(), None).unwrap(), (json, None));
}
