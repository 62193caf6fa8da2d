//! What PostgreSQL tells of a store.
//! In: rows of the statements here. Out: [`Health`](super::Health)'s parts.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{SERVICES, SHARDS, ServerHealth, ServiceHealth, ShardHealth, Slot, earlier};
use crate::store::StoreError;

/// The server.
pub(in crate::store) const SERVER: &str = "SELECT current_setting('server_version_num')::bigint,
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint, (SELECT coalesce(max(version), 0) FROM _sqlx_migrations),
    pg_database_size(current_database()), pg_is_in_recovery(),
    (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL),
    (SELECT age(datfrozenxid)::bigint FROM pg_database WHERE datname = current_database())";

/// Settings that decide whether what was committed is there after a crash, or that sessions depend on.
pub(in crate::store) const SETTINGS: &str = "SELECT name, setting FROM pg_settings WHERE name IN ('fsync',
    'full_page_writes', 'synchronous_commit', 'synchronous_standby_names', 'autovacuum', 'max_connections',
    'default_transaction_read_only', 'idle_in_transaction_session_timeout', 'wal_level')";

/// Replication slots.
pub(in crate::store) const SLOTS: &str = "SELECT slot_name::text, active, greatest(coalesce(pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
        restart_lsn), 0), 0)::bigint
    FROM pg_replication_slots ORDER BY slot_name";

/// The write-ahead log, which not everybody may look at.
pub(in crate::store) const WAL: &str = "SELECT coalesce(sum(size), 0)::bigint FROM pg_ls_waldir()";

/// Asks for the shards.
pub(in crate::store) fn shards_sql() -> String {
    let columns = "shard::bigint, ids::bigint, oldest, newest, latest, waits, rings, held";
    format!("SELECT {columns} FROM ({SHARDS}) AS found ORDER BY shard")
}

/// Asks for the services.
pub(in crate::store) fn services_sql() -> String {
    let columns = "service, pending::bigint, timers::bigint, dead::bigint, at";
    format!("SELECT {columns} FROM ({SERVICES}) AS found ORDER BY service")
}

/// A row of [`SERVER`] and the rows of [`SETTINGS`].
pub(in crate::store) fn server(row: &PgRow, settings: &[PgRow]) -> Result<ServerHealth, StoreError> {
    Ok(ServerHealth {
        version: number(row, 0)?,
        now: Some(number(row, 1)?),
        format: number(row, 2)?,
        bytes: number(row, 3)?,
        is_standby: row.try_get(4).map_err(|error| corrupt(&error))?,
        sessions: number(row, 5)?,
        frozen_age: number(row, 6)?,
        settings: settings.iter().map(|row| Ok((text(row, 0)?, text(row, 1)?))).collect::<Result<_, StoreError>>()?,
        ..ServerHealth::default()
    })
}

/// A row of [`SLOTS`].
pub(in crate::store) fn slot(row: &PgRow) -> Result<Slot, StoreError> {
    let is_active = row.try_get(1).map_err(|error| corrupt(&error))?;
    Ok(Slot { name: text(row, 0)?, is_active, kept_bytes: number(row, 2)? })
}

/// The row of [`WAL`].
pub(in crate::store) fn wal(row: &PgRow) -> Result<u64, StoreError> {
    number(row, 0)
}

/// A row of [`shards_sql`].
pub(in crate::store) fn shard(row: &PgRow) -> Result<ShardHealth, StoreError> {
    Ok(ShardHealth {
        shard: number(row, 0)?,
        ids: number(row, 1)?,
        oldest_at: maybe(row, 2)?,
        newest_at: maybe(row, 3)?,
        latest_at: maybe(row, 4)?,
        due_at: earlier(maybe(row, 5)?, maybe(row, 6)?),
        held_at: maybe(row, 7)?,
    })
}

/// A row of [`services_sql`].
pub(in crate::store) fn service(row: &PgRow) -> Result<ServiceHealth, StoreError> {
    Ok(ServiceHealth {
        service: text(row, 0)?,
        pending: number(row, 1)?,
        timers: number(row, 2)?,
        dead_letters: number(row, 3)?,
        dead_at: maybe(row, 4)?,
    })
}

fn text(row: &PgRow, at: usize) -> Result<String, StoreError> {
    row.try_get(at).map_err(|error| corrupt(&error))
}

fn maybe<T: TryFrom<i64>>(row: &PgRow, at: usize) -> Result<Option<T>, StoreError> {
    let raw: Option<i64> = row.try_get(at).map_err(|error| corrupt(&error))?;
    Ok(raw.and_then(|raw| T::try_from(raw).ok()))
}

fn number<T: TryFrom<i64>>(row: &PgRow, at: usize) -> Result<T, StoreError> {
    maybe(row, at)?.ok_or_else(|| StoreError::Corrupt(format!("no number in column {at} of what the server tells")))
}

fn corrupt(error: &sqlx::Error) -> StoreError {
    StoreError::Corrupt(error.to_string())
}
