//! The number of messages of a stream that are read ahead, so that their bytes stay within a bound. Pure.
//! In: the sizes of messages that came. Out: a prefetch, and whether it is time to change it.
//!
//! A broker counts messages and not bytes, and a consumer's count is fixed once it has begun. So a stream is begun with
//! few, and attached anew, once as a rule, when their size is known.

/// The number of messages that are read ahead while their size is not known.
const FIRST: u16 = 8;
/// The largest size shrinks by this fraction with each message that comes.
const FORGOTTEN: usize = 64;

/// The known sizes of messages of a shard's streams.
#[derive(Debug)]
pub(super) struct ReadAhead {
    most: u16,
    bytes: usize,
    prefetch: u16,
    /// The largest size that came lately.
    largest: usize,
    /// The number of messages since the prefetch was set.
    seen: u16,
}

impl ReadAhead {
    /// At most `most` messages, with about `bytes` in all.
    pub(super) fn new(most: u16, bytes: usize) -> Self {
        Self { most, bytes, prefetch: FIRST.min(most), largest: 0, seen: 0 }
    }

    /// The number of messages that a stream may send ahead.
    pub(super) fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// Records the size of a message that came.
    pub(super) fn came(&mut self, bytes: usize) {
        self.largest = bytes.max(self.largest - self.largest / FORGOTTEN);
        self.seen = self.seen.saturating_add(1);
    }

    /// Returns whether another prefetch is worth attaching anew; it is then in force.
    pub(super) fn changed(&mut self) -> bool {
        if self.seen < FIRST {
            return false;
        }
        let fitting = u16::try_from(self.bytes / self.largest.max(1)).unwrap_or(u16::MAX).clamp(1, self.most);
        let changed = fitting / 2 >= self.prefetch || (fitting < self.prefetch && fitting <= self.prefetch / 2);
        if changed {
            (self.prefetch, self.seen) = (fitting, 0);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(ahead: &mut ReadAhead, count: usize, bytes: usize) -> (bool, u16) {
        (0..count).for_each(|_| ahead.came(bytes));
        (ahead.changed(), ahead.prefetch())
    }

    #[test]
    fn small_messages_come_as_many_as_may_and_large_ones_as_their_bytes_allow() {
        let mut ahead = ReadAhead::new(500, 8 << 20);
        assert_eq!(ahead.prefetch(), 8);
        assert_eq!(after(&mut ahead, 7, 500), (false, 8), "too few to know");
        assert_eq!(after(&mut ahead, 1, 500), (true, 500));
        assert_eq!(after(&mut ahead, 1_000, 500), (false, 500), "attached once");
        assert_eq!(after(&mut ahead, 8, 1 << 20), (true, 8), "a megabyte each");
        assert_eq!(after(&mut ahead, 100, 900 << 10), (false, 8), "about as large");
        assert_eq!(after(&mut ahead, 10, 6 << 20), (true, 1));
        assert!(after(&mut ahead, 1_000, 500).0, "they are small again");
        let mut few = ReadAhead::new(3, 8 << 20);
        assert_eq!((few.prefetch(), after(&mut few, 100, 10)), (3, (false, 3)));
    }
}
