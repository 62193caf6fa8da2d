//! What is written down: about a message that did not succeed, and for metrics and logs.
//! In: items, their faults. Out: dead letters, history rows, notes for the log; counts since last asked, gauges.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::clock::{Millis, millis};
use crate::handler::{CallId, call_of};
use crate::ledger::Ledger;
use crate::ledger::batches::group::Group;
use crate::ledger::operator::merge;
use crate::ledger::protocol::{Question, SlotIx};
use crate::ledger::slot::Item;
use crate::store::calls::{CallOutcome, Reply};
use crate::store::{
    CommandResult, Counters, DeadLetter, Epoch, HistoryRow, Letters, OfService, OldLetters, Part, PendingRow,
    ServiceKey, TimerWrite,
};

/// The end of the error of a message whose id was taken before with other content.
pub const OTHER_CONTENT: &str = "was taken before with other content";

/// Pause between two pages of dead letters that are looked through for old ones, and between two rounds through all.
const OLD_MS: Millis = 1_000;
const OLD_ALL_MS: Millis = 10_000;

/// What happened since it was last asked, for metrics and logs.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Turns that settled, by service index.
    pub processed: HashMap<u16, u64>,
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
    pub dead: Vec<Option<u16>>,
    /// Services that this program does not have, one for each message that waits for a program that does.
    pub absent: Vec<Arc<str>>,
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
    /// Their bytes.
    pub bytes_in_hand: usize,
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
    /// Dead letters.
    pub letters: Letters,
    /// There are as many as may be.
    pub letters_full: bool,
    /// A sink that is no longer configured keeps commits.
    pub sink_gone: bool,
    /// Schedules whose next time could not be found.
    pub schedules_ended: u64,
    /// The epoch.
    pub epoch: Epoch,
    /// The last commit.
    pub commit_no: u64,
}

impl Ledger {
    pub(crate) fn note(
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
    pub(crate) fn refuse_call(&mut self, ix: SlotIx, item: Item, call: CallId, (code, reason): (&str, &str)) {
        let outcome = CallOutcome::refused(code, reason);
        let group = self.group(ix);
        group.part.replies.push(Reply { call, outcome });
        group.turn(item.id);
        self.turned(ix);
        self.settle_item(ix, item);
    }
}

impl Ledger {
    /// The error of a message whose id was taken before with other content; it is counted.
    pub(crate) fn conflict(&mut self, message: &crate::message::Message) -> String {
        self.tally.conflicts += 1;
        self.count("conflicts", 1);
        format!("the id {:?} {OTHER_CONTENT}", message.id())
    }
}

/// Where the walk through dead letters is, that are kept for `dlq.keep`.
#[derive(Debug, Default)]
pub(crate) struct Keeping {
    /// The last one that was looked at.
    after: u64,
    /// When to look on.
    next: Millis,
    /// The store was asked, or what it found is not durable.
    busy: bool,
}

impl Keeping {
    /// Whether dead letters are being removed: no operator acts on them meanwhile.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }
}

impl Ledger {
    /// Whether there are as many dead letters as may be: nothing more is taken in.
    pub(crate) fn letters_full(&self) -> bool {
        self.letters.count >= self.config.settings.dlq.max
    }

    /// Dead letters once a batch is durable (its parts bring some, its groups remove others), and the shard's counters with
    /// them.
    pub(crate) fn counted(&self, parts: &[Part], groups: &[Group]) -> (Letters, Counters) {
        let born = parts.iter().flat_map(|part| &part.dead).map(|letter| Letters::one(&letter.id, letter.holds_key));
        let letters =
            groups.iter().map(|group| group.gone).fold(born.fold(self.letters, Letters::plus), Letters::minus);
        let mut counters = self.counters.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        letters.store(&mut counters);
        (letters, counters)
    }

    /// Looks on for dead letters that were kept for long enough, page by page.
    pub(crate) fn look_for_old(&mut self) {
        let now = self.now;
        let keep = millis(self.config.settings.dlq.keep);
        let rests = keep == 0 || self.letters.count == self.letters.holding || now < self.keeping.next;
        if rests || self.keeping.busy || self.command.is_some() || self.draining {
            return;
        }
        self.keeping.busy = true;
        self.ask(Question::OldLetters(self.keeping.after, now.saturating_sub(keep)));
    }

    /// The store's answer to [`Question::OldLetters`]: they are removed with the next commit, and `explain` says so.
    pub(crate) fn old_found(&mut self, found: OldLetters) {
        let now = self.now;
        // From the first one again, once all were looked at.
        self.keeping.after = found.last.unwrap_or(0);
        self.keeping.next = now.saturating_add(if found.last.is_some() { OLD_MS } else { OLD_ALL_MS });
        self.keeping.busy = !found.letters.is_empty();
        self.tally.expired += found.letters.len() as u64;
        let group = self.batches.loose();
        for letter in found.letters {
            group.gone = group.gone.plus(Letters::one(&letter.id, false));
            group.part.undead.push(letter.seq);
            group.part.history.push(HistoryRow {
                service: letter.service,
                key: letter.key,
                id: letter.message_id,
                at: now,
                attempt: 0,
                generation: 0,
                what: "expired".to_owned(),
                error: "it was a dead letter for longer than dlq.keep".to_owned(),
            });
        }
    }

    /// A part that belongs to no key is durable.
    pub(crate) fn old_committed(&mut self, part: &Part) {
        if part.command.is_none() && !part.undead.is_empty() {
            self.keeping.busy = false;
        }
    }

    /// The store's answer to [`Question::Service`]: nothing of it is in hand, as no program here has the service. Timers
    /// go; messages become dead letters, so that whoever asked for them is told, and nothing is lost before it is discarded.
    pub(crate) fn service_found(&mut self, id: i64, found: OfService) {
        let Some(progress) = self.command.as_mut().filter(|progress| progress.command.id == id) else { return };
        progress.outstanding = (found.pending.len() + found.timers.len()) as u64;
        if progress.outstanding == 0 {
            return self.command_ends(id);
        }
        let error = format!("given up by {} (command {id}): no program has its service", progress.command.who);
        for timer in found.timers {
            let part = &mut self.batches.loose().part;
            part.timers.push(TimerWrite { service: timer.of.service, key: timer.of.key, name: timer.name, set: None });
            merge(part, CommandResult { command: id, affected: 1, done: false });
        }
        for row in found.pending {
            self.give_up_row(row, error.clone());
            merge(&mut self.batches.loose().part, CommandResult { command: id, affected: 1, done: false });
        }
    }

    /// A row that no key waits for becomes a dead letter.
    fn give_up_row(&mut self, row: PendingRow, error: String) {
        let PendingRow { seq, service, key, id, taken_at, message, history, .. } = row;
        let letter =
            DeadLetter { seq, service, key, id, at: self.now, taken_at, error, holds_key: false, history, message };
        let (event, answer) = (self.obituary(&letter), self.bad_news(&letter));
        let reply = call_of(&letter.message).map(|call| Reply { call, outcome: CallOutcome::failed(&letter.error) });
        self.waiting.rows = self.waiting.rows.saturating_sub(1);
        self.tally.dead.push(None);
        self.count("dead_letters", 1);
        let bytes_max = self.config.settings.commit.bytes_max;
        let part = &mut self.batches.loose_with_room(letter.message.frame().len(), bytes_max).part;
        part.events.extend(event);
        part.sent.extend(answer);
        part.replies.extend(reply);
        part.settled.push(seq);
        part.dead.push(letter);
    }
}

pub(crate) fn dead_letter(
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
