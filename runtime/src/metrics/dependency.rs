//! What is measured of the things outside that handlers need.
//! In: facts from the gates. Out: gauges and counters by the names that handlers give them.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::{Metrics, one};

impl Metrics {
    /// The handles of something that handlers need, by the name that they give it.
    pub fn dependency(&self, name: &'static str) -> DependencyMetrics {
        let labels = one("dependency", name);
        DependencyMetrics {
            open: self.families.dependency_open.get_or_create_owned(&labels),
            unavailable: self.families.unavailable.get_or_create_owned(&labels),
        }
    }
}

/// What is recorded for one dependency.
#[derive(Clone, Debug)]
pub struct DependencyMetrics {
    open: Gauge,
    unavailable: Counter,
}

impl DependencyMetrics {
    /// Whether its circuit breaker is open.
    pub fn set_open(&self, open: bool) {
        self.open.set(open.into());
    }

    /// A turn found it unavailable.
    pub fn add_unavailable(&self) {
        self.unavailable.inc();
    }
}
