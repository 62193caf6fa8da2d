//! Queries of operators and tools to a store, and their few writes.
//! In: filters. Out: rows to show; commands and imports that the shards' owners pick up.

pub(in crate::store) mod ask;
pub mod calls;
mod commands;
pub(in crate::store) mod decode;
mod rows;
pub(in crate::store) mod sql;
pub(in crate::store) mod story;

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::health::StoreHealth;
use super::{
    Counters, DeadLetter, EmittedEvent, Epoch, HistoryRow, LogRow, PendingRow, ServiceKey, SourcePositions,
    StoreFuture, Timer, Watermarks,
};
use crate::clock::Millis;
use crate::message::ShardNo;

pub use commands::{NewCommand, OpenCommand, OperatorAction, Pause, Scope, Strange};
pub(in crate::store) use rows::Dialect;
pub use rows::{FoundRows, RowsAsk};

/// A selection of dead letters. Empty fields match all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadFilter {
    /// Of this service.
    pub service: Option<String>,
    /// Of this key.
    pub key: Option<String>,
    /// With this message id.
    pub id: Option<String>,
    /// Given up at or after this time.
    pub since: Option<Millis>,
    /// Given up at or before this time: keeps a command from chasing what it replayed.
    pub until: Option<Millis>,
    /// With an error that contains this text.
    pub error: Option<String>,
}

impl DeadFilter {
    /// True if `letter` is selected.
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        self.service.as_deref().is_none_or(|service| service == &*letter.service)
            && self.key.as_deref().is_none_or(|key| key == &*letter.key)
            && self.id.as_deref().is_none_or(|id| id == letter.message.id())
            && self.since.is_none_or(|since| letter.at >= since)
            && self.until.is_none_or(|until| letter.at <= until)
            && self.error.as_deref().is_none_or(|text| letter.error.contains(text))
    }
}

/// A payload as a command carries it: as text, or in base64 if it is not text. Programs that know only text leave the
/// latter alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PayloadForm", into = "PayloadForm")]
pub struct NewPayload(Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum PayloadForm {
    Text(String),
    Base64 { base64: String },
}

impl NewPayload {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for NewPayload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<NewPayload> for PayloadForm {
    fn from(payload: NewPayload) -> Self {
        match String::from_utf8(payload.0) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::Base64 { base64: BASE64_STANDARD.encode(error.as_bytes()) },
        }
    }
}

impl TryFrom<PayloadForm> for NewPayload {
    type Error = base64::DecodeError;

    fn try_from(form: PayloadForm) -> Result<Self, Self::Error> {
        Ok(Self(match form {
            PayloadForm::Text(text) => text.into_bytes(),
            PayloadForm::Base64 { base64 } => BASE64_STANDARD.decode(base64)?,
        }))
    }
}

/// A key that messages wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingKey {
    /// The key.
    pub of: ServiceKey,
    /// The number of messages that wait.
    pub pending: u64,
    /// The time at which the first of them was taken.
    pub oldest_at: Millis,
}

/// The progress of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CommandState {
    /// Shards that are done with it.
    pub shards_done: u32,
    /// Shards in all.
    pub shards: u32,
    /// Messages changed so far.
    pub affected: u64,
}

/// A shard as an operator sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShardRow {
    /// The shard.
    pub shard: ShardNo,
    /// Its owner, if any.
    pub owner: Option<String>,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its last commit.
    pub commit_no: u64,
    /// Unclean takeovers in a row.
    pub unclean: u32,
    /// Unread messages in its embedded log (whole rows: a row half read counts whole).
    pub unread: u64,
    /// Rows in `pending`.
    pub pending: u64,
    /// Keys with rows in `pending` that no dead letter holds.
    pub waiting_keys: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Keys held by a dead letter.
    pub held_keys: u64,
    /// Number of its last event.
    pub outbox_seq: u64,
    /// The positions of its sources.
    pub positions: SourcePositions,
    /// The number of stretches that are done above those positions, by the source's name.
    pub ahead: BTreeMap<Arc<str>, u64>,
    /// The watermarks of its sinks.
    pub watermarks: Watermarks,
    /// Totals over all its owners.
    pub counters: Counters,
}

/// A commit that took or caused something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRow {
    /// The shard.
    pub shard: ShardNo,
    /// Its number.
    pub no: u64,
    /// The epoch under which it was written.
    pub epoch: Epoch,
    /// The time at which it was written.
    pub at: Millis,
}

/// An event with its place in the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRow {
    /// The commit that holds it.
    pub commit: CommitRow,
    /// Its number in the shard's outbox.
    pub seq: u64,
    /// The event.
    pub event: EmittedEvent,
}

/// All that is known of a message or a key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Story {
    /// Commits that took the id, with the service's name.
    pub taken: Vec<(CommitRow, Arc<str>)>,
    /// Events that its turns emitted.
    pub events: Vec<EventRow>,
    /// Faults, restarts, dead-letter moves.
    pub history: Vec<HistoryRow>,
    /// The rows in which it waits.
    pub pending: Vec<PendingRow>,
    /// The dead letters that it became.
    pub dead: Vec<DeadLetter>,
    /// Log rows that still hold it: origin and number.
    pub log: Vec<(ShardNo, Arc<str>, u64)>,
    /// The key's states: service, version, JSON.
    pub states: Vec<(Arc<str>, u32, Bytes)>,
    /// The kinds of lines of which only the newest are told.
    pub cut: Vec<&'static str>,
}

impl Story {
    /// Lines of each kind that are told.
    pub const LINES_MAX: usize = 10_000;

    /// The lines to tell, oldest first, of lines that come newest first; notes what is cut.
    pub(in crate::store) fn told<T>(&mut self, what: &'static str, mut lines: Vec<T>) -> Vec<T> {
        if lines.len() > Self::LINES_MAX {
            lines.truncate(Self::LINES_MAX);
            self.cut.push(what);
        }
        lines.reverse();
        lines
    }
}

/// An import's progress: a row of its own, written with the messages it counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImportProgress {
    /// Lines read, header and bad ones included.
    pub lines: u64,
    /// Messages appended.
    pub messages: u64,
    /// Lines refused.
    pub rejects: u64,
    /// Length of the rejects file in bytes.
    pub rejects_bytes: u64,
    /// Hash over the lines read, so that a changed file is noticed (hex).
    pub lines_hash: String,
}

/// A batch of an import.
#[derive(Clone, Debug)]
pub struct ImportBatch {
    /// The service.
    pub service: Arc<str>,
    /// The import's name (`--source`).
    pub source: String,
    /// Rows for the log's `import` lane, one per target shard.
    pub rows: Vec<LogRow>,
    /// The progress after it.
    pub progress: ImportProgress,
    /// The time at which it is appended.
    pub at: Millis,
}

/// The queries.
pub trait Queries: Send + Sync {
    /// The shards. This counts all that waits in them, which takes long: for people.
    fn shards(&self) -> StoreFuture<'_, Vec<ShardRow>>;
    /// Unread messages of these shards in the embedded log (a row half read counts whole).
    fn unread(&self, shards: Vec<ShardNo>) -> StoreFuture<'_, Vec<(ShardNo, u64)>>;
    /// The number of keys with rows in `pending` that no dead letter holds, for each of these shards.
    fn count_waiting(&self, shards: Vec<ShardNo>) -> StoreFuture<'_, Vec<(ShardNo, u64)>>;
    /// The numbers of all services that this store ever had, by name: also those that other programs brought.
    fn services(&self) -> StoreFuture<'_, BTreeMap<Arc<str>, u16>>;
    /// Dead letters, newest first, at most `limit`.
    fn peek(&self, filter: DeadFilter, limit: usize) -> StoreFuture<'_, Vec<(ShardNo, DeadLetter)>>;
    /// The number of dead letters that match.
    fn count_dead(&self, filter: DeadFilter) -> StoreFuture<'_, u64>;
    /// The story of a message id or a key (`text` is looked up as both).
    fn explain(&self, text: String) -> StoreFuture<'_, Story>;
    /// Timers, first due first, at most `limit`; of one service or one key where they are named.
    fn scheduled(&self, service: Option<String>, key: Option<String>, limit: usize) -> StoreFuture<'_, Vec<Timer>>;
    /// Keys that most messages wait for, at most `limit`; of one service where it is named.
    fn waiting_keys(&self, service: Option<String>, limit: usize) -> StoreFuture<'_, Vec<WaitingKey>>;
    /// Events of a shard with a number above `after`, in order, at most `limit` commits' worth.
    fn events(&self, shard: ShardNo, after: u64, limit: usize) -> StoreFuture<'_, Vec<EventRow>>;
    /// Rows of a handler's table.
    fn rows(&self, ask: RowsAsk) -> StoreFuture<'_, FoundRows>;
    /// Messages of the lanes that are written from outside, by imports and by calls, that are not read yet; by shard.
    fn unread_outside(&self) -> StoreFuture<'_, BTreeMap<ShardNo, u64>>;
    /// The number of unread messages of those lanes, over all shards.
    fn unread_imports(&self) -> StoreFuture<'_, u64> {
        Box::pin(async move { Ok(self.unread_outside().await?.values().sum()) })
    }
    /// An import's progress so far.
    fn import_progress(&self, service: String, source: String) -> StoreFuture<'_, ImportProgress>;
    /// Appends rows to the log's `import` lane, one per target shard, in one transaction.
    fn append(&self, rows: Vec<LogRow>) -> StoreFuture<'_, ()>;
    /// Appends an import's rows and records its progress, in one transaction.
    fn append_import(&self, batch: ImportBatch) -> StoreFuture<'_, ()>;
    /// Records a command for the shards' owners; returns its number.
    fn command(&self, command: NewCommand) -> StoreFuture<'_, i64>;
    /// The pauses, as operators have asked for them.
    fn pauses(&self) -> StoreFuture<'_, Vec<Pause>>;
    /// Commands that `shard` has still to execute, in order, without those that are passed over.
    fn open_commands(&self, shard: ShardNo, without: Vec<i64>) -> StoreFuture<'_, Vec<Result<OpenCommand, Strange>>>;
    /// Forgets commands that were recorded before a time and executed by every shard, at most `limit`; returns the
    /// number of them.
    fn forget_commands(&self, before: Millis, limit: usize) -> StoreFuture<'_, u64>;
    /// The progress of a command.
    fn command_state(&self, id: i64) -> StoreFuture<'_, CommandState>;
    /// The store's account of itself; empty for a store in memory.
    fn health(&self) -> StoreFuture<'_, StoreHealth> {
        Box::pin(std::future::ready(Ok(StoreHealth::default())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_text_where_it_can_be_and_comes_back_as_it_was() {
        for (bytes, json) in [(&b"{\"a\":1}"[..], r#""{\"a\":1}""#), (b"\x08\xff", r#"{"base64":"CP8="}"#)] {
            let payload = NewPayload::from(bytes.to_vec());
            assert_eq!(serde_json::to_string(&payload).unwrap(), json);
            assert_eq!(serde_json::from_str::<NewPayload>(json).unwrap().bytes(), bytes);
        }
        assert!(serde_json::from_str::<NewPayload>(r#"{"base64":"?"}"#).is_err());
    }
}
