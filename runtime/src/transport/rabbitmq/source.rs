//! One shard's streams: read from the store's positions, compared when they are attached, attached anew when the line
//! breaks.
//! In: positions. Out: deliveries, each stream's in order; as many read ahead as `rabbitmq.prefetch` and
//! `rabbitmq.buffer_bytes` allow.
//!
//! A delivery is acknowledged when the shard comes back for more, which is what lets the broker send further ones: a
//! stream keeps all of them, whatever is acknowledged.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, Stream, StreamExt};
use lapin::message::Delivery as Raw;
use lapin::options::BasicAckOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, Channel, Consumer, ErrorKind};
use tokio::time::timeout;

use super::ahead::ReadAhead;
use super::client::Client;
use super::record::{StreamPlace, StreamRecord};
use super::start::{First, StreamLoss, compare, ways_on};
use super::topology::{self, ANSWER, origin, stream};
use super::{NAME, RabbitmqFailure};
use crate::message::{Position, Positions, ShardNo};
use crate::settings::topic_of;
use crate::transport::{Delivery, Source, SourceError};

/// The reason why streams cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
enum StreamTrouble {
    #[error(transparent)]
    Broker(#[from] RabbitmqFailure),
    #[error("{origin}: {failure}")]
    Stream { origin: String, failure: RabbitmqFailure },
    #[error("{0} is not a stream: declare it with x-queue-type=stream")]
    NoStream(String),
    #[error("{0} gives nothing within {ANSWER:?}")]
    Silent(String),
    /// The client gives the connection up at such a message, and would at each attempt: an operator has to decide.
    #[error(
        "{origin}: the message at offset {next}, or one behind it that was read ahead, cannot be read: a property or the name \
         of a header is not valid UTF-8"
    )]
    Unreadable { origin: String, next: u64 },
    /// An operator has to decide.
    #[error("{}", ways_on(.entry, format_args!("{origin}: {loss}")))]
    Lost { entry: String, origin: String, loss: StreamLoss },
}

/// A stream that is read.
struct StreamReader {
    place: StreamPlace,
    origin: Arc<str>,
    /// Keeps the channel open.
    _channel: Channel,
    consumer: Consumer,
    /// A delivery that came while the stream was compared.
    held: Option<Raw>,
    /// The lowest offset that was not handed over.
    next: u64,
    /// The last delivery that was handed over and not acknowledged.
    unacknowledged: Option<Acker>,
    /// The reason why it delivers nothing more: reported once by the client, and never again.
    failed: Option<StreamTrouble>,
}

enum SourceState {
    Closed,
    /// A fetch may be given up long before this ends; the next one continues it.
    Opening(BoxFuture<'static, Result<Vec<StreamReader>, StreamTrouble>>),
    Open(Vec<StreamReader>),
}

/// One shard's end.
pub(super) struct RabbitmqSource {
    client: Arc<Client>,
    shard: ShardNo,
    /// The last positions handed over, or resumed from.
    last: Positions,
    state: SourceState,
    /// The reader that is asked first.
    turn: usize,
    ahead: ReadAhead,
}

impl RabbitmqSource {
    pub(super) fn new(client: Arc<Client>, shard: ShardNo, from: Positions) -> Self {
        let settings = &client.settings;
        let ahead = ReadAhead::new(settings.prefetch, settings.buffer_bytes / settings.streams.len().max(1));
        Self { client, shard, last: from, state: SourceState::Closed, turn: 0, ahead }
    }

    async fn more(&mut self, max: usize) -> Result<Vec<Delivery>, SourceError> {
        loop {
            match &mut self.state {
                SourceState::Closed => {
                    let (client, last) = (Arc::clone(&self.client), self.last.clone());
                    let opening = open(client, self.shard, last, self.ahead.prefetch());
                    self.state = SourceState::Opening(Box::pin(opening));
                }
                SourceState::Opening(opening) => {
                    let opened = opening.await;
                    self.state = SourceState::Closed;
                    match opened {
                        Ok(readers) => self.state = SourceState::Open(readers),
                        Err(trouble) => return Err(trouble.into()),
                    }
                }
                SourceState::Open(readers) => {
                    let taken = async {
                        acknowledge(readers).await?;
                        let key_header = self.client.settings.key_header.as_str();
                        std::future::poll_fn(|context| take(readers, self.turn, max, key_header, context)).await
                    };
                    match taken.await {
                        Ok(deliveries) => {
                            self.turn = self.turn.wrapping_add(1);
                            for delivery in &deliveries {
                                self.last.insert(Arc::clone(&delivery.origin), delivery.position);
                                self.ahead.came(delivery.bytes());
                            }
                            if self.ahead.changed() {
                                // Deliveries that were read ahead come again.
                                self.state = SourceState::Closed;
                            }
                            return Ok(deliveries);
                        }
                        Err(trouble) => {
                            self.state = SourceState::Closed;
                            return Err(trouble.into());
                        }
                    }
                }
            }
        }
    }
}

impl Source for RabbitmqSource {
    fn fetch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        if max == 0 {
            return Box::pin(std::future::pending());
        }
        Box::pin(self.more(max))
    }

    fn committed(&mut self, _positions: &Positions) {
        // A stream keeps its records until its retention removes them: there is nobody to tell.
    }
}

impl From<StreamTrouble> for SourceError {
    fn from(trouble: StreamTrouble) -> Self {
        let (name, reason) = (NAME.to_owned(), trouble.to_string());
        match trouble {
            StreamTrouble::Unreadable { .. } | StreamTrouble::Lost { .. } => Self::Lost { name, reason },
            StreamTrouble::Broker(_)
            | StreamTrouble::Stream { .. }
            | StreamTrouble::NoStream(_)
            | StreamTrouble::Silent(_) => Self::Unavailable { name, reason },
        }
    }
}

/// Tells the broker that the deliveries handed over were taken, so that it sends more.
async fn acknowledge(readers: &mut [StreamReader]) -> Result<(), RabbitmqFailure> {
    for reader in readers {
        // Taken before it is sent: sent twice, it would end the channel. If this is given up before it was sent, the
        // next acknowledgement covers this one, too.
        if let Some(acker) = reader.unacknowledged.take() {
            acker.ack(BasicAckOptions { multiple: true }).await?;
        }
    }
    Ok(())
}

/// Takes deliveries that are ready, at most `max`, beginning with another reader each time. Nothing is awaited between
/// taking and returning them.
fn take(
    readers: &mut [StreamReader],
    turn: usize,
    max: usize,
    key_header: &str,
    context: &mut Context<'_>,
) -> Poll<Result<Vec<Delivery>, StreamTrouble>> {
    let (mut taken, mut failed) = (Vec::new(), None);
    let count = readers.len();
    for at in 0..count {
        let reader = &mut readers[turn.wrapping_add(at) % count];
        while taken.len() < max {
            match reader.next(context) {
                Poll::Ready(Ok(raw)) => match reader.deliver(&raw, key_header) {
                    Ok(delivery) => {
                        reader.unacknowledged = Some(raw.acker);
                        taken.extend(delivery);
                    }
                    Err(trouble) => {
                        failed = Some(trouble);
                        break;
                    }
                },
                Poll::Ready(Err(trouble)) => {
                    failed = Some(trouble);
                    break;
                }
                Poll::Pending => break,
            }
        }
    }
    match failed {
        // Taken deliveries go first: the reader that failed will say so again.
        _ if !taken.is_empty() => Poll::Ready(Ok(taken)),
        Some(trouble) => Poll::Ready(Err(trouble)),
        None => Poll::Pending,
    }
}

impl StreamReader {
    fn next(&mut self, context: &mut Context<'_>) -> Poll<Result<Raw, StreamTrouble>> {
        if let Some(held) = self.held.take() {
            return Poll::Ready(Ok(held));
        }
        if let Some(trouble) = &self.failed {
            return Poll::Ready(Err(trouble.clone()));
        }
        let came = Pin::new(&mut self.consumer).poll_next(context).map(|next| came(next, &self.origin, self.next));
        if let Poll::Ready(Err(trouble)) = &came {
            self.failed = Some(trouble.clone());
        }
        came
    }

    /// The delivery to hand over; `None` if it was handed over before.
    fn deliver(&mut self, raw: &Raw, key_header: &str) -> Result<Option<Delivery>, StreamTrouble> {
        let record = StreamRecord::of(raw);
        let no = record.offset.ok_or_else(|| StreamTrouble::NoStream(self.origin.to_string()))?;
        if no < self.next {
            return Ok(None);
        }
        self.next = no + 1;
        let position = Position { no, index: 0, mark: record.mark() };
        let content = record.content(&self.place, key_header);
        Ok(Some(Delivery { origin: Arc::clone(&self.origin), position, content }))
    }
}

/// The outcome of a consumer's poll, after offsets below `next` are dropped.
fn came(given: Option<lapin::Result<Raw>>, origin: &str, next: u64) -> Result<Raw, StreamTrouble> {
    match given {
        Some(Ok(raw)) => Ok(raw),
        Some(Err(error)) if matches!(error.kind(), ErrorKind::ParsingError(_)) => {
            Err(StreamTrouble::Unreadable { origin: origin.to_owned(), next })
        }
        Some(Err(error)) => Err(StreamTrouble::Stream { origin: origin.to_owned(), failure: error.into() }),
        None => Err(StreamTrouble::Stream { origin: origin.to_owned(), failure: RabbitmqFailure::Ended }),
    }
}

// ---- opening

/// Attaches to all streams of a shard, each behind its position.
async fn open(
    client: Arc<Client>,
    shard: ShardNo,
    from: Positions,
    prefetch: u16,
) -> Result<Vec<StreamReader>, StreamTrouble> {
    let mut readers = Vec::new();
    for entry in &client.settings.streams {
        let mut partition = shard;
        // Beyond the number of shards there may be streams of an earlier, larger number.
        while partition < client.shards || is_there(&client, &stream(topic_of(entry), partition)).await? {
            let last = from.get(origin(entry, partition).as_str()).copied();
            readers.push(attach(&client, entry, partition, last, prefetch).await?);
            partition += client.shards;
        }
    }
    Ok(readers)
}

async fn is_there(client: &Client, queue: &str) -> Result<bool, RabbitmqFailure> {
    let channel = client.channel().await?;
    match topology::look(&channel, queue).await {
        Ok(_) => Ok(true),
        Err(reason) if reason.is_missing() => Ok(false),
        Err(reason) => Err(reason),
    }
}

async fn attach(
    client: &Client,
    entry: &str,
    partition: u32,
    last: Option<Position>,
    prefetch: u16,
) -> Result<StreamReader, StreamTrouble> {
    let (name, origin) = (topic_of(entry), origin(entry, partition));
    let queue = stream(name, partition);
    let from = match last {
        None => topology::text("first"),
        Some(last) => AMQPValue::LongLongInt(i64::try_from(last.no).unwrap_or(i64::MAX)),
    };
    let (channel, consumer) = client.consume(&queue, prefetch, offset(from)).await?;
    let place = StreamPlace { origin: origin.clone(), name: name.to_owned(), source: format!("{NAME}:{name}") };
    let (origin, next) = (Arc::from(origin), last.map_or(0, |last| last.no + 1));
    let mut reader = StreamReader {
        place,
        origin,
        _channel: channel,
        consumer,
        held: None,
        next,
        unacknowledged: None,
        failed: None,
    };
    if let Some(last) = last {
        let origin = &reader.place.origin;
        let lost = |loss| StreamTrouble::Lost { entry: entry.to_owned(), origin: origin.clone(), loss };
        match first(client, &mut reader.consumer, &queue, last).await? {
            Some(raw) => {
                let record = StreamRecord::of(&raw);
                let offset = record.offset.ok_or_else(|| StreamTrouble::NoStream(reader.place.origin.clone()))?;
                match compare(last, offset, record.mark()).map_err(lost)? {
                    First::Known => reader.unacknowledged = Some(raw.acker),
                    First::Next => reader.held = Some(raw),
                }
            }
            None => return Err(lost(StreamLoss::CutBack(last.no))),
        }
    }
    Ok(reader)
}

/// The first record that a stream gives from `last` on; `None`: it ends before. A stream that is
/// attached beyond its end gives nothing, and no error: then its beginning is read, too.
async fn first(
    client: &Client,
    consumer: &mut Consumer,
    queue: &str,
    last: Position,
) -> Result<Option<Raw>, StreamTrouble> {
    if let Ok(next) = timeout(ANSWER, consumer.next()).await {
        return came(next, queue, last.no).map(Some);
    }
    let (channel, mut oldest) = client.consume(queue, 1, offset(topology::text("first"))).await?;
    let answers = match timeout(ANSWER, oldest.next()).await {
        Ok(next) => came(next, queue, 0).is_ok(),
        // An empty stream gives nothing either.
        Err(_) => topology::look(&channel, queue).await?.message_count() == 0,
    };
    match consumer.next().now_or_never() {
        Some(next) => came(next, queue, last.no).map(Some),
        None if answers => Ok(None),
        None => Err(StreamTrouble::Silent(queue.to_owned())),
    }
}

/// The argument that says where reading a stream begins.
fn offset(from: AMQPValue) -> FieldTable {
    BTreeMap::from([("x-stream-offset".into(), from)]).into()
}
