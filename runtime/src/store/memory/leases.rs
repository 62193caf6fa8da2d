//! Leases in memory: several workers of a test share one store.
//! In: renewals, takeovers. Out: who is alive and who owns what, by the store's clock.

use std::time::Duration;

use super::{MemoryStore, MemoryTables};
use crate::clock::{Millis, millis};
use crate::message::ShardNo;
use crate::store::lease::{Fleet, LeaseRow, Leases, Worker, WorkerRow};
use crate::store::{StoreError, StoreFuture};

impl MemoryTables {
    /// Checks that `owner` may take the shard now: the present owner's lease has expired, and the program is new enough
    /// for the shard.
    pub(super) fn may_take(&mut self, shard: ShardNo, owner: &str, now: Millis) -> Result<(), StoreError> {
        let ours = self.workers.get(owner).map(|(worker, _)| worker.code.clone()).unwrap_or_default();
        let Some(row) = self.shards.get_mut(shard as usize) else { return Ok(()) };
        if let Some(other) = row.owner.as_ref().filter(|other| other.as_str() != owner)
            && self.workers.get(other).is_some_and(|(_, until)| *until > now)
        {
            return Err(StoreError::Owned { shard, owner: other.clone() });
        }
        if let Some(behind) = ours.behind(&row.code) {
            return Err(StoreError::CodeVersion { shard, behind });
        }
        row.code = std::mem::take(&mut row.code).and(&ours);
        Ok(())
    }

    fn fleet(&self, now: Millis) -> Fleet {
        let worker = |(worker, until): &(Worker, Millis)| WorkerRow {
            worker: worker.clone(),
            expires_in: until.cast_signed() - now.cast_signed(),
        };
        let shard = |(shard, row): (ShardNo, &super::MemoryShard)| LeaseRow {
            shard,
            owner: row.owner.clone(),
            epoch: row.epoch,
            code: row.code.clone(),
        };
        Fleet {
            workers: self.workers.values().map(worker).collect(),
            shards: (0..).zip(&self.shards).map(shard).collect(),
        }
        .level()
    }
}

impl MemoryStore {
    fn by_its_clock(&self) -> Millis {
        self.clock.as_ref().map_or(0, crate::clock::Clock::now)
    }
}

impl Leases for MemoryStore {
    fn renew(&self, worker: Worker, ttl: Duration) -> StoreFuture<'_, Fleet> {
        let now = self.by_its_clock();
        Box::pin(async move {
            let mut inner = self.inner();
            if inner.away {
                return Err(StoreError::Unavailable("it was told to refuse renewals".to_owned()));
            }
            let until = now + millis(ttl);
            inner.workers.insert(worker.id.clone(), (worker, until));
            Ok(inner.fleet(now))
        })
    }

    fn fleet(&self) -> StoreFuture<'_, Fleet> {
        let now = self.by_its_clock();
        Box::pin(async move { Ok(self.inner().fleet(now)) })
    }

    fn leave(&self, id: String) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            self.inner().workers.remove(&id);
            Ok(())
        })
    }
}
