//! The supervisor of one shard, which takes it, starts its actors (the broker's end last) and restarts them by their
//! policies.
//! In: the ends of its actors; orders to drain. Out: restarts; its own failure when these are spent, which drops the
//! shard's memory, so that it is taken again under a new epoch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tracing::info;

use super::committer::Committer;
use super::dispatcher::handover::Handover;
use super::dispatcher::{Dispatcher, DispatcherArgs};
use super::env::recorder::Recording;
use super::env::{End, Env, restart_span};
use super::ingress::{Ingress, IngressArgs};
use super::keys::{Keys, KeysArgs};
use super::messages::{CommitterMessage, DispatcherMessage, IngressMessage, KeysMessage, Readers, ShardMessage};
use super::owner::Shard;
use super::policy::{RestartBudget, Verdict};
use super::reader::Reader;
use crate::clock::{Dice, Millis, Stopwatch, sleep};
use crate::ledger::Ledger;
use crate::ledger::protocol::{Event, LedgerConfig, SourceInfo};
use crate::message::{ShardNo, SinkIx, SourceIx};
use crate::metrics::Child;
use crate::store::Letters;
use crate::transport::Transport;

/// The time between two ticks of a shard.
const TICK: Duration = Duration::from_millis(50);

/// The time that a shard's last runs may take to end before it is taken again.
const RUNS_END_WITHIN: Duration = Duration::from_secs(5);

/// The time that a shard's last commits may take once its runs have ended.
pub(crate) const LAST_COMMITS: Duration = Duration::from_secs(4);

/// The runs of a shard that ran here before did not end; they could still call the outside.
#[derive(Debug, thiserror::Error)]
#[error("its runs did not end within {RUNS_END_WITHIN:?}")]
pub(crate) struct RunsStuck;

/// A message for a shard supervisor.
pub(crate) enum ShardSupervisorMessage {
    RestartIngress(SourceIx),
    RestartCommitter,
    RestartDispatcher(SinkIx),
    IsIdle(RpcReplyPort<bool>),
    /// Drain the shard; answered when the last commit is durable.
    Drain(RpcReplyPort<()>),
    /// Drain the shard and end; runs may take this long.
    HandOver(Duration),
    /// The last commit is durable.
    Drained,
    /// The hand-over's time is over.
    HandOverLate,
    /// The time to drain is over: runs under way are ended.
    KillRuns,
    /// End a child, as a chaos test does.
    Kill(Child),
}

/// A shard's supervisor.
pub(crate) struct ShardSupervisor;

/// The arguments of a shard supervisor.
#[derive(Clone)]
pub(crate) struct ShardSupervisorArgs {
    pub(crate) env: Arc<Env>,
    pub(crate) shard: ShardNo,
    pub(crate) live: Arc<AtomicUsize>,
    /// True if this process had the shard until now, and nobody else can have had it since.
    pub(crate) again: bool,
}

struct Children {
    shard: ActorRef<ShardMessage>,
    keys: ActorRef<KeysMessage>,
    committer: ActorRef<CommitterMessage>,
    ingresses: Vec<Option<ActorRef<IngressMessage>>>,
    dispatchers: Vec<ActorRef<DispatcherMessage>>,
    handovers: Arc<[Arc<Handover>]>,
}

/// The shard supervisor's state.
pub(crate) struct ShardSupervisorState {
    args: ShardSupervisorArgs,
    /// The children; `None` until the shard is taken.
    children: Option<Children>,
    ingress_budget: RestartBudget,
    committer_budget: RestartBudget,
    dispatcher_budget: RestartBudget,
    dice: Dice,
    draining: bool,
    drained: bool,
    /// True if another worker is to have the shard: it ends when it is drained.
    hands_over: bool,
    /// The callers that wait for the drain.
    replies: Vec<RpcReplyPort<()>>,
}

impl Actor for ShardSupervisor {
    type Msg = ShardSupervisorMessage;
    type State = ShardSupervisorState;
    type Arguments = ShardSupervisorArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<ShardSupervisorMessage>,
        args: ShardSupervisorArgs,
    ) -> Result<ShardSupervisorState, ActorProcessingErr> {
        // In a fleet a take may have to wait, and the root must not wait with it: see `post_start`.
        let children = match args.env.fleet {
            None => Some(start(&myself, &args).await?),
            Some(_) => None,
        };
        let supervision = &args.env.settings.supervision;
        Ok(ShardSupervisorState {
            ingress_budget: RestartBudget::new(supervision.ingress.clone()),
            committer_budget: RestartBudget::new(supervision.committer.clone()),
            dispatcher_budget: RestartBudget::new(supervision.dispatcher.clone()),
            children,
            args,
            dice: Dice::from_system(),
            draining: false,
            drained: false,
            hands_over: false,
            replies: Vec::new(),
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<ShardSupervisorMessage>,
        state: &mut ShardSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        if state.children.is_none() {
            runs_ended(&state.args.live).await?;
            state.children = Some(start(&myself, &state.args).await?);
        }
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<ShardSupervisorMessage>,
        message: ShardSupervisorMessage,
        state: &mut ShardSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        let ShardSupervisorState { args, children: Some(children), .. } = state else { return Ok(()) };
        match message {
            ShardSupervisorMessage::RestartIngress(source) if !state.draining => {
                children.ingresses[source] = Some(ingress(&myself, args, &children.shard, source).await?);
            }
            ShardSupervisorMessage::RestartIngress(_) => {}
            ShardSupervisorMessage::RestartCommitter => {
                children.committer = committer(&myself, args, &children.shard).await?;
            }
            ShardSupervisorMessage::RestartDispatcher(sink) => {
                let (shard, handovers) = (&children.shard, &children.handovers);
                let dispatcher = dispatcher(&myself, args, shard, (sink, handovers)).await?;
                children.dispatchers[sink] = dispatcher;
            }
            ShardSupervisorMessage::IsIdle(reply) => children.shard.cast(ShardMessage::IsIdle(reply))?,
            ShardSupervisorMessage::Drain(reply) if state.drained => drop(reply.send(())),
            ShardSupervisorMessage::Drain(reply) => {
                state.replies.push(reply);
                state.drain(&myself)?;
            }
            ShardSupervisorMessage::HandOver(grace) => {
                state.hands_over = true;
                state.drain(&myself)?;
                myself.send_after(grace, || ShardSupervisorMessage::KillRuns);
                myself.send_after(grace + LAST_COMMITS, || ShardSupervisorMessage::HandOverLate);
            }
            ShardSupervisorMessage::Drained => {
                state.drained = true;
                // Messages that still run have rows, and belong to the next owner.
                children.keys.cast(KeysMessage::KillAll)?;
                state.replies.drain(..).for_each(|reply| drop(reply.send(())));
                if state.hands_over {
                    myself.stop(Some("it was handed over".to_owned()));
                }
            }
            ShardSupervisorMessage::HandOverLate => return Err("it could not be handed over in time".into()),
            ShardSupervisorMessage::KillRuns => children.keys.cast(KeysMessage::KillAll)?,
            ShardSupervisorMessage::Kill(child) => match child {
                Child::KeyActor => children.keys.cast(KeysMessage::KillOne)?,
                Child::Ingress => children.ingresses.iter().flatten().for_each(|ingress| ingress.get_cell().kill()),
                Child::Committer => children.committer.get_cell().kill(),
                Child::Dispatcher => children.dispatchers.iter().for_each(|sink| sink.get_cell().kill()),
                Child::Shard => children.shard.get_cell().kill(),
            },
        }
        Ok(())
    }

    // ractor's own default would stop this supervisor without a word.
    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<ShardSupervisorMessage>,
        event: SupervisionEvent,
        state: &mut ShardSupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        let Some(end) = End::of(&event) else { return Ok(()) };
        let now = state.args.env.clock.now();
        let is = |cell: ActorCell| cell.get_id() == end.id;
        let Some(children) = &state.children else { return Ok(()) };
        let source = children.ingresses.iter().flatten().position(|ingress| is(ingress.get_cell()));
        if let Some(source) = source {
            if state.draining {
                return Ok(());
            }
            let after = spend(&mut state.ingress_budget, now, &mut state.dice, Child::Ingress, &end)?;
            let source = SourceIx::nth(source);
            restarted(&state.args, Child::Ingress, &end, after);
            myself.send_after(after, move || ShardSupervisorMessage::RestartIngress(source));
            return Ok(());
        }
        if is(children.committer.get_cell()) {
            let after = spend(&mut state.committer_budget, now, &mut state.dice, Child::Committer, &end)?;
            restarted(&state.args, Child::Committer, &end, after);
            myself.send_after(after, || ShardSupervisorMessage::RestartCommitter);
            return Ok(());
        }
        if let Some(sink) = children.dispatchers.iter().position(|sink| is(sink.get_cell())) {
            let after = spend(&mut state.dispatcher_budget, now, &mut state.dice, Child::Dispatcher, &end)?;
            let sink = SinkIx::nth(sink);
            restarted(&state.args, Child::Dispatcher, &end, after);
            myself.send_after(after, move || ShardSupervisorMessage::RestartDispatcher(sink));
            return Ok(());
        }
        // The ledger, its readers and the key supervisor hold state that only a new start can rebuild.
        Err(end.reason.into())
    }
}

impl ShardSupervisorState {
    fn drain(&mut self, myself: &ActorRef<ShardSupervisorMessage>) -> Result<(), ActorProcessingErr> {
        let Some(children) = self.children.as_ref().filter(|_| !self.draining) else { return Ok(()) };
        self.draining = true;
        // Dropping a fetch loses nothing: what was not passed on is fetched again by the next owner.
        children.ingresses.iter().flatten().for_each(|ingress| ingress.get_cell().kill());
        let drained = |()| ShardSupervisorMessage::Drained;
        children.shard.call_and_forward(ShardMessage::Drain, myself, drained, None)?;
        Ok(())
    }
}

/// Waits until no run is under way: an old run could still call the outside, so the shard is not taken again before.
pub(crate) async fn runs_ended(live: &AtomicUsize) -> Result<(), RunsStuck> {
    let watch = Stopwatch::start();
    while live.load(Ordering::Acquire) > 0 {
        if watch.elapsed() > RUNS_END_WITHIN {
            return Err(RunsStuck);
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn spend(
    budget: &mut RestartBudget,
    now: Millis,
    dice: &mut Dice,
    child: Child,
    end: &End,
) -> Result<Duration, ActorProcessingErr> {
    match budget.on_failure(now, dice) {
        Verdict::Restart(after) => Ok(after),
        Verdict::Escalate => {
            Err(format!("{} was restarted too often, it last ended: {}", child.as_str(), end.reason).into())
        }
    }
}

fn restarted(args: &ShardSupervisorArgs, child: Child, end: &End, after: Duration) {
    let _span = restart_span(child, args.shard, end, after).entered();
    args.env.metrics.record_restart(child, end.word);
}

/// Takes the shard: raises its epoch, then reads its inbox.
async fn take(args: &ShardSupervisorArgs) -> Result<Ledger, ActorProcessingErr> {
    let env = &args.env;
    let mut taken = env.store.take(args.shard, &env.owner()).await?;
    if args.again {
        // No process has ended: no message is suspected of having ended one.
        taken.unclean = 0;
    }
    if Letters::stored(&taken.counters).is_none() {
        env.store.letters(args.shard).await?.store(&mut taken.counters);
    }
    // Of any age: the ledger forgets by running time, and a long downtime does not count.
    let inbox = env.store.inbox(args.shard, 0, env.settings.dedup.max_ids).await?;
    let ids = inbox.commits.iter().map(|commit| commit.ids.len()).sum::<usize>();
    info!(
        shard = args.shard,
        epoch = taken.epoch,
        commit_no = taken.commit_no,
        inbox_ids = ids,
        pending = inbox.pending,
        unclean = taken.unclean,
        "shard taken"
    );
    let shards = env.settings.ownership.shards;
    let actors_max = env.settings.actors.resident_max / shards as usize;
    let config = LedgerConfig {
        settings: env.settings.clone(),
        services: env.services.clone(),
        sources: env.transports.iter().map(source_info).collect(),
        bindings: env.bindings.clone(),
        hash_key: env.identity.hash_key,
        actors_max: u32::try_from(actors_max.max(1)).unwrap_or(u32::MAX),
        seed: Dice::from_system().below(u64::MAX),
    };
    let began = env.clock.now();
    if let Some(recorder) = &env.recorder {
        let (config, taken, inbox) = (config.clone(), taken.clone(), inbox.clone());
        recorder.begin(Recording { config, taken, inbox, began, events: Vec::new() });
    }
    Ok(Ledger::new(config, taken, inbox, began))
}

fn source_info(transport: &Arc<dyn Transport>) -> SourceInfo {
    SourceInfo { name: transport.name().into(), ordered: transport.ordered() }
}

/// Takes the shard and starts the children, the one nearest to the broker last: it is the first to stop.
async fn start(
    myself: &ActorRef<ShardSupervisorMessage>,
    args: &ShardSupervisorArgs,
) -> Result<Children, ActorProcessingErr> {
    let ledger = take(args).await?;
    let (env, no) = (args.env.clone(), args.shard);
    let me = || myself.get_cell();
    let (shard, _) = Actor::spawn_linked(None, Shard, (env.clone(), ledger, no), me()).await?;
    let reader = || Actor::spawn_linked(None, Reader, (env.clone(), no, shard.clone()), me());
    let readers = Readers { keys: reader().await?.0, background: reader().await?.0, takeover: reader().await?.0 };
    let keys = KeysArgs { env: env.clone(), shard_no: no, shard: shard.clone(), live: args.live.clone() };
    let (keys, _) = Actor::spawn_linked(None, Keys, keys, me()).await?;
    let committer = committer(myself, args, &shard).await?;
    let handovers: Arc<[Arc<Handover>]> = env.sinks.iter().map(|_| Arc::default()).collect();
    shard.cast(ShardMessage::Wire { keys: keys.clone(), readers, handovers: handovers.clone() })?;
    let mut dispatchers = Vec::new();
    for sink in SinkIx::all(env.sinks.len()) {
        dispatchers.push(dispatcher(myself, args, &shard, (sink, &handovers)).await?);
    }
    let mut ingresses = Vec::new();
    for source in SourceIx::all(env.transports.len()) {
        ingresses.push(Some(ingress(myself, args, &shard, source).await?));
    }
    shard.send_interval(TICK, || ShardMessage::Event(Event::Tick));
    Ok(Children { shard, keys, committer, ingresses, dispatchers, handovers })
}

async fn committer(
    myself: &ActorRef<ShardSupervisorMessage>,
    args: &ShardSupervisorArgs,
    shard: &ActorRef<ShardMessage>,
) -> Result<ActorRef<CommitterMessage>, ActorProcessingErr> {
    let with = (args.env.clone(), shard.clone());
    Ok(Actor::spawn_linked(None, Committer, with, myself.get_cell()).await?.0)
}

async fn dispatcher(
    myself: &ActorRef<ShardSupervisorMessage>,
    args: &ShardSupervisorArgs,
    shard: &ActorRef<ShardMessage>,
    (sink, handovers): (SinkIx, &[Arc<Handover>]),
) -> Result<ActorRef<DispatcherMessage>, ActorProcessingErr> {
    let (env, handover) = (args.env.clone(), handovers[sink].clone());
    let with = DispatcherArgs { env, shard_no: args.shard, sink, shard: shard.clone(), handover };
    Ok(Actor::spawn_linked(None, Dispatcher, with, myself.get_cell()).await?.0)
}

async fn ingress(
    myself: &ActorRef<ShardSupervisorMessage>,
    args: &ShardSupervisorArgs,
    shard: &ActorRef<ShardMessage>,
    source: SourceIx,
) -> Result<ActorRef<IngressMessage>, ActorProcessingErr> {
    let with = IngressArgs { env: args.env.clone(), shard_no: args.shard, source, shard: shard.clone() };
    Ok(Actor::spawn_linked(None, Ingress, with, myself.get_cell()).await?.0)
}
