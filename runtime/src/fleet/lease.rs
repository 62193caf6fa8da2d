//! A worker's lease and its consequences: which shards to take, which to hand over, when to stop. Pure.
//! In: results of renewals, the time since boot, ends of shards. Out: orders for the root.
//!
//! A worker counts its lease from the instant before the renewal was sent and stops its shards itself when two thirds
//! of it have passed without another: the store, which counts from later, gives them to no other worker before.

use std::collections::{BTreeMap, BTreeSet};

use super::assignment::assign;
use crate::clock::{Millis, millis};
use crate::message::ShardNo;
use crate::metrics::TakeReason;
use crate::settings::OwnershipSettings;
use crate::store::lease::{Fleet, Worker};

/// The most hurried looks in a row while a hand-over is awaited; then the worker looks at every heartbeat again.
const HURRIED_MAX: u32 = 100;

/// An order for a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Takes the shard: it has no owner, or its owner's lease has expired.
    Take(ShardNo, TakeReason),
    /// Hands the shard over in order: another worker is to have it.
    Release(ShardNo),
    /// Ends the shard at once: another worker has it.
    Drop(ShardNo),
    /// Ends all shards at once: the lease runs out.
    StopAll,
    /// Ends the process: the store has this many shards, not as many as this process was started for. It would run keys
    /// that belong to other shards now.
    GiveUp(u32),
}

/// The place of a shard, as far as this worker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Local {
    Out,
    Taking(TakeReason),
    /// The shard has run here since this time.
    In(Millis),
    Leaving,
}

#[derive(Clone, Debug)]
struct Times {
    own_stop: Millis,
    heartbeat: Millis,
    cool_down: Millis,
}

/// The workers of one look.
#[derive(Clone, Debug)]
struct SeenWorkers {
    alive: BTreeSet<String>,
    leaving: BTreeSet<String>,
}

/// A worker's lease and the shards that it covers.
#[derive(Clone, Debug)]
pub struct Lease {
    times: Times,
    worker: Worker,
    /// The time at which its shards are stopped unless it is renewed before; `None` before the first renewal.
    until: Option<Millis>,
    lost: bool,
    seen: Option<SeenWorkers>,
    /// True if the last two looks saw the same workers.
    steady: bool,
    /// True if two looks in a row saw the same workers at least once since it joined.
    settled: bool,
    shards: Vec<Local>,
    cooling: BTreeMap<ShardNo, Millis>,
    /// The time since which a shard was seen without a living owner.
    free_since: BTreeMap<ShardNo, Millis>,
    expected: Vec<ShardNo>,
    pause: Millis,
    hurried: u32,
}

impl Lease {
    /// The lease of a worker that is not part of the fleet yet, for a store of this many shards.
    pub fn new(settings: &OwnershipSettings, worker: Worker) -> Self {
        let times = Times {
            own_stop: millis(settings.lease_ttl) * 2 / 3,
            heartbeat: millis(settings.heartbeat),
            cool_down: millis(settings.cool_down),
        };
        Self {
            pause: times.heartbeat,
            times,
            worker,
            until: None,
            lost: false,
            seen: None,
            steady: false,
            settled: false,
            shards: vec![Local::Out; settings.shards as usize],
            cooling: BTreeMap::new(),
            free_since: BTreeMap::new(),
            expected: Vec::new(),
            hurried: 0,
        }
    }

    /// The worker as its next renewal presents it.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// The time at which its shards are stopped unless the lease is renewed; `None` before the first renewal and after
    /// the stop.
    pub fn until(&self) -> Option<Millis> {
        self.until.filter(|_| !self.lost)
    }

    /// Returns whether it stopped its shards itself: it has to come back as another incarnation.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Returns whether two looks saw the same workers since it joined, so that its shards are known.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// The shards that should run here now, in order.
    pub fn expected(&self) -> &[ShardNo] {
        &self.expected
    }

    /// The shards that run here, in order.
    pub fn running(&self) -> impl Iterator<Item = ShardNo> {
        (0..).zip(&self.shards).filter(|(_, local)| matches!(local, Local::In(_))).map(|(shard, _)| shard)
    }

    /// The time from one renewal to the next.
    pub fn pause(&self) -> Millis {
        self.pause
    }

    /// Handles a renewal that was sent at `sent_at` and brought `fleet`.
    pub fn renewed(&mut self, fleet: &Fleet, sent_at: Millis, now: Millis) -> Vec<Order> {
        if self.lost {
            return Vec::new();
        }
        if fleet.shards.len() != self.shards.len() {
            let mut orders = self.lose();
            orders.push(Order::GiveUp(u32::try_from(fleet.shards.len()).unwrap_or(u32::MAX)));
            return orders;
        }
        let until = sent_at.saturating_add(self.times.own_stop);
        // A worker that slept in the meantime may read an old answer: that is as late as a renewal that was never sent.
        if now >= until || self.until.is_some_and(|until| now >= until) {
            return self.lose();
        }
        self.until = Some(until);
        self.look(fleet);
        self.note_free(fleet, now);
        self.decide(fleet, sent_at)
    }

    /// Handles the passing of time. Must be called often, also while a renewal is on its way.
    pub fn tick(&mut self, now: Millis) -> Vec<Order> {
        let before = self.cooling.len();
        self.cooling.retain(|_, until| *until > now);
        if before != self.cooling.len() {
            self.worker.cooling = self.cooling.keys().copied().collect();
        }
        if !self.lost && self.until.is_some_and(|until| now >= until) { self.lose() } else { Vec::new() }
    }

    /// Records that a shard runs; returns the reason why it was taken and the time that it was without an owner, or
    /// `None` if it was only restarted here.
    pub fn taken(&mut self, shard: ShardNo, now: Millis) -> Option<(TakeReason, Millis)> {
        // An order to stop may have come first.
        let Local::Taking(reason) = self.shards[shard as usize] else { return None };
        self.shards[shard as usize] = Local::In(now);
        Some((reason, now.saturating_sub(self.free_since.remove(&shard).unwrap_or(now))))
    }

    /// Records that a shard no longer runs here, or could not be taken; the next renewal looks at it again.
    pub fn stopped(&mut self, shard: ShardNo) {
        self.shards[shard as usize] = Local::Out;
    }

    /// Records that a shard failed here too often and was given back: other workers may try.
    pub fn failed(&mut self, shard: ShardNo, now: Millis) {
        self.stopped(shard);
        self.expected.retain(|expected| *expected != shard);
        self.cooling.insert(shard, now.saturating_add(self.times.cool_down));
        self.worker.cooling = self.cooling.keys().copied().collect();
    }

    /// Leaves the fleet: the worker takes no more shards.
    pub fn drain(&mut self) {
        self.worker.draining = true;
        self.expected.clear();
    }

    /// Returns whether nothing runs here, so that the worker may come back.
    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(|local| *local == Local::Out)
    }

    /// Comes back as another incarnation: the old one's rows and commits are no longer its own.
    pub fn rejoin(&mut self, id: String) {
        self.worker.id = id;
        (self.until, self.lost, self.seen) = (None, false, None);
        self.free_since.clear();
    }

    fn lose(&mut self) -> Vec<Order> {
        self.lost = true;
        (self.steady, self.settled) = (false, false);
        self.expected.clear();
        self.shards.iter_mut().filter(|local| **local != Local::Out).for_each(|local| *local = Local::Leaving);
        vec![Order::StopAll]
    }

    /// Compares the workers with those of the look before; one that said it would leave may be gone.
    fn look(&mut self, fleet: &Fleet) {
        let alive = fleet.workers.iter().filter(|row| row.is_alive());
        let (mut seen, mut leaving) = (BTreeSet::new(), BTreeSet::new());
        for row in alive {
            seen.insert(row.worker.id.clone());
            if row.worker.draining {
                leaving.insert(row.worker.id.clone());
            }
        }
        self.steady = self.seen.as_ref().is_some_and(|before| {
            before.alive.symmetric_difference(&seen).all(|id| before.leaving.contains(id) && !seen.contains(id))
        });
        self.seen = Some(SeenWorkers { alive: seen, leaving });
    }

    fn is_alive(&self, id: &str) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.alive.contains(id))
    }

    fn note_free(&mut self, fleet: &Fleet, now: Millis) {
        for shard in &fleet.shards {
            if shard.owner.as_deref().is_some_and(|owner| self.is_alive(owner)) {
                self.free_since.remove(&shard.shard);
            } else {
                self.free_since.entry(shard.shard).or_insert(now);
            }
        }
    }

    fn decide(&mut self, fleet: &Fleet, sent_at: Millis) -> Vec<Order> {
        let mut orders = Vec::new();
        let mut waits = false;
        let assigned = assign(fleet);
        let me = self.worker.id.clone();
        let steady = self.steady && !self.worker.draining;
        if steady {
            self.settled = true;
            self.expected.clear();
        }
        for (shard, to) in fleet.shards.iter().zip(assigned) {
            let Some(local) = self.shards.get(shard.shard as usize).copied() else { continue };
            let owner = shard.owner.as_deref();
            let (mine, theirs) = (to == Some(me.as_str()), to.is_some_and(|to| to != me));
            let order = match local {
                // A shard that was taken after the look was sent is not in it.
                Local::In(since) if since < sent_at && owner != Some(me.as_str()) => Some(Order::Drop(shard.shard)),
                Local::In(since) if since < sent_at && steady && theirs => Some(Order::Release(shard.shard)),
                // Also when another worker is to have it: only its owner can hand it over.
                Local::Out if steady && owner == Some(me.as_str()) && !self.cooling.contains_key(&shard.shard) => {
                    Some(Order::Take(shard.shard, TakeReason::Again))
                }
                Local::Out if steady && mine => match owner {
                    None => Some(Order::Take(shard.shard, TakeReason::Free)),
                    Some(owner) if self.is_alive(owner) => {
                        waits = true;
                        continue;
                    }
                    Some(_) => Some(Order::Take(shard.shard, TakeReason::Expired)),
                },
                Local::Out | Local::Taking(_) | Local::In(_) | Local::Leaving => None,
            };
            match order {
                Some(Order::Take(_, reason)) => self.shards[shard.shard as usize] = Local::Taking(reason),
                Some(_) => self.shards[shard.shard as usize] = Local::Leaving,
                None => {}
            }
            if steady && mine {
                self.expected.push(shard.shard);
            }
            orders.extend(order);
        }
        self.pause = self.next_look(fleet, waits);
        orders
    }

    /// The pause before the next look: short while a hand-over is awaited, and when some lease is about to expire.
    fn next_look(&mut self, fleet: &Fleet, waits: bool) -> Millis {
        let heartbeat = self.times.heartbeat;
        // Another look soon shows whether the workers of this one are there to stay.
        let soon = waits || !self.steady;
        self.hurried = if soon { self.hurried + 1 } else { 0 };
        let hurried = if soon && self.hurried <= HURRIED_MAX { heartbeat.div_ceil(10) } else { heartbeat };
        let others = fleet.workers.iter().filter(|row| row.is_alive() && row.worker.id != self.worker.id);
        let expires = others.filter_map(|row| Millis::try_from(row.expires_in).ok()).min();
        expires.map_or(hurried, |expires| hurried.min(expires + 1)).max(1)
    }
}

#[cfg(test)]
mod tests;
