//! The root of the tree: a supervisor per shard, taken again when one gives up; the process ends when that fails.
//! In: how shards ended; orders to drain. Out: shards; the reason for giving up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr, SupervisionEvent};
use tokio::sync::watch;
use tracing::{error, warn};

use super::janitor::Janitor;
use super::policy::{RestartBudget, Verdict};
use super::shard::{ShardSupervisor, ShardSupervisorArgs, ShardSupervisorMessage};
use super::{End, Env, restart_span};
use crate::clock::{Dice, Stopwatch, sleep};
use crate::message::ShardNo;
use crate::metrics::{Child, RestartReason};
use crate::store::StoreError;

/// How long a shard's last runs may take to end before it is taken again.
const RUNS_END_WITHIN: Duration = Duration::from_secs(5);

/// Pause before a shard is taken again while the store is not available.
const AGAIN: Duration = Duration::from_millis(500);

/// What the root is told.
pub(crate) enum RootMessage {
    /// Take a shard again.
    Retake(ShardNo),
    /// The shards' supervisors, where there is one now.
    Shards(RpcReplyPort<Vec<Option<ActorRef<ShardSupervisorMessage>>>>),
    /// No shard is taken again from now on.
    Draining,
    /// Start the janitor again.
    RestartJanitor,
}

/// The root.
pub(crate) struct Root;

/// What it is started with.
pub(crate) struct RootArgs {
    pub(crate) env: Arc<Env>,
    /// Told why the tree gave up.
    pub(crate) failed: watch::Sender<Option<String>>,
}

struct Owned {
    supervisor: Option<ActorRef<ShardSupervisorMessage>>,
    budget: RestartBudget,
    live: Arc<AtomicUsize>,
}

/// What it holds.
pub(crate) struct RootState {
    args: RootArgs,
    shards: Vec<Owned>,
    janitor: ActorId,
    dice: Dice,
    draining: bool,
}

impl Actor for Root {
    type Msg = RootMessage;
    type State = RootState;
    type Arguments = RootArgs;

    async fn pre_start(&self, myself: ActorRef<RootMessage>, args: RootArgs) -> Result<RootState, ActorProcessingErr> {
        let mut shards = Vec::new();
        for shard in 0..args.env.settings.ownership.shards {
            let live = Arc::new(AtomicUsize::new(0));
            let supervisor = take(&myself, &args.env, shard, &live).await?;
            let budget = RestartBudget::new(args.env.settings.supervision.shard.clone());
            shards.push(Owned { supervisor: Some(supervisor), budget, live });
        }
        let janitor = janitor(&myself, &args.env).await?;
        Ok(RootState { args, shards, janitor, dice: Dice::from_system(), draining: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<RootMessage>,
        message: RootMessage,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RootMessage::Draining => state.draining = true,
            RootMessage::RestartJanitor => state.janitor = janitor(&myself, &state.args.env).await?,
            RootMessage::Shards(reply) => {
                drop(reply.send(state.shards.iter().map(|shard| shard.supervisor.clone()).collect()));
            }
            RootMessage::Retake(_) if state.draining => {}
            RootMessage::Retake(shard) => {
                let owned = &mut state.shards[shard as usize];
                if !runs_ended(&owned.live).await {
                    state.give_up(format!("runs of shard {shard} did not end within {RUNS_END_WITHIN:?}"));
                    return Ok(());
                }
                match take(&myself, &state.args.env, shard, &owned.live).await {
                    Ok(supervisor) => owned.supervisor = Some(supervisor),
                    // An outage is waited for: it spends no restarts.
                    Err(SpawnErr::StartupFailed(error)) if is_outage(error.as_ref()) => {
                        warn!(shard, %error, "shard cannot be taken, trying again");
                        myself.send_after(AGAIN, move || RootMessage::Retake(shard));
                    }
                    Err(error) => state.failed(&myself, shard, RestartReason::Failed, &error.to_string()),
                }
            }
        }
        Ok(())
    }

    // ractor's own default would stop the root, and with it everything.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<RootMessage>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let Some(end) = End::of(&event) else { return Ok(()) };
        if end.id == state.janitor {
            myself.send_after(AGAIN, || RootMessage::RestartJanitor);
            return Ok(());
        }
        let shard = state
            .shards
            .iter()
            .position(|shard| shard.supervisor.as_ref().is_some_and(|supervisor| supervisor.get_id() == end.id));
        if let Some(shard) = shard.and_then(|shard| ShardNo::try_from(shard).ok()) {
            state.shards[shard as usize].supervisor = None;
            if !state.draining {
                state.failed(&myself, shard, RestartReason::Escalated, &end.reason);
            }
        }
        Ok(())
    }
}

impl RootState {
    fn failed(&mut self, myself: &ActorRef<RootMessage>, shard: ShardNo, word: RestartReason, reason: &str) {
        let now = self.args.env.clock.now();
        match self.shards[shard as usize].budget.on_failure(now, &mut self.dice) {
            Verdict::Restart(after) => {
                let end = End { id: myself.get_id(), word, reason: reason.to_owned(), trace_id: None };
                let _span = restart_span(Child::Shard, shard, &end, after).entered();
                self.args.env.metrics.record_restart(Child::Shard, word);
                myself.send_after(after, move || RootMessage::Retake(shard));
            }
            Verdict::Escalate => self.give_up(format!("shard {shard} failed too often, the last time: {reason}")),
        }
    }

    fn give_up(&self, reason: String) {
        error!(reason, "the runtime gives up");
        self.args.failed.send_replace(Some(reason));
    }
}

fn is_outage(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    matches!(error.downcast_ref::<StoreError>(), Some(StoreError::Unavailable(_)))
}

/// An old run could still call the outside: a shard is not taken again while one is under way.
async fn runs_ended(live: &AtomicUsize) -> bool {
    let watch = Stopwatch::start();
    while live.load(Ordering::Acquire) > 0 {
        if watch.elapsed() > RUNS_END_WITHIN {
            return false;
        }
        sleep(Duration::from_millis(5)).await;
    }
    true
}

async fn take(
    myself: &ActorRef<RootMessage>,
    env: &Arc<Env>,
    shard: ShardNo,
    live: &Arc<AtomicUsize>,
) -> Result<ActorRef<ShardSupervisorMessage>, SpawnErr> {
    let args = ShardSupervisorArgs { env: env.clone(), shard, live: live.clone() };
    Ok(Actor::spawn_linked(None, ShardSupervisor, args, myself.get_cell()).await?.0)
}

async fn janitor(myself: &ActorRef<RootMessage>, env: &Arc<Env>) -> Result<ActorId, SpawnErr> {
    Ok(Actor::spawn_linked(None, Janitor, env.clone(), myself.get_cell()).await?.0.get_id())
}
