//! Keeps the gauges that only the store can tell: dead letters, waiting and held keys, unread messages, old transactions;
//! and removes records of calls whose time is over.
//! In: the time. Out: gauges per shard and of the store.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::{info, warn};

use super::Env;
use crate::clock::Stopwatch;
use crate::metrics::{Alarm, WorkerAlarm};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(2);
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
}

impl Actor for Janitor {
    type Msg = ();
    type State = JanitorState;
    type Arguments = Arc<Env>;

    async fn pre_start(&self, myself: ActorRef<()>, env: Arc<Env>) -> Result<JanitorState, ActorProcessingErr> {
        myself.send_interval(EVERY, || ());
        Ok(JanitorState { env, looked: None, swept: None })
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
        // While the store cannot be read the gauges keep their last values; its alarm says why.
        let owner = env.fleet.is_some().then(|| env.owner());
        for row in env.store.queries().shards().await.unwrap_or_default() {
            // In a fleet each worker shows what it owns.
            if owner.is_some() && row.owner != owner {
                continue;
            }
            let shard = env.metrics.shard(row.shard);
            shard.set_dead_letter_depth(row.dead_letters);
            shard.set_unread(row.unread);
            shard.set_waiting_keys(row.waiting_keys);
            shard.set_held_keys(row.held_keys);
            let held = row.held_keys > 0;
            if shard.set_alarm(Alarm::HeldKeys, held) {
                let (shard, keys) = (row.shard, row.held_keys);
                match held {
                    true => warn!(shard, keys, "keys wait for an operator: look at the dead letters that hold them"),
                    false => info!(shard, "no key waits for an operator any more"),
                }
            }
        }
        Ok(())
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
