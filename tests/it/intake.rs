//! The intake: rows that applications insert in their own transactions become messages, each taken once.
//! In: SQL, as the documents show it. Out: deliveries; rows that are gone with the commit that took them.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use perkey::message::{murmur2, shard_of};
use perkey::store::{Commit, LogRow, Outcome, Store};
use perkey::transport::embedded::{self, EmbeddedLog};
use perkey::transport::intake::Intake;
use perkey::transport::{Content, Delivery, Positions, Source, Transport};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::fixture::{Place, SHARDS, commit, committed, message};
use crate::postgres_place::PostgresPlace;
use crate::sources::fetch;

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

async fn source(store: Arc<dyn Store>, shard: u32) -> Box<dyn Source> {
    let intake = Intake::new(store, Duration::from_millis(5));
    assert!(!intake.ordered());
    intake.open(shard, Positions::new()).await.unwrap()
}

async fn is_dry(source: &mut dyn Source) -> bool {
    tokio::time::timeout(Duration::from_millis(60), source.fetch(9)).await.is_err()
}

fn ids(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries
        .iter()
        .map(|delivery| match &delivery.content {
            Content::For(_, message) | Content::Unrouted(message) => message.id(),
            Content::Unreadable { .. } => "unreadable",
        })
        .collect()
}

fn nos(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries.iter().map(|delivery| delivery.position.no).collect()
}

/// A key of shard 0.
fn key() -> String {
    (0..).map(|n| format!("k{n}")).find(|key| shard_of(key, SHARDS) == 0).unwrap()
}

fn insert(id: &str) -> String {
    format!("INSERT INTO perkey_intake (service, key, id, type) VALUES ('balances', '{}', '{id}', 't')", key())
}

#[tokio::test]
async fn a_key_has_the_shard_that_kafka_gives_it() {
    let place = PostgresPlace::new().await;
    let alphabets = ["acct-", "é\u{1F600}", "\u{1}\u{7f}", "Z"];
    let keys: Vec<String> = (0..2_000_usize)
        .map(|n| alphabets[n % 4].repeat(n % 17) + &n.to_string()[..(n % 3 + 1).min(n.to_string().len())])
        .collect();
    let mut connection = place.database.connection().await;
    let sql = "SELECT k, perkey_murmur2(convert_to(k, 'UTF8')), perkey_shard(k)::bigint FROM unnest($1::text[]) k";
    let rows = sqlx::query(sql).bind(&keys).fetch_all(&mut connection).await.unwrap();
    assert_eq!(rows.len(), keys.len());
    for row in &rows {
        let (key, hash, shard): (&str, i64, i64) = (row.get(0), row.get(1), row.get(2));
        assert_eq!((hash, shard), (murmur2(key.as_bytes()).into(), shard_of(key, SHARDS).into()), "{key:?}");
    }
    assert!(keys.iter().map(|key| key.len() % 4).collect::<BTreeSet<_>>().len() == 4, "every rest is tried");
}

#[tokio::test]
async fn each_row_is_handed_over_once_and_deleted_by_the_commit_that_takes_it() {
    let place = PostgresPlace::new().await;
    let (store, mut connection) = (place.store(), place.database.connection().await);
    let epoch = store.take(0, "me").await.unwrap().epoch;
    for id in ["a", "b", "c"] {
        run(&mut connection, &insert(id)).await;
    }
    let mut first = source(Arc::clone(&store), 0).await;
    let all = fetch(&mut *first, 3).await;
    assert_eq!(ids(&all), ["a", "b", "c"]);
    assert!(is_dry(&mut *first).await && is_dry(&mut *source(Arc::clone(&store), 1).await).await);
    let taking = |epoch, no, rows: &[u64]| Commit { intake: rows.to_vec(), ..commit(0, epoch, no) };
    let outcome = store.commit(&taking(epoch + 1, 1, &nos(&all))).await;
    assert!(matches!(outcome, Outcome::Fenced), "{outcome:?}");
    let again = fetch(&mut *source(Arc::clone(&store), 0).await, 3).await;
    assert_eq!(ids(&again), ["a", "b", "c"], "a stale owner takes nothing, another opening has them all");
    committed(&store, &taking(epoch, 1, &nos(&all)[..2])).await;
    assert_eq!(ids(&fetch(&mut *source(Arc::clone(&store), 0).await, 1).await), ["c"]);
    assert!(is_dry(&mut *first).await, "what this opening has in hand is not handed over again");
    committed(&store, &taking(epoch, 2, &nos(&all)[2..])).await;
    run(&mut connection, &insert("d")).await;
    assert_eq!(ids(&fetch(&mut *first, 1).await), ["d"]);
}

#[tokio::test]
async fn a_row_that_becomes_visible_late_is_not_passed_over() {
    let place = PostgresPlace::new().await;
    let (mut slow, mut quick) = (place.database.connection().await, place.database.connection().await);
    run(&mut slow, &format!("BEGIN; {}", insert("slow"))).await;
    run(&mut quick, &insert("quick")).await;
    let mut source = source(place.store(), 0).await;
    let first = fetch(&mut *source, 1).await;
    assert_eq!(ids(&first), ["quick"]);
    run(&mut slow, "COMMIT").await;
    let second = fetch(&mut *source, 1).await;
    assert_eq!(ids(&second), ["slow"]);
    assert!(nos(&second) < nos(&first), "its number is the lower one");
    run(&mut slow, &format!("BEGIN; {}; ROLLBACK", insert("never"))).await;
    assert!(is_dry(&mut *source).await);
}

#[tokio::test]
async fn what_is_no_message_is_refused_where_it_is_inserted() {
    let place = PostgresPlace::new().await;
    let mut connection = place.database.connection().await;
    for values in ["'', 'i', 't', '{}'", "'k', '', 't', '{}'", "'k', 'i', '', '{}'", "'k', 'i', 't', '[1]'"] {
        let sql = format!("INSERT INTO perkey_intake (key, id, type, headers) VALUES ({values})");
        let refused = sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap_err();
        assert!(refused.to_string().contains("check constraint"), "{values}: {refused}");
    }
    for at in ["infinity", "-infinity"] {
        let sql = format!("INSERT INTO perkey_intake (key, type, at) VALUES ('k', 't', '{at}')");
        let refused = sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap_err();
        assert!(refused.to_string().contains("check constraint"), "a time that is none: {refused}");
    }
    let long = "k".repeat(257);
    let sql = format!("INSERT INTO perkey_intake (key, type) VALUES ('{long}', 't')");
    assert!(sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.is_err());
}

#[tokio::test]
async fn who_may_only_insert_can() {
    let place = PostgresPlace::new().await;
    let mut connection = place.database.connection().await;
    let role = format!("perkey_test_role_{}", std::process::id());
    let setup = format!("CREATE ROLE {role}; GRANT INSERT ON perkey_intake TO {role}; SET ROLE {role}");
    run(&mut connection, &setup).await;
    run(&mut connection, &insert("a")).await;
    let reads = sqlx::query("SELECT no FROM perkey_intake").fetch_all(&mut connection).await;
    run(&mut connection, &format!("RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")).await;
    assert!(reads.unwrap_err().to_string().contains("permission denied"));
    assert_eq!(ids(&fetch(&mut *source(place.store(), 0).await, 1).await), ["a"]);
}

/// The code of the document in `language`.
fn example(language: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/intake.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, code) = text.split_once(&format!("```{language}\n")).unwrap();
    code.split_once("```").unwrap().0.to_owned()
}

#[tokio::test]
async fn the_examples_of_the_document_work() {
    let place = PostgresPlace::new().await;
    let url = &place.database.url;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), example("sql")).unwrap();
    let mut psql = Command::new("psql");
    psql.args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file"]).arg(file.path()).arg(url);
    assert!(psql.status().unwrap().success());
    let mut python = Command::new("python3");
    python.args(["-c", &example("python")]).env("DATABASE_URL", url);
    assert!(python.status().unwrap().success());
    for (account, id, cents) in [("acct-1", "R-1", 1_250_i64), ("acct-2", "R-2", 700)] {
        let mut source = source(place.store(), shard_of(account, SHARDS)).await;
        let delivery = fetch(&mut *source, 1).await.remove(0);
        let Content::For(service, message) = &delivery.content else { panic!("{delivery:?}") };
        let posting: budget_actors::posting::Posting = serde_json::from_slice(message.payload()).unwrap();
        let said = (&**service, message.key(), message.id(), message.kind(), message.source());
        assert_eq!(said, ("balances", account, id, "post", "intake"));
        assert!(posting.amount.0 == cents && message.time() > 0, "{posting:?}");
        assert_eq!(message.header("sagaid"), (id == "R-2").then_some("s-1"));
        let sql = format!("SELECT cents FROM invoices WHERE no = '{id}'");
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut place.database.connection().await).await.unwrap();
        assert_eq!(row.get::<i64, _>(0), cents, "its own row is there too");
    }
}

/// Whoever fetches waits half a second at most; a server that needs longer must not be asked anew each time.
#[tokio::test]
async fn a_read_that_is_slower_than_a_fetch_ends_all_the_same() {
    let place = PostgresPlace::new().await;
    let (store, mut other) = (place.store(), place.database.connection().await);
    let epoch = store.take(0, "me").await.unwrap().epoch;
    run(&mut other, &insert("a")).await;
    let row = embedded::encode(&[("counting", &message("b", &key(), b"{}"))]);
    let rows = vec![LogRow { target: 0, count: 1, messages: row }];
    committed(&store, &Commit { log: rows, ..commit(0, epoch, 1) }).await;
    let log = EmbeddedLog::new(Arc::clone(&store), Duration::from_millis(5));
    let log = log.open(0, Positions::new()).await.unwrap();
    for (table, id, mut source) in [("perkey_intake", "a", source(store, 0).await), ("log", "b", log)] {
        run(&mut other, &format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await;
        for _ in 0..3 {
            assert!(is_dry(&mut *source).await, "{table} is locked");
        }
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                 AND query LIKE '%{table}%'"
        );
        let reads: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut other).await.unwrap();
        run(&mut other, "COMMIT").await;
        assert_eq!(reads, 1, "one read of {table} waits, whoever has given up on it");
        assert_eq!(ids(&fetch(&mut *source, 1).await), [id]);
    }
}
