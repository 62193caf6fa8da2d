//! The whole conversation of a shard with its ledger: events go in, actions come out, and some of these are questions
//! that the store answers.
//! In: nothing; plain values. Out: the vocabulary of the ledger, its shard, the simulator and the tests.
//! ([`Question::answer`] is the readers' and the simulator's: the ledger never calls it.)

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cron::Planned;
use super::gates::{Gates, Line, PermitEnd};
use super::outbox::publisher::Progress;
use super::routes::{Arrival, Bindings};
use crate::clock::Millis;
use crate::handler::{AfterDeadLetter, RetryPolicy};
use crate::handlers::run::{RunItem, Stored, TurnEnd};
use crate::handlers::{Handlers, Service};
use crate::message::{Positions, ServiceIx, ShardNo, SinkIx, SourceIx, TakenId, index};
use crate::settings::Settings;
use crate::store::query::{DeadFilter, OpenCommand};
use crate::store::{
    Commit, DeadLetter, DeadPlace, Due, DueTimers, Epoch, KeyRow, OfService, OldLetters, Outcome, PendingRow, Runnable,
    ServiceKey, Store, StoreError, TakenShard, Timer, Trim,
};

/// Something that happened: [`Ledger::step`](super::Ledger::step) is told one after the other.
#[derive(Clone, Debug)]
pub enum Event {
    /// A source handed over messages, each for one service.
    Fetched(SourceIx, Vec<Arrival>),
    /// A key actor ran turns.
    Ran(RunReport),
    /// A key actor has started, for the first time or again.
    ActorReady(ActorIx),
    /// A key actor died, for this reason.
    ActorDied(ActorIx, String),
    /// The turn that waits first in a line may start.
    Permit(Line),
    /// A sink has come farther.
    Published(SinkIx, Progress),
    /// The store has room for a commit: everything that is settled goes into one. This has nothing to do with `gates`.
    Gate,
    /// The commit of this epoch and number ended.
    CommitEnded(Epoch, u64, Outcome),
    /// The committer died: the outcome of the commit that it had is not known.
    CommitLost,
    /// The store answered a question.
    Answered(Answer),
    /// Operators have commands for the shard.
    Commands(Vec<OpenCommand>),
    /// Time passed.
    Tick,
    /// The shard is to be drained: no new runs; it is given up with a last commit.
    Drain,
}

/// An action that the ledger orders from its shard's actors or from the simulator.
#[derive(Clone, Debug)]
pub enum Action {
    /// Ask the store: [`Event::Answered`].
    Ask(Question),
    /// Hand a run to an actor: [`Event::Ran`].
    Run(ActorIx, RunOrder),
    /// A turn is to wait in a line; true if it found a dependency unavailable before. [`Event::Permit`] when it may
    /// start.
    AskPermit(Line, bool),
    /// A turn with a permit of this line ended, or will not start.
    PermitEnded(Line, PermitEnd),
    /// Start this many more actors: [`Event::ActorReady`] for each.
    Spawn(u32),
    /// Something is to be committed: [`Event::Gate`] when the store has room for a commit.
    CommitReady,
    /// Write this commit: [`Event::CommitEnded`].
    Commit(Arc<Commit>),
    /// Write this commit again: the store could not, or it was found unwritten (then under a new epoch). The number
    /// counts the tries; the pause grows with it, and is zero at 0.
    CommitLater(Arc<Commit>, u32),
    /// The source may hand over this many more arrivals: one for each service of a delivery.
    Credit(SourceIx, usize),
    /// This many bytes of the source's deliveries are not in hand any more.
    Room(SourceIx, usize),
    /// The source's deliveries up to these positions are durable.
    Acknowledge(SourceIx, Positions),
    /// Events are durable: publish those that the sinks want; [`Event::Published`].
    Publish(Arc<Commit>),
    /// The shard is given up: its last commit is durable.
    Drained,
    /// Stop the shard and drop its memory: another owner has it, or it cannot go on.
    Stop(String),
}

/// Something that the ledger asks the store. A slot stands with its token: a slot that was used again has another one, and
/// an answer that comes late is void.
#[derive(Clone, Debug)]
pub enum Question {
    /// The stored states of these keys, and the numbers of their messages that wait.
    Load(Vec<(SlotIx, u64)>, Vec<ServiceKey>),
    /// The question which of these ids wait or were given up: two for each message
    /// ([`Taken::apart`](crate::message::Taken)), each beside the id that the message itself bears.
    Check(Vec<(SlotIx, u64)>, Vec<(TakenId, String)>),
    /// Keys that are due, at most this many.
    Due(Runnable, usize),
    /// Keys behind one whose head was settled before a crash, at most this many.
    Orphans(Runnable, Option<ServiceKey>, usize),
    /// The timers of schedules.
    Schedules,
    /// Timers that are due, at most this many.
    Timers(Runnable, usize),
    /// Rows of a slot's key after a number, at most this many.
    Page(SlotIx, u64, ServiceKey, u64, usize),
    /// Dead letters behind a number that were given up before a time.
    OldLetters(u64, Millis),
    /// Dead letters for an operator's command behind a place, at most this many.
    DeadLetters(i64, DeadFilter, Option<DeadPlace>, usize),
    /// The rows of a service that waits for its program, for an operator's command, at most this many of each table.
    Service(i64, Arc<str>, usize),
    /// The shard again, by its own owner under a new epoch, because the outcome of a commit is not known.
    Retake(Epoch),
    /// Remove rows that are no longer needed; there is no answer.
    Trim(Trim),
}

/// The store's answer to a question.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The rows of the slots' keys.
    Loaded(Vec<(SlotIx, u64)>, Vec<KeyRow>),
    /// Two answers for each message: true if its id waits or was given up, and true if the id does that it would have
    /// with other content.
    Checked(Vec<(SlotIx, u64)>, Vec<bool>),
    /// Keys that are due.
    Due(Due),
    /// Keys without a head.
    Orphans(Vec<ServiceKey>),
    /// The timers of schedules.
    Schedules(Vec<Timer>),
    /// Timers that are due.
    Timers(DueTimers),
    /// Rows of a slot's key.
    Page(SlotIx, u64, Vec<PendingRow>),
    /// Old dead letters.
    OldLetters(OldLetters),
    /// Dead letters for an operator's command.
    DeadLetters(i64, Vec<DeadLetter>),
    /// The dead letters cannot be read: the command ends.
    DeadRefused(i64),
    /// The rows that wait for a service that this program lacks.
    Service(i64, OfService),
    /// The shard under its new epoch, or the error if it cannot be retaken.
    Retaken(Result<TakenShard, StoreError>),
}

/// The reader of a shard that puts a question to the store: one that takes long holds up no other kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReaderKind {
    /// Turns wait for the answer.
    Keys,
    /// The answer may take longer.
    Background,
    /// The whole shard waits for the answer.
    Takeover,
}

impl Question {
    /// The reader that puts it to the store.
    pub fn reader(&self) -> ReaderKind {
        match self {
            Self::Load(..) | Self::Check(..) => ReaderKind::Keys,
            Self::Retake(_) => ReaderKind::Takeover,
            _ => ReaderKind::Background,
        }
    }

    /// The store's answer; `None` if none is waited for. A running shard, the simulator and the tests all use this.
    ///
    /// # Errors
    /// The store cannot be read, or refuses: the question stands, and may be asked again.
    pub async fn answer(&self, store: &dyn Store, shard: ShardNo, now: Millis) -> Result<Option<Answer>, StoreError> {
        Ok(Some(match self.clone() {
            Self::Load(slots, keys) => Answer::Loaded(slots, store.load(shard, keys).await?),
            Self::Check(slots, ids) => Answer::Checked(slots, store.known(shard, ids).await?),
            Self::Due(runnable, limit) => Answer::Due(store.due(shard, now, runnable, limit).await?),
            Self::Orphans(runnable, after, limit) => {
                Answer::Orphans(store.orphans(shard, runnable, after, limit).await?)
            }
            Self::Schedules => Answer::Schedules(store.schedules(shard).await?),
            Self::Timers(runnable, limit) => Answer::Timers(store.timers(shard, now, runnable, limit).await?),
            Self::Page(slot, token, key, after, limit) => {
                Answer::Page(slot, token, store.page(shard, key, after, limit).await?)
            }
            Self::OldLetters(after, before) => Answer::OldLetters(store.old(shard, after, before).await?),
            Self::DeadLetters(command, filter, after, limit) => {
                Answer::DeadLetters(command, store.dead(shard, filter, after, limit).await?)
            }
            Self::Service(command, service, limit) => {
                Answer::Service(command, store.of_service(shard, service, limit).await?)
            }
            Self::Retake(epoch) => match store.retake(shard, epoch).await {
                Err(error @ (StoreError::Unavailable(_) | StoreError::Refused(_))) => return Err(error),
                taken => Answer::Retaken(taken),
            },
            Self::Trim(trim) => {
                store.trim(shard, trim).await?;
                return Ok(None);
            }
        }))
    }
}

/// The ledger's view of a service.
#[derive(Clone, Debug)]
pub struct ServiceInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Its number in the store: part of its ids.
    pub number: u16,
    /// Its retry policy.
    pub retry: RetryPolicy,
    /// The rule for messages behind a dead letter.
    pub after_dead_letter: AfterDeadLetter,
    /// True if each of its turns needs a permit: see [`Action::AskPermit`].
    pub guarded: bool,
    /// Its messages that come by the clock, for keys of any shard.
    pub schedules: Arc<[Planned]>,
}

/// The ledger's view of a source.
#[derive(Clone, Debug)]
pub struct SourceInfo {
    /// Its name.
    pub name: Arc<str>,
    /// True if its deliveries have positions to resume from.
    pub ordered: bool,
}

/// The configuration of a shard's ledger.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    /// The settings.
    pub settings: Arc<Settings>,
    /// The services, in the order of their indices.
    pub services: Arc<[ServiceInfo]>,
    /// The sources, in the order of their indices.
    pub sources: Arc<[SourceInfo]>,
    /// The routes of messages and events.
    pub bindings: Arc<Bindings>,
    /// Key under which ids are hashed.
    pub hash_key: [u8; 32],
    /// Actors that this shard may have.
    pub actors_max: u32,
    /// Seed of the jitter.
    pub seed: u64,
}

/// A run: consecutive turns of one key handed over together.
#[derive(Clone, Debug)]
pub struct RunOrder {
    /// The key's slot.
    pub slot: SlotIx,
    /// Number of the run.
    pub no: u64,
    /// The service's index.
    pub service: ServiceIx,
    /// The state to start from; `None`: the one the actor has.
    pub state: Option<Stored>,
    /// The messages, in order.
    pub items: Vec<RunItem>,
}

/// An actor's report of a run: the turns in order, up to the one at which it stopped.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// The actor.
    pub actor: ActorIx,
    /// The key's slot.
    pub slot: SlotIx,
    /// Number of the run.
    pub no: u64,
    /// The turns that ended.
    pub turns: Vec<TurnEnd>,
    /// The state after them, if a turn succeeded.
    pub state: Option<Stored>,
    /// True if the messages that were not answered for are to be run one at a time.
    pub alone: bool,
    /// True if the run is over; otherwise a turn of it is still under way.
    pub done: bool,
    /// True if the actor ends with it: it takes no other run.
    pub gone: bool,
}

index! {
    /// Index of a slot; reused, so answers carry the slot's token as well.
    SlotIx(u32)
}

index! {
    /// Index of a key actor in the shard's pool.
    ActorIx(u32)
}

/// The services of `handlers` as the ledger knows them.
pub(crate) fn describe(
    handlers: &Handlers,
    numbers: &BTreeMap<Arc<str>, u16>,
    settings: &Settings,
    gates: &Gates,
    schedules: Vec<Arc<[Planned]>>,
) -> Vec<ServiceInfo> {
    type Described<'a> = ((ServiceIx, &'a Arc<dyn Service>), Arc<[Planned]>);
    let describe = |((index, service), schedules): Described<'_>| ServiceInfo {
        guarded: gates.guards(index),
        name: service.name().into(),
        number: numbers.get(service.name()).copied().unwrap_or(u16::MAX),
        retry: service.retry().unwrap_or_else(|| (&settings.retry).into()),
        after_dead_letter: service.after_dead_letter(),
        schedules,
    };
    handlers
        .all()
        .iter()
        .enumerate()
        .map(|(at, service)| (ServiceIx::nth(at), service))
        .zip(schedules)
        .map(describe)
        .collect()
}
