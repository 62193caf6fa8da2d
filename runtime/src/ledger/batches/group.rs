//! Groups: the rows that turns of one key, or an operator's command, have for a commit; and batches of them. Plain values.
//! In: settled turns. Out: rows that become part of a commit together.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::Millis;
use crate::ledger::Ticket;
use crate::ledger::protocol::SlotIx;
use crate::ledger::slot::Item;
use crate::message::{Message, SinkIx, TakenId};
use crate::store::{EmittedEvent, Letters, Part};

/// One key's share of a batch, or that of everything without a key.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) slot: Option<SlotIx>,
    pub(crate) part: Part,
    /// The items that settled with it, in order: they are handled again if the store refuses the group.
    pub(crate) items: Vec<Item>,
    /// Deliveries that its commit settles.
    pub(crate) tickets: Vec<Ticket>,
    /// Those of them that are copies, with the id that they share.
    pub(crate) copies: Vec<(TakenId, Ticket)>,
    pub(crate) turns: usize,
    /// The number of taken ids that wait in `pending` now.
    pub(crate) recorded: usize,
    /// The message of its first turn.
    pub(crate) first: Option<TakenId>,
    /// The times at which those of its messages were taken that have their outcome now; none of timers and of replays.
    pub(crate) taken_at: Vec<Millis>,
    /// The number of timers whose turns succeeded.
    pub(crate) fired: usize,
    /// Ids of messages that it puts in the place of dead letters.
    pub(crate) pinned: Vec<TakenId>,
    /// Dead letters that it removes.
    pub(crate) gone: Letters,
    /// Its changes beside its part: only a group without a key has any.
    pub(crate) outward: Option<Box<Outward>>,
}

impl Group {
    pub(crate) fn turn(&mut self, id: TakenId) {
        self.turns += 1;
        self.first.get_or_insert(id);
    }

    /// The outcome of this message is in the group.
    pub(crate) fn outcome_of(&mut self, item: &Item) {
        self.taken_at.extend(item.is_of_source().then_some(item.taken_at));
    }

    /// Makes room for the least that a run of `turns` turns brings.
    pub(crate) fn reserve(&mut self, turns: usize) {
        room(&mut self.items, turns);
        room(&mut self.tickets, turns);
        room(&mut self.part.ids, turns);
    }
}

/// Reserves exactly the room that the first ones need, and grows as vectors do after that.
pub(crate) fn room<T>(all: &mut Vec<T>, more: usize) {
    if all.is_empty() {
        all.reserve_exact(more);
    } else {
        all.reserve(more);
    }
}

/// Appends `more`, without a copy when it is the first.
pub(crate) fn add<T>(all: &mut Vec<T>, more: Vec<T>) {
    if all.is_empty() {
        *all = more;
    } else {
        all.extend(more);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) groups: Vec<Group>,
    /// True if a commit of the fence alone passed after this batch was refused: then the data is at fault.
    pub(crate) proven: bool,
}

/// The changes that a batch brings beside its parts.
#[derive(Debug, Default)]
pub(crate) struct Outward {
    /// Messages for services, of keys that belong to other shards.
    pub(crate) onward: Vec<(Arc<str>, Message)>,
    /// Watermarks, by the sink's index.
    pub(crate) reached: BTreeMap<SinkIx, u64>,
    /// Sinks that were given up.
    pub(crate) retired: Vec<Arc<str>>,
    /// Events that are published again, and go nowhere else.
    pub(crate) again: Vec<EmittedEvent>,
}
