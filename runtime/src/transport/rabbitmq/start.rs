//! Checks that a stream is still the one that was read. Pure.
//! In: the last position taken, the first record that the stream gives from there on. Out: the way to resume, or a
//! description of the loss.

use std::fmt::Display;

use crate::message::Position;
use crate::settings::next_life;

/// The relation of the first record to the last one taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// It is the record that was taken last.
    Known,
    /// It is the next record.
    Next,
}

/// The reason why reading a stream cannot resume where it was: what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StreamLoss {
    /// The record is not the one that was taken.
    #[error("the record at offset {0} is another one: {MADE_ANEW}")]
    Another(u64),
    /// Records are gone that were never read.
    #[error("offsets {first} to {last} were removed by the stream's retention before they were read")]
    Removed { first: u64, last: u64 },
    /// The stream gives nothing from the last record on, although that was taken.
    #[error("offset {0} was taken, but the stream ends before it: {MADE_ANEW}")]
    CutBack(u64),
}

/// Compares the first record, at `offset` with `mark`, of a stream attached at `last`.
pub(super) fn compare(last: Position, offset: u64, mark: u64) -> Result<First, StreamLoss> {
    // A position without a mark was not made from a record.
    if offset == last.no && (last.mark == 0 || last.mark == mark) {
        return Ok(First::Known);
    }
    if offset <= last.no {
        return Err(StreamLoss::Another(offset));
    }
    // All taken records may be gone, and no others: there is no record left to compare with.
    if offset == last.no + 1 {
        return Ok(First::Next);
    }
    Err(StreamLoss::Removed { first: last.no + 1, last: offset - 1 })
}

/// The explanation for a stream whose contents have changed.
pub(super) const MADE_ANEW: &str = "the stream was made anew, or cut back";

/// The two ways to continue from a lost place.
pub(super) fn ways_on(entry: &str, reason: impl Display) -> String {
    let next = next_life(entry);
    format!(
        "{reason}. Either restore the stream, or begin it anew: write {next:?} for it in rabbitmq.streams, which is read as \
         one that was never read"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_record_is_read_once_more() {
        let last = Position { no: 5, index: 0, mark: 7 };
        assert_eq!(compare(last, 5, 7), Ok(First::Known));
        assert_eq!(compare(Position::new(5, 0), 5, 9), Ok(First::Known));
        assert!(compare(last, 5, 9).unwrap_err().to_string().contains(MADE_ANEW));
        assert!(compare(last, 4, 7).unwrap_err().to_string().contains(MADE_ANEW));
    }

    #[test]
    fn retention_may_remove_what_was_taken_and_nothing_else() {
        let last = Position { no: 5, index: 0, mark: 7 };
        assert_eq!(compare(last, 6, 1), Ok(First::Next));
        assert!(compare(last, 9, 1).unwrap_err().to_string().contains("offsets 6 to 8 were removed"));
    }
}
