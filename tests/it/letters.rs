//! Dead letters in any number: ids are known at any age, a bound stops the sources and loses nothing, old ones go when
//! told to.
//! In: messages that are rejected. Out: the messages that are handled, the letters that are left, the reports.

use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::clock::{Clock, Stopwatch};
use perkey::unstable::message::TakenId;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::postgres::PgStore;
use perkey::unstable::store::query::{DeadFilter, NewCommand, OperatorAction};
use perkey::unstable::store::sqlite::SqliteStore;
use perkey::unstable::store::{Access, ServiceKey, Store};
use perkey::{Engine, Message, Settings};
use perkey_chaos::process::until;

use crate::fixture::{SqlitePlace, setup};
use crate::postgres_place::{BOUNDS, Database};
use crate::support::{Counted, append, count, handlers, open, start};

const PATIENCE: Duration = Duration::from_secs(30);

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.ownership.shards = 1;
    settings.ingress.credits = 16;
    settings
}

fn rejected(from: usize, count_: usize) -> Vec<Message> {
    (from..from + count_).map(|n| count(&format!("m{n}"), &format!("k{n}"), Some("reject"))).collect()
}

async fn dead(store: &dyn Store) -> u64 {
    store.queries().count_dead(DeadFilter::default()).await.unwrap()
}

async fn discard(store: &dyn Store, until_dead: u64) {
    let filter = DeadFilter { until: Some(Clock::system().now()), ..DeadFilter::default() };
    let (who, why) = ("ann".to_owned(), "seen".to_owned());
    let new = NewCommand { action: OperatorAction::Discard, filter, who, why, matched: 1, at: Clock::system().now() };
    let id = store.queries().command(new).await.unwrap();
    let done = async || {
        let state = store.queries().command_state(id).await.unwrap();
        state.shards_done == state.shards && state.affected == until_dead
    };
    until("they are discarded", PATIENCE, done).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_bound_of_dead_letters_sources_pause_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s.db")).await;
    let mut settings = settings();
    settings.dlq.max = 1;
    let metrics = Metrics::new();
    let engine = Engine::start(&settings, handlers(), store.clone(), metrics.clone()).await.unwrap();
    append(&*store, 1, "counting", &rejected(0, 40)).await;
    let shows = |text: &str| metrics.encode().contains(text);
    let alarm = "perkey_alarm{alarm=\"dead_letter_bound_reached\",shard=\"0\"}";
    // What is in hand goes on: as many as there were credits.
    let reached = async || shows(&format!("{alarm} 1")) && shows("dead_letter_queue_depth{shard=\"0\"} 16");
    until("the bound is reached", PATIENCE, reached).await.unwrap();
    assert!(shows("perkey_alarm{alarm=\"dead_letters_near_bound\",shard=\"0\"} 1"));
    assert_eq!(dead(&*store).await, 16);
    assert_eq!(store.queries().unread(vec![0]).await.unwrap(), [(0, 40)], "a row half read counts whole");
    discard(&*store, 16).await;
    until("it goes on", PATIENCE, async || dead(&*store).await == 16).await.unwrap();
    discard(&*store, 16).await;
    until("all were taken", PATIENCE, async || dead(&*store).await == 8).await.unwrap();
    discard(&*store, 8).await;
    until("the alarm is over", PATIENCE, async || shows(&format!("{alarm} 0"))).await.unwrap();
    engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_go_after_their_time_and_explain_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s.db")).await;
    let mut settings = settings();
    settings.dlq.keep = Duration::from_millis(1);
    let metrics = Metrics::new();
    let engine = Engine::start(&settings, handlers(), store.clone(), metrics.clone()).await.unwrap();
    append(&*store, 1, "counting", &rejected(0, 5)).await;
    let gone = async || metrics.encode().contains("dlq_expired_total 5") && dead(&*store).await == 0;
    until("they are gone", PATIENCE, gone).await.unwrap();
    let story = store.queries().explain("m3".to_owned()).await.unwrap();
    let told: Vec<_> = story.history.iter().map(|line| &*line.what).collect();
    assert_eq!(told, ["dead_letter", "expired"]);
    // An operator's command is not kept waiting.
    discard(&*store, 0).await;
    engine.drain().await.unwrap();
    assert_eq!(store.queries().shards().await.unwrap()[0].counters["dead_letters_now"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_is_known_as_long_as_its_dead_letter_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s.db")).await;
    let mut settings = settings();
    settings.dedup.window = Duration::from_millis(1);
    settings.dedup.window_min = Duration::ZERO;
    let engine = start(&settings, store.clone(), handlers()).await;
    append(&*store, 1, "counting", &[count("dies", "k", Some("reject"))]).await;
    until("it dies", PATIENCE, async || dead(&*store).await == 1).await.unwrap();
    let again = async |n: u64| {
        append(&*store, 1, "counting", &[count(&format!("other-{n}"), "other", None)]).await;
        let copy = count("dies", "k", Some("reject"));
        append(&*store, 1, "counting", &[copy, count(&format!("next-{n}"), "k", None)]).await;
    };
    // Long out of the window, under the same owner and under the next one.
    again(1).await;
    until("it goes on", PATIENCE, async || counted(&*store).await == 1).await.unwrap();
    engine.idle().await;
    engine.drain().await.unwrap();
    assert_eq!((counted(&*store).await, dead(&*store).await), (1, 1), "the copy is dropped");
    again(2).await;
    run(&settings, &store).await;
    assert_eq!((counted(&*store).await, dead(&*store).await), (2, 1), "the copy is dropped");
}

/// Runs what is there to be run, in a process of its own.
async fn run(settings: &Settings, store: &Arc<SqliteStore>) {
    let engine = start(settings, store.clone(), handlers()).await;
    engine.idle().await;
    engine.drain().await.unwrap();
}

async fn counted(store: &dyn Store) -> u64 {
    let key = ServiceKey { service: "counting".into(), key: "k".into() };
    let row = store.load(0, vec![key]).await.unwrap().remove(0);
    row.state.map_or(0, |(_, json)| serde_json::from_slice::<Counted>(&json).unwrap().n)
}

/// The numbers of dead letters and waiting rows that a store is filled with, to see how long taking its shard takes:
/// run it with `PERKEY_LETTERS=10000000 PERKEY_ROWS=1000000 cargo test -p perkey-tests -- --ignored --nocapture
/// taking_a_shard`.
fn many() -> (u64, u64) {
    let asked = |name: &str, usual| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    (asked("PERKEY_LETTERS", 1_000_000), asked("PERKEY_ROWS", 100_000))
}

#[expect(clippy::print_stdout, reason = "figures are for whoever runs it by hand")]
async fn takes(store: &dyn Store, what: &str) {
    store.prepare(setup()).await.unwrap();
    let watch = Stopwatch::start();
    let letters = store.letters(0).await.unwrap();
    println!("{what}: counted once, {letters:?}, in {:?}", watch.elapsed());
    let watch = Stopwatch::start();
    store.take(0, "me").await.unwrap();
    let inbox = store.inbox(0, 0, 500_000).await.unwrap();
    println!("{what}: taken with {} rows in {:?}", inbox.pending, watch.elapsed());
    let watch = Stopwatch::start();
    let asked = (0..1_000).map(|n| (TakenId([9; 22]), format!("p{n}"))).collect();
    store.known(0, asked).await.unwrap();
    println!("{what}: a thousand ids looked up in {:?}", watch.elapsed());
}

/// Statements that fill a store; `numbers` is what gives numbers from 1 to so many, `id` an id of a number, `blob` some
/// bytes.
fn filling(numbers: impl Fn(u64) -> (String, String), id: &str, blob: &str) -> [String; 2] {
    let (letters, rows) = many();
    let (with, from) = numbers(letters);
    let letters_sql = format!(
        "INSERT INTO dead_letters {with} SELECT 0, n, 'balances', 'k' || n, {id}, 'p' || n, n, n, 'gave up', FALSE, '[]', {blob}
         FROM {from}"
    );
    let (with, from) = numbers(rows);
    let rows_sql = format!(
        "INSERT INTO pending (shard, seq, service, key, kind, due_at, taken_id, message_id, taken_at, attempt, history, message)
         {with} SELECT 0, n + {letters}, 'balances', 'w' || n, 'retry', n, {id}, 'w' || n, n, 0, '[]', {blob} FROM {from}"
    );
    [letters_sql, rows_sql]
}

#[tokio::test]
#[ignore = "it fills a database with millions of rows"]
async fn taking_a_shard_with_many_dead_letters_on_postgresql() {
    let database = Database::new().await;
    let store = PgStore::open(&database.url, BOUNDS, Access::Run).await.unwrap();
    store.prepare(setup()).await.unwrap();
    let mut connection = database.connection().await;
    let numbers = |to: u64| (String::new(), format!("generate_series(1, {to}) n"));
    for sql in filling(numbers, "decode(lpad(to_hex(n), 44, '0'), 'hex')", "'\\x01'::bytea") {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }
    takes(&store, "PostgreSQL").await;
    store.close().await;
}

#[tokio::test]
#[ignore = "it fills a file with millions of rows"]
async fn taking_a_shard_with_many_dead_letters_on_sqlite() {
    let place = SqlitePlace::new().await;
    let mut connection = place.connection().await;
    let numbers = |to: u64| {
        let with = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n <";
        (format!("{with} {to})"), "numbers".to_owned())
    };
    for sql in filling(numbers, "unhex(printf('%044x', n))", "x'01'") {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }
    takes(&**place.sqlite(), "SQLite").await;
}
