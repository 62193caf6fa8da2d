//! The rights of a PostgreSQL store's roles: what each needs, and that it gets nothing besides.
//! In: roles that log in by themselves; what somebody with INSERT on the intake may try. Out: work done, or nothing.

use std::process::Command;
use std::time::Duration;

use perkey::unstable::clock::Dice;
use perkey::unstable::store::postgres::PgStore;
use perkey::unstable::store::sqlite::SqliteStore;
use perkey::unstable::store::{Access, Store};
use perkey_chaos::process::{Running, until};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::cli::Cli;
use crate::fixture::{Place as _, SqlitePlace, setup};
use crate::postgres_place::{BOUNDS, Database, PostgresPlace, open};
use crate::servers;

const SOON: Duration = Duration::from_secs(60);

/// The store's functions as they were before they named the place of temporary tables.
const FIRST: &str = include_str!("../../runtime/migrations/postgres/0001_store.sql");

/// A role that logs in, gone at the end.
struct Role(String);

impl Role {
    async fn new(what: &str) -> Self {
        let name = format!("perkey_test_{what}_{:016x}", Dice::from_system().below(u64::MAX));
        let mut admin = PgConnection::connect(&servers::postgres()).await.unwrap();
        run(&mut admin, &format!("CREATE ROLE {name} LOGIN PASSWORD 'perkey'")).await;
        Self(name)
    }

    /// The URL of `database` for this role.
    fn url(&self, database: &Database) -> String {
        let (_, place) = database.url.rsplit_once('@').unwrap();
        format!("postgres://{}:perkey@{place}", self.0)
    }

    async fn on(&self, database: &Database) -> PgConnection {
        PgConnection::connect(&self.url(database)).await.unwrap()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        // Its databases are gone by now. One that is left behind costs the next test nothing.
        let mut psql = psql(&servers::postgres());
        drop(psql.args(["--command", &format!("DROP ROLE IF EXISTS {}", self.0)]).output());
    }
}

fn psql(url: &str) -> Command {
    let mut psql = Command::new("psql");
    psql.args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", url]);
    psql
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

async fn number(connection: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

/// Things of the session's own that the store's functions could take for theirs: tables and views, then functions, an
/// operator, and casts of the columns of a table that has the intake's trigger.
const TRIES: [&str; 3] = [
    "CREATE TEMP VIEW meta AS SELECT 'shards'::text AS name, pg_temp.told('a view')::text AS value;
     INSERT INTO perkey_intake (key, type) VALUES ('k', 't'); DROP VIEW pg_temp.meta",
    "CREATE FUNCTION pg_temp.perkey_murmur2(bytea) RETURNS bigint LANGUAGE sql AS $$ SELECT pg_temp.told('a function') $$;
     CREATE FUNCTION pg_temp.both(bigint, integer) RETURNS bigint LANGUAGE sql AS $$ SELECT pg_temp.told('an operator') $$;
     CREATE OPERATOR pg_temp.& (LEFTARG = bigint, RIGHTARG = integer, FUNCTION = pg_temp.both);
     INSERT INTO perkey_intake (key, type) VALUES ('k', 't')",
    "CREATE TYPE pg_temp.mine AS (x integer);
     CREATE FUNCTION pg_temp.as_text(pg_temp.mine) RETURNS text LANGUAGE sql AS $$ SELECT pg_temp.told('a cast')::text $$;
     CREATE CAST (pg_temp.mine AS text) WITH FUNCTION pg_temp.as_text(pg_temp.mine) AS IMPLICIT;
     CREATE TEMP TABLE lure (key pg_temp.mine, shard integer);
     CREATE TRIGGER lure BEFORE INSERT ON lure FOR EACH ROW EXECUTE FUNCTION perkey_intake_shard();
     INSERT INTO lure VALUES (row(1)::pg_temp.mine, 0)",
];

/// The number of times that a role with that right alone made the store's owner run its code.
async fn attacked(database: &Database) -> i64 {
    let thief = Role::new("thief").await;
    let mut owner = database.connection().await;
    run(&mut owner, "CREATE TABLE proof (what text); GRANT INSERT ON proof TO PUBLIC").await;
    run(&mut owner, &format!("GRANT INSERT ON perkey_intake TO {}", thief.0)).await;
    for attempt in TRIES {
        let mut theirs = thief.on(database).await;
        let told = "CREATE FUNCTION pg_temp.told(what text) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN
            IF current_user <> session_user THEN INSERT INTO public.proof VALUES (what); END IF; RETURN 8; END $$";
        run(&mut theirs, told).await;
        // It may be refused, or do what it would without them.
        drop(sqlx::raw_sql(attempt).execute(&mut theirs).await);
        theirs.close().await.unwrap();
    }
    let found = number(&mut owner, "SELECT count(*) FROM proof").await;
    run(&mut owner, &format!("DROP TABLE proof; REVOKE ALL ON perkey_intake FROM {}", thief.0)).await;
    found
}

#[tokio::test]
async fn who_may_only_insert_has_nothing_run_by_the_owner() {
    let place = PostgresPlace::new().await;
    assert_eq!(attacked(&place.database).await, 0, "a new store");
    // As a program of the format before made it.
    let of = |name: &str| {
        let (_, from) = FIRST.split_once(&format!("CREATE FUNCTION {name}(")).unwrap();
        let (body, _) = from.split_once("\n$$;").unwrap();
        format!("CREATE OR REPLACE FUNCTION {name}({body}\n$$;")
    };
    let before = format!(
        "{} {} GRANT EXECUTE ON FUNCTION perkey_intake_shard() TO PUBLIC;
         ALTER TABLE perkey_intake DROP CONSTRAINT perkey_intake_bytes; DELETE FROM _sqlx_migrations WHERE version = 11",
        of("perkey_shard"),
        of("perkey_intake_shard")
    );
    run(&mut place.database.connection().await, &before).await;
    assert_eq!(attacked(&place.database).await, 2, "what is tried here works where nothing is done against it");
    open(&place.database.url).await.prepare(setup()).await.unwrap();
    assert_eq!(attacked(&place.database).await, 0, "a store that was brought up to date");
    let taken = number(&mut place.database.connection().await, "SELECT count(DISTINCT shard) FROM perkey_intake").await;
    assert_eq!(taken, 1, "rows are under the shard of their key all the while");
}

#[tokio::test]
async fn every_function_that_looks_somewhere_says_where() {
    let place = PostgresPlace::new().await;
    let mut connection = place.database.connection().await;
    let loose = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        AND (prosecdef OR proconfig IS NOT NULL OR prosrc ~* '\\m(from|into|update) +[a-z%]')
        AND 'search_path=pg_catalog, pg_temp' <> ALL (coalesce(proconfig, '{}'))
        AND proname NOT IN ('perkey_number', 'perkey_frame', 'perkey_events')";
    assert_eq!(number(&mut connection, loose).await, 0);
    let open = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef
        AND has_function_privilege('pg_monitor', oid, 'EXECUTE')";
    assert_eq!(number(&mut connection, open).await, 0, "nobody makes a trigger of it on a table of their own");
    drop(place.store());
}

/// The secret that seals answers outside the store.
#[tokio::test]
async fn a_store_that_was_restored_has_another_secret_and_no_two_have_the_same() {
    let place = PostgresPlace::new().await;
    let secret = async |store: &dyn Store| store.calls().secret().await.unwrap();
    let first = secret(&**place.postgres()).await;
    let gateway = PgStore::open(&place.database.url, BOUNDS, Access::Serve).await.unwrap();
    assert_eq!(secret(&gateway).await, first, "whoever has the store open");
    assert_ne!(secret(&**PostgresPlace::new().await.postgres()).await, first, "of another store");
    // A copy has the same in every table.
    let (_, name) = place.database.url.rsplit_once('/').unwrap();
    place.postgres().close().await;
    gateway.close().await;
    let copy = Database::of(name).await;
    let restored = PgStore::open(&copy.url, BOUNDS, Access::Serve).await.unwrap();
    let second = secret(&restored).await;
    assert_ne!(second, first, "a backup that was read in elsewhere");
    let mut cli = Cli::new().await;
    cli.place.url.clone_from(&copy.url);
    cli.json(&["store:restored"]).await.ends(0);
    assert_ne!(secret(&restored).await, second, "one that nothing tells from what was before");

    let file = SqlitePlace::new().await;
    let (first, url) = (secret(&**file.sqlite()).await, file.url());
    file.sqlite().close().await;
    let again = SqliteStore::open(&url, Access::Run).await.unwrap();
    again.prepare(setup()).await.unwrap();
    assert_ne!(secret(&again).await, first, "a file may be a copy of what it was");
    again.close().await;
}

/// Whoever else uses the machine can make a directory where one is expected: what lies there is run, or printed to be.
#[test]
fn scripts_take_no_directory_that_others_may_write() {
    let folder = tempfile::tempdir().unwrap();
    let (wide, link) = (folder.path().join("wide"), folder.path().join("link"));
    let own = folder.path().join("own");
    for made in [&wide, &own] {
        std::fs::create_dir(made).unwrap();
    }
    std::fs::set_permissions(&wide, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    std::os::unix::fs::symlink(&own, &link).unwrap();
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts");
    for bad in [&wide, &link] {
        std::fs::write(bad.join("planted"), "").unwrap();
        for (script, args) in [("services", &["up", "redis"][..]), ("services", &["env"]), ("services", &["status"])] {
            let said =
                Command::new(format!("{scripts}/{script}")).args(args).env("PERKEY_SERVICES", bad).output().unwrap();
            let text = String::from_utf8(said.stderr).unwrap();
            assert!(said.status.code() == Some(1) && said.stdout.is_empty(), "{script} {args:?}: {text}");
            assert!(text.contains("PERKEY_SERVICES"), "{text}");
        }
        let said = Command::new(format!("{scripts}/demo")).arg(bad).output().unwrap();
        let text = String::from_utf8(said.stderr).unwrap();
        assert!(said.status.code() == Some(1) && text.contains("nobody else may write"), "{text}");
    }
}

/// A store whose owner is none of those who use it.
struct Owned {
    database: Database,
    owner: Role,
    worker: Role,
    gateway: Role,
    operator: Role,
    writer: Role,
}

impl Owned {
    async fn new() -> Self {
        let database = Database::new().await;
        let [owner, worker, gateway, operator, writer] = [
            Role::new("owner").await,
            Role::new("worker").await,
            Role::new("gateway").await,
            Role::new("operator").await,
            Role::new("writer").await,
        ];
        let (_, name) = database.url.rsplit_once('/').unwrap();
        run(&mut database.connection().await, &format!("ALTER DATABASE {name} OWNER TO {}", owner.0)).await;
        Self { database, owner, worker, gateway, operator, writer }
    }

    /// Runs `scripts/rights.sql` as the owner.
    fn give(&self) {
        let mut psql = psql(&self.owner.url(&self.database));
        let roles = [("worker", &self.worker), ("gateway", &self.gateway), ("operator", &self.operator)];
        for (what, role) in roles.into_iter().chain([("writer", &self.writer)]) {
            psql.arg(format!("--set={what}={}", role.0));
        }
        psql.args(["--file", concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/rights.sql")]);
        let said = psql.output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
}

async fn as_role(role: &Role, database: &Database) -> Cli {
    let mut cli = Cli::new().await;
    cli.place.url = role.url(database);
    cli
}

/// Starts a process that serves, and gives its address.
async fn serves(cli: &Cli, args: &[&str]) -> (Running, String) {
    let args = [args, &["--set", "admin.listen=127.0.0.1:0", "--set", "log.poll=10ms"]].concat();
    let process = cli.place.start("served.log", &args).unwrap();
    let address = || {
        let text = std::fs::read_to_string(cli.place.folder.join("served.log")).unwrap_or_default();
        let line = text.lines().find(|line| line.contains("listens "))?;
        let (_, rest) = line.split_once("address=")?;
        Some(rest.split_whitespace().next()?.trim_matches('"').to_owned())
    };
    until("it listens", SOON, async || address().is_some()).await.unwrap_or_else(|error| {
        panic!("{error}: {}", cli.place.tail("served.log"));
    });
    (process, address().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_does_its_work_with_its_rights_alone() {
    let owned = Owned::new().await;
    let database = &owned.database;
    let worker = as_role(&owned.worker, database).await;
    worker.run(&["worker", "--set", "admin.listen=127.0.0.1:0"]).await.fails(4, &["permission denied", "rights.sql"]);
    as_role(&owned.owner, database).await.json(&["store:prepare"]).await.ends(0);
    owned.give();
    // Again, as after each `store:prepare`.
    owned.give();
    let (mut work, _) = serves(&worker, &["worker"]).await;
    let gateway = as_role(&owned.gateway, database).await;
    let (mut door, url) = serves(&gateway, &["gateway"]).await;

    let post = json!({ "account": "q", "amount": 5, "currency": "EUR" }).to_string();
    let calls = Cli::new().await;
    let call = ["call", "POST", "/api/transactions", &post, "--key", "k", "--url", &url];
    assert_eq!(calls.json(&call).await.ends(0)["status"], 201);
    assert_eq!(calls.json(&["call", "GET", "/api/accounts/q", "--url", &url]).await.ends(0)["body"]["balance"], 5);

    let intake =
        "INSERT INTO perkey_intake (service, key, id, type, payload) VALUES ('transactions', 'w', 'R-1', 'post',
        '{\"account\":\"w\",\"amount\":7,\"currency\":\"EUR\",\"at\":\"2026-01-31\"}')";
    let mut writer = owned.writer.on(database).await;
    run(&mut writer, intake).await;
    let operator = as_role(&owned.operator, database).await;
    operator.file("f.csv", "id,account,amount,currency,at\np-1,a,1,EUR,2026-01-31\np-2,a,2,USD,2026-01-31\n");
    operator.json(&["import", "--service", "transactions", "f.csv"]).await.ends(0);
    let dead = async || operator.json(&["dlq:peek"]).await.code == Some(0);
    until("the import's second line is a dead letter", SOON, dead).await.unwrap();
    until("the writer's row was taken", SOON, async || {
        let answer = calls.json(&["call", "GET", "/api/accounts/w", "--url", &url]).await;
        answer.code == Some(0) && answer.json()["body"]["balance"] == 7
    })
    .await
    .unwrap();
    for (args, code) in [
        (&["status"][..], 0),
        (&["explain", "p-2"], 0),
        (&["state:get", "--service", "transactions", "--key", "a"], 0),
        (&["schedule:list"], 3),
        (&["keys:top"], 3),
        (&["outbox:stats"], 3),
        (&["leases"], 0),
        (&["doctor"], 0),
        (&["service:pause", "payments", "--why", "x"], 0),
        (&["service:resume", "payments", "--why", "x"], 0),
        (&["key:pause", "--service", "payments", "--key", "a", "--why", "x"], 0),
        (&["key:resume", "--service", "payments", "--key", "a", "--why", "x"], 0),
        (&["dlq:replay", "--id", "p-2", "--reason", "x"], 0),
        (&["dlq:discard", "--id", "p-2", "--reason", "x"], 0),
    ] {
        let said = operator.json(args).await;
        assert_eq!(said.code, Some(code), "{args:?}: {said:?}");
    }
    let mut look = owned.operator.on(database).await;
    number(&mut look, "SELECT count(*) + (SELECT count(*) FROM inbox_messages) FROM outbox_events").await;

    for (process, cli) in [(&mut work, &worker), (&mut door, &gateway)] {
        process.terminate().await.unwrap();
        assert_eq!(process.ends(SOON).await.unwrap().code(), Some(0));
        let log = std::fs::read_to_string(cli.place.folder.join("served.log")).unwrap();
        assert!(!log.contains("permission denied"), "{log}");
    }
    and_nothing_besides(&owned).await;
}

/// Checks that everything that none of them needs is refused.
async fn and_nothing_besides(owned: &Owned) {
    for (role, sql) in [
        (&owned.writer, "SELECT no FROM perkey_intake"),
        (&owned.writer, "SELECT value FROM meta"),
        (&owned.gateway, "SELECT message FROM pending"),
        (&owned.gateway, "SELECT message FROM dead_letters"),
        (&owned.gateway, "DELETE FROM calls"),
        (&owned.operator, "UPDATE states SET version = 2"),
        (&owned.operator, "DELETE FROM dead_letters"),
        (&owned.worker, "UPDATE meta SET value = '1' WHERE name = 'shards'"),
        (
            &owned.worker,
            "INSERT INTO operator_commands (action, filter, who, why, matched, at) VALUES ('', '', '', '', 0, 0)",
        ),
        (&owned.worker, "CREATE TABLE t ()"),
        (&owned.worker, "ALTER TABLE commits ADD COLUMN x text"),
    ] {
        let refused = sqlx::raw_sql(sql).execute(&mut role.on(&owned.database).await).await.unwrap_err().to_string();
        assert!(refused.contains("permission denied") || refused.contains("must be owner"), "{sql}: {refused}");
    }
}
