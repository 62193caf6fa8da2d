//! RabbitMQ from a scenario's side: fresh streams, a steady load on some, and all messages of another.
//! In: postings. Out: records in the order of their accounts; events in the order of their stream.

use std::collections::VecDeque;
use std::future::{pending, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, ExchangeKind};
use perkey::sleep;
use perkey::unstable::clock::{Dice, Stopwatch};
use perkey::unstable::message::shard_of;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::ChaosError;
use crate::fleet::record::Record;

/// The number of input streams: as many as there are shards.
pub const PARTITIONS: u32 = 8;
const WITHIN: Duration = Duration::from_secs(60);
/// A server that says nothing for this long is asked again; a stream that delivers nothing for this long lacks
/// messages.
const SILENCE: Duration = Duration::from_secs(20);
/// The first message to a stream over a connection is confirmed within this time, or never.
const FIRST_WITHIN: Duration = Duration::from_secs(3);
/// The pause before another connection is tried.
pub(super) const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// The most records that wait to be sent while the server is away.
const QUEUE: usize = 200_000;
/// The most records that are sent and not confirmed.
const WINDOW: usize = 1_000;
/// The number of deliveries that are read ahead, and acknowledged at once.
const PREFETCH: u16 = 1_000;
const ACK_EVERY: usize = 200;
/// The delivery mode of a message that outlives the server.
const PERSISTENT: u8 = 2;
/// The type of the message that a reader puts behind everything else.
const END: &str = "perkey-chaos-end";

impl From<lapin::Error> for ChaosError {
    fn from(error: lapin::Error) -> Self {
        stuck(error)
    }
}

fn stuck(what: impl std::fmt::Display) -> ChaosError {
    ChaosError::Stuck(format!("RabbitMQ: {what}"))
}

/// Exchanges and their streams that one scenario has for itself.
#[derive(Clone, Debug)]
pub struct Streams {
    pub(super) address: String,
    /// The exchange before the streams that workers read.
    pub input: String,
    /// The exchange that workers publish to.
    pub output: String,
}

impl Streams {
    /// Makes the exchanges and streams; their names end in `suffix`.
    pub async fn make(address: &str, suffix: &str) -> Result<Self, ChaosError> {
        let [input, output] = ["in", "out"].map(|way| format!("perkey_test_ledger.{way}.{suffix}"));
        let streams = Self { address: address.to_owned(), input, output };
        let line = Line::open(address).await?;
        // Perkey finds the stream of a shard by its number; the output of workers is one stream for all.
        line.declare(&streams.input, ExchangeKind::Direct, PARTITIONS).await?;
        line.declare(&streams.output, ExchangeKind::Fanout, 1).await?;
        Ok(streams)
    }

    /// Removes the exchanges and streams.
    pub async fn remove(&self) -> Result<(), ChaosError> {
        let Line { channel, .. } = Line::open(&self.address).await?;
        for exchange in [&self.input, &self.output] {
            for stream in self.behind(exchange) {
                channel.queue_delete(stream.as_str().into(), QueueDeleteOptions::default()).await?;
            }
            channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await?;
        }
        channel.queue_delete(beside(&self.output).into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }

    /// The streams behind one of the two exchanges.
    fn behind(&self, exchange: &str) -> Vec<String> {
        let count = if exchange == self.output { 1 } else { PARTITIONS };
        (0..count).map(|number| format!("{exchange}-{number}")).collect()
    }

    /// The settings of a worker that reaches RabbitMQ at `address`.
    pub fn settings(&self, address: &str) -> String {
        let Self { input, output, .. } = self;
        // The streams are declared with the same arguments again: without a maximum age.
        format!(
            r#"
[rabbitmq]
addresses = "{address}"
streams = ["{input}"]
max_age = "0s"
heartbeat = "2s"

[[bind]]
source = "rabbitmq"
type = "{input}"
service = "balances"

[[publish]]
service = "balances"
type = "balance.changed"
sink = "rabbitmq"
topic = "{output}:{{key}}"
"#
        )
    }

    /// A producer of records for the input.
    pub fn producer(&self) -> Input {
        let (records, waiting) = mpsc::channel(QUEUE);
        let news = Arc::new(News::default());
        let streams = self.clone();
        let publisher = Publisher { streams, waiting, window: VecDeque::new(), news: Arc::clone(&news) };
        let mut tasks = JoinSet::new();
        tasks.spawn(publisher.run());
        Input { records, news, _tasks: tasks }
    }

    /// The values of all messages behind `exchange` now, in order for each stream.
    pub async fn read(&self, exchange: &str) -> Result<Vec<Vec<Vec<u8>>>, ChaosError> {
        let mut all = Vec::new();
        for stream in self.behind(exchange) {
            all.push(Line::open(&self.address).await?.read(&stream).await?);
        }
        Ok(all)
    }
}

/// The queue beside the streams of an exchange.
pub(super) fn beside(exchange: &str) -> String {
    format!("{exchange}.beside")
}

/// A connection and its channel.
pub(super) struct Line {
    pub(super) channel: Channel,
    // When dropped, it is closed.
    _connection: Connection,
}

impl Line {
    pub(super) async fn open(address: &str) -> Result<Self, ChaosError> {
        let uri = format!("amqp://guest:guest@{address}/%2f?heartbeat=5");
        let open = async {
            let connection = Connection::connect(&uri, ConnectionProperties::default()).await?;
            Ok(Self { channel: connection.create_channel().await?, _connection: connection })
        };
        timeout(SILENCE, open).await.map_err(|_| stuck("no connection"))?
    }

    /// Declares an exchange and the streams behind it, bound by their numbers.
    async fn declare(&self, exchange: &str, kind: ExchangeKind, count: u32) -> Result<(), ChaosError> {
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        self.channel.exchange_declare(exchange.into(), kind, durable, FieldTable::default()).await?;
        for number in 0..count {
            let (stream, key) = (format!("{exchange}-{number}"), number.to_string());
            let options = QueueDeclareOptions::durable();
            self.channel.queue_declare(stream.as_str().into(), options, text("x-queue-type", "stream")).await?;
            let (options, none) = (QueueBindOptions::default(), FieldTable::default());
            self.channel.queue_bind(stream.into(), exchange.into(), key.into(), options, none).await?;
        }
        Ok(())
    }

    /// Sends a message at the first poll; ends when the broker has confirmed it.
    async fn publish(
        &self,
        exchange: &str,
        key: &str,
        properties: BasicProperties,
        value: &str,
    ) -> Result<(), ChaosError> {
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = properties.with_delivery_mode(PERSISTENT);
        let sent = self.channel.basic_publish(exchange.into(), key.into(), mandatory, value.as_bytes(), properties);
        match sent.await?.await? {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(returned)) => Err(stuck(returned.reply_text)),
            refused => Err(stuck(format!("{refused:?}"))),
        }
    }

    async fn send(&self, exchange: &str, record: Record) -> Result<(), ChaosError> {
        let stream = record.stream().to_string();
        let properties = BasicProperties::default()
            .with_message_id(record.id.as_str().into())
            .with_content_type("application/json".into())
            .with_headers(text("key", &record.account));
        self.publish(exchange, &stream, properties, &record.value).await
    }

    /// All messages of `stream` before a mark that is put at its end.
    async fn read(&self, stream: &str) -> Result<Vec<Vec<u8>>, ChaosError> {
        let mark = format!("{:016x}", Dice::from_system().below(u64::MAX));
        self.channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let properties = BasicProperties::default().with_type(END.into()).with_message_id(mark.as_str().into());
        soon(SILENCE, self.publish("", stream, properties, "")).await?;
        self.channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let (options, first) = (BasicConsumeOptions::default(), text("x-stream-offset", "first"));
        let mut consumer = self.channel.basic_consume(stream.into(), "".into(), options, first).await?;
        let mut values = Vec::new();
        for count in 1.. {
            let delivery = next(&mut consumer, stream).await?;
            if count % ACK_EVERY == 0 {
                delivery.ack(BasicAckOptions { multiple: true }).await?;
            }
            let said = |property: &Option<lapin::types::ShortString>, word: &str| {
                property.as_ref().is_some_and(|property| property.as_str() == word)
            };
            match said(delivery.properties.kind(), END) {
                true if said(delivery.properties.message_id(), &mark) => break,
                // The mark of another reader.
                true => {}
                false => values.push(delivery.data),
            }
        }
        Ok(values)
    }
}

pub(super) async fn next(consumer: &mut Consumer, stream: &str) -> Result<Delivery, ChaosError> {
    match timeout(SILENCE, consumer.next()).await {
        Ok(Some(delivery)) => Ok(delivery?),
        Ok(None) => Err(stuck(format!("reading {stream} was ended"))),
        Err(_) => Err(stuck(format!("the contents of {stream} did not come"))),
    }
}

type Sent<'a> = Pin<Box<dyn Future<Output = Result<(), ChaosError>> + Send + 'a>>;

/// Polls `sent` for the first time: it is on its way before whatever is sent after it, without waiting for its end.
fn begun<'a>(sent: impl Future<Output = Result<(), ChaosError>> + Send + 'a) -> Sent<'a> {
    let mut sent = Box::pin(sent);
    match sent.as_mut().now_or_never() {
        Some(ended) => Box::pin(ready(ended)),
        None => sent,
    }
}

/// Waits for an answer, but not for ever.
async fn soon(within: Duration, answer: impl Future<Output = Result<(), ChaosError>>) -> Result<(), ChaosError> {
    timeout(within, answer).await.map_err(|_| stuck("it confirms nothing"))?
}

pub(super) fn text(name: &str, value: &str) -> FieldTable {
    let mut table = FieldTable::default();
    table.insert(name.into(), AMQPValue::LongString(value.into()));
    table
}

#[derive(Debug, Default)]
struct News {
    stored: AtomicU64,
    /// The reason why the last connection ended.
    trouble: Mutex<String>,
}

/// Sends the records that wait, over one connection after another.
struct Publisher {
    streams: Streams,
    waiting: mpsc::Receiver<Record>,
    /// The records that are sent and not confirmed, in order.
    window: VecDeque<Record>,
    news: Arc<News>,
}

impl Publisher {
    async fn run(mut self) {
        while let Err(error) = self.session().await {
            *self.news.trouble.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
            sleep(AGAIN_AFTER).await;
        }
    }

    /// Sends until all senders are gone, or the connection breaks. Records that were not confirmed before are sent
    /// again first, in order: those that are there already are repeated with their ids, and no account's records change
    /// places.
    ///
    /// A server that has just started does not route to a stream yet, or loses the messages behind one that had to wait
    /// for the stream's leader (it confirms them all the same, before 4.0). So nothing goes to a stream after the first
    /// message before that one is confirmed.
    async fn session(&mut self) -> Result<(), ChaosError> {
        let exchange = self.streams.input.clone();
        let line = Line::open(&self.streams.address).await?;
        line.channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let mut works = [false; PARTITIONS as usize];
        let mut confirms: VecDeque<Sent<'_>> = VecDeque::new();
        loop {
            while let Some(record) = self.window.get(confirms.len())
                && (confirms.is_empty() || works[record.stream()])
            {
                confirms.push_back(begun(line.send(&exchange, record.clone())));
            }
            let (sent, waiting) = (confirms.len(), self.window.len());
            let first = self.window.front().map(Record::stream);
            let within = if first.is_some_and(|stream| works[stream]) { SILENCE } else { FIRST_WITHIN };
            let oldest = async {
                match confirms.front_mut() {
                    Some(confirm) => soon(within, confirm).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                answer = oldest => {
                    answer?;
                    confirms.pop_front();
                    self.window.pop_front();
                    self.news.stored.fetch_add(1, Ordering::Relaxed);
                    if let Some(stream) = first {
                        works[stream] = true;
                    }
                }
                record = self.waiting.recv(), if sent == waiting && waiting < WINDOW => {
                    let Some(record) = record else { return Ok(()) };
                    self.window.push_back(record);
                }
            }
        }
    }
}

impl Record {
    /// The number of its stream: the shard of its account.
    fn stream(&self) -> usize {
        shard_of(&self.account, PARTITIONS) as usize
    }
}

/// Puts records on the input, in order for each account. When dropped, it sends nothing more.
pub struct Input {
    records: mpsc::Sender<Record>,
    news: Arc<News>,
    _tasks: JoinSet<()>,
}

impl Input {
    /// Hands a record over; waits while there is no room.
    pub async fn put(&self, record: &Record) -> Result<(), ChaosError> {
        self.records.send(record.clone()).await.map_err(|_| stuck("nobody publishes any more"))
    }

    /// The number of records that the broker has confirmed.
    pub fn stored(&self) -> u64 {
        self.news.stored.load(Ordering::Relaxed)
    }

    /// Waits until the broker has confirmed `count` records.
    pub async fn flush(&self, count: u64) -> Result<(), ChaosError> {
        let watch = Stopwatch::start();
        while self.stored() < count && watch.elapsed() < WITHIN * 2 {
            sleep(Duration::from_millis(5)).await;
        }
        let stored = self.stored();
        if stored != count {
            let trouble = self.news.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
            return Err(stuck(format!("of {count} records {stored} were written; {trouble}")));
        }
        Ok(())
    }
}
