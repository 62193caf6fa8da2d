//! Metrics of the front doors.
//! In: routes as they are declared, outcomes of requests, the file of tokens. Out: counters, a gauge.

use super::{HttpOutcome, Metrics};
use crate::clock::Millis;

impl Metrics {
    /// Sets the time since which the file of tokens is not as it should be; `None` while it is.
    pub fn set_tokens_wrong_since(&self, since: Option<Millis>) {
        let seconds = since.map_or(0, |since| i64::try_from(since / 1_000).unwrap_or(i64::MAX));
        self.families.tokens_wrong_since.set(seconds);
    }

    /// Counts a request that has ended. `route` is a template such as `/api/orders/{id}`, never a path as it came.
    pub fn record_http(&self, route: &str, outcome: HttpOutcome) {
        let labels = vec![("route", route.into()), ("outcome", outcome.as_str().into())];
        self.families.http.get_or_create(&labels).inc();
    }
}
