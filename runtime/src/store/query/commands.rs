//! What operators ask of the shards' owners, and what they have paused. Plain values.
//! In: commands, as they are recorded. Out: the same, as their owners read them.

use serde::{Deserialize, Serialize};

use super::{DeadFilter, NewPayload};
use crate::clock::Millis;

/// What an operator wants done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
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
    /// What waits for a service that no program has is given up: its timers are removed, its messages become dead letters.
    Drop(String),
}

/// A service, or one of its keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Scope {
    /// The service.
    pub service: String,
    /// The key; all of them where there is none.
    pub key: Option<String>,
}

/// What is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// What.
    pub scope: Scope,
    /// Who asked.
    pub who: String,
    /// Why.
    pub why: String,
    /// Since when.
    pub since: Millis,
}

impl Scope {
    /// Whether all of `other` is part of it.
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
    /// What.
    pub action: Action,
    /// On which dead letters, where it is about some.
    pub filter: DeadFilter,
    /// Who asked.
    pub who: String,
    /// Why.
    pub why: String,
    /// How many it matched when it was asked.
    pub matched: u64,
    /// When.
    pub at: Millis,
}

/// A command that the owner of a shard has still to execute there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenCommand {
    /// Its number.
    pub id: i64,
    /// What.
    pub action: Action,
    /// On which dead letters.
    pub filter: DeadFilter,
    /// Who asked.
    pub who: String,
}

/// A command that this program does not understand: a newer one recorded it. It stays open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strange {
    /// Its number.
    pub id: i64,
    /// What is not understood.
    pub error: String,
}

impl NewCommand {
    /// What it pauses or resumes, and which of both.
    pub(in crate::store) fn pauses(&self) -> Option<(&Scope, bool)> {
        match &self.action {
            Action::Pause(scope) => Some((scope, true)),
            Action::Resume(scope) => Some((scope, false)),
            Action::Replay | Action::Discard | Action::Edit { .. } | Action::Retire(_) | Action::Drop(_) => None,
        }
    }
}
