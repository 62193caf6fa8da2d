//! States of keys as they are stored, and back.
//! In: a version and JSON, or a state. Out: the state in today's form, or JSON.

use std::cmp::Ordering;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use bytes::Bytes;

use super::panic_text;
use super::run::{Stored, TurnFault};
use crate::handler::{Fault, Handler};

/// A stored state that its handler cannot read.
#[derive(Debug, thiserror::Error)]
#[error("the stored state (version {version}; {service} writes version {now}) does not decode: {problem}")]
pub(crate) struct StateError {
    version: u32,
    service: &'static str,
    now: u32,
    problem: StateProblem,
}

/// The reason why a stored state cannot be read.
#[derive(Debug, thiserror::Error)]
enum StateProblem {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("a newer program stored it")]
    Newer,
    #[error("the upgrade panicked: {0}")]
    Panicked(String),
    /// In the handler's words.
    #[error("{0}")]
    Refused(String),
    #[error("the upgrade asks to be left alone for {0:?}")]
    Deferred(Duration),
    #[error("{dependency} is not available: {reason}")]
    Unavailable { dependency: &'static str, reason: String },
}

pub(crate) fn decode<H: Handler>(stored: Stored) -> Result<H::State, StateError> {
    let Some((version, json)) = stored else { return Ok(H::State::default()) };
    let state = match version.cmp(&H::STATE_VERSION) {
        Ordering::Equal => serde_json::from_slice(&json).map_err(StateProblem::from),
        Ordering::Less => upgrade::<H>(version, &json),
        Ordering::Greater => Err(StateProblem::Newer),
    };
    state.map_err(|problem| StateError { version, service: H::SERVICE, now: H::STATE_VERSION, problem })
}

fn upgrade<H: Handler>(version: u32, json: &[u8]) -> Result<H::State, StateProblem> {
    let stored = serde_json::from_slice(json)?;
    let upgraded = std::panic::catch_unwind(AssertUnwindSafe(|| H::upgrade(version, stored)));
    let upgraded = upgraded.map_err(|panic| StateProblem::Panicked(panic_text(panic)))?;
    upgraded.map_err(|fault| match fault {
        Fault::Retry(error) | Fault::Reject(error) | Fault::Refuse { reason: error, .. } => {
            StateProblem::Refused(error)
        }
        Fault::Defer(delay) => StateProblem::Deferred(delay),
        Fault::Unavailable { dependency, reason } => StateProblem::Unavailable { dependency, reason },
    })
}

pub(super) fn encode<H: Handler>(state: &H::State) -> Result<Bytes, TurnFault> {
    match serde_json::to_vec(state) {
        Ok(json) => Ok(json.into()),
        Err(error) => Err(TurnFault::GiveUp(format!("the state after this turn does not encode: {error}"))),
    }
}
