//! How much of messages a process holds in memory.
//! In: the section `[memory]`. Out: a bound for each source and each sink of a shard.

use serde::{Deserialize, Serialize};

section! {
    /// Messages in memory.
    MemorySettings {
        /// Bytes of messages in hand and of events on their way to sinks, of all shards together, about.
        in_hand: u64 = 512 << 20,
    }
}

impl MemorySettings {
    /// The bytes that each of so many `ends`, sources and sinks, of one of so many shards may have in hand. A process may
    /// have all shards, so each has its share whoever else runs some.
    pub fn share(&self, shards: u32, ends: usize) -> usize {
        let parts = u64::from(shards.max(1)) * ends.max(1) as u64;
        usize::try_from(self.in_hand / parts).unwrap_or(usize::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_together_are_the_whole() {
        let memory = MemorySettings { in_hand: 96 << 20 };
        assert_eq!(memory.share(8, 3), 4 << 20);
        assert_eq!(MemorySettings { in_hand: 1 }.share(8, 3), 1, "a message at least is taken in hand");
    }
}
