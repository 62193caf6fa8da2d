//! A partition that is read, and the offset that the group has for it. Pure.
//! In: records handed over, positions committed, how far the consumer is. Out: the offset for the group, with a tag.

use std::sync::Arc;

use super::orders::Reading;
use super::record::PartitionPlace;
use crate::message::{Position, ShardNo};

/// A partition that is read.
pub(super) struct AssignedPartition {
    pub(super) shard: ShardNo,
    pub(super) origin: Arc<str>,
    pub(super) place: PartitionPlace,
    /// The next offset; all records before it were handed over.
    pub(super) next: u64,
    /// The record that was taken last, until it is compared.
    pub(super) check: Option<Position>,
    /// The last position handed over, or resumed from.
    pub(super) last: Option<Position>,
    /// The last position that the store is known to have.
    pub(super) committed: Option<Position>,
    /// The offset that the group was told last.
    told: u64,
}

impl AssignedPartition {
    pub(super) fn new(shard: ShardNo, reading: Reading) -> Self {
        let Reading { place, start, last, .. } = reading;
        let (origin, next, check) = (Arc::from(place.origin.as_str()), start.at, start.check);
        Self { shard, origin, place, next, check, last, committed: None, told: 0 }
    }

    /// The offset to tell the group now, and its tag. `consumer` is the offset up to which the consumer has gone: when
    /// all records that it delivered are committed, only ends of transactions and records of aborted ones lie between.
    pub(super) fn take_news(&mut self, consumer: Option<u64>) -> Option<(u64, String)> {
        let committed = self.committed?;
        let next = committed.no + 1;
        let end = consumer.filter(|_| self.last == Some(committed)).map_or(next, |consumer| consumer.max(next));
        if end <= self.told {
            return None;
        }
        self.told = end;
        Some((end, tag(committed)))
    }
}

/// The tag of an offset in the group: there is no record to read between this position and that offset.
pub(super) fn tag(position: Position) -> String {
    format!("{}:{:016x}", position.no, position.mark)
}

#[cfg(test)]
mod tests {
    use super::super::start::Start;
    use super::*;

    fn at(no: u64) -> Option<Position> {
        Some(Position { no, index: 0, mark: 0xab })
    }

    #[test]
    fn the_group_is_told_each_offset_once_and_never_more_than_the_store_has() {
        let place = PartitionPlace { origin: "t/0".to_owned(), topic: "t".to_owned(), source: "kafka:t".to_owned() };
        let start = Start { at: 0, check: None };
        let mut assigned = AssignedPartition::new(0, Reading { place, partition: 0, start, last: at(9) });
        assert_eq!(assigned.take_news(Some(12)), None, "what was gone on from may be in hand still");
        (assigned.last, assigned.committed) = (at(20), at(14));
        assert_eq!(assigned.take_news(Some(22)), Some((15, "14:00000000000000ab".to_owned())), "some is in hand");
        assigned.committed = at(20);
        assert_eq!(assigned.take_news(None), Some((21, "20:00000000000000ab".to_owned())));
        assert_eq!(
            assigned.take_news(Some(22)),
            Some((22, "20:00000000000000ab".to_owned())),
            "an end of a transaction"
        );
        assert_eq!(assigned.take_news(Some(22)), None);
    }
}
