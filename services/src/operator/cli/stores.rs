//! The store that the settings name, whichever database it is in.
//! In: settings. Out: the store, opened to run it or to look; whether somebody runs it.

use std::sync::Arc;

use perkey::ownership::assignment::is_alive;
use perkey::settings::Settings;
use perkey::store::postgres::{Bounds, PgStore};
use perkey::store::sqlite::SqliteStore;
use perkey::store::{Access, Store, StoreError};

/// Whether the settings name a store that several workers share.
pub(crate) fn is_shared(settings: &Settings) -> bool {
    PgStore::names(&settings.store.url)
}

/// Opens the store.
pub(crate) async fn open(settings: &Settings, access: Access) -> Result<Arc<dyn Store>, StoreError> {
    let url = &settings.store.url;
    if is_shared(settings) {
        Ok(Arc::new(PgStore::open(url, bounds(settings), access).await?))
    } else {
        Ok(Arc::new(SqliteStore::open(url, access).await?))
    }
}

/// What a process asks of PostgreSQL at most.
pub(crate) fn bounds(settings: &Settings) -> Bounds {
    Bounds {
        connections: settings.store.connections,
        commits_in_flight: settings.commit.in_flight,
        statement_timeout: settings.store.statement_timeout,
    }
}

/// Whether a process runs the store now: by its lock, or by a worker's lease.
pub(crate) async fn is_running(settings: &Settings, store: &dyn Store) -> bool {
    match store.leases() {
        Some(leases) => leases.fleet().await.is_ok_and(|fleet| fleet.workers.iter().any(is_alive)),
        None => SqliteStore::is_running(&settings.store.url),
    }
}
