//! The faults of a simulation, and its end.
//! In: dice. Out: deaths, freezes, outages, operators' commands; the end.

use super::checker::Violation;
use super::owner::{Channel, OwnerId, OwnerMessage};
use super::sim::{Sim, SimEvent};
use crate::clock::Millis;
use crate::ledger::protocol::{self, ActorIx};
use crate::message::{ServiceIx, ShardNo, SourceIx};
use crate::store::Store;
use crate::store::memory::at_once;
use crate::store::query::{Action, DeadFilter, NewCommand, OpenCommand, Queries, Scope};

/// The time between two looks at whether everything is done, in microseconds.
const LOOK: u64 = 100_000;
/// The time for which messages may wait before an operator comes, in microseconds.
const PATIENCE: u64 = 20_000_000;
/// The time after which a simulation that is not done counts as stuck, in microseconds.
const STUCK: u64 = 400_000_000;

impl Sim {
    /// Lets something go wrong, and schedules the next fault.
    pub(super) fn fault(&mut self) -> Result<(), Violation> {
        if self.now >= self.faults_until {
            return Ok(());
        }
        let faults = self.plan.faults;
        let shard = self.dice.below(u64::from(self.plan.shards())) as usize;
        let owner = self.current[shard];
        let roll = self.dice.below(16);
        match (roll, owner) {
            (0, Some(id)) if faults.crashes => self.leave(id),
            (1, Some(id)) if faults.freezes => self.freeze(id),
            (2, Some(id)) if faults.drains => self.drain(id),
            (3..=5, Some(id)) if faults.children => self.kill_actor(id),
            (6, Some(id)) if faults.children => self.kill_committer(id),
            (7, Some(id)) if faults.children => self.kill_ingress(id),
            (11, Some(id)) if faults.children => self.kill_dispatcher(id),
            (12, _) if faults.sinks => self.sinks_away_until = self.now + self.dice.below(300_000),
            (8, _) if faults.store => self.disk.away_until = self.now + self.dice.below(200_000),
            (9..=10, _) if faults.operators => self.operate(None)?,
            (13, _) if faults.operators => self.pause()?,
            (14, _) if faults.operators => self.resume()?,
            _ => {}
        }
        let pause = 1_000 + self.dice.below(60_000);
        self.at(self.now + pause, SimEvent::Fault);
        Ok(())
    }

    fn freeze(&mut self, id: OwnerId) {
        let still = 50_000 + self.dice.below(1_000_000);
        let Some(owner) = self.owners[id].as_mut() else { return };
        let shard = owner.shard;
        owner.frozen_until = self.now + still;
        if self.dice.below(4) > 0 {
            self.soon(still, SimEvent::Take(shard));
        }
    }

    fn drain(&mut self, id: OwnerId) {
        let Some(owner) = self.owners[id].as_mut() else { return };
        owner.draining = true;
        for ingress in &mut owner.ingresses {
            ingress.source = None;
            ingress.generation += u32::from(self.dice.below(2) == 0);
        }
        self.soon(500, SimEvent::Tell(id, OwnerMessage::Event(protocol::Event::Drain)));
    }

    fn kill_actor(&mut self, id: OwnerId) {
        let Some(owner) = self.owners[id].as_mut() else { return };
        let actor = ActorIx::nth(self.dice.below(owner.workers.len() as u64) as usize);
        // Its last messages arrive before the news of its death, or were not sent yet.
        let silent = self.dice.below(2) == 0;
        let alive = owner.workers.get(actor.place()).is_some_and(|worker| worker.alive);
        if !alive || silent && !owner.kill(actor) {
            return;
        }
        self.checker.stats.deaths += 1;
        let died = protocol::Event::ActorDied(actor, "killed".to_owned());
        self.happens_later(id, Channel::Actor(actor, false), 1_000, died);
    }

    fn kill_committer(&mut self, id: OwnerId) {
        let Some(owner) = self.owners[id].as_mut().filter(|owner| !owner.committer_down) else { return };
        owner.committer_down = true;
        self.checker.stats.deaths += 1;
        self.tell_later(id, Channel::Committer(false), 20_000, OwnerMessage::CommitterBack);
    }

    fn kill_ingress(&mut self, id: OwnerId) {
        let source = self.dice.below(self.transports.len() as u64) as usize;
        let Some(owner) = self.owners[id].as_mut() else { return };
        let ingress = &mut owner.ingresses[source];
        if ingress.source.take().is_none() {
            return;
        }
        // Its fetched messages arrive, or die with it.
        ingress.generation += u32::from(self.dice.below(2) == 0);
        self.checker.stats.deaths += 1;
        let source = SourceIx::nth(source);
        self.tell_later(id, Channel::Ingress(source), 20_000, OwnerMessage::IngressBack(source));
    }

    /// Lets an operator act on dead letters: of one key, or of all.
    fn operate(&mut self, key: Option<(ServiceIx, String)>) -> Result<(), Violation> {
        // A rejected message that is always replayed would hold its key for ever.
        let discard = self.dice.below(4) == 0;
        let action = if discard { Action::Discard } else { Action::Replay };
        let filter = match key {
            Some((service, key)) => DeadFilter {
                service: Some(self.plan.services[service].name.as_ref().to_owned()),
                key: Some(key),
                ..DeadFilter::default()
            },
            None => DeadFilter::default(),
        };
        // Otherwise it would chase the messages that it replayed.
        let filter = DeadFilter { until: Some(self.clock.now()), ..filter };
        self.command(action, filter)
    }

    /// Lets an operator pause a service, or a key that has a state.
    fn pause(&mut self) -> Result<(), Violation> {
        let keys: Vec<_> = self.disk.store.states().into_keys().collect();
        let services = self.plan.services.len() as u64;
        let scope = match self.dice.below(services + keys.len() as u64) {
            service if service < services => {
                Scope { service: self.plan.services[service as usize].name.as_ref().to_owned(), key: None }
            }
            at => {
                let (service, key) = &keys[(at - services) as usize];
                Scope { service: service.as_ref().to_owned(), key: Some(key.as_ref().to_owned()) }
            }
        };
        self.checker.stats.pauses += 1;
        self.paused.push(scope.clone());
        self.command(Action::Pause(scope), DeadFilter::default())
    }

    /// Lets an operator resume what was paused last.
    fn resume(&mut self) -> Result<(), Violation> {
        let Some(scope) = self.paused.pop() else { return Ok(()) };
        self.command(Action::Resume(scope), DeadFilter::default())
    }

    fn command(&mut self, action: Action, filter: DeadFilter) -> Result<(), Violation> {
        let (who, why) = ("simulator".to_owned(), "drawn from the seed".to_owned());
        let command = NewCommand { action, filter, who, why, matched: 0, at: self.clock.now() };
        at_once(self.disk.store.queries().command(command))?;
        Ok(())
    }

    /// Commands that a shard has still to execute.
    pub(super) fn open_commands(&self, shard: ShardNo) -> Vec<OpenCommand> {
        let open = at_once(self.disk.store.open_commands(shard, Vec::new()));
        open.unwrap_or_default().into_iter().flatten().collect()
    }

    /// Looks whether everything is done.
    pub(super) fn look(&mut self) -> Result<(), Violation> {
        while !self.paused.is_empty() {
            self.resume()?;
        }
        let busy = self.busy();
        let late = self.now > self.faults_until + PATIENCE;
        match busy {
            Some(busy) if self.now > self.faults_until + STUCK => return Err(Violation::Endless(busy)),
            Some(_) if !late => {}
            None if self.healed && self.checker.held().is_empty() => {
                self.done = true;
                let left = self.checker.unfinished().or_else(|| self.checker.unset(&self.plan));
                return left.map_or(Ok(()), |left| Err(Violation::Unfinished(left)));
            }
            _ => {
                let first = !std::mem::replace(&mut self.healed, true);
                self.checker.heal();
                self.sinks_away_until = 0;
                self.refusals.heal();
                if first && self.plan.faults.operators && self.dice.below(2) == 0 {
                    self.operate(None)?;
                }
                let executing = (0..self.plan.shards()).any(|shard| !self.open_commands(shard).is_empty());
                for key in self.checker.held().into_keys().filter(|_| !executing) {
                    self.operate(Some(key))?;
                }
            }
        }
        self.at(self.now + LOOK, SimEvent::Look);
        Ok(())
    }

    /// The work that is still to be done, if any.
    fn busy(&self) -> Option<String> {
        let held = self.checker.held();
        let pending = self.disk.store.pending().into_values();
        let waits = pending.into_iter().find(|row| !held.contains_key(&self.place(&row.service, &row.key)));
        let waits =
            waits.map(|row| format!("{:?} of key {:?} waits until {:?}", row.message.id(), row.key, row.due_at));
        let once = self.disk.store.timers().into_iter().filter(|timer| timer.schedule().is_none());
        let mut once = once.filter(|timer| !held.contains_key(&self.place(&timer.of.service, &timer.of.key)));
        let timer = once.next();
        let timer = timer
            .map(|timer| format!("the timer {:?} of key {:?} is due at {}", timer.name, timer.of.key, timer.due_at));
        self.restless().or(timer).or(waits)
    }

    fn place(&self, service: &str, key: &str) -> (ServiceIx, String) {
        (self.plan.handlers.index_of(service).expect("its rows are of services that run"), key.to_owned())
    }

    /// The time at which the next attempt at a message is due, in microseconds since the start.
    pub(super) fn next_retry(&self) -> Option<u64> {
        let held = self.checker.held();
        let rows = self.disk.store.pending().into_values();
        let rows = rows.filter(|row| !held.contains_key(&self.place(&row.service, &row.key)));
        rows.filter_map(|row| row.due_at).min().map(|at| self.micros(at))
    }

    /// The time at which the next attempt or timer is due.
    pub(super) fn next_due(&self) -> Option<u64> {
        let mut waits: std::collections::BTreeSet<_> = self.checker.held().into_keys().collect();
        waits.extend(self.disk.store.pending().into_values().map(|row| self.place(&row.service, &row.key)));
        let free = |timer: &crate::store::Timer| !waits.contains(&self.place(&timer.of.service, &timer.of.key));
        let timers = self.disk.store.timers().into_iter().filter(free);
        let timer = timers.map(|timer| self.micros(timer.due_at)).min();
        timer.into_iter().chain(self.next_retry()).min()
    }

    fn micros(&self, at: Millis) -> u64 {
        let now = self.clock.now();
        if at >= now { self.now.saturating_add((at - now).saturating_mul(1_000)) } else { self.now }
    }

    /// True if messages wait for something outside, and not for their time.
    pub(super) fn blocked(&self) -> bool {
        let held = self.checker.held();
        let rows = self.disk.store.pending();
        let timed: std::collections::BTreeSet<_> =
            rows.values().filter(|row| row.due_at.is_some()).map(|row| self.place(&row.service, &row.key)).collect();
        let mut places = rows.values().map(|row| self.place(&row.service, &row.key));
        places.any(|place| !timed.contains(&place) && !held.contains_key(&place))
    }

    /// The work that is in hand or to be read, if any: messages that wait for their time do not count.
    pub(super) fn restless(&self) -> Option<String> {
        if !self.checker.all_passed() {
            let owners = self.current.iter().map(|id| self.describe(*id)).collect::<Vec<_>>();
            let sources = self.checker.unfinished().unwrap_or_default();
            return Some(format!("sources are not at their end: {sources}; {}", owners.join("; ")));
        }
        if let Some(behind) = self.checker.topics.iter().find_map(super::checker::topic::Topic::unfinished) {
            return Some(behind);
        }
        for (shard, owner) in (0..).zip(&self.current) {
            let Some(owner) = owner.and_then(|id| self.owners[id].as_ref()) else {
                return Some(format!("shard {shard} has no owner"));
            };
            if !owner.ledger.is_idle() || owner.draining || owner.frozen_until > self.now {
                return Some(format!("shard {shard} is not idle: {}", self.describe(self.current[shard as usize])));
            }
            if !self.open_commands(shard).is_empty() {
                return Some(format!("shard {shard} has a command to execute"));
            }
            let in_store = self.disk.store.pending().into_keys().filter(|(of, _)| *of == shard).count() as u64;
            let gauges = owner.ledger.gauges(self.clock.now());
            if gauges.pending != in_store {
                return Some(format!("shard {shard} counts {} waiting rows, there are {in_store}", gauges.pending));
            }
            let letters = self.disk.store.dead_letters().into_keys().filter(|(of, _)| *of == shard).count() as u64;
            if gauges.letters.count != letters {
                return Some(format!("shard {shard} counts {:?}, there are {letters}", gauges.letters));
            }
            for (source, ingress) in SourceIx::all(owner.ingresses.len()).zip(&owner.ingresses) {
                let free = owner.ledger.credits_free(source);
                if ingress.source.is_none() || ingress.credits != free {
                    let has = ingress.credits;
                    return Some(format!(
                        "shard {shard}: source {} has {has} credits, the ledger says {free}",
                        source.place()
                    ));
                }
            }
        }
        None
    }

    fn describe(&self, owner: Option<OwnerId>) -> String {
        let Some((id, owner)) = owner.and_then(|id| Some((id, self.owners[id].as_ref()?))) else {
            return "nobody".to_owned();
        };
        let (gauges, idle) = (owner.ledger.gauges(self.clock.now()), owner.ledger.is_idle());
        format!("owner {id}: idle {idle}, draining {}, {gauges:?}", owner.draining)
    }
}
