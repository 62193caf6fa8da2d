//! Notifications between processes about the shards whose logs have grown.
//! In: shards. Out: a notification, many shards at once; permits in the log's watch.
//!
//! A notification takes a lock of the whole database when its transaction commits, so it is never part of a commit: a
//! task sends what has gathered, one at a time. If one is lost, the readers look by themselves.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::links::{Args, Links};
use super::place::{PgPlace, Use};
use crate::clock::sleep;
use crate::message::ShardNo;
use crate::store::query::sql::Cells;
use crate::store::watch::LogWatch;

const CHANNEL: &str = "perkey_log";
/// A notification holds 8,000 bytes.
const SHARDS_MAX: usize = 1_000;
/// The payload for all shards.
const ALL: &str = "*";
/// The pause between two notifications: appends in the meantime share the next one.
const REST: Duration = Duration::from_millis(2);
/// The pause after a connection that failed.
const RECONNECT: Duration = Duration::from_secs(1);

/// The two tasks and what they share.
#[derive(Debug)]
pub(super) struct Notices {
    shared: Arc<NoticeShared>,
    place: PgPlace,
    tasks: Mutex<Tasks>,
}

#[derive(Debug, Default)]
struct Tasks {
    teller: Option<AbortHandle>,
    listener: Option<AbortHandle>,
}

#[derive(Debug, Default)]
struct NoticeShared {
    grown: Mutex<BTreeSet<ShardNo>>,
    more: Notify,
    /// True if no other process reads this store, as far as is known.
    alone: AtomicBool,
    /// The server's process behind our own notifications: they are not for us.
    own: AtomicI32,
}

impl Notices {
    /// The notices; no task runs before it is needed.
    pub(super) fn new(place: PgPlace) -> Self {
        Self { shared: Arc::default(), place, tasks: Mutex::default() }
    }

    /// Tells the others, soon.
    #[expect(clippy::disallowed_methods, reason = "the task outlives every actor, and ends with the store")]
    pub(super) fn tell(&self, targets: &[ShardNo]) {
        if targets.is_empty() || self.shared.alone.load(Ordering::Relaxed) {
            return;
        }
        self.shared.grown.lock().unwrap_or_else(PoisonError::into_inner).extend(targets);
        self.shared.more.notify_one();
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.teller.is_none() {
            let links = Links::new(&self.place, Use::Notices, 1, self.place.patience());
            tasks.teller = Some(tokio::spawn(tell(Arc::clone(&self.shared), links)).abort_handle());
        }
    }

    /// Begins to listen, unless it listens already. Behind a pooler notifications cannot be received.
    #[expect(clippy::disallowed_methods, reason = "the task outlives every actor, and ends with the store")]
    pub(super) fn listen(&self, watch: &Arc<LogWatch>) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.listener.is_none() && !self.place.pooled {
            let heard = listen(Arc::clone(&self.shared), self.place.clone(), Arc::clone(watch));
            tasks.listener = Some(tokio::spawn(heard).abort_handle());
        }
    }

    /// Records whether there is another process to notify.
    pub(super) fn set_alone(&self, alone: bool) {
        self.shared.alone.store(alone, Ordering::Relaxed);
    }

    /// Ends both tasks.
    pub(super) fn stop(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        [tasks.teller, tasks.listener].into_iter().flatten().for_each(|task| task.abort());
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn tell(shared: Arc<NoticeShared>, links: Links) {
    loop {
        shared.more.notified().await;
        let grown = std::mem::take(&mut *shared.grown.lock().unwrap_or_else(PoisonError::into_inner));
        if grown.is_empty() {
            continue;
        }
        let args = Args::default().put(CHANNEL).put(payload(&grown));
        match links.run("SELECT pg_backend_pid(), pg_notify($1, $2)", args).await {
            Ok(rows) => {
                let own = rows.first().and_then(|row| row.get(0).ok());
                shared.own.store(own.unwrap_or_default(), Ordering::Relaxed);
                sleep(REST).await;
            }
            Err(failure) => {
                tracing::debug!(?failure, "other processes were not told that the log has grown; they look themselves");
                sleep(RECONNECT).await;
            }
        }
    }
}

async fn listen(shared: Arc<NoticeShared>, place: PgPlace, watch: Arc<LogWatch>) {
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(place.patience());
    let pool = pool.connect_lazy_with(place.options(Use::Notices));
    loop {
        if let Err(error) = hear(&shared, &pool, &watch).await {
            tracing::debug!(%error, "not told of what other processes append; the log is looked at instead");
        }
        sleep(RECONNECT).await;
    }
}

async fn hear(shared: &NoticeShared, pool: &sqlx::PgPool, watch: &LogWatch) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        // For notifications that were sent before this process listened.
        watch.all_may_have();
        while let Some(notice) = listener.try_recv().await? {
            if i64::from(notice.process_id()) == i64::from(shared.own.load(Ordering::Relaxed)) {
                continue;
            }
            match targets(notice.payload()) {
                Some(targets) => watch.appended(targets),
                None => watch.all_may_have(),
            }
        }
    }
}

fn payload(grown: &BTreeSet<ShardNo>) -> String {
    if grown.len() > SHARDS_MAX {
        return ALL.to_owned();
    }
    grown.iter().map(ShardNo::to_string).collect::<Vec<_>>().join(",")
}

/// The shards that a payload names; `None` for all, and for what cannot be read.
fn targets(payload: &str) -> Option<Vec<ShardNo>> {
    payload.split(',').map(|shard| shard.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_names_shards_or_all() {
        assert_eq!(targets(&payload(&BTreeSet::from([3, 11]))), Some(vec![3, 11]));
        assert_eq!(targets(&payload(&(0..5_000).collect())), None);
        assert!(payload(&(10_000..11_000).collect()).len() < 8_000);
    }
}
