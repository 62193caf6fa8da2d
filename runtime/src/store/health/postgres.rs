//! The health of a store in PostgreSQL.
//! In: connections. Out: [`StoreHealth`].

use super::{ReplicationSlot, ServerHealth, StoreHealth, services, shards};
use crate::store::StoreError;
use crate::store::query::sql::{Cells, Sql, one};

/// The server.
const SERVER: &str = "SELECT current_setting('server_version_num')::bigint,
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint, (SELECT coalesce(max(version), 0) FROM _sqlx_migrations),
    pg_database_size(current_database()), pg_is_in_recovery(),
    (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL),
    (SELECT age(datfrozenxid)::bigint FROM pg_database WHERE datname = current_database())";

/// Settings that decide whether what was committed is there after a crash, or that sessions depend on.
const SETTINGS: &str = "SELECT name, setting FROM pg_settings WHERE name IN ('fsync',
    'full_page_writes', 'synchronous_commit', 'synchronous_standby_names', 'autovacuum', 'max_connections',
    'default_transaction_read_only', 'idle_in_transaction_session_timeout', 'wal_level')";

/// Replication slots.
const SLOTS: &str = "SELECT slot_name::text, active, greatest(coalesce(pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
        restart_lsn), 0), 0)::bigint
    FROM pg_replication_slots ORDER BY slot_name";

/// The size of the write-ahead log, which not every role may look at.
const WAL: &str = "SELECT coalesce(sum(size), 0)::bigint FROM pg_ls_waldir()";

/// The health of the store.
pub(in crate::store) async fn health(db: &impl Sql) -> Result<StoreHealth, StoreError> {
    let settings = db.rows(SETTINGS, &[]).await?;
    let mut server = one(&db.rows(SERVER, &[]).await?, |row| server(row, &settings))?;
    server.slots = db.rows(SLOTS, &[]).await?.iter().map(slot).collect::<Result<_, _>>()?;
    // Not everybody may look there.
    server.wal_bytes = match db.rows(WAL, &[]).await {
        Ok(rows) => Some(one(&rows, |row| row.number(0))?),
        Err(_) => None,
    };
    Ok(StoreHealth { server, shards: shards(db).await?, services: services(db).await? })
}

/// A row of [`SERVER`] and the rows of [`SETTINGS`].
fn server<R: Cells>(row: &R, settings: &[R]) -> Result<ServerHealth, StoreError> {
    Ok(ServerHealth {
        version: row.number(0)?,
        now: Some(row.number(1)?),
        format: row.number(2)?,
        bytes: row.number(3)?,
        is_standby: row.get(4)?,
        sessions: row.number(5)?,
        frozen_age: row.number(6)?,
        settings: settings.iter().map(|row| Ok((row.get(0)?, row.get(1)?))).collect::<Result<_, StoreError>>()?,
        ..ServerHealth::default()
    })
}

/// A row of [`SLOTS`].
fn slot(row: &impl Cells) -> Result<ReplicationSlot, StoreError> {
    Ok(ReplicationSlot { name: row.get(0)?, is_active: row.get(1)?, kept_bytes: row.number(2)? })
}
