//! Metrics of the records of calls, and of the cache of answers.
//! In: facts from the store and the cache. Out: gauges, counters.

use prometheus_client::metrics::counter::Counter;

use super::{Metrics, set};
use crate::store::calls::TenantKeys;

impl Metrics {
    /// Sets the numbers of call records that tenants have in the store, of at most `max` each.
    pub(crate) fn set_call_keys<'a>(&self, tenants: impl IntoIterator<Item = &'a TenantKeys>, max: u64) {
        let (mut all, mut most, mut forecast) = (0, 0, 0);
        for tenant in tenants {
            all += tenant.records;
            most = most.max(tenant.records);
            forecast = forecast.max(tenant.forecast);
        }
        let share = |records: u64| records as f64 / max.max(1) as f64;
        set(&self.families.call_keys, all);
        self.families.call_keys_share.set(share(most));
        self.families.call_keys_forecast.set(share(forecast));
    }

    /// The handles of the cache of answers.
    pub fn cache(&self) -> CacheMetrics {
        CacheMetrics { hits: self.families.cache_hits.clone(), errors: self.families.cache_errors.clone() }
    }
}

/// The handles of the cache of answers.
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    hits: Counter,
    errors: Counter,
}

impl CacheMetrics {
    /// Counts a call whose record the cache had.
    pub fn add_hit(&self) {
        self.hits.inc();
    }

    /// Counts an error: the cache did not answer, had something that is not a record, or had no room.
    pub fn add_error(&self) {
        self.errors.inc();
    }
}
