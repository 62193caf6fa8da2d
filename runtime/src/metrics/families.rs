//! Every metric family by its name: the one place that knows names, help texts, labels and buckets.
//! In: nothing. Out: families that are registered, for [`super::Metrics`] to resolve.
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

/// Labels of one member of a family: values come from closed sets, never from a message.
pub(super) type Labels = Vec<(&'static str, Arc<str>)>;
pub(super) type Counters = Family<Labels, Counter>;
pub(super) type Gauges = Family<Labels, Gauge>;
pub(super) type FloatGauge = Gauge<f64, AtomicU64>;
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

/// The families of a process.
#[derive(Debug)]
pub(super) struct Families {
    pub(super) processed: Counters,
    pub(super) dedup_hits: Counters,
    pub(super) dead_letters: Counters,
    pub(super) unbound: Counter,
    pub(super) rekeyed: Counter,
    pub(super) expired: Counter,
    pub(super) id_conflicts: Counter,
    pub(super) look_failures: Counter,
    pub(super) retries: Counters,
    pub(super) retry_delay: Histogram,
    pub(super) turn_seconds: Histograms,
    pub(super) commits: Counters,
    pub(super) commit_turns: Histogram,
    pub(super) commit_seconds: Histogram,
    pub(super) restarts: Counters,
    pub(super) published: Counters,
    pub(super) refused: Counters,
    pub(super) dependency_open: Gauges,
    pub(super) unavailable: Counters,
    pub(super) cache_hits: Counter,
    pub(super) cache_errors: Counter,
    pub(super) alarms: Gauges,
    pub(super) owned_shards: Gauge,
    pub(super) calls: Counters,
    pub(super) lease_remaining: FloatGauge,
    pub(super) takeovers: Counters,
    pub(super) takeover_seconds: Histogram,
    pub(super) kafka_lag: Gauges,
    pub(super) intake: Counters,
    pub(super) oldest_transaction: FloatGauge,
    pub(super) call_keys: Gauge,
    pub(super) call_keys_share: FloatGauge,
    pub(super) call_keys_forecast: FloatGauge,
    pub(super) http: Counters,
    pub(super) tokens_wrong_since: Gauge,
    pub(super) shard: ShardFamilies,
}

/// The families whose members belong to a shard: they go when the shard goes.
#[derive(Debug)]
pub(super) struct ShardFamilies {
    pub(super) activations: Counters,
    pub(super) passivations: Counters,
    pub(super) dead_letter_depth: Gauges,
    pub(super) resident_actors: Gauges,
    pub(super) waiting_keys: Gauges,
    pub(super) held_keys: Gauges,
    pub(super) pending_rows: Gauges,
    pub(super) credits_in_use: Gauges,
    pub(super) bytes_in_hand: Gauges,
    pub(super) unread: Gauges,
    pub(super) inbox_ids: Gauges,
    pub(super) ahead_stretches: Gauges,
    pub(super) dedup_window: Gauges,
    pub(super) epoch: Gauges,
    pub(super) commit_no: Gauges,
    pub(super) outbox_pending: Gauges,
    pub(super) outbox_lag: Gauges,
}

impl Families {
    #[rustfmt::skip] // one family a line reads as the table that it is
    pub(super) fn register(to: &mut Catalogue) -> Self {
        Self {
            processed: to.add("consumer_processed", "Messages whose outcome is committed", Counters::default()),
            dedup_hits: to.add("consumer_dedup_hits", "Deliveries dropped as already taken", Counters::default()),
            dead_letters: to.add("dlq_messages", "Messages that became dead letters", Counters::default()),
            unbound: to.add("perkey_unbound_messages", "Messages that no binding matched", Counter::default()),
            id_conflicts: to.add("perkey_id_conflicts", "Dead letters by an id with other content", Counter::default()),
            expired: to.add("dlq_expired", "Dead letters removed after dlq.keep", Counter::default()),
            look_failures: to.add("perkey_look_failures", "Looks at the store for gauges that failed", Counter::default()),
            rekeyed: to.add("perkey_rekeyed_messages", "Messages passed on to their key's shard", Counter::default()),
            retries: to.add("retry_attempt", "Retries put off, by the attempt to come", Counters::default()),
            retry_delay: to.add("retry_delay_seconds", "Delay before a retry", waits()),
            turn_seconds: to.add("perkey_turn_seconds", "Mean time of a turn, per run", turns()),
            commits: to.add("perkey_commits", "Commits, by how they ended", Counters::default()),
            commit_turns: to.add("perkey_commit_turns", "Turns in a commit", sizes()),
            commit_seconds: to.add("perkey_commit_seconds", "Time of a commit at the store", commit_times()),
            calls: to.add("idempotency_key", "Calls, by what their idempotency key was", Counters::default()),
            restarts: to.add("perkey_restarts", "Restarts, by child and reason", Counters::default()),
            published: to.add("outbox_published", "Events that a sink confirmed", Counters::default()),
            refused: to.add("outbox_refused", "Events that a sink refused", Counters::default()),
            dependency_open: to.add("perkey_dependency_open", "1 while a dependency's breaker is open", Gauges::default()),
            unavailable: to.add("perkey_unavailable_turns", "Turns that found a dependency unavailable", Counters::default()),
            cache_hits: to.add("idempotency_cache_hits", "Calls whose record the cache had", Counter::default()),
            cache_errors: to.add("idempotency_cache_errors", "Questions that the cache could not answer", Counter::default()),
            alarms: to.add("perkey_alarm", "1 while the alarm is raised", Gauges::default()),
            owned_shards: to.add("perkey_owned_shards", "Shards that run here, in a fleet", Gauge::default()),
            lease_remaining: to.add("perkey_lease_remaining_seconds", "Time until this worker stops", FloatGauge::default()),
            takeovers: to.add("perkey_takeovers", "Shards taken in a fleet, by reason", Counters::default()),
            takeover_seconds: to.add("perkey_takeover_seconds", "Time of a shard without an owner", waits()),
            kafka_lag: to.add("kafka_consumer_lag", "Records behind which the group is", Gauges::default()),
            intake: to.add("rabbitmq_intake", "Messages of an intake, by what became of them", Counters::default()),
            oldest_transaction: to.add("postgres_oldest_transaction_seconds", "Age of the oldest transaction", FloatGauge::default()),
            call_keys: to.add("idempotency_keys", "Idempotency keys in the store", Gauge::default()),
            call_keys_share: to.add("idempotency_keys_share", "Keys of the tenant with most, of its bound", FloatGauge::default()),
            call_keys_forecast: to.add("idempotency_keys_forecast_share", "The same once its pace has gone on", FloatGauge::default()),
            tokens_wrong_since: to.add(
                "gateway_tokens_wrong_since_seconds",
                "When the file of tokens was first found wrong, as a Unix time; 0: it is fine",
                Gauge::default(),
            ),
            http: to.add("http_request_outcome", "Requests at the front doors, by how they ended", Counters::default()),
            shard: ShardFamilies::register(to),
        }
    }
}

impl ShardFamilies {
    #[rustfmt::skip] // one family a line reads as the table that it is
    fn register(to: &mut Catalogue) -> Self {
        Self {
            activations: to.add("perkey_activations", "Keys that were given an actor", Counters::default()),
            passivations: to.add("perkey_passivations", "Keys that gave their actor back", Counters::default()),
            dead_letter_depth: to.add("dead_letter_queue_depth", "Dead letters in the store", Gauges::default()),
            resident_actors: to.add("perkey_resident_actors", "Actors that have a key", Gauges::default()),
            waiting_keys: to.add("perkey_waiting_keys", "Keys that wait for a retry", Gauges::default()),
            held_keys: to.add("perkey_held_keys", "Keys that wait for an operator", Gauges::default()),
            pending_rows: to.add("perkey_pending_rows", "Messages that wait durably", Gauges::default()),
            credits_in_use: to.add("perkey_credits_in_use", "Deliveries in hand", Gauges::default()),
            bytes_in_hand: to.add("perkey_bytes_in_hand", "Bytes of deliveries in hand", Gauges::default()),
            unread: to.add("perkey_unread_messages", "Messages behind which the sources are", Gauges::default()),
            inbox_ids: to.add("perkey_inbox_ids", "Ids in the inbox", Gauges::default()),
            ahead_stretches: to.add(
                "perkey_ahead_stretches",
                "Stretches that are done above positions",
                Gauges::default(),
            ),
            dedup_window: to.add("perkey_dedup_window_seconds", "Dedup window in force", Gauges::default()),
            epoch: to.add("perkey_shard_epoch", "Epoch under which the shard is owned", Gauges::default()),
            commit_no: to.add("perkey_shard_commit_no", "Number of the last commit", Gauges::default()),
            outbox_pending: to.add("outbox_pending", "Events that wait to be published", Gauges::default()),
            outbox_lag: to.add("outbox_lag_seconds", "Age of the oldest unpublished event", Gauges::default()),
        }
    }

    /// Drops the members of one sink of a shard.
    pub(super) fn remove_sink(&self, labels: &Labels) {
        self.outbox_pending.remove(labels);
        self.outbox_lag.remove(labels);
    }

    /// Drops the members of one shard.
    pub(super) fn remove(&self, labels: &Labels) {
        for counters in [&self.activations, &self.passivations] {
            counters.remove(labels);
        }
        let gauges = [
            &self.dead_letter_depth,
            &self.resident_actors,
            &self.waiting_keys,
            &self.held_keys,
            &self.pending_rows,
            &self.credits_in_use,
            &self.bytes_in_hand,
            &self.unread,
            &self.inbox_ids,
            &self.ahead_stretches,
            &self.dedup_window,
            &self.epoch,
            &self.commit_no,
        ];
        for gauges in gauges {
            gauges.remove(labels);
        }
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

/// 1 to 4,096 turns, the default bound of a commit.
fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 13))
}

/// 100 µs to about 3 s: from a fast disk to a store in trouble.
fn commit_times() -> Histogram {
    Histogram::new(exponential_buckets(1e-4, 2.0, 16))
}
