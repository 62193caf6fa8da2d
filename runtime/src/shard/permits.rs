//! The gates as the shards of a process reach them.
//! In: shards that ask, from any of their actors' threads. Out: permits as messages to them; log lines, metrics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ractor::ActorRef;
use tracing::{info, warn};

use super::messages::ShardMessage;
use crate::clock::{Clock, Millis};
use crate::ledger::gates::{Change, Ended, Gates, Seat, State};
use crate::ledger::protocol::Event;
use crate::metrics::Metrics;

/// The keeper of the gates.
pub(crate) struct Keeper {
    inner: Mutex<Inner>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

struct Inner {
    gates: Gates,
    shards: HashMap<Seat, ActorRef<ShardMessage>>,
    next: Seat,
}

impl Keeper {
    pub(crate) fn new(gates: Gates, clock: Clock, metrics: Arc<Metrics>) -> Self {
        gates.states().for_each(|(name, _)| metrics.dependency(name).set_open(false));
        Self { inner: Mutex::new(Inner { gates, shards: HashMap::new(), next: 0 }), clock, metrics }
    }

    /// Enters a shard that will ask; it leaves when the returned [`Chair`] is dropped.
    pub(crate) fn enter(self: &Arc<Self>, shard: ActorRef<ShardMessage>) -> Chair {
        let mut inner = self.inner();
        inner.next += 1;
        let seat = inner.next;
        inner.shards.insert(seat, shard);
        Chair { keeper: self.clone(), seat }
    }

    /// Grants the permits that are due by now.
    pub(crate) fn tick(&self) {
        let mut inner = self.inner();
        if inner.gates.waits() {
            inner.grant(self.clock.now());
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, changes: Vec<Change>) {
        for Change { dependency, state, wait } in changes {
            let open = state == State::Open;
            self.metrics.dependency(dependency).set_open(open);
            if open {
                warn!(dependency, wait_ms = wait, "dependency is not available: no turn that needs it starts");
            } else {
                info!(dependency, "dependency answers again");
            }
        }
    }
}

impl Inner {
    fn grant(&mut self, now: Millis) {
        for (seat, service) in self.gates.grant(now) {
            // A shard that has ended by now leaves, and gives its permits back.
            if let Some(shard) = self.shards.get(&seat) {
                drop(shard.cast(ShardMessage::Event(Event::Permit(service))));
            }
        }
    }
}

/// A shard's place at the gates.
pub(crate) struct Chair {
    keeper: Arc<Keeper>,
    seat: Seat,
}

impl Chair {
    /// Asks for a permit; it comes as [`Event::Permit`].
    pub(crate) fn ask(&self, service: u16, again: bool) {
        let mut inner = self.keeper.inner();
        inner.gates.ask(self.seat, service, again);
        inner.grant(self.keeper.clock.now());
    }

    /// Notes that a turn with a permit ended.
    pub(crate) fn ended(&self, service: u16, ended: Ended) {
        let now = self.keeper.clock.now();
        let mut inner = self.keeper.inner();
        let changes = inner.gates.ended(self.seat, service, ended, now);
        inner.grant(now);
        drop(inner);
        self.keeper.tell(changes);
    }
}

impl Drop for Chair {
    fn drop(&mut self) {
        let mut inner = self.keeper.inner();
        inner.shards.remove(&self.seat);
        inner.gates.leave(self.seat);
        inner.grant(self.keeper.clock.now());
    }
}
