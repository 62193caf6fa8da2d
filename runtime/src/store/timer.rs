//! Named timers of keys, as they are set, stored and found due. Plain values.
//! In: what turns set and cancel. Out: what a store writes, and gives back when it is due.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Part, ServiceKey};
use crate::clock::Millis;
use crate::handler::SCHEDULE;
use crate::message::Message;

/// A named timer of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// The key.
    pub of: ServiceKey,
    /// Its name, unique for the key.
    pub name: Arc<str>,
    /// When it fires.
    pub due_at: Millis,
    /// The message that it is then.
    pub message: Message,
}

impl Timer {
    /// Expression and time zone of the schedule that it is the next occurrence of, if it is one.
    pub fn schedule(&self) -> Option<&str> {
        self.message.header(SCHEDULE)
    }
}

/// Timers that may fire now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DueTimers {
    /// The timers, longest due first.
    pub timers: Vec<Timer>,
    /// Whether there are any that are due, those of keys that wait included.
    pub any: bool,
    /// When the first of those that are not due yet will be.
    pub next: Option<Millis>,
}

/// A named timer of a key, set or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimerWrite {
    /// The service's name.
    pub service: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// The timer's name.
    pub name: Arc<str>,
    /// When it fires, and the message that it is then; `None` removes it, if it is there.
    pub set: Option<(Millis, Message)>,
}

impl TimerWrite {
    /// What the last write says of each timer.
    pub(crate) fn newest<'a>(parts: impl IntoIterator<Item = &'a Part>) -> Vec<&'a Self> {
        let writes = parts.into_iter().flat_map(|part| &part.timers);
        let newest: BTreeMap<_, _> =
            writes.map(|write| ((&*write.service, &*write.key, &*write.name), write)).collect();
        newest.into_values().collect()
    }
}
