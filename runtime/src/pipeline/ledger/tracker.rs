//! How far an origin is taken: the position all of whose predecessors are.
//! In: positions as received, in order; tickets as they commit, in any order. Out: the position to store.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::transport::{Position, Positions};

#[derive(Clone, Copy, Debug)]
struct Entry {
    position: Position,
    /// Last delivery at this position (a message for several services has several).
    last: bool,
    done: bool,
}

/// One origin's deliveries that the stored position has not passed.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    entries: VecDeque<Entry>,
    /// Number of the first entry.
    first: u64,
    /// Entries from the front that are done with the commit under way.
    passed: usize,
    /// Where the stored position stands.
    stored: Option<Position>,
    /// Last position received.
    received: Option<Position>,
    /// Entries that are done and not passed.
    ahead: usize,
    /// No commit at or above this may leave the inbox: it took ids above the position.
    floor: Option<u64>,
}

impl Tracker {
    /// A tracker that goes on from a stored position.
    pub(crate) fn from(stored: Option<Position>) -> Self {
        Self { stored, received: stored, ..Self::default() }
    }

    /// A delivery was received; `None` when its position was passed before.
    pub(crate) fn receive(&mut self, position: Position, last: bool) -> Option<u64> {
        if self.stored.is_some_and(|stored| position <= stored) {
            return None;
        }
        self.received = self.received.max(Some(position));
        self.entries.push_back(Entry { position, last, done: false });
        Some(self.first + self.entries.len() as u64 - 1)
    }

    /// The ticket is part of the commit under way.
    pub(crate) fn mark(&mut self, seq: u64) {
        self.set(seq, true);
    }

    /// The commit under way does not count for this ticket.
    pub(crate) fn unmark(&mut self, seq: u64) {
        self.set(seq, false);
        self.passed = 0;
    }

    fn set(&mut self, seq: u64, done: bool) {
        let at = seq.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(entry) = at.and_then(|at| self.entries.get_mut(at)) {
            if entry.done != done {
                self.ahead = if done { self.ahead + 1 } else { self.ahead - 1 };
            }
            entry.done = done;
        }
    }

    /// The position to store with the commit under way.
    pub(crate) fn position(&mut self) -> Option<Position> {
        while self.entries.get(self.passed).is_some_and(|entry| entry.done) {
            self.passed += 1;
        }
        if super::planted(super::Defect::HighestPosition) {
            let highest = self.entries.iter().filter(|entry| entry.done).map(|entry| entry.position).max();
            return highest.or(self.stored);
        }
        let passed = self.entries.range(..self.passed);
        // A source that was opened again may have handed over what was in hand already.
        passed.rev().find(|entry| entry.last).map(|entry| entry.position).max(self.stored)
    }

    /// The commit under way, with this number, is durable.
    pub(crate) fn committed(&mut self, no: u64) {
        self.stored = self.position();
        for _ in 0..self.passed {
            self.entries.pop_front();
        }
        self.first += self.passed as u64;
        self.ahead -= self.passed;
        self.passed = 0;
        self.floor = if self.ahead == 0 { None } else { self.floor.or(Some(no)) };
    }

    /// Deliveries received and not passed.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Last position received: where a restarted ingress goes on.
    pub(crate) fn received(&self) -> Option<Position> {
        self.received
    }

    /// The oldest commit that may hold ids above the position.
    pub(crate) fn floor(&self) -> Option<u64> {
        self.floor
    }
}

#[derive(Debug)]
pub(crate) struct SourceTrack {
    pub(crate) origins: BTreeMap<Arc<str>, u16>,
    pub(crate) names: Vec<Arc<str>>,
    pub(crate) trackers: Vec<Tracker>,
    /// Deliveries in hand.
    pub(crate) used: usize,
    /// Credits that are free but not granted, because the source is too far ahead of its position.
    pub(crate) owed: usize,
    /// Positions that the source was last told.
    pub(crate) acknowledged: Positions,
}

impl SourceTrack {
    pub(crate) fn restore(stored: Positions, owed: usize) -> Self {
        let mut track = Self {
            origins: BTreeMap::new(),
            names: Vec::new(),
            trackers: Vec::new(),
            used: 0,
            owed,
            acknowledged: Positions::new(),
        };
        for (origin, position) in stored {
            track.add(origin, Tracker::from(Some(position)));
        }
        track
    }

    pub(crate) fn add(&mut self, origin: Arc<str>, tracker: Tracker) -> u16 {
        let ix = u16::try_from(self.names.len()).expect("a source has fewer than 65536 origins");
        self.origins.insert(origin.clone(), ix);
        self.names.push(origin);
        self.trackers.push(tracker);
        ix
    }

    pub(crate) fn origin(&mut self, name: &Arc<str>) -> u16 {
        match self.origins.get(name) {
            Some(ix) => *ix,
            None => self.add(name.clone(), Tracker::from(None)),
        }
    }

    pub(crate) fn positions(&mut self) -> Positions {
        let read = self.names.iter().zip(&mut self.trackers);
        read.filter_map(|(name, tracker)| Some((name.clone(), tracker.position()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(no: u64) -> Position {
        Position::new(no, 0)
    }

    #[test]
    fn a_message_for_two_services_is_passed_when_both_have_taken_it() {
        let mut tracker = Tracker::default();
        let first = tracker.receive(at(1), false).unwrap();
        let second = tracker.receive(at(1), true).unwrap();
        tracker.mark(first);
        assert_eq!(tracker.position(), None);
        tracker.mark(second);
        assert_eq!(tracker.position(), Some(at(1)));
    }

    #[test]
    fn a_refused_commit_takes_its_marks_back() {
        let mut tracker = Tracker::default();
        let first = tracker.receive(at(1), true).unwrap();
        let second = tracker.receive(at(2), true).unwrap();
        tracker.mark(first);
        tracker.mark(second);
        assert_eq!(tracker.position(), Some(at(2)));
        tracker.unmark(first);
        tracker.committed(1);
        assert_eq!((tracker.position(), tracker.floor()), (None, Some(1)));
        tracker.mark(first);
        tracker.committed(2);
        assert_eq!((tracker.position(), tracker.len(), tracker.floor()), (Some(at(2)), 0, None));
        assert_eq!(tracker.receive(at(2), true), None, "passed");
    }

    #[test]
    fn the_position_never_goes_back_when_a_source_repeats_itself() {
        let mut tracker = Tracker::default();
        let first: Vec<_> = (1..=3).map(|no| tracker.receive(at(no), true).unwrap()).collect();
        let again = tracker.receive(at(1), true).unwrap();
        first.into_iter().for_each(|seq| tracker.mark(seq));
        tracker.committed(1);
        tracker.mark(again);
        assert_eq!(tracker.position(), Some(at(3)));
    }

    proptest! {
        #[test]
        fn the_position_is_the_longest_done_prefix(order in Just((0u64..40).collect::<Vec<_>>()).prop_shuffle(), cuts: [bool; 40]) {
            let mut tracker = Tracker::default();
            for no in 1..=40 {
                tracker.receive(at(no), true).unwrap();
            }
            let mut done = [false; 40];
            for (step, seq) in order.into_iter().enumerate() {
                tracker.mark(seq);
                done[seq as usize] = true;
                if cuts[step] {
                    tracker.committed(step as u64 + 1);
                }
                let prefix = done.iter().take_while(|done| **done).count() as u64;
                prop_assert_eq!(tracker.position(), (prefix > 0).then(|| at(prefix)));
            }
        }
    }
}
