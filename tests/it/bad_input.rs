//! Bad input and a bad world, tried as a user would meet them.
//! In: keys, payloads, bytes and files that cannot be used, a full disk. Out: a reason for each, and everything else done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use perkey::unstable::engine::calls::{Call, CallError};
use perkey::unstable::handler::CallId;
use perkey::unstable::message::shard_of;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::query::{DeadFilter, ImportBatch, ImportProgress};
use perkey::unstable::store::{LogRow, Store};
use perkey::unstable::transport::embedded;
use perkey::{Draft, Engine, Fault, Handler, Handlers, Health, Key, Message, Settings, Turn};
use perkey_chaos::process::until;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::Semaphore;

use crate::cli::Cli;
use crate::postgres_place::Database;
use crate::support::{Count, Counted, append, count, handlers, open};

const SOON: Duration = Duration::from_secs(60);

/// One row of the log with these messages, as an outside writer might append it.
async fn append_row(store: &dyn Store, messages: Bytes, count: u32) {
    let rows = vec![LogRow { target: 0, count, messages }];
    let progress = ImportProgress::default();
    let batch = ImportBatch { service: "counting".into(), source: "test".to_owned(), rows, progress, at: 0 };
    store.queries().append_import(batch).await.unwrap();
}

fn unchecked(id: &str, key: &str, payload: &[u8]) -> Message {
    Draft { id, key, kind: "count", source: "test", payload, ..Draft::default() }.build_unchecked().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_cannot_be_used_become_dead_letters_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.ingress.message_bytes_max = 10_000;
    let store = open(&dir.path().join("s.db")).await;
    let engine = Engine::start(&settings, handlers(), store.clone(), Metrics::new()).await.unwrap();
    let shards = settings.ownership.shards;
    let mine = (0..).map(|n| format!("k{n}")).find(|key| shard_of(key, shards) == 0).unwrap();
    let fine = format!(r#"{{"key":"{mine}"}}"#);
    let long = "k".repeat(300);
    let twice = format!(r#"{{"key":"{mine}","key":"{mine}"}}"#);
    let large = format!(r#"{{"key":"{mine}","fail":"{}"}}"#, "x".repeat(10_000));
    let bad = [
        ("no-json", unchecked("no-json", &mine, b"{"), "counting"),
        ("no-utf8", unchecked("no-utf8", &mine, b"{\"key\":\"\xff\"}"), "counting"),
        ("other-fields", unchecked("other-fields", &mine, b"{\"name\":\"x\"}"), "counting"),
        ("twice", unchecked("twice", &mine, twice.as_bytes()), "counting"),
        ("other-key", unchecked("other-key", &mine, br#"{"key":"elsewhere"}"#), "counting"),
        ("unseen", unchecked("unseen", "a\u{200b}b", fine.as_bytes()), "counting"),
        ("too-large", unchecked("too-large", &mine, large.as_bytes()), "counting"),
        ("nobodys", unchecked("nobodys", &mine, fine.as_bytes()), "nobody"),
        ("empty-key", unchecked("empty-key", "", fine.as_bytes()), "counting"),
        ("long-key", unchecked("long-key", &long, fine.as_bytes()), "counting"),
        ("nul-key", unchecked("nul-key", "a\0b", fine.as_bytes()), "counting"),
    ];
    for (no, (_, message, service)) in bad.iter().enumerate() {
        let good = count(&format!("good-{no}"), &mine, None);
        append_row(&*store, embedded::encode(&[("counting", &good), (service, message)]), 2).await;
    }
    // A row whose bytes are not messages at all, and one whose key is not UTF-8.
    append_row(&*store, Bytes::from_static(b"\x07nonsense"), 1).await;
    let mut bytes = embedded::encode(&[("counting", &count("xxxx", &mine, None))]).to_vec();
    let at = bytes.windows(4).position(|part| part == b"xxxx").unwrap();
    bytes[at] = 0xff;
    append_row(&*store, bytes.into(), 1).await;
    append_row(&*store, embedded::encode(&[("counting", &count("last", &mine, None))]), 1).await;
    tokio::time::timeout(SOON, engine.idle()).await.expect("nothing of this stops the shard");
    let dead = store.queries().peek(DeadFilter::default(), 100).await.unwrap();
    let reasons: HashMap<_, _> =
        dead.iter().map(|(_, letter)| (letter.message.id().to_owned(), letter.error.clone())).collect();
    let other_key = format!("under the key {mine:?}, its own is \"elsewhere\"");
    for (id, reason) in [
        ("no-json", "EOF"),
        ("no-utf8", "unicode"),
        ("other-fields", "key"),
        ("twice", "duplicate field `key`"),
        ("other-key", other_key.as_str()),
        ("unseen", "U+200B"),
        ("too-large", "ingress.message_bytes_max"),
        ("nobodys", "nobody"),
        ("empty-key", "no key"),
        ("long-key", "300 bytes, at most 256"),
        ("nul-key", "NUL"),
    ] {
        assert!(reasons.get(id).is_some_and(|error| error.contains(reason)), "{id}: {reasons:#?}");
    }
    let unreadable = reasons.iter().filter(|(id, _)| id.starts_with("import/")).count();
    assert_eq!((unreadable, dead.len()), (2, 13), "nonsense and no UTF-8: {reasons:#?}");
    let story = store.queries().explain(mine).await.unwrap();
    let state: Counted = serde_json::from_slice(&story.states[0].2).unwrap();
    assert_eq!(state.n, 12, "the good ones counted");
    engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_cannot_be_used_are_refused_with_number_and_reason() {
    let cli = Cli::new().await;
    let mut file = b"id,account,amount,currency,at\n".to_vec();
    let long = format!("l-2,{},1,EUR,2026-01-31", "a".repeat(300));
    let huge = format!("l-3,{},1,EUR,2026-01-31", "a".repeat(2 << 20));
    let lines: [&[u8]; 10] = [
        b"l-1,,1,EUR,2026-01-31",
        long.as_bytes(),
        huge.as_bytes(),
        b"l-4,a\xff,1,EUR,2026-01-31",
        b"l-5,a\0b,1,EUR,2026-01-31",
        b"l-6,a,1.234,EUR,2026-01-31",
        b"l-7,a,99999999999999999999,EUR,2026-01-31",
        b"l-8,a,1,euro,2026-01-31",
        b"l-9,a,1,EUR,yesterday",
        b"l-10,a,1,EUR",
    ];
    for (no, line) in lines.iter().enumerate() {
        file.extend_from_slice(line);
        file.extend_from_slice(format!("\ngood-{no},fine,1,EUR,2026-01-31\n").as_bytes());
    }
    cli.file("f.csv", &file);
    let said = cli.json(&["import", "--service", "balances", "f.csv"]).await.ends(2);
    assert_eq!((&said["imported"], &said["rejected"]), (&10.into(), &10.into()), "{said}");
    assert_eq!(said["engine"]["dead_letters"], 0, "{said}");
    let rejects = std::fs::read_to_string(cli.place.folder.join("f.csv.rejects.ndjson")).unwrap();
    let rejects: Vec<serde_json::Value> = rejects.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let reasons: Vec<_> = rejects.iter().map(|reject| reject["reason"].as_str().unwrap()).collect();
    let numbers: Vec<_> = rejects.iter().map(|reject| reject["line"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=10).map(|no| 2 * no).collect::<Vec<_>>());
    let words = ["empty", "256", "1048576", "UTF-8", "NUL", "1.234", "out of range", "euro", "yesterday", "4 values"];
    for (reason, word) in reasons.iter().zip(words) {
        assert!(reason.contains(word), "it does not say {word}: {reason}");
    }
    let status = cli.json(&["status"]).await.ends(0);
    assert_eq!(status["totals"]["counters"]["taken"], 10, "{status}");

    cli.run(&["import", "--service", "nobody", "f.csv"])
        .await
        .fails(64, &["nobody", "expenses, orders, payments, transactions"]);
    cli.file("other.csv", "name,amount\nx,1\n");
    cli.run(&["import", "--service", "balances", "other.csv"]).await.fails(1, &["header", "account"]);
}

/// The postings of the ledger, by account.
async fn postings(cli: &Cli) -> Vec<(String, i64, Option<String>)> {
    let options = SqliteConnectOptions::new().filename(cli.place.folder.join("store.db"));
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let rows = sqlx::query_as("SELECT account, amount, memo FROM transactions ORDER BY account, amount");
    let rows = rows.fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    rows
}

fn posting(account: &str, amount: i64) -> (String, i64, Option<String>) {
    (account.to_owned(), amount, None)
}

const IMPORT: [&str; 3] = ["import", "--service", "transactions"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_csv_is_what_its_reader_says_and_none_is_lost() {
    let cli = Cli::new().await;
    let memo = "order 17\nshop,999999,EUR,2026-01-31,see above\nthanks";
    let file =
        format!("account,amount,currency,at,memo\nshop,1250,EUR,2026-01-31,\"{memo}\"\nother,1,EUR,2026-02-01,\n");
    cli.file("memo.csv", file);
    let said = cli.json(&[&IMPORT[..], &["memo.csv"]].concat()).await.ends(0);
    assert_eq!((&said["imported"], &said["rejected"]), (&2.into(), &0.into()), "{said}");
    let head = "account,amount,currency,at";
    cli.file("mixed.csv", format!("{head}\na,1,EUR,2026-01-31\rb,2,EUR,2026-01-31\r\nc,3,EUR,2026-01-31\n"));
    cli.file("mac.csv", format!("{head}\rd,4,EUR,2026-01-31\re,5,EUR,2026-01-31\r"));
    for file in ["mixed.csv", "mac.csv"] {
        cli.json(&[&IMPORT[..], &[file]].concat()).await.ends(0);
    }
    let mut wanted: Vec<_> = [("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5), ("other", 1)]
        .map(|(account, amount)| posting(account, amount))
        .to_vec();
    wanted.push(("shop".to_owned(), 1_250, Some(memo.to_owned())));
    assert_eq!(postings(&cli).await, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_end_yet_is_left_until_it_has_one() {
    let cli = Cli::new().await;
    let start = "account,currency,at,amount\na,EUR,2026-01-31,1\n";
    let import = [&IMPORT[..], &["f.csv"]].concat();
    cli.file("f.csv", format!("{start}b,EUR,2026-01-31,12"));
    let said = cli.json(&import).await.ends(2);
    assert_eq!((&said["imported"], &said["lines"], &said["unfinished_line"]), (&1.into(), &2.into(), &3.into()));
    cli.file("f.csv", format!("{start}b,EUR,2026-01-31,1250\nc,EUR,\"2026-01-31,3\nd,EUR,2026-01-31,4\n"));
    cli.run(&import).await.fails(2, &["quote", "line 4"]);
    assert_eq!(postings(&cli).await, [posting("a", 1), posting("b", 1_250)], "no line within an open quote is read");
    cli.file("f.csv", format!("{start}b,EUR,2026-01-31,1250\nc,EUR,\"2026-01-31\",3\nd,EUR,2026-01-31,4"));
    let said = cli.json(&[&import[..], &["--complete"]].concat()).await.ends(0);
    assert_eq!((&said["imported"], &said["skipped"]), (&2.into(), &2.into()), "{said}");
    assert_eq!(postings(&cli).await[2..], [posting("c", 3), posting("d", 4)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_amounts_of_a_file_have_one_scale() {
    let cli = Cli::new().await;
    let head = "account,amount,currency,at";
    let excel = format!(
        "{head}\nx1,12.34,EUR,2026-01-31\nx2,12,EUR,2026-01-31\nx3,12.5,EUR,2026-01-31\nx4,12,JPY,2026-01-31\n"
    );
    cli.file("excel.csv", excel);
    let import = [&IMPORT[..], &["excel.csv"]].concat();
    cli.run(&import).await.fails(1, &["line 2", "12.34", "line 3", "--amounts"]);
    cli.json(&[&import[..], &["--amounts", "major"]].concat()).await.ends(0);
    let wanted =
        [("x1", 1_234), ("x2", 1_200), ("x3", 1_250), ("x4", 12)].map(|(account, amount)| posting(account, amount));
    assert_eq!(postings(&cli).await, wanted);
    let line = |account: &str, amount: &str| {
        format!("{{\"account\":\"{account}\",\"amount\":{amount},\"currency\":\"EUR\",\"at\":\"2026-01-31\"}}\n")
    };
    cli.file("js.ndjson", line("y1", "12") + &line("y2", "1250.0") + &line("y3", "1250.0000000000000001"));
    cli.run(&[&IMPORT[..], &["js.ndjson"]].concat()).await.fails(1, &["1250.0000000000000001", "--amounts"]);
    let said = cli.json(&[&IMPORT[..], &["js.ndjson", "--amounts", "minor"]].concat()).await.ends(2);
    assert_eq!((&said["imported"], &said["rejected"]), (&2.into(), &1.into()), "{said}");
    assert_eq!(postings(&cli).await[4..], [posting("y1", 12), posting("y2", 1_250)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_refused_lines_of_one_import_are_not_removed_by_anothers() {
    let cli = Cli::new().await;
    cli.file("f.csv", "account,amount,currency,at\n,1,EUR,2026-01-31\n");
    let mut files = Vec::new();
    for more in [&["transactions"][..], &["balances"], &["transactions", "--source", "other"]] {
        let said = cli.json(&[&["import", "f.csv", "--service"][..], more].concat()).await.ends(2);
        files.push(said["rejects_file"].as_str().unwrap().to_owned());
    }
    assert_eq!(files, ["f.csv.rejects.ndjson", "f.csv.balances.rejects.ndjson", "other.rejects.ndjson"]);
    let again = ["import", "f.csv", "--service", "transactions", "--from-start", "--rejects", "f.csv.rejects.ndjson"];
    cli.json(&again).await.ends(2);
    files.push("f.csv.rejects.ndjson.1".to_owned());
    for file in files {
        let text = std::fs::read_to_string(cli.place.folder.join(&file)).unwrap();
        assert_eq!(text.lines().count(), 1, "{file}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_whose_id_was_taken_is_told_as_often_as_it_is_read() {
    let cli = Cli::new().await;
    cli.file("f.csv", "id,account,amount,currency,at\n1,a,1,EUR,2026-01-31\n1,a,2,EUR,2026-01-31\n");
    for more in [&[][..], &[], &["--from-start"]] {
        let said = cli.json(&[&IMPORT[..], &["f.csv"], more].concat()).await.ends(2);
        assert_eq!(said["conflicts"], serde_json::json!([{ "line": 3, "id": "1", "key": "a" }]), "{more:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_be_used_says_what_to_do() {
    let cli = Cli::new().await;
    cli.file("f.csv", "account,amount,currency,at\na,1,EUR,2026-01-31\n");
    let import = ["import", "--service", "balances", "f.csv"];
    cli.json(&import).await.ends(0);

    let shards = cli.run(&[&import[..], &["--set", "ownership.shards=4"]].concat()).await;
    shards.fails(78, &["8 shards", "4", "set shards = 8"]);
    let at = ["up", "--set", "admin.listen=127.0.0.1:0", "--set"];
    cli.run(&[&at[..], &["ownership.shards=4"]].concat()).await.fails(78, &["set shards = 8"]);
    cli.file("text.db", "This is no database, it is a text that is long enough to be told from one. ".repeat(20));
    cli.run(&["status", "--store-url", "sqlite://text.db"]).await.fails(78, &["not a SQLite database"]);
    cli.run(&[&at[..3], &["--store-url", "sqlite://text.db"]].concat()).await.fails(78, &["not a SQLite database"]);
    cli.run(&["status", "--store-url", "sqlite://no/such/folder/x.db"])
        .await
        .fails(78, &["not a directory", "create it"]);
    cli.run(&["status", "--store-url", "mysql://x"]).await.fails(78, &["postgres", "sqlite:///"]);
    cli.run(&["status", "--store-url", "postgres://127.0.0.1:1/x"]).await.fails(4, &["PostgreSQL at 127.0.0.1:1"]);
    // Nobody can write there, not even root.
    cli.run(&[&at[..3], &["--store-url", "sqlite:///proc/x.db"]].concat()).await.fails(4, &["must be writable"]);

    let options = SqliteConnectOptions::new().filename(cli.place.folder.join("store.db"));
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99, 'later', 1, x'00', 0)",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    for args in [&["status"][..], &import, &at[..3], &["dlq:peek"]] {
        cli.run(args).await.fails(4, &["format 99", "newer"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_may_only_be_read_says_so() {
    let cli = Cli::new().await;
    cli.file("f.csv", "account,amount,currency,at\na,1,EUR,2026-01-31\n");
    let import = ["import", "--service", "balances", "f.csv"];
    cli.json(&import).await.ends(0);
    let path = cli.place.folder.join("store.db");
    let mut only_read = std::fs::metadata(&path).unwrap().permissions();
    only_read.set_readonly(true);
    std::fs::set_permissions(&path, only_read).unwrap();
    if std::fs::OpenOptions::new().append(true).open(&path).is_ok() {
        eprintln!("skipped: this user may write into files that may only be read");
        return;
    }
    cli.run(&import).await.fails(4, &["store.db"]);
    cli.json(&["status"]).await.ends(0);
}

/// Counts as `counting` does, once it is let.
struct Gated(Arc<Semaphore>);

impl Handler for Gated {
    const SERVICE: &'static str = "counting";
    type Message = Count;
    type State = Counted;

    fn key(&self, message: &Count) -> Key {
        message.key.as_str().into()
    }

    async fn handle(&self, counted: &mut Counted, _: Count, turn: &mut Turn) -> Result<(), Fault> {
        drop(self.0.acquire().await?);
        counted.n += 1;
        turn.emit("counted", &counted.n)
    }
}

/// A call that is too large for a disk without room.
fn large_call() -> Call {
    let payload = serde_json::json!({ "key": "k1", "fail": "x".repeat(100_000) }).to_string().into_bytes();
    let (id, fingerprint) = (CallId([7; 16]), [7; 32]);
    Call { id, fingerprint, tenant: "t".to_owned(), service: "counting", payload, headers: Vec::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_others_gets_no_tables_unasked() {
    let mut cli = Cli::new().await;
    cli.file("f.csv", "account,amount,currency,at\na,1,EUR,2026-01-31\n");
    let import = ["import", "--service", "balances", "f.csv"];
    let url = cli.place.url.clone();
    let file = SqliteConnectOptions::new().filename(cli.place.folder.join("store.db")).create_if_missing(true);
    let mut others = SqliteConnection::connect_with(&file).await.unwrap();
    sqlx::query("CREATE TABLE invoices (no INTEGER)").execute(&mut others).await.unwrap();
    let said = ["tables of others (invoices)", "store.share_database = true"];
    cli.run(&["up", "--set", "admin.listen=127.0.0.1:0"]).await.fails(78, &said);
    cli.run(&import).await.fails(78, &said);
    let tables = async |others: &mut SqliteConnection| -> i64 {
        let sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table'";
        sqlx::query_scalar(sql).fetch_one(others).await.unwrap()
    };
    assert_eq!(tables(&mut others).await, 1, "nothing was made");
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut others).await.unwrap();
    assert_eq!(mode, "delete", "nothing was changed");
    others.close().await.unwrap();
    cli.json(&[&import[..], &["--set", "store.share_database=true"]].concat()).await.ends(0);
    assert_eq!(cli.json(&import).await.ends(0)["skipped"], 1, "it is a store now");

    let database = Database::new().await;
    cli.place.url.clone_from(&database.url);
    let mut others = database.connection().await;
    sqlx::query("CREATE TABLE invoices (no INTEGER)").execute(&mut others).await.unwrap();
    let worker = ["worker", "--set", "admin.listen=127.0.0.1:0"];
    cli.run(&worker).await.fails(78, &said);
    let made: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        .fetch_one(&mut others)
        .await
        .unwrap();
    assert_eq!(made, 1, "nothing was made");
    let mut started =
        cli.place.start("worker.log", &[&worker[..], &["--set", "store.share_database=true"]].concat()).unwrap();
    let log = cli.place.folder.join("worker.log");
    let handles = async || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("messages are being handled"));
    until("the worker does not start", SOON, handles).await.unwrap();
    started.terminate().await.unwrap();
    started.ended().await.unwrap();
    cli.place.url = url;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_nothing_but_the_commits() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::default();
    let store = open(&dir.path().join("s.db")).await;
    let metrics = Metrics::new();
    let gate = Arc::new(Semaphore::new(0));
    let handlers = Handlers::new().with(Gated(gate.clone()));
    let engine = Engine::start(&settings, handlers, store.clone(), metrics.clone()).await.unwrap();
    let messages: Vec<_> = (0..5_000).map(|n| count(&format!("m{n}"), &format!("k{}", n % 900), None)).collect();
    append(&*store, settings.ownership.shards, "counting", &messages).await;
    // No page more than there are.
    store.limit_pages(1).await.unwrap();
    gate.add_permits(4);
    let raised = || {
        let text = metrics.encode();
        let mut alarms = text.lines().filter(|line| line.starts_with("perkey_alarm{"));
        alarms.any(|line| line.contains("store_unavailable") && line.ends_with(" 1"))
    };
    until("the alarm is not raised", SOON, async || raised()).await.unwrap();
    assert_eq!(tokio::time::timeout(Duration::from_millis(500), engine.failed()).await.ok(), None, "it keeps running");
    let full = |health: Health, part: &str| !health.ready && health.problems.iter().any(|told| told.contains(part));
    let health = engine.health().await;
    assert!(full(health.clone(), "the store cannot be written") && full(health.clone(), "full"), "{health:?}");
    let refused = engine.calls().call(large_call(), Duration::from_millis(100)).await;
    assert!(matches!(refused, Err(CallError::Store(_))), "{refused:?}");
    assert!(full(engine.health().await, "calls cannot be accepted"));
    assert!(
        store
            .queries()
            .append_import(ImportBatch {
                service: "counting".into(),
                source: "test".to_owned(),
                rows: vec![LogRow { target: 0, count: 1, messages: vec![0; 1 << 20].into() }],
                progress: ImportProgress::default(),
                at: 0,
            })
            .await
            .is_err_and(|error| error.to_string().contains("full"))
    );

    store.limit_pages(1_000_000).await.unwrap();
    tokio::time::timeout(SOON, engine.idle()).await.expect("it goes on when there is room again");
    assert!(!raised(), "the alarm is over");
    // Calls were not asked for again: that they were refused is forgotten after a while.
    until("it is not ready again", SOON, async || engine.health().await.ready).await.unwrap();
    let rows = store.queries().shards().await.unwrap();
    assert_eq!(rows.iter().map(|row| row.counters["taken"]).sum::<u64>(), 5_000);
    assert_eq!(rows.iter().map(|row| row.dead_letters + row.pending).sum::<u64>(), 0);
    let mut counted = 0;
    for shard in 0..settings.ownership.shards {
        counted += store.queries().events(shard, 0, 100_000).await.unwrap().len();
    }
    assert_eq!(counted, 5_000);
    engine.drain().await.unwrap();
}
