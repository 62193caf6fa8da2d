//! The process's own cache of answers.
//! In: records of calls that have ended. Out: these records, until they expire or have to make room.

use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, ready};
use moka::Expiry;
use moka::sync::Cache;

use super::{ReplayCache, is_kept};
use crate::clock::Clock;
use crate::handler::CallId;
use crate::metrics::CacheMetrics;
use crate::settings::CacheSettings;
use crate::store::calls::CallRecord;

/// A cache with a bound on the number of its entries and on the size of each.
pub(super) struct MemoryCache {
    records: Cache<CallId, CallRecord>,
    entry_bytes_max: usize,
    metrics: CacheMetrics,
}

impl MemoryCache {
    pub(super) fn new(settings: &CacheSettings, metrics: CacheMetrics) -> Self {
        let records =
            Cache::builder().max_capacity(settings.entries_max).expire_after(UntilExpired(Clock::system())).build();
        Self { records, entry_bytes_max: settings.entry_bytes_max, metrics }
    }
}

impl std::fmt::Debug for MemoryCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Its contents are not shown: they are private.
        f.debug_struct("MemoryCache").field("records", &self.records.entry_count()).finish_non_exhaustive()
    }
}

impl ReplayCache for MemoryCache {
    fn get(&self, id: CallId) -> BoxFuture<'_, Option<CallRecord>> {
        let found = self.records.get(&id);
        match found {
            Some(_) => self.metrics.add_hit(),
            None => self.metrics.add_miss(),
        }
        Box::pin(ready(found))
    }

    fn put(&self, records: Vec<CallRecord>) {
        for record in records.into_iter().filter(|record| is_kept(record, self.entry_bytes_max)) {
            self.records.insert(record.id, record);
        }
    }
}

/// Each entry stays until its record expires.
struct UntilExpired(Clock);

impl UntilExpired {
    fn left(&self, record: &CallRecord) -> Option<Duration> {
        Some(Duration::from_millis(record.expires_at.saturating_sub(self.0.now())))
    }
}

impl Expiry<CallId, CallRecord> for UntilExpired {
    fn expire_after_create(&self, _: &CallId, record: &CallRecord, _: Instant) -> Option<Duration> {
        self.left(record)
    }

    fn expire_after_update(
        &self,
        _: &CallId,
        record: &CallRecord,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        self.left(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::store::calls::{CallEnd, CallOutcome};

    fn record(id: u8, body: &str, expires_at: u64) -> CallRecord {
        let outcome = CallOutcome { end: CallEnd::Done, code: String::new(), body: body.to_owned().into() };
        CallRecord {
            id: CallId([id; 16]),
            fingerprint: [id; 32],
            message_id: String::new(),
            accepted_at: 1,
            expires_at,
            outcome: Some(outcome),
        }
    }

    fn cache(entries_max: u64) -> MemoryCache {
        let settings = CacheSettings { entries_max, entry_bytes_max: 8, ..CacheSettings::default() };
        MemoryCache::new(&settings, Metrics::new().cache())
    }

    #[tokio::test]
    async fn a_record_is_kept_until_it_expires() {
        let (cache, now) = (cache(10), Clock::system().now());
        cache.put(vec![record(1, "new", now + 60_000), record(2, "old", now)]);
        assert_eq!(cache.get(CallId([1; 16])).await, Some(record(1, "new", now + 60_000)));
        assert_eq!(cache.get(CallId([2; 16])).await, None);
        assert_eq!(cache.get(CallId([3; 16])).await, None);
        cache.put(vec![record(1, "gone", now)]);
        assert_eq!(cache.get(CallId([1; 16])).await, None, "its key was used again, and that has expired, too");
    }

    #[tokio::test]
    async fn what_runs_and_what_is_large_is_not_kept() {
        let (cache, later) = (cache(10), Clock::system().now() + 60_000);
        cache.put(vec![
            CallRecord { outcome: None, ..record(1, "", later) },
            record(2, "123456789", later),
            record(3, "12345678", later),
        ]);
        assert_eq!(cache.get(CallId([1; 16])).await, None);
        assert_eq!(cache.get(CallId([2; 16])).await, None);
        assert!(cache.get(CallId([3; 16])).await.is_some());
    }

    #[tokio::test]
    async fn the_number_of_entries_is_bounded() {
        let (cache, later) = (cache(10), Clock::system().now() + 60_000);
        cache.put((0..200).map(|id| record(id, "x", later)).collect());
        cache.records.run_pending_tasks();
        assert!(cache.records.entry_count() <= 10, "{cache:?}");
    }
}
