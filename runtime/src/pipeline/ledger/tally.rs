//! What a ledger tells metrics and logs: counts since it was last asked, and how full it is.
//! In: nothing; plain data. Out: the same.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::clock::Millis;
use crate::store::Epoch;

/// What happened since it was last asked, for metrics and logs.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Turns that settled, by service index.
    pub processed: HashMap<u16, u64>,
    /// Duplicates dropped by the inbox.
    pub duplicates: u64,
    /// Deliveries dropped because their position was passed.
    pub passed: u64,
    /// Messages that no binding wanted.
    pub unbound: u64,
    /// Dead letters, by service index; `None` where there is no service.
    pub dead: Vec<Option<u16>>,
    /// Retries: attempt that failed, delay chosen in milliseconds.
    pub retries: Vec<(u32, Millis)>,
    /// Keys that gave their actor to another.
    pub passivations: u64,
    /// Keys that were given an actor and a state.
    pub activations: u64,
    /// Faults, for the log: message id, key's service, error, attempt.
    pub faults: Vec<FaultNote>,
}

/// A fault, as the log is told of it.
#[derive(Clone, Debug)]
pub struct FaultNote {
    /// The message.
    pub message: crate::message::Message,
    /// The service.
    pub service: Arc<str>,
    /// Attempts spent.
    pub attempt: u32,
    /// What went wrong.
    pub error: String,
    /// What happens to it.
    pub what: &'static str,
}

/// How full the ledger is, for gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Keys in hand.
    pub slots: usize,
    /// Actors.
    pub actors: u32,
    /// Deliveries in hand.
    pub credits_used: usize,
    /// Rows in `pending`.
    pub pending: u64,
    /// Ids remembered.
    pub inbox_ids: usize,
    /// Age in milliseconds of the oldest id remembered, 0 when nothing was forgotten for lack of room.
    pub window: Millis,
    /// A bound of `pending` was reached.
    pub pending_full: bool,
    /// The epoch.
    pub epoch: Epoch,
    /// The last commit.
    pub commit_no: u64,
}
