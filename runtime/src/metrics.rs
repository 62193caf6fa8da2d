//! The metrics, and the functions that record them: call sites never build a label.
//! In: facts from the pipeline and the supervisors. Out: text in the OpenMetrics format.
//!
//! Handles are resolved once, when a service is bound or a shard is taken; recording is then an atomic addition.
//! Labels come from closed sets. No key, id or payload is ever one.

mod beside;
mod classic;
mod families;
mod process;
mod words;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::message::ShardNo;
use crate::store::CommitOutcome;
pub use beside::{CacheMetrics, DependencyMetrics, IntakeMetrics, OperationMetrics, RouteMetrics};
use families::{Catalogue, Families, Labels, Record, ShardFamilies, SinkFamilies};
pub use families::{ShardMetrics, SinkMetrics};
pub(crate) use words::words;
pub use words::{
    Alarm, CallWord, Child, CommitWord, DedupSource, HttpOutcome, IntakeOutcome, RestartReason, TakeReason, WorkerAlarm,
};

/// Media type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Media type of [`Metrics::encode_classic`]'s text.
pub const CLASSIC_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The highest value of the label `attempt`; it stands for all attempts from there on.
pub const ATTEMPT_LABEL_MAX: u32 = 16;

/// The number of the first attempt that is a retry.
const FIRST_RETRY: u32 = 2;

/// The value of the label `service` for messages of none that the program has.
pub(crate) const UNKNOWN_SERVICE: &str = "unknown";

/// All metrics of a process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    exposed: Vec<String>,
    families: Families,
    of_shards: ShardFamilies,
    of_sinks: SinkFamilies,
    dedup_hits: Vec<Counter>,
    retries: Vec<Counter>,
    commits: Vec<Counter>,
    takeovers: Vec<Counter>,
    worker_alarms: Vec<Gauge>,
    /// Of each child, the restarts for each reason.
    restarts: Vec<Vec<Counter>>,
    /// The sinks whose handles were asked for.
    sinks: Mutex<BTreeSet<Arc<str>>>,
}

impl Metrics {
    /// Registers every family.
    pub fn new() -> Arc<Self> {
        let mut catalogue = Catalogue::default();
        let families = Families::register(&mut catalogue);
        let (of_shards, of_sinks) = (ShardFamilies::register(&mut catalogue), SinkFamilies::register(&mut catalogue));
        let retries = (FIRST_RETRY..=ATTEMPT_LABEL_MAX).map(|attempt| one("attempt", &attempt.to_string()));
        Arc::new(Self {
            dedup_hits: members(&families.dedup_hits, "source", DedupSource::ALL, DedupSource::as_str),
            retries: retries.map(|labels| families.retries.get_or_create_owned(&labels)).collect(),
            commits: members(&families.commits, "outcome", CommitWord::ALL, CommitWord::as_str),
            takeovers: members(&families.takeovers, "reason", TakeReason::ALL, TakeReason::as_str),
            restarts: (Child::ALL.iter())
                .map(|child| {
                    let child = one("child", child.as_str());
                    members_of(&families.restarts, &child, "reason", RestartReason::ALL, RestartReason::as_str)
                })
                .collect(),
            worker_alarms: members(&families.alarms, "alarm", WorkerAlarm::ALL, WorkerAlarm::as_str),
            registry: catalogue.registry,
            exposed: catalogue.exposed,
            families,
            of_shards,
            of_sinks,
            sinks: Mutex::default(),
        })
    }

    /// All metrics as text, of the type [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        self.look_at_process();
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("writing to a String cannot fail");
        out
    }

    /// All metrics as text, of the type [`CLASSIC_CONTENT_TYPE`].
    pub fn encode_classic(&self) -> String {
        classic::classic(&self.encode())
    }

    /// Shows what runs here: the program's version, and the sum of its states' versions.
    pub fn set_build(&self, version: &str, code: u32) {
        let labels = vec![("version", version.into()), ("code_version", code.to_string().into())];
        self.families.build.get_or_create(&labels).set(1);
    }

    /// The names of all families as they are exposed, including those that have nothing to show yet.
    pub fn names(&self) -> &[String] {
        &self.exposed
    }

    /// The handles of a service, by its public name.
    pub fn service(&self, name: &str) -> ServiceMetrics {
        let labels = one("service", name);
        ServiceMetrics {
            processed: self.families.processed.get_or_create_owned(&labels),
            late: self.families.late.get_or_create_owned(&labels),
            dead_letters: self.families.dead_letters.get_or_create_owned(&labels),
            turn_seconds: self.families.turn_seconds.get_or_create_owned(&labels),
        }
    }

    /// The handles of a shard that this process has taken.
    pub fn shard(&self, no: ShardNo) -> ShardMetrics {
        let alarms = Alarm::ALL.iter().map(|alarm| self.families.alarms.get_or_create_owned(&alarm_labels(*alarm, no)));
        self.of_shards.of(&one("shard", &no.to_string()), alarms.collect())
    }

    /// The handles of a sink of a shard that this process has taken.
    pub fn sink(&self, no: ShardNo, sink: &str) -> SinkMetrics {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).insert(sink.into());
        let labels = one("sink", sink);
        let published = self.families.published.get_or_create_owned(&labels);
        let refused = self.families.refused.get_or_create_owned(&labels);
        self.of_sinks.of(&sink_labels(no, sink), published, refused)
    }

    /// Stops showing a shard that this process no longer owns; handles that are still held record into nothing.
    pub fn forget_shard(&self, no: ShardNo) {
        self.of_shards.remove(&one("shard", &no.to_string()));
        for sink in self.sinks.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            self.of_sinks.remove(&sink_labels(no, sink));
        }
        for alarm in Alarm::ALL {
            self.families.alarms.remove(&alarm_labels(*alarm, no));
        }
    }

    /// The store could not be looked at for gauges.
    pub fn add_look_failure(&self) {
        self.families.look_failures.inc();
    }

    /// `count` deliveries were dropped as already taken.
    pub fn add_dedup_hits(&self, source: DedupSource, count: u64) {
        self.dedup_hits[source as usize].inc_by(count);
    }

    /// A message is tried again after `delay`; `attempt` is the number of the attempt to come, 2 for the first retry.
    pub fn record_retry(&self, attempt: u32, delay: Duration) {
        let label = attempt.clamp(FIRST_RETRY, ATTEMPT_LABEL_MAX);
        self.retries[(label - FIRST_RETRY) as usize].inc();
        self.families.retry_delay.observe(delay.as_secs_f64());
    }

    /// Records that a commit of `turns` turns came back from the store after `elapsed`.
    pub fn record_commit(&self, outcome: &CommitOutcome, turns: u64, elapsed: Duration) {
        let word = CommitWord::from(outcome);
        self.commits[word as usize].inc();
        self.families.commit_seconds.observe(elapsed.as_secs_f64());
        if word == CommitWord::Committed {
            self.families.commit_turns.observe(turns as f64);
        }
    }

    /// Time until this worker stops its shards unless its lease is renewed.
    pub fn set_lease_remaining(&self, left: Duration) {
        self.families.lease_remaining.set(left.as_secs_f64());
    }

    /// Sets the age of the oldest transaction that keeps dead rows in the store.
    pub fn set_oldest_transaction(&self, age: Duration) {
        self.families.oldest_transaction.set(age.as_secs_f64());
    }

    /// Records that a shard runs here after it had no owner for `without`.
    pub fn record_takeover(&self, reason: TakeReason, without: Duration) {
        self.takeovers[reason as usize].inc();
        self.families.takeover_seconds.observe(without.as_secs_f64());
    }

    /// Raises or clears an alarm of this worker; returns whether that changed it.
    pub fn set_worker_alarm(&self, alarm: WorkerAlarm, raised: bool) -> bool {
        self.worker_alarms[alarm as usize].set(raised.into()) != i64::from(raised)
    }

    /// Sets the number of records of a Kafka partition that this process reads and whose position the group does not
    /// have yet.
    pub fn set_kafka_lag(&self, topic: &str, partition: i32, records: u64) {
        self.families.kafka_lag.get_or_create(&partition_labels(topic, partition)).record(records);
    }

    /// Stops showing a Kafka partition that this process no longer reads.
    pub fn forget_kafka_lag(&self, topic: &str, partition: i32) {
        self.families.kafka_lag.remove(&partition_labels(topic, partition));
    }

    /// Records the restart of a child.
    pub fn record_restart(&self, child: Child, reason: RestartReason) {
        self.restarts[child as usize][reason as usize].inc();
    }
}

fn partition_labels(topic: &str, partition: i32) -> Labels {
    vec![("topic", topic.into()), ("partition", partition.to_string().into())]
}

/// The handles of one service.
#[derive(Clone, Debug)]
pub struct ServiceMetrics {
    processed: Counter,
    late: Counter,
    dead_letters: Counter,
    turn_seconds: Histogram,
}

impl ServiceMetrics {
    /// Counts messages whose outcomes are committed.
    pub fn add_processed(&self, count: u64) {
        self.processed.inc_by(count);
    }

    /// Counts messages whose outcomes are committed later than `metrics.late_after`.
    pub fn add_late(&self, count: u64) {
        self.late.inc_by(count);
    }

    /// Counts messages that became dead letters.
    pub fn add_dead_letters(&self, count: u64) {
        self.dead_letters.inc_by(count);
    }

    /// Records a run of `turns` turns that took `elapsed`: one observation of the mean. A run without turns is not
    /// recorded.
    pub fn record_run(&self, turns: u64, elapsed: Duration) {
        if turns > 0 {
            self.turn_seconds.observe(elapsed.as_secs_f64() / turns as f64);
        }
    }
}

impl ShardMetrics {
    /// Deliveries in hand, and their bytes.
    pub fn set_in_hand(&self, count: u64, bytes: u64) {
        self.credits_in_use.record(count);
        self.bytes_in_hand.record(bytes);
    }

    /// Sets the number of ids in the inbox, and of stretches done above the sources' positions.
    pub fn set_done(&self, ids: u64, stretches: u64) {
        self.inbox_ids.record(ids);
        self.ahead_stretches.record(stretches);
    }

    /// Sets the dedup window in force.
    pub fn set_dedup_window(&self, window: Duration) {
        self.dedup_window.record(window.as_secs());
    }

    /// Raises or clears an alarm of this shard; returns whether that changed it.
    pub fn set_alarm(&self, alarm: Alarm, raised: bool) -> bool {
        self.alarms[alarm as usize].set(raised.into()) != i64::from(raised)
    }
}

impl SinkMetrics {
    /// Counts events that the sink confirmed.
    pub fn add_published(&self, count: u64) {
        self.published.inc_by(count);
    }

    /// Counts events that the sink refused.
    pub fn add_refused(&self, count: u64) {
        self.refused.inc_by(count);
    }

    /// Age of the oldest event that waits to be published.
    pub fn set_lag(&self, age: Duration) {
        self.lag.record(age.as_secs());
    }
}

fn sink_labels(shard: ShardNo, sink: &str) -> Labels {
    vec![("shard", shard.to_string().into()), ("sink", sink.into())]
}

/// The members of a family by a label that is one of these words.
fn members<M: Clone + Default, W: Copy>(
    family: &Family<Labels, M>,
    label: &'static str,
    words: &[W],
    as_str: fn(W) -> &'static str,
) -> Vec<M> {
    members_of(family, &Labels::new(), label, words, as_str)
}

fn one(name: &'static str, value: &str) -> Labels {
    vec![(name, value.into())]
}

/// The members of a family by labels that are given, and another that is one of these words.
fn members_of<M: Clone + Default, W: Copy>(
    family: &Family<Labels, M>,
    given: &Labels,
    label: &'static str,
    words: &[W],
    as_str: fn(W) -> &'static str,
) -> Vec<M> {
    let labels = |word: &W| given.iter().cloned().chain(one(label, as_str(*word))).collect();
    words.iter().map(|word| family.get_or_create_owned(&labels(word))).collect()
}

fn alarm_labels(alarm: Alarm, shard: ShardNo) -> Labels {
    vec![("alarm", alarm.as_str().into()), ("shard", shard.to_string().into())]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn exercised() -> Arc<Metrics> {
        let metrics = Metrics::new();
        let service = metrics.service("balances");
        service.add_processed(3);
        service.add_dead_letters(1);
        service.record_run(4, Duration::from_micros(8));
        metrics.shard(7).set_alarm(Alarm::HeldKeys, true);
        metrics.set_kafka_lag("orders", 3, 7);
        metrics.intake("orders.intake").record(IntakeOutcome::Moved);
        metrics.sink(7, "kafka").add_published(1);
        metrics.dependency("provider").set_open(true);
        metrics.dependency("provider").add_unavailable();
        metrics.record_restart(Child::Committer, RestartReason::Panicked);
        metrics.route("/api/orders/{id}").record(HttpOutcome::Done, Duration::from_millis(3));
        metrics.operation("orders.place").record(CallWord::New);
        metrics.set_build("1.2.3", 4);
        metrics
    }

    /// The name of each family in the text, with its type.
    fn families(text: &str) -> BTreeMap<&str, &str> {
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
    }

    #[test]
    fn the_text_is_well_formed() {
        let text = exercised().encode();
        let known = families(&text);
        assert_eq!(text.lines().last(), Some("# EOF"));
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let name = series.split('{').next().unwrap();
            let bare = ["_total", "_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            assert!(known.contains_key(name) || bare.is_some_and(|bare| known.contains_key(bare)), "{line}");
        }
    }

    #[test]
    fn counters_end_in_total_once() {
        let text = exercised().encode();
        assert!(!text.contains("_total_total"));
        assert!(text.contains("consumer_processed_total{service=\"balances\"} 3\n"), "{text}");
        assert!(text.contains("dlq_messages_total{service=\"balances\"} 1\n"), "{text}");
    }

    #[test]
    fn names_are_those_of_the_text_and_of_the_documents() {
        let metrics = exercised();
        let text = metrics.encode();
        let shown: BTreeSet<String> = families(&text)
            .into_iter()
            .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
            .collect();
        let named: BTreeSet<String> = metrics.names().iter().cloned().collect();
        assert_eq!(shown, named);
        let documented: BTreeSet<String> = include_str!("../../docs/metrics.md")
            .lines()
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
            .collect();
        assert_eq!(documented, named);
    }

    #[test]
    fn labels_are_of_closed_sets() {
        let known = [
            "service",
            "shard",
            "child",
            "reason",
            "attempt",
            "source",
            "outcome",
            "alarm",
            "le",
            "sink",
            "topic",
            "partition",
            "queue",
            "dependency",
            "route",
            "operation",
            "version",
            "code_version",
        ];
        let text = exercised().encode();
        let series = text.lines().filter_map(|line| Some(line.split_once('{')?.1.rsplit_once('}')?.0));
        let labels: BTreeSet<&str> =
            series.flat_map(|labels| labels.split(',')).filter_map(|label| Some(label.split_once('=')?.0)).collect();
        assert_eq!(labels, BTreeSet::from(known), "a label must be one of a closed set, never a part of a message");
    }

    #[test]
    fn what_did_not_happen_yet_is_shown_as_0() {
        let metrics = Metrics::new();
        metrics.route("/graphql");
        metrics.operation("orders.place");
        let text = metrics.encode();
        for child in Child::ALL {
            for reason in RestartReason::ALL {
                let (child, reason) = (child.as_str(), reason.as_str());
                let line = format!("perkey_restarts_total{{child=\"{child}\",reason=\"{reason}\"}} 0\n");
                assert!(text.contains(&line), "{line}{text}");
            }
        }
        for word in CallWord::ALL {
            let word = word.as_str();
            let line = format!("idempotency_key_total{{operation=\"orders.place\",outcome=\"{word}\"}} 0\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        for outcome in HttpOutcome::ALL {
            let outcome = outcome.as_str();
            let line = format!("http_request_outcome_total{{route=\"/graphql\",outcome=\"{outcome}\"}} 0\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    }

    #[test]
    fn the_attempt_label_is_capped() {
        let metrics = Metrics::new();
        assert!(!metrics.encode().contains("attempt=\"1\""), "a first attempt is no retry");
        metrics.record_retry(2, Duration::from_millis(100));
        metrics.record_retry(16, Duration::ZERO);
        metrics.record_retry(u32::MAX, Duration::ZERO);
        let text = metrics.encode();
        assert!(text.contains("retry_attempt_total{attempt=\"2\"} 1\n"), "{text}");
        assert!(text.contains("retry_attempt_total{attempt=\"16\"} 2\n"), "{text}");
        assert!(text.contains("retry_delay_seconds_count 3\n"), "{text}");
    }

    #[test]
    fn only_commits_that_count_are_sized() {
        let metrics = Metrics::new();
        metrics.record_commit(&CommitOutcome::Committed, 10, Duration::from_millis(1));
        metrics.record_commit(&CommitOutcome::Fenced, 10, Duration::from_millis(1));
        let text = metrics.encode();
        assert!(text.contains("perkey_commits_total{outcome=\"fenced\"} 1\n"), "{text}");
        assert!(text.contains("perkey_commit_turns_sum 10.0\n"), "{text}");
        assert!(text.contains("perkey_commit_seconds_count 2\n"), "{text}");
    }

    #[test]
    fn a_run_is_one_observation_of_its_mean() {
        let metrics = Metrics::new();
        let service = metrics.service("balances");
        service.record_run(4, Duration::from_secs(2));
        service.record_run(0, Duration::from_secs(2));
        let text = metrics.encode();
        assert!(text.contains("perkey_turn_seconds_sum{service=\"balances\"} 0.5\n"), "{text}");
        assert!(text.contains("perkey_turn_seconds_count{service=\"balances\"} 1\n"), "{text}");
    }

    #[test]
    fn handles_of_one_name_count_together() {
        let metrics = Metrics::new();
        metrics.service("balances").add_processed(1);
        metrics.service("balances").add_processed(1);
        assert!(metrics.encode().contains("consumer_processed_total{service=\"balances\"} 2\n"));
    }

    #[test]
    fn a_shard_that_was_given_up_is_no_longer_shown() {
        let metrics = Metrics::new();
        let (kept, gone) = (metrics.shard(1), metrics.shard(2));
        kept.set_pending_rows(5);
        gone.set_pending_rows(6);
        metrics.sink(2, "kafka").set_pending(7);
        gone.set_alarm(Alarm::PendingBoundReached, true);
        metrics.forget_shard(2);
        let text = metrics.encode();
        assert!(text.contains("perkey_pending_rows{shard=\"1\"} 5\n"), "{text}");
        assert!(!text.contains("shard=\"2\""), "{text}");
    }
}
