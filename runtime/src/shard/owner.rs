//! Owns a shard's ledger and performs what it decides.
//! In: what the shard's other actors have to say. Out: the ledger's actions, passed to those who perform them.

mod telling;

use std::collections::BTreeSet;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tracing::{info, warn};

use super::dispatcher::handover::Handover;
use super::env::Env;
use super::messages::{
    CommitterMessage, DispatcherMessage, IngressMessage, KeysMessage, Question, Readers, ShardMessage,
};
use super::permits::Chair;
use crate::ledger::Ledger;
use crate::ledger::protocol::{Action, RunOrder};
use crate::message::ShardNo;
use crate::metrics::{Alarm, ShardMetrics};
use crate::store::{Epoch, Outcome};

/// Ticks between two looks at operators' commands and two updates of the gauges.
const TICKS_PER_LOOK: u64 = 10;

/// A shard.
pub(crate) struct Shard;

/// What it holds.
pub(crate) struct ShardState {
    no: ShardNo,
    env: Arc<Env>,
    ledger: Ledger,
    metrics: ShardMetrics,
    keys: Option<ActorRef<KeysMessage>>,
    readers: Option<Readers>,
    committer: Option<ActorRef<CommitterMessage>>,
    ingresses: Vec<Option<ActorRef<IngressMessage>>>,
    chair: Chair,
    actors: Vec<Option<ActorRef<RunOrder>>>,
    handovers: Arc<[Arc<Handover>]>,
    waiting_for_committer: Vec<CommitterMessage>,
    early: Vec<Action>,
    drained: Option<RpcReplyPort<()>>,
    /// Commits cannot be written now.
    stalled: bool,
    /// Services that this program does not have, and that messages wait for: said once.
    absent: BTreeSet<Arc<str>>,
    ticks: u64,
}

impl Actor for Shard {
    type Msg = ShardMessage;
    type State = ShardState;
    type Arguments = (Arc<Env>, Ledger, ShardNo);

    async fn pre_start(
        &self,
        myself: ActorRef<ShardMessage>,
        (env, ledger, no): Self::Arguments,
    ) -> Result<ShardState, ActorProcessingErr> {
        Ok(ShardState {
            no,
            chair: env.gates.enter(myself),
            metrics: env.metrics.shard(no),
            ingresses: env.transports.iter().map(|_| None).collect(),
            env,
            ledger,
            keys: None,
            readers: None,
            committer: None,
            actors: Vec::new(),
            handovers: Arc::new([]),
            waiting_for_committer: Vec::new(),
            early: Vec::new(),
            drained: None,
            stalled: false,
            absent: BTreeSet::new(),
            ticks: 0,
        })
    }

    async fn handle(
        &self,
        _: ActorRef<ShardMessage>,
        message: ShardMessage,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        // Between two commits nothing is told: metrics and log lines cost more than the turns they are about.
        let gate = matches!(message, ShardMessage::Gate);
        let milestone = matches!(message, ShardMessage::Gate | ShardMessage::CommitEnded(..) | ShardMessage::Tick);
        state.decide(message);
        if milestone {
            state.record();
        }
        let actions = state.ledger.actions();
        if gate && !actions.iter().any(|action| matches!(action, Action::Commit(_))) {
            state.commit(CommitterMessage::Nothing);
        }
        for action in actions {
            state.perform(action)?;
        }
        Ok(())
    }
}

impl ShardState {
    /// Tells the ledger what happened.
    fn decide(&mut self, message: ShardMessage) {
        let now = self.env.clock.now();
        let ledger = &mut self.ledger;
        match message {
            ShardMessage::Fetched(source, arrivals) => ledger.fetched(source, arrivals, now),
            ShardMessage::Ran(report) => ledger.ran(report, now),
            ShardMessage::Published(sink, progress) => ledger.published(sink, progress, now),
            ShardMessage::Gate => ledger.gate(now),
            ShardMessage::CommitEnded(epoch, no, outcome) => self.commit_ended(epoch, no, outcome, now),
            ShardMessage::Retaken(answer) => ledger.retaken(answer, now),
            ShardMessage::Loaded(slots, rows) => ledger.loaded(&slots, rows),
            ShardMessage::Checked(places, known) => ledger.checked(&places, &known),
            ShardMessage::OldFound(found) => ledger.old_found(found, now),
            ShardMessage::Permit(service) => ledger.permit(service),
            ShardMessage::Due(due) => ledger.due(due, now),
            ShardMessage::Timers(due) => ledger.timers_due(due, now),
            ShardMessage::Schedules(timers) => ledger.schedules(timers, now),
            ShardMessage::Orphans(keys) => ledger.orphans(keys),
            ShardMessage::Paged(slot, token, rows) => ledger.paged(slot, token, rows, now),
            ShardMessage::Commands(commands) => commands.into_iter().for_each(|command| ledger.command(command)),
            ShardMessage::DeadFound(command, letters) => ledger.dead_found(command, letters, now),
            ShardMessage::ServiceFound(command, found) => ledger.service_found(command, found, now),
            ShardMessage::DeadRefused(command) => ledger.command_ends(command),
            ShardMessage::Tick => self.tick(now),
            ShardMessage::IsIdle(reply) => drop(reply.send(ledger.is_idle())),
            ShardMessage::Drain(reply) => {
                self.drained = Some(reply);
                ledger.drain();
            }
            ShardMessage::ActorDied(ix, reason) => {
                if let Some(place) = self.actors.get_mut(ix as usize) {
                    *place = None;
                }
                ledger.actor_died(ix, &reason, now);
            }
            ShardMessage::Actor(ix, actor) => {
                let at = ix as usize;
                if self.actors.len() <= at {
                    self.actors.resize(at + 1, None);
                }
                self.actors[at] = Some(actor);
                ledger.actor_ready(ix);
            }
            wiring => self.wire(wiring),
        }
    }

    fn wire(&mut self, message: ShardMessage) {
        match message {
            ShardMessage::Wire { keys, readers, handovers } => {
                self.handovers = handovers;
                (self.keys, self.readers) = (Some(keys), Some(readers));
                for action in std::mem::take(&mut self.early) {
                    // The children were just started: a refusal would be seen as their death.
                    drop(self.perform(action));
                }
            }
            ShardMessage::Committer(committer) => {
                if self.committer.replace(committer).is_some() {
                    self.waiting_for_committer.clear();
                    self.ledger.commit_lost();
                }
                for message in std::mem::take(&mut self.waiting_for_committer) {
                    self.commit(message);
                }
            }
            ShardMessage::Ingress(source, ingress) => {
                let (credits, room) = (self.ledger.credits_free(source), self.ledger.room_free(source));
                let begin = IngressMessage::Begin(self.ledger.received(source), credits, room);
                drop(ingress.cast(begin));
                self.ingresses[source as usize] = Some(ingress);
            }
            ShardMessage::Dispatcher(sink, dispatcher) => {
                let (watermark, durable) = self.ledger.publish_from(sink);
                drop(dispatcher.cast(DispatcherMessage::Begin(watermark, durable)));
            }
            _ => {}
        }
    }

    fn commit_ended(&mut self, epoch: Epoch, no: u64, outcome: Outcome, now: crate::clock::Millis) {
        match &outcome {
            Outcome::Committed if self.stalled => self.stall(None),
            Outcome::Committed => {}
            Outcome::Unavailable(error) => {
                warn!(shard = self.no, error, "store cannot be written, trying again");
                self.stall(Some(error.clone()));
            }
            Outcome::Refused { error, .. } => {
                info!(shard = self.no, commit_no = no, error, "commit was refused, looking for the turn at fault");
            }
            Outcome::Unknown(error) => {
                warn!(shard = self.no, commit_no = no, error, "outcome of a commit is unknown");
                self.stall(Some(error.clone()));
            }
            Outcome::Fenced => warn!(shard = self.no, commit_no = no, "commit was fenced off"),
        }
        self.ledger.commit_ended(epoch, no, outcome, now);
    }

    fn stall(&mut self, why: Option<String>) {
        self.stalled = why.is_some();
        self.metrics.set_alarm(Alarm::StoreUnavailable, self.stalled);
        self.env.troubles.set_unwritten(self.no, why);
    }

    fn tick(&mut self, now: crate::clock::Millis) {
        self.ledger.tick(now);
        self.env.gates.tick();
        // A commit whose outcome was unknown had been written, and there is no other.
        if self.stalled && self.ledger.is_idle() {
            self.stall(None);
        }
        self.ticks += 1;
        if !self.ticks.is_multiple_of(TICKS_PER_LOOK) {
            return;
        }
        if let Some(readers) = &self.readers {
            drop(readers.clerk.cast(Question::Commands));
        }
        self.show_gauges(now);
    }

    fn perform(&mut self, action: Action) -> Result<(), ActorProcessingErr> {
        if self.keys.is_none() {
            self.early.push(action);
            return Ok(());
        }
        match action {
            Action::Run(actor, order) => match self.actors.get(actor as usize).and_then(Option::as_ref) {
                // An actor that is gone by now is reported by its supervisor; the order's items run again.
                Some(actor) => drop(actor.cast(order)),
                None => warn!(shard = self.no, actor, "run ordered from an actor that is gone"),
            },
            Action::Load(..)
            | Action::Check(..)
            | Action::FindOld(..)
            | Action::Retake(_)
            | Action::FetchDue(..)
            | Action::FetchOrphans(..)
            | Action::FetchTimers(..)
            | Action::FetchSchedules
            | Action::Page(..)
            | Action::FindDead(..)
            | Action::FindService(..)
            | Action::Trim(_) => self.readers.as_ref().map_or(Ok(()), |readers| readers.ask(action))?,
            Action::Spawn(more) => {
                if let Some(keys) = &self.keys {
                    keys.cast(KeysMessage::Spawn(more))?;
                }
            }
            Action::CommitReady => self.commit(CommitterMessage::Gate),
            Action::Commit(commit) => self.commit(CommitterMessage::Write(commit, 0)),
            Action::CommitLater(commit, tries) => self.commit(CommitterMessage::Write(commit, tries)),
            Action::Credit(source, more) => self.tell(source, IngressMessage::Credit(more)),
            Action::Room(source, bytes) => self.tell(source, IngressMessage::Room(bytes)),
            Action::Acknowledge(source, positions) => self.tell(source, IngressMessage::Acknowledge(positions)),
            Action::Publish(commit) => {
                let window = self.env.window();
                self.handovers.iter().for_each(|handover| handover.put(&commit, window));
            }
            Action::AskPermit(service, again) => self.chair.ask(service, again),
            Action::PermitEnded(service, ended) => self.chair.ended(service, ended),
            Action::Drained => {
                if let Some(reply) = self.drained.take() {
                    drop(reply.send(()));
                }
            }
            Action::Stop(reason) => return Err(reason.into()),
        }
        Ok(())
    }

    /// Hands over to the committer, or to the next one when this one is gone.
    fn commit(&mut self, message: CommitterMessage) {
        match &self.committer {
            Some(committer) => drop(committer.cast(message)),
            None => self.waiting_for_committer.push(message),
        }
    }

    fn tell(&self, source: u16, message: IngressMessage) {
        // A restarted ingress asks for its credits anew.
        if let Some(ingress) = &self.ingresses[source as usize] {
            drop(ingress.cast(message));
        }
    }
}
