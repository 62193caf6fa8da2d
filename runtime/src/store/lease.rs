//! Who is alive and who owns what: the leases of a store that several workers share.
//! In: a worker's sign of life. Out: all workers and shards, as the store's clock has them.

use std::time::Duration;

use serde::Serialize;

use super::{Epoch, StoreFuture};
use crate::message::ShardNo;

/// A worker as it presents itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Worker {
    /// Its name with its incarnation: a process that starts again is another one. It is what `shards.owner` holds.
    pub id: String,
    /// Where other workers and operators reach it, or empty.
    pub address: String,
    /// Version of its program, for people.
    pub version: String,
    /// Number that rises with every change of what is stored; see [`super::Setup::code_version`].
    pub code_version: u32,
    /// Whether it is leaving: it takes no more shards.
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

/// A shard's ownership as the store has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeaseRow {
    /// The shard.
    pub shard: ShardNo,
    /// Its owner's id, if any.
    pub owner: Option<String>,
    /// Its epoch.
    pub epoch: Epoch,
    /// The highest code version that ever owned it.
    pub code_version: u32,
}

/// All workers and shards at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fleet {
    /// The workers, by id; those that expired long ago are forgotten.
    pub workers: Vec<WorkerRow>,
    /// The shards, in order.
    pub shards: Vec<LeaseRow>,
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
