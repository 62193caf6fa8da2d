//! What is measured of the cache of answers.
//! In: facts from the cache. Out: counters.

use prometheus_client::metrics::counter::Counter;

use super::Metrics;

impl Metrics {
    /// The handles of the cache of answers.
    pub fn cache(&self) -> CacheMetrics {
        CacheMetrics { hits: self.families.cache_hits.clone(), errors: self.families.cache_errors.clone() }
    }
}

/// What is recorded for the cache of answers.
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    hits: Counter,
    errors: Counter,
}

impl CacheMetrics {
    /// It had the record of a call.
    pub fn add_hit(&self) {
        self.hits.inc();
    }

    /// It did not answer, had something that is no record, or had no room.
    pub fn add_error(&self) {
        self.errors.inc();
    }
}
