//! A store's account of itself: its server, its clock, what it keeps. Nothing is judged here.
//! In: rows. Out: plain values.

pub(super) mod postgres;
pub(super) mod sqlite;

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::StoreError;
use super::query::sql::{Cells, Sql};
use crate::clock::Millis;
use crate::message::ShardNo;

/// A store and the server that keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreHealth {
    /// The server that keeps it.
    pub server: ServerHealth,
    /// Its shards, in order.
    pub shards: Vec<ShardHealth>,
    /// Services for which something waits, by name.
    pub services: Vec<ServiceHealth>,
}

/// The server that keeps a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerHealth {
    /// Its version: 150004 is PostgreSQL 15.4, 3050002 is SQLite 3.50.2.
    pub version: u32,
    /// Its clock, where it has one of its own.
    pub now: Option<Millis>,
    /// Settings by their names, without those that it does not have.
    pub settings: BTreeMap<String, String>,
    /// The format of what is stored.
    pub format: u32,
    /// Size of the database.
    pub bytes: u64,
    /// Size of the write-ahead log; `None` if the role may not look at it.
    pub wal_bytes: Option<u64>,
    /// True if it only follows another server.
    pub is_standby: bool,
    /// Sessions of all programs.
    pub sessions: u64,
    /// Transactions since rows were last frozen, which keeps transaction numbers from running out.
    pub frozen_age: u64,
    /// Replication slots.
    pub slots: Vec<ReplicationSlot>,
}

/// A replication slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationSlot {
    /// Its name.
    pub name: String,
    /// True if anybody reads it.
    pub is_active: bool,
    /// The bytes of the write-ahead log that it keeps.
    pub kept_bytes: u64,
}

/// The contents of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardHealth {
    /// The shard.
    pub shard: ShardNo,
    /// Ids in its commits.
    pub ids: u64,
    /// The time at which the oldest of its commits was written, by its worker's clock.
    pub oldest_at: Option<Millis>,
    /// The time at which the commit with the highest number was written.
    pub newest_at: Option<Millis>,
    /// The latest time of any commit.
    pub latest_at: Option<Millis>,
    /// The earliest time at which a waiting message or a timer may run.
    pub due_at: Option<Millis>,
    /// The time since which a key is held.
    pub held_at: Option<Millis>,
}

/// The rows that wait for a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceHealth {
    /// Its name.
    pub service: String,
    /// Rows in `pending`.
    pub pending: u64,
    /// Timers.
    pub timers: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// The time at which the latest of these was given up.
    pub dead_at: Option<Millis>,
}

/// The disk on which a store's file lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The folder.
    pub folder: PathBuf,
    /// Bytes that may still be written there.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
    /// The reason for which nothing can be written there.
    pub problem: Option<String>,
    /// Files of the store that users other than the owner may read or write, each with its mode.
    pub wide: Vec<String>,
}

/// Each shard's ids, its oldest, newest and latest commit, and the earliest of its due and of its held messages.
const SHARDS: &str = "SELECT s.shard AS shard,
        (SELECT coalesce(sum(length(c.ids)), 0) / 22 FROM commits c WHERE c.shard = s.shard) AS ids,
        (SELECT min(c.at) FROM commits c WHERE c.shard = s.shard) AS oldest,
        (SELECT c.at FROM commits c WHERE c.shard = s.shard ORDER BY c.commit_no DESC LIMIT 1) AS newest,
        (SELECT max(c.at) FROM commits c WHERE c.shard = s.shard) AS latest,
        (SELECT min(p.due_at) FROM pending p WHERE p.shard = s.shard AND p.due_at IS NOT NULL) AS waits,
        (SELECT min(t.due_at) FROM timers t WHERE t.shard = s.shard
            AND NOT EXISTS (SELECT 1 FROM pending p WHERE p.shard = t.shard AND p.service = t.service AND p.key = t.key)
            AND NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.shard = t.shard AND d.service = t.service
                AND d.key = t.key AND d.holds_key)) AS rings,
        (SELECT min(d.at) FROM dead_letters d WHERE d.shard = s.shard AND d.holds_key) AS held
    FROM shards s ORDER BY s.shard";

/// Each service's waiting messages, its timers, its dead letters and the latest of these.
const SERVICES: &str = "SELECT service, sum(pending) AS pending, sum(timers) AS timers, sum(dead) AS dead, max(at) AS at
    FROM (
        SELECT service, count(*) AS pending, 0 AS timers, 0 AS dead, CAST(NULL AS bigint) AS at FROM pending GROUP BY service
        UNION ALL SELECT service, 0, count(*), 0, NULL FROM timers GROUP BY service
        UNION ALL SELECT service, 0, 0, count(*), max(at) FROM dead_letters GROUP BY service) AS waits
    GROUP BY service ORDER BY service";

async fn shards(db: &impl Sql) -> Result<Vec<ShardHealth>, StoreError> {
    let columns = "shard::bigint, ids::bigint, oldest, newest, latest, waits, rings, held";
    let rows = db.rows(&format!("SELECT {columns} FROM ({SHARDS}) AS found ORDER BY shard"), &[]).await?;
    rows.iter().map(shard).collect()
}

fn shard(row: &impl Cells) -> Result<ShardHealth, StoreError> {
    Ok(ShardHealth {
        shard: row.number(0)?,
        ids: row.number(1)?,
        oldest_at: row.maybe(2)?,
        newest_at: row.maybe(3)?,
        latest_at: row.maybe(4)?,
        due_at: earlier(row.maybe(5)?, row.maybe(6)?),
        held_at: row.maybe(7)?,
    })
}

async fn services(db: &impl Sql) -> Result<Vec<ServiceHealth>, StoreError> {
    let columns = "service, pending::bigint, timers::bigint, dead::bigint, at";
    let rows = db.rows(&format!("SELECT {columns} FROM ({SERVICES}) AS found ORDER BY service"), &[]).await?;
    rows.iter().map(service).collect()
}

fn service(row: &impl Cells) -> Result<ServiceHealth, StoreError> {
    Ok(ServiceHealth {
        service: row.get(0)?,
        pending: row.number(1)?,
        timers: row.number(2)?,
        dead_letters: row.number(3)?,
        dead_at: row.maybe(4)?,
    })
}

/// The earlier of two times.
fn earlier(a: Option<Millis>, b: Option<Millis>) -> Option<Millis> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
