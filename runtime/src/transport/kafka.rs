//! Kafka: topics as a source whose partitions are read by the owners of their shards, and as a sink of the outbox.
//! In: records; events. Out: deliveries, each partition's in order; records in the order of the commits, confirmed.
//!
//! `docs/kafka.md` tells what becomes of what.

mod client;
mod event;
mod reader;
mod record;
mod scout;
mod shelf;
mod sink;
mod start;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use futures_util::future::BoxFuture;

use self::client::Told;
use self::reader::{Client, Reader, ReaderOrder};
use self::scout::{Scout, ScoutOrder};
use self::shelf::Shelf;
pub use self::sink::KafkaSink;
use super::{Delivery, Positions, Source, SourceError, Transport};
use crate::message::ShardNo;
use crate::metrics::Metrics;
use crate::settings::KafkaSettings;

/// The transport's name in settings, positions and metrics.
pub const NAME: &str = "kafka";

/// Why a source whose thread is gone cannot go on.
const ENDED: &str = "a thread of the consumer has ended; only a new process helps";

/// Number of an opening: what was read for an older one of the same shard is dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Generation(u64);

/// Topics of Kafka, as a transport: one consumer for all shards of the process.
pub struct KafkaTransport {
    threads: Arc<Threads>,
    buffer_bytes: usize,
    openings: AtomicU64,
}

/// The consumer's threads; they end when neither the transport nor a source is left.
struct Threads {
    reader: Sender<ReaderOrder>,
    scout: Sender<ScoutOrder>,
}

impl KafkaTransport {
    /// The consumer and its threads. The brokers need not be there yet; settings of no use are an error.
    pub fn new(settings: &KafkaSettings, shards: u32, metrics: &Arc<Metrics>) -> Result<Arc<Self>, String> {
        client::missing_file(settings)?;
        let config = client::consumer(settings);
        let metrics = Arc::clone(metrics);
        let make = move || -> Result<Client, String> {
            let told = Told::new(Arc::clone(&metrics));
            config.create_with_context(told).map(Arc::new).map_err(client::refused)
        };
        let client = make()?;
        let (reader, reader_orders) = channel();
        let (scout, scout_orders) = channel();
        let scouting = Scout::new(Arc::clone(&client), scout_orders, reader.clone(), settings, shards);
        let id_header = settings.id_header.clone();
        let reading = Reader::new(client, Box::new(make), reader_orders, scout.clone(), id_header);
        start("kafka-scout", move || scouting.run())?;
        start("kafka-reader", move || reading.run())?;
        let threads = Arc::new(Threads { reader, scout });
        Ok(Arc::new(Self { threads, buffer_bytes: settings.buffer_bytes, openings: AtomicU64::new(0) }))
    }
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(run);
    started.map(|_| ()).map_err(|error| format!("the thread {name} cannot be started: {error}"))
}

impl Transport for KafkaTransport {
    fn name(&self) -> &str {
        NAME
    }

    fn open(&self, shard: ShardNo, from: Positions) -> BoxFuture<'_, Result<Box<dyn Source>, SourceError>> {
        let generation = Generation(self.openings.fetch_add(1, Ordering::Relaxed) + 1);
        let shelf = Arc::new(Shelf::new(self.buffer_bytes));
        // The reader first: it has to know the opening when the scout names partitions for it.
        let known = self.threads.reader.send(ReaderOrder::Open(shard, generation, Arc::clone(&shelf)));
        let placed = self.threads.scout.send(ScoutOrder::Open(shard, generation, Arc::clone(&shelf), from));
        let source = KafkaSource { shard, generation, shelf, threads: Arc::clone(&self.threads) };
        Box::pin(async move {
            if known.is_err() || placed.is_err() {
                return Err(SourceError::Lost { name: NAME.to_owned(), reason: ENDED.to_owned() });
            }
            Ok(Box::new(source) as Box<dyn Source>)
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // They end by themselves; the last of them closes the consumer.
        self.reader.send(ReaderOrder::Stop).ok();
        self.scout.send(ScoutOrder::Stop).ok();
    }
}

struct KafkaSource {
    shard: ShardNo,
    generation: Generation,
    shelf: Arc<Shelf>,
    threads: Arc<Threads>,
}

impl Source for KafkaSource {
    fn fetch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        Box::pin(self.shelf.fetch(max))
    }

    fn committed(&mut self, positions: &Positions) {
        self.shelf.committed(positions);
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.threads.reader.send(ReaderOrder::Close(self.shard, self.generation)).ok();
        self.threads.scout.send(ScoutOrder::Close(self.shard, self.generation)).ok();
    }
}
