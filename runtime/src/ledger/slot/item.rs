//! The items of a key in hand: messages, timers, dead letters that an operator acts on.
//! In: nothing; plain data. Out: the same, in their key's slot.

use std::sync::Arc;

use crate::clock::Millis;
use crate::ledger::tracker::Ticket;
use crate::message::{Message, TakenId};
use crate::store::query::OperatorAction;
use crate::store::{Attempt, DeadLetter};

/// The place that an item came from, to which it also goes back after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// A source's delivery that is not taken yet.
    Live(Ticket),
    /// A pending row.
    Row(u64),
    /// A timer that is due.
    Timer,
}

/// A timer's name that is in hand.
#[derive(Debug)]
pub(crate) struct Hand {
    pub(crate) name: Arc<str>,
    /// True if it waits in the queue, or runs.
    pub(crate) queued: bool,
    /// The number of its writes that are not durable.
    pub(crate) writes: u32,
}

/// A message in hand.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) message: Message,
    pub(crate) id: TakenId,
    pub(crate) from: From,
    /// Number of its arrival, for live ones.
    pub(crate) arrival: u64,
    /// The time at which Perkey took it, or will.
    pub(crate) taken_at: Millis,
    /// Attempts spent.
    pub(crate) attempt: u32,
    pub(crate) history: Vec<Attempt>,
    /// The reason for which it is refused without being run.
    pub(crate) refusal: Option<String>,
    /// The number of times that the process may have ended while it was being handled.
    pub(crate) starts: u32,
    pub(crate) trial: Trial,
}

/// The progress of a suspect towards its next start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Trial {
    /// Not a suspect.
    #[default]
    Free,
    /// Its start is to be recorded.
    Wanted,
    /// That record is on its way to the store.
    Recording,
    /// The record is durable.
    Recorded,
    /// A record that it is not started yet is on its way to the store.
    Watching,
    /// That record is durable, and the suspect is not started before this time.
    Watched(Millis),
}

/// One dead letter that an operator acts on.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) command: i64,
    pub(crate) action: OperatorAction,
    pub(crate) who: String,
    pub(crate) letter: DeadLetter,
}
