//! The same job as a straight-line loop: no actors, no shards, no retries, no fence.
//! In: the log's rows. Out: inbox, balances and outbox, a row per message, one transaction per batch.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use budget_actors::balances::{Balance, BalanceChanged};
use budget_actors::posting::Posting;
use perkey::Message;
use perkey::transport::embedded;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};

use super::workload::Workload;

const SCHEMA: &str = "
    CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE balance (account TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE outbox (no INTEGER PRIMARY KEY, account TEXT NOT NULL, payload TEXT NOT NULL);";

pub(crate) async fn run(path: &Path, workload: &Workload, batch: usize) -> Duration {
    let options = SqliteConnectOptions::new().filename(path).journal_mode(SqliteJournalMode::Wal);
    let mut store = options.synchronous(SqliteSynchronous::Full).connect().await.expect("a connection");
    sqlx::raw_sql(SCHEMA).execute(&mut store).await.expect("tables");
    let start = Instant::now();
    let mut after = 0_i64;
    let mut waiting: Vec<Message> = Vec::new();
    loop {
        let rows = sqlx::query("SELECT rowid AS at, messages FROM log WHERE rowid > ? ORDER BY rowid LIMIT 64");
        let rows = rows.bind(after).fetch_all(&mut store).await.expect("log rows");
        for row in &rows {
            after = row.get("at");
            let messages: Vec<u8> = row.get("messages");
            waiting.extend(embedded::decode(messages.into()).expect("a row").into_iter().map(|(_, message)| message));
        }
        let end = if rows.is_empty() { 0 } else { waiting.len() % batch };
        let whole = waiting.len() - end;
        for messages in waiting[..whole].chunks(batch) {
            commit(&mut store, messages).await;
        }
        waiting.drain(..whole);
        if rows.is_empty() {
            break;
        }
    }
    let took = start.elapsed();
    let n: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&mut store).await.expect("a count");
    assert_eq!(n.unsigned_abs(), workload.unique, "each message counts once");
    took
}

async fn commit(store: &mut SqliteConnection, messages: &[Message]) {
    let mut transaction = store.begin_with("BEGIN IMMEDIATE").await.expect("a transaction");
    let ids: Vec<&str> = messages.iter().map(Message::id).collect();
    let ids = serde_json::to_string(&ids).expect("ids");
    let new = "INSERT INTO seen SELECT value FROM json_each(?) WHERE true ON CONFLICT DO NOTHING RETURNING id";
    let new: Vec<String> = sqlx::query_scalar(new).bind(&ids).fetch_all(&mut *transaction).await.expect("new ids");
    let mut new: std::collections::HashSet<String> = new.into_iter().collect();
    let postings = messages.iter().filter(|message| new.remove(message.id()));
    let postings: Vec<Posting> =
        postings.map(|message| serde_json::from_slice(message.payload()).expect("a posting")).collect();
    let mut accounts: Vec<String> = postings.iter().map(|posting| posting.account.clone().into()).collect();
    accounts.sort_unstable();
    accounts.dedup();
    let accounts = serde_json::to_string(&accounts).expect("accounts");
    let read = "SELECT account, state FROM balance JOIN json_each(?) ON account = value";
    let rows = sqlx::query(read).bind(&accounts).fetch_all(&mut *transaction).await.expect("balances");
    let stored = rows.iter().map(|row| {
        let state: &str = row.get("state");
        (row.get::<String, _>("account"), serde_json::from_str(state).expect("a balance"))
    });
    let mut balances: HashMap<String, Balance> = stored.collect();
    let mut events: Vec<(String, String)> = Vec::new();
    for posting in postings {
        let state = balances.entry(posting.account.clone().into()).or_default();
        state.currency = Some(posting.currency);
        state.balance = state.balance.plus(posting.amount).expect("no overflow");
        state.n += 1;
        let id = posting.id.unwrap_or_default();
        let event = BalanceChanged { id, account: posting.account, balance: state.balance, n: state.n };
        let account = String::from(event.account.clone());
        events.push((account, serde_json::to_string(&event).expect("an event")));
    }
    let states: Vec<(&String, String)> =
        balances.iter().map(|(account, state)| (account, serde_json::to_string(state).expect("a state"))).collect();
    let write = "INSERT INTO balance SELECT value->>0, value->>1 FROM json_each(?) WHERE true
        ON CONFLICT (account) DO UPDATE SET state = excluded.state";
    let states = serde_json::to_string(&states).expect("states");
    sqlx::query(write).bind(states).execute(&mut *transaction).await.expect("balances");
    let outbox = "INSERT INTO outbox (account, payload) SELECT value->>0, value->>1 FROM json_each(?)";
    let events = serde_json::to_string(&events).expect("events");
    sqlx::query(outbox).bind(events).execute(&mut *transaction).await.expect("the outbox");
    transaction.commit().await.expect("a commit");
}
