//! The handover of durable commits from a shard to a dispatcher: bounded, and outliving both.
//! In: commits, in order. Out: these commits, or only the number of their last event if the window is full.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::ledger::outbox::publisher::Window;
use crate::store::Commit;

/// Commits that a dispatcher has not taken up.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    waiting: Mutex<Handed>,
    changed: Notify,
}

/// The commits that wait.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    pub(crate) commits: Vec<Arc<Commit>>,
    /// The last event that is durable.
    pub(crate) durable: u64,
    events: usize,
    bytes: usize,
}

impl Handover {
    /// Puts a durable commit with events. If the `window` is full of waiting events, it is left to be read from the
    /// store.
    pub(crate) fn put(&self, commit: &Arc<Commit>, window: Window) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let events = commit.events().count();
        waiting.durable = commit.first_seq + events as u64 - 1;
        if waiting.events < window.events && waiting.bytes < window.bytes {
            waiting.events += events;
            waiting.bytes += commit.events().map(|event| event.message.frame().len()).sum::<usize>();
            waiting.commits.push(commit.clone());
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// Takes all that waits.
    pub(crate) fn take(&self) -> Handed {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Resolves when something was put since it was last waited for.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Wakes the dispatcher, so that it looks again.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }
}
