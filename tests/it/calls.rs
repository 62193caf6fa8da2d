//! Calls through a running engine: each takes effect once, and its sender hears how it ended.
//! In: a handler that replies, refuses, fails and takes its time. Out: the callers' answers, the handler's work.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use perkey::unstable::engine::cache;
use perkey::unstable::engine::calls::{Call, CallAnswer, CallError, Calls};
use perkey::unstable::handler::CallId;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::calls::CallEnd;
use perkey::unstable::store::query::DeadFilter;
use perkey::unstable::store::sqlite::SqliteStore;
use perkey::{Engine, Fault, Handler, Handlers, Key, Settings, Turn};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};

use crate::support::{open, start};

const PATIENCE: Duration = Duration::from_secs(30);

/// Counts up by what it is told.
struct Counter;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Count {
    Up { key: String },
    Slow { key: String },
    Refuse { key: String },
    Reject { key: String },
    Fail { key: String },
}

impl Handler for Counter {
    const SERVICE: &'static str = "counter";
    type Message = Count;
    type State = u64;

    fn key(&self, count: &Count) -> Key {
        match count {
            Count::Up { key }
            | Count::Slow { key }
            | Count::Refuse { key }
            | Count::Reject { key }
            | Count::Fail { key } => key.as_str().into(),
        }
    }

    async fn handle(&self, counted: &mut u64, count: Count, turn: &mut Turn) -> Result<(), Fault> {
        match count {
            Count::Up { .. } => {}
            Count::Slow { .. } => perkey::sleep(Duration::from_millis(300)).await,
            Count::Refuse { .. } => return Err(Fault::refuse("enough", "it has counted enough")),
            Count::Reject { .. } => return Err(Fault::reject("it does not want to")),
            Count::Fail { .. } => return Err(Fault::retry("it is stuck")),
        }
        *counted += 1;
        turn.reply(&json!({ "counted": *counted }))
    }

    fn after_dead_letter(&self) -> perkey::AfterDeadLetter {
        perkey::AfterDeadLetter::HoldKey
    }
}

/// A handler that only the process in front knows.
struct Elsewhere;

impl Handler for Elsewhere {
    const SERVICE: &'static str = "elsewhere";
    type Message = Value;
    type State = u64;

    fn key(&self, _: &Value) -> Key {
        "e".into()
    }

    async fn handle(&self, _: &mut u64, _: Value, _: &mut Turn) -> Result<(), Fault> {
        Ok(())
    }
}

struct Scene {
    dir: tempfile::TempDir,
    store: Arc<SqliteStore>,
    engine: Engine,
}

async fn scene(settings: &Settings) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s.db")).await;
    let engine = start(settings, store.clone(), Handlers::new().with(Counter)).await;
    Scene { dir, store, engine }
}

fn fast() -> Settings {
    let mut settings = Settings::default();
    settings.retry.base = Duration::from_millis(2);
    settings.retry.cap = Duration::from_millis(5);
    settings
}

fn call(no: u8, payload: Value) -> Call {
    Call {
        id: CallId([no; 16]),
        fingerprint: [no; 32],
        tenant: "default".to_owned(),
        service: "counter",
        payload: payload.to_string().into_bytes(),
        headers: vec![("traceparent".to_owned(), "00-1-2-01".to_owned()), ("perkeytimer".to_owned(), "x".to_owned())],
    }
}

fn body(answer: &CallAnswer) -> (bool, CallEnd, String) {
    let (new, outcome) = match answer {
        CallAnswer::New(outcome) => (true, outcome),
        CallAnswer::Replay(outcome) => (false, outcome),
        other => panic!("{other:?}"),
    };
    (new, outcome.end, String::from_utf8(outcome.body.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_takes_effect_once_and_is_answered_alike_again() {
    let scene = scene(&fast()).await;
    let calls = scene.engine.calls();
    let up = || call(1, json!({ "up": { "key": "a" } }));
    let first = calls.call(up(), PATIENCE).await.unwrap();
    assert_eq!(body(&first), (true, CallEnd::Done, "{\"counted\":1}".to_owned()));
    // From the cache, and from the store by a process that has none of it.
    let other = {
        let (settings, metrics) = (fast(), Metrics::new());
        let cache = cache::open(&settings, &[2; 32], &metrics).unwrap();
        Calls::new(&settings, Handlers::new().with(Counter), scene.store.clone(), cache, metrics)
    };
    for calls in [&calls, &other] {
        let again = calls.call(up(), PATIENCE).await.unwrap();
        assert_eq!(body(&again), (false, CallEnd::Done, "{\"counted\":1}".to_owned()));
        let changed = Call { fingerprint: [9; 32], ..up() };
        assert_eq!(calls.call(changed, PATIENCE).await, Ok(CallAnswer::Mismatch));
    }
    let next = other.call(call(2, json!({ "up": { "key": "a" } })), PATIENCE).await.unwrap();
    assert_eq!(
        body(&next),
        (true, CallEnd::Done, "{\"counted\":2}".to_owned()),
        "run by the process that has an engine"
    );
    let unknown = calls.call(call(3, json!({ "down": {} })), PATIENCE).await;
    assert!(matches!(unknown, Err(CallError::Malformed(_))), "{unknown:?}");
    scene.engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_or_fails_is_told_and_holds_up_nobody() {
    let scene = scene(&fast()).await;
    let calls = scene.engine.calls();
    let refuse = || call(1, json!({ "refuse": { "key": "a" } }));
    let refused = calls.call(refuse(), PATIENCE).await.unwrap();
    assert_eq!(body(&refused), (true, CallEnd::Refused, "it has counted enough".to_owned()));
    let CallAnswer::New(outcome) = refused else { panic!() };
    assert_eq!(outcome.code, "enough");
    assert_eq!(calls.call(refuse(), PATIENCE).await, Ok(CallAnswer::Replay(outcome)));
    let rejected = calls.call(call(2, json!({ "reject": { "key": "a" } })), PATIENCE).await.unwrap();
    assert_eq!(body(&rejected), (true, CallEnd::Refused, "it does not want to".to_owned()));
    assert_eq!(scene.engine.queries().count_dead(DeadFilter::default()).await.unwrap(), 0, "nothing is left of these");

    let failed = calls.call(call(3, json!({ "fail": { "key": "a" } })), PATIENCE).await.unwrap();
    assert_eq!(body(&failed), (true, CallEnd::Failed, "it is stuck".to_owned()));
    let dead = scene.engine.queries().peek(DeadFilter::default(), 9).await.unwrap();
    assert_eq!((dead.len(), dead[0].1.holds_key, dead[0].1.history.len()), (1, false, 7));
    let up = calls.call(call(4, json!({ "up": { "key": "a" } })), PATIENCE).await.unwrap();
    assert_eq!(body(&up), (true, CallEnd::Done, "{\"counted\":1}".to_owned()), "its key goes on");
    scene.engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_sender_leaves_goes_on_and_is_in_flight_meanwhile() {
    let scene = scene(&fast()).await;
    let calls = scene.engine.calls();
    let slow = || call(1, json!({ "slow": { "key": "a" } }));
    assert_eq!(calls.call(slow(), Duration::from_millis(50)).await, Ok(CallAnswer::InFlight));
    assert_eq!(calls.call(slow(), PATIENCE).await, Ok(CallAnswer::InFlight), "told at once");
    let changed = Call { fingerprint: [9; 32], ..slow() };
    assert_eq!(calls.call(changed, PATIENCE).await, Ok(CallAnswer::Mismatch), "which counts more than that it runs");
    let ended = async || matches!(calls.call(slow(), PATIENCE).await, Ok(CallAnswer::Replay(_)));
    perkey_chaos::process::until("it has not ended", PATIENCE, ended).await.unwrap();
    // Dropped at once: nobody knows whether it was accepted, until it is asked again.
    let second = || call(2, json!({ "slow": { "key": "a" } }));
    drop(tokio::time::timeout(Duration::from_millis(1), calls.call(second(), PATIENCE)).await);
    let ended = async || matches!(calls.call(second(), PATIENCE).await, Ok(CallAnswer::Replay(_) | CallAnswer::New(_)));
    perkey_chaos::process::until("it has not ended", PATIENCE, ended).await.unwrap();
    let counted = scene.engine.state::<Counter>("a").await.unwrap();
    assert_eq!(counted, Some(2), "each once");
    scene.engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_at_once_under_each_of_a_hundred_keys_one_is_run() {
    let scene = scene(&fast()).await;
    let calls = scene.engine.calls();
    let all = (0..10_000_u32).map(|no| {
        let key = u8::try_from(no % 100).unwrap();
        let calls = Arc::clone(&calls);
        async move { calls.call(call(key, json!({ "up": { "key": format!("k-{}", key % 10) } })), PATIENCE).await }
    });
    let answers = join_all(all).await;
    let count = |of: fn(&CallAnswer) -> bool| answers.iter().filter(|answer| of(answer.as_ref().unwrap())).count();
    assert_eq!(count(|answer| matches!(answer, CallAnswer::New(_))), 100);
    assert_eq!(count(|answer| matches!(answer, CallAnswer::Mismatch)), 0);
    for key in 0..10 {
        assert_eq!(scene.engine.state::<Counter>(&format!("k-{key}")).await.unwrap(), Some(10));
    }
    scene.engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_reads_nothing_refuses_calls_for_its_own_keys_alone() {
    let mut settings = fast();
    settings.log.max_unread = 1_000;
    let scene = scene(&settings).await;
    scene.engine.drain().await.unwrap();
    let metrics = Metrics::new();
    let cache = cache::open(&settings, &[1; 32], &metrics).unwrap();
    let front = Calls::new(&settings, Handlers::new().with(Counter), scene.store.clone(), cache, metrics);
    let shard = |key: &str| perkey::unstable::message::shard_of(key, settings.ownership.shards);
    let elsewhere = (0..).map(|no| format!("k-{no}")).find(|key| shard(key) != shard("a")).unwrap();
    let up = |no, key: &str| front.call(call(no, json!({ "up": { "key": key } })), Duration::ZERO);
    let share = u8::try_from(1_000 / settings.ownership.shards).unwrap();
    for no in 1..=share {
        assert_eq!(up(no, "a").await, Ok(CallAnswer::InFlight));
    }
    assert_eq!(up(share + 1, "a").await, Err(CallError::Full));
    assert_eq!(up(share, "a").await, Ok(CallAnswer::InFlight), "what was accepted is known");
    assert_eq!(up(share + 2, &elsewhere).await, Ok(CallAnswer::InFlight), "the others have their shares");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_to_be_written_have_no_more_bytes_than_they_may() {
    let mut settings = fast();
    // An eighth of it: 131,072 bytes.
    settings.memory.in_hand = 1 << 20;
    let scene = scene(&settings).await;
    let calls = scene.engine.calls();
    let large = |no, bytes: usize| {
        calls.call(call(no, json!({ "up": { "key": "a", "pad": "x".repeat(bytes) } })), Duration::ZERO)
    };
    // Nothing can be written: who comes has to wait.
    let file = SqliteConnectOptions::new().filename(scene.dir.path().join("s.db"));
    let mut other = SqliteConnection::connect_with(&file).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let mut all: FuturesUnordered<_> = (1..=4).map(|no| large(no, 40_000)).collect();
    assert_eq!(all.next().await, Some(Err(CallError::Full)), "three have room");
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    let told: Vec<_> = all.collect().await;
    assert!(told.iter().all(Result::is_ok) && told.len() == 3, "{told:?}");
    // What they had is there again, also for one that is larger than all.
    assert!(large(5, 300_000).await.is_ok());
    assert!(large(6, 300_000).await.is_ok());
    scene.engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_no_more_keys_than_it_may_and_others_have_theirs() {
    let mut settings = fast();
    settings.gateway.keys_max = 3;
    let scene = scene(&settings).await;
    let calls = scene.engine.calls();
    for no in 1..=3 {
        calls.call(call(no, json!({ "up": { "key": "a" } })), PATIENCE).await.unwrap();
    }
    let over = calls.call(call(4, json!({ "up": { "key": "a" } })), PATIENCE).await;
    assert_eq!(over, Err(CallError::TooManyKeys(3)));
    let other = Call { tenant: "other".to_owned(), ..call(5, json!({ "up": { "key": "a" } })) };
    assert!(matches!(calls.call(other, PATIENCE).await, Ok(CallAnswer::New(_))));
    scene.engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_for_a_service_that_its_owner_lacks_ends_too() {
    let scene = scene(&fast()).await;
    let (settings, metrics) = (fast(), Metrics::new());
    let cache = cache::open(&settings, &[1; 32], &metrics).unwrap();
    let handlers = Handlers::new().with(Counter).with(Elsewhere);
    let front = Calls::new(&settings, handlers, scene.store.clone(), cache, metrics);
    let asked = || Call { service: "elsewhere", ..call(1, json!({})) };
    let (new, end, reason) = body(&front.call(asked(), PATIENCE).await.unwrap());
    assert_eq!((new, end), (true, CallEnd::Failed));
    assert!(reason.contains("there is no service \"elsewhere\""), "{reason}");
    assert!(matches!(front.call(asked(), PATIENCE).await, Ok(CallAnswer::Replay(_))));
    scene.engine.drain().await.unwrap();
}
