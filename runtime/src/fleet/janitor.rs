//! Updates the gauges that only the store can tell: unread messages, waiting keys, old transactions; and removes
//! expired records of calls and old commands of operators.
//! In: the time. Out: gauges per shard and of the store. The cost of counting grows with the store: the janitor rests
//! for two hundred times as long as it counted, so that it never uses more than half a percent of a core.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::{info, warn};

use crate::clock::{Stopwatch, millis};
use crate::message::ShardNo;
use crate::metrics::WorkerAlarm;
use crate::shard::env::Env;
use crate::store::StoreError;

/// The interval between looks.
const EVERY: Duration = Duration::from_secs(2);
/// The ratio of rest to counting.
const REST_FACTOR: u32 = 200;
/// The interval between removals of old commands, and the most that are removed at once.
const FORGET_EVERY: Duration = Duration::from_secs(600);
const FORGET_MAX: usize = 1_000;
/// The longest interval between looks at old transactions.
const TRANSACTIONS_EVERY: Duration = Duration::from_secs(15);

/// The interval between removals of expired records of calls, and the most that are removed at once.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
const SWEEP_MAX: usize = 10_000;
/// The most removals in a row, while there are more records.
const SWEEPS_MAX: u32 = 20;

/// The janitor.
pub(crate) struct Janitor;

/// The janitor's state.
pub(crate) struct JanitorState {
    env: Arc<Env>,
    /// The time since transactions were looked at.
    looked: Option<Stopwatch>,
    /// The time since expired records were removed.
    swept: Option<Stopwatch>,
    /// The time since old commands were removed.
    forgot: Option<Stopwatch>,
    /// The time since the last count, and the time for which it rests.
    counted: Option<(Stopwatch, Duration)>,
}

impl Actor for Janitor {
    type Msg = ();
    type State = JanitorState;
    type Arguments = Arc<Env>;

    async fn pre_start(&self, myself: ActorRef<()>, env: Arc<Env>) -> Result<JanitorState, ActorProcessingErr> {
        myself.send_interval(EVERY, || ());
        Ok(JanitorState { env, looked: None, swept: None, forgot: None, counted: None })
    }

    async fn handle(&self, _: ActorRef<()>, (): (), state: &mut JanitorState) -> Result<(), ActorProcessingErr> {
        let env = &state.env;
        let every = TRANSACTIONS_EVERY.min(env.settings.store.transaction_age_max);
        if state.looked.as_ref().is_none_or(|looked| looked.elapsed() >= every) {
            look_at_transactions(env).await;
            state.looked = Some(Stopwatch::start());
        }
        if state.swept.as_ref().is_none_or(|swept| swept.elapsed() >= SWEEP_EVERY) {
            sweep(env).await;
            state.swept = Some(Stopwatch::start());
        }
        if state.forgot.as_ref().is_none_or(|forgot| forgot.elapsed() >= FORGET_EVERY) {
            forget_commands(env).await;
            state.forgot = Some(Stopwatch::start());
        }
        if state.counted.as_ref().is_none_or(|(counted, rest)| counted.elapsed() >= *rest) {
            let took = count(env).await;
            state.counted = Some((Stopwatch::start(), EVERY.max(took.saturating_mul(REST_FACTOR))));
        }
        Ok(())
    }
}

/// Counts what only the store can tell about the shards that run here; returns the time that this took. If it fails,
/// the gauges keep their last values.
async fn count(env: &Env) -> Duration {
    let watch = Stopwatch::start();
    let here: Vec<ShardNo> = match &env.fleet {
        Some(fleet) => fleet.view().running.clone(),
        None => (0..env.settings.ownership.shards).collect(),
    };
    let queries = env.store.queries();
    if let Some(found) = told(env, queries.unread(here.clone()).await) {
        found.into_iter().for_each(|(shard, count)| env.metrics.shard(shard).set_unread(count));
    }
    if let Some(found) = told(env, queries.count_waiting(here).await) {
        found.into_iter().for_each(|(shard, count)| env.metrics.shard(shard).set_waiting_keys(count));
    }
    watch.elapsed()
}

fn told<T>(env: &Env, answer: Result<T, StoreError>) -> Option<T> {
    answer
        .inspect_err(|error| {
            env.metrics.add_look_failure();
            warn!(%error, "unread messages and waiting keys cannot be counted now: their gauges keep their last values");
        })
        .ok()
}

/// Removes commands that are older than `history.keep_commands`.
async fn forget_commands(env: &Env) {
    let before = env.clock.now().saturating_sub(millis(env.settings.history.keep_commands));
    match env.store.queries().forget_commands(before, FORGET_MAX).await {
        Ok(0) => {}
        Ok(commands) => info!(commands, "operators' commands were forgotten after history.keep_commands"),
        Err(error) => warn!(%error, "operators' commands cannot be forgotten now"),
    }
}

/// Removes expired records of calls; those that are left are removed the next time.
async fn sweep(env: &Env) {
    for _ in 0..SWEEPS_MAX {
        match env.store.calls().sweep(env.clock.now(), SWEEP_MAX).await {
            Ok(swept) if swept < SWEEP_MAX as u64 => return,
            Ok(_) => {}
            Err(error) => return warn!(%error, "expired idempotency keys cannot be removed now"),
        }
    }
}

/// Updates the age of the oldest transaction; if that fails, the last value stays.
async fn look_at_transactions(env: &Env) {
    let age = match env.store.oldest_transaction().await {
        Ok(Some(age)) => age,
        Ok(None) => return,
        Err(error) => return warn!(%error, "the age of the store's transactions cannot be read"),
    };
    env.metrics.set_oldest_transaction(age);
    let most = env.settings.store.transaction_age_max;
    let long = age > most;
    if env.metrics.set_worker_alarm(WorkerAlarm::LongTransaction, long) {
        match long {
            true => warn!(?age, ?most, "a transaction is open in the database for long: it keeps dead rows there"),
            false => info!("no transaction is open in the database for long any more"),
        }
    }
}
