//! What is written down: about a message that did not succeed, and for metrics and logs.
//! In: items, their faults. Out: dead letters, history rows, notes for the log; counts since last asked, gauges.

use std::sync::Arc;

use hashbrown::HashMap;

use super::Ledger;
use super::slot::{Item, SlotIx};
use crate::clock::Millis;
use crate::store::calls::{CallId, CallOutcome, Reply};
use crate::store::{DeadLetter, Epoch, HistoryRow, ServiceKey};

/// What happened since it was last asked, for metrics and logs.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Turns that settled, by service index.
    pub processed: HashMap<u16, u64>,
    /// Duplicates dropped by the inbox.
    pub duplicates: u64,
    /// Deliveries dropped because their position was passed, or they were done above it.
    pub passed: u64,
    /// Messages that no binding wanted.
    pub unbound: u64,
    /// Messages passed on to the shard of their key.
    pub rekeyed: u64,
    /// Dead letters, by service index; `None` where there is no service.
    pub dead: Vec<Option<u16>>,
    /// Retries: attempt that failed, delay chosen in milliseconds.
    pub retries: Vec<(u32, Millis)>,
    /// Keys that gave their actor to another.
    pub passivations: u64,
    /// Keys that were given an actor and a state.
    pub activations: u64,
    /// Turns that found something unavailable: service index, place in the handler's `NEEDS`, how it showed.
    pub unavailable: Vec<(u16, usize, String)>,
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
    /// Stretches that are done above its sources' positions.
    pub ahead: usize,
    /// A source has as many of them as it may.
    pub ahead_full: bool,
    /// Age in milliseconds of the oldest id remembered, 0 when nothing was forgotten for lack of room.
    pub window: Millis,
    /// A bound of `pending` was reached.
    pub pending_full: bool,
    /// Operators have paused a service or a key.
    pub paused: bool,
    /// As many events wait to be published as may.
    pub outbox_full: bool,
    /// Dead letters that are events which a sink refused.
    pub outbox_refused: u64,
    /// A sink that is no longer configured keeps commits.
    pub sink_gone: bool,
    /// The epoch.
    pub epoch: Epoch,
    /// The last commit.
    pub commit_no: u64,
}

impl Ledger {
    #[expect(clippy::too_many_arguments, reason = "a history row has these fields")]
    pub(super) fn note(
        &mut self,
        ix: SlotIx,
        item: &Item,
        attempt: u32,
        generation: u64,
        what: &'static str,
        error: &str,
        at: Millis,
    ) {
        let key = self.service_key(ix);
        self.tally.faults.push(FaultNote {
            message: item.message.clone(),
            service: key.service.clone(),
            attempt,
            error: error.to_owned(),
            what,
        });
        self.group(ix).part.history.push(HistoryRow {
            service: key.service,
            key: key.key,
            id: item.message.id().to_owned(),
            at,
            attempt,
            generation,
            what: what.to_owned(),
            error: error.to_owned(),
        });
    }
}

impl Ledger {
    /// A call is over without an effect, because its handler says so: its sender is told, and nothing is left of it.
    pub(super) fn refuse_call(&mut self, ix: SlotIx, item: Item, call: CallId, (code, reason): (&str, &str)) {
        let outcome = CallOutcome::refused(code, reason);
        let group = self.group(ix);
        group.part.replies.push(Reply { call, outcome });
        group.turn(item.id);
        self.turned(ix);
        self.settle_item(ix, item);
    }
}

pub(super) fn dead_letter(
    item: &Item,
    seq: u64,
    key: ServiceKey,
    error: String,
    holds_key: bool,
    at: Millis,
) -> DeadLetter {
    DeadLetter {
        seq,
        service: key.service,
        key: key.key,
        id: item.id,
        at,
        taken_at: item.taken_at,
        error,
        holds_key,
        history: item.history.clone(),
        message: item.message.clone(),
    }
}
