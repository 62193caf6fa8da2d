//! The rows that wait on disk: the times to look for them, and reading them back in pages.
//! In: the store's answers, the time. Out: keys woken, items in their queues.

pub(crate) mod suspects;
pub(crate) mod timers;

use hashbrown::HashSet;

use super::Ledger;
use super::protocol::{Question, SlotIx};
use super::routes::Bindings;
use super::slot::{From, Head, Item, Known, Permit, Phase, Rows, Slot, Trial};
use crate::clock::{Millis, millis};
use crate::settings::PendingSettings;
use crate::store::{Due, PendingKind, PendingRow, ServiceKey};

/// The pause before the store is asked again while all that is due is already in hand.
const AGAIN_MS: Millis = 100;
/// The pause between two looks for turns that take long.
const SPILL_LOOK_MS: Millis = 500;

/// The ledger's view of the `pending` table.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// The number of rows in the table, those on their way included.
    pub(crate) rows: u64,
    /// The time at which something is due next, as far as known.
    pub(crate) next: Option<Millis>,
    /// True if the store was asked for due keys.
    pub(crate) fetching: bool,
    /// True if it was asked for keys whose head was settled before a crash.
    pub(crate) orphans: bool,
    /// The number of keys whose head row was found due and is not settled.
    pub(crate) awake: usize,
    /// The time of the last look for turns that take long.
    pub(crate) spilled_at: Millis,
    /// Keys found due while they were being loaded.
    pub(crate) woken: HashSet<SlotIx>,
}

impl Waiting {
    pub(crate) fn new(rows: u64) -> Self {
        // The first look is asked for when the ledger is made.
        Self { rows, fetching: true, orphans: true, ..Self::default() }
    }

    /// Adds a row to a key, as the last one or before it.
    pub(crate) fn add(&mut self, rows: &mut Rows, seq: u64) {
        self.rows += 1;
        rows.count += 1;
        rows.last = rows.last.max(seq);
    }

    /// Takes note that this many rows are gone.
    pub(crate) fn remove(&mut self, rows: u64) {
        self.rows = self.rows.saturating_sub(rows);
    }

    /// True if a key may have one more row.
    pub(crate) fn has_room(&self, rows: &Rows, bounds: &PendingSettings) -> bool {
        rows.count < bounds.max_per_key && self.rows < bounds.max_per_shard
    }

    /// Takes note that something is due at `at`.
    pub(crate) fn at(&mut self, at: Millis) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// True if all that is due, or was left by an owner that died, was found and handled.
    pub(crate) fn is_read(&self, now: Millis) -> bool {
        let due = self.next.is_some_and(|next| next <= now);
        !due && !self.fetching && !self.orphans && self.awake == 0 && self.woken.is_empty()
    }

    /// True if the store is to be asked for due keys now.
    fn begins(&mut self, now: Millis) -> bool {
        let begins = !self.fetching && self.next.is_some_and(|next| next <= now);
        if begins {
            (self.fetching, self.next) = (true, None);
        }
        begins
    }

    /// Sets the state of a key's rows.
    pub(crate) fn set(&mut self, known: &mut Known, head: Head) {
        self.awake += usize::from(head == Head::Due);
        self.awake -= usize::from(known.head == Head::Due);
        known.head = head;
    }

    /// Settles a key's head row, if it was due.
    pub(crate) fn settled(&mut self, known: &mut Known) {
        if known.head == Head::Due {
            self.set(known, Head::Free);
        }
    }
}

impl Ledger {
    pub(crate) fn fetch_due(&mut self) {
        if !self.draining && self.waiting.begins(self.now) {
            let page = self.config.settings.pending.page + self.waiting.awake;
            self.ask(Question::Due(self.runnable(), page));
        }
    }

    /// The store's answer to [`Question::Due`].
    pub(crate) fn due(&mut self, due: Due) {
        let now = self.now;
        self.waiting.fetching = false;
        if let Some(next) = due.next {
            self.waiting.at(next.max(now + AGAIN_MS.min(next.saturating_sub(now))));
        }
        let woken = due.keys.iter().filter(|key| self.wake(key)).count();
        if !due.keys.is_empty() {
            // Keys that were not woken are in hand already, or their newer time is not committed yet.
            self.waiting.at(if woken > 0 { now } else { now + AGAIN_MS });
        }
    }

    /// The store's answer to [`Question::Orphans`].
    pub(crate) fn orphans(&mut self, keys: Vec<ServiceKey>) {
        let page = self.config.settings.pending.page;
        for key in &keys {
            self.wake(key);
        }
        self.waiting.orphans = keys.len() >= page;
        if keys.len() >= page {
            self.ask(Question::Orphans(self.runnable(), keys.into_iter().next_back(), page));
        }
    }

    fn wake(&mut self, key: &ServiceKey) -> bool {
        // It may have been paused since they were asked for.
        let Some(service) = self.service_of(&key.service) else { return false };
        if self.pauses.holds(&key.service, &key.key) {
            return false;
        }
        let ix = self.slot_for(service, &key.key);
        let slot = &mut self.slots[ix];
        if !slot.known.read {
            return self.waiting.woken.insert(ix);
        }
        if slot.known.head != Head::Waits || slot.known.rows.unwritten > 0 {
            return false;
        }
        self.waiting.set(&mut slot.known, Head::Due);
        self.to_advance.push_back(ix);
        true
    }

    /// Adds a row for a message of a key; returns its number.
    pub(crate) fn add_row(&mut self, ix: SlotIx) -> u64 {
        let seq = self.next_seq();
        self.waiting.add(&mut self.slots[ix].known.rows, seq);
        seq
    }

    pub(crate) fn row(
        &self,
        ix: SlotIx,
        item: &Item,
        seq: u64,
        kind: PendingKind,
        due_at: Option<Millis>,
    ) -> PendingRow {
        let key = self.service_key(ix);
        PendingRow {
            seq,
            service: key.service,
            key: key.key,
            kind,
            due_at,
            id: item.id,
            taken_at: item.taken_at,
            attempt: item.attempt,
            starts: item.starts,
            message: item.message.clone(),
            history: item.history.clone(),
        }
    }

    /// Gives rows to messages whose turn takes long, or cannot start yet, and to those behind them: no source waits for
    /// them any longer. They stay in memory all the same.
    pub(crate) fn spill(&mut self) {
        let now = self.now;
        let after = millis(self.config.settings.pending.spill_after);
        if self.draining || now < self.waiting.spilled_at + after.min(SPILL_LOOK_MS) {
            return;
        }
        self.waiting.spilled_at = now;
        let slow = |slot: &&Slot| {
            let busy = slot.running().is_some_and(|run| !run.stale)
                || matches!(slot.phase, Phase::Paused)
                || slot.trial == Permit::Granted
                || [slot.permit, slot.trial].contains(&Permit::Asked);
            busy && slot.known.read && now.saturating_sub(slot.busy_since) >= after && slot.holds_positions()
        };
        let slow: Vec<SlotIx> =
            self.slots.iter().filter(slow).filter_map(|slot| self.slots.find(slot.service, &slot.key)).collect();
        for ix in slow {
            if matches!(self.slots[ix].phase, Phase::Paused) {
                // Nothing of it runs soon: it needs no memory.
                let queue = std::mem::take(&mut self.slots[ix].queue);
                self.follow_all(ix, queue);
            } else {
                self.spill_key(ix);
            }
        }
    }

    fn spill_key(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        let mut running = slot.running_mut().map(|run| std::mem::take(&mut run.items)).unwrap_or_default();
        let mut queue = std::mem::take(&mut slot.queue);
        for item in running.iter_mut().chain(&mut queue) {
            let From::Live(ticket) = item.from else { continue };
            if !self.waiting.has_room(&self.slots[ix].known.rows, &self.config.settings.pending) {
                break;
            }
            let seq = self.record_live(ix, item, ticket, PendingKind::Spilled);
            item.from = From::Row(seq);
            self.slots[ix].known.rows.loaded = seq;
        }
        let slot = &mut self.slots[ix];
        if let Some(run) = slot.running_mut() {
            run.items = running;
        }
        slot.queue = queue;
    }

    /// Asks for the next rows of a key.
    pub(crate) fn page(&mut self, ix: SlotIx) {
        if self.draining {
            return;
        }
        let key = self.service_key(ix);
        let slot = &mut self.slots[ix];
        if slot.known.rows.paging || slot.known.rows.unwritten > 0 {
            return;
        }
        slot.known.rows.paging = true;
        slot.known.rows.asked = self.commit_no;
        let (token, after, page) = (slot.token, slot.known.rows.loaded, self.config.settings.pending.page);
        self.ask(Question::Page(ix, token, key, after, page));
    }

    /// The store's answer to [`Question::Page`].
    pub(crate) fn paged(&mut self, ix: SlotIx, token: u64, rows: Vec<PendingRow>) {
        let now = self.now;
        if !self.slots.current(ix, token) {
            return;
        }
        let slot = &mut self.slots[ix];
        slot.known.rows.paging = false;
        self.to_advance.push_back(ix);
        let stops = slot.known.head.stops() || matches!(slot.phase, Phase::Loads);
        if stops || slot.known.rows.unwritten > 0 {
            return;
        }
        if rows.is_empty() {
            if slot.uncommitted > 0 {
                slot.known.rows.unwritten = slot.known.rows.unwritten.max(1);
            } else if slot.known.rows.asked == self.commit_no {
                slot.known.rows.loaded = slot.known.rows.last;
                self.waiting.settled(&mut slot.known);
            }
            // Otherwise the rows were written after the page was read.
            return;
        }
        for row in rows {
            if row.due_at.is_some_and(|due| due > now) && slot.queue.is_empty() {
                // Its time was moved after it was found due.
                self.waiting.set(&mut slot.known, Head::Waits);
                self.waiting.at(row.due_at.unwrap_or(now));
                return;
            }
            if row.seq > slot.known.rows.loaded {
                slot.known.rows.loaded = row.seq;
                let doubt = self.suspicion.row(&row);
                slot.queue.push_back(item(row, doubt, &self.config.bindings));
            }
        }
        slot.known.rows.count = slot.known.rows.count.max(slot.queue.len() as u64);
    }
}

/// A row as an item; a message that is not to be run is refused again.
fn item(row: PendingRow, (starts, trial): (u32, Trial), bindings: &Bindings) -> Item {
    Item {
        starts,
        trial,
        refusal: bindings.refusal(&row.message),
        message: row.message,
        id: row.id,
        from: From::Row(row.seq),
        arrival: 0,
        taken_at: row.taken_at,
        attempt: row.attempt,
        history: row.history,
    }
}
