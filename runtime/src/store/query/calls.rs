//! Calls: commands whose senders wait for an answer, each with an idempotency key. Plain values, and a store's part.
//! In: calls to accept, a message each. Out: their records; a record without an outcome belongs to a call that still
//! runs.
//!
//! A call is accepted in one transaction: its record, and its message in the embedded log of its key's shard. The commit
//! of the turn that ends it writes its outcome into the record. So there is no record without a message, no effect
//! without an answer, and no answer without its effect.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;

use crate::clock::Millis;
use crate::handler::CallId;
use crate::message::Message;
use crate::store::{StoreError, StoreFuture};

/// A hash of what a call asks for: another request under the same key has another one.
pub type Fingerprint = [u8; 32];

/// A call to be accepted.
#[derive(Clone, Debug)]
pub struct NewCall {
    /// The id that identifies it.
    pub id: CallId,
    /// The fingerprint of its request.
    pub fingerprint: Fingerprint,
    /// The tenant whose key space it is in: each tenant's records are counted.
    pub tenant: String,
    /// The service that is to handle it.
    pub service: &'static str,
    /// Its message, which carries its id: see [`crate::handler::CALL`].
    pub message: Message,
    /// The time at which it came.
    pub at: Millis,
    /// The time from which its key may be used again, once it has ended.
    pub expires_at: Millis,
}

impl NewCall {
    /// The time until which its record counts as one of its tenant's.
    pub(in crate::store) fn counted_until(&self) -> Millis {
        counted_until(self.at, self.expires_at)
    }

    /// Its record, from when it is accepted until it ends.
    pub(crate) fn record(&self) -> CallRecord {
        CallRecord {
            id: self.id,
            fingerprint: self.fingerprint,
            message_id: self.message.id().to_owned(),
            accepted_at: self.at,
            expires_at: self.expires_at,
            outcome: None,
        }
    }
}

/// The store's record of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRecord {
    /// The id that identifies it.
    pub id: CallId,
    /// The fingerprint of its request.
    pub fingerprint: Fingerprint,
    /// The id of its message; empty where a cache has forgotten it.
    pub message_id: String,
    /// The time at which it was accepted.
    pub accepted_at: Millis,
    /// The time from which its key may be used again, once it has ended.
    pub expires_at: Millis,
    /// Its outcome; `None` while it runs.
    pub outcome: Option<CallOutcome>,
}

impl CallRecord {
    /// True if its key may be used again at `now`.
    pub fn is_expired(&self, now: Millis) -> bool {
        self.outcome.is_some() && self.expires_at <= now
    }
}

/// The end of a call, and the answer to its sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOutcome {
    /// The kind of end.
    pub end: CallEnd,
    /// The reason as a word for programs, if the call was refused.
    pub code: String,
    /// The handler's reply as JSON if the call is done, else the reason as text.
    pub body: Bytes,
}

impl CallOutcome {
    /// It took effect, and its handler replied this, or nothing.
    pub(crate) fn done(reply: Option<Bytes>) -> Self {
        let body = reply.unwrap_or(Bytes::from_static(b"null"));
        Self { end: CallEnd::Done, code: String::new(), body }
    }

    /// Its handler refused it, with this code and reason.
    pub(crate) fn refused(code: &str, reason: &str) -> Self {
        Self { end: CallEnd::Refused, code: code.to_owned(), body: Bytes::copy_from_slice(reason.as_bytes()) }
    }

    /// It was given up for this reason.
    pub(crate) fn failed(reason: &str) -> Self {
        Self { end: CallEnd::Failed, code: String::new(), body: Bytes::copy_from_slice(reason.as_bytes()) }
    }
}

/// The ends of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEnd {
    /// It took effect.
    Done,
    /// Its handler refused it; it had no effect in the store, and never will.
    Refused,
    /// It failed as often as it may; it had no effect in the store, and is a dead letter. What it asked of others may have
    /// happened.
    Failed,
}

impl CallEnd {
    /// The word in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl std::str::FromStr for CallEnd {
    type Err = StoreError;

    fn from_str(word: &str) -> Result<Self, StoreError> {
        let ends = [Self::Done, Self::Refused, Self::Failed];
        let found = ends.into_iter().find(|end| end.as_str() == word);
        found.ok_or_else(|| StoreError::Corrupt(format!("unknown end of a call {word:?}")))
    }
}

/// The outcome of a call, as the commit of its last turn writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The call.
    pub call: CallId,
    /// Its outcome.
    pub outcome: CallOutcome,
}

/// A store's part in calls.
pub trait CallStore: Send + Sync {
    /// The secret that seals answers which are kept outside the store. No other store has the same, and this one gets
    /// another when it is restored: answers about effects that were undone are void.
    fn secret(&self) -> StoreFuture<'_, [u8; 32]>;

    /// Accepts calls in one transaction, each with its message in lane `lane` of the embedded log. In the order asked:
    /// `None` for a call that is new, and the existing record for one that is not. A record that has expired is
    /// replaced. Of two calls of the same id the first counts, and the other one finds its record.
    fn accept(&self, lane: String, calls: Vec<NewCall>) -> StoreFuture<'_, Vec<Option<CallRecord>>>;

    /// The records of these calls, in the order asked; `None` where there is no record.
    fn records(&self, ids: Vec<CallId>) -> StoreFuture<'_, Vec<Option<CallRecord>>>;

    /// The number of records that each tenant has and that still count at `now`. The cost grows with the tenants, not
    /// with the records.
    fn counts(&self, now: Millis) -> StoreFuture<'_, Vec<KeyCount>>;

    /// Removes records that had expired by `before`, at most `limit`; returns the number that it removed. The counts of
    /// those whose time is over by then go too.
    fn sweep(&self, before: Millis, limit: usize) -> StoreFuture<'_, u64>;
}

/// The number of a tenant's records that have about the same time left.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyCount {
    /// The tenant.
    pub tenant: String,
    /// The time at which all of them stop counting.
    pub until: Millis,
    /// The number of records.
    pub records: u64,
}

/// The parts of a record's time by which it is counted: it counts for at most one part longer than it lives.
const PARTS: Millis = 24;

/// Length of one of the parts of `keep`.
fn part(keep: Millis) -> Millis {
    (keep / PARTS).max(1_000)
}

/// The time until which a record counts that is kept from `at` to `expires_at`.
fn counted_until(at: Millis, expires_at: Millis) -> Millis {
    expires_at.div_ceil(part(expires_at.saturating_sub(at))).saturating_mul(part(expires_at.saturating_sub(at)))
}

/// The number of records made of the calls at these places, by tenant and the time at which they stop counting.
pub(in crate::store) fn counted<'a>(calls: &'a [NewCall], new: &HashSet<usize>) -> BTreeMap<(&'a str, Millis), u64> {
    let mut counted = BTreeMap::new();
    for call in new.iter().filter_map(|at| calls.get(*at)) {
        *counted.entry((&*call.tenant, call.counted_until())).or_default() += 1;
    }
    counted
}

/// A tenant's records in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantKeys {
    /// Records that it has.
    pub records: u64,
    /// Records that it will have, at the pace of the last twenty-fourth of the time for which each is kept.
    pub forecast: u64,
}

/// Each tenant's records at `now`, where records are kept for `keep`.
pub fn tenant_keys(counts: &[KeyCount], now: Millis, keep: Millis) -> BTreeMap<&str, TenantKeys> {
    let newest = counted_until(now, now.saturating_add(keep));
    // The newest part is not over yet; the one before it is.
    let recent = [newest, newest.saturating_sub(part(keep))];
    let mut tenants: BTreeMap<&str, TenantKeys> = BTreeMap::new();
    for count in counts {
        let tenant = tenants.entry(&count.tenant).or_default();
        tenant.records += count.records;
        if recent.contains(&count.until) {
            tenant.forecast = tenant.forecast.max(count.records * (keep / part(keep)).max(1));
        }
    }
    tenants
}

/// The places of the calls that are the first of their id.
pub(in crate::store) fn firsts(calls: &[NewCall]) -> Vec<usize> {
    let mut seen = HashSet::with_capacity(calls.len());
    (0..calls.len()).filter(|at| seen.insert(calls[*at].id)).collect()
}

/// The answer of [`CallStore::accept`] if the calls at these places were new: the other calls get their records. A call
/// whose record was removed just now is neither, and an error.
pub(in crate::store) async fn answered(
    store: &dyn CallStore,
    calls: &[NewCall],
    new: &HashSet<usize>,
) -> Result<Vec<Option<CallRecord>>, StoreError> {
    if new.len() == calls.len() {
        return Ok(vec![None; calls.len()]);
    }
    let others = (0..calls.len()).filter(|at| !new.contains(at)).map(|at| calls[at].id).collect();
    let mut records = store.records(others).await?.into_iter();
    let answer = |at: usize| match new.contains(&at) {
        true => Ok(None),
        false => records.next().flatten().map(Some).ok_or_else(|| {
            StoreError::Unavailable("the record of a call was removed while it was looked at: ask again".to_owned())
        }),
    };
    (0..calls.len()).map(answer).collect()
}

/// Records in the order in which they were asked for; `None` where there is no record.
pub(in crate::store) fn in_order(
    ids: &[CallId],
    found: impl IntoIterator<Item = Result<CallRecord, StoreError>>,
) -> Result<Vec<Option<CallRecord>>, StoreError> {
    let by_id = |record: Result<CallRecord, _>| record.map(|record| (record.id, record));
    let records: HashMap<CallId, CallRecord> = found.into_iter().map(by_id).collect::<Result<_, _>>()?;
    Ok(ids.iter().map(|id| records.get(id).cloned()).collect())
}

/// A hash as it was stored.
pub(in crate::store) fn hash<const N: usize>(stored: &[u8]) -> Result<[u8; N], StoreError> {
    stored.try_into().map_err(|_| StoreError::Corrupt(format!("a hash of a call has {} bytes, not {N}", stored.len())))
}

/// [`CallStore::secret`] of a store with this key, in the life that these words stand for.
pub(in crate::store) fn secret(hash_key: &[u8; 32], life: &str) -> [u8; 32] {
    let key = blake3::derive_key("perkey store: seal of answers outside of it", hash_key);
    *blake3::keyed_hash(&key, life.as_bytes()).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Millis = 3_600_000;

    #[test]
    fn a_record_counts_for_a_part_longer_than_it_lives_at_most() {
        let day = 24 * HOUR;
        assert_eq!(counted_until(0, day), day);
        assert_eq!(counted_until(1, day + 1), day + HOUR);
        assert_eq!(counted_until(HOUR - 1, day + HOUR - 1), day + HOUR);
        assert_eq!(counted_until(10, 110), 1_000, "a part has a second at least");
    }

    #[test]
    fn what_a_tenant_will_have_is_its_pace_times_the_time_for_which_each_is_kept() {
        let day = 24 * HOUR;
        let count = |tenant: &str, until, records| KeyCount { tenant: tenant.to_owned(), until, records };
        let now = 100 * HOUR + HOUR / 2;
        // One that has sent steadily, one that has stopped, one that has begun just now.
        let mut counts: Vec<_> = (102..=124).map(|hour| count("steady", hour * HOUR, 3_600)).collect();
        counts.extend([count("steady", 125 * HOUR, 1_800), count("gone", 110 * HOUR, 9), count("new", 125 * HOUR, 5)]);
        let tenants = tenant_keys(&counts, now, day);
        assert_eq!(tenants["steady"], TenantKeys { records: 84_600, forecast: 86_400 });
        assert_eq!(tenants["gone"], TenantKeys { records: 9, forecast: 0 });
        assert_eq!(tenants["new"], TenantKeys { records: 5, forecast: 120 });
    }
}
