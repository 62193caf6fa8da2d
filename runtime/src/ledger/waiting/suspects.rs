//! Messages that may have ended the process: their starts are recorded before they run, and one that ended it too often
//! is given up without another.
//! In: messages that come again, or are found waiting, after unclean takeovers; permits for trials. Out: rows that
//! record starts, dead letters; whether the takeover is passed.
//!
//! After a second unclean takeover in a row, messages that may have been in hand then are suspects. A suspect's first
//! recorded start is one of many: they run as always, once the rows that record it are durable. Only those of them that
//! are left when the process ends again have their next starts alone, one at a time in the process: one of them ended
//! it, and a neighbour is not blamed for it.
//!
//! A kill from outside may hit such a start, too. So each further start alone comes after a time that is drawn from
//! [`SPREAD`] times the time within which an end counts (`suspects.trial`); and while it does not run, its row says so:
//! if the process ends then, something else ended it, and its starts are counted anew. A turn that outlives that time
//! has its start taken back, and the next one has twice the time.

use hashbrown::{HashMap, HashSet};

use crate::clock::{Millis, millis};
use crate::handlers::run::TurnFault;
use crate::ledger::Ledger;
use crate::ledger::gates::{Line, PermitEnd};
use crate::ledger::protocol::{Action, SlotIx};
use crate::ledger::settle::record::HistoryKind;
use crate::ledger::slot::{From, Item, Permit, Phase, Slot, Trial};
use crate::ledger::tracker::Ticket;
use crate::message::{SourceIx, TakenId};
use crate::store::{Part, PendingKind, PendingRow};

/// The number of unclean takeovers in a row from which messages in hand are suspects: one alone is an ordinary kill.
const UNCLEAN_MIN: u32 = 2;
/// The number of the first recorded start: the starts that may have ended the process before were not recorded.
const FIRST: u32 = UNCLEAN_MIN + 1;

/// A start alone comes within this many times the time in which an end counts for it: a random kill hits at most one
/// start in a hundred, even if ticks and commits make that time longer, and three in a row once in a million.
const SPREAD: u64 = 160;
/// The number that is added to the stored one for each doubling of that time: starts are counted below it.
const LENGTH: u32 = crate::settings::SUSPECT_STARTS_MAX + 1;
/// Doublings at most.
const LENGTHS: u32 = 24;

/// The starts that count, of a stored number.
fn counted(starts: u32) -> u32 {
    starts % LENGTH
}

/// The number while nothing of it runs: the first start alone is the next one.
fn anew(starts: u32) -> u32 {
    starts - counted(starts) + FIRST
}

/// The number after its start alone lived too long for an end to count.
fn longer(starts: u32) -> u32 {
    anew(starts) + if starts / LENGTH < LENGTHS { LENGTH } else { 0 }
}

/// The ledger's view of unclean takeovers.
#[derive(Debug, Default)]
pub(crate) struct Suspicion {
    /// Unclean takeovers in a row, as stored.
    unclean: u32,
    /// True if the last owner died: starts that it recorded ended with it.
    died: bool,
    /// True if messages in hand at the last one are suspects.
    on: bool,
    /// True if the messages that may have been in hand at the last one have been passed.
    calm: bool,
    /// The time at which the shard was taken over.
    since: Option<Millis>,
    /// The last number of a pending row at the takeover.
    seq: u64,
    /// The number of deliveries that were not duplicates, by source and origin.
    passed: HashMap<(SourceIx, u16), usize>,
    /// Number of the last arrival that may have been in hand.
    last: u64,
    /// The messages whose start this process has recorded.
    here: HashSet<TakenId>,
    /// The key whose suspect is not started yet: its slot, the slot's token, and the time until which it waits.
    watched: Option<(SlotIx, u64, Millis)>,
}

impl Suspicion {
    /// The suspicion after `unclean` unclean takeovers in a row; `died` is true if this takeover is one, and `seq` is
    /// the last row's number.
    pub(crate) fn new(unclean: u32, died: bool, seq: u64) -> Self {
        Self { unclean, died, on: unclean >= UNCLEAN_MIN, seq, ..Self::default() }
    }

    /// Judges a delivery that is not a duplicate. A source hands over again the messages of each origin that were in
    /// hand before anything newer, so these are the first ones.
    pub(crate) fn arrive(&mut self, ticket: &Ticket, arrival: u64, credits: usize) -> (u32, Trial) {
        if self.unclean == 0 {
            return (0, Trial::Free);
        }
        let passed = self.passed.entry((ticket.source, ticket.origin)).or_insert(0);
        if *passed >= credits {
            return (0, Trial::Free);
        }
        *passed += 1;
        self.last = arrival;
        self.doubt()
    }

    /// Judges a row that is read: an old one may have been running, and one whose start is recorded was.
    pub(crate) fn row(&self, row: &PendingRow) -> (u32, Trial) {
        match row.starts {
            0 if row.seq <= self.seq && !self.calm => self.doubt(),
            0 => (0, Trial::Free),
            starts if starts >= FIRST && self.here.contains(&row.id) => (starts, Trial::Recorded),
            // Nothing ended with the last owner: the same start is recorded again.
            starts if starts >= FIRST && !self.died => (starts - 1, Trial::Wanted),
            starts => (starts, Trial::Wanted),
        }
    }

    /// Judges a timer that was due at `due`.
    pub(crate) fn timer(&mut self, due: Millis, now: Millis) -> (u32, Trial) {
        let since = *self.since.get_or_insert(now);
        if self.calm || due > since { (0, Trial::Free) } else { self.doubt() }
    }

    fn doubt(&self) -> (u32, Trial) {
        if self.on { (UNCLEAN_MIN, Trial::Wanted) } else { (0, Trial::Free) }
    }

    /// True if the takeover is passed, and the store is to be told so.
    pub(crate) fn is_passed(&self) -> bool {
        self.unclean > 0 && self.calm
    }

    /// Clears these items, whose commit is durable: they did not end the process.
    pub(crate) fn survived(&mut self, items: &[Item]) {
        if !self.here.is_empty() {
            for item in items.iter().filter(|item| item.trial == Trial::Recorded) {
                self.here.remove(&item.id);
            }
        }
    }

    /// Takes note that the store was told.
    pub(crate) fn cleaned(&mut self) {
        self.unclean = 0;
    }
}

impl Item {
    /// True if it may run behind others.
    pub(crate) fn is_free(&self) -> bool {
        match self.trial {
            Trial::Free => true,
            Trial::Recorded => !self.is_alone(),
            Trial::Wanted | Trial::Recording | Trial::Watching | Trial::Watched(_) => false,
        }
    }

    /// True if its start is one that no other suspect shares.
    pub(crate) fn is_alone(&self) -> bool {
        match self.trial {
            Trial::Free => false,
            Trial::Wanted => self.starts >= FIRST,
            Trial::Recording | Trial::Recorded => self.starts > FIRST,
            Trial::Watching | Trial::Watched(_) => true,
        }
    }
}

impl Slot {
    /// True if something of it may have been in hand at the takeover.
    fn is_old(&self, suspicion: &Suspicion) -> bool {
        let mut items = self.in_run().chain(&self.queue).chain(&self.overflow);
        let old = |item: &Item| match item.from {
            From::Live(_) => item.arrival <= suspicion.last,
            From::Row(seq) => seq <= suspicion.seq || item.trial != Trial::Free,
            From::Timer => item.trial != Trial::Free,
        };
        let rows = &self.known.rows;
        let unread = rows.behind() && rows.loaded < suspicion.seq && !self.known.head.stops();
        items.any(old) || unread || matches!(self.phase, Phase::Loads)
    }
}

impl Ledger {
    /// True if the head of a key's queue is a suspect whose start is not recorded yet; records it, with those behind
    /// it.
    pub(crate) fn awaits_record(&mut self, ix: SlotIx) -> bool {
        let Some(head) = self.slots[ix].queue.front() else { return false };
        if head.trial == Trial::Wanted && !head.is_alone() {
            self.record_starts(ix);
            return true;
        }
        head.trial == Trial::Recording
    }

    /// Records the first start of as many suspects of a key as may run together.
    fn record_starts(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        let most = if slot.solo > 0 { 1 } else { self.config.settings.actors.run_max };
        let mut queue = std::mem::take(&mut slot.queue);
        for (at, item) in queue.iter_mut().take(most).enumerate() {
            // A timer that is not the first may still be cancelled.
            let early = at > 0 && item.from == From::Timer;
            if item.trial != Trial::Wanted || item.is_alone() || item.refusal.is_some() || early {
                break;
            }
            self.record_start(ix, item, FIRST);
        }
        self.slots[ix].queue = queue;
    }

    /// Records that a suspect is to be started; it starts once that is durable.
    fn record_start(&mut self, ix: SlotIx, item: &mut Item, starts: u32) {
        item.starts = starts;
        self.record(ix, item, starts, Trial::Recording);
    }

    /// Writes the row of a suspect that is read if the process ends.
    fn record(&mut self, ix: SlotIx, item: &mut Item, starts: u32, trial: Trial) {
        let before = item.clone();
        let seq = match item.from {
            From::Row(seq) => seq,
            From::Live(ticket) => {
                self.take(Some(ix), item, ticket);
                self.group(ix).recorded += 1;
                self.add_row(ix)
            }
            From::Timer => {
                self.fired(ix, &item.message);
                self.add_row(ix)
            }
        };
        item.trial = trial;
        item.from = From::Row(seq);
        let row = PendingRow { starts, ..self.row(ix, item, seq, PendingKind::Suspect, None) };
        let new = before.from != item.from;
        let group = self.group(ix);
        group.part.pending.push(row);
        if new {
            group.items.push(before);
            self.slots[ix].known.rows.loaded = seq;
        }
    }

    /// Takes note that the starts which a part records are durable.
    pub(crate) fn starts_recorded(&mut self, ix: SlotIx, part: &Part) {
        let (now, trial) = (self.now, millis(self.config.settings.suspects.trial));
        let slot = &mut self.slots[ix];
        for row in part.pending.iter().filter(|row| row.kind == PendingKind::Suspect) {
            let Some(item) = slot.queue.iter_mut().find(|item| item.from == From::Row(row.seq)) else { continue };
            if item.trial == Trial::Recording && row.starts == item.starts {
                item.trial = Trial::Recorded;
                self.suspicion.here.insert(item.id);
                slot.busy_since = now;
            } else if item.trial == Trial::Watching && row.starts == anew(item.starts) {
                let within = trial.saturating_mul(SPREAD << (item.starts / LENGTH));
                item.trial = Trial::Watched(now.saturating_add(self.dice.below(within.max(1))));
            }
        }
    }

    /// True if a key has to wait before the suspect at its head may start alone: for its turn among those of the
    /// process, or for the record of its start.
    pub(crate) fn awaits_trial(&mut self, ix: SlotIx) -> bool {
        let (now, slot) = (self.now, &mut self.slots[ix]);
        let Some(head) = slot.queue.front().filter(|head| head.is_alone()) else { return false };
        match (slot.trial, head.trial) {
            (Permit::Granted, Trial::Recorded) => false,
            (Permit::Granted, Trial::Wanted) => {
                let most = self.config.settings.suspects.starts;
                if (FIRST + 1..most).contains(&counted(head.starts)) {
                    self.watch(ix);
                } else {
                    self.start_alone(ix);
                }
                true
            }
            (Permit::Granted, Trial::Watched(until)) if until > now => {
                self.suspicion.watched = Some((ix, slot.token, until));
                true
            }
            (Permit::Granted, Trial::Watched(_)) => {
                self.start_alone(ix);
                true
            }
            (Permit::None, _) => {
                slot.trial = Permit::Asked;
                slot.busy_since = now;
                self.ask_permit(ix, Line::Trial, false);
                true
            }
            (Permit::Asked | Permit::Granted | Permit::Used, _) => true,
        }
    }

    /// Records that a suspect is not started yet: if the process ends now, something else ended it.
    fn watch(&mut self, ix: SlotIx) {
        // Others of its service may run meanwhile.
        self.return_permit(ix);
        let Some(mut head) = self.slots[ix].queue.pop_front() else { return };
        let starts = anew(head.starts);
        self.record(ix, &mut head, starts, Trial::Watching);
        self.slots[ix].queue.push_front(head);
    }

    /// Lets time pass for the suspect that has its start alone, or is to have it.
    pub(crate) fn tick_trials(&mut self) {
        if let Some((ix, token, _)) = self.suspicion.watched.take_if(|(.., until)| *until <= self.now)
            && self.slots.current(ix, token)
        {
            self.to_advance.push_back(ix);
        }
        if self.suspicion.here.is_empty() {
            return;
        }
        let trial = millis(self.config.settings.suspects.trial);
        let late = |slot: &&Slot| {
            let lived = self.now.saturating_sub(slot.busy_since);
            slot.started_alone().is_some_and(|head| lived >= trial.saturating_mul(1 << (head.starts / LENGTH)))
        };
        let late = self.slots.iter().find(late).and_then(|slot| self.slots.find(slot.service, &slot.key));
        if let Some(ix) = late {
            self.take_back(ix);
        }
    }

    /// Takes back the start that a suspect had alone: it is so long ago that an end does not count for it any more.
    fn take_back(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        let Some(mut head) = slot.first_mut().pop_front() else { return };
        let starts = longer(head.starts);
        if starts != head.starts {
            head.starts = starts;
            self.record(ix, &mut head, starts, Trial::Recorded);
        }
        self.slots[ix].first_mut().push_front(head);
    }

    /// Records one more start of a suspect, if it is to have one.
    fn start_alone(&mut self, ix: SlotIx) {
        let Some(mut head) = self.slots[ix].queue.pop_front() else { return };
        let most = self.config.settings.suspects.starts;
        if counted(head.starts) >= most {
            let reason = format!(
                "the process ended each of the last {most} times that this message was being handled: nothing of it is in \
                 the store, what it asked of others may have happened; it is not started again (suspects.starts)"
            );
            self.to_advance.push_back(ix);
            return self.fault(ix, head, TurnFault::GiveUp(reason));
        }
        let starts = head.starts + 1;
        let count = counted(starts);
        let what = format!("the process ended while it was being handled: start {count} of {most}");
        self.note(ix, &head, HistoryKind::Suspect, &what);
        self.record_start(ix, &mut head, starts);
        self.slots[ix].queue.push_front(head);
    }

    /// Ends the trial of a suspect whose turn is over and durable: until then the process may end, and it would be
    /// found again.
    pub(crate) fn trial_used(&mut self, ix: SlotIx) {
        let slot = &self.slots[ix];
        if slot.trial == Permit::Used && slot.uncommitted == 0 {
            self.end_trial(ix, PermitEnd::Done);
        }
    }

    /// Ends a key's trial, which is over or does not take place.
    pub(crate) fn end_trial(&mut self, ix: SlotIx, ended: PermitEnd) {
        let slot = &mut self.slots[ix];
        if matches!(slot.trial, Permit::Granted | Permit::Used) {
            self.out.push(Action::PermitEnded(Line::Trial, ended));
        }
        slot.trial = Permit::None;
    }

    /// Takes note once the messages that may have been in hand at an unclean takeover are passed: each origin has
    /// handed over as many as may have been in hand, or a while has gone by, and none of them is left.
    pub(crate) fn calm_down(&mut self) {
        let now = self.now;
        let suspicion = &mut self.suspicion;
        if suspicion.unclean == 0 || suspicion.calm {
            return;
        }
        let since = *suspicion.since.get_or_insert(now);
        let late = now.saturating_sub(since) >= millis(self.config.settings.suspects.calm_after);
        let credits = self.config.settings.ingress.credits;
        let origins = self
            .sources
            .iter()
            .enumerate()
            .flat_map(|(at, source)| source.origins().map(move |of| (SourceIx::nth(at), of)));
        let enough = |of: (SourceIx, u16)| self.suspicion.passed.get(&of).is_some_and(|passed| *passed >= credits);
        let mut known = origins.peekable();
        let all = known.peek().is_some() && known.all(enough);
        let reading = self.waiting.fetching || self.waiting.orphans || self.timers.unread(now);
        if (late || all) && !reading && !self.slots.iter().any(|slot| slot.is_old(&self.suspicion)) {
            self.suspicion.calm = true;
        }
    }
}
