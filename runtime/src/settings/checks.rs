//! Every check of the settings.
//! In: settings. Out: every problem at once, each with the settings that it is about and what to do.

use std::time::Duration;

use super::Settings;
use super::problems::{Problem, Problems};

impl Settings {
    /// Everything that is wrong, each with the setting's name and what to do; empty when nothing is.
    pub fn problems(&self) -> Vec<String> {
        self.found().into_iter().map(|problem| problem.text).collect()
    }

    /// Everything that is wrong, each with the settings that it is about.
    pub(super) fn found(&self) -> Vec<Problem> {
        let mut found = Problems::default();
        found.check((1..=256).contains(&self.ownership.shards), &["ownership.shards"], "must be 1 to 256");
        found.check(self.ingress.credits >= 16, &["ingress.credits"], "must be at least 16");
        found.check(self.ingress.batch_max >= 1, &["ingress.batch_max"], "must be at least 1");
        found.check(self.ingress.ahead_max >= 1, &["ingress.ahead_max"], "must be at least 1");
        found.check(
            (1..=256 << 20).contains(&self.ingress.message_bytes_max),
            &["ingress.message_bytes_max"],
            "must be 1 to 268435456 (256 MiB)",
        );
        found.check(
            self.actors.resident_max >= self.ownership.shards as usize,
            &["actors.resident_max", "ownership.shards"],
            "must be at least ownership.shards: each shard needs an actor",
        );
        found.check(self.memory.in_hand >= 1 << 20, &["memory.in_hand"], "must be at least 1048576 (1 MiB)");
        found.check((1..=4_096).contains(&self.actors.run_max), &["actors.run_max"], "must be 1 to 4096");
        found.check(!self.actors.slice.is_zero(), &["actors.slice"], "must be above 0");
        found.check(self.commit.turns_max >= 1, &["commit.turns_max"], "must be at least 1");
        found.check(self.commit.bytes_max >= 1, &["commit.bytes_max"], "must be at least 1");
        found.check(self.dedup.max_ids >= 1, &["dedup.max_ids"], "must be at least 1");
        found.check(!self.pending.spill_after.is_zero(), &["pending.spill_after"], "must be above 0");
        found.check(self.pending.page >= 1, &["pending.page"], "must be at least 1");
        found.check(self.pending.max_per_key >= 1, &["pending.max_per_key"], "must be at least 1");
        found.check(
            self.pending.max_per_shard >= self.pending.max_per_key,
            &["pending.max_per_shard", "pending.max_per_key"],
            "must be at least pending.max_per_key",
        );
        found.check(self.dlq.max >= 1, &["dlq.max"], "must be at least 1");
        found.check(
            (7..=super::SUSPECT_STARTS_MAX).contains(&self.suspects.starts),
            &["suspects.starts"],
            "must be 7 to 999: two are not recorded, two tell a message from its neighbours, and three are \
             spread so that kills from outside make no dead letter",
        );
        found.check(
            self.suspects.trial >= Duration::from_millis(1),
            &["suspects.trial"],
            "must be at least 1ms: it is the time in which an end of the process counts",
        );
        found.check(self.retry.attempts >= 1, &["retry.attempts"], "must be at least 1: the first counts");
        found.check(self.retry.factor >= 1.0, &["retry.factor"], "must be at least 1");
        found.check(!self.retry.base.is_zero(), &["retry.base"], "must be above 0");
        found.check(self.retry.cap >= self.retry.base, &["retry.cap", "retry.base"], "must be at least retry.base");
        self.kept(&mut found);
        super::cron::check(self, &mut found);
        super::gates::check(self, &mut found);
        super::gateway::check(self, &mut found);
        super::kafka::check(&self.kafka, &mut found);
        super::rabbitmq::check(&self.rabbitmq, &mut found);
        found.0
    }

    /// Checks the log, the store, its owners and the outbox.
    fn kept(&self, found: &mut Problems) {
        found.check(
            self.log.max_unread >= 1_000,
            &["log.max_unread"],
            "must be at least 1000: an import appends 1000 at a time",
        );
        found.check(!self.log.poll.is_zero(), &["log.poll"], "must be above 0");
        found.check(self.commit.in_flight >= 1, &["commit.in_flight"], "must be at least 1");
        found.check(self.store.connections >= 1, &["store.connections"], "must be at least 1");
        found.check(self.store.wal_bytes_max >= 1 << 20, &["store.wal_bytes_max"], "must be at least 1048576 (1 MiB)");
        found.check(
            self.store.statement_timeout < self.ownership.lease_ttl,
            &["store.statement_timeout", "ownership.lease_ttl"],
            "must be below ownership.lease_ttl: what a worker sent must end before its lease does",
        );
        found.check(
            self.ownership.lease_ttl >= self.ownership.heartbeat * 3,
            &["ownership.lease_ttl", "ownership.heartbeat"],
            "must be at least 3 times ownership.heartbeat: a single late heartbeat must cost nothing",
        );
        found.check(!self.ownership.heartbeat.is_zero(), &["ownership.heartbeat"], "must be above 0");
        found.check(self.outbox.window >= 1, &["outbox.window"], "must be at least 1");
        found.check(self.outbox.max_pending >= 1, &["outbox.max_pending"], "must be at least 1");
        found.check(
            self.drain.exit <= Duration::from_secs(20),
            &["drain.exit"],
            "must be at most 20s: a drain ends within 25s",
        );
    }
}
