//! Progress above an origin's position: stretches of places with nothing undone between them, and places that are
//! done for some of their services. Pure.
//! In: the progress of several shards on one origin. Out: their union.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Position;

/// Places of an origin that are done and follow each other as its source hands them over: numbers that the source
/// leaves out do not end a stretch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The first place.
    pub from: Position,
    /// The last place.
    pub to: Position,
    /// For a single place that is done for some of its services only: their numbers in the store. Empty: done for all.
    pub services: Vec<u16>,
}

impl Stretch {
    /// All places up to `to`.
    pub fn up_to(to: Position) -> Self {
        Self { from: Position::new(0, 0), to, services: Vec::new() }
    }

    /// For a log whose places are rows and messages within rows: the first row that begins in the stretch, the last
    /// that does, and the most messages that this last row may have to lie in the stretch whole.
    pub(crate) fn rows(&self) -> (u64, u64, u64) {
        (self.from.no + u64::from(self.from.index > 0), self.to.no, u64::from(self.to.index) + 1)
    }
}

/// The stretches done above each origin's position, in order.
pub type Ahead = BTreeMap<Arc<str>, Vec<Stretch>>;

/// The union of the progress of several shards on one origin, above its position: a place that one of them did is done.
pub(crate) fn united(mut known: Vec<Stretch>, position: Option<Position>) -> Vec<Stretch> {
    known.retain(|stretch| position.is_none_or(|position| stretch.to.place() > position.place()));
    // At the same place, a stretch that is done for all services comes first.
    known.sort_by_key(|stretch| (stretch.from.place(), !stretch.services.is_empty()));
    let mut united: Vec<Stretch> = Vec::new();
    // The last place up to which everything is done.
    let mut reach = None;
    for stretch in known {
        let covered = reach.is_some_and(|reach| stretch.from.place() <= reach);
        match united.last_mut() {
            Some(last) if covered => {
                if stretch.to.place() > last.to.place() {
                    last.to = stretch.to;
                }
            }
            Some(last) if !stretch.services.is_empty() && last.from.place() == stretch.from.place() => {
                last.services.extend(&stretch.services);
                last.services.sort_unstable();
                last.services.dedup();
            }
            _ => united.push(stretch),
        }
        reach = united.last().filter(|last| last.services.is_empty()).map(|last| last.to.place()).or(reach);
    }
    united
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(from: u64, to: u64, services: &[u16]) -> Stretch {
        Stretch { from: Position::new(from, 0), to: Position::new(to, 0), services: services.to_vec() }
    }

    #[test]
    fn what_one_of_them_did_is_done() {
        let known = vec![
            stretch(20, 20, &[3]),
            stretch(5, 9, &[]),
            stretch(7, 7, &[1]),
            stretch(8, 12, &[]),
            stretch(14, 14, &[2]),
            stretch(14, 14, &[1, 2]),
            stretch(20, 21, &[]),
            stretch(6, 6, &[]),
        ];
        let all = [stretch(5, 12, &[]), stretch(14, 14, &[1, 2]), stretch(20, 21, &[])];
        assert_eq!(united(known.clone(), None), all);
        assert_eq!(united(known, Some(Position::new(14, 0))), all[2..]);
    }
}
