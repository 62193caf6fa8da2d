//! The orders between the consumer's threads.
//! In: nothing; plain values. Out: one order type for each thread, and the types that both use.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::BaseConsumer;

use super::buffer::ShardBuffer;
use super::client::ConsumerEvents;
use super::record::PartitionPlace;
use super::start::Start;
use crate::message::{Position, Positions, ShardNo};

/// The consumer, as its threads share it.
pub(super) type SharedConsumer = Arc<BaseConsumer<ConsumerEvents>>;

/// Orders for the reader.
pub(super) enum ReaderOrder {
    /// A shard opened its source.
    Open(ShardNo, Generation, Arc<ShardBuffer>),
    /// Reads a partition for an opening.
    Read(ShardNo, Generation, Reading),
    /// A shard's source was dropped.
    Close(ShardNo, Generation),
    /// The transport was dropped.
    Stop,
}

/// A partition to read.
pub(super) struct Reading {
    pub(super) place: PartitionPlace,
    pub(super) partition: i32,
    pub(super) start: Start,
    /// The last position taken.
    pub(super) last: Option<Position>,
}

/// Orders for the assigner.
pub(super) enum AssignerOrder {
    /// A shard opened its source after these positions.
    Open(ShardNo, Generation, Arc<ShardBuffer>, Positions),
    /// Partitions whose place became unsure.
    Place(Vec<Again>),
    /// A shard's source was dropped.
    Close(ShardNo, Generation),
    /// The consumer was made anew.
    Use(SharedConsumer),
    /// The transport was dropped.
    Stop,
}

/// A partition to be placed once more.
pub(super) struct Again {
    pub(super) shard: ShardNo,
    pub(super) generation: Generation,
    pub(super) topic: String,
    pub(super) partition: i32,
    /// The last position that was handed over.
    pub(super) last: Option<Position>,
}

/// The time for a broker to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// The number of an opening: records read for an older one of the same shard are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Generation(pub(super) u64);
