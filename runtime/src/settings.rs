//! Every setting: its name, its default, what may be wrong with it.
//! In: defaults, a file, the environment, flags ([`load`]). Out: checked [`Settings`], or all problems at once.

pub mod load;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// All settings. Sections are those of `config/default.toml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The store.
    pub store: StoreSettings,
    /// Shards and their owners.
    pub ownership: OwnershipSettings,
    /// What is taken in.
    pub ingress: IngressSettings,
    /// Key actors.
    pub actors: ActorSettings,
    /// Commits.
    pub commit: CommitSettings,
    /// The inbox's window.
    pub dedup: DedupSettings,
    /// Messages that wait durably.
    pub pending: PendingSettings,
    /// Retries of messages.
    pub retry: RetrySettings,
    /// Bounds of a turn.
    pub limits: LimitSettings,
    /// What `explain` reads.
    pub history: HistorySettings,
    /// The embedded log.
    pub log: LogSettings,
    /// Leaving in order.
    pub drain: DrainSettings,
    /// Restarts of the runtime's own actors.
    pub supervision: SupervisionSettings,
    /// The listener for metrics and health.
    pub admin: AdminSettings,
    /// Routes from sources to services.
    pub bind: Vec<Bind>,
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

section! {
    /// The store.
    StoreSettings {
        /// Where it is: `sqlite:///path/to.db`.
        url: String = "sqlite://perkey.db".to_owned(),
    }
}

section! {
    /// Shards and their owners.
    OwnershipSettings {
        /// Number of shards; recorded by the store at first start.
        shards: u32 = 8,
    }
}

section! {
    /// What is taken in.
    IngressSettings {
        /// Deliveries in hand per shard.
        credits: usize = 4_096,
        /// Deliveries fetched at once.
        batch_max: usize = 1_024,
        /// How far committed deliveries may lie ahead of a source's position before it pauses.
        ahead_max: usize = 65_536,
        /// Largest message in bytes; a larger one becomes a dead letter without being run.
        message_bytes_max: usize = 1 << 20,
        /// What happens to a message that no binding matches.
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
        /// Time after which a run is cut and what has settled goes on its way.
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
    }
}

section! {
    /// The inbox's window.
    DedupSettings {
        /// How long an id is remembered.
        #[serde(with = "humantime_serde")]
        window: Duration = Duration::from_secs(7 * 86_400),
        /// How many ids are remembered per shard.
        max_ids: usize = 500_000,
        /// Below this the window in force is an alarm.
        #[serde(with = "humantime_serde")]
        window_min: Duration = Duration::from_secs(600),
        /// What happens when `max_ids` would push the window below `window_min`.
        overflow: Overflow = Overflow::Shrink,
    }
}

section! {
    /// Messages that wait durably.
    PendingSettings {
        /// Waiting messages per key; at the bound the key's messages stay at their source.
        max_per_key: u64 = 10_000,
        /// Waiting messages per shard; at the bound the shard's sources pause.
        max_per_shard: u64 = 100_000,
        /// Rows of a key read back at once.
        page: usize = 64,
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
        /// The bound never grows above this.
        #[serde(with = "humantime_serde")]
        cap: Duration = Duration::from_secs(30),
        /// Attempts in all, the first included.
        attempts: u32 = 7,
        /// How long a message may be deferred before it is given up.
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
    /// What `explain` reads.
    HistorySettings {
        /// How long it is kept.
        #[serde(with = "humantime_serde")]
        keep: Duration = Duration::from_secs(7 * 86_400),
    }
}

section! {
    /// The embedded log.
    LogSettings {
        /// Unread messages above which an import waits.
        max_unread: u64 = 200_000,
        /// How often a reader looks for what other processes appended.
        #[serde(with = "humantime_serde")]
        poll: Duration = Duration::from_millis(100),
    }
}

section! {
    /// Leaving in order.
    DrainSettings {
        /// How long running turns may take to end when the process leaves.
        #[serde(with = "humantime_serde")]
        exit: Duration = Duration::from_secs(20),
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
        /// A shard: given up and taken again under a new epoch.
        shard: Intensity = Intensity::default(),
    }
}

section! {
    /// How often a child may be restarted before its failure becomes its supervisor's.
    Intensity {
        /// Restarts within `window`.
        restarts: u32 = 10,
        /// The window.
        #[serde(with = "humantime_serde")]
        window: Duration = Duration::from_secs(30),
        /// Upper bound of the first restart's delay (full jitter, doubling).
        #[serde(with = "humantime_serde")]
        backoff: Duration = Duration::from_millis(50),
        /// The delay never grows above this.
        #[serde(with = "humantime_serde")]
        backoff_max: Duration = Duration::from_secs(5),
    }
}

section! {
    /// The listener for metrics and health.
    AdminSettings {
        /// Its address.
        listen: String = "127.0.0.1:8082".to_owned(),
    }
}

/// What happens to a message that no binding matches. It is counted in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unbound {
    /// It is passed over.
    Skip,
    /// It becomes a dead letter.
    DeadLetter,
}

/// What happens when `dedup.max_ids` would push the window below `dedup.window_min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// The window shrinks; an alarm says so.
    Shrink,
    /// The sources pause until ids are old enough.
    Pause,
}

/// A route: messages of `source` whose type matches `kind` go to `service`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Where they come from: a transport's name; `embedded` are the events of this store's own handlers.
    #[serde(default = "embedded")]
    pub source: String,
    /// Their CloudEvents type; `*` at the end matches any rest.
    #[serde(rename = "type")]
    pub kind: String,
    /// The service that handles them.
    pub service: String,
    /// Where their key comes from.
    #[serde(default)]
    pub key: KeyFrom,
}

fn embedded() -> String {
    "embedded".to_owned()
}

/// Where a bound message's key comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyFrom {
    /// The record's own key; the payload is not decoded to route it.
    #[default]
    Record,
    /// The service's `Handler::key`.
    Handler,
}

impl Settings {
    /// Everything that is wrong, each with the setting's name and what to do; empty when nothing is.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |fine: bool, problem: &str| {
            if !fine {
                problems.push(problem.to_owned());
            }
        };
        check((1..=256).contains(&self.ownership.shards), "ownership.shards must be 1 to 256");
        check(self.ingress.credits >= 16, "ingress.credits must be at least 16");
        check(self.ingress.batch_max >= 1, "ingress.batch_max must be at least 1");
        check(self.ingress.ahead_max >= self.ingress.credits, "ingress.ahead_max must be at least ingress.credits");
        check(
            (1..=256 << 20).contains(&self.ingress.message_bytes_max),
            "ingress.message_bytes_max must be 1 to 268435456 (256 MiB)",
        );
        check(
            self.actors.resident_max >= self.ownership.shards as usize,
            "actors.resident_max must be at least ownership.shards: each shard needs an actor",
        );
        check((1..=4_096).contains(&self.actors.run_max), "actors.run_max must be 1 to 4096");
        check(!self.actors.slice.is_zero(), "actors.slice must be above 0");
        check(self.commit.turns_max >= 1, "commit.turns_max must be at least 1");
        check(
            self.dedup.max_ids >= self.ingress.credits + self.ingress.ahead_max,
            "dedup.max_ids must be at least ingress.credits + ingress.ahead_max: ids above a source's position never age out",
        );
        check(self.pending.page >= 1, "pending.page must be at least 1");
        check(self.pending.max_per_key >= 1, "pending.max_per_key must be at least 1");
        check(
            self.pending.max_per_shard >= self.pending.max_per_key,
            "pending.max_per_shard must be at least pending.max_per_key",
        );
        check(self.retry.attempts >= 1, "retry.attempts must be at least 1: the first counts");
        check(self.retry.factor >= 1.0, "retry.factor must be at least 1");
        check(!self.retry.base.is_zero(), "retry.base must be above 0");
        check(self.retry.cap >= self.retry.base, "retry.cap must be at least retry.base");
        check(self.log.max_unread >= 1_000, "log.max_unread must be at least 1000: an import appends 1000 at a time");
        check(!self.log.poll.is_zero(), "log.poll must be above 0");
        check(self.drain.exit <= Duration::from_secs(20), "drain.exit must be at most 20s: a drain ends within 25s");
        problems
    }
}
