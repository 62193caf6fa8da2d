//! What the actors of a shard tell each other.
//! In: nothing; plain values. Out: one message type for each actor.

use std::sync::Arc;

use ractor::{ActorProcessingErr, ActorRef, RpcReplyPort};

use super::dispatcher::handover::Handover;
use crate::ledger::protocol::{ActorIx, Event, Question, ReaderKind, RunOrder};
use crate::message::Positions;
use crate::store::Commit;

/// A message for a shard's owner.
pub(crate) enum ShardMessage {
    /// The shard's other children, once.
    Wire {
        keys: ActorRef<KeysMessage>,
        readers: Readers,
        /// The ways to the dispatchers, by sink.
        handovers: Arc<[Arc<Handover>]>,
    },
    /// A committer is there, for the first time or again.
    Committer(ActorRef<CommitterMessage>),
    /// An ingress is there, for the first time or again.
    Ingress(u16, ActorRef<IngressMessage>),
    /// A dispatcher is there, for the first time or again.
    Dispatcher(u16, ActorRef<DispatcherMessage>),
    /// A key actor is there, for the first time or again.
    Actor(ActorIx, ActorRef<RunOrder>),
    /// Something happened that the ledger decides about.
    Event(Event),
    /// Whether nothing is in hand.
    IsIdle(RpcReplyPort<bool>),
    /// Leave in order; answered when the last commit is durable.
    Drain(RpcReplyPort<()>),
}

/// What a committer is asked for.
pub(crate) enum CommitterMessage {
    /// Say when the store has room: everything that settled until then goes into the next commit.
    Gate,
    /// There was nothing to commit.
    Nothing,
    /// Write this; the number counts the tries that found the store unavailable.
    Write(Arc<Commit>, u32),
}

/// What a dispatcher is told.
pub(crate) enum DispatcherMessage {
    /// Go on after this watermark; events up to the second number are durable.
    Begin(u64, u64),
    /// Publish what there is.
    Pump,
}

/// What an ingress is told.
pub(crate) enum IngressMessage {
    /// Open the source after these positions, with so many credits, and room for so many bytes.
    Begin(Positions, isize, isize),
    /// So many deliveries more.
    Credit(usize),
    /// Room for so many bytes more.
    Room(usize),
    /// Deliveries up to these positions are durable.
    Acknowledge(Positions),
    /// Fetch the next batch.
    Fetch,
    /// The source lost its place some time ago: it may have been mended.
    Reopen,
    /// The opening of this number was there long enough to know whether the place was found again.
    Judge(u64),
}

/// What a reader is asked.
pub(crate) enum ReaderMessage {
    /// A question of the ledger's.
    Ledger(Question),
    /// Which operator commands are open for the shard.
    Commands,
}

/// A shard's readers.
pub(crate) struct Readers {
    /// Reads keys: turns wait for it.
    pub(crate) keys: ActorRef<ReaderMessage>,
    /// Reads what may take longer.
    pub(crate) background: ActorRef<ReaderMessage>,
    /// Asks what became of a commit: the whole shard waits for it.
    pub(crate) takeover: ActorRef<ReaderMessage>,
}

impl Readers {
    /// Has a question of the ledger's answered.
    pub(crate) fn ask(&self, question: Question) -> Result<(), ActorProcessingErr> {
        let reader = match question.reader() {
            ReaderKind::Keys => &self.keys,
            ReaderKind::Background => &self.background,
            ReaderKind::Takeover => &self.takeover,
        };
        Ok(reader.cast(ReaderMessage::Ledger(question))?)
    }
}

/// What a key supervisor is told.
pub(crate) enum KeysMessage {
    /// Start this many more.
    Spawn(u32),
    /// Start this one again.
    Respawn(ActorIx),
    /// End all runs now: their time to drain is over.
    KillAll,
    /// End one, as a chaos test would.
    KillOne,
}
