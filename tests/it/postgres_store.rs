//! Properties of the store in PostgreSQL alone: fences, lost answers, SQLSTATEs, leases, notifications, views.
//! In: databases in all states. Out: nothing half written, and an outcome that is true.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use perkey::unstable::clock::Dice;
use perkey::unstable::handler::CallId;
use perkey::unstable::store::lease::{Behind, Code, Leases, Worker};
use perkey::unstable::store::postgres::{Bounds, PgStore};
use perkey::unstable::store::query::{DeadFilter, ImportBatch, ImportProgress, Queries};
use perkey::unstable::store::{Access, CommitOutcome, LogRow, Part, Setup, Store};
use perkey::{Draft, StoreError, sleep};
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::{
    Place, SHARDS, commit, committed, everything, full, message, posting, service_key, setup, state, taken,
};
use crate::postgres_place::{BOUNDS, Database, PostgresPlace, open};

const BOUND: Duration = Duration::from_secs(20);

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

async fn number(connection: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await.unwrap()
}

/// Waits until `sql` gives a number other than 0.
async fn until(connection: &mut PgConnection, sql: &str) {
    let met = async {
        while number(connection, sql).await == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(BOUND, met).await.unwrap_or_else(|_| panic!("never met: {sql}"));
}

/// Every row of every table.
async fn all_rows(connection: &mut PgConnection) -> Vec<String> {
    let tables = "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1";
    let mut found = Vec::new();
    for table in &sqlx::query(tables).fetch_all(&mut *connection).await.unwrap() {
        let table: String = table.get(0);
        let sql = format!("SELECT t::text FROM \"{table}\" t ORDER BY 1");
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut *connection).await.unwrap();
        found.extend(rows.iter().map(|row| format!("{table} {}", row.get::<String, _>(0))));
    }
    found
}

fn worker(id: &str) -> Worker {
    let version = "1.0".to_owned();
    Worker { id: id.to_owned(), address: format!("{id}:1"), version, code: setup().code, ..Worker::default() }
}

const ALIVE: Duration = Duration::from_secs(60);

// ---- commits

#[tokio::test]
async fn a_stale_epoch_leaves_every_table_unchanged() {
    let place = PostgresPlace::new().await;
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let stale = store.take(1, "me").await.unwrap().epoch;
    committed(&store, &full(&identity, 1, stale, 1, "a")).await;
    let epoch = store.take(1, "you").await.unwrap().epoch;
    let mut connection = place.database.connection().await;
    let before = all_rows(&mut connection).await;
    let mut late = full(&identity, 1, stale, 2, "b");
    // Deletes and overwrites too.
    late.parts[0].settled = vec![11];
    late.parts[0].undead = vec![12];
    late.parts.extend(full(&identity, 1, stale, 1, "a").parts);
    late.parts[0].rows.push(crate::fixture::row_write("acct-a", "m-a", None));
    assert!(matches!(store.commit(&late).await, CommitOutcome::Fenced));
    assert_eq!(before, all_rows(&mut connection).await);
    late.epoch = epoch;
    committed(&store, &late).await;
    assert_ne!(before, all_rows(&mut connection).await, "under its epoch it writes");
}

#[tokio::test]
async fn a_backend_that_is_killed_leaves_the_outcome_unknown_and_a_retake_tells() {
    let place = PostgresPlace::new().await;
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let epoch = store.take(1, "me").await.unwrap().epoch;
    let mut other = place.database.connection().await;
    let mut admin = place.database.connection().await;
    run(&mut other, "BEGIN; LOCK TABLE states IN EXCLUSIVE MODE").await;
    let first = full(&identity, 1, epoch, 1, "a");
    let under_way = store.commit(&first);
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'perkey commits' AND wait_event_type = 'Lock'";
    until(&mut admin, kill).await;
    let outcome = under_way.await;
    assert!(matches!(&outcome, CommitOutcome::Unknown(_)), "{outcome:?}");
    run(&mut other, "ROLLBACK").await;
    let retaken = store.retake(1, epoch).await.unwrap();
    assert_eq!((retaken.commit_no, retaken.epoch), (0, epoch + 1), "it never will have been");
    committed(&store, &full(&identity, 1, retaken.epoch, 1, "a")).await;
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_by_a_retake() {
    let place = PostgresPlace::new().await;
    let identity = place.store().prepare(setup()).await.unwrap();
    let wire = Wire::to(&place.database.url).await;
    let bounds = Bounds { statement_timeout: Duration::from_millis(500), ..BOUNDS };
    let store: Arc<dyn Store> = Arc::new(PgStore::open(&wire.url, bounds, Access::Run).await.unwrap());
    store.prepare(setup()).await.unwrap();
    let epoch = store.take(1, "me").await.unwrap().epoch;
    committed(&store, &full(&identity, 1, epoch, 1, "a")).await;
    wire.deaf.store(true, Ordering::Release);
    let outcome = store.commit(&full(&identity, 1, epoch, 2, "b")).await;
    assert!(matches!(&outcome, CommitOutcome::Unknown(text) if text.contains("no answer")), "{outcome:?}");
    wire.deaf.store(false, Ordering::Release);
    assert_eq!(store.retake(1, epoch).await.unwrap().commit_no, 2);
    assert_eq!(store.queries().explain("acct-b".to_owned()).await.unwrap().states.len(), 1);
}

/// A connection to the server that can lose what the server says.
struct Wire {
    url: String,
    deaf: Arc<AtomicBool>,
}

impl Wire {
    #[expect(clippy::disallowed_methods, reason = "a wire is no part of what is supervised")]
    async fn to(url: &str) -> Self {
        let (head, rest) = url.rsplit_once('@').unwrap();
        let (host, database) = rest.split_once('/').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{head}@{}/{database}", listener.local_addr().unwrap());
        let (host, deaf) = (host.to_owned(), Arc::new(AtomicBool::new(false)));
        let shared = Arc::clone(&deaf);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (deaf, server) = (Arc::clone(&shared), TcpStream::connect(&host).await.unwrap());
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await.ok() });
                tokio::spawn(async move {
                    let mut buffer = [0; 8_192];
                    while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                        if !deaf.load(Ordering::Acquire) && to_client.write_all(&buffer[..count]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self { url, deaf }
    }
}

/// Rows whose id begins with an SQLSTATE make the server say it; `times` of a state are counted.
const SAYS: &str = "
    CREATE SEQUENCE said;
    CREATE FUNCTION says() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.id LIKE 'forget%' THEN
            EXECUTE 'DEALLOCATE ALL';
        ELSIF NEW.id LIKE '_____!' OR (NEW.id LIKE '_____ twice' AND nextval('said') <= 2) THEN
            RAISE EXCEPTION 'as told' USING ERRCODE = left(NEW.id, 5), TABLE = 'postings';
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER says BEFORE INSERT ON postings FOR EACH ROW EXECUTE FUNCTION says();";

#[tokio::test]
async fn each_class_of_sqlstate_has_its_outcome() {
    let place = PostgresPlace::new().await;
    let store = place.store();
    let epoch = store.take(0, "me").await.unwrap().epoch;
    let mut connection = place.database.connection().await;
    run(&mut connection, SAYS).await;
    let before = all_rows(&mut connection).await;
    let says = async |id: &str| {
        let part = Part { rows: vec![posting("a", id, 1)], state: Some(state("a", "{}")), ..Part::default() };
        store.commit(&perkey::unstable::store::Commit { parts: vec![part], ..commit(0, epoch, 1) }).await
    };
    for (code, expected) in [("21000", true), ("22003", true), ("54000", true), ("23514", false), ("P0001", false)] {
        match says(&format!("{code}!")).await {
            CommitOutcome::Refused { permanent, error } => {
                assert!(permanent == expected && error.contains("postings"), "{code}: {error}");
            }
            other => panic!("{code}: {other:?}"),
        }
    }
    for code in ["08006", "25006", "28000", "40003", "53100", "55P03", "57P03", "58030", "XX000"] {
        let outcome = says(&format!("{code}!")).await;
        assert!(matches!(outcome, CommitOutcome::Unavailable(_)), "{code}: {outcome:?}");
    }
    // A statement that takes too long may have met a slow server, twice.
    // Once it is refused, what comes under its number is another one.
    for times in 1..=6 {
        let outcome = says("57014!").await;
        let refused = matches!(outcome, CommitOutcome::Refused { permanent: false, .. });
        assert_eq!(refused, times % 3 == 0, "{times}: {outcome:?}");
    }
    assert_eq!(before, all_rows(&mut connection).await);
    // What will pass when it is sent again counts as nothing.
    for code in ["40001", "40P01"] {
        run(&mut connection, "ALTER SEQUENCE said RESTART").await;
        let no = store.queries().shards().await.unwrap()[0].commit_no + 1;
        let part = Part { rows: vec![posting("a", &format!("{code} twice"), 1)], ..Part::default() };
        committed(&store, &perkey::unstable::store::Commit { parts: vec![part], ..commit(0, epoch, no) }).await;
        assert_eq!(number(&mut connection, "SELECT last_value FROM said").await, 3, "{code}");
    }
}

#[tokio::test]
async fn statements_that_the_server_forgot_are_prepared_again() {
    let place = PostgresPlace::new().await;
    let mut connection = place.database.connection().await;
    run(&mut connection, SAYS).await;
    let bounds = Bounds { commits_in_flight: 1, ..BOUNDS };
    let store: Arc<dyn Store> = Arc::new(PgStore::open(&place.database.url, bounds, Access::Run).await.unwrap());
    store.prepare(setup()).await.unwrap();
    let epoch = store.take(0, "me").await.unwrap().epoch;
    let backend = "SELECT coalesce(max(pid), 0)::bigint FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'perkey commits'";
    let mut backends = Vec::new();
    for no in 1..=6 {
        let part = Part { rows: vec![posting("a", &format!("forget {no}"), 1)], ..Part::default() };
        committed(&store, &perkey::unstable::store::Commit { parts: vec![part], ..commit(0, epoch, no) }).await;
        backends.push(number(&mut connection, backend).await);
    }
    assert!(backends[0] > 0 && backends.iter().all(|pid| *pid == backends[0]), "on one connection: {backends:?}");
}

#[tokio::test]
async fn behind_a_pooler_no_statement_is_kept() {
    let database = Database::new().await;
    let url = format!("{}?statement-cache-capacity=0", database.url);
    let store: Arc<dyn Store> = open(&url).await;
    let identity = store.prepare(setup()).await.unwrap();
    let epoch = store.take(1, "me").await.unwrap().epoch;
    for no in 1..=3 {
        committed(&store, &full(&identity, 1, epoch, no, &no.to_string())).await;
    }
    assert_eq!(store.load(1, vec![service_key("acct-2")]).await.unwrap()[0].state.as_ref().unwrap().0, 3);
}

#[tokio::test]
async fn dropped_calls_leave_no_transaction_open() {
    let place = PostgresPlace::new().await;
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let mut epoch = store.take(0, "me").await.unwrap().epoch;
    let mut dice = Dice::seeded(7);
    let batch = |at| ImportBatch {
        service: "balances".into(),
        source: "f".to_owned(),
        rows: vec![LogRow { target: 0, count: 1, messages: bytes::Bytes::from_static(b"x") }],
        progress: ImportProgress::default(),
        at,
    };
    for round in 0..150 {
        let patience = Duration::from_micros(dice.below(4_000));
        let written = full(&identity, 3, 0, 1, "never");
        let call = async {
            match round % 6 {
                0 => drop(store.commit(&written).await),
                1 => drop(store.load(0, vec![service_key("a")]).await),
                2 => drop(store.queries().append_import(batch(round)).await),
                3 => drop(store.leases().unwrap().renew(worker("me"), ALIVE).await),
                4 => drop(store.take(2, "me").await),
                _ => drop(store.prepare(setup()).await),
            }
        };
        let _ = tokio::time::timeout(patience, call).await;
    }
    epoch = store.retake(0, epoch).await.unwrap().epoch;
    committed(&store, &full(&identity, 0, epoch, 1, "a")).await;
    let mut connection = place.database.connection().await;
    let settled = "SELECT (count(*) = 0)::int::bigint FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle' AND backend_type = 'client backend'";
    until(&mut connection, settled).await;
    let seen = "SELECT count(*) FROM states WHERE key = 'acct-a'";
    assert_eq!(number(&mut connection, seen).await, 1, "what was committed is seen by others");
}

#[tokio::test]
async fn a_server_that_dropped_its_connections_is_asked_again() {
    let place = PostgresPlace::new().await;
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let epoch = store.take(1, "me").await.unwrap().epoch;
    committed(&store, &full(&identity, 1, epoch, 1, "a")).await;
    store.load(1, vec![service_key("acct-a")]).await.unwrap();
    let mut connection = place.database.connection().await;
    let dropped = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
    assert!(number(&mut connection, dropped).await >= 2);
    assert!(store.load(1, vec![service_key("acct-a")]).await.unwrap()[0].state.is_some());
    let outcome = store.commit(&full(&identity, 1, epoch, 2, "b")).await;
    assert!(matches!(outcome, CommitOutcome::Unknown(_)), "it cannot be told: {outcome:?}");
    let mut retaken = store.retake(1, epoch).await;
    if retaken.is_err() {
        retaken = store.retake(1, epoch).await;
    }
    committed(&store, &full(&identity, 1, retaken.unwrap().epoch, 2, "b")).await;
}

// ---- owners

#[tokio::test]
async fn of_two_takers_one_wins() {
    let place = PostgresPlace::new().await;
    let (a, b) = (place.another().await, place.another().await);
    for round in 0..10 {
        let shard = round % SHARDS;
        a.renew(worker("dead"), Duration::ZERO).await.unwrap();
        run(&mut place.database.connection().await, "UPDATE shards SET owner = 'dead'").await;
        a.renew(worker("a"), ALIVE).await.unwrap();
        b.renew(worker("b"), ALIVE).await.unwrap();
        let (by_a, by_b) = tokio::join!(a.take(shard, "a"), b.take(shard, "b"));
        let won = [by_a.is_ok(), by_b.is_ok()];
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{by_a:?} {by_b:?}");
        let (winner, lost) = if won[0] { ("a", by_b) } else { ("b", by_a) };
        assert_eq!(lost, Err(StoreError::Owned { shard, owner: winner.to_owned() }));
    }
}

#[tokio::test]
async fn a_shard_is_taken_when_its_owners_lease_has_expired() {
    let place = PostgresPlace::new().await;
    let store = place.postgres();
    store.renew(worker("a"), ALIVE).await.unwrap();
    let first = store.take(2, "a").await.unwrap();
    let owned = Err(StoreError::Owned { shard: 2, owner: "a".to_owned() });
    assert_eq!(store.take(2, "b").await, owned);
    assert_eq!(store.take(2, "a").await.unwrap().epoch, first.epoch + 1, "from itself at any time");
    store.renew(worker("a"), Duration::ZERO).await.unwrap();
    let second = store.take(2, "b").await.unwrap();
    assert_eq!((second.epoch, second.unclean), (first.epoch + 2, 1));
    // A worker that leaves gives its shards up at once.
    store.renew(worker("b"), ALIVE).await.unwrap();
    assert!(store.take(2, "c").await.is_err());
    store.leave("b".to_owned()).await.unwrap();
    assert_eq!(store.take(2, "c").await.unwrap().unclean, 2);
}

#[tokio::test]
async fn an_older_program_does_not_take_what_a_newer_one_owned() {
    let place = PostgresPlace::new().await;
    let newer = open(&place.database.url).await;
    // The sum of its versions is no higher: one service is newer, another is not there.
    newer.prepare(Setup { code: Code::of([("balances", 2), ("other", 1)]), ..setup() }).await.unwrap();
    let epoch = newer.take(1, "new").await.unwrap().epoch;
    committed(&place.store(), &perkey::unstable::store::Commit { release: true, ..commit(1, epoch, 1) }).await;
    let refused = place.postgres().take(1, "old").await;
    let behind = Behind { service: Some("balances".into()), stored: 2, ours: 1 };
    assert_eq!(refused, Err(StoreError::CodeVersion { shard: 1, behind }));
    let seen = async || newer.fleet().await.unwrap().shards.into_iter().map(|shard| shard.code).collect::<Vec<_>>();
    let none = Code::default();
    let ours = Code::of([("balances", 2), ("other", 1)]);
    assert_eq!(seen().await, [none.clone(), ours.clone(), none.clone(), none.clone()]);
    place.postgres().take(0, "old").await.unwrap();
    // What shards have seen adds up.
    newer.take(0, "new").await.unwrap();
    assert_eq!(seen().await, [ours.clone().and(&setup().code), ours, none.clone(), none]);
}

#[tokio::test]
async fn beside_workers_of_before_all_compare_the_sum_and_such_shards_are_taken() {
    let place = PostgresPlace::new().await;
    let (store, code) = (place.postgres(), setup().code);
    store.renew(worker("new"), ALIVE).await.unwrap();
    // As a program writes it that knows nothing of versions by service.
    let mut connection = place.database.connection().await;
    let before = |number: u32| {
        format!(
            "INSERT INTO workers (id, address, version, code_version, draining, cooling, expires_at)
             VALUES ('before', '', '', {number}, false, '{{}}', clock_timestamp() + interval '1 minute')
             ON CONFLICT (id) DO UPDATE SET code_version = excluded.code_version;
             UPDATE shards SET owner = 'before', epoch = epoch + 1, code_version = {number} WHERE shard = 0"
        )
    };
    run(&mut connection, &before(code.number)).await;
    let fleet = store.fleet().await.unwrap();
    let codes: Vec<_> = fleet.workers.iter().map(|row| row.worker.code.clone()).collect();
    assert_eq!(codes, [Code::numbered(code.number), Code::numbered(code.number)]);
    assert_eq!(fleet.shards[0].code, Code::numbered(code.number));
    // It leaves: its shard goes to a program of the same sum, and is compared by service from then on.
    store.leave("before".to_owned()).await.unwrap();
    store.take(0, "new").await.unwrap();
    assert_eq!(store.fleet().await.unwrap().shards[0].code, code);
    // A shard that one of a higher sum owned is left alone.
    run(&mut connection, "UPDATE shards SET code_version = 9 WHERE shard = 1").await;
    let behind = Behind { service: None, stored: 9, ours: code.number };
    assert_eq!(store.take(1, "new").await, Err(StoreError::CodeVersion { shard: 1, behind }));
}

#[tokio::test]
async fn a_sign_of_life_shows_the_fleet() {
    let place = PostgresPlace::new().await;
    let store = place.postgres();
    store.renew(worker("b"), ALIVE).await.unwrap();
    store.take(3, "b").await.unwrap();
    let draining = Worker { draining: true, cooling: vec![1, 3], ..worker("a") };
    let fleet = store.renew(draining.clone(), ALIVE).await.unwrap();
    assert_eq!(fleet.workers.iter().map(|row| &*row.worker.id).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(fleet.workers[0].worker, draining);
    assert!((50_000..=60_000).contains(&fleet.workers[0].expires_in), "{}", fleet.workers[0].expires_in);
    assert_eq!(fleet.shards.len(), SHARDS as usize);
    assert_eq!((fleet.shards[3].owner.as_deref(), fleet.shards[3].epoch), (Some("b"), 1));
    let mut connection = place.database.connection().await;
    run(&mut connection, "UPDATE workers SET expires_at = now() - interval '1 minute' WHERE id = 'b'").await;
    let fleet = store.fleet().await.unwrap();
    assert!(fleet.workers[1].expires_in < 0, "one that has expired is still known: {fleet:?}");
    run(&mut connection, "UPDATE workers SET expires_at = now() - interval '2 hours' WHERE id = 'b'").await;
    assert_eq!(store.renew(worker("a"), ALIVE).await.unwrap().workers.len(), 1, "until it is forgotten");
    assert_eq!(number(&mut connection, "SELECT count(*) FROM workers").await, 1);
}

// ---- readers

#[tokio::test]
async fn another_process_is_told_that_its_log_has_grown() {
    let place = PostgresPlace::new().await;
    let (writer, reader) = (place.store(), place.another().await);
    let epoch = writer.take(0, "me").await.unwrap().epoch;
    // The first permit comes when the reader has begun to listen.
    tokio::time::timeout(BOUND, reader.log_changed(2)).await.expect("it listens");
    for no in 1..=5 {
        let log = vec![LogRow { target: 2, count: 1, messages: bytes::Bytes::from_static(b"x") }];
        let grown = perkey::unstable::store::Commit { log, ..commit(0, epoch, no) };
        let told = tokio::time::timeout(BOUND, reader.log_changed(2));
        let (told, ()) = tokio::join!(told, committed(&writer, &grown));
        told.expect("it is told");
    }
}

#[tokio::test]
async fn the_views_show_what_commits_hold() {
    let place = PostgresPlace::new().await;
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let epoch = store.take(1, "me").await.unwrap().epoch;
    let id = "0190a6c4-7d5e-7b3a-8a5d-000000000001";
    let handled = message(id, "k", b"{}");
    let headers = [("traceparent", "00-1-2-01"), ("note", "é")];
    let draft =
        Draft { id: "e-1", key: "k", kind: "posted", source: "s", time: 1_500, headers: &headers, payload: b"" };
    let events = [Draft { payload: b"{\"n\":1}", ..draft.clone() }, Draft { payload: b"\xff", id: "e-2", ..draft }];
    let event = |draft: &Draft<'_>| perkey::unstable::store::EmittedEvent {
        service: "balances".into(),
        cause: perkey::unstable::message::digest(id, &identity.hash_key),
        message: draft.build().unwrap(),
    };
    let ids = vec![taken(&identity, &handled), taken(&identity, &message("text", "k", b"{}"))];
    let part = Part { ids, events: events.iter().map(event).collect(), ..Part::default() };
    committed(&store, &perkey::unstable::store::Commit { parts: vec![part], first_seq: 8, ..commit(1, epoch, 1) })
        .await;
    let mut connection = place.database.connection().await;
    let sql = "SELECT id::text, service::text, key_hash, shard::bigint FROM inbox_messages";
    let inbox = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
    assert_eq!(inbox.len(), 2);
    assert_eq!(inbox[0].get::<String, _>(0), id.replace('-', ""));
    assert_eq!((inbox[1].get::<String, _>(1), inbox[1].get::<i64, _>(3)), ("balances".to_owned(), 1));
    assert_eq!(inbox[0].get::<i64, _>(2), i64::from(perkey::unstable::message::murmur2(b"k")));
    let sql = "SELECT row_to_json(e)::text FROM outbox_events e WHERE shard = 1 ORDER BY seq";
    let events = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
    let events: Vec<serde_json::Value> = events.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect();
    assert_eq!((&events[0]["seq"], &events[1]["seq"]), (&8.into(), &9.into()));
    for (column, value) in [
        ("id", "e-1"),
        ("key", "k"),
        ("type", "posted"),
        ("source", "s"),
        ("payload", "{\"n\":1}"),
        ("service", "balances"),
        ("cause", &*id.replace('-', "")),
    ] {
        assert_eq!(events[0][column], value, "{column}");
    }
    assert_eq!(events[0]["headers"], serde_json::json!({"traceparent": "00-1-2-01", "note": "é"}));
    assert!(events[0]["time"].as_str().unwrap().starts_with("1970-01-01T00:00:01.5"), "{}", events[0]);
    assert_eq!((&events[1]["payload"], &events[1]["payload_bytes"]), (&serde_json::Value::Null, &"\\xff".into()));
}

#[tokio::test]
async fn a_tool_looks_and_leaves_requests() {
    let database = Database::new().await;
    let tool = async || PgStore::open(&database.url, BOUNDS, Access::Tool).await;
    let error = tool().await.unwrap_err().to_string();
    assert!(error.contains("no store in this database yet"), "{error}");
    let store: Arc<dyn Store> = open(&database.url).await;
    assert!(matches!(store.commit(&commit(1, 1, 1)).await, CommitOutcome::Unavailable(_)), "it was not prepared");
    let identity = store.prepare(setup()).await.unwrap();
    let epoch = store.take(1, "me").await.unwrap().epoch;
    committed(&store, &full(&identity, 1, epoch, 1, "a")).await;
    let tool = tool().await.unwrap();
    assert_eq!(tool.count_dead(DeadFilter::default()).await.unwrap(), 1);
    assert!(!tool.is_running().await);
    store.leases().unwrap().renew(worker("me"), ALIVE).await.unwrap();
    assert!(tool.is_running().await);
    assert!(tool.take(1, "tool").await.is_err() && tool.prepare(setup()).await.is_err());
    assert!(matches!(tool.commit(&commit(1, epoch, 2)).await, CommitOutcome::Unavailable(_)));
    let mut connection = database.connection().await;
    run(&mut connection, "UPDATE _sqlx_migrations SET version = -11 WHERE version = 11").await;
    for access in [Access::Tool, Access::Serve] {
        let error = PgStore::open(&database.url, BOUNDS, access).await.unwrap_err();
        assert!(matches!(error, StoreError::Older { found: 10, .. }), "{error}");
    }
    run(&mut connection, "UPDATE _sqlx_migrations SET version = 11 WHERE version = -11").await;
    let later = "INSERT INTO _sqlx_migrations SELECT 99, 'later', installed_on, true, checksum, 0 FROM _sqlx_migrations
        LIMIT 1";
    run(&mut connection, later).await;
    for access in [Access::Run, Access::Tool] {
        let opened = PgStore::open(&database.url, BOUNDS, access).await;
        let error = match opened {
            Ok(store) => store.prepare(setup()).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
    }
}

#[tokio::test]
async fn a_command_of_a_newer_program_hides_no_other() {
    let database = Database::new().await;
    let store: Arc<dyn Store> = open(&database.url).await;
    store.prepare(setup()).await.unwrap();
    let newer = "INSERT INTO operator_commands (action, filter, who, why, matched, at)
        VALUES ('\"melt\"', '{}', 'ann', '', 1, 1), ('\"replay\"', '{\"moon\":1}', 'ann', '', 1, 1),
            ('\"replay\"', '{}', 'bob', '', 1, 1)";
    run(&mut database.connection().await, newer).await;
    let open = store.queries().open_commands(0, Vec::new()).await.unwrap();
    let who: Vec<_> = open.iter().flatten().map(|command| &*command.who).collect();
    let strange: Vec<_> = open.iter().filter_map(|open| open.as_ref().err()).map(|strange| strange.id).collect();
    assert_eq!((who, strange), (vec!["bob"], vec![1, 2]));
}

#[tokio::test]
async fn a_database_that_cannot_hold_every_text_is_refused() {
    let database = Database::new().await;
    let (server, name) = database.url.rsplit_once('/').unwrap();
    let made = format!("CREATE DATABASE {name}_latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    run(&mut database.connection().await, &made).await;
    let store = open(&format!("{server}/{name}_latin")).await;
    let error = store.prepare(setup()).await.unwrap_err();
    store.close().await;
    run(&mut database.connection().await, &format!("DROP DATABASE {name}_latin WITH (FORCE)")).await;
    assert!(matches!(&error, StoreError::Url(text) if text.contains("LATIN1") && text.contains("UTF8")), "{error}");
}

#[tokio::test]
async fn ids_of_a_store_of_before_prints_were_kept_are_there_without() {
    let place = PostgresPlace::new().await;
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let epoch = store.take(1, "me").await.unwrap().epoch;
    let written = full(&identity, 1, epoch, 1, "a");
    committed(&store, &written).await;
    let before = "ALTER TABLE commits DROP COLUMN prints; DELETE FROM _sqlx_migrations WHERE version = 9";
    run(&mut place.database.connection().await, before).await;
    let store: Arc<dyn Store> = open(&place.database.url).await;
    store.prepare(setup()).await.unwrap();
    committed(&store, &full(&identity, 1, epoch, 2, "b")).await;
    let found = store.inbox(1, 0, 100).await.unwrap().commits;
    assert_eq!(found[0].ids, [perkey::unstable::message::Taken::from(written.parts[0].ids[0].id)]);
    assert_ne!(found[1].ids[0].print, perkey::unstable::message::Print::UNKNOWN);
}

#[tokio::test]
async fn stores_that_start_together_make_it_once_and_keep_no_lock() {
    let database = Database::new().await;
    let stores: Vec<_> = (0..4).map(|_| open(&database.url)).collect();
    let stores = futures_util::future::join_all(stores).await;
    let prepared = futures_util::future::join_all(stores.iter().map(|store| store.prepare(setup()))).await;
    let keys: Vec<_> = prepared.into_iter().map(|identity| identity.unwrap().hash_key).collect();
    assert!(keys.iter().all(|key| *key == keys[0]));
    let mut connection = database.connection().await;
    // Behind a pooler the connection lives on, and a lock of its session with it.
    assert_eq!(number(&mut connection, "SELECT count(*) - max(version) FROM _sqlx_migrations").await, 0);
    let options = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database =
        (SELECT oid FROM pg_database WHERE datname = current_database())";
    run(&mut connection, "BEGIN; SELECT pg_advisory_xact_lock(5783261409127364001)").await;
    let late = open(&database.url).await;
    let mut other = database.connection().await;
    let release = async {
        until(&mut other, &format!("{options} AND NOT granted")).await;
        run(&mut connection, "COMMIT").await;
    };
    tokio::join!(late.prepare(setup()), release).0.unwrap();
    assert_eq!(number(&mut other, options).await, 0);
}

#[tokio::test]
async fn who_waits_for_a_lock_is_unavailable_and_never_refused() {
    let place = PostgresPlace::new().await;
    let bounds = Bounds { statement_timeout: Duration::from_millis(500), ..BOUNDS };
    let store = PgStore::open(&place.database.url, bounds, Access::Run).await.unwrap();
    store.prepare(setup()).await.unwrap();
    let epoch = store.take(0, "me").await.unwrap().epoch;
    let commit = |no: u64, then: Vec<perkey::testing::Statement>| {
        let rows = if then.is_empty() { vec![posting("a", &no.to_string(), 1)] } else { Vec::new() };
        let part = Part { rows, statements: then, state: Some(state("a", "{}")), ..Part::default() };
        perkey::unstable::store::Commit { parts: vec![part], ..commit(0, epoch, no) }
    };
    let mut other = place.database.connection().await;
    // As long as a row's and a statement's table is locked, by an index that is being made, or an operator.
    for (no, then) in [
        (1, Vec::new()),
        (2, vec![perkey::testing::Statement { sql: "DELETE FROM postings".to_owned(), args: Vec::new() }]),
    ] {
        run(&mut other, "BEGIN; LOCK TABLE postings IN SHARE MODE").await;
        let commit = commit(no, then);
        for _ in 0..5 {
            let outcome = store.commit(&commit).await;
            let CommitOutcome::Unavailable(why) = &outcome else { panic!("{outcome:?}") };
            assert!(why.contains("lock"), "{why}");
        }
        run(&mut other, "COMMIT").await;
        // A busy server may need more than one statement's time.
        let outcome = loop {
            match store.commit(&commit).await {
                CommitOutcome::Unavailable(_) => {}
                outcome => break outcome,
            }
        };
        assert!(matches!(outcome, CommitOutcome::Committed), "{outcome:?}");
    }
    store.close().await;
}

#[tokio::test]
async fn an_index_is_made_while_its_table_is_written_and_one_that_is_half_made_is_made_anew() {
    let place = PostgresPlace::new().await;
    let valid = "SELECT count(*) FROM pg_index WHERE indisvalid AND indexrelid = to_regclass('\"postings by id\"')";
    let (mut other, mut writer) = (place.database.connection().await, place.database.connection().await);
    let insert = "INSERT INTO postings (id, account, amount) VALUES";
    for (no, broken) in [
        "DROP INDEX \"postings by id\"",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '\"postings by id\"'::regclass",
    ]
    .into_iter()
    .enumerate()
    {
        run(&mut other, broken).await;
        assert_eq!(number(&mut other, valid).await, 0);
        // Somebody has written the table and goes on for a while: whoever makes an index waits for that.
        run(&mut other, &format!("BEGIN; {insert} ('{no}', 'slow', 1)")).await;
        let meanwhile = async {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '% INDEX CONCURRENTLY %'
                AND wait_event_type = 'Lock' AND datname = current_database()";
            until(&mut writer, waits).await;
            run(&mut writer, "SET lock_timeout = '5s'").await;
            run(&mut writer, &format!("{insert} ('{no}', 'fast', 1)")).await;
            run(&mut other, "COMMIT").await;
        };
        // Several workers may start at once.
        let (first, second) = (open(&place.database.url).await, open(&place.database.url).await);
        let (_, first, second) = tokio::join!(meanwhile, first.prepare(setup()), second.prepare(setup()));
        first.unwrap();
        second.unwrap();
        assert_eq!(number(&mut other, valid).await, 1);
    }
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database =
        (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(number(&mut other, held).await, 0);
}

#[tokio::test]
async fn a_server_that_is_away_is_named_without_its_password() {
    // Nothing listens on port 1.
    let store = PgStore::open("postgres://me:secret@127.0.0.1:1/budget", BOUNDS, Access::Run).await.unwrap();
    let error = store.prepare(setup()).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Unavailable(_)) && text.contains("127.0.0.1:1, database budget"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn a_restart_finds_everything_as_it_was() {
    let place = PostgresPlace::new().await;
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    for shard in 0..SHARDS {
        let epoch = store.take(shard, "me").await.unwrap().epoch;
        for no in 1..=5 {
            committed(&store, &full(&identity, shard, epoch, no, &format!("{shard}-{no}"))).await;
        }
    }
    let tags: Vec<String> = (0..SHARDS).map(|shard| format!("{shard}-5")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    let before = everything(&*place, &tags).await;
    let mut place = place;
    drop(store);
    place.restart().await;
    assert_eq!(before, everything(&*place, &tags).await);
}

#[tokio::test]
async fn a_page_of_large_commits_is_a_small_one() {
    crate::store_contract::pages_of_large_commits_are_bounded(&*PostgresPlace::new().await).await;
}

/// PostgreSQL's counts of scans, once the session that made them has reported them.
async fn read_whole(connection: &mut PgConnection, sql: &'static str) -> (i64, i64) {
    let row = sqlx::query(sql).fetch_one(connection).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn a_plan_that_was_made_while_a_table_was_empty_is_not_kept() {
    let database = Database::new().await;
    let store = open(&database.url).await;
    store.prepare(setup()).await.unwrap();
    let load = async || drop(store.load(0, vec![service_key("k")]).await.unwrap());
    let records = async || drop(store.calls().records(vec![CallId([7; 16])]).await.unwrap());
    for _ in 0..20 {
        load().await;
        records().await;
    }
    let mut connection = database.connection().await;
    let fill = "INSERT INTO pending (shard, seq, service, key, kind, taken_id, message_id, taken_at, attempt, history, message)
        SELECT 0, n, 'balances', 'other' || n, 'retry', '', n::text, 0, 0, '[]', '' FROM generate_series(1, 20000) n";
    run(&mut connection, fill).await;
    let fill = "INSERT INTO calls (id, fingerprint, tenant, service, message_id, accepted_at, expires_at)
        SELECT decode(md5(n::text), 'hex'), '', '', '', '', 0, 0 FROM generate_series(1, 20000) n";
    run(&mut connection, fill).await;
    // By the key, and not through all that the shard has.
    let rows = "SELECT coalesce(sum(idx_scan) FILTER (WHERE indexrelname = 'pending_key'), 0)::bigint,
            coalesce(sum(idx_tup_read) FILTER (WHERE indexrelname <> 'pending_key'), 0)::bigint
        FROM pg_stat_user_indexes WHERE relname = 'pending'";
    let calls = "SELECT coalesce(idx_scan, 0), seq_tup_read FROM pg_stat_user_tables WHERE relname = 'calls'";
    let before = (read_whole(&mut connection, rows).await, read_whole(&mut connection, calls).await);
    let mut after = before;
    for _ in 0..100 {
        load().await;
        records().await;
        after = (read_whole(&mut connection, rows).await, read_whole(&mut connection, calls).await);
        let told = |before: (i64, i64), after: (i64, i64)| after.0 > before.0 || after.1 > before.1;
        if told(before.0, after.0) && told(before.1, after.1) {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert!(after.0.0 > before.0.0 && after.1.0 > before.1.0, "nothing was looked up: {before:?} {after:?}");
    assert!(after.0.1 - before.0.1 < 20_000, "a key's rows were looked for in all of the shard: {before:?} {after:?}");
    assert!(after.1.1 - before.1.1 < 20_000, "a call was looked for in the whole table: {before:?} {after:?}");
    store.close().await;
}
