//! Who is alive and who owns what, in the tables `workers` and `shards`, by the server's clock.
//! In: signs of life. Out: all workers and shards, in one round trip on a connection of its own.

use std::time::Duration;

use sqlx::postgres::PgRow;

use super::commit::shard_no;
use super::links::Args;
use super::{PgStore, decode};
use crate::message::ShardNo;
use crate::store::lease::{Fleet, LeaseRow, Leases, Worker, WorkerRow};
use crate::store::{StoreError, StoreFuture};

/// Both tables as one list: workers first, by id, then shards.
macro_rules! fleet {
    ($workers:literal) => {
        concat!(
            "SELECT 0 AS kind, 0::bigint AS shard, id, address, version, code_version, draining,
                 (extract(epoch FROM expires_at - clock_timestamp()) * 1000)::bigint AS expires_in, 0::bigint AS epoch, cooling
             FROM ",
            $workers,
            " UNION ALL
             SELECT 1, shard::bigint, owner, '', '', code_version, false, 0, epoch, '{}'::integer[] FROM shards
             ORDER BY kind, shard, id"
        )
    };
}

/// Workers whose time has long passed are forgotten on the way.
const RENEW: &str = concat!(
    "WITH me AS (
        INSERT INTO workers (id, address, version, code_version, draining, cooling, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp() + $7 * interval '1 millisecond')
        ON CONFLICT (id) DO UPDATE SET address = excluded.address, version = excluded.version,
            code_version = excluded.code_version, draining = excluded.draining, cooling = excluded.cooling,
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
                .put(i64::from(worker.code_version))
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
        if decode::get::<i32>(row, 0)? == 0 {
            let cooling: Vec<i32> = decode::get(row, 9)?;
            let worker = Worker {
                cooling: cooling.into_iter().filter_map(|shard| ShardNo::try_from(shard).ok()).collect(),
                id: decode::get(row, 2)?,
                address: decode::get(row, 3)?,
                version: decode::get(row, 4)?,
                code_version: decode::number(row, 5)?,
                draining: decode::get(row, 6)?,
            };
            fleet.workers.push(WorkerRow { worker, expires_in: decode::get(row, 7)? });
        } else {
            fleet.shards.push(LeaseRow {
                shard: decode::number(row, 1)?,
                owner: decode::get(row, 2)?,
                epoch: decode::number(row, 8)?,
                code_version: decode::number(row, 5)?,
            });
        }
    }
    Ok(fleet)
}
