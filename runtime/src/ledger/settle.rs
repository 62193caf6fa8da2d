//! The settling of turns: each outcome becomes part of the batch that is being gathered.
//! In: outcomes of turns. Out: groups of the batch: ids taken, states, events, rows, pending rows, dead letters.

pub(crate) mod dead;
pub(crate) mod record;

use std::collections::VecDeque;

use self::dead::dead_letter;
use self::record::HistoryKind;
use super::batches::group::{Group, add};
use super::defect::{Defect, planted};
use super::protocol::SlotIx;
use super::slot::{From, Head, Item, Newest, Trial};
use super::{Ledger, Ticket};
use crate::clock::{Millis, millis};
use crate::handler::{AfterDeadLetter, Asked, Fault, call_of};
use crate::handlers::run::{Stored, TurnEnd, TurnFault};
use crate::store::calls::{CallOutcome, Reply};
use crate::store::{Attempt, PendingKind, StateWrite};

/// The number of failed attempts kept with a message: the first of them and the newest.
const ATTEMPTS_KEPT: usize = 50;

/// The fate of a message whose turn failed; delays in milliseconds.
enum Next {
    Retry(Millis),
    Defer(Millis),
    GiveUp(String),
}

impl Ledger {
    pub(crate) fn settle_run(&mut self, ix: SlotIx, turns: Vec<TurnEnd>, state: Option<Stored>) {
        if !turns.is_empty() {
            self.group(ix).reserve(turns.len());
        }
        for end in turns {
            let running = self.slots[ix].running_mut();
            let Some(item) = running.and_then(|running| running.items.pop_front()) else { break };
            self.slots[ix].unavailable = None;
            match end {
                TurnEnd::Done { events, sent, rows, timers, statements, reply } => {
                    if item.from == From::Timer {
                        self.fired(ix, &item.message);
                        self.group(ix).fired += 1;
                    }
                    for write in timers {
                        self.write_timer(ix, write);
                    }
                    let group = self.group(ix);
                    add(&mut group.part.events, events);
                    add(&mut group.part.sent, sent);
                    add(&mut group.part.rows, rows);
                    add(&mut group.part.statements, statements);
                    group.part.replies.extend(reply);
                    group.turn(item.id);
                    self.turned(ix);
                    self.settle_item(ix, item);
                }
                TurnEnd::Fault(fault) => self.fault(ix, item, fault),
                TurnEnd::Unavailable(which, reason) => self.unavailable(ix, item, which, reason),
            }
        }
        if let Some(stored) = state {
            let service = self.policy(self.slots[ix].service).name.clone();
            let slot = &mut self.slots[ix];
            slot.known.newest = Newest::Here(stored.clone());
            let key = slot.key.clone();
            self.group(ix).part.state = Some(StateWrite { service, key, state: stored });
        }
    }

    /// Lets the turn run again when its dependency is available: nothing is counted.
    fn unavailable(&mut self, ix: SlotIx, item: Item, which: usize, reason: String) {
        let slot = &mut self.slots[ix];
        self.tally.unavailable.push((slot.service, which, reason));
        slot.unavailable = Some(which);
        if let Some(running) = slot.running_mut() {
            running.items.push_front(item);
        }
    }

    /// Counts one turn fewer that must have a commit of its own.
    pub(crate) fn turned(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        slot.solo = slot.solo.saturating_sub(1);
    }

    /// Finishes a message: its id is taken, or its row deleted.
    pub(crate) fn settle_item(&mut self, ix: SlotIx, item: Item) {
        match item.from {
            From::Live(ticket) => self.take(Some(ix), &item, ticket),
            From::Row(seq) => self.drop_row(ix, seq),
            From::Timer => {}
        }
        let group = self.group(ix);
        group.outcome_of(&item);
        group.items.push(item);
    }

    /// Takes the id in the batch's commit, its copies with it.
    pub(crate) fn take(&mut self, slot: Option<SlotIx>, item: &Item, ticket: Ticket) {
        let (taken, copies) = self.inbox.settle(item.id);
        self.count("taken", 1);
        let group = match slot {
            Some(ix) => self.group(ix),
            None => self.batches.loose(),
        };
        group.part.ids.push(taken);
        group.tickets.push(ticket);
        group.copies.extend(copies.iter().map(|copy| (item.id, *copy)));
        group.tickets.extend(copies);
    }

    fn drop_row(&mut self, ix: SlotIx, seq: u64) {
        self.group(ix).part.settled.push(seq);
        self.waiting.remove(1);
        let rows = &mut self.slots[ix].known.rows;
        rows.count = rows.count.saturating_sub(1);
    }

    /// Handles the fault of a turn, or of a message that is refused without being run.
    pub(crate) fn fault(&mut self, ix: SlotIx, mut item: Item, fault: TurnFault) {
        let now = self.now;
        let fault = fault.bounded();
        let refused = match &fault {
            TurnFault::Refuse(code, reason) => Some((*code, &**reason)),
            TurnFault::Reject(reason) => Some(("rejected", &**reason)),
            TurnFault::Retry(_) | TurnFault::Defer(_) | TurnFault::GiveUp(_) => None,
        };
        if let (Some((code, reason)), Some(call)) = (refused, call_of(&item.message)) {
            let outcome = CallOutcome::refused(code, reason);
            return self.refuse_call(ix, item, Reply { call, outcome });
        }
        let generation = self.generation(ix);
        // The item as it is handled again if this fault cannot be recorded.
        let before = item.clone();
        (item.starts, item.trial) = (0, Trial::Free);
        let policy = self.policy(self.slots[ix].service).retry;
        let attempt = item.attempt + u32::from(!matches!(fault, TurnFault::Defer(_)));
        let error = match &fault {
            TurnFault::Retry(error)
            | TurnFault::Reject(error)
            | TurnFault::Refuse(_, error)
            | TurnFault::GiveUp(error) => error.clone(),
            TurnFault::Defer(delay) => format!("deferred for {delay} ms"),
        };
        if item.history.len() >= ATTEMPTS_KEPT {
            item.history.remove(1);
        }
        item.history.push(Attempt { attempt: attempt.max(1), at: now, generation, error: error.clone() });
        item.attempt = attempt;
        let next = match fault {
            TurnFault::Reject(_) | TurnFault::Refuse(..) | TurnFault::GiveUp(_) => Next::GiveUp(error.clone()),
            TurnFault::Retry(_) => match policy.next(attempt, &mut self.dice) {
                Some(delay) => Next::Retry(millis(delay)),
                None => Next::GiveUp(error.clone()),
            },
            TurnFault::Defer(delay)
                if now.saturating_sub(item.taken_at).saturating_add(delay) > millis(policy.give_up_after) =>
            {
                Next::GiveUp(format!("deferred for longer than retry.give_up_after: {error}"))
            }
            TurnFault::Defer(delay) => Next::Defer(delay),
        };
        match next {
            Next::Retry(delay) => {
                self.tally.retries.push((attempt, delay));
                self.count("retries", 1);
                self.note(ix, &item, HistoryKind::Fault, &error);
                self.retry_later(ix, item, before, now.saturating_add(delay));
            }
            Next::Defer(delay) => {
                self.note(ix, &item, HistoryKind::Deferred, &error);
                self.retry_later(ix, item, before, now.saturating_add(delay));
            }
            Next::GiveUp(reason) => {
                self.note(ix, &item, HistoryKind::DeadLetter, &reason);
                self.give_up(ix, item, before, reason);
            }
        }
    }

    /// Lets the message wait in the table until `due`; messages behind it in memory follow it there.
    fn retry_later(&mut self, ix: SlotIx, item: Item, before: Item, due: Millis) {
        let seq = match item.from {
            From::Row(seq) => seq,
            From::Live(ticket) => {
                self.take(Some(ix), &item, ticket);
                self.group(ix).recorded += 1;
                self.add_row(ix)
            }
            From::Timer => {
                self.fired(ix, &item.message);
                self.add_row(ix)
            }
        };
        let slot = &mut self.slots[ix];
        // Rows before it were replayed while it was in memory.
        slot.known.rows.loaded = slot.known.rows.loaded.min(seq - 1);
        self.waiting.set(&mut slot.known, Head::Waits);
        let row = self.row(ix, &item, seq, PendingKind::Retry, Some(due));
        let group = self.group(ix);
        group.part.pending.push(row);
        group.turn(item.id);
        group.items.push(before);
        self.turned(ix);
        self.await_commits(ix);
        self.follow_queue(ix);
    }

    /// Makes the message a dead letter.
    fn give_up(&mut self, ix: SlotIx, item: Item, before: Item, error: String) {
        // The service that asked is told, and nobody else waits for it.
        let told = call_of(&item.message).is_some() || Asked::of(&item.message).is_some();
        let holds_key = !told && self.policy(self.slots[ix].service).after_dead_letter == AfterDeadLetter::HoldKey;
        let row = matches!(item.from, From::Row(_));
        let seq = match item.from {
            From::Row(seq) => {
                self.drop_row(ix, seq);
                seq
            }
            From::Live(ticket) => {
                self.take(Some(ix), &item, ticket);
                self.next_seq()
            }
            From::Timer => {
                self.fired(ix, &item.message);
                self.next_seq()
            }
        };
        self.slots[ix].known.letters = true;
        let letter = dead_letter(&item, seq, self.service_key(ix), error, holds_key, self.now);
        let death = self.dies(Some(self.slots[ix].service), letter);
        let group = self.group(ix);
        group.outcome_of(&item);
        death.write(&mut group.part);
        group.turn(item.id);
        group.items.push(before);
        self.turned(ix);
        if holds_key {
            let slot = &mut self.slots[ix];
            // Messages in memory behind it are on disk, or follow there now.
            if row || !slot.known.rows.behind() {
                slot.known.rows.loaded = seq;
            }
            slot.known.rows.last = slot.known.rows.last.max(seq);
            self.waiting.set(&mut slot.known, Head::Held);
            self.follow_queue(ix);
        }
    }

    /// Appends a live message behind its key's rows, or lets it wait in memory if the table has no room.
    pub(crate) fn follow(&mut self, ix: SlotIx, item: Item) {
        let ticket = match item.from {
            From::Live(ticket) => ticket,
            From::Row(seq) => {
                // It is on disk already, maybe before the message that fails only now: it got its row while that one
                // ran.
                let rows = &mut self.slots[ix].known.rows;
                return rows.loaded = rows.loaded.min(seq - 1);
            }
            From::Timer => return self.put_back(ix, &item),
        };
        let room = self.waiting.has_room(&self.slots[ix].known.rows, &self.config.settings.pending);
        if !room || !self.slots[ix].overflow.is_empty() {
            self.slots[ix].overflow.push_back(item);
            return;
        }
        self.record_live(ix, &item, ticket, PendingKind::Follower);
    }

    /// Takes a live message and gives it a row without a time of its own.
    pub(crate) fn record_live(&mut self, ix: SlotIx, item: &Item, ticket: Ticket, kind: PendingKind) -> u64 {
        self.take(Some(ix), item, ticket);
        self.group(ix).recorded += 1;
        let seq = self.add_row(ix);
        let row = self.row(ix, item, seq, kind, None);
        let group = self.group(ix);
        group.part.pending.push(row);
        group.items.push(item.clone());
        seq
    }

    /// Moves everything queued behind a message that waits: rows stay on disk, live ones follow.
    pub(crate) fn follow_all(&mut self, ix: SlotIx, items: VecDeque<Item>) {
        items.into_iter().for_each(|item| self.follow(ix, item));
    }

    fn follow_queue(&mut self, ix: SlotIx) {
        if planted(Defect::FollowersNotAppended) {
            return;
        }
        let slot = &mut self.slots[ix];
        let mut behind = slot.running_mut().map(|running| std::mem::take(&mut running.items)).unwrap_or_default();
        behind.append(&mut slot.queue);
        self.follow_all(ix, behind);
    }

    /// Lets the key's rows not be read before everything of it that is gathered by now is durable.
    pub(crate) fn await_commits(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        slot.known.rows.unwritten = slot.uncommitted;
    }

    /// The key's group in the batch that is being gathered.
    pub(crate) fn group(&mut self, ix: SlotIx) -> &mut Group {
        let slot = &mut self.slots[ix];
        match slot.group {
            Some(at) => self.batches.gathered(at),
            None => {
                slot.uncommitted += 1;
                let (at, group) = self.batches.add(ix);
                slot.group = Some(at);
                group
            }
        }
    }

    /// Faults the item at the head without running it, if it is refused or blamed. Returns whether it was.
    pub(crate) fn fault_at_head(&mut self, ix: SlotIx) -> bool {
        let slot = &mut self.slots[ix];
        let Some(head) = slot.queue.front() else { return false };
        let blamed = slot.blame.as_ref().is_some_and(|(id, _)| *id == head.id);
        if !blamed && head.refusal.is_none() {
            return false;
        }
        let Some(head) = slot.queue.pop_front() else { return false };
        let fault = match (slot.blame.take_if(|_| blamed), head.refusal.clone()) {
            // The database decided so, not the handler.
            (Some((_, Fault::Reject(reason) | Fault::Refuse { reason, .. })), _) => TurnFault::GiveUp(reason),
            (None, Some(reason)) => TurnFault::Reject(reason),
            (Some((_, Fault::Retry(reason))), _) => TurnFault::Retry(reason),
            (Some((_, Fault::Defer(delay))), _) => TurnFault::Defer(millis(delay)),
            (Some((_, Fault::Unavailable { reason, .. })), _) => TurnFault::Retry(reason),
            (None, None) => return false,
        };
        self.fault(ix, head, fault);
        true
    }
}
