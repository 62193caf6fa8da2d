//! The root's part in a fleet: shards come and go by the heartbeat's orders.
//! In: orders, ends of shards and of the heartbeat. Out: shards taken, handed over and stopped; news for the heartbeat.

use std::sync::Arc;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tracing::{error, info, warn};

use super::{AGAIN, RootState};
use crate::fleet::give_back::{GiveBack, GiveBackArgs};
use crate::fleet::heartbeat::{Heartbeat, HeartbeatArgs};
use crate::fleet::lease::Order;
use crate::fleet::messages::{HeartbeatMessage, News, RootMessage};
use crate::message::ShardNo;
use crate::metrics::RestartReason;
use crate::shard::env::End;
use crate::shard::policy::Verdict;
use crate::shard::supervisor::{RunsStuck, ShardSupervisorMessage};
use crate::store::StoreError;

impl RootState {
    /// Sends news to the heartbeat. One that is being restarted begins with nothing, as the root then does.
    pub(crate) fn tell(&self, news: News) {
        if let Some(heartbeat) = &self.heartbeat {
            heartbeat.cast(HeartbeatMessage::News(news)).ok();
        }
    }

    pub(crate) async fn start_heartbeat(&mut self, myself: &ActorRef<RootMessage>) -> Result<(), ActorProcessingErr> {
        let args = HeartbeatArgs { env: Arc::clone(&self.args.env), root: myself.clone() };
        let (heartbeat, _) = Actor::spawn_linked(None, Heartbeat, args, myself.get_cell()).await?;
        self.heartbeat = Some(heartbeat);
        Ok(())
    }

    /// Stops the shards after the heartbeat has ended: without it a worker owns nothing, and it joins again as another
    /// incarnation.
    pub(crate) fn heartbeat_ended(&mut self, myself: &ActorRef<RootMessage>, end: &End) -> bool {
        if self.heartbeat.as_ref().is_none_or(|heartbeat| heartbeat.get_id() != end.id) {
            return false;
        }
        self.heartbeat = None;
        if self.draining {
            return true;
        }
        error!(reason = end.reason, "heartbeat ended, all shards are stopped");
        self.stop_all();
        let now = self.args.env.clock.now();
        match self.heartbeat_budget.on_failure(now, &mut self.dice) {
            Verdict::Restart(after) => {
                myself.send_after(after + AGAIN, || RootMessage::RestartHeartbeat);
            }
            Verdict::Escalate => self.give_up(format!("the heartbeat failed too often, the last time: {}", end.reason)),
        }
        true
    }

    pub(crate) async fn obey(&mut self, myself: &ActorRef<RootMessage>, order: Order) {
        match order {
            Order::StopAll => self.stop_all(),
            Order::GiveUp(recorded) => {
                // Only a start with other settings helps: every key may belong to another shard.
                let wanted = self.args.env.settings.ownership.shards;
                self.stop_all();
                self.give_up(StoreError::Shards { recorded, wanted }.to_string());
            }
            // The heartbeat heard of an earlier end after it had ordered the next take: the shard runs.
            Order::Take(shard, _) if self.runs(shard) => self.tell(News::Taken(shard)),
            Order::Take(shard, _) if self.draining || self.is_busy(shard) => self.tell(News::Stopped(shard)),
            Order::Take(shard, _) => {
                self.shards[shard as usize].wanted = true;
                self.retake(myself, shard).await;
            }
            Order::Release(_) | Order::Drop(_) if self.draining => {}
            Order::Release(shard) => {
                let grace = self.args.env.settings.drain.hand_over;
                let owned = &mut self.shards[shard as usize];
                owned.wanted = false;
                match &owned.supervisor {
                    Some(supervisor) => drop(supervisor.cast(ShardSupervisorMessage::HandOver(grace))),
                    None => self.tell(News::Stopped(shard)),
                }
            }
            Order::Drop(shard) => self.stop(shard),
        }
    }

    /// Returns whether the shard runs here and is meant to.
    fn runs(&self, shard: ShardNo) -> bool {
        let owned = &self.shards[shard as usize];
        owned.wanted && owned.supervisor.is_some()
    }

    /// Returns whether an earlier run of the shard has not ended yet.
    fn is_busy(&self, shard: ShardNo) -> bool {
        self.shards[shard as usize].supervisor.is_some() || self.giving_back.values().any(|(of, _)| *of == shard)
    }

    fn stop_all(&mut self) {
        for shard in 0..self.args.env.settings.ownership.shards {
            self.stop(shard);
        }
    }

    /// Ends a shard at once: its messages in hand belong to another owner.
    fn stop(&mut self, shard: ShardNo) {
        let owned = &mut self.shards[shard as usize];
        owned.wanted = false;
        match &owned.supervisor {
            Some(supervisor) => supervisor.get_cell().kill(),
            None => self.tell(News::Stopped(shard)),
        }
    }

    pub(crate) fn started(&self, id: ActorId) {
        if self.args.env.fleet.is_some()
            && let Some(shard) = self.shard_of(id)
        {
            self.tell(News::Taken(shard));
        }
    }

    pub(crate) async fn ended_in_fleet(&mut self, myself: &ActorRef<RootMessage>, shard: ShardNo, why: Why, end: &End) {
        let wanted = self.shards[shard as usize].wanted && !self.draining;
        match why {
            Why::Hopeless => return self.give_up(format!("shard {shard}: {}", end.reason)),
            Why::Other if wanted => return self.failed(myself, shard, RestartReason::Escalated, &end.reason).await,
            // The next heartbeat asks for it again, if it is still this worker's: that spends no restarts.
            Why::Refused if wanted => warn!(shard, error = end.reason, "shard cannot be taken now"),
            Why::Refused | Why::Other => info!(shard, reason = end.reason, "shard runs here no more"),
        }
        let env = &self.args.env;
        env.metrics.forget_shard(shard);
        env.troubles.forget(shard);
        self.shards[shard as usize].wanted = false;
        self.tell(News::Stopped(shard));
    }

    /// Gives a shard back, the next stage after its restarts are spent: another worker may have more luck with it.
    pub(crate) async fn give_back(&mut self, myself: &ActorRef<RootMessage>, shard: ShardNo, reason: &str) {
        error!(shard, reason, "shard failed too often, it is given back");
        let env = &self.args.env;
        env.metrics.forget_shard(shard);
        env.troubles.forget(shard);
        let owned = &mut self.shards[shard as usize];
        owned.wanted = false;
        let args = GiveBackArgs { env: Arc::clone(env), shard, live: Arc::clone(&owned.live) };
        let spawned: Result<_, SpawnErr> = Actor::spawn_linked(None, GiveBack, args, myself.get_cell()).await;
        match spawned {
            Ok((giver, _)) => drop(self.giving_back.insert(giver.get_id(), (shard, reason.to_owned()))),
            Err(error) => self.give_up(format!("shard {shard} cannot be given back: {error}")),
        }
    }

    pub(crate) fn gave_back(&mut self, end: &End) -> bool {
        let Some((shard, reason)) = self.giving_back.remove(&end.id) else { return false };
        self.tell(News::Failed(shard));
        if !self.draining && !self.shards.iter().any(|shard| shard.wanted) {
            self.give_up(format!("shard {shard}, the last one here, failed too often, the last time: {reason}"));
        }
        true
    }
}

/// The reason why a shard ended in a fleet.
pub(crate) enum Why {
    /// The store did not grant it.
    Refused,
    /// Its old runs do not end, or the store has another number of shards: only another process can go on.
    Hopeless,
    /// Any other reason.
    Other,
}

impl Why {
    pub(crate) fn of(event: &SupervisionEvent) -> Self {
        let SupervisionEvent::ActorFailed(_, error) = event else { return Self::Other };
        match error.downcast_ref::<StoreError>() {
            Some(error) if is_refusal(error) => Self::Refused,
            Some(StoreError::Shards { .. }) => Self::Hopeless,
            _ if error.is::<RunsStuck>() => Self::Hopeless,
            _ => Self::Other,
        }
    }
}

/// Returns whether another worker has the shard or may have it, or the store cannot be asked: the shard itself is
/// sound.
fn is_refusal(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Owned { .. }
            | StoreError::CodeVersion { .. }
            | StoreError::Unavailable(_)
            | StoreError::Refused(_)
            | StoreError::Fenced(_)
    )
}
