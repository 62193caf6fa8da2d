//! The shard's events beyond its commits: how far each sink is, what was refused, what may be removed.
//! In: dispatchers' progress, operators' retirements, the time. Out: watermarks for commits, dead letters, bounds.

pub mod publisher;

use std::collections::VecDeque;
use std::sync::Arc;

use uuid::Uuid;

use self::publisher::{Progress, Unpublished};
use super::Ledger;
use super::batches::group::{Batch, Group, Outward};
use super::protocol::Action;
use super::routes::DEAD_LETTER;
use crate::clock::{Millis, millis};
use crate::handler::{Asked, Outcome, SentMessage};
use crate::handlers::run::bounded;
use crate::message::{Draft, Message, TakenId, keyed_hash};
use crate::store::{Attempt, Commit, DeadLetter, Event, TakenShard, Watermarks};

/// Places kept to find the commits that all sinks have passed: with more, every other one is dropped.
const PLACES_MAX: usize = 1_024;

/// Of the outbox, what the ledger knows.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Where the configured sinks are, as last told; not all of it is durable.
    told: Vec<u64>,
    /// Since when a watermark waits for a commit to ride on.
    since: Option<Millis>,
    /// It has waited long enough.
    due: bool,
    /// Commits, with the last event up to them.
    places: VecDeque<(u64, u64)>,
}

/// The same, of a whole batch.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    pub(crate) watermarks: Watermarks,
    pub(crate) onward: Vec<(Arc<str>, Message)>,
    pub(crate) again: Vec<Event>,
}

impl Outbox {
    /// The outbox of a shard that was just taken over. A sink that is new there begins with what is emitted from now on.
    pub(crate) fn restore(sinks: &[Arc<str>], taken: &mut TakenShard) -> Self {
        let places = VecDeque::from([(taken.commit_no, taken.outbox_seq)]);
        let mut told = Vec::with_capacity(sinks.len());
        for sink in sinks {
            told.push(*taken.watermarks.entry(sink.clone()).or_insert(taken.outbox_seq));
        }
        Self { told, since: None, due: false, places }
    }
}

impl Ledger {
    /// Where a dispatcher that was just started goes on: the sink's watermark, and the last event that is durable.
    pub fn publish_from(&self, sink: u16) -> (u64, u64) {
        (self.outbox.told[usize::from(sink)], self.outbox_seq)
    }

    /// A sink has come farther. It is written with the next commit, what it refused in the same.
    pub(crate) fn published(&mut self, sink: u16, progress: Progress) {
        let told = &mut self.outbox.told[usize::from(sink)];
        if self.batches.is_released() || progress.watermark <= *told {
            return;
        }
        *told = progress.watermark;
        for unpublished in progress.refused {
            self.bury(sink, unpublished);
        }
        self.batches.loose().outward().reached.insert(sink, progress.watermark);
        self.outbox.since.get_or_insert(self.now);
    }

    /// An event that a sink refused becomes a dead letter of the service that emitted it. Its key goes on.
    fn bury(&mut self, sink: u16, unpublished: Unpublished) {
        let now = self.now;
        let Unpublished { service, event, reason } = unpublished;
        let (sink, topic) = (&self.config.bindings.sinks()[usize::from(sink)], &event.topic);
        let error = bounded(format!("sink {sink} refused it for {topic}: {reason}"));
        let id = TakenId::outgoing(&event.message, &self.config.hash_key);
        let letter = DeadLetter {
            seq: self.next_seq(),
            service: service.clone(),
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
        let index = self.service_of(&service);
        self.tally.dead.push(index);
        self.count("dead_letters", 1);
        let event = self.obituary(&letter);
        let part = &mut self.batches.loose().part;
        part.events.extend(event);
        part.dead.push(letter);
    }

    /// The event that tells of a dead letter, where that is wanted. One about such an event would have no end.
    pub(crate) fn obituary(&self, letter: &DeadLetter) -> Option<Event> {
        let message = &letter.message;
        if !self.config.bindings.tells_of_dead() || message.kind() == DEAD_LETTER {
            return None;
        }
        let id = self.id_from(letter, b"").to_string();
        let attempts = letter.history.last().map_or(0, |attempt| attempt.attempt).to_string();
        let mut headers: Vec<_> = message.headers().collect();
        headers.extend([
            ("deadid", message.id()),
            ("deadtype", message.kind()),
            ("deadsource", message.source()),
            ("deadservice", &*letter.service),
            ("deaderror", letter.error.as_str()),
            ("deadattempts", attempts.as_str()),
        ]);
        let (key, source, payload) = (&*letter.key, "perkey", message.payload());
        let draft = Draft { id: &id, key, kind: DEAD_LETTER, source, time: letter.at, headers: &headers, payload };
        // Larger than the message by a few lines: it was a frame already.
        let message = draft.build_unchecked().ok()?;
        // Another program's service may have no number that this one knows.
        let service = self.service_of(&letter.service).map(|_| letter.service.clone()).unwrap_or_default();
        Some(Event { service, cause: letter.id.digest(), message })
    }

    /// Tells whoever asked for a command that it became a dead letter.
    pub(crate) fn bad_news(&self, letter: &DeadLetter) -> Option<SentMessage> {
        let asked = Asked::of(&letter.message)?;
        let id = self.id_from(letter, b"answered");
        let from = format!("perkey:{}", letter.service);
        asked.answer(&from, id, Outcome::DeadLetter(letter.error.clone()), (&letter.message, letter.at))
    }

    /// An id for what is said of a dead letter: the same for each attempt to write it.
    fn id_from(&self, letter: &DeadLetter, what: &[u8]) -> Uuid {
        let mut seed = letter.id.0.to_vec();
        seed.extend_from_slice(&self.shard.to_le_bytes());
        seed.extend_from_slice(&letter.seq.to_le_bytes());
        seed.extend_from_slice(what);
        Uuid::new_v8(keyed_hash(&seed, &self.config.hash_key))
    }

    /// A refused event is published again, by an operator: behind what its key has emitted since.
    pub(crate) fn publish_again(&mut self, letter: &DeadLetter) {
        let event =
            Event { service: letter.service.clone(), cause: letter.id.digest(), message: letter.message.clone() };
        self.batches.loose().outward().again.push(event);
    }

    /// Gives a sink up, by an operator: it no longer keeps commits from being removed. Says whether it did.
    pub(crate) fn retire(&mut self, sink: &str) -> bool {
        let configured = self.config.bindings.sinks().iter().any(|name| &**name == sink);
        let known = self.watermarks.get_key_value(sink).map(|(name, _)| name.clone());
        match known {
            Some(name) if !configured => {
                self.batches.loose().outward().retired.push(name);
                true
            }
            Some(_) | None => false,
        }
    }

    /// The time at which a watermark has waited long enough for another commit.
    pub(crate) fn tick_outbox(&mut self) {
        let idle = millis(self.config.settings.outbox.idle);
        self.outbox.due |= self.outbox.since.is_some_and(|since| self.now.saturating_sub(since) >= idle);
    }

    /// Whether something of the outbox is to be committed now, whatever else is.
    pub(crate) fn outbox_due(&self) -> bool {
        self.outbox.due
    }

    /// All that waited rides on the batch that is being closed.
    pub(crate) fn outbox_sealed(&mut self) {
        self.outbox.due = false;
        self.outbox.since = None;
    }

    /// What a batch brings beside its parts; it can be sent again.
    pub(crate) fn outward(&self, batch: &Batch) -> Sum {
        let mut sum = Sum { watermarks: self.watermarks.clone(), ..Sum::default() };
        let watermarks = &mut sum.watermarks;
        for outward in batch.groups.iter().filter_map(|group| group.outward.as_deref()) {
            for (sink, reached) in &outward.reached {
                let name = self.config.bindings.sinks()[usize::from(*sink)].clone();
                let watermark = watermarks.entry(name).or_default();
                *watermark = (*watermark).max(*reached);
            }
            watermarks.retain(|name, _| !outward.retired.contains(name));
            sum.again.extend(outward.again.iter().cloned());
            sum.onward.extend(outward.onward.iter().cloned());
        }
        sum
    }

    /// A commit is durable: its events may be published.
    pub(crate) fn publish(&mut self, commit: &Arc<Commit>, events: u64) {
        self.watermarks.clone_from(&commit.watermarks);
        if events > 0 && !self.outbox.told.is_empty() {
            self.out.push(Action::Publish(commit.clone()));
        }
    }

    /// Commits below this number are published to every sink that was ever there and not given up.
    pub(crate) fn published_below(&mut self) -> u64 {
        let places = &mut self.outbox.places;
        places.push_back((self.commit_no, self.outbox_seq));
        if places.len() > PLACES_MAX {
            let mut nth = 0;
            places.retain(|_| {
                nth += 1;
                nth % 2 == 0
            });
        }
        let passed = self.watermarks.values().min().copied().unwrap_or(u64::MAX);
        let mut below = 0;
        // The last place that was passed stays: what comes before the next one is not known.
        while let Some((no, _)) = places.front().filter(|(_, seq)| *seq <= passed) {
            below = no + 1;
            if places.get(1).is_none_or(|(_, seq)| *seq > passed) {
                break;
            }
            places.pop_front();
        }
        below
    }

    /// Whether as many events wait to be published as may.
    pub(crate) fn outbox_full(&self) -> bool {
        let slowest = self.outbox.told.iter().min().copied().unwrap_or(self.outbox_seq);
        self.outbox_seq - slowest.min(self.outbox_seq) >= self.config.settings.outbox.max_pending
    }

    /// Whether a sink that is no longer configured keeps commits.
    pub(crate) fn sink_gone(&self) -> bool {
        self.watermarks.len() > self.outbox.told.len()
    }
}

impl Group {
    pub(crate) fn outward(&mut self) -> &mut Outward {
        self.outward.get_or_insert_default()
    }

    /// About what it takes in a commit.
    pub(crate) fn bytes(&self) -> usize {
        let outward = self.outward.iter().flat_map(|outward| {
            let onward = outward.onward.iter().map(|(_, message)| message);
            onward.chain(outward.again.iter().map(|event| &event.message))
        });
        self.part.bytes() + outward.map(|message| message.frame().len()).sum::<usize>()
    }

    /// Whether nothing but watermarks would be written with it.
    pub(crate) fn only_watermarks(&self) -> bool {
        self.slot.is_none()
            && self.tickets.is_empty()
            && self.part.command.is_none()
            && self.part.dead.is_empty()
            && self.part.undead.is_empty()
            && self.outward.as_ref().is_none_or(|outward| outward.retired.is_empty() && outward.again.is_empty())
    }
}
