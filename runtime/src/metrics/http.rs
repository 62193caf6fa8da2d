//! What is measured at the front doors.
//! In: routes as they are declared, how requests ended. Out: counters.

use super::{HttpOutcome, Metrics};

impl Metrics {
    /// A request of a route has ended. `route` is a template such as `/api/orders/{id}`, never a path as it came.
    pub fn record_http(&self, route: &str, outcome: HttpOutcome) {
        let labels = vec![("route", route.into()), ("outcome", outcome.as_str().into())];
        self.families.http.get_or_create(&labels).inc();
    }
}
