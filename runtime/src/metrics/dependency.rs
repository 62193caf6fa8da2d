//! Metrics of handlers' dependencies outside the process.
//! In: facts from the gates. Out: gauges and counters by the names that handlers give them.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use super::{Metrics, one};

impl Metrics {
    /// The handles of a dependency of handlers, by the name that they give it.
    pub fn dependency(&self, name: &'static str) -> DependencyMetrics {
        let labels = one("dependency", name);
        DependencyMetrics {
            open: self.families.dependency_open.get_or_create_owned(&labels),
            unavailable: self.families.unavailable.get_or_create_owned(&labels),
        }
    }
}

/// The handles of one dependency.
#[derive(Clone, Debug)]
pub struct DependencyMetrics {
    open: Gauge,
    unavailable: Counter,
}

impl DependencyMetrics {
    /// Sets whether its circuit breaker is open.
    pub fn set_open(&self, open: bool) {
        self.open.set(open.into());
    }

    /// Counts a turn that found it unavailable.
    pub fn add_unavailable(&self) {
        self.unavailable.inc();
    }
}
