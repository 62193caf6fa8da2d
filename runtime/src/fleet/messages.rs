//! The messages between the root and the heartbeat.
//! In: nothing; plain values. Out: one message type for each.

use ractor::{ActorRef, RpcReplyPort};

use super::lease::Order;
use crate::message::ShardNo;
use crate::shard::supervisor::ShardSupervisorMessage;
use crate::store::StoreError;
use crate::store::lease::Fleet;

/// The messages of the root.
pub(crate) enum RootMessage {
    /// Takes a shard again.
    Retake(ShardNo),
    /// Asks for the supervisors of the shards that have one now.
    Shards(RpcReplyPort<Vec<Option<ActorRef<ShardSupervisorMessage>>>>),
    /// Forbids taking shards again from now on.
    Draining,
    /// Starts the janitor again.
    RestartJanitor,
    /// Orders that follow from the lease.
    Orders(Vec<Order>),
    /// News for the heartbeat.
    News(News),
    /// Starts the heartbeat again.
    RestartHeartbeat,
}

/// The messages of the heartbeat's actor.
pub(crate) enum HeartbeatMessage {
    News(News),
    /// The thread ended, for this reason.
    Ended(String),
}

/// News for the heartbeat's thread.
pub(crate) enum News {
    /// The shard runs.
    Taken(ShardNo),
    /// The shard no longer runs, or could not be taken.
    Stopped(ShardNo),
    /// The shard failed too often and was given back.
    Failed(ShardNo),
    /// The worker leaves: no shard is taken from now on.
    Drain,
    /// Asks for a look at the fleet now.
    Look(RpcReplyPort<Result<Fleet, StoreError>>),
    /// All shards are given up: the worker leaves the fleet.
    Leave(RpcReplyPort<()>),
}
