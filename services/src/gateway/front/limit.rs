//! The limit of requests a second of a tenant, for this process.
//! In: tenants, the time. Out: room for one more, or the time until there is some.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use perkey::Millis;
use perkey::unstable::ledger::gates::TokenBucket;

/// A bucket of tokens for each tenant; tenants come from a closed set, those that have tokens.
#[derive(Debug)]
pub(super) struct Limits {
    per_second: f64,
    buckets: Mutex<HashMap<String, TokenBucket>>,
}

impl Limits {
    /// This many requests a second, a second's worth at once; 0: no bound.
    pub(super) fn new(per_second: f64) -> Self {
        Self { per_second, buckets: Mutex::default() }
    }

    /// Takes room for one request, or returns the time until there is some.
    pub(super) fn take(&self, tenant: &str, now: Millis) -> Result<(), Duration> {
        if self.per_second <= 0.0 {
            return Ok(());
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = match buckets.get_mut(tenant) {
            Some(bucket) => bucket,
            None => {
                buckets.entry(tenant.to_owned()).or_insert(TokenBucket::new(self.per_second, self.per_second.max(1.0)))
            }
        };
        if bucket.has(now) {
            bucket.take();
            return Ok(());
        }
        Err(bucket.wait())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_that_sends_too_fast_waits_and_no_other_does() {
        let limits = Limits::new(2.0);
        assert!(limits.take("a", 0).is_ok() && limits.take("a", 0).is_ok());
        assert_eq!(limits.take("a", 0), Err(Duration::from_millis(500)));
        assert!(limits.take("b", 0).is_ok());
        assert!(limits.take("a", 500).is_ok() && limits.take("a", 500).is_err());
        assert!((0..1_000).all(|_| Limits::new(0.0).take("a", 0).is_ok()));
    }
}
