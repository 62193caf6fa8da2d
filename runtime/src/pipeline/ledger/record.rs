//! What is written down about a message that did not succeed.
//! In: items, their faults. Out: dead letters, pending rows, history rows, notes for the log.

use super::slot::{Item, SlotIx};
use super::{FaultNote, Ledger};
use crate::clock::Millis;
use crate::store::{DeadLetter, HistoryRow, ServiceKey};

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
