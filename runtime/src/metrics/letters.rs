//! What is measured of dead letters that are old, and of looks at the store.
//! In: facts from shards and the janitor. Out: counters.

use super::Metrics;

impl Metrics {
    /// `count` dead letters were removed after `dlq.keep`.
    pub fn add_expired(&self, count: u64) {
        self.families.expired.inc_by(count);
    }

    /// The store could not be looked at for gauges.
    pub fn add_look_failure(&self) {
        self.families.look_failures.inc();
    }
}
