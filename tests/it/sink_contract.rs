//! The promises of every sink, written once and run on each.
//! In: a sink, and the events that arrive at its other end. Out: the same behaviour everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use lapin::ExchangeKind;
use perkey::unstable::transport::kafka::KafkaSink;
use perkey::unstable::transport::rabbitmq::RabbitmqSink;
use perkey::unstable::transport::{Outgoing, Sink, SinkAnswer, SinkError, SinkTransport};
use perkey::{Draft, Message};
use rdkafka::message::{Headers, Message as _};

use crate::fixture::SHARDS;
use crate::kafka_topic::Topic;
use crate::rabbitmq_place::{Streams, said};
use crate::sinks::{MemorySink, REFUSED};
use crate::store_contract::contract;

/// A sink whose other end can be looked at.
pub(crate) trait Mouth {
    /// The sink.
    fn sink(&self) -> &dyn SinkTransport;
    /// A sink of this kind whose other end takes nothing.
    fn stuck(&self) -> Arc<dyn SinkTransport>;
    /// The topic that events go to.
    fn topic(&self) -> Arc<str>;
    /// Events of a key that are refused, each for another reason.
    fn refusable(&self) -> Vec<Outgoing>;
    /// Keys and ids of what arrived; each key's in its order.
    fn arrived(&self) -> Vec<(String, String)>;
}

struct Memory(MemorySink);

impl Memory {
    async fn new() -> Box<Self> {
        Box::new(Self(MemorySink::default()))
    }
}

impl Mouth for Memory {
    fn sink(&self) -> &dyn SinkTransport {
        &self.0
    }

    fn stuck(&self) -> Arc<dyn SinkTransport> {
        let sink = MemorySink::default();
        sink.stop(true);
        Arc::new(sink)
    }

    fn topic(&self) -> Arc<str> {
        "out".into()
    }

    fn refusable(&self) -> Vec<Outgoing> {
        vec![Outgoing { topic: REFUSED.into(), ..event("out", 0, "k-0", b"{}") }]
    }

    fn arrived(&self) -> Vec<(String, String)> {
        let pair = |message: &Message| (message.key().to_owned(), message.id().to_owned());
        self.0.arrived().iter().map(|(_, message)| pair(message)).collect()
    }
}

struct Kafka {
    topic: Topic,
    sink: Arc<KafkaSink>,
}

impl Kafka {
    async fn new() -> Box<Self> {
        let topic = Topic::new(5).await;
        let mut settings = topic.settings();
        // A topic that is not there is given up at once, not after half a minute.
        settings.properties = vec!["topic.metadata.propagation.max.ms=200".to_owned()];
        let sink = KafkaSink::new(&settings).unwrap();
        Box::new(Self { topic, sink })
    }
}

impl Mouth for Kafka {
    fn sink(&self) -> &dyn SinkTransport {
        &*self.sink
    }

    fn stuck(&self) -> Arc<dyn SinkTransport> {
        // Port 1 is nobody's.
        let settings =
            perkey::unstable::settings::KafkaSettings { brokers: "127.0.0.1:1".to_owned(), ..self.topic.settings() };
        KafkaSink::new(&settings).unwrap()
    }

    fn topic(&self) -> Arc<str> {
        self.topic.name.as_str().into()
    }

    fn refusable(&self) -> Vec<Outgoing> {
        let large = vec![b'x'; 1_100_000];
        vec![event(&self.topic.name, 0, "k-0", &large), event("perkey_test_that_is_not_there", 0, "k-0", b"{}")]
    }

    fn arrived(&self) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        for record in self.topic.records().iter().flatten() {
            let headers = record.headers().unwrap();
            let id = headers.iter().find(|header| header.key == "ce_id").and_then(|header| header.value).unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            pairs.push((text(record.key().unwrap()), text(id)));
        }
        pairs
    }
}

struct Rabbitmq {
    sink: Arc<RabbitmqSink>,
    streams: Streams,
}

impl Rabbitmq {
    async fn new() -> Box<Self> {
        let streams = Streams::with(1, ExchangeKind::Fanout, &[]).await;
        // One that nothing is bound to.
        streams.wire.exchange(&format!("{}.beside", streams.name), ExchangeKind::Direct).await;
        let sink = RabbitmqSink::new(&Self::settings(&streams), SHARDS).unwrap();
        Box::new(Self { sink, streams })
    }

    fn settings(streams: &Streams) -> perkey::unstable::settings::RabbitmqSettings {
        perkey::unstable::settings::RabbitmqSettings { message_bytes_max: 1 << 20, ..streams.settings() }
    }
}

impl Mouth for Rabbitmq {
    fn sink(&self) -> &dyn SinkTransport {
        &*self.sink
    }

    fn stuck(&self) -> Arc<dyn SinkTransport> {
        let settings = Self::settings(&self.streams);
        let settings = perkey::unstable::settings::RabbitmqSettings { addresses: "127.0.0.1:1".to_owned(), ..settings };
        RabbitmqSink::new(&settings, SHARDS).unwrap()
    }

    fn topic(&self) -> Arc<str> {
        format!("{}:{{key}}", self.streams.name).into()
    }

    fn refusable(&self) -> Vec<Outgoing> {
        let (large, nowhere) = (vec![b'x'; 1_100_000], format!("{}.beside:nobody", self.streams.name));
        vec![
            event(&self.topic(), 0, "k-0", &large),
            event("perkey_test_that_is_not_there:x", 0, "k-0", b"{}"),
            event(&nowhere, 0, "k-0", b"{}"),
        ]
    }

    fn arrived(&self) -> Vec<(String, String)> {
        self.streams.read_apart(0).iter().map(said).collect()
    }
}

contract! {
    memory: super::Memory::new();
    kafka: super::Kafka::new();
    rabbitmq: super::Rabbitmq::new();
    => [
        every_event_is_confirmed_once_and_keys_keep_their_order,
        each_end_gets_its_own_answers,
        what_cannot_go_out_is_not_taken_without_bound,
        refused_events_are_exactly_those,
        a_dropped_end_loses_nothing,
        a_dropped_wait_loses_no_answer,
    ]
}

const BOUND: Duration = Duration::from_secs(30);
const KEYS: u64 = 37;

pub(crate) fn event(topic: &str, seq: u64, key: &str, payload: &[u8]) -> Outgoing {
    let id = format!("e-{seq}");
    let draft = Draft { id: &id, key, kind: "posted", source: "test", time: 7, payload, ..Draft::default() };
    Outgoing { seq, topic: topic.into(), message: draft.build().unwrap() }
}

fn events(mouth: &dyn Mouth, seqs: std::ops::Range<u64>) -> Vec<Outgoing> {
    let topic = mouth.topic();
    seqs.map(|seq| event(&topic, seq, &format!("k-{}", seq % KEYS), b"{\"n\":1}")).collect()
}

/// Sends all of `events` as there is room, and gives the answers to them.
pub(crate) async fn publish(end: &mut dyn Sink, events: &[Outgoing]) -> Vec<SinkAnswer> {
    let (mut sent, mut answers) = (0, Vec::new());
    while answers.len() < events.len() {
        sent += end.send(&events[sent..]).unwrap();
        let more = tokio::time::timeout(BOUND, end.answers()).await.expect("answers must come").unwrap();
        assert!(!more.is_empty());
        answers.extend(more);
    }
    answers
}

pub(crate) fn confirmed(answers: &[SinkAnswer]) -> BTreeSet<u64> {
    let confirmed: Vec<u64> =
        answers.iter().filter_map(|a| if let SinkAnswer::Confirmed(seq) = a { Some(*seq) } else { None }).collect();
    let once: BTreeSet<u64> = confirmed.iter().copied().collect();
    assert_eq!(once.len(), confirmed.len(), "an event is confirmed once");
    once
}

/// Ids by key, repeats removed.
pub(crate) fn by_key(arrived: Vec<(String, String)>) -> BTreeMap<String, Vec<String>> {
    let (mut seen, mut keys) = (BTreeSet::new(), BTreeMap::<String, Vec<String>>::new());
    for (key, id) in arrived {
        if seen.insert(id.clone()) {
            keys.entry(key).or_default().push(id);
        }
    }
    keys
}

pub(crate) fn expected(events: &[Outgoing]) -> BTreeMap<String, Vec<String>> {
    by_key(events.iter().map(|event| (event.message.key().to_owned(), event.message.id().to_owned())).collect())
}

async fn every_event_is_confirmed_once_and_keys_keep_their_order(mouth: Box<impl Mouth>) {
    let events = events(&*mouth, 1..3_001);
    let answers = publish(&mut *mouth.sink().open(2).await.unwrap(), &events).await;
    assert_eq!(confirmed(&answers), (1..3_001).collect());
    let arrived = mouth.arrived();
    assert_eq!(arrived.len(), events.len(), "no repeats where nothing failed");
    assert_eq!(by_key(arrived), expected(&events));
}

async fn each_end_gets_its_own_answers(mouth: Box<impl Mouth>) {
    let mut ends = Vec::new();
    for shard in 0..SHARDS {
        ends.push(mouth.sink().open(shard).await.unwrap());
    }
    for (start, end) in (1..).zip(&mut ends) {
        assert!(end.send(&events(&*mouth, start..start + 20)).unwrap() == 20);
    }
    for (start, end) in (1..).zip(&mut ends) {
        let mut answers = Vec::new();
        while answers.len() < 20 {
            answers.extend(tokio::time::timeout(BOUND, end.answers()).await.expect("answers must come").unwrap());
        }
        assert_eq!(confirmed(&answers), (start..start + 20).collect());
        assert!(end.answers().now_or_never().is_none());
    }
}

async fn what_cannot_go_out_is_not_taken_without_bound(mouth: Box<impl Mouth>) {
    let sink = mouth.stuck();
    let mut end = sink.open(0).await.unwrap();
    let events: Vec<Outgoing> = (1..1_001).map(|seq| event("out", seq, "k", &[b'x'; 1_000])).collect();
    let mut taken = 0;
    loop {
        match end.send(&events).unwrap() {
            0 => break,
            more => taken += more,
        }
        assert!(taken < 100_000, "{taken} events of 1 KB were taken");
    }
    assert!(taken > 0 && end.answers().now_or_never().is_none());
}

async fn refused_events_are_exactly_those(mouth: Box<impl Mouth>) {
    let mut events = events(&*mouth, 1..101);
    let mut refused = BTreeSet::new();
    for (at, refusable) in mouth.refusable().into_iter().enumerate() {
        let at = 20 + 30 * at;
        events[at] = Outgoing { seq: events[at].seq, ..refusable };
        refused.insert(events[at].seq);
    }
    let answers = publish(&mut *mouth.sink().open(2).await.unwrap(), &events).await;
    let reasons: BTreeMap<u64, &str> = answers
        .iter()
        .filter_map(|a| if let SinkAnswer::Refused(seq, why) = a { Some((*seq, &**why)) } else { None })
        .collect();
    assert_eq!(reasons.keys().copied().collect::<BTreeSet<_>>(), refused);
    assert!(reasons.values().all(|why| !why.is_empty()));
    assert_eq!(confirmed(&answers).len(), 100 - refused.len());
    let rest: Vec<Outgoing> = events.into_iter().filter(|event| !refused.contains(&event.seq)).collect();
    assert_eq!(by_key(mouth.arrived()), expected(&rest));
}

async fn a_dropped_end_loses_nothing(mouth: Box<impl Mouth>) {
    let events = events(&*mouth, 1..501);
    for _ in 0..3 {
        let mut end = mouth.sink().open(2).await.unwrap();
        end.send(&events).unwrap();
    }
    let answers = publish(&mut *mouth.sink().open(2).await.unwrap(), &events).await;
    assert_eq!(confirmed(&answers), (1..501).collect());
    assert_eq!(by_key(mouth.arrived()), expected(&events));
}

async fn a_dropped_wait_loses_no_answer(mouth: Box<impl Mouth>) {
    let events = events(&*mouth, 1..301);
    let mut end = mouth.sink().open(2).await.unwrap();
    let (mut sent, mut answers) = (0, Vec::new());
    while answers.len() < events.len() {
        sent += end.send(&events[sent..events.len().min(sent + 7)]).unwrap();
        // Dropped while it waits, then given a moment.
        if let Some(more) = end.answers().now_or_never() {
            answers.extend(more.unwrap());
        } else if sent == events.len() {
            answers.extend(tokio::time::timeout(BOUND, end.answers()).await.expect("answers must come").unwrap());
        }
    }
    assert_eq!(confirmed(&answers), (1..301).collect());
}

/// Events that were not confirmed when an end broke are sent again through a new one.
pub(crate) async fn a_broken_end_is_opened_anew(mouth: &dyn Mouth, break_it: impl FnOnce()) {
    let events = events(mouth, 1..201);
    let mut end = mouth.sink().open(2).await.unwrap();
    assert_eq!(confirmed(&publish(&mut *end, &events[..50]).await).len(), 50);
    break_it();
    let mut answers = Vec::new();
    let broken = loop {
        if let Err(error) = end.send(&events[50..60]) {
            break error;
        }
        match tokio::time::timeout(BOUND, end.answers()).await.expect("an end must not hang") {
            Ok(more) => answers.extend(more),
            Err(error) => break error,
        }
    };
    assert!(matches!(broken, SinkError::Broken { .. }), "{broken}");
    assert!(matches!(end.send(&events[50..51]), Err(SinkError::Broken { .. })), "it stays broken");
    drop(end);
    let mut end = mouth.sink().open(2).await.unwrap();
    assert_eq!(confirmed(&publish(&mut *end, &events[50..]).await).len(), 150);
    assert_eq!(by_key(mouth.arrived()), expected(&events));
}

#[tokio::test]
async fn a_sink_in_memory_is_opened_anew() {
    let mouth = Memory::new().await;
    let sink = mouth.0.clone();
    a_broken_end_is_opened_anew(&*mouth, || sink.break_ends()).await;
}
