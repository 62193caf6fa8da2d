//! A shard's events that a sink still has to get, and the sink's progress. Pure.
//! In: commits as they become durable, pages of the store, the sink's answers. Out: events in sequence; the watermark.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::clock::Millis;
use crate::ledger::defect::{Defect, planted};
use crate::ledger::routes::Bindings;
use crate::message::SinkIx;
use crate::store::query::EventRow;
use crate::store::{Commit, Event};
use crate::transport::{Outgoing, SinkAnswer};

/// The number of commits in one page of the store, at most.
const PAGE_COMMITS_MAX: usize = 256;

/// The bounds on a shard's events that are on their way to a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Events (`outbox.window`).
    pub events: usize,
    /// Their bytes; a larger one goes alone.
    pub bytes: usize,
}

/// An event that its sink will never take.
#[derive(Clone, Debug)]
pub struct Unpublished {
    /// The service that emitted it.
    pub service: Arc<str>,
    /// The event, and its topic.
    pub event: Outgoing,
    /// The sink's reason.
    pub reason: String,
}

/// The progress of a sink.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The last event all of whose predecessors are confirmed, refused, or not wanted there.
    pub watermark: u64,
    /// The refused ones that it has passed just now.
    pub refused: Vec<Unpublished>,
}

/// A page of the store that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// The commit from which events are looked for; 0 if that is not known.
    pub from: u64,
    /// The number above which events are wanted.
    pub after: u64,
    /// The number of commits' worth.
    pub commits: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeliveryStage {
    Sent,
    Confirmed,
    Refused,
}

#[derive(Debug)]
struct Undelivered {
    service: Arc<str>,
    stage: DeliveryStage,
    event: Outgoing,
    reason: String,
}

/// One shard's events on their way to one sink.
#[derive(Debug)]
pub struct Publisher {
    sink: SinkIx,
    bindings: Arc<Bindings>,
    window: Window,
    /// The bytes of the events that were handed to the sink, or are to be.
    bytes: usize,
    /// The last event that is known to be durable.
    durable: u64,
    /// The last event that was looked at: those up to it are queued, or nobody wants them here.
    seen: u64,
    /// The commit that holds it, as far as known.
    commit: u64,
    /// The events that were handed to the sink and are not passed by the watermark.
    sent: VecDeque<Undelivered>,
    /// The events to be handed to the sink.
    ready: VecDeque<Outgoing>,
    services: VecDeque<Arc<str>>,
    watermark: u64,
    /// The number of commits in the next page.
    page: usize,
}

impl Publisher {
    /// A publisher that goes on after `watermark`; events up to `durable` are in the store.
    pub fn new(sink: SinkIx, bindings: Arc<Bindings>, window: Window, (watermark, durable): (u64, u64)) -> Self {
        Self {
            sink,
            bindings,
            window,
            bytes: 0,
            durable,
            seen: watermark,
            commit: 0,
            sent: VecDeque::new(),
            ready: VecDeque::new(),
            services: VecDeque::new(),
            watermark,
            page: 1,
        }
    }

    /// Takes up a durable commit if it follows the last one and there is room; otherwise it is read back from the store
    /// when its turn comes.
    pub fn committed(&mut self, commit: &Commit) {
        let next = self.seen + 1;
        for (seq, event) in (commit.first_seq..).zip(commit.events()) {
            self.durable = self.durable.max(seq);
            if commit.first_seq <= next && seq > self.seen && self.has_room() {
                self.look_at(seq, event, commit.no);
            }
        }
    }

    /// Takes note that events up to `seq` are durable, which were not handed over themselves.
    pub fn durable(&mut self, seq: u64) {
        self.durable = self.durable.max(seq);
    }

    /// The page of the store to be read next, if one is.
    pub fn page(&self) -> Option<Page> {
        let behind = self.seen < self.durable;
        // In large steps: with every confirmed event there is room for one more.
        let room = self.sent.len() <= self.window.events / 2 && self.bytes <= self.window.bytes / 2;
        let room = room && self.ready.is_empty();
        (behind && room).then_some(Page { from: self.commit, after: self.seen, commits: self.page })
    }

    /// Makes the next page smaller, after one could not be read: it may have been too large.
    pub fn unreadable(&mut self) {
        self.page = (self.page / 2).max(1);
    }

    /// Takes up the store's rows of a page, in order. Returns the number of events that were missing.
    pub(crate) fn paged(&mut self, asked: Page, rows: &[EventRow]) -> u64 {
        if asked.after != self.seen {
            return 0;
        }
        let mut missing = 0;
        for row in rows {
            if row.seq > self.durable || !self.has_room() {
                break;
            }
            missing += row.seq - self.seen - 1;
            self.look_at(row.seq, &row.event, row.commit.no);
        }
        // As many commits as will about fill half the window.
        let commits = rows.last().map_or(1, |last| last.commit.no - rows[0].commit.no + 1);
        let bytes: u64 = rows.iter().map(|row| row.event.message.frame().len() as u64).sum();
        let by_events = self.window.events as u64 / 2 * commits / (rows.len() as u64).max(1);
        let by_bytes = (self.window.bytes as u64 / 2).saturating_mul(commits) / bytes.max(1);
        let room = by_events.min(by_bytes);
        self.page = usize::try_from(room).unwrap_or(1).clamp(1, PAGE_COMMITS_MAX);
        if self.seen >= self.durable {
            // The next events may be of another size.
            self.page = 1;
        }
        missing
    }

    fn has_room(&self) -> bool {
        let events = self.sent.len() + self.ready.len();
        events < self.window.events && (self.bytes < self.window.bytes || events == 0)
    }

    fn look_at(&mut self, seq: u64, event: &Event, commit: u64) {
        self.seen = seq;
        self.commit = commit;
        if let Some(topic) = self.bindings.topic(self.sink, event) {
            let (topic, message) = (topic.clone(), event.message.clone());
            self.bytes += message.frame().len();
            self.services.push_back(event.service.clone());
            self.ready.push_back(Outgoing { seq, topic, message });
        }
    }

    /// The events to be handed to the sink, in order.
    pub fn ready(&mut self) -> &[Outgoing] {
        self.ready.make_contiguous()
    }

    /// Takes note that the sink took `count` of the ready events.
    pub fn sent(&mut self, count: usize) {
        for (event, service) in self.ready.drain(..count).zip(self.services.drain(..count)) {
            self.sent.push_back(Undelivered { service, event, stage: DeliveryStage::Sent, reason: String::new() });
        }
    }

    /// True if the sink owes answers.
    pub fn awaits_answers(&self) -> bool {
        self.sent.iter().any(|entry| entry.stage == DeliveryStage::Sent)
    }

    /// Takes the sink's answers, in any order; answers to other events are passed over. Returns the number of confirmed
    /// ones.
    pub fn answered(&mut self, answers: Vec<SinkAnswer>) -> u64 {
        let mut confirmed = 0;
        for answer in answers {
            let seq = match &answer {
                SinkAnswer::Confirmed(seq) | SinkAnswer::Refused(seq, _) => *seq,
            };
            let Ok(at) = self.sent.binary_search_by_key(&seq, |entry| entry.event.seq) else { continue };
            let entry = &mut self.sent[at];
            match answer {
                SinkAnswer::Confirmed(_) => {
                    confirmed += u64::from(entry.stage == DeliveryStage::Sent);
                    entry.stage = DeliveryStage::Confirmed;
                }
                SinkAnswer::Refused(_, reason) => {
                    entry.stage = DeliveryStage::Refused;
                    entry.reason = reason;
                }
            }
        }
        confirmed
    }

    /// The sink's progress, if it is farther than it was the last time.
    pub fn progress(&mut self) -> Option<Progress> {
        let mut refused = Vec::new();
        while let Some(entry) = self.sent.pop_front_if(|entry| entry.stage != DeliveryStage::Sent) {
            self.bytes -= entry.event.message.frame().len();
            if entry.stage == DeliveryStage::Refused {
                let Undelivered { service, event, reason, .. } = entry;
                refused.push(Unpublished { service, event, reason });
            }
        }
        let unsettled = self.sent.front().map(|entry| &entry.event).or(self.ready.front());
        let mut watermark = unsettled.map_or(self.seen, |event| event.seq - 1);
        if planted(Defect::WatermarkTooHigh) {
            watermark = (watermark + 1).min(self.seen);
        }
        if watermark <= self.watermark {
            return None;
        }
        self.watermark = watermark;
        Some(Progress { watermark, refused })
    }

    /// Starts again after the sink was reopened: everything behind the watermark is read and handed over again.
    pub fn restart(&mut self) {
        let from = (self.watermark, self.durable);
        *self = Self::new(self.sink, self.bindings.clone(), self.window, from);
    }

    /// Events that wait to be published, those that nobody has looked at included.
    pub fn pending(&self) -> u64 {
        self.durable - self.seen + (self.sent.len() + self.ready.len()) as u64
    }

    /// The time at which the oldest of them was emitted, as far as known.
    pub fn oldest(&self) -> Option<Millis> {
        let sent = self.sent.iter().find(|entry| entry.stage == DeliveryStage::Sent).map(|entry| &entry.event);
        sent.or(self.ready.front()).map(|event| event.message.time())
    }

    /// True if nothing is left to be published.
    pub fn is_done(&self) -> bool {
        self.watermark == self.durable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handlers::Handlers;
    use crate::message::Draft;
    use crate::settings::Settings;
    use crate::store::query::CommitRow;

    /// Commits of one event each.
    fn rows(numbers: std::ops::RangeInclusive<u64>) -> Vec<EventRow> {
        let row = |no| EventRow {
            commit: CommitRow { shard: 0, no, epoch: 1, at: 0 },
            seq: no,
            event: Event {
                service: "s".into(),
                cause: [0; 16],
                message: Draft { id: "e", ..Draft::default() }.build_unchecked().unwrap(),
            },
        };
        numbers.map(row).collect()
    }

    #[test]
    fn a_page_that_cannot_be_read_is_halved_and_begins_small_after_the_last() {
        let bindings = Arc::new(Bindings::new(&Settings::default(), Handlers::new()).unwrap());
        let mut publisher = Publisher::new(SinkIx::FIRST, bindings, Window { events: 100, bytes: usize::MAX }, (0, 10));
        let commits = |publisher: &Publisher| publisher.page().map(|page| page.commits);
        assert_eq!(commits(&publisher), Some(1));
        let first = publisher.page().unwrap();
        assert_eq!(publisher.paged(first, &rows(1..=1)), 0);
        assert_eq!(commits(&publisher), Some(50), "half a window's worth");
        for halved in [25, 12, 6, 3, 1, 1] {
            publisher.unreadable();
            assert_eq!(commits(&publisher), Some(halved));
        }
        let rest = publisher.page().unwrap();
        assert_eq!(publisher.paged(rest, &rows(2..=10)), 0);
        assert_eq!(commits(&publisher), None, "all is known");
        publisher.durable(11);
        assert_eq!(commits(&publisher), Some(1), "what comes next may be larger");
    }

    #[test]
    fn what_is_on_its_way_is_bounded_by_its_bytes_too() {
        let route = crate::settings::Publish {
            service: "*".to_owned(),
            kind: "*".to_owned(),
            sink: "kafka".to_owned(),
            topic: "t".to_owned(),
        };
        let settings = Settings { publish: vec![route], ..Settings::default() };
        let bindings = Arc::new(Bindings::new(&settings, Handlers::new()).unwrap());
        let mut all = rows(1..=9);
        let payload = vec![0; 1_000];
        for row in &mut all {
            row.event.message = Draft { id: "e", payload: &payload, ..Draft::default() }.build_unchecked().unwrap();
        }
        let mut publisher = Publisher::new(SinkIx::FIRST, bindings, Window { events: 100, bytes: 2_500 }, (0, 9));
        let read = |publisher: &mut Publisher| {
            let page = publisher.page().unwrap();
            let after = usize::try_from(page.after).unwrap();
            publisher.paged(page, &all[after..]);
            publisher.ready().len()
        };
        assert_eq!(read(&mut publisher), 3, "the one that fills it is the last");
        publisher.sent(3);
        assert_eq!(publisher.page(), None, "it is full");
        publisher.answered(vec![SinkAnswer::Confirmed(1), SinkAnswer::Confirmed(3)]);
        publisher.progress();
        assert_eq!(publisher.page(), None, "what waits for its predecessors is still held");
        publisher.answered(vec![SinkAnswer::Confirmed(2)]);
        publisher.progress();
        assert_eq!(read(&mut publisher), 3);
        let mut narrow =
            Publisher::new(SinkIx::FIRST, Arc::clone(&publisher.bindings), Window { events: 100, bytes: 1 }, (0, 9));
        assert_eq!(read(&mut narrow), 1, "one at least");
    }
}
