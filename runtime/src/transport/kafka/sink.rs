//! Topics as a sink: one idempotent producer for all shards of the process, replaced when it fails for good.
//! In: events of a shard, in sequence. Out: records in that sequence per partition; an answer to each event.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use tokio::sync::Notify;
use tracing::{debug, warn};

use super::event::{bytes_of, record};
use super::{KafkaFailure, NAME, client};
use crate::clock::{Stopwatch, sleep};
use crate::message::ShardNo;
use crate::settings::KafkaSettings;
use crate::transport::{Outgoing, Sink, SinkAnswer, SinkError, SinkTransport};

/// Topics of Kafka, as a sink.
pub struct KafkaSink {
    config: ClientConfig,
    /// The most bytes of one shard on their way.
    bound: usize,
    /// The longest silence of an end that has some.
    silence: Duration,
    line: Mutex<Arc<LiveProducer>>,
}

/// One producer, as long as it is usable.
struct LiveProducer {
    producer: ThreadedProducer<Answers>,
}

/// The answers of a producer, and their receivers.
#[derive(Default)]
struct Answers {
    broken: Mutex<Option<String>>,
    /// The time since an end took answers.
    heard: Mutex<Option<Stopwatch>>,
    ends: Mutex<Vec<Weak<ProducerEnd>>>,
}

/// One shard's end of a producer.
#[derive(Default)]
struct ProducerEnd {
    answers: Mutex<Vec<SinkAnswer>>,
    answered: Notify,
    /// The bytes on their way.
    bytes: AtomicUsize,
}

/// A ticket that goes with a record and comes back with its answer.
struct RecordTicket {
    seq: u64,
    bytes: usize,
    end: Arc<ProducerEnd>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl KafkaSink {
    /// The producer. The brokers need not be there yet; unusable settings are an error.
    pub fn new(settings: &KafkaSettings) -> Result<Arc<Self>, KafkaFailure> {
        client::check_files(settings)?;
        let config = client::producer(settings);
        let line = Mutex::new(LiveProducer::start(&config)?);
        Ok(Arc::new(Self { config, bound: settings.buffer_bytes, silence: settings.answer_timeout, line }))
    }

    /// The producer in use; a new one if the last has failed for good.
    fn line(&self) -> Result<Arc<LiveProducer>, SinkError> {
        let mut line = locked(&self.line);
        if let Some(reason) = line.answers().broken() {
            warn!(reason, "the producer failed for good and is made anew");
            let made = LiveProducer::start(&self.config)
                .map_err(|failure| SinkError::Unavailable { name: NAME.to_owned(), reason: failure.to_string() })?;
            leave(std::mem::replace(&mut *line, made));
        }
        Ok(Arc::clone(&line))
    }
}

impl SinkTransport for KafkaSink {
    fn name(&self) -> &str {
        NAME
    }

    fn open(&self, _shard: ShardNo) -> BoxFuture<'_, Result<Box<dyn Sink>, SinkError>> {
        let opened = self.line().map(|line| {
            let end = Arc::new(ProducerEnd::default());
            let mut ends = locked(&line.answers().ends);
            ends.retain(|end| end.strong_count() > 0);
            ends.push(Arc::downgrade(&end));
            drop(ends);
            let (bound, silence, quiet) = (self.bound, self.silence, Stopwatch::start());
            Box::new(KafkaEnd { line: Some(line), end, bound, silence, quiet }) as Box<dyn Sink>
        });
        Box::pin(std::future::ready(opened))
    }
}

impl LiveProducer {
    fn start(config: &ClientConfig) -> Result<Arc<Self>, KafkaFailure> {
        let producer = config.create_with_context(Answers::default()).map_err(KafkaFailure::refused)?;
        Ok(Arc::new(Self { producer }))
    }

    fn answers(&self) -> &Answers {
        self.producer.context()
    }
}

/// Drops a producer: the last owner waits for its threads, which a thread that runs futures must not do.
fn leave(line: Arc<LiveProducer>) {
    if let Some(line) = Arc::into_inner(line) {
        thread::spawn(move || drop(line));
    }
}

impl Answers {
    fn broken(&self) -> Option<String> {
        locked(&self.broken).clone()
    }

    /// Reports to every end of the producer that it is of no further use.
    fn fail(&self, reason: &str) {
        locked(&self.broken).get_or_insert_with(|| reason.to_owned());
        for end in locked(&self.ends).iter().filter_map(Weak::upgrade) {
            end.answered.notify_one();
        }
    }
}

impl ClientContext for Answers {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, said: &str) {
        client::log(level, facility, said);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.fail(reason);
        } else {
            debug!(%error, reason, "kafka client");
        }
    }
}

impl ProducerContext for Answers {
    type DeliveryOpaque = Box<RecordTicket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<RecordTicket>) {
        let RecordTicket { seq, bytes, end } = *ticket;
        end.bytes.fetch_sub(bytes, Ordering::AcqRel);
        match result {
            Ok(_) => end.answer(SinkAnswer::Confirmed(seq)),
            Err((error, _)) if is_refusal(error) => end.answer(SinkAnswer::Refused(seq, error.to_string())),
            // It may or may not have been written, and the next record must not overtake it.
            Err((error, _)) => self.fail(&error.to_string()),
        }
    }
}

impl ProducerEnd {
    fn answer(&self, answer: SinkAnswer) {
        let mut answers = locked(&self.answers);
        let first = answers.is_empty();
        answers.push(answer);
        drop(answers);
        if first {
            self.answered.notify_one();
        }
    }
}

/// Returns whether an error is about one record that no repetition mends.
fn is_refusal(error: &KafkaError) -> bool {
    const REFUSALS: &[RDKafkaErrorCode] = &[
        RDKafkaErrorCode::MessageSizeTooLarge,
        RDKafkaErrorCode::MessageBatchTooLarge,
        RDKafkaErrorCode::InvalidMessageSize,
        RDKafkaErrorCode::InvalidRecord,
        RDKafkaErrorCode::InvalidTimestamp,
        RDKafkaErrorCode::InvalidTopic,
        RDKafkaErrorCode::InvalidArgument,
        RDKafkaErrorCode::PolicyViolation,
        RDKafkaErrorCode::TopicAuthorizationFailed,
        RDKafkaErrorCode::UnknownTopic,
        RDKafkaErrorCode::UnknownPartition,
        RDKafkaErrorCode::UnknownTopicOrPartition,
        RDKafkaErrorCode::UnsupportedForMessageFormat,
    ];
    match error {
        // The topic's name has a NUL in it.
        KafkaError::Nul(_) => true,
        error => error.rdkafka_error_code().is_some_and(|code| REFUSALS.contains(&code)),
    }
}

struct KafkaEnd {
    /// `None` once it is dropped.
    line: Option<Arc<LiveProducer>>,
    end: Arc<ProducerEnd>,
    bound: usize,
    silence: Duration,
    /// The time since it took answers, or sent the first event after all were answered.
    quiet: Stopwatch,
}

impl KafkaEnd {
    /// Watches for silence. A client that came out of an outage broken would be awaited without end: it is given up
    /// when it has confirmed nothing to any shard for so long.
    fn listen(&self) {
        let Some(line) = &self.line else { return };
        let quiet = self.quiet.elapsed();
        let heard = locked(&line.answers().heard).as_ref().map_or(Duration::MAX, Stopwatch::elapsed);
        if self.end.bytes.load(Ordering::Acquire) > 0 && quiet.min(heard) >= self.silence {
            line.answers().fail(&format!("nothing was confirmed for {quiet:.0?}"));
        }
    }
}

impl Sink for KafkaEnd {
    fn send(&mut self, events: &[Outgoing]) -> Result<usize, SinkError> {
        let Some(line) = &self.line else { return Ok(0) };
        if self.end.bytes.load(Ordering::Acquire) == 0 {
            self.quiet = Stopwatch::start();
        }
        let mut taken = 0;
        for event in events {
            let bytes = bytes_of(event);
            let waiting = self.end.bytes.load(Ordering::Acquire);
            // One event always goes: one larger than the bound must not wait for ever.
            if waiting > 0 && waiting + bytes > self.bound {
                break;
            }
            if let Some(reason) = line.answers().broken() {
                return Err(broken(reason));
            }
            let ticket = Box::new(RecordTicket { seq: event.seq, bytes, end: Arc::clone(&self.end) });
            self.end.bytes.fetch_add(bytes, Ordering::AcqRel);
            if let Err((error, _)) = line.producer.send(record(event, ticket)) {
                self.end.bytes.fetch_sub(bytes, Ordering::AcqRel);
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
                    break;
                }
                if !is_refusal(&error) {
                    line.answers().fail(&error.to_string());
                    return Err(broken(error.to_string()));
                }
                self.end.answer(SinkAnswer::Refused(event.seq, error.to_string()));
            }
            taken += 1;
        }
        Ok(taken)
    }

    fn answers(&mut self) -> BoxFuture<'_, Result<Vec<SinkAnswer>, SinkError>> {
        Box::pin(async move {
            loop {
                // Read before the answers are taken: answers from before the break are told before it.
                let reason = self.line.as_ref().and_then(|line| line.answers().broken());
                let answers = std::mem::take(&mut *locked(&self.end.answers));
                if !answers.is_empty() {
                    self.quiet = Stopwatch::start();
                    if let Some(line) = &self.line {
                        *locked(&line.answers().heard) = Some(self.quiet);
                    }
                    return Ok(answers);
                }
                if let Some(reason) = reason {
                    return Err(broken(reason));
                }
                self.listen();
                tokio::select! {
                    () = self.end.answered.notified() => {}
                    () = sleep(self.silence / 4) => {}
                }
            }
        })
    }
}

fn broken(reason: String) -> SinkError {
    SinkError::Broken { name: NAME.to_owned(), reason }
}

impl Drop for KafkaEnd {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            leave(line);
        }
    }
}
