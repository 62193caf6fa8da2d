//! The shard's pool of key actors, re-keyed rather than respawned.
//! In: actors that start, die, or whose key has nothing to do. Out: an actor for a key that can run.

use std::collections::VecDeque;

use crate::clock::Millis;
use crate::ledger::Ledger;
use crate::ledger::protocol::{Action, ActorIx, SlotIx};
use crate::ledger::slot::{Assigned, Phase, Slots};

/// Actors started at once at the least: starting takes a process-wide lock in ractor.
const SPAWN_CHUNK: u32 = 64;

#[derive(Clone, Copy, Debug, Default)]
struct PoolActor {
    slot: Option<SlotIx>,
    alive: bool,
    generation: u64,
}

/// A key with an actor and nothing to do.
#[derive(Clone, Copy, Debug)]
struct Idle {
    slot: SlotIx,
    token: u64,
    /// The stamp of this entry: a key that has rested again since has a newer one.
    stamp: u64,
    since: Millis,
}

/// The shard's actors.
#[derive(Debug)]
pub(crate) struct Pool {
    entries: Vec<PoolActor>,
    free: Vec<ActorIx>,
    max: u32,
    /// The keys that can run and have no actor.
    pub(crate) starved: VecDeque<SlotIx>,
    /// Keys with an actor and nothing to do, longest idle first; entries with an old stamp are void.
    idle: VecDeque<Idle>,
    stamps: u64,
}

impl Pool {
    pub(crate) fn new(max: u32) -> Self {
        Self { entries: Vec::new(), free: Vec::new(), max, starved: VecDeque::new(), idle: VecDeque::new(), stamps: 0 }
    }

    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn ready(&mut self, actor: ActorIx) {
        if let Some(entry) = self.entries.get_mut(actor.place())
            && !entry.alive
        {
            entry.alive = true;
            self.free.push(actor);
        }
    }

    /// Takes note that an actor is about to die: its key goes on without it.
    pub(crate) fn leave(&mut self, actor: ActorIx) {
        if let Some(entry) = self.entries.get_mut(actor.place()) {
            (entry.alive, entry.slot) = (false, None);
        }
    }

    /// Takes note that an actor died; returns the key that it had.
    pub(crate) fn died(&mut self, actor: ActorIx) -> Option<SlotIx> {
        let entry = self.entries.get_mut(actor.place())?;
        entry.alive = false;
        entry.generation += 1;
        self.free.retain(|free| *free != actor);
        entry.slot.take()
    }

    /// The number of times that the actor was started again.
    pub(crate) fn generation(&self, actor: ActorIx) -> u64 {
        self.entries.get(actor.place()).map_or(0, |entry| entry.generation + 1)
    }

    pub(crate) fn assign(&mut self, actor: ActorIx, slot: SlotIx) {
        if let Some(entry) = self.entries.get_mut(actor.place()) {
            entry.slot = Some(slot);
        }
    }

    /// True if there are as many actors as may be, including those that are being started.
    fn is_complete(&self) -> bool {
        self.len() >= self.max
    }

    /// The number of actors to start for the keys that wait; `None` if enough are being started.
    fn grow(&mut self) -> Option<u32> {
        let wanted = u32::try_from(self.starved.len()).unwrap_or(u32::MAX).saturating_add(1);
        let starting = self.entries.iter().filter(|entry| !entry.alive && entry.generation == 0).count();
        let more = (self.max - self.len()).min(wanted.max(SPAWN_CHUNK));
        ((starting as u32) < wanted).then(|| {
            self.entries.extend((0..more).map(|_| PoolActor::default()));
            more
        })
    }

    fn release(&mut self, actor: ActorIx) {
        if let Some(entry) = self.entries.get_mut(actor.place()) {
            entry.slot = None;
            if entry.alive {
                self.free.push(actor);
            }
        }
    }
}

impl Ledger {
    /// Takes the actor of a key that may wait for long: keys that can run must not wait for it.
    pub(crate) fn give_actor_back(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        if let Some(Assigned { actor, .. }) = slot.assigned.take() {
            self.actors.release(actor);
            self.feed_starved();
        }
    }

    /// An actor that is free, or that an idle key gives up; otherwise more are asked for, up to the limit.
    pub(crate) fn find_actor(&mut self) -> Option<ActorIx> {
        if let Some(actor) = self.actors.free.pop() {
            return Some(actor);
        }
        if self.actors.is_complete() {
            return self.evict();
        }
        self.out.extend(self.actors.grow().map(Action::Spawn));
        None
    }

    /// Forgets the longest idle key; its actor is free.
    fn evict(&mut self) -> Option<ActorIx> {
        while let Some(idle) = self.actors.idle.pop_front() {
            if is_current(&self.slots, &idle)
                && self.slots[idle.slot].is_idle()
                && let Some(actor) = self.passivate(idle.slot)
            {
                return Some(actor);
            }
        }
        None
    }

    /// Forgets a key with nothing to do; returns the actor that it had.
    fn passivate(&mut self, ix: SlotIx) -> Option<ActorIx> {
        let assigned = self.slots[ix].assigned;
        self.slots.remove(ix);
        self.tally.passivations += 1;
        assigned.map(|assigned| assigned.actor)
    }

    /// The number of times that the actor of a key was started again.
    pub(crate) fn generation(&self, ix: SlotIx) -> u64 {
        self.slots[ix].assigned.map_or(0, |assigned| self.actors.generation(assigned.actor))
    }

    /// Lets a key rest that has nothing to do: it is kept warm, or forgotten if only the store can wake it.
    pub(crate) fn rest(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        if !slot.is_idle() {
            // One that waits may wait for long, with live messages that the table has no room for.
            if slot.known.head.stops() && slot.running().is_none() {
                self.give_actor_back(ix);
            }
            return;
        }
        slot.solo = 0;
        match slot.assigned {
            Some(_) if !slot.known.head.stops() => {
                self.actors.stamps += 1;
                slot.idle_stamp = self.actors.stamps;
                let idle = Idle { slot: ix, token: slot.token, stamp: slot.idle_stamp, since: self.now };
                self.actors.idle.push_back(idle);
                self.trim_idle();
                if !self.actors.starved.is_empty() {
                    self.feed_starved();
                }
            }
            assigned => {
                self.waiting.settled(&mut slot.known);
                self.slots.remove(ix);
                if let Some(Assigned { actor, .. }) = assigned {
                    self.actors.release(actor);
                    self.feed_starved();
                }
            }
        }
    }

    /// Removes void entries of the idle queue before they outnumber the actors by far.
    fn trim_idle(&mut self) {
        if self.actors.idle.len() > 4 * self.actors.entries.len() + 64 {
            let slots = &self.slots;
            self.actors.idle.retain(|idle| is_current(slots, idle));
        }
    }

    /// Gives free actors to the keys that wait for one.
    pub(crate) fn feed_starved(&mut self) {
        while let Some(ix) = self.actors.starved.pop_front() {
            let Some(slot) = self.slots.get(ix) else { continue };
            if !matches!(slot.phase, Phase::Starves) {
                continue;
            }
            let Some(actor) = self.find_actor() else {
                return self.actors.starved.push_front(ix);
            };
            let slot = &mut self.slots[ix];
            (slot.phase, slot.assigned) = (Phase::Rests, Some(Assigned { actor, warm: false }));
            self.actors.assign(actor, ix);
            self.to_advance.push_back(ix);
        }
    }

    /// Takes the actors of keys that were idle for too long.
    pub(crate) fn passivate_idle(&mut self) {
        let after = crate::clock::millis(self.config.settings.actors.passivate_after);
        while let Some(idle) = self.actors.idle.front().copied() {
            let current = is_current(&self.slots, &idle);
            if current && self.now.saturating_sub(idle.since) < after {
                return;
            }
            self.actors.idle.pop_front();
            if current
                && self.slots[idle.slot].is_idle()
                && let Some(actor) = self.passivate(idle.slot)
            {
                self.actors.release(actor);
            }
        }
    }
}

/// True if the key rests since it was put among the idle.
fn is_current(slots: &Slots, idle: &Idle) -> bool {
    slots.current(idle.slot, idle.token) && slots[idle.slot].idle_stamp == idle.stamp
}
