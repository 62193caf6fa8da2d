//! A commit that the database refused is taken apart until the turn at fault stands alone.
//! In: refused batches. Out: smaller batches; keys that start again from their stored state, with the fault of the
//! turn.

use std::sync::Arc;

use super::group::{Batch, Group};
use crate::handler::Fault;
use crate::ledger::Ledger;
use crate::ledger::protocol::SlotIx;
use crate::ledger::slot::{From, Known, Phase};
use crate::store::{PendingKind, PendingRow};

impl Ledger {
    /// Finds out whose data the database refused.
    pub(crate) fn refused(&mut self, permanent: bool, error: &str) {
        let Some(mut flight) = self.batches.flight.take() else { return };
        let parts = Arc::try_unwrap(flight.commit).map_or_else(|shared| shared.parts.clone(), |commit| commit.parts);
        for ticket in flight.batch.groups.iter().flat_map(|group| &group.tickets) {
            self.sources[ticket.source].unmark(*ticket);
        }
        if flight.batch.groups.is_empty() {
            return self.stop(&format!("the store refuses even an empty commit: {error}"));
        }
        for (group, part) in flight.batch.groups.iter_mut().zip(parts) {
            group.part = part;
        }
        if flight.batch.proven {
            self.take_apart(flight.batch, Some((permanent, error)));
        } else {
            // If the fence alone is refused too, the store is at fault and not the data.
            self.send(Batch::default(), vec![flight.batch], false);
        }
    }

    /// Halves a refused batch, or blames the key that stands alone in it.
    pub(crate) fn take_apart(&mut self, mut batch: Batch, refusal: Option<(bool, &str)>) {
        if batch.groups.len() > 1 {
            let rest = batch.groups.split_off(batch.groups.len() / 2);
            self.batches.queue.push_front(Batch { groups: rest, proven: true });
            self.batches.queue.push_front(batch);
            return;
        }
        match (batch.groups.pop(), refusal) {
            (Some(group), Some((permanent, error))) => self.blame(group, permanent, error),
            (Some(group), None) => self.batches.queue.push_front(Batch { groups: vec![group], proven: true }),
            (None, _) => {}
        }
    }

    fn blame(&mut self, group: Group, permanent: bool, error: &str) {
        let Some(ix) = group.slot else {
            return self.stop(&format!("the store refuses a record that belongs to no key: {error}"));
        };
        let alone = group.turns <= 1;
        // Rows of messages that only followed may come before it, as may its own row from while it ran, or the record
        // of its start.
        let head = group.first;
        let ran = [PendingKind::Spilled, PendingKind::Suspect];
        let faulted = |row: &PendingRow| !ran.contains(&row.kind) && Some(row.id) == head;
        let recorded =
            group.part.pending.iter().any(faulted) || group.part.dead.iter().any(|letter| Some(letter.id) == head);
        if alone && recorded {
            return self.stop(&format!("the store refuses the record of a fault: {error}"));
        }
        self.reset(ix, group);
        if let (true, Some(id)) = (alone, head) {
            let reason = format!("the database refused what this message wrote: {error}");
            let fault = if permanent { Fault::Reject(reason) } else { Fault::Retry(reason) };
            self.slots[ix].blame = Some((id, fault));
        }
    }

    /// Undoes everything of a key that is not durable; its messages are handled again, one per commit.
    fn reset(&mut self, ix: SlotIx, refused: Group) {
        let mut groups = vec![refused];
        for batch in &mut self.batches.queue {
            groups.extend(batch.groups.extract_if(.., |group| group.slot == Some(ix)));
        }
        self.batches.queue.retain(|batch| !batch.groups.is_empty());
        if let Some(at) = self.slots[ix].group.take() {
            let gathered = std::mem::take(&mut self.batches.gathering.groups[at]);
            groups.push(gathered);
        }
        // One more than there are: a message behind the last of them must not join its commit, or two refused messages
        // in a row would take each other apart for ever.
        let turns = 1 + groups.iter().map(|group| group.turns).sum::<usize>();
        let mut items = Vec::new();
        // The newest first, as a row may have been written in one and settled in a later one.
        for group in groups.into_iter().rev() {
            self.undo(&group);
            items.extend(group.items);
        }
        self.slots.renew(ix);
        let slot = &mut self.slots[ix];
        slot.phase = match std::mem::take(&mut slot.phase) {
            Phase::Loads => Phase::Rests,
            other => other,
        };
        slot.solo = turns + slot.in_run().count();
        if let Some(running) = slot.running_mut() {
            running.stale = true;
            items.extend(running.items.drain(..));
        }
        items.extend(slot.queue.drain(..).chain(slot.overflow.drain(..)).chain(slot.unsure.drain(..)));
        items.retain(|item| matches!(item.from, From::Live(_)));
        // One that was appended behind a row may have settled before those that were in memory then.
        items.sort_by_key(|item| item.arrival);
        slot.queue = items.into();
        slot.uncommitted = 0;
        slot.cool();
        self.waiting.settled(&mut slot.known);
        slot.known = Known::default();
        self.timers.lost(&std::mem::take(&mut slot.timers), self.now);
        self.reset_permit(ix);
        if self.slots[ix].running().is_none() {
            self.reset_done(ix);
        }
    }

    /// Lets the reset key, of which nothing runs any more, start from its stored state.
    pub(crate) fn reset_done(&mut self, ix: SlotIx) {
        self.waiting.woken.insert(ix);
        self.load(ix);
    }

    /// Takes a group's effects on ids, rows and counters back.
    fn undo(&mut self, group: &Group) {
        group.part.dead.iter().for_each(|_| self.uncount("dead_letters"));
        for item in &group.items {
            let row = group.part.pending.iter().find(|row| row.id == item.id);
            let pending = row.is_some_and(|row| !group.part.settled.contains(&row.seq));
            match item.from {
                From::Live(_) => {
                    self.uncount("taken");
                    if pending {
                        self.waiting.remove(1);
                    }
                    // Its copies are in hand with it again: they are acknowledged when it is durable.
                    let copies = group.copies.iter().filter(|(id, _)| *id == item.id).map(|(_, copy)| *copy);
                    let copies = copies.chain(self.batches.take_copies(item.id)).collect();
                    self.inbox.unsettle(item.id, copies);
                }
                From::Timer if pending => self.waiting.remove(1),
                From::Timer => {}
                // Its row was written in the same group: undoing the live message is enough.
                From::Row(_) if row.is_some_and(|row| row.kind == PendingKind::Spilled) => {}
                From::Row(_) if pending => {}
                From::Row(_) => self.waiting.rows += 1,
            }
        }
        let replayed = group.part.pending.iter().filter(|row| row.kind == PendingKind::Replay);
        self.waiting.remove(replayed.count() as u64);
        group.pinned.iter().for_each(|id| self.inbox.unpin(*id));
        self.command_undone(&group.part);
    }

    fn uncount(&mut self, counter: &'static str) {
        if let Some(count) = self.counters.get_mut(counter) {
            *count = count.saturating_sub(1);
        }
    }
}
