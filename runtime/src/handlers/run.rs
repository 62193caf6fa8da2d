//! The messages of a run, and the end of each of its turns. Plain values.
//! In: messages with their attempts. Out: what turns did, or how they failed.

use std::any::Any;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::{Clock, Millis};
use crate::handler::{RowWrite, SentMessage, Statement, TurnLimits};
use crate::message::Message;
use crate::store::calls::Reply;
use crate::store::{EmittedEvent, TimerWrite};

/// A message of a run.
#[derive(Clone, Debug)]
pub struct RunItem {
    /// The message.
    pub message: Message,
    /// The number of this attempt, from 1.
    pub attempt: u32,
}

/// The end of a turn.
#[derive(Clone, Debug)]
pub enum TurnEnd {
    /// It succeeded.
    Done {
        /// Its events, as messages.
        events: Vec<EmittedEvent>,
        /// Its messages for services of this store.
        sent: Vec<SentMessage>,
        /// Its rows.
        rows: Vec<RowWrite>,
        /// The key's timers that it sets and cancels.
        timers: Vec<TimerWrite>,
        /// Its statements.
        statements: Vec<Statement>,
        /// Of a call: how it ended.
        reply: Option<Reply>,
    },
    /// It failed; nothing of it counts.
    Fault(TurnFault),
    /// Something that it needs, by its place in the handler's `NEEDS`, is not available, for this reason: nothing of it
    /// counts, not even the attempt.
    Unavailable(usize, String),
}

/// The ways in which a turn failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TurnFault {
    /// To be tried again.
    Retry(String),
    /// Never to be tried again.
    Reject(String),
    /// Never to be tried again, with a word for the sender of a call.
    Refuse(&'static str, String),
    /// Not to be tried again, and a dead letter even if it is a call: its handler has not decided so.
    GiveUp(String),
    /// To be tried after this many milliseconds, without spending an attempt.
    Defer(Millis),
}

impl TurnFault {
    /// The fault with a text that is not too long.
    pub(crate) fn bounded(self) -> Self {
        match self {
            Self::Retry(error) => Self::Retry(bounded(error)),
            Self::Reject(error) => Self::Reject(bounded(error)),
            Self::Refuse(code, error) => Self::Refuse(code, bounded(error)),
            Self::GiveUp(error) => Self::GiveUp(bounded(error)),
            Self::Defer(delay) => Self::Defer(delay),
        }
    }
}

/// A state as an order carries it: version and JSON, or nothing stored yet.
pub type Stored = Option<(u32, Bytes)>;

/// A handler panicked: what its key's actor ends with.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the handler panicked on message {message_id}: {reason}")]
pub(crate) struct HandlerPanic {
    pub(crate) message_id: String,
    /// The `traceparent` of the turn.
    pub(crate) cause: Option<String>,
    pub(crate) reason: String,
}

/// An error's text is copied with each attempt, into rows, history, letters and headers: it is bounded where it comes in.
const ERROR_BYTES_MAX: usize = 8 * 1024;

/// The text of an error, cut where it is too long; how much was cut is said.
pub(crate) fn bounded(mut error: String) -> String {
    if error.len() > ERROR_BYTES_MAX {
        let end = error.floor_char_boundary(ERROR_BYTES_MAX);
        let cut = error.len() - end;
        error.truncate(end);
        error.push_str(&format!("… ({cut} bytes more)"));
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_error_is_cut_between_characters_and_says_by_how_much() {
        assert_eq!(bounded("short".to_owned()), "short");
        assert_eq!(bounded("x".repeat(ERROR_BYTES_MAX)).len(), ERROR_BYTES_MAX);
        let cut = bounded("é".repeat(ERROR_BYTES_MAX));
        assert!(cut.ends_with("é… (8192 bytes more)") && cut.len() < ERROR_BYTES_MAX + 32, "{}", cut.len());
        let odd = bounded(format!("x{}", "é".repeat(ERROR_BYTES_MAX)));
        assert!(odd.ends_with("é… (8194 bytes more)"));
    }
}

/// A key's state in its actor's hands.
pub(crate) type Cell = Option<Box<dyn Any + Send>>;

/// Everything that a run needs besides its messages.
#[derive(Clone)]
pub(crate) struct RunContext {
    pub(crate) clock: Clock,
    pub(crate) limits: TurnLimits,
    pub(crate) slice: Duration,
    pub(crate) hash_key: [u8; 32],
}

/// The part of a run that has settled so far.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    pub(crate) turns: Vec<TurnEnd>,
    /// The state after them, if one of them changed it.
    pub(crate) state: Option<Stored>,
    /// The last turn panicked: its actor is to die after it answered.
    pub(crate) panic: Option<HandlerPanic>,
    /// The state after several turns does not encode, or something beside them panicked: they are to be run one at a
    /// time, so that the one at fault is found.
    pub(crate) alone: bool,
}
