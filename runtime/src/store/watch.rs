//! Wakes the readers of the embedded log within a process, so that they need not poll for what it writes itself.
//! In: targets of committed log rows. Out: one permit per target, which the next waiter takes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::message::ShardNo;

/// One [`Notify`] per target. Bounded by the number of shards.
#[derive(Debug, Default)]
pub(crate) struct LogWatch {
    targets: Mutex<HashMap<ShardNo, Arc<Notify>>>,
}

impl LogWatch {
    /// Leaves a permit for each target's reader.
    pub(crate) fn appended(&self, targets: impl IntoIterator<Item = ShardNo>) {
        for target in targets {
            self.of(target).notify_one();
        }
    }

    /// Leaves a permit for every target that was ever waited for: the appended rows are not known.
    pub(crate) fn all_may_have(&self) {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.values().for_each(|notify| notify.notify_one());
    }

    /// Waits for a permit, or takes one that was left before.
    pub(crate) async fn changed(&self, target: ShardNo) {
        let notify = self.of(target);
        notify.notified().await;
    }

    fn of(&self, target: ShardNo) -> Arc<Notify> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(targets.entry(target).or_default())
    }
}
