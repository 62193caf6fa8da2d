//! Benches of Perkey, measured in a release build: `scripts/bench`.
//! In: `balances|stages|memory|failing|brokers` and options, see each file. Out: figures on standard output.

#![expect(clippy::print_stdout, reason = "figures are what a bench prints")]

mod balances;
mod brokers;
mod failing;
mod memory;
mod meter;
mod stages;
mod straight;
mod workload;

use std::path::Path;
use std::sync::Arc;

use perkey::unstable::store::lease::Code;
use perkey::unstable::store::sqlite::{Access, SqliteStore};
use perkey::unstable::store::{Setup, Store};

/// The allocator of the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The command line: a bench's name, then `--name value` pairs.
struct Options {
    bench: String,
    values: Vec<(String, String)>,
}

impl Options {
    fn read() -> Self {
        // `cargo bench` adds a flag of its own.
        let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
        let bench = args.next().unwrap_or_default();
        let mut values = Vec::new();
        while let (Some(name), Some(value)) = (args.next(), args.next()) {
            values.push((name, value));
        }
        Self { bench, values }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str, default: usize) -> usize {
        self.text(name).map_or(default, |text| text.parse().expect("the option is a number"))
    }
}

fn main() {
    let options = Options::read();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    println!("{}: {}", options.bench, meter::machine());
    match options.bench.as_str() {
        "balances" => balances::run(&runtime, &options),
        "stages" => stages::run(&runtime, &options),
        "memory" => memory::run(&runtime, &options),
        "failing" => failing::run(&runtime, &options),
        "brokers" => brokers::run(&runtime, &options),
        other => println!("there is no bench {other:?}; there are: balances, stages, memory, failing, brokers"),
    }
    println!("afterwards: {}", meter::machine());
}

/// The store at `path`, opened to run.
async fn open(path: &Path) -> Arc<SqliteStore> {
    let url = format!("sqlite://{}", path.display());
    Arc::new(SqliteStore::open(&url, Access::Run).await.expect("a store"))
}

/// The store at `path`, prepared for `balances`.
async fn prepared(path: &Path) -> Arc<SqliteStore> {
    let store = open(path).await;
    let setup = Setup { shards: 8, services: vec!["balances".into()], tables: Vec::new(), code: Code::numbered(1) };
    store.prepare(setup).await.expect("a fresh store");
    store
}
