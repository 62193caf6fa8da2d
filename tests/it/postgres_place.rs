//! A PostgreSQL store for a test: a database of its own, dropped at the end.
//! In: the server of the environment. Out: a prepared store, a way to look behind it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use perkey::unstable::clock::Dice;
use perkey::unstable::store::postgres::{Bounds, PgStore};
use perkey::unstable::store::{Access, Store};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::fixture::{Place, setup};
use crate::servers;

pub(crate) const BOUNDS: Bounds =
    Bounds { connections: 2, commits_in_flight: 2, statement_timeout: Duration::from_secs(5) };

/// A database of its own.
pub(crate) struct Database {
    name: String,
    pub(crate) url: String,
}

impl Database {
    pub(crate) async fn new() -> Self {
        Self::made("").await
    }

    /// A copy of another one, which nobody has open.
    pub(crate) async fn of(other: &str) -> Self {
        Self::made(&format!("TEMPLATE {other}")).await
    }

    async fn made(how: &str) -> Self {
        let name = format!("perkey_test_{:016x}", Dice::from_system().below(u64::MAX));
        let mut admin = PgConnection::connect(&servers::postgres()).await.unwrap();
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name} {how}"))).execute(&mut admin).await.unwrap();
        let server = servers::postgres();
        let (server, _) = server.rsplit_once('/').unwrap();
        Self { url: format!("{server}/{name}"), name }
    }

    pub(crate) async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // A test's own runtime may be ending.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut admin = PgConnection::connect(&servers::postgres()).await.unwrap();
                sqlx::query(AssertSqlSafe(sql)).execute(&mut admin).await.unwrap();
            });
        });
        // A database that is left behind costs the next test nothing; a panic here would hide what the test says.
        drop(dropped.join());
    }
}

/// A store in a database of its own.
pub(crate) struct PostgresPlace {
    store: Arc<PgStore>,
    pub(crate) database: Database,
}

impl PostgresPlace {
    pub(crate) async fn new() -> Box<Self> {
        let database = Database::new().await;
        let store = open(&database.url).await;
        store.prepare(setup()).await.unwrap();
        Box::new(Self { store, database })
    }

    pub(crate) fn postgres(&self) -> &Arc<PgStore> {
        &self.store
    }

    /// Another process on the same database.
    pub(crate) async fn another(&self) -> Arc<PgStore> {
        let store = open(&self.database.url).await;
        store.prepare(setup()).await.unwrap();
        store
    }
}

pub(crate) async fn open(url: &str) -> Arc<PgStore> {
    Arc::new(PgStore::open(url, BOUNDS, Access::Run).await.unwrap())
}

impl Place for PostgresPlace {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }

    fn restart(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.store.close().await;
            self.store = self.another().await;
        })
    }

    fn rows(&self, table: &'static str) -> BoxFuture<'_, Vec<Value>> {
        Box::pin(async move {
            let sql = format!("SELECT row_to_json(t)::text FROM {table} t ORDER BY account, id");
            let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut self.database.connection().await).await.unwrap();
            rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect()
        })
    }

    fn text_holds_nul(&self) -> bool {
        false
    }
}
