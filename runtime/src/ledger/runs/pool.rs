//! Who runs: the shard's pool of key actors, re-keyed rather than respawned; permits, where a service needs them.
//! In: actors that start, die, or whose key has nothing to do; permits. Out: an actor for a key that can run.

use std::collections::VecDeque;

use crate::ledger::Ledger;
use crate::ledger::gates::Ended;
use crate::ledger::protocol::{Action, ActorIx, SlotIx};
use crate::ledger::slot::Permit;

/// Actors started at once at the least: starting takes a process-wide lock in ractor.
const SPAWN_CHUNK: u32 = 64;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    slot: Option<SlotIx>,
    alive: bool,
    generation: u64,
}

/// The shard's actors.
#[derive(Debug)]
pub(crate) struct Pool {
    entries: Vec<Entry>,
    free: Vec<ActorIx>,
    max: u32,
    /// Keys that can run and have no actor.
    pub(crate) starved: VecDeque<SlotIx>,
    /// Keys with an actor and nothing to do, longest idle first; entries with an old stamp are void.
    idle: VecDeque<(SlotIx, u64, u64)>,
    stamps: u64,
}

/// Where a key can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// With this actor.
    Actor(ActorIx),
    /// Nowhere now.
    Wait,
}

impl Pool {
    pub(crate) fn new(max: u32) -> Self {
        Self { entries: Vec::new(), free: Vec::new(), max, starved: VecDeque::new(), idle: VecDeque::new(), stamps: 0 }
    }

    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn ready(&mut self, actor: ActorIx) {
        if let Some(entry) = self.entries.get_mut(actor as usize)
            && !entry.alive
        {
            entry.alive = true;
            self.free.push(actor);
        }
    }

    /// The actor is about to die: its key goes on without it.
    pub(crate) fn leave(&mut self, actor: ActorIx) {
        if let Some(entry) = self.entries.get_mut(actor as usize) {
            (entry.alive, entry.slot) = (false, None);
        }
    }

    /// The actor died; gives the key that it had.
    pub(crate) fn died(&mut self, actor: ActorIx) -> Option<SlotIx> {
        let entry = self.entries.get_mut(actor as usize)?;
        entry.alive = false;
        entry.generation += 1;
        self.free.retain(|free| *free != actor);
        entry.slot.take()
    }

    /// How often the actor was started again.
    pub(crate) fn generation(&self, actor: ActorIx) -> u64 {
        self.entries.get(actor as usize).map_or(0, |entry| entry.generation + 1)
    }

    pub(crate) fn assign(&mut self, actor: ActorIx, slot: SlotIx) {
        if let Some(entry) = self.entries.get_mut(actor as usize) {
            entry.slot = Some(slot);
        }
    }

    fn release(&mut self, actor: ActorIx) {
        if let Some(entry) = self.entries.get_mut(actor as usize) {
            entry.slot = None;
            if entry.alive {
                self.free.push(actor);
            }
        }
    }
}

impl Ledger {
    /// Whether a key with something to run has to wait for a permit; it is asked for.
    pub(crate) fn awaits_permit(&mut self, ix: SlotIx) -> bool {
        let slot = &mut self.slots[ix];
        let guarded = self.config.services[usize::from(slot.service)].guarded;
        if !guarded || slot.permit == Permit::Granted || slot.is_watched(self.now) {
            return false;
        }
        if slot.permit == Permit::None {
            slot.permit = Permit::Asked;
            slot.busy_since = self.now;
            let (service, again) = (slot.service, slot.unavailable.is_some());
            self.ask_permit(ix, service, again);
        }
        true
    }

    /// Asks for a permit for a key.
    pub(crate) fn ask_permit(&mut self, ix: SlotIx, line: u16, again: bool) {
        self.asked.entry(line).or_default().push_back((ix, self.slots[ix].token));
        self.out.push(Action::AskPermit(line, again));
        self.give_actor_back(ix);
    }

    /// A key that may wait for long keeps no actor: whoever can run must not wait for it.
    pub(crate) fn give_actor_back(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        if let Some(actor) = slot.actor.take() {
            slot.warm = false;
            self.actors.release(actor);
            self.feed_starved();
        }
    }

    /// The answer to an [`Action::AskPermit`] of this service.
    pub(crate) fn permit(&mut self, service: u16) {
        let trial = service == self.trial_line();
        while let Some((ix, token)) = self.asked.get_mut(&service).and_then(VecDeque::pop_front) {
            if !self.slots.current(ix, token) {
                continue;
            }
            let slot = &mut self.slots[ix];
            let permit = if trial { &mut slot.trial } else { &mut slot.permit };
            if *permit == Permit::Asked {
                *permit = Permit::Granted;
                self.to_advance.push_back(ix);
                return;
            }
        }
        self.out.push(Action::PermitEnded(service, Ended::Unused));
    }

    /// A key that has a permit and nothing to run does not keep it.
    pub(crate) fn spare_permit(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        let paused = self.pauses.holds(&self.config.services[usize::from(slot.service)].name, &slot.key);
        let idle = slot.queue.is_empty() || slot.held || slot.waits || self.draining || paused;
        let suspect = slot.queue.front().is_some_and(|head| head.is_alone());
        if idle {
            self.return_permit(ix);
        }
        if self.slots[ix].trial == Permit::Granted && (idle || !suspect) {
            self.end_trial(ix, Ended::Unused);
        }
    }

    /// A key that has a permit does not use it now.
    pub(crate) fn return_permit(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        if slot.permit == Permit::Granted {
            slot.permit = Permit::None;
            self.out.push(Action::PermitEnded(slot.service, Ended::Unused));
        }
    }

    /// The turn that a key ran with its permit is over.
    pub(crate) fn permit_used(&mut self, ix: SlotIx) {
        self.trial_used(ix);
        let slot = &mut self.slots[ix];
        if slot.permit == Permit::Used {
            slot.permit = Permit::None;
            let ended = slot.unavailable.map_or(Ended::Done, Ended::Unavailable);
            self.out.push(Action::PermitEnded(slot.service, ended));
        }
    }

    /// What a key asked for is void.
    pub(crate) fn reset_permit(&mut self, ix: SlotIx) {
        if self.slots[ix].trial != Permit::Used || self.slots[ix].running.is_none() {
            self.end_trial(ix, Ended::Unused);
        }
        let slot = &mut self.slots[ix];
        slot.unavailable = None;
        if slot.permit == Permit::Asked {
            slot.permit = Permit::None;
        }
        self.return_permit(ix);
    }

    /// An actor that is free, or that an idle key gives up; otherwise more are asked for, up to the limit.
    pub(crate) fn find_actor(&mut self) -> Place {
        if let Some(actor) = self.actors.free.pop() {
            return Place::Actor(actor);
        }
        let missing = self.actors.max.saturating_sub(self.actors.len());
        if missing > 0 {
            let wanted = u32::try_from(self.actors.starved.len()).unwrap_or(u32::MAX).saturating_add(1);
            let starting = self.actors.entries.iter().filter(|entry| !entry.alive && entry.generation == 0).count();
            if (starting as u32) < wanted {
                let more = missing.min(wanted.max(SPAWN_CHUNK));
                self.actors.entries.extend((0..more).map(|_| Entry::default()));
                self.out.push(Action::Spawn(more));
            }
            return Place::Wait;
        }
        match self.evict() {
            Some(actor) => Place::Actor(actor),
            None => Place::Wait,
        }
    }

    /// The longest idle key is forgotten; its actor is free.
    fn evict(&mut self) -> Option<ActorIx> {
        while let Some((ix, token, stamp)) = self.actors.idle.pop_front() {
            if !self.slots.current(ix, token) || self.slots[ix].idle_stamp != stamp || !self.slots[ix].is_idle() {
                continue;
            }
            let actor = self.slots[ix].actor;
            self.slots.remove(ix);
            self.tally.passivations += 1;
            if let Some(actor) = actor {
                return Some(actor);
            }
        }
        None
    }

    /// A key has nothing to do now: it is kept warm, or forgotten when only the store can wake it.
    pub(crate) fn rest(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        if !slot.is_idle() {
            // One that waits may wait for long, with live messages that the table has no room for.
            let waits = (slot.held || slot.waits) && slot.running.is_none();
            if let Some(actor) = slot.actor.take_if(|_| waits) {
                slot.warm = false;
                self.actors.release(actor);
                self.feed_starved();
            }
            return;
        }
        slot.solo = 0;
        match slot.actor {
            Some(_) if !slot.held && !slot.waits => {
                self.actors.stamps += 1;
                slot.idle_stamp = self.actors.stamps;
                slot.idle_since = self.now;
                self.actors.idle.push_back((ix, slot.token, self.actors.stamps));
                self.trim_idle();
                if !self.actors.starved.is_empty() {
                    self.feed_starved();
                }
            }
            actor => {
                self.waiting.sleep(&mut self.slots[ix]);
                self.slots.remove(ix);
                if let Some(actor) = actor {
                    self.actors.release(actor);
                    self.feed_starved();
                }
            }
        }
    }

    /// Void entries of the idle queue are removed before they outnumber the actors by far.
    fn trim_idle(&mut self) {
        if self.actors.idle.len() > 4 * self.actors.entries.len() + 64 {
            let slots = &self.slots;
            self.actors.idle.retain(|(ix, token, stamp)| slots.current(*ix, *token) && slots[*ix].idle_stamp == *stamp);
        }
    }

    /// Keys that wait for an actor get those that are free.
    pub(crate) fn feed_starved(&mut self) {
        while let Some(ix) = self.actors.starved.pop_front() {
            let Some(slot) = self.slots.get(ix) else { continue };
            if !slot.queued {
                continue;
            }
            match self.find_actor() {
                Place::Actor(actor) => {
                    self.slots[ix].queued = false;
                    self.slots[ix].actor = Some(actor);
                    self.actors.assign(actor, ix);
                    self.to_advance.push_back(ix);
                }
                Place::Wait => {
                    self.actors.starved.push_front(ix);
                    return;
                }
            }
        }
    }

    /// Keys that were idle for too long give their actors back.
    pub(crate) fn passivate_idle(&mut self) {
        let after = crate::clock::millis(self.config.settings.actors.passivate_after);
        while let Some((ix, token, stamp)) = self.actors.idle.front().copied() {
            let current = self.slots.current(ix, token) && self.slots[ix].idle_stamp == stamp;
            if current && self.now.saturating_sub(self.slots[ix].idle_since) < after {
                return;
            }
            self.actors.idle.pop_front();
            if current && self.slots[ix].is_idle() {
                let actor = self.slots[ix].actor;
                self.slots.remove(ix);
                self.tally.passivations += 1;
                if let Some(actor) = actor {
                    self.actors.release(actor);
                }
            }
        }
    }
}
