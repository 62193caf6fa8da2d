//! The cost of one key, or of a dependency of one service, for the others: turns that take half a minute on one key in
//! a hundred, or a dependency that is away for a minute.
//! In: the disturbance, its duration, a rate. Out: the waiting times of the others before and during it; whether each
//! message counted once, without an attempt spent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::{Args, ValueEnum};
use perkey::unstable::clock::{Clock, Stopwatch};
use perkey::unstable::message::shard_of;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::query::DeadFilter;
use perkey::unstable::store::sqlite::{Access, SqliteStore};
use perkey::unstable::store::{ServiceKey, Store};
use perkey::{Draft, Engine, Fault, Handler, Handlers, Key, Message, Millis, Settings, Turn, sleep};
use serde::{Deserialize, Serialize};

use crate::engine::append_for;
use crate::process::until;
use crate::{ChaosError, Verdict};

/// Keys of each service. The first is the slow one.
const KEYS: u64 = 100;
const SLOW: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(20);
const REST_MAX: Duration = Duration::from_secs(600);
const DEPENDENCY: &str = "provider";

/// The disturbance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// A key with slow turns.
    Slow,
    /// An unavailable dependency of the other service.
    Away,
}

/// The options of the scenario.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// The disturbance.
    #[arg(long = "of", value_enum)]
    pub what: What,
    /// The seconds of the disturbance, and of the quiet time before it.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Messages a second.
    #[arg(long, default_value_t = 500)]
    pub rate: u64,
}

/// The state that both handlers share.
#[derive(Default)]
struct World {
    disturbed: AtomicBool,
    /// The time that each message of the quick keys waited, in milliseconds.
    waited: Mutex<Vec<Millis>>,
    /// The times at which a call found the dependency available.
    answered: Mutex<Vec<Millis>>,
    /// The number of attempts after the first.
    attempts: Mutex<u64>,
}

#[derive(Serialize, Deserialize)]
struct Call {
    key: String,
}

macro_rules! service {
    ($name:ident, $service:literal, $needs:expr, $handle:ident) => {
        struct $name(Arc<World>);

        impl Handler for $name {
            const SERVICE: &'static str = $service;
            const NEEDS: &'static [&'static str] = $needs;
            type Message = Call;
            type State = u64;

            fn key(&self, call: &Call) -> Key {
                call.key.as_str().into()
            }

            async fn handle(&self, n: &mut u64, call: Call, turn: &mut Turn) -> Result<(), Fault> {
                *lock(&self.0.attempts) += u64::from(turn.attempt() - 1);
                *n += 1;
                self.0.$handle(&call, turn).await
            }
        }
    };
}

service!(Quick, "quick", &[], quick);
service!(Far, "far", &[DEPENDENCY], far);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    async fn quick(&self, call: &Call, turn: &Turn) -> Result<(), Fault> {
        if call.key != key(0) {
            lock(&self.waited).push(turn.now().saturating_sub(turn.message().time()));
        } else if self.disturbed.load(Ordering::Relaxed) {
            sleep(SLOW).await;
        }
        Ok(())
    }

    async fn far(&self, _: &Call, turn: &Turn) -> Result<(), Fault> {
        sleep(Duration::from_millis(2)).await;
        if self.disturbed.load(Ordering::Relaxed) {
            return Err(Fault::unavailable(DEPENDENCY, "it is away"));
        }
        lock(&self.answered).push(turn.now());
        Ok(())
    }
}

/// Runs `plan`.
pub async fn neighbours(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Verdict, ChaosError> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}", folder.path().join("store.db").display());
    let store = Arc::new(SqliteStore::open(&url, Access::Run).await?);
    let world = Arc::new(World::default());
    let engine = start(&store, &world).await?;
    let mut load = Load { plan, store: &*store, clock: Clock::system(), sent: 0 };
    load.run(plan.seconds.min(5)).await?;
    lock(&world.waited).clear();
    load.run(plan.seconds).await?;
    let before = std::mem::take(&mut *lock(&world.waited));
    lock(&world.answered).clear();
    world.disturbed.store(true, Ordering::Relaxed);
    load.run(plan.seconds).await?;
    let meanwhile = std::mem::take(&mut *lock(&world.waited));
    let mut verdict = Verdict::default();
    let facts = [("before", before), ("meanwhile", meanwhile)].map(|(when, waited)| (when, Waited::of(waited)));
    for (when, Waited { count, p50, p99, most }) in &facts {
        verdict
            .facts
            .push(format!("{when}: {count} messages of others waited {p50} ms (p50), {p99} (p99), {most} at most"));
    }
    let unread: u64 = store.queries().shards().await?.iter().map(|row| row.unread).sum();
    verdict.facts.push(format!("{unread} messages unread at the end of it, of {}", load.sent));
    say("the disturbance ends");
    let clock = Clock::system();
    let back = clock.now();
    world.disturbed.store(false, Ordering::Relaxed);
    let engine = match plan.what {
        What::Away => engine,
        // Its slow turn is under way: the drain does not wait for it, and the next start runs it again, quickly.
        What::Slow => {
            let watch = Stopwatch::start();
            engine.drain().await?;
            verdict.facts.push(format!("a drain beside a turn of 30 s took {} ms", watch.elapsed().as_millis()));
            start(&store, &world).await?
        }
    };
    let (sent, shards) = (load.sent, Settings::default().ownership.shards);
    let all = async || counted(&*store, shards).await.is_ok_and(|counted| counted >= sent);
    until("messages were left", REST_MAX, all).await?;
    engine.idle().await;
    if plan.what == What::Away {
        let answered = lock(&world.answered).clone();
        let within = |seconds: Millis| answered.iter().filter(|at| **at < back + seconds * 1_000).count();
        let (waiting, last) = (answered.len(), answered.iter().max().map_or(0, |at| at.saturating_sub(back)));
        verdict.facts.push(format!(
            "{waiting} calls waited; {} ended in the first second after its return, {} in 5 s, {} in 10 s, all after {last} ms",
            within(1),
            within(5),
            within(10)
        ));
    }
    engine.drain().await?;
    let counted = counted(&*store, shards).await?;
    verdict.expect(counted == sent, || format!("{counted} messages counted, {sent} were sent"));
    let dead = store.queries().count_dead(DeadFilter::default()).await?;
    verdict.expect(dead == 0, || format!("{dead} dead letters"));
    let attempts = *lock(&world.attempts);
    verdict.expect(attempts == 0, || format!("{attempts} attempts were spent"));
    store.close().await;
    Ok(verdict)
}

async fn start(store: &Arc<SqliteStore>, world: &Arc<World>) -> Result<Engine, ChaosError> {
    let handlers = Handlers::new().with(Quick(world.clone())).with(Far(world.clone()));
    Ok(Engine::start(&Settings::default(), handlers, store.clone(), Metrics::new()).await?)
}

struct Waited {
    count: usize,
    p50: Millis,
    p99: Millis,
    most: Millis,
}

impl Waited {
    fn of(mut waited: Vec<Millis>) -> Self {
        waited.sort_unstable();
        let at = |share: usize| waited.get(waited.len() * share / 100).or(waited.last()).copied().unwrap_or(0);
        Self { count: waited.len(), p50: at(50), p99: at(99), most: at(100) }
    }
}

/// Messages at a steady rate, for the keys that get some.
struct Load<'a> {
    plan: &'a Plan,
    store: &'a dyn Store,
    clock: Clock,
    sent: u64,
}

impl Load<'_> {
    async fn run(&mut self, seconds: u64) -> Result<(), ChaosError> {
        let watch = Stopwatch::start();
        let first = self.sent;
        while watch.elapsed() < Duration::from_secs(seconds) {
            let due = first + self.plan.rate * watch.elapsed().as_millis() as u64 / 1_000;
            let (mut quick, mut far) = (Vec::new(), Vec::new());
            while self.sent < due {
                let to =
                    if self.plan.what == What::Away && self.sent.is_multiple_of(2) { &mut far } else { &mut quick };
                to.push(self.message()?);
                self.sent += 1;
            }
            let shards = Settings::default().ownership.shards;
            append_for("quick", self.store, shards, &quick).await?;
            append_for("far", self.store, shards, &far).await?;
            sleep(TICK).await;
        }
        Ok(())
    }

    fn message(&self) -> Result<Message, ChaosError> {
        let (id, key) = (format!("m-{}", self.sent), key(self.sent / 2 % KEYS));
        let payload = format!(r#"{{"key":"{key}"}}"#);
        let (payload, time) = (payload.as_bytes(), self.clock.now());
        Ok(Draft { id: &id, key: &key, kind: "call", payload, time, ..Draft::default() }.build()?)
    }
}

fn key(no: u64) -> String {
    format!("k-{no}")
}

async fn counted(store: &dyn Store, shards: u32) -> Result<u64, ChaosError> {
    let mut counted = 0;
    for no in 0..KEYS {
        let key = key(no);
        let of = ["quick", "far"].map(|service| ServiceKey { service: service.into(), key: key.as_str().into() });
        for row in store.load(shard_of(&key, shards), of.into()).await? {
            counted += row.state.and_then(|(_, json)| serde_json::from_slice::<u64>(&json).ok()).unwrap_or(0);
        }
    }
    Ok(counted)
}
