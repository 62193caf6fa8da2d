//! Clients that ask again and again, several for each operation, at gateways that are killed and cut off from them.
//! In: numbers of operations and of kills, the share of answers that are lost. Out: whether each operation took effect
//! once, as seen by its clients and in the database.

mod clients;
mod judge;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, value_parser};
use perkey::sleep;
use perkey::unstable::clock::{Dice, Stopwatch};

use self::clients::{Clients, Given};
use crate::fleet::faults::On;
use crate::fleet::servers::Servers;
use crate::fleet::{change, in_database};
use crate::process::{Place, Running, binary, until};
use crate::proxy::{Mode, Proxy};
use crate::{ChaosError, Verdict};

/// All operations are answered within this time after the last kill.
const REST_MAX: Duration = Duration::from_secs(300);
/// The time for which a line stays cut.
const CUT_FOR: Duration = Duration::from_millis(150);
/// `ownership.lease_ttl` of a fleet's workers.
const TTL: &str = "ownership.lease_ttl=2s";

/// The store that holds the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// One process on a SQLite file.
    Sqlite,
    /// Two workers on a PostgreSQL database.
    Postgres,
}

/// The options of the scenario.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// The binary; if not given, it is built beside this one.
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// The store that holds the calls.
    #[arg(long = "on", value_enum, default_value_t = StoreKind::Sqlite)]
    pub store: StoreKind,
    /// Operations, each with its own key.
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u64).range(1..))]
    pub operations: u64,
    /// The number of times a process is killed.
    #[arg(long, default_value_t = 10)]
    pub kills: u32,
    /// The share of requests whose client leaves before it is answered.
    #[arg(long, default_value_t = 0.3)]
    pub cut: f64,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Runs `plan`; each line of the report goes to `say` as it comes.
pub async fn calls(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Verdict, ChaosError> {
    let folder = tempfile::tempdir()?;
    let mut place = Place::new(&binary(plan.binary.as_deref()).await?, folder.path());
    let mut database = None;
    if plan.store == StoreKind::Postgres {
        let server = Servers::running(On::Postgres)?.postgres;
        let name = format!("perkey_test_calls_{:08x}", Dice::from_system().below(1 << 32));
        change(&server, &format!("CREATE DATABASE {name}")).await?;
        place.url = in_database(&server, &name);
        database = Some((server, name));
    }
    let verdict = Scene::start(plan, place).await?.play(say).await?;
    if let Some((server, name)) = database.filter(|_| verdict.violations.is_empty()) {
        change(&server, &format!("DROP DATABASE {name} WITH (FORCE)")).await?;
    }
    Ok(verdict)
}

/// A process with a gateway, and the proxy in front of it.
struct Gate {
    name: String,
    listen: String,
    line: Proxy,
    running: Option<Running>,
}

struct Scene<'a> {
    plan: &'a Plan,
    place: Place,
    gates: Vec<Gate>,
    dice: Dice,
}

impl<'a> Scene<'a> {
    async fn start(plan: &'a Plan, place: Place) -> Result<Self, ChaosError> {
        let count = if plan.store == StoreKind::Sqlite { 1 } else { 2 };
        let mut gates = Vec::new();
        for no in 0..count {
            // The port is free now; the process takes it before another one can.
            let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
            let line = Proxy::start("127.0.0.1:0", &listen).await?;
            gates.push(Gate { name: format!("w{no}"), listen, line, running: None });
        }
        let mut scene = Self { plan, place, gates, dice: Dice::seeded(plan.seed ^ 0x63_616c_6c73) };
        for at in 0..scene.gates.len() {
            scene.run(at)?;
        }
        for gate in &mut scene.gates {
            let listen = gate.listen.clone();
            let up = async || tokio::net::TcpStream::connect(&listen).await.is_ok() || !is_alive(&mut gate.running);
            until("the gateway does not listen", REST_MAX, up).await?;
        }
        Ok(scene)
    }

    /// Starts the process of a gate, unless it runs.
    fn run(&mut self, at: usize) -> Result<(), ChaosError> {
        let gate = &mut self.gates[at];
        if is_alive(&mut gate.running) {
            return Ok(());
        }
        let (listen, worker) = (format!("gateway.listen={}", gate.listen), format!("ownership.worker={}", gate.name));
        let mut args = vec![if self.plan.store == StoreKind::Sqlite { "up" } else { "worker" }];
        let settings = ["admin.listen=127.0.0.1:0", "gateway.grpc_listen=127.0.0.1:0", &listen];
        settings.iter().for_each(|setting| args.extend(["--set", setting]));
        if self.plan.store == StoreKind::Postgres {
            args.extend(["--set", &worker, "--set", TTL, "--set", "ownership.heartbeat=200ms"]);
            args.extend(["--set", "store.statement_timeout=1s"]);
        }
        gate.running = Some(self.place.start(&format!("{}.log", gate.name), &args)?);
        Ok(())
    }

    async fn play(mut self, say: &mut dyn FnMut(&str)) -> Result<Verdict, ChaosError> {
        let watch = Stopwatch::start();
        let mut verdict = Verdict::default();
        let given = Given::new(self.plan.seed, self.plan.operations);
        let urls = self.gates.iter().map(|gate| format!("http://{}", gate.line.address())).collect();
        let clients = Clients::start(&given, urls, self.plan.cut, self.plan.seed)?;
        for no in 1..=self.plan.kills {
            // The kills are spread over the operations: none comes after the last one.
            let share = self.plan.operations * u64::from(no) / u64::from(self.plan.kills + 1);
            until("no operation is answered any more", REST_MAX, async || clients.answered() >= share).await?;
            sleep(Duration::from_millis(self.dice.below(80))).await;
            let killed = self.strike().await?;
            say(&format!("{no}: {killed}; {} of {} answered", clients.answered(), self.plan.operations));
        }
        let all = async || clients.answered() >= self.plan.operations;
        let rested = until("not all operations were answered", REST_MAX, all).await;
        let seen = clients.finish().await;
        rested.map_err(|error| ChaosError::Stuck(format!("{error}: {}", self.place.tail("w0.log"))))?;
        verdict.facts.push(format!(
            "{} requests for {} operations, {} left before their answer, {:.1} s in all",
            seen.requests,
            self.plan.operations,
            seen.left,
            watch.elapsed().as_secs_f64()
        ));
        let url = format!("http://{}", self.gates[0].line.address());
        judge::answers(&given, &seen, &mut verdict);
        judge::pages(&url, &given, &mut verdict).await?;
        self.leave(&mut verdict).await?;
        judge::database(&self.place.url, &given, &mut verdict).await?;
        Ok(verdict)
    }

    /// Cuts a line, kills a process, or both; a killed process is started again at once.
    async fn strike(&mut self) -> Result<String, ChaosError> {
        let at = usize::try_from(self.dice.below(self.gates.len() as u64)).unwrap_or(0);
        let cut = self.dice.unit() < 0.5;
        if cut {
            self.gates[at].line.set(Mode::Cut);
            sleep(CUT_FOR).await;
        }
        let gate = &mut self.gates[at];
        let pid = gate.running.as_ref().map_or(0, |running| running.pid);
        if let Some(running) = &mut gate.running {
            running.kill().await?;
        }
        gate.line.set(Mode::Pass);
        self.run(at)?;
        Ok(format!("killed {pid}{}", if cut { ", its line cut before" } else { "" }))
    }

    /// Lets all processes leave in order.
    async fn leave(&mut self, verdict: &mut Verdict) -> Result<(), ChaosError> {
        for gate in &mut self.gates {
            let Some(running) = &mut gate.running else { continue };
            running.terminate().await?;
            let status = running.ends(Duration::from_secs(30)).await?;
            let log = format!("{}.log", gate.name);
            verdict
                .expect(status.code() == Some(0), || format!("a drain ended with {status}: {}", self.place.tail(&log)));
        }
        Ok(())
    }
}

fn is_alive(running: &mut Option<Running>) -> bool {
    running.as_mut().is_some_and(Running::is_alive)
}
