//! The one writer of a SQLite store: a task that is never cancelled, with the one connection that writes.
//! In: commits and other writes, in order. Out: an answer to each; waiting commits share one transaction.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Either, Executor, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::failure::SqliteFailure;
use super::group::{self, Piece};
use super::tables;
use super::wal::{AGAIN, Wal, WalBound};
use crate::store::watch::LogWatch;
use crate::store::{CommitOutcome, StoreError};

/// Writes that may wait: commits of all shards and a few calls.
const WRITES_MAX: usize = 4_096;
/// Commits in one transaction.
const GROUP_MAX: usize = 64;

/// A write that is not a commit; returns whether it succeeded, so that the remains of a failed one can be undone.
type WriterCall = Box<dyn for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, bool> + Send>;

enum Write {
    Commit(Box<Piece>, oneshot::Sender<CommitOutcome>),
    WriterCall(WriterCall),
    Close(oneshot::Sender<()>),
}

/// The handle of the writer.
#[derive(Clone)]
pub(super) struct SqliteWriter {
    writes: mpsc::Sender<Write>,
    wal: Arc<WalBound>,
}

impl std::fmt::Debug for SqliteWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteWriter").finish_non_exhaustive()
    }
}

impl SqliteWriter {
    /// Starts the writer of the file at `path`. It holds `lock` until it has closed its connection; it connects when it
    /// is first needed.
    #[expect(clippy::disallowed_methods, reason = "the writer outlives every actor that waits for a commit")]
    pub(super) fn start(
        path: &Path,
        options: SqliteConnectOptions,
        connection: Option<SqliteConnection>,
        lock: Option<File>,
        watch: Arc<LogWatch>,
    ) -> Self {
        let (writes, inbox) = mpsc::channel(WRITES_MAX);
        let wal = Arc::new(WalBound::default());
        let (path, bound) = (path.to_owned(), Arc::clone(&wal));
        let mut task = Task { connection, options, watch };
        tokio::spawn(async move {
            let mut inbox = inbox;
            let closing = task.run(&mut inbox, Wal::of(&path, &bound)).await;
            drop(lock);
            drop(closing);
        });
        Self { writes, wal }
    }

    /// Bounds the size of the `-wal` file.
    pub(super) fn limit_wal(&self, bytes: u64) {
        self.wal.limit(bytes);
    }

    /// Hands a commit over now; the answer may be waited for or not.
    pub(super) fn commit(&self, piece: Piece) -> BoxFuture<'static, CommitOutcome> {
        if let Some(refusal) = self.wal.refusal() {
            return Box::pin(async { CommitOutcome::Unavailable(refusal) });
        }
        let (reply, answer) = oneshot::channel();
        let sent = self.writes.try_send(Write::Commit(Box::new(piece), reply));
        Box::pin(async move {
            match sent {
                Ok(()) => {
                    answer.await.unwrap_or_else(|_| CommitOutcome::Unknown("the store's writer ended".to_owned()))
                }
                Err(error) => CommitOutcome::Unavailable(refused(&error)),
            }
        })
    }

    /// Runs `call` on the writing connection, after everything that was handed over before it.
    pub(super) fn call<T, F>(&self, call: F) -> BoxFuture<'static, Result<T, StoreError>>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, StoreError>> + Send + 'static,
    {
        if let Some(refusal) = self.wal.refusal() {
            return Box::pin(async { Err(StoreError::Unavailable(refusal)) });
        }
        let (reply, answer) = oneshot::channel();
        let write: WriterCall = Box::new(move |connection| {
            Box::pin(async move {
                let result = call(connection).await;
                let fine = result.is_ok();
                // Nobody waits any more; the write still happened.
                let _ = reply.send(result);
                fine
            })
        });
        let sent = self.writes.try_send(Write::WriterCall(write));
        Box::pin(async move {
            sent.map_err(|error| StoreError::Unavailable(refused(&error)))?;
            answer.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the store cannot be opened".to_owned())))
        })
    }

    /// Writes what was handed over, closes the connection and gives the lock up.
    pub(super) async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.writes.send(Write::Close(reply)).await.is_ok() {
            // The sender is dropped when the lock has been given up, which is all that is waited for.
            let _ = answer.await;
        }
    }
}

fn refused(error: &mpsc::error::TrySendError<Write>) -> String {
    match error {
        mpsc::error::TrySendError::Full(_) => "too many writes wait for the store".to_owned(),
        mpsc::error::TrySendError::Closed(_) => "the store is closed".to_owned(),
    }
}

struct Task {
    connection: Option<SqliteConnection>,
    options: SqliteConnectOptions,
    watch: Arc<LogWatch>,
}

impl Task {
    /// Works until all senders are gone or the store is closed; returns the caller that waits for the latter.
    async fn run(&mut self, inbox: &mut mpsc::Receiver<Write>, mut wal: Wal<'_>) -> Option<oneshot::Sender<()>> {
        let mut kept = None;
        let mut closing = None;
        loop {
            if let Some(connection) = self.connection.as_mut() {
                wal.tend(connection).await;
            }
            let next = match kept.take() {
                None if wal.is_kept() => tokio::time::timeout(AGAIN, inbox.recv()).await,
                None => Ok(inbox.recv().await),
                write => Ok(write),
            };
            match next {
                // No writes are waiting: the log is looked at again.
                Err(_) => {}
                Ok(Some(Write::Commit(piece, reply))) => {
                    let mut group = vec![(piece, reply)];
                    kept = gather(&mut group, inbox);
                    self.commit(group).await;
                }
                Ok(Some(Write::WriterCall(call))) => self.call(call).await,
                Ok(Some(Write::Close(reply))) => {
                    closing = Some(reply);
                    break;
                }
                Ok(None) => break,
            }
        }
        if let Some(mut connection) = self.connection.take() {
            wal.end(&mut connection).await;
            if let Err(error) = connection.close().await {
                tracing::warn!(%error, "the store was not closed in order; it recovers when it is opened");
            }
        }
        closing
    }

    async fn connect(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        match self.connection.take() {
            Some(connection) => Ok(self.connection.insert(connection)),
            None => Ok(self.connection.insert(SqliteConnection::connect_with(&self.options).await?)),
        }
    }

    async fn call(&mut self, call: WriterCall) {
        match self.connect().await {
            Ok(connection) => {
                if !call(connection).await {
                    self.undo().await;
                }
            }
            // Dropping the call notifies its caller.
            Err(error) => tracing::warn!(%error, "the store cannot be opened for writing"),
        }
    }

    async fn commit(&mut self, group: Vec<(Box<Piece>, oneshot::Sender<CommitOutcome>)>) {
        let (pieces, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let outcomes = self.outcomes(&pieces).await;
        for ((outcome, reply), piece) in outcomes.into_iter().zip(replies).zip(&pieces) {
            if matches!(outcome, CommitOutcome::Committed | CommitOutcome::Unknown(_)) {
                self.watch.appended(piece.log.iter().map(|row| row.target));
            }
            // Nobody waits any more; the commit still happened.
            let _ = reply.send(outcome);
        }
    }

    /// Writes all commits at once, or, if one of them must not pass, one by one in one transaction.
    async fn outcomes(&mut self, pieces: &[Box<Piece>]) -> Vec<CommitOutcome> {
        let whole: Vec<&Piece> = pieces.iter().map(|piece| &**piece).collect();
        let connection = match self.connect().await {
            Ok(connection) => connection,
            Err(error) => return all(pieces.len(), &CommitOutcome::Unavailable(error.to_string())),
        };
        match write(connection, group::ALL, &whole).await {
            Ok(true) => return self.finish(pieces.iter().map(|_| CommitOutcome::Committed).collect()).await,
            Ok(false) if whole.len() == 1 => {
                self.undo().await;
                return vec![CommitOutcome::Fenced];
            }
            Err(failure) if whole.len() == 1 || !matches!(failure, SqliteFailure::Refused { .. }) => {
                self.undo().await;
                return all(pieces.len(), &failure.outcome());
            }
            Ok(false) | Err(_) => self.undo().await,
        }
        self.one_by_one(&whole).await
    }

    async fn one_by_one(&mut self, pieces: &[&Piece]) -> Vec<CommitOutcome> {
        let mut outcomes = Vec::with_capacity(pieces.len());
        let result = async {
            let connection = self.connect().await.map_err(|error| SqliteFailure::of(&error))?;
            execute(connection, "BEGIN IMMEDIATE").await?;
            for piece in pieces {
                let (outcome, end) = match write(connection, group::ONE, &[piece]).await {
                    Ok(true) => (CommitOutcome::Committed, "RELEASE perkey_commit"),
                    Ok(false) => (CommitOutcome::Fenced, "ROLLBACK TO perkey_commit; RELEASE perkey_commit"),
                    Err(failure @ SqliteFailure::Refused { .. }) => {
                        (failure.outcome(), "ROLLBACK TO perkey_commit; RELEASE perkey_commit")
                    }
                    Err(failure @ (SqliteFailure::Unavailable(_) | SqliteFailure::Lost(_))) => return Err(failure),
                };
                execute(connection, end).await?;
                outcomes.push(outcome);
            }
            Ok(())
        };
        match result.await {
            Ok(()) => self.finish(outcomes).await,
            Err(failure) => {
                self.undo().await;
                all(pieces.len(), &failure.outcome())
            }
        }
    }

    /// Makes `outcomes` durable, or replaces those that would have committed by the failure.
    async fn finish(&mut self, outcomes: Vec<CommitOutcome>) -> Vec<CommitOutcome> {
        let Some(connection) = self.connection.as_mut() else { return outcomes };
        let Err(error) = sqlx::query("COMMIT").execute(connection).await else { return outcomes };
        self.undo().await;
        let failed = SqliteFailure::of_commit(&error).outcome();
        outcomes
            .into_iter()
            .map(|outcome| if matches!(outcome, CommitOutcome::Committed) { copy(&failed) } else { outcome })
            .collect()
    }

    /// Leaves no transaction open; a connection that cannot even do that is opened anew.
    async fn undo(&mut self) {
        if let Some(connection) = self.connection.as_mut()
            && let Err(error) = sqlx::query("ROLLBACK").execute(connection).await
            && error.as_database_error().is_none()
        {
            self.connection = None;
        }
    }
}

/// Takes the commits of other shards that wait behind the first one; returns the first message that is not such a
/// commit.
fn gather(
    group: &mut Vec<(Box<Piece>, oneshot::Sender<CommitOutcome>)>,
    inbox: &mut mpsc::Receiver<Write>,
) -> Option<Write> {
    while group.len() < GROUP_MAX {
        match inbox.try_recv() {
            Ok(Write::Commit(piece, reply)) if group.iter().all(|(other, _)| other.shard != piece.shard) => {
                group.push((piece, reply));
            }
            Ok(write) => return Some(write),
            Err(_) => return None,
        }
    }
    None
}

/// Writes `pieces`; `false` if a fence did not match, whatever came after it.
async fn write(connection: &mut SqliteConnection, sql: &'static str, pieces: &[&Piece]) -> Result<bool, SqliteFailure> {
    let mut passed = 0;
    let mut statements = 0;
    let mut answers = connection.fetch_many(group::arguments(sql, pieces));
    let failure = loop {
        match answers.try_next().await {
            Ok(Some(Either::Left(_done))) => statements += 1,
            Ok(Some(Either::Right(_shard))) => passed += 1,
            Ok(None) => break None,
            Err(error) => break Some(SqliteFailure::of(&error)),
        }
    };
    drop(answers);
    if statements >= group::FENCE && passed < pieces.len() {
        return Ok(false);
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    for query in tables::writes(pieces.iter().flat_map(|piece| &piece.rows)) {
        query.execute(&mut *connection).await.map_err(|error| SqliteFailure::of(&error))?;
    }
    for statement in pieces.iter().flat_map(|piece| &piece.statements) {
        let query = tables::statement(statement);
        query.execute(&mut *connection).await.map_err(|error| SqliteFailure::of(&error))?;
    }
    Ok(true)
}

async fn execute(connection: &mut SqliteConnection, sql: &'static str) -> Result<(), SqliteFailure> {
    sqlx::query(sql).execute(connection).await.map(drop).map_err(|error| SqliteFailure::of(&error))
}

fn all(count: usize, outcome: &CommitOutcome) -> Vec<CommitOutcome> {
    (0..count).map(|_| copy(outcome)).collect()
}

fn copy(outcome: &CommitOutcome) -> CommitOutcome {
    match outcome {
        CommitOutcome::Committed => CommitOutcome::Committed,
        CommitOutcome::Fenced => CommitOutcome::Fenced,
        CommitOutcome::Refused { permanent, error } => {
            CommitOutcome::Refused { permanent: *permanent, error: error.clone() }
        }
        CommitOutcome::Unavailable(text) => CommitOutcome::Unavailable(text.clone()),
        CommitOutcome::Unknown(text) => CommitOutcome::Unknown(text.clone()),
    }
}
