//! Whatever a stranger's producer writes, its record is handled, passed over or a dead letter, and what is behind it goes on.
//! In: a topic, a stream, the intake; records that are nested, huge, garbled, or full of headers. Out: every good message once.
//!
//! Seeded: `PERKEY_SEED` repeats a run, `PERKEY_HOSTILE` says how many records each source gets.

use std::time::Duration;

use perkey::unstable::clock::{Dice, since_boot};
use perkey::{Draft, Message};
use perkey_chaos::process::until;

use crate::ahead::{Case, Door, Place, Wait};
use crate::kafka_topic;
use crate::postgres_place::Database;
use crate::rabbitmq_place::{self, bytes, headed};

const SOON: Duration = Duration::from_secs(60);
/// Strange records for each good one.
const BETWEEN: u64 = 10;
/// Bytes of a record that its broker takes.
const BYTES_MAX: usize = 900_000;

pub(crate) fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// A message from a stranger. Names are text, because no client writes others; their values are anything.
#[derive(Debug)]
struct Strange {
    key: Vec<u8>,
    payload: Vec<u8>,
    headers: Vec<(String, Vec<u8>)>,
}

pub(crate) fn garbage(dice: &mut Dice, most: u64) -> Vec<u8> {
    (0..dice.below(most)).map(|_| dice.below(256) as u8).collect()
}

/// Text that parsers trip over.
pub(crate) fn text(dice: &mut Dice) -> String {
    let deep = [10, 127, 129, 2_000, 100_000][dice.below(5) as usize];
    let all: [fn(usize) -> String; 14] = [
        |_| String::new(),
        |_| "\u{feff}{\"key\":\"a\"}".to_owned(),
        |_| "{\"key\":\"a\0b\"}".to_owned(),
        |_| "{\"key\":\"\\ud800\"}".to_owned(),
        |_| "{\"key\":\"a\",\"key\":\"b\"}".to_owned(),
        |_| "{\"key\":1e99999999}".to_owned(),
        |deep| format!("{{\"key\":{}}}", "9".repeat(deep)),
        |deep| "[".repeat(deep),
        |deep| format!("{}{}", "[".repeat(deep), "]".repeat(deep)),
        |deep| format!("{}1{}", "{\"key\":".repeat(deep), "}".repeat(deep)),
        |deep| format!("{{\"key\":\"a\",\"more\":{}{}}}", "[".repeat(deep), "]".repeat(deep)),
        |deep| format!("{{{}\"key\":\"a\"}}", "\"x\":0,".repeat(deep)),
        |deep| format!("{{\"key\":\"{}\"}}", "\u{202e}\u{200b}e\u{301}".repeat(deep / 10)),
        |deep| format!("{{\"key\":\"{}\"}}", "\\u0000\\\"".repeat(deep / 10)),
    ];
    all[dice.below(all.len() as u64) as usize](deep)
}

fn value(dice: &mut Dice) -> Vec<u8> {
    match dice.below(4) {
        0 => garbage(dice, 300),
        1 => text(dice).into_bytes().into_iter().take(20_000).collect(),
        2 => [&b"application/cloudevents+json; charset=x"[..], b"0001-13-99T99:99:99Z", b"00-0-0-0", b"-1", b"\xff"]
            [dice.below(5) as usize]
            .to_vec(),
        _ => format!("{}", dice.below(5)).into_bytes(),
    }
}

fn strange(dice: &mut Dice) -> Strange {
    let attributes = ["id", "type", "source", "time", "specversion", "subject", "datacontenttype", "traceparent", "x"];
    let count = [0, 1, 3, 300][dice.below(4) as usize];
    let mut headers: Vec<(String, Vec<u8>)> = Vec::new();
    for _ in 0..count {
        let plain = attributes[dice.below(9) as usize];
        let prefix = ["", "ce_", "cloudEvents_", "cloudEvents:"][dice.below(4) as usize];
        headers.push((format!("{prefix}{plain}"), value(dice)));
    }
    // Mostly one that is bound, so that it goes further.
    if dice.below(4) > 0 {
        headers.extend(["ce_type", "cloudEvents_type"].map(|name| (name.to_owned(), b"count".to_vec())));
    }
    let mut payload = text(dice).into_bytes();
    if dice.below(3) == 0 && !payload.is_empty() {
        let at = dice.below(payload.len() as u64) as usize;
        payload[at] = dice.below(256) as u8;
    }
    payload.truncate(BYTES_MAX / 2);
    let key = if dice.below(2) == 0 { value(dice) } else { b"a".to_vec() };
    Strange { key, payload, headers }
}

impl Case {
    async fn write(&self, all: &[Strange]) {
        if let Some(topic) = &self.topic {
            for Strange { key, payload, headers } in all {
                let headers: Vec<(&str, &[u8])> =
                    headers.iter().map(|(name, value)| (name.as_str(), &**value)).collect();
                let (key, payload) = (Some(&**key), Some(&**payload));
                topic.enqueue(kafka_topic::Written { key, payload, headers: &headers, ..Default::default() });
            }
            return topic.flush();
        }
        if let Some(streams) = &self.streams {
            let written = all.iter().map(|Strange { key, payload, headers }| {
                let key = ("key".to_owned(), key.clone());
                // A client has no more room for headers than a frame.
                let headers =
                    headers.iter().chain([&key]).map(|(name, value)| (name.as_str(), &value[..value.len().min(300)]));
                let headers: Vec<_> = headers.map(|(name, value)| (name, bytes(value))).collect();
                rabbitmq_place::Written { stream: 0, payload, properties: headed(&headers) }
            });
            return streams.write(&written.collect::<Vec<_>>()).await;
        }
        let Place::Postgres(database) = &self.place else { panic!("SQLite has no intake") };
        let mut connection = database.connection().await;
        for Strange { key, payload, headers } in all {
            let [key, payload] = [key, payload].map(|bytes| String::from_utf8_lossy(bytes).replace('\0', "\u{1}"));
            let names =
                headers.iter().map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).replace('\0', "")));
            let headers = serde_json::Value::from_iter(names);
            let sql = "INSERT INTO perkey_intake (key, type, payload, headers) VALUES ($1, 'count', $2, $3)";
            let row = sqlx::query(sql).bind(key).bind(payload).bind(headers);
            // What its constraints refuse never comes in.
            let _ = row.execute(&mut connection).await;
        }
    }
}

fn good(n: u64) -> Message {
    let id = format!("good-{n}");
    let draft = Draft {
        id: &id,
        key: "good",
        kind: "count",
        source: "test",
        payload: b"{\"key\":\"good\"}",
        ..Draft::default()
    };
    draft.build().unwrap()
}

async fn goes_on(place: Place, from: Door) {
    let seed = asked("PERKEY_SEED", since_boot());
    let mut dice = Dice::seeded(seed);
    let case = Case::new(place, from, Wait::KeyPaused).await;
    let engine = case.start("a").await;
    let rounds = asked("PERKEY_HOSTILE", 300) / BETWEEN;
    for round in 0..rounds {
        let all: Vec<_> = (0..BETWEEN).map(|_| strange(&mut dice)).collect();
        case.write(&all).await;
        case.send(&[good(round)]).await;
        let there = async || case.counted("counting", &["good"]).await == round + 1;
        let waited = until("what is behind goes on", SOON, there).await;
        assert!(waited.is_ok(), "{from:?}, PERKEY_SEED={seed}, round {round}: one of {all:?}");
    }
    engine.drain().await.unwrap();
    assert_eq!(case.counted("counting", &["good"]).await, rounds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_record_of_a_topic_stops_what_is_behind_it() {
    goes_on(Place::Sqlite(tempfile::tempdir().unwrap()), Door::Kafka).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_record_of_a_stream_stops_what_is_behind_it() {
    goes_on(Place::Sqlite(tempfile::tempdir().unwrap()), Door::Rabbitmq).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_row_of_the_intake_stops_what_is_behind_it() {
    goes_on(Place::Postgres(Database::new().await), Door::Intake).await;
}
