//! How many messages of a stream are read ahead, so that they have no more bytes than they may. Pure.
//! In: the bytes of what came. Out: a prefetch, and when it is to be another one.
//!
//! A broker counts messages and not bytes, and a consumer's count stands once it has begun. So a stream is begun with few,
//! and attached anew, once as a rule, when it is known how large they are.

/// Messages that are read ahead while nothing is known of their size.
const FIRST: u16 = 8;
/// A largest message is forgotten by this part with each one that comes.
const FORGOTTEN: usize = 64;

/// What is known of the sizes of a shard's streams.
#[derive(Debug)]
pub(super) struct Ahead {
    most: u16,
    bytes: usize,
    prefetch: u16,
    /// The largest that came lately.
    largest: usize,
    /// Messages since the prefetch was set.
    seen: u16,
}

impl Ahead {
    /// At most `most` messages with about so many `bytes`.
    pub(super) fn new(most: u16, bytes: usize) -> Self {
        Self { most, bytes, prefetch: FIRST.min(most), largest: 0, seen: 0 }
    }

    /// Messages that a stream may send ahead.
    pub(super) fn prefetch(&self) -> u16 {
        self.prefetch
    }

    /// A message of this size came.
    pub(super) fn came(&mut self, bytes: usize) {
        self.largest = bytes.max(self.largest - self.largest / FORGOTTEN);
        self.seen = self.seen.saturating_add(1);
    }

    /// Whether another prefetch is worth attaching anew, which then has it.
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

    fn after(ahead: &mut Ahead, count: usize, bytes: usize) -> (bool, u16) {
        (0..count).for_each(|_| ahead.came(bytes));
        (ahead.changed(), ahead.prefetch())
    }

    #[test]
    fn small_messages_come_as_many_as_may_and_large_ones_as_their_bytes_allow() {
        let mut ahead = Ahead::new(500, 8 << 20);
        assert_eq!(ahead.prefetch(), 8);
        assert_eq!(after(&mut ahead, 7, 500), (false, 8), "too few to know");
        assert_eq!(after(&mut ahead, 1, 500), (true, 500));
        assert_eq!(after(&mut ahead, 1_000, 500), (false, 500), "attached once");
        assert_eq!(after(&mut ahead, 8, 1 << 20), (true, 8), "a megabyte each");
        assert_eq!(after(&mut ahead, 100, 900 << 10), (false, 8), "about as large");
        assert_eq!(after(&mut ahead, 10, 6 << 20), (true, 1));
        assert!(after(&mut ahead, 1_000, 500).0, "they are small again");
        let mut few = Ahead::new(3, 8 << 20);
        assert_eq!((few.prefetch(), after(&mut few, 100, 10)), (3, (false, 3)));
    }
}
