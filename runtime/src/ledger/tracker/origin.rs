//! The progress of one origin: the position up to which all is taken, and the stretches that are done above it.
//! In: positions as received, in order; numbers of deliveries as they commit, in any order. Out: position and
//! stretches, as they are to be stored.

use std::collections::VecDeque;

use super::Received;
use crate::ledger::defect::{Defect, planted};
use crate::message::{Position, Stretch};

/// The entries that may lie ahead before done neighbours are joined, besides twice as many as the last join left.
const SLACK: usize = 1_024;

/// The deliveries of one place; or a stretch of places that are done.
#[derive(Clone, Debug)]
struct Span {
    /// Number of its first delivery.
    seq: u64,
    from: Position,
    to: Position,
    /// The number of deliveries that are not done, and one more while not all of them have come.
    open: u32,
    /// The services of a message for several, each with true if it is done for that one.
    services: Vec<(u16, bool)>,
    /// True if it is done and durable: nobody asks for one of its deliveries any more.
    firm: bool,
}

/// One origin's deliveries that the stored position has not passed.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    entries: VecDeque<Span>,
    /// Number of the next delivery.
    next: u64,
    /// Entries from the front that are done with the commit under way.
    passed: usize,
    /// The stored position.
    stored: Option<Position>,
    /// Last position received.
    received: Option<Position>,
    /// True if not all deliveries of that position have come.
    partly: bool,
    /// The stretches that were done above the position at the takeover and were not received again since.
    restored: VecDeque<Stretch>,
    /// The number of entries that the last join left.
    joined: usize,
    /// The number of stretches among received deliveries, as last worked out.
    stretches: usize,
}

impl Tracker {
    /// A tracker that goes on from a stored position, and the stretches done above it.
    pub(crate) fn from(stored: Option<Position>, ahead: Vec<Stretch>) -> Self {
        let forgotten = planted(Defect::AheadForgotten);
        let ahead = ahead.into_iter().filter(|of| !(forgotten || planted(Defect::PartForgotten) && is_part(of)));
        Self { stored, received: stored, restored: ahead.collect(), ..Self::default() }
    }

    /// Receives a delivery for a service, by the service's number in the store.
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

    /// The stretch of a place, as known at the takeover. Places come in order: stretches before this one are dropped.
    fn known(&mut self, position: Position) -> Option<&Stretch> {
        while self.restored.front().is_some_and(|stretch| stretch.to.place() < position.place()) {
            self.restored.pop_front();
        }
        let from = self.restored.front()?.from;
        if from.place() == position.place() && from.mark != position.mark && from.mark != 0 && position.mark != 0 {
            // Another record is there: the log was created again under its name, and the stretches were of the old one.
            self.restored.clear();
        }
        self.restored.front().filter(|stretch| stretch.from.place() <= position.place())
    }

    fn add_done(&mut self, seq: u64, position: Position) {
        match self.entries.back_mut().filter(|back| back.firm) {
            Some(back) => back.to = position,
            None => {
                let entry = Span { seq, from: position, to: position, open: 0, services: Vec::new(), firm: true };
                self.entries.push_back(entry);
            }
        }
    }

    fn add(&mut self, seq: u64, position: Position, delivery: (u16, bool), (first, last): (bool, bool)) {
        if first {
            let services = if last { Vec::new() } else { vec![delivery] };
            let open = u32::from(!delivery.1) + u32::from(!last);
            let entry = Span { seq, from: position, to: position, open, services, firm: false };
            self.entries.push_back(entry);
        } else if let Some(entry) = self.entries.back_mut() {
            entry.services.push(delivery);
            entry.open += u32::from(!delivery.1);
            entry.open -= u32::from(last);
        }
    }

    /// Makes the delivery part of the commit under way.
    pub(crate) fn mark(&mut self, seq: u64) {
        self.set(seq, true);
    }

    /// Removes the delivery from the commit under way.
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

    fn entry(&mut self, seq: u64) -> Option<&mut Span> {
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

    /// True if the position would move with the next commit.
    pub(crate) fn may_move(&self) -> bool {
        self.entries.front().is_some_and(|entry| entry.open == 0)
    }

    /// The stretches done above that position, to be stored with it; to be called after [`Self::position`].
    pub(crate) fn ahead(&mut self) -> Vec<Stretch> {
        let mut ahead: Vec<Stretch> = Vec::new();
        // True if the last stretch may be extended.
        let mut joins = false;
        for entry in self.entries.range(self.passed..) {
            let Span { from, to, .. } = *entry;
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

    /// Joins done neighbours, so that the entries ahead take no more memory than the deliveries in hand.
    fn join(&mut self) {
        let mut joined: VecDeque<Span> = VecDeque::new();
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

    /// The last position received, from which a restarted ingress goes on.
    pub(crate) fn received(&self) -> Option<Position> {
        self.received
    }

    /// The number of stretches among received deliveries when the last commit was formed.
    pub(crate) fn stretches(&self) -> usize {
        self.stretches
    }
}

fn is_part(stretch: &Stretch) -> bool {
    !stretch.services.is_empty()
}

/// An origin's tracker against the plainest model: the set of what is durable.
#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const FOR: u16 = 1;

    fn at(no: u64) -> Position {
        Position::new(no, 0)
    }

    fn new(tracker: &mut Tracker, no: u64) -> u64 {
        let Received::New(seq) = tracker.receive(at(no), FOR, true) else { panic!("{no} is not new") };
        seq
    }

    /// From and to of each stretch, and the services of a part.
    fn ahead(tracker: &mut Tracker) -> Vec<(u64, u64, Vec<u16>)> {
        tracker.position();
        tracker.ahead().into_iter().map(|of| (of.from.no, of.to.no, of.services)).collect()
    }

    fn next(tracker: &mut Tracker) -> Tracker {
        Tracker::from(tracker.position(), tracker.ahead())
    }

    #[test]
    fn a_message_for_two_services_is_passed_when_both_have_taken_it() {
        let mut tracker = Tracker::default();
        let Received::New(first) = tracker.receive(at(1), 4, false) else { panic!() };
        let Received::New(second) = tracker.receive(at(1), 9, true) else { panic!() };
        tracker.mark(second);
        assert_eq!((tracker.position(), ahead(&mut tracker)), (None, vec![(1, 1, vec![9])]));
        let mut next = next(&mut tracker);
        assert_eq!([next.receive(at(1), 4, false), next.receive(at(1), 9, true)], [Received::New(0), Received::Known]);
        tracker.mark(first);
        assert_eq!((tracker.position(), ahead(&mut tracker)), (Some(at(1)), vec![]));
        next.mark(0);
        assert_eq!((next.position(), ahead(&mut next)), (Some(at(1)), vec![]));
    }

    #[test]
    fn a_refused_commit_takes_its_marks_back() {
        let mut tracker = Tracker::default();
        let (first, second) = (new(&mut tracker, 1), new(&mut tracker, 2));
        tracker.mark(first);
        tracker.mark(second);
        assert_eq!(tracker.position(), Some(at(2)));
        tracker.unmark(first);
        tracker.committed();
        assert_eq!((tracker.position(), ahead(&mut tracker)), (None, vec![(2, 2, vec![])]));
        tracker.mark(first);
        tracker.committed();
        assert_eq!((tracker.position(), ahead(&mut tracker)), (Some(at(2)), vec![]));
        assert_eq!(tracker.receive(at(2), FOR, true), Received::Passed);
    }

    #[test]
    fn what_a_source_repeats_while_it_is_in_hand_is_not_taken_in_again() {
        let mut tracker = Tracker::default();
        let all: Vec<_> = (1..=3).map(|no| new(&mut tracker, no)).collect();
        tracker.mark(all[1]);
        tracker.committed();
        assert!((1..=3).all(|no| tracker.receive(at(no), FOR, true) == Received::Passed));
        all.into_iter().for_each(|seq| tracker.mark(seq));
        assert_eq!(tracker.position(), Some(at(3)));
    }

    #[test]
    fn a_log_that_was_made_anew_is_read_anew() {
        let marked = |no, mark| Position { no, index: 0, mark };
        let made = |from| Tracker::from(None, vec![Stretch { from, to: at(4), services: Vec::new() }]);
        let mut same = made(marked(2, 7));
        assert_eq!(same.receive(marked(2, 7), FOR, true), Received::Known);
        let mut unknown = made(at(2));
        assert_eq!(unknown.receive(marked(2, 7), FOR, true), Received::Known);
        let mut other = made(marked(2, 7));
        assert_eq!(other.receive(marked(2, 8), FOR, true), Received::New(0));
        assert_eq!(other.receive(marked(3, 1), FOR, true), Received::New(1));
        assert_eq!(ahead(&mut other), []);
    }

    #[test]
    fn what_lies_ahead_takes_no_more_than_what_is_in_hand() {
        let mut tracker = Tracker::default();
        // Two of a thousand wait for ever.
        for no in 1..=100_000 {
            let seq = new(&mut tracker, no);
            if no > 1 && no != 50_000 {
                tracker.mark(seq);
            }
            if no.is_multiple_of(100) {
                tracker.position();
                tracker.committed();
                assert!(tracker.entries.len() <= 2 * 4 + SLACK + 100);
            }
        }
        assert_eq!(ahead(&mut tracker), [(2, 49_999, vec![]), (50_001, 100_000, vec![])]);
        let mut next = next(&mut tracker);
        let open = (1..=100_000).filter(|no| matches!(next.receive(at(*no), FOR, true), Received::New(_)));
        assert_eq!(open.collect::<Vec<_>>(), [1, 50_000]);
        assert!(next.entries.len() <= 4, "what is known again is one entry");
        next.mark(0);
        assert_eq!(next.position(), Some(at(49_999)));
    }

    /// An operation on a tracker.
    #[derive(Clone, Debug)]
    enum Step {
        /// This many deliveries come.
        Come(u8),
        /// Some of the deliveries in hand are in a commit, which is refused or not.
        Commit(Vec<prop::sample::Index>, bool),
        /// Another owner goes on from the stored values.
        Takeover,
        /// The source is opened again, and repeats the deliveries in hand.
        Again,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1u8..20).prop_map(Step::Come),
            5 => (prop::collection::vec(any::<prop::sample::Index>(), 0..12), prop::bool::weighted(0.2))
                .prop_map(|(which, refused)| Step::Commit(which, refused)),
            1 => Just(Step::Takeover),
            1 => Just(Step::Again),
        ]
    }

    /// The plainest model: a log of places with gaps between them, each with its services, and what of them is durable.
    struct Model {
        log: Vec<(Position, Vec<u16>)>,
        read: usize,
        durable: BTreeSet<((u64, u32), u16)>,
        /// The deliveries in hand: number, place and service.
        hand: Vec<(u64, (u64, u32), u16)>,
        stored: (Option<Position>, Vec<Stretch>),
        tracker: Tracker,
    }

    impl Model {
        fn come(&mut self, most: usize) {
            for _ in 0..most {
                let Some((position, services)) = self.log.get(self.read).cloned() else { return };
                self.read += 1;
                for (nth, service) in (1..).zip(&services) {
                    let was = self.durable.contains(&(position.place(), *service));
                    match self.tracker.receive(position, *service, nth == services.len()) {
                        Received::New(seq) => {
                            assert!(!was, "{position:?} is run again for {service}");
                            self.hand.push((seq, position.place(), *service));
                        }
                        Received::Known => assert!(was, "{position:?} is lost for {service}"),
                        Received::Passed => panic!("{position:?} comes for the first time"),
                    }
                }
            }
        }

        fn commit(&mut self, which: &[prop::sample::Index], refused: bool) {
            let mut chosen: Vec<usize> = which.iter().map(|which| which.index(self.hand.len().max(1))).collect();
            chosen.sort_unstable();
            chosen.dedup();
            chosen.retain(|at| *at < self.hand.len());
            chosen.iter().for_each(|at| self.tracker.mark(self.hand[*at].0));
            let stored = (self.tracker.position(), self.tracker.ahead());
            if refused {
                chosen.iter().for_each(|at| self.tracker.unmark(self.hand[*at].0));
                return;
            }
            self.tracker.committed();
            self.stored = stored;
            for at in chosen.into_iter().rev() {
                let (_, place, service) = self.hand.remove(at);
                self.durable.insert((place, service));
            }
            self.check();
        }

        /// Checks that the stored values say exactly what is durable.
        fn check(&self) {
            let (position, ahead) = &self.stored;
            let passed = |place: (u64, u32)| position.is_some_and(|position| place <= position.place());
            for (at, services) in &self.log {
                for service in services {
                    let done = passed(at.place())
                        || ahead.iter().any(|of| {
                            let there = (of.from.place()..=of.to.place()).contains(&at.place());
                            there && (of.services.is_empty() || of.services.contains(service))
                        });
                    assert_eq!(done, self.durable.contains(&(at.place(), *service)), "{at:?} {service}: {self:?}");
                }
            }
            // A place that is done for some of its services is one of its own.
            let most = 2 * self.hand.len() + self.tracker.restored.len() + 1;
            assert!(ahead.len() <= most, "{} stretches for {most}", ahead.len());
        }

        fn takeover(&mut self) {
            let (position, ahead) = self.stored.clone();
            self.tracker = Tracker::from(position, ahead);
            self.hand.clear();
            self.read = self.log.partition_point(|(at, _)| position.is_some_and(|last| at.place() <= last.place()));
        }

        fn again(&mut self) {
            for (position, services) in self.log[..self.read].iter().cloned() {
                for (nth, service) in (1..).zip(&services) {
                    assert_eq!(self.tracker.receive(position, *service, nth == services.len()), Received::Passed);
                }
            }
        }
    }

    impl std::fmt::Debug for Model {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Model")
                .field("stored", &self.stored)
                .field("tracker", &self.tracker)
                .finish_non_exhaustive()
        }
    }

    proptest! {
        #[test]
        fn what_is_stored_is_what_is_durable_and_nothing_comes_twice(
            log in prop::collection::vec((1u64..4, 0u32..3, 1usize..4), 1..120),
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let mut place = (0, 0);
            let log = log.into_iter().map(|(gap, index, services)| {
                // Either another message of the same row, or another row behind a gap.
                place = if index > 0 { (place.0.max(1), place.1 + index) } else { (place.0 + gap, 0) };
                (Position::new(place.0, place.1), (10..).take(services).collect())
            });
            let (log, tracker) = (log.collect(), Tracker::default());
            let (durable, hand, stored) = (BTreeSet::new(), Vec::new(), (None, Vec::new()));
            let mut model = Model { log, read: 0, durable, hand, stored, tracker };
            for step in steps {
                match step {
                    Step::Come(most) => model.come(usize::from(most)),
                    Step::Commit(which, refused) => model.commit(&which, refused),
                    Step::Takeover => model.takeover(),
                    Step::Again => model.again(),
                }
            }
        }
    }
}
