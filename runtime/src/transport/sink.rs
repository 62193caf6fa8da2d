//! Targets of events: the contract of every sink.
//! In: events of one shard, in the order of their commits. Out: an answer to each: confirmed, or refused with the
//! reason.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::message::{Message, ShardNo};

/// An event on its way to a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its number in the shard's outbox.
    pub seq: u64,
    /// The place in the sink that it goes to: a Kafka topic, a RabbitMQ exchange.
    pub topic: Arc<str>,
    /// The event. Its id is derived from its cause, so a repeat has the same.
    pub message: Message,
}

/// The answer to one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkAnswer {
    /// The broker has it durably.
    Confirmed(u64),
    /// The broker will never take it: too large, no such topic, not allowed.
    Refused(u64, String),
}

/// Reasons why a sink failed. Events that were not confirmed are published again from the watermark.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The sink cannot be reached now; trying again may help.
    #[error("sink {name} cannot be written: {reason}")]
    Unavailable {
        /// The sink.
        name: String,
        /// The sink's error.
        reason: String,
    },
    /// This end of it is broken for good and has to be opened anew.
    #[error("sink {name} has to be opened anew: {reason}")]
    Broken {
        /// The sink.
        name: String,
        /// The sink's error.
        reason: String,
    },
}

/// A kind of sink: opens one end for each shard.
pub trait SinkTransport: Send + Sync + 'static {
    /// Its name in settings, watermarks and metrics.
    fn name(&self) -> &str;

    /// Opens one shard's end.
    fn open(&self, shard: ShardNo) -> BoxFuture<'_, Result<Box<dyn Sink>, SinkError>>;
}

/// One shard's end of a sink.
pub trait Sink: Send + 'static {
    /// Hands over as many of `events`, in order, as there is room for, and returns their number. Never waits for the
    /// broker.
    fn send(&mut self, events: &[Outgoing]) -> Result<usize, SinkError>;

    /// Waits for answers to events handed over, in any order; never an empty list. Dropping the future loses nothing.
    fn answers(&mut self) -> BoxFuture<'_, Result<Vec<SinkAnswer>, SinkError>>;
}
