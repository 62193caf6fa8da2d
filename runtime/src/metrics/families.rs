//! Every metric family by its name: the one place that knows names, help texts, labels and buckets.
//! In: nothing. Out: families that are registered, for [`super::Metrics`] to resolve; what records into those of a shard.
//!
//! The registry adds `_total` to the name of a counter. `docs/metrics.md` says what each metric means.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

use super::Metrics;

/// Labels of one member of a family: values come from closed sets, never from a message.
pub(super) type Labels = Vec<(&'static str, Arc<str>)>;
pub(super) type CounterFamily = Family<Labels, Counter>;
pub(super) type GaugeFamily = Family<Labels, Gauge>;
pub(super) type FloatGauge = Gauge<f64, AtomicU64>;
pub(super) type FloatCounter = Counter<f64, AtomicU64>;
pub(super) type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// A registry that remembers the names it exposes.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    pub(super) registry: Registry,
    pub(super) exposed: Vec<String>,
}

impl Catalogue {
    fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        let suffix = if matches!(metric.metric_type(), MetricType::Counter) { "_total" } else { "" };
        self.exposed.push(format!("{name}{suffix}"));
        self.registry.register(name, help, metric.clone());
        metric
    }
}

/// A metric that is told one number at a time: what a counter grows by, what a gauge shows.
pub(super) trait Record {
    fn record(&self, value: u64);
}

impl Record for Counter {
    fn record(&self, value: u64) {
        self.inc_by(value);
    }
}

impl Record for Gauge {
    fn record(&self, value: u64) {
        self.set(i64::try_from(value).unwrap_or(i64::MAX));
    }
}

/// The families of a process. Of each: its field, its type, its name, what it says; and the method of [`Metrics`] that
/// records into it, where that is all there is to do.
macro_rules! families {
    ($($field:ident: $kind:ident $(= $new:expr)?, $name:literal, $help:literal
        $(, $(#[$doc:meta])* $record:ident)?;)*) => {
        #[derive(Debug)]
        pub(super) struct Families {
            $(pub(super) $field: $kind,)*
        }

        impl Families {
            pub(super) fn register(to: &mut Catalogue) -> Self {
                Self { $($field: to.add($name, $help, families!(@new $kind $($new)?)),)* }
            }
        }

        impl Metrics {
            $($(
                $(#[$doc])*
                pub fn $record(&self, value: u64) {
                    self.families.$field.record(value);
                }
            )?)*
        }
    };
    (@new $kind:ident) => { $kind::default() };
    (@new $kind:ident $new:expr) => { $new };
}

/// Families whose members come and go together, and those members. Of each: its field, its type, its name, what it says;
/// and the method that records into a member, where that is all there is to do.
macro_rules! members {
    ($(#[$doc:meta])* $Member:ident of $Families:ident with $($given:ident: $type:ty),* {
        $($field:ident: $kind:ident, $name:literal, $help:literal $(, $(#[$said:meta])* $record:ident)?;)*
    }) => {
        #[derive(Debug)]
        pub(super) struct $Families {
            $($field: Family<Labels, $kind>,)*
        }

        impl $Families {
            pub(super) fn register(to: &mut Catalogue) -> Self {
                Self { $($field: to.add($name, $help, Family::default()),)* }
            }

            /// The members with these labels.
            pub(super) fn of(&self, labels: &Labels, $($given: $type),*) -> $Member {
                $Member { $($field: self.$field.get_or_create_owned(labels),)* $($given,)* }
            }

            /// Stops showing them.
            pub(super) fn remove(&self, labels: &Labels) {
                $(self.$field.remove(labels);)*
            }
        }

        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $Member {
            $(pub(super) $field: $kind,)*
            $(pub(super) $given: $type,)*
        }

        impl $Member {
            $($(
                $(#[$said])*
                pub fn $record(&self, value: u64) {
                    self.$field.record(value);
                }
            )?)*
        }
    };
}

families! {
    processed: CounterFamily, "consumer_processed", "Messages whose outcome is committed";
    late: CounterFamily, "perkey_late", "Messages whose outcome is committed later than metrics.late_after";
    dedup_hits: CounterFamily, "consumer_dedup_hits", "Deliveries dropped as already taken";
    dead_letters: CounterFamily, "dlq_messages", "Messages that became dead letters";
    unbound: Counter, "perkey_unbound_messages", "Messages that no binding matched",
        /// Adds messages that matched no binding.
        add_unbound;
    id_conflicts: Counter, "perkey_id_conflicts", "Dead letters by an id with other content",
        /// Adds messages that are dead letters because their id was taken before with other content.
        add_id_conflicts;
    expired: Counter, "dlq_expired", "Dead letters removed after dlq.keep",
        /// Adds dead letters that were removed after `dlq.keep`.
        add_expired;
    look_failures: Counter, "perkey_look_failures", "Looks at the store for gauges that failed";
    rekeyed: Counter, "perkey_rekeyed_messages", "Messages passed on to their key's shard",
        /// Adds messages that were passed on to the shard of their key.
        add_rekeyed;
    retries: CounterFamily, "retry_attempt", "Retries put off, by the attempt to come";
    retry_delay: Histogram = waits(), "retry_delay_seconds", "Delay before a retry";
    turn_seconds: Histograms = turns(), "perkey_turn_seconds", "Mean time of a turn, per run";
    commits: CounterFamily, "perkey_commits", "Commits, by how they ended";
    commit_turns: Histogram = sizes(), "perkey_commit_turns", "Turns in a commit";
    commit_seconds: Histogram = commit_times(), "perkey_commit_seconds", "Time of a commit at the store";
    calls: CounterFamily, "idempotency_key", "Calls, by operation and what their idempotency key was";
    restarts: CounterFamily, "perkey_restarts", "Restarts, by child and reason";
    published: CounterFamily, "outbox_published", "Events that a sink confirmed";
    refused: CounterFamily, "outbox_refused", "Events that a sink refused";
    dependency_open: GaugeFamily, "perkey_dependency_open", "1 while a dependency's breaker is open";
    unavailable: CounterFamily, "perkey_unavailable_turns", "Turns that found a dependency unavailable";
    cache_hits: Counter, "idempotency_cache_hits", "Calls whose record the cache had";
    cache_misses: Counter, "idempotency_cache_misses", "Calls whose record the cache did not have";
    cache_errors: Counter, "idempotency_cache_errors", "Questions that the cache could not answer";
    alarms: GaugeFamily, "perkey_alarm", "1 while the alarm is raised";
    owned_shards: Gauge, "perkey_owned_shards", "Shards that run here, in a fleet",
        /// Shards that run here, in a fleet.
        set_owned_shards;
    shards_without_owner: Gauge, "perkey_shards_without_owner", "Shards that no living worker owns",
        /// Shards that no living worker owns, as this worker sees the fleet.
        set_shards_without_owner;
    lease_remaining: FloatGauge, "perkey_lease_remaining_seconds", "Time until this worker stops";
    takeovers: CounterFamily, "perkey_takeovers", "Shards taken in a fleet, by reason";
    takeover_seconds: Histogram = waits(), "perkey_takeover_seconds", "Time of a shard without an owner";
    kafka_lag: GaugeFamily, "kafka_consumer_lag", "Records behind which the group is";
    intake: CounterFamily, "rabbitmq_intake", "Messages of an intake, by what became of them";
    oldest_transaction: FloatGauge, "postgres_oldest_transaction_seconds", "Age of the oldest transaction";
    call_keys: Gauge, "idempotency_keys", "Idempotency keys in the store";
    call_keys_share: FloatGauge, "idempotency_keys_share", "Keys of the tenant with most, of its bound";
    call_keys_forecast: FloatGauge, "idempotency_keys_forecast_share", "The same once its pace has gone on";
    tokens_wrong_since: Gauge, "gateway_tokens_wrong_since_seconds",
        "When the file of tokens was first found wrong, as a Unix time; 0: it is fine";
    http: CounterFamily, "http_request_outcome", "Requests at the front doors, by how they ended";
    http_seconds: Histograms = requests(), "http_request_seconds", "Time of a request at the front doors";
    build: GaugeFamily, "perkey_build_info", "1, with the versions of the program and of its states";
    cpu: FloatCounter, "process_cpu_seconds", "Processor time that the process used";
    memory: Gauge, "process_resident_memory_bytes", "Memory of the process that is in use";
    files: Gauge, "process_open_fds", "Files that the process has open";
    files_max: Gauge, "process_max_fds", "Files that the process may have open";
    started: FloatGauge, "process_start_time_seconds", "When the process was started, as a Unix time";
}

members! {
    /// The handles of one shard.
    ShardMetrics of ShardFamilies with alarms: Vec<Gauge> {
        activations: Counter, "perkey_activations", "Keys that were given an actor",
            /// So many keys were given an actor.
            add_activations;
        passivations: Counter, "perkey_passivations", "Keys that gave their actor back",
            /// So many keys gave their actor back.
            add_passivations;
        dead_letter_depth: Gauge, "dead_letter_queue_depth", "Dead letters in the store",
            /// Dead letters in the store.
            set_dead_letter_depth;
        resident_actors: Gauge, "perkey_resident_actors", "Actors that have a key",
            /// Actors that have a key.
            set_resident_actors;
        waiting_keys: Gauge, "perkey_waiting_keys", "Keys that wait for a retry",
            /// Keys that wait for a retry.
            set_waiting_keys;
        held_keys: Gauge, "perkey_held_keys", "Keys that wait for an operator",
            /// Keys that wait for an operator.
            set_held_keys;
        pending_rows: Gauge, "perkey_pending_rows", "Messages that wait durably",
            /// Rows in `pending`.
            set_pending_rows;
        credits_in_use: Gauge, "perkey_credits_in_use", "Deliveries in hand";
        bytes_in_hand: Gauge, "perkey_bytes_in_hand", "Bytes of deliveries in hand";
        unread: Gauge, "perkey_unread_messages", "Messages behind which the sources are",
            /// Messages between the sources' positions and their ends.
            set_unread;
        inbox_ids: Gauge, "perkey_inbox_ids", "Ids in the inbox";
        ahead_stretches: Gauge, "perkey_ahead_stretches", "Stretches that are done above positions";
        dedup_window: Gauge, "perkey_dedup_window_seconds", "Dedup window in force";
        epoch: Gauge, "perkey_shard_epoch", "Epoch under which the shard is owned",
            /// The epoch under which the shard is owned.
            set_epoch;
        commit_no: Gauge, "perkey_shard_commit_no", "Number of the last commit",
            /// The number of its last commit.
            set_commit_no;
    }
}

members! {
    /// The handles of one sink of one shard.
    SinkMetrics of SinkFamilies with published: Counter, refused: Counter {
        pending: Gauge, "outbox_pending", "Events that wait to be published",
            /// Events that wait to be published.
            set_pending;
        lag: Gauge, "outbox_lag_seconds", "Age of the oldest unpublished event";
    }
}

/// 10 ms to about 80 s: delays are drawn from `[0, 30 s]` by default.
fn waits() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 14))
}

/// 1 µs to about 4 s: a turn may be arithmetic or a call to another service.
fn turns() -> Histograms {
    Histograms::new_with_constructor(|| Histogram::new(exponential_buckets(1e-6, 4.0, 12)))
}

/// 1 ms to about 65 s: from a read to a request that waits for its turn as long as it may.
fn requests() -> Histograms {
    Histograms::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 17)))
}

/// 1 to 4,096 turns, the default bound of a commit.
fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 13))
}

/// 100 µs to about 3 s: from a fast disk to a store in trouble.
fn commit_times() -> Histogram {
    Histogram::new(exponential_buckets(1e-4, 2.0, 16))
}
