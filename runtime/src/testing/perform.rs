//! Performs what ledgers decide, each thing after its own delay, and carries questions and commits to the store.
//! In: actions. Out: events of the world, answers for ledgers.

use std::sync::Arc;
use std::time::Duration;

use super::owner::{Lane, Owner, OwnerId, Told};
use super::work::Worker;
use super::world::{Event, World};
use crate::ledger::protocol::{Action, ActorIx};
use crate::store::Commit;

impl World {
    /// Performs what the ledger has decided by now.
    pub(super) fn perform(&mut self, id: OwnerId) -> Result<(), String> {
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let actions = owner.ledger.actions();
        self.count(id)?;
        for action in actions {
            let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
            let (now, committer) = (self.now, owner.committer);
            match action {
                Action::Load(..) | Action::Check(..) => self.question(id, Lane::Loader(true), action),
                Action::FetchDue(..)
                | Action::FindOld(..)
                | Action::FetchOrphans(..)
                | Action::FetchTimers(..)
                | Action::FetchSchedules
                | Action::Page(..)
                | Action::FindDead(..)
                | Action::FindService(..)
                | Action::Trim(_) => self.question(id, Lane::Clerk(true), action),
                Action::Retake(_) => self.question(id, Lane::Taker(true), action),
                Action::Run(actor, order) => {
                    let delay = self.dice.below(400);
                    let at = owner.arrival(Lane::Actor(actor, true), now, delay);
                    self.at(at, Event::Work(id, actor, order));
                }
                Action::Spawn(more) => {
                    let first = ActorIx::try_from(owner.workers.len()).unwrap_or(0);
                    owner.workers.extend((0..more).map(|_| Worker::default()));
                    for ix in first..first + more {
                        self.told(id, Lane::Actor(ix, false), 500, Told::ActorReady(ix));
                    }
                }
                Action::CommitReady if owner.committer_down => {}
                Action::CommitReady => self.told(id, Lane::Committer(false), 1_000, Told::Gate(committer)),
                Action::Commit(commit) => self.send(id, commit, 0),
                Action::CommitLater(commit, tries) => self.send(id, commit, 20_000 * u64::from(tries.min(10))),
                Action::Credit(source, more) => {
                    let ingress = &mut owner.ingresses[source as usize];
                    if ingress.source.is_some() {
                        ingress.credits += more.cast_signed();
                        self.fetch_soon(id, source);
                    }
                }
                // Its sources have small messages: credits bound them.
                Action::Room(..) => {}
                Action::Acknowledge(source, positions) => {
                    let name = self.plan.sources[source as usize].name.clone();
                    self.witness.reached((owner.shard, &name), &positions, false)?;
                    if let Some(source) = owner.ingresses[source as usize].source.as_mut() {
                        source.committed(&positions);
                    }
                }
                Action::Publish(commit) => self.hand_over(id, &commit),
                Action::AskPermit(service, again) => {
                    self.gates.ask(id as u64, service, again);
                    self.permit();
                }
                Action::PermitEnded(service, ended) => {
                    self.gates.ended(id as u64, service, ended, self.clock.now());
                    self.permit();
                }
                Action::Drained | Action::Stop(_) => self.leave(id),
            }
        }
        Ok(())
    }

    /// Keeps the ledger's tally, and checks the delays that it chose.
    pub(super) fn count(&mut self, id: OwnerId) -> Result<(), String> {
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let tally = owner.ledger.tally();
        let stats = &mut self.witness.stats;
        stats.passivations += tally.passivations;
        stats.duplicates += tally.duplicates;
        stats.passed += tally.passed;
        stats.retries += tally.retries.len() as u64;
        let bounds = self.plan.services.iter().map(|service| service.retry);
        for (attempt, delay) in tally.retries {
            let bound = bounds.clone().map(|retry| retry.bound(attempt)).max().unwrap_or_default();
            if attempt == 0 || Duration::from_millis(delay) > bound {
                return Err(format!("attempt {attempt} is tried again after {delay} ms, {bound:?} is its bound"));
            }
        }
        Ok(())
    }

    pub(super) fn question(&mut self, id: OwnerId, lane: Lane, action: Action) {
        let delay = self.delay(1_000);
        let Some(owner) = self.owners[id].as_mut() else { return };
        let at = owner.arrival(lane, self.now, delay);
        self.at(at, Event::Ask(id, action));
    }

    pub(super) fn send(&mut self, id: OwnerId, commit: Arc<Commit>, pause: u64) {
        let delay = pause + self.delay(2_000);
        let Some(owner) = self.owners[id].as_mut().filter(|owner| !owner.committer_down) else { return };
        let committer = owner.committer;
        let at = owner.arrival(Lane::Committer(true), self.now, delay);
        self.at(at, Event::Write(id, committer, commit));
    }

    pub(super) fn ask(&mut self, id: OwnerId, action: Action) -> Result<(), String> {
        if self.now < self.disk.away_until {
            self.at(self.disk.away_until, Event::Ask(id, action));
            return Ok(());
        }
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let (store, shard) = (&self.disk.store, owner.shard);
        let told = match action {
            Action::Load(slots, keys) => {
                let rows = store.load_now(shard, &keys);
                self.told(id, Lane::Loader(false), 500, Told::Loaded(slots, rows));
                return Ok(());
            }
            Action::Check(places, ids) => {
                let known = store.known_now(shard, &ids);
                self.told(id, Lane::Loader(false), 500, Told::Checked(places, known));
                return Ok(());
            }
            Action::FindOld(after, before) => Told::OldFound(store.old_now(shard, after, before)),
            Action::FetchDue(runnable, limit) => Told::Due(store.due_now(shard, self.clock.now(), &runnable, limit)),
            Action::FetchTimers(runnable, limit) => {
                Told::Timers(store.timers_now(shard, self.clock.now(), &runnable, limit))
            }
            Action::FetchSchedules => Told::Schedules(store.schedules_now(shard)),
            Action::FetchOrphans(runnable, after, limit) => {
                Told::Orphans(store.orphans_now(shard, &runnable, after.as_ref(), limit))
            }
            Action::Page(slot, token, key, after, limit) => {
                self.witness.stats.pages += 1;
                Told::Paged(slot, token, store.page_now(shard, &key, after, limit))
            }
            Action::FindDead(id, filter, after, limit) => {
                Told::DeadFound(id, store.dead_now(shard, &filter, after.as_ref(), limit))
            }
            Action::FindService(id, service, limit) => {
                Told::ServiceFound(id, store.of_service_now(shard, &service, limit))
            }
            Action::Retake(epoch) => {
                let taken = store.retake_now(shard, epoch);
                if let Ok(taken) = &taken {
                    self.witness.epochs.insert(shard, taken.epoch);
                }
                self.told(id, Lane::Taker(false), 500, Told::Retaken(taken));
                return Ok(());
            }
            Action::Trim(trim) => {
                store.trim_now(shard, &trim);
                return Ok(());
            }
            _ => return Ok(()),
        };
        self.told(id, Lane::Clerk(false), 500, told);
        Ok(())
    }

    pub(super) fn write(&mut self, id: OwnerId, committer: u32, commit: Arc<Commit>) -> Result<(), String> {
        let there = |owner: &Owner| owner.committer == committer && !owner.committer_down;
        if !self.owners[id].as_ref().is_some_and(there) {
            // It died with its owner or its committer on the way, or it is still on its way.
            return self.late(&commit);
        }
        let faulty = self.now < self.trouble_until;
        let (disk, plan) = (&self.disk, &self.plan);
        let tried = disk.write(plan, &commit, (faulty, self.now), &mut self.dice, &mut self.witness)?;
        if tried.late {
            self.soon(40_000, Event::Late(commit.clone()));
        }
        let ended = Told::CommitEnded(committer, commit.epoch, commit.no, tried.outcome);
        self.told(id, Lane::Committer(false), 1_000, ended);
        Ok(())
    }

    pub(super) fn late(&mut self, commit: &Commit) -> Result<(), String> {
        // Whether it is written at all is part of what nobody knows.
        if self.dice.below(2) == 0 && self.now >= self.disk.away_until {
            self.disk.apply(&self.plan, commit, &mut self.witness)?;
        }
        Ok(())
    }
}
