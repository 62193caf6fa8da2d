//! The store in one SQLite file: one process runs it, others read and leave requests.
//! In: `store.url`. Out: [`Store`] and [`Queries`] over one writing connection and a few that read.

mod args;
mod calls;
mod failure;
mod group;
mod place;
mod queries;
mod read;
mod schema;
mod tables;
mod waiting;
mod wal;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection, query, query_scalar};

use self::failure::{failed, open_error};
use self::group::Piece;
use self::writer::SqliteWriter;
pub use super::Access;
use super::calls::CallStore;
use super::health::{self, Disk};
use super::query::sql::signed;
use super::query::{DeadFilter, EventRow, Queries, ask, decode};
use super::reshard::{self, ReshardError, Resharded};
use super::watch::LogWatch;
use super::{
    Commit, CommitOutcome, DeadLetter, DeadPlace, Due, DueTimers, Epoch, Identity, InboxRows, KeyRow, Letters,
    OfService, OldLetters, PendingRow, Runnable, ServiceKey, Setup, Store, StoreError, StoreFuture, StoredLogRow,
    TakenShard, Timer, Trim,
};
use crate::clock::Millis;
use crate::message::{Positions, ShardNo, TakenId};

/// The time for which a connection waits for another one's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that read.
const READERS_MAX: u32 = 4;
/// Pages (of 4 KiB) in the write-ahead log before they are copied into the file. A hot state is copied once per this
/// many pages instead of with every other commit, which would be most of a commit's system time.
const CHECKPOINT_PAGES: &str = "8000";
/// Rows of each kind that one [`Store::trim`] removes.
const TRIM_ROWS: i64 = 10_000;

/// A store in a SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    access: Access,
    path: PathBuf,
    writer: SqliteWriter,
    readers: SqlitePool,
    services: OnceLock<BTreeMap<Arc<str>, u16>>,
    watch: Arc<LogWatch>,
}

impl SqliteStore {
    /// Opens the store at `url`. With [`Access::Run`] the file is made if it is missing, and locked until the store is
    /// closed; with [`Access::Tool`] it must have been prepared by a process that ran it.
    pub async fn open(url: &str, access: Access) -> Result<Self, StoreError> {
        let path = place::path(url)?;
        let mut options = SqliteConnectOptions::new()
            .filename(&path)
            .busy_timeout(BUSY_TIMEOUT)
            .row_buffer_size(256)
            .pragma("cache_size", "-20000")
            .pragma("temp_store", "memory")
            .disable_statement_logging();
        // Not opened read-only: the last process to close the file copies the log into it, and that may be a tool.
        let readers = options.clone().pragma("query_only", "on");
        options = options.synchronous(SqliteSynchronous::Full).pragma("wal_autocheckpoint", CHECKPOINT_PAGES);
        let (connection, lock) = match access {
            Access::Run => {
                let lock = place::lock(&path).await?;
                place::make(&path);
                options = options.create_if_missing(true).journal_mode(SqliteJournalMode::Wal);
                let connection = connect_to_run(&options).await;
                (Some(connection.map_err(|error| open_error(&path, &error))?), Some(lock))
            }
            Access::Tool | Access::Serve if !path.exists() => {
                let path = path.display();
                let why = "it is made by the process that runs it; or store.url names another file";
                return Err(StoreError::Unavailable(format!("there is no store at {path} yet: {why}")));
            }
            Access::Tool | Access::Serve => (None, None),
        };
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .min_connections(0)
            .acquire_timeout(BUSY_TIMEOUT)
            .test_before_acquire(false)
            .connect_lazy_with(readers);
        let watch = Arc::new(LogWatch::default());
        let writer = SqliteWriter::start(&path, options, connection, lock, Arc::clone(&watch));
        let store = Self { access, path, writer, readers, services: OnceLock::new(), watch };
        match store.check_format().await {
            Ok(()) => Ok(store),
            Err(error) => {
                store.close().await;
                Err(error)
            }
        }
    }

    /// True if a process runs the store at `url` now.
    pub fn is_running(url: &str) -> bool {
        place::path(url).is_ok_and(|path| place::is_locked(&path))
    }

    /// The disk on which the file of the store at `url` lies, with the room left there.
    pub fn disk(url: &str) -> Option<Disk> {
        health::sqlite::disk(&place::path(url).ok()?)
    }

    /// Writes what was handed over, closes the file and gives the lock up: then the one file is the whole store, unless
    /// another program has it open. Without this call the same happens a little later, if the process lives that long.
    pub async fn close(&self) {
        // Before the writer: it copies the log into the file, and nobody may still read an older state.
        if tokio::time::timeout(BUSY_TIMEOUT, self.readers.close()).await.is_err() {
            tracing::warn!("something still reads the store, which is closed");
        }
        self.writer.close().await;
    }

    /// Bounds the size of the `-wal` file: above it the store answers as on a full disk, until the program that reads
    /// it in one long transaction has ended.
    pub fn limit_wal(&self, bytes: u64) {
        self.writer.limit_wal(bytes);
    }

    /// Bounds the file's size in pages (of 4 KiB) while this store is open: at the bound it answers as on a full disk.
    pub async fn limit_pages(&self, pages: u32) -> Result<(), StoreError> {
        let bound = self.writer.call(move |connection| {
            let sql = AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
            Box::pin(async move { query(sql).execute(connection).await.map(drop).map_err(failed) })
        });
        bound.await
    }

    /// Changes the store's number of shards, while nobody else runs it; `sinks` are those that events go to.
    pub async fn reshard(&self, to: u32, sinks: Vec<String>) -> Result<Resharded, ReshardError> {
        let resharded = self.writer.call(move |connection| {
            Box::pin(async move { Ok(reshard::on::sqlite::reshard(connection, to, &sinks).await) })
        });
        resharded.await?
    }

    async fn check_format(&self) -> Result<(), StoreError> {
        let mut reader = match self.readers.acquire().await {
            Ok(reader) => reader,
            Err(error) => return Err(open_error(&self.path, &error)),
        };
        let found = schema::format(&mut reader).await.map_err(|error| open_error(&self.path, &error))?;
        match (found, self.access) {
            (_, Access::Run) => schema::known(found).map(drop),
            (0, Access::Tool | Access::Serve) => Err(StoreError::Unavailable(format!(
                "{} is not a store yet: it is prepared by the process that runs it; or store.url names another file",
                self.path.display()
            ))),
            (_, Access::Tool | Access::Serve) => schema::current(found),
        }
    }

    fn only_looks(&self) -> bool {
        self.access != Access::Run
    }

    fn takeover(&self, sql: String, shard: ShardNo, missing: StoreError) -> StoreFuture<'static, TakenShard> {
        if self.only_looks() {
            return Box::pin(async { Err(StoreError::Unavailable(LOOKS.to_owned())) });
        }
        self.writer.call(move |connection| {
            Box::pin(async move {
                // Read to its end: a statement that is reset earlier may not have been written.
                let rows = query(AssertSqlSafe(sql)).bind(shard).fetch_all(connection).await.map_err(failed)?;
                rows.first().map_or(Err(missing), decode::shard)
            })
        })
    }
}

const LOOKS: &str = "it was opened to look, not to run its shards";

async fn connect_to_run(options: &SqliteConnectOptions) -> Result<SqliteConnection, sqlx::Error> {
    let mut connection = SqliteConnection::connect_with(options).await?;
    // A file that cannot be written is noticed now, not at the first commit.
    query("BEGIN IMMEDIATE; ROLLBACK").execute(&mut connection).await?;
    Ok(connection)
}

impl Store for SqliteStore {
    fn prepare(&self, setup: Setup) -> StoreFuture<'_, Identity> {
        Box::pin(async move {
            if self.only_looks() {
                return Err(StoreError::Unavailable(LOOKS.to_owned()));
            }
            let identity = self
                .writer
                .call(|connection| Box::pin(async move { schema::prepare(connection, &setup).await }))
                .await?;
            // A second call sets the same numbers.
            let _ = self.services.set(identity.services.clone());
            Ok(identity)
        })
    }

    fn take(&self, shard: ShardNo, owner: &str) -> StoreFuture<'_, TakenShard> {
        if self.only_looks() {
            return Box::pin(async { Err(StoreError::Unavailable(LOOKS.to_owned())) });
        }
        let owner = owner.to_owned();
        self.writer.call(move |connection| {
            Box::pin(async move {
                let sql = format!(
                    "UPDATE shards SET epoch = epoch + 1, unclean = unclean + (owner <> ?2 AND owner IS NOT NULL), owner = ?2
                     WHERE shard = ?1 RETURNING {}",
                    args::untyped(decode::SHARD)
                );
                let died = "SELECT owner IS NOT NULL AND owner <> ?2 FROM shards WHERE shard = ?1";
                let died = query_scalar::<_, bool>(died).bind(shard).bind(&owner).fetch_optional(&mut *connection).await;
                let missing = StoreError::Corrupt(format!("there is no shard {shard}"));
                let died = died.map_err(failed)?.ok_or_else(|| missing.clone())?;
                let rows = query(AssertSqlSafe(sql)).bind(shard).bind(owner).fetch_all(connection).await;
                let taken = rows.map_err(failed)?.first().map_or(Err(missing), decode::shard)?;
                Ok(TakenShard { died, ..taken })
            })
        })
    }

    fn retake(&self, shard: ShardNo, epoch: Epoch) -> StoreFuture<'_, TakenShard> {
        let sql = format!(
            "UPDATE shards SET epoch = epoch + 1 WHERE shard = ?1 AND epoch = {epoch} RETURNING {}",
            args::untyped(decode::SHARD)
        );
        self.takeover(sql, shard, StoreError::Fenced(shard))
    }

    fn inbox(&self, shard: ShardNo, since: Millis, max: usize) -> StoreFuture<'_, InboxRows> {
        Box::pin(read::inbox(&self.readers, shard, since, max))
    }

    fn known(&self, shard: ShardNo, asked: Vec<(TakenId, String)>) -> StoreFuture<'_, Vec<bool>> {
        Box::pin(async move { waiting::known(&self.readers, shard, &asked).await })
    }

    fn letters(&self, shard: ShardNo) -> StoreFuture<'_, Letters> {
        Box::pin(waiting::letters(&self.readers, shard))
    }

    fn old(&self, shard: ShardNo, after: u64, before: Millis) -> StoreFuture<'_, OldLetters> {
        Box::pin(ask::old(&self.readers, shard, after, before))
    }

    fn load(&self, shard: ShardNo, keys: Vec<ServiceKey>) -> StoreFuture<'_, Vec<KeyRow>> {
        Box::pin(async move { read::load(&self.readers, shard, &keys).await })
    }

    fn due(&self, shard: ShardNo, now: Millis, runnable: Runnable, limit: usize) -> StoreFuture<'_, Due> {
        Box::pin(async move { waiting::due(&self.readers, shard, now, &runnable, limit).await })
    }

    fn orphans(
        &self,
        shard: ShardNo,
        runnable: Runnable,
        after: Option<ServiceKey>,
        limit: usize,
    ) -> StoreFuture<'_, Vec<ServiceKey>> {
        Box::pin(async move { waiting::orphans(&self.readers, shard, &runnable, after, limit).await })
    }

    fn page(&self, shard: ShardNo, key: ServiceKey, after: u64, limit: usize) -> StoreFuture<'_, Vec<PendingRow>> {
        Box::pin(read::page(&self.readers, shard, key, after, limit))
    }

    fn timers(&self, shard: ShardNo, now: Millis, runnable: Runnable, limit: usize) -> StoreFuture<'_, DueTimers> {
        Box::pin(async move { waiting::timers(&self.readers, shard, now, &runnable, limit).await })
    }

    fn of_service(&self, shard: ShardNo, service: Arc<str>, limit: usize) -> StoreFuture<'_, OfService> {
        Box::pin(ask::of_service(&self.readers, shard, service, limit))
    }

    fn schedules(&self, shard: ShardNo) -> StoreFuture<'_, Vec<Timer>> {
        Box::pin(ask::schedules(&self.readers, shard))
    }

    fn dead(
        &self,
        shard: ShardNo,
        filter: DeadFilter,
        after: Option<DeadPlace>,
        limit: usize,
    ) -> StoreFuture<'_, Vec<DeadLetter>> {
        Box::pin(ask::dead(&self.readers, shard, filter, after, limit))
    }

    fn commit<'a>(&'a self, commit: &'a Commit) -> BoxFuture<'a, CommitOutcome> {
        if self.only_looks() {
            return Box::pin(async { CommitOutcome::Unavailable(LOOKS.to_owned()) });
        }
        let Some(services) = self.services.get() else {
            return Box::pin(async { CommitOutcome::Unavailable("it was not prepared".to_owned()) });
        };
        self.writer.commit(Piece::of(commit, services))
    }

    fn read_log(&self, target: ShardNo, from: Positions, limit: usize) -> StoreFuture<'_, Vec<StoredLogRow>> {
        Box::pin(async move { read::read_log(&self.readers, target, &from, limit).await })
    }

    fn log_changed(&self, target: ShardNo) -> BoxFuture<'_, ()> {
        Box::pin(self.watch.changed(target))
    }

    fn outbox(&self, shard: ShardNo, from: u64, after: u64, limit: usize) -> StoreFuture<'_, Vec<EventRow>> {
        Box::pin(ask::outbox(&self.readers, shard, from, after, limit))
    }

    fn trim(&self, shard: ShardNo, trim: Trim) -> StoreFuture<'_, ()> {
        if self.only_looks() {
            return Box::pin(async { Err(StoreError::Unavailable(LOOKS.to_owned())) });
        }
        let mut passed = args::RowArgs::default();
        for (origin, read) in trim.log.iter().flat_map(|(origin, read)| read.iter().map(move |read| (origin, read))) {
            let (first, last, messages) = read.rows();
            passed.row().put(&**origin).put(first).put(last).put(messages);
        }
        let passed = passed.finish().0;
        self.writer.call(move |connection| {
            Box::pin(async move {
                let sql = query(include_str!("sqlite/trim.sql"));
                let sql = sql.bind(shard).bind(passed).bind(TRIM_ROWS);
                let sql = sql.bind(shard).bind(signed(trim.commits_below)).bind(TRIM_ROWS);
                let sql = sql.bind(shard).bind(signed(trim.history_before)).bind(TRIM_ROWS);
                sql.execute(connection).await.map(drop).map_err(failed)
            })
        })
    }

    fn queries(&self) -> &dyn Queries {
        self
    }

    fn calls(&self) -> &dyn CallStore {
        self
    }
}
