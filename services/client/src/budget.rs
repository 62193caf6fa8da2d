//! The budget of retries, so that a server in trouble gets hardly more requests than usual. Pure.
//! In: calls and the time. Out: whether one more retry is allowed.

use std::collections::HashMap;
use std::time::Duration;

/// The time without retries after which the bucket is full.
const FULL_AFTER: f64 = 10.0;
/// Shares that add up to one retry may come out a little below it.
const ROUNDING: f64 = 1e-9;
/// The most call sites with a bucket of their own; the others share one.
const SITES_MAX: usize = 1_000;

/// Retries of one call site: a share of its calls, and some a second.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Duration,
}

/// Retries of all call sites. Times are counted from any one moment.
#[derive(Debug)]
pub(crate) struct Budget {
    share: f64,
    per_second: f64,
    sites: HashMap<String, Bucket>,
}

impl Budget {
    pub(crate) fn new(share: f64, per_second: f64) -> Self {
        Self { share, per_second, sites: HashMap::new() }
    }

    /// Counts a call that begins.
    pub(crate) fn called(&mut self, site: &str, now: Duration) {
        let share = self.share;
        let full = self.full();
        let bucket = self.bucket(site, now);
        bucket.tokens = (bucket.tokens + share).min(full);
    }

    /// Returns whether one more retry is allowed, and counts it.
    pub(crate) fn may_retry(&mut self, site: &str, now: Duration) -> bool {
        let bucket = self.bucket(site, now);
        let may = bucket.tokens >= 1.0 - ROUNDING;
        if may {
            bucket.tokens -= 1.0;
        }
        may
    }

    fn full(&self) -> f64 {
        (self.per_second * FULL_AFTER).max(1.0)
    }

    fn bucket(&mut self, site: &str, now: Duration) -> &mut Bucket {
        let known = self.sites.contains_key(site) || self.sites.len() < SITES_MAX;
        let (full, per_second) = (self.full(), self.per_second);
        // A new site begins with the tokens of one second.
        let first = Bucket { tokens: per_second.min(full), at: now };
        let bucket = self.sites.entry(if known { site.to_owned() } else { String::new() }).or_insert(first);
        let gone = now.saturating_sub(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + gone * per_second).min(full);
        bucket.at = now.max(bucket.at);
        bucket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retries(budget: &mut Budget, site: &str, now: Duration) -> usize {
        (0..10_000).take_while(|_| budget.may_retry(site, now)).count()
    }

    #[test]
    fn retries_are_a_share_of_the_calls_and_some_a_second() {
        let mut budget = Budget::new(0.2, 10.0);
        let second = Duration::from_secs(1);
        assert_eq!(retries(&mut budget, "a", second), 10);
        (0..50).for_each(|_| budget.called("a", second));
        assert_eq!(retries(&mut budget, "a", second), 10, "20 % of 50 calls");
        assert_eq!(retries(&mut budget, "a", 3 * second), 20, "10 a second");
        assert_eq!(retries(&mut budget, "a", 1_000 * second), 100, "it does not fill for ever");
        assert_eq!(retries(&mut budget, "b", 1_000 * second), 10, "each site has its own");
    }

    #[test]
    fn sites_have_a_bound() {
        let mut budget = Budget::new(0.2, 10.0);
        for site in 0..3_000 {
            budget.called(&site.to_string(), Duration::ZERO);
        }
        assert_eq!(budget.sites.len(), SITES_MAX + 1);
    }

    #[test]
    fn without_a_budget_there_are_no_retries() {
        let mut budget = Budget::new(0.0, 0.0);
        budget.called("a", Duration::ZERO);
        assert_eq!(retries(&mut budget, "a", Duration::from_secs(100)), 0);
    }
}
