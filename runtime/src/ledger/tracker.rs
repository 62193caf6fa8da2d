//! A shard's record of its sources' deliveries: the position of each origin and the stretches done above it; for a
//! source without order, the rows that are done and for which services.
//! In: deliveries as received, in order; tickets as they commit, in any order. Out: the values to store with the
//! commit.

mod origin;
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::origin::Tracker;
use self::rows::InHand;
use super::protocol::SourceInfo;
use crate::message::{Ahead, Position, Positions, SourceIx};
use crate::transport::embedded;

/// The place of a delivery in its source's track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    pub(crate) source: SourceIx,
    pub(crate) origin: u16,
    /// Its number among the deliveries of its row, if the source has no order.
    pub(crate) nth: u16,
    /// Its number at its origin; its row's number, if the source has no order.
    pub(crate) seq: u64,
    /// The bytes that its message takes while it is in hand.
    pub(crate) bytes: u32,
}

/// The kind of a delivery that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received<T> {
    /// New: it is in hand, under this number.
    New(T),
    /// It was done above the stored position by an earlier owner of the shard: the position may move.
    Known,
    /// Its position was passed, or it is in hand.
    Passed,
}

#[derive(Debug)]
pub(crate) struct SourceTrack {
    /// True if it is this store's own log: its messages for a shard belong to that shard.
    pub(crate) is_log: bool,
    /// The rows in hand, if it has no positions.
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
    /// The positions that the source was last told.
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

    /// Receives a delivery of this source (by its index) for a service (by its number in the store).
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

    /// Makes the ticket part of the commit under way.
    pub(crate) fn mark(&mut self, ticket: Ticket) {
        match self.in_hand.as_mut() {
            Some(in_hand) => in_hand.set(ticket.seq, ticket.nth, true),
            None => self.trackers[usize::from(ticket.origin)].mark(ticket.seq),
        }
    }

    /// Removes the ticket from the commit under way.
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

    /// The stretches done above those positions, to be stored with them; to be called after [`Self::positions`]. The
    /// rows of a source without order stand under its `name`.
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

    /// True if a commit that has nothing else to write would pass deliveries.
    pub(crate) fn may_move(&self) -> bool {
        self.trackers.iter().any(Tracker::may_move)
            || self.in_hand.as_ref().is_some_and(|rows| rows.passed().next().is_some())
    }

    /// The number of stretches ahead of its positions at the last commit, without those that it has not handed over
    /// again since the takeover: the source must be read to find the messages between those.
    pub(crate) fn stretches(&self) -> usize {
        self.parts + self.trackers.iter().map(Tracker::stretches).sum::<usize>()
    }

    /// The position at which each origin was last read: a restarted ingress goes on from there.
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
