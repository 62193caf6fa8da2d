//! Commands of operators to the shards' owners, and their pauses. Plain values.
//! In: commands, as they are recorded. Out: commands, as the shards' owners read them.

use serde::{Deserialize, Serialize};

use super::{DeadFilter, NewPayload};
use crate::clock::Millis;

/// The actions of operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperatorAction {
    /// Dead letters become pending again; those that are refused events are published again.
    Replay,
    /// Dead letters are removed.
    Discard,
    /// A dead letter is replaced by a message with this payload and id; its header `replaces` names the one before.
    Edit {
        /// The payload.
        payload: NewPayload,
        /// The new message's id.
        id: String,
    },
    /// A sink, by its name, that is no longer configured is given up: its watermark goes.
    Retire(String),
    /// No turn of these starts until they are resumed; their messages wait.
    Pause(Scope),
    /// Their turns start again.
    Resume(Scope),
    /// The messages that wait for a service that no program has become dead letters; its timers are removed.
    Drop(String),
}

/// A service, or one of its keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Scope {
    /// The service.
    pub service: String,
    /// The key; `None` means all keys.
    pub key: Option<String>,
}

/// A pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// The service or key that is paused.
    pub scope: Scope,
    /// The operator who asked for it.
    pub who: String,
    /// The operator's reason.
    pub why: String,
    /// The time at which it began.
    pub since: Millis,
}

impl Scope {
    /// True if all of `other` is part of it.
    pub fn covers(&self, other: &Self) -> bool {
        self.service == other.service && (self.key.is_none() || self.key == other.key)
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.key {
            Some(key) => write!(f, "key {key:?} of {}", self.service),
            None => write!(f, "service {}", self.service),
        }
    }
}

/// A command to be recorded: also the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCommand {
    /// The action.
    pub action: OperatorAction,
    /// The dead letters that it is about, if any.
    pub filter: DeadFilter,
    /// The operator who asked.
    pub who: String,
    /// The operator's reason.
    pub why: String,
    /// The number of dead letters that it matched when it was recorded.
    pub matched: u64,
    /// The time at which it was recorded.
    pub at: Millis,
}

/// A command that the owner of a shard has still to execute there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenCommand {
    /// Its number.
    pub id: i64,
    /// The action.
    pub action: OperatorAction,
    /// The dead letters that it is about, if any.
    pub filter: DeadFilter,
    /// The operator who asked.
    pub who: String,
}

/// A command that this program does not understand: a newer one recorded it. It stays open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strange {
    /// Its number.
    pub id: i64,
    /// The error: what is not understood.
    pub error: String,
}

impl NewCommand {
    /// The scope that it pauses (true) or resumes (false).
    pub(in crate::store) fn pauses(&self) -> Option<(&Scope, bool)> {
        match &self.action {
            OperatorAction::Pause(scope) => Some((scope, true)),
            OperatorAction::Resume(scope) => Some((scope, false)),
            OperatorAction::Replay
            | OperatorAction::Discard
            | OperatorAction::Edit { .. }
            | OperatorAction::Retire(_)
            | OperatorAction::Drop(_) => None,
        }
    }
}
