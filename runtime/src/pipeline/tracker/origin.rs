//! How far one origin is taken: the position all of whose predecessors are, and the stretches that are done above it.
//! In: positions as received, in order; numbers of deliveries as they commit, in any order. Out: both, as they are to be
//! stored.

use std::collections::VecDeque;

use super::Received;
use crate::pipeline::defect::{Defect, planted};
use crate::transport::{Position, Stretch};

/// Entries that may lie ahead, besides twice as many as were left, before neighbours that are done are joined.
const SLACK: usize = 1_024;

/// The deliveries of one place; or a stretch of places that are done.
#[derive(Clone, Debug)]
struct Entry {
    /// Number of its first delivery.
    seq: u64,
    from: Position,
    to: Position,
    /// Deliveries that are not done, and one more while not all of them have come.
    open: u32,
    /// Of a message for several services: which, and whether it is done for them.
    services: Vec<(u16, bool)>,
    /// It is done and durable: nobody asks for one of its deliveries any more.
    firm: bool,
}

/// One origin's deliveries that the stored position has not passed.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    entries: VecDeque<Entry>,
    /// Number of the next delivery.
    next: u64,
    /// Entries from the front that are done with the commit under way.
    passed: usize,
    /// Where the stored position stands.
    stored: Option<Position>,
    /// Last position received.
    received: Option<Position>,
    /// Not all of its deliveries have come.
    partly: bool,
    /// What was done above the position when the shard was taken over, and was not received again since.
    restored: VecDeque<Stretch>,
    /// Entries that were left when neighbours were joined last.
    joined: usize,
    /// Stretches among what was received, when it was last asked for.
    stretches: usize,
}

impl Tracker {
    /// A tracker that goes on from a stored position, and what was done above it.
    pub(crate) fn from(stored: Option<Position>, ahead: Vec<Stretch>) -> Self {
        let forgotten = planted(Defect::AheadForgotten);
        let ahead = ahead.into_iter().filter(|of| !forgotten && !(planted(Defect::PartForgotten) && is_part(of)));
        Self { stored, received: stored, restored: ahead.collect(), ..Self::default() }
    }

    /// A delivery was received, for a service by its number in the store.
    pub(crate) fn receive(&mut self, position: Position, service: u16, last: bool) -> Received<u64> {
        let place = position.place();
        let again = self.received.is_some_and(|received| {
            let of_one = self.partly && place == received.place();
            place <= received.place() && !of_one
        });
        if again {
            // All up to there is in hand, or was done: a source that was opened again repeats itself.
            return Received::Passed;
        }
        let first = !self.partly;
        (self.received, self.partly) = (Some(position), !last);
        let seq = self.next;
        self.next += 1;
        let (all, done) = match self.known(position) {
            Some(stretch) if stretch.services.is_empty() => (true, true),
            Some(part) => (false, part.services.contains(&service)),
            None => (false, false),
        };
        if all || done && first && last {
            self.add_done(seq, position);
        } else {
            self.add(seq, position, (service, done), (first, last));
        }
        if done { Received::Known } else { Received::New(seq) }
    }

    /// What was known of a place when the shard was taken over. Places come in order: what lies before this one does not
    /// come any more.
    fn known(&mut self, position: Position) -> Option<&Stretch> {
        while self.restored.front().is_some_and(|stretch| stretch.to.place() < position.place()) {
            self.restored.pop_front();
        }
        let from = self.restored.front()?.from;
        if from.place() == position.place() && from.mark != position.mark && from.mark != 0 && position.mark != 0 {
            // Another record lies there: the log was made anew under its name, and what was done was of the old one.
            self.restored.clear();
        }
        self.restored.front().filter(|stretch| stretch.from.place() <= position.place())
    }

    fn add_done(&mut self, seq: u64, position: Position) {
        match self.entries.back_mut().filter(|back| back.firm) {
            Some(back) => back.to = position,
            None => {
                let entry = Entry { seq, from: position, to: position, open: 0, services: Vec::new(), firm: true };
                self.entries.push_back(entry);
            }
        }
    }

    fn add(&mut self, seq: u64, position: Position, delivery: (u16, bool), (first, last): (bool, bool)) {
        if first {
            let services = if last { Vec::new() } else { vec![delivery] };
            let open = u32::from(!delivery.1) + u32::from(!last);
            let entry = Entry { seq, from: position, to: position, open, services, firm: false };
            self.entries.push_back(entry);
        } else if let Some(entry) = self.entries.back_mut() {
            entry.services.push(delivery);
            entry.open += u32::from(!delivery.1);
            entry.open -= u32::from(last);
        }
    }

    /// The delivery is part of the commit under way.
    pub(crate) fn mark(&mut self, seq: u64) {
        self.set(seq, true);
    }

    /// The commit under way does not count for this delivery.
    pub(crate) fn unmark(&mut self, seq: u64) {
        self.set(seq, false);
        self.passed = 0;
    }

    fn set(&mut self, seq: u64, done: bool) {
        let Some(entry) = self.entry(seq).filter(|entry| !entry.firm) else { return };
        let nth = usize::try_from(seq - entry.seq).unwrap_or(usize::MAX);
        match entry.services.get_mut(nth) {
            Some((_, was)) if *was != done => {
                *was = done;
                entry.open = if done { entry.open - 1 } else { entry.open + 1 };
            }
            None if nth == 0 => entry.open = u32::from(!done),
            Some(_) | None => {}
        }
    }

    fn entry(&mut self, seq: u64) -> Option<&mut Entry> {
        // Where no entries were joined, and no message is for several services, they are numbered without gaps.
        let first = self.entries.front()?.seq;
        let guess = usize::try_from(seq.checked_sub(first)?).ok()?;
        let at = match self.entries.get(guess) {
            Some(entry) if entry.seq == seq => guess,
            Some(_) | None => self.entries.partition_point(|entry| entry.seq <= seq).checked_sub(1)?,
        };
        self.entries.get_mut(at)
    }

    /// The position to store with the commit under way.
    pub(crate) fn position(&mut self) -> Option<Position> {
        while self.entries.get(self.passed).is_some_and(|entry| entry.open == 0) {
            self.passed += 1;
        }
        if planted(Defect::HighestPosition) {
            let done = self.entries.iter().rev().find(|entry| entry.open == 0);
            return done.map(|entry| entry.to).or(self.stored);
        }
        let last = self.passed.checked_sub(1).and_then(|at| self.entries.get(at));
        last.map(|entry| entry.to).or(self.stored)
    }

    /// Whether the position would move with the next commit.
    pub(crate) fn may_move(&self) -> bool {
        self.entries.front().is_some_and(|entry| entry.open == 0)
    }

    /// What is done above that position, to be stored with it; to be asked for after it.
    pub(crate) fn ahead(&mut self) -> Vec<Stretch> {
        let mut ahead: Vec<Stretch> = Vec::new();
        // Whether the last stretch may be gone on with.
        let mut joins = false;
        for entry in self.entries.range(self.passed..) {
            let Entry { from, to, .. } = *entry;
            if entry.open > 0 {
                let done = entry.services.iter().filter(|(_, done)| *done);
                let services: Vec<u16> = done.map(|(service, _)| *service).collect();
                ahead.extend((!services.is_empty()).then_some(Stretch { from, to, services }));
            } else if let Some(last) = ahead.last_mut().filter(|_| joins) {
                last.to = to;
            } else {
                ahead.push(Stretch { from, to, services: Vec::new() });
            }
            joins = entry.open == 0;
        }
        self.stretches = ahead.len();
        for stretch in &self.restored {
            match self.received.filter(|received| stretch.from.place() <= received.place()) {
                Some(received) if stretch.to.place() <= received.place() => {}
                // Its first part was received again.
                Some(received) => match ahead.last_mut().filter(|_| joins) {
                    Some(last) => last.to = stretch.to,
                    None => ahead.push(Stretch { from: received, ..stretch.clone() }),
                },
                None => ahead.push(stretch.clone()),
            }
        }
        ahead
    }

    /// The commit under way is durable.
    pub(crate) fn committed(&mut self) {
        self.stored = self.position();
        self.entries.drain(..self.passed);
        self.passed = 0;
        if self.entries.len() > 2 * self.joined + SLACK {
            self.join();
        }
    }

    /// Joins neighbours that are done: what lies ahead takes no more than what is in hand.
    fn join(&mut self) {
        let mut joined: VecDeque<Entry> = VecDeque::new();
        for mut entry in self.entries.drain(..) {
            entry.firm = entry.open == 0;
            match joined.back_mut().filter(|back| back.firm && entry.firm) {
                Some(back) => back.to = entry.to,
                None => {
                    if entry.firm {
                        entry.services = Vec::new();
                    }
                    joined.push_back(entry);
                }
            }
        }
        self.joined = joined.len();
        self.entries = joined;
    }

    /// Last position received: where a restarted ingress goes on.
    pub(crate) fn received(&self) -> Option<Position> {
        self.received
    }

    /// Stretches among what was received when the last commit was formed.
    pub(crate) fn stretches(&self) -> usize {
        self.stretches
    }
}

fn is_part(stretch: &Stretch) -> bool {
    !stretch.services.is_empty()
}

#[cfg(test)]
mod tests;
