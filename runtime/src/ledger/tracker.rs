//! What a shard knows of its sources' deliveries: how far each origin is taken, and what is done above that; of a source
//! without order which rows are, and for whom.
//! In: deliveries as received, in order; tickets as they commit, in any order. Out: what to store with the commit.

mod origin;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::origin::Tracker;
use self::rows::InHand;
use super::protocol::SourceInfo;
use crate::message::{Ahead, Position, Positions, SourceIx};
use crate::transport::embedded;

/// Place of a delivery in its source's track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) source: SourceIx,
    pub(crate) origin: u16,
    /// Which of its row's deliveries it is, where the source has no order.
    pub(crate) nth: u16,
    /// Its number at its origin; where the source has no order, its row's.
    pub(crate) seq: u64,
    /// Bytes that its message takes while it is in hand.
    pub(crate) bytes: u32,
}

/// What a delivery is that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received<T> {
    /// New: it is in hand, under this number.
    New(T),
    /// It was done above the position that was stored, by whoever had the shard before: the position may move.
    Known,
    /// Its position was passed, or it is in hand.
    Passed,
}

#[derive(Debug)]
pub(crate) struct SourceTrack {
    /// It is this store's own log: what it holds for a shard is that shard's.
    pub(crate) is_log: bool,
    /// In place of positions, where it has none.
    in_hand: Option<InHand>,
    origins: BTreeMap<Arc<str>, u16>,
    names: Vec<Arc<str>>,
    trackers: Vec<Tracker>,
    /// Deliveries in hand.
    pub(crate) used: usize,
    /// Their bytes.
    pub(crate) bytes: usize,
    /// Credits that are free but not granted, because the source is to pause.
    pub(crate) owed: usize,
    /// Positions that the source was last told.
    pub(crate) acknowledged: Positions,
    /// Rows that were done for some of their services at the last commit.
    parts: usize,
}

impl SourceTrack {
    pub(crate) fn restore(source: &SourceInfo, stored: &Positions, mut ahead: Ahead) -> Self {
        let mut track = Self {
            is_log: &*source.name == embedded::NAME,
            in_hand: None,
            origins: BTreeMap::new(),
            names: Vec::new(),
            trackers: Vec::new(),
            used: 0,
            bytes: 0,
            owed: 0,
            acknowledged: Positions::new(),
            parts: 0,
        };
        if !source.ordered {
            track.in_hand = Some(InHand::from(ahead.into_values().flatten().collect()));
            return track;
        }
        let origins: BTreeSet<Arc<str>> = stored.keys().chain(ahead.keys()).cloned().collect();
        for origin in origins {
            let ahead = ahead.remove(&origin).unwrap_or_default();
            let tracker = Tracker::from(stored.get(&origin).copied(), ahead);
            track.add(origin, tracker);
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

    /// A delivery of this source, by its index, was received for a service, by its number in the store.
    pub(crate) fn receive(
        &mut self,
        source: SourceIx,
        (origin, position): (&Arc<str>, Position),
        service: u16,
        last: bool,
    ) -> Received<Ticket> {
        if let Some(in_hand) = self.in_hand.as_mut() {
            let row = Ticket { source, origin: 0, nth: 0, seq: position.no, bytes: 0 };
            return in_hand.receive(position.no, service, last).map(|nth| Ticket { nth, ..row });
        }
        let origin = match self.origins.get(origin) {
            Some(ix) => *ix,
            None => self.add(origin.clone(), Tracker::default()),
        };
        let received = self.trackers[usize::from(origin)].receive(position, service, last);
        received.map(|seq| Ticket { source, origin, nth: 0, seq, bytes: 0 })
    }

    /// The ticket is part of the commit under way.
    pub(crate) fn mark(&mut self, ticket: Ticket) {
        match self.in_hand.as_mut() {
            Some(in_hand) => in_hand.set(ticket.seq, ticket.nth, true),
            None => self.trackers[usize::from(ticket.origin)].mark(ticket.seq),
        }
    }

    /// The commit under way does not count for this ticket.
    pub(crate) fn unmark(&mut self, ticket: Ticket) {
        match self.in_hand.as_mut() {
            Some(in_hand) => in_hand.set(ticket.seq, ticket.nth, false),
            None => self.trackers[usize::from(ticket.origin)].unmark(ticket.seq),
        }
    }

    /// The commit under way is durable.
    pub(crate) fn committed(&mut self) {
        self.trackers.iter_mut().for_each(Tracker::committed);
        if let Some(in_hand) = self.in_hand.as_mut() {
            in_hand.committed();
        }
    }

    /// The origins that it has.
    pub(crate) fn origins(&self) -> std::ops::Range<u16> {
        0..if self.in_hand.is_some() { 1 } else { self.names.len() as u16 }
    }

    /// The positions to store with the commit under way.
    pub(crate) fn positions(&mut self) -> Positions {
        let read = self.names.iter().zip(&mut self.trackers);
        read.filter_map(|(name, tracker)| Some((name.clone(), tracker.position()?))).collect()
    }

    /// What is done above these, to be stored with them; to be asked for after them. The rows of a source without order
    /// stand under its `name`.
    pub(crate) fn ahead(&mut self, name: &Arc<str>) -> Ahead {
        let mut ahead = Ahead::new();
        for (name, tracker) in self.names.iter().zip(&mut self.trackers) {
            let stretches = tracker.ahead();
            if !stretches.is_empty() {
                ahead.insert(name.clone(), stretches);
            }
        }
        let parts = self.in_hand.as_ref().map(InHand::ahead).unwrap_or_default();
        self.parts = parts.len();
        if !parts.is_empty() {
            ahead.insert(name.clone(), parts);
        }
        ahead
    }

    /// Whether what is done with may be passed by a commit that has nothing else to write.
    pub(crate) fn may_move(&self) -> bool {
        self.trackers.iter().any(Tracker::may_move)
            || self.in_hand.as_ref().is_some_and(|rows| rows.passed().next().is_some())
    }

    /// Stretches that lay ahead of its positions at the last commit, without those that it has not handed over again since
    /// the shard was taken over: it must be read to find what lies between them.
    pub(crate) fn stretches(&self) -> usize {
        self.parts + self.trackers.iter().map(Tracker::stretches).sum::<usize>()
    }

    /// Where each origin was last read: a restarted ingress goes on from there.
    pub(crate) fn received(&self) -> Positions {
        let read = self.names.iter().zip(&self.trackers);
        read.filter_map(|(name, tracker)| Some((name.clone(), tracker.received()?))).collect()
    }

    /// Rows that are done with the commit under way.
    pub(crate) fn rows_passed(&self) -> impl Iterator<Item = u64> {
        self.in_hand.iter().flat_map(InHand::passed)
    }
}

impl<T> Received<T> {
    fn map<U>(self, of: impl FnOnce(T) -> U) -> Received<U> {
        match self {
            Self::New(number) => Received::New(of(number)),
            Self::Known => Received::Known,
            Self::Passed => Received::Passed,
        }
    }
}
