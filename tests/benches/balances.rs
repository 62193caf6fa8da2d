//! Messages per second of `balances` on SQLite: the whole pipeline beside straight-line loops that do the same job.
//! In: `--messages N --rounds N --only pipeline|loop|single --keys N`. Out: a line per round, medians and ratios.
//!
//! The job is the ledger workload: Zipf(1.05) over 20,000 accounts, about 200 bytes a message, 5 % repeated within the
//! next thousand. All three read the same rows of the log and write with `synchronous=FULL`. `loop` is (a): no actors,
//! a row per message for inbox and outbox, bulk statements, one transaction per 1,000 messages. `single` is (b): one
//! transaction per message.

mod straight;
mod workload;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use budget_actors::Balances;
use perkey::metrics::Metrics;
use perkey::settings::Settings;
use perkey::store::sqlite::{Access, SqliteStore};
use perkey::store::{Setup, Store};
use perkey::{Engine, Handlers};

struct Options {
    messages: usize,
    rounds: usize,
    keys: usize,
    only: Option<String>,
}

fn options() -> Options {
    let mut options = Options { messages: 200_000, rounds: 3, keys: 20_000, only: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|value| value.parse().ok()).expect("a number follows");
        match arg.as_str() {
            "--messages" => options.messages = number(),
            "--rounds" => options.rounds = number(),
            "--keys" => options.keys = number(),
            "--only" => options.only = args.next(),
            _ => {}
        }
    }
    options
}

fn main() {
    let options = options();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let workload = workload::Workload::new(options.messages, options.keys, 1);
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    let mut rates: [Vec<f64>; 3] = Default::default();
    for round in 0..options.rounds {
        for (at, name) in ["pipeline", "loop", "single"].into_iter().enumerate().filter(|(_, name)| wanted(name)) {
            let few = workload::Workload::new(options.messages.min(10_000), options.keys, 1);
            let load = if name == "single" { &few } else { &workload };
            let dir = tempfile::tempdir().expect("a scratch directory");
            let path = dir.path().join("bench.db");
            runtime.block_on(fill(&path, load));
            let (took, cpu) = runtime.block_on(async {
                let cpu = cpu_seconds();
                let took = match name {
                    "pipeline" => pipeline(&path, load).await,
                    "loop" => straight::run(&path, load, 1_000).await,
                    _ => straight::run(&path, load, 1).await,
                };
                (took, cpu_seconds() - cpu)
            });
            let rate = load.messages.len() as f64 / took.as_secs_f64();
            let micros = cpu * 1e6 / load.messages.len() as f64;
            println!(
                "round {round}: {name:8} {rate:>9.0} messages/s, {micros:>6.2} CPU-µs a message, RSS {} MiB",
                rss()
            );
            rates[at].push(rate);
        }
    }
    let medians = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied()
    });
    if let [Some(pipeline), a, b] = medians {
        let ratio = |other: Option<f64>| other.map_or("-".to_owned(), |other| format!("{:.2}", pipeline / other));
        println!("median: pipeline {pipeline:.0} messages/s = {} x (a) loop = {} x (b) single", ratio(a), ratio(b));
    }
}

async fn fill(path: &Path, workload: &workload::Workload) {
    let store = open(path).await;
    let setup = Setup { shards: 8, services: vec!["balances".into()], tables: Vec::new() };
    store.prepare(setup).await.expect("a fresh store");
    workload.append(&*store, 8).await;
}

async fn open(path: &Path) -> Arc<SqliteStore> {
    let url = format!("sqlite://{}", path.display());
    Arc::new(SqliteStore::open(&url, Access::Run).await.expect("a store"))
}

async fn pipeline(path: &Path, workload: &workload::Workload) -> Duration {
    let store = open(path).await;
    let metrics = Metrics::new();
    let start = Instant::now();
    let handlers = Handlers::new().with(Balances);
    let engine = Engine::start(&Settings::default(), handlers, store.clone(), metrics).await.expect("an engine");
    engine.idle().await;
    let took = start.elapsed();
    let rows = store.queries().shards().await.expect("rows");
    let taken: u64 = rows.iter().map(|row| row.counters["taken"]).sum();
    assert_eq!(taken, workload.unique, "each message counts once");
    engine.drain().await.expect("a drain");
    took
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1_024
}
