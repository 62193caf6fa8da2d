//! The store in a PostgreSQL database, which several workers share.
//! In: `store.url`. Out: [`Store`], [`Queries`] and [`Leases`] over connections of their own for each use.
//!
//! Every write is one statement. No transaction spans an await but those of [`Store::prepare`], which runs in a task
//! that is never cancelled, on connections that are closed behind it.

mod calls;
mod commit;
mod failure;
mod leases;
mod links;
mod notices;
mod place;
mod queries;
mod read;
mod schema;
mod tables;
mod texts;
mod waiting;
mod writer;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use self::commit::{CommitStatement, TRIM_COMMITS, TRIM_HISTORY, TRIM_LOG};
use self::links::{Args, Links, shard_no};
use self::place::{PgPlace, Use};
use self::writer::PgWriter;
use super::calls::CallStore;
use super::lease::{Code, Leases};
use super::query::sql::{Cells, one, signed};
use super::query::{DeadFilter, EventRow, Queries, ask, decode};
use super::reshard::{self, ReshardError, Resharded};
use super::{
    Access, Commit, CommitOutcome, DeadLetter, DeadPlace, Due, DueTimers, Epoch, Identity, InboxRows, IntakeRows,
    KeyRow, Letters, OfService, OldLetters, PendingRow, Runnable, ServiceKey, Setup, Store, StoreError, StoreFuture,
    StoredLogRow, TakenShard, Timer, Trim,
};
use crate::clock::Millis;
use crate::message::{Positions, ShardNo, TakenId};

/// The time for a tool's query, which may scan.
const TOOL_PATIENCE: Duration = Duration::from_secs(300);
/// The longest time that a sign of life is waited for.
const LEASE_PATIENCE: Duration = Duration::from_secs(3);
/// Rows of each kind that one [`Store::trim`] removes.
const TRIM_ROWS: i64 = 10_000;

/// Bounds on a process's use of the database.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections that read.
    pub connections: u32,
    /// The commits that are at the server at once.
    pub commits_in_flight: usize,
    /// Time after which the server gives a statement up.
    pub statement_timeout: Duration,
}

/// A store in a PostgreSQL database.
#[derive(Debug)]
pub struct PgStore {
    access: Access,
    place: PgPlace,
    writer: PgWriter,
    queries: Links,
    log: Links,
    leases: Links,
    prepared: RwLock<Option<Arc<Prepared>>>,
}

/// The result of [`Store::prepare`].
#[derive(Debug)]
struct Prepared {
    services: BTreeMap<Arc<str>, u16>,
    code: Code,
    shards: u32,
}

impl PgStore {
    /// The store at `url`. With [`Access::Run`] nothing is connected before it is needed; with [`Access::Tool`] it must
    /// have been prepared by a worker that ran it.
    pub async fn open(url: &str, bounds: Bounds, access: Access) -> Result<Self, StoreError> {
        let timeout = match access {
            Access::Run | Access::Serve => bounds.statement_timeout,
            Access::Tool => bounds.statement_timeout.max(TOOL_PATIENCE),
        };
        let place = PgPlace::of(url, timeout)?;
        let patience = place.patience();
        let connections = usize::try_from(bounds.connections).unwrap_or(1);
        let store = Self {
            access,
            writer: PgWriter::new(&place, bounds.commits_in_flight),
            queries: Links::new(&place, Use::Queries, connections, patience),
            log: Links::new(&place, Use::Log, connections.div_ceil(2), patience),
            leases: Links::new(&place, Use::Leases, 1, patience.min(LEASE_PATIENCE)),
            prepared: RwLock::new(None),
            place,
        };
        if access != Access::Run {
            store.check_format().await?;
        }
        Ok(store)
    }

    /// True if `url` is one of a PostgreSQL store.
    pub fn names(url: &str) -> bool {
        place::names(url)
    }

    /// The server that need not prove its identity and the `sslmode` that says so, if there is one.
    pub(in crate::store) fn unproven(url: &str) -> Option<(String, &'static str)> {
        let place = PgPlace::of(url, LEASE_PATIENCE).ok()?;
        place.unproven().map(|(host, mode)| (host.to_owned(), mode))
    }

    /// True if a worker's lease in the store is in force.
    pub async fn is_running(&self) -> bool {
        let sql = "SELECT 1 FROM workers WHERE expires_at > clock_timestamp() LIMIT 1";
        self.queries.read(sql, Args::default()).await.is_ok_and(|rows| !rows.is_empty())
    }

    /// The number of shards that the store was made with; 0 where there is none yet.
    pub async fn shards_recorded(&self) -> Result<u32, StoreError> {
        let rows = self.queries.read("SELECT count(*) FROM shards", Args::default()).await?;
        one(&rows, |row| row.number(0))
    }

    /// Writes what was handed over and closes the connections.
    pub async fn close(&self) {
        self.writer.close().await;
        self.queries.close().await;
        self.log.close().await;
        self.leases.close().await;
    }

    /// Gives the store another number of shards, which nobody runs; `sinks` are those that events go to.
    #[expect(clippy::disallowed_methods, reason = "it holds a transaction, which must come to its end")]
    pub async fn reshard(&self, to: u32, sinks: Vec<String>) -> Result<Resharded, ReshardError> {
        let options = self.place.options(Use::Prepare);
        let task = tokio::spawn(async move {
            let connected = PgConnection::connect_with(&options).await;
            let mut connection =
                connected.map_err(|error| StoreError::Unavailable(links::unreachable(&options, &error)))?;
            let resharded = reshard::on::postgres::reshard(&mut connection, to, &sinks).await;
            if let Err(error) = connection.close().await {
                tracing::debug!(%error, "the connection was not closed in order");
            }
            resharded
        });
        task.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string()).into()))
    }

    async fn check_format(&self) -> Result<(), StoreError> {
        let there = self.queries.read(schema::THERE, Args::default()).await?;
        if !one(&there, |row| row.get(0))? {
            let why = "it is made by the worker that runs it; or store.url names another database";
            return Err(StoreError::Unavailable(format!("there is no store in this database yet: {why}")));
        }
        let found = self.queries.read(schema::NEWEST, Args::default()).await?;
        schema::current(one(&found, |row| row.number(0))?)
    }

    fn prepared(&self) -> Result<Arc<Prepared>, StoreError> {
        if self.access != Access::Run {
            return Err(StoreError::Unavailable(LOOKS.to_owned()));
        }
        let prepared = self.prepared.read().unwrap_or_else(PoisonError::into_inner).clone();
        prepared.ok_or_else(|| StoreError::Unavailable("it was not prepared".to_owned()))
    }
}

const LOOKS: &str = "it was opened to look, not to run its shards";

impl Store for PgStore {
    fn prepare(&self, setup: Setup) -> StoreFuture<'_, Identity> {
        Box::pin(async move {
            if self.access != Access::Run {
                return Err(StoreError::Unavailable(LOOKS.to_owned()));
            }
            let (code, shards) = (setup.code.clone(), setup.shards);
            let identity = prepare(self.place.clone(), setup).await?;
            let prepared = Prepared { services: identity.services.clone(), code, shards };
            *self.prepared.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(prepared));
            Ok(identity)
        })
    }

    fn take(&self, shard: ShardNo, owner: &str) -> StoreFuture<'_, TakenShard> {
        let (owner, prepared) = (owner.to_owned(), self.prepared());
        self.writer.after(shard, move |links| async move { leases::take(&links, shard, &owner, &*prepared?).await })
    }

    fn retake(&self, shard: ShardNo, epoch: Epoch) -> StoreFuture<'_, TakenShard> {
        let prepared = self.prepared();
        self.writer.after(shard, move |links| async move {
            prepared?;
            let sql = format!(
                "UPDATE shards SET epoch = epoch + 1 WHERE shard = $1 AND epoch = $2 RETURNING {}",
                decode::SHARD
            );
            let rows = links.run(AssertSqlSafe(sql), Args::default().put(shard_no(shard)).put(signed(epoch))).await?;
            rows.first().map_or(Err(StoreError::Fenced(shard)), decode::shard)
        })
    }

    fn inbox(&self, shard: ShardNo, since: Millis, max: usize) -> StoreFuture<'_, InboxRows> {
        Box::pin(read::inbox(&self.queries, shard, since, max))
    }

    fn known(&self, shard: ShardNo, asked: Vec<(TakenId, String)>) -> StoreFuture<'_, Vec<bool>> {
        Box::pin(async move { waiting::known(&self.queries, shard, &asked).await })
    }

    fn letters(&self, shard: ShardNo) -> StoreFuture<'_, Letters> {
        Box::pin(waiting::letters(&self.queries, shard))
    }

    fn old(&self, shard: ShardNo, after: u64, before: Millis) -> StoreFuture<'_, OldLetters> {
        Box::pin(ask::old(&self.queries, shard, after, before))
    }

    fn load(&self, shard: ShardNo, keys: Vec<ServiceKey>) -> StoreFuture<'_, Vec<KeyRow>> {
        Box::pin(async move { read::load(&self.queries, shard, &keys).await })
    }

    fn due(&self, shard: ShardNo, now: Millis, runnable: Runnable, limit: usize) -> StoreFuture<'_, Due> {
        Box::pin(async move { read::due(&self.queries, shard, now, &runnable, limit).await })
    }

    fn orphans(
        &self,
        shard: ShardNo,
        runnable: Runnable,
        after: Option<ServiceKey>,
        limit: usize,
    ) -> StoreFuture<'_, Vec<ServiceKey>> {
        Box::pin(async move { read::orphans(&self.queries, shard, &runnable, after, limit).await })
    }

    fn page(&self, shard: ShardNo, key: ServiceKey, after: u64, limit: usize) -> StoreFuture<'_, Vec<PendingRow>> {
        Box::pin(read::page(&self.queries, shard, key, after, limit))
    }

    fn timers(&self, shard: ShardNo, now: Millis, runnable: Runnable, limit: usize) -> StoreFuture<'_, DueTimers> {
        Box::pin(async move { read::timers(&self.queries, shard, now, &runnable, limit).await })
    }

    fn of_service(&self, shard: ShardNo, service: Arc<str>, limit: usize) -> StoreFuture<'_, OfService> {
        Box::pin(ask::of_service(&self.queries, shard, service, limit))
    }

    fn schedules(&self, shard: ShardNo) -> StoreFuture<'_, Vec<Timer>> {
        Box::pin(ask::schedules(&self.queries, shard))
    }

    fn dead(
        &self,
        shard: ShardNo,
        filter: DeadFilter,
        after: Option<DeadPlace>,
        limit: usize,
    ) -> StoreFuture<'_, Vec<DeadLetter>> {
        Box::pin(ask::dead(&self.queries, shard, filter, after, limit))
    }

    fn commit<'a>(&'a self, commit: &'a Commit) -> BoxFuture<'a, CommitOutcome> {
        let prepared = match self.prepared() {
            Ok(prepared) => prepared,
            Err(error) => return Box::pin(async move { CommitOutcome::Unavailable(error.to_string()) }),
        };
        match CommitStatement::of(commit, &prepared.services) {
            Ok(statement) => self.writer.commit(statement),
            Err(failure) => Box::pin(async { failure.outcome() }),
        }
    }

    fn read_log(&self, target: ShardNo, from: Positions, limit: usize) -> StoreFuture<'_, Vec<StoredLogRow>> {
        Box::pin(async move { read::read_log(&self.log, target, &from, limit).await })
    }

    fn read_intake(&self, shard: ShardNo, held: Vec<u64>, limit: usize, max: usize) -> StoreFuture<'_, IntakeRows> {
        Box::pin(async move { waiting::intake(&self.queries, shard, &held, limit, max).await })
    }

    fn has_intake(&self) -> bool {
        true
    }

    fn log_changed(&self, target: ShardNo) -> BoxFuture<'_, ()> {
        Box::pin(self.writer.changed(target))
    }

    fn outbox(&self, shard: ShardNo, from: u64, after: u64, limit: usize) -> StoreFuture<'_, Vec<EventRow>> {
        Box::pin(ask::outbox(&self.log, shard, from, after, limit))
    }

    fn trim(&self, shard: ShardNo, trim: Trim) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            self.prepared()?;
            let read = || trim.log.iter().flat_map(|(origin, read)| read.iter().map(move |read| (origin, read.rows())));
            let args = Args::default()
                .put(shard_no(shard))
                .put(read().map(|(origin, _)| &**origin).collect::<Vec<_>>())
                .put(read().map(|(_, (first, ..))| signed(first)).collect::<Vec<_>>())
                .put(read().map(|(_, (_, last, _))| signed(last)).collect::<Vec<_>>())
                .put(read().map(|(_, (.., messages))| signed(messages)).collect::<Vec<_>>())
                .put(TRIM_ROWS);
            self.queries.run(TRIM_LOG, args).await?;
            let args = Args::default().put(shard_no(shard)).put(signed(trim.commits_below)).put(TRIM_ROWS);
            self.queries.run(TRIM_COMMITS, args).await?;
            let args = Args::default().put(signed(trim.history_before)).put(shard_no(shard)).put(TRIM_ROWS);
            self.queries.run(TRIM_HISTORY, args).await?;
            Ok(())
        })
    }

    fn oldest_transaction(&self) -> StoreFuture<'_, Option<Duration>> {
        Box::pin(read::oldest_transaction(&self.queries))
    }

    fn queries(&self) -> &dyn Queries {
        self
    }

    fn calls(&self) -> &dyn CallStore {
        self
    }

    fn leases(&self) -> Option<&dyn Leases> {
        Some(self)
    }
}

/// In a task of its own: a transaction must not be left open because nobody waits any more.
#[expect(clippy::disallowed_methods, reason = "it holds a transaction, which must come to its end")]
async fn prepare(place: PgPlace, setup: Setup) -> Result<Identity, StoreError> {
    let task = tokio::spawn(async move {
        let options = place.options(Use::Prepare);
        let mut connection = match tokio::time::timeout(place.patience(), PgConnection::connect_with(&options)).await {
            Ok(connected) => {
                connected.map_err(|error| StoreError::Unavailable(links::unreachable(&options, &error)))?
            }
            Err(_) => return Err(StoreError::Unavailable("the server does not answer".to_owned())),
        };
        let prepared = async {
            let identity = schema::prepare(&mut connection, &setup).await?;
            schema::indexes(&mut connection, &options, &setup.tables).await.map(|()| identity)
        };
        let prepared = prepared.await;
        if let Err(error) = connection.close().await {
            tracing::debug!(%error, "the connection was not closed in order");
        }
        prepared
    });
    task.await.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
}
