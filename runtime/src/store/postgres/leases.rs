//! Leases in the tables `workers` and `shards`, by the server's clock.
//! In: signs of life, takeovers. Out: all workers and shards, in one round trip on a connection of its own.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgRow;

use super::links::{Args, Links, shard_no};
use super::{PgStore, Prepared};
use crate::message::ShardNo;
use crate::store::lease::{Code, Fleet, LeaseRow, Leases, Worker, WorkerRow};
use crate::store::query::decode;
use crate::store::query::sql::Cells;
use crate::store::{StoreError, StoreFuture, TakenShard, layout};

/// Both tables as one list: workers first, by id, then shards.
macro_rules! fleet {
    ($workers:literal) => {
        concat!(
            "SELECT 0 AS kind, 0::bigint AS shard, id, address, version, code_version, draining,
                 (extract(epoch FROM expires_at - clock_timestamp()) * 1000)::bigint AS expires_in, 0::bigint AS epoch, cooling,
                 code_versions::text
             FROM ",
            $workers,
            " UNION ALL
             SELECT 1, shard::bigint, owner, '', '', code_version, false, 0, epoch, '{}'::integer[], code_versions::text FROM shards
             ORDER BY kind, shard, id"
        )
    };
}

/// Forgets workers that expired long ago, on the way.
const RENEW: &str = concat!(
    "WITH me AS (
        INSERT INTO workers (id, address, version, code_version, code_versions, draining, cooling, expires_at)
        VALUES ($1, $2, $3, $4, $5::json, $6, $7, clock_timestamp() + $8 * interval '1 millisecond')
        ON CONFLICT (id) DO UPDATE SET address = excluded.address, version = excluded.version,
            code_version = excluded.code_version, code_versions = excluded.code_versions, draining = excluded.draining, cooling = excluded.cooling,
            expires_at = excluded.expires_at
        RETURNING *
    ),
    forgotten AS (
        DELETE FROM workers WHERE expires_at < clock_timestamp() - interval '1 hour' AND id <> $1
    ) ",
    fleet!(
        "(SELECT * FROM me UNION ALL SELECT * FROM workers w WHERE w.id <> $1
            AND w.expires_at >= clock_timestamp() - interval '1 hour') AS alive"
    )
);

impl Leases for PgStore {
    fn renew(&self, worker: Worker, ttl: Duration) -> StoreFuture<'_, Fleet> {
        Box::pin(async move {
            let args = Args::default()
                .put(&*worker.id)
                .put(&*worker.address)
                .put(&*worker.version)
                .put(i64::from(worker.code.number))
                .put(layout::lay_code(&worker.code))
                .put(worker.draining)
                .put(worker.cooling.iter().map(|shard| shard_no(*shard)).collect::<Vec<_>>())
                .put(ttl.as_secs_f64() * 1000.0);
            let fleet = fleet(&self.leases.run(RENEW, args).await?)?;
            self.writer.heard_of(&fleet);
            Ok(fleet)
        })
    }

    fn fleet(&self) -> StoreFuture<'_, Fleet> {
        Box::pin(async move {
            fleet(
                &self
                    .leases
                    .read(fleet!("workers WHERE expires_at >= clock_timestamp() - interval '1 hour'"), Args::default())
                    .await?,
            )
        })
    }

    fn leave(&self, id: String) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let sql = "DELETE FROM workers WHERE id = $1";
            self.leases.run(sql, Args::default().put(id)).await.map(drop).map_err(StoreError::from)
        })
    }
}

fn fleet(rows: &[PgRow]) -> Result<Fleet, StoreError> {
    let mut fleet = Fleet::default();
    for row in rows {
        if row.get::<i32>(0)? == 0 {
            let cooling: Vec<i32> =
                sqlx::Row::try_get(row, 9).map_err(|error| StoreError::Corrupt(error.to_string()))?;
            let worker = Worker {
                code: code(row, 5, 10)?,
                cooling: cooling.into_iter().filter_map(|shard| ShardNo::try_from(shard).ok()).collect(),
                id: row.get(2)?,
                address: row.get(3)?,
                version: row.get(4)?,
                draining: row.get(6)?,
            };
            fleet.workers.push(WorkerRow { worker, expires_in: row.get(7)? });
        } else {
            fleet.shards.push(LeaseRow {
                shard: row.number(1)?,
                owner: row.get(2)?,
                epoch: row.number(8)?,
                code: code(row, 5, 10)?,
            });
        }
    }
    Ok(fleet.level())
}

/// A code, from the columns that hold its number and its versions.
fn code(row: &PgRow, number: usize, versions: usize) -> Result<Code, StoreError> {
    layout::code(row.number(number)?, &row.get::<String>(versions)?)
}

/// The number of times that a takeover reads the owner when other takeovers come in between.
const TAKE_TRIES: u32 = 3;

/// An owner as it was read.
struct SeenOwner {
    owner: Option<String>,
    epoch: i64,
    code: Code,
    alive: bool,
}

async fn seen(links: &Links, shard: ShardNo, wanted: u32) -> Result<SeenOwner, StoreError> {
    let sql = "SELECT s.owner, s.epoch, s.code_version, coalesce(w.expires_at > clock_timestamp(), false), n.shards,
            s.code_versions::text
        FROM (SELECT count(*) AS shards FROM shards) AS n LEFT JOIN shards s ON s.shard = $1
        LEFT JOIN workers w ON w.id = s.owner";
    let rows = links.run(sql, Args::default().put(shard_no(shard))).await?;
    let missing = || StoreError::Corrupt(format!("there is no shard {shard}"));
    let row: &PgRow = rows.first().ok_or_else(missing)?;
    let recorded = row.number(4)?;
    if recorded != wanted {
        return Err(StoreError::Shards { recorded, wanted });
    }
    Ok(SeenOwner { owner: row.get(0)?, epoch: row.get(1)?, code: code(row, 2, 5)?, alive: row.get(3)? })
}

/// Takes the shard if it is as it was read and has no other owner that is alive.
pub(super) async fn take(
    links: &Links,
    shard: ShardNo,
    owner: &str,
    prepared: &Prepared,
) -> Result<TakenShard, StoreError> {
    let (ours, shards) = (&prepared.code, prepared.shards);
    let sql = format!(
        "UPDATE shards s SET epoch = epoch + 1, owner = $2, code_version = $3, code_versions = $7::json,
             unclean = unclean + CASE WHEN owner <> $2 THEN 1 ELSE 0 END
         WHERE shard = $1 AND epoch = $4 AND owner IS NOT DISTINCT FROM $5
             AND (SELECT count(*) FROM shards) = $6
             AND (owner IS NULL OR owner = $2
                 OR NOT EXISTS (SELECT 1 FROM workers w WHERE w.id = s.owner AND w.expires_at > clock_timestamp()))
         RETURNING {}",
        decode::SHARD
    );
    let mut first: Option<SeenOwner> = None;
    for _ in 0..TAKE_TRIES {
        let now = seen(links, shard, shards).await?;
        if let Some(behind) = ours.behind(&now.code) {
            return Err(StoreError::CodeVersion { shard, behind });
        }
        // It changes only together with the epoch, which is compared.
        let seen = now.code.clone().and(ours);
        let other = now.owner.clone().filter(|there| there != owner);
        let raced = first.as_ref().is_some_and(|first| first.epoch != now.epoch);
        if let Some(other) = other.filter(|_| now.alive || raced) {
            return Err(StoreError::Owned { shard, owner: other });
        }
        let args = Args::default()
            .put(shard_no(shard))
            .put(owner)
            .put(i64::from(seen.number))
            .put(now.epoch)
            .put(now.owner.as_deref())
            .put(i64::from(shards))
            .put(layout::lay_code(&seen));
        let rows = links.run(AssertSqlSafe(sql.clone()), args).await?;
        if let Some(row) = rows.first() {
            // Nothing had changed since it was read.
            let died = now.owner.is_some_and(|before| before != owner);
            return Ok(TakenShard { died, ..decode::shard(row)? });
        }
        first = Some(now);
    }
    Err(StoreError::Unavailable(format!("shard {shard} changes its owner again and again")))
}
