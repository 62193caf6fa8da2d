//! Rows that the database refuses: only the message that wrote one pays for it.
//! In: messages for busy keys, a few of them with such a row. Out: dead letters for these, everything else in order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use perkey::clock::Millis;
use perkey::message::{Draft, ShardNo, shard_of};
use perkey::metrics::Metrics;
use perkey::settings::Settings;
use perkey::store::query::{DeadFilter, Queries};
use perkey::store::{
    Commit, DeadLetter, Due, Epoch, Identity, InboxRows, KeyRow, Outcome, PendingRow, ServiceKey, Setup, Store,
    StoreFuture, StoredLogRow, TakenShard, Trim,
};
use perkey::transport::Positions;
use perkey::{AfterDeadLetter, Column, ColumnKind, Engine, Fault, Handler, Handlers, Key, Message, Row, Table, Turn};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Row as _, SqliteConnection};

use crate::support::{append, open};

/// Writes a row per message; some rows do not fit their table.
struct Writing;

#[derive(Deserialize)]
struct Write {
    key: String,
    #[serde(default)]
    row: Kind,
}

/// What is the matter with a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    #[default]
    Fits,
    /// NULL where none may be, on the first attempt.
    NullOnce,
    /// NULL where none may be, each time.
    Null,
    /// Text where a number must be, on the first attempt.
    TextOnce,
    /// Text where a number must be, each time.
    Text,
    /// Refused by [`Strict`], for good.
    Never,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Written {
    n: u64,
}

#[derive(Serialize)]
struct WrittenRow<'a> {
    key: &'a str,
    id: &'a str,
    n: Value,
}

impl Row for WrittenRow<'_> {
    const TABLE: Table = Table {
        name: "written",
        columns: &[
            Column::new("key", ColumnKind::Text),
            Column::new("id", ColumnKind::Text),
            Column::new("n", ColumnKind::Integer),
        ],
        primary_key: &["key", "id"],
        key_column: Some("key"),
    };
}

impl Handler for Writing {
    const SERVICE: &'static str = "writing";
    type Message = Write;
    type State = Written;

    fn key(&self, message: &Write) -> Key {
        message.key.as_str().into()
    }

    async fn handle(&self, state: &mut Written, message: Write, turn: &mut Turn) -> Result<(), Fault> {
        state.n += 1;
        let n = match message.row {
            Kind::Null => Value::Null,
            Kind::NullOnce if turn.attempt() == 1 => Value::Null,
            Kind::Text => json!("many"),
            Kind::TextOnce if turn.attempt() == 1 => json!("many"),
            Kind::Never => json!(NEVER),
            Kind::Fits | Kind::NullOnce | Kind::TextOnce => json!(state.n),
        };
        let id = turn.id().to_owned();
        turn.write(&WrittenRow { key: &message.key, id: &id, n })?;
        turn.emit("written", &json!({ "id": id, "n": state.n }))
    }

    fn after_dead_letter(&self) -> AfterDeadLetter {
        AfterDeadLetter::Continue
    }

    fn tables(&self) -> Vec<Table> {
        vec![WrittenRow::TABLE]
    }
}

const NEVER: i64 = -7_777_777;
const KEYS: usize = 40;
const MESSAGES: usize = 6_000;
const ATTEMPTS: u32 = 4;

fn message(no: usize, row: Kind) -> Message {
    // Every second message is for one of four keys.
    let key = if no.is_multiple_of(2) { format!("hot{}", no / 2 % 4) } else { format!("k{}", no % KEYS) };
    let payload = json!({ "key": key, "row": row }).to_string();
    let id = format!("m{no}");
    Draft { id: &id, key: &key, kind: "write", source: "test", payload: payload.as_bytes(), ..Draft::default() }
        .build()
        .unwrap()
}

/// Messages, those `refused` with a row of these kinds in turn.
fn messages(kinds: &[Kind], refused: impl Fn(usize) -> bool) -> Vec<(Message, Kind)> {
    let mut kinds = kinds.iter().copied().cycle();
    let all = (0..MESSAGES).map(|no| {
        let kind = if refused(no) { kinds.next().unwrap() } else { Kind::Fits };
        (message(no, kind), kind)
    });
    all.collect()
}

struct Found {
    /// Of each key, the ids of its events with their count.
    events: BTreeMap<String, Vec<(String, u64)>>,
    dead: HashMap<String, DeadLetter>,
}

async fn handled(store: Arc<dyn Store>, settings: &Settings, given: &[(Message, Kind)]) -> Found {
    let shards = settings.ownership.shards;
    let engine = Engine::start(settings, Handlers::new().with(Writing), store.clone(), Metrics::new()).await.unwrap();
    let messages: Vec<_> = given.iter().map(|(message, _)| message.clone()).collect();
    append(&*store, shards, "writing", &messages).await;
    loop {
        tokio::time::timeout(Duration::from_secs(60), engine.idle()).await.expect("it comes to rest");
        let rows = store.queries().shards().await.unwrap();
        if rows.iter().all(|row| row.pending == 0) {
            break;
        }
    }
    engine.drain().await.unwrap();
    let mut events: BTreeMap<String, Vec<(String, u64)>> = BTreeMap::new();
    for shard in 0..shards {
        for row in store.queries().events(shard, 0, 100_000).await.unwrap() {
            let event: Value = serde_json::from_slice(row.event.message.payload()).unwrap();
            let event = (event["id"].as_str().unwrap().to_owned(), event["n"].as_u64().unwrap());
            events.entry(row.event.message.key().to_owned()).or_default().push(event);
        }
    }
    let dead = store.queries().peek(DeadFilter::default(), 1_000).await.unwrap();
    let dead = dead.into_iter().map(|(_, letter)| (letter.message.id().to_owned(), letter)).collect();
    Found { events, dead }
}

fn quick() -> Settings {
    let mut settings = Settings::default();
    settings.retry.base = Duration::from_millis(2);
    settings.retry.cap = Duration::from_millis(10);
    settings.retry.attempts = ATTEMPTS;
    settings
}

/// Each key's events are exactly its messages that can succeed, in the order in which they came.
async fn only_the_refused_are_missing(store: &dyn Store, given: &[(Message, Kind)], found: &Found) {
    let lost = [Kind::Null, Kind::Text, Kind::Never];
    let mut expected: BTreeMap<String, Vec<(String, u64)>> = BTreeMap::new();
    for (message, _) in given.iter().filter(|(_, kind)| !lost.contains(kind)) {
        let course = expected.entry(message.key().to_owned()).or_default();
        let n = course.len() as u64 + 1;
        course.push((message.id().to_owned(), n));
    }
    for (key, course) in &expected {
        let events = found.events.get(key).cloned().unwrap_or_default();
        let differs = events.iter().zip(course).position(|(is, should)| is != should);
        assert!(events.len() == course.len() && differs.is_none(), "{key}: {differs:?} {}", events.len());
        let shard = shard_of(key, Settings::default().ownership.shards);
        let asked = ServiceKey { service: "writing".into(), key: key.as_str().into() };
        let state = store.load(shard, vec![asked]).await.unwrap().remove(0).state.unwrap().1;
        let state: Written = serde_json::from_slice(&state).unwrap();
        assert_eq!(state.n, course.len() as u64, "the state of {key} is that of the messages that counted");
    }
    let mut ids: Vec<_> = found.dead.keys().cloned().collect();
    let mut refused: Vec<_> =
        given.iter().filter(|(_, kind)| lost.contains(kind)).map(|(message, _)| message.id().to_owned()).collect();
    ids.sort();
    refused.sort();
    assert_eq!(ids, refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_row_costs_its_own_message_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    // On busy keys and quiet ones, several of a key, some side by side.
    let refused = |no: usize| no % 397 == 100 || no % 1_499 == 704 || (3_000..3_003).contains(&no);
    let given = messages(&[Kind::NullOnce, Kind::Null, Kind::TextOnce, Kind::Text], refused);
    let store = open(&path).await;
    let found = handled(store.clone(), &quick(), &given).await;
    only_the_refused_are_missing(&*store, &given, &found).await;
    for (id, letter) in &found.dead {
        assert_eq!(letter.history.len(), ATTEMPTS as usize, "{id}: {:?}", letter.history);
        let named = letter.error.contains("NOT NULL") || letter.error.contains("INTEGER");
        assert!(named && letter.error.contains("written"), "{id}: {}", letter.error);
    }
    store.close().await;
    let mut connection =
        SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(&path).read_only(true)).await.unwrap();
    let rows = sqlx::query("SELECT key, id, n FROM written ORDER BY key, n").fetch_all(&mut connection).await.unwrap();
    let mut written: BTreeMap<String, Vec<(String, u64)>> = BTreeMap::new();
    for row in rows {
        let n = u64::try_from(row.get::<i64, _>("n")).unwrap();
        written.entry(row.get("key")).or_default().push((row.get("id"), n));
    }
    assert_eq!(written, found.events, "a row for each message that counted, and no other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_refused_for_good_is_not_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    // One of each of the four busy keys, and of three quiet ones side by side.
    let given = messages(&[Kind::Never], |no| [100, 702, 1_000, 2_002, 3_001, 3_003, 3_005].contains(&no));
    let store = Arc::new(Strict(open(&dir.path().join("s.db")).await));
    let found = handled(store.clone(), &quick(), &given).await;
    only_the_refused_are_missing(&*store, &given, &found).await;
    for (id, letter) in &found.dead {
        assert_eq!(letter.history.len(), 1, "{id}: {:?}", letter.history);
        assert!(letter.error.contains("never"), "{id}: {}", letter.error);
    }
}

/// A database that refuses some rows for good; SQLite has no such rows among those that a handler can write.
struct Strict(Arc<dyn Store>);

impl Store for Strict {
    fn commit<'a>(&'a self, commit: &'a Commit) -> BoxFuture<'a, Outcome> {
        let never = format!("\"n\":{NEVER}");
        let refused = |row: &perkey::handler::RowWrite| row.row.as_ref().is_some_and(|row| row.contains(&never));
        if commit.parts.iter().flat_map(|part| &part.rows).any(refused) {
            let error = "never such a row".to_owned();
            return Box::pin(async { Outcome::Refused { permanent: true, error } });
        }
        self.0.commit(commit)
    }

    fn prepare(&self, setup: Setup) -> StoreFuture<'_, Identity> {
        self.0.prepare(setup)
    }

    fn take(&self, shard: ShardNo, owner: &str) -> StoreFuture<'_, TakenShard> {
        self.0.take(shard, owner)
    }

    fn retake(&self, shard: ShardNo, epoch: Epoch) -> StoreFuture<'_, TakenShard> {
        self.0.retake(shard, epoch)
    }

    fn inbox(&self, shard: ShardNo, since: Millis, max: usize) -> StoreFuture<'_, InboxRows> {
        self.0.inbox(shard, since, max)
    }

    fn load(&self, shard: ShardNo, keys: Vec<ServiceKey>) -> StoreFuture<'_, Vec<KeyRow>> {
        self.0.load(shard, keys)
    }

    fn due(&self, shard: ShardNo, now: Millis, limit: usize) -> StoreFuture<'_, Due> {
        self.0.due(shard, now, limit)
    }

    fn orphans(&self, shard: ShardNo, after: Option<ServiceKey>, limit: usize) -> StoreFuture<'_, Vec<ServiceKey>> {
        self.0.orphans(shard, after, limit)
    }

    fn page(&self, shard: ShardNo, key: ServiceKey, after: u64, limit: usize) -> StoreFuture<'_, Vec<PendingRow>> {
        self.0.page(shard, key, after, limit)
    }

    fn dead(&self, shard: ShardNo, filter: DeadFilter, limit: usize) -> StoreFuture<'_, Vec<DeadLetter>> {
        self.0.dead(shard, filter, limit)
    }

    fn read_log(&self, target: ShardNo, from: Positions, limit: usize) -> StoreFuture<'_, Vec<StoredLogRow>> {
        self.0.read_log(target, from, limit)
    }

    fn log_changed(&self, target: ShardNo) -> BoxFuture<'_, ()> {
        self.0.log_changed(target)
    }

    fn trim(&self, shard: ShardNo, trim: Trim) -> StoreFuture<'_, ()> {
        self.0.trim(shard, trim)
    }

    fn queries(&self) -> &dyn Queries {
        self.0.queries()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_large_behind_a_message_that_waits_is_never_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = quick();
    settings.ingress.message_bytes_max = 5_000;
    let make = |id: String, row: Kind, pad: usize| {
        let payload = json!({ "key": "k", "row": row, "pad": "x".repeat(pad) }).to_string();
        let draft =
            Draft { id: &id, key: "k", kind: "write", source: "t", payload: payload.as_bytes(), ..Draft::default() };
        draft.build().unwrap()
    };
    let given: Vec<_> = (0..100)
        .flat_map(|no| {
            let large = make(format!("large{no}"), Kind::Fits, 6_000);
            [(make(format!("bad{no}"), Kind::Text, 0), Kind::Text), (large, Kind::Never)]
        })
        .collect();
    let store = open(&dir.path().join("s.db")).await;
    let found = handled(store, &settings, &given).await;
    assert!(found.events.values().flatten().all(|(id, _)| !id.starts_with("large")));
}
