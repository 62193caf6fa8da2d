//! What the root and the heartbeat tell each other.
//! In: nothing; plain values. Out: one message type for each.

use ractor::{ActorRef, RpcReplyPort};

use super::lease::Order;
use crate::message::ShardNo;
use crate::shard::supervisor::ShardSupervisorMessage;
use crate::store::StoreError;
use crate::store::lease::Fleet;

/// What the root is told.
pub(crate) enum RootMessage {
    /// Take a shard again.
    Retake(ShardNo),
    /// The shards' supervisors, where there is one now.
    Shards(RpcReplyPort<Vec<Option<ActorRef<ShardSupervisorMessage>>>>),
    /// No shard is taken again from now on.
    Draining,
    /// Start the janitor again.
    RestartJanitor,
    /// What follows from the lease.
    Orders(Vec<Order>),
    /// For the heartbeat.
    News(News),
    /// Start the heartbeat again.
    RestartHeartbeat,
}

/// What the actor is told.
pub(crate) enum HeartbeatMessage {
    News(News),
    /// The thread ended, for this reason.
    Ended(String),
}

/// What the heartbeat is told.
pub(crate) enum News {
    /// A shard runs.
    Taken(ShardNo),
    /// A shard runs no more, or could not be taken.
    Stopped(ShardNo),
    /// A shard failed too often and was given back.
    Failed(ShardNo),
    /// The worker leaves: no shard is taken from now on.
    Drain,
    /// Look at the fleet now.
    Look(RpcReplyPort<Result<Fleet, StoreError>>),
    /// All shards are given up: leave the fleet.
    Leave(RpcReplyPort<()>),
}
