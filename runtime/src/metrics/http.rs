//! What is measured at the front doors.
//! In: routes as they are declared, how requests ended, the file of tokens. Out: counters, a gauge.

use super::{HttpOutcome, Metrics};
use crate::clock::Millis;

impl Metrics {
    /// Since when the file of tokens is not as it should be; nothing where it is.
    pub fn set_tokens_wrong_since(&self, since: Option<Millis>) {
        let seconds = since.map_or(0, |since| i64::try_from(since / 1_000).unwrap_or(i64::MAX));
        self.families.tokens_wrong_since.set(seconds);
    }

    /// A request of a route has ended. `route` is a template such as `/api/orders/{id}`, never a path as it came.
    pub fn record_http(&self, route: &str, outcome: HttpOutcome) {
        let labels = vec![("route", route.into()), ("outcome", outcome.as_str().into())];
        self.families.http.get_or_create(&labels).inc();
    }
}
