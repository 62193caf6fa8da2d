//! Where messages come from: the contract of every source.
//! In: positions to start from. Out: deliveries in each origin's order, at most as many as there are credits.

#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
mod again;
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
mod attributes;
pub mod embedded;
pub mod intake;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod memory;
mod ongoing;
pub(crate) mod open;
#[cfg(any(test, feature = "rabbitmq", feature = "simulation"))]
pub(crate) mod pace;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
mod sink;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

pub use self::sink::{Answer, Outgoing, Sink, SinkError, SinkTransport};
use crate::message::{Message, Position, Positions, ShardNo};

/// A message as a source handed it over.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The ordered log within the source that it came from.
    pub origin: Arc<str>,
    /// Its place there.
    pub position: Position,
    /// What was said, or why it cannot be read.
    pub content: Content,
}

impl Delivery {
    /// Bytes of its message.
    #[cfg(any(feature = "kafka", feature = "rabbitmq"))]
    pub(crate) fn bytes(&self) -> usize {
        match &self.content {
            Content::For(_, message) | Content::Unrouted(message) | Content::Unreadable { message, .. } => {
                message.frame().len()
            }
        }
    }
}

/// What a delivery holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// A message for a service, by its name.
    For(Arc<str>, Message),
    /// A message that the settings' bindings are to route.
    Unrouted(Message),
    /// Bytes that are no usable message; kept as a dead letter with the reason.
    Unreadable {
        /// What can be shown of it.
        message: Message,
        /// Why it cannot be used.
        reason: String,
    },
}

/// How long a source that lost its place stands still before it is opened again: an operator's work takes minutes, and each
/// opening asks the brokers for every partition.
const LOST_FOR: Duration = Duration::from_secs(30);

/// A source failed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source cannot be reached now; trying again may help.
    #[error("source {name} cannot be read: {reason}")]
    Unavailable {
        /// The source.
        name: String,
        /// What it said.
        reason: String,
    },
    /// This end is of no use any longer; the ingress is restarted by its policy, and opens another one.
    #[error("source {name} broke: {reason}")]
    Broken {
        /// The source.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Positions cannot be continued from; an operator has to decide. The ingress stands still and opens it again at times.
    #[error("source {name} lost its place: {reason}")]
    Lost {
        /// The source.
        name: String,
        /// What is wrong, and the ways on.
        reason: String,
    },
}

/// A kind of transport: opens sources for shards.
pub trait Transport: Send + Sync + 'static {
    /// Its name in settings, positions and metrics.
    fn name(&self) -> &str;

    /// Whether its deliveries have positions to resume from. Those of one that has none are rows of a table: a position's
    /// number is the row's, and the commit that takes them deletes the rows ([`crate::store::Commit::intake`]). Opened
    /// again it hands over all that are there, also those in hand.
    fn ordered(&self) -> bool {
        true
    }

    /// How long a source that lost its place stands still before it is opened again; also how long it has to be read without
    /// trouble until it counts as found.
    fn lost_for(&self) -> Duration {
        LOST_FOR
    }

    /// Opens the source of one shard; it hands over what lies *after* `from`. Origins not named there start at their beginning.
    fn open(&self, shard: ShardNo, from: Positions) -> BoxFuture<'_, Result<Box<dyn Source>, SourceError>>;
}

/// One shard's end of a transport.
pub trait Source: Send + 'static {
    /// Waits for deliveries and gives at most `max` of them, each origin's in order, each once per opening.
    /// Dropping the future loses nothing.
    fn fetch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>>;

    /// Tells the source what is committed, so that it may acknowledge or trim. Never needed for correctness.
    fn committed(&mut self, positions: &Positions);
}
