//! The performance of ledgers' decisions, each after its own delay, with questions and commits carried to the store.
//! In: actions. Out: events of the world, answers for ledgers.

use std::sync::Arc;
use std::time::Duration;

use super::checker::Violation;
use super::owner::{Channel, Owner, OwnerId, OwnerMessage};
use super::sim::{Sim, SimEvent};
use super::work::SimActor;
use crate::ledger::protocol::{self, Action, ActorIx, Answer, Question};
use crate::store::Commit;
use crate::store::memory::at_once;

impl Sim {
    /// Performs the actions that the ledger has decided so far.
    pub(super) fn perform(&mut self, id: OwnerId) -> Result<(), Violation> {
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
                    let at = owner.arrival(Channel::Actor(actor, true), now, delay);
                    self.at(at, SimEvent::Work(id, actor, order));
                }
                Action::Spawn(more) => {
                    let first = owner.workers.len();
                    owner.workers.extend((0..more).map(|_| SimActor::default()));
                    for ix in (first..owner.workers.len()).map(ActorIx::nth).collect::<Vec<_>>() {
                        self.happens_later(id, Channel::Actor(ix, false), 500, protocol::Event::ActorReady(ix));
                    }
                }
                Action::CommitReady if owner.committer_down => {}
                Action::CommitReady => {
                    self.tell_later(id, Channel::Committer(false), 1_000, OwnerMessage::Gate(committer))
                }
                Action::Commit(commit) => self.send(id, commit, 0),
                Action::CommitLater(commit, tries) => self.send(id, commit, 20_000 * u64::from(tries.min(10))),
                Action::Credit(source, more) => {
                    let ingress = &mut owner.ingresses[source];
                    if ingress.source.is_some() {
                        ingress.credits += more.cast_signed();
                        self.fetch_soon(id, source);
                    }
                }
                // Its sources have small messages: credits bound them.
                Action::Room(..) => {}
                Action::Acknowledge(source, positions) => {
                    let name = self.plan.sources[source].name.clone();
                    self.checker.reached(owner.shard, &name, &positions, false)?;
                    if let Some(source) = owner.ingresses[source].source.as_mut() {
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
    pub(super) fn count(&mut self, id: OwnerId) -> Result<(), Violation> {
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let tally = owner.ledger.tally();
        let stats = &mut self.checker.stats;
        stats.passivations += tally.passivations;
        stats.duplicates += tally.duplicates;
        stats.passed += tally.passed;
        stats.retries += tally.retries.len() as u64;
        let bounds = self.plan.services.iter().map(|service| service.retry);
        for (attempt, delay) in tally.retries {
            let bound = bounds.clone().map(|retry| retry.bound(attempt)).max().unwrap_or_default();
            if attempt == 0 || Duration::from_millis(delay) > bound {
                return Err(Violation::RetryOutOfBounds { attempt, delay, bound });
            }
        }
        Ok(())
    }

    fn question(&mut self, id: OwnerId, question: Question) {
        let delay = self.delay(1_000);
        let Some(owner) = self.owners[id].as_mut() else { return };
        let at = owner.arrival(Channel::Reader(question.reader(), true), self.now, delay);
        self.at(at, SimEvent::Ask(id, question));
    }

    pub(super) fn send(&mut self, id: OwnerId, commit: Arc<Commit>, pause: u64) {
        let delay = pause + self.delay(2_000);
        let Some(owner) = self.owners[id].as_mut().filter(|owner| !owner.committer_down) else { return };
        let committer = owner.committer;
        let at = owner.arrival(Channel::Committer(true), self.now, delay);
        self.at(at, SimEvent::Write(id, committer, commit));
    }

    pub(super) fn ask(&mut self, id: OwnerId, question: Question) -> Result<(), Violation> {
        if self.now < self.disk.away_until {
            self.at(self.disk.away_until, SimEvent::Ask(id, question));
            return Ok(());
        }
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let answer = at_once(question.answer(&*self.disk.store, owner.shard, self.clock.now()))?;
        match &answer {
            Some(Answer::Page(..)) => self.checker.stats.pages += 1,
            Some(Answer::Retaken(Ok(taken))) => drop(self.checker.epochs.insert(owner.shard, taken.epoch)),
            _ => {}
        }
        if let Some(answer) = answer {
            let channel = Channel::Reader(question.reader(), false);
            self.happens_later(id, channel, 500, protocol::Event::Answered(answer));
        }
        Ok(())
    }

    pub(super) fn write(&mut self, id: OwnerId, committer: u32, commit: Arc<Commit>) -> Result<(), Violation> {
        let there = |owner: &Owner| owner.committer == committer && !owner.committer_down;
        if !self.owners[id].as_ref().is_some_and(there) {
            // It died with its owner or its committer on the way, or it is still on its way.
            return self.late(&commit);
        }
        let faulty = self.now < self.faults_until;
        let (disk, plan) = (&self.disk, &self.plan);
        let tried = disk.write(plan, &commit, faulty, self.now, &mut self.dice, &mut self.checker)?;
        if tried.late {
            self.soon(40_000, SimEvent::Late(commit.clone()));
        }
        let ended = OwnerMessage::CommitEnded(committer, commit.epoch, commit.no, tried.outcome);
        self.tell_later(id, Channel::Committer(false), 1_000, ended);
        Ok(())
    }

    pub(super) fn late(&mut self, commit: &Commit) -> Result<(), Violation> {
        // Whether it is written at all is part of what nobody knows.
        if self.dice.below(2) == 0 && self.now >= self.disk.away_until {
            self.disk.apply(&self.plan, commit, &mut self.checker)?;
        }
        Ok(())
    }
}
