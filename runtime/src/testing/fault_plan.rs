//! The fates of messages' turns, drawn from the seed and the message alone, so that they are the same after any crash.
//! In: a seed, a service, a message id. Out: its fault plan.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::clock::Dice;
use crate::handler::RowWrite;
use crate::message::murmur2;

use super::plan::{Faults, PROBE};

/// The faults of the turns of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultPlan {
    /// Nothing goes wrong.
    Fine,
    /// Its first attempts fail.
    Retry(u32),
    /// It is put off this many times.
    Defer(u32),
    /// Its first attempts end with their actor.
    Panic(u32),
    /// It finds what it needs unavailable, this many times.
    Unavailable(u32),
    /// It is rejected.
    Reject,
    /// All its attempts fail.
    Hopeless,
    /// The store refuses what it wrote, this many times.
    Refused(u32),
    /// The store always refuses what it wrote, and says whether that is for good.
    Unwritable(bool),
}

impl FaultPlan {
    /// The fault plan of a message for a service.
    pub(super) fn of(seed: u64, faults: Faults, service: &str, id: &str) -> Self {
        let scope = u64::from(murmur2(service.as_bytes())) << 32 | u64::from(murmur2(id.as_bytes()));
        let mut dice = Dice::seeded(seed ^ scope);
        let (roll, times) = (dice.below(200), 1 + u32::try_from(dice.below(3)).unwrap_or(0));
        match roll {
            0..=13 if faults.turns => Self::Retry(times),
            14..=18 if faults.turns => Self::Defer(times),
            19..=23 if faults.turns => Self::Panic(times),
            42..=47 if faults.turns => Self::Unavailable(times),
            24..=30 if faults.turns => Self::Reject,
            31..=33 if faults.turns => Self::Hopeless,
            34..=37 if faults.refusals => Self::Refused(times),
            38..=41 if faults.refusals => Self::Unwritable(roll < 40),
            _ => Self::Fine,
        }
    }

    /// True if a sink refuses this event.
    pub(super) fn is_refused(seed: u64, faults: Faults, sink: &str, id: &str) -> bool {
        let scope = u64::from(murmur2(sink.as_bytes())) << 32 | u64::from(murmur2(id.as_bytes()));
        faults.sinks && Dice::seeded(seed ^ scope).below(40) == 0
    }

    /// True if it can only end as a dead letter.
    pub(super) fn is_deadly(self) -> bool {
        match self {
            Self::Reject | Self::Hopeless | Self::Unwritable(_) => true,
            Self::Fine | Self::Retry(_) | Self::Defer(_) | Self::Unavailable(_) | Self::Panic(_) | Self::Refused(_) => {
                false
            }
        }
    }
}

/// The rows that the store is told to refuse.
#[derive(Debug)]
pub(super) struct Refusals {
    seed: u64,
    faults: Faults,
    state: Mutex<(bool, HashMap<String, u32>)>,
}

impl Refusals {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        Self { seed, faults, state: Mutex::default() }
    }

    /// From now on nothing is refused.
    pub(super) fn heal(&self) {
        if let Ok(mut state) = self.state.lock() {
            state.0 = true;
        }
    }

    /// The reason for which the row is refused, if it is, and whether that is for good.
    pub(super) fn check(&self, row: &RowWrite) -> Option<(bool, String)> {
        if row.table.name != PROBE.name || !self.faults.refusals {
            return None;
        }
        let (service, id, _): (String, String, u64) = serde_json::from_str(&row.key).ok()?;
        let mut state = self.state.lock().ok()?;
        if state.0 {
            return None;
        }
        match FaultPlan::of(self.seed, self.faults, &service, &id) {
            FaultPlan::Unwritable(permanent) => Some((permanent, format!("the row of {id} is refused"))),
            FaultPlan::Refused(times) => {
                let seen = state.1.entry(row.key.clone()).or_insert(0);
                *seen += 1;
                // A turn is refused with its batch, then alone: each run of it has a row of its own.
                let turns = state.1.keys().filter(|key| key.starts_with(&prefix(&service, &id))).count();
                (turns <= times as usize).then(|| (false, format!("the row of {id} is refused this time")))
            }
            _ => None,
        }
    }
}

fn prefix(service: &str, id: &str) -> String {
    let text = serde_json::to_string(&[service, id]).unwrap_or_default();
    format!("{},", text.trim_end_matches(']'))
}
