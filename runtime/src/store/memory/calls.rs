//! Records of calls in memory.
//! In: calls; outcomes with the commits that have them. Out: records.

use std::collections::{BTreeMap, HashSet};

use futures_util::future::ready;

use super::{Inner, MemoryStore};
use crate::clock::Millis;
use crate::message::shard_of;
use crate::store::StoreFuture;
use crate::store::calls::{CallId, CallRecord, CallStore, NewCall, Reply, answered, firsts};
use crate::transport::embedded;

/// A record, and whose it is.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    tenant: String,
    record: CallRecord,
}

impl Inner {
    /// Which of them are new, by their places.
    fn accept(&mut self, lane: &str, calls: &[NewCall]) -> HashSet<usize> {
        let mut new = HashSet::new();
        for at in firsts(calls) {
            let call = &calls[at];
            if self.calls.get(&call.id).is_some_and(|kept| !kept.record.is_expired(call.at)) {
                continue;
            }
            new.insert(at);
            self.calls.insert(call.id, Kept { tenant: call.tenant.clone(), record: call.record() });
            let target = shard_of(call.message.key(), u32::try_from(self.shards.len()).unwrap_or(1));
            let no = self.lanes.entry(lane.to_owned()).or_default();
            *no += 1;
            self.log.insert((target, lane.into(), *no), (1, embedded::encode(&[(call.service, &call.message)])));
        }
        new
    }

    fn record(&self, id: CallId) -> Option<CallRecord> {
        self.calls.get(&id).map(|kept| kept.record.clone())
    }

    pub(super) fn write_replies(&mut self, replies: &[Reply]) {
        for reply in replies {
            if let Some(kept) = self.calls.get_mut(&reply.call) {
                kept.record.outcome = Some(reply.outcome.clone());
            }
        }
    }
}

impl CallStore for MemoryStore {
    fn accept(&self, lane: String, calls: Vec<NewCall>) -> StoreFuture<'_, Vec<Option<CallRecord>>> {
        let (new, shards) = {
            let mut inner = self.inner();
            (inner.accept(&lane, &calls), u32::try_from(inner.shards.len()).unwrap_or(1))
        };
        self.watch.appended(calls.iter().map(|call| shard_of(call.message.key(), shards)));
        Box::pin(async move { answered(self, &calls, &new).await })
    }

    fn records(&self, ids: Vec<CallId>) -> StoreFuture<'_, Vec<Option<CallRecord>>> {
        let inner = self.inner();
        let records = ids.into_iter().map(|id| inner.record(id)).collect();
        Box::pin(ready(Ok(records)))
    }

    fn counts(&self, now: Millis) -> StoreFuture<'_, Vec<(String, u64)>> {
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for kept in self.inner().calls.values().filter(|kept| !kept.record.is_expired(now)) {
            *counts.entry(kept.tenant.clone()).or_default() += 1;
        }
        Box::pin(ready(Ok(counts.into_iter().collect())))
    }

    fn sweep(&self, before: Millis, limit: usize) -> StoreFuture<'_, u64> {
        let mut inner = self.inner();
        let expired = inner.calls.iter().filter(|(_, kept)| kept.record.is_expired(before));
        let expired: Vec<CallId> = expired.map(|(id, _)| *id).take(limit).collect();
        expired.iter().for_each(|id| drop(inner.calls.remove(id)));
        Box::pin(ready(Ok(expired.len() as u64)))
    }
}
