//! What a user of Perkey writes and imports: a handler, the turn it works on, the fault it may answer.
//! In: one message and the state of its key. Out: the changed state and what the turn is to do when it commits.

pub(crate) mod codec;
mod command;
mod dialect;
#[cfg(feature = "protobuf")]
mod protobuf;
mod retry;
mod schedule;
mod statement;
mod table;
mod turn;

use std::fmt;
use std::future::Future;
use std::time::Duration;

pub use codec::{Codec, Json, Payload, Schema};
pub use command::{ANSWER, Answer, CALL, COMMAND, CallId, Outcome, Sent, SentMessage, TIMER, call_of, is_between_keys};
pub(crate) use command::{Asked, CALL_ID, TIMER_NAME, is_reserved, stays_inside};
pub use dialect::{CodecError, named_once, whole_number, whole_numbers};
pub use retry::RetryPolicy;
pub use schedule::Schedule;
pub(crate) use schedule::{CRON, SCHEDULE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
pub use statement::Statement;
pub use table::{Column, ColumnKind, Row, Table};
pub use turn::{Effects, Emitted, RowWrite, Scheduled, Turn, TurnLimits};

use crate::message::Key;
#[cfg(feature = "protobuf")]
pub use protobuf::{Protobuf, SchemaError};

/// Handles the messages of one service: one key's at a time, in order, each taking effect exactly once.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "implement `perkey::Handler` for it: SERVICE, Message, State, key and handle"
)]
pub trait Handler: Send + Sync + 'static {
    /// The handler's public name: part of every message's scope, so it must never change.
    const SERVICE: &'static str;
    /// What it needs from outside, by names of its own choice: while one of them is not available ([`Fault::Unavailable`])
    /// no turn starts. `[[dependency]]` sections of the settings say how each is treated.
    const NEEDS: &'static [&'static str] = &[];
    /// Rises when the stored form of [`Handler::State`] changes; [`Handler::upgrade`] then reads the older ones.
    const STATE_VERSION: u32 = 1;
    /// What it understands; decoded from JSON, or by [`Handler::codec`]. A payload that does not decode is rejected, never retried.
    type Message: DeserializeOwned + Send;
    /// What it remembers for each key; stored as JSON in the commit of the turn that changed it.
    type State: Default + Clone + Serialize + DeserializeOwned + Send + 'static;

    /// The key of a message: what an import and a `key = "handler"` binding run it under. One that comes from outside under
    /// another key is rejected; an empty one is no key, and the message is of whichever it came under.
    fn key(&self, message: &Self::Message) -> Key;

    /// Handles one message. On any fault the change of `state` and everything put on the turn are dropped.
    fn handle(
        &self,
        state: &mut Self::State,
        message: Self::Message,
        turn: &mut Turn,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Today's form of a state that was stored under a lower [`Handler::STATE_VERSION`]. It is stored anew with the
    /// next turn that changes it. Unless written otherwise: what still decodes is taken as it is.
    fn upgrade(version: u32, stored: Value) -> Result<Self::State, Fault> {
        let _ = version;
        Ok(serde_json::from_value(stored)?)
    }

    /// The message that the answer to one of its commands is to this handler: see [`Turn::ask`].
    fn answer(&self, answer: Answer) -> Result<Self::Message, Fault> {
        let (service, name) = (Self::SERVICE, answer.name);
        Err(Fault::reject(format!("{service} asked {name:?} and does not say what its answer is: see Handler::answer")))
    }

    /// How its messages from outside are written; those of other handlers and its timers are JSON in any case.
    fn codec(&self) -> &dyn Codec<Self::Message> {
        &Json
    }

    /// What happens to the messages of a key behind a dead letter.
    fn after_dead_letter(&self) -> AfterDeadLetter {
        AfterDeadLetter::Continue
    }

    /// The retry policy, when it is to differ from the settings'.
    fn retry(&self) -> Option<RetryPolicy> {
        None
    }

    /// Messages that come by the clock, each for one of its keys. The `[[cron]]` sections of the settings change their
    /// times or turn them off.
    fn schedules(&self) -> Vec<Schedule> {
        Vec::new()
    }

    /// The tables that [`Turn::write`] fills; made at start where they do not exist.
    fn tables(&self) -> Vec<Table> {
        Vec::new()
    }
}

/// What happens to a key after one of its messages became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDeadLetter {
    /// Its later messages go on.
    Continue,
    /// Its later messages wait until an operator replays or discards the dead letter. Calls, and commands whose asker is told
    /// how they ended, hold nobody.
    HoldKey,
}

/// How a turn fails. `?` on any error gives [`Fault::Retry`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Try again later: spends an attempt, with full jitter between attempts.
    Retry(String),
    /// Never try again: a dead letter now. Of a call: its sender is told, and that is all.
    Reject(String),
    /// The same, with a word by which the sender of a call may know the reason.
    Refuse {
        /// The word, in snake case: `already_exists`, `insufficient_funds`.
        code: &'static str,
        /// The reason.
        reason: String,
    },
    /// Try again after this long: spends no attempt, bounded by `retry.give_up_after`.
    Defer(Duration),
    /// Something of [`Handler::NEEDS`] is not available: the turn is run again when it is, and spends no attempt.
    Unavailable {
        /// Its name there.
        dependency: &'static str,
        /// How that showed.
        reason: String,
    },
}

impl Fault {
    /// [`Fault::Reject`] with a reason.
    pub fn reject(reason: impl fmt::Display) -> Self {
        Self::Reject(reason.to_string())
    }

    /// [`Fault::Refuse`] with a code and a reason.
    pub fn refuse(code: &'static str, reason: impl fmt::Display) -> Self {
        Self::Refuse { code, reason: reason.to_string() }
    }

    /// [`Fault::Unavailable`] with a reason.
    pub fn unavailable(dependency: &'static str, reason: impl fmt::Display) -> Self {
        Self::Unavailable { dependency, reason: reason.to_string() }
    }

    /// [`Fault::Retry`] with a reason.
    pub fn retry(reason: impl fmt::Display) -> Self {
        Self::Retry(reason.to_string())
    }
}

// `Fault` is deliberately no `Error` itself: that is what lets every error become one by `?`.
impl<E: std::error::Error> From<E> for Fault {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            cause = inner.source();
        }
        Self::Retry(text)
    }
}
