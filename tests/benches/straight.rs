//! The bench's job as a straight-line loop: no actors, no shards, no retries, no fence.
//! In: the log's rows. Out: inbox, balances and outbox, a row per message, one transaction per batch.
//!
//! Written for speed: balances stay in memory, ids are 16-byte blobs, known ids are asked for (few come back) instead
//! of new ones, and a batch is one question and one string of bulk statements, all prepared once.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use budget_actors::balances::{Balance, BalanceChanged};
use budget_actors::posting::Posting;
use perkey::Message;
use perkey::unstable::clock::Stopwatch;
use perkey::unstable::transport::embedded;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Row, SqliteConnection};
use uuid::Uuid;

use super::workload::Workload;

const SCHEMA: &str = "
    CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE balance (account TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE outbox (no INTEGER PRIMARY KEY, account TEXT NOT NULL, payload TEXT NOT NULL);
    CREATE TABLE position (one INTEGER PRIMARY KEY CHECK (one = 1), at INTEGER NOT NULL);
    INSERT INTO position VALUES (1, 0);";

/// Rows of the log read at once.
const ROWS: i64 = 64;

const KNOWN: &str = "WITH given (ids) AS (SELECT ?)
    SELECT seen.id FROM given CROSS JOIN json_each(?) CROSS JOIN seen ON seen.id = substr(ids, value, 16)";

const WRITE: &str = "BEGIN IMMEDIATE;
    INSERT INTO seen SELECT substr(?, value, 16) FROM json_each(?);
    INSERT INTO balance SELECT value->>0, value->>1 FROM json_each(?) WHERE true
        ON CONFLICT (account) DO UPDATE SET state = excluded.state;
    INSERT INTO outbox (account, payload) SELECT value->>0, value->>1 FROM json_each(?);
    UPDATE position SET at = ?;
    COMMIT";

/// The time that the loop takes for everything in the log at `path`.
pub(crate) async fn run(path: &Path, workload: &Workload, batch: usize) -> Duration {
    let options = SqliteConnectOptions::new().filename(path).journal_mode(SqliteJournalMode::Wal);
    let options = options.synchronous(SqliteSynchronous::Full);
    let options = options.pragma("cache_size", "-20000").pragma("wal_autocheckpoint", "8000").row_buffer_size(256);
    let mut store = options.disable_statement_logging().connect().await.expect("a connection");
    sqlx::raw_sql(SCHEMA).execute(&mut store).await.expect("tables");
    let watch = Stopwatch::start();
    let mut balances = HashMap::new();
    let mut after = 0_i64;
    let mut waiting: Vec<Message> = Vec::new();
    loop {
        let rows = sqlx::query("SELECT rowid, messages FROM log WHERE rowid > ? ORDER BY rowid LIMIT ?");
        let rows = rows.bind(after).bind(ROWS).fetch_all(&mut store).await.expect("log rows");
        for row in &rows {
            after = row.get(0);
            let messages: Vec<u8> = row.get(1);
            waiting.extend(embedded::decode(messages.into()).expect("a row").into_iter().map(|(_, message)| message));
        }
        let end = if rows.is_empty() { 0 } else { waiting.len() % batch };
        let whole = waiting.len() - end;
        for messages in waiting[..whole].chunks(batch) {
            commit(&mut store, &mut balances, messages, after).await;
        }
        waiting.drain(..whole);
        if rows.is_empty() {
            break;
        }
    }
    let took = watch.elapsed();
    let n: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&mut store).await.expect("a count");
    assert_eq!(n.unsigned_abs(), workload.unique, "each message counts once");
    took
}

async fn commit(
    store: &mut SqliteConnection,
    balances: &mut HashMap<String, Balance>,
    messages: &[Message],
    position: i64,
) {
    let asked: Vec<[u8; 16]> = messages.iter().map(id).collect();
    let known = sqlx::query_scalar(KNOWN).bind(asked.concat()).bind(places(asked.len()));
    let known: Vec<Vec<u8>> = known.fetch_all(&mut *store).await.expect("known ids");
    let known: Vec<[u8; 16]> = known.into_iter().filter_map(|id| id.try_into().ok()).collect();
    let mut seen: HashSet<[u8; 16]> = known.into_iter().collect();
    let mut ids: Vec<[u8; 16]> = Vec::with_capacity(messages.len());
    let mut changed: HashSet<String> = HashSet::new();
    let mut events = String::from("[");
    for (message, id) in messages.iter().zip(asked) {
        if !seen.insert(id) {
            continue;
        }
        ids.push(id);
        let posting: Posting = serde_json::from_slice(message.payload()).expect("a posting");
        let account = String::from(posting.account.clone());
        let state = balances.entry(account.clone()).or_default();
        state.currency = Some(posting.currency);
        state.balance = state.balance.plus(posting.amount).expect("no overflow");
        state.n += 1;
        let id = posting.id.unwrap_or_default();
        let event = BalanceChanged { id, account: posting.account, balance: state.balance, n: state.n };
        let payload = serde_json::to_string(&event).expect("an event");
        pair(&mut events, &account, &payload);
        changed.insert(account);
    }
    let mut states = String::from("[");
    let mut changed: Vec<&String> = changed.iter().collect();
    changed.sort_unstable();
    for account in changed {
        pair(&mut states, account, &serde_json::to_string(&balances[account]).expect("a state"));
    }
    // In the order of the index.
    ids.sort_unstable();
    let write = sqlx::query(WRITE).bind(ids.concat()).bind(places(ids.len()));
    let write = write.bind(states + "]").bind(events + "]").bind(position);
    write.execute(store).await.expect("a commit");
}

fn id(message: &Message) -> [u8; 16] {
    Uuid::try_parse(message.id()).expect("the workload's ids are UUIDs").into_bytes()
}

/// The places at which `count` ids begin in their blob.
fn places(count: usize) -> String {
    let mut places = String::from("[");
    for at in 0..count {
        let comma = if at == 0 { "" } else { "," };
        write!(places, "{comma}{}", at * 16 + 1).expect("a string takes everything");
    }
    places + "]"
}

fn pair(rows: &mut String, account: &str, value: &str) {
    rows.push_str(if rows.len() == 1 { "" } else { "," });
    rows.push_str(&serde_json::to_string(&(account, value)).expect("two texts"));
}
