//! Kafka: topics as a source whose partitions are read by the owners of their shards, and as a sink of the outbox.
//! In: records; events. Out: deliveries, each partition's in order; records in the order of the commits, confirmed.
//!
//! `docs/kafka.md` says how records and messages correspond.

mod assigner;
mod buffer;
mod client;
mod error;
mod event;
mod group;
pub mod health;
mod orders;
mod partition;
mod reader;
mod record;
mod sink;
mod start;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use futures_util::future::BoxFuture;
use tracing::warn;

use self::assigner::Assigner;
use self::buffer::ShardBuffer;
use self::client::ConsumerEvents;
pub use self::error::KafkaFailure;
use self::orders::{AssignerOrder, Generation, ReaderOrder, SharedConsumer};
use self::reader::KafkaReader;
pub use self::sink::KafkaSink;
use super::{Delivery, Source, SourceError, Transport};
use crate::message::{Positions, ShardNo};
use crate::metrics::Metrics;
use crate::settings::KafkaSettings;

/// The transport's name in settings, positions and metrics.
pub const NAME: &str = "kafka";

/// Topics of Kafka, as a transport: one consumer for all shards of the process.
pub struct KafkaTransport {
    settings: KafkaSettings,
    shards: u32,
    metrics: Arc<Metrics>,
    threads: Mutex<Arc<Threads>>,
    openings: AtomicU64,
}

/// The consumer's threads; they end when neither the transport nor a source is left.
struct Threads {
    reader: Sender<ReaderOrder>,
    assigner: Sender<AssignerOrder>,
    alive: Arc<AtomicBool>,
}

impl KafkaTransport {
    /// The consumer and its threads. The brokers need not be there yet; unusable settings are an error.
    pub fn new(settings: &KafkaSettings, shards: u32, metrics: &Arc<Metrics>) -> Result<Arc<Self>, KafkaFailure> {
        client::check_files(settings)?;
        let threads = Mutex::new(Threads::start(settings, shards, metrics)?);
        let (settings, metrics) = (settings.clone(), Arc::clone(metrics));
        Ok(Arc::new(Self { settings, shards, metrics, threads, openings: AtomicU64::new(0) }))
    }

    fn open_now(&self, shard: ShardNo, from: &Positions) -> Result<KafkaSource, KafkaFailure> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = self.place(&threads, shard, from.clone()) {
            return Ok(source);
        }
        // Only a defect ends one of them: its records in hand are gone, and all openings were told so.
        warn!(shard, "a thread of the consumer has ended, the consumer is started anew");
        *threads = Threads::start(&self.settings, self.shards, &self.metrics)?;
        self.place(&threads, shard, from.clone()).ok_or(KafkaFailure::Ended)
    }

    fn place(&self, threads: &Arc<Threads>, shard: ShardNo, from: Positions) -> Option<KafkaSource> {
        let generation = Generation(self.openings.fetch_add(1, Ordering::Relaxed) + 1);
        let buffer = Arc::new(ShardBuffer::new(self.settings.buffer_bytes));
        // The reader first: it has to know the opening when the assigner names partitions for it.
        let known = threads.reader.send(ReaderOrder::Open(shard, generation, Arc::clone(&buffer)));
        let placed = threads.assigner.send(AssignerOrder::Open(shard, generation, Arc::clone(&buffer), from));
        let source = KafkaSource { shard, generation, buffer, threads: Arc::clone(threads) };
        // Read last: a thread that ended before is seen here, one that ends later sees the orders.
        (known.is_ok() && placed.is_ok() && threads.alive.load(Ordering::SeqCst)).then_some(source)
    }
}

impl Threads {
    fn start(settings: &KafkaSettings, shards: u32, metrics: &Arc<Metrics>) -> Result<Arc<Self>, KafkaFailure> {
        let config = client::consumer(settings);
        let metrics = Arc::clone(metrics);
        let make = move || -> Result<SharedConsumer, KafkaFailure> {
            let context = ConsumerEvents::new(Arc::clone(&metrics));
            config.create_with_context(context).map(Arc::new).map_err(KafkaFailure::refused)
        };
        let client = make()?;
        let (reader, reader_orders) = channel();
        let (assigner, assigner_orders) = channel();
        let alive = Arc::new(AtomicBool::new(true));
        let (for_assigner, for_reader) = (Arc::clone(&alive), Arc::clone(&alive));
        let assigning =
            Assigner::new(Arc::clone(&client), assigner_orders, for_assigner, reader.clone(), settings, shards);
        let id_header = settings.id_header.clone();
        let reading = KafkaReader::new(client, Box::new(make), reader_orders, for_reader, assigner.clone(), id_header);
        let threads = Arc::new(Self { reader, assigner, alive });
        start("kafka-assigner", move || assigning.run())?;
        start("kafka-reader", move || reading.run())?;
        Ok(threads)
    }
}

fn start(thread: &'static str, run: impl FnOnce() + Send + 'static) -> Result<(), KafkaFailure> {
    let started = thread::Builder::new().name(thread.to_owned()).spawn(run);
    started.map(|_| ()).map_err(|error| KafkaFailure::Thread { thread, error })
}

impl Transport for KafkaTransport {
    fn name(&self) -> &str {
        NAME
    }

    fn open(&self, shard: ShardNo, from: Positions) -> BoxFuture<'_, Result<Box<dyn Source>, SourceError>> {
        let opened = self.open_now(shard, &from);
        Box::pin(async move {
            match opened {
                Ok(source) => Ok(Box::new(source) as Box<dyn Source>),
                Err(failure) => Err(SourceError::Broken { name: NAME.to_owned(), reason: failure.to_string() }),
            }
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // They end by themselves; the last of them closes the consumer.
        self.reader.send(ReaderOrder::Stop).ok();
        self.assigner.send(AssignerOrder::Stop).ok();
    }
}

struct KafkaSource {
    shard: ShardNo,
    generation: Generation,
    buffer: Arc<ShardBuffer>,
    threads: Arc<Threads>,
}

impl Source for KafkaSource {
    fn fetch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        Box::pin(self.buffer.fetch(max))
    }

    fn committed(&mut self, positions: &Positions) {
        self.buffer.committed(positions);
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.threads.reader.send(ReaderOrder::Close(self.shard, self.generation)).ok();
        self.threads.assigner.send(AssignerOrder::Close(self.shard, self.generation)).ok();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    async fn open(transport: &KafkaTransport) -> Box<dyn Source> {
        transport.open(0, Positions::new()).await.unwrap()
    }

    /// Returns whether the end is of no further use.
    async fn broke(source: &mut dyn Source) -> bool {
        loop {
            match source.fetch(1).await {
                // An error that no broker is there may come first.
                Err(SourceError::Unavailable { .. }) => {}
                answer => return matches!(answer, Err(SourceError::Broken { .. })),
            }
        }
    }

    #[tokio::test]
    async fn a_thread_that_ended_is_told_of_and_started_anew() {
        let settings = KafkaSettings {
            brokers: "127.0.0.1:1".to_owned(),
            topics: vec!["t".to_owned()],
            ..KafkaSettings::default()
        };
        let transport = KafkaTransport::new(&settings, 1, &Metrics::new()).unwrap();
        let current = || Arc::clone(&transport.threads.lock().unwrap());
        for end in [
            |threads: &Threads| threads.reader.send(ReaderOrder::Stop).is_ok(),
            |threads: &Threads| threads.assigner.send(AssignerOrder::Stop).is_ok(),
        ] {
            let mut source = open(&transport).await;
            assert!(end(&current()));
            assert!(broke(&mut *source).await);
            let mut next = open(&transport).await;
            assert!(current().alive.load(Ordering::SeqCst));
            assert!(!matches!(next.fetch(1).now_or_never(), Some(Err(SourceError::Broken { .. }))));
        }
    }
}
