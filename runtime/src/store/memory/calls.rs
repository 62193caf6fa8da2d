//! Records of calls in memory.
//! In: calls; outcomes with the commits that have them. Out: records.

use std::collections::HashSet;

use futures_util::future::ready;

use super::{HASH_KEY, MemoryStore, MemoryTables};
use crate::clock::Millis;
use crate::handler::CallId;
use crate::message::shard_of;
use crate::store::StoreFuture;
use crate::store::calls::{CallRecord, CallStore, KeyCount, NewCall, Reply, answered, counted, firsts, secret};
use crate::store::layout::log;

impl MemoryTables {
    /// Accepts the calls that are new; returns their places.
    fn accept(&mut self, lane: &str, calls: &[NewCall]) -> HashSet<usize> {
        let mut new = HashSet::new();
        for at in firsts(calls) {
            let call = &calls[at];
            if self.calls.get(&call.id).is_some_and(|kept| !kept.is_expired(call.at)) {
                continue;
            }
            new.insert(at);
            self.calls.insert(call.id, call.record());
            let target = shard_of(call.message.key(), u32::try_from(self.shards.len()).unwrap_or(1));
            let no = self.lanes.entry(lane.to_owned()).or_default();
            *no += 1;
            self.log.insert((target, lane.into(), *no), (1, log::encode(&[(call.service, &call.message)])));
        }
        for ((tenant, until), records) in counted(calls, &new) {
            *self.call_counts.entry((tenant.to_owned(), until)).or_default() += records;
        }
        new
    }

    fn record(&self, id: CallId) -> Option<CallRecord> {
        self.calls.get(&id).cloned()
    }

    pub(super) fn write_replies(&mut self, replies: &[Reply]) {
        for reply in replies {
            if let Some(kept) = self.calls.get_mut(&reply.call) {
                kept.outcome = Some(reply.outcome.clone());
            }
        }
    }
}

impl CallStore for MemoryStore {
    fn secret(&self) -> StoreFuture<'_, [u8; 32]> {
        let secret = secret(&HASH_KEY, "");
        Box::pin(async move { Ok(secret) })
    }

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

    fn counts(&self, now: Millis) -> StoreFuture<'_, Vec<KeyCount>> {
        let inner = self.inner();
        let counts = inner.call_counts.iter().filter(|((_, until), _)| *until > now);
        let counts = counts.map(|((tenant, until), records)| KeyCount {
            tenant: tenant.clone(),
            until: *until,
            records: *records,
        });
        Box::pin(ready(Ok(counts.collect())))
    }

    fn sweep(&self, before: Millis, limit: usize) -> StoreFuture<'_, u64> {
        let mut inner = self.inner();
        inner.call_counts.retain(|(_, until), _| *until > before);
        let expired = inner.calls.iter().filter(|(_, kept)| kept.is_expired(before));
        let expired: Vec<CallId> = expired.map(|(id, _)| *id).take(limit).collect();
        expired.iter().for_each(|id| drop(inner.calls.remove(id)));
        Box::pin(ready(Ok(expired.len() as u64)))
    }
}
