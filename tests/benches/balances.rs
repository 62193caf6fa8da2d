//! Messages per second of `balances` on SQLite: the whole pipeline beside straight-line loops that do the same job.
//! In: `--messages N --rounds N --keys N --only pipeline|loop|single`, and for the pipeline `--credits N --turns N
//! --resident N`. Out: a line per round, medians and ratios.
//!
//! The job is the ledger workload: Zipf(1.05) over 20,000 accounts, about 200 bytes a message, 5 % repeated within the
//! next thousand. All three read the same rows of the log and write with `synchronous=FULL`. `loop` is (a): no actors,
//! a row per message for inbox and outbox, bulk statements, one transaction per 1,000 messages. `single` is (b): one
//! transaction per message.

use std::path::Path;
use std::time::Duration;

use budget_actors::Balances;
use perkey::unstable::clock::Stopwatch;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::Store;
use perkey::{Engine, Handlers, Settings};
use tokio::runtime::Runtime;

use super::workload::Workload;
use super::{Options, meter, open, prepared, straight};

/// Messages of a round of one transaction each.
const SINGLES: usize = 5_000;

/// The pipeline, (a) and (b).
const NAMES: [&str; 3] = ["pipeline", "loop", "single"];

#[derive(Default)]
struct Figures {
    rates: Vec<f64>,
    micros: Vec<f64>,
}

pub(crate) fn run(runtime: &Runtime, options: &Options) {
    let (messages, keys) = (options.number("--messages", 200_000), options.number("--keys", 20_000));
    let whole = Workload::new(messages, keys, 1);
    let few = Workload::new(messages.min(SINGLES), keys, 1);
    let settings = settings(options);
    let mut figures: [Figures; 3] = Default::default();
    for round in 0..options.number("--rounds", 5) {
        for (figures, name) in figures.iter_mut().zip(NAMES) {
            if options.text("--only").is_some_and(|only| only != name) {
                continue;
            }
            let load = if name == "single" { &few } else { &whole };
            let (rate, micros) = runtime.block_on(once(name, load, &settings));
            let (rss, _) = meter::memory();
            println!(
                "round {round}: {name:8} {rate:>9.0} messages/s, {micros:>6.2} CPU-µs a message, RSS {rss:.0} MiB"
            );
            figures.rates.push(rate);
            figures.micros.push(micros);
        }
    }
    let [pipeline, ..] = &figures;
    for (name, figures) in NAMES.iter().zip(&figures).filter(|(_, figures)| !figures.rates.is_empty()) {
        let (rate, micros) = (meter::median(&figures.rates), meter::median(&figures.micros));
        // Round by round: whatever else the machine did then, it did to both.
        let ratios: Vec<_> = pipeline.rates.iter().zip(&figures.rates).map(|(ours, theirs)| ours / theirs).collect();
        let ratio = meter::median(&ratios);
        println!("median: {name:8} {rate:>9.0} messages/s, {micros:>6.2} CPU-µs; the pipeline is {ratio:.2} x this");
    }
}

fn settings(options: &Options) -> Settings {
    let mut settings = Settings::default();
    settings.ingress.credits = options.number("--credits", settings.ingress.credits);
    settings.commit.turns_max = options.number("--turns", settings.commit.turns_max);
    settings.actors.resident_max = options.number("--resident", settings.actors.resident_max);
    settings
}

async fn once(name: &str, load: &Workload, settings: &Settings) -> (f64, f64) {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let path = dir.path().join("bench.db");
    let store = prepared(&path).await;
    load.append(&*store, 8).await;
    store.close().await;
    let cpu = meter::cpu_seconds();
    let took = match name {
        "pipeline" => pipeline(&path, load, settings).await,
        "loop" => straight::run(&path, load, 1_000).await,
        _ => straight::run(&path, load, 1).await,
    };
    let count = load.messages.len() as f64;
    (count / took.as_secs_f64(), (meter::cpu_seconds() - cpu) * 1e6 / count)
}

async fn pipeline(path: &Path, workload: &Workload, settings: &Settings) -> Duration {
    let store = open(path).await;
    let metrics = Metrics::new();
    let watch = Stopwatch::start();
    let handlers = Handlers::new().with(Balances);
    let engine = Engine::start(settings, handlers, store.clone(), metrics).await.expect("an engine");
    engine.idle().await;
    let took = watch.elapsed();
    let rows = store.queries().shards().await.expect("rows");
    let taken: u64 = rows.iter().map(|row| row.counters["taken"]).sum();
    assert_eq!(taken, workload.unique, "each message counts once");
    engine.drain().await.expect("a drain");
    store.close().await;
    took
}
