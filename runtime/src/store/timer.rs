//! Timers of keys, and keys with waiting messages, as they are set, stored and found due. Plain values.
//! In: timers that turns set and cancel, keys that may run. Out: rows that a store writes, and gives back when they are
//! due.

use std::sync::Arc;

use super::{Counters, PendingRow, ServiceKey};
use crate::clock::Millis;
use crate::handler::SCHEDULE;
use crate::message::{Message, TakenId};

/// The services and keys whose rows may run. Only these are looked for, so that the number of other rows does not
/// matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runnable {
    /// Services that the program has and that are not paused.
    pub services: Vec<Arc<str>>,
    /// Keys of these that are paused.
    pub without: Vec<ServiceKey>,
}

impl Runnable {
    /// True if rows of this key may run.
    pub fn has(&self, of: &ServiceKey) -> bool {
        self.services.contains(&of.service) && !self.without.contains(of)
    }

    /// The keys of a service that may not run.
    pub(in crate::store) fn without(&self, service: &str) -> impl Iterator<Item = &str> {
        self.without.iter().filter(move |of| *of.service == *service).map(|of| &*of.key)
    }
}

/// Keys whose first waiting message may run now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The keys, longest due first.
    pub keys: Vec<ServiceKey>,
    /// The time at which the next one after these is due.
    pub next: Option<Millis>,
}

impl Due {
    /// The keys due at `now`, from rows in the order of their times; `rows` has one more than `limit`, whose time is
    /// `next`.
    pub(in crate::store) fn of(
        rows: impl IntoIterator<Item = (Millis, ServiceKey)>,
        now: Millis,
        limit: usize,
    ) -> Self {
        let mut due = Self::default();
        for (due_at, key) in rows {
            if due_at > now || due.keys.len() == limit {
                due.next = Some(due_at);
                break;
            }
            due.keys.push(key);
        }
        due
    }
}

/// A walk through the keys of the services that may run, page by page, in their order.
pub(in crate::store) struct KeyWalk {
    /// The services that are left, the next one last.
    services: Vec<Arc<str>>,
    behind: Option<Arc<str>>,
    page: usize,
}

impl KeyWalk {
    pub(in crate::store) fn new(runnable: &Runnable, after: Option<ServiceKey>, page: usize) -> Self {
        let mut services = runnable.services.clone();
        services.sort_unstable_by(|a, b| b.cmp(a));
        let Some(after) = after else { return Self { services, behind: None, page } };
        services.retain(|service| *service >= after.service);
        let behind = services.last().filter(|service| **service == after.service).map(|_| after.key);
        Self { services, behind, page }
    }

    /// The service whose keys are to be read next, and the key behind which to begin.
    pub(in crate::store) fn place(&self) -> Option<(Arc<str>, Option<Arc<str>>)> {
        Some((self.services.last()?.clone(), self.behind.clone()))
    }

    /// A key was read.
    pub(in crate::store) fn reached(&mut self, key: &Arc<str>) {
        self.behind = Some(key.clone());
    }

    /// A page was read that has `keys` keys.
    pub(in crate::store) fn read(&mut self, keys: usize) {
        if keys < self.page {
            self.services.pop();
            self.behind = None;
        }
    }
}

/// The rows that wait for a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OfService {
    /// Rows in `pending`, in the order of their keys and then their own.
    pub pending: Vec<PendingRow>,
    /// Timers.
    pub timers: Vec<Timer>,
}

/// The number of a shard's dead letters, as its commits count them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Letters {
    /// All of them.
    pub count: u64,
    /// Those that hold their key.
    pub holding: u64,
    /// Those that are events which a sink refused.
    pub refused: u64,
}

impl Letters {
    /// Their names among the shard's counters.
    const NAMES: [&str; 3] = ["dead_letters_now", "dead_letters_holding", "dead_letters_refused"];

    /// The counts of one letter.
    pub(crate) fn one(id: &TakenId, holds_key: bool) -> Self {
        Self { count: 1, holding: holds_key.into(), refused: id.is_outgoing().into() }
    }

    /// The counts as of the last commit; `None` if an older program wrote it, which did not count them.
    pub(crate) fn stored(counters: &Counters) -> Option<Self> {
        let [count, holding, refused] = Self::NAMES.map(|name| counters.get(name).copied());
        Some(Self { count: count?, holding: holding?, refused: refused? })
    }

    /// Puts them into the counters that the next commit stores.
    pub(crate) fn store(self, counters: &mut Counters) {
        let counts = [self.count, self.holding, self.refused];
        counters.extend(Self::NAMES.map(str::to_owned).into_iter().zip(counts));
    }

    /// Removes them from the counters, so that they are counted anew.
    pub(in crate::store) fn forget(counters: &mut Counters) {
        counters.retain(|name, _| !Self::NAMES.contains(&name.as_str()));
    }

    /// The counts, and `more`.
    pub(crate) fn plus(self, more: Self) -> Self {
        Self {
            count: self.count + more.count,
            holding: self.holding + more.holding,
            refused: self.refused + more.refused,
        }
    }

    /// The counts without `fewer`.
    pub(crate) fn minus(self, fewer: Self) -> Self {
        Self {
            count: self.count.saturating_sub(fewer.count),
            holding: self.holding.saturating_sub(fewer.holding),
            refused: self.refused.saturating_sub(fewer.refused),
        }
    }
}

/// A page of dead letters, looked through for old ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OldLetters {
    /// Those that are old.
    pub letters: Vec<OldLetter>,
    /// The number of the last one that was looked at; `None` if there was none.
    pub last: Option<u64>,
}

/// A dead letter that was kept for long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldLetter {
    /// Its number.
    pub seq: u64,
    /// Its service.
    pub service: Arc<str>,
    /// Its key.
    pub key: Arc<str>,
    /// Its id in the inbox.
    pub id: TakenId,
    /// Its message's id.
    pub message_id: String,
}

/// A named timer of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timer {
    /// The key.
    pub of: ServiceKey,
    /// Its name, unique for the key.
    pub name: Arc<str>,
    /// The time at which it fires.
    pub due_at: Millis,
    /// The message that it becomes.
    pub message: Message,
}

impl Timer {
    /// The expression and time zone of the schedule whose next occurrence this is, if it is one.
    pub fn schedule(&self) -> Option<&str> {
        self.message.header(SCHEDULE)
    }
}

/// Timers that may fire now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DueTimers {
    /// The timers, longest due first.
    pub timers: Vec<Timer>,
    /// True if any timers are due and may run, those of keys that wait included.
    pub any: bool,
    /// The time of the first timer that is not due yet and may run.
    pub next: Option<Millis>,
}
