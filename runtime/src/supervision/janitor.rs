//! Keeps the gauges that only the store can tell: dead letters, waiting and held keys, unread messages.
//! In: the time. Out: gauges per shard.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::{info, warn};

use super::Env;
use crate::metrics::Alarm;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(2);

/// The janitor.
pub(crate) struct Janitor;

impl Actor for Janitor {
    type Msg = ();
    type State = Arc<Env>;
    type Arguments = Arc<Env>;

    async fn pre_start(&self, myself: ActorRef<()>, env: Arc<Env>) -> Result<Arc<Env>, ActorProcessingErr> {
        myself.send_interval(EVERY, || ());
        Ok(env)
    }

    async fn handle(&self, _: ActorRef<()>, (): (), env: &mut Arc<Env>) -> Result<(), ActorProcessingErr> {
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
