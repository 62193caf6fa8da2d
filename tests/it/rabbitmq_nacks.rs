//! The promises of a sink whose other end may be full: it waits, repeats little, and no key's events change places.
//! In: short queues of RabbitMQ that refuse messages when full, with a slow consumer. Out: their messages, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Confirmation, ExchangeKind};
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::Store;
use perkey::unstable::store::query::DeadFilter;
use perkey::unstable::store::sqlite::SqliteStore;
use perkey::unstable::transport::embedded::EmbeddedLog;
use perkey::unstable::transport::rabbitmq::RabbitmqSink;
use perkey::unstable::transport::{Outgoing, SinkAnswer, SinkTransport, Transport};
use perkey::{Engine, Publish, Settings};
use tokio::time::timeout;

use crate::fixture::SHARDS;
use crate::rabbitmq_place::{Streams, Wire, said, table, text};
use crate::sink_contract::{by_key, confirmed, event, expected, publish};
use crate::store_contract::contract;
use crate::support::{append, count, handlers, open};

const BOUND: Duration = Duration::from_secs(60);
/// Messages that the queue holds at most.
const MOST: i64 = 20;
const KEYS: u64 = 7;

/// A short queue behind an exchange, which refuses what does not fit.
pub(crate) struct Narrow {
    pub(crate) streams: Streams,
    pub(crate) queue: String,
}

impl Narrow {
    /// By itself, bound by the key `0`.
    async fn alone(kind: &str) -> Self {
        let streams = Streams::named().await;
        streams.wire.exchange(&streams.name, ExchangeKind::Direct).await;
        Self::beside(streams, kind, &["0"]).await
    }

    /// Beside whatever else is behind the exchange of `streams`.
    pub(crate) async fn beside(streams: Streams, kind: &str, keys: &[&str]) -> Self {
        let queue = format!("{}.beside", streams.name);
        let most = ("x-max-length", AMQPValue::LongLongInt(MOST));
        let arguments = [("x-queue-type", text(kind)), most, ("x-overflow", text("reject-publish"))];
        streams.wire.queue(&queue, table(&arguments)).await;
        for key in keys {
            streams.wire.bind(&queue, &streams.name, key).await;
        }
        Self { streams, queue }
    }

    /// Waits until the queue takes nothing more: a message of the test's own is nacked.
    pub(crate) async fn is_full(&self) {
        let wire = Wire::open().await;
        let full = async {
            loop {
                // Into the queue itself, without a key that counts.
                let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
                let sent = wire.channel.basic_publish("".into(), self.queue.as_str().into(), options, b"", properties);
                if matches!(sent.await.unwrap().await.unwrap(), Confirmation::Nack(_)) {
                    return;
                }
            }
        };
        timeout(BOUND, full).await.expect("it becomes full");
    }

    /// Takes one message after another, each in its own time, until `unique` events have come; returns keys and ids.
    pub(crate) async fn consume(
        &self,
        unique: usize,
        name: impl Fn(&lapin::message::Delivery) -> (String, String),
    ) -> Vec<(String, String)> {
        let Wire { channel, .. } = &Wire::open().await;
        channel.basic_qos(5, BasicQosOptions::default()).await.unwrap();
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let mut consumer = channel.basic_consume(self.queue.as_str().into(), "".into(), options, none).await.unwrap();
        let (mut all, mut seen) = (Vec::new(), BTreeSet::new());
        while seen.len() < unique {
            let come =
                timeout(BOUND, consumer.next()).await.unwrap_or_else(|_| panic!("{} of {unique} came", seen.len()));
            let delivery = come.unwrap().unwrap();
            delivery.ack(BasicAckOptions::default()).await.unwrap();
            if delivery.properties.message_id().is_some() {
                let (key, id) = name(&delivery);
                seen.insert(id.clone());
                all.push((key, id));
            }
        }
        all
    }

    fn event(&self, seq: u64, to: &str) -> Outgoing {
        event(&format!("{}:{to}", self.streams.name), seq, &format!("k-{}", seq % KEYS), b"{\"n\":1}")
    }
}

/// Of what came, at most one in twenty is a repeat.
fn few_repeats(arrived: &[(String, String)], events: usize) {
    assert!(arrived.len() <= events + events / 20, "{} came of {events}", arrived.len());
}

contract! {
    quorum_queue: super::Narrow::alone("quorum");
    classic_queue: super::Narrow::alone("classic");
    => [
        a_full_queue_is_waited_for_and_no_key_is_swapped,
        what_comes_back_amid_nacks_is_refused_and_exactly_that,
    ]
}

async fn a_full_queue_is_waited_for_and_no_key_is_swapped(narrow: Narrow) {
    let sink = RabbitmqSink::new(&narrow.streams.settings(), SHARDS).unwrap();
    let events: Vec<Outgoing> = (1..1_501).map(|seq| narrow.event(seq, "0")).collect();
    let mut end = sink.open(0).await.unwrap();
    let consumed = async {
        narrow.is_full().await;
        narrow.consume(events.len(), said).await
    };
    let (answers, arrived) = tokio::join!(publish(&mut *end, &events), consumed);
    assert_eq!(confirmed(&answers), (1..1_501).collect(), "by the end that was opened first");
    few_repeats(&arrived, events.len());
    assert_eq!(by_key(arrived), expected(&events));
}

async fn what_comes_back_amid_nacks_is_refused_and_exactly_that(narrow: Narrow) {
    let sink = RabbitmqSink::new(&narrow.streams.settings(), SHARDS).unwrap();
    let way = |seq| if seq % 10 == 9 { "nobody" } else { "0" };
    let events: Vec<Outgoing> = (1..601).map(|seq| narrow.event(seq, way(seq))).collect();
    let (lost, taken): (Vec<_>, Vec<_>) = events.iter().cloned().partition(|event| event.topic.ends_with(":nobody"));
    let mut end = sink.open(0).await.unwrap();
    let consumed = async {
        narrow.is_full().await;
        narrow.consume(taken.len(), said).await
    };
    let (answers, arrived) = tokio::join!(publish(&mut *end, &events), consumed);
    let refused = |answer: &SinkAnswer| if let SinkAnswer::Refused(seq, _) = answer { Some(*seq) } else { None };
    let refused: BTreeSet<u64> = answers.iter().filter_map(refused).collect();
    assert_eq!((answers.len(), refused), (events.len(), lost.iter().map(|event| event.seq).collect()));
    assert_eq!(by_key(arrived), expected(&taken));
}

/// A stream has the messages that a queue refuses: there they are repeated, and nowhere swapped.
#[tokio::test]
async fn a_full_queue_beside_a_stream_swaps_nothing_in_either() {
    let streams = Streams::with(1, ExchangeKind::Fanout, &[]).await;
    let narrow = Narrow::beside(streams, "quorum", &[""]).await;
    let sink = RabbitmqSink::new(&narrow.streams.settings(), SHARDS).unwrap();
    let events: Vec<Outgoing> = (1..801).map(|seq| narrow.event(seq, "0")).collect();
    let mut end = sink.open(0).await.unwrap();
    let consumed = async {
        narrow.is_full().await;
        narrow.consume(events.len(), said).await
    };
    let (answers, arrived) = tokio::join!(publish(&mut *end, &events), consumed);
    assert_eq!(confirmed(&answers), (1..801).collect());
    few_repeats(&arrived, events.len());
    assert_eq!(by_key(arrived), expected(&events));
    let in_stream: Vec<_> = narrow.streams.read(0).await.iter().map(said).collect();
    assert_eq!(by_key(in_stream), expected(&events));
}

async fn start(settings: &Settings, folder: &tempfile::TempDir) -> (Engine, Arc<SqliteStore>) {
    let store = open(&folder.path().join("s.db")).await;
    let log: Vec<Arc<dyn Transport>> = vec![Arc::new(EmbeddedLog::new(store.clone(), settings.log.poll))];
    let sink: Arc<dyn SinkTransport> = RabbitmqSink::new(&settings.rabbitmq, settings.ownership.shards).unwrap();
    let engine = Engine::start_with(settings, handlers(), store.clone(), Metrics::new(), log, vec![sink]).await;
    (engine.unwrap(), store)
}

/// Handling does not wait for a queue that takes nothing; neither does a process that is to leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handling_and_leaving_do_not_wait_for_a_full_queue() {
    let narrow = Narrow::alone("quorum").await;
    let topic = format!("{}:0", narrow.streams.name);
    let route = Publish { service: "*".to_owned(), kind: "counted".to_owned(), sink: "rabbitmq".to_owned(), topic };
    let mut settings = Settings { publish: vec![route], rabbitmq: narrow.streams.settings(), ..Settings::default() };
    settings.ownership.shards = 1;
    settings.outbox.window = 50;
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = start(&settings, &folder).await;
    let messages: Vec<_> = (0..400).map(|n| count(&format!("m{n}"), &format!("k{}", n % KEYS), None)).collect();
    append(&*store, 1, "counting", &messages).await;
    narrow.is_full().await;
    let handled = async || store.queries().shards().await.unwrap()[0].outbox_seq == 400;
    let all = async {
        while !handled().await {
            perkey::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(BOUND, all).await.expect("all are handled while the queue is full");
    timeout(BOUND, engine.drain()).await.expect("a process leaves while the queue is full").unwrap();
    store.close().await;
    drop(store);
    let (engine, store) = start(&settings, &folder).await;
    let mut events = BTreeMap::<String, Vec<String>>::new();
    for row in store.queries().events(0, 0, 1_000).await.unwrap() {
        let message = row.event.message;
        events.entry(message.key().to_owned()).or_default().push(message.id().to_owned());
    }
    assert_eq!(by_key(narrow.consume(400, said).await), events);
    assert!(store.queries().peek(DeadFilter::default(), 1).await.unwrap().is_empty());
    engine.drain().await.unwrap();
    store.close().await;
}
