//! What one key has in a batch, gathered as its runs settle.
//! In: outcomes of turns. Out: one part of a commit, and what its outcome settles or undoes.

use super::slot::{Item, SlotIx, Ticket};
use crate::message::TakenId;
use crate::store::Part;

/// What one key (or nothing keyed) has in a batch.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) slot: Option<SlotIx>,
    pub(crate) part: Part,
    /// What settled with it, in order: handled again if the store refuses the group.
    pub(crate) items: Vec<Item>,
    /// Deliveries that its commit settles.
    pub(crate) tickets: Vec<Ticket>,
    /// Those of them that are copies, with the id that they share.
    pub(crate) copies: Vec<(TakenId, Ticket)>,
    pub(crate) turns: usize,
    /// The message of its first turn.
    pub(crate) first: Option<TakenId>,
    /// Dead letters that it removes for good.
    pub(crate) discarded: Vec<TakenId>,
}

impl Group {
    /// A turn over this message settled.
    pub(super) fn turn(&mut self, id: TakenId) {
        self.turns += 1;
        self.first.get_or_insert(id);
    }

    /// Makes room for what a run of so many turns brings at the least.
    pub(super) fn reserve(&mut self, turns: usize) {
        room(&mut self.items, turns);
        room(&mut self.tickets, turns);
        room(&mut self.part.ids, turns);
    }
}

/// Exactly what the first ones need; after that as vectors grow.
fn room<T>(all: &mut Vec<T>, more: usize) {
    if all.is_empty() {
        all.reserve_exact(more);
    } else {
        all.reserve(more);
    }
}

/// Appends `more`, without a copy when it is the first.
pub(super) fn add<T>(all: &mut Vec<T>, more: Vec<T>) {
    if all.is_empty() {
        *all = more;
    } else {
        all.extend(more);
    }
}
