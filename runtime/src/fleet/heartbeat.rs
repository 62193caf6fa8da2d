//! Renews the worker's lease and tells the root what follows from it.
//! In: the store's answers, the time since boot, ends of shards. Out: orders; the view that the rest of the process
//! reads.
//!
//! It runs on a thread of its own with a runtime of its own, so that handlers which keep every thread of the process
//! busy can neither delay a renewal nor keep a lease from being noticed as lost: the store's connection is opened there
//! and its answers are read there.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::lease::{Lease, Order};
use super::messages::{HeartbeatMessage, News, RootMessage};
use super::{predecessors, worker};
use crate::clock::{Millis, since_boot, sleep};
use crate::metrics::WorkerAlarm;
use crate::shard::env::Env;
use crate::shard::worker::Ownership;
use crate::store::StoreError;
use crate::store::lease::{Code, Fleet, Leases};

/// The longest time between two looks at the lease's time: a machine that was suspended notices within this.
const STEP: Millis = 100;

/// The most news that wait for the thread; when there are more, the root waits.
const NEWS_MAX: usize = 64;

/// The heartbeat's actor: it owns the thread, and fails when the thread does.
pub(crate) struct Heartbeat;

/// The arguments of a [`Heartbeat`].
pub(crate) struct HeartbeatArgs {
    pub(crate) env: Arc<Env>,
    pub(crate) root: ActorRef<RootMessage>,
}

impl Actor for Heartbeat {
    type Msg = HeartbeatMessage;
    type State = mpsc::Sender<News>;
    type Arguments = HeartbeatArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<HeartbeatMessage>,
        HeartbeatArgs { env, root }: HeartbeatArgs,
    ) -> Result<Self::State, ActorProcessingErr> {
        let (news, heard) = mpsc::channel(NEWS_MAX);
        let worker = worker(&env.settings, env.handlers.code());
        let lease = Lease::new(&env.settings.ownership, worker);
        let beat = Beat {
            env,
            root,
            lease,
            heard,
            looks: Vec::new(),
            leave: None,
            hurry: false,
            fresh: true,
            fleet: Fleet::default(),
        };
        std::thread::Builder::new().name("heartbeat".to_owned()).spawn(move || {
            let mut ended = Ended { actor: myself, reason: "it panicked".to_owned() };
            ended.reason = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(beat.run()),
                Err(error) => error.to_string(),
            };
        })?;
        Ok(news)
    }

    async fn handle(
        &self,
        _: ActorRef<HeartbeatMessage>,
        message: HeartbeatMessage,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            HeartbeatMessage::News(news) => Ok(state.send(news).await.map_err(|_| "its thread has ended")?),
            HeartbeatMessage::Ended(reason) => Err(reason.into()),
        }
    }
}

/// Tells the actor when the thread ends, in whichever way.
struct Ended {
    actor: ActorRef<HeartbeatMessage>,
    reason: String,
}

impl Drop for Ended {
    fn drop(&mut self) {
        // The actor may have ended first: then nobody needs to know.
        self.actor.cast(HeartbeatMessage::Ended(std::mem::take(&mut self.reason))).ok();
    }
}

/// The state of the thread.
struct Beat {
    env: Arc<Env>,
    root: ActorRef<RootMessage>,
    lease: Lease,
    heard: mpsc::Receiver<News>,
    /// The callers that wait for the next look.
    looks: Vec<RpcReplyPort<Result<Fleet, StoreError>>>,
    leave: Option<RpcReplyPort<()>>,
    /// True if the next renewal must not wait.
    hurry: bool,
    /// True if the process was started just now: it replaces earlier workers of its name.
    fresh: bool,
    fleet: Fleet,
}

/// The reason for the thread's end when the actor is gone, or the worker has left.
const NOT_NEEDED: &str = "it is no longer needed";

impl Beat {
    async fn run(mut self) -> String {
        let store = Arc::clone(&self.env.store);
        let Some(leases) = store.leases() else { return "the store has no leases".to_owned() };
        let mut pause = 0;
        self.publish(None);
        loop {
            if !self.rest(pause).await {
                return NOT_NEEDED.to_owned();
            }
            if let Some(left) = self.leave.take() {
                let id = self.lease.worker().id.clone();
                self.give_up(leases, id).await;
                left.send(()).ok();
                return NOT_NEEDED.to_owned();
            }
            if self.lease.is_lost() {
                if self.lease.is_empty() {
                    self.rejoin(leases).await;
                }
                pause = if self.lease.is_lost() { STEP } else { 0 };
                continue;
            }
            let Some(next) = self.renew(leases).await else { return NOT_NEEDED.to_owned() };
            pause = next;
        }
    }

    /// Waits for `pause` while it listens and watches the clock; returns whether it is still needed.
    async fn rest(&mut self, pause: Millis) -> bool {
        let end = since_boot() + pause;
        self.hurry = false;
        loop {
            let now = since_boot();
            self.tick(now);
            if now >= end || self.hurry || self.leave.is_some() {
                return true;
            }
            tokio::select! {
                news = self.heard.recv() => match news {
                    Some(news) => self.hear(news),
                    None => return false,
                },
                () = sleep(Duration::from_millis(STEP.min(end - now))) => {}
            }
        }
    }

    /// Renews the lease once; returns the time until the next renewal, or `None` when it is no longer needed.
    async fn renew(&mut self, leases: &dyn Leases) -> Option<Millis> {
        let ttl = self.env.settings.ownership.lease_ttl;
        let sent_at = since_boot();
        // A store that does not answer for a third of a lease will not answer: another attempt may succeed.
        let renewal = tokio::time::timeout(ttl / 3, leases.renew(self.lease.worker().clone(), ttl));
        let mut renewal = std::pin::pin!(renewal);
        let answer = loop {
            tokio::select! {
                answer = &mut renewal => break answer,
                news = self.heard.recv() => self.hear(news?),
                () = sleep(Duration::from_millis(STEP)) => self.tick(since_boot()),
            }
        };
        let answer = answer.unwrap_or_else(|_| Err(StoreError::Unavailable("a renewal was not answered".to_owned())));
        for look in self.looks.drain(..) {
            look.send(answer.clone()).ok();
        }
        let now = since_boot();
        match answer {
            Ok(fleet) => {
                self.fleet = fleet;
                if std::mem::take(&mut self.fresh) && self.replace(leases).await {
                    return Some(0);
                }
                let orders = self.lease.renewed(&self.fleet, sent_at, now);
                self.env.metrics.set_worker_alarm(WorkerAlarm::LeaseLost, self.lease.is_lost());
                self.publish(None);
                self.order(orders);
                Some(self.lease.pause())
            }
            Err(error) => {
                warn!(worker = self.lease.worker().id, %error, "lease could not be renewed, trying again");
                self.publish(Some(error.to_string()));
                self.tick(now);
                Some(self.lease.pause().min(STEP * 3))
            }
        }
    }

    fn tick(&mut self, now: Millis) {
        let orders = self.lease.tick(now);
        if !orders.is_empty() {
            self.env.metrics.set_worker_alarm(WorkerAlarm::LeaseLost, true);
            self.publish(Some("the lease ran out".to_owned()));
        }
        let left = self.lease.until().map_or(0, |until| until.saturating_sub(now));
        self.env.metrics.set_lease_remaining(Duration::from_millis(left));
        self.order(orders);
    }

    fn order(&mut self, orders: Vec<Order>) {
        for order in &orders {
            match order {
                Order::Take(shard, reason) => info!(shard, reason = reason.as_str(), "shard will be taken"),
                Order::Release(shard) => info!(shard, "shard will be handed over"),
                Order::Drop(shard) => warn!(shard, "another worker has this shard, it is dropped"),
                Order::StopAll => {
                    warn!(worker = self.lease.worker().id, "the lease is no longer in force, all shards are stopped");
                }
                Order::GiveUp(recorded) => warn!(recorded, "the store has another number of shards now"),
            }
        }
        if !orders.is_empty() {
            // A root that is gone takes this thread's actor with it.
            self.root.cast(RootMessage::Orders(orders)).ok();
        }
    }

    fn hear(&mut self, news: News) {
        let now = since_boot();
        match news {
            News::Taken(shard) => {
                if let Some((reason, without)) = self.lease.taken(shard, now) {
                    self.env.metrics.record_takeover(reason, Duration::from_millis(without));
                    info!(shard, reason = reason.as_str(), without_owner_ms = without, "shard runs here now");
                }
            }
            News::Stopped(shard) => self.lease.stopped(shard),
            News::Failed(shard) => {
                warn!(shard, cool_down = ?self.env.settings.ownership.cool_down, "shard is left to others");
                self.lease.failed(shard, now);
                // The sooner the others know, the sooner one of them has it.
                self.hurry = true;
            }
            News::Drain => {
                self.lease.drain();
                self.hurry = true;
            }
            News::Look(reply) => {
                self.looks.push(reply);
                self.hurry = true;
            }
            News::Leave(reply) => self.leave = Some(reply),
        }
        let failure = self.ownership().view().failure.take();
        self.publish(failure);
    }

    /// Frees the old incarnation's shards, which have ended here: any worker may take them at once.
    async fn rejoin(&mut self, leases: &dyn Leases) {
        let before = self.lease.worker().id.clone();
        self.give_up(leases, before.clone()).await;
        self.lease.rejoin(worker(&self.env.settings, Code::default()).id);
        self.publish(Some("the worker joins again".to_owned()));
        info!(before, worker = self.lease.worker().id, "worker joins again");
    }

    /// Gives up the leases of earlier incarnations, whose processes are gone: one that is not is fenced, and comes
    /// back.
    async fn replace(&self, leases: &dyn Leases) -> bool {
        let mut any = false;
        for before in predecessors(&self.fleet, &self.lease.worker().id) {
            info!(before, worker = self.lease.worker().id, "worker replaces an earlier one of its name");
            self.give_up(leases, before.to_owned()).await;
            any = true;
        }
        any
    }

    /// Gives up a lease; it expires by itself if the store cannot be told.
    async fn give_up(&self, leases: &dyn Leases, id: String) {
        let left = tokio::time::timeout(self.env.settings.ownership.heartbeat, leases.leave(id));
        match left.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "lease could not be given up, it expires by itself"),
            Err(_) => warn!("lease could not be given up in time, it expires by itself"),
        }
    }

    fn ownership(&self) -> &Ownership {
        self.env.fleet.as_ref().expect("a heartbeat runs only where there are leases")
    }

    fn publish(&self, failure: Option<String>) {
        let metrics = &self.env.metrics;
        let mut view = self.ownership().view();
        view.id.clone_from(&self.lease.worker().id);
        view.fleet.clone_from(&self.fleet);
        view.until = self.lease.until();
        view.settled = self.lease.is_settled();
        view.expected = self.lease.expected().to_vec();
        view.running = self.lease.running().collect();
        view.failure = failure;
        metrics.set_owned_shards(view.running.len() as u64);
        metrics.set_shards_without_owner(self.fleet.without_owner());
        metrics.set_worker_alarm(WorkerAlarm::ShardsCooling, !self.lease.worker().cooling.is_empty());
        let too_new = view.too_new().next();
        if metrics.set_worker_alarm(WorkerAlarm::CodeVersionTooLow, too_new.is_some())
            && let Some((shard, behind)) = too_new
        {
            warn!(shard, %behind, "shard was owned by a newer program, it is not taken: run that program");
        }
    }
}
