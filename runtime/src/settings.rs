//! Every setting: its name, its default, its rules.
//! In: defaults, a file, the environment, flags ([`load`]). Out: checked [`Settings`], or all problems at once.

mod checks;
mod cron;
mod gates;
pub mod load;
mod problems;
mod redact;
mod routes;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::cron::CronSettings;
pub use self::gates::{DependencySettings, ServiceLimit};
pub use self::routes::{Bind, IdWithin, KeyFrom, Publish};
pub(crate) use self::words::address;
pub use self::words::{DurationError, duration};

/// All settings. Sections are those of `config/default.toml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The store.
    pub store: StoreSettings,
    /// Shards and their owners.
    pub ownership: OwnershipSettings,
    /// The intake of messages.
    pub ingress: IngressSettings,
    /// Messages in memory.
    pub memory: MemorySettings,
    /// Key actors.
    pub actors: ActorSettings,
    /// Commits.
    pub commit: CommitSettings,
    /// The inbox's window.
    pub dedup: DedupSettings,
    /// Messages that wait in the store.
    pub pending: PendingSettings,
    /// Dead letters.
    pub dlq: DlqSettings,
    /// Messages that may have ended the process.
    pub suspects: SuspectSettings,
    /// Retries of messages.
    pub retry: RetrySettings,
    /// Bounds of a turn.
    pub limits: LimitSettings,
    /// The history that `explain` reads.
    pub history: HistorySettings,
    /// The embedded log.
    pub log: LogSettings,
    /// Leaving in order.
    pub drain: DrainSettings,
    /// Restarts of the runtime's own actors.
    pub supervision: SupervisionSettings,
    /// The bounds of metrics.
    pub metrics: MetricsSettings,
    /// The listener for metrics and health.
    pub admin: AdminSettings,
    /// The front doors.
    pub gateway: GatewaySettings,
    /// The cache of answers.
    pub cache: CacheSettings,
    /// Events on their way to sinks.
    pub outbox: OutboxSettings,
    /// Kafka as source and sink.
    pub kafka: KafkaSettings,
    /// RabbitMQ as source and sink.
    pub rabbitmq: RabbitmqSettings,
    /// Settings of the program itself, by names that its defaults declare.
    pub app: BTreeMap<String, String>,
    /// Routes from sources to services.
    pub bind: Vec<Bind>,
    /// Routes from services to sinks.
    pub publish: Vec<Publish>,
    /// Dependencies of handlers outside the process.
    pub dependency: Vec<DependencySettings>,
    /// Bounds of services' turns.
    pub limit: Vec<ServiceLimit>,
    /// Changes to handlers' schedules.
    pub cron: Vec<CronSettings>,
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $kind:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

// Behind the macro that these modules use.
mod admin;
mod gateway;
pub(crate) mod kafka;
mod memory;
pub(crate) mod rabbitmq;
pub use self::admin::{AdminSettings, MetricsSettings};
#[cfg(feature = "redis")]
pub(crate) use self::gateway::is_redis;
pub use self::gateway::{CacheSettings, GatewaySettings};
pub use self::kafka::{FirstStart, KafkaSettings, next_life, topic_of};
pub use self::memory::MemorySettings;
pub use self::rabbitmq::{RabbitmqSettings, WithoutId};

section! {
    /// The store.
    StoreSettings {
        /// Its URL: `sqlite:///path/to.db`, or `postgres://user@host/database`, which several workers share.
        url: String = "sqlite://perkey.db".to_owned(),
        /// Allows its tables in a database that has tables of others.
        share_database: bool = false,
        /// Connections for reads, on PostgreSQL; commits and leases have their own beside them.
        connections: u32 = 8,
        /// Time after which PostgreSQL aborts a statement; below `ownership.lease_ttl`.
        #[serde(with = "humantime_serde")]
        statement_timeout: Duration = Duration::from_secs(5),
        /// Age from which an open transaction of anybody in PostgreSQL is an alarm.
        #[serde(with = "humantime_serde")]
        transaction_age_max: Duration = Duration::from_secs(60),
        /// Size of a SQLite store's `-wal` file above which nothing is written until it can be emptied.
        wal_bytes_max: u64 = 4 << 30,
    }
}

section! {
    /// Shards and their owners.
    OwnershipSettings {
        /// Number of shards; recorded by the store at first start.
        shards: u32 = 8,
        /// This worker's name among the workers; empty: made of host and process id.
        worker: String = String::new(),
        /// Time after which the shards of a worker that gave no sign of life can be taken.
        #[serde(with = "humantime_serde")]
        lease_ttl: Duration = Duration::from_secs(10),
        /// Time between two signs of life.
        #[serde(with = "humantime_serde")]
        heartbeat: Duration = Duration::from_secs(1),
        /// Time for which a worker leaves a shard that failed too often on it to others.
        #[serde(with = "humantime_serde")]
        cool_down: Duration = Duration::from_secs(30),
    }
}

section! {
    /// The intake of messages.
    IngressSettings {
        /// Deliveries in hand per shard.
        credits: usize = 4_096,
        /// Deliveries fetched at once.
        batch_max: usize = 1_024,
        /// Stretches of deliveries that are done above a source's position, in a shard, before the source pauses; each
        /// takes about 5 bytes of every commit.
        ahead_max: usize = 2_048,
        /// Largest message in bytes; a larger one becomes a dead letter without being run.
        message_bytes_max: usize = 1 << 20,
        /// The fate of a message that no binding matches.
        unbound: Unbound = Unbound::Skip,
    }
}

section! {
    /// Key actors.
    ActorSettings {
        /// Key actors in the process (about 8 KB each, plus their states).
        resident_max: usize = 16_384,
        /// Messages handed to an actor at once.
        run_max: usize = 64,
        /// Time after which a run is cut, so that its settled turns are committed.
        #[serde(with = "humantime_serde")]
        slice: Duration = Duration::from_millis(5),
        /// Idle time after which a key gives its actor back.
        #[serde(with = "humantime_serde")]
        passivate_after: Duration = Duration::from_secs(600),
    }
}

section! {
    /// Commits.
    CommitSettings {
        /// Turns in one commit.
        turns_max: usize = 4_096,
        /// Approximate most bytes of one commit; a turn that is larger by itself has a commit of its own.
        bytes_max: usize = 16 << 20,
        /// Commits of all shards of a worker on their way to PostgreSQL at once; SQLite has one writer.
        in_flight: usize = 2,
    }
}

section! {
    /// The inbox's window.
    DedupSettings {
        /// Time for which an id is remembered.
        #[serde(with = "humantime_serde")]
        window: Duration = Duration::from_secs(7 * 86_400),
        /// Number of ids that are remembered per shard.
        max_ids: usize = 500_000,
        /// The window in force raises an alarm below this.
        #[serde(with = "humantime_serde")]
        window_min: Duration = Duration::from_secs(600),
        /// The consequence when `max_ids` would push the window below `window_min`.
        overflow: Overflow = Overflow::Shrink,
    }
}

section! {
    /// Messages that wait in the store.
    PendingSettings {
        /// Waiting messages per key; at the bound the key's messages stay at their source.
        max_per_key: u64 = 10_000,
        /// Waiting messages per shard; at the bound the shard's sources pause.
        max_per_shard: u64 = 100_000,
        /// Rows of a key read back at once.
        page: usize = 64,
        /// Time after which a message whose turn still runs, or cannot start yet, gets a row, so that it no longer
        /// holds its source's position.
        #[serde(with = "humantime_serde")]
        spill_after: Duration = Duration::from_secs(2),
    }
}

section! {
    /// Dead letters.
    DlqSettings {
        /// Dead letters per shard; at the bound the shard's sources pause.
        max: u64 = 1_000_000,
        /// Time for which a dead letter is kept that holds no key; 0s: until an operator has decided.
        #[serde(with = "humantime_serde")]
        keep: Duration = Duration::ZERO,
    }
}

/// The most that `suspects.starts` may be: values stored beside a number of starts lie above it.
pub(crate) const SUSPECT_STARTS_MAX: u32 = 999;

section! {
    /// Messages that were in hand when the process ended, twice in a row.
    SuspectSettings {
        /// Starts of such a message that end with the process, before it becomes a dead letter.
        starts: u32 = 7,
        /// Time after a start alone within which an end of the process counts for it; doubled for a turn that outlives
        /// it.
        #[serde(with = "humantime_serde")]
        trial: Duration = Duration::from_millis(200),
        /// Time after a takeover from which arriving messages were not in hand before it.
        #[serde(with = "humantime_serde")]
        calm_after: Duration = Duration::from_secs(600),
    }
}

section! {
    /// Retries of messages.
    RetrySettings {
        /// Upper bound of the first delay.
        #[serde(with = "humantime_serde")]
        base: Duration = Duration::from_millis(250),
        /// Growth of the bound from one attempt to the next.
        factor: f64 = 3.0,
        /// Upper bound of every delay.
        #[serde(with = "humantime_serde")]
        cap: Duration = Duration::from_secs(30),
        /// Attempts in all, the first included.
        attempts: u32 = 7,
        /// Time for which a message may be deferred before it is given up.
        #[serde(with = "humantime_serde")]
        give_up_after: Duration = Duration::from_secs(86_400),
    }
}

section! {
    /// Bounds of a turn.
    LimitSettings {
        /// Rows a turn may write.
        turn_rows_max: usize = 1_000,
        /// Events a turn may emit.
        turn_events_max: usize = 1_000,
        /// Bytes of rows, events and reply of a turn.
        turn_bytes_max: usize = 4 << 20,
    }
}

section! {
    /// The history that `explain` reads, and the commands of operators.
    HistorySettings {
        /// Time for which history is kept.
        #[serde(with = "humantime_serde")]
        keep: Duration = Duration::from_secs(7 * 86_400),
        /// Time for which operators' commands are kept after every shard has executed them.
        #[serde(with = "humantime_serde")]
        keep_commands: Duration = Duration::from_secs(365 * 86_400),
    }
}

section! {
    /// The embedded log.
    LogSettings {
        /// Unread messages above which imports and sends wait, and calls are refused; each shard has its share of it.
        max_unread: u64 = 200_000,
        /// Interval at which a reader looks for messages that other processes appended.
        #[serde(with = "humantime_serde")]
        poll: Duration = Duration::from_millis(100),
    }
}

section! {
    /// Leaving in order.
    DrainSettings {
        /// Time for running turns to end when the process leaves.
        #[serde(with = "humantime_serde")]
        exit: Duration = Duration::from_secs(20),
        /// Time for running turns to end when a shard moves to another worker.
        #[serde(with = "humantime_serde")]
        hand_over: Duration = Duration::from_secs(1),
    }
}

section! {
    /// Events on their way to sinks.
    OutboxSettings {
        /// Events of a shard that a sink has and has not confirmed yet.
        window: usize = 16_384,
        /// Unpublished events of a shard; at the bound its sources pause.
        max_pending: u64 = 1_000_000,
        /// Time for which a confirmed event's watermark waits for a commit to ride on.
        #[serde(with = "humantime_serde")]
        idle: Duration = Duration::from_millis(50),
    }
}

section! {
    /// Restarts of the runtime's own actors.
    SupervisionSettings {
        /// A key's actor.
        key_actor: Intensity = Intensity { restarts: 1_000, ..Intensity::default() },
        /// An ingress.
        ingress: Intensity = Intensity::default(),
        /// A committer.
        committer: Intensity = Intensity::default(),
        /// A dispatcher.
        dispatcher: Intensity = Intensity::default(),
        /// A shard: given up and taken again under a new epoch.
        shard: Intensity = Intensity::default(),
    }
}

section! {
    /// The rate of restarts of a child above which its failure becomes its supervisor's.
    Intensity {
        /// Restarts within `window`.
        restarts: u32 = 10,
        /// The window.
        #[serde(with = "humantime_serde")]
        window: Duration = Duration::from_secs(30),
        /// Upper bound of the first restart's delay (full jitter, doubling).
        #[serde(with = "humantime_serde")]
        backoff: Duration = Duration::from_millis(50),
        /// Upper bound of every delay.
        #[serde(with = "humantime_serde")]
        backoff_max: Duration = Duration::from_secs(5),
    }
}

/// The fate of a message that no binding matches. It is counted in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unbound {
    /// The message is skipped.
    Skip,
    /// The message becomes a dead letter.
    DeadLetter,
}

/// The consequence when `dedup.max_ids` would push the window below `dedup.window_min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// The window shrinks; an alarm says so.
    Shrink,
    /// The sources pause until ids are old enough.
    Pause,
}
