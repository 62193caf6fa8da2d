//! What is durable: one contract for every database.
//! In: commits under a shard's epoch. Out: all of a commit or none of it, and the rows that a shard reads back.
//!
//! The fence: a commit counts only when the shard still has the commit's epoch and the commit number before it.

mod declared;
pub mod memory;
pub mod query;
pub mod sqlite;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::handler::{RowWrite, Table};
use crate::message::{Message, ShardNo, TakenId};
use crate::transport::Positions;

/// Fences a shard's owner: rises with each takeover.
pub type Epoch = u64;

/// Positions of every source of a shard, by the source's name.
pub type SourcePositions = BTreeMap<Arc<str>, Positions>;

/// Totals that a shard counts with its commits, by name (`taken`, `duplicates`, `rejected`, …); they survive restarts.
pub type Counters = BTreeMap<String, u64>;

/// One commit: many turns of many keys of one shard.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// The shard.
    pub shard: ShardNo,
    /// The epoch it is written under.
    pub epoch: Epoch,
    /// Its number: the shard's `commit_no` before it, plus one.
    pub no: u64,
    /// Wall time when it was formed.
    pub at: Millis,
    /// Where the sources stand after it.
    pub positions: SourcePositions,
    /// The shard's totals after it.
    pub counters: Counters,
    /// Number of its first event in the shard's outbox; its events are numbered on from there.
    pub first_seq: u64,
    /// The effects, grouped by what must be committed together.
    pub parts: Vec<Part>,
    /// Rows for the embedded log: the events that bindings route to services, one row per target shard.
    pub log: Vec<LogRow>,
    /// Ownership of the shard is given up with this commit.
    pub release: bool,
    /// `shards.unclean` is set to 0 with this commit: what was in flight at an unclean takeover has been passed.
    pub clean: bool,
}

impl Commit {
    /// All events of the commit, in order.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.parts.iter().flat_map(|part| &part.events)
    }

    /// All ids that the commit takes.
    pub fn ids(&self) -> impl Iterator<Item = &TakenId> {
        self.parts.iter().flat_map(|part| &part.ids)
    }
}

/// What one key's settled turns write.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Ids taken.
    pub ids: Vec<TakenId>,
    /// The key's new state.
    pub state: Option<StateWrite>,
    /// Events, in order.
    pub events: Vec<Event>,
    /// Rows added to or replaced in `pending`, by their `seq`.
    pub pending: Vec<PendingRow>,
    /// Rows deleted from `pending`, by their `seq`.
    pub settled: Vec<u64>,
    /// Dead letters added.
    pub dead: Vec<DeadLetter>,
    /// Dead letters that were replayed or discarded, by their number.
    pub undead: Vec<u64>,
    /// What `explain` reads: faults, restarts and dead-letter moves.
    pub history: Vec<HistoryRow>,
    /// Rows of handlers' tables, in turn order.
    pub rows: Vec<RowWrite>,
    /// An operator command's result on this shard.
    pub command: Option<CommandResult>,
}

/// A key's state as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateWrite {
    /// The service's name.
    pub service: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// `STATE_VERSION` of the handler that wrote it.
    pub version: u32,
    /// JSON text.
    pub json: Bytes,
}

/// An event of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The service that emitted it.
    pub service: Arc<str>,
    /// Digest of the id of the message whose turn emitted it.
    pub cause: [u8; 16],
    /// The event as a message: its id is derived from its cause, so a repeat has the same.
    pub message: Message,
}

/// A row for the embedded log of another (or the same) shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    /// The shard that is to read it.
    pub target: ShardNo,
    /// Number of messages in it.
    pub count: u32,
    /// Messages for services, see [`crate::transport::embedded::encode`].
    pub messages: Bytes,
}

/// Why a row waits in `pending`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PendingKind {
    /// A message that is tried again at `due_at`.
    Retry,
    /// A message behind one of its key that waits.
    Follower,
    /// A dead letter that an operator replayed.
    Replay,
}

impl PendingKind {
    /// The word in SQL and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Follower => "follower",
            Self::Replay => "replay",
        }
    }
}

impl std::str::FromStr for PendingKind {
    type Err = StoreError;

    fn from_str(word: &str) -> Result<Self, StoreError> {
        [Self::Retry, Self::Follower, Self::Replay]
            .into_iter()
            .find(|kind| kind.as_str() == word)
            .ok_or_else(|| StoreError::Corrupt(format!("unknown kind of pending row {word:?}")))
    }
}

/// A message that waits durably. Rows of a key are handled in the order of `seq`.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingRow {
    /// Order, unique in its shard, from 1.
    pub seq: u64,
    /// The service's name.
    pub service: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// Why it waits.
    pub kind: PendingKind,
    /// When it may run; `None` for a follower, which runs after the rows before it.
    pub due_at: Option<Millis>,
    /// Its id in the inbox.
    pub id: TakenId,
    /// When Perkey took it: bounds how long it may be deferred.
    pub taken_at: Millis,
    /// Attempts spent.
    pub attempt: u32,
    /// The message.
    pub message: Message,
    /// The failed attempts.
    pub history: Vec<Attempt>,
}

/// One failed attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which attempt, from 1; a deferral repeats the number.
    pub attempt: u32,
    /// When it ended.
    pub at: Millis,
    /// Generation of the key's actor.
    pub generation: u64,
    /// What went wrong.
    pub error: String,
}

/// A message that was given up on, with its whole attempt history.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Number, unique in its shard; also its place in the key's order (a held one goes back there).
    pub seq: u64,
    /// The service's name; empty where none could be worked out.
    pub service: Arc<str>,
    /// The key; empty where it has none.
    pub key: Arc<str>,
    /// Its id in the inbox.
    pub id: TakenId,
    /// When it was given up.
    pub at: Millis,
    /// When Perkey took it.
    pub taken_at: Millis,
    /// Why.
    pub error: String,
    /// Whether the key waits for it.
    pub holds_key: bool,
    /// The failed attempts, the last one included.
    pub history: Vec<Attempt>,
    /// The message.
    pub message: Message,
}

/// A line of what happened to a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRow {
    /// The service's name.
    pub service: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// The message's id as text.
    pub id: String,
    /// When.
    pub at: Millis,
    /// Attempts spent at that time.
    pub attempt: u32,
    /// Generation of the key's actor.
    pub generation: u64,
    /// What happened: `fault`, `deferred`, `dead_letter`, `replayed`, `discarded`, `restarted`.
    pub what: String,
    /// The error, or empty.
    pub error: String,
}

/// How an operator command ended on one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandResult {
    /// The command.
    pub command: i64,
    /// Messages that it changed with this commit.
    pub affected: u64,
    /// Whether the shard has nothing more to do for it.
    pub done: bool,
}

/// How a commit ended.
#[derive(Debug)]
pub enum Outcome {
    /// It is durable.
    Committed,
    /// The epoch or the number was not the shard's: another owner has it. Nothing was written.
    Fenced,
    /// The database refused the data. Nothing was written.
    Refused {
        /// Whether the same data will be refused again (a value out of range), or might pass later (a violated constraint).
        permanent: bool,
        /// What the database said.
        error: String,
    },
    /// Nothing was written, because the store cannot be written now (busy, full, read-only, away).
    Unavailable(String),
    /// It may or may not have been written: the answer was lost.
    Unknown(String),
}

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
    /// Where the sources stand.
    pub positions: SourcePositions,
    /// The shard's totals.
    pub counters: Counters,
}

/// The ids of one commit, as read back at a takeover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitIds {
    /// The commit.
    pub no: u64,
    /// When it was written.
    pub at: Millis,
    /// What it took.
    pub ids: Vec<TakenId>,
}

/// The inbox of a shard, read at a takeover after its epoch was raised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InboxRows {
    /// Commits within the window, oldest first.
    pub commits: Vec<CommitIds>,
    /// Ids of pending rows and dead letters: they count at any age.
    pub pinned: Vec<TakenId>,
    /// Number of pending rows.
    pub pending: u64,
}

/// What the store knows of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRow {
    /// Its state: version and JSON.
    pub state: Option<(u32, Bytes)>,
    /// Whether a dead letter holds it.
    pub held: bool,
    /// Lowest and highest `seq` of its pending rows.
    pub pending: Option<(u64, u64)>,
}

/// A key of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The service's name.
    pub service: Arc<str>,
    /// The key.
    pub key: Arc<str>,
}

/// Keys whose first waiting message may run now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The keys, longest due first.
    pub keys: Vec<ServiceKey>,
    /// When the next one after these is due.
    pub next: Option<Millis>,
}

/// Where the owner's process has the store, and what it brings.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Number of shards; recorded at first start and never changed by a start.
    pub shards: u32,
    /// Names of the services of this program; each gets a number that stays.
    pub services: Vec<Arc<str>>,
    /// Tables of the handlers.
    pub tables: Vec<Table>,
}

/// What the store recorded at first start.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Key under which ids that are no UUIDs are hashed.
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
    /// Another process runs this store.
    #[error("another process runs this store: {0}")]
    Locked(String),
    /// The shard belongs to another owner.
    #[error("shard {0} has another owner now")]
    Fenced(ShardNo),
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
    /// The store was made with another number of shards.
    #[error(
        "the store was made with {recorded} shards, the settings say {wanted}: set shards = {recorded} (a store's number of shards does not change by a start)"
    )]
    Shards {
        /// As recorded.
        recorded: u32,
        /// As in the settings.
        wanted: u32,
    },
    /// A handler's table exists with other columns, or is declared wrongly.
    #[error("table {table}: {reason}")]
    Table {
        /// The table.
        table: String,
        /// What does not fit.
        reason: String,
    },
    /// What is stored does not decode.
    #[error("the store holds something that does not decode: {0}")]
    Corrupt(String),
    /// The settings name a store that cannot be opened.
    #[error("store.url {0}")]
    Url(String),
}

/// A result of the store.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// What the engine needs of a database. Every implementation passes `store_contract`.
pub trait Store: Send + Sync + 'static {
    /// Brings the store into shape (migrations, shards, services, tables) or says why it cannot.
    fn prepare(&self, setup: Setup) -> StoreFuture<'_, Identity>;

    /// Takes `shard` over from whoever had it: raises its epoch.
    fn take(&self, shard: ShardNo, owner: &str) -> StoreFuture<'_, TakenShard>;

    /// Takes `shard` over from oneself, when a commit's outcome is unknown: waits for that commit and shuts it out.
    /// [`StoreError::Fenced`] when the shard no longer has `epoch`.
    fn retake(&self, shard: ShardNo, epoch: Epoch) -> StoreFuture<'_, TakenShard>;

    /// The ids of commits written at or after `since`, at most about `max` (the newest), and all pinned ones.
    fn inbox(&self, shard: ShardNo, since: Millis, max: usize) -> StoreFuture<'_, InboxRows>;

    /// What is stored of each key, in the order asked.
    fn load(&self, shard: ShardNo, keys: Vec<ServiceKey>) -> StoreFuture<'_, Vec<KeyRow>>;

    /// Keys whose retry or replay is due at `now`, at most `limit`.
    fn due(&self, shard: ShardNo, now: Millis, limit: usize) -> StoreFuture<'_, Due>;

    /// Keys, after `after` in order, that have pending rows and none of them with a due time: their head was settled
    /// just before a crash. At most `limit`.
    fn orphans(&self, shard: ShardNo, after: Option<ServiceKey>, limit: usize) -> StoreFuture<'_, Vec<ServiceKey>>;

    /// Pending rows of one key with `seq` above `after`, in order, at most `limit`.
    fn page(&self, shard: ShardNo, key: ServiceKey, after: u64, limit: usize) -> StoreFuture<'_, Vec<PendingRow>>;

    /// Dead letters of the shard that `filter` matches with `seq` above `after`, in order of (key, seq), at most `limit`.
    fn dead(&self, shard: ShardNo, filter: query::DeadFilter, limit: usize) -> StoreFuture<'_, Vec<DeadLetter>>;

    /// Writes one commit; see [`Outcome`]. Dropping the future does not undo it.
    fn commit<'a>(&'a self, commit: &'a Commit) -> BoxFuture<'a, Outcome>;

    /// Rows of the embedded log for `target` after `from`: of each origin in order, at most about `limit` messages.
    fn read_log(&self, target: ShardNo, from: Positions, limit: usize) -> StoreFuture<'_, Vec<StoredLogRow>>;

    /// Resolves when something may have been appended for `target` by this process since the last call. It may resolve
    /// for nothing, it never misses an append; one waiter per target.
    fn log_changed(&self, target: ShardNo) -> BoxFuture<'_, ()>;

    /// Removes what is no longer needed: log rows that every reader has passed (`positions`), commits below
    /// `commits_below`, history before `history_before`. Bounded work per call.
    fn trim(&self, shard: ShardNo, trim: Trim) -> StoreFuture<'_, ()>;

    /// What operators and tools ask of it.
    fn queries(&self) -> &dyn query::Queries;
}

/// A row of the embedded log as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLogRow {
    /// The lane that wrote it: a shard's number, or an outside writer's name.
    pub origin: Arc<str>,
    /// Its number in the lane.
    pub no: u64,
    /// Its messages, see [`crate::transport::embedded::decode`].
    pub messages: Bytes,
}

/// What [`Store::trim`] may remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trim {
    /// Where the reader of the embedded log stands: rows before these are no longer needed.
    pub log: Positions,
    /// Commits with a number below this are out of the window and published.
    pub commits_below: u64,
    /// History written before this is no longer kept.
    pub history_before: Millis,
}
