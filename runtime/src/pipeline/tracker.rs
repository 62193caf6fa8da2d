//! How far an origin is taken: the position all of whose predecessors are. Of a source without order: which rows are.
//! In: positions as received, in order; tickets as they commit, in any order. Out: the position to store, or the rows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;

use super::defect::{Defect, planted};
use super::ledger::SourceInfo;
use crate::transport::{Position, Positions, embedded};

/// Place of a delivery in its origin's tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) source: u16,
    pub(crate) origin: u16,
    pub(crate) seq: u64,
    /// Bytes that its message takes while it is in hand.
    pub(crate) bytes: u32,
}

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
        if planted(Defect::HighestPosition) {
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

/// A row of a source without order.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    /// Deliveries of it: one for each service that takes it.
    received: u32,
    /// All of them were received.
    complete: bool,
    /// Those in the commit under way, and those that are durable.
    marked: u32,
    done: u32,
}

impl Row {
    fn is_passed(&self) -> bool {
        self.complete && self.done + self.marked == self.received
    }
}

/// The rows in hand of a source without order, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct InHand {
    rows: HashMap<u64, Row>,
    /// Rows of the commit under way.
    touched: BTreeSet<u64>,
}

impl InHand {
    /// A delivery was received; `false` when its row is in hand already: the source was opened again.
    fn receive(&mut self, no: u64, last: bool) -> bool {
        let row = self.rows.entry(no).or_default();
        if row.complete {
            return false;
        }
        row.received += 1;
        row.complete = last;
        true
    }

    fn set(&mut self, no: u64, marked: bool) {
        let Some(row) = self.rows.get_mut(&no) else { return };
        row.marked = if marked { row.marked + 1 } else { row.marked.saturating_sub(1) };
        self.touched.insert(no);
    }

    /// The rows that are done with the commit under way.
    fn passed(&self) -> impl Iterator<Item = u64> {
        self.touched.iter().copied().filter(|no| self.rows.get(no).is_some_and(Row::is_passed))
    }

    fn committed(&mut self) {
        for no in std::mem::take(&mut self.touched) {
            let Some(row) = self.rows.get_mut(&no) else { continue };
            if row.is_passed() {
                self.rows.remove(&no);
            } else {
                row.done += std::mem::take(&mut row.marked);
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct SourceTrack {
    /// It is this store's own log: what it holds for a shard is that shard's.
    pub(crate) is_log: bool,
    /// In place of positions, where it has none.
    in_hand: Option<InHand>,
    pub(crate) origins: BTreeMap<Arc<str>, u16>,
    pub(crate) names: Vec<Arc<str>>,
    pub(crate) trackers: Vec<Tracker>,
    /// Deliveries in hand.
    pub(crate) used: usize,
    /// Their bytes.
    pub(crate) bytes: usize,
    /// Credits that are free but not granted, because the source is too far ahead of its position.
    pub(crate) owed: usize,
    /// Positions that the source was last told.
    pub(crate) acknowledged: Positions,
}

impl SourceTrack {
    pub(crate) fn restore(source: &SourceInfo, stored: Positions) -> Self {
        let mut track = Self {
            is_log: &*source.name == embedded::NAME,
            in_hand: (!source.ordered).then(InHand::default),
            origins: BTreeMap::new(),
            names: Vec::new(),
            trackers: Vec::new(),
            used: 0,
            bytes: 0,
            owed: 0,
            acknowledged: Positions::new(),
        };
        for (origin, position) in stored {
            track.add(origin, Tracker::from(Some(position)));
        }
        track
    }

    fn add(&mut self, origin: Arc<str>, tracker: Tracker) -> u16 {
        let ix = u16::try_from(self.names.len()).expect("a source has fewer than 65536 origins");
        self.origins.insert(origin.clone(), ix);
        self.names.push(origin);
        self.trackers.push(tracker);
        ix
    }

    /// A delivery was received: its origin and its place there; `None` when it was passed, or is in hand.
    pub(crate) fn receive(&mut self, origin: &Arc<str>, position: Position, last: bool) -> Option<(u16, u64)> {
        if let Some(in_hand) = self.in_hand.as_mut() {
            return in_hand.receive(position.no, last).then_some((0, position.no));
        }
        let origin = match self.origins.get(origin) {
            Some(ix) => *ix,
            None => self.add(origin.clone(), Tracker::from(None)),
        };
        Some((origin, self.trackers[usize::from(origin)].receive(position, last)?))
    }

    /// The ticket is part of the commit under way.
    pub(crate) fn mark(&mut self, ticket: Ticket) {
        match self.in_hand.as_mut() {
            Some(in_hand) => in_hand.set(ticket.seq, true),
            None => self.trackers[usize::from(ticket.origin)].mark(ticket.seq),
        }
    }

    /// The commit under way does not count for this ticket.
    pub(crate) fn unmark(&mut self, ticket: Ticket) {
        match self.in_hand.as_mut() {
            Some(in_hand) => in_hand.set(ticket.seq, false),
            None => self.trackers[usize::from(ticket.origin)].unmark(ticket.seq),
        }
    }

    /// The commit under way, with this number, is durable.
    pub(crate) fn committed(&mut self, no: u64) {
        self.trackers.iter_mut().for_each(|tracker| tracker.committed(no));
        if let Some(in_hand) = self.in_hand.as_mut() {
            in_hand.committed();
        }
    }

    /// The origins that it has.
    pub(crate) fn origins(&self) -> std::ops::Range<u16> {
        0..if self.in_hand.is_some() { 1 } else { self.names.len() as u16 }
    }

    pub(crate) fn positions(&mut self) -> Positions {
        let read = self.names.iter().zip(&mut self.trackers);
        read.filter_map(|(name, tracker)| Some((name.clone(), tracker.position()?))).collect()
    }

    /// Rows that are done with the commit under way.
    pub(crate) fn rows_passed(&self) -> impl Iterator<Item = u64> {
        self.in_hand.iter().flat_map(InHand::passed)
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
    fn a_row_is_passed_once_when_all_its_services_have_taken_it() {
        let mut rows = InHand::default();
        assert!(rows.receive(7, false) && rows.receive(7, true));
        assert!(!rows.receive(7, false) && !rows.receive(7, true), "in hand");
        rows.set(7, true);
        assert_eq!(rows.passed().next(), None);
        rows.committed();
        rows.set(7, true);
        assert_eq!(rows.passed().collect::<Vec<_>>(), [7]);
        rows.set(7, false);
        assert_eq!(rows.passed().next(), None, "its commit was refused");
        rows.set(7, true);
        rows.committed();
        assert!(rows.receive(7, true), "whatever comes under its number now is new");
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
