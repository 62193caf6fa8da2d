//! A message whose handler ends the process: it becomes a dead letter after as many starts as the settings say, and no
//! other message does. Kills from outside make no message a dead letter.
//! In: the number of messages, whether one is deadly, the number of kills, whether an import brings them. Out: the
//! starts of the deadly one, and whether every other counted once.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, value_parser};
use perkey::unstable::clock::{Dice, Stopwatch};
use perkey::unstable::engine::cache;
use perkey::unstable::engine::calls::{Call, CallAnswer, CallError, Calls};
use perkey::unstable::handler::CallId;
use perkey::unstable::message::shard_of;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::calls::{CallEnd, CallOutcome};
use perkey::unstable::store::lease::Code;
use perkey::unstable::store::query::DeadFilter;
use perkey::unstable::store::sqlite::{Access, SqliteStore};
use perkey::unstable::store::{ServiceKey, Setup, Store};
use perkey::{Draft, Engine, Fault, Handler, Handlers, Key, Message, Settings, StoreError, Turn, sleep};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::engine::append;
use crate::postings::SERVICE;
use crate::process::{Place, Running, binary, until};
use crate::{ChaosError, Verdict};

/// The argument with which `perkey-chaos` runs [`work`].
pub const WORKER: &str = "suspects-worker";
/// The variable that names the worker's folder.
pub const FOLDER: &str = "PERKEY_SUSPECTS_FOLDER";

/// The amount that no process survives, in minor units.
const DEADLY: i64 = 66_666;
/// The number of keys; one in this many is slow.
const KEYS: u64 = 40;
const SLOW_EVERY: u64 = 10;
const SLOW: Duration = Duration::from_millis(60);
const REST_MAX: Duration = Duration::from_secs(300);
/// The time within which an end counts for a message started alone: it ends at once. Starts are spread over 8 s.
const TRIAL: Duration = Duration::from_millis(50);
/// The most starts alone that a busy machine may delay beyond that: they do not count.
const LATE: usize = 2;
/// The file with a line for each start of the deadly message, and the file that says that a worker is up.
const STARTS: &str = "starts";
const READY: &str = "ready";

/// The options of the scenario.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// The program that runs [`work`], with [`FOLDER`] in its environment, and its arguments; this one if none is
    /// named.
    #[arg(skip)]
    pub worker: Option<(PathBuf, Vec<String>)>,
    /// The number of messages.
    #[arg(long, default_value_t = 2_000, value_parser = value_parser!(u64).range(1..))]
    pub messages: u64,
    /// Makes one of them deadly.
    #[arg(long, action = ArgAction::Set, default_value = "yes", value_parser = yes_or_no())]
    pub deadly: bool,
    /// Lets the binary import the messages into the running worker; otherwise they are in its log from the start.
    #[arg(long, action = ArgAction::Set, default_value = "no", value_parser = yes_or_no())]
    pub import: bool,
    /// Makes the deadly one a call, whose sender asks until it is answered.
    #[arg(long, action = ArgAction::Set, default_value = "no", value_parser = yes_or_no())]
    pub call: bool,
    /// The number of kills from outside.
    #[arg(long, default_value_t = 0)]
    pub kills: u32,
    /// The binary; if not given, it is built beside this one.
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

fn yes_or_no() -> impl TypedValueParser<Value = bool> {
    PossibleValuesParser::new(["yes", "no"]).map(|word| word == "yes")
}

struct Fragile {
    folder: PathBuf,
}

#[derive(Deserialize)]
struct Posting {
    account: String,
    amount: i64,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Count {
    n: u64,
}

impl Handler for Fragile {
    const SERVICE: &'static str = SERVICE;
    type Message = Posting;
    type State = Count;

    fn key(&self, posting: &Posting) -> Key {
        posting.account.as_str().into()
    }

    async fn handle(&self, count: &mut Count, posting: Posting, turn: &mut Turn) -> Result<(), Fault> {
        if posting.amount == DEADLY {
            let mut starts = OpenOptions::new().create(true).append(true).open(self.folder.join(STARTS))?;
            writeln!(starts, "{}", turn.id())?;
            std::process::abort();
        }
        if posting.amount.unsigned_abs().is_multiple_of(SLOW_EVERY) {
            sleep(SLOW).await;
        }
        count.n += 1;
        Ok(())
    }
}

/// Runs a worker in the folder that the environment names; returns at once if it names none. It ends when it is killed.
pub async fn work() -> Result<(), ChaosError> {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return Ok(()) };
    let store = Arc::new(SqliteStore::open(&url(&folder), Access::Run).await?);
    let handlers = Handlers::new().with(Fragile { folder: folder.clone() });
    let mut settings = Settings::default();
    settings.suspects.trial = TRIAL;
    let engine = Engine::start(&settings, handlers, store, Metrics::new()).await?;
    std::fs::write(folder.join(READY), std::process::id().to_string())?;
    Err(ChaosError::Stuck(engine.failed().await))
}

/// Runs `plan`.
pub async fn suspects(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Verdict, ChaosError> {
    let folder = tempfile::tempdir()?;
    let mut scene = Scene { plan, folder: folder.path(), worker: None, dice: Dice::seeded(plan.seed) };
    let mut import = scene.bring().await?;
    let mut sender = JoinSet::new();
    if plan.call {
        sender.spawn(ask(folder.path().to_owned()));
    }
    let (mut lives, mut kills, watch) = (1, 0, Stopwatch::start());
    loop {
        let life = Duration::from_millis(150 + scene.dice.below(700));
        let ended = scene.live((kills < plan.kills).then_some(life)).await?;
        match ended {
            Some(Ended::Killed) => kills += 1,
            Some(Ended::ByItself) => {}
            None => break,
        }
        lives += 1;
        if watch.elapsed() > REST_MAX {
            return Err(ChaosError::Stuck(format!("messages were left after {REST_MAX:?}")));
        }
    }
    if let Some(import) = &mut import {
        let status = import.wait().await?;
        if !status.success() {
            return Err(ChaosError::Stuck(format!("the import ended with {status}")));
        }
    }
    say(&format!("{lives} lives, {kills} kills from outside, {:.1} s", watch.elapsed().as_secs_f64()));
    let mut verdict = Verdict::default();
    if let Some(told) = sender.join_next().await {
        let told = told.map_err(|error| ChaosError::Stuck(error.to_string()))??;
        let reason = String::from_utf8_lossy(&told.body);
        verdict.facts.push(format!("its sender was told: {reason}"));
        let stored = told.end == CallEnd::Failed && reason.contains("suspects.starts");
        verdict.expect(stored, || format!("its sender was told {told:?}"));
    }
    drop(scene.worker.take());
    scene.judge(verdict).await
}

/// The sender of the deadly call: asks until it is told the outcome.
async fn ask(folder: PathBuf) -> Result<CallOutcome, ChaosError> {
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&url(&folder), Access::Tool).await?);
    let (settings, metrics) = (Settings::default(), Metrics::new());
    let cache = cache::open(&settings, &[0; 32], &metrics).map_err(|error| ChaosError::Stuck(error.to_string()))?;
    let handlers = Handlers::new().with(Fragile { folder });
    let calls = Calls::new(&settings, handlers, store, cache, metrics);
    let payload = serde_json::json!({ "account": account(1), "amount": DEADLY }).to_string().into_bytes();
    let call = Call {
        id: CallId([7; 16]),
        fingerprint: [7; 32],
        tenant: "default".to_owned(),
        service: SERVICE,
        payload,
        headers: Vec::new(),
    };
    loop {
        match calls.call(call.clone(), Duration::from_secs(1)).await {
            Ok(CallAnswer::New(outcome) | CallAnswer::Replay(outcome)) => return Ok(outcome),
            Ok(CallAnswer::InFlight) | Err(CallError::Store(StoreError::Unavailable(_))) => sleep(SLOW).await,
            other => return Err(ChaosError::Stuck(format!("the call was answered {other:?}"))),
        }
    }
}

enum Ended {
    Killed,
    ByItself,
}

struct Scene<'a> {
    plan: &'a Plan,
    folder: &'a Path,
    worker: Option<Child>,
    dice: Dice,
}

impl Scene<'_> {
    /// Puts the messages in the log, or starts an import beside a running worker.
    async fn bring(&mut self) -> Result<Option<Child>, ChaosError> {
        if !self.plan.import {
            let store = SqliteStore::open(&url(self.folder), Access::Run).await?;
            let (shards, services) = (Settings::default().ownership.shards, vec![SERVICE.into()]);
            store.prepare(Setup { shards, services, tables: Vec::new(), code: Code::numbered(1) }).await?;
            let called = |no: &u64| self.plan.call && self.is_deadly(*no);
            let messages = (0..self.plan.messages).filter(|no| !called(no)).map(|no| self.message(no));
            let messages = messages.collect::<Result<Vec<_>, _>>()?;
            append(&store, shards, &messages).await?;
            store.close().await;
            return Ok(None);
        }
        // Before the worker starts: the binary may have to be built.
        let binary = binary(self.plan.binary.as_deref()).await?;
        let lines = (0..self.plan.messages).map(|no| {
            let amount = self.amount(no);
            format!("m-{no},{},{}.{:02},EUR,2026-01-31,\n", account(no), amount / 100, amount % 100)
        });
        let file = self.folder.join("messages.csv");
        std::fs::write(&file, format!("id,account,amount,currency,at,memo\n{}", lines.collect::<String>()))?;
        self.start().await?;
        let place = Place::new(&binary, self.folder);
        let Running { child, .. } = place.start("import.log", &["import", "--service", SERVICE, "messages.csv"])?;
        Ok(Some(child))
    }

    fn message(&self, no: u64) -> Result<Message, ChaosError> {
        let (id, key) = (format!("m-{no}"), account(no));
        let payload = serde_json::json!({ "account": key, "amount": self.amount(no) }).to_string();
        let draft = Draft { id: &id, key: &key, kind: "posting", payload: payload.as_bytes(), ..Draft::default() };
        Ok(draft.build()?)
    }

    fn is_deadly(&self, no: u64) -> bool {
        self.plan.deadly && no == self.plan.messages / 2
    }

    /// The amount of a message; the deadly one is in the middle.
    fn amount(&self, no: u64) -> i64 {
        if self.is_deadly(no) { DEADLY } else { (no % KEYS + 1).cast_signed() }
    }

    async fn start(&mut self) -> Result<(), ChaosError> {
        let ready = self.folder.join(READY);
        std::fs::remove_file(&ready).ok();
        let own = || Ok::<_, ChaosError>((std::env::current_exe()?, vec![WORKER.to_owned()]));
        let (program, args) = self.plan.worker.clone().map_or_else(own, Ok)?;
        let log = OpenOptions::new().create(true).append(true).open(self.folder.join("worker.log"))?;
        let mut command = Command::new(program);
        command.args(args).env(FOLDER, self.folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.worker = Some(command.kill_on_drop(true).spawn()?);
        // The worker may die before it says that it is up.
        let worker = &mut self.worker;
        let up = async || ready.exists() || worker.as_mut().is_none_or(|worker| !matches!(worker.try_wait(), Ok(None)));
        until("the worker did not start", Duration::from_secs(30), up).await
    }

    /// Runs one life of a worker: until it ends, is killed after `life`, or nothing is left to do.
    async fn live(&mut self, life: Option<Duration>) -> Result<Option<Ended>, ChaosError> {
        if self.worker.is_none() {
            self.start().await?;
        }
        let watch = Stopwatch::start();
        loop {
            let Some(worker) = self.worker.as_mut() else { return Ok(Some(Ended::ByItself)) };
            if worker.try_wait()?.is_some() {
                self.worker = None;
                return Ok(Some(Ended::ByItself));
            }
            if life.is_some_and(|life| watch.elapsed() >= life) {
                worker.kill().await?;
                self.worker = None;
                return Ok(Some(Ended::Killed));
            }
            if life.is_none() && self.is_done().await? {
                return Ok(None);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn is_done(&self) -> Result<bool, ChaosError> {
        let store = SqliteStore::open(&url(self.folder), Access::Tool).await?;
        let rows = store.queries().shards().await?;
        let taken: u64 = rows.iter().filter_map(|row| row.counters.get("taken")).sum();
        Ok(taken >= self.plan.messages && rows.iter().all(|row| row.unread + row.pending == 0))
    }

    async fn judge(&self, mut verdict: Verdict) -> Result<Verdict, ChaosError> {
        let plan = self.plan;
        let starts = std::fs::read_to_string(self.folder.join(STARTS)).unwrap_or_default().lines().count();
        let wanted = if plan.deadly { Settings::default().suspects.starts as usize } else { 0 };
        verdict.facts.push(format!("the deadly message was started {starts} times"));
        if plan.kills == 0 {
            let most = if wanted > 0 { wanted + LATE } else { 0 };
            let right = (wanted..=most).contains(&starts);
            verdict.expect(right, || format!("it was started {starts} times, not {wanted}"));
        }
        let store = SqliteStore::open(&url(self.folder), Access::Tool).await?;
        let shards = Settings::default().ownership.shards;
        let mut dead = Vec::new();
        for shard in 0..shards {
            let letters = store.dead(shard, DeadFilter::default(), None, 100).await?;
            dead.extend(letters.into_iter().map(|letter| format!("{}: {}", letter.message.id(), letter.error)));
        }
        // A call's message has an id of its own; it is recognised by the reason of its dead letter.
        let deadly = if plan.call { String::new() } else { format!("m-{}: ", plan.messages / 2) };
        let right = dead.len() == usize::from(plan.deadly) && dead.iter().all(|letter| letter.starts_with(&deadly));
        verdict.expect(right, || format!("dead letters: {dead:?}"));
        for key in 0..KEYS {
            let of = ServiceKey { service: SERVICE.into(), key: account(key).into() };
            let row = store.load(shard_of(&of.key, shards), vec![of]).await?.pop().unwrap_or_default();
            let n = row.state.and_then(|(_, json)| serde_json::from_slice::<Count>(&json).ok()).unwrap_or_default().n;
            let given = (0..plan.messages).filter(|no| no % KEYS == key && self.amount(*no) != DEADLY).count() as u64;
            verdict.expect(n == given, || format!("{} counted {n} times, not {given}", account(key)));
        }
        Ok(verdict)
    }
}

fn account(no: u64) -> String {
    format!("acct-{}", no % KEYS)
}

fn url(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("store.db").display())
}
