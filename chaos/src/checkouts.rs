//! Checkouts under kills, with a provider that fails, hangs and loses its answers: money stays where it belongs.
//! In: the numbers of checkouts and kills, a seed. Out: the end of each saga, and whether the books agree.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, value_parser};
use perkey::unstable::clock::{Dice, Stopwatch};
use perkey::unstable::store::sqlite::SqliteStore;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Row, SqliteConnection};

use crate::process::{Place, Running, binary, until};
use crate::provider::{BROKE, Faults, Provider};
use crate::{ChaosError, Verdict};

/// All checkouts end within this time after the last kill.
const REST_MAX: Duration = Duration::from_secs(900);
/// The most violations of one kind that are reported in full.
const TOLD_MAX: usize = 5;
/// One account in this many has no money.
const BROKE_EVERY: u64 = 20;

/// The options of the scenario.
#[derive(Args, Clone, Debug)]
#[command(mut_arg("fail", |fail| fail.default_value("0.1")))]
#[command(mut_arg("hang", |hang| hang.default_value("0.01")))]
#[command(mut_arg("lose", |lose| lose.default_value("0.01")))]
pub struct Plan {
    /// The binary; if not given, it is built beside this one.
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// The number of times the process is killed.
    #[arg(long, default_value_t = 10)]
    pub kills: u32,
    /// The number of checkouts.
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u64).range(1..))]
    pub checkouts: u64,
    /// The faults of the provider.
    #[command(flatten)]
    pub faults: Faults,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The fields of a checkout that are compared: order, amount, and how it ended.
struct Ended {
    order: String,
    amount: i64,
    completed: bool,
}

/// Runs `plan` in a folder of its own; each line of the report goes to `say` as it comes.
pub async fn checkouts(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Verdict, ChaosError> {
    let folder = tempfile::tempdir()?;
    let place = Place::new(&binary(plan.binary.as_deref()).await?, folder.path());
    std::fs::write(folder.path().join("checkouts.ndjson"), lines(plan))?;
    let provider = Provider::start(([127, 0, 0, 1], 0).into(), plan.faults, plan.seed).await?;
    let mut verdict = Verdict::default();
    let watch = Stopwatch::start();
    let mut scene = Scene { plan, place, provider, dice: Dice::seeded(plan.seed ^ 0x6b69_6c6c) };
    scene.run(say, &mut verdict).await?;
    let (calls, seconds) = (scene.provider.calls(), watch.elapsed().as_secs_f64());
    verdict.facts.push(format!("{} checkouts in {seconds:.1} s, {calls} calls at the provider", plan.checkouts));
    judge(&scene, &mut verdict).await?;
    Ok(verdict)
}

/// The input file, with a checkout on each line; some accounts have no money.
fn lines(plan: &Plan) -> String {
    let mut dice = Dice::seeded(plan.seed);
    let mut text = String::new();
    for no in 0..plan.checkouts {
        let account = dice.below(plan.checkouts / 10 + 1);
        let name = if account.is_multiple_of(BROKE_EVERY) { BROKE } else { "account" };
        let amount = 1 + dice.below(10_000);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            r#"{{"id":"c-{no}","command":"start","saga":"s-{no}","order":"o-{no}","account":"{name}-{account}","category":"shop","amount":{amount},"currency":"EUR","at":"2026-01-31"}}"#
        );
    }
    text
}

struct Scene<'a> {
    plan: &'a Plan,
    place: Place,
    provider: Provider,
    dice: Dice,
}

impl Scene<'_> {
    async fn run(&mut self, say: &mut dyn FnMut(&str), verdict: &mut Verdict) -> Result<(), ChaosError> {
        let mut up = self.start().await?;
        let mut import = self
            .place
            .start("import.log", &["import", "--service", "checkouts", "checkouts.ndjson", "--set", MAX_UNREAD])?;
        for no in 1..=self.plan.kills {
            let share = (f64::from(no) - self.dice.unit()) / f64::from(self.plan.kills + 1);
            let wanted = (share * self.plan.checkouts as f64) as u64;
            until("the checkouts do not go on", REST_MAX, async || self.ended().await >= wanted || !up.is_alive())
                .await?;
            let hit = up.kill().await?;
            verdict.expect(hit, || format!("`up` ended by itself: {}", self.place.tail("up.log")));
            say(&format!("kill {no}: {} of {} checkouts had ended", self.ended().await, self.plan.checkouts));
            up = self.start().await?;
        }
        let status = import.ends(REST_MAX).await?;
        verdict.expect(status.success(), || format!("`import` ended with {status}: {}", self.place.tail("import.log")));
        until("checkouts are left open", REST_MAX, async || {
            self.ended().await >= self.plan.checkouts || !up.is_alive()
        })
        .await?;
        up.terminate().await?;
        let status = up.ends(Duration::from_secs(30)).await?;
        verdict.expect(status.success(), || format!("`up` ended with {status}: {}", self.place.tail("up.log")));
        Ok(())
    }

    async fn start(&self) -> Result<Running, ChaosError> {
        let url = format!("app.provider_url={}", self.provider.url());
        let mut args = vec!["up"];
        for setting in ["admin.listen=127.0.0.1:0", MAX_UNREAD, "app.provider_timeout=500ms", &url] {
            args.extend(["--set", setting]);
        }
        let mut up = self.place.start("up.log", &args)?;
        let store = &self.place.url;
        until("`up` neither runs nor ends", REST_MAX, async || SqliteStore::is_running(store) || !up.is_alive())
            .await?;
        Ok(up)
    }

    async fn connect(&self) -> Result<SqliteConnection, sqlx::Error> {
        let path = self.place.folder.join("store.db");
        SqliteConnectOptions::new().filename(path).read_only(true).connect().await
    }

    /// The number of checkouts that have ended; 0 while that cannot be read.
    async fn ended(&self) -> u64 {
        let sql = "SELECT count(*) FROM checkouts WHERE status IN ('completed', 'cancelled')";
        let Ok(mut connection) = self.connect().await else { return 0 };
        sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap_or(0)
    }
}

const MAX_UNREAD: &str = "log.max_unread=4000";

async fn judge(scene: &Scene<'_>, verdict: &mut Verdict) -> Result<(), ChaosError> {
    let failed = |error: sqlx::Error| ChaosError::Stuck(format!("the tables cannot be read: {error}"));
    let mut connection = scene.connect().await.map_err(failed)?;
    let rows = sqlx::query("SELECT order_id, amount, status FROM checkouts").fetch_all(&mut connection).await;
    let sagas: Vec<Ended> = rows
        .map_err(failed)?
        .iter()
        .map(|row| Ended { order: row.get(0), amount: row.get(1), completed: row.get::<&str, _>(2) == "completed" })
        .collect();
    let mut words = async |sql: &str| -> Result<BTreeMap<String, String>, ChaosError> {
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut connection).await.map_err(failed)?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    };
    let orders = words("SELECT id, status FROM orders").await?;
    let payments = words("SELECT order_id, status FROM payments").await?;
    let ledger: BTreeMap<_, _> =
        scene.provider.ledger().into_iter().map(|entry| (entry.order.clone(), entry)).collect();
    let mut wrong = Vec::new();
    for saga in &sagas {
        let (order, payment) = (orders.get(&saga.order), payments.get(&saga.order));
        let entry = ledger.get(&saga.order);
        let (charges, net) = entry.map_or((0, 0), |entry| (entry.charges, entry.charged - entry.refunded));
        let expected =
            if saga.completed { ("completed", Some("charged"), saga.amount) } else { ("cancelled", None, 0) };
        let paid = expected.1.map_or(payment.is_none_or(|status| status != "charged"), |word| {
            payment.is_some_and(|status| status == word)
        });
        if order.map(String::as_str) != Some(expected.0) || !paid || net != expected.2 || charges > 1 {
            let (order, payment) = (order.map_or("-", String::as_str), payment.map_or("-", String::as_str));
            let name = &saga.order;
            wrong.push(format!(
                "{name}: its checkout is {}, the order {order}, the payment {payment}; charged {charges} times, {net} in all",
                expected.0
            ));
        }
    }
    let count = wrong.len();
    verdict.violations.extend(wrong.into_iter().take(TOLD_MAX));
    verdict.expect(count <= TOLD_MAX, || format!("{count} orders are wrong in all"));
    let stray = ledger.values().filter(|entry| entry.charged != entry.refunded).count();
    let completed = sagas.iter().filter(|saga| saga.completed).count();
    verdict
        .expect(stray == completed, || format!("{stray} orders are paid at the provider, {completed} are completed"));
    verdict.expect(sagas.len() as u64 == scene.plan.checkouts, || format!("{} sagas were begun", sagas.len()));
    sums(&mut connection, &sagas, verdict).await.map_err(failed)?;
    let held = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM dead_letters").fetch_one(&mut connection).await;
    let dead = held.map_err(failed)?;
    verdict.expect(dead == 0, || format!("{dead} messages are dead letters"));
    verdict.facts.push(format!("{completed} completed, {} cancelled", sagas.len() - completed));
    Ok(())
}

/// Checks that every table has the same sum.
async fn sums(connection: &mut SqliteConnection, sagas: &[Ended], verdict: &mut Verdict) -> Result<(), sqlx::Error> {
    let expected: i64 = sagas.iter().filter(|saga| saga.completed).map(|saga| saga.amount).sum();
    for (table, sql) in [
        ("payments", "SELECT coalesce(sum(amount), 0) FROM payments WHERE status = 'charged'"),
        ("expenses", "SELECT coalesce(sum(amount), 0) FROM expenses"),
        ("transactions", "SELECT -coalesce(sum(amount), 0) FROM transactions"),
        ("orders", "SELECT coalesce(sum(amount), 0) FROM orders WHERE status = 'completed'"),
    ] {
        let sum: i64 = sqlx::query_scalar(sql).fetch_one(&mut *connection).await?;
        verdict
            .expect(sum == expected, || format!("{table} has {sum} in all, the completed checkouts have {expected}"));
    }
    verdict.facts.push(format!("{expected} in payments, expenses, transactions and orders"));
    Ok(())
}
