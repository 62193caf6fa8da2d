//! A shard's metrics and log lines.
//! In: its ledger's counts and gauges. Out: metrics, alarms, log lines.

use tracing::{debug, error, info, warn};

use super::ShardState;
use crate::clock::Millis;
use crate::ledger::settle::record::{FaultNote, Gauges};
use crate::message::ShardNo;
use crate::metrics::{Alarm, DedupSource, UNKNOWN_SERVICE};
use crate::telemetry::MessageFields;

impl ShardState {
    /// Sets the gauges and alarms that show how full everything is.
    pub(crate) fn show_gauges(&self, now: Millis) {
        let gauges = self.ledger.gauges(now);
        self.metrics.set_resident_actors(u64::from(gauges.actors));
        self.metrics.set_pending_rows(gauges.pending);
        self.metrics.set_in_hand(gauges.credits_used as u64, gauges.bytes_in_hand as u64);
        self.metrics.set_done(gauges.inbox_ids as u64, gauges.ahead as u64);
        self.metrics.set_epoch(gauges.epoch);
        self.metrics.set_commit_no(gauges.commit_no);
        let dedup = &self.env.settings.dedup;
        let window = match gauges.window {
            0 => dedup.window,
            millis => std::time::Duration::from_millis(millis),
        };
        self.metrics.set_dedup_window(window);
        if self.metrics.set_alarm(Alarm::DedupWindowBelowMin, window < dedup.window_min) {
            warn!(shard = self.no, window = ?window, "dedup window crossed dedup.window_min");
        }
        self.letters(&gauges);
        self.outbox_alarms(&gauges);
        self.metrics.set_alarm(Alarm::Paused, gauges.paused);
        if self.metrics.set_alarm(Alarm::ScheduleEnded, gauges.schedules_ended > 0) {
            let (shard, schedules) = (self.no, gauges.schedules_ended);
            error!(shard, schedules, "next time of a schedule cannot be found: it comes no more until it is changed");
        }
        if self.metrics.set_alarm(Alarm::PendingBoundReached, gauges.pending_full) {
            let (shard, full, rows) = (self.no, gauges.pending_full, gauges.pending);
            warn!(shard, full, rows, "bound of waiting messages was reached or left; at the bound sources pause");
        }
        if self.metrics.set_alarm(Alarm::AheadBoundReached, gauges.ahead_full) {
            let (shard, full, stretches) = (self.no, gauges.ahead_full, gauges.ahead);
            warn!(
                shard,
                full, stretches, "bound of what is done ahead was reached or left; at the bound its source pauses"
            );
        }
    }

    /// Sets the gauges and alarms of dead letters, as commits count them.
    fn letters(&self, gauges: &Gauges) {
        let (shard, letters) = (self.no, gauges.letters);
        self.metrics.set_dead_letter_depth(letters.count);
        self.metrics.set_held_keys(letters.holding);
        let held = letters.holding > 0;
        if self.metrics.set_alarm(Alarm::HeldKeys, held) {
            match held {
                true => warn!(
                    shard,
                    keys = letters.holding,
                    "keys wait for an operator: look at the dead letters that hold them"
                ),
                false => info!(shard, "no key waits for an operator any more"),
            }
        }
        let (count, max) = (letters.count, self.env.settings.dlq.max);
        let near = count.saturating_mul(5) >= max.saturating_mul(4);
        if self.metrics.set_alarm(Alarm::DeadLettersNearBound, near) {
            warn!(shard, near, count, max, "dead letters come near dlq.max, or no longer; at the bound sources pause");
        }
        if self.metrics.set_alarm(Alarm::DeadLetterBoundReached, gauges.letters_full) {
            let full = gauges.letters_full;
            warn!(
                shard,
                full, count, max, "bound of dead letters was reached or left; at it sources pause: discard or replay"
            );
        }
    }

    fn outbox_alarms(&self, gauges: &Gauges) {
        let shard = self.no;
        if self.metrics.set_alarm(Alarm::OutboxBoundReached, gauges.outbox_full) {
            warn!(
                shard,
                full = gauges.outbox_full,
                "bound of unpublished events was reached or left; at it sources pause"
            );
        }
        if self.metrics.set_alarm(Alarm::OutboxRefused, gauges.letters.refused > 0) {
            warn!(shard, events = gauges.letters.refused, "dead letters that are events which a sink refused");
        }
        if self.metrics.set_alarm(Alarm::SinkGone, gauges.sink_gone) {
            let gone = gauges.sink_gone;
            warn!(shard, gone, "a sink that is not in the settings keeps commits: configure it again, or retire it");
        }
    }

    /// Passes the ledger's counts to metrics and the log.
    pub(crate) fn record(&mut self) {
        let tally = self.ledger.tally();
        let metrics = &self.env.metrics;
        for (service, count) in tally.processed {
            self.env.service_metrics[service].add_processed(count);
        }
        for (service, count) in tally.late {
            self.env.service_metrics[service].add_late(count);
        }
        for service in tally.dead {
            match service {
                Some(service) => self.env.service_metrics[service].add_dead_letters(1),
                None => metrics.service(UNKNOWN_SERVICE).add_dead_letters(1),
            }
        }
        for service in tally.absent {
            if !self.absent.contains(&service) {
                warn!(shard = self.no, %service, "messages wait for a program that has their service");
                self.absent.insert(service);
            }
        }
        if tally.duplicates > 0 {
            metrics.add_dedup_hits(DedupSource::Inbox, tally.duplicates);
        }
        if tally.conflicts > 0 {
            metrics.add_id_conflicts(tally.conflicts);
            warn!(
                shard = self.no,
                messages = tally.conflicts,
                "dead letters, as their ids were taken before with other content"
            );
        }
        if tally.passed > 0 {
            metrics.add_dedup_hits(DedupSource::Position, tally.passed);
        }
        if tally.unbound > 0 {
            metrics.add_unbound(tally.unbound);
        }
        if tally.expired > 0 {
            metrics.add_expired(tally.expired);
            info!(shard = self.no, letters = tally.expired, "dead letters were removed after dlq.keep");
        }
        if tally.rekeyed > 0 {
            metrics.add_rekeyed(tally.rekeyed);
        }
        if tally.activations > 0 {
            self.metrics.add_activations(tally.activations);
        }
        if tally.passivations > 0 {
            self.metrics.add_passivations(tally.passivations);
        }
        for (service, which, reason) in tally.unavailable {
            let dependency = self.env.handlers.all()[service].needs()[which];
            metrics.dependency(dependency).add_unavailable();
            debug!(shard = self.no, dependency, reason, "turn waits for what it needs");
        }
        for (attempt, delay) in tally.retries {
            metrics.record_retry(attempt + 1, std::time::Duration::from_millis(delay));
        }
        tally.faults.iter().for_each(|note| log_fault(self.no, note));
    }
}

fn log_fault(shard: ShardNo, note: &FaultNote) {
    let FaultNote { message, service, attempt, error, kind } = note;
    let what = kind.as_str();
    let ids = MessageFields::of(message);
    let (message_id, saga_id, trace_id) = (ids.message_id, ids.saga_id, ids.trace_id);
    warn!(shard, %service, message_id, saga_id, trace_id, attempt, what, error, "message did not succeed");
}
