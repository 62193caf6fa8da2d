//! Writes that are never cancelled: each runs in a task of its own, those of a shard one after the other.
//! In: statements. Out: an answer to each; the future that waits for it may be dropped, and the write still happens.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::SqlSafeStr;
use sqlx::postgres::PgRow;
use tokio::sync::oneshot;

use super::commit::CommitStatement;
use super::failure::PgFailure;
use super::links::{Args, Links};
use super::notices::Notices;
use super::place::{PgPlace, Use};
use crate::clock::sleep;
use crate::message::ShardNo;
use crate::store::lease::Fleet;
use crate::store::watch::LogWatch;
use crate::store::{CommitOutcome, StoreError, StoreFuture};

/// The number of times that a statement is sent again after a deadlock or a failed serialization.
const AGAIN_MAX: u32 = 20;
/// The number of times that a commit may take too long for the server before it is refused for its data.
const TOO_LONG_MAX: u32 = 3;
/// Connections for takeovers and for writes of tools.
const CONTROL: usize = 3;

/// The way to write.
#[derive(Clone, Debug)]
pub(super) struct PgWriter(Arc<WriterInner>);

#[derive(Debug)]
struct WriterInner {
    commits: Links,
    control: Links,
    shards: Mutex<HashMap<ShardNo, CommitQueue>>,
    watch: Arc<LogWatch>,
    notices: Notices,
}

/// The writes of one shard.
#[derive(Debug, Default)]
struct CommitQueue {
    /// Ends with the last write that was handed over.
    last: Option<oneshot::Receiver<()>>,
    /// The commit that took too long, and the number of times that it did.
    too_long: (u64, u32),
}

impl PgWriter {
    /// The writer of the store at `place`, with at most `in_flight` commits at the server at once.
    pub(super) fn new(place: &PgPlace, in_flight: usize) -> Self {
        Self(Arc::new(WriterInner {
            commits: Links::new(place, Use::Commits, in_flight, place.patience()),
            control: Links::new(place, Use::Control, CONTROL, place.patience()),
            shards: Mutex::default(),
            watch: Arc::default(),
            notices: Notices::new(place.clone()),
        }))
    }

    /// Hands a commit over now; the answer may be waited for or not.
    pub(super) fn commit(&self, statement: CommitStatement) -> BoxFuture<'static, CommitOutcome> {
        let writer = self.clone();
        let answer = self.in_order(statement.shard, async move {
            let outcome = writer.outcome(&statement).await;
            if matches!(outcome, CommitOutcome::Committed | CommitOutcome::Unknown(_)) {
                writer.appended(&statement.targets);
            }
            outcome
        });
        Box::pin(async move { answer.await.unwrap_or_else(|| CommitOutcome::Unknown("the write ended".to_owned())) })
    }

    /// Runs `write` after everything that was handed over for `shard` before it, over the connections for takeovers.
    pub(super) fn after<T, F, R>(&self, shard: ShardNo, write: F) -> StoreFuture<'static, T>
    where
        T: Send + 'static,
        F: FnOnce(Links) -> R,
        R: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let answer = self.in_order(shard, write(self.0.control.clone()));
        Box::pin(async move { answer.await.unwrap_or_else(|| Err(ended())) })
    }

    /// Runs one statement that belongs to no shard.
    pub(super) fn call(&self, sql: impl SqlSafeStr, args: Args) -> StoreFuture<'static, Vec<PgRow>> {
        let (links, sql) = (self.0.control.clone(), sql.into_sql_str());
        let answer = spawn(async move { links.run(sql, args).await });
        Box::pin(async move { Ok(answer.await.unwrap_or_else(|| Err(PgFailure::Unavailable("ended".to_owned())))?) })
    }

    /// Wakes the readers of the logs of `targets`, here and in other processes.
    pub(super) fn appended(&self, targets: &[ShardNo]) {
        self.0.watch.appended(targets.iter().copied());
        self.0.notices.tell(targets);
    }

    /// Waits until something may have been appended for `target`.
    pub(super) async fn changed(&self, target: ShardNo) {
        self.0.notices.listen(&self.0.watch);
        self.0.watch.changed(target).await;
    }

    /// Takes note of the other processes of the fleet.
    pub(super) fn heard_of(&self, fleet: &Fleet) {
        let alive = fleet.workers.iter().filter(|worker| worker.expires_in > 0).count();
        self.0.notices.set_alone(alive <= 1);
    }

    /// Writes what was handed over, then closes the connections.
    pub(super) async fn close(&self) {
        let last: Vec<_> = self.queues().values_mut().filter_map(|queue| queue.last.take()).collect();
        for write in last {
            // The sender is dropped when the write has ended, which is all that is waited for.
            let _ = write.await;
        }
        self.0.notices.stop();
        self.0.commits.close().await;
        self.0.control.close().await;
    }

    async fn outcome(&self, statement: &CommitStatement) -> CommitOutcome {
        for attempt in 1..=AGAIN_MAX {
            let (sql, args) = (statement.sql.clone(), statement.args.clone());
            let ended = match &statement.then[..] {
                [] => self.0.commits.run(sql, args).await,
                then => self.0.commits.transaction((sql, args), then).await,
            };
            match ended {
                Ok(fence) if fence.is_empty() => return CommitOutcome::Fenced,
                Ok(_) => return CommitOutcome::Committed,
                Err(PgFailure::Again(_)) if attempt < AGAIN_MAX => {
                    sleep(Duration::from_millis(attempt.into())).await;
                }
                // The fence alone has no data to refuse: then the server is slow.
                Err(PgFailure::TooLong(error)) if !statement.alone && self.too_long(statement) => {
                    return CommitOutcome::Refused { permanent: false, error };
                }
                Err(failure) => return failure.outcome(),
            }
        }
        CommitOutcome::Unavailable("the server found deadlocks again and again".to_owned())
    }

    /// Counts a commit that took too long; returns whether it did so too often.
    fn too_long(&self, statement: &CommitStatement) -> bool {
        let mut queues = self.queues();
        let (no, times) = &mut queues.entry(statement.shard).or_default().too_long;
        *times = if *no == statement.no { *times + 1 } else { 1 };
        *no = statement.no;
        let refused = *times >= TOO_LONG_MAX;
        if refused {
            // The next commit sent under this number is another one.
            *times = 0;
        }
        refused
    }

    fn in_order<T: Send + 'static>(
        &self,
        shard: ShardNo,
        write: impl Future<Output = T> + Send + 'static,
    ) -> BoxFuture<'static, Option<T>> {
        let (end, last) = oneshot::channel();
        let before = self.queues().entry(shard).or_default().last.replace(last);
        spawn(async move {
            if let Some(before) = before {
                // Its sender is dropped when it has ended, which is all that is waited for.
                let _ = before.await;
            }
            let answer = write.await;
            drop(end);
            answer
        })
    }

    fn queues(&self) -> std::sync::MutexGuard<'_, HashMap<ShardNo, CommitQueue>> {
        self.0.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::disallowed_methods, reason = "a write outlives the actor that waits for it")]
fn spawn<T: Send + 'static>(write: impl Future<Output = T> + Send + 'static) -> BoxFuture<'static, Option<T>> {
    let task = tokio::spawn(write);
    Box::pin(async move { task.await.ok() })
}

fn ended() -> StoreError {
    StoreError::Unavailable("the write ended".to_owned())
}
