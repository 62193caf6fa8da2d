//! The checker, which sees every commit as it is written and checks it against everything written before.
//! In: commits, acknowledgements, deliveries. Out: the first promise that was broken.

mod above;
mod letters;
mod seen;
mod timers;
pub(super) mod topic;
mod violation;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

pub use self::seen::Seen;
use self::topic::Topic;
pub(super) use self::violation::Violation;
use super::fault_plan::FaultPlan;
use super::plan::{INTAKE, PROBE, SOURCES, SimPlan};
use crate::AfterDeadLetter;
use crate::clock::Millis;
use crate::message::{Message, Position, Positions, ServiceIx, ShardNo, SinkIx, SourceIx, Taken, TakenId};
use crate::store::{Commit, Epoch, Part, PendingKind};
use crate::transport::embedded;

/// A turn that counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// The service.
    pub service: Arc<str>,
    /// The key.
    pub key: String,
    /// The message's id.
    pub id: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum MessageEnd {
    #[default]
    Open,
    Effect,
    Dead,
    /// Dead once, and run again.
    Replayed,
    Discarded,
}

/// A place that a source delivers from.
#[derive(Clone, Debug)]
pub(super) struct DeliveryPlace {
    pub(super) shard: ShardNo,
    pub(super) source: SourceIx,
    pub(super) origin: Arc<str>,
    pub(super) position: Position,
}

impl DeliveryPlace {
    /// The log that it is in.
    fn track(&self) -> (ShardNo, SourceIx, Arc<str>) {
        (self.shard, self.source, self.origin.clone())
    }
}

/// One message for one service.
#[derive(Debug)]
struct Expected {
    service: Option<ServiceIx>,
    key: String,
    id: String,
    /// The place where it was first delivered: shard, source, origin, position.
    place: DeliveryPlace,
    /// True if it has copies elsewhere, so that its place says nothing about its order.
    unordered: bool,
    /// True if it may become a dead letter although its fault plan does not ask for that.
    may_die: bool,
    end: MessageEnd,
}

/// The row of a turn that counted.
#[derive(serde::Deserialize)]
struct Probe {
    service: Arc<str>,
    key: String,
    id: String,
}

#[derive(Debug, Default)]
struct Track {
    entries: Vec<(Position, Vec<TakenId>)>,
    /// The number of entries from the front that are durable; without order, `numbers` are.
    passed: usize,
    numbers: HashSet<u64>,
}

/// The checker of a simulation.
#[derive(Debug, Default)]
pub(super) struct Checker {
    pub(super) stats: Seen,
    pub(super) effects: Vec<Effect>,
    pub(super) epochs: HashMap<ShardNo, Epoch>,
    expected: HashMap<TakenId, Expected>,
    names: HashMap<(Arc<str>, String, String), TakenId>,
    tracks: HashMap<(ShardNo, SourceIx, Arc<str>), Track>,
    taken: HashSet<TakenId>,
    waiting: HashMap<(ShardNo, u64), TakenId>,
    dead: HashMap<(ShardNo, u64), (TakenId, bool)>,
    held: HashMap<(ServiceIx, String), u64>,
    last: HashMap<(ServiceIx, String, ShardNo, SourceIx, Arc<str>), Position>,
    timers: timers::SetTimers,
    /// The messages that were passed on to their shards, in a log row.
    onward: HashSet<TakenId>,
    healed: bool,
    /// The topics, by sink.
    pub(super) topics: Vec<Topic>,
}

impl Checker {
    /// A source has these messages at a place, one for each service that takes it; none where no binding wants it.
    pub(super) fn delivered(
        &mut self,
        plan: &SimPlan,
        place: DeliveryPlace,
        messages: &[(Option<ServiceIx>, Message, bool)],
    ) {
        let mut ids = Vec::new();
        for (service, message, may_die) in messages {
            let id = plan.taken_id(*service, message);
            ids.push(id);
            let known = self.expected.entry(id).or_insert_with(|| Expected {
                service: *service,
                key: message.key().to_owned(),
                id: message.id().to_owned(),
                place: place.clone(),
                unordered: SOURCES[place.source] == INTAKE,
                may_die: *may_die,
                end: MessageEnd::Open,
            });
            let here = known.place.track() == place.track();
            known.unordered |= !here || SOURCES[place.source] == INTAKE;
            if let Some(service) = service {
                let name = plan.services[*service].name.clone();
                self.names.insert((name, message.key().to_owned(), message.id().to_owned()), id);
            }
        }
        self.tracks.entry(place.track()).or_default().entries.push((place.position, ids));
    }

    /// A commit has a message for a shard: an event, or a message whose source handed it to another shard. The latter
    /// keeps its first place.
    fn logged(&mut self, plan: &SimPlan, place: DeliveryPlace, service: Option<ServiceIx>, message: Message) {
        let id = plan.taken_id(service, &message);
        if !self.expected.contains_key(&id) {
            return self.delivered(plan, place, &[(service, message, false)]);
        }
        self.stats.rekeyed += 1;
        self.onward.insert(id);
        self.tracks.entry(place.track()).or_default().entries.push((place.position, vec![id]));
    }

    /// Rows of a table without order are gone: their messages must be durable.
    fn taken_in(&mut self, shard: ShardNo, numbers: &[u64]) -> Result<(), Violation> {
        let Some(track) = self.tracks.get_mut(&(shard, SourceIx::nth(3), INTAKE.into())) else { return Ok(()) };
        for no in numbers {
            let found = track.entries.iter().find(|(position, _)| position.no == *no);
            let lost = found
                .and_then(|(_, ids)| ids.iter().find(|id| !self.taken.contains(*id) && !self.onward.contains(*id)));
            if lost.is_some() {
                return Err(Violation::IntakeRowLost(*no));
            }
            track.numbers.insert(*no);
        }
        track.passed = track.numbers.len();
        Ok(())
    }

    /// A handler failed by itself: its message may become a dead letter.
    pub(super) fn failed(&mut self, plan: &SimPlan, service: ServiceIx, message: &Message) {
        if let Some(expected) = self.expected.get_mut(&plan.taken_id(Some(service), message)) {
            expected.may_die = true;
        }
    }

    /// From now on no fault strikes.
    pub(super) fn heal(&mut self) {
        self.healed = true;
    }

    /// A commit was written.
    pub(super) fn committed(&mut self, plan: &SimPlan, commit: &Commit) -> Result<(), Violation> {
        let (shard, no) = (commit.shard, commit.no);
        let at = |violation| Violation::Commit { shard, no, violation: Box::new(violation) };
        self.stats.commits += 1;
        if self.epochs.get(&shard) != Some(&commit.epoch) {
            return Err(at(Violation::StaleEpoch(commit.epoch)));
        }
        self.topics.resize_with(plan.sinks.len(), Topic::default);
        for (sink, topic) in SinkIx::all(plan.sinks.len()).zip(&mut self.topics) {
            topic.committed(commit, |event| plan.bindings.topic(sink, event).is_some());
            let watermark = commit.watermarks.get(&plan.sinks[sink]).copied();
            topic.reached(shard, watermark).map_err(at)?;
        }
        for part in &commit.parts {
            self.part(plan, shard, commit.at, part).map_err(at)?;
        }
        for row in &commit.log {
            let messages = embedded::decode(row.messages.clone()).map_err(|error| at(error.into()))?;
            for (index, (service, message)) in (0..).zip(messages) {
                let origin = Arc::from(shard.to_string());
                let service = plan.handlers.index_of(&service);
                let place = DeliveryPlace {
                    shard: row.target,
                    source: SourceIx::FIRST,
                    origin,
                    position: Position::new(no, index),
                };
                self.logged(plan, place, service, message);
            }
        }
        self.taken_in(shard, &commit.intake).map_err(at)?;
        self.above(commit).map_err(at)?;
        for (source, positions) in &commit.positions {
            self.reached(shard, source, positions, true).map_err(at)?;
        }
        Ok(())
    }

    /// All of a source up to these positions must be durable; those that are stored never go back.
    pub(super) fn reached(
        &mut self,
        shard: ShardNo,
        source: &str,
        positions: &Positions,
        stored: bool,
    ) -> Result<(), Violation> {
        let Some(source) = SOURCES.iter().position(|name| *name == source) else { return Ok(()) };
        for (origin, position) in positions {
            let place = (shard, SourceIx::nth(source), origin.clone());
            let Some(track) = self.tracks.get_mut(&place) else { continue };
            if track.passed > 0 && track.entries[track.passed - 1].0 > *position && stored {
                let (source_name, origin, position) = (SOURCES[source], origin.clone(), *position);
                return Err(Violation::PositionBack { source_name, origin, position });
            }
            while let Some((at, ids)) = track.entries.get(track.passed).filter(|(at, _)| at <= position) {
                if let Some(lost) = ids.iter().find(|id| !self.taken.contains(*id) && !self.onward.contains(*id)) {
                    let id = self.expected.get(lost).map(|expected| expected.id.clone()).unwrap_or_default();
                    let (source_name, origin, position) = (SOURCES[source], origin.clone(), *position);
                    return Err(Violation::PassedOver { source_name, origin, position, id, at: *at });
                }
                track.passed += 1;
            }
        }
        Ok(())
    }

    fn part(&mut self, plan: &SimPlan, shard: ShardNo, at: Millis, part: &Part) -> Result<(), Violation> {
        for Taken { id, .. } in &part.ids {
            if !self.taken.insert(*id) {
                return Err(Violation::TakenTwice(self.name(id)));
            }
        }
        // The messages that something becomes of in this part, to check what must come together.
        let mut ends: HashSet<TakenId> = HashSet::new();
        for seq in &part.undead {
            self.undead(shard, *seq, part)?;
        }
        for row in part.rows.iter().filter(|row| row.table.name == PROBE.name) {
            ends.insert(self.effect(plan, row.row.as_deref().unwrap_or_default())?);
        }
        for letter in &part.dead {
            if letter.id.is_outgoing() {
                self.stats.unpublished += 1;
                self.dead.insert((shard, letter.seq), (letter.id, false));
                continue;
            }
            ends.insert(letter.id);
            let service = plan.handlers.index_of(&letter.service);
            self.died(plan, shard, letter, service)?;
        }
        for row in &part.pending {
            ends.insert(row.id);
            self.stats.spilled += u64::from(row.kind == PendingKind::Spilled);
            if self.waiting.insert((shard, row.seq), row.id).is_some_and(|other| other != row.id) {
                return Err(Violation::RowWrittenOver { seq: row.seq, name: self.name(&row.id) });
            }
        }
        for seq in &part.settled {
            let Some(id) = self.waiting.remove(&(shard, *seq)) else {
                return Err(Violation::NoRow(*seq));
            };
            if !ends.contains(&id) {
                return Err(Violation::SettledForNothing(self.name(&id)));
            }
        }
        self.timed(plan, shard, at, part, &ends)?;
        match part.ids.iter().map(|taken| &taken.id).find(|id| !ends.contains(*id)) {
            Some(id) => Err(Violation::TakenForNothing(self.name(id))),
            None => Ok(()),
        }
    }

    fn effect(&mut self, plan: &SimPlan, probe: &str) -> Result<TakenId, Violation> {
        let Probe { service, key, id } = serde_json::from_str(probe)?;
        let taken = self.names.get(&(service.clone(), key, id.clone())).copied();
        let Some((taken, expected)) = taken.and_then(|id| Some((id, self.expected.get_mut(&id)?))) else {
            return Err(Violation::EffectNotDelivered(id));
        };
        if !self.taken.contains(&taken) {
            return Err(Violation::EffectNotTaken { service, id });
        }
        let Some(index) = expected.service else { return Err(Violation::EffectOfNone(id)) };
        let holds = plan.services[index].after_dead_letter == AfterDeadLetter::HoldKey;
        let planned = FaultPlan::of(plan.seed, plan.faults, &service, &id);
        if planned.is_deadly() && !self.healed {
            return Err(Violation::EffectOfDeadly { service, id, planned });
        }
        let ordered = match expected.end {
            MessageEnd::Open => true,
            MessageEnd::Replayed => holds,
            end => return Err(Violation::EffectAfterEnd { service, id, end: format!("{end:?}") }),
        };
        expected.end = MessageEnd::Effect;
        let key = (index, expected.key.clone());
        if self.held.contains_key(&key) {
            return Err(Violation::EffectOfHeld { service, id, key: key.1 });
        }
        if ordered && !expected.unordered {
            let DeliveryPlace { shard, source, origin, position } = expected.place.clone();
            let last = self.last.entry((key.0, key.1, shard, source, origin)).or_default();
            if position <= *last {
                return Err(Violation::EffectOutOfOrder { service, id, position, last: *last });
            }
            *last = position;
        }
        self.effects.push(Effect { service, key: expected.key.clone(), id });
        Ok(taken)
    }

    fn name(&self, id: &TakenId) -> String {
        self.expected.get(id).map_or_else(|| format!("{id:?}"), |expected| format!("{:?}", expected.id))
    }

    /// The first thing that is not as it must be when everything is done.
    pub(super) fn unfinished(&self) -> Option<String> {
        let later = self.scheduled();
        let open = self.expected.iter().filter(|(id, _)| !later.contains(*id)).map(|(_, expected)| expected);
        if let Some(open) = open.into_iter().find(|open| matches!(open.end, MessageEnd::Open | MessageEnd::Replayed)) {
            let DeliveryPlace { shard, source, origin, position } = &open.place;
            let place = (shard, source, origin, position);
            let (id, key) = (&open.id, &open.key);
            return Some(format!("{id:?} of key {key:?} ({place:?}) had no effect and is no dead letter"));
        }
        if let Some(id) = self.waiting.values().next() {
            return Some(format!("the row of {} still waits", self.name(id)));
        }
        let behind = self.tracks.iter().find(|(_, track)| track.passed < track.entries.len());
        behind.map(|((shard, source, origin), track)| {
            let name = SOURCES[*source];
            format!("shard {shard}: {name}/{origin} stands at {} of {} deliveries", track.passed, track.entries.len())
        })
    }

    /// True if all that the sources have is durable.
    pub(super) fn all_passed(&self) -> bool {
        self.tracks.values().all(|track| track.passed == track.entries.len())
    }

    /// Keys that dead letters hold, ordered.
    pub(super) fn held(&self) -> BTreeMap<(ServiceIx, String), u64> {
        self.held.iter().map(|(key, seq)| (key.clone(), *seq)).collect()
    }
}
