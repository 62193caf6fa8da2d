//! Opens the store that the settings name, whatever the database.
//! In: `[store]` and `commit.in_flight`. Out: a store, and the calls that only its opener needs.

use std::cell::RefCell;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::health::Disk;
use super::postgres::{Bounds, PgStore};
use super::reshard::{ReshardError, Resharded};
use super::sqlite::SqliteStore;
use super::{Access, Store, StoreError};
use crate::settings::{Settings, StoreSettings};

/// The time that a process waits for a store to close before it ends.
const CLOSED_WITHIN: Duration = Duration::from_secs(15);

/// A store as it was opened.
#[derive(Clone, Debug)]
pub struct Opened(OpenedKind);

#[derive(Clone, Debug)]
enum OpenedKind {
    Sqlite(Arc<SqliteStore>),
    Postgres(Arc<PgStore>),
}

impl Opened {
    /// The store, to be shared.
    pub fn store(&self) -> Arc<dyn Store> {
        match &self.0 {
            OpenedKind::Sqlite(store) => Arc::clone(store) as Arc<dyn Store>,
            OpenedKind::Postgres(store) => Arc::clone(store) as Arc<dyn Store>,
        }
    }

    /// The number of shards that it was made with; 0 if it was not prepared yet.
    pub async fn shards_recorded(&self) -> Result<u32, StoreError> {
        match &self.0 {
            OpenedKind::Sqlite(store) => Ok(u32::try_from(store.queries().shards().await?.len()).unwrap_or(u32::MAX)),
            OpenedKind::Postgres(store) => store.shards_recorded().await,
        }
    }

    /// Tells it that it was restored, so that answers which were kept elsewhere before count no more. A file needs no
    /// telling: each start counts as a restore.
    pub async fn restored(&self) -> Result<(), StoreError> {
        match &self.0 {
            OpenedKind::Sqlite(_) => Ok(()),
            OpenedKind::Postgres(store) => store.restored().await,
        }
    }

    /// Changes its number of shards; `sinks` are those that may still have to get events. It must be drained.
    pub async fn reshard(&self, shards: u32, sinks: Vec<String>) -> Result<Resharded, ReshardError> {
        match &self.0 {
            OpenedKind::Sqlite(store) => store.reshard(shards, sinks).await,
            OpenedKind::Postgres(store) => store.reshard(shards, sinks).await,
        }
    }

    /// Writes what was handed over and closes it.
    pub async fn close(&self) {
        match &self.0 {
            OpenedKind::Sqlite(store) => store.close().await,
            OpenedKind::Postgres(store) => store.close().await,
        }
    }
}

impl Deref for Opened {
    type Target = dyn Store;

    fn deref(&self) -> &Self::Target {
        match &self.0 {
            OpenedKind::Sqlite(store) => &**store,
            OpenedKind::Postgres(store) => &**store,
        }
    }
}

/// Opens the store at `store.url`.
pub async fn open(settings: &Settings, access: Access) -> Result<Opened, StoreError> {
    let url = &settings.store.url;
    // A process that runs a store makes its tables: not in a database that was named by mistake.
    let makes = access == Access::Run && !settings.store.share_database;
    if !is_shared(settings) {
        if makes {
            nobodys(&SqliteStore::foreign(url).await?)?;
        }
        let store = SqliteStore::open(url, access).await?;
        store.limit_wal(settings.store.wal_bytes_max);
        return Ok(kept(Opened(OpenedKind::Sqlite(Arc::new(store)))));
    }
    let bounds = Bounds {
        connections: settings.store.connections,
        commits_in_flight: settings.commit.in_flight,
        statement_timeout: settings.store.statement_timeout,
    };
    let store = PgStore::open(url, bounds, access).await?;
    if makes {
        nobodys(&store.foreign().await?)?;
    }
    Ok(kept(Opened(OpenedKind::Postgres(Arc::new(store)))))
}

/// Refuses a database with these tables of others.
fn nobodys(foreign: &[String]) -> Result<(), StoreError> {
    if foreign.is_empty() {
        return Ok(());
    }
    Err(StoreError::Url(format!(
        "names a database that is not a store yet and has tables of others ({}): name one of its own, or set \
         store.share_database = true to make the store's tables beside them",
        foreign.join(", ")
    )))
}

/// Checks that `store.url` can be a store's address; opens nothing.
pub fn check_url(settings: &Settings) -> Result<(), StoreError> {
    let StoreSettings { url, statement_timeout, .. } = &settings.store;
    if is_shared(settings) { PgStore::check_url(url, *statement_timeout) } else { SqliteStore::check_url(url) }
}

/// The server of a store and the `sslmode`, if the server is on another machine and need not prove its identity.
pub fn unproven(settings: &Settings) -> Option<(String, &'static str)> {
    is_shared(settings).then(|| PgStore::unproven(&settings.store.url)).flatten()
}

tokio::task_local! {
    /// The stores that [`closing`] is to close.
    static OPENED: RefCell<Vec<Opened>>;
}

fn kept(opened: Opened) -> Opened {
    // Outside `closing` the caller closes it.
    let _ = OPENED.try_with(|all| all.borrow_mut().push(opened.clone()));
    opened
}

/// Lets [`closing`] close nothing: the process is to end at once, and its stores recover when they are opened.
pub fn leave_open() {
    // Outside `closing` nothing would be closed.
    let _ = OPENED.try_with(RefCell::take);
}

/// Does `work`, and then closes every store that it opened, in order, however it ended.
pub async fn closing<T>(work: impl Future<Output = T>) -> T {
    let scope = async {
        let ended = work.await;
        (ended, OPENED.with(RefCell::take))
    };
    let (ended, opened) = OPENED.scope(RefCell::default(), scope).await;
    for store in opened {
        if tokio::time::timeout(CLOSED_WITHIN, store.close()).await.is_err() {
            tracing::warn!("the store was not closed within {CLOSED_WITHIN:?}; it recovers when it is opened");
        }
    }
    ended
}

/// The disk on which the store's file lies, if the store is a file.
pub fn disk(settings: &Settings) -> Option<Disk> {
    if is_shared(settings) { None } else { SqliteStore::disk(&settings.store.url) }
}

/// True if several workers can share the store at `store.url`.
pub fn is_shared(settings: &Settings) -> bool {
    PgStore::names(&settings.store.url)
}

/// True if a process runs the store at `store.url` now.
pub async fn is_running(settings: &Settings) -> bool {
    if !is_shared(settings) {
        return SqliteStore::is_running(&settings.store.url);
    }
    match open(settings, Access::Tool).await {
        Ok(Opened(OpenedKind::Postgres(store))) => {
            let running = store.is_running().await;
            store.close().await;
            running
        }
        Ok(Opened(OpenedKind::Sqlite(_))) | Err(_) => false,
    }
}
