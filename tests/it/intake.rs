//! The intake: rows that applications insert in their own transactions become messages, each taken once.
//! In: SQL, as the documents show it. Out: deliveries; rows that are gone with the commit that took them.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::message::{Positions, murmur2, shard_of};
use perkey::unstable::store::{Commit, CommitOutcome, LogRow, Store};
use perkey::unstable::transport::embedded::{self, EmbeddedLog};
use perkey::unstable::transport::intake::Intake;
use perkey::unstable::transport::{Content, Delivery, Source, Transport};
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::fixture::{Place, SHARDS, commit, committed, message};
use crate::postgres_place::PostgresPlace;
use crate::sources::fetch;

/// The bytes that a row may have in these tests.
const BYTES_MAX: usize = 100_000;

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

async fn source(store: Arc<dyn Store>, shard: u32) -> Box<dyn Source> {
    let intake = Intake::new(store, Duration::from_millis(5), BYTES_MAX);
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
    assert!(matches!(outcome, CommitOutcome::Fenced), "{outcome:?}");
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

/// A row that is larger than may be taken, of before the table had a bound or under a low setting, costs its own message
/// alone: its length is read and a part of it, whatever else it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_is_too_large_is_a_dead_letter_in_part_and_stops_nobody() {
    let place = PostgresPlace::new().await;
    let mut connection = place.database.connection().await;
    let row = |id: &str, headers: &str, payload: &str| {
        format!(
            "INSERT INTO perkey_intake (service, key, id, type, headers, payload)
             VALUES ('counting', '{0}', '{id}', 't', {headers}, {payload})",
            key()
        )
    };
    let whole = format!("'{}'", serde_json::json!({ "key": key() }));
    // Multi-byte and compressed away to nothing; the same in headers; one that just fits; one behind all of them.
    run(&mut connection, &row("payload", "'{}'", "repeat('é', 50000000)")).await;
    run(&mut connection, &row("headers", "json_build_object('h', repeat('x', 50000000))", &whole)).await;
    run(&mut connection, &row("fits", "'{}'", &format!("{whole} || repeat(' ', 90000)"))).await;
    run(&mut connection, &row("behind", "'{}'", &whole)).await;

    let rows = place.store().read_intake(0, Vec::new(), 10, BYTES_MAX).await.unwrap().rows;
    let held: Vec<_> = rows.iter().map(|row| (row.bytes, row.payload.len() + row.headers.len())).collect();
    assert!(held[0].0 > 100_000_000 && held[0].1 <= 4 * 65_536 + 2, "{held:?}");
    assert!(held[1].0 > 50_000_000 && held[1].1 < 100, "{held:?}");

    let mut settings = perkey::Settings::default();
    settings.ownership.shards = SHARDS;
    settings.ingress.message_bytes_max = BYTES_MAX;
    settings.log.poll = Duration::from_millis(10);
    let store = crate::postgres_place::open(&place.database.url).await;
    let metrics = perkey::unstable::metrics::Metrics::new();
    let engine = perkey::Engine::start(&settings, crate::support::handlers(), store.clone(), metrics).await.unwrap();
    let counted = async || crate::support::state::<crate::support::Counted>(&*store, "counting", &key()).await;
    let handled = async || counted().await.is_some_and(|counted| counted.n == 2);
    perkey_chaos::process::until("both others count", Duration::from_secs(30), handled).await.unwrap();
    engine.idle().await;
    engine.drain().await.unwrap();
    let dead = store.queries().peek(perkey::unstable::store::query::DeadFilter::default(), 10).await.unwrap();
    let mut dead: Vec<_> = dead.iter().map(|(_, letter)| letter).collect();
    dead.sort_by_key(|letter| letter.message.id().to_owned());
    let ids: Vec<_> = dead.iter().map(|letter| (letter.message.id(), &*letter.service, &*letter.key)).collect();
    assert_eq!(ids, [("headers", "counting", key().as_str()), ("payload", "counting", &key())]);
    for (letter, bytes) in dead.iter().zip(["50000026 bytes", "100000002 bytes"]) {
        assert!(letter.error.contains("ingress.message_bytes_max") && letter.message.payload().len() <= 65_536);
        assert!(letter.error.contains(&bytes[..4]), "{}", letter.error);
    }
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM perkey_intake").fetch_one(&mut connection).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn no_row_of_more_than_any_message_is_taken_into_the_table() {
    let place = PostgresPlace::new().await;
    let mut connection = place.database.connection().await;
    let large = "INSERT INTO perkey_intake (key, type, payload) VALUES ('k', 't', repeat('x', 268435456))";
    let refused = sqlx::raw_sql(large).execute(&mut connection).await.unwrap_err().to_string();
    assert!(refused.contains("perkey_intake_bytes"), "{refused}");
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

#[tokio::test]
async fn the_policy_of_the_document_keeps_a_writer_to_its_tenant() {
    let place = PostgresPlace::new().await;
    let mut connection = place.database.connection().await;
    let random = perkey::unstable::clock::Dice::from_system().below(u64::MAX);
    let (shop, worker) = (format!("perkey_test_shop_{random:x}"), format!("perkey_test_worker_{random:x}"));
    run(&mut connection, &format!("CREATE ROLE {shop}; CREATE ROLE {worker}")).await;
    let policy = example("postgresql").replace("acme_shop", &shop).replace("shop_worker", &worker);
    run(&mut connection, &policy).await;
    run(&mut connection, &format!("GRANT SELECT, DELETE ON perkey_intake TO {worker}; SET ROLE {shop}")).await;
    let row = |service: &str, key: &str| {
        format!("INSERT INTO perkey_intake (service, key, type) VALUES ({service}, '{key}', 'post')")
    };
    run(&mut connection, &row("'transactions'", "@acme/a-1")).await;
    for (service, key) in [
        ("'transactions'", "@other/a-1"),
        ("'transactions'", "a-1"),
        ("'transactions'", "@acmeX/a"),
        ("'payments'", "@acme/a"),
        ("NULL", "@acme/a"),
    ] {
        let refused = sqlx::query(AssertSqlSafe(row(service, key))).execute(&mut connection).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("row-level security"), "{service} {key}: {refused}");
    }
    run(&mut connection, &format!("RESET ROLE; SET ROLE {worker}")).await;
    let deleted = sqlx::query("DELETE FROM perkey_intake WHERE key = '@acme/a-1'").execute(&mut connection).await;
    let drop = format!("RESET ROLE; DROP OWNED BY {shop}, {worker}; DROP ROLE {shop}, {worker}");
    assert_eq!(deleted.unwrap().rows_affected(), 1, "the worker sees every row");
    run(&mut connection, &drop).await;
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
