//! An origin's tracker against the plainest model: the set of what is durable.
//! In: deliveries, commits, refusals, takeovers. Out: what is new, where the position stands, how much is kept.

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

/// What happens to a tracker.
#[derive(Clone, Debug)]
enum Step {
    /// So many deliveries come.
    Come(u8),
    /// Some of what is in hand is in a commit, which is refused or not.
    Commit(Vec<prop::sample::Index>, bool),
    /// Another owner goes on from what is stored.
    Takeover,
    /// The source is opened again, and repeats what is in hand.
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
    /// What is in hand: its number, its place and its service.
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

    /// What is stored says exactly what is durable.
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
        for (position, services) in self.log[..self.read].to_vec() {
            for (nth, service) in (1..).zip(&services) {
                assert_eq!(self.tracker.receive(position, *service, nth == services.len()), Received::Passed);
            }
        }
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("stored", &self.stored).field("tracker", &self.tracker).finish_non_exhaustive()
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
