//! The command line as a user has it: the real binary, its exit codes, its JSON.
//! In: files, arguments, signals. Out: the behaviour that docs/cli.md describes.

use std::time::Duration;

use perkey::unstable::store::lease::{Leases, Worker};
use perkey_chaos::process::{Place, Running, built, until};
use serde_json::Value;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

use crate::postgres_place::PostgresPlace;

const SOON: Duration = Duration::from_secs(60);

/// The binary in a folder of its own.
pub(crate) struct Cli {
    pub(crate) place: Place,
    _folder: TempDir,
}

/// The end of a command.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// The document on standard output.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| Value::String(format!("{error}: {self:?}")))
    }

    /// It ended with `code`, and its words on standard error contain each of `parts`.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for part in parts {
            assert!(self.err.contains(part), "it does not say {part:?}: {self:?}");
        }
    }

    /// It ended with `code` and no complaint is asked for.
    #[track_caller]
    pub(crate) fn ends(&self, code: i32) -> Value {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.json()
    }
}

impl Cli {
    pub(crate) async fn new() -> Self {
        let binary = tokio::task::spawn_blocking(built).await.unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self { place: Place::new(&binary, folder.path()), _folder: folder }
    }

    /// Its store, for whoever looks with SQL.
    pub(crate) async fn store(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.place.folder.join("store.db"));
        SqliteConnection::connect_with(&options).await.unwrap()
    }

    /// Writes a file into the folder, for its owner alone: whatever the umask, tokens are believed.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.place.folder.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }

    pub(crate) async fn run(&self, args: &[&str]) -> Said {
        let output = self.place.run(args, SOON).await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Runs it with `--output json`.
    pub(crate) async fn json(&self, args: &[&str]) -> Said {
        self.run(&[args, &["--output", "json"]].concat()).await
    }

    /// Starts `up` and waits until it handles messages.
    pub(crate) async fn up(&self) -> Running {
        let words = "messages are being handled";
        // The log goes on where the process before it ended.
        let times = self.logged(words) + 1;
        let up = self.place.start("up.log", &["up", "--set", "admin.listen=127.0.0.1:0"]).unwrap();
        until("`up` handles messages", SOON, async || self.logged(words) == times).await.unwrap();
        up
    }

    /// True if there is a write-ahead log beside the store's file.
    fn has_wal(&self) -> bool {
        self.place.folder.join("store.db-wal").exists()
    }

    /// Waits until the log of `up` says so.
    async fn logs(&self, words: &str) {
        let said = async || self.logged(words) > 0;
        until(&format!("`up` did not say {words:?}"), SOON, said).await.unwrap();
    }

    /// The number of times that the log of `up` has these words.
    fn logged(&self, words: &str) -> usize {
        let log = self.place.folder.join("up.log");
        std::fs::read_to_string(&log).map_or(0, |text| text.matches(words).count())
    }
}

/// Postings of `transactions`: the second one of account a is in another currency.
const POSTINGS: &str = "\
id,account,amount,currency,at,memo
p-1,a,10.00,EUR,2026-01-31,tea
p-2,a,5.00,USD,2026-01-31,
p-3,a,2.50,EUR,2026-02-01,
p-4,b,0.01,EUR,2026-02-01,
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_shown_explained_replayed_and_discarded() {
    let cli = Cli::new().await;
    cli.file("f.csv", POSTINGS);
    let imported = cli.json(&["import", "--service", "transactions", "f.csv"]).await.ends(0);
    assert_eq!((&imported["lines"], &imported["imported"], &imported["rejected"]), (&5.into(), &4.into(), &0.into()));
    assert_eq!(imported["engine"], serde_json::json!({ "duplicates": 0, "dead_letters": 1, "waiting": 1 }));

    let letters = cli.json(&["dlq:peek", "--service", "transactions"]).await.ends(0);
    let letter = &letters[0];
    assert_eq!((letters.as_array().unwrap().len(), &letter["id"], &letter["key"]), (1, &"p-2".into(), &"a".into()));
    assert_eq!((&letter["holds_key"], &letter["source"]), (&true.into(), &"import:f.csv".into()));
    assert!(letter["error"].as_str().unwrap().contains("kept in EUR"), "{letter}");
    assert_eq!(letter["attempts"].as_array().unwrap().len(), 1, "rejected at once: {letter}");
    assert!(letter["payload"].as_str().unwrap().contains("USD"));
    cli.json(&["dlq", "peek", "--key", "b"]).await.ends(3);

    let story = cli.json(&["explain", "p-2"]).await.ends(0);
    let what: Vec<_> = story["story"].as_array().unwrap().iter().map(|line| line["what"].as_str().unwrap()).collect();
    assert!(what.contains(&"sent") && what.contains(&"dead letter"), "{story}");
    let story = cli.json(&["explain", "a"]).await.ends(0);
    assert!(story["states"].as_array().unwrap().iter().any(|state| state["state"]["balance"] == 1000), "{story}");
    cli.run(&["explain", "nobody-sent-this"]).await.fails(3, &[]);

    let status = cli.json(&["status"]).await.ends(0);
    assert_eq!((&status["running"], &status["totals"]["held_keys"]), (&false.into(), &1.into()));
    let dry = cli.json(&["dlq:replay", "--dry-run"]).await.ends(0);
    assert_eq!((&dry["matched"], &dry["command"], &dry["affected"]), (&1.into(), &Value::Null, &0.into()));

    // Beside a running process its owners do it: the same message is rejected again.
    let mut up = cli.up().await;
    let replayed = cli.json(&["dlq:replay", "--id", "p-2", "--reason", "try again"]).await.ends(0);
    assert_eq!(
        (&replayed["done"], &replayed["affected"], &replayed["running"]),
        (&true.into(), &1.into(), &true.into())
    );
    let back = async || cli.json(&["dlq:peek"]).await.code == Some(0);
    until("the replayed message is not rejected again", SOON, back).await.unwrap();
    up.terminate().await.unwrap();
    assert_eq!(up.ends(SOON).await.unwrap().code(), Some(0));

    cli.run(&["dlq:discard"]).await.fails(64, &["--all"]);
    let discarded = cli.json(&["dlq:discard", "--id", "p-2", "--offline"]).await.ends(0);
    assert_eq!((&discarded["done"], &discarded["affected"]), (&true.into(), &1.into()));
    cli.json(&["dlq:discard", "--all", "--offline"]).await.ends(3);
    assert!(!cli.has_wal(), "a command that has ended leaves one file");
    // The key goes on with what waited behind it.
    let mut up = cli.up().await;
    let rested = async || cli.json(&["status"]).await.json()["totals"]["pending"] == 0;
    until("the key does not go on", SOON, rested).await.unwrap();
    up.terminate().await.unwrap();
    assert_eq!(up.ends(SOON).await.unwrap().code(), Some(0));
    let story = cli.json(&["explain", "a"]).await.ends(0);
    assert!(story["states"].as_array().unwrap().iter().any(|state| state["state"]["balance"] == 1250), "{story}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_names_lines_whose_ids_were_taken_before_with_other_content() {
    let cli = Cli::new().await;
    // Row numbers as ids, as banks export them: each file begins with 1.
    cli.file("jan.csv", "id,account,amount,currency,at\n1,a,100,EUR,2026-01-05\n2,a,200,EUR,2026-01-06\n");
    cli.file("feb.csv", "id,account,amount,currency,at\n1,a,700,EUR,2026-02-05\n2,b,800,EUR,2026-02-06\n");
    let import = ["import", "--service", "transactions", "feb.csv"];
    cli.json(&["import", "--service", "transactions", "jan.csv"]).await.ends(0);
    let told = cli.run(&import).await;
    assert_eq!(told.code, Some(2), "{told:?}");
    assert!(told.out.contains("line 2: id \"1\" of a") && told.out.contains("duplicates dropped 0"), "{told:?}");
    // The same lines under another name, and the same command again: copies, and nothing new to do.
    let conflicts = serde_json::json!([{ "line": 2, "id": "1", "key": "a" }]);
    assert_eq!(cli.json(&import).await.ends(2)["conflicts"], conflicts, "it is told until it is looked at");
    let renamed = cli.json(&[&import[..], &["--source", "renamed"]].concat()).await.ends(0);
    assert_eq!((&renamed["conflicts"], &renamed["engine"]["duplicates"]), (&serde_json::json!([]), &2.into()));
    let letters = cli.json(&["dlq:peek"]).await.ends(0);
    assert_eq!((letters.as_array().unwrap().len(), &letters[0]["source"]), (1, &"import:feb.csv".into()));
    assert_eq!(letters[0]["error"], "the id \"1\" was taken before with other content");
    let rows = sqlx::query_as("SELECT account, id, amount FROM transactions ORDER BY 1, 2");
    let rows: Vec<(String, String, i64)> = rows.fetch_all(&mut cli.store().await).await.unwrap();
    let posted = [("a", "1", 100), ("a", "2", 200), ("b", "2", 800)];
    assert_eq!(rows, posted.map(|(account, id, amount)| (account.to_owned(), id.to_owned(), amount)));

    // Beside a process that runs the store the import does not wait; run again, it tells of what was handled meanwhile.
    let mut up = cli.up().await;
    cli.file("mar.csv", "id,account,amount,currency,at\n1,b,5,EUR,2026-03-05\n1,a,900,EUR,2026-03-05\n");
    let import = ["import", "--service", "transactions", "mar.csv"];
    cli.run(&import).await;
    let counted = async || cli.json(&["status"]).await.json()["totals"]["counters"]["conflicts"] == 2;
    until("the line is told as a conflict", SOON, counted).await.unwrap();
    let again = cli.json(&import).await.ends(2);
    assert_eq!(again["conflicts"], serde_json::json!([{ "line": 3, "id": "1", "key": "a" }]));
    up.terminate().await.unwrap();
    assert_eq!(up.ends(SOON).await.unwrap().code(), Some(0));
    // Who is done with it is told no more.
    cli.json(&["dlq:discard", "--id", "1", "--offline"]).await.ends(0);
    assert_eq!(cli.json(&import).await.ends(0)["conflicts"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_runs_a_store_and_an_import_works_beside_it() {
    let cli = Cli::new().await;
    let mut up = cli.up().await;
    let second = cli.run(&["up", "--set", "admin.listen=127.0.0.1:0"]).await;
    second.fails(4, &["another process runs this store", "stop it first"]);
    cli.file("f.csv", "account,amount,currency,at\na,1,EUR,2026-01-31\na,1,EUR,2026-01-31\nb,2,EUR,2026-01-31\n");
    let imported = cli.json(&["import", "--service", "balances", "f.csv"]).await.ends(0);
    assert_eq!((&imported["imported"], &imported["engine"]), (&3.into(), &Value::Null));
    let handled = async || cli.json(&["status"]).await.json()["totals"]["counters"]["taken"] == 3;
    until("the import is not handled", SOON, handled).await.unwrap();
    let again = cli.json(&["import", "--service", "balances", "f.csv"]).await.ends(0);
    assert_eq!((&again["imported"], &again["skipped"]), (&0.into(), &3.into()));
    up.terminate().await.unwrap();
    assert_eq!(up.ends(Duration::from_secs(25)).await.unwrap().code(), Some(0), "{}", cli.place.tail("up.log"));
    assert!(!cli.has_wal(), "the one file is the whole store");
    let status = cli.json(&["status"]).await.ends(0);
    let owners: Vec<_> = status["shards"].as_array().unwrap().iter().map(|shard| &shard["owner"]).collect();
    assert!(owners.iter().all(|owner| owner.is_null()), "{owners:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_after_kills_ends_when_everything_is_handled() {
    // After two kills what comes has its start recorded: rows, of few keys, that no source waits for any longer.
    let cli = Cli::new().await;
    let lines = (0..6_000).map(|no| format!("a-{},1,EUR,2026-01-31\n", no % 20)).collect::<String>();
    cli.file("f.csv", format!("account,amount,currency,at\n{lines}"));
    let import = ["import", "--service", "balances", "f.csv"];
    for _ in 0..3 {
        let mut killed = cli.place.start("import.log", &import).unwrap();
        let taken = async || match cli.place.run(&["status", "--output", "json"], SOON).await {
            Ok(said) => String::from_utf8_lossy(&said.stdout).contains("pid"),
            Err(_) => false,
        };
        until("the import runs no shard", SOON, taken).await.unwrap();
        assert!(killed.kill().await.unwrap(), "the import ended by itself: {}", cli.place.tail("import.log"));
    }
    let ended = cli.json(&import).await.ends(0);
    assert_eq!(ended["engine"]["waiting"], 0, "{ended}");
    assert!(!cli.has_wal(), "an import that ran the store leaves one file");
    let status = cli.json(&["status"]).await.ends(0);
    assert_eq!(status["totals"]["counters"]["taken"], 6_000, "{status}");
    let mut store = cli.store().await;
    let counted = "SELECT sum(json_extract(state, '$.n')) FROM states WHERE service = 'balances'";
    let counted: i64 = sqlx::query_scalar(counted).fetch_one(&mut store).await.unwrap();
    assert_eq!(counted, 6_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_a_drain_at_once_and_loses_nothing() {
    let cli = Cli::new().await;
    let mut up = cli.up().await;
    // Somebody holds the file's write lock: the last commits cannot be written.
    let mut holder = cli.store().await;
    cli.file("f.csv", "id,account,amount,currency,at\np-1,a,1,EUR,2026-01-31\n");
    cli.json(&["import", "--service", "balances", "f.csv"]).await.ends(0);
    sqlx::query("BEGIN IMMEDIATE").execute(&mut holder).await.unwrap();
    up.terminate().await.unwrap();
    cli.logs("draining").await;
    assert!(up.is_alive(), "{}", cli.place.tail("up.log"));
    up.terminate().await.unwrap();
    assert_eq!(up.ends(Duration::from_secs(2)).await.unwrap().code(), Some(1), "{}", cli.place.tail("up.log"));
    sqlx::query("ROLLBACK").execute(&mut holder).await.unwrap();
    holder.close().await.unwrap();

    let mut up = cli.up().await;
    let handled = async || {
        let totals = cli.json(&["status"]).await.json()["totals"].clone();
        totals["counters"]["taken"] == 1 && totals["unread"] == 0
    };
    until("the message is not handled after the restart", SOON, handled).await.unwrap();
    up.terminate().await.unwrap();
    assert_eq!(up.ends(SOON).await.unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_checked_together_and_shown_with_their_origin() {
    let cli = Cli::new().await;
    cli.file("bad.toml", "[retry]\nattempts = 0\n[nothing]\nx = 1\n[[bind]]\ntype = \"x\"\nservice = \"nobody\"\n");
    let said = cli.run(&["config", "check", "--config", "bad.toml", "--set", "ingress.credits=1"]).await;
    said.fails(78, &["nothing", "bad.toml"]);
    cli.file("bounds.toml", "[retry]\nattempts = 0\n");
    let said = cli.run(&["config", "check", "--config", "bounds.toml", "--set", "ingress.credits=1"]).await;
    said.fails(78, &["retry.attempts must be at least 1", "ingress.credits must be at least 16"]);
    cli.file("bind.toml", "[[bind]]\ntype = \"x\"\nservice = \"nobody\"\n");
    cli.run(&["config:check", "--config", "bind.toml"])
        .await
        .fails(78, &["nobody", "expenses, orders, payments, transactions"]);
    assert_eq!(cli.json(&["config:check"]).await.ends(0), serde_json::json!({ "problems": [] }));
    let shown = cli.json(&["config:show", "--origins", "--set", "retry.attempts=3"]).await.ends(0);
    let of = |name: &str| shown.as_array().unwrap().iter().find(|line| line["setting"] == name).unwrap().clone();
    assert_eq!((&of("retry.attempts")["value"], &of("retry.attempts")["origin"]), (&"3".into(), &"flag --set".into()));
    assert!(of("store.url")["origin"].as_str().unwrap().contains("BUDGET_STORE__URL"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_usage_is_told_from_what_is_missing() {
    let cli = Cli::new().await;
    cli.run(&["fly"]).await.fails(64, &["fly", "Usage"]);
    cli.run(&["import", "f.csv"]).await.fails(64, &["--service"]);
    cli.run(&["dlq:replay", "--since", "yesterday"]).await.fails(64, &["yesterday", "15m"]);
    cli.run(&["status"]).await.fails(4, &["there is no store", "store.url"]);
    cli.run(&["dlq:peek"]).await.fails(4, &["there is no store"]);
    cli.run(&["import", "--service", "balances", "missing.csv"]).await.fails(1, &["missing.csv"]);
    cli.file("empty.csv", "");
    cli.run(&["import", "--service", "balances", "empty.csv"]).await.fails(3, &[]);
    let help = cli.run(&["--help"]).await;
    assert!(help.code == Some(0) && help.out.contains("Exit codes"), "{help:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giving_a_sink_up_is_waited_for_while_workers_run_the_store() {
    let place = PostgresPlace::new().await;
    let mut owner = place.database.connection().await;
    sqlx::raw_sql("UPDATE shards SET watermarks = '{\"gone\":0}'").execute(&mut owner).await.unwrap();
    let cli = Cli::new().await;
    let retire = |wait| {
        let url = place.database.url.as_str();
        ["outbox:retire", "gone", "--why", "test", "--wait", wait, "--store-url", url]
    };
    let alone = cli.json(&retire("60s")).await.ends(0);
    assert_eq!((&alone["running"], &alone["done"]), (&Value::Bool(false), &Value::Bool(false)), "{alone}");
    let me = Worker { id: "me".to_owned(), version: "1".to_owned(), ..Worker::default() };
    place.postgres().renew(me, Duration::from_secs(600)).await.unwrap();
    // As the owners of the shards do.
    let execute = async {
        let done = "INSERT INTO operator_results SELECT c.id, s.shard, 1, true FROM shards s, operator_commands c
            WHERE c.id = $1";
        let command = alone["command"].as_i64().unwrap() + 1;
        until("no command was recorded", SOON, async || {
            // It is still asked for when it is executed.
            let rows = sqlx::query(done).bind(command).execute(&mut owner).await.unwrap();
            rows.rows_affected() > 0
        })
        .await
        .unwrap();
    };
    let arguments = retire("60s");
    let (said, ()) = tokio::join!(cli.json(&arguments), execute);
    let said = said.ends(0);
    assert_eq!((&said["running"], &said["done"]), (&Value::Bool(true), &Value::Bool(true)), "{said}");
    assert_eq!((&said["affected"], &said["matched"]), (&4.into(), &4.into()), "{said}");
}
