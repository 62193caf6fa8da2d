//! Memory with many keys, bytes per resident actor, the cost of waking a cold key.
//! In: `--keys N --bytes N --messages N`. Out: resident memory at its highest, bytes per actor, CPU-µs cold and warm.
//!
//! Run it in a process of its own: what is measured is the process's memory. Messages are made as they are appended.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::clock::Stopwatch;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::lease::Code;
use perkey::unstable::store::{Setup, Store};
use perkey::{Draft, Engine, Fault, Handler, Handlers, Key, Message, Settings, Turn, sleep};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use super::workload::append;
use super::{Options, meter, open};

const SHARDS: u32 = 8;
/// Messages appended at once.
const BATCH: usize = 1_000;
/// Unread messages above which the appending waits, as an import does.
const UNREAD: u64 = 20_000;

/// Keeps as many bytes per key as it is told to.
struct Wide;

#[derive(Clone, Default, Serialize, Deserialize)]
struct Width {
    n: u64,
    text: String,
}

#[derive(Deserialize)]
struct Fill {
    key: String,
    bytes: usize,
}

impl Handler for Wide {
    const SERVICE: &'static str = "wide";
    type Message = Fill;
    type State = Width;

    fn key(&self, message: &Fill) -> Key {
        message.key.as_str().into()
    }

    async fn handle(&self, state: &mut Width, message: Fill, _: &mut Turn) -> Result<(), Fault> {
        state.n += 1;
        if state.text.len() < message.bytes {
            state.text = "x".repeat(message.bytes);
        }
        Ok(())
    }
}

pub(crate) fn run(runtime: &Runtime, options: &Options) {
    let (keys, bytes) = (options.number("--keys", 1_000_000), options.number("--bytes", 200));
    let messages = options.number("--messages", 200_000);
    let dir = tempfile::tempdir().expect("a scratch directory");
    let path = dir.path().join("bench.db");
    runtime.block_on(resident(&dir.path().join("resident.db"), bytes));
    runtime.block_on(async {
        let mut feed = Feed::start(&path, bytes).await;
        let (took, cpu) = feed.pass(0..keys).await;
        let (rss, highest) = meter::memory();
        println!(
            "{keys} new keys of {bytes} bytes: RSS {rss:.0} MiB, at its highest {highest:.0} MiB; \
             {:.0} messages/s, {cpu:.2} CPU-µs a message",
            keys as f64 / took.as_secs_f64()
        );
        // Far apart, so that none is in memory and no two share a page of the table.
        let step = (keys / messages).max(1);
        for round in 0..3 {
            let (took, cold) = feed.pass((0..keys).step_by(step).skip(round).take(messages)).await;
            let (fast, warm) = feed.pass((0..messages).map(|n| n % 8_000)).await;
            let (cold_wall, warm_wall) = (per(took, messages), per(fast, messages));
            println!(
                "round {round}: {cold:.2} CPU-µs a message to cold keys ({cold_wall:.1} µs of time), \
                 {warm:.2} to warm ones ({warm_wall:.1} µs): a cold activation costs {:.2} CPU-µs",
                cold - warm
            );
        }
        let (rss, highest) = meter::memory();
        println!("at the end: RSS {rss:.0} MiB, at its highest {highest:.0} MiB");
        feed.end().await;
    });
}

fn per(took: Duration, messages: usize) -> f64 {
    took.as_secs_f64() * 1e6 / messages as f64
}

/// Memory of keys in hand: with as many as may be resident, against almost none.
async fn resident(path: &Path, bytes: usize) {
    let mut feed = Feed::start(path, bytes).await;
    let most = Settings::default().actors.resident_max;
    // As many messages in both passes, so that everything but the actors has the same size.
    feed.pass((0..most).map(|n| n % 64)).await;
    let (before, _) = meter::memory();
    feed.pass(64..most).await;
    let (after, _) = meter::memory();
    let each = (after - before) * 1_048_576.0 / (most - 64) as f64;
    println!("{most} resident actors with {bytes}-byte states: {before:.0} -> {after:.0} MiB, {each:.0} bytes each");
    feed.end().await;
}

/// A running engine, and what feeds it.
struct Feed {
    store: Arc<perkey::unstable::store::sqlite::SqliteStore>,
    engine: Engine,
    bytes: usize,
    next: u64,
}

impl Feed {
    async fn start(path: &Path, bytes: usize) -> Self {
        let store = open(path).await;
        let setup =
            Setup { shards: SHARDS, services: vec![Wide::SERVICE.into()], tables: Vec::new(), code: Code::numbered(1) };
        store.prepare(setup).await.expect("a fresh store");
        let handlers = Handlers::new().with(Wide);
        let settings = Settings::default();
        let engine = Engine::start(&settings, handlers, store.clone(), Metrics::new()).await.expect("an engine");
        Self { store, engine, bytes, next: 0 }
    }

    /// A message to each of these keys; the time it took and the CPU-µs of each.
    async fn pass(&mut self, keys: impl IntoIterator<Item = usize>) -> (Duration, f64) {
        let (watch, cpu) = (Stopwatch::start(), meter::cpu_seconds());
        let mut keys = keys.into_iter();
        let mut count = 0_usize;
        loop {
            let batch: Vec<Message> = keys.by_ref().take(BATCH).map(|key| self.message(key)).collect();
            if batch.is_empty() {
                break;
            }
            count += batch.len();
            while self.store.queries().unread_imports().await.expect("a number") > UNREAD {
                sleep(Duration::from_millis(2)).await;
            }
            append(&*self.store, Wide::SERVICE, &batch, SHARDS).await;
        }
        self.engine.idle().await;
        (watch.elapsed(), (meter::cpu_seconds() - cpu) * 1e6 / count as f64)
    }

    fn message(&mut self, key: usize) -> Message {
        self.next += 1;
        let id = uuid::Uuid::from_u64_pair(1, self.next).to_string();
        let key = format!("key-{key:07}");
        let payload = format!(r#"{{"key":"{key}","bytes":{}}}"#, self.bytes);
        let draft = Draft { id: &id, key: &key, kind: "fill", payload: payload.as_bytes(), ..Draft::default() };
        draft.build().expect("a message")
    }

    async fn end(self) {
        self.engine.drain().await.expect("a drain");
        self.store.close().await;
    }
}
