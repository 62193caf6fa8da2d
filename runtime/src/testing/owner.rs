//! One owner of a shard under simulation: its ledger, its actors, its ends of the sources.
//! In: the simulation's decisions. Out: nothing by itself; the simulation performs.

use std::collections::{HashMap, VecDeque};

use super::work::SimActor;
use crate::ledger::Ledger;
use crate::ledger::outbox::publisher::Publisher;
use crate::ledger::protocol::{ActorIx, Event, ReaderKind, RunReport};
use crate::ledger::routes::Arrival;
use crate::message::{ShardNo, SinkIx, SourceIx};
use crate::shard::dispatcher::handover::Handover;
use crate::store::{Epoch, Outcome};
use crate::transport::pace::{Pace, PacedMessage};
use crate::transport::{Outgoing, SinkAnswer, Source};

/// An owner's number; never used twice.
pub(super) type OwnerId = usize;

/// An ordered way between two actors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Channel {
    Reader(ReaderKind, bool),
    Committer(bool),
    Actor(ActorIx, bool),
    Ingress(SourceIx),
    Dispatcher(SinkIx),
    Gates,
}

/// A message on its way to an owner. One from a child counts only while that child lives: its generation comes with it.
pub(super) enum OwnerMessage {
    Event(Event),
    Fetched(SourceIx, u32, Vec<Arrival>),
    IngressBack(SourceIx),
    Ran(ActorIx, u32, RunReport),
    Gate(u32),
    CommitEnded(u32, Epoch, u64, Outcome),
    CommitterBack,
    DispatcherBack(SinkIx),
    /// The answer to an event; `None` if the sink does not take it at the moment.
    Answered(SinkIx, u32, (PacedMessage, Outgoing), Option<SinkAnswer>),
    Tick,
}

/// One end of a source.
#[derive(Default)]
pub(super) struct SimIngress {
    pub(super) source: Option<Box<dyn Source>>,
    pub(super) credits: isize,
    pub(super) fetching: bool,
    /// Rises when it dies with deliveries that it had not handed over.
    pub(super) generation: u32,
}

/// One dispatcher, with its end of a sink.
#[derive(Default)]
pub(super) struct SimDispatcher {
    pub(super) handover: Handover,
    /// The publisher; `None` while the dispatcher is dead.
    pub(super) publisher: Option<Publisher>,
    /// Rises when it dies, and when its end of the sink is opened anew.
    pub(super) generation: u32,
    /// The pace of the events; `None` before the first publisher.
    pub(super) pace: Option<Pace<Outgoing>>,
    /// Events on their way to the broker.
    pub(super) wire: VecDeque<(PacedMessage, Outgoing)>,
    pub(super) pumping: bool,
    pub(super) delivering: bool,
}

/// An owner of a shard.
pub(super) struct Owner {
    pub(super) shard: ShardNo,
    pub(super) ledger: Ledger,
    /// True if another one took over, which it does not know.
    pub(super) zombie: bool,
    /// The time (in microseconds) until which it stands still.
    pub(super) frozen_until: u64,
    pub(super) draining: bool,
    pub(super) workers: Vec<SimActor>,
    pub(super) ingresses: Vec<SimIngress>,
    pub(super) outlets: Vec<SimDispatcher>,
    /// Rises with each new committer.
    pub(super) committer: u32,
    /// True if the committer is dead and the next one has not started.
    pub(super) committer_down: bool,
    pub(super) ticks: u64,
    channels: HashMap<Channel, u64>,
}

impl Owner {
    pub(super) fn new(shard: ShardNo, ledger: Ledger, sources: usize, sinks: usize) -> Self {
        Self {
            shard,
            ledger,
            zombie: false,
            frozen_until: 0,
            draining: false,
            workers: Vec::new(),
            ingresses: (0..sources).map(|_| SimIngress::default()).collect(),
            outlets: (0..sinks).map(|_| SimDispatcher::default()).collect(),
            committer: 0,
            committer_down: false,
            ticks: 0,
            channels: HashMap::new(),
        }
    }

    /// The time at which something sent now on `channel` arrives, if it takes `delay`: never before what was sent earlier.
    pub(super) fn arrival(&mut self, channel: Channel, now: u64, delay: u64) -> u64 {
        let last = self.channels.entry(channel).or_insert(0);
        *last = (*last + 1).max(now + delay);
        *last
    }

    /// Kills an actor: its state and its unsent messages are gone.
    pub(super) fn kill(&mut self, actor: ActorIx) -> bool {
        let Some(worker) = self.workers.get_mut(actor.place()).filter(|worker| worker.alive) else { return false };
        worker.alive = false;
        worker.generation += 1;
        worker.cell = None;
        true
    }
}
