//! Rows that need nothing but a process: keys, bodies, replays, races.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use perkey::sleep;
use serde_json::{Value, json};

use super::provider::Mood;
use super::{Answered, Door, Keys, Kind, Scene, Sent, door};

/// The time for which a call is waited for in these scenes.
const WAIT: Duration = Duration::from_secs(2);

pub(super) async fn hold(protocol: &str, kind: Kind) {
    let wait = format!("gateway.wait={}ms", WAIT.as_millis());
    let scene = Scene::new(kind, &[&wait, "gateway.keep=1h", "cache.entry_bytes_max=2000"]).await;
    let door = door(protocol, &scene);
    let door = &*door;
    new_and_replayed(&scene, door).await;
    errors_are_replayed(&scene, door).await;
    in_flight(&scene, door).await;
    another_body(&scene, door).await;
    missing_and_minted(&scene, door).await;
    malformed_keys(&scene, door).await;
    bodies(&scene, door).await;
    scopes(&scene, door).await;
    races(&scene, door).await;
    gone_clients(&scene, door).await;
    large_answers(&scene, door).await;
    policy(&scene).await;
    drop(scene);
}

pub(super) fn posting(account: &str, amount: i64) -> Value {
    json!({ "account": account, "amount": amount, "currency": "EUR", "at": "2026-01-31", "memo": "tea" })
}

pub(super) fn post(key: &str, account: &str, amount: i64) -> Sent {
    Sent::new("transactions.post", key, posting(account, amount))
}

pub(super) fn charge(key: &str, order: &str) -> Sent {
    let body = json!({ "order": order, "account": "payer", "amount": 500, "currency": "EUR" });
    Sent::new("payments.charge", key, body)
}

/// Sends it until it no longer runs.
pub(super) async fn settled(door: &dyn Door, sent: &Sent) -> Answered {
    for _ in 0..600 {
        let answer = door.send(sent.clone()).await;
        if answer.code != "in_flight" {
            return answer;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("it still runs: {sent:?}");
}

/// The number of postings of an account.
pub(super) async fn postings(door: &dyn Door, account: &str) -> Value {
    door.one("account", account, None).await.json()["n"].clone()
}

/// I-01, I-02.
async fn new_and_replayed(_: &Scene, door: &dyn Door) {
    let first = door.send(post("i-01", "i-01", 1_250)).await;
    let body = first.is_new();
    assert_eq!(
        (&body["account"], &body["amount"], &body["balance"], &body["n"]),
        (&"i-01".into(), &1_250.into(), &1_250.into(), &1.into())
    );
    let id = body["id"].as_str().unwrap().to_owned();
    for _ in 0..3 {
        door.send(post("i-01", "i-01", 1_250)).await.replays(&first);
    }
    assert_eq!(postings(door, "i-01").await, 1);
    assert_eq!(door.one("transaction", &id, None).await.is_new()["memo"], "tea");
}

/// I-03: a refusal by the domain, and one by the provider.
async fn errors_are_replayed(scene: &Scene, door: &dyn Door) {
    door.send(post("i-03-a", "i-03", 1)).await.is_new();
    let mut dollars = post("i-03-b", "i-03", 1);
    dollars.body["currency"] = "USD".into();
    let refused = door.send(dollars.clone()).await;
    refused.is("rejected");
    door.send(dollars).await.replays(&refused);
    scene.provider.is(Mood::Declines);
    let declined = settled(door, &charge("i-03-c", "i-03-o")).await;
    declined.is("declined");
    scene.provider.is(Mood::Fine);
    let again = door.send(charge("i-03-c", "i-03-o")).await;
    assert!(again.replayed, "{again:?}");
    again.is_same(&declined);
    assert_eq!(postings(door, "i-03").await, 1);
}

/// I-04, I-18: what still runs says so, also when its dependency is away; it is done once in the end.
async fn in_flight(scene: &Scene, door: &dyn Door) {
    for (mood, order) in [(Mood::Silent, "i-04-o"), (Mood::Away, "i-18-o")] {
        scene.provider.is(mood);
        let before = scene.provider.taken();
        for _ in 0..2 {
            let running = door.send(charge(order, order)).await;
            running.is("in_flight");
            assert_eq!(running.retry_after, Some(1.0), "{running:?}");
        }
        let mut other = charge(order, order);
        other.body["amount"] = 501.into();
        door.send(other).await.is("key_reused");
        scene.provider.is(Mood::Fine);
        let done = settled(door, &charge(order, order)).await;
        assert!(done.code.is_empty(), "{done:?}");
        assert_eq!(scene.provider.taken(), before + 1);
    }
}

/// I-05.
async fn another_body(_: &Scene, door: &dyn Door) {
    let first = door.send(post("i-05", "i-05", 1)).await;
    first.is_new();
    for other in [post("i-05", "i-05", 2), post("i-05", "i-05-b", 1)] {
        let reused = door.send(other).await;
        reused.is("key_reused");
        assert!(!reused.replayed, "{reused:?}");
    }
    door.send(post("i-05", "i-05", 1)).await.replays(&first);
    assert_eq!(postings(door, "i-05").await, 1);
}

/// I-06, I-07.
async fn missing_and_minted(scene: &Scene, door: &dyn Door) {
    let taken = scene.provider.taken();
    let without = |sent: Sent| Sent { keys: Keys::default(), ..sent };
    door.send(without(charge("", "i-06"))).await.is("key_missing");
    assert_eq!(scene.provider.taken(), taken);
    for n in 1..=2 {
        let posted = door.send(without(post("", "i-07", 5))).await.is_new();
        assert_eq!(posted["n"], n, "each without a key is a request of its own");
    }
}

/// I-08 (lenient, as by default), I-09, I-10.
async fn malformed_keys(scene: &Scene, door: &dyn Door) {
    let with = |value: &[u8]| Sent { keys: Keys::raw(value), ..post("", "i-08", 1) };
    let first = door.send(with(b"i-08")).await;
    first.is_new();
    door.send(with(b"i-08")).await.replays(&first);
    let calls = scene.count("SELECT count(*) FROM calls").await;
    let long = format!("\"{}\"", "k".repeat(256));
    let wrong: [&[u8]; 8] =
        [b"\"\"", b"\"open", b"\"a\" \"b\"", b"\"\xc3\xa9\"", b"a,b", b"\"a\", \"b\"", b"\"a\tb\"", long.as_bytes()];
    for value in wrong {
        let answer = door.send(with(value)).await;
        assert_eq!(answer.code, "key_malformed", "{:?}: {answer:?}", String::from_utf8_lossy(value));
    }
    let twice = Sent { keys: Keys(vec![b"\"i-10\"".to_vec(); 2]), ..post("", "i-08", 1) };
    door.send(twice).await.is("key_malformed");
    assert_eq!(scene.count("SELECT count(*) FROM calls").await, calls, "nothing was stored");
    assert_eq!(postings(door, "i-08").await, 1);
}

/// I-11, I-12, I-13, I-14.
async fn bodies(_: &Scene, door: &dyn Door) {
    let sent = || Sent::new("transactions.post", "i-11", Value::Null);
    let text = r#"{"account":"i-11","amount":1,"currency":"EUR","at":"2026-01-31"}"#;
    if let Some(first) = door.send_text(sent(), text) {
        let first = first.await;
        first.is_new();
        for same in [
            "{ \"currency\":\"EUR\",\n\"at\":\"2026-01-31\", \"amount\" : 1, \"account\":\"i-11\" }",
            r#"{"account":"i-\u0031\u0031","amount":1.0,"currency":"EUR","at":"2026-01-31"}"#,
        ] {
            door.send_text(sent(), same).unwrap().await.replays(&first);
        }
        for (body, code) in [
            (r#"{"account":"i-11","amount":"1","currency":"EUR","at":"2026-01-31"}"#, "malformed"),
            (r#"{"account":"i-11","amount":9007199254740993,"currency":"EUR","at":"2026-01-31"}"#, "malformed"),
            (r#"{"account":"i-11","account":"i-11","amount":1,"currency":"EUR","at":"2026-01-31"}"#, "malformed"),
            (r#"{"account":"i-11","amount":1.0000000000000001,"currency":"EUR","at":"2026-01-31"}"#, "malformed"),
            (r#"{"account":"i-11","amount":1e-400,"currency":"EUR","at":"2026-01-31"}"#, "malformed"),
            (r#"{"account":"i-11 ","amount":1,"currency":"EUR","at":"2026-01-31"}"#, "malformed"),
            (r#"{"account":"i-11\u202e","amount":1,"currency":"EUR","at":"2026-01-31"}"#, "malformed"),
            (r#"{"account":"i-1e\u0301","amount":1,"currency":"EUR","at":"2026-01-31"}"#, "malformed"),
            (r#"{"account":"i-11","amount":1,"currency":"EUX","at":"2026-01-31"}"#, "malformed"),
            (r#"{"account":"i-11","amount":1"#, "malformed"),
            (r#"{"account":"i-11","amount":2,"currency":"EUR","at":"2026-01-31"}"#, "key_reused"),
        ] {
            let answer = door.send_text(sent(), body).unwrap().await;
            assert_eq!(answer.code, code, "{body}: {answer:?}");
        }
        assert_eq!(postings(door, "i-11").await, 1);
    }
    let memo = |text: &str| {
        let mut sent = post("i-14", "i-14", 1);
        sent.body["memo"] = text.into();
        sent
    };
    door.send(memo("caf\u{e9}")).await.is_new();
    door.send(memo("cafe\u{301}")).await.is("key_reused");
}

/// I-15: another operation; tenants and principals are in `owners`.
async fn scopes(_: &Scene, door: &dyn Door) {
    door.send(post("i-15", "i-15", 1)).await.is_new();
    door.send(Sent::new("expenses.record", "i-15", posting("i-15", 1))).await.is_new();
    let order = |key: &str, target: &str, operation| Sent {
        target: Some(target.to_owned()),
        ..Sent::new(operation, key, Value::Null)
    };
    for id in ["i-15-a", "i-15-b"] {
        let mut placed = Sent::new("orders.place", id, posting("i-15", 7));
        placed.body["id"] = id.into();
        door.send(placed).await.is_new();
    }
    door.send(order("k", "i-15-a", "orders.cancel")).await.is_new();
    door.send(order("k", "i-15-b", "orders.cancel")).await.is("key_reused");
    door.send(order("k", "i-15-b", "orders.complete")).await.is_new();
}

/// I-21.
async fn races(_: &Scene, door: &dyn Door) {
    let answers = join_all((0..100).map(|_| door.send(post("i-21", "i-21", 3)))).await;
    let new = answers.iter().filter(|answer| answer.code.is_empty() && !answer.replayed).count();
    let codes: BTreeSet<_> = answers.iter().map(|answer| answer.code.as_str()).collect();
    assert!(new <= 1 && codes.is_subset(&BTreeSet::from(["", "in_flight"])), "{new} {codes:?}");
    let last = settled(door, &post("i-21", "i-21", 3)).await;
    assert!(last.replayed && last.code.is_empty(), "{last:?}");
    let bodies: BTreeSet<_> =
        answers.iter().filter(|answer| answer.code.is_empty()).map(|answer| &answer.bytes).collect();
    assert!(bodies.iter().all(|bytes| **bytes == last.bytes), "one effect has one answer");
    assert_eq!(postings(door, "i-21").await, 1);
}

/// I-23: the client goes away before it is answered.
async fn gone_clients(scene: &Scene, door: &dyn Door) {
    scene.provider.is(Mood::Silent);
    let taken = scene.provider.taken();
    drop(tokio::time::timeout(WAIT / 2, door.send(charge("i-23", "i-23"))).await);
    scene.provider.is(Mood::Fine);
    let done = settled(door, &charge("i-23", "i-23")).await;
    assert!(done.code.is_empty(), "{done:?}");
    // Also one that goes away at once: it counts once, whatever was there first.
    for _ in 0..5 {
        drop(tokio::time::timeout(Duration::from_millis(1), door.send(post("i-23", "i-23", 1))).await);
    }
    sleep(WAIT).await;
    let done = settled(door, &post("i-23", "i-23", 1)).await;
    assert!(done.code.is_empty(), "{done:?}");
    assert_eq!(postings(door, "i-23").await, 1);
    assert_eq!(scene.provider.taken(), taken + 1);
}

/// I-24: an answer that no cache keeps.
async fn large_answers(_: &Scene, door: &dyn Door) {
    let mut sent = Sent::new("orders.place", "i-24", posting("i-24", 7));
    sent.body["memo"] = "x".repeat(4_096).into();
    let first = door.send(sent.clone()).await;
    assert_eq!(first.is_new()["memo"], sent.body["memo"]);
    door.send(sent).await.replays(&first);
}

/// I-28: the contract is published; each problem's link to it is seen by `Answered::is`.
async fn policy(scene: &Scene) {
    let policy = reqwest::get(format!("{}/.well-known/idempotency", scene.http)).await.unwrap();
    let policy: Value = policy.json().await.unwrap();
    assert_eq!((&policy["expires_after_seconds"], &policy["key_length_max"]), (&3_600.into(), &255.into()));
    assert_eq!(policy["required_for"], json!(["payments.charge"]));
}
