//! How many requests a second a tenant may send to this process.
//! In: tenants, the time. Out: room for one more, or when there will be.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use perkey::clock::Millis;

/// A bucket of tokens for each tenant; tenants are of a closed set, those that have tokens.
#[derive(Debug)]
pub(super) struct Limits {
    per_second: f64,
    buckets: Mutex<HashMap<String, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Millis,
}

impl Limits {
    /// So many a second, a second's worth at once; 0: no bound.
    pub(super) fn new(per_second: f64) -> Self {
        Self { per_second, buckets: Mutex::default() }
    }

    /// Takes room for one request, or says when there will be some.
    pub(super) fn take(&self, tenant: &str, now: Millis) -> Result<(), Duration> {
        if self.per_second <= 0.0 {
            return Ok(());
        }
        let most = self.per_second.max(1.0);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = match buckets.get_mut(tenant) {
            Some(bucket) => bucket,
            None => buckets.entry(tenant.to_owned()).or_insert(Bucket { tokens: most, at: now }),
        };
        #[expect(clippy::cast_precision_loss, reason = "a pause of 2^52 ms is none")]
        let since = now.saturating_sub(bucket.at) as f64 / 1_000.0;
        bucket.tokens = (bucket.tokens + self.per_second * since).min(most);
        bucket.at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.tokens) / self.per_second))
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
