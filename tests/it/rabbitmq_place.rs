//! Streams of a real broker, made for one test, with a publisher of its own at the other end.
//! In: a number of streams. Out: streams to write to, to read and to make anew; settings that read them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, ExchangeKind};
use perkey::Message;
use perkey::unstable::clock::{Clock, Dice, rfc3339};
use perkey::unstable::metrics::Metrics;
use perkey::unstable::settings::RabbitmqSettings;
use perkey::unstable::transport::Transport;
use perkey::unstable::transport::rabbitmq::RabbitmqTransport;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::fixture::SHARDS;
use crate::servers;
use crate::transport_contract::Line;

const BOUND: Duration = Duration::from_secs(30);
/// Begins the name of everything that a test makes; what is left of old runs is removed by the next.
const PREFIX: &str = "perkey_test_";
const KEEP: Duration = Duration::from_secs(3_600);
/// The id of the message that is put behind all that is to be read.
const MARK: &str = "perkey-test-mark";
/// Deliveries that are read ahead, and how many are acknowledged at once.
const AHEAD: u16 = 400;

/// A message to write.
#[derive(Clone, Default)]
pub(crate) struct Written<'a> {
    pub(crate) stream: u32,
    pub(crate) payload: &'a [u8],
    pub(crate) properties: BasicProperties,
}

/// A connection of a test's own.
pub(crate) struct Wire {
    pub(crate) channel: Channel,
    connection: Connection,
}

impl Wire {
    pub(crate) async fn open() -> Self {
        let uri = format!("amqp://guest:guest@{}/%2f", servers::rabbitmq());
        let connection = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Self { channel, connection }
    }

    /// Publishes all, to an exchange with a routing key each, and waits until they are confirmed.
    pub(crate) async fn publish(&self, exchange: &str, all: impl Into<Vec<(String, &[u8], BasicProperties)>>) {
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let mut confirms = Vec::new();
        for (key, payload, properties) in all.into() {
            let (exchange, key) = (ShortString::from(exchange), ShortString::from(key));
            confirms.push(self.channel.basic_publish(exchange, key, mandatory, payload, properties).await.unwrap());
        }
        for confirm in confirms {
            let confirmed = timeout(BOUND, confirm).await.expect("it is confirmed").unwrap();
            assert!(matches!(confirmed, Confirmation::Ack(None)), "{confirmed:?}");
        }
    }

    pub(crate) async fn exchange(&self, name: &str, kind: ExchangeKind) {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        self.channel.exchange_declare(name.into(), kind, durable, FieldTable::default()).await.unwrap();
    }

    pub(crate) async fn queue(&self, name: &str, arguments: FieldTable) {
        self.channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
    }

    pub(crate) async fn bind(&self, queue: &str, exchange: &str, key: &str) {
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        self.channel.queue_bind(queue.into(), exchange.into(), key.into(), options, none).await.unwrap();
    }

    /// The number of messages in a queue; for a stream it is known only seconds later.
    pub(crate) async fn count(&self, queue: &str) -> usize {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await.unwrap();
        usize::try_from(declared.message_count()).unwrap()
    }

    async fn consume(&self, stream: &str, prefetch: u16) -> Consumer {
        self.channel.basic_qos(prefetch, BasicQosOptions::default()).await.unwrap();
        let (options, first) = (BasicConsumeOptions::default(), table(&[("x-stream-offset", text("first"))]));
        self.channel.basic_consume(stream.into(), "".into(), options, first).await.unwrap()
    }

    /// Waits until an intake can be published to, which somebody else declares.
    pub(crate) async fn await_intake(&self, name: &str) {
        self.await_queue(name).await;
        // Its binding is the last to be made, and made twice is made once.
        self.bind(name, name, "#").await;
    }

    /// Waits until a queue is there, which somebody else declares.
    async fn await_queue(&self, name: &str) {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        for _ in 0..600 {
            // That it is not there ends the channel.
            let channel = self.connection.create_channel().await.unwrap();
            if channel.queue_declare(name.into(), passive, FieldTable::default()).await.is_ok() {
                return;
            }
            perkey::sleep(Duration::from_millis(20)).await;
        }
        panic!("{name} is not declared");
    }
}

pub(crate) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A value of AMQP that is a text in bytes.
pub(crate) fn bytes(value: &[u8]) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

pub(crate) fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// Properties with these headers.
pub(crate) fn headed(headers: &[(&str, AMQPValue)]) -> BasicProperties {
    BasicProperties::default().with_headers(table(headers))
}

/// Runs a future in a runtime of its own, for those who cannot wait otherwise; none when it panics.
fn apart<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let run = move || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
    std::thread::spawn(run).join().ok()
}

/// An exchange of its own, and streams that are bound to it by their numbers.
pub(crate) struct Streams {
    pub(crate) name: String,
    pub(crate) wire: Wire,
    count: u32,
    arguments: FieldTable,
}

impl Streams {
    /// A name, for those who declare the rest themselves.
    pub(crate) async fn named() -> Self {
        Self::with(0, ExchangeKind::Direct, &[]).await
    }

    pub(crate) async fn new(count: u32) -> Self {
        Self::with(count, ExchangeKind::Direct, &[]).await
    }

    pub(crate) async fn with(count: u32, kind: ExchangeKind, arguments: &[(&str, AMQPValue)]) -> Self {
        static SWEPT: OnceCell<()> = OnceCell::const_new();
        SWEPT.get_or_init(remove_old).await;
        let (now, chance) = (Clock::system().now(), Dice::from_system().below(u64::MAX));
        let age = format!("{}s", KEEP.as_secs());
        let mut all = vec![("x-queue-type", text("stream")), ("x-max-age", text(&age))];
        all.extend_from_slice(arguments);
        let (name, wire) = (format!("{PREFIX}{now}_{chance:016x}"), Wire::open().await);
        let streams = Self { name, wire, count, arguments: table(&all) };
        if count > 0 {
            streams.wire.exchange(&streams.name, kind).await;
        }
        for stream in 0..count {
            streams.create(stream).await;
        }
        streams
    }

    /// The name of a stream, or of a queue or exchange beside them.
    pub(crate) fn stream(&self, number: u32) -> String {
        format!("{}-{number}", self.name)
    }

    pub(crate) async fn create(&self, number: u32) {
        let stream = self.stream(number);
        self.wire.queue(&stream, self.arguments.clone()).await;
        self.wire.bind(&stream, &self.name, &number.to_string()).await;
    }

    pub(crate) async fn delete(&self, number: u32) {
        self.wire.channel.queue_delete(self.stream(number).into(), QueueDeleteOptions::default()).await.unwrap();
    }

    pub(crate) async fn write(&self, all: &[Written<'_>]) {
        let mut sent = Vec::new();
        for Written { stream, payload, properties } in all {
            sent.push((self.stream(*stream), *payload, properties.clone()));
        }
        self.wire.publish("", sent).await;
    }

    /// Writes plain messages with ids `tag-0`, `tag-1`, …
    pub(crate) async fn fill(&self, stream: u32, tag: &str, ids: std::ops::Range<u32>) {
        self.fill_with(stream, tag, ids, b"{}").await;
    }

    pub(crate) async fn fill_with(&self, stream: u32, tag: &str, ids: std::ops::Range<u32>, payload: &[u8]) {
        let plain = headed(&[("key", text("k"))]);
        let properties = |id: u32| plain.clone().with_message_id(format!("{tag}-{id}").into());
        let all: Vec<_> = ids.map(|id| Written { stream, payload, properties: properties(id) }).collect();
        self.write(&all).await;
    }

    /// Settings with which only these streams are read, and nothing is declared.
    pub(crate) fn settings(&self) -> RabbitmqSettings {
        RabbitmqSettings {
            addresses: servers::rabbitmq(),
            streams: vec![self.name.clone()],
            declare: false,
            max_age: KEEP,
            ..RabbitmqSettings::default()
        }
    }

    pub(crate) fn transport(&self) -> Arc<RabbitmqTransport> {
        RabbitmqTransport::new(&self.settings(), SHARDS, &Metrics::new()).unwrap()
    }

    /// Everything that is in a stream now, in order. Its readers get one more message, the mark behind it.
    pub(crate) async fn read(&self, stream: u32) -> Vec<Delivery> {
        read(self.stream(stream)).await
    }

    /// Everything that is in a stream now, for callers that cannot await.
    pub(crate) fn read_apart(&self, stream: u32) -> Vec<Delivery> {
        apart(read(self.stream(stream))).unwrap()
    }

    /// The offset of the oldest message of a stream that has some.
    pub(crate) async fn first_offset(&self, stream: u32) -> usize {
        let wire = Wire::open().await;
        let mut consumer = wire.consume(&self.stream(stream), 1).await;
        let oldest = timeout(BOUND, consumer.next()).await.expect("a stream has an oldest message").unwrap().unwrap();
        match oldest.properties.headers().as_ref().unwrap().inner().get("x-stream-offset") {
            Some(AMQPValue::LongLongInt(offset)) => usize::try_from(*offset).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

/// Everything that is in a stream now: what comes before a mark that is put behind it. The broker's count is seconds old.
async fn read(stream: String) -> Vec<Delivery> {
    let wire = Wire::open().await;
    let mark = format!("{MARK}-{}", Dice::from_system().below(u64::MAX));
    let properties = BasicProperties::default().with_message_id(mark.as_str().into());
    wire.publish("", [(stream.clone(), &b""[..], properties)]).await;
    let mut consumer = wire.consume(&stream, AHEAD).await;
    let mut all = Vec::new();
    for count in 1.. {
        let delivery = timeout(BOUND, consumer.next()).await.expect("what is there comes").unwrap().unwrap();
        if count % (AHEAD / 2) == 0 {
            delivery.ack(BasicAckOptions { multiple: true }).await.unwrap();
        }
        match delivery.properties.message_id() {
            Some(id) if id.as_str() == mark => break,
            Some(id) if id.as_str().starts_with(MARK) => {}
            Some(_) | None => all.push(delivery),
        }
    }
    all
}

/// Key and id of an event.
pub(crate) fn said(delivery: &Delivery) -> (String, String) {
    let properties = &delivery.properties;
    let key = properties.headers().as_ref().and_then(|headers| headers.inner().get("cloudEvents_partitionkey"));
    let Some(AMQPValue::LongString(key)) = key else { panic!("{delivery:?} has no key") };
    (key.to_string(), properties.message_id().as_ref().unwrap().to_string())
}

/// Removes everything that a test declares; it is not an error if something does not exist.
async fn remove(queues: Vec<String>, exchanges: Vec<String>) {
    let wire = Wire::open().await;
    for queue in queues {
        wire.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }
    for exchange in exchanges {
        wire.channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    }
    wire.connection.close(200, "done".into()).await.unwrap();
}

/// Removes what is left of runs that were killed. AMQP has no list; the management pages have one.
async fn remove_old() {
    let Ok(pages) = std::env::var("RABBITMQ_MANAGEMENT") else { return };
    let now = Clock::system().now();
    let old = |name: &str| {
        let made = name.strip_prefix(PREFIX).and_then(|rest| rest.split('_').next()?.parse::<u64>().ok());
        made.is_some_and(|made| u128::from(made) + KEEP.as_millis() < u128::from(now))
    };
    let mut found = Vec::new();
    for kind in ["queues", "exchanges"] {
        let asked = reqwest::Client::new().get(format!("http://{pages}/api/{kind}/%2F?columns=name"));
        let listed = asked.basic_auth("guest", Some("guest")).send().await.unwrap();
        let listed: Vec<serde_json::Value> = listed.json().await.unwrap();
        let names = listed.iter().filter_map(|entry| entry["name"].as_str()).filter(|name| old(name));
        found.push(names.map(str::to_owned).collect::<Vec<_>>());
    }
    let exchanges = found.pop().unwrap();
    let queues = found.pop().unwrap();
    if !(queues.is_empty() && exchanges.is_empty()) {
        remove(queues, exchanges).await;
    }
}

/// Also when a test panics. What was connected to them must be dropped before, or it may declare them again.
impl Drop for Streams {
    fn drop(&mut self) {
        let beside = |suffixes: &[&str]| -> Vec<String> {
            suffixes.iter().map(|suffix| format!("{}{suffix}", self.name)).collect()
        };
        let mut queues = beside(&[".intake", ".intake.dead", ".beside"]);
        queues.extend((0..self.count.max(SHARDS)).map(|number| self.stream(number)));
        let exchanges = beside(&["", ".intake", ".intake.dead", ".beside"]);
        apart(remove(queues, exchanges));
    }
}

/// Streams as a line of the contract: stream `target + SHARDS * origin`.
pub(crate) struct RabbitmqLine {
    transport: Arc<RabbitmqTransport>,
    streams: Streams,
}

impl RabbitmqLine {
    pub(crate) async fn new() -> Box<Self> {
        let streams = Streams::new(SHARDS * SHARDS).await;
        let transport = streams.transport();
        Box::new(Self { transport, streams })
    }
}

/// A message as an event in binary mode.
pub(crate) fn event(message: &Message) -> BasicProperties {
    let time = rfc3339(message.time());
    headed(&[
        ("cloudEvents_specversion", text("1.0")),
        ("cloudEvents_id", text(message.id())),
        ("cloudEvents_type", text(message.kind())),
        ("cloudEvents_source", text(message.source())),
        ("cloudEvents_time", text(&time)),
        ("cloudEvents_partitionkey", text(message.key())),
    ])
}

impl Line for RabbitmqLine {
    fn transport(&self) -> &dyn Transport {
        &*self.transport
    }

    fn append<'a>(&'a mut self, origin: u32, target: u32, messages: &'a [Message]) -> BoxFuture<'a, ()> {
        let stream = target + SHARDS * origin;
        let written = |message: &'a Message| Written { stream, payload: message.payload(), properties: event(message) };
        let all: Vec<_> = messages.iter().map(written).collect();
        Box::pin(async move { self.streams.write(&all).await })
    }

    fn garble(&mut self, origin: u32, target: u32) -> BoxFuture<'_, ()> {
        let stream = target + SHARDS * origin;
        Box::pin(async move {
            let (payload, properties) = (&b"\xff\xfenot a message"[..], headed(&[("cloudEvents_id", bytes(b"\xff"))]));
            self.streams.write(&[Written { stream, payload, properties }]).await;
        })
    }

    fn garbled(&self) -> &'static str {
        "not valid UTF-8"
    }

    fn settled(&self) -> Duration {
        Duration::from_millis(300)
    }
}
