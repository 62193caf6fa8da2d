//! The rows that are taken of a source without order, and the services for which they are.
//! In: rows as received; deliveries as they commit. Out: rows that are done, and the done services of the others, to be
//! stored.

use std::collections::{BTreeMap, BTreeSet};

use hashbrown::HashMap;

use super::Received;
use crate::ledger::defect::{Defect, planted};
use crate::message::{Position, Stretch};

/// A row of a source without order.
#[derive(Clone, Debug, Default)]
struct RowInHand {
    /// Its deliveries, one for each service that takes it: the service, and true if it is done.
    services: Vec<(u16, bool)>,
    /// True if all of them were received.
    complete: bool,
}

impl RowInHand {
    fn is_passed(&self) -> bool {
        self.complete && self.services.iter().all(|(_, done)| *done)
    }
}

/// The rows in hand of a source without order, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct InHand {
    rows: HashMap<u64, RowInHand>,
    /// Rows of the commit under way.
    touched: BTreeSet<u64>,
    /// Rows for several services.
    several: BTreeSet<u64>,
    /// The services for which rows were done at the takeover, for rows that were not received again.
    restored: BTreeMap<u64, Vec<u16>>,
}

impl InHand {
    /// The start, without rows in hand, from the rows that were done for some of their services.
    pub(crate) fn from(ahead: Vec<Stretch>) -> Self {
        let forgotten = planted(Defect::AheadForgotten) || planted(Defect::PartForgotten);
        let ahead = ahead.into_iter().filter(|_| !forgotten).map(|part| (part.from.no, part.services));
        Self { restored: ahead.collect(), ..Self::default() }
    }

    /// Receives a delivery for a service, by the service's number in the store; returns the delivery's number within
    /// its row.
    pub(crate) fn receive(&mut self, no: u64, service: u16, last: bool) -> Received<u16> {
        let row = self.rows.entry(no).or_default();
        if row.complete {
            // It is in hand already: the source was opened again.
            return Received::Passed;
        }
        let done = self.restored.get(&no).is_some_and(|services| services.contains(&service));
        row.services.push((service, done));
        row.complete = last;
        if row.services.len() > 1 {
            self.several.insert(no);
        }
        let nth = u16::try_from(row.services.len() - 1).expect("a message has fewer than 65536 services");
        if last {
            self.restored.remove(&no);
        }
        if !done {
            return Received::New(nth);
        }
        self.touched.insert(no);
        Received::Known
    }

    /// Makes a delivery of a row part of the commit under way, or removes it.
    pub(crate) fn set(&mut self, no: u64, nth: u16, done: bool) {
        let Some(service) = self.rows.get_mut(&no).and_then(|row| row.services.get_mut(usize::from(nth))) else {
            return;
        };
        service.1 = done;
        self.touched.insert(no);
    }

    /// The rows that are done with the commit under way.
    pub(crate) fn passed(&self) -> impl Iterator<Item = u64> {
        self.touched.iter().copied().filter(|no| self.rows.get(no).is_some_and(RowInHand::is_passed))
    }

    /// The rows that are done for some of their services, with the commit under way.
    pub(crate) fn ahead(&self) -> Vec<Stretch> {
        let mut ahead: Vec<Stretch> = Vec::new();
        let mut add = |no: u64, services: Vec<u16>| {
            let at = Position::new(no, 0);
            ahead.extend((!services.is_empty()).then_some(Stretch { from: at, to: at, services }));
        };
        let several = self.several.iter().filter_map(|no| Some((*no, self.rows.get(no)?)));
        for (no, row) in several.filter(|(_, row)| !row.is_passed()) {
            add(no, row.services.iter().filter(|(_, done)| *done).map(|(service, _)| *service).collect());
        }
        self.restored.iter().for_each(|(no, services)| add(*no, services.clone()));
        ahead.sort_by_key(|part| part.from.place());
        ahead
    }

    /// The commit under way is durable.
    pub(crate) fn committed(&mut self) {
        for no in std::mem::take(&mut self.touched) {
            if self.rows.get(&no).is_some_and(RowInHand::is_passed) {
                self.rows.remove(&no);
                self.several.remove(&no);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(rows: &InHand) -> Vec<(u64, Vec<u16>)> {
        rows.ahead().into_iter().map(|part| (part.from.no, part.services)).collect()
    }

    #[test]
    fn a_row_is_passed_once_when_all_its_services_have_taken_it() {
        let mut rows = InHand::default();
        assert_eq!([rows.receive(7, 1, false), rows.receive(7, 2, true)], [Received::New(0), Received::New(1)]);
        assert_eq!([rows.receive(7, 1, false), rows.receive(7, 2, true)], [Received::Passed; 2], "in hand");
        rows.set(7, 0, true);
        assert_eq!(rows.passed().next(), None);
        rows.committed();
        rows.set(7, 1, true);
        assert_eq!(rows.passed().collect::<Vec<_>>(), [7]);
        rows.set(7, 1, false);
        assert_eq!(rows.passed().next(), None, "its commit was refused");
        rows.set(7, 1, true);
        rows.committed();
        assert_eq!(rows.receive(7, 1, true), Received::New(0), "whatever comes under its number now is new");
    }

    #[test]
    fn the_next_owner_runs_a_row_for_those_services_alone_that_have_not_taken_it() {
        let mut rows = InHand::default();
        for no in 7..=9 {
            rows.receive(no, 1, false);
            rows.receive(no, 2, true);
        }
        rows.set(7, 1, true);
        rows.set(9, 0, true);
        assert_eq!(parts(&rows), [(7, vec![2]), (9, vec![1])]);
        let mut next = InHand::from(rows.ahead());
        assert_eq!([next.receive(7, 1, false), next.receive(7, 2, true)], [Received::New(0), Received::Known]);
        assert_eq!([next.receive(8, 1, false), next.receive(8, 2, true)], [Received::New(0), Received::New(1)]);
        assert_eq!(parts(&next), [(7, vec![2]), (9, vec![1])], "kept until it is done, received again or not");
        next.set(7, 0, true);
        assert_eq!(next.passed().collect::<Vec<_>>(), [7]);
        assert_eq!(parts(&next), [(9, vec![1])], "the commit that takes a row needs no word of it");
        assert_eq!(next.receive(9, 1, true), Received::Known, "no other service takes it any more");
        assert_eq!(next.passed().collect::<Vec<_>>(), [7, 9]);
    }
}
