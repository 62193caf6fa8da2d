//! Metrics of dead letters, and of looks at the store.
//! In: facts from shards and the janitor. Out: counters and gauges.

use super::{Metrics, ShardMetrics, set};

impl Metrics {
    /// Counts dead letters that were removed after `dlq.keep`.
    pub fn add_expired(&self, count: u64) {
        self.families.expired.inc_by(count);
    }

    /// Counts messages that are dead letters because their id was taken before with other content.
    pub fn add_id_conflicts(&self, count: u64) {
        self.families.id_conflicts.inc_by(count);
    }

    /// Counts a failed look at the store for gauges.
    pub fn add_look_failure(&self) {
        self.families.look_failures.inc();
    }
}

impl ShardMetrics {
    /// Sets the number of dead letters in the store.
    pub fn set_dead_letter_depth(&self, count: u64) {
        set(&self.dead_letter_depth, count);
    }

    /// Sets the number of keys that wait for an operator.
    pub fn set_held_keys(&self, count: u64) {
        set(&self.held_keys, count);
    }
}
