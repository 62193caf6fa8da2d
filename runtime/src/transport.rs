//! Sources of messages: the contract of every source; sinks in `sink`.
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

pub use self::sink::{Outgoing, Sink, SinkAnswer, SinkError, SinkTransport};
use crate::message::{Message, Position, Positions, ShardNo};

/// A message as a source handed it over.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The ordered log within the source that it came from.
    pub origin: Arc<str>,
    /// Its place there.
    pub position: Position,
    /// The message, or the reason why it cannot be read.
    pub content: Content,
}

impl Delivery {
    /// The bytes of its message.
    #[cfg(any(feature = "kafka", feature = "rabbitmq"))]
    pub(crate) fn bytes(&self) -> usize {
        match &self.content {
            Content::For(_, message) | Content::Unrouted(message) | Content::Unreadable { message, .. } => {
                message.frame().len()
            }
        }
    }
}

/// The content of a delivery.
#[derive(Clone, Debug)]
pub enum Content {
    /// A message for a service, by its name.
    For(Arc<str>, Message),
    /// A message that the settings' bindings route.
    Unrouted(Message),
    /// Bytes that are not a usable message; kept as a dead letter with the reason.
    Unreadable {
        /// The part of it that can be shown.
        message: Message,
        /// The reason why it cannot be used.
        reason: String,
    },
}

/// The pause before a source that lost its place is opened again: an operator's work takes minutes, and each
/// opening asks the brokers for every partition.
const LOST_FOR: Duration = Duration::from_secs(30);

/// Reasons why a source failed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source cannot be reached now; trying again may help.
    #[error("source {name} cannot be read: {reason}")]
    Unavailable {
        /// The source.
        name: String,
        /// The source's error.
        reason: String,
    },
    /// This end is of no further use; the ingress is restarted by its policy, and opens another one.
    #[error("source {name} broke: {reason}")]
    Broken {
        /// The source.
        name: String,
        /// The problem.
        reason: String,
    },
    /// Positions cannot be continued from; an operator has to decide. The ingress stands still and opens it again at
    /// intervals.
    #[error("source {name} lost its place: {reason}")]
    Lost {
        /// The source.
        name: String,
        /// The problem, and the ways to continue.
        reason: String,
    },
}

/// A kind of transport: opens sources for shards.
pub trait Transport: Send + Sync + 'static {
    /// Its name in settings, positions and metrics.
    fn name(&self) -> &str;

    /// Returns whether its deliveries have positions to resume from. Those of one without positions are rows of a
    /// table: a position's number is the row's, and the commit that takes them deletes the rows
    /// ([`crate::store::Commit::intake`]). Opened again, it hands over all rows that are there, also those in hand.
    fn ordered(&self) -> bool {
        true
    }

    /// The pause before a source that lost its place is opened again; also the time for which it must be read without
    /// trouble until its place counts as found.
    fn lost_for(&self) -> Duration {
        LOST_FOR
    }

    /// Opens the source of one shard; it hands over deliveries *after* `from`. Origins not named there start at their
    /// beginning.
    fn open(&self, shard: ShardNo, from: Positions) -> BoxFuture<'_, Result<Box<dyn Source>, SourceError>>;
}

/// One shard's end of a transport.
pub trait Source: Send + 'static {
    /// Waits for deliveries and returns at most `max` of them, each origin's in order, each once per opening.
    /// Dropping the future loses nothing.
    fn fetch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>>;

    /// Tells the source which positions are committed, so that it may acknowledge or trim. Never needed for
    /// correctness.
    fn committed(&mut self, positions: &Positions);
}
