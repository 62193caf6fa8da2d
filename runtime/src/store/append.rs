//! Messages that come in without a broker: rows for the embedded log, and when there is room for them.
//! In: messages for services. Out: rows by target shard; a log that never holds more than its bound.

use std::collections::BTreeMap;
use std::time::Duration;

use super::query::Queries;
use super::{LogRow, StoreError};
use crate::clock::sleep;
use crate::message::{Message, ShardNo, shard_of};
use crate::transport::embedded;

/// How long a full log, or a busy store, is left alone.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The lanes of the log into which calls are written: a process takes one of them by its name. Few, because a reader
/// remembers of each how far it is; more than one, because a lane is locked while something is appended to it.
pub const CALL_LANES: [&str; 4] = ["call-0", "call-1", "call-2", "call-3"];

/// The lanes that are written from outside of any shard, as a relation of one column in both dialects of SQL.
pub(in crate::store) const OUTSIDE: &str = "VALUES ('import'), ('call-0'), ('call-1'), ('call-2'), ('call-3')";

/// How often an append is tried while the store is busy beyond its own patience.
const TRIES: u32 = 5;

/// Messages, each with its service, as rows of the log: one per shard, each key's in the order given.
pub fn log_rows<'a>(shards: u32, messages: impl IntoIterator<Item = (&'a str, &'a Message)>) -> Vec<LogRow> {
    let mut targets: BTreeMap<ShardNo, Vec<(&str, &Message)>> = BTreeMap::new();
    for (service, message) in messages {
        targets.entry(shard_of(message.key(), shards)).or_default().push((service, message));
    }
    let row = |(target, named): (ShardNo, Vec<_>)| {
        let count = u32::try_from(named.len()).unwrap_or(u32::MAX);
        LogRow { target, count, messages: embedded::encode(&named) }
    };
    targets.into_iter().map(row).collect()
}

/// Does `append` until the store has answered: a batch that was written all the same is there twice, and dropped by its
/// ids; a call is known by that of its message.
pub async fn patiently<T, F>(append: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    for _ in 1..TRIES {
        match append().await {
            Err(StoreError::Unavailable(_)) => sleep(LOOK_EVERY).await,
            done => return done,
        }
    }
    append().await
}

/// How many messages may be appended before the log has to be looked at again.
#[derive(Debug)]
pub struct Room {
    max_unread: u64,
    left: u64,
}

impl Room {
    /// In a log that is to have at most this many unread messages (`log.max_unread`).
    pub fn new(max_unread: u64) -> Self {
        Self { max_unread, left: 0 }
    }

    /// Whether there is room for `messages`; looks at the log where that is not known.
    pub async fn is_there(&mut self, queries: &dyn Queries, messages: u64) -> Result<bool, StoreError> {
        if self.left < messages {
            self.left = self.max_unread.saturating_sub(queries.unread_imports().await?);
        }
        Ok(self.left >= messages)
    }

    /// Some of it was used.
    pub fn used(&mut self, messages: u64) {
        self.left = self.left.saturating_sub(messages);
    }
}
