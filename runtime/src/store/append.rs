//! Messages that come in without a broker, as rows for the embedded log, and the room for them there.
//! In: messages for services. Out: rows by target shard; a log that never holds more than its bound.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::query::Queries;
use super::{LogRow, StoreError};
use crate::clock::{Millis, Stopwatch, sleep};
use crate::message::{Message, ShardNo, shard_of};
use crate::store::layout::log;

/// The intake, as settings, positions and metrics name it.
pub const INTAKE: &str = "intake";

/// The answer of [`super::Store::read_intake`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IntakeRows {
    /// Rows that were not held.
    pub rows: Vec<IntakeRow>,
    /// Held rows that no commit has deleted yet.
    pub left: Vec<u64>,
}

/// A message that an application left in the intake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntakeRow {
    /// Its number; numbers may become visible in another order.
    pub no: u64,
    /// The service that is to handle it; without one, the settings' bindings choose.
    pub service: Option<Arc<str>>,
    /// Its key.
    pub key: String,
    /// Its id.
    pub id: String,
    /// Its type.
    pub kind: String,
    /// Its headers: a JSON object.
    pub headers: String,
    /// Its payload.
    pub payload: String,
    /// Bytes of headers and payload in the table: where these exceed the bytes asked for, the row comes without headers
    /// and with the beginning of its payload only.
    pub bytes: u64,
    /// The time at which it was inserted.
    pub at: Millis,
}

/// The time for which a full log, or a busy store, is left alone.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The lanes of the log into which calls are written: a process takes one of them by its name. Few, because a reader
/// remembers its position in each; more than one, because a lane is locked during an append.
pub const CALL_LANES: [&str; 4] = ["call-0", "call-1", "call-2", "call-3"];

/// The lanes that are written from outside any shard, as a relation of one column in both dialects of SQL.
pub(in crate::store) const OUTSIDE: &str = "VALUES ('import'), ('call-0'), ('call-1'), ('call-2'), ('call-3')";

/// The bytes that count as one message: a row of the log counts for its messages, or for its bytes divided by this
/// where that is more. So a read that is bounded in messages is bounded in bytes as well.
pub(in crate::store) const WEIGHT_BYTES: usize = 2_048;

/// The number of times that an append is tried while the store is busy beyond its own patience.
const TRIES: u32 = 5;

/// Messages, each with its service, as rows of the log: one per shard, each key's in the order given.
pub fn log_rows<'a>(shards: u32, messages: impl IntoIterator<Item = (&'a str, &'a Message)>) -> Vec<LogRow> {
    let mut targets: BTreeMap<ShardNo, Vec<(&str, &Message)>> = BTreeMap::new();
    for (service, message) in messages {
        targets.entry(shard_of(message.key(), shards)).or_default().push((service, message));
    }
    let row = |(target, named): (ShardNo, Vec<_>)| {
        let count = u32::try_from(named.len()).unwrap_or(u32::MAX);
        LogRow { target, count, messages: log::encode(&named) }
    };
    targets.into_iter().map(row).collect()
}

/// Repeats `append` until the store has answered. A batch that was written although the answer was lost is then there
/// twice, and its ids drop the second one; a call is recognized by the id of its message.
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

/// The number of messages for each shard.
pub type Targets = BTreeMap<ShardNo, u64>;

/// The messages of `rows`, counted by target shard.
pub fn targets(rows: &[LogRow]) -> Targets {
    let mut targets = Targets::new();
    for row in rows {
        *targets.entry(row.target).or_default() += u64::from(row.count);
    }
    targets
}

/// The room for messages in the log, until it has to be looked at again. Each shard has a share of the log, so a shard
/// that reads nothing keeps out its own messages and no others.
#[derive(Debug)]
pub struct Room {
    max_unread: u64,
    share: u64,
    /// Unread messages of each shard: as last looked at, plus those appended since. `None` before the first look.
    unread: Option<Targets>,
    /// Shards that had no room, each with the time since that was found.
    full: BTreeMap<ShardNo, Stopwatch>,
}

impl Room {
    /// The room in a log of `shards` shards that is to have at most `max_unread` unread messages (`log.max_unread`).
    pub fn new(max_unread: u64, shards: u32) -> Self {
        let share = (max_unread / u64::from(shards.max(1))).max(1);
        Self { max_unread, share, unread: None, full: BTreeMap::new() }
    }

    /// Returns whether there is room for `wanted`; looks at the log where that is not known. A shard that was found
    /// full is not looked at again at once.
    pub async fn is_there(&mut self, queries: &dyn Queries, wanted: &Targets) -> Result<bool, StoreError> {
        if self.lacks(wanted).is_some_and(|shards| shards.is_empty()) {
            return Ok(true);
        }
        self.full.retain(|_, since| since.elapsed() < LOOK_EVERY);
        if wanted.keys().any(|shard| self.full.contains_key(shard)) {
            return Ok(false);
        }
        self.unread = Some(queries.unread_outside().await?);
        let lacks = self.lacks(wanted).unwrap_or_default();
        self.full.extend(lacks.iter().map(|shard| (*shard, Stopwatch::start())));
        Ok(lacks.is_empty())
    }

    /// Takes note that these messages were appended.
    pub fn used(&mut self, wanted: &Targets) {
        let unread = self.unread.get_or_insert_default();
        for (shard, messages) in wanted {
            *unread.entry(*shard).or_default() += messages;
        }
    }

    /// The shards that have no room; `None` before the first look. More than a share goes only to a shard that has read
    /// everything.
    fn lacks(&self, wanted: &Targets) -> Option<Vec<ShardNo>> {
        let unread = self.unread.as_ref()?;
        let all = unread.values().sum::<u64>() + wanted.values().sum::<u64>();
        let lacks = |(shard, messages): (&ShardNo, &u64)| {
            let has = unread.get(shard).copied().unwrap_or(0);
            (has > 0 && (has + messages > self.share || all > self.max_unread)).then_some(*shard)
        };
        Some(wanted.iter().filter_map(lacks).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::memory::MemoryStore;

    fn rows(target: ShardNo, count: u32) -> Vec<LogRow> {
        vec![LogRow { target, count, messages: bytes::Bytes::new() }]
    }

    #[tokio::test]
    async fn a_shard_that_reads_nothing_keeps_out_what_is_for_it_alone() {
        let store = MemoryStore::new();
        let queries = store.queries();
        let mut room = Room::new(400, 4);
        for _ in 0..10 {
            let more = rows(1, 10);
            assert!(room.is_there(queries, &targets(&more)).await.unwrap());
            queries.append(more.clone()).await.unwrap();
            room.used(&targets(&more));
        }
        assert!(!room.is_there(queries, &targets(&rows(1, 1))).await.unwrap(), "its share is used up");
        assert!(room.is_there(queries, &targets(&rows(2, 100))).await.unwrap(), "the others have theirs");
        assert!(!room.is_there(queries, &Targets::from([(1, 1), (2, 1)])).await.unwrap());
        assert!(!Room::new(400, 4).is_there(queries, &targets(&rows(1, 1))).await.unwrap(), "whoever looks");
        assert!(room.is_there(queries, &targets(&rows(3, 300))).await.unwrap(), "more than a share, to an empty shard");
    }
}
