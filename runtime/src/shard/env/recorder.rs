//! Records of the events that ledgers are told, from which all their decisions can be reproduced.
//! In: the beginning of each ledger and each of its events. Out: recordings to replay.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Millis;
use crate::ledger::Ledger;
use crate::ledger::protocol::{Action, Event, LedgerConfig};
use crate::message::ShardNo;
use crate::store::{InboxRows, TakenShard};

/// The life of one ledger: its beginning, and its events since.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The configuration that the ledger was made with; the seed of its dice is part of it.
    pub config: LedgerConfig,
    /// The shard as it was taken.
    pub taken: TakenShard,
    /// The inbox at that time.
    pub inbox: InboxRows,
    /// The time at which it was taken.
    pub began: Millis,
    /// The events, each with its time, in their order.
    pub events: Vec<(Millis, Event)>,
}

impl Recording {
    /// The ledger's decisions, event by event: it is pure, so that it decides the same again.
    pub fn replay(&self) -> Vec<Decision> {
        let mut ledger = Ledger::new(self.config.clone(), self.taken.clone(), self.inbox.clone(), self.began);
        let began = Decision { at: self.began, event: None, actions: ledger.actions() };
        let steps = self.events.iter().map(|(at, event)| {
            ledger.step(event.clone(), *at);
            Decision { at: *at, event: Some(event.clone()), actions: ledger.actions() }
        });
        std::iter::once(began).chain(steps).collect()
    }
}

/// An event of a recording, and the actions that followed it.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The time at which it happened.
    pub at: Millis,
    /// The event; `None` for the ledger's beginning.
    pub event: Option<Event>,
    /// The actions, in order.
    pub actions: Vec<Action>,
}

/// The recorder of an engine, which keeps the events of every ledger. It grows with each event: it is made for tests,
/// and for a few minutes' search for a fault.
#[derive(Debug, Default)]
pub struct Recorder {
    lives: Mutex<Vec<Recording>>,
}

impl Recorder {
    /// The recordings so far, one for each ledger, in the order of their beginnings.
    pub fn recordings(&self) -> Vec<Recording> {
        self.lives().clone()
    }

    pub(crate) fn begin(&self, recording: Recording) {
        self.lives().push(recording);
    }

    /// Records an event of the shard's newest ledger.
    pub(crate) fn event(&self, shard: ShardNo, now: Millis, event: &Event) {
        let mut lives = self.lives();
        if let Some(life) = lives.iter_mut().rev().find(|life| life.taken.shard == shard) {
            life.events.push((now, event.clone()));
        }
    }

    fn lives(&self) -> MutexGuard<'_, Vec<Recording>> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
