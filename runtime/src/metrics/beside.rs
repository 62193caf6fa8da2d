//! Metrics beside the way of a message: front doors, records of calls and the cache of answers, intakes, and what handlers
//! need that lies outside.
//! In: facts, by closed sets of names. Out: gauges and counters.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::families::Record;
use super::{CallWord, HttpOutcome, IntakeOutcome, Metrics, members_of, one};
use crate::clock::Millis;
use crate::store::calls::TenantKeys;

impl Metrics {
    /// The time since which the file of tokens is not as it should be; `None` if it is.
    pub fn set_tokens_wrong_since(&self, since: Option<Millis>) {
        self.families.tokens_wrong_since.record(since.map_or(0, |since| since / 1_000));
    }

    /// The handles of a route of the front doors: a template such as `/api/orders/{id}`, never a path as it came.
    pub fn route(&self, route: &str) -> RouteMetrics {
        let route = one("route", route);
        RouteMetrics {
            outcomes: members_of(&self.families.http, &route, "outcome", HttpOutcome::ALL, HttpOutcome::as_str),
            seconds: self.families.http_seconds.get_or_create_owned(&route),
        }
    }

    /// The handles of an operation of the front doors, by its name.
    pub fn operation(&self, name: &str) -> OperationMetrics {
        let operation = one("operation", name);
        OperationMetrics {
            keys: members_of(&self.families.calls, &operation, "outcome", CallWord::ALL, CallWord::as_str),
        }
    }

    /// Records that tenants have in the store, each of which may have `max`.
    pub(crate) fn set_call_keys<'a>(&self, tenants: impl IntoIterator<Item = &'a TenantKeys>, max: u64) {
        let (mut all, mut most, mut forecast) = (0, 0, 0);
        for tenant in tenants {
            all += tenant.records;
            most = most.max(tenant.records);
            forecast = forecast.max(tenant.forecast);
        }
        let share = |records: u64| records as f64 / max.max(1) as f64;
        self.families.call_keys.record(all);
        self.families.call_keys_share.set(share(most));
        self.families.call_keys_forecast.set(share(forecast));
    }

    /// The handles of the cache of answers.
    pub fn cache(&self) -> CacheMetrics {
        CacheMetrics {
            hits: self.families.cache_hits.clone(),
            misses: self.families.cache_misses.clone(),
            errors: self.families.cache_errors.clone(),
        }
    }

    /// The handles of a queue of an intake, by its name.
    pub fn intake(&self, queue: &str) -> IntakeMetrics {
        let queue = one("queue", queue);
        let counters = members_of(&self.families.intake, &queue, "outcome", IntakeOutcome::ALL, IntakeOutcome::as_str);
        IntakeMetrics { counters }
    }

    /// The handles of something that handlers need, by the name that they give it.
    pub fn dependency(&self, name: &'static str) -> DependencyMetrics {
        let labels = one("dependency", name);
        DependencyMetrics {
            open: self.families.dependency_open.get_or_create_owned(&labels),
            unavailable: self.families.unavailable.get_or_create_owned(&labels),
        }
    }
}

/// The handles of a route of the front doors.
#[derive(Clone, Debug)]
pub struct RouteMetrics {
    outcomes: Vec<Counter>,
    seconds: Histogram,
}

impl RouteMetrics {
    /// A request of the route has ended after `elapsed`.
    pub fn record(&self, outcome: HttpOutcome, elapsed: Duration) {
        self.outcomes[outcome as usize].inc();
        self.seconds.observe(elapsed.as_secs_f64());
    }
}

/// The handles of an operation of the front doors.
#[derive(Clone, Debug)]
pub struct OperationMetrics {
    keys: Vec<Counter>,
}

impl OperationMetrics {
    /// A call of the operation was answered, by what its idempotency key was.
    pub fn record(&self, word: CallWord) {
        self.keys[word as usize].inc();
    }
}

/// The handles of the cache of answers.
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    hits: Counter,
    misses: Counter,
    errors: Counter,
}

impl CacheMetrics {
    /// It had the record of a call.
    pub fn add_hit(&self) {
        self.hits.inc();
    }

    /// It did not have the record of a call: the call is new, or was forgotten.
    pub fn add_miss(&self) {
        self.misses.inc();
    }

    /// It did not answer, had something that is not a record, or had no room.
    pub fn add_error(&self) {
        self.errors.inc();
    }
}

/// The handles of a queue of an intake.
#[derive(Clone, Debug)]
pub struct IntakeMetrics {
    counters: Vec<Counter>,
}

impl IntakeMetrics {
    /// A message lies in its stream.
    pub fn record(&self, outcome: IntakeOutcome) {
        self.counters[outcome as usize].inc();
    }
}

/// The handles of one dependency.
#[derive(Clone, Debug)]
pub struct DependencyMetrics {
    open: Gauge,
    unavailable: Counter,
}

impl DependencyMetrics {
    /// Shows whether its circuit breaker is open.
    pub fn set_open(&self, open: bool) {
        self.open.set(open.into());
    }

    /// A turn found it unavailable.
    pub fn add_unavailable(&self) {
        self.unavailable.inc();
    }
}
