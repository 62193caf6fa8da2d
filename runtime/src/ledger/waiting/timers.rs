//! Timers of keys: the times to look for due ones, those in hand, the changes that turns make to them; schedules.
//! In: the store's answers, writes of settled turns. Out: items in their keys' queues, writes in their keys' parts.
//!
//! A timer stays in its table until the commit of its turn: one in memory may be dropped at any time, and is found due
//! again. A name is *in hand* from when it is queued or written until that is durable and no older answer of the store
//! is on its way; answers about it in the meantime are ignored.
//!
//! Schedules are timers that the owner sets: missing ones when it has taken the shard, and each next one with the turn
//! of the one before, whatever the outcome of that turn. Nothing fires before their rows are read.

use std::sync::Arc;

use crate::clock::Millis;
use crate::handler::{CRON, TIMER_NAME};
use crate::ledger::Ledger;
use crate::ledger::cron::{Planned, ends, reconcile};
use crate::ledger::defect::{Defect, planted};
use crate::ledger::protocol::{Question, SlotIx};
use crate::ledger::slot::{From, Hand, Item};
use crate::message::{Message, ServiceIx, TakenId, shard_of};
use crate::store::{DueTimers, Part, Timer, TimerWrite};

/// The pause before the store is asked again while all due timers are in hand, or belong to keys that wait.
const AGAIN_MS: Millis = 1_000;

/// The ledger's view of the timers' table.
#[derive(Debug)]
pub(crate) struct Timers {
    /// True if the table's schedules are to be read, because they may not be as they should.
    unread: bool,
    /// The time at which one is due next, as far as known.
    next: Option<Millis>,
    /// True if the store was asked.
    fetching: bool,
    /// True if the answer on its way is void, because a key has started again from the store since it was asked for.
    void: bool,
    /// The number of timers that wait in their keys' queues or run.
    queued: usize,
    /// Names that leave the hand with the next answer of the store: slot, its token, name.
    leaving: Vec<(SlotIx, u64, Arc<str>)>,
    /// The number of schedules whose next time could not be found: they come no more.
    pub(crate) ended: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Self { unread: true, next: Some(0), fetching: false, void: false, queued: 0, leaving: Vec::new(), ended: 0 }
    }
}

impl Timers {
    /// Takes note that one is due at `at`.
    pub(crate) fn at(&mut self, at: Millis) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// Takes note that a key has lost these from its hand: the table's rows of them count.
    pub(crate) fn lost(&mut self, hands: &[Hand], now: Millis) {
        if !hands.is_empty() {
            self.queued -= hands.iter().filter(|hand| hand.queued).count();
            self.void |= self.fetching;
            // A schedule that was being set may not be set, and nothing of its key would set it.
            let schedule = hands.iter().any(|hand| hand.name.starts_with(CRON));
            self.unread |= schedule && !planted(Defect::ScheduleLost);
            self.at(now);
        }
    }

    /// True if due timers may not have been read yet.
    pub(crate) fn unread(&self, now: Millis) -> bool {
        self.fetching || self.next.is_some_and(|next| next <= now)
    }

    /// True if none is in hand, and none is known to be due.
    pub(crate) fn rest(&self, now: Millis) -> bool {
        self.queued == 0 && !self.fetching && !self.unread && self.next.is_none_or(|next| next > now)
    }
}

/// The name of the timer that a message was.
fn name_of(message: &Message) -> &str {
    message.header(TIMER_NAME).unwrap_or_default()
}

impl Ledger {
    pub(crate) fn fetch_timers(&mut self) {
        let page = self.config.settings.pending.page;
        let due = self.timers.next.is_some_and(|next| next <= self.now);
        let room = self.timers.queued < self.config.settings.ingress.credits;
        if self.timers.fetching || self.draining {
            return;
        }
        if self.timers.unread {
            self.timers.fetching = true;
            self.ask(Question::Schedules);
        } else if due && room {
            self.timers.fetching = true;
            self.timers.next = None;
            self.ask(Question::Timers(self.runnable(), page + self.timers.queued));
        }
    }

    /// The store's answer to [`Question::Schedules`].
    pub(crate) fn schedules(&mut self, found: Vec<Timer>) {
        self.timers.fetching = false;
        self.timers.unread = std::mem::take(&mut self.timers.void);
        if !self.timers.unread {
            let services = self.config.services.clone();
            let planned = services.iter().flat_map(|service| service.schedules.iter());
            let shards = self.config.settings.ownership.shards;
            let here = planned.filter(|planned| shard_of(&planned.of_key().key, shards) == self.shard);
            let known = |name: &str| self.service_of(name).is_some();
            for write in reconcile(here, found, known, (self.now, &self.config.hash_key)) {
                let service = self.service_of(&write.service).expect("what is written is of a service that is here");
                let ix = self.slot_for(service, &write.key);
                let mut planned = services.iter().flat_map(|service| service.schedules.iter());
                self.timers.ended += u64::from(ends(&mut planned, &write));
                // A timer in hand was decided on after this was read.
                if self.slots[ix].timers.iter().all(|hand| hand.name != write.name) {
                    self.write_timer(ix, write);
                }
            }
        }
        self.leave();
        self.fetch_timers();
    }

    /// The store's answer to [`Question::Timers`].
    pub(crate) fn timers_due(&mut self, mut due: DueTimers) {
        let now = self.now;
        // Before the first tick, too: a schedule's next time is counted from it.
        self.now = self.now.max(now);
        self.timers.fetching = false;
        let mut fired = 0;
        if std::mem::take(&mut self.timers.void) {
            due.timers.clear();
            self.timers.at(now);
        }
        for timer in due.timers {
            // The key may have been paused since they were asked for.
            if self.pauses.holds(&timer.of.service, &timer.of.key) {
                continue;
            }
            if let Some(service) = self.service_of(&timer.of.service) {
                fired += usize::from(self.fire(service, timer));
            }
        }
        self.leave();
        if let Some(next) = due.next {
            self.timers.at(next);
        }
        if fired > 0 {
            self.timers.at(now);
            self.fetch_timers();
        } else if due.any {
            self.timers.at(now + AGAIN_MS);
        }
    }

    /// Puts a timer at its key's tail, unless it is in hand or its key waits. Returns whether it did.
    fn fire(&mut self, service: ServiceIx, timer: Timer) -> bool {
        let now = self.now;
        let ix = self.slot_for(service, &timer.of.key);
        let number = self.policy(service).number;
        let id = TakenId::of(&timer.message, number, &self.config.hash_key);
        let slot = &mut self.slots[ix];
        let waits = slot.known.read && (slot.must_follow() || !slot.overflow.is_empty());
        if waits || slot.timers.iter().any(|hand| hand.name == timer.name) {
            return false;
        }
        slot.timers.push(Hand { name: timer.name, queued: true, writes: 0 });
        let refusal = self.config.bindings.refusal(&timer.message);
        let (starts, trial) = self.suspicion.timer(timer.due_at, now);
        slot.queue.push_back(Item {
            message: timer.message,
            id,
            from: From::Timer,
            arrival: 0,
            taken_at: now,
            attempt: 0,
            history: Vec::new(),
            refusal,
            starts,
            trial,
        });
        self.timers.queued += 1;
        if slot.known.read {
            self.to_advance.push_back(ix);
        }
        true
    }

    /// Drops a timer that cannot run now from memory; the table still has it.
    pub(crate) fn put_back(&mut self, ix: SlotIx, item: &Item) {
        let slot = &mut self.slots[ix];
        let name = name_of(&item.message);
        if let Some(hand) = slot.timers.iter_mut().find(|hand| *hand.name == *name && hand.queued) {
            hand.queued = false;
            self.timers.queued -= 1;
            let (token, name) = (slot.token, hand.name.clone());
            self.let_go(ix, token, &name);
        }
        self.timers.at(self.now + AGAIN_MS);
    }

    /// Settles a timer's turn: its row is deleted with it. To be called before the turn's own changes to timers.
    pub(crate) fn fired(&mut self, ix: SlotIx, message: &Message) {
        let key = self.service_key(ix);
        let name = name_of(message).into();
        let set = self.next_occurrence(ix, message);
        let write = TimerWrite { service: key.service, key: key.key, name, set };
        let service = self.slots[ix].service;
        self.timers.ended += u64::from(ends(self.policy(service).schedules.iter(), &write));
        self.write_timer(ix, write);
    }

    /// The next occurrence of the schedule that a message was one of: counted from the time of that one, but not before
    /// now. Occurrences that were missed in the meantime do not come.
    fn next_occurrence(&self, ix: SlotIx, message: &Message) -> Option<(Millis, Message)> {
        let slot = &self.slots[ix];
        let is = |planned: &&Planned| *planned.of_key().key == *slot.key && planned.is_named(name_of(message));
        let planned = self.policy(slot.service).schedules.iter().find(is)?;
        planned.set_after(message.time().max(self.now), &self.config.hash_key)
    }

    /// Sets or removes a timer for a settled turn: one of that name that was found due and has not run is dropped.
    pub(crate) fn write_timer(&mut self, ix: SlotIx, write: TimerWrite) {
        let slot = &mut self.slots[ix];
        let at = slot.timers.iter().position(|hand| hand.name == write.name).unwrap_or_else(|| {
            slot.timers.push(Hand { name: write.name.clone(), queued: false, writes: 0 });
            slot.timers.len() - 1
        });
        // A timer that was refused, and is set anew or gone before it was found due again.
        let there = |id: TakenId| slot.queue.iter().any(|item| item.id == id);
        if slot.blame.as_ref().is_some_and(|(id, _)| !there(*id)) {
            slot.blame = None;
        }
        let hand = &mut slot.timers[at];
        hand.writes += 1;
        if std::mem::take(&mut hand.queued) {
            self.timers.queued -= 1;
            slot.queue.retain(|item| item.from != From::Timer || *name_of(&item.message) != *write.name);
        }
        self.group(ix).part.timers.push(write);
    }

    /// Takes note that a part's timers are durable.
    pub(crate) fn timers_committed(&mut self, ix: SlotIx, part: &Part) {
        for write in &part.timers {
            if let Some((at, _)) = &write.set {
                self.timers.at(*at);
            }
            let slot = &mut self.slots[ix];
            let Some(hand) = slot.timers.iter_mut().find(|hand| hand.name == write.name) else { continue };
            hand.writes -= 1;
            let token = slot.token;
            if self.timers.fetching && !planted(Defect::TimerLeavesEarly) {
                self.timers.leaving.push((ix, token, write.name.clone()));
            } else {
                self.let_go(ix, token, &write.name);
            }
        }
    }

    /// Names leave the hand that only waited for an answer of the store.
    fn leave(&mut self) {
        for (ix, token, name) in std::mem::take(&mut self.timers.leaving) {
            self.let_go(ix, token, &name);
        }
    }

    fn let_go(&mut self, ix: SlotIx, token: u64, name: &str) {
        if self.slots.current(ix, token) {
            self.slots[ix].timers.retain(|hand| *hand.name != *name || hand.queued || hand.writes > 0);
            // It may rest now, and give its actor to another.
            self.to_advance.push_back(ix);
        }
    }
}
