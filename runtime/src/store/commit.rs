//! A commit's contents and its possible outcomes. Plain values.
//! In: the ledger's decisions. Out: the rows that a store writes, all of them or none.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::calls::Reply;
use super::{Counters, Epoch, StoreError, Watermarks};
use crate::clock::Millis;
use crate::handler::{RowWrite, SentMessage, Statement};
use crate::message::{Ahead, Message, Positions, ShardNo, Taken, TakenId};

/// Positions of every source of a shard, by the source's name.
pub type SourcePositions = BTreeMap<Arc<str>, Positions>;

/// The stretches that are done above the positions of a shard's sources, by the source's name. A source without order
/// also has here its rows that are done for some of their services.
pub type SourceAhead = BTreeMap<Arc<str>, Ahead>;

/// The number of those stretches, by the source's name.
pub(crate) fn stretches(ahead: &SourceAhead) -> BTreeMap<Arc<str>, u64> {
    let count = |origins: &Ahead| origins.values().map(|stretches| stretches.len() as u64).sum();
    ahead.iter().map(|(source, origins)| (source.clone(), count(origins))).collect()
}

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
    /// The positions of the sources after it.
    pub positions: SourcePositions,
    /// The stretches above those positions that are done after it: their messages do not run again when they are handed
    /// over again.
    pub ahead: SourceAhead,
    /// The watermarks of the sinks after it.
    pub watermarks: Watermarks,
    /// The shard's totals after it.
    pub counters: Counters,
    /// Number of its first event in the shard's outbox; its events are numbered on from there.
    pub first_seq: u64,
    /// The effects, grouped by what must be committed together.
    pub parts: Vec<Part>,
    /// Rows for the embedded log: the events that bindings route to services, one row per target shard.
    pub log: Vec<LogRow>,
    /// Rows of the store's intake table that are done: deleted with this commit. Empty where there is no intake.
    pub intake: Vec<u64>,
    /// True if ownership of the shard is given up with this commit.
    pub release: bool,
    /// True if `shards.unclean` is set to 0 with this commit: the messages that were in flight at an unclean takeover
    /// have been passed, or the shard was drained.
    pub clean: bool,
}

impl Commit {
    /// All events of the commit, in order.
    pub fn events(&self) -> impl Iterator<Item = &EmittedEvent> {
        self.parts.iter().flat_map(|part| &part.events)
    }

    /// All ids that the commit takes.
    pub fn ids(&self) -> impl Iterator<Item = &TakenId> {
        self.taken().map(|taken| &taken.id)
    }

    /// All ids that the commit takes, each with the print of what came with it.
    pub fn taken(&self) -> impl Iterator<Item = &Taken> {
        self.parts.iter().flat_map(|part| &part.ids)
    }
}

/// The rows that one key's settled turns write.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Ids taken, each with the print of what came with it.
    pub ids: Vec<Taken>,
    /// The key's new state.
    pub state: Option<StateWrite>,
    /// Events, in order.
    pub events: Vec<EmittedEvent>,
    /// Messages for services of this store, in order. They travel by the embedded log, and are not events.
    pub sent: Vec<SentMessage>,
    /// Rows added to or replaced in `pending`, by their `seq`.
    pub pending: Vec<PendingRow>,
    /// Rows deleted from `pending`, by their `seq`.
    pub settled: Vec<u64>,
    /// Dead letters added.
    pub dead: Vec<DeadLetter>,
    /// Dead letters that were replayed or discarded, by their number.
    pub undead: Vec<u64>,
    /// Lines for `explain`: faults, restarts and dead-letter moves.
    pub history: Vec<HistoryRow>,
    /// Rows of handlers' tables, in turn order.
    pub rows: Vec<RowWrite>,
    /// Handlers' statements, in turn order; they run after all rows of the commit.
    pub statements: Vec<Statement>,
    /// Timers set and removed, in turn order.
    pub timers: Vec<TimerWrite>,
    /// The outcomes of the calls whose turns these were.
    pub replies: Vec<Reply>,
    /// An operator command's result on this shard.
    pub command: Option<CommandResult>,
}

impl Part {
    /// About the bytes that it takes in a commit. An event counts twice: it may be in the log as well.
    pub fn bytes(&self) -> usize {
        let state = self.state.as_ref().map_or(0, |write| write.key.len() + write.json().len());
        let events = self.events.iter().map(|event| 2 * event.message.frame().len());
        let sent = self.sent.iter().map(|sent| sent.message.frame().len());
        let waiting = self.pending.iter().map(|row| (&row.message, &row.history));
        let kept = waiting.chain(self.dead.iter().map(|letter| (&letter.message, &letter.history)));
        let kept = kept.map(|(message, history)| {
            message.frame().len() + history.iter().map(|attempt| attempt.error.len()).sum::<usize>()
        });
        let history = self.history.iter().map(|row| row.error.len());
        let rows = self.rows.iter().map(|row| row.key.len() + row.row.as_ref().map_or(0, String::len));
        let timers = self.timers.iter().filter_map(|write| write.set.as_ref());
        let timers = timers.map(|(_, message)| message.frame().len());
        let statements = self.statements.iter().map(Statement::bytes);
        let replies = self.replies.iter().map(|reply| reply.outcome.body.len() + reply.outcome.code.len());
        let lists = events
            .chain(sent)
            .chain(kept)
            .chain(history)
            .chain(rows)
            .chain(timers)
            .chain(statements)
            .chain(replies)
            .sum::<usize>();
        state + lists + self.ids.len() * size_of::<Taken>()
    }
}

/// A key's state as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateWrite {
    /// The service's name.
    pub service: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// `STATE_VERSION` of the handler that wrote it, and the JSON text; `None` if the key's state is deleted.
    pub state: Option<(u32, Bytes)>,
}

impl StateWrite {
    /// The JSON text; empty where the state is deleted.
    pub(crate) fn json(&self) -> &[u8] {
        self.state.as_ref().map_or(&[], |(_, json)| json)
    }
}

/// An event of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmittedEvent {
    /// The service that emitted it; empty for an event about a dead letter of a service that the program does not have.
    pub service: Arc<str>,
    /// Digest of the id of the message whose turn emitted it.
    pub cause: [u8; 16],
    /// The event as a message: its id is derived from its cause, so a repeat has the same.
    pub message: Message,
}

impl EmittedEvent {
    /// The service's number in the store of an event that no service emitted: it tells of a dead letter.
    pub const NO_SERVICE: u16 = u16::MAX;
}

/// A row for the embedded log of another (or the same) shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    /// The shard that is to read it.
    pub target: ShardNo,
    /// Number of messages in it.
    pub count: u32,
    /// Messages for services, see [`crate::store::layout::log::encode`].
    pub messages: Bytes,
}

/// The reason for which a row waits in `pending`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PendingKind {
    /// A message that is tried again at `due_at`.
    Retry,
    /// A message behind another of its key that waits.
    Follower,
    /// A dead letter that an operator replayed.
    Replay,
    /// A message whose turn takes long, or waits for something that it needs; its owner has it in memory.
    Spilled,
    /// A message that may end the process: its start is recorded before it runs.
    Suspect,
}

impl PendingKind {
    /// The word in SQL and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Follower => "follower",
            Self::Replay => "replay",
            Self::Spilled => "spilled",
            Self::Suspect => "suspect",
        }
    }
}

impl std::str::FromStr for PendingKind {
    type Err = StoreError;

    fn from_str(word: &str) -> Result<Self, StoreError> {
        [Self::Retry, Self::Follower, Self::Replay, Self::Spilled, Self::Suspect]
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
    /// The reason for which it waits.
    pub kind: PendingKind,
    /// The time at which it may run; `None` for a follower, which runs after the rows before it.
    pub due_at: Option<Millis>,
    /// Its id in the inbox.
    pub id: TakenId,
    /// The time at which Perkey took it: this bounds how long it may be deferred.
    pub taken_at: Millis,
    /// Attempts spent.
    pub attempt: u32,
    /// The number of times, at most, that the process ended while it was being handled; 0 where nothing points to it.
    pub starts: u32,
    /// The message.
    pub message: Message,
    /// The failed attempts.
    pub history: Vec<Attempt>,
}

/// One failed attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The attempt's number, from 1; a deferral repeats it.
    pub attempt: u32,
    /// The time at which it ended.
    pub at: Millis,
    /// Generation of the key's actor.
    pub generation: u64,
    /// The error.
    pub error: String,
}

/// A message that was given up on, with its whole attempt history.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Number, unique in its shard; also its place in the key's order (a held one goes back there).
    pub seq: u64,
    /// The service's name; empty where it could not be worked out.
    pub service: Arc<str>,
    /// The key; empty where it has none.
    pub key: Arc<str>,
    /// Its id in the inbox.
    pub id: TakenId,
    /// The time at which it was given up.
    pub at: Millis,
    /// The time at which Perkey took it.
    pub taken_at: Millis,
    /// The reason.
    pub error: String,
    /// True if the key waits for it.
    pub holds_key: bool,
    /// The failed attempts, the last one included.
    pub history: Vec<Attempt>,
    /// The message.
    pub message: Message,
}

/// A line of a message's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRow {
    /// The service's name.
    pub service: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// The message's id as text.
    pub id: String,
    /// The time at which it happened.
    pub at: Millis,
    /// Attempts spent at that time.
    pub attempt: u32,
    /// Generation of the key's actor.
    pub generation: u64,
    /// The kind of event: `fault`, `deferred`, `dead_letter`, `replayed`, `discarded`, `restarted`.
    pub what: String,
    /// The error, or empty.
    pub error: String,
}

/// The result of an operator command on one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandResult {
    /// The command.
    pub command: i64,
    /// Messages that it changed with this commit.
    pub affected: u64,
    /// True if the shard has nothing more to do for it.
    pub done: bool,
}

/// The outcome of a commit.
#[derive(Clone, Debug)]
pub enum CommitOutcome {
    /// It is durable.
    Committed,
    /// The epoch or the number was not the shard's: another owner has it. Nothing was written.
    Fenced,
    /// The database refused the data. Nothing was written.
    Refused {
        /// True if the same data will be refused again (a value out of range); false if it might pass later (a violated
        /// constraint).
        permanent: bool,
        /// The database's words.
        error: String,
    },
    /// Nothing was written, because the store cannot be written now (busy, full, read-only, away).
    Unavailable(String),
    /// It may or may not have been written: the answer was lost.
    Unknown(String),
}

/// A named timer of a key, set or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimerWrite {
    /// The service's name.
    pub service: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// The timer's name.
    pub name: Arc<str>,
    /// The time at which it fires and the message that it then becomes; `None` removes the timer, if it exists.
    pub set: Option<(Millis, Message)>,
}

impl TimerWrite {
    /// The last write of each timer.
    pub(crate) fn newest<'a>(parts: impl IntoIterator<Item = &'a Part>) -> Vec<&'a Self> {
        let writes = parts.into_iter().flat_map(|part| &part.timers);
        let newest: BTreeMap<_, _> =
            writes.map(|write| ((&*write.service, &*write.key, &*write.name), write)).collect();
        newest.into_values().collect()
    }
}
