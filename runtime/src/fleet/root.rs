//! The root of the tree: a supervisor per shard, taken again when one gives up; the process ends when that fails.
//! In: ends of shards; orders to take, hand over and drain. Out: shards; the reason for giving up.
//!
//! A store without leases gives all shards at once to the process that runs it. In a fleet the heartbeat orders which
//! shards run here, see [`orders`].

mod orders;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::watch;
use tracing::{error, warn};

use self::orders::Why;
use super::janitor::Janitor;
use super::messages::{HeartbeatMessage, News, RootMessage};
use crate::clock::Dice;
use crate::message::ShardNo;
use crate::metrics::{Child, RestartReason};
use crate::shard::env::{End, Env, restart_span};
use crate::shard::policy::{RestartBudget, Verdict};
use crate::shard::supervisor::{ShardSupervisor, ShardSupervisorArgs, ShardSupervisorMessage, runs_ended};
use crate::store::StoreError;

/// Pause before a shard is taken again while the store is not available.
const AGAIN: Duration = Duration::from_millis(500);

/// The root.
pub(crate) struct Root;

/// The arguments of the root.
pub(crate) struct RootArgs {
    pub(crate) env: Arc<Env>,
    /// Receives the reason why the tree gave up.
    pub(crate) failed: watch::Sender<Option<String>>,
}

struct Owned {
    supervisor: Option<ActorRef<ShardSupervisorMessage>>,
    /// True if the shard must run here: it is taken again when it ends.
    wanted: bool,
    budget: RestartBudget,
    live: Arc<AtomicUsize>,
}

/// The root's state.
pub(crate) struct RootState {
    args: RootArgs,
    shards: Vec<Owned>,
    janitor: ActorId,
    heartbeat: Option<ActorRef<HeartbeatMessage>>,
    heartbeat_budget: RestartBudget,
    /// The shards that are being given back, by the actor that does it, with the reason.
    giving_back: HashMap<ActorId, (ShardNo, String)>,
    dice: Dice,
    draining: bool,
}

impl Actor for Root {
    type Msg = RootMessage;
    type State = RootState;
    type Arguments = RootArgs;

    async fn pre_start(&self, myself: ActorRef<RootMessage>, args: RootArgs) -> Result<RootState, ActorProcessingErr> {
        let env = &args.env;
        let budget = || RestartBudget::new(env.settings.supervision.shard.clone());
        let in_fleet = env.fleet.is_some();
        let mut shards = Vec::new();
        for shard in 0..env.settings.ownership.shards {
            let live = Arc::new(AtomicUsize::new(0));
            let supervisor = if in_fleet { None } else { Some(take(&myself, env, shard, false, &live).await?) };
            shards.push(Owned { supervisor, wanted: !in_fleet, budget: budget(), live });
        }
        let janitor = janitor(&myself, env).await?;
        let heartbeat_budget = budget();
        let mut state = RootState {
            args,
            shards,
            janitor,
            heartbeat: None,
            heartbeat_budget,
            giving_back: HashMap::new(),
            dice: Dice::from_system(),
            draining: false,
        };
        if in_fleet {
            state.start_heartbeat(&myself).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<RootMessage>,
        message: RootMessage,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RootMessage::Draining => {
                state.draining = true;
                state.tell(News::Drain);
            }
            RootMessage::RestartJanitor => state.janitor = janitor(&myself, &state.args.env).await?,
            RootMessage::Shards(reply) => {
                drop(reply.send(state.shards.iter().map(|shard| shard.supervisor.clone()).collect()));
            }
            RootMessage::Orders(orders) => {
                for order in orders {
                    state.obey(&myself, order).await;
                }
            }
            RootMessage::News(news) => state.tell(news),
            RootMessage::RestartHeartbeat if state.draining => {}
            RootMessage::RestartHeartbeat => state.start_heartbeat(&myself).await?,
            RootMessage::Retake(_) if state.draining => {}
            RootMessage::Retake(shard) => state.retake(&myself, shard).await,
        }
        Ok(())
    }

    // ractor's default would stop the root, and with it everything.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<RootMessage>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorStarted(cell) = &event {
            state.started(cell.get_id());
        }
        let Some(end) = End::of(&event) else { return Ok(()) };
        if end.id == state.janitor {
            myself.send_after(AGAIN, || RootMessage::RestartJanitor);
            return Ok(());
        }
        if state.heartbeat_ended(&myself, &end) || state.gave_back(&end) {
            return Ok(());
        }
        let Some(shard) = state.shard_of(end.id) else { return Ok(()) };
        state.shards[shard as usize].supervisor = None;
        if state.args.env.fleet.is_some() {
            let why = Why::of(&event);
            state.ended_in_fleet(&myself, shard, why, &end).await;
        } else if !state.draining {
            state.failed(&myself, shard, RestartReason::Escalated, &end.reason).await;
        }
        Ok(())
    }
}

impl RootState {
    /// The shard whose supervisor is `id`.
    fn shard_of(&self, id: ActorId) -> Option<ShardNo> {
        let shard = self.shards.iter().position(|shard| shard.supervisor.as_ref().is_some_and(|s| s.get_id() == id));
        shard.and_then(|shard| ShardNo::try_from(shard).ok())
    }

    async fn retake(&mut self, myself: &ActorRef<RootMessage>, shard: ShardNo) {
        let owned = &mut self.shards[shard as usize];
        // In a fleet another worker may have it by now, or a later order took it.
        if !owned.wanted || owned.supervisor.is_some() {
            return;
        }
        if self.args.env.fleet.is_none()
            && let Err(error) = runs_ended(&owned.live).await
        {
            self.give_up(format!("shard {shard}: {error}"));
            return;
        }
        let again = self.args.env.fleet.is_none();
        match take(myself, &self.args.env, shard, again, &owned.live).await {
            Ok(supervisor) => owned.supervisor = Some(supervisor),
            // An outage is waited out: it spends no restarts.
            Err(SpawnErr::StartupFailed(error)) if is_outage(error.as_ref()) => {
                warn!(shard, %error, "shard cannot be taken, trying again");
                myself.send_after(AGAIN, move || RootMessage::Retake(shard));
            }
            Err(error) => self.failed(myself, shard, RestartReason::Failed, &error.to_string()).await,
        }
    }

    async fn failed(&mut self, myself: &ActorRef<RootMessage>, shard: ShardNo, word: RestartReason, reason: &str) {
        let now = self.args.env.clock.now();
        match self.shards[shard as usize].budget.on_failure(now, &mut self.dice) {
            Verdict::Restart(after) => {
                let end = End { id: myself.get_id(), word, reason: reason.to_owned(), cause: None };
                let _span = restart_span(Child::Shard, shard, &end, after).entered();
                self.args.env.metrics.record_restart(Child::Shard, word);
                myself.send_after(after, move || RootMessage::Retake(shard));
            }
            Verdict::Escalate if self.args.env.fleet.is_some() => self.give_back(myself, shard, reason).await,
            Verdict::Escalate => self.give_up(format!("shard {shard} failed too often, the last time: {reason}")),
        }
    }

    fn give_up(&self, reason: String) {
        error!(reason, "the runtime gives up");
        self.args.failed.send_replace(Some(reason));
    }
}

fn is_outage(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    matches!(error.downcast_ref::<StoreError>(), Some(StoreError::Unavailable(_) | StoreError::Refused(_)))
}

async fn take(
    myself: &ActorRef<RootMessage>,
    env: &Arc<Env>,
    shard: ShardNo,
    again: bool,
    live: &Arc<AtomicUsize>,
) -> Result<ActorRef<ShardSupervisorMessage>, SpawnErr> {
    let args = ShardSupervisorArgs { env: env.clone(), shard, live: live.clone(), again };
    Ok(Actor::spawn_linked(None, ShardSupervisor, args, myself.get_cell()).await?.0)
}

async fn janitor(myself: &ActorRef<RootMessage>, env: &Arc<Env>) -> Result<ActorId, SpawnErr> {
    Ok(Actor::spawn_linked(None, Janitor, env.clone(), myself.get_cell()).await?.0.get_id())
}
