//! A front door without idempotency, for comparison: a plain axum + sqlx handler that does the same insert, for
//! `scripts/load`.
//! In: `--listen HOST:PORT --url sqlite://PATH|postgres://…`. Out: answers as Perkey's `POST /api/transactions` gives them.
//!
//! Written for speed, as somebody who knows both databases would: one writing connection and WAL on SQLite, where a second
//! one would only wait for the first; one statement for all of it on PostgreSQL. A request is a transaction that is on the
//! disk before its answer.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use axum::{Json, Router};
use perkey::unstable::clock::{Clock, Dice, rfc3339};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};
use tokio::net::TcpListener;
use uuid::Uuid;

/// The allocator of the binary that it stands beside.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROWS: &str = "(id TEXT NOT NULL, account TEXT NOT NULL, amount BIGINT NOT NULL, currency TEXT NOT NULL,
    at TEXT NOT NULL, memo TEXT, PRIMARY KEY (account, id))";
const BALANCES: &str = "(account TEXT PRIMARY KEY, balance BIGINT NOT NULL, n BIGINT NOT NULL)";
const INDEX: &str = "CREATE INDEX IF NOT EXISTS transactions_by_id ON transactions (id)";

const INSERT: &str =
    "INSERT INTO transactions (id, account, amount, currency, at, memo) VALUES ($1, $2, $3, $4, $5, $6)";
const COUNT: &str = "INSERT INTO account_balances AS b (account, balance, n) VALUES ($1, $2, 1)
    ON CONFLICT (account) DO UPDATE SET balance = b.balance + excluded.balance, n = b.n + 1 RETURNING balance, n";
const BOTH: &str = "WITH row AS (
        INSERT INTO transactions (id, account, amount, currency, at, memo) VALUES ($1, $2, $3, $4, $5, $6))
    INSERT INTO account_balances AS b (account, balance, n) VALUES ($2, $3, 1)
    ON CONFLICT (account) DO UPDATE SET balance = b.balance + excluded.balance, n = b.n + 1 RETURNING balance, n";
const PAGE: &str =
    "SELECT id, account, amount, currency, at, memo FROM transactions WHERE account = $1 ORDER BY id LIMIT 20";

/// Connections of the pools, as many as most programs have.
const CONNECTIONS: u32 = 20;

#[derive(Clone)]
enum Database {
    Sqlite { writer: SqlitePool, readers: SqlitePool },
    Postgres(PgPool),
}

#[derive(Clone)]
struct Plain {
    database: Database,
    dice: Arc<Mutex<Dice>>,
}

#[derive(Deserialize)]
struct Asked {
    account: String,
    amount: i64,
    currency: String,
    memo: Option<String>,
}

#[derive(Serialize)]
struct Posted {
    id: String,
    account: String,
    amount: i64,
    balance: i64,
    n: i64,
}

#[derive(Deserialize)]
struct Of {
    account: String,
}

/// A request that failed: the load counts it.
struct Failed(sqlx::Error);

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0.to_string()).into_response()
    }
}

#[tokio::main]
async fn main() {
    // `cargo bench` adds a flag of its own.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let value = |name: &str| {
        let at = args.iter().position(|arg| arg == name).expect("--listen HOST:PORT --url URL");
        args.get(at + 1).expect("an option has a value").as_str()
    };
    let database = open(value("--url")).await.expect("a database");
    let plain = Plain { database, dice: Arc::new(Mutex::new(Dice::from_system())) };
    let router = Router::new()
        .route("/readyz", get(async || "ready"))
        .route("/api/transactions", get(page).post(post))
        .with_state(plain);
    let listener = TcpListener::bind(value("--listen")).await.expect("a free port");
    let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
    axum::serve(listener, router).await.expect("it serves until it is killed");
}

async fn open(url: &str) -> Result<Database, sqlx::Error> {
    if !url.starts_with("sqlite:") {
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(url).await?;
        let sql = format!("CREATE TABLE transactions {ROWS}; CREATE TABLE account_balances {BALANCES}; {INDEX}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await?;
        return Ok(Database::Postgres(pool));
    }
    // As Perkey has them.
    let options = SqliteConnectOptions::from_str(url)?
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("cache_size", "-20000")
        .pragma("temp_store", "memory")
        .pragma("wal_autocheckpoint", "8000")
        .disable_statement_logging();
    let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
    let sql = format!("CREATE TABLE transactions {ROWS}; CREATE TABLE account_balances {BALANCES}; {INDEX}");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&writer).await?;
    let readers = SqlitePoolOptions::new().max_connections(CONNECTIONS).connect_lazy_with(options.read_only(true));
    Ok(Database::Sqlite { writer, readers })
}

async fn post(State(plain): State<Plain>, Json(asked): Json<Asked>) -> Result<Response, Failed> {
    let id = plain.id();
    let at = rfc3339(Clock::system().now());
    let Asked { account, amount, currency, memo } = asked;
    let (balance, n) = match &plain.database {
        Database::Sqlite { writer, .. } => {
            let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await?;
            let insert = sqlx::query(INSERT).bind(&id).bind(&account).bind(amount).bind(&currency).bind(&at);
            insert.bind(&memo).execute(&mut *transaction).await?;
            let row = sqlx::query(COUNT).bind(&account).bind(amount).fetch_one(&mut *transaction).await?;
            transaction.commit().await?;
            (row.get(0), row.get(1))
        }
        Database::Postgres(pool) => {
            let both = sqlx::query(BOTH).bind(&id).bind(&account).bind(amount).bind(&currency).bind(&at);
            let row = both.bind(&memo).fetch_one(pool).await?;
            (row.get(0), row.get(1))
        }
    };
    let location = [(header::LOCATION, format!("/api/transactions/{id}"))];
    Ok((StatusCode::CREATED, location, Json(Posted { id, account, amount, balance, n })).into_response())
}

async fn page(State(plain): State<Plain>, Query(of): Query<Of>) -> Result<Json<Value>, Failed> {
    macro_rules! items {
        ($pool:expr) => {{
            let rows = sqlx::query(PAGE).bind(of.account).fetch_all($pool).await?;
            let item = |row: &_| {
                let text = |at| Row::get::<Option<String>, usize>(row, at);
                let amount = Row::get::<i64, usize>(row, 2);
                json!({ "id": text(0), "account": text(1), "amount": amount, "currency": text(3), "at": text(4), "memo": text(5) })
            };
            rows.iter().map(item).collect::<Vec<Value>>()
        }};
    }
    let items = match &plain.database {
        Database::Sqlite { readers, .. } => items!(readers),
        Database::Postgres(pool) => items!(pool),
    };
    Ok(Json(json!({ "items": items })))
}

impl Plain {
    fn id(&self) -> String {
        let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
        Uuid::from_u64_pair(dice.below(u64::MAX), dice.below(u64::MAX)).to_string()
    }
}
