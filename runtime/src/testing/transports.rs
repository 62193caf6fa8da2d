//! Simulated sources: a log that is read from a position, a queue that hands over again what was not acknowledged, and
//! a table. Simulated sinks, and the dispatchers' way to them.
//! In: contents with the time from which they can be read; commits. Out: deliveries, each origin's in order; events as
//! a broker has them, or the first promise about them that was broken.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, pending, ready};

use super::checker::Violation;
use super::fault_plan::FaultPlan;
use super::owner::{Channel, OwnerId, OwnerMessage};
use super::sim::{Sim, SimEvent};
use crate::clock::{Clock, Dice, Millis};
use crate::ledger::defect::{Defect, planted};
use crate::ledger::outbox::publisher::Publisher;
use crate::ledger::protocol;
use crate::message::{Position, Positions, ShardNo, SinkIx, murmur2};
use crate::store::memory::{MemoryStore, at_once};
use crate::store::{Commit, Store};
use crate::transport::pace::{Pace, PacedMessage};
use crate::transport::{Content, Delivery, Outgoing, SinkAnswer, Source, SourceError, Transport};

type Origins = BTreeMap<Arc<str>, Vec<(Millis, Content)>>;

#[derive(Default)]
struct SimLog {
    origins: BTreeMap<ShardNo, Origins>,
    acknowledged: BTreeMap<ShardNo, Positions>,
}

/// The ways in which a simulated source knows which messages are done.
#[derive(Clone)]
pub(super) enum SourceKind {
    /// By the positions it is opened with.
    Log,
    /// By the acknowledged messages.
    Queue,
    /// By the rows that the store has taken in.
    Table(Arc<MemoryStore>),
}

/// A log, a queue or a table for every shard.
#[derive(Clone)]
pub(super) struct SimTransport {
    name: &'static str,
    kind: SourceKind,
    clock: Clock,
    logs: Arc<Mutex<SimLog>>,
}

impl SimTransport {
    pub(super) fn new(name: &'static str, kind: SourceKind, clock: Clock) -> Self {
        Self { name, kind, clock, logs: Arc::default() }
    }

    /// Puts something at the end of an origin; it can be read from `at` on.
    pub(super) fn append(&self, shard: ShardNo, origin: &Arc<str>, at: Millis, content: Content) -> Position {
        let mut logs = self.logs();
        let log = logs.origins.entry(shard).or_default().entry(origin.clone()).or_default();
        let at = log.last().map_or(at, |(last, _)| at.max(*last));
        log.push((at, content));
        Position::new(log.len() as u64, 0)
    }

    fn logs(&self) -> MutexGuard<'_, SimLog> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for SimTransport {
    fn name(&self) -> &str {
        self.name
    }

    fn ordered(&self) -> bool {
        !matches!(self.kind, SourceKind::Table(_))
    }

    fn open(&self, shard: ShardNo, from: Positions) -> BoxFuture<'_, Result<Box<dyn Source>, SourceError>> {
        let from = match &self.kind {
            SourceKind::Log => from,
            SourceKind::Queue => self.logs().acknowledged.get(&shard).cloned().unwrap_or_default(),
            SourceKind::Table(_) => Positions::new(),
        };
        let source = SimSource { transport: self.clone(), shard, from };
        Box::pin(ready(Ok(Box::new(source) as Box<dyn Source>)))
    }
}

struct SimSource {
    transport: SimTransport,
    shard: ShardNo,
    from: Positions,
}

impl Source for SimSource {
    fn fetch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        let now = self.transport.clock.now();
        let mut found = Vec::new();
        {
            let logs = self.transport.logs();
            for (origin, log) in logs.origins.get(&self.shard).into_iter().flatten() {
                let read = self.from.get(origin).map_or(0, |from| from.no);
                let there = log.iter().enumerate().skip(usize::try_from(read).unwrap_or(usize::MAX));
                for (at, (_, content)) in there.take_while(|(_, (from, _))| *from <= now) {
                    if found.len() == max {
                        break;
                    }
                    let position = Position::new(at as u64 + 1, 0);
                    self.from.insert(origin.clone(), position);
                    if let SourceKind::Table(store) = &self.transport.kind
                        && store.has_taken_in(self.shard, position.no)
                    {
                        continue;
                    }
                    found.push(Delivery { origin: origin.clone(), position, content: content.clone() });
                }
            }
        }
        if found.is_empty() { Box::pin(pending()) } else { Box::pin(ready(Ok(found))) }
    }

    fn committed(&mut self, positions: &Positions) {
        let mut logs = self.transport.logs();
        let acknowledged = logs.acknowledged.entry(self.shard).or_default();
        for (origin, position) in positions {
            let known = acknowledged.entry(origin.clone()).or_default();
            *known = (*known).max(*position);
        }
    }
}

impl Sim {
    /// Starts a dispatcher, for the first time or again.
    pub(super) fn start_outlet(&mut self, id: OwnerId, sink: SinkIx) {
        let Some(owner) = self.owners[id].as_mut() else { return };
        let (bindings, window) = (self.plan.bindings.clone(), self.plan.window());
        let from = owner.ledger.publish_from(sink);
        let outlet = &mut owner.outlets[sink];
        outlet.publisher = Some(Publisher::new(sink, bindings, window, from));
        outlet.pace = Some(Pace::new(Dice::seeded(self.dice.below(u64::MAX))));
        self.pump_soon(id, sink);
    }

    pub(super) fn kill_dispatcher(&mut self, id: OwnerId) {
        if self.plan.sinks.is_empty() {
            return;
        }
        let sink = self.dice.below(self.plan.sinks.len() as u64) as usize;
        let Some(outlet) = self.owners[id].as_mut().map(|owner| &mut owner.outlets[sink]) else { return };
        if outlet.publisher.take().is_none() {
            return;
        }
        outlet.generation += 1;
        outlet.wire.clear();
        self.checker.stats.deaths += 1;
        let sink = SinkIx::nth(sink);
        self.tell_later(id, Channel::Dispatcher(sink), 20_000, OwnerMessage::DispatcherBack(sink));
    }

    pub(super) fn hand_over(&mut self, id: OwnerId, commit: &Arc<Commit>) {
        let window = self.plan.window();
        for sink in SinkIx::all(self.plan.sinks.len()) {
            if let Some(owner) = &self.owners[id] {
                owner.outlets[sink].handover.put(commit, window);
            }
            self.pump_soon(id, sink);
        }
    }

    fn pump_soon(&mut self, id: OwnerId, sink: SinkIx) {
        let delay = self.delay(800);
        let Some(owner) = self.owners[id].as_mut() else { return };
        let outlet = &mut owner.outlets[sink];
        if !std::mem::replace(&mut outlet.pumping, true) {
            self.at(self.now + delay, SimEvent::Pump(id, sink));
        }
    }

    /// Performs one step of a dispatcher.
    pub(super) fn pump(&mut self, id: OwnerId, sink: SinkIx) -> Result<(), Violation> {
        let (store_away, sink_away) = (self.now < self.disk.away_until, self.now < self.sinks_away_until);
        let broken = self.plan.faults.sinks && self.now < self.faults_until && self.dice.below(40) == 0;
        let room = usize::try_from(1 + self.dice.below(6)).unwrap_or(1);
        let anew = Pace::new(Dice::seeded(self.dice.below(u64::MAX)));
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let shard = owner.shard;
        let outlet = &mut owner.outlets[sink];
        outlet.pumping = false;
        let (Some(publisher), Some(pace)) = (&mut outlet.publisher, &mut outlet.pace) else { return Ok(()) };
        let waiting = outlet.handover.take();
        publisher.durable(waiting.durable);
        waiting.commits.iter().for_each(|commit| publisher.committed(commit));
        if let Some(page) = publisher.page().filter(|_| !store_away) {
            self.checker.stats.read_back += 1;
            let rows = at_once(self.disk.store.outbox(shard, page.from, page.after, page.commits))?;
            let lacks = publisher.paged(page, &rows) > 0 || rows.is_empty();
            // If this owner is a zombie, its successor may have published more, and removed it.
            if lacks && !owner.zombie {
                return Err(Violation::EventsLost { shard, after: page.after });
            }
        }
        let progress = publisher.progress();
        if broken {
            publisher.restart();
            *pace = anew;
            outlet.generation += 1;
            outlet.wire.clear();
            self.checker.stats.reopened += 1;
        } else if !sink_away {
            let count = room.min(publisher.ready().len());
            for event in &publisher.ready()[..count] {
                let [way, key] = [&*event.topic, event.message.key()].map(|text| u64::from(murmur2(text.as_bytes())));
                let key = (!planted(Defect::NackOvertaken)).then_some(key);
                pace.push(way, key, event.clone());
            }
            publisher.sent(count);
            outlet.wire.extend(pace.due(Duration::from_micros(self.now)));
        }
        let again = !publisher.is_done();
        if let Some(progress) = progress {
            self.happens_later(id, Channel::Dispatcher(sink), 800, protocol::Event::Published(sink, progress));
        }
        self.deliver_soon(id, sink);
        if again {
            self.pump_soon(id, sink);
        }
        Ok(())
    }

    fn deliver_soon(&mut self, id: OwnerId, sink: SinkIx) {
        let delay = self.delay(2_000);
        let Some(owner) = self.owners[id].as_mut() else { return };
        let outlet = &mut owner.outlets[sink];
        if !outlet.wire.is_empty() && !std::mem::replace(&mut outlet.delivering, true) {
            let generation = outlet.generation;
            self.at(self.now + delay, SimEvent::Deliver(id, sink, generation));
        }
    }

    /// Lets the events that were handed over first reach the broker; each of its answers travels by itself.
    pub(super) fn deliver(&mut self, id: OwnerId, sink: SinkIx, generation: u32) -> Result<(), Violation> {
        let count = usize::try_from(1 + self.dice.below(4)).unwrap_or(1);
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let shard = owner.shard;
        let outlet = &mut owner.outlets[sink];
        outlet.delivering = false;
        if outlet.generation == generation {
            let count = count.min(outlet.wire.len());
            let events: Vec<_> = outlet.wire.drain(..count).collect();
            for (sent, event) in events {
                let (plan, name) = (&self.plan, &self.plan.sinks[sink]);
                let refused = FaultPlan::is_refused(plan.seed, plan.faults, name, event.message.id());
                let answer = if refused && !self.healed {
                    Some(SinkAnswer::Refused(event.seq, "simulated".to_owned()))
                } else if plan.faults.sinks && !self.healed && self.dice.below(3) == 0 {
                    self.checker.stats.nacked += 1;
                    None
                } else {
                    self.checker.topics[sink].write(shard, &event)?;
                    self.checker.stats.published += 1;
                    Some(SinkAnswer::Confirmed(event.seq))
                };
                let delay = self.delay(3_000);
                self.at(
                    self.now + delay,
                    SimEvent::Tell(id, OwnerMessage::Answered(sink, generation, (sent, event), answer)),
                );
            }
        }
        self.deliver_soon(id, sink);
        Ok(())
    }

    pub(super) fn answered(
        &mut self,
        id: OwnerId,
        sink: SinkIx,
        generation: u32,
        (sent, event): (PacedMessage, Outgoing),
        answer: Option<SinkAnswer>,
    ) {
        let Some(owner) = self.owners[id].as_mut() else { return };
        let outlet = &mut owner.outlets[sink];
        if outlet.generation == generation
            && let (Some(publisher), Some(pace)) = (&mut outlet.publisher, &mut outlet.pace)
        {
            match answer {
                Some(answer) => {
                    pace.settled(&sent, matches!(answer, SinkAnswer::Confirmed(_)));
                    publisher.answered(vec![answer]);
                }
                None => pace.refused(sent, event, Duration::from_micros(self.now)),
            }
            self.pump_soon(id, sink);
        }
    }
}
