//! The bound of messages in a process's memory.
//! In: the section `[memory]`. Out: a bound for each source and each sink of a shard.

use serde::{Deserialize, Serialize};

use super::{RabbitmqSettings, Settings};

section! {
    /// Messages in memory.
    MemorySettings {
        /// Approximate bytes of messages in hand and of events on their way to sinks, of all shards together. In
        /// addition, calls that wait to be written may have an eighth as much, and messages of RabbitMQ intakes on
        /// their way a quarter.
        in_hand: u64 = 512 << 20,
    }
}

impl MemorySettings {
    /// The bytes in hand for each of `ends` sources and sinks of one of `shards` shards. A process may
    /// have all shards, so the shares do not depend on how many it has.
    pub fn share(&self, shards: u32, ends: usize) -> usize {
        let parts = u64::from(shards.max(1)) * ends.max(1) as u64;
        usize::try_from(self.in_hand / parts).unwrap_or(usize::MAX).max(1)
    }

    /// The bytes of a process's calls that wait to be written: an eighth, in addition to the messages in hand.
    pub fn calls(&self) -> usize {
        usize::try_from(self.in_hand / 8).unwrap_or(usize::MAX).max(1)
    }
}

impl Settings {
    /// The section `[rabbitmq]` with a prefetch of intakes that fits in a quarter of `memory.in_hand`, if
    /// each message is as large as it may be (`ingress.message_bytes_max`). An intake has two queues.
    pub fn rabbitmq_in_memory(&self) -> RabbitmqSettings {
        let queues = 2 * self.rabbitmq.intakes.len().max(1) as u64;
        let fit = self.memory.in_hand / 4 / queues / self.ingress.message_bytes_max.max(1) as u64;
        let fit = u16::try_from(fit).unwrap_or(u16::MAX).max(1);
        RabbitmqSettings { intake_prefetch: self.rabbitmq.intake_prefetch.min(fit), ..self.rabbitmq.clone() }
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

    #[test]
    fn intakes_have_as_many_messages_on_their_way_as_largest_ones_fit() {
        let prefetch = |in_hand, intakes: &[&str], most| {
            let mut settings = Settings { memory: MemorySettings { in_hand }, ..Settings::default() };
            settings.rabbitmq.intakes = intakes.iter().map(|&name| name.to_owned()).collect();
            settings.rabbitmq.intake_prefetch = most;
            settings.rabbitmq_in_memory().intake_prefetch
        };
        assert_eq!(prefetch(512 << 20, &["a"], 100), 64);
        assert_eq!(prefetch(512 << 20, &["a", "b"], 100), 32);
        assert_eq!(prefetch(512 << 20, &["a"], 10), 10);
        assert_eq!(prefetch(1 << 20, &["a"], 100), 1, "one at least");
    }
}
