//! The simulation: one queue of events over virtual time, drawn from one seed.
//! In: a plan, sources. Out: everything that happens, until nothing is left to do or a promise is broken.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::checker::{Checker, Violation};
use super::disk::SimDisk;
use super::fault_plan::Refusals;
use super::owner::{Channel, Owner, OwnerId, OwnerMessage};
use super::plan::{SimPlan, StartError};
use crate::clock::{Clock, Dice, millis};
use crate::ledger::gates::Gates;
use crate::ledger::protocol::{self, ActorIx, Question, RunOrder};
use crate::message::{ShardNo, SinkIx, SourceIx};
use crate::store::memory::at_once;
use crate::store::query::Scope;
use crate::store::{Commit, Store};
use crate::transport::Transport;

/// The time between two ticks of a ledger, in microseconds.
pub(super) const TICK: u64 = 50_000;

/// The events of the simulation.
pub(super) enum SimEvent {
    Take(ShardNo),
    Tell(OwnerId, OwnerMessage),
    /// A question of a ledger reaches the store.
    Ask(OwnerId, Question),
    /// A commit of this committer reaches the store; or one that was given up on arrives after all.
    Write(OwnerId, u32, Arc<Commit>),
    Late(Arc<Commit>),
    Work(OwnerId, ActorIx, RunOrder),
    Fetch(OwnerId, SourceIx),
    /// A dispatcher does what it can; the events that it handed over reach the broker.
    Pump(OwnerId, SinkIx),
    Deliver(OwnerId, SinkIx, u32),
    Fault,
    Look,
}

struct ScheduledEvent(u64, u64, SimEvent);

impl PartialEq for ScheduledEvent {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for ScheduledEvent {}

impl PartialOrd for ScheduledEvent {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ScheduledEvent {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// The state of the simulation.
pub(super) struct Sim {
    pub(super) plan: SimPlan,
    pub(super) disk: SimDisk,
    pub(super) refusals: Arc<Refusals>,
    pub(super) checker: Checker,
    pub(super) gates: Gates,
    pub(super) dice: Dice,
    /// Microseconds since the start.
    pub(super) now: u64,
    pub(super) clock: Clock,
    pub(super) transports: Vec<Box<dyn Transport>>,
    pub(super) owners: Vec<Option<Owner>>,
    /// The owner of each shard, as the store has it.
    pub(super) current: Vec<Option<OwnerId>>,
    /// The time until which things go wrong.
    pub(super) faults_until: u64,
    /// True once operators act on dead letters, and fates no longer strike.
    pub(super) healed: bool,
    /// The services and keys that operators have paused.
    pub(super) paused: Vec<Scope>,
    /// The time until which the sinks take nothing.
    pub(super) sinks_away_until: u64,
    pub(super) done: bool,
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) turns: u64,
    pub(super) deferred: HashMap<String, u32>,
    queue: BinaryHeap<Reverse<ScheduledEvent>>,
    scheduled: u64,
}

impl Sim {
    pub(super) fn new(
        plan: SimPlan,
        disk: SimDisk,
        refusals: Arc<Refusals>,
        checker: Checker,
        clock: Clock,
        transports: Vec<Box<dyn Transport>>,
        faults_until: u64,
    ) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let shards = plan.shards();
        let mut sim = Self {
            gates: super::plan::gates(&plan.handlers, &plan.settings, plan.seed),
            dice: Dice::seeded(plan.seed),
            plan,
            disk,
            refusals,
            checker,
            now: 0,
            clock,
            transports,
            owners: Vec::new(),
            current: vec![None; shards as usize],
            faults_until,
            healed: false,
            paused: Vec::new(),
            sinks_away_until: 0,
            done: false,
            runtime: runtime.map_err(StartError::Runtime)?,
            turns: 0,
            deferred: HashMap::new(),
            queue: BinaryHeap::new(),
            scheduled: 0,
        };
        for shard in 0..shards {
            sim.at(0, SimEvent::Take(shard));
        }
        Ok(sim)
    }

    /// Schedules an event at `time`.
    pub(super) fn at(&mut self, time: u64, event: SimEvent) {
        self.scheduled += 1;
        self.queue.push(Reverse(ScheduledEvent(time, self.scheduled, event)));
    }

    /// Schedules an event after a random delay below `most` microseconds.
    pub(super) fn soon(&mut self, most: u64, event: SimEvent) {
        let delay = self.dice.below(most);
        self.at(self.now + delay, event);
    }

    pub(super) fn tell_later(&mut self, id: OwnerId, channel: Channel, most: u64, message: OwnerMessage) {
        self.tell_after(id, channel, 0, most, message);
    }

    /// Tells an owner something after a fixed pause and a random delay.
    pub(super) fn tell_after(&mut self, id: OwnerId, channel: Channel, pause: u64, most: u64, message: OwnerMessage) {
        let delay = pause + self.delay(most);
        let Some(owner) = self.owners[id].as_mut() else { return };
        let at = owner.arrival(channel, self.now, delay);
        self.at(at, SimEvent::Tell(id, message));
    }

    /// A random delay: mostly short, sometimes long.
    pub(super) fn delay(&mut self, most: u64) -> u64 {
        if self.dice.below(8) == 0 { self.dice.below(most * 8) } else { self.dice.below(most) }
    }

    /// Runs until everything is done.
    pub(super) fn run(&mut self) -> Result<(), Violation> {
        self.at(20_000, SimEvent::Fault);
        self.at(self.faults_until, SimEvent::Look);
        while !self.done {
            self.step()?;
        }
        Ok(())
    }

    /// Lets the next event happen.
    pub(super) fn step(&mut self) -> Result<(), Violation> {
        let Some(Reverse(ScheduledEvent(time, _, event))) = self.queue.pop() else {
            return Err(Violation::Still);
        };
        self.leap(time);
        self.happen(event)
    }

    /// The time of the next event.
    pub(super) fn next_at(&self) -> Option<u64> {
        self.queue.peek().map(|Reverse(ScheduledEvent(time, ..))| *time)
    }

    /// Sets the time to `to`, unless it is later already: events that were due before happen late.
    pub(super) fn leap(&mut self, to: u64) {
        let passed = to.max(self.now) / 1_000 - self.now / 1_000;
        self.clock.advance(Duration::from_millis(passed));
        self.now = self.now.max(to);
    }

    fn happen(&mut self, event: SimEvent) -> Result<(), Violation> {
        let id = match &event {
            SimEvent::Tell(id, _)
            | SimEvent::Ask(id, _)
            | SimEvent::Work(id, ..)
            | SimEvent::Fetch(id, _)
            | SimEvent::Pump(id, _)
            | SimEvent::Deliver(id, ..) => Some(*id),
            SimEvent::Take(_) | SimEvent::Write(..) | SimEvent::Late(_) | SimEvent::Fault | SimEvent::Look => None,
        };
        if let Some(id) = id {
            let Some(owner) = self.owners[id].as_ref() else { return Ok(()) };
            if owner.frozen_until > self.now {
                let until = owner.frozen_until;
                self.at(until, event);
                return Ok(());
            }
        }
        match event {
            SimEvent::Take(shard) => self.take(shard),
            SimEvent::Tell(id, message) => self.tell(id, message),
            SimEvent::Ask(id, action) => self.ask(id, action),
            SimEvent::Write(id, committer, commit) => self.write(id, committer, commit),
            SimEvent::Late(commit) => self.late(&commit),
            SimEvent::Work(id, actor, order) => self.work(id, actor, order),
            SimEvent::Fetch(id, source) => self.fetch(id, source),
            SimEvent::Pump(id, sink) => self.pump(id, sink),
            SimEvent::Deliver(id, sink, generation) => self.deliver(id, sink, generation),
            SimEvent::Fault => self.fault(),
            SimEvent::Look => self.look(),
        }
    }

    /// Lets another owner take the shard over.
    fn take(&mut self, shard: ShardNo) -> Result<(), Violation> {
        if self.now < self.disk.away_until {
            self.at(self.disk.away_until, SimEvent::Take(shard));
            return Ok(());
        }
        if let Some(old) = self.current[shard as usize].take().and_then(|id| self.owners[id].as_mut()) {
            old.zombie = true;
            self.checker.stats.zombies += 1;
        }
        let id = self.owners.len();
        let taken = at_once(self.disk.store.take(shard, &format!("owner-{id}")))?;
        self.checker.epochs.insert(shard, taken.epoch);
        let dedup = &self.plan.settings.dedup;
        let window = millis(dedup.window);
        let since = self.clock.now().saturating_sub(window);
        let inbox = at_once(self.disk.store.inbox(shard, since, dedup.max_ids))?;
        let ledger = self.plan.ledger(taken, inbox, &mut self.dice, self.clock.now());
        self.owners.push(Some(Owner::new(shard, ledger, self.transports.len(), self.plan.sinks.len())));
        self.current[shard as usize] = Some(id);
        self.perform(id)?;
        for source in 0..self.transports.len() {
            let source = SourceIx::nth(source);
            self.tell_later(id, Channel::Ingress(source), 5_000, OwnerMessage::IngressBack(source));
        }
        for sink in 0..self.plan.sinks.len() {
            let sink = SinkIx::nth(sink);
            self.tell_later(id, Channel::Dispatcher(sink), 5_000, OwnerMessage::DispatcherBack(sink));
        }
        self.at(self.now + TICK, SimEvent::Tell(id, OwnerMessage::Tick));
        Ok(())
    }

    /// Removes an owner, for any reason; the shard is taken again.
    pub(super) fn leave(&mut self, id: OwnerId) {
        let Some(owner) = self.owners[id].take() else { return };
        self.gates.leave(id as u64);
        if !owner.zombie {
            self.current[owner.shard as usize] = None;
            self.checker.stats.takeovers += 1;
            self.soon(200_000, SimEvent::Take(owner.shard));
        }
    }

    /// Gives the permits that can be given.
    pub(super) fn permit(&mut self) {
        for (asker, line) in self.gates.grant(self.clock.now()) {
            let id = usize::try_from(asker).unwrap_or(usize::MAX);
            self.happens_later(id, Channel::Gates, 500, protocol::Event::Permit(line));
        }
    }
}
