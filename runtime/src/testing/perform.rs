//! The performance of ledgers' decisions, each after its own delay, with questions and commits carried to the store.
//! In: actions. Out: events of the world, answers for ledgers.

use std::sync::Arc;
use std::time::Duration;

use super::owner::{Lane, Owner, OwnerId, Told};
use super::work::Worker;
use super::world::{Event, World};
use crate::ledger::protocol::{self, Action, ActorIx, Answer, Question};
use crate::store::Commit;
use crate::store::memory::at_once;

impl World {
    /// Performs the actions that the ledger has decided so far.
    pub(super) fn perform(&mut self, id: OwnerId) -> Result<(), String> {
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let actions = owner.ledger.actions();
        self.count(id)?;
        for action in actions {
            let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
            let (now, committer) = (self.now, owner.committer);
            match action {
                Action::Ask(question) => self.question(id, question),
                Action::Run(actor, order) => {
                    let delay = self.dice.below(400);
                    let at = owner.arrival(Lane::Actor(actor, true), now, delay);
                    self.at(at, Event::Work(id, actor, order));
                }
                Action::Spawn(more) => {
                    let first = ActorIx::try_from(owner.workers.len()).unwrap_or(0);
                    owner.workers.extend((0..more).map(|_| Worker::default()));
                    for ix in first..first + more {
                        self.happens_later(id, Lane::Actor(ix, false), 500, protocol::Event::ActorReady(ix));
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
                Action::AskPermit(line, again) => {
                    self.gates.ask(id as u64, line, again);
                    self.permit();
                }
                Action::PermitEnded(line, ended) => {
                    self.gates.ended(id as u64, line, ended, self.clock.now());
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

    fn question(&mut self, id: OwnerId, question: Question) {
        let delay = self.delay(1_000);
        let Some(owner) = self.owners[id].as_mut() else { return };
        let at = owner.arrival(Lane::Reader(question.reader(), true), self.now, delay);
        self.at(at, Event::Ask(id, question));
    }

    pub(super) fn send(&mut self, id: OwnerId, commit: Arc<Commit>, pause: u64) {
        let delay = pause + self.delay(2_000);
        let Some(owner) = self.owners[id].as_mut().filter(|owner| !owner.committer_down) else { return };
        let committer = owner.committer;
        let at = owner.arrival(Lane::Committer(true), self.now, delay);
        self.at(at, Event::Write(id, committer, commit));
    }

    pub(super) fn ask(&mut self, id: OwnerId, question: Question) -> Result<(), String> {
        if self.now < self.disk.away_until {
            self.at(self.disk.away_until, Event::Ask(id, question));
            return Ok(());
        }
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let answer = at_once(question.answer(&*self.disk.store, owner.shard, self.clock.now()))
            .map_err(|error| error.to_string())?;
        match &answer {
            Some(Answer::Page(..)) => self.witness.stats.pages += 1,
            Some(Answer::Retaken(Ok(taken))) => drop(self.witness.epochs.insert(owner.shard, taken.epoch)),
            _ => {}
        }
        if let Some(answer) = answer {
            let lane = Lane::Reader(question.reader(), false);
            self.happens_later(id, lane, 500, protocol::Event::Answered(answer));
        }
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
