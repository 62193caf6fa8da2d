//! The leases of a store that several workers share: the living workers and the owners of shards.
//! In: a worker's sign of life. Out: all workers and shards, as the store's clock has them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::{Epoch, StoreFuture};
use crate::message::ShardNo;

/// The versions of the states that a program reads and writes, or that a shard has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Code {
    /// The highest sum of the versions: all that programs recorded before there was a version for each service.
    pub number: u32,
    /// `STATE_VERSION` of each service; empty where only the number is known.
    pub versions: BTreeMap<Arc<str>, u32>,
}

/// The version that a shard has seen and for which a program is too old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The service; `None` where only numbers are known.
    pub service: Option<Arc<str>>,
    /// The version that the shard has seen.
    pub stored: u32,
    /// The program's version.
    pub ours: u32,
}

impl Code {
    /// The code of a program with these services.
    pub fn of<'a>(services: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let versions: BTreeMap<Arc<str>, u32> =
            services.into_iter().map(|(service, version)| (service.into(), version)).collect();
        Self { number: versions.values().sum(), versions }
    }

    /// The code of an older program, of which only the number is known.
    pub fn numbered(number: u32) -> Self {
        Self { number, versions: BTreeMap::new() }
    }

    /// The version that keeps this program from owning a shard that has seen `seen`. A service that only one of them
    /// has does not: its messages wait for a program that has it.
    pub fn behind(&self, seen: &Self) -> Option<Behind> {
        if self.versions.is_empty() || seen.versions.is_empty() {
            let (stored, ours) = (seen.number, self.number);
            return (ours < stored).then_some(Behind { service: None, stored, ours });
        }
        seen.versions.iter().find_map(|(service, stored)| {
            let (stored, ours) = (*stored, *self.versions.get(service)?);
            (ours < stored).then(|| Behind { service: Some(Arc::clone(service)), stored, ours })
        })
    }

    /// The versions that a shard has seen once `owner` has owned it.
    #[must_use]
    pub fn and(mut self, owner: &Self) -> Self {
        self.number = self.number.max(owner.number);
        for (service, version) in &owner.versions {
            let seen = self.versions.entry(Arc::clone(service)).or_default();
            *seen = (*seen).max(*version);
        }
        self
    }

    /// The versions that these shards have seen together; only the number, where of one of them only the number is
    /// known.
    pub(crate) fn all<'a>(shards: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let unknown = shards.clone().any(|code| code.number > 0 && code.versions.is_empty());
        let all = shards.fold(Self::default(), Self::and);
        if unknown { Self::numbered(all.number) } else { all }
    }
}

/// The services above version 1, or the number where only that is known.
impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.versions.is_empty() {
            return write!(f, "{}", self.number);
        }
        let raised = self.versions.iter().filter(|(_, version)| **version > 1);
        let raised: Vec<_> = raised.map(|(service, version)| format!("{service} {version}")).collect();
        f.write_str(if raised.is_empty() { "1" } else { "" })?;
        f.write_str(&raised.join(", "))
    }
}

impl fmt::Display for Behind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, stored, ours } = self;
        match service {
            Some(service) => {
                write!(f, "it has states of {service} of version {stored}, the program has version {ours}")
            }
            None => write!(f, "it was owned by code version {stored}, the program has {ours}"),
        }
    }
}

/// A worker as it presents itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Worker {
    /// Its name with its incarnation: a process that starts again is another one. It is what `shards.owner` holds.
    pub id: String,
    /// The address at which other workers and operators reach it, or empty.
    pub address: String,
    /// Version of its program, for people.
    pub version: String,
    /// The versions of the states that it reads.
    pub code: Code,
    /// True if it is leaving: it takes no more shards.
    pub draining: bool,
    /// Shards that failed on it too often and that it leaves to others for a while.
    pub cooling: Vec<ShardNo>,
}

/// A worker as the store has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerRow {
    /// The worker.
    pub worker: Worker,
    /// Milliseconds until its lease expires, by the store's clock; below 0 when it has.
    pub expires_in: i64,
}

impl WorkerRow {
    /// True if its lease is in force, by the store's clock.
    pub fn is_alive(&self) -> bool {
        self.expires_in > 0
    }
}

/// A shard's ownership as the store has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeaseRow {
    /// The shard.
    pub shard: ShardNo,
    /// Its owner's id, if any.
    pub owner: Option<String>,
    /// Its epoch.
    pub epoch: Epoch,
    /// The newest states that programs which owned it may have written.
    pub code: Code,
}

/// All workers and shards at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fleet {
    /// The workers, by id; those that expired long ago are forgotten.
    pub workers: Vec<WorkerRow>,
    /// The shards, in order.
    pub shards: Vec<LeaseRow>,
}

impl Fleet {
    /// The number of shards that no living worker owns.
    pub fn without_owner(&self) -> u64 {
        let lives = |id: &str| self.workers.iter().any(|row| row.worker.id == id && row.is_alive());
        self.shards.iter().filter(|row| !row.owner.as_deref().is_some_and(lives)).count() as u64
    }

    /// The fleet as all its workers compare it: while one is alive of which only the number is known, all compare by
    /// the number, as that one does, because all have to reach the same result.
    #[must_use]
    pub fn level(mut self) -> Self {
        let numbered = |row: &WorkerRow| row.expires_in > 0 && row.worker.code.versions.is_empty();
        if self.workers.iter().any(numbered) {
            self.workers.iter_mut().for_each(|row| row.worker.code.versions.clear());
            self.shards.iter_mut().for_each(|row| row.code.versions.clear());
        }
        self
    }
}

/// Leases of a store that several workers share. They use a connection of their own, so that no load delays them.
pub trait Leases: Send + Sync {
    /// Renews the worker's lease for `ttl` from now, by the store's clock, and looks at the fleet.
    fn renew(&self, worker: Worker, ttl: Duration) -> StoreFuture<'_, Fleet>;

    /// Looks at the fleet without being part of it.
    fn fleet(&self) -> StoreFuture<'_, Fleet>;

    /// Gives a worker's lease up: its shards can be taken at once.
    fn leave(&self, id: String) -> StoreFuture<'_, ()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(service: &str, stored: u32, ours: u32) -> Option<Behind> {
        Some(Behind { service: Some(service.into()), stored, ours })
    }

    #[test]
    fn each_service_is_compared_where_both_sides_have_it() {
        let seen = Code::of([("orders", 2), ("gone", 7)]);
        assert_eq!(Code::of([("orders", 2), ("new", 1)]).behind(&seen), None, "one service came, one went");
        assert_eq!(Code::of([("orders", 1), ("gone", 9)]).behind(&seen), behind("orders", 2, 1), "the sum is higher");
        assert_eq!(Code::of([("other", 1)]).behind(&seen), None);
        assert_eq!(seen.behind(&Code::default()), None, "nobody has owned it");
        // Two programs that raised different services, of the same sum.
        let (left, right) = (Code::of([("a", 2), ("b", 1)]), Code::of([("a", 1), ("b", 2)]));
        assert_eq!((left.behind(&right), right.behind(&left)), (behind("b", 2, 1), behind("a", 2, 1)));
        let both = left.clone().and(&right);
        assert_eq!(both, Code { number: 3, ..Code::of([("a", 2), ("b", 2)]) });
        assert_eq!((left.behind(&both), right.behind(&both)), (behind("b", 2, 1), behind("a", 2, 1)));
    }

    #[test]
    fn a_number_is_compared_where_one_side_has_no_more() {
        let (old, new) = (Code::numbered(3), Code::of([("a", 2), ("b", 2)]));
        assert_eq!(new.behind(&old), None);
        assert_eq!(old.behind(&new), Some(Behind { service: None, stored: 4, ours: 3 }));
        assert_eq!(Code::of([("a", 1)]).behind(&old), Some(Behind { service: None, stored: 3, ours: 1 }));
        assert_eq!(old.and(&new), new);
    }

    #[test]
    fn what_several_shards_have_seen_is_a_number_where_one_has_no_more() {
        let (a, b) = (Code::of([("a", 2), ("b", 1)]), Code::of([("a", 1), ("b", 3)]));
        let all = |codes: &[Code]| Code::all(codes.iter());
        assert_eq!(all(&[a.clone(), b.clone(), Code::default()]), Code { number: 4, ..Code::of([("a", 2), ("b", 3)]) });
        assert_eq!(all(&[a, Code::numbered(9), b]), Code::numbered(9));
        assert_eq!(all(&[]), Code::default());
    }

    #[test]
    fn beside_a_worker_of_before_all_compare_by_the_number() {
        let row = |code: Code, expires_in| WorkerRow { worker: Worker { code, ..Worker::default() }, expires_in };
        let code = Code::of([("a", 2), ("b", 1)]);
        let shards = vec![LeaseRow { shard: 0, owner: None, epoch: 1, code: code.clone() }];
        let mut fleet = Fleet { workers: vec![row(code, 5), row(Code::numbered(3), -5)], shards };
        assert_eq!(fleet.clone().level(), fleet, "its lease has expired");
        fleet.workers[1].expires_in = 5;
        let level = fleet.level();
        assert_eq!(level.workers[0].worker.code, Code::numbered(3));
        assert_eq!(level.shards[0].code, Code::numbered(3));
    }

    #[test]
    fn a_code_is_shown_by_what_is_above_one() {
        let shown = [Code::of([("a", 1)]), Code::of([("b", 3), ("a", 2), ("c", 1)]), Code::numbered(9)];
        assert_eq!(shown.map(|code| code.to_string()), ["1", "a 2, b 3", "9"]);
    }
}
