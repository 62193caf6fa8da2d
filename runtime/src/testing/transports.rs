//! Simulated sources: a log that is read from a position, a queue that hands over again what was not acknowledged, and
//! a table. Simulated sinks, and the dispatchers' way to them.
//! In: contents with the time from which they can be read; commits. Out: deliveries, each origin's in order; events as
//! a broker has them, or the first promise about them that was broken.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, pending, ready};

use super::fate::Fate;
use super::owner::{Lane, OwnerId, Told};
use super::world::{Event, World};
use crate::clock::{Clock, Dice, Millis};
use crate::ledger::defect::{Defect, planted};
use crate::ledger::outbox::publisher::Publisher;
use crate::ledger::protocol;
use crate::message::{Position, Positions, ShardNo, murmur2};
use crate::store::memory::{MemoryStore, at_once};
use crate::store::{Commit, Store};
use crate::transport::pace::{Pace, Sent};
use crate::transport::{Answer, Content, Delivery, Outgoing, Source, SourceError, Transport};

type Origins = BTreeMap<Arc<str>, Vec<(Millis, Content)>>;

#[derive(Default)]
struct Shelf {
    origins: BTreeMap<ShardNo, Origins>,
    acknowledged: BTreeMap<ShardNo, Positions>,
}

/// The ways in which a simulated source knows which messages are done.
#[derive(Clone)]
pub(super) enum Kind {
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
    kind: Kind,
    clock: Clock,
    shelf: Arc<Mutex<Shelf>>,
}

impl SimTransport {
    pub(super) fn new(name: &'static str, kind: Kind, clock: Clock) -> Self {
        Self { name, kind, clock, shelf: Arc::default() }
    }

    /// Puts something at the end of an origin; it can be read from `at` on.
    pub(super) fn append(&self, shard: ShardNo, origin: &Arc<str>, at: Millis, content: Content) -> Position {
        let mut shelf = self.shelf();
        let log = shelf.origins.entry(shard).or_default().entry(origin.clone()).or_default();
        let at = log.last().map_or(at, |(last, _)| at.max(*last));
        log.push((at, content));
        Position::new(log.len() as u64, 0)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for SimTransport {
    fn name(&self) -> &str {
        self.name
    }

    fn ordered(&self) -> bool {
        !matches!(self.kind, Kind::Table(_))
    }

    fn open(&self, shard: ShardNo, from: Positions) -> BoxFuture<'_, Result<Box<dyn Source>, SourceError>> {
        let from = match &self.kind {
            Kind::Log => from,
            Kind::Queue => self.shelf().acknowledged.get(&shard).cloned().unwrap_or_default(),
            Kind::Table(_) => Positions::new(),
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
            let shelf = self.transport.shelf();
            for (origin, log) in shelf.origins.get(&self.shard).into_iter().flatten() {
                let read = self.from.get(origin).map_or(0, |from| from.no);
                let there = log.iter().enumerate().skip(usize::try_from(read).unwrap_or(usize::MAX));
                for (at, (_, content)) in there.take_while(|(_, (from, _))| *from <= now) {
                    if found.len() == max {
                        break;
                    }
                    let position = Position::new(at as u64 + 1, 0);
                    self.from.insert(origin.clone(), position);
                    if let Kind::Table(store) = &self.transport.kind
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
        let mut shelf = self.transport.shelf();
        let acknowledged = shelf.acknowledged.entry(self.shard).or_default();
        for (origin, position) in positions {
            let known = acknowledged.entry(origin.clone()).or_default();
            *known = (*known).max(*position);
        }
    }
}

impl World {
    /// Starts a dispatcher, for the first time or again.
    pub(super) fn start_outlet(&mut self, id: OwnerId, sink: u16) {
        let Some(owner) = self.owners[id].as_mut() else { return };
        let (bindings, window) = (self.plan.bindings.clone(), self.plan.window());
        let from = owner.ledger.publish_from(sink);
        let outlet = &mut owner.outlets[usize::from(sink)];
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
        self.witness.stats.deaths += 1;
        let sink = u16::try_from(sink).unwrap_or(0);
        self.told(id, Lane::Dispatcher(sink), 20_000, Told::DispatcherBack(sink));
    }

    pub(super) fn hand_over(&mut self, id: OwnerId, commit: &Arc<Commit>) {
        let window = self.plan.window();
        for sink in 0..u16::try_from(self.plan.sinks.len()).unwrap_or(0) {
            if let Some(owner) = &self.owners[id] {
                owner.outlets[usize::from(sink)].handover.put(commit, window);
            }
            self.pump_soon(id, sink);
        }
    }

    fn pump_soon(&mut self, id: OwnerId, sink: u16) {
        let delay = self.delay(800);
        let Some(owner) = self.owners[id].as_mut() else { return };
        let outlet = &mut owner.outlets[usize::from(sink)];
        if !std::mem::replace(&mut outlet.pumping, true) {
            self.at(self.now + delay, Event::Pump(id, sink));
        }
    }

    /// Performs one step of a dispatcher.
    pub(super) fn pump(&mut self, id: OwnerId, sink: u16) -> Result<(), String> {
        let (store_away, sink_away) = (self.now < self.disk.away_until, self.now < self.sinks_away_until);
        let broken = self.plan.faults.sinks && self.now < self.trouble_until && self.dice.below(40) == 0;
        let room = usize::try_from(1 + self.dice.below(6)).unwrap_or(1);
        let anew = Pace::new(Dice::seeded(self.dice.below(u64::MAX)));
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let shard = owner.shard;
        let outlet = &mut owner.outlets[usize::from(sink)];
        outlet.pumping = false;
        let (Some(publisher), Some(pace)) = (&mut outlet.publisher, &mut outlet.pace) else { return Ok(()) };
        let waiting = outlet.handover.take();
        publisher.durable(waiting.durable);
        waiting.commits.iter().for_each(|commit| publisher.committed(commit));
        if let Some(page) = publisher.page().filter(|_| !store_away) {
            self.witness.stats.read_back += 1;
            let rows = at_once(self.disk.store.outbox(shard, page.from, page.after, page.commits))
                .map_err(|error| error.to_string())?;
            let lacks = publisher.paged(page, &rows) > 0 || rows.is_empty();
            // If this owner is a zombie, its successor may have published more, and removed it.
            if lacks && !owner.zombie {
                return Err(format!("shard {shard}: the store lacks events after {}", page.after));
            }
        }
        let progress = publisher.progress();
        if broken {
            publisher.restart();
            *pace = anew;
            outlet.generation += 1;
            outlet.wire.clear();
            self.witness.stats.reopened += 1;
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
            self.happens_later(id, Lane::Dispatcher(sink), 800, protocol::Event::Published(sink, progress));
        }
        self.deliver_soon(id, sink);
        if again {
            self.pump_soon(id, sink);
        }
        Ok(())
    }

    fn deliver_soon(&mut self, id: OwnerId, sink: u16) {
        let delay = self.delay(2_000);
        let Some(owner) = self.owners[id].as_mut() else { return };
        let outlet = &mut owner.outlets[usize::from(sink)];
        if !outlet.wire.is_empty() && !std::mem::replace(&mut outlet.delivering, true) {
            let generation = outlet.generation;
            self.at(self.now + delay, Event::Deliver(id, sink, generation));
        }
    }

    /// Lets the events that were handed over first reach the broker; each of its answers travels by itself.
    pub(super) fn deliver(&mut self, id: OwnerId, sink: u16, generation: u32) -> Result<(), String> {
        let count = usize::try_from(1 + self.dice.below(4)).unwrap_or(1);
        let Some(owner) = self.owners[id].as_mut() else { return Ok(()) };
        let shard = owner.shard;
        let outlet = &mut owner.outlets[usize::from(sink)];
        outlet.delivering = false;
        if outlet.generation == generation {
            let count = count.min(outlet.wire.len());
            let events: Vec<_> = outlet.wire.drain(..count).collect();
            for (sent, event) in events {
                let (plan, name) = (&self.plan, &self.plan.sinks[usize::from(sink)]);
                let refused = Fate::is_refused(plan.seed, plan.faults, name, event.message.id());
                let answer = if refused && !self.healed {
                    Some(Answer::Refused(event.seq, "simulated".to_owned()))
                } else if plan.faults.sinks && !self.healed && self.dice.below(3) == 0 {
                    self.witness.stats.nacked += 1;
                    None
                } else {
                    self.witness.topics[usize::from(sink)].write(shard, &event)?;
                    self.witness.stats.published += 1;
                    Some(Answer::Confirmed(event.seq))
                };
                let delay = self.delay(3_000);
                self.at(self.now + delay, Event::Told(id, Told::Answered(sink, generation, (sent, event), answer)));
            }
        }
        self.deliver_soon(id, sink);
        Ok(())
    }

    pub(super) fn answered(
        &mut self,
        id: OwnerId,
        (sink, generation): (u16, u32),
        (sent, event): (Sent, Outgoing),
        answer: Option<Answer>,
    ) {
        let Some(owner) = self.owners[id].as_mut() else { return };
        let outlet = &mut owner.outlets[usize::from(sink)];
        if outlet.generation == generation
            && let (Some(publisher), Some(pace)) = (&mut outlet.publisher, &mut outlet.pace)
        {
            match answer {
                Some(answer) => {
                    pace.settled(&sent, matches!(answer, Answer::Confirmed(_)));
                    publisher.answered(vec![answer]);
                }
                None => pace.refused(sent, event, Duration::from_micros(self.now)),
            }
            self.pump_soon(id, sink);
        }
    }
}
