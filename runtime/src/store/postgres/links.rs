//! Connections that statements take turns on: one statement at a time, never a transaction left open.
//! In: a statement and its arguments. Out: its rows, or its failure.
//!
//! A connection is taken out while it is used and put back only after the server has said that it is done, so a future
//! that is dropped in between takes its connection with it. Nothing here ever begins a transaction.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::{Arguments, Connection, Encode, PgConnection, Postgres, SqlSafeStr, SqlStr, Type};
use tokio::sync::Semaphore;

use super::failure::PgFailure;
use super::place::{PgPlace, Use};
use crate::message::ShardNo;

/// The connections for one use, up to a maximum.
#[derive(Clone, Debug)]
pub(super) struct Links(Arc<LinksInner>);

#[derive(Debug)]
struct LinksInner {
    options: PgConnectOptions,
    persistent: bool,
    patience: Duration,
    turns: Semaphore,
    idle: Mutex<Vec<PgConnection>>,
}

/// Arguments of a statement, in order. Those of a commit are megabytes: they are copied when they are sent, not when
/// they are kept for another try.
#[derive(Clone, Debug, Default)]
pub(super) struct Args(Arc<PgArguments>);

impl Args {
    /// Arguments with room for values of `bytes` bytes.
    pub(super) fn with_room(bytes: usize) -> Self {
        let mut args = PgArguments::default();
        args.reserve(0, bytes);
        Self(Arc::new(args))
    }

    pub(super) fn put<'q, T: Encode<'q, Postgres> + Type<Postgres>>(mut self, value: T) -> Self {
        self.push(value);
        self
    }

    pub(super) fn push<'q, T: Encode<'q, Postgres> + Type<Postgres>>(&mut self, value: T) {
        Arc::make_mut(&mut self.0).add(value).expect("numbers, texts, bytes and lists of them always encode");
    }
}

impl Links {
    /// Connections of `place` for `purpose`; none is made before it is needed.
    pub(super) fn new(place: &PgPlace, purpose: Use, count: usize, patience: Duration) -> Self {
        Self(Arc::new(LinksInner {
            options: place.options(purpose),
            persistent: !place.pooled,
            patience,
            turns: Semaphore::new(count.max(1)),
            idle: Mutex::new(Vec::new()),
        }))
    }

    /// Runs a statement that writes.
    pub(super) async fn run(&self, sql: impl SqlSafeStr, args: Args) -> Result<Vec<PgRow>, PgFailure> {
        let (sql, _turn) = (sql.into_sql_str(), self.turn().await?);
        let connection = match self.pop() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        self.on(connection, &sql, args).await
    }

    /// Runs a statement that only reads: if a connection turns out to be gone, another one may be used.
    pub(super) async fn read(&self, sql: impl SqlSafeStr, args: Args) -> Result<Vec<PgRow>, PgFailure> {
        let (sql, _turn) = (sql.into_sql_str(), self.turn().await?);
        if let Some(connection) = self.pop() {
            match self.on(connection, &sql, args.clone()).await {
                Err(PgFailure::Lost(_)) => {}
                ended => return ended,
            }
        }
        let connection = self.connect().await?;
        self.on(connection, &sql, args).await
    }

    /// Closes the idle connections, in order; later statements find the store closed.
    pub(super) async fn close(&self) {
        self.0.turns.close();
        let idle = std::mem::take(&mut *self.idle());
        for connection in idle {
            // The server notices by itself if this fails.
            let _ = tokio::time::timeout(self.0.patience, connection.close()).await;
        }
    }

    async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, PgFailure> {
        self.0.turns.acquire().await.map_err(|_| PgFailure::Unavailable("the store is closed".to_owned()))
    }

    async fn connect(&self) -> Result<PgConnection, PgFailure> {
        match tokio::time::timeout(self.0.patience, PgConnection::connect_with(&self.0.options)).await {
            Ok(connected) => connected.map_err(|error| PgFailure::Unavailable(unreachable(&self.0.options, &error))),
            Err(_) => Err(PgFailure::Unavailable(format!("{} does not answer", address(&self.0.options)))),
        }
    }

    async fn on(&self, mut connection: PgConnection, sql: &SqlStr, args: Args) -> Result<Vec<PgRow>, PgFailure> {
        let mut ended = self.once(&mut connection, sql, args.clone()).await;
        if matches!(ended, Err(PgFailure::Forgotten(_))) {
            // Nothing has run: the statement is prepared again, once.
            if connection.clear_cached_statements().await.is_ok() {
                ended = self.once(&mut connection, sql, args).await;
            }
        }
        match &ended {
            Ok(_) => self.idle().push(connection),
            Err(failure) if failure.leaves_connection() => self.idle().push(connection),
            // A server that went away took its other connections with it.
            Err(PgFailure::Lost(_)) => self.idle().clear(),
            Err(_) => {}
        }
        ended
    }

    /// Runs statements in one transaction; if the first one returns no row, nothing is written. The caller must not
    /// cancel it.
    pub(super) async fn transaction(
        &self,
        first: (SqlStr, Args),
        then: &[(SqlStr, Args)],
    ) -> Result<Vec<PgRow>, PgFailure> {
        let _turn = self.turn().await?;
        let mut connection = match self.pop() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let mut ended = self.all(&mut connection, &first, then).await;
        if matches!(ended, Err(PgFailure::Forgotten(_)))
            && self.rolled_back(&mut connection).await
            && connection.clear_cached_statements().await.is_ok()
        {
            ended = self.all(&mut connection, &first, then).await;
        }
        match &ended {
            Ok(_) => self.idle().push(connection),
            Err(PgFailure::Lost(_)) => self.idle().clear(),
            Err(_) if self.rolled_back(&mut connection).await => self.idle().push(connection),
            Err(_) => {}
        }
        ended
    }

    async fn all(
        &self,
        connection: &mut PgConnection,
        first: &(SqlStr, Args),
        then: &[(SqlStr, Args)],
    ) -> Result<Vec<PgRow>, PgFailure> {
        let plain = |sql: &'static str| (sql.into_sql_str(), Args::default());
        let (begin, commit, rollback) = (plain("BEGIN"), plain("COMMIT"), plain("ROLLBACK"));
        self.once(connection, &begin.0, begin.1).await?;
        let rows = self.once(connection, &first.0, first.1.clone()).await?;
        if rows.is_empty() {
            self.once(connection, &rollback.0, rollback.1).await?;
            return Ok(rows);
        }
        for (sql, args) in then {
            // A failure of a handler's statement may be its own fault: the fence alone finds an outage.
            self.once(connection, sql, args.clone()).await.map_err(|failure| match failure {
                PgFailure::Unavailable(error) => PgFailure::Refused { permanent: false, error },
                other => other,
            })?;
        }
        self.once(connection, &commit.0, commit.1).await?;
        Ok(rows)
    }

    async fn rolled_back(&self, connection: &mut PgConnection) -> bool {
        self.once(connection, &"ROLLBACK".into_sql_str(), Args::default()).await.is_ok()
    }

    async fn once(&self, connection: &mut PgConnection, sql: &SqlStr, args: Args) -> Result<Vec<PgRow>, PgFailure> {
        let query = sqlx::query_with(sql.clone(), Arc::unwrap_or_clone(args.0)).persistent(self.0.persistent);
        match tokio::time::timeout(self.0.patience, query.fetch_all(connection)).await {
            Ok(ended) => ended.map_err(|error| PgFailure::of(&error)),
            Err(_) => Err(PgFailure::Lost(format!("no answer within {:?}", self.0.patience))),
        }
    }

    fn pop(&self) -> Option<PgConnection> {
        self.idle().pop()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<PgConnection>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A shard's number as PostgreSQL has it.
pub(super) fn shard_no(shard: ShardNo) -> i32 {
    i32::try_from(shard).unwrap_or(i32::MAX)
}

/// The text for a failed connect: the address and the error.
pub(super) fn unreachable(options: &PgConnectOptions, error: &sqlx::Error) -> String {
    format!("{}: {error}", address(options))
}

fn address(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    format!("PostgreSQL at {}:{}, database {database}", options.get_host(), options.get_port())
}
