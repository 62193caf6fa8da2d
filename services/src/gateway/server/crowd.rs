//! The connections of a listener, and the choice of the one to close when there is no room for another.
//! In: connections with their peers. Out: at the bound, of the peer with most connections, the one idle for longest.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perkey::millis;
use perkey::unstable::clock::Stopwatch;
use tokio::task::{AbortHandle, Id};

/// The connections of a listener.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    held: HashMap<Id, Held>,
}

#[derive(Debug)]
struct Held {
    peer: IpAddr,
    activity: Arc<Activity>,
    task: AbortHandle,
}

impl Crowd {
    /// The number of connections.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Adds a connection.
    pub(super) fn enter(&mut self, peer: IpAddr, activity: Arc<Activity>, task: AbortHandle) {
        self.held.insert(task.id(), Held { peer: household(peer), activity, task });
    }

    /// Removes a connection that has ended.
    pub(super) fn left(&mut self, id: Id) {
        self.held.remove(&id);
    }

    /// Closes an idle connection; returns false if none is idle. The peer with most connections loses one first, so
    /// that nobody keeps others out by having many.
    pub(super) fn make_room(&mut self) -> bool {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for held in self.held.values() {
            *counts.entry(held.peer).or_default() += 1;
        }
        let idle = self.held.iter().filter_map(|(id, held)| {
            let count = counts.get(&held.peer).copied().unwrap_or_default();
            Some(((count, held.activity.idle_for()?), *id))
        });
        let Some((_, id)) = idle.max_by_key(|(rank, _)| *rank) else { return false };
        if let Some(held) = self.held.remove(&id) {
            held.task.abort();
        }
        true
    }
}

/// The network of a peer: a host with IPv6 has a whole one, the first half of its address.
fn household(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// The requests of a connection.
#[derive(Debug)]
pub(super) struct Activity {
    watch: Stopwatch,
    begun: AtomicU64,
    ended: AtomicU64,
    /// The time at which the last one began or ended.
    last: AtomicU64,
}

impl Activity {
    /// The activity of a connection that begins now.
    pub(super) fn start() -> Arc<Self> {
        let (begun, ended, last) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { watch: Stopwatch::start(), begun, ended, last })
    }

    /// The number of requests so far.
    pub(super) fn seen(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// Returns whether no request runs.
    pub(super) fn is_idle(&self) -> bool {
        self.ended.load(Ordering::Acquire) == self.seen()
    }

    /// The time for which no request has run; `None` while one does.
    fn idle_for(&self) -> Option<Duration> {
        let last = Duration::from_millis(self.last.load(Ordering::Acquire));
        self.is_idle().then(|| self.watch.elapsed().saturating_sub(last))
    }

    fn count(&self, which: &AtomicU64) {
        self.last.store(millis(self.watch.elapsed()), Ordering::Release);
        which.fetch_add(1, Ordering::AcqRel);
    }
}

/// A running request; it also ends when its client goes away.
pub(super) struct Run(Arc<Activity>);

impl Run {
    /// A request of this connection.
    pub(super) fn of(activity: &Arc<Activity>) -> Self {
        activity.count(&activity.begun);
        Self(Arc::clone(activity))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.0.count(&self.0.ended);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn whoever_has_most_loses_the_one_that_is_idle_for_longest() {
        let (mut crowd, mut tasks) = (Crowd::default(), JoinSet::new());
        let [other, first, second, third] = ["192.0.2.9", "192.0.2.1", "192.0.2.1", "192.0.2.1"].map(|peer| {
            let (activity, task) = (Activity::start(), tasks.spawn(pending::<()>()));
            crowd.enter(peer.parse().unwrap(), Arc::clone(&activity), task.clone());
            (activity, task.id())
        });
        let mut shut = async || tasks.join_next_with_id().await.unwrap().unwrap_err().id();
        // The first connection is at work, and the second one was used last.
        let run = Run::of(&first.0);
        second.0.last.store(u64::MAX >> 1, Ordering::Release);
        assert!(crowd.make_room());
        assert_eq!(shut().await, third.1);
        assert!(crowd.make_room());
        assert_eq!(shut().await, second.1);
        // One connection each: the one at work stays.
        assert!(crowd.make_room() && !crowd.make_room());
        assert_eq!(shut().await, other.1);
        drop(run);
        assert!(crowd.make_room() && crowd.len() == 0);
        assert_eq!(shut().await, first.1);
    }

    #[test]
    fn a_network_of_ipv6_is_one_peer() {
        let of = |peer: &str| household(peer.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
