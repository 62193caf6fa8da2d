//! A real process with its front doors: `up` over SQLite, or a `worker` over PostgreSQL.

use std::time::Duration;

use perkey_chaos::process::{Running, until};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, PgConnection, SqliteConnection};

use super::provider::Provider;
use crate::cli::Cli;
use crate::postgres_place::Database;

const SOON: Duration = Duration::from_secs(60);

/// Over which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
}

/// A process and its provider.
pub(crate) struct Scene {
    pub(crate) cli: Cli,
    pub(crate) http: String,
    pub(crate) grpc: String,
    pub(crate) provider: Provider,
    running: Running,
    sets: Vec<String>,
    starts: usize,
    database: Option<Database>,
}

impl Scene {
    /// Starts a scene with these settings, besides those that make it quick.
    pub(crate) async fn new(kind: Kind, sets: &[&str]) -> Self {
        Self::with(kind, sets, |_| {}).await
    }

    /// Starts a scene with these settings, after `prepare` has set up its folder.
    pub(crate) async fn with(kind: Kind, sets: &[&str], prepare: impl FnOnce(&Cli)) -> Self {
        let mut cli = Cli::new().await;
        prepare(&cli);
        let database = match kind {
            Kind::Sqlite => None,
            Kind::Postgres => Some(Database::new().await),
        };
        if let Some(database) = &database {
            cli.place.url.clone_from(&database.url);
        }
        let provider = Provider::start().await;
        let url = format!("app.provider_url={}", provider.url);
        let quick = ["admin.listen=127.0.0.1:0", "app.provider_timeout=30s", "retry.base=10ms", "log.poll=10ms", &url];
        // What a test says comes last, and counts.
        let sets = quick.iter().chain(sets).map(|set| (*set).to_owned()).collect::<Vec<_>>();
        let running = start(&cli, &sets, database.is_some(), 1);
        let (http, grpc) = (listens(&cli, 1, "listens").await, listens(&cli, 1, "listens for gRPC").await);
        Self { cli, http, grpc, provider, running, sets, starts: 1, database }
    }

    /// Kills it, and starts it again at other addresses.
    pub(crate) async fn crash(&mut self) {
        assert!(self.running.kill().await.unwrap(), "it had ended by itself");
        self.starts += 1;
        self.running = start(&self.cli, &self.sets, self.database.is_some(), self.starts);
        self.http = listens(&self.cli, self.starts, "listens").await;
        self.grpc = listens(&self.cli, self.starts, "listens for gRPC").await;
    }

    /// Tells it to end, and waits.
    pub(crate) async fn end(mut self) {
        self.running.terminate().await.unwrap();
        let log = self.log();
        assert_eq!(self.running.ends(SOON).await.unwrap().code(), Some(0), "{}", self.cli.place.tail(&log));
    }

    /// The name of its log.
    pub(crate) fn log(&self) -> String {
        log(self.starts)
    }

    /// The address of its admin server.
    pub(crate) async fn admin(&self) -> String {
        let file = self.cli.place.folder.join(self.log());
        let mut found = None;
        let said = until("the process says where it tells of itself", SOON, async || {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let place = text.split_once("metrics=").and_then(|(_, rest)| rest.split_once("/metrics"));
            found = place.map(|(address, _)| address.trim_matches('"').to_owned());
            found.is_some()
        });
        said.await.unwrap_or_else(|error| panic!("{error}: {}", self.cli.place.tail(&self.log())));
        found.unwrap()
    }

    /// Sends it a signal and goes on.
    pub(crate) async fn terminate(&mut self) {
        self.running.terminate().await.unwrap();
    }

    pub(crate) async fn ended(&mut self) -> Option<i32> {
        self.running.ends(SOON).await.unwrap().code()
    }

    /// The number that this query finds.
    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        match &self.database {
            Some(database) => {
                let mut connection = PgConnection::connect(&database.url).await.unwrap();
                sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
            }
            None => {
                let options = SqliteConnectOptions::new().filename(self.cli.place.folder.join("store.db"));
                let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
                sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
            }
        }
    }

    /// Everything that the store has of calls and their messages, as text.
    pub(crate) async fn stored(&self) -> String {
        match &self.database {
            Some(database) => {
                let mut connection = PgConnection::connect(&database.url).await.unwrap();
                let sql = "SELECT coalesce(string_agg(row_to_json(c)::text
                        || encode(coalesce(c.body, ''), 'escape'), ' '), '')
                    FROM calls c";
                sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap()
            }
            None => {
                let mut text = String::new();
                for file in ["store.db", "store.db-wal"] {
                    let bytes = std::fs::read(self.cli.place.folder.join(file)).unwrap_or_default();
                    text.push_str(&String::from_utf8_lossy(&bytes));
                }
                text
            }
        }
    }
}

fn log(starts: usize) -> String {
    format!("gateway-{starts}.log")
}

fn start(cli: &Cli, sets: &[String], in_fleet: bool, starts: usize) -> Running {
    let mut args = vec![if in_fleet { "worker" } else { "up" }];
    // The same worker again: it gives the lease of its former life up.
    let fleet =
        ["ownership.worker=w", "ownership.lease_ttl=3s", "ownership.heartbeat=300ms", "store.statement_timeout=2s"];
    let sets = sets.iter().map(String::as_str).chain(fleet.into_iter().filter(|_| in_fleet));
    args.extend(sets.flat_map(|set| ["--set", set]));
    cli.place.start(&log(starts), &args).unwrap()
}

/// The address that the process says it listens at.
async fn listens(cli: &Cli, starts: usize, words: &str) -> String {
    let file = cli.place.folder.join(log(starts));
    let mut found = String::new();
    let what = format!("the process did not say that it {words}");
    let said = until(&what, SOON, async || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let mut lines = text.lines().filter(|line| line.contains(&format!("the gateway {words} address=")));
        let address = lines.next_back().and_then(|line| line.split_once("address=")).map(|(_, rest)| rest);
        found = address.and_then(|rest| rest.split_whitespace().next()).unwrap_or_default().to_owned();
        !found.is_empty()
    });
    said.await.unwrap_or_else(|error| panic!("{error}: {}", cli.place.tail(&log(starts))));
    found.trim_matches('"').to_owned()
}
