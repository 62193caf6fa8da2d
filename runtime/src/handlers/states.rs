//! States of keys as they are stored, and back.
//! In: a version and JSON, or a state. Out: the state in today's form, or JSON.

use std::cmp::Ordering;
use std::panic::AssertUnwindSafe;

use bytes::Bytes;

use super::panic_text;
use super::run::{Stored, TurnFault};
use crate::handler::{Fault, Handler};

pub(crate) fn decode<H: Handler>(stored: Stored) -> Result<H::State, String> {
    let Some((version, json)) = stored else { return Ok(H::State::default()) };
    let state = match version.cmp(&H::STATE_VERSION) {
        Ordering::Equal => serde_json::from_slice(&json).map_err(|error| error.to_string()),
        Ordering::Less => upgrade::<H>(version, &json),
        Ordering::Greater => Err("a newer program stored it".to_owned()),
    };
    state.map_err(|error| {
        let (service, now) = (H::SERVICE, H::STATE_VERSION);
        format!("the stored state (version {version}; {service} writes version {now}) does not decode: {error}")
    })
}

fn upgrade<H: Handler>(version: u32, json: &[u8]) -> Result<H::State, String> {
    let stored = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let upgraded = std::panic::catch_unwind(AssertUnwindSafe(|| H::upgrade(version, stored)));
    let upgraded = upgraded.map_err(|panic| format!("the upgrade panicked: {}", panic_text(panic)))?;
    upgraded.map_err(|fault| match fault {
        Fault::Retry(error) | Fault::Reject(error) | Fault::Refuse { reason: error, .. } => error,
        Fault::Defer(delay) => format!("the upgrade asks to be left alone for {delay:?}"),
        Fault::Unavailable { dependency, reason } => format!("{dependency} is not available: {reason}"),
    })
}

pub(super) fn encode<H: Handler>(state: &H::State) -> Result<Bytes, TurnFault> {
    match serde_json::to_vec(state) {
        Ok(json) => Ok(json.into()),
        Err(error) => Err(TurnFault::GiveUp(format!("the state after this turn does not encode: {error}"))),
    }
}
