//! The tools that the contract suites share: stores to run on, messages and commits to write.
//! In: a driver's name. Out: a prepared store and short ways to fill it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use perkey::testing::RowWrite;
use perkey::unstable::message::{Position, Taken, TakenId};
use perkey::unstable::store::lease::Code;
use perkey::unstable::store::memory::MemoryStore;
use perkey::unstable::store::query::{DeadFilter, Story};
use perkey::unstable::store::sqlite::{Access, SqliteStore};
use perkey::unstable::store::{
    Attempt, CommandResult, Commit, CommitOutcome, DeadLetter, EmittedEvent, HistoryRow, Identity, LogRow, Part,
    PendingKind, PendingRow, Runnable, ServiceKey, Setup, StateWrite, Store,
};
use perkey::{Column, ColumnKind, Draft, Message, Table};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Row};

/// A place where a store is, whatever the driver.
pub(crate) trait Place: Send + Sync {
    /// The store, as the process that runs it has it.
    fn store(&self) -> Arc<dyn Store>;
    /// Ends the process that runs it and starts another.
    fn restart(&mut self) -> BoxFuture<'_, ()>;
    /// The rows of a handler's table, in the order of the primary key.
    fn rows(&self, table: &'static str) -> BoxFuture<'_, Vec<Value>>;
    /// True if it runs handlers' own statements.
    fn runs_sql(&self) -> bool {
        true
    }
    /// True if a text of a handler's table may have U+0000 in it; a store where it may not refuses the row for good.
    fn text_holds_nul(&self) -> bool {
        true
    }
}

pub(crate) const SHARDS: u32 = 4;

/// A handler's table, with a column of every kind and a bound that can be violated.
pub(crate) const POSTINGS: Table = Table {
    name: "postings",
    columns: &[
        Column::new("id", ColumnKind::Text),
        Column::new("account", ColumnKind::Text),
        Column::new("amount", ColumnKind::Integer),
        Column::nullable("rate", ColumnKind::Real),
        Column::nullable("open", ColumnKind::Boolean),
        Column::nullable("extra", ColumnKind::Json),
    ],
    primary_key: &["account", "id"],
    key_column: Some("account"),
    indexes: &[&["id"], &["account", "id"]],
};

pub(crate) fn setup() -> Setup {
    let services = vec!["balances".into(), "audit".into()];
    Setup { shards: SHARDS, services, tables: vec![POSTINGS], code: Code::of([("balances", 1), ("audit", 1)]) }
}

/// A store in memory; it outlives its "process".
pub(crate) struct MemoryPlace(Arc<MemoryStore>);

impl MemoryPlace {
    pub(crate) async fn new() -> Box<Self> {
        let store = Arc::new(MemoryStore::new());
        store.prepare(setup()).await.unwrap();
        Box::new(Self(store))
    }
}

impl Place for MemoryPlace {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.0) as Arc<dyn Store>
    }

    fn restart(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn rows(&self, table: &'static str) -> BoxFuture<'_, Vec<Value>> {
        Box::pin(std::future::ready(self.0.rows(table)))
    }

    fn runs_sql(&self) -> bool {
        false
    }
}

/// A store in a SQLite file of its own directory.
pub(crate) struct SqlitePlace {
    pub(crate) folder: tempfile::TempDir,
    store: Arc<SqliteStore>,
}

impl SqlitePlace {
    pub(crate) async fn new() -> Box<Self> {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&url(&folder), Access::Run).await.unwrap());
        store.prepare(setup()).await.unwrap();
        Box::new(Self { folder, store })
    }

    pub(crate) fn sqlite(&self) -> &Arc<SqliteStore> {
        &self.store
    }

    pub(crate) fn url(&self) -> String {
        url(&self.folder)
    }

    pub(crate) async fn connection(&self) -> sqlx::SqliteConnection {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.folder.path().join("store.db"));
        sqlx::SqliteConnection::connect_with(&options).await.unwrap()
    }
}

pub(crate) fn url(folder: &tempfile::TempDir) -> String {
    format!("sqlite://{}", folder.path().join("store.db").display())
}

impl Place for SqlitePlace {
    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as Arc<dyn Store>
    }

    fn restart(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.store.close().await;
            self.store = Arc::new(SqliteStore::open(&self.url(), Access::Run).await.unwrap());
            self.store.prepare(setup()).await.unwrap();
        })
    }

    fn rows(&self, table: &'static str) -> BoxFuture<'_, Vec<Value>> {
        Box::pin(async move {
            let mut connection = self.connection().await;
            let sql = format!(
                "SELECT json_object('id', id, 'account', account, 'amount', amount, 'rate', rate,
                     'open', CASE open WHEN 1 THEN json('true') WHEN 0 THEN json('false') END, 'extra', json(extra))
                 FROM {table} ORDER BY account, id"
            );
            let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut connection).await.unwrap();
            rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect()
        })
    }
}

pub(crate) fn message(id: &str, key: &str, payload: &[u8]) -> Message {
    Draft { id, key, kind: "posted", source: "test", time: 7, payload, ..Draft::default() }.build().unwrap()
}

pub(crate) fn taken(identity: &Identity, message: &Message) -> Taken {
    Taken::of(message, identity.services["balances"], &identity.hash_key)
}

pub(crate) fn service_key(key: &str) -> ServiceKey {
    ServiceKey { service: "balances".into(), key: key.into() }
}

/// The services of [`setup`] may run.
pub(crate) fn runnable() -> Runnable {
    Runnable { services: setup().services, without: Vec::new() }
}

pub(crate) fn state(key: &str, json: &str) -> StateWrite {
    StateWrite {
        service: "balances".into(),
        key: key.into(),
        state: Some((3, Bytes::copy_from_slice(json.as_bytes()))),
    }
}

pub(crate) fn pending(seq: u64, key: &str, due_at: Option<u64>) -> PendingRow {
    let message = message(&format!("p-{seq}"), key, b"{\"waits\":true}");
    PendingRow {
        seq,
        service: "balances".into(),
        key: key.into(),
        kind: if due_at.is_some() { PendingKind::Retry } else { PendingKind::Follower },
        due_at,
        id: TakenId([u8::try_from(seq % 251).unwrap(); 22]),
        taken_at: 900,
        attempt: 2,
        starts: u32::try_from(seq % 3).unwrap(),
        message,
        history: vec![Attempt { attempt: 1, at: 950, generation: 4, error: "bad \"luck\" \0 é".to_owned() }],
    }
}

pub(crate) fn letter(seq: u64, key: &str, holds_key: bool) -> DeadLetter {
    let waited = pending(seq, key, None);
    DeadLetter {
        seq,
        service: waited.service,
        key: waited.key,
        id: waited.id,
        at: 2_000 + seq,
        taken_at: 900,
        error: format!("gave up: 100% of {seq}"),
        holds_key,
        history: waited.history,
        message: waited.message,
    }
}

pub(crate) fn posting(account: &str, id: &str, amount: i64) -> RowWrite {
    let extra = serde_json::json!({"a": [1]});
    let row = serde_json::json!({
        "id": id, "account": account, "amount": amount, "rate": null, "open": true, "extra": extra,
    });
    row_write(account, id, Some(row.to_string()))
}

pub(crate) fn row_write(account: &str, id: &str, row: Option<String>) -> RowWrite {
    RowWrite { table: POSTINGS, key: serde_json::to_string(&[account, id]).unwrap(), row }
}

/// A commit under `epoch` with number `no` and nothing in it.
pub(crate) fn commit(shard: u32, epoch: u64, no: u64) -> Commit {
    let positions =
        BTreeMap::from([(Arc::from("embedded"), BTreeMap::from([(Arc::from("import"), Position::new(no, 1))]))]);
    let counters = BTreeMap::from([("taken".to_owned(), 10 * no)]);
    Commit { shard, epoch, no, at: 1_000 + no, positions, counters, first_seq: 1, ..Commit::default() }
}

/// A commit with something for every table; `tag` keeps two of them apart.
pub(crate) fn full(identity: &Identity, shard: u32, epoch: u64, no: u64, tag: &str) -> Commit {
    let key = format!("acct-{tag}");
    let handled = message(&format!("m-{tag}"), &key, b"{}");
    let event = message(&format!("e-{tag}"), &key, b"{\"n\":1}");
    let cause = perkey::unstable::message::digest(handled.id(), &identity.hash_key);
    let seq = 10 * no;
    let part = Part {
        ids: vec![taken(identity, &handled)],
        state: Some(state(&key, "{\"balance\":1}")),
        events: vec![EmittedEvent { service: "balances".into(), cause, message: event.clone() }],
        pending: vec![pending(seq + 1, &format!("wait-{tag}"), Some(5_000))],
        dead: vec![letter(seq + 2, &format!("dead-{tag}"), true)],
        history: vec![HistoryRow {
            service: "balances".into(),
            key: format!("dead-{tag}").into(),
            id: format!("p-{}", seq + 2),
            at: 1_500,
            attempt: 7,
            generation: 9,
            what: "dead_letter".to_owned(),
            error: "gave up".to_owned(),
        }],
        rows: vec![posting(&key, &format!("m-{tag}"), 5)],
        command: Some(CommandResult { command: 1, affected: 3, done: true }),
        ..Part::default()
    };
    let messages = perkey::unstable::transport::embedded::encode(&[("audit", &event)]);
    let log = vec![LogRow { target: (shard + 1) % SHARDS, count: 1, messages }];
    Commit { parts: vec![part], log, first_seq: no, ..commit(shard, epoch, no) }
}

pub(crate) async fn committed(store: &Arc<dyn Store>, commit: &Commit) {
    let outcome = store.commit(commit).await;
    assert!(matches!(outcome, CommitOutcome::Committed), "{outcome:?}");
}

/// All that can be read from a store, to compare before with after.
pub(crate) async fn everything(place: &dyn Place, tags: &[&str]) -> String {
    let store = place.store();
    let mut seen = format!("{:#?}\n", store.queries().shards().await.unwrap());
    for shard in 0..SHARDS {
        seen += &format!("events {:?}\n", store.queries().events(shard, 0, 100).await.unwrap());
        seen += &format!("inbox {:?}\n", store.inbox(shard, 0, 1_000).await.unwrap());
        seen += &format!("due {:?}\n", store.due(shard, u64::MAX / 4, runnable(), 100).await.unwrap());
        seen += &format!("dead {:?}\n", store.dead(shard, DeadFilter::default(), None, 100).await.unwrap());
        seen += &format!("log {:?}\n", store.read_log(shard, BTreeMap::new(), 1_000).await.unwrap());
    }
    for tag in tags {
        for text in [format!("acct-{tag}"), format!("wait-{tag}"), format!("dead-{tag}"), format!("m-{tag}")] {
            let story: Story = store.queries().explain(text).await.unwrap();
            seen += &format!("story {story:?}\n");
        }
    }
    seen += &format!("command {:?}\n", store.queries().command_state(1).await.unwrap());
    seen + &format!("rows {:?}\n", place.rows("postings").await)
}
