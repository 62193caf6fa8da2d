//! The binary `perkey-chaos`: runs one scenario.
//! In: its name, a seed, its size. Out: what happened, the verdict, the command that runs it again; 1 on a violation.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use perkey::metrics::Child;
use perkey_chaos::fleet::faults::{On, Scenario};
use perkey_chaos::provider::{Faults, Provider};
use perkey_chaos::{
    ChaosError, Verdict, calls, checkouts, children, fleet, flood, kill, neighbours, process, suspects, timers,
};

const USAGE: &str = "\
usage: perkey-chaos kill [--mode import|up] [--binary PATH] [--kills 50] [--lines 100000] [--accounts 5000] [--seed 1]
       perkey-chaos children [--times 100] [--child key_actor|ingress|committer|shard|all] [--seed 1]
       perkey-chaos checkouts [--checkouts 10000] [--kills 10] [--fail 0.1] [--hang 0.01] [--lose 0.01] [--binary PATH] [--seed 1]
       perkey-chaos calls [--on sqlite|postgres] [--operations 1000] [--kills 10] [--cut 0.3] [--binary PATH] [--seed 1]
       perkey-chaos suspects [--messages 2000] [--deadly yes|no] [--kills 0] [--import yes|no] [--call yes|no] [--binary PATH] [--seed 1]
       perkey-chaos neighbours --of slow|away [--seconds 60] [--rate 500]
       perkey-chaos timers [--timers 100000] [--seconds 60] [--restarts 3]
       perkey-chaos provider [--listen 127.0.0.1:8090] [--fail 0] [--hang 0] [--lose 0] [--seed 1]
       perkey-chaos flood [--seconds 60] [--seed 1]
       perkey-chaos fleet --scenario kill|freeze|rolling|kafka|rabbitmq|postgres|cut|answer_lost|away|held|all [--binary PATH]
                    [--on kafka|rabbitmq|postgres] [--workers 3] [--rate 2000] [--seconds 60] [--away 60] [--ttl 3] [--accounts 5000] [--seed 1]";

/// Messages a second that a fleet gets.
const RATE: u64 = 2_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return told(&format!("cannot start: {error}"), 1),
    };
    match runtime.block_on(run(&args)) {
        Ok(Some(verdict)) => report(&args, &verdict),
        Ok(None) => told(USAGE, 64),
        Err(error) => told(&format!("the scenario did not run to its end: {error}"), 1),
    }
}

/// Runs what `args` name; nothing when they make no sense.
async fn run(args: &[String]) -> Result<Option<Verdict>, ChaosError> {
    let Some((scenario, options)) = args.split_first() else { return Ok(None) };
    let Some(options) = Options::parse(options) else { return Ok(None) };
    let Options { seed, times, .. } = options;
    match scenario.as_str() {
        "kill" => {
            let binary = binary(&options)?;
            let Options { mode, kills, lines, accounts, .. } = options;
            let plan = kill::Plan { binary, mode, kills: kills.unwrap_or(50), lines, accounts, seed };
            kill::kill(&plan, &mut say).await.map(Some)
        }
        "children" => {
            let plan = children::Plan { children: options.children, times, seed };
            children::children(&plan, &mut say).await.map(Some)
        }
        "checkouts" => {
            let binary = binary(&options)?;
            let Options { checkouts, faults, .. } = options;
            let faults = faults.unwrap_or(Faults { fail: 0.1, hang: 0.01, lose: 0.01, ..Faults::default() });
            let plan = checkouts::Plan { binary, kills: options.kills.unwrap_or(10), checkouts, faults, seed };
            checkouts::checkouts(&plan, &mut say).await.map(Some)
        }
        "calls" => {
            let binary = binary(&options)?;
            let Options { store, operations, cut, .. } = options;
            let kills = options.kills.unwrap_or(10);
            let plan = calls::Plan { binary, store, operations, kills, cut, seed };
            calls::calls(&plan, &mut say).await.map(Some)
        }
        "suspects" => {
            let importer = options.import.then(|| binary(&options)).transpose()?;
            let worker = (std::env::current_exe()?, vec!["suspects-worker".to_owned()]);
            let Options { messages, deadly, call, kills, .. } = options;
            let kills = kills.unwrap_or(0);
            let plan = suspects::Plan { worker, importer, messages, deadly, call, kills, seed };
            suspects::suspects(&plan, &mut say).await.map(Some)
        }
        "neighbours" => {
            let Some(what) = options.of else { return Ok(None) };
            let rate = if options.rate == RATE { 500 } else { options.rate };
            let plan = neighbours::Plan { what, seconds: options.seconds, rate };
            neighbours::neighbours(&plan, &mut say).await.map(Some)
        }
        "suspects-worker" => suspects::work().await.map(|()| None),
        "timers" => {
            let plan = timers::Plan { timers: options.timers, seconds: options.seconds, restarts: options.restarts };
            timers::timers(&plan, &mut say).await.map(Some)
        }
        "provider" => {
            let provider = Provider::start(options.listen, options.faults.unwrap_or_default(), seed).await?;
            say(&format!("provider at {}", provider.url()));
            provider.ended().await;
            Ok(None)
        }
        "flood" => flood::flood(&flood::Plan { seconds: options.seconds, seed }).await.map(Some),
        "fleet" => {
            let Some(scenario) = options.scenario else { return Ok(None) };
            let Options { on, workers, rate, seconds, accounts, .. } = options;
            let [away, ttl] = [options.away, options.ttl].map(Duration::from_secs);
            let binary = binary(&options)?;
            let plan = fleet::Plan { binary, scenario, on, workers, rate, seconds, away, ttl, accounts, seed };
            fleet::fleet(&plan, &mut say).await.map(Some)
        }
        _ => Ok(None),
    }
}

fn binary(options: &Options) -> Result<PathBuf, ChaosError> {
    match &options.binary {
        Some(path) => Ok(path.canonicalize()?),
        None => process::built(),
    }
}

struct Options {
    mode: kill::Mode,
    binary: Option<PathBuf>,
    kills: Option<u32>,
    checkouts: u64,
    timers: u64,
    messages: u64,
    deadly: bool,
    import: bool,
    call: bool,
    restarts: u32,
    faults: Option<Faults>,
    listen: SocketAddr,
    lines: usize,
    accounts: u64,
    seed: u64,
    times: u32,
    children: Vec<Child>,
    seconds: u64,
    scenario: Option<Scenario>,
    on: On,
    store: calls::StoreKind,
    operations: u64,
    cut: f64,
    workers: usize,
    rate: u64,
    of: Option<neighbours::What>,
    away: u64,
    ttl: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: kill::Mode::Import,
            binary: None,
            kills: None,
            checkouts: 10_000,
            timers: 100_000,
            messages: 2_000,
            deadly: true,
            import: false,
            call: false,
            restarts: 3,
            faults: None,
            listen: ([127, 0, 0, 1], 8_090).into(),
            lines: 100_000,
            accounts: 5_000,
            seed: 1,
            times: 100,
            children: Child::ALL.to_vec(),
            seconds: 60,
            scenario: None,
            on: On::Kafka,
            store: calls::StoreKind::Sqlite,
            operations: 1_000,
            cut: 0.3,
            workers: 3,
            rate: RATE,
            of: None,
            away: 60,
            ttl: 3,
        }
    }
}

impl Options {
    fn parse(args: &[String]) -> Option<Self> {
        let mut options = Self::default();
        for pair in args.chunks(2) {
            let [name, value] = pair else { return None };
            options.take(name, value)?;
        }
        Some(options)
    }

    fn take(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "--mode" if value == "import" => self.mode = kill::Mode::Import,
            "--mode" if value == "up" => self.mode = kill::Mode::Up,
            "--binary" => self.binary = Some(value.into()),
            "--kills" => self.kills = Some(value.parse().ok()?),
            "--checkouts" => self.checkouts = value.parse().ok().filter(|checkouts| *checkouts > 0)?,
            "--timers" => self.timers = value.parse().ok().filter(|timers| *timers > 0)?,
            "--of" if value == "slow" => self.of = Some(neighbours::What::Slow),
            "--of" if value == "away" => self.of = Some(neighbours::What::Away),
            "--messages" => self.messages = value.parse().ok().filter(|messages| *messages > 0)?,
            "--deadly" => self.deadly = yes(value)?,
            "--call" => self.call = yes(value)?,
            "--import" => self.import = yes(value)?,
            "--restarts" => self.restarts = value.parse().ok()?,
            "--listen" => self.listen = value.parse().ok()?,
            "--fail" => self.faults.get_or_insert_default().fail = value.parse().ok()?,
            "--hang" => self.faults.get_or_insert_default().hang = value.parse().ok()?,
            "--lose" => self.faults.get_or_insert_default().lose = value.parse().ok()?,
            "--lines" => self.lines = value.parse().ok()?,
            "--accounts" => self.accounts = value.parse().ok()?,
            "--seed" => self.seed = value.parse().ok()?,
            "--times" => self.times = value.parse().ok()?,
            "--scenario" => self.scenario = Some(Scenario::named(value)?),
            "--on" if value == "kafka" => self.on = On::Kafka,
            "--on" if value == "rabbitmq" => self.on = On::Rabbitmq,
            "--on" if value == "postgres" => {
                (self.on, self.store) = (On::Postgres, calls::StoreKind::Postgres);
            }
            "--on" if value == "sqlite" => self.store = calls::StoreKind::Sqlite,
            "--operations" => self.operations = value.parse().ok().filter(|operations| *operations > 0)?,
            "--cut" => self.cut = value.parse().ok()?,
            "--workers" => self.workers = value.parse().ok().filter(|workers| *workers > 0)?,
            "--rate" => self.rate = value.parse().ok()?,
            "--away" => self.away = value.parse().ok()?,
            "--ttl" => self.ttl = value.parse().ok().filter(|ttl| *ttl > 0)?,
            "--seconds" => self.seconds = value.parse().ok()?,
            "--child" if value == "all" => self.children = Child::ALL.to_vec(),
            "--child" => self.children = vec![*Child::ALL.iter().find(|child| child.as_str() == value)?],
            _ => return None,
        }
        Some(())
    }
}

fn yes(value: &str) -> Option<bool> {
    match value {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

fn report(args: &[String], verdict: &Verdict) -> ExitCode {
    let Verdict { facts, violations } = verdict;
    facts.iter().for_each(|fact| say(fact));
    violations.iter().for_each(|violation| say(&format!("VIOLATION {violation}")));
    say(if violations.is_empty() { "verdict: everything holds" } else { "verdict: it does not hold" });
    let seed = if args.iter().any(|arg| arg == "--seed") { "" } else { " --seed 1" };
    say(&format!("again: perkey-chaos {}{seed}", args.join(" ")));
    ExitCode::from(u8::from(!violations.is_empty()))
}

fn say(line: &str) {
    // A pipe that was closed is no reason to end.
    writeln!(std::io::stdout(), "{line}").ok();
}

fn told(text: &str, code: u8) -> ExitCode {
    writeln!(std::io::stderr(), "{text}").ok();
    ExitCode::from(code)
}
