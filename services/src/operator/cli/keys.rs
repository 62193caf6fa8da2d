//! `state get`, `schedule:list`, `keys:top`: the store's view of keys.
//! In: a service and a key, or filters. Out: states, timers, the keys that most messages wait for.

use clap::Args;
use perkey::Settings;
use perkey::unstable::clock::{Clock, rfc3339};
use perkey::unstable::message::{ShardNo, shard_of};
use perkey::unstable::store::query::WaitingKey;
use perkey::unstable::store::{ServiceKey, Timer};
use serde::Serialize;
use serde_json::Value;

use super::output::{Out, table};
use super::{Done, Ended, Failure, handlers, open_beside};

/// The most timers of a key that are shown with its state.
const TIMERS_MAX: usize = 100;

/// A key.
#[derive(Args, Debug)]
pub struct KeyArgs {
    /// Its service
    #[arg(long)]
    pub service: String,
    /// The key
    #[arg(long)]
    pub key: String,
}

/// The timers to show.
#[derive(Args, Debug)]
pub struct ScheduleArgs {
    /// Of this service
    #[arg(long)]
    pub service: Option<String>,
    /// Of this key
    #[arg(long)]
    pub key: Option<String>,
    /// The most to show
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
}

/// The keys to show.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// Of this service
    #[arg(long)]
    pub service: Option<String>,
    /// The most to show
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
}

/// A key as it is shown.
#[derive(Serialize)]
struct Shown {
    service: String,
    key: String,
    shard: ShardNo,
    /// The `STATE_VERSION` of the handler that stored it.
    version: Option<u32>,
    state: Option<Value>,
    /// The number of messages that wait.
    pending: u64,
    /// True if a dead letter holds the key.
    held: bool,
    timers: Vec<ShownTimer>,
}

/// A timer as it is shown.
#[derive(Serialize)]
struct ShownTimer {
    due_at: String,
    service: String,
    key: String,
    name: String,
    /// Expression and time zone of the schedule that sets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<String>,
    message: String,
}

/// Shows the state of a key.
pub async fn get(settings: &Settings, asked: &KeyArgs, out: Out) -> Ended {
    let services = handlers(settings)?.services();
    if !services.iter().any(|service| **service == asked.service) {
        let text = format!("there is no service {:?}; there are {}", asked.service, services.join(", "));
        return Err(Failure::Usage(text));
    }
    let store = open_beside(settings).await?;
    let shards = u32::try_from(store.queries().shards().await?.len()).unwrap_or(u32::MAX);
    let shard = shard_of(&asked.key, shards);
    let of = ServiceKey { service: asked.service.as_str().into(), key: asked.key.as_str().into() };
    let row = store.load(shard, vec![of]).await?.into_iter().next().unwrap_or_default();
    let (service, key) = (asked.service.clone(), asked.key.clone());
    let timers = store.queries().scheduled(Some(service.clone()), Some(key.clone()), TIMERS_MAX).await?;
    let state = row.state.as_ref().map(|(_, json)| serde_json::from_slice(json).unwrap_or_default());
    let known = row.state.is_some() || row.pending.is_some() || row.held || !timers.is_empty();
    let shown = Shown {
        service,
        key,
        shard,
        version: row.state.as_ref().map(|(version, _)| *version),
        state,
        pending: row.pending.map_or(0, |span| span.count),
        held: row.held,
        timers: timers.into_iter().map(timer).collect(),
    };
    out.show(&shown, text)?;
    Ok(if known { Done::All } else { Done::NothingFound })
}

fn text(shown: &Shown) -> String {
    let Shown { service, key, shard, pending, .. } = shown;
    let held = if shown.held { ", held by a dead letter" } else { "" };
    let mut lines = vec![format!("{service} {key:?}: shard {shard}, {pending} messages wait{held}")];
    lines.push(match (&shown.state, shown.version) {
        (Some(state), Some(version)) => format!("state (version {version}): {state:#}"),
        _ => "no state".to_owned(),
    });
    lines.extend(
        shown.timers.iter().map(|timer| format!("timer {:?} at {}: {}", timer.name, timer.due_at, timer.message)),
    );
    lines.join("\n")
}

/// Shows timers, first due first.
pub async fn schedule(settings: &Settings, asked: &ScheduleArgs, out: Out) -> Ended {
    let store = open_beside(settings).await?;
    let timers = store.queries().scheduled(asked.service.clone(), asked.key.clone(), asked.limit).await?;
    let timers: Vec<_> = timers.into_iter().map(timer).collect();
    out.show(&timers, |timers| {
        if timers.is_empty() {
            return "No timer is set.".to_owned();
        }
        let row = |timer: &ShownTimer| {
            let schedule = timer.schedule.clone().unwrap_or_default();
            [&timer.due_at, &timer.service, &timer.key, &timer.name, &schedule, &timer.message]
                .map(Clone::clone)
                .to_vec()
        };
        table(&["due at", "service", "key", "name", "schedule", "message"], timers.iter().map(row))
    })?;
    Ok(if timers.is_empty() { Done::NothingFound } else { Done::All })
}

fn timer(timer: Timer) -> ShownTimer {
    ShownTimer {
        due_at: rfc3339(timer.due_at),
        service: timer.of.service.to_string(),
        key: timer.of.key.to_string(),
        name: timer.name.to_string(),
        schedule: timer.schedule().map(str::to_owned),
        message: String::from_utf8_lossy(timer.message.payload()).into_owned(),
    }
}

/// A key with messages that wait, as it is shown.
#[derive(Serialize)]
struct Top {
    service: String,
    key: String,
    pending: u64,
    oldest_at: String,
    oldest_age_seconds: u64,
}

/// Shows the keys that most messages wait for.
pub async fn top(settings: &Settings, asked: &TopArgs, out: Out) -> Ended {
    let store = open_beside(settings).await?;
    let now = Clock::system().now();
    let found = store.queries().waiting_keys(asked.service.clone(), asked.limit).await?;
    let shown = |WaitingKey { of, pending, oldest_at }: WaitingKey| Top {
        service: of.service.to_string(),
        key: of.key.to_string(),
        pending,
        oldest_at: rfc3339(oldest_at),
        oldest_age_seconds: now.saturating_sub(oldest_at) / 1_000,
    };
    let top: Vec<_> = found.into_iter().map(shown).collect();
    out.show(&top, |top| {
        if top.is_empty() {
            return "No message waits.".to_owned();
        }
        let row = |top: &Top| {
            vec![top.service.clone(), top.key.clone(), top.pending.to_string(), format!("{} s", top.oldest_age_seconds)]
        };
        table(&["service", "key", "waiting", "oldest"], top.iter().map(row))
    })?;
    Ok(if top.is_empty() { Done::NothingFound } else { Done::All })
}
