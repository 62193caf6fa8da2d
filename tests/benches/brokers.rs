//! The throughput of Kafka and RabbitMQ, side by side: events out through the sink, messages in through the source, and
//! the time that one takes from the one to the other. Needs both servers: `eval "$(scripts/services up kafka
//! rabbitmq)"`.
//! In: `--messages N --rounds N --rate N --seconds N --accounts N`. Out: thousands a second, milliseconds, and RabbitMQ's ratio to Kafka.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::clock::{Dice, Stopwatch};
use perkey::unstable::message::{Positions, shard_of};
use perkey::unstable::metrics::Metrics;
use perkey::unstable::settings::{KafkaSettings, RabbitmqSettings};
use perkey::unstable::transport::kafka::{KafkaSink, KafkaTransport};
use perkey::unstable::transport::rabbitmq::{RabbitmqSink, RabbitmqTransport};
use perkey::unstable::transport::{Content, Outgoing, Sink, SinkAnswer, SinkTransport, Source, Transport};
use perkey::{Draft, Message, sleep};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use tokio::task::JoinSet;

use super::Options;
use super::meter::{cpu_seconds, median, percentile};

/// Shards, and so partitions and streams.
const SHARDS: u32 = 8;
/// Bytes of a payload, as the ledger workload has them.
const PAYLOAD_BYTES: usize = 200;

/// A broker with a topic, or streams, of its own.
struct Broker {
    name: &'static str,
    topic: Arc<str>,
    /// Different keys of events.
    accounts: u64,
    sink: Arc<dyn SinkTransport>,
    source: Arc<dyn Transport>,
}

impl Broker {
    async fn kafka(topic: &str, accounts: u64) -> Self {
        let brokers = std::env::var("PERKEY_TEST_KAFKA").expect("PERKEY_TEST_KAFKA is set");
        let mut config = rdkafka::ClientConfig::new();
        let admin: AdminClient<DefaultClientContext> =
            config.set("bootstrap.servers", &brokers).create().expect("a client");
        let partitions = i32::try_from(SHARDS).expect("few");
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1)).set("retention.ms", "3600000");
        admin.create_topics([&new], &AdminOptions::new()).await.expect("a topic");
        for partition in 0..partitions {
            // What is written before the leader has a partition may be lost.
            while admin.inner().fetch_watermarks(topic, partition, Duration::from_secs(5)).is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        }
        let settings = KafkaSettings { brokers, topics: vec![topic.to_owned()], ..KafkaSettings::default() };
        let sink = KafkaSink::new(&settings).expect("a sink");
        let source = KafkaTransport::new(&settings, SHARDS, &Metrics::new()).expect("a source");
        Self { name: "kafka", topic: topic.into(), accounts, sink, source }
    }

    fn rabbitmq(topic: &str, accounts: u64) -> Self {
        let settings = RabbitmqSettings {
            addresses: std::env::var("PERKEY_TEST_RABBITMQ").expect("PERKEY_TEST_RABBITMQ is set"),
            streams: vec![topic.to_owned()],
            max_age: Duration::from_secs(3_600),
            ..RabbitmqSettings::default()
        };
        let sink = RabbitmqSink::new(&settings, SHARDS).expect("a sink");
        let source = RabbitmqTransport::new(&settings, SHARDS, &Metrics::new()).expect("a source");
        Self { name: "rabbitmq", topic: topic.into(), accounts, sink, source }
    }
}

/// One of the figures.
type Pick = fn(&Figures) -> f64;

/// The figures of one round.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    out: f64,
    into: f64,
    cpu: f64,
    p50: f64,
    p99: f64,
}

pub(crate) fn run(runtime: &tokio::runtime::Runtime, options: &Options) {
    let messages = options.number("--messages", 100_000);
    let rounds = options.number("--rounds", 3);
    let accounts = options.number("--accounts", 10_000) as u64;
    let (rate, seconds) = (options.number("--rate", 2_000) as u64, options.number("--seconds", 5) as u64);
    let mut all: HashMap<&'static str, Vec<Figures>> = HashMap::new();
    runtime.block_on(async {
        for round in 0..rounds {
            let suffix = format!("{round}_{:08x}", Dice::from_system().below(1 << 32));
            let topics = [format!("perkey_test_bench_{suffix}"), format!("perkey_test_pace_{suffix}")];
            // Each goes first in turn.
            for kafka in [round % 2 == 0, round % 2 != 0] {
                let [bulk, steady] = &topics;
                let broker = async |topic: &str| match kafka {
                    true => Broker::kafka(topic, accounts).await,
                    false => Broker::rabbitmq(topic, accounts),
                };
                let mut figures = flood(&broker(bulk).await, messages).await;
                let steady = broker(steady).await;
                let waits = pace_through(&steady, rate, seconds).await;
                (figures.p50, figures.p99) = (percentile(&waits, 0.5), percentile(&waits, 0.99));
                println!(
                    "round {round} {:9} out {:6.1} in {:6.1} thousand/s, {:5.2} CPU-s of the client per 100,000 both ways, \
                     {} a second: p50 {:5.2} ms p99 {:6.2} ms",
                    steady.name, figures.out, figures.into, figures.cpu, rate, figures.p50, figures.p99
                );
                all.entry(steady.name).or_default().push(figures);
            }
        }
    });
    let of = |name: &str, pick: fn(&Figures) -> f64| median(&all[name].iter().map(pick).collect::<Vec<_>>());
    let pairs: [(&str, Pick); 4] = [("out", |f| f.out), ("in", |f| f.into), ("p50", |f| f.p50), ("p99", |f| f.p99)];
    for (what, pick) in pairs {
        let (kafka, rabbitmq) = (of("kafka", pick), of("rabbitmq", pick));
        println!("{what:4} kafka {kafka:7.2}  rabbitmq {rabbitmq:7.2}  rabbitmq/kafka {:.2}", rabbitmq / kafka);
    }
}

fn event(broker: &Broker, seq: u64, payload: &[u8]) -> Outgoing {
    let (id, key) = (format!("{seq:08x}-5eed-8000-8000-000000000000"), format!("acct-{}", seq % broker.accounts));
    let draft = Draft { id: &id, key: &key, kind: "posted", source: "bench", payload, ..Draft::default() };
    Outgoing { seq, topic: Arc::clone(&broker.topic), message: draft.build().expect("a message") }
}

/// All there is, as fast as it goes: out through all shards' ends, then in through all shards' sources.
async fn flood(broker: &Broker, messages: usize) -> Figures {
    let mut shards: Vec<Vec<Outgoing>> = (0..SHARDS).map(|_| Vec::new()).collect();
    for seq in 1..=messages as u64 {
        let event = event(broker, seq, &[b'x'; PAYLOAD_BYTES]);
        shards[shard_of(event.message.key(), SHARDS) as usize].push(event);
    }
    // What is made at first use is not measured.
    let mut ends = Vec::new();
    for (shard, events) in (0..SHARDS).zip(&mut shards) {
        let mut end = broker.sink.open(shard).await.expect("an end");
        if let Some(first) = events.pop() {
            publish(&mut *end, &[first]).await;
        }
        ends.push(end);
    }
    let (cpu, watch) = (cpu_seconds(), Stopwatch::start());
    let mut tasks = JoinSet::new();
    for (mut end, events) in ends.into_iter().zip(shards) {
        tasks.spawn(async move { publish(&mut *end, &events).await });
    }
    tasks.join_all().await;
    let out = watch.elapsed();
    let mut sources = Vec::new();
    for shard in 0..SHARDS {
        sources.push(broker.source.open(shard, Positions::new()).await.expect("a source"));
    }
    let watch = Stopwatch::start();
    let (counted, mut come) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for mut source in sources {
        let counted = counted.clone();
        tasks.spawn(async move { while counted.send(fetched(&mut *source).await.len()).is_ok() {} });
    }
    let mut missing = messages;
    while missing > 0 {
        missing -= come.recv().await.expect("the sources go on");
    }
    let into = watch.elapsed();
    let cpu = (cpu_seconds() - cpu) * 100_000.0 / messages as f64;
    let thousands = |took: Duration| messages as f64 / took.as_secs_f64() / 1_000.0;
    Figures { out: thousands(out), into: thousands(into), cpu, ..Figures::default() }
}

async fn publish(end: &mut dyn Sink, events: &[Outgoing]) {
    let (mut sent, mut answered) = (0, 0);
    while answered < events.len() {
        sent += end.send(&events[sent..]).expect("the end works");
        let answers = end.answers().await.expect("the end works");
        assert!(answers.iter().all(|answer| matches!(answer, SinkAnswer::Confirmed(_))), "{answers:?}");
        answered += answers.len();
    }
}

async fn fetched(source: &mut dyn Source) -> Vec<Message> {
    let deliveries = source.fetch(1_000).await.expect("the source works");
    let message = |delivery: perkey::unstable::transport::Delivery| match delivery.content {
        Content::Unrouted(message) => message,
        other => unreachable!("the sink's events are messages: {other:?}"),
    };
    deliveries.into_iter().map(message).collect()
}

/// Milliseconds that each event took from the sink to the source, at a steady pace.
async fn pace_through(broker: &Broker, rate: u64, seconds: u64) -> Vec<f64> {
    let clock = Arc::new(Stopwatch::start());
    let (took, mut all) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for shard in 0..SHARDS {
        let mut source = broker.source.open(shard, Positions::new()).await.expect("a source");
        let (clock, took) = (Arc::clone(&clock), took.clone());
        tasks.spawn(async move {
            loop {
                for message in fetched(&mut *source).await {
                    let sent = u64::from_le_bytes(message.payload()[..8].try_into().expect("eight bytes"));
                    let now = clock.elapsed().as_nanos() as u64;
                    took.send(now.saturating_sub(sent) as f64 / 1e6).expect("it is read");
                }
            }
        });
    }
    let mut ends = Vec::new();
    for shard in 0..SHARDS {
        ends.push(broker.sink.open(shard).await.expect("an end"));
    }
    let (watch, total) = (Stopwatch::start(), rate * seconds);
    let mut sent = 0;
    while sent < total {
        let due = ((watch.elapsed().as_secs_f64() * rate as f64) as u64).min(total);
        while sent < due {
            sent += 1;
            let mut payload = [b'x'; PAYLOAD_BYTES];
            payload[..8].copy_from_slice(&(clock.elapsed().as_nanos() as u64).to_le_bytes());
            let event = event(broker, sent, &payload);
            let end = &mut ends[shard_of(event.message.key(), SHARDS) as usize];
            assert_eq!(end.send(&[event]).expect("the end works"), 1);
        }
        sleep(Duration::from_millis(1)).await;
    }
    let mut waits = Vec::new();
    while (waits.len() as u64) < total {
        waits.push(all.recv().await.expect("the sources go on"));
    }
    // What the first of them waited for is a connection.
    waits.split_off(waits.len() / 10)
}
