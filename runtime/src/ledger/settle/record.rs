//! The records of messages that did not succeed, and the counts for metrics and logs.
//! In: items, their faults. Out: dead letters, history rows, notes for the log; counts since last asked, gauges.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::clock::{Millis, millis};
use crate::ledger::Ledger;
use crate::ledger::batches::group::Group;
use crate::ledger::protocol::SlotIx;
use crate::ledger::slot::Item;
use crate::message::ServiceIx;
use crate::metrics::words;
use crate::store::calls::Reply;
use crate::store::{Epoch, HistoryRow, Letters};

/// The end of the error of a message whose id was taken before with other content.
pub const OTHER_CONTENT: &str = "was taken before with other content";

/// The counts since the last call, for metrics and logs.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Turns that settled, by service index.
    pub processed: HashMap<ServiceIx, u64>,
    /// Those of them whose outcome came later than `metrics.late_after` after they were taken, by service index.
    pub late: HashMap<ServiceIx, u64>,
    /// Duplicates dropped by the inbox.
    pub duplicates: u64,
    /// Dead letters because their id was taken before with other content.
    pub conflicts: u64,
    /// Deliveries dropped because their position was passed, or they were done above it.
    pub passed: u64,
    /// Messages that no binding wanted.
    pub unbound: u64,
    /// Messages passed on to the shard of their key.
    pub rekeyed: u64,
    /// Dead letters that were removed because they were kept for `dlq.keep`.
    pub expired: u64,
    /// Dead letters, by service index; `None` where there is no service.
    pub dead: Vec<Option<ServiceIx>>,
    /// Services that this program does not have, one for each message that waits for a program that does.
    pub absent: Vec<Arc<str>>,
    /// Retries: attempt that failed, delay chosen in milliseconds.
    pub retries: Vec<(u32, Millis)>,
    /// Keys that gave their actor to another.
    pub passivations: u64,
    /// Keys that were given an actor and a state.
    pub activations: u64,
    /// Turns that found something unavailable: service index, place in the handler's `NEEDS`, reason.
    pub unavailable: Vec<(ServiceIx, usize, String)>,
    /// Faults, for the log: message id, key's service, error, attempt.
    pub faults: Vec<FaultNote>,
}

words! {
    /// Something that happened to a message beside a turn that succeeded.
    HistoryKind {
        /// A turn failed, and is tried again.
        Fault = "fault",
        /// A turn put its message off.
        Deferred = "deferred",
        /// The message became a dead letter.
        DeadLetter = "dead_letter",
        /// Its actor died and was started again.
        Restarted = "restarted",
        /// The process may have ended because of it: it is started alone.
        Suspect = "suspect",
        /// An operator had the dead letter replayed.
        Replayed = "replayed",
        /// An operator had the dead letter replaced.
        Edited = "edited",
        /// An operator had the dead letter discarded.
        Discarded = "discarded",
        /// The dead letter was removed after `dlq.keep`.
        Expired = "expired",
    }
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
    /// The error.
    pub error: String,
    /// The kind of event that the fault becomes in the message's history.
    pub kind: HistoryKind,
}

/// The ledger's gauges: how full it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Keys in hand.
    pub slots: usize,
    /// Actors.
    pub actors: u32,
    /// Deliveries in hand.
    pub credits_used: usize,
    /// Their bytes.
    pub bytes_in_hand: usize,
    /// Rows in `pending`.
    pub pending: u64,
    /// Ids remembered.
    pub inbox_ids: usize,
    /// Stretches that are done above its sources' positions.
    pub ahead: usize,
    /// True if a source has as many of them as it may.
    pub ahead_full: bool,
    /// Age in milliseconds of the oldest id remembered, 0 when nothing was forgotten for lack of room.
    pub window: Millis,
    /// True if a bound of `pending` was reached.
    pub pending_full: bool,
    /// True if operators have paused a service or a key.
    pub paused: bool,
    /// True if as many events wait to be published as may.
    pub outbox_full: bool,
    /// Dead letters.
    pub letters: Letters,
    /// True if there are as many dead letters as may be.
    pub letters_full: bool,
    /// True if a sink that is no longer configured keeps commits.
    pub sink_gone: bool,
    /// Schedules whose next time could not be found.
    pub schedules_ended: u64,
    /// The epoch.
    pub epoch: Epoch,
    /// The last commit.
    pub commit_no: u64,
}

impl Ledger {
    /// Counts the messages of a durable group whose outcome is late.
    pub(crate) fn count_late(&mut self, service: ServiceIx, group: &Group) {
        let after = millis(self.config.settings.metrics.late_after);
        let late = group.taken_at.iter().filter(|at| self.now.saturating_sub(**at) > after).count() as u64;
        if late > 0 {
            *self.tally.late.entry(service).or_insert(0) += late;
        }
    }

    /// Records an event of a message, for the log and for `explain`.
    pub(crate) fn note(&mut self, ix: SlotIx, item: &Item, kind: HistoryKind, error: &str) {
        let (key, at, generation) = (self.service_key(ix), self.now, self.generation(ix));
        self.tally.faults.push(FaultNote {
            message: item.message.clone(),
            service: key.service.clone(),
            attempt: item.attempt,
            error: error.to_owned(),
            kind,
        });
        self.group(ix).part.history.push(HistoryRow {
            service: key.service,
            key: key.key,
            id: item.message.id().to_owned(),
            at,
            attempt: item.attempt,
            generation,
            what: kind.as_str().to_owned(),
            error: error.to_owned(),
        });
    }

    /// Ends a call without an effect, because its handler refused it: its sender is told, and nothing is left of it.
    pub(crate) fn refuse_call(&mut self, ix: SlotIx, item: Item, reply: Reply) {
        let group = self.group(ix);
        group.part.replies.push(reply);
        group.turn(item.id);
        self.turned(ix);
        self.settle_item(ix, item);
    }

    /// The error of a message whose id was taken before with other content; counts it.
    pub(crate) fn conflict(&mut self, message: &crate::message::Message) -> String {
        self.tally.conflicts += 1;
        self.count("conflicts", 1);
        format!("the id {:?} {OTHER_CONTENT}", message.id())
    }
}
