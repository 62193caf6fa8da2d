//! The place where reading a partition resumes. Pure.
//! In: the last position taken, the partition's bounds now. Out: the offset to read from, or a description of the loss.

use std::fmt::Display;

use crate::message::Position;
use crate::settings::next_life;

/// The place where reading a partition begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// The first offset to read.
    pub(super) at: u64,
    /// The record that was taken last and is read once more: it must be unchanged.
    pub(super) check: Option<Position>,
}

/// The oldest offset that a partition has, and the one that its next record will have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OffsetBounds {
    pub(super) low: u64,
    pub(super) high: u64,
}

/// The reason why reading a partition cannot resume where it was: what became of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PartitionLoss {
    /// The partition is shorter than what was read of it.
    #[error("offset {no} was taken, but the partition now ends at {high}: {MADE_ANEW}")]
    CutBack { no: u64, high: u64 },
    /// Records are gone that were never read.
    #[error("offsets {first} to {last} were removed by the topic's retention before they were read")]
    Removed { first: u64, last: u64 },
}

/// Resumes behind `last`.
pub(super) fn after(last: Position, bounds: OffsetBounds) -> Result<Start, PartitionLoss> {
    let OffsetBounds { low, high } = bounds;
    if last.no >= high {
        return Err(PartitionLoss::CutBack { no: last.no, high });
    }
    if low > last.no + 1 {
        return Err(PartitionLoss::Removed { first: last.no + 1, last: low - 1 });
    }
    // All taken records may be gone, and no others: there is no record left to compare with.
    if low == last.no + 1 {
        return Ok(Start { at: low, check: None });
    }
    // A position without a mark was not made from a record.
    Ok(if last.mark == 0 { Start { at: last.no + 1, check: None } } else { Start { at: last.no, check: Some(last) } })
}

/// The explanation for a log whose contents have changed.
pub(super) const MADE_ANEW: &str = "the topic was re-created, or cut back";

/// The two ways to continue from a lost place.
pub(super) fn ways_on(entry: &str, reason: impl Display) -> String {
    let next = next_life(entry);
    format!(
        "{reason}. Either restore the topic, or begin it anew: write {next:?} for it in kafka.topics, which is read as a \
         topic that was never read (kafka.first_start)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(no: u64) -> Position {
        Position { no, index: 0, mark: 7 }
    }

    fn start(no: u64, low: u64, high: u64) -> Result<Start, PartitionLoss> {
        after(taken(no), OffsetBounds { low, high })
    }

    #[test]
    fn the_last_record_is_read_once_more() {
        assert_eq!(start(5, 0, 6), Ok(Start { at: 5, check: Some(taken(5)) }));
        assert_eq!(start(0, 0, 9), Ok(Start { at: 0, check: Some(taken(0)) }));
        let unmarked = after(Position::new(5, 0), OffsetBounds { low: 0, high: 9 });
        assert_eq!(unmarked, Ok(Start { at: 6, check: None }));
    }

    #[test]
    fn a_log_that_ends_before_is_another_one() {
        for high in [0, 5] {
            assert!(start(5, 0, high).unwrap_err().to_string().contains(MADE_ANEW));
        }
    }

    #[test]
    fn retention_may_remove_what_was_taken_and_nothing_else() {
        assert_eq!(start(5, 6, 9), Ok(Start { at: 6, check: None }));
        assert!(start(5, 7, 9).unwrap_err().to_string().contains("offsets 6 to 6 were removed"));
        assert!(start(5, 6, 6).is_ok_and(|start| start.at == 6));
    }
}
