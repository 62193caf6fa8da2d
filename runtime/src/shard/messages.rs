//! The messages between the actors of a shard.
//! In: nothing; plain values. Out: one message type for each actor.

use std::sync::Arc;

use ractor::{ActorProcessingErr, ActorRef, RpcReplyPort};

use super::dispatcher::handover::Handover;
use crate::ledger::protocol::{ActorIx, Event, Question, ReaderKind, RunOrder};
use crate::message::{Positions, SinkIx, SourceIx};
use crate::store::Commit;

/// A message for a shard's owner.
pub(crate) enum ShardMessage {
    /// The shard's other children, once.
    Wire {
        keys: ActorRef<KeysMessage>,
        readers: Readers,
        /// The handovers to the dispatchers, by sink.
        handovers: Arc<[Arc<Handover>]>,
    },
    /// A committer has started, for the first time or again.
    Committer(ActorRef<CommitterMessage>),
    /// An ingress has started, for the first time or again.
    Ingress(SourceIx, ActorRef<IngressMessage>),
    /// A dispatcher has started, for the first time or again.
    Dispatcher(SinkIx, ActorRef<DispatcherMessage>),
    /// A key actor has started, for the first time or again.
    Actor(ActorIx, ActorRef<RunOrder>),
    /// Something happened that the ledger decides about.
    Event(Event),
    /// Asks whether nothing is in hand.
    IsIdle(RpcReplyPort<bool>),
    /// Drain the shard; answered when the last commit is durable.
    Drain(RpcReplyPort<()>),
}

/// A message for a committer.
pub(crate) enum CommitterMessage {
    /// Report when the store has room: everything that has settled by then goes into the next commit.
    Gate,
    /// There was nothing to commit.
    Nothing,
    /// Write this; the number counts the tries that found the store unavailable.
    Write(Arc<Commit>, u32),
}

/// A message for a dispatcher.
pub(crate) enum DispatcherMessage {
    /// Go on after this watermark; events up to the second number are durable.
    Begin(u64, u64),
    /// Publish the events that wait.
    Pump,
}

/// A message for an ingress.
pub(crate) enum IngressMessage {
    /// Open the source after these positions, with this many credits and room for this many bytes.
    Begin(Positions, isize, isize),
    /// Credits for this many more deliveries.
    Credit(usize),
    /// Room for this many more bytes.
    Room(usize),
    /// Deliveries up to these positions are durable.
    Acknowledge(Positions),
    /// Fetch the next batch.
    Fetch,
    /// The source lost its place some time ago: try to open it again.
    Reopen,
    /// The opening of this number has lasted long enough to tell whether the place was found again.
    Judge(u64),
}

/// A message for a reader.
pub(crate) enum ReaderMessage {
    /// A question of the ledger.
    Ledger(Question),
    /// Ask for the operator commands that are open for the shard.
    Commands,
}

/// A shard's readers.
pub(crate) struct Readers {
    /// The reader of keys: turns wait for it.
    pub(crate) keys: ActorRef<ReaderMessage>,
    /// The reader of everything that may take longer.
    pub(crate) background: ActorRef<ReaderMessage>,
    /// The reader that asks for the outcome of a commit: the whole shard waits for it.
    pub(crate) takeover: ActorRef<ReaderMessage>,
}

impl Readers {
    /// Passes a question of the ledger to its reader.
    pub(crate) fn ask(&self, question: Question) -> Result<(), ActorProcessingErr> {
        let reader = match question.reader() {
            ReaderKind::Keys => &self.keys,
            ReaderKind::Background => &self.background,
            ReaderKind::Takeover => &self.takeover,
        };
        Ok(reader.cast(ReaderMessage::Ledger(question))?)
    }
}

/// A message for a key supervisor.
pub(crate) enum KeysMessage {
    /// Start this many more key actors.
    Spawn(u32),
    /// Start this key actor again.
    Respawn(ActorIx),
    /// End all runs now: their time to drain is over.
    KillAll,
    /// End one key actor, as a chaos test does.
    KillOne,
}
