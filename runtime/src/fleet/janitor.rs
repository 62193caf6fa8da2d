//! Keeps the gauges that only the store can tell: unread messages, waiting keys, old transactions; and removes records of
//! calls whose time is over, and commands of operators that are old.
//! In: the time. Out: gauges per shard and of the store.
//!
//! Counting costs what there is to count: it rests for two hundred times as long as it took, so that it never uses more than a
//! half percent of a core.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::{info, warn};

use crate::clock::{Stopwatch, millis};
use crate::message::ShardNo;
use crate::metrics::WorkerAlarm;
use crate::shard::env::Env;
use crate::store::StoreError;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(2);
/// How much longer it rests than it counted.
const REST_FACTOR: u32 = 200;
/// How often old commands are forgotten; as many at once.
const FORGET_EVERY: Duration = Duration::from_secs(600);
const FORGET_MAX: usize = 1_000;
/// How often it looks for old transactions, at least.
const TRANSACTIONS_EVERY: Duration = Duration::from_secs(15);

/// How often records of calls that have expired are removed; as many at once.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
const SWEEP_MAX: usize = 10_000;
/// How often in a row, while there are more.
const SWEEPS_MAX: u32 = 20;

/// The janitor.
pub(crate) struct Janitor;

/// What it holds.
pub(crate) struct JanitorState {
    env: Arc<Env>,
    /// Since transactions were looked at.
    looked: Option<Stopwatch>,
    /// Since expired records were removed.
    swept: Option<Stopwatch>,
    /// Since old commands were forgotten.
    forgot: Option<Stopwatch>,
    /// Since it counted, and how long it rests.
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

/// Counts what only the store can tell of the shards that run here; gives how long that took. While it cannot be told the
/// gauges keep their last values.
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

/// Commands are kept for `history.keep_commands`.
async fn forget_commands(env: &Env) {
    let before = env.clock.now().saturating_sub(millis(env.settings.history.keep_commands));
    match env.store.queries().forget_commands(before, FORGET_MAX).await {
        Ok(0) => {}
        Ok(commands) => info!(commands, "operators' commands were forgotten after history.keep_commands"),
        Err(error) => warn!(%error, "operators' commands cannot be forgotten now"),
    }
}

/// What is left is removed the next time.
async fn sweep(env: &Env) {
    for _ in 0..SWEEPS_MAX {
        match env.store.calls().sweep(env.clock.now(), SWEEP_MAX).await {
            Ok(swept) if swept < SWEEP_MAX as u64 => return,
            Ok(_) => {}
            Err(error) => return warn!(%error, "expired idempotency keys cannot be removed now"),
        }
    }
}

/// While it cannot be told, the last answer stays.
async fn look_at_transactions(env: &Env) {
    let age = match env.store.oldest_transaction().await {
        Ok(Some(age)) => age,
        Ok(None) => return,
        Err(error) => return warn!(%error, "how old the store's transactions are cannot be told"),
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
