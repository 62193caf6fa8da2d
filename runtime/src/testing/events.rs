//! The surroundings of a ledger: it is told things, its actors work, its sources are read.
//! In: events of the simulation. Out: decisions of ledgers, performed; runs; deliveries.

use futures_util::FutureExt;

use super::checker::Violation;
use super::owner::{Channel, OwnerId, OwnerMessage};
use super::sim::{Sim, SimEvent, TICK};
use super::work::Bench;
use crate::clock::{Millis, without_waiting};
use crate::ledger::protocol::{ActorIx, Event, ReaderKind, RunOrder, RunReport};
use crate::message::SourceIx;

/// Ticks between two looks at operators' commands.
const TICKS_PER_LOOK: u64 = 5;

impl Sim {
    /// Tells a ledger something, and performs its decisions.
    pub(super) fn tell(&mut self, id: OwnerId, message: OwnerMessage) -> Result<(), Violation> {
        let now = self.clock.now();
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        match message {
            OwnerMessage::Event(event) => self.happens(id, event),
            OwnerMessage::Fetched(source, generation, arrivals) => {
                if owner.ingresses[source].generation == generation {
                    owner.ledger.step(Event::Fetched(source, arrivals), now);
                }
            }
            OwnerMessage::IngressBack(source) => self.open(id, source)?,
            OwnerMessage::Ran(actor, generation, report) => {
                if owner.workers[actor].generation == generation {
                    owner.ledger.step(Event::Ran(report), now);
                }
            }
            OwnerMessage::Gate(committer) if owner.committer == committer => owner.ledger.step(Event::Gate, now),
            OwnerMessage::Gate(_) => {}
            OwnerMessage::CommitEnded(committer, epoch, no, outcome) => {
                if owner.committer == committer {
                    owner.ledger.step(Event::CommitEnded(epoch, no, outcome), now);
                }
            }
            OwnerMessage::CommitterBack => {
                owner.committer += 1;
                owner.committer_down = false;
                owner.ledger.step(Event::CommitLost, now);
            }
            OwnerMessage::DispatcherBack(sink) => self.start_outlet(id, sink),
            OwnerMessage::Answered(sink, generation, sent, answer) => self.answered(id, sink, generation, sent, answer),
            OwnerMessage::Tick => self.tick(id, now),
        }
        self.perform(id)
    }

    /// Lets an event happen to the owner's actors and to its ledger.
    fn happens(&mut self, id: OwnerId, event: Event) {
        let now = self.clock.now();
        let Some(owner) = self.owners[id].as_mut() else { return };
        match &event {
            Event::ActorReady(actor) => owner.workers[*actor].alive = true,
            Event::ActorDied(actor, _) => {
                let actor = *actor;
                owner.kill(actor);
                self.happens_later(id, Channel::Actor(actor, false), 20_000, Event::ActorReady(actor));
            }
            _ => {}
        }
        if let Some(owner) = self.owners[id].as_mut() {
            owner.ledger.step(event, now);
        }
    }

    pub(super) fn happens_later(&mut self, id: OwnerId, channel: Channel, most: u64, event: Event) {
        self.tell_later(id, channel, most, OwnerMessage::Event(event));
    }

    fn open(&mut self, id: OwnerId, source: SourceIx) -> Result<(), Violation> {
        let Some(owner) = self.owners[id].as_mut().filter(|owner| !owner.draining) else { return Ok(()) };
        let _context = self.runtime.enter();
        let from = owner.ledger.received(source);
        let opened = self.transports[source].open(owner.shard, from).now_or_never();
        let opened = opened.ok_or(Violation::Slow("a simulated source opens"))?;
        let credits = owner.ledger.credits_free(source);
        let ingress = &mut owner.ingresses[source];
        ingress.source = Some(opened?);
        ingress.credits = credits;
        ingress.generation += 1;
        drop(_context);
        self.fetch_soon(id, source);
        Ok(())
    }

    fn tick(&mut self, id: OwnerId, now: Millis) {
        let Some(owner) = self.owners[id].as_mut() else { return };
        owner.ledger.step(Event::Tick, now);
        self.permit();
        let Some(owner) = self.owners[id].as_mut() else { return };
        owner.ticks += 1;
        let gauges = owner.ledger.gauges(now);
        self.checker.stats.overflows += u64::from(gauges.pending_full);
        self.checker.stats.far_ahead += u64::from(gauges.ahead_full);
        let (shard, look) = (owner.shard, owner.ticks.is_multiple_of(TICKS_PER_LOOK));
        for source in 0..self.transports.len() {
            self.fetch_soon(id, SourceIx::nth(source));
        }
        if look {
            let commands = self.open_commands(shard);
            if !commands.is_empty() {
                self.happens_later(id, Channel::Reader(ReaderKind::Background, false), 500, Event::Commands(commands));
            }
        }
        self.at(self.now + TICK, SimEvent::Tell(id, OwnerMessage::Tick));
    }

    pub(super) fn work(&mut self, id: OwnerId, actor: ActorIx, order: RunOrder) -> Result<(), Violation> {
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let Some(worker) = owner.workers.get_mut(actor.place()).filter(|worker| worker.alive) else { return Ok(()) };
        let (slot, no, service, generation) = (order.slot, order.no, order.service, worker.generation);
        let mut bench = Bench {
            plan: &self.plan,
            runtime: &self.runtime,
            dice: &mut self.dice,
            healed: self.healed,
            turns: &mut self.turns,
            deferred: &mut self.deferred,
        };
        let (worked, waited) = without_waiting(|| bench.work(&mut worker.cell, order));
        let waited = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX / 4);
        for item in &worked.failed {
            self.checker.failed(&self.plan, service, &item.message);
        }
        let parts = worked.parts.len();
        for (part, settled) in (1..).zip(worked.parts) {
            let report = RunReport {
                actor,
                slot,
                no,
                turns: settled.turns,
                state: settled.state,
                alone: false,
                done: part == parts,
                gone: worked.dies && part == parts,
            };
            // Some turns take so long that their messages are spilled.
            let most = if self.dice.below(60) == 0 { 400_000 } else { 800 };
            self.tell_after(
                id,
                Channel::Actor(actor, false),
                waited,
                most,
                OwnerMessage::Ran(actor, generation, report),
            );
        }
        if worked.dies {
            let died = Event::ActorDied(actor, "its handler panicked".to_owned());
            self.happens_later(id, Channel::Actor(actor, false), 200, died);
        }
        Ok(())
    }

    pub(super) fn fetch_soon(&mut self, id: OwnerId, source: SourceIx) {
        let delay = self.dice.below(1_000);
        let Some(owner) = self.owners[id].as_mut() else { return };
        let ingress = &mut owner.ingresses[source];
        if ingress.credits > 0 && !ingress.fetching && ingress.source.is_some() {
            ingress.fetching = true;
            self.at(self.now + delay, SimEvent::Fetch(id, source));
        }
    }

    pub(super) fn fetch(&mut self, id: OwnerId, source: SourceIx) -> Result<(), Violation> {
        let most = 1 + self.dice.below(8);
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let draining = owner.draining;
        let ingress = &mut owner.ingresses[source];
        ingress.fetching = false;
        let (Some(open), false) = (ingress.source.as_mut(), draining || ingress.credits <= 0) else { return Ok(()) };
        let _context = self.runtime.enter();
        let max = usize::try_from(most).unwrap_or(1).min(ingress.credits.unsigned_abs());
        let Some(fetched) = open.fetch(max).now_or_never() else { return Ok(()) };
        let name = &self.plan.sources[source].name;
        let deliveries = fetched?;
        let arrivals: Vec<_> =
            deliveries.into_iter().flat_map(|delivery| self.plan.bindings.arrivals(name, delivery)).collect();
        ingress.credits -= arrivals.len().cast_signed();
        let generation = ingress.generation;
        drop(_context);
        self.tell_later(id, Channel::Ingress(source), 1_000, OwnerMessage::Fetched(source, generation, arrivals));
        self.fetch_soon(id, source);
        Ok(())
    }
}
