//! Calls: commands whose senders wait for an answer, each taking effect once under its idempotency key.
//! In: calls. Out: their outcomes, from their own turn, from the cache or from the store; or that they still run.
//!
//! A call is written with its message in one transaction (`accept`), many calls in one write. Its outcome comes with
//! the commit of its last turn: told by the committer if that is in this process, looked up otherwise (`pending`). The
//! shard's owner is not involved, so any process may take calls, and a call whose owner dies goes on with the next one.

mod accept;

use std::sync::Arc;
use std::time::Duration;

use uuid::Builder;

use self::accept::{Acceptance, Accepts};
use super::cache::ReplayCache;
use crate::clock::{Clock, Dice};
use crate::handler::{CALL, CALL_ID, CallId, is_reserved};
use crate::handlers::Handlers;
use crate::message::{Draft, Message, ShardNo, shard_of};
use crate::metrics::{CallWord, Metrics};
use crate::settings::Settings;
pub(crate) use crate::shard::waiters::PendingCalls;
use crate::store::calls::{CallOutcome, Fingerprint, NewCall};
use crate::store::{Store, StoreError};

/// A call as a front door has it.
#[derive(Clone, Debug)]
pub struct Call {
    /// The identity of the call.
    pub id: CallId,
    /// A fingerprint of what it asks for.
    pub fingerprint: Fingerprint,
    /// The tenant whose key space it is in.
    pub tenant: String,
    /// The service that is to handle it.
    pub service: &'static str,
    /// The message for the service's handler, as JSON.
    pub payload: Vec<u8>,
    /// Headers of its message, such as `traceparent`. Names that begin with `perkey` are left out.
    pub headers: Vec<(String, String)>,
}

/// The answer to the sender of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallAnswer {
    /// It ended, by this very request.
    New(CallOutcome),
    /// It had ended before.
    Replay(CallOutcome),
    /// It still runs.
    InFlight,
    /// Its key belongs to a call that asked for something else.
    Mismatch,
}

impl From<&CallAnswer> for CallWord {
    fn from(answer: &CallAnswer) -> Self {
        match answer {
            CallAnswer::New(_) => Self::New,
            CallAnswer::Replay(_) => Self::Replay,
            CallAnswer::InFlight => Self::InFlight,
            CallAnswer::Mismatch => Self::Mismatch,
        }
    }
}

/// A call was not accepted: nothing is stored under its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Its handler does not understand it, or it is too large.
    #[error("{0}")]
    Malformed(String),
    /// The log has no room for its key's shard now, or too many calls wait to be written.
    #[error(
        "too many messages wait to be handled by the shard of its key (log.max_unread), or too many calls to be written \
         (memory.in_hand)"
    )]
    Full,
    /// Its tenant has as many records as it may have.
    #[error("the tenant has {0} idempotency keys in the store, as many as it may have (gateway.keys_max)")]
    TooManyKeys(u64),
    /// The store does not answer. The call may have been accepted: sent again under its key it takes effect once.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Tells which shards run in this process.
pub(crate) type IsHere = dyn Fn(ShardNo) -> bool + Send + Sync;

/// The entry for calls.
pub struct Calls {
    settings: Arc<Settings>,
    handlers: Handlers,
    cache: Arc<dyn ReplayCache>,
    accepts: Accepts,
    pending: Arc<PendingCalls>,
    is_here: Box<IsHere>,
    clock: Clock,
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Calls {
    /// The entry of a process without an engine, whose calls are run by processes that have one. It must be made in a
    /// Tokio runtime.
    pub fn new(
        settings: &Settings,
        handlers: Handlers,
        store: Arc<dyn Store>,
        cache: Arc<dyn ReplayCache>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let settings = Arc::new(settings.clone());
        Self::with(settings, handlers, store, cache, metrics, Arc::default(), Box::new(|_| false))
    }

    /// The entry of a process whose committers tell `pending`.
    pub(crate) fn with(
        settings: Arc<Settings>,
        handlers: Handlers,
        store: Arc<dyn Store>,
        cache: Arc<dyn ReplayCache>,
        metrics: Arc<Metrics>,
        pending: Arc<PendingCalls>,
        is_here: Box<IsHere>,
    ) -> Arc<Self> {
        let accepts = Accepts::start(Arc::clone(&store), &settings, &metrics);
        PendingCalls::serve(&pending, store);
        Arc::new(Self { settings, handlers, cache, accepts, pending, is_here, clock: Clock::system() })
    }

    /// Tells whether a call was made before, and may be asked for again.
    pub async fn is_known(&self, id: CallId) -> Result<bool, CallError> {
        Ok(self.accepts.known(id).await?.is_some_and(|record| !record.is_expired(self.clock.now())))
    }

    /// The reason for which calls could not be written just now, if they could not.
    pub fn trouble(&self) -> Option<String> {
        self.accepts.trouble().map(|why| format!("the store cannot be written: {why} (calls cannot be accepted)"))
    }

    /// Makes a call, or joins the one that was made before under its key: waits up to `wait` for its end. If the caller
    /// stops waiting before, or is dropped, the call goes on: made again, it returns its outcome.
    pub async fn call(&self, call: Call, wait: Duration) -> Result<CallAnswer, CallError> {
        let now = self.clock.now();
        if let Some(record) = self.cache.get(call.id).await.filter(|record| !record.is_expired(now))
            && record.id == call.id
            && let Some(outcome) = record.outcome
        {
            let same = record.fingerprint == call.fingerprint;
            return Ok(if same { CallAnswer::Replay(outcome) } else { CallAnswer::Mismatch });
        }
        let new = self.accepted(&call, now)?;
        let mut record = new.record();
        let shard = shard_of(new.message.key(), self.settings.ownership.shards);
        // Before it is accepted, because it may end before the answer comes.
        let waiting = self.pending.wait(record.id, &record.message_id, (self.is_here)(shard));
        match self.accepted_or_known(new).await? {
            Acceptance::New => {}
            Acceptance::Known(known) if known.fingerprint != record.fingerprint => return Ok(CallAnswer::Mismatch),
            Acceptance::Known(known) => {
                let Some(outcome) = known.outcome.clone() else { return Ok(CallAnswer::InFlight) };
                self.cache.put(vec![known]);
                return Ok(CallAnswer::Replay(outcome));
            }
        }
        let Ok(outcome) = tokio::time::timeout(wait, waiting.outcome()).await else { return Ok(CallAnswer::InFlight) };
        let outcome = outcome.ok_or_else(|| StoreError::Unavailable("the process is ending".to_owned()))?;
        record.outcome = Some(outcome.clone());
        self.cache.put(vec![record]);
        Ok(CallAnswer::New(outcome))
    }

    /// Accepts a call; if there is no room for a new one, it may be a known one.
    async fn accepted_or_known(&self, new: NewCall) -> Result<Acceptance, CallError> {
        let id = new.id;
        match self.accepts.accept(new).await {
            Err(no_room @ (CallError::Full | CallError::TooManyKeys(_))) => {
                let known = self.accepts.known(id).await?.filter(|record| !record.is_expired(self.clock.now()));
                known.map(Acceptance::Known).ok_or(no_room)
            }
            told => told,
        }
    }

    /// The call as it is written; its message gets a new id each time, because the record alone says what was done.
    fn accepted(&self, call: &Call, now: u64) -> Result<NewCall, CallError> {
        let key = self
            .handlers
            .key_of(call.service, &call.payload)
            .map_err(|error| CallError::Malformed(error.to_string()))?;
        let mut dice = Dice::from_system();
        let chance = std::array::from_fn(|_| u8::try_from(dice.below(256)).unwrap_or_default());
        let id = Builder::from_unix_timestamp_millis(now, &chance).into_uuid().to_string();
        let message = self.message(call, &id, key.as_str(), now)?;
        let keep = crate::clock::millis(self.settings.gateway.keep);
        Ok(NewCall {
            id: call.id,
            fingerprint: call.fingerprint,
            tenant: call.tenant.clone(),
            service: call.service,
            message,
            at: now,
            expires_at: now.saturating_add(keep),
        })
    }

    fn message(&self, call: &Call, id: &str, key: &str, now: u64) -> Result<Message, CallError> {
        let call_id = call.id.to_string();
        let given = call.headers.iter().filter(|(name, _)| !is_reserved(name));
        let mut headers: Vec<(&str, &str)> = given.map(|(name, value)| (&**name, &**value)).collect();
        headers.push((CALL_ID, &call_id));
        let draft =
            Draft { id, key, kind: CALL, source: "perkey:call", time: now, headers: &headers, payload: &call.payload };
        let message = draft.build().map_err(|error| CallError::Malformed(error.to_string()))?;
        let (bytes, max) = (message.frame().len(), self.settings.ingress.message_bytes_max);
        if bytes > max {
            let reason = format!("it has {bytes} bytes, at most {max} are allowed (ingress.message_bytes_max)");
            return Err(CallError::Malformed(reason));
        }
        Ok(message)
    }
}
