//! The items of a key in hand: messages, timers, dead letters that an operator acts on.
//! In: nothing; plain data. Out: the same, in their key's slot.

use std::sync::Arc;

use crate::clock::Millis;
use crate::handler::TIMER;
use crate::ledger::tracker::Ticket;
use crate::message::{Message, TakenId};
use crate::store::query::OperatorAction;
use crate::store::{Attempt, DeadLetter};

/// Header of a message that replaced a dead letter: the id of that.
pub(crate) const REPLACES: &str = "replaces";

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

impl Item {
    /// True if its time counts from a source: it is neither a timer nor put back by an operator. A replay is taken anew,
    /// after its first attempts.
    pub(crate) fn is_of_source(&self) -> bool {
        match self.from {
            From::Live(_) => true,
            From::Timer => false,
            From::Row(_) => {
                self.message.kind() != TIMER
                    && self.message.header(REPLACES).is_none()
                    && self.history.first().is_none_or(|first| first.at >= self.taken_at)
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Draft;

    fn row(kind: &str, headers: &[(&str, &str)], attempts: &[Millis]) -> Item {
        let message = Draft { id: "m", key: "k", kind, headers, ..Draft::default() }.build_unchecked().unwrap();
        let attempt = |at: &Millis| Attempt { attempt: 1, at: *at, generation: 0, error: String::new() };
        Item {
            message,
            id: TakenId([0; TakenId::BYTES]),
            from: From::Row(7),
            arrival: 0,
            taken_at: 100,
            attempt: 0,
            history: attempts.iter().map(attempt).collect(),
            refusal: None,
            starts: 0,
            trial: Trial::Free,
        }
    }

    #[test]
    fn timers_and_what_operators_put_back_are_not_of_a_source() {
        assert!(row("t", &[], &[]).is_of_source(), "one that follows");
        assert!(row("t", &[], &[100, 200]).is_of_source(), "one that is tried again");
        assert!(!row(TIMER, &[], &[]).is_of_source(), "a timer that is tried again");
        assert!(!row("t", &[], &[50, 200]).is_of_source(), "a replay, also when it is tried again");
        assert!(!row("t", &[(REPLACES, "m0")], &[]).is_of_source(), "an edited one");
        assert!(!Item { from: From::Timer, ..row(TIMER, &[], &[]) }.is_of_source());
    }
}
