//! The permits of a process, shared by its shards.
//! In: shards that ask, from any of their actors' threads. Out: permits as messages to them; log lines, metrics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ractor::ActorRef;
use tracing::{info, warn};

use super::messages::ShardMessage;
use crate::clock::{Clock, Millis};
use crate::ledger::gates::{Asker, BreakerChange, BreakerState, Gates, Line, PermitEnd};
use crate::ledger::protocol::Event;
use crate::metrics::Metrics;

/// The permits that the shards of a process share.
pub(crate) struct PermitPool {
    inner: Mutex<Inner>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

struct Inner {
    gates: Gates,
    shards: HashMap<Asker, ActorRef<ShardMessage>>,
    next: Asker,
}

impl PermitPool {
    pub(crate) fn new(gates: Gates, clock: Clock, metrics: Arc<Metrics>) -> Self {
        gates.states().for_each(|(name, _)| metrics.dependency(name).set_open(false));
        Self { inner: Mutex::new(Inner { gates, shards: HashMap::new(), next: 0 }), clock, metrics }
    }

    /// Enters a shard that will ask; it leaves when the returned [`ShardPermits`] is dropped.
    pub(crate) fn enter(self: &Arc<Self>, shard: ActorRef<ShardMessage>) -> ShardPermits {
        let mut inner = self.inner();
        inner.next += 1;
        let asker = inner.next;
        inner.shards.insert(asker, shard);
        ShardPermits { pool: self.clone(), asker }
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

    fn tell(&self, changes: Vec<BreakerChange>) {
        for BreakerChange { dependency, state, wait } in changes {
            let open = state == BreakerState::Open;
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
        for (asker, line) in self.gates.grant(now) {
            // A shard that has ended by now leaves, and gives its permits back.
            if let Some(shard) = self.shards.get(&asker) {
                drop(shard.cast(ShardMessage::Event(Event::Permit(line))));
            }
        }
    }
}

/// A shard's part of the pool: what it asked for, and what it has.
pub(crate) struct ShardPermits {
    pool: Arc<PermitPool>,
    asker: Asker,
}

impl ShardPermits {
    /// Asks for a permit; it comes as [`Event::Permit`].
    pub(crate) fn ask(&self, line: Line, again: bool) {
        let mut inner = self.pool.inner();
        inner.gates.ask(self.asker, line, again);
        inner.grant(self.pool.clock.now());
    }

    /// Notes that a turn with a permit ended.
    pub(crate) fn ended(&self, line: Line, ended: PermitEnd) {
        let now = self.pool.clock.now();
        let mut inner = self.pool.inner();
        let changes = inner.gates.ended(self.asker, line, ended, now);
        inner.grant(now);
        drop(inner);
        self.pool.tell(changes);
    }
}

impl Drop for ShardPermits {
    fn drop(&mut self) {
        let mut inner = self.pool.inner();
        inner.shards.remove(&self.asker);
        inner.gates.leave(self.asker);
        inner.grant(self.pool.clock.now());
    }
}
