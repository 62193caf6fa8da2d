//! Calls: commands whose senders wait for an answer, each with an idempotency key. Plain values, and what a store does.
//! In: calls to accept, a message each. Out: their records; a record without an outcome is of a call that still runs.
//!
//! A call is accepted in one transaction: its record, and its message in the embedded log of its key's shard. The commit
//! of the turn that ends it writes its outcome into the record. So there is no record without a message, no effect
//! without an answer, and no answer without its effect.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use crate::clock::Millis;
use crate::message::Message;
use crate::store::{StoreError, StoreFuture};

/// What identifies a call: a hash of tenant, principal, operation and idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub [u8; 16]);

impl std::fmt::Display for CallId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for CallId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut id = [0; 16];
        if text.len() != 32 || !text.is_ascii() {
            return Err(());
        }
        for (at, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| ())?;
        }
        Ok(Self(id))
    }
}

/// A hash of what a call asks for: another request under the same key has another one.
pub type Fingerprint = [u8; 32];

/// A call to be accepted.
#[derive(Clone, Debug)]
pub struct NewCall {
    /// What identifies it.
    pub id: CallId,
    /// What it asks for.
    pub fingerprint: Fingerprint,
    /// Whose key space it is in: what a tenant has in the store is counted.
    pub tenant: String,
    /// The service that is to handle it.
    pub service: &'static str,
    /// Its message, which carries its id: see [`crate::handler::CALL`].
    pub message: Message,
    /// When it came.
    pub at: Millis,
    /// From when on its key may be used again, once it has ended.
    pub expires_at: Millis,
}

impl NewCall {
    /// Its record, from when it is accepted until it ends.
    pub(crate) fn record(&self) -> CallRecord {
        CallRecord {
            id: self.id,
            fingerprint: self.fingerprint,
            message_id: self.message.id().to_owned(),
            accepted_at: self.at,
            expires_at: self.expires_at,
            outcome: None,
        }
    }
}

/// What the store knows of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRecord {
    /// What identifies it.
    pub id: CallId,
    /// What it asked for.
    pub fingerprint: Fingerprint,
    /// The id of its message; empty where a cache has forgotten it.
    pub message_id: String,
    /// When it was accepted.
    pub accepted_at: Millis,
    /// From when on its key may be used again, once it has ended.
    pub expires_at: Millis,
    /// How it ended; nothing while it runs.
    pub outcome: Option<CallOutcome>,
}

impl CallRecord {
    /// Whether its key may be used again at `now`.
    pub fn is_expired(&self, now: Millis) -> bool {
        self.outcome.is_some() && self.expires_at <= now
    }
}

/// How a call ended, and what its sender is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallOutcome {
    /// How.
    pub end: CallEnd,
    /// Of a refused call: why, as a word for programs.
    pub code: String,
    /// The handler's reply as JSON; of any other end the reason as text.
    pub body: Bytes,
}

impl CallOutcome {
    /// It took effect, and its handler replied this, or nothing.
    pub(crate) fn done(reply: Option<Bytes>) -> Self {
        let body = reply.unwrap_or(Bytes::from_static(b"null"));
        Self { end: CallEnd::Done, code: String::new(), body }
    }

    /// Its handler refused it, with this code and reason.
    pub(crate) fn refused(code: &str, reason: &str) -> Self {
        Self { end: CallEnd::Refused, code: code.to_owned(), body: Bytes::copy_from_slice(reason.as_bytes()) }
    }

    /// It was given up for this reason.
    pub(crate) fn failed(reason: &str) -> Self {
        Self { end: CallEnd::Failed, code: String::new(), body: Bytes::copy_from_slice(reason.as_bytes()) }
    }
}

/// The ends of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEnd {
    /// It took effect.
    Done,
    /// Its handler refused it; it had no effect, and never will.
    Refused,
    /// It failed as often as it may; it had no effect, and is a dead letter.
    Failed,
}

impl CallEnd {
    /// The word in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl std::str::FromStr for CallEnd {
    type Err = StoreError;

    fn from_str(word: &str) -> Result<Self, StoreError> {
        let ends = [Self::Done, Self::Refused, Self::Failed];
        let found = ends.into_iter().find(|end| end.as_str() == word);
        found.ok_or_else(|| StoreError::Corrupt(format!("unknown end of a call {word:?}")))
    }
}

/// The outcome of a call, as the commit of its last turn writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The call.
    pub call: CallId,
    /// How it ended.
    pub outcome: CallOutcome,
}

/// What a store does for calls.
pub trait CallStore: Send + Sync {
    /// Accepts calls in one transaction, each with its message in lane `lane` of the embedded log. In the order asked:
    /// nothing for a call that is new, and the record that was there for one that is not. A record that has expired is
    /// replaced. Of two calls of the same id the first counts, and the other one finds its record.
    fn accept(&self, lane: String, calls: Vec<NewCall>) -> StoreFuture<'_, Vec<Option<CallRecord>>>;

    /// The records of these calls, in the order asked; nothing where there is none.
    fn records(&self, ids: Vec<CallId>) -> StoreFuture<'_, Vec<Option<CallRecord>>>;

    /// How many records each tenant has that have not expired by `now`.
    fn counts(&self, now: Millis) -> StoreFuture<'_, Vec<(String, u64)>>;

    /// Removes records that had expired by `before`, at most `limit`; says how many it removed.
    fn sweep(&self, before: Millis, limit: usize) -> StoreFuture<'_, u64>;
}

/// The calls of which each is the first of its id, by their places.
pub(in crate::store) fn firsts(calls: &[NewCall]) -> Vec<usize> {
    let mut seen = HashSet::with_capacity(calls.len());
    (0..calls.len()).filter(|at| seen.insert(calls[*at].id)).collect()
}

/// What [`CallStore::accept`] answers where the calls at these places were new: of the others, in order, their records. One
/// that was removed just now is neither.
pub(in crate::store) async fn answered(
    store: &dyn CallStore,
    calls: &[NewCall],
    new: &HashSet<usize>,
) -> Result<Vec<Option<CallRecord>>, StoreError> {
    if new.len() == calls.len() {
        return Ok(vec![None; calls.len()]);
    }
    let others = (0..calls.len()).filter(|at| !new.contains(at)).map(|at| calls[at].id).collect();
    let mut records = store.records(others).await?.into_iter();
    let answer = |at: usize| match new.contains(&at) {
        true => Ok(None),
        false => records.next().flatten().map(Some).ok_or_else(|| {
            StoreError::Unavailable("the record of a call was removed while it was looked at: ask again".to_owned())
        }),
    };
    (0..calls.len()).map(answer).collect()
}

/// Records as they were asked for; nothing where there is none.
pub(in crate::store) fn in_order(
    ids: &[CallId],
    found: impl IntoIterator<Item = Result<CallRecord, StoreError>>,
) -> Result<Vec<Option<CallRecord>>, StoreError> {
    let by_id = |record: Result<CallRecord, _>| record.map(|record| (record.id, record));
    let records: HashMap<CallId, CallRecord> = found.into_iter().map(by_id).collect::<Result<_, _>>()?;
    Ok(ids.iter().map(|id| records.get(id).cloned()).collect())
}

/// A hash as it was stored.
pub(in crate::store) fn hash<const N: usize>(stored: &[u8]) -> Result<[u8; N], StoreError> {
    stored.try_into().map_err(|_| StoreError::Corrupt(format!("a hash of a call has {} bytes, not {N}", stored.len())))
}
