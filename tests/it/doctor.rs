//! `doctor` as an operator has it: the real binary beside real servers that were made unsafe.
//! In: stores, topics, streams, settings. Out: findings with their levels, and exit codes.

use std::time::Duration;

use lapin::BasicProperties;
use perkey::unstable::clock::Clock;
use perkey::unstable::store::lease::{Code, Leases, Worker};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::cli::Cli;
use crate::kafka_topic::Topic;
use crate::postgres_place::PostgresPlace;
use crate::rabbitmq_place::{Streams, table, text};
use crate::servers;

/// A posting, and one in another currency, which holds its account.
const POSTINGS: &str = "id,account,amount,currency,at\np-1,a,1,EUR,2026-01-31\np-2,a,2,USD,2026-01-31\n";

/// Level and text of the findings of a check.
fn of<'a>(report: &'a Value, check: &str) -> Vec<(&'a str, &'a str)> {
    let all = report["findings"].as_array().unwrap().iter().filter(|finding| finding["check"] == check);
    all.map(|finding| (finding["level"].as_str().unwrap(), finding["found"].as_str().unwrap())).collect()
}

/// One finding of the check has the level and says so.
#[track_caller]
fn tells(report: &Value, check: &str, level: &str, words: &str) {
    let found = of(report, check);
    assert!(found.iter().any(|(found, text)| *found == level && text.contains(words)), "{check}: {report:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_looked_at_without_a_process_and_beside_one() {
    let cli = Cli::new().await;
    let missing = cli.json(&["doctor"]).await.ends(5);
    tells(&missing, "store", "error", "there is no store");
    tells(&missing, "settings.dedup", "ok", "7days");

    cli.file("f.csv", POSTINGS);
    cli.json(&["import", "--service", "transactions", "f.csv"]).await.ends(0);
    let alone = cli.json(&["doctor"]).await.ends(0);
    assert_eq!((&alone["errors"], of(&alone, "disk").len()), (&0.into(), 1), "{alone:#}");
    tells(&alone, "shards", "note", "no process runs the store");
    tells(&alone, "settings.app", "note", "set app.provider_url");
    tells(&alone, "held_keys", "note", "1 keys are held");
    tells(&alone, "dead_letters", "warning", "transactions has 1 dead letters");
    tells(&alone, "versions", "ok", "SQLite 3.");
    let mut up = cli.up().await;
    let beside = cli.json(&["doctor"]).await.ends(0);
    tells(&beside, "shards", "ok", "all 8 shards have an owner");
    up.terminate().await.unwrap();
    up.ended().await.unwrap();

    tells(&beside, "disk", "ok", "are free");
    let file = cli.place.folder.join("store.db");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let wide = cli.json(&["doctor"]).await.ends(0);
    tells(&wide, "disk", "warning", "store.db (644)");

    // A sink and a service that nobody has any more, and a clock that was set back.
    let mut store = cli.store().await;
    let ahead = Clock::system().now() + 3_600_000;
    let sql = format!(
        "UPDATE shards SET watermarks = '{{\"gone\":0}}' WHERE shard = 0;
         UPDATE dead_letters SET service = 'former';
         INSERT INTO timers (shard, service, key, name, due_at, message) VALUES (0, 'former', 'k', 'n', 0, x'');
         UPDATE commits SET at = {ahead}"
    );
    store.execute(AssertSqlSafe(sql)).await.unwrap();
    store.close().await.unwrap();
    let wrong = cli.json(&["doctor", "--set", "dedup.window=1m"]).await.ends(5);
    tells(&wrong, "sinks", "warning", "sink gone is in no settings");
    tells(&wrong, "services", "error", "wait for service \"former\"");
    tells(&wrong, "clock.commits", "error", "ahead of now");
    tells(&wrong, "settings.dedup", "error", "below dedup.window_min");
    assert!(wrong["findings"][0]["level"] == "error" && wrong["findings"][0]["advice"].is_string(), "{wrong:#}");
    let table = cli.run(&["doctor"]).await;
    assert!(table.code == Some(5) && table.out.contains("what to do") && table.out.contains("errors 2"), "{table:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_was_made_unsafe_is_found_out() {
    let place = PostgresPlace::new().await;
    let mut cli = Cli::new().await;
    cli.place.url.clone_from(&place.database.url);
    // What the whole server is set to is not this test's: only what it changes is looked at.
    let before = cli.json(&["doctor", "--set", "ownership.shards=4"]).await.json();
    tells(&before, "clock", "ok", "agree");
    tells(&before, "versions", "ok", "PostgreSQL 1");
    tells(&before, "shards", "warning", "no worker is alive");

    let mut connection = place.database.connection().await;
    let name: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&mut connection).await.unwrap();
    for setting in ["synchronous_commit = off", "idle_in_transaction_session_timeout = 0"] {
        let sql = format!("ALTER DATABASE {name} SET {setting}");
        connection.execute(AssertSqlSafe(sql)).await.unwrap();
    }
    let newer = Worker { id: "w".to_owned(), code: Code::numbered(99), version: "9".to_owned(), ..Worker::default() };
    place.postgres().renew(newer, Duration::from_secs(60)).await.unwrap();
    connection.execute("UPDATE shards SET owner = 'w', code_version = 99 WHERE shard > 0").await.unwrap();
    // Somebody forgets a transaction.
    let mut held = place.database.connection().await;
    held.execute("BEGIN; LOCK TABLE imports IN ROW EXCLUSIVE MODE; INSERT INTO lanes VALUES ('x', 1)").await.unwrap();
    let flags = ["doctor", "--set", "ownership.shards=8", "--set", "store.transaction_age_max=1ms"];
    let wrong = cli.json(&flags).await.ends(5);
    tells(&wrong, "postgres.durability", "error", "synchronous_commit is off");
    tells(&wrong, "postgres.transactions", "note", "idle_in_transaction_session_timeout is 0");
    tells(&wrong, "postgres.transactions", "warning", "a transaction is open");
    tells(&wrong, "shards", "error", "ownership.shards says 8");
    tells(&wrong, "shards", "warning", "shard 0 has no owner");
    tells(&wrong, "shards", "warning", "the lease of w lasts");
    tells(&wrong, "code", "error", "code version 99");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_that_lose_records_are_found_out() {
    let topic = Topic::with(3, &[("retention.ms", "60000"), ("cleanup.policy", "compact,delete")]).await;
    topic.fill(2, "a", 0..5);
    topic.cut(2, 4).await;
    let cli = Cli::new().await;
    cli.file("f.csv", POSTINGS);
    cli.json(&["import", "--service", "transactions", "f.csv"]).await.ends(0);
    let mut store = cli.store().await;
    let sql =
        format!("UPDATE shards SET positions = '{{\"kafka\":{{\"{}/2\":{{\"no\":1,\"index\":0}}}}}}'", topic.name);
    store.execute(AssertSqlSafe(sql)).await.unwrap();
    store.close().await.unwrap();
    let kafka = |topics: &str| format!("[kafka]\nbrokers = \"{}\"\ntopics = {topics}\n", servers::kafka());
    cli.file("good.toml", kafka(&format!("[\"{}\"]", topic.name)));
    let wrong = cli.json(&["doctor", "--config", "good.toml"]).await.ends(5);
    tells(&wrong, "kafka", "ok", "brokers answer");
    tells(&wrong, "kafka.topics", "warning", "replication factor of 1");
    tells(&wrong, "kafka.topics", "note", "not a multiple of 8 shards");
    tells(&wrong, "kafka.retention", "warning", "keeps records for 1 min");
    tells(&wrong, "kafka.retention", "warning", "is compacted");
    tells(&wrong, "kafka.positions", "error", "removed unread");
    cli.file("missing.toml", kafka("[\"perkey_no_such_topic\"]"));
    let missing = cli.json(&["doctor", "--config", "missing.toml"]).await.ends(5);
    tells(&missing, "kafka.topics", "error", "perkey_no_such_topic is not there");
    cli.file("away.toml", "[kafka]\nbrokers = \"127.0.0.1:1\"\ntopics = [\"t\"]\n");
    let away = cli.json(&["doctor", "--config", "away.toml"]).await.ends(5);
    tells(&away, "kafka", "error", "the brokers do not answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_missing_and_what_nobody_takes_are_found_out() {
    // One is missing of those that eight shards need, and all of the intake but what nobody takes.
    let streams = Streams::new(7).await;
    let name = &streams.name;
    let dead = format!("{name}.intake.dead");
    streams.wire.queue(&dead, table(&[("x-queue-type", text("quorum"))])).await;
    streams.wire.publish("", [(dead.clone(), &b"{}"[..], BasicProperties::default())]).await;

    let cli = Cli::new().await;
    cli.file("f.csv", POSTINGS);
    cli.json(&["import", "--service", "transactions", "f.csv"]).await.ends(0);
    let mut store = cli.store().await;
    let sql = format!(
        "UPDATE shards SET positions = '{{\"rabbitmq\":{{\"{name}/7\":{{\"no\":5,\"index\":0}},
                                                     \"former/0\":{{\"no\":5,\"index\":0}}}}}}'"
    );
    store.execute(AssertSqlSafe(sql)).await.unwrap();
    store.close().await.unwrap();

    let settings = |address: &str, declare: bool| {
        format!(
            "[rabbitmq]\naddresses = \"{address}\"\ndeclare = {declare}\nstreams = [\"{name}\"]\nintakes = [\"{name}\"]\n\
             [[publish]]\ntype = \"*\"\nsink = \"rabbitmq\"\ntopic = \"perkey_no_such_exchange:{{key}}\"\n"
        )
    };
    cli.file("by_hand.toml", settings(&servers::rabbitmq(), false));
    let wrong = cli.json(&["doctor", "--config", "by_hand.toml"]).await.ends(5);
    tells(&wrong, "rabbitmq", "ok", "RabbitMQ 3.1");
    tells(&wrong, "rabbitmq.streams", "error", &format!("{name}-7 is not there"));
    let three = format!("{name}.intake, exchange {name}.intake, exchange {name}.intake.dead are not there");
    tells(&wrong, "rabbitmq.intakes", "error", &three);
    tells(&wrong, "rabbitmq.intakes", "warning", &format!("1 messages wait in {dead}: nobody takes them"));
    tells(&wrong, "rabbitmq.exchanges", "error", "exchange perkey_no_such_exchange is not there");
    tells(&wrong, "rabbitmq.positions", "error", &format!("{name}-7 is not there, and was read up to 5"));
    tells(&wrong, "rabbitmq.positions", "note", "stream former was read");

    // It only looks: asked again, the same is not there.
    cli.file("declared.toml", settings(&servers::rabbitmq(), true));
    for _ in 0..2 {
        let declared = cli.json(&["doctor", "--config", "declared.toml"]).await.ends(5);
        tells(&declared, "rabbitmq.streams", "note", &format!("{name}-7 is not there"));
    }
    cli.file("away.toml", settings("127.0.0.1:1", true));
    let away = cli.json(&["doctor", "--config", "away.toml"]).await.ends(5);
    tells(&away, "rabbitmq", "error", "the broker does not answer");
}
