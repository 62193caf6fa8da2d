//! The ids that a shard has taken, exact within the dedup window.
//! In: ids as they arrive, settle and commit, each with the print of what came with it. Out: new, a duplicate, or other
//! content; the commits that have left the window.

use std::collections::VecDeque;

use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashSet};

use crate::clock::Millis;
use crate::ledger::defect::{Defect, planted};
use crate::ledger::tracker::Ticket;
use crate::message::{Print, Taken, TakenId};
use crate::store::InboxRows;

/// The inbox's judgement of an arriving id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dedup {
    /// Never seen within the window: it is in hand now.
    New,
    /// In hand, not settled: the copy is settled together with it.
    InHand,
    /// Taken: the copy is dropped.
    Taken,
    /// In hand or taken, with other content: it is not a copy.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    InHand,
    Taken,
}

/// An id's entry. It consists of bytes only: each one counts, because there are millions of entries.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    mark: Mark,
    print: Print,
}

/// The owner's inbox.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    ids: HashMap<TakenId, Remembered>,
    copies: HashMap<TakenId, Vec<Ticket>>,
    /// Ids of messages that operators put in the place of dead letters: no commit has taken them, and the store may not
    /// have them yet. Also ids of messages that wait for a program with their service, whose keys this one does not
    /// have. Ids of other rows and letters are looked up in the store once they have left the window.
    pinned: HashSet<TakenId>,
    commits: VecDeque<(u64, Millis, Box<[TakenId]>)>,
    taken: usize,
    /// The time of the last commit that was read at the takeover, until ids age for the first time.
    restored: Option<Millis>,
    /// Time between that and the takeover.
    pause: Millis,
    /// True if the last forgotten commit had to go for lack of room.
    short: bool,
}

/// The bounds up to which commits may be forgotten.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Aging {
    pub(crate) now: Millis,
    /// The age from which commits are forgotten, by running time.
    pub(crate) window: Millis,
    /// The number of ids above which the oldest are forgotten, if they were written before `old_enough`.
    pub(crate) max_ids: usize,
    pub(crate) old_enough: Millis,
}

impl Inbox {
    /// The inbox as read at a takeover.
    pub(crate) fn restore(rows: InboxRows) -> Self {
        let restored = rows.commits.last().map(|commit| commit.at);
        let mut inbox = Self { restored, ..Self::default() };
        for commit in rows.commits {
            for Taken { id, print } in &commit.ids {
                inbox.ids.insert(*id, Remembered { mark: Mark::Taken, print: *print });
            }
            inbox.committed(commit.no, commit.at, commit.ids.iter().map(|taken| taken.id).collect());
        }
        inbox
    }

    /// Judges an id that arrives with a delivery.
    pub(crate) fn arrive(&mut self, Taken { id, print }: Taken, ticket: Ticket) -> Dedup {
        match self.ids.entry(id) {
            Entry::Vacant(_) if !self.pinned.is_empty() && self.pinned.contains(&id) => Dedup::Taken,
            Entry::Vacant(_) if planted(Defect::IdTakenAfterRun) => Dedup::New,
            Entry::Vacant(place) => {
                place.insert(Remembered { mark: Mark::InHand, print });
                Dedup::New
            }
            Entry::Occupied(place) if place.get().print.differs(print) => Dedup::Other,
            Entry::Occupied(place) => match place.get().mark {
                Mark::Taken => Dedup::Taken,
                Mark::InHand => {
                    self.copies.entry(id).or_default().push(ticket);
                    Dedup::InHand
                }
            },
        }
    }

    /// Settles an id: it is taken with the next commit, as given. Returns also the copies that are settled with it.
    pub(crate) fn settle(&mut self, id: TakenId) -> (Taken, Vec<Ticket>) {
        let print = self.mark(id, Mark::Taken);
        let copies = if self.copies.is_empty() { None } else { self.copies.remove(&id) };
        (Taken { id, print }, copies.unwrap_or_default())
    }

    /// Marks an id, and returns the print of what came with it.
    fn mark(&mut self, id: TakenId, mark: Mark) -> Print {
        let known = self.ids.entry(id).or_insert(Remembered { mark, print: Print::UNKNOWN });
        known.mark = mark;
        known.print
    }

    /// Takes a settled id back in hand: its commit was refused.
    pub(crate) fn unsettle(&mut self, id: TakenId, copies: Vec<Ticket>) {
        self.mark(id, Mark::InHand);
        if !copies.is_empty() {
            self.copies.entry(id).or_default().extend(copies);
        }
    }

    /// Takes note that an id in hand is that of a row or a dead letter, which the store has. Returns its copies.
    pub(crate) fn forget(&mut self, id: TakenId) -> Vec<Ticket> {
        self.ids.remove(&id);
        self.copies.remove(&id).unwrap_or_default()
    }

    /// Pins the id of a message that an operator puts in the place of another, or that waits for a program with its
    /// service.
    pub(crate) fn pin(&mut self, id: TakenId) {
        self.pinned.insert(id);
    }

    /// Unpins an id that was not written.
    pub(crate) fn unpin(&mut self, id: TakenId) {
        self.pinned.remove(&id);
    }

    /// Takes note that a commit took these ids.
    pub(crate) fn committed(&mut self, no: u64, at: Millis, ids: Box<[TakenId]>) {
        self.taken += ids.len();
        self.commits.push_back((no, at, ids));
    }

    /// Forgets commits that have left the window, and the oldest that there is no room for.
    pub(crate) fn age(&mut self, aging: Aging) {
        if let Some(last) = self.restored.take() {
            // Time in which nobody ran does not count: redelivered messages must still be recognised.
            self.pause = aging.now.saturating_sub(last);
        }
        let since = aging.now.saturating_sub(self.pause).saturating_sub(aging.window);
        while let Some((_, at, ids)) = self.commits.front() {
            let over = self.taken > aging.max_ids && *at < aging.old_enough;
            if !(*at < since || over) {
                return;
            }
            self.short = *at >= since;
            self.taken -= ids.len();
            for id in ids {
                self.ids.remove(id);
            }
            self.commits.pop_front();
        }
    }

    /// The oldest commit within the window.
    pub(crate) fn oldest(&self) -> Option<(u64, Millis)> {
        self.commits.front().map(|(no, at, _)| (*no, *at))
    }

    /// True if ids had to be forgotten before they left the window.
    pub(crate) fn is_short(&self) -> bool {
        self.short
    }

    /// Ids of committed messages that are remembered.
    pub(crate) fn len(&self) -> usize {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::CommitIds;

    const TICKET: Ticket = Ticket { source: crate::message::SourceIx::FIRST, origin: 0, nth: 0, seq: 0, bytes: 0 };

    fn id(n: u8) -> TakenId {
        TakenId([n; TakenId::BYTES])
    }

    fn said(id: TakenId, print: u8) -> Taken {
        Taken { id, print: Print([print; Print::BYTES]) }
    }

    #[test]
    fn a_copy_in_hand_is_settled_with_its_original() {
        let mut inbox = Inbox::default();
        assert_eq!(inbox.arrive(said(id(1), 1), TICKET), Dedup::New);
        assert_eq!(inbox.arrive(said(id(1), 1), Ticket { seq: 7, ..TICKET }), Dedup::InHand);
        assert_eq!(inbox.settle(id(1)), (said(id(1), 1), vec![Ticket { seq: 7, ..TICKET }]));
        assert_eq!(inbox.arrive(said(id(1), 1), TICKET), Dedup::Taken);
    }

    #[test]
    fn ids_age_out_by_time_and_number_but_never_while_pinned() {
        let mut inbox = Inbox::default();
        for n in 1..=4 {
            inbox.arrive(said(id(n), 1), TICKET);
            inbox.settle(id(n));
            inbox.committed(u64::from(n), u64::from(n) * 100, Box::new([id(n)]));
        }
        inbox.pin(id(1));
        let aging = |window, max_ids| Aging { now: 450, window, max_ids, old_enough: Millis::MAX };
        inbox.age(aging(300, 100));
        assert!(!inbox.is_short());
        assert_eq!(inbox.arrive(said(id(1), 1), TICKET), Dedup::Taken, "pinned");
        inbox.unpin(id(1));
        assert_eq!(inbox.arrive(said(id(1), 1), TICKET), Dedup::New, "out of the window");
        inbox.age(aging(450, 1));
        assert!(inbox.is_short());
        assert_eq!((inbox.oldest(), inbox.len()), (Some((4, 400)), 1));
    }

    #[test]
    fn another_content_is_no_copy_whether_the_first_is_in_hand_taken_or_was_read_back() {
        let mut inbox = Inbox::default();
        let (first, other) = (said(id(1), 1), said(id(1), 2));
        assert_eq!(inbox.arrive(first, TICKET), Dedup::New);
        assert_eq!(inbox.arrive(other, TICKET), Dedup::Other);
        let (taken, copies) = inbox.settle(id(1));
        assert!(taken == first && copies.is_empty(), "{taken:?} {copies:?}");
        assert_eq!([first, other].map(|taken| inbox.arrive(taken, TICKET)), [Dedup::Taken, Dedup::Other]);
        inbox.unsettle(id(1), Vec::new());
        assert_eq!([first, other].map(|taken| inbox.arrive(taken, TICKET)), [Dedup::InHand, Dedup::Other]);

        let unknown = Taken::from(id(2));
        let commit = CommitIds { no: 1, at: 1, ids: vec![first, unknown] };
        let mut inbox = Inbox::restore(InboxRows { commits: vec![commit], ..InboxRows::default() });
        assert_eq!([first, other].map(|taken| inbox.arrive(taken, TICKET)), [Dedup::Taken, Dedup::Other]);
        // Of messages that were taken before prints were kept, only the id is known.
        assert_eq!(inbox.arrive(said(id(2), 9), TICKET), Dedup::Taken);
    }

    #[test]
    fn an_id_takes_eight_bytes_more_for_its_print() {
        assert_eq!(size_of::<(TakenId, Remembered)>(), TakenId::BYTES + 1 + Print::BYTES);
    }
}
