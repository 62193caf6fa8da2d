//! Kafka from a scenario's side: fresh topics, a steady load on one, and all records of the other.
//! In: postings. Out: records in the order of their accounts; events in the order of their topic.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perkey::sleep;
use perkey::unstable::clock::Stopwatch;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::ChaosError;
use crate::fleet::record::Record;

/// The number of partitions of each topic: as many as there are shards.
pub const PARTITIONS: i32 = 8;
const WITHIN: Duration = Duration::from_secs(60);
/// A topic from which nothing is read for this long lacks records.
const SILENCE: Duration = Duration::from_secs(20);

impl From<KafkaError> for ChaosError {
    fn from(error: KafkaError) -> Self {
        Self::Stuck(format!("Kafka: {error}"))
    }
}

/// A pair of topics that one scenario has for itself.
#[derive(Clone, Debug)]
pub struct Topics {
    brokers: String,
    /// The topic that workers read.
    pub input: String,
    /// The topic that workers publish to.
    pub output: String,
}

impl Topics {
    /// Makes the topics; their names end in `suffix`.
    pub async fn make(brokers: &str, suffix: &str) -> Result<Self, ChaosError> {
        let [input, output] = ["in", "out"].map(|way| format!("perkey_test_ledger.{way}.{suffix}"));
        let topics = Self { brokers: brokers.to_owned(), input, output };
        let new = |name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
        let options = AdminOptions::new().operation_timeout(Some(WITHIN));
        let made = topics.admin()?.create_topics([&new(&topics.input), &new(&topics.output)], &options).await?;
        match made.into_iter().find_map(Result::err) {
            Some((name, code)) => Err(ChaosError::Stuck(format!("topic {name} could not be made: {code}"))),
            None => {
                topics.await_leaders().await?;
                Ok(topics)
            }
        }
    }

    /// Waits until all partitions have leaders: records written earlier may be lost.
    async fn await_leaders(&self) -> Result<(), ChaosError> {
        let (admin, watch) = (self.admin()?, Stopwatch::start());
        for topic in [&self.input, &self.output] {
            for partition in 0..PARTITIONS {
                while let Err(error) = admin.inner().fetch_watermarks(topic, partition, SILENCE) {
                    if watch.elapsed() > WITHIN {
                        return Err(ChaosError::Stuck(format!("{topic}/{partition} cannot be written to: {error}")));
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
        Ok(())
    }

    /// Removes the topics.
    pub async fn remove(&self) -> Result<(), ChaosError> {
        let options = AdminOptions::new().operation_timeout(Some(WITHIN));
        self.admin()?.delete_topics(&[&self.input, &self.output], &options).await?;
        Ok(())
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>, ChaosError> {
        Ok(self.config().create()?)
    }

    /// The settings of a worker that reaches Kafka at `brokers`.
    pub fn settings(&self, brokers: &str) -> String {
        let Self { input, output, .. } = self;
        format!(
            r#"
[kafka]
brokers = "{brokers}"
topics = ["{input}"]
group = "{input}"

[[bind]]
source = "kafka"
type = "{input}"
service = "balances"

[[publish]]
service = "balances"
type = "balance.changed"
sink = "kafka"
topic = "{output}"
"#
        )
    }

    /// A producer of records for the input.
    pub fn producer(&self) -> Result<Input, ChaosError> {
        let mut config = self.config();
        config.set("enable.idempotence", "true").set("acks", "all").set("linger.ms", "2");
        // Partitions like Java's default partitioner, and never gives up.
        config.set("partitioner", "murmur2_random").set("message.timeout.ms", "0");
        config.set("queue.buffering.max.messages", "200000").set("reconnect.backoff.max.ms", "500");
        let counts = Arc::new(Counts::default());
        let producer = config.create_with_context(Deliveries(Arc::clone(&counts)))?;
        Ok(Input { topic: self.input.clone(), producer, counts })
    }

    /// The values of all records on `topic` now, in order for each partition.
    pub async fn read(&self, topic: &str) -> Result<Vec<Vec<Vec<u8>>>, ChaosError> {
        let (config, topic) = (self.config(), topic.to_owned());
        let read = tokio::task::spawn_blocking(move || read(config, &topic)).await;
        read.map_err(|error| ChaosError::Stuck(format!("the reader of the output ended: {error}")))?
    }
}

fn read(mut config: ClientConfig, topic: &str) -> Result<Vec<Vec<Vec<u8>>>, ChaosError> {
    config.set("group.id", "perkey-chaos").set("enable.auto.commit", "false");
    config.set("isolation.level", "read_committed").set("auto.offset.reset", "error");
    let consumer: BaseConsumer = config.create()?;
    let mut assignment = TopicPartitionList::new();
    let mut missing = 0;
    for partition in 0..PARTITIONS {
        let (_, end) = consumer.fetch_watermarks(topic, partition, WITHIN)?;
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
        missing += u64::try_from(end).unwrap_or_default();
    }
    consumer.assign(&assignment)?;
    let mut values: Vec<Vec<Vec<u8>>> = (0..PARTITIONS).map(|_| Vec::new()).collect();
    // Without transactions every offset is a record.
    while missing > 0 {
        let record = match consumer.poll(SILENCE) {
            Some(Ok(record)) => record,
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::BrokerTransportFailure))) => continue,
            Some(Err(error)) => return Err(error.into()),
            None => return Err(ChaosError::Stuck(format!("{missing} records of {topic} did not come"))),
        };
        let partition = usize::try_from(record.partition()).unwrap_or_default();
        values[partition].push(record.payload().unwrap_or_default().to_vec());
        missing -= 1;
    }
    Ok(values)
}

#[derive(Debug, Default)]
struct Counts {
    stored: AtomicU64,
    lost: AtomicU64,
}

struct Deliveries(Arc<Counts>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() { &self.0.stored } else { &self.0.lost };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Puts records on the input, in order for each account.
pub struct Input {
    topic: String,
    producer: ThreadedProducer<Deliveries>,
    counts: Arc<Counts>,
}

impl Input {
    /// Hands a record over; returns false while there is no room.
    pub fn offer(&self, record: &Record) -> Result<bool, ChaosError> {
        let headers = OwnedHeaders::new().insert(Header { key: "id", value: Some(&record.id) });
        let next = BaseRecord::to(&self.topic).key(&record.account).payload(&record.value).headers(headers);
        match self.producer.send(next) {
            Ok(()) => Ok(true),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
            Err((error, _)) => Err(error.into()),
        }
    }

    /// The number of records that the broker has.
    pub fn stored(&self) -> u64 {
        self.counts.stored.load(Ordering::Relaxed)
    }

    /// Waits until the broker has `count` records.
    pub async fn flush(&self, count: u64) -> Result<(), ChaosError> {
        let watch = Stopwatch::start();
        while self.producer.in_flight_count() > 0 && watch.elapsed() < WITHIN * 2 {
            sleep(Duration::from_millis(5)).await;
        }
        let (stored, lost) = (self.stored(), self.counts.lost.load(Ordering::Relaxed));
        if lost > 0 || stored != count {
            return Err(ChaosError::Stuck(format!("of {count} records {stored} were written, {lost} refused")));
        }
        Ok(())
    }
}
