//! A topic of a real broker, made for one test, with a producer of its own at the other end.
//! In: a number of partitions. Out: a topic to write to, to make anew and to cut; settings that read it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use perkey::Message;
use perkey::unstable::clock::{Clock, Dice, Stopwatch, rfc3339};
use perkey::unstable::metrics::Metrics;
use perkey::unstable::settings::KafkaSettings;
use perkey::unstable::transport::Transport;
use perkey::unstable::transport::kafka::KafkaTransport;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::fixture::SHARDS;
use crate::servers;
use crate::transport_contract::Line;

const BOUND: Duration = Duration::from_secs(60);
/// Begins the name of every topic that a test makes; those of old runs are removed by the next.
const PREFIX: &str = "perkey_test_";
const KEEP_MS: u64 = 3_600_000;

/// A record to write.
#[derive(Clone, Copy, Default)]
pub(crate) struct Written<'a> {
    pub(crate) partition: i32,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) payload: Option<&'a [u8]>,
    pub(crate) headers: &'a [(&'a str, &'a [u8])],
    pub(crate) time: Option<i64>,
}

/// A topic of its own.
pub(crate) struct Topic {
    pub(crate) name: String,
    partitions: i32,
    settings: Vec<(&'static str, &'static str)>,
    admin: AdminClient<DefaultClientContext>,
    producer: ThreadedProducer<Refusals>,
    refusals: Refusals,
}

/// The errors of messages that the broker did not take: a flush alone does not report them.
#[derive(Clone, Default)]
struct Refusals(Arc<Mutex<Vec<KafkaError>>>);

impl ClientContext for Refusals {}

impl ProducerContext for Refusals {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0.lock().unwrap().push(error.clone());
        }
    }
}

pub(crate) fn client() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers::kafka()).set("socket.keepalive.enable", "true");
    config
}

impl Topic {
    pub(crate) async fn new(partitions: i32) -> Self {
        Self::with(partitions, &[]).await
    }

    pub(crate) async fn with(partitions: i32, settings: &[(&'static str, &'static str)]) -> Self {
        let now = Clock::system().now();
        let name = format!("{PREFIX}{now}_{:016x}", Dice::from_system().below(u64::MAX));
        let admin: AdminClient<_> = client().create().unwrap();
        let mut producer = client();
        producer.set("linger.ms", "0").set("message.max.bytes", "20000000").set("enable.idempotence", "true");
        let refusals = Refusals::default();
        let producer = producer.create_with_context(refusals.clone()).unwrap();
        let topic = Self { name, partitions, settings: settings.to_vec(), admin, producer, refusals };
        topic.remove_old(now).await;
        topic.create().await;
        topic
    }

    async fn remove_old(&self, now: u64) {
        let metadata = self.admin.inner().fetch_metadata(None, BOUND).unwrap();
        let made = |name: &str| name.strip_prefix(PREFIX)?.split('_').next()?.parse::<u64>().ok();
        let topics = metadata.topics().iter().map(rdkafka::metadata::MetadataTopic::name);
        let old: Vec<&str> = topics.filter(|name| made(name).is_some_and(|made| made + KEEP_MS < now)).collect();
        if !old.is_empty() {
            self.admin.delete_topics(&old, &AdminOptions::new()).await.unwrap();
        }
    }

    pub(crate) async fn create(&self) {
        let mut topic = NewTopic::new(&self.name, self.partitions, TopicReplication::Fixed(1));
        for (name, value) in &self.settings {
            topic = topic.set(name, value);
        }
        let wait = AdminOptions::new().operation_timeout(Some(BOUND));
        let mut refused = Vec::new();
        // A topic that was just deleted may be there for a moment more.
        for _ in 0..1_200 {
            let made = self.admin.create_topics([&topic], &wait).await.unwrap();
            if made[0].is_ok() {
                return self.await_new(0..self.partitions).await;
            }
            refused = made;
            perkey::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} cannot be made: {refused:?}", self.name);
    }

    /// Until partitions that were just made can be written to.
    async fn await_new(&self, partitions: std::ops::Range<i32>) {
        self.await_leaders().await;
        self.await_empty(partitions).await;
    }

    /// Until every partition has a leader.
    async fn await_leaders(&self) {
        let mut seen = Vec::new();
        for _ in 0..3_000 {
            // The producer asks, so that it knows the partitions, too.
            let metadata = self.producer.client().fetch_metadata(Some(&self.name), BOUND).unwrap();
            let partitions = metadata.topics()[0].partitions();
            seen = partitions.iter().map(|partition| (partition.id(), partition.leader())).collect();
            if seen.iter().filter(|(_, leader)| *leader >= 0).count() == usize::try_from(self.partitions).unwrap() {
                return;
            }
            perkey::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} has not {} partitions with leaders, but (partition, leader) {seen:?}", self.name, self.partitions);
    }

    /// Until the leader has these partitions, and nothing in them: metadata come before, and what is written until then to a
    /// topic that was just made, made anew or widened may be lost.
    async fn await_empty(&self, partitions: std::ops::Range<i32>) {
        for partition in partitions {
            let mut seen = None;
            for _ in 0..3_000 {
                let known = self.producer.client().fetch_watermarks(&self.name, partition, BOUND);
                if known.as_ref().is_ok_and(|(_, high)| *high == 0) {
                    seen = None;
                    break;
                }
                seen = Some(known);
                perkey::sleep(Duration::from_millis(20)).await;
            }
            assert!(seen.is_none(), "{}/{partition} is not there and empty, but (low, high) {seen:?}", self.name);
        }
    }

    pub(crate) async fn delete(&self) {
        let wait = AdminOptions::new().operation_timeout(Some(BOUND));
        let gone = self.admin.delete_topics(&[&self.name], &wait).await.unwrap();
        assert!(gone[0].is_ok(), "{gone:?}");
    }

    /// More partitions.
    pub(crate) async fn widen(&mut self, partitions: i32) {
        let more = rdkafka::admin::NewPartitions::new(&self.name, usize::try_from(partitions).unwrap());
        let made = self.admin.create_partitions([&more], &AdminOptions::new()).await.unwrap();
        assert!(made[0].is_ok(), "{made:?}");
        let new = std::mem::replace(&mut self.partitions, partitions)..partitions;
        self.await_new(new).await;
    }

    /// Removes the records of a partition before an offset, as retention does.
    pub(crate) async fn cut(&self, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name, partition, Offset::Offset(before)).unwrap();
        self.admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
    }

    pub(crate) fn write(&self, written: Written<'_>) {
        self.enqueue(written);
        self.flush();
    }

    pub(crate) fn enqueue(&self, written: Written<'_>) {
        let mut headers = OwnedHeaders::new();
        for (key, value) in written.headers {
            headers = headers.insert(Header { key, value: Some(*value) });
        }
        let record: BaseRecord<'_, [u8], [u8]> = BaseRecord {
            key: written.key,
            payload: written.payload,
            timestamp: written.time,
            ..BaseRecord::to(&self.name).partition(written.partition).headers(headers)
        };
        self.producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    pub(crate) fn flush(&self) {
        self.producer.flush(BOUND).unwrap();
        assert!(self.refusals.0.lock().unwrap().is_empty(), "{:?}", self.refusals.0);
    }

    /// Writes plain messages with ids `tag-0`, `tag-1`, …
    pub(crate) fn fill(&self, partition: i32, tag: &str, ids: std::ops::Range<u32>) {
        for id in ids {
            let id = format!("{tag}-{id}");
            let headers: &[(&str, &[u8])] = &[("id", id.as_bytes())];
            let (key, payload) = (Some(&b"k"[..]), Some(&b"{}"[..]));
            self.enqueue(Written { partition, key, payload, headers, time: None });
        }
        self.flush();
    }

    /// Writes messages with ids `tag-0`, `tag-1`, … in a transaction, which takes an offset more at its end.
    pub(crate) fn transact(&self, partition: i32, tag: &str, ids: std::ops::Range<u32>, commit: bool) {
        let mut config = client();
        config.set("transactional.id", format!("{}-{tag}", self.name));
        let producer: ThreadedProducer<DefaultProducerContext> = config.create().unwrap();
        producer.init_transactions(BOUND).unwrap();
        producer.begin_transaction().unwrap();
        for id in ids {
            let id = format!("{tag}-{id}");
            let headers = OwnedHeaders::new().insert(Header { key: "id", value: Some(id.as_bytes()) });
            let record = BaseRecord::to(&self.name).partition(partition).key("k").payload("{}").headers(headers);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(BOUND).unwrap();
        if commit { producer.commit_transaction(BOUND) } else { producer.abort_transaction(BOUND) }.unwrap();
    }

    /// Writes a message as an event in binary mode.
    pub(crate) fn enqueue_message(&self, partition: i32, message: &Message) {
        let time = rfc3339(message.time());
        let mut headers: Vec<(&str, &[u8])> = vec![
            ("ce_specversion", b"1.0"),
            ("ce_id", message.id().as_bytes()),
            ("ce_type", message.kind().as_bytes()),
            ("ce_source", message.source().as_bytes()),
            ("ce_time", time.as_bytes()),
        ];
        headers.extend(message.headers().map(|(name, value)| (name, value.as_bytes())));
        let (key, payload) = (Some(message.key().as_bytes()), Some(message.payload()));
        self.enqueue(Written { partition, key, payload, headers: &headers, time: None });
    }

    /// Settings with which only this topic is read.
    pub(crate) fn settings(&self) -> KafkaSettings {
        KafkaSettings {
            brokers: servers::kafka(),
            topics: vec![self.name.clone()],
            group: self.name.clone(),
            ..KafkaSettings::default()
        }
    }

    pub(crate) fn transport(&self) -> Arc<KafkaTransport> {
        KafkaTransport::new(&self.settings(), SHARDS, &Metrics::new()).unwrap()
    }

    /// Everything that is in the topic now, per partition in its order.
    pub(crate) fn records(&self) -> Vec<Vec<OwnedMessage>> {
        let consumer: BaseConsumer = client().set("group.id", "perkey_test").create().unwrap();
        let partitions = 0..self.partitions;
        partitions.map(|partition| read(&consumer, &self.name, partition)).collect()
    }

    /// The offset up to which the topic's group has a partition.
    pub(crate) fn committed(&self, partition: i32) -> Option<i64> {
        let consumer: BaseConsumer = client().set("group.id", &self.name).create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.name, partition);
        let known = consumer.committed_offsets(list, BOUND).unwrap();
        known.elements()[0].offset().to_raw().filter(|offset| *offset >= 0)
    }
}

fn read(consumer: &BaseConsumer, topic: &str, partition: i32) -> Vec<OwnedMessage> {
    let (low, high) = consumer.fetch_watermarks(topic, partition, BOUND).unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(low)).unwrap();
    consumer.assign(&list).unwrap();
    let mut records = Vec::new();
    let began = Stopwatch::start();
    while low < high && records.last().is_none_or(|last: &OwnedMessage| last.offset() + 1 < high) {
        assert!(began.elapsed() < BOUND, "the records that are there come");
        // None: the client had something else to do.
        records.extend(consumer.poll(Duration::from_millis(100)).map(|record| record.unwrap().detach()));
    }
    records
}

/// A topic as a line of the contract: partition `target + SHARDS * origin`.
pub(crate) struct KafkaLine {
    topic: Topic,
    transport: Arc<KafkaTransport>,
}

impl KafkaLine {
    pub(crate) async fn new() -> Box<Self> {
        let topic = Topic::with(i32::try_from(SHARDS * SHARDS).unwrap(), &[("max.message.bytes", "20000000")]).await;
        let transport = topic.transport();
        Box::new(Self { topic, transport })
    }
}

fn partition(origin: u32, target: u32) -> i32 {
    i32::try_from(target + SHARDS * origin).unwrap()
}

impl Line for KafkaLine {
    fn transport(&self) -> &dyn Transport {
        &*self.transport
    }

    fn append<'a>(&'a mut self, origin: u32, target: u32, messages: &'a [Message]) -> BoxFuture<'a, ()> {
        for message in messages {
            self.topic.enqueue_message(partition(origin, target), message);
        }
        self.topic.flush();
        Box::pin(std::future::ready(()))
    }

    fn garble(&mut self, origin: u32, target: u32) -> BoxFuture<'_, ()> {
        let (partition, payload) = (partition(origin, target), Some(&b"\xff\xfenot a message"[..]));
        self.topic.write(Written { partition, key: Some(b"\xff"), payload, ..Written::default() });
        Box::pin(std::future::ready(()))
    }

    fn garbled(&self) -> &'static str {
        "not valid UTF-8"
    }

    fn settled(&self) -> Duration {
        Duration::from_millis(300)
    }
}
