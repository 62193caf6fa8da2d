//! The set-up of a store: migrations, shards, services' numbers, handlers' tables.
//! In: a connection of its own and a [`Setup`]. Out: the store's [`Identity`].

use std::sync::LazyLock;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, Connection, PgConnection, query, query_scalar, raw_sql};
use tracing::info;

use super::failure::PgFailure;
use super::links::{self, Args};
use super::place::PgPlace;
use super::{PgStore, tables};
use crate::clock::sleep;
use crate::handler::Table;
use crate::store::query::decode;
use crate::store::query::sql::Cells;
use crate::store::{Identity, Setup, StoreError, declared};

/// The migrations, without the driver's own lock: that belongs to a session, and behind a pooler the statement that
/// releases it may reach another one. [`LOCK`] ends with its transaction.
static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!("migrations/postgres");
    migrations.set_locking(false);
    migrations
});

/// The lock under which the processes that set up the store of this database do so one after the other; its number is
/// arbitrary. Notices about what exists already are suppressed.
const LOCK: &str =
    "SELECT pg_advisory_xact_lock(5783261409127364001), set_config('client_min_messages', 'warning', true)";

/// Pause before the lock is asked for again.
const AGAIN: Duration = Duration::from_millis(250);
/// The number of times that an index is made which the server gave up for a deadlock.
const TRIES: u32 = 5;
/// The lock of a process that makes indexes in this database; its number is arbitrary.
const INDEXES: &str = "SELECT pg_try_advisory_xact_lock(5783261409127364002)";
/// Asks for the index of this name: true if it is complete.
const STATE: &str = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(quote_ident($1))";

/// Asks whether there is a store.
pub(super) const THERE: &str = "SELECT coalesce(to_regclass('_sqlx_migrations') IS NOT NULL
    AND to_regclass('shards') IS NOT NULL, false)";
/// Asks for the key that ids are hashed under.
pub(super) const HASH_KEY: &str = "SELECT decode(value, 'hex') FROM meta WHERE name = 'hash_key'";

/// Asks for some tables of others in the schema in which the store would be made, if there is no store yet. Tables of
/// extensions do not count.
const FOREIGN: &str = "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'f') AND n.nspname = current_schema() AND c.relname <> '_sqlx_migrations'
    AND NOT (to_regclass('_sqlx_migrations') IS NOT NULL AND to_regclass('shards') IS NOT NULL)
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY c.relname LIMIT 3";

/// The number of the newest migration that was run.
pub(super) const NEWEST: &str = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations";

impl PgStore {
    /// Checks that `url` can be read as the address of a store.
    pub(in crate::store) fn check_url(url: &str, statement_timeout: Duration) -> Result<(), StoreError> {
        PgPlace::of(url, statement_timeout).map(drop)
    }

    /// Some tables of others, if no store was made yet.
    pub(in crate::store) async fn foreign(&self) -> Result<Vec<String>, StoreError> {
        let rows = self.queries.read(FOREIGN, Args::default()).await?;
        rows.iter().map(|row| Ok(row.text(0)?.to_string())).collect()
    }
}

/// Asks for the number of migrations that were run.
const RUN: &str = "SELECT count(*) FROM _sqlx_migrations";

/// The number of migrations that this program has.
fn all() -> i64 {
    i64::try_from(MIGRATIONS.iter().count()).unwrap_or(i64::MAX)
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

/// Sets the store up; if something is refused, only migrations have happened. It must not be cancelled: it holds a
/// transaction.
pub(super) async fn prepare(connection: &mut PgConnection, setup: &Setup) -> Result<Identity, StoreError> {
    encoded(connection).await?;
    migrate(connection).await?;
    warn_of_lost_commits(connection).await;
    let mut transaction = connection.begin().await.map_err(failed)?;
    query(LOCK).execute(&mut *transaction).await.map_err(failed)?;
    shards(&mut transaction, setup.shards).await?;
    for name in &setup.services {
        // Rows are never deleted, so the next number was never used.
        query(
            "INSERT INTO services (number, name) SELECT coalesce(max(number), 0) + 1, $1 FROM services
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(&**name)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    }
    for table in &setup.tables {
        tables::prepare(&mut transaction, table).await?;
    }
    let services = decode::services(&query(decode::NUMBERS).fetch_all(&mut *transaction).await.map_err(failed)?)?;
    let hash_key = hash_key(&query(HASH_KEY).fetch_all(&mut *transaction).await.map_err(failed)?)?;
    transaction.commit().await.map_err(failed)?;
    Ok(Identity { hash_key, services })
}

/// An index that is declared and missing, or incomplete.
struct Missing<'a> {
    table: &'a Table,
    index: &'a [&'static str],
    name: String,
    half: bool,
}

/// Makes the missing indexes of existing tables while others write these; an incomplete one is made anew. Returns when
/// none is missing. It must not be cancelled: it holds a transaction.
///
/// An index that is made concurrently waits for every transaction that sees the table as it was, and must itself be
/// made outside a transaction. So its maker holds a lock in a transaction of another connection; others try that lock,
/// but never wait in a transaction.
pub(super) async fn indexes(
    connection: &mut PgConnection,
    options: &PgConnectOptions,
    tables: &[Table],
) -> Result<(), StoreError> {
    let mut guard: Option<PgConnection> = None;
    while !missing(connection, tables).await?.is_empty() {
        let guard = match &mut guard {
            Some(guard) => guard,
            none => {
                let connected = PgConnection::connect_with(options).await;
                let unreachable = |error| StoreError::Unavailable(links::unreachable(options, &error));
                none.insert(connected.map_err(unreachable)?)
            }
        };
        let mut turn = guard.begin().await.map_err(failed)?;
        query("SET LOCAL idle_in_transaction_session_timeout = 0").execute(&mut *turn).await.map_err(failed)?;
        let mine: bool = query_scalar(INDEXES).fetch_one(&mut *turn).await.map_err(failed)?;
        if mine {
            for missing in missing(connection, tables).await? {
                make(connection, &missing).await?;
            }
        }
        turn.rollback().await.map_err(failed)?;
        if !mine {
            sleep(AGAIN).await;
        }
    }
    if let Some(guard) = guard {
        guard.close().await.map_err(failed)?;
    }
    Ok(())
}

async fn missing<'a>(connection: &mut PgConnection, tables: &'a [Table]) -> Result<Vec<Missing<'a>>, StoreError> {
    let mut all = Vec::new();
    for table in tables {
        for index in table.indexes {
            let name = declared::index_name(table, index);
            let complete: Option<bool> =
                query_scalar(STATE).bind(&name).fetch_optional(&mut *connection).await.map_err(failed)?;
            if complete != Some(true) {
                all.push(Missing { table, index, name, half: complete.is_some() });
            }
        }
    }
    Ok(all)
}

async fn make(connection: &mut PgConnection, missing: &Missing<'_>) -> Result<(), StoreError> {
    let (table, name) = (missing.table, &missing.name);
    info!(table = table.name, index = name, half_made = missing.half, "index is made, while others write its table");
    let mut drops = missing.half;
    for attempt in 1.. {
        let drop = drops.then(|| format!("DROP INDEX CONCURRENTLY IF EXISTS \"{name}\""));
        let create = tables::create_index(table, missing.index, "CONCURRENTLY ");
        let mut made = Ok(());
        for sql in drop.into_iter().chain([create]) {
            made = raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await.map(|_| ());
            if made.is_err() {
                break;
            }
        }
        match made.map_err(|error| PgFailure::of(&error)) {
            Ok(()) => return Ok(()),
            // A part of it exists by then.
            Err(PgFailure::Again(_) | PgFailure::Locked(_)) if attempt < TRIES => drops = true,
            Err(PgFailure::Refused { error, .. }) => return Err(declared::wrong(table, error)),
            Err(failure) => return Err(failure.into()),
        }
    }
    Ok(())
}

/// Checks the encoding: one that lacks some characters of messages would refuse whole commits.
async fn encoded(connection: &mut PgConnection) -> Result<(), StoreError> {
    let sql = "SELECT current_setting('server_encoding')";
    let encoding: String = query_scalar(sql).fetch_one(connection).await.map_err(failed)?;
    if encoding == "UTF8" {
        return Ok(());
    }
    let how = "make one with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0";
    Err(StoreError::Url(format!("names a database with the encoding {encoding}, it must be UTF8: {how}")))
}

/// Runs in one transaction, in which a pooler keeps to one server connection. Without pending migrations it only reads,
/// so that the role that works with the store need not own it.
async fn migrate(connection: &mut PgConnection) -> Result<(), StoreError> {
    let mut transaction = connection.begin().await.map_err(failed)?;
    query(LOCK).execute(&mut *transaction).await.map_err(failed)?;
    let found = known(format(&mut transaction).await.map_err(failed)?)?;
    if found == newest() && query_scalar::<_, i64>(RUN).fetch_one(&mut *transaction).await.map_err(failed)? == all() {
        return transaction.commit().await.map_err(failed);
    }
    MIGRATIONS.run_direct(None, &mut *transaction, false).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => failed(error),
        other => StoreError::Corrupt(format!("the store's format cannot be brought up to date: {other}")),
    })?;
    transaction.commit().await.map_err(failed)
}

/// The key that ids are hashed under.
pub(super) fn hash_key(rows: &[PgRow]) -> Result<[u8; 32], StoreError> {
    let missing = || StoreError::Corrupt("the key that ids are hashed under is missing".to_owned());
    let raw: &[u8] = rows.first().ok_or_else(missing)?.get(0)?;
    raw.try_into().map_err(|_| StoreError::Corrupt("the key that ids are hashed under is cut".to_owned()))
}

async fn format(connection: &mut PgConnection) -> Result<u32, sqlx::Error> {
    if !query_scalar::<_, bool>(THERE).fetch_one(&mut *connection).await? {
        return Ok(0);
    }
    let found: i64 = query_scalar(NEWEST).fetch_one(connection).await?;
    Ok(u32::try_from(found).unwrap_or(u32::MAX))
}

async fn shards(connection: &mut PgConnection, wanted: u32) -> Result<(), StoreError> {
    let recorded: i64 =
        query_scalar("SELECT count(*) FROM shards").fetch_one(&mut *connection).await.map_err(failed)?;
    let recorded = u32::try_from(recorded).unwrap_or(u32::MAX);
    if recorded == wanted {
        return Ok(());
    }
    if recorded > 0 {
        return Err(StoreError::Shards { recorded, wanted });
    }
    // Four random UUIDs have far more randomness than the 256 bits that are kept.
    query(
        "WITH made AS (INSERT INTO shards (shard) SELECT no FROM generate_series(0, $1::integer - 1) no)
         INSERT INTO meta (name, value) VALUES ('shards', $1::text), ('hash_key', encode(sha256(
             uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
             || uuid_send(gen_random_uuid())), 'hex'))",
    )
    .bind(i32::try_from(wanted).unwrap_or(i32::MAX))
    .execute(connection)
    .await
    .map(drop)
    .map_err(failed)
}

/// Warns of a server that confirms commits before they are on disk: it may lose them in a crash.
async fn warn_of_lost_commits(connection: &mut PgConnection) {
    let safe = "SELECT current_setting('fsync') = 'on' AND current_setting('synchronous_commit') <> 'off'";
    match query_scalar::<_, bool>(safe).fetch_one(connection).await {
        Ok(true) => {}
        Ok(false) => tracing::warn!("fsync or synchronous_commit is off: a crash of the server can lose commits"),
        Err(error) => tracing::warn!(%error, "whether the server keeps commits in a crash cannot be told"),
    }
}

fn failed(error: sqlx::Error) -> StoreError {
    PgFailure::of(&error).into()
}
