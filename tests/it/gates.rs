//! Dependencies of turns: while one is away its turns wait, nothing is counted, and other services do not notice.
//! In: a handler whose dependency comes and goes, one without any. Out: the work that each has done, and its cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use perkey::unstable::clock::Stopwatch;
use perkey::unstable::settings::ServiceLimit;
use perkey::unstable::store::Store;
use perkey::unstable::store::query::DeadFilter;
use perkey::{Draft, Fault, Handler, Handlers, Key, Message, Settings, Turn};
use perkey_chaos::process::until;
use serde::Deserialize;

use crate::support::{append, open, start, state};

#[derive(Deserialize)]
struct Call {
    key: String,
}

/// Something outside.
#[derive(Clone, Default)]
struct Provider {
    away: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    /// Calls that run now, and the most that ever did.
    now: Arc<AtomicU64>,
    most: Arc<AtomicU64>,
}

impl Provider {
    async fn call(&self) -> Result<(), &'static str> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        perkey::sleep(Duration::from_millis(5)).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) { Err("it does not answer") } else { Ok(()) }
    }
}

macro_rules! caller {
    ($name:ident, $service:literal, $needs:expr) => {
        struct $name(Provider);

        impl Handler for $name {
            const SERVICE: &'static str = $service;
            const NEEDS: &'static [&'static str] = $needs;
            type Message = Call;
            type State = Vec<u32>;

            fn key(&self, call: &Call) -> Key {
                call.key.as_str().into()
            }

            async fn handle(&self, attempts: &mut Vec<u32>, _: Call, turn: &mut Turn) -> Result<(), Fault> {
                self.0.call().await.map_err(|reason| Fault::unavailable("provider", reason))?;
                attempts.push(turn.attempt());
                Ok(())
            }
        }
    };
}

caller!(Needy, "needy", &["provider"]);
caller!(Careless, "careless", &[]);

fn call(id: &str, key: &str) -> Message {
    let payload = format!(r#"{{"key":"{key}"}}"#);
    Draft { id, key, kind: "call", payload: payload.as_bytes(), ..Draft::default() }.build().unwrap()
}

fn calls(prefix: &str, count: u64) -> Vec<Message> {
    (0..count).map(|n| call(&format!("{prefix}-{n}"), &format!("{prefix}-{}", n % 40))).collect()
}

/// The attempts at which the messages of these keys counted.
async fn counted(store: &dyn Store, service: &str, prefix: &str) -> Vec<u32> {
    let mut counted = Vec::new();
    for n in 0..40 {
        let key = format!("{prefix}-{n}");
        counted.extend(state::<Vec<u32>>(store, service, &key).await.unwrap_or_default());
    }
    counted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_something_waits_for_it_and_nobody_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::default();
    let store = open(&dir.path().join("s.db")).await;
    let (away, here) = (Provider::default(), Provider::default());
    away.away.store(true, Ordering::SeqCst);
    let handlers = Handlers::new().with(Needy(away.clone())).with(Careless(here.clone()));
    let engine = start(&settings, store.clone(), handlers).await;
    append(&*store, settings.ownership.shards, "needy", &calls("n", 200)).await;
    append(&*store, settings.ownership.shards, "careless", &calls("c", 200)).await;
    let others = async || counted(&*store, "careless", "c").await.len() == 200;
    until("the others are done", Duration::from_secs(30), others).await.unwrap();
    perkey::sleep(Duration::from_secs(1)).await;
    assert!(counted(&*store, "needy", "n").await.is_empty());
    let tried = away.calls.load(Ordering::SeqCst);
    assert!((5..60).contains(&tried), "few calls find it away: {tried}");
    away.away.store(false, Ordering::SeqCst);
    let all = async || counted(&*store, "needy", "n").await.len() == 200;
    until("all are done", Duration::from_secs(60), all).await.unwrap();
    assert!(counted(&*store, "needy", "n").await.iter().all(|attempt| *attempt == 1), "no attempt was spent");
    assert_eq!(store.queries().count_dead(DeadFilter::default()).await.unwrap(), 0);
    // One or two were under way while it came back.
    let made = away.calls.load(Ordering::SeqCst) - tried;
    assert!((195..=215).contains(&made), "each about once, and no herd of others: {made}");
    engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dependency_that_is_not_declared_spends_attempts_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.retry.attempts = 1;
    let store = open(&dir.path().join("s.db")).await;
    let away = Provider::default();
    away.away.store(true, Ordering::SeqCst);
    let engine = start(&settings, store.clone(), Handlers::new().with(Careless(away))).await;
    append(&*store, settings.ownership.shards, "careless", &[call("1", "a")]).await;
    let dead = async || store.queries().count_dead(DeadFilter::default()).await.unwrap() == 1;
    until("it is dead", Duration::from_secs(30), dead).await.unwrap();
    let letter = store.queries().peek(DeadFilter::default(), 1).await.unwrap().remove(0).1;
    assert!(letter.error.contains("careless does not name it in NEEDS"), "{}", letter.error);
    engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_runs_no_more_turns_at_once_than_its_limit() {
    let dir = tempfile::tempdir().unwrap();
    let limit = ServiceLimit { service: "careless".to_owned(), concurrency: 3, rate: 0.0 };
    let settings = Settings { limit: vec![limit], ..Settings::default() };
    let store = open(&dir.path().join("s.db")).await;
    let provider = Provider::default();
    let engine = start(&settings, store.clone(), Handlers::new().with(Careless(provider.clone()))).await;
    append(&*store, settings.ownership.shards, "careless", &calls("c", 120)).await;
    let all = async || counted(&*store, "careless", "c").await.len() == 120;
    until("all are done", Duration::from_secs(30), all).await.unwrap();
    assert_eq!(provider.most.load(Ordering::SeqCst), 3);
    engine.drain().await.unwrap();
}

/// Takes its time where the key says so.
struct Slow(Arc<AtomicU64>);

impl Handler for Slow {
    const SERVICE: &'static str = "slow";
    type Message = Call;
    type State = u64;

    fn key(&self, call: &Call) -> Key {
        call.key.as_str().into()
    }

    async fn handle(&self, turns: &mut u64, call: Call, _: &mut Turn) -> Result<(), Fault> {
        if call.key == "slow" {
            perkey::sleep(Duration::from_millis(self.0.load(Ordering::SeqCst))).await;
        }
        *turns += 1;
        Ok(())
    }
}

async fn turns(store: &dyn Store, key: &str) -> u64 {
    state(store, "slow", key).await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_takes_long_holds_no_position_and_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.pending.spill_after = Duration::from_millis(100);
    let store = open(&dir.path().join("s.db")).await;
    let time = Arc::new(AtomicU64::new(60_000));
    let handlers = || Handlers::new().with(Slow(time.clone()));
    let engine = start(&settings, store.clone(), handlers()).await;
    let messages: Vec<_> =
        ["slow", "slow", "quick", "quick"].iter().zip(0..).map(|(key, n)| call(&format!("m-{n}"), key)).collect();
    append(&*store, settings.ownership.shards, "slow", &messages).await;
    let rows = async || store.queries().shards().await.unwrap();
    let passed = async || {
        let rows = rows().await;
        rows.iter().all(|row| row.unread == 0) && rows.iter().map(|row| row.pending).sum::<u64>() == 2
    };
    until("the slow key's messages get their rows", Duration::from_secs(20), passed).await.unwrap();
    assert_eq!((turns(&*store, "slow").await, turns(&*store, "quick").await), (0, 2));
    // It is not waited for, and runs again at the next owner: its row says so.
    let watch = Stopwatch::start();
    engine.drain().await.unwrap();
    assert!(watch.elapsed() < settings.drain.exit, "its turn was waited for");
    time.store(300, Ordering::SeqCst);
    let engine = start(&settings, store.clone(), handlers()).await;
    let done = async || turns(&*store, "slow").await == 2 && rows().await.iter().all(|row| row.pending == 0);
    until("the slow key is done", Duration::from_secs(20), done).await.unwrap();
    engine.drain().await.unwrap();
    assert_eq!((turns(&*store, "slow").await, turns(&*store, "quick").await), (2, 2));
}
