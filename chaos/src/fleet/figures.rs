//! The measurements of a fleet's run.
//! In: a scene that is over. Out: takeover times, standstills, memory, what the workers report of themselves.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::fleet::Plan;
use crate::fleet::faults::Scenario;
use crate::fleet::meter::spread;
use crate::fleet::scene::{Scene, Way};
use crate::fleet::workers::total;
use crate::postings::Postings;

/// Growth of memory that is noise: the messages in hand when a worker has all shards, with all their credits in use, an
/// allocator's arenas, and the ids that are remembered.
const NOISE_MIB: u64 = 96;
const ID_BYTES: u64 = 128;

impl Scene<'_> {
    /// Reports the measurements.
    pub(super) async fn figures(&mut self, began: Duration, ended: Duration, given: &Postings) {
        let Plan { ttl, rate, .. } = self.plan;
        let timeline = self.meter.timeline().clone();
        for (way, what) in [
            (Way::Gone, "takeover after a kill or freeze"),
            (Way::BackAtOnce, "takeover after a kill whose worker was back before its lease had ended"),
            (Way::Drained, "hand-over after SIGTERM"),
        ] {
            let mut times = Vec::new();
            let mut missing = 0;
            for fault in self.faults.iter().filter(|fault| fault.way == way) {
                let takeovers = timeline.takeovers(&fault.worker, fault.at);
                missing += takeovers.iter().filter(|time| time.is_none()).count();
                times.extend(takeovers.into_iter().flatten());
            }
            let aim = if way == Way::Drained { Duration::from_secs(1) } else { *ttl + Duration::from_secs(2) };
            let late = times.iter().filter(|time| **time > aim).count();
            if !times.is_empty() || missing > 0 {
                let all = spread(times);
                self.verdict.facts.push(format!("{what}: {all}; {late} of them later than {aim:?}"));
            }
            self.verdict.expect(missing == 0, || format!("{missing} shards were not seen to commit under a new owner"));
        }
        let back: Vec<_> = self.returns.iter().flat_map(|at| timeline.next_commits(*at)).collect();
        self.verdict
            .expect(back.iter().all(Option::is_some), || "a shard did not commit after a server's return".into());
        if !back.is_empty() {
            let back = spread(back.into_iter().flatten().collect());
            self.verdict.facts.push(format!("first commit after a server's return: {back}"));
        }
        let (moved, again) = timeline.moves();
        let still = timeline.standstill(began, ended).as_millis();
        let fact = format!(
            "{moved} moves of shards, {again} shards taken again by their owner; longest standstill {still} ms"
        );
        self.verdict.facts.push(fact);
        self.verdict.violations.extend(timeline.regressions());
        self.memory(began, ended, given);
        let put = self.gauge.put.load(Ordering::Relaxed);
        let seconds = (ended - began).as_secs_f64();
        let repeats = given.repeats();
        let measured = put as f64 / seconds;
        self.verdict.facts.push(format!(
            "{put} records in {seconds:.0} s ({measured:.0} a second, {rate} planned), {} different, {repeats} repeats",
            given.unique()
        ));
        self.said().await;
    }

    fn memory(&mut self, began: Duration, ended: Duration, given: &Postings) {
        let middle = began + (ended - began) / 2;
        let (first, second) = (self.memory.most(began, middle), self.memory.most(middle, self.watch.elapsed()));
        let fact = format!("a worker's memory: at most {first} MiB in the first half, {second} MiB in the second");
        let bound = first + NOISE_MIB + ((given.unique() as u64 * ID_BYTES) >> 20);
        self.verdict.expect(second <= bound, || format!("memory is not flat: {fact}"));
        self.verdict.facts.push(fact);
    }

    /// Reports the workers' own metrics.
    async fn said(&mut self) {
        let mut commits = Vec::new();
        for outcome in ["committed", "fenced", "refused", "unavailable", "unknown"] {
            let mut sum = 0;
            for worker in &self.workers {
                let metrics = worker.metrics().await.unwrap_or_default();
                sum += total(&metrics, "perkey_commits_total", &format!("outcome=\"{outcome}\""));
            }
            commits.push(format!("{sum} {outcome}"));
        }
        self.verdict.facts.push(format!("commits of the processes that are left: {}", commits.join(", ")));
        let lost: u64 = self.workers.iter().map(|worker| worker.postgres.lost()).sum();
        if self.plan.scenario == Scenario::AnswerLost {
            self.verdict.expect(lost > 0, || "no answer was lost".to_owned());
            self.verdict.facts.push(format!("{lost} connections lost an answer"));
        }
        for worker in &self.workers {
            for line in worker.told("panicked").into_iter().take(3) {
                self.verdict.violations.push(format!("{}: {line}", worker.name));
            }
        }
    }
}
