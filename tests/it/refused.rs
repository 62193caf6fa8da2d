//! Rows that the database refuses: only the message that wrote one pays for it.
//! In: messages for busy keys, a few of them with such a row. Out: dead letters for these, everything else in order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use perkey::unstable::message::{ShardNo, shard_of};
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::query::{DeadFilter, NewCommand, OperatorAction};
use perkey::unstable::store::sqlite::SqliteStore;
use perkey::unstable::store::{Commit, CommitOutcome, DeadLetter, DeadPlace, ServiceKey, Store, StoreFuture};
use perkey::{
    AfterDeadLetter, Column, ColumnKind, Draft, Engine, Fault, Handler, Handlers, Key, Message, Row, Settings,
    StoreError, Table, Turn, sleep,
};
use perkey_tests::{Tapped, Taps};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Row as _, SqliteConnection};

use crate::support::{append, count, handlers, open};

/// Writes a row per message; some rows do not fit their table.
struct Writing;

#[derive(Deserialize)]
struct Write {
    key: String,
    #[serde(default)]
    row: Kind,
}

/// The faults of a row.
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
        indexes: &[],
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
        tokio::time::timeout(Duration::from_secs(180), engine.idle()).await.expect("it comes to rest");
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
    let store = Strict::of(open(&dir.path().join("s.db")).await, Dead::Fine);
    let found = handled(store.clone(), &quick(), &given).await;
    only_the_refused_are_missing(&*store, &given, &found).await;
    for (id, letter) in &found.dead {
        assert_eq!(letter.history.len(), 1, "{id}: {:?}", letter.history);
        assert!(letter.error.contains("never"), "{id}: {}", letter.error);
    }
}

/// A database that refuses some rows for good; SQLite has no such rows among those that a handler can write.
struct Strict {
    dead: Dead,
    /// The answer to the next commit is lost.
    loses: AtomicBool,
    /// Dead letters were asked for.
    asked: AtomicBool,
}

/// The outcomes of reading dead letters.
enum Dead {
    Fine,
    /// More at once take longer than a statement may.
    AtMost(usize),
    Damaged,
    Never,
}

impl Strict {
    fn of(store: Arc<SqliteStore>, dead: Dead) -> Arc<Tapped<SqliteStore, Self>> {
        let taps = Self { dead, loses: AtomicBool::new(false), asked: AtomicBool::new(false) };
        Arc::new(Tapped { store, taps })
    }
}

impl Taps for Strict {
    fn commit<'a>(&'a self, store: &'a dyn Store, commit: &'a Commit) -> BoxFuture<'a, CommitOutcome> {
        let never = format!("\"n\":{NEVER}");
        let refused = |row: &perkey::testing::RowWrite| row.row.as_ref().is_some_and(|row| row.contains(&never));
        if commit.parts.iter().flat_map(|part| &part.rows).any(refused) {
            let error = "never such a row".to_owned();
            return Box::pin(async { CommitOutcome::Refused { permanent: true, error } });
        }
        Box::pin(async move {
            let outcome = store.commit(commit).await;
            let loses = self.loses.swap(false, Ordering::AcqRel);
            if loses { CommitOutcome::Unknown("the answer was lost".to_owned()) } else { outcome }
        })
    }

    fn dead<'a>(
        &'a self,
        store: &'a dyn Store,
        shard: ShardNo,
        filter: DeadFilter,
        after: Option<DeadPlace>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DeadLetter>> {
        self.asked.store(true, Ordering::Release);
        match self.dead {
            Dead::AtMost(most) if limit > most => {
                Box::pin(async { Err(StoreError::Unavailable("it took too long".to_owned())) })
            }
            Dead::Damaged => Box::pin(async { Err(StoreError::Corrupt("a letter is damaged".to_owned())) }),
            Dead::Never => Box::pin(std::future::pending()),
            Dead::Fine | Dead::AtMost(_) => store.dead(shard, filter, after, limit),
        }
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

/// A shard with 40 dead letters on a store with such a `dead`, and a command to discard them.
struct Discarding {
    _dir: tempfile::TempDir,
    store: Arc<Tapped<SqliteStore, Strict>>,
    engine: Engine,
    command: i64,
}

impl Discarding {
    async fn new(dead: Dead) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Strict::of(open(&dir.path().join("s.db")).await, dead);
        let mut settings = quick();
        settings.ownership.shards = 1;
        let engine = Engine::start(&settings, handlers(), store.clone(), Metrics::new()).await.unwrap();
        let messages: Vec<_> = (0..40).map(|n| count(&format!("m{n}"), &format!("k{n}"), Some("reject"))).collect();
        append(&*store, 1, "counting", &messages).await;
        until("they die", async || store.queries().count_dead(DeadFilter::default()).await.unwrap() == 40).await;
        let (filter, who, why) = (DeadFilter::default(), "ann".to_owned(), "test".to_owned());
        let command = NewCommand { action: OperatorAction::Discard, filter, who, why, matched: 40, at: 1 };
        let command = store.queries().command(command).await.unwrap();
        Self { _dir: dir, store, engine, command }
    }

    /// The number of messages that were discarded, once the command is done.
    async fn affected(&self) -> u64 {
        let state = async || self.store.queries().command_state(self.command).await.unwrap();
        until("the command is done", async || state().await.shards_done == 1).await;
        state().await.affected
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let held = async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), held).await.unwrap_or_else(|_| panic!("it should be that {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_are_too_large_together_are_read_a_few_at_a_time() {
    assert_eq!(Discarding::new(Dead::AtMost(7)).await.affected().await, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_that_cannot_be_read_end_their_command_and_not_their_shard() {
    let scene = Discarding::new(Dead::Damaged).await;
    assert_eq!(scene.affected().await, 0);
    let owner = &scene.store.queries().shards().await.unwrap()[0];
    assert_eq!((owner.epoch, owner.dead_letters), (1, 40), "it was not taken anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_asked_for_while_dead_letters_are_still_being_read() {
    let scene = Discarding::new(Dead::Never).await;
    until("they are being read", async || scene.store.taps.asked.load(Ordering::Acquire)).await;
    scene.store.taps.loses.store(true, Ordering::Release);
    append(&*scene.store, 1, "counting", &[count("later", "k", None)]).await;
    let committed = async || scene.store.queries().shards().await.unwrap()[0].epoch == 2;
    until("the shard asks what became of its commit", committed).await;
    append(&*scene.store, 1, "counting", &[count("last", "k", None)]).await;
    let events = async || scene.store.queries().events(0, 0, 1_000).await.unwrap();
    until("it goes on", async || events().await.iter().any(|row| row.event.message.payload().ends_with(b"\"n\":2}")))
        .await;
    drop(scene.engine);
}
