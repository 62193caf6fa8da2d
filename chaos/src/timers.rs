//! Many timers, due over a while, with restarts between: each fires once, none before its time, none that was
//! cancelled.
//! In: the number of timers, a time span, the number of restarts. Out: their delays, and whether each fired once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, value_parser};
use perkey::unstable::clock::Clock;
use perkey::unstable::message::shard_of;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::sqlite::{Access, SqliteStore};
use perkey::unstable::store::{ServiceKey, Store};
use perkey::{Draft, Engine, Fault, Handler, Handlers, Key, Message, Millis, Settings, Turn, sleep};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::engine::append;
use crate::postings::SERVICE;
use crate::process::until;
use crate::{ChaosError, Verdict};

/// The number of messages appended at once.
const BATCH: usize = 500;
/// The time for the timers to be set before the first is due, for each thousand of them.
const SETTING: Duration = Duration::from_millis(120);
/// One timer in this many is cancelled.
const CANCELLED_EVERY: u64 = 10;
const REST_MAX: Duration = Duration::from_secs(300);

/// The options of the scenario.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// The number of timers, each with a key of its own.
    #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u64).range(1..))]
    pub timers: u64,
    /// The number of seconds over which they are due.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// The number of times the engine is drained and started again in between.
    #[arg(long, default_value_t = 3)]
    pub restarts: u32,
}

struct Alarms;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Alarm {
    Set { key: String, at: Millis },
    Cancel { key: String },
    Ring { key: String, at: Millis },
}

/// The delay of each timer, in milliseconds.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Rung(Vec<i64>);

impl Handler for Alarms {
    const SERVICE: &'static str = SERVICE;
    type Message = Alarm;
    type State = Rung;

    fn key(&self, alarm: &Alarm) -> Key {
        let (Alarm::Set { key, .. } | Alarm::Cancel { key } | Alarm::Ring { key, .. }) = alarm;
        key.as_str().into()
    }

    async fn handle(&self, rung: &mut Rung, alarm: Alarm, turn: &mut Turn) -> Result<(), Fault> {
        match alarm {
            Alarm::Set { key, at } => turn.schedule("alarm", at, &Alarm::Ring { key, at }),
            Alarm::Cancel { .. } => turn.cancel("alarm"),
            Alarm::Ring { at, .. } => {
                rung.0.push(turn.now().cast_signed() - at.cast_signed());
                Ok(())
            }
        }
    }
}

/// Runs `plan`.
pub async fn timers(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Verdict, ChaosError> {
    let folder = tempfile::tempdir()?;
    let url = format!("sqlite://{}", folder.path().join("store.db").display());
    let store = Arc::new(SqliteStore::open(&url, Access::Run).await?);
    let settings = Settings::default();
    let shards = settings.ownership.shards;
    let mut engine = start(&settings, &store).await?;
    let clock = Clock::system();
    let setting = SETTING * u32::try_from(plan.timers / 1_000 + 60).unwrap_or(u32::MAX);
    let first = clock.now() + Millis::try_from(setting.as_millis()).unwrap_or(0);
    let messages = (0..plan.timers).flat_map(|no| {
        let (key, at) = (format!("k-{no}"), first + no * plan.seconds * 1_000 / plan.timers);
        let cancel = no.is_multiple_of(CANCELLED_EVERY).then(|| Alarm::Cancel { key: key.clone() });
        [Some(Alarm::Set { key, at }), cancel].into_iter().flatten()
    });
    let mut batch = Vec::with_capacity(BATCH);
    for (no, alarm) in (0_u64..).zip(messages) {
        batch.push(message(no, &alarm)?);
        if batch.len() == BATCH {
            append(&*store, shards, &std::mem::take(&mut batch)).await?;
        }
    }
    append(&*store, shards, &batch).await?;
    engine.idle().await;
    let left = first.saturating_sub(clock.now());
    say(&format!("{} timers are set, {left} ms before the first is due", plan.timers));
    let mut verdict = Verdict::default();
    verdict.expect(left > 0, || "the timers were due before all were set: give fewer".to_owned());
    sleep(Duration::from_millis(left)).await;
    let part = Duration::from_secs(plan.seconds) / (plan.restarts + 1);
    for _ in 0..plan.restarts {
        sleep(part).await;
        engine.drain().await?;
        engine = start(&settings, &store).await?;
    }
    let none = async || store.queries().scheduled(None, None, 1).await.is_ok_and(|timers| timers.is_empty());
    until("timers are left", REST_MAX, none).await?;
    engine.idle().await;
    engine.drain().await?;
    judge(plan, &*store, shards, &mut verdict).await?;
    store.close().await;
    Ok(verdict)
}

async fn start(settings: &Settings, store: &Arc<SqliteStore>) -> Result<Engine, ChaosError> {
    Ok(Engine::start(settings, Handlers::new().with(Alarms), store.clone(), Metrics::new()).await?)
}

fn message(no: u64, alarm: &Alarm) -> Result<Message, ChaosError> {
    let (id, key, payload) = (format!("alarm-{no}"), Alarms.key(alarm), json!(alarm).to_string());
    Ok(Draft { id: &id, key: key.as_str(), kind: "alarm", payload: payload.as_bytes(), ..Draft::default() }.build()?)
}

async fn judge(plan: &Plan, store: &dyn Store, shards: u32, verdict: &mut Verdict) -> Result<(), ChaosError> {
    let mut by_shard: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for no in 0..plan.timers {
        by_shard.entry(shard_of(&format!("k-{no}"), shards)).or_default().push(no);
    }
    let (mut late, mut wrong) = (Vec::new(), 0_u64);
    for (shard, numbers) in by_shard {
        for chunk in numbers.chunks(1_000) {
            let key = |no: &u64| ServiceKey { service: SERVICE.into(), key: format!("k-{no}").into() };
            let rows = store.load(shard, chunk.iter().map(key).collect()).await?;
            for (no, row) in chunk.iter().zip(rows) {
                let rung =
                    row.state.and_then(|(_, json)| serde_json::from_slice::<Rung>(&json).ok()).unwrap_or_default();
                let expected = usize::from(!no.is_multiple_of(CANCELLED_EVERY));
                wrong += u64::from(rung.0.len() != expected);
                late.extend(rung.0);
            }
        }
    }
    late.sort_unstable();
    let at = |share: f64| late.get(((late.len() as f64 * share) as usize).min(late.len().saturating_sub(1))).copied();
    let [p50, p99, max, min] = [at(0.5), at(0.99), at(1.0), at(0.0)].map(Option::unwrap_or_default);
    let (timers, seconds, restarts) = (plan.timers, plan.seconds, plan.restarts);
    verdict.facts.push(format!(
        "{timers} timers over {seconds} s, {restarts} restarts: late by {p50} ms (p50), {p99} ms (p99), {max} ms at most"
    ));
    verdict.expect(min >= 0, || format!("one rang {} ms before its time", -min));
    verdict
        .expect(wrong == 0, || format!("{wrong} timers rang too often, not at all, or although they were cancelled"));
    Ok(())
}
