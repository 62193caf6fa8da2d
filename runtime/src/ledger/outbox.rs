//! The shard's events beyond its commits: the progress of each sink, refused events, commits that may be removed.
//! In: dispatchers' progress, operators' retirements, the time. Out: watermarks for commits, dead letters, bounds.

pub mod publisher;

use std::collections::VecDeque;
use std::sync::Arc;

use self::publisher::{Progress, Unpublished};
use super::Ledger;
use super::batches::group::{Batch, Group, Outward};
use crate::clock::Millis;
use crate::handlers::run::bounded;
use crate::message::{Message, SinkIx, TakenId};
use crate::store::{Attempt, Commit, DeadLetter, Event, TakenShard, Watermarks};

/// The number of places kept to find the commits that all sinks have passed: above it, every other one is dropped.
const PLACES_MAX: usize = 1_024;

/// The ledger's knowledge of the outbox and its sinks.
#[derive(Debug)]
pub(crate) struct Outbox {
    /// The last event that is durable.
    seq: u64,
    /// The sinks' durable watermarks, with those of sinks that are not configured any more.
    watermarks: Watermarks,
    /// The configured sinks.
    sinks: Arc<[Arc<str>]>,
    /// The sinks' watermarks as last reported; not all of them are durable.
    told: Vec<u64>,
    /// The time since when a watermark waits for a commit to ride on.
    since: Option<Millis>,
    /// True if it has waited long enough.
    due: bool,
    /// Places: commits, each with the last event up to it.
    places: VecDeque<(u64, u64)>,
}

/// A batch's changes beside its parts.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    pub(crate) watermarks: Watermarks,
    pub(crate) onward: Vec<(Arc<str>, Message)>,
    pub(crate) again: Vec<Event>,
}

impl Outbox {
    /// The outbox of a shard that was just taken over. A new sink begins with the events that are emitted from now on.
    pub(crate) fn restore(sinks: Arc<[Arc<str>]>, taken: &mut TakenShard) -> Self {
        let (seq, mut watermarks) = (taken.outbox_seq, std::mem::take(&mut taken.watermarks));
        let told = sinks.iter().map(|sink| *watermarks.entry(sink.clone()).or_insert(seq)).collect();
        let places = VecDeque::from([(taken.commit_no, seq)]);
        Self { seq, watermarks, sinks, told, since: None, due: false, places }
    }

    /// The last event that is durable.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// True if the sink has come farther than was known.
    fn advance(&mut self, sink: SinkIx, watermark: u64, now: Millis) -> bool {
        let told = &mut self.told[sink];
        let farther = watermark > *told;
        if farther {
            *told = watermark;
            self.since.get_or_insert(now);
        }
        farther
    }

    /// Lets a watermark that has waited for `idle` go into a commit of its own.
    pub(crate) fn tick(&mut self, now: Millis, idle: Millis) {
        self.due |= self.since.is_some_and(|since| now.saturating_sub(since) >= idle);
    }

    /// True if something of the outbox is to be committed now, whatever else is.
    pub(crate) fn is_due(&self) -> bool {
        self.due
    }

    /// Takes note that all watermarks that waited go with the batch that is being closed.
    pub(crate) fn sealed(&mut self) {
        self.due = false;
        self.since = None;
    }

    /// A batch's changes beside its parts; it can be sent again.
    pub(crate) fn outward(&self, batch: &Batch) -> Sum {
        let mut sum = Sum { watermarks: self.watermarks.clone(), ..Sum::default() };
        for outward in batch.groups.iter().filter_map(|group| group.outward.as_deref()) {
            for (sink, reached) in &outward.reached {
                let watermark = sum.watermarks.entry(self.sinks[*sink].clone()).or_default();
                *watermark = (*watermark).max(*reached);
            }
            sum.watermarks.retain(|name, _| !outward.retired.contains(name));
            sum.again.extend(outward.again.iter().cloned());
            sum.onward.extend(outward.onward.iter().cloned());
        }
        sum
    }

    /// Takes note of a durable commit; true if it has events to publish.
    pub(crate) fn committed(&mut self, commit: &Commit) -> bool {
        let events = commit.events().count() as u64;
        self.seq += events;
        self.watermarks.clone_from(&commit.watermarks);
        events > 0 && !self.told.is_empty()
    }

    /// The number below which commits are published to every sink that ever existed and was not given up; `commit_no`
    /// is the last commit.
    pub(crate) fn published_below(&mut self, commit_no: u64) -> u64 {
        self.places.push_back((commit_no, self.seq));
        if self.places.len() > PLACES_MAX {
            let mut nth = 0;
            self.places.retain(|_| {
                nth += 1;
                nth % 2 == 0
            });
        }
        let passed = self.watermarks.values().min().copied().unwrap_or(u64::MAX);
        let mut below = 0;
        // The last place that was passed stays: the events before the next one are not known.
        while let Some((no, _)) = self.places.front().filter(|(_, seq)| *seq <= passed) {
            below = no + 1;
            if self.places.get(1).is_none_or(|(_, seq)| *seq > passed) {
                break;
            }
            self.places.pop_front();
        }
        below
    }

    /// True if `most` events wait to be published.
    pub(crate) fn is_full(&self, most: u64) -> bool {
        let slowest = self.told.iter().min().copied().unwrap_or(self.seq);
        self.seq - slowest.min(self.seq) >= most
    }

    /// True if a sink that is no longer configured keeps commits.
    pub(crate) fn has_gone_sink(&self) -> bool {
        self.watermarks.len() > self.told.len()
    }
}

impl Ledger {
    /// The place where a dispatcher that was just started goes on: the sink's watermark, and the last durable event.
    pub fn publish_from(&self, sink: SinkIx) -> (u64, u64) {
        (self.outbox.told[sink], self.outbox.seq)
    }

    /// Takes note that a sink has come farther. That is written with the next commit, together with the events that it
    /// refused.
    pub(crate) fn published(&mut self, sink: SinkIx, progress: Progress) {
        if self.batches.is_released() || !self.outbox.advance(sink, progress.watermark, self.now) {
            return;
        }
        for unpublished in progress.refused {
            self.bury(sink, unpublished);
        }
        self.batches.loose().outward().reached.insert(sink, progress.watermark);
    }

    /// Makes an event that a sink refused a dead letter of the service that emitted it. Its key goes on.
    fn bury(&mut self, sink: SinkIx, unpublished: Unpublished) {
        let now = self.now;
        let Unpublished { service, event, reason } = unpublished;
        let (sink, topic) = (&self.outbox.sinks[sink], &event.topic);
        let error = bounded(format!("sink {sink} refused it for {topic}: {reason}"));
        let id = TakenId::outgoing(&event.message, &self.config.hash_key);
        let index = self.service_of(&service);
        let letter = DeadLetter {
            seq: self.next_seq(),
            service,
            key: event.message.key().into(),
            id,
            at: now,
            taken_at: event.message.time(),
            error: error.clone(),
            holds_key: false,
            history: vec![Attempt { attempt: 1, at: now, generation: 0, error }],
            message: event.message,
        };
        self.outbox.due = true;
        let death = self.dies(index, letter);
        death.write(&mut self.batches.loose().part);
    }

    /// Publishes a refused event again, by an operator: behind the events that its key has emitted since.
    pub(crate) fn publish_again(&mut self, letter: &DeadLetter) {
        let event =
            Event { service: letter.service.clone(), cause: letter.id.digest(), message: letter.message.clone() };
        self.batches.loose().outward().again.push(event);
    }

    /// Gives a sink up, by an operator: it no longer keeps commits from being removed. True if it was known, and is not
    /// configured.
    pub(crate) fn retire(&mut self, sink: &str) -> bool {
        let configured = self.outbox.sinks.iter().any(|name| &**name == sink);
        let known = self.outbox.watermarks.get_key_value(sink).filter(|_| !configured).map(|(name, _)| name.clone());
        let retired = known.is_some();
        self.batches.loose().outward().retired.extend(known);
        retired
    }
}

impl Group {
    pub(crate) fn outward(&mut self) -> &mut Outward {
        self.outward.get_or_insert_default()
    }

    /// Its size in a commit, about.
    pub(crate) fn bytes(&self) -> usize {
        let outward = self.outward.iter().flat_map(|outward| {
            let onward = outward.onward.iter().map(|(_, message)| message);
            onward.chain(outward.again.iter().map(|event| &event.message))
        });
        self.part.bytes() + outward.map(|message| message.frame().len()).sum::<usize>()
    }

    /// True if nothing but watermarks would be written with it.
    pub(crate) fn only_watermarks(&self) -> bool {
        self.slot.is_none()
            && self.tickets.is_empty()
            && self.part.command.is_none()
            && self.part.dead.is_empty()
            && self.part.undead.is_empty()
            && self.outward.as_ref().is_none_or(|outward| outward.retired.is_empty() && outward.again.is_empty())
    }
}
