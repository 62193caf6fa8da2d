//! Operators' commands, executed by the owner of the shard within its commits, one at a time.
//! In: commands, the dead letters that they select. Out: rows that are pending again, letters removed, results.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::Ledger;
use super::protocol::{Question, SlotIx};
use super::settle::record::HistoryKind;
use super::slot::{From, Head, Item, Operation, Phase, REPLACES};
use crate::clock::Millis;
use crate::handler::{CALL, CALL_ID, COMMAND, call_of};
use crate::message::{CUT_FROM, Draft, Message, TakenId, shard_of};
use crate::store::query::{OpenCommand, OperatorAction, Scope};
use crate::store::{
    CommandResult, DeadLetter, DeadPlace, HistoryRow, Letters, Part, PendingKind, PendingRow, Runnable, ServiceKey,
};

/// Dead letters looked up at once.
const FIND_MAX: usize = 500;
/// Rows and timers of a service looked up at once.
const SERVICE_MAX: usize = 64;

/// The command on its way.
#[derive(Debug)]
pub(crate) struct CommandProgress {
    pub(crate) command: OpenCommand,
    /// The number of letters found whose operations are not durable.
    pub(crate) outstanding: u64,
    /// The last letter that was looked at: letters that cannot be replayed stay, and those behind them are found all
    /// the same.
    after: Option<DeadPlace>,
}

/// The services and keys that operators have paused.
#[derive(Debug, Default)]
pub(crate) struct Pauses(BTreeSet<Scope>);

impl Pauses {
    pub(crate) fn of(scopes: &[Scope]) -> Self {
        Self(scopes.iter().cloned().collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if no turn of this key is to start.
    pub(crate) fn holds(&self, service: &str, key: &str) -> bool {
        let here = |scope: &Scope| scope.service == service && scope.key.as_deref().is_none_or(|paused| paused == key);
        !self.0.is_empty() && self.0.iter().any(here)
    }

    /// True if something that was paused is not paused any more.
    fn resume(&mut self, scope: &Scope) -> bool {
        let before = self.0.len();
        self.0.retain(|other| !scope.covers(other));
        self.0.len() < before
    }

    /// The services and keys of these whose rows may run.
    fn runnable<'a>(&self, names: impl Iterator<Item = &'a Arc<str>>) -> Runnable {
        let is_paused = |service: &str| self.0.iter().any(|scope| scope.service == *service && scope.key.is_none());
        let services: Vec<_> = names.filter(|name| !is_paused(name)).cloned().collect();
        let key = |scope: &Scope| {
            let service = services.iter().find(|name| ***name == *scope.service)?;
            Some(ServiceKey { service: service.clone(), key: scope.key.as_deref()?.into() })
        };
        Runnable { without: self.0.iter().filter_map(key).collect(), services }
    }
}

impl Ledger {
    /// Pauses or resumes; true if that changes anything here.
    fn set_paused(&mut self, scope: &Scope, paused: bool) -> bool {
        let shards = self.config.settings.ownership.shards;
        if scope.key.as_ref().is_some_and(|key| shard_of(key, shards) != self.shard) {
            return false;
        }
        if paused {
            return self.pauses.0.insert(scope.clone());
        }
        let resumed = self.pauses.resume(scope);
        let resting = self.slots.iter().filter(|slot| matches!(slot.phase, Phase::Paused));
        let resting: Vec<SlotIx> = resting.filter_map(|slot| self.slots.find(slot.service, &slot.key)).collect();
        self.to_advance.extend(resting);
        self.timers.at(self.now);
        self.waiting.at(self.now);
        // Asked again, even if answers are on their way: those may have passed over paused keys.
        self.waiting.orphans = true;
        self.ask(Question::Orphans(self.runnable(), None, self.config.settings.pending.page));
        resumed
    }

    /// The services and keys whose rows may run.
    pub(crate) fn runnable(&self) -> Runnable {
        self.pauses.runnable(self.config.services.iter().map(|service| &service.name))
    }

    /// True if a key with something to run is paused: it keeps no actor in the meantime.
    pub(crate) fn rests_paused(&mut self, ix: SlotIx) -> bool {
        let slot = &mut self.slots[ix];
        let paused = self.pauses.holds(&self.config.services[slot.service].name, &slot.key);
        if paused && !matches!(slot.phase, Phase::Paused) {
            slot.busy_since = self.now;
            let (timers, rest): (VecDeque<Item>, VecDeque<Item>) =
                std::mem::take(&mut slot.queue).into_iter().partition(|item| item.from == From::Timer);
            slot.queue = rest;
            timers.iter().for_each(|timer| self.put_back(ix, timer));
            self.give_actor_back(ix);
        }
        self.slots[ix].phase = if paused { Phase::Paused } else { Phase::Rests };
        paused
    }

    /// Executes a command on this shard. It is ignored while another one is executed: it is still open when that one is
    /// done.
    pub(crate) fn command(&mut self, command: OpenCommand) {
        if self.draining || self.command.is_some() || self.dead_letters.is_busy() {
            return;
        }
        match &command.action {
            OperatorAction::Retire(sink) => {
                let affected = u64::from(self.retire(sink));
                merge(&mut self.batches.loose().part, CommandResult { command: command.id, affected, done: true });
            }
            OperatorAction::Pause(scope) | OperatorAction::Resume(scope) => {
                let affected = u64::from(self.set_paused(scope, matches!(command.action, OperatorAction::Pause(_))));
                merge(&mut self.batches.loose().part, CommandResult { command: command.id, affected, done: true });
            }
            OperatorAction::Replay | OperatorAction::Discard | OperatorAction::Edit { .. } => {
                self.ask(Question::DeadLetters(command.id, command.filter.clone(), None, FIND_MAX));
            }
            // Messages of a service that runs here are not given up.
            OperatorAction::Drop(service) if self.service_of(service).is_some() => {
                let result = CommandResult { command: command.id, affected: 0, done: true };
                merge(&mut self.batches.loose().part, result);
            }
            OperatorAction::Drop(service) => {
                self.ask(Question::Service(command.id, service.as_str().into(), SERVICE_MAX));
            }
        }
        self.command = Some(CommandProgress { command, outstanding: 0, after: None });
    }

    /// The store's answer to [`Question::DeadLetters`].
    pub(crate) fn dead_found(&mut self, id: i64, letters: Vec<DeadLetter>) {
        let Some(progress) = self.command.as_ref().filter(|progress| progress.command.id == id) else { return };
        let (action, who) = (progress.command.action.clone(), progress.command.who.clone());
        let last = letters.last().map(|letter| (letter.key.clone(), letter.seq));
        let mut outstanding = 0;
        for letter in letters {
            let service = self.service_of(&letter.service);
            let operation = Operation { command: id, action: action.clone(), who: who.clone(), letter };
            match (service, &operation.action) {
                (
                    _,
                    OperatorAction::Retire(_)
                    | OperatorAction::Pause(_)
                    | OperatorAction::Resume(_)
                    | OperatorAction::Drop(_),
                ) => {}
                (_, OperatorAction::Edit { .. }) if operation.letter.id.is_outgoing() => {}
                (Some(_), OperatorAction::Replay) if operation.letter.id.is_outgoing() => {
                    self.publish_again(&operation.letter);
                    self.without_slot(&operation, HistoryKind::Replayed);
                    outstanding += 1;
                }
                (_, OperatorAction::Discard) if operation.letter.id.is_outgoing() => {
                    self.without_slot(&operation, HistoryKind::Discarded);
                    outstanding += 1;
                }
                // The call's sender was told that it failed, and may have acted on that.
                (_, OperatorAction::Replay) if call_of(&operation.letter.message).is_some() => {}
                (Some(service), _) if !operation.letter.key.is_empty() => {
                    let ix = self.slot_for(service, &operation.letter.key);
                    self.slots[ix].operations.push(operation);
                    self.to_advance.push_back(ix);
                    outstanding += 1;
                }
                // Without a service or a key there is nowhere to replay it to.
                (_, OperatorAction::Replay | OperatorAction::Edit { .. }) => {}
                (_, OperatorAction::Discard) => {
                    self.without_slot(&operation, HistoryKind::Discarded);
                    outstanding += 1;
                }
            }
        }
        let Some(progress) = self.command.as_mut() else { return };
        progress.outstanding = outstanding;
        if last.is_some() {
            progress.after = last;
            self.command_step(0);
        } else {
            self.command_ends(id);
        }
    }

    /// Ends a command: all of its letters were seen, or they cannot be read.
    pub(crate) fn command_ends(&mut self, id: i64) {
        if self.command.as_ref().is_some_and(|progress| progress.command.id == id) {
            merge(&mut self.batches.loose().part, CommandResult { command: id, affected: 0, done: true });
        }
    }

    /// Removes a letter that no key waits for with the next commit.
    fn without_slot(&mut self, operation: &Operation, kind: HistoryKind) {
        let group = self.batches.loose();
        group.gone = group.gone.plus(Letters::one(&operation.letter.id, operation.letter.holds_key));
        let part = &mut group.part;
        part.undead.push(operation.letter.seq);
        part.history.push(history(operation, kind, self.now));
        merge(part, CommandResult { command: operation.command, affected: 1, done: false });
    }

    /// Executes operators' wishes for a key, before its next run.
    pub(crate) fn operate(&mut self, ix: SlotIx) {
        for operation in std::mem::take(&mut self.slots[ix].operations) {
            let letter = &operation.letter;
            let releases = self.slots[ix].known.head == Head::Held && letter.holds_key;
            let kind = match &operation.action {
                OperatorAction::Replay => {
                    self.replay(ix, letter, releases);
                    HistoryKind::Replayed
                }
                OperatorAction::Edit { payload, id } => {
                    let Some(message) = replacement(&letter.message, payload.bytes(), id) else { continue };
                    let number = self.policy(self.slots[ix].service).number;
                    let taken = TakenId::of(&message, number, &self.config.hash_key);
                    self.inbox.pin(taken);
                    self.group(ix).pinned.push(taken);
                    let edited = DeadLetter { message, id: taken, history: Vec::new(), ..letter.clone() };
                    self.replay(ix, &edited, releases);
                    HistoryKind::Edited
                }
                OperatorAction::Discard => HistoryKind::Discarded,
                // These commands are not about dead letters.
                OperatorAction::Retire(_)
                | OperatorAction::Pause(_)
                | OperatorAction::Resume(_)
                | OperatorAction::Drop(_) => continue,
            };
            if releases {
                let slot = &mut self.slots[ix];
                self.waiting.set(&mut slot.known, Head::Free);
                if operation.action != OperatorAction::Discard {
                    slot.known.rows.loaded = slot.known.rows.loaded.min(letter.seq - 1);
                }
            }
            let now = self.now;
            let group = self.group(ix);
            group.gone = group.gone.plus(Letters::one(&letter.id, letter.holds_key));
            let part = &mut group.part;
            part.undead.push(letter.seq);
            part.history.push(history(&operation, kind, now));
            merge(part, CommandResult { command: operation.command, affected: 1, done: false });
        }
        self.to_advance.push_back(ix);
    }

    /// Makes a dead letter pending: at its old place if it held the key, else behind everything that waits. No due time
    /// is needed: the key is in hand, and after a crash it is found as one whose head has none.
    fn replay(&mut self, ix: SlotIx, letter: &DeadLetter, releases: bool) {
        if !releases && self.slots[ix].queue.iter().any(|item| !matches!(item.from, From::Row(_))) {
            // Messages in memory get their rows first: if one of them fails, those behind it must not overtake it.
            let queue = std::mem::take(&mut self.slots[ix].queue);
            self.follow_all(ix, queue);
        }
        let seq = if releases { letter.seq } else { self.next_seq() };
        let rows = &mut self.slots[ix].known.rows;
        if !rows.behind() {
            rows.loaded = seq - 1;
        }
        self.waiting.add(rows, seq);
        let row = PendingRow {
            seq,
            service: letter.service.clone(),
            key: letter.key.clone(),
            kind: PendingKind::Replay,
            due_at: None,
            id: letter.id,
            taken_at: self.now,
            attempt: 0,
            starts: 0,
            message: letter.message.clone(),
            history: letter.history.clone(),
        };
        self.group(ix).part.pending.push(row);
        self.await_commits(ix);
    }

    /// Goes on with a command, or ends it, after a part with its result is durable.
    pub(crate) fn command_committed(&mut self, part: &Part) {
        match &part.command {
            Some(result) if result.done => self.command = None,
            Some(result) => self.command_step(result.affected),
            None => {}
        }
    }

    /// Looks for the letters of a command again, after a part with its result was refused.
    pub(crate) fn command_undone(&mut self, part: &Part) {
        if let Some(result) = &part.command {
            if let Some(progress) = self.command.as_mut() {
                progress.after = None;
            }
            self.command_step(result.affected);
        }
    }

    fn command_step(&mut self, operations: u64) {
        let Some(progress) = self.command.as_mut() else { return };
        progress.outstanding = progress.outstanding.saturating_sub(operations);
        if progress.outstanding == 0 {
            let id = progress.command.id;
            let question = match &progress.command.action {
                OperatorAction::Drop(service) => Question::Service(id, service.as_str().into(), SERVICE_MAX),
                _ => Question::DeadLetters(id, progress.command.filter.clone(), progress.after.clone(), FIND_MAX),
            };
            self.ask(question);
        }
    }
}

/// The message that takes an edited one's place; `None` if that cannot be a message.
fn replacement(message: &Message, payload: &[u8], id: &str) -> Option<Message> {
    let kept = message.headers().filter(|(name, _)| ![REPLACES, CALL_ID, CUT_FROM].contains(name));
    let headers: Vec<_> = kept.chain([(REPLACES, message.id())]).collect();
    // The sender of a call has its answer: the message in the call's place has none to give.
    let kind = if message.kind() == CALL { COMMAND } else { message.kind() };
    let (key, source, time) = (message.key(), message.source(), message.time());
    Draft { id, key, kind, source, time, headers: &headers, payload }.build_unchecked().ok()
}

pub(crate) fn merge(part: &mut Part, result: CommandResult) {
    match &mut part.command {
        Some(sum) => {
            sum.affected += result.affected;
            sum.done |= result.done;
        }
        None => part.command = Some(result),
    }
}

fn history(operation: &Operation, kind: HistoryKind, at: Millis) -> HistoryRow {
    let letter = &operation.letter;
    HistoryRow {
        service: letter.service.clone(),
        key: letter.key.clone(),
        id: letter.message.id().to_owned(),
        at,
        attempt: letter.history.last().map_or(0, |attempt| attempt.attempt),
        generation: 0,
        what: kind.as_str().to_owned(),
        error: format!("by {} (command {})", operation.who, operation.command),
    }
}
