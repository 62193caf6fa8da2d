//! The simulated world: one queue of events over virtual time, drawn from one seed.
//! In: a plan, sources. Out: everything that happens, until nothing is left to do or a promise is broken.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use super::disk::Disk;
use super::fate::Refusals;
use super::owner::{Lane, Owner, OwnerId, Told};
use super::plan::Plan;
use super::witness::Witness;
use super::work::{Bench, Worker};
use crate::clock::{Clock, Dice, Millis};
use crate::message::ShardNo;
use crate::pipeline::ledger::{Action, ActorIx, RunOrder, RunReport};
use crate::store::Commit;
use crate::transport::Transport;

/// Between two ticks of a ledger, in microseconds.
const TICK: u64 = 50_000;
/// Ticks between two looks at operators' commands.
const TICKS_PER_LOOK: u64 = 5;

/// What happens at a moment.
pub(super) enum Event {
    Take(ShardNo),
    Told(OwnerId, Told),
    /// A question of a ledger reaches the store.
    Ask(OwnerId, Action),
    /// A commit of this committer reaches the store; or one that was given up on arrives after all.
    Write(OwnerId, u32, Arc<Commit>),
    Late(Arc<Commit>),
    Work(OwnerId, ActorIx, RunOrder),
    Fetch(OwnerId, u16),
    Trouble,
    Look,
}

struct Scheduled(u64, u64, Event);

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// Everything there is.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) disk: Disk,
    pub(super) refusals: Arc<Refusals>,
    pub(super) witness: Witness,
    pub(super) dice: Dice,
    /// Microseconds since the start.
    pub(super) now: u64,
    pub(super) clock: Clock,
    pub(super) transports: Vec<Box<dyn Transport>>,
    pub(super) owners: Vec<Option<Owner>>,
    /// The owner of each shard, as the store has it.
    pub(super) current: Vec<Option<OwnerId>>,
    /// Until then things go wrong.
    pub(super) trouble_until: u64,
    /// Operators act on what is dead, and no fate strikes any more.
    pub(super) healed: bool,
    pub(super) done: bool,
    pub(super) runtime: tokio::runtime::Runtime,
    turns: u64,
    deferred: HashMap<String, u32>,
    queue: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
}

impl World {
    pub(super) fn new(
        plan: Plan,
        disk: Disk,
        refusals: Arc<Refusals>,
        (witness, clock): (Witness, Clock),
        transports: Vec<Box<dyn Transport>>,
        trouble_until: u64,
    ) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let shards = plan.shards();
        let mut world = Self {
            dice: Dice::seeded(plan.seed),
            plan,
            disk,
            refusals,
            witness,
            now: 0,
            clock,
            transports,
            owners: Vec::new(),
            current: vec![None; shards as usize],
            trouble_until,
            healed: false,
            done: false,
            runtime: runtime.map_err(|error| error.to_string())?,
            turns: 0,
            deferred: HashMap::new(),
            queue: BinaryHeap::new(),
            scheduled: 0,
        };
        for shard in 0..shards {
            world.at(0, Event::Take(shard));
        }
        world.at(20_000, Event::Trouble);
        world.at(trouble_until, Event::Look);
        Ok(world)
    }

    /// Something will happen at `time`.
    pub(super) fn at(&mut self, time: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse(Scheduled(time, self.scheduled, event)));
    }

    /// Something will happen after a while, up to `most` microseconds.
    pub(super) fn soon(&mut self, most: u64, event: Event) {
        let delay = self.dice.below(most);
        self.at(self.now + delay, event);
    }

    pub(super) fn told(&mut self, id: OwnerId, lane: Lane, most: u64, told: Told) {
        let delay = self.delay(most);
        let Some(owner) = self.owners[id].as_mut() else { return };
        let at = owner.arrival(lane, self.now, delay);
        self.at(at, Event::Told(id, told));
    }

    /// Mostly short, at times long.
    fn delay(&mut self, most: u64) -> u64 {
        if self.dice.below(8) == 0 { self.dice.below(most * 8) } else { self.dice.below(most) }
    }

    /// Runs until everything is done.
    pub(super) fn run(&mut self) -> Result<(), String> {
        while !self.done {
            let Some(Reverse(Scheduled(time, _, event))) = self.queue.pop() else {
                return Err("nothing happens any more".to_owned());
            };
            let passed = time.max(self.now) / 1_000 - self.now / 1_000;
            self.clock.advance(Duration::from_millis(passed));
            self.now = self.now.max(time);
            self.happen(event)?;
        }
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        let id = match &event {
            Event::Told(id, _) | Event::Ask(id, _) | Event::Work(id, ..) | Event::Fetch(id, _) => Some(*id),
            Event::Take(_) | Event::Write(..) | Event::Late(_) | Event::Trouble | Event::Look => None,
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
            Event::Take(shard) => self.take(shard),
            Event::Told(id, told) => self.tell(id, told),
            Event::Ask(id, action) => self.ask(id, action),
            Event::Write(id, committer, commit) => self.write(id, committer, commit),
            Event::Late(commit) => self.late(&commit),
            Event::Work(id, actor, order) => self.work(id, actor, order),
            Event::Fetch(id, source) => self.fetch(id, source),
            Event::Trouble => self.trouble(),
            Event::Look => self.look(),
        }
    }

    /// Another owner takes the shard over.
    fn take(&mut self, shard: ShardNo) -> Result<(), String> {
        if self.now < self.disk.away_until {
            self.at(self.disk.away_until, Event::Take(shard));
            return Ok(());
        }
        if let Some(old) = self.current[shard as usize].take().and_then(|id| self.owners[id].as_mut()) {
            old.zombie = true;
            self.witness.stats.zombies += 1;
        }
        let id = self.owners.len();
        let taken = self.disk.store.take_now(shard, &format!("owner-{id}")).map_err(|error| error.to_string())?;
        self.witness.epochs.insert(shard, taken.epoch);
        let dedup = &self.plan.settings.dedup;
        let window = Millis::try_from(dedup.window.as_millis()).unwrap_or(Millis::MAX);
        let inbox = self.disk.store.inbox_now(shard, self.clock.now().saturating_sub(window), dedup.max_ids);
        let ledger = self.plan.ledger(taken, inbox, &mut self.dice);
        self.owners.push(Some(Owner::new(shard, ledger, self.transports.len())));
        self.current[shard as usize] = Some(id);
        self.perform(id)?;
        for source in 0..self.transports.len() {
            let source = u16::try_from(source).unwrap_or(0);
            self.told(id, Lane::Ingress(source), 5_000, Told::IngressBack(source));
        }
        self.at(self.now + TICK, Event::Told(id, Told::Tick));
        Ok(())
    }

    /// Performs what the ledger has decided by now.
    pub(super) fn perform(&mut self, id: OwnerId) -> Result<(), String> {
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let actions = owner.ledger.actions();
        self.count(id)?;
        for action in actions {
            if std::env::var("T").is_ok() {
                let mut t = format!("{action:?}");
                t.truncate(700);
                eprintln!("{} #{id} -> {t}", self.now);
            }
            let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
            let (now, committer) = (self.now, owner.committer);
            match action {
                Action::Load(..) => self.question(id, Lane::Loader(true), action),
                Action::FetchDue(_)
                | Action::FetchOrphans(..)
                | Action::Page(..)
                | Action::FindDead(..)
                | Action::Retake(_)
                | Action::Trim(_) => self.question(id, Lane::Clerk(true), action),
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
                Action::Acknowledge(source, positions) => {
                    let name = self.plan.sources[source as usize].clone();
                    self.witness.reached(owner.shard, &name, &positions)?;
                    if let Some(source) = owner.ingresses[source as usize].source.as_mut() {
                        source.committed(&positions);
                    }
                }
                Action::Drained | Action::Stop(_) => self.leave(id),
            }
        }
        Ok(())
    }

    /// The owner is gone, by whatever way; the shard is taken again.
    pub(super) fn leave(&mut self, id: OwnerId) {
        let Some(owner) = self.owners[id].take() else { return };
        if !owner.zombie {
            self.current[owner.shard as usize] = None;
            self.witness.stats.takeovers += 1;
            self.soon(200_000, Event::Take(owner.shard));
        }
    }

    /// Keeps the ledger's tally, and checks the delays that it chose.
    fn count(&mut self, id: OwnerId) -> Result<(), String> {
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let tally = owner.ledger.tally();
        let stats = &mut self.witness.stats;
        stats.passivations += tally.passivations;
        stats.duplicates += tally.duplicates;
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

    fn question(&mut self, id: OwnerId, lane: Lane, action: Action) {
        let delay = self.delay(1_000);
        let Some(owner) = self.owners[id].as_mut() else { return };
        let at = owner.arrival(lane, self.now, delay);
        self.at(at, Event::Ask(id, action));
    }

    fn send(&mut self, id: OwnerId, commit: Arc<Commit>, pause: u64) {
        let delay = pause + self.delay(2_000);
        let Some(owner) = self.owners[id].as_mut().filter(|owner| !owner.committer_down) else { return };
        let committer = owner.committer;
        let at = owner.arrival(Lane::Committer(true), self.now, delay);
        self.at(at, Event::Write(id, committer, commit));
    }

    fn ask(&mut self, id: OwnerId, action: Action) -> Result<(), String> {
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
            Action::FetchDue(limit) => Told::Due(store.due_now(shard, self.clock.now(), limit)),
            Action::FetchOrphans(after, limit) => Told::Orphans(store.orphans_now(shard, after.as_ref(), limit)),
            Action::Page(slot, token, key, after, limit) => {
                self.witness.stats.pages += 1;
                Told::Paged(slot, token, store.page_now(shard, &key, after, limit))
            }
            Action::FindDead(id, filter, limit) => Told::DeadFound(id, store.dead_now(shard, &filter, limit)),
            Action::Retake(epoch) => {
                let taken = store.retake_now(shard, epoch);
                if let Ok(taken) = &taken {
                    self.witness.epochs.insert(shard, taken.epoch);
                }
                Told::Retaken(taken)
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

    fn write(&mut self, id: OwnerId, committer: u32, commit: Arc<Commit>) -> Result<(), String> {
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

    fn late(&mut self, commit: &Commit) -> Result<(), String> {
        // Whether it is written at all is part of what nobody knows.
        if self.dice.below(2) == 0 && self.now >= self.disk.away_until {
            self.disk.apply(&self.plan, commit, &mut self.witness)?;
        }
        Ok(())
    }

    fn work(&mut self, id: OwnerId, actor: ActorIx, order: RunOrder) -> Result<(), String> {
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let Some(worker) = owner.workers.get_mut(actor as usize).filter(|worker| worker.alive) else { return Ok(()) };
        let (slot, no, service, generation) = (order.slot, order.no, order.service, worker.generation);
        let mut bench = Bench {
            plan: &self.plan,
            runtime: &self.runtime,
            dice: &mut self.dice,
            healed: self.healed,
            turns: &mut self.turns,
            deferred: &mut self.deferred,
        };
        let worked = bench.work(&mut worker.cell, order);
        for item in &worked.failed {
            self.witness.failed(&self.plan, service, &item.message);
        }
        let parts = worked.parts.len();
        for (part, settled) in (1..).zip(worked.parts) {
            let report = RunReport { actor, slot, no, turns: settled.turns, state: settled.state, done: part == parts };
            self.told(id, Lane::Actor(actor, false), 800, Told::Ran(actor, generation, report));
        }
        if worked.dies {
            self.told(id, Lane::Actor(actor, false), 200, Told::ActorDied(actor, "its handler panicked".to_owned()));
        }
        Ok(())
    }

    pub(super) fn fetch_soon(&mut self, id: OwnerId, source: u16) {
        let delay = self.dice.below(1_000);
        let Some(owner) = self.owners[id].as_mut() else { return };
        let ingress = &mut owner.ingresses[source as usize];
        if ingress.credits > 0 && !ingress.fetching && ingress.source.is_some() {
            ingress.fetching = true;
            self.at(self.now + delay, Event::Fetch(id, source));
        }
    }

    fn fetch(&mut self, id: OwnerId, source: u16) -> Result<(), String> {
        let most = 1 + self.dice.below(8);
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let draining = owner.draining;
        let ingress = &mut owner.ingresses[source as usize];
        ingress.fetching = false;
        let (Some(open), false) = (ingress.source.as_mut(), draining || ingress.credits <= 0) else { return Ok(()) };
        let _context = self.runtime.enter();
        let max = usize::try_from(most).unwrap_or(1).min(ingress.credits.unsigned_abs());
        let Some(fetched) = open.fetch(max).now_or_never() else { return Ok(()) };
        let name = &self.plan.sources[source as usize];
        let deliveries = fetched.map_err(|error| error.to_string())?;
        let arrivals: Vec<_> =
            deliveries.into_iter().flat_map(|delivery| self.plan.bindings.arrivals(name, delivery)).collect();
        ingress.credits -= arrivals.len().cast_signed();
        let generation = ingress.generation;
        drop(_context);
        self.told(id, Lane::Ingress(source), 1_000, Told::Fetched(source, generation, arrivals));
        self.fetch_soon(id, source);
        Ok(())
    }

    /// A ledger is told something, and what it decides is performed.
    fn tell(&mut self, id: OwnerId, told: Told) -> Result<(), String> {
        let now = self.clock.now();
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        if std::env::var("T").is_ok() && !matches!(told, Told::Tick) {
            let mut t = format!("{told:?}");
            t.truncate(600);
            eprintln!("{} #{id} <- {t}", self.now);
        }
        let ledger = &mut owner.ledger;
        match told {
            Told::Fetched(source, generation, arrivals) => {
                if owner.ingresses[source as usize].generation == generation {
                    ledger.fetched(source, arrivals, now);
                }
            }
            Told::IngressBack(source) => self.open(id, source)?,
            Told::Ran(actor, generation, report) => {
                if owner.workers[actor as usize].generation == generation {
                    ledger.ran(report, now);
                }
            }
            Told::ActorReady(actor) => {
                owner.workers[actor as usize].alive = true;
                ledger.actor_ready(actor);
            }
            Told::ActorDied(actor, reason) => {
                owner.kill(actor);
                owner.ledger.actor_died(actor, &reason, now);
                self.told(id, Lane::Actor(actor, false), 20_000, Told::ActorReady(actor));
            }
            Told::Gate(committer) if owner.committer == committer => ledger.gate(now),
            Told::Gate(_) => {}
            Told::CommitEnded(committer, epoch, no, outcome) => {
                if owner.committer == committer {
                    ledger.commit_ended(epoch, no, outcome, now);
                }
            }
            Told::CommitterBack => {
                owner.committer += 1;
                owner.committer_down = false;
                ledger.commit_lost();
            }
            Told::Retaken(answer) => ledger.retaken(answer, now),
            Told::Loaded(slots, rows) => ledger.loaded(&slots, rows),
            Told::Due(due) => ledger.due(due, now),
            Told::Orphans(keys) => ledger.orphans(keys),
            Told::Paged(slot, token, rows) => ledger.paged(slot, token, rows, now),
            Told::Commands(commands) => commands.into_iter().for_each(|command| ledger.command(command)),
            Told::DeadFound(command, letters) => ledger.dead_found(command, letters, now),
            Told::Drain => ledger.drain(),
            Told::Tick => self.tick(id, now),
        }
        self.perform(id)
    }

    fn open(&mut self, id: OwnerId, source: u16) -> Result<(), String> {
        let Some(owner) = self.owners[id].as_mut().filter(|owner| !owner.draining) else { return Ok(()) };
        let _context = self.runtime.enter();
        let from = owner.ledger.received(source);
        let opened = self.transports[source as usize].open(owner.shard, from).now_or_never();
        let opened = opened.ok_or("a simulated source opens at once")?;
        let credits = owner.ledger.credits_free(source);
        let ingress = &mut owner.ingresses[source as usize];
        ingress.source = Some(opened.map_err(|error| error.to_string())?);
        ingress.credits = credits;
        ingress.generation += 1;
        drop(_context);
        self.fetch_soon(id, source);
        Ok(())
    }

    fn tick(&mut self, id: OwnerId, now: Millis) {
        let Some(owner) = self.owners[id].as_mut() else { return };
        owner.ledger.tick(now);
        owner.ticks += 1;
        self.witness.stats.overflows += u64::from(owner.ledger.gauges(now).pending_full);
        let (shard, look) = (owner.shard, owner.ticks.is_multiple_of(TICKS_PER_LOOK));
        for source in 0..self.transports.len() {
            self.fetch_soon(id, u16::try_from(source).unwrap_or(0));
        }
        if look {
            let commands = self.open_commands(shard);
            if !commands.is_empty() {
                self.told(id, Lane::Clerk(false), 500, Told::Commands(commands));
            }
        }
        self.at(self.now + TICK, Event::Told(id, Told::Tick));
    }
}
