//! The set-up of a store: migrations, shards, services' numbers, handlers' tables.
//! In: a connection and a [`Setup`]. Out: the store's [`Identity`].

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection, query, query_scalar};

use super::args::untyped;
use super::failure::{failed, open_error};
use super::{BUSY_TIMEOUT, SqliteStore, place, tables};
use crate::store::query::decode;
use crate::store::{Identity, Setup, StoreError};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Asks for some tables of others. The name of the migrations' table is ours, too: a process may have died behind it.
const FOREIGN: &str = "SELECT name FROM sqlite_master
    WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name <> '_sqlx_migrations' ORDER BY name LIMIT 3";

impl SqliteStore {
    /// Checks that `url` can be read as the address of a store.
    pub(in crate::store) fn check_url(url: &str) -> Result<(), StoreError> {
        place::path(url).map(drop)
    }

    /// Some tables of others in the file at `url`, if no store was made in it yet. The file is only read.
    pub(in crate::store) async fn foreign(url: &str) -> Result<Vec<String>, StoreError> {
        let path = place::path(url)?;
        if !path.exists() {
            return Ok(Vec::new());
        }
        let failed = |error: sqlx::Error| open_error(&path, &error);
        let options = SqliteConnectOptions::new().filename(&path).read_only(true).busy_timeout(BUSY_TIMEOUT);
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(failed)?;
        let mut found = Vec::new();
        if format(&mut connection).await.map_err(failed)? == 0 {
            found = query_scalar(FOREIGN).fetch_all(&mut connection).await.map_err(failed)?;
        }
        connection.close().await.map_err(failed)?;
        Ok(found)
    }
}

/// The format that the store has, 0 for an empty file; refuses one that is newer than this program.
pub(super) async fn format(connection: &mut SqliteConnection) -> Result<u32, sqlx::Error> {
    let there: i64 = query_scalar("SELECT count(*) FROM sqlite_master WHERE name IN ('_sqlx_migrations', 'shards')")
        .fetch_one(&mut *connection)
        .await?;
    if there < 2 {
        return Ok(0);
    }
    let found: Option<i64> = query_scalar("SELECT max(version) FROM _sqlx_migrations").fetch_one(connection).await?;
    Ok(found.map_or(0, |found| u32::try_from(found).unwrap_or(u32::MAX)))
}

/// The newest format that this program knows.
pub(super) fn newest() -> u32 {
    let newest = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or(0);
    u32::try_from(newest).unwrap_or(u32::MAX)
}

/// Refuses a format that this program does not know.
pub(super) fn known(found: u32) -> Result<u32, StoreError> {
    let known = newest();
    if found > known { Err(StoreError::Newer { found, known }) } else { Ok(found) }
}

/// Refuses each format but the current one, for a process that does not run the store.
pub(super) fn current(found: u32) -> Result<(), StoreError> {
    let known = newest();
    if self::known(found)? < known { Err(StoreError::Older { found, known }) } else { Ok(()) }
}

/// Sets the store up, or does nothing: no other process sees a half-made store during a first start, or after one that
/// was killed.
pub(super) async fn prepare(connection: &mut SqliteConnection, setup: &Setup) -> Result<Identity, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    known(format(&mut transaction).await.map_err(failed)?)?;
    MIGRATIONS.run_direct(None, &mut *transaction, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => failed(error),
        other => StoreError::Corrupt(format!("the store's format cannot be brought up to date: {other}")),
    })?;
    shards(&mut transaction, setup.shards).await?;
    let services = services(&mut transaction, &setup.services).await?;
    for table in &setup.tables {
        tables::prepare(&mut transaction, table).await?;
    }
    let hash_key = hash_key(&mut transaction).await?;
    // A file does not tell where it comes from: each process that runs it takes it for restored.
    query(
        "INSERT INTO meta (name, value) VALUES ('life', hex(randomblob(16)))
         ON CONFLICT (name) DO UPDATE SET value = excluded.value",
    )
    .execute(&mut *transaction)
    .await
    .map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok(Identity { hash_key, services })
}

async fn shards(connection: &mut SqliteConnection, wanted: u32) -> Result<(), StoreError> {
    let recorded: u32 =
        query_scalar("SELECT count(*) FROM shards").fetch_one(&mut *connection).await.map_err(failed)?;
    if recorded == wanted {
        return Ok(());
    }
    if recorded > 0 {
        return Err(StoreError::Shards { recorded, wanted });
    }
    query(
        "WITH RECURSIVE numbers (no) AS (SELECT 0 UNION ALL SELECT no + 1 FROM numbers WHERE no + 1 < ?1)
         INSERT INTO shards (shard) SELECT no FROM numbers;
         INSERT INTO meta (name, value) VALUES ('hash_key', hex(randomblob(32)))",
    )
    .bind(wanted)
    .execute(connection)
    .await
    .map(drop)
    .map_err(failed)
}

async fn services(
    connection: &mut SqliteConnection,
    wanted: &[Arc<str>],
) -> Result<BTreeMap<Arc<str>, u16>, StoreError> {
    for name in wanted {
        // Rows are never deleted, so the next number was never used.
        query(
            "INSERT INTO services (number, name) SELECT coalesce(max(number), 0) + 1, ?1 FROM services WHERE true
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(&**name)
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    }
    let rows = query(AssertSqlSafe(untyped(decode::NUMBERS))).fetch_all(connection).await.map_err(failed)?;
    decode::services(&rows)
}

/// The key that ids are hashed under.
pub(super) async fn hash_key(connection: &mut SqliteConnection) -> Result<[u8; 32], StoreError> {
    let row = query("SELECT unhex(value) FROM meta WHERE name = 'hash_key'")
        .fetch_optional(connection)
        .await
        .map_err(failed)?
        .ok_or_else(|| StoreError::Corrupt("the key that ids are hashed under is missing".to_owned()))?;
    let raw: Vec<u8> = row.try_get(0).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    raw.try_into().map_err(|_| StoreError::Corrupt("the key that ids are hashed under is cut".to_owned()))
}
