//! The write-ahead log beside a SQLite file: kept small while the store is open, empty when it is closed.
//! In: its size after each write. Out: checkpoints that empty it; a refusal while somebody's long read keeps it too large.
//!
//! SQLite copies the log into the file by itself, and begins it anew once nobody reads it any more. With overlapping
//! readers that never happens, and the file keeps its largest size in any case. So the writer empties a log that has
//! become large: it waits a moment for readers, and tries again. A long transaction of another program keeps the log
//! from being emptied: then `store.wal_bytes_max` is the bound, at which the store answers as on a full disk.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Row, SqliteConnection, query};
use tracing::{info, warn};

use super::BUSY_TIMEOUT;
use crate::clock::Stopwatch;

/// Size above which the log is emptied: twice what SQLite lets it grow to where nobody reads.
const LARGE: u64 = 64 << 20;
/// Size above which a warning says that the log cannot be emptied.
const TOLD: u64 = 4 * LARGE;
/// The time for which writes wait for readers to end, while the store runs.
const PATIENCE: Duration = Duration::from_millis(50);
/// The time for which readers of other programs are waited for when the store is closed.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// The time for which the log is left alone after it could not be emptied.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// The log's bound and whether it is reached, shared by the writer and those that want to write.
#[derive(Debug)]
pub(super) struct WalBound {
    max: AtomicU64,
    full: AtomicBool,
}

impl Default for WalBound {
    fn default() -> Self {
        Self { max: AtomicU64::new(u64::MAX), full: AtomicBool::new(false) }
    }
}

impl WalBound {
    /// Bounds the log to about this size.
    pub(super) fn limit(&self, bytes: u64) {
        self.max.store(bytes, Ordering::Relaxed);
    }

    /// The reason for which nothing can be written now.
    pub(super) fn refusal(&self) -> Option<String> {
        let max = self.max.load(Ordering::Relaxed);
        self.full.load(Ordering::Relaxed).then(|| {
            format!(
                "its -wal file has more than {max} bytes (store.wal_bytes_max), and cannot be emptied: end the program \
                 that reads the store in one long transaction"
            )
        })
    }
}

/// The log of one file, as its writer tends it.
pub(super) struct Wal<'a> {
    path: PathBuf,
    bound: &'a WalBound,
    tried: Option<Stopwatch>,
    told: bool,
}

impl<'a> Wal<'a> {
    /// The log of the store at `store`.
    pub(super) fn of(store: &Path, bound: &'a WalBound) -> Self {
        let mut path = OsString::from(store);
        path.push("-wal");
        Self { path: path.into(), bound, tried: None, told: false }
    }

    /// True if it waits for a reader to end, and is to be looked at again.
    pub(super) fn is_kept(&self) -> bool {
        self.tried.is_some()
    }

    /// Empties it where it has become large.
    pub(super) async fn tend(&mut self, connection: &mut SqliteConnection) {
        let (bytes, max) = (self.bytes(), self.bound.max.load(Ordering::Relaxed));
        if bytes > LARGE.min(max) {
            if self.tried.as_ref().is_some_and(|tried| tried.elapsed() < AGAIN) {
                return;
            }
            if !emptied(connection, PATIENCE).await {
                self.tried = Some(Stopwatch::start());
                self.bound.full.store(bytes > max, Ordering::Relaxed);
                if bytes > TOLD.min(max) && !std::mem::replace(&mut self.told, true) {
                    warn!(
                        bytes,
                        max, "the -wal file cannot be emptied: a program reads the store in one long transaction"
                    );
                }
                return;
            }
        }
        self.tried = None;
        self.bound.full.store(false, Ordering::Relaxed);
        if std::mem::take(&mut self.told) {
            info!("the -wal file is emptied again");
        }
    }

    /// Empties it for the last time, so that the file alone is the store.
    pub(super) async fn end(self, connection: &mut SqliteConnection) {
        if !emptied(connection, LAST_PATIENCE).await {
            let wal = self.path.display();
            warn!(%wal, "another program reads the store: what was written last is in this file until it has ended");
        }
    }

    fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |found| found.len())
    }
}

/// Copies all of it into the file and cuts it to nothing; false if readers did not end within `patience`.
async fn emptied(connection: &mut SqliteConnection, patience: Duration) -> bool {
    let wait = |patience: Duration| AssertSqlSafe(format!("PRAGMA busy_timeout = {}", patience.as_millis()));
    let done = async {
        query(wait(patience)).execute(&mut *connection).await?;
        let row = query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut *connection).await?;
        query(wait(BUSY_TIMEOUT)).execute(&mut *connection).await?;
        let busy: i64 = row.try_get(0)?;
        Ok::<_, sqlx::Error>(busy == 0)
    };
    match done.await {
        Ok(done) => done,
        Err(error) => {
            warn!(%error, "the -wal file cannot be copied into the store");
            false
        }
    }
}
