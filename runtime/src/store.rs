//! Durable storage: one contract for every database.
//! In: commits under a shard's epoch. Out: all of a commit or none of it, and the rows that a shard reads back.
//!
//! The fence: a commit counts only when the shard still has the commit's epoch and the commit number before it.

pub mod append;
mod commit;
mod declared;
pub mod health;
pub(crate) mod layout;
pub mod lease;
pub mod memory;
mod open;
pub mod postgres;
pub mod query;
pub mod reshard;
pub mod sqlite;
mod timer;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

pub use append::{IntakeRow, IntakeRows};
use bytes::Bytes;
pub use commit::{
    Attempt, CommandResult, Commit, DeadLetter, Event, HistoryRow, LogRow, Outcome, Part, PendingKind, PendingRow,
    SourceAhead, SourcePositions, StateWrite, TimerWrite,
};
use futures_util::future::BoxFuture;
use lease::{Behind, Code};
pub use open::{Opened, check_url, closing, disk, is_running, is_shared, leave_open, open, unproven};
pub use query::calls;
pub(in crate::store) use timer::KeyWalk;
pub use timer::{Due, DueTimers, Letters, OfService, OldLetter, OldLetters, Runnable, Timer};

use crate::clock::Millis;
use crate::handler::Table;
use crate::message::{Ahead, Positions, ShardNo, Taken, TakenId};

/// The kinds of access that a process may have to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It runs shards; on SQLite one process at a time.
    Run,
    /// It reads, and leaves commands and imports to the processes that run the store. A query may take minutes.
    Tool,
    /// The access of a tool, for a process that answers requests: a query takes no longer than in a process that runs
    /// the store.
    Serve,
}

/// The number that fences a shard's owner off: it rises with each takeover.
pub type Epoch = u64;

/// The number of the event up to which each sink has confirmed all events, by the sink's name.
pub type Watermarks = BTreeMap<Arc<str>, u64>;

/// Totals that a shard counts with its commits, by name (`taken`, `duplicates`, `rejected`, …); they survive restarts.
pub type Counters = BTreeMap<String, u64>;

/// A shard as taken over.
#[derive(Clone, Debug, PartialEq)]
pub struct TakenShard {
    /// The shard.
    pub shard: ShardNo,
    /// The new epoch.
    pub epoch: Epoch,
    /// The last commit's number.
    pub commit_no: u64,
    /// The last event's number.
    pub outbox_seq: u64,
    /// Highest `seq` used by pending rows and dead letters.
    pub last_seq: u64,
    /// Takeovers since the shard was last given up or passed its in-flight messages cleanly.
    pub unclean: u32,
    /// True if this takeover is unclean: another process had the shard and did not give it up.
    pub died: bool,
    /// The positions of the sources.
    pub positions: SourcePositions,
    /// The stretches above the positions that are done.
    pub ahead: SourceAhead,
    /// The watermarks of the sinks.
    pub watermarks: Watermarks,
    /// The shard's totals.
    pub counters: Counters,
}

/// The ids of one commit, as read back at a takeover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitIds {
    /// The commit.
    pub no: u64,
    /// The time at which it was written.
    pub at: Millis,
    /// The ids that it took. A commit of a program from before prints were kept has none of these.
    pub ids: Vec<Taken>,
}

/// The inbox of a shard, read at a takeover after its epoch was raised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InboxRows {
    /// Commits within the window, oldest first.
    pub commits: Vec<CommitIds>,
    /// Number of pending rows.
    pub pending: u64,
    /// The services and keys that operators have paused.
    pub paused: Vec<query::Scope>,
}

/// The rows that the store has of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRow {
    /// Its state: version and JSON.
    pub state: Option<(u32, Bytes)>,
    /// True if a dead letter holds it.
    pub held: bool,
    /// True if it has dead letters, of any service.
    pub dead: bool,
    /// Its pending rows, if it has any.
    pub pending: Option<RowSpan>,
}

/// The pending rows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSpan {
    /// The lowest `seq`.
    pub first: u64,
    /// The highest `seq`.
    pub last: u64,
    /// The number of rows.
    pub count: u64,
}

/// The place of a dead letter in the order of [`Store::dead`]: its key and `seq`.
pub type DeadPlace = (Arc<str>, u64);

/// A key of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The service's name.
    pub service: Arc<str>,
    /// The key.
    pub key: Arc<str>,
}

/// The shape that a program needs the store to have, and the versions of its states.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Number of shards; recorded at first start and never changed by a start.
    pub shards: u32,
    /// Names of the services of this program; each gets a number that stays.
    pub services: Vec<Arc<str>>,
    /// Tables of the handlers.
    pub tables: Vec<Table>,
    /// The versions of the states that it reads. A program that is behind what a shard has seen does not take that
    /// shard, so that a rolling deploy neither refuses states nor spends attempts.
    pub code: Code,
}

/// The facts that the store recorded at its first start.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The key under which ids that are not UUIDs are hashed.
    pub hash_key: [u8; 32],
    /// Numbers of the services, by name: all that this store ever had.
    pub services: BTreeMap<Arc<str>, u16>,
}

/// A store call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached, read or written now.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store understands the request and refuses it: it will refuse it again.
    #[error("the store refused it: {0}")]
    Refused(String),
    /// Another process runs this store.
    #[error("another process runs this store: {0}")]
    Locked(String),
    /// The shard belongs to another owner.
    #[error("shard {0} has another owner now")]
    Fenced(ShardNo),
    /// The shard's owner is alive, by the store's clock.
    #[error("shard {shard} belongs to {owner}, whose lease has not expired")]
    Owned {
        /// The shard.
        shard: ShardNo,
        /// Its owner.
        owner: String,
    },
    /// The shard was owned by a newer program.
    #[error("shard {shard} is not taken: {behind}: run a program that is as new")]
    CodeVersion {
        /// The shard.
        shard: ShardNo,
        /// The newer version that the shard has seen.
        behind: Behind,
    },
    /// The store was written by a newer program.
    #[error(
        "the store has format {found}, this program knows up to {known}: use the program that wrote it, or a newer one"
    )]
    Newer {
        /// Its format.
        found: u32,
        /// The newest this program reads.
        known: u32,
    },
    /// The store was written by an older program, and this one does not run it.
    #[error(
        "the store has format {found}, this program works with {known}: start it where the store is run (up or worker), which brings it up to date, or use the program that wrote it"
    )]
    Older {
        /// Its format.
        found: u32,
        /// The one that this program works with.
        known: u32,
    },
    /// The store was made with another number of shards.
    #[error(
        "the store was made with {recorded} shards, the settings say {wanted}: set shards = {recorded} (a store's number of shards does not change by a start)"
    )]
    Shards {
        /// The recorded number.
        recorded: u32,
        /// The number in the settings.
        wanted: u32,
    },
    /// A handler's table exists with other columns, or is declared wrongly.
    #[error("table {table}: {reason}")]
    Table {
        /// The table.
        table: String,
        /// The reason: what does not fit.
        reason: String,
    },
    /// Something that is stored does not decode.
    #[error("the store holds something that does not decode: {0}")]
    Corrupt(String),
    /// The settings name a store that cannot be opened.
    #[error("store.url {0}")]
    Url(String),
}

/// The result of a call of the store.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// The contract between the engine and a database. Every implementation passes `store_contract`.
pub trait Store: Send + Sync + 'static {
    /// Brings the store into shape (migrations, shards, services, tables) or says why it cannot.
    fn prepare(&self, setup: Setup) -> StoreFuture<'_, Identity>;

    /// Takes `shard` over from whoever had it: raises its epoch. `owner` names a process and its incarnation: taking a
    /// shard from another one that did not give it up is unclean, taking it again from oneself is not. Where there are
    /// leases, a shard whose owner's lease has not expired by the store's clock is not given: [`StoreError::Owned`].
    fn take(&self, shard: ShardNo, owner: &str) -> StoreFuture<'_, TakenShard>;

    /// Takes `shard` over from oneself, when a commit's outcome is unknown: waits for that commit and shuts it out.
    /// [`StoreError::Fenced`] when the shard no longer has `epoch`.
    fn retake(&self, shard: ShardNo, epoch: Epoch) -> StoreFuture<'_, TakenShard>;

    /// The ids of commits written at or after `since`, at most about `max` (the newest); the number of rows that wait,
    /// and the pauses.
    fn inbox(&self, shard: ShardNo, since: Millis, max: usize) -> StoreFuture<'_, InboxRows>;

    /// For each of these ids (with the message's own), true if a pending row or a dead letter has it: such ids count at
    /// any age.
    fn known(&self, shard: ShardNo, asked: Vec<(TakenId, String)>) -> StoreFuture<'_, Vec<bool>>;

    /// The shard's dead letters, counted. They are counted in pieces, so that no statement takes too long.
    fn letters(&self, shard: ShardNo) -> StoreFuture<'_, Letters>;

    /// The next dead letters with a number above `after`: those of them that hold no key and were given up before
    /// `before`.
    fn old(&self, shard: ShardNo, after: u64, before: Millis) -> StoreFuture<'_, OldLetters>;

    /// The rows of each key, in the order asked.
    fn load(&self, shard: ShardNo, keys: Vec<ServiceKey>) -> StoreFuture<'_, Vec<KeyRow>>;

    /// Keys that may run whose retry or replay is due at `now`, at most `limit`. Rows of other keys cost nothing.
    fn due(&self, shard: ShardNo, now: Millis, runnable: Runnable, limit: usize) -> StoreFuture<'_, Due>;

    /// Keys that may run, after `after` in order, that have pending rows and none of them with a due time: their head was
    /// settled just before a crash. At most `limit`.
    fn orphans(
        &self,
        shard: ShardNo,
        runnable: Runnable,
        after: Option<ServiceKey>,
        limit: usize,
    ) -> StoreFuture<'_, Vec<ServiceKey>>;

    /// Pending rows of one key with `seq` above `after`, in order, at most `limit`.
    fn page(&self, shard: ShardNo, key: ServiceKey, after: u64, limit: usize) -> StoreFuture<'_, Vec<PendingRow>>;

    /// Timers due at `now` of keys that may run and have neither pending rows nor a dead letter that holds them, at
    /// most `limit`. Timers of other keys cost nothing.
    fn timers(&self, shard: ShardNo, now: Millis, runnable: Runnable, limit: usize) -> StoreFuture<'_, DueTimers>;

    /// The pending rows and the timers of a service, at most `limit` of each.
    fn of_service(&self, shard: ShardNo, service: Arc<str>, limit: usize) -> StoreFuture<'_, OfService>;

    /// The shard's timers that belong to schedules: their names begin with `cron:`.
    fn schedules(&self, shard: ShardNo) -> StoreFuture<'_, Vec<Timer>>;

    /// Dead letters of the shard that `filter` matches, behind `after` in order of (key, seq), at most `limit`.
    fn dead(
        &self,
        shard: ShardNo,
        filter: query::DeadFilter,
        after: Option<DeadPlace>,
        limit: usize,
    ) -> StoreFuture<'_, Vec<DeadLetter>>;

    /// Writes one commit; see [`Outcome`]. Dropping the future does not undo it.
    fn commit<'a>(&'a self, commit: &'a Commit) -> BoxFuture<'a, Outcome>;

    /// Rows of the embedded log for `target` after `from`: of each origin in order, at most about `limit` messages.
    fn read_log(&self, target: ShardNo, from: Positions, limit: usize) -> StoreFuture<'_, Vec<StoredLogRow>>;

    /// Rows of the intake for `shard` that are not among `held`, in order, at most `limit`, those of more than
    /// `bytes_max` cut short; and those of `held` that are still there. A store without an intake has none.
    fn read_intake(
        &self,
        shard: ShardNo,
        held: Vec<u64>,
        limit: usize,
        bytes_max: usize,
    ) -> StoreFuture<'_, IntakeRows> {
        let _ = (shard, held, limit, bytes_max);
        Box::pin(async { Ok(IntakeRows::default()) })
    }

    /// True if there is an intake.
    fn has_intake(&self) -> bool {
        false
    }

    /// Resolves when something may have been appended for `target` here since the last call, or for nothing; one waiter each.
    fn log_changed(&self, target: ShardNo) -> BoxFuture<'_, ()>;

    /// Events of `shard` above number `after`, in order, looked for from commit `from` on (0: not known): at most `limit`
    /// commits' worth, fewer where these are large. Reading on does not depend on what lies before.
    fn outbox(&self, shard: ShardNo, from: u64, after: u64, limit: usize) -> StoreFuture<'_, Vec<query::EventRow>> {
        let _ = from;
        self.queries().events(shard, after, limit)
    }

    /// Removes what is no longer needed: log rows that every reader has passed (`positions`), commits below
    /// `commits_below`, history before `history_before`. Bounded work per call.
    fn trim(&self, shard: ShardNo, trim: Trim) -> StoreFuture<'_, ()>;

    /// The queries of operators and tools.
    fn queries(&self) -> &dyn query::Queries;

    /// Its records of calls.
    fn calls(&self) -> &dyn calls::CallStore;

    /// Its leases, if several workers can share it; otherwise the process that opened it to run has all shards.
    fn leases(&self) -> Option<&dyn lease::Leases> {
        None
    }

    /// The age of the oldest open transaction, which keeps dead rows from being removed; `None` where there can be
    /// none.
    fn oldest_transaction(&self) -> StoreFuture<'_, Option<Duration>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// True if it writes commits of several shards at once: then `commit.in_flight` bounds them.
    fn writes_in_parallel(&self) -> bool {
        self.leases().is_some()
    }
}

/// A row of the embedded log as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLogRow {
    /// The lane that wrote it: a shard's number, or an outside writer's name.
    pub origin: Arc<str>,
    /// Its number in the lane.
    pub no: u64,
    /// Its messages, see [`crate::store::layout::log::decode`].
    pub messages: Bytes,
}

/// The bounds up to which [`Store::trim`] may remove rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trim {
    /// Stretches of the embedded log that are done, of each origin: rows that lie in them whole are no longer needed.
    pub log: Ahead,
    /// Commits with a number below this are out of the window and published.
    pub commits_below: u64,
    /// History written before this is no longer kept.
    pub history_before: Millis,
}
