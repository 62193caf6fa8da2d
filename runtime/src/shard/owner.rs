//! The owner of a shard's ledger, which performs the ledger's decisions.
//! In: events from the shard's other actors. Out: the ledger's actions, passed to the actors that perform them.

mod telling;

use std::collections::BTreeSet;
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tracing::{info, warn};

use super::dispatcher::handover::Handover;
use super::env::Env;
use super::messages::{
    CommitterMessage, DispatcherMessage, IngressMessage, KeysMessage, ReaderMessage, Readers, ShardMessage,
};
use super::permits::ShardPermits;
use crate::clock::Millis;
use crate::ledger::Ledger;
use crate::ledger::protocol::{Action, Event, RunOrder};
use crate::message::{ShardNo, SourceIx};
use crate::metrics::{Alarm, ShardMetrics};
use crate::store::Outcome;

/// Ticks between two looks at operators' commands and two updates of the gauges.
const TICKS_PER_LOOK: u64 = 10;

/// The shard's owner.
pub(crate) struct Shard;

/// The owner's state.
pub(crate) struct ShardState {
    no: ShardNo,
    env: Arc<Env>,
    ledger: Ledger,
    metrics: ShardMetrics,
    keys: Option<ActorRef<KeysMessage>>,
    readers: Option<Readers>,
    committer: Option<ActorRef<CommitterMessage>>,
    ingresses: Vec<Option<ActorRef<IngressMessage>>>,
    permits: ShardPermits,
    actors: Vec<Option<ActorRef<RunOrder>>>,
    handovers: Arc<[Arc<Handover>]>,
    waiting_for_committer: Vec<CommitterMessage>,
    early: Vec<Action>,
    drained: Option<RpcReplyPort<()>>,
    /// True if commits cannot be written now.
    stalled: bool,
    /// Services that this program does not have and that messages wait for; each is logged once.
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
            permits: env.gates.enter(myself),
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
        let happened = match message {
            ShardMessage::Event(event) => event,
            ShardMessage::Actor(ix, actor) => {
                let at = ix.place();
                if state.actors.len() <= at {
                    state.actors.resize(at + 1, None);
                }
                state.actors[at] = Some(actor);
                Event::ActorReady(ix)
            }
            ShardMessage::Drain(reply) => {
                state.drained = Some(reply);
                Event::Drain
            }
            wiring => {
                state.wire(wiring);
                return state.perform_all();
            }
        };
        state.decide(happened)
    }
}

impl ShardState {
    /// Lets the ledger decide, and performs its decisions.
    fn decide(&mut self, event: Event) -> Result<(), ActorProcessingErr> {
        let now = self.env.clock.now();
        // Between two commits nothing is recorded: metrics and log lines cost more than the turns they are about.
        let milestone = matches!(event, Event::Gate | Event::CommitEnded(..) | Event::Tick);
        let (gate, tick) = (matches!(event, Event::Gate), matches!(event, Event::Tick));
        match &event {
            Event::CommitEnded(_, no, outcome) => self.commit_ended(*no, outcome),
            Event::ActorDied(ix, _) => {
                if let Some(place) = self.actors.get_mut(ix.place()) {
                    *place = None;
                }
            }
            _ => {}
        }
        self.step(event, now);
        if tick {
            self.tick(now);
        }
        if milestone {
            self.record();
        }
        let actions = self.ledger.actions();
        if gate && !actions.iter().any(|action| matches!(action, Action::Commit(_))) {
            self.commit(CommitterMessage::Nothing);
        }
        actions.into_iter().try_for_each(|action| self.perform(action))
    }

    fn step(&mut self, event: Event, now: Millis) {
        if let Some(recorder) = &self.env.recorder {
            recorder.event(self.no, now, &event);
        }
        self.ledger.step(event, now);
    }

    fn perform_all(&mut self) -> Result<(), ActorProcessingErr> {
        let actions = self.ledger.actions();
        actions.into_iter().try_for_each(|action| self.perform(action))
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
                    self.step(Event::CommitLost, self.env.clock.now());
                }
                for message in std::mem::take(&mut self.waiting_for_committer) {
                    self.commit(message);
                }
            }
            ShardMessage::Ingress(source, ingress) => {
                let (credits, room) = (self.ledger.credits_free(source), self.ledger.room_free(source));
                let begin = IngressMessage::Begin(self.ledger.received(source), credits, room);
                drop(ingress.cast(begin));
                self.ingresses[source] = Some(ingress);
            }
            ShardMessage::Dispatcher(sink, dispatcher) => {
                let (watermark, durable) = self.ledger.publish_from(sink);
                drop(dispatcher.cast(DispatcherMessage::Begin(watermark, durable)));
            }
            ShardMessage::IsIdle(reply) => drop(reply.send(self.ledger.is_idle())),
            ShardMessage::Actor(..) | ShardMessage::Event(_) | ShardMessage::Drain(_) => {}
        }
    }

    fn commit_ended(&mut self, no: u64, outcome: &Outcome) {
        match outcome {
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
    }

    fn stall(&mut self, why: Option<String>) {
        self.stalled = why.is_some();
        self.metrics.set_alarm(Alarm::StoreUnavailable, self.stalled);
        self.env.troubles.set_unwritten(self.no, why);
    }

    fn tick(&mut self, now: Millis) {
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
            drop(readers.background.cast(ReaderMessage::Commands));
        }
        self.show_gauges(now);
    }

    fn perform(&mut self, action: Action) -> Result<(), ActorProcessingErr> {
        if self.keys.is_none() {
            self.early.push(action);
            return Ok(());
        }
        match action {
            Action::Run(actor, order) => match self.actors.get(actor.place()).and_then(Option::as_ref) {
                // An actor that is gone by now is reported by its supervisor; the order's items run again.
                Some(actor) => drop(actor.cast(order)),
                None => warn!(shard = self.no, actor = actor.place(), "run ordered from an actor that is gone"),
            },
            Action::Ask(question) => self.readers.as_ref().map_or(Ok(()), |readers| readers.ask(question))?,
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
            Action::AskPermit(line, again) => self.permits.ask(line, again),
            Action::PermitEnded(line, ended) => self.permits.ended(line, ended),
            Action::Drained => {
                if let Some(reply) = self.drained.take() {
                    drop(reply.send(()));
                }
            }
            Action::Stop(reason) => return Err(reason.into()),
        }
        Ok(())
    }

    /// Passes a message to the committer, or keeps it for the next one if this one is gone.
    fn commit(&mut self, message: CommitterMessage) {
        match &self.committer {
            Some(committer) => drop(committer.cast(message)),
            None => self.waiting_for_committer.push(message),
        }
    }

    fn tell(&self, source: SourceIx, message: IngressMessage) {
        // A restarted ingress asks for its credits again.
        if let Some(ingress) = &self.ingresses[source] {
            drop(ingress.cast(message));
        }
    }
}
