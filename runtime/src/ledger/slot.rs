//! A key in hand: its queue, its newest state, its rows on disk.
//! In: nothing; plain data. Out: slots, found by index and by key.

mod item;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

pub(crate) use self::item::{From, Hand, Item, Operation, REPLACES, Trial};
use super::protocol::{ActorIx, SlotIx};
use crate::clock::Millis;
use crate::handler::Fault;
use crate::message::{ServiceIx, TakenId, index};

/// A run that an actor has in hand.
#[derive(Debug)]
pub(crate) struct Run {
    /// Number of the run: an answer to another one is ignored.
    pub(crate) no: u64,
    /// The items that it was given and has not answered for.
    pub(crate) items: VecDeque<Item>,
    /// True if its answers are to be thrown away: the state it started from is void.
    pub(crate) stale: bool,
}

/// The key's newest state, as far as the ledger has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Newest {
    /// Only the store (or a warm actor) has it.
    #[default]
    Elsewhere,
    /// The ledger has it: version and JSON, or nothing stored yet.
    Here(Option<(u32, Bytes)>),
}

/// A key's pending rows: those up to `loaded` are in memory or settled, those up to `last` exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) loaded: u64,
    pub(crate) last: u64,
    /// Rows that are not settled.
    pub(crate) count: u64,
    /// True if a page is on its way.
    pub(crate) paging: bool,
    /// The last commit when that page was asked for.
    pub(crate) asked: u64,
    /// The number of commits with something of the key that must be durable before its rows may be read: until then the
    /// table still has the rows that they replace, or lacks those that they add.
    pub(crate) unwritten: u32,
}

impl Rows {
    /// True if rows exist that are not in memory.
    pub(crate) fn behind(&self) -> bool {
        self.loaded < self.last
    }
}

/// The state of a key's head row, which lets its messages run or wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Head {
    /// No row stands before the messages in memory.
    #[default]
    Free,
    /// The head row was found due, and is not settled.
    Due,
    /// The head row is not due: messages behind it become rows.
    Waits,
    /// A dead letter holds the key: messages behind it become rows.
    Held,
}

impl Head {
    /// True if nothing of the key runs before time has passed, or an operator has acted.
    pub(crate) fn stops(self) -> bool {
        matches!(self, Self::Waits | Self::Held)
    }
}

/// The ledger's knowledge of a key's rows in the store. It starts anew when a commit of the key was refused.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// True if the store was asked once, and has answered.
    pub(crate) read: bool,
    pub(crate) head: Head,
    pub(crate) rows: Rows,
    pub(crate) newest: Newest,
    /// True if the key has dead letters.
    pub(crate) letters: bool,
    /// The number of unsure messages that the store is being asked about.
    pub(crate) asked: usize,
}

/// A key's way to its next run.
#[derive(Debug, Default)]
pub(crate) enum Phase {
    /// Nothing of the key is under way.
    #[default]
    Rests,
    /// The store is being asked for its state and its rows.
    Loads,
    /// It has something to run, and operators have paused it.
    Paused,
    /// It has something to run, and waits for an actor.
    Starves,
    /// An actor runs it.
    Runs(Run),
}

/// A permit to run a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Permit {
    /// The key has none.
    #[default]
    None,
    /// The key asked for one.
    Asked,
    /// The key has one.
    Granted,
    /// A turn runs with it.
    Used,
}

/// The actor that a key has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Assigned {
    pub(crate) actor: ActorIx,
    /// True if the actor holds the key's newest state.
    pub(crate) warm: bool,
}

index! {
    /// Index of a group in the batch that is being gathered.
    GroupIx(u32)
}

/// A key in hand.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) service: ServiceIx,
    pub(crate) key: Arc<str>,
    /// The token under which the store is asked: answers to another one are void.
    pub(crate) token: u64,
    pub(crate) phase: Phase,
    pub(crate) known: Known,
    pub(crate) queue: VecDeque<Item>,
    /// Live items behind rows that may not grow further: they keep their credits.
    pub(crate) overflow: VecDeque<Item>,
    /// Live items that the store may know, in a row or a dead letter: it is asked before they are queued.
    pub(crate) unsure: VecDeque<Item>,
    /// The source, as a hash, of the first message with an id that need not be unique in the world.
    pub(crate) sender: Option<u32>,
    pub(crate) assigned: Option<Assigned>,
    /// The start of its run, of its wait for a permit, or of its pause.
    pub(crate) busy_since: Millis,
    /// Its permit to run a turn, if its service needs one.
    pub(crate) permit: Permit,
    /// Its permit to start a suspect alone.
    pub(crate) trial: Permit,
    /// The dependency, by its place in the handler's `NEEDS`, that its head's last attempt found unavailable.
    pub(crate) unavailable: Option<usize>,
    /// The number of groups of batches that hold something of it.
    pub(crate) uncommitted: u32,
    /// Its group in the batch that is being gathered.
    pub(crate) group: Option<GroupIx>,
    /// The number of turns that still have a commit each, because one with several was refused.
    pub(crate) solo: usize,
    /// The turn that the store refused, and the fault that it becomes.
    pub(crate) blame: Option<(TakenId, Fault)>,
    /// Its timers that are in hand.
    pub(crate) timers: Vec<Hand>,
    /// Dead letters that an operator acts on.
    pub(crate) operations: Vec<Operation>,
    /// The stamp of its newest entry among the idle.
    pub(crate) idle_stamp: u64,
}

impl Slot {
    /// True if live messages must be appended to the table instead of being queued.
    pub(crate) fn must_follow(&self) -> bool {
        self.known.head.stops() || self.known.rows.behind()
    }

    /// True if an id that the inbox does not know may be that of a row or a dead letter.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.known.letters || self.known.rows.count > 0 || !self.unsure.is_empty()
    }

    /// True if its head is a suspect whose start alone has to wait for its time.
    pub(crate) fn is_watched(&self, now: Millis) -> bool {
        self.queue.front().is_some_and(|head| match head.trial {
            Trial::Watching => true,
            Trial::Watched(until) => until > now,
            Trial::Free | Trial::Wanted | Trial::Recording | Trial::Recorded => false,
        })
    }

    /// True if its actor holds its newest state.
    pub(crate) fn is_warm(&self) -> bool {
        self.assigned.is_some_and(|assigned| assigned.warm)
    }

    /// Notes that its actor's state is not the newest one.
    pub(crate) fn cool(&mut self) {
        if let Some(assigned) = &mut self.assigned {
            assigned.warm = false;
        }
    }

    /// The run that is under way.
    pub(crate) fn running(&self) -> Option<&Run> {
        match &self.phase {
            Phase::Runs(running) => Some(running),
            Phase::Rests | Phase::Loads | Phase::Paused | Phase::Starves => None,
        }
    }

    /// The run that is under way, to change it.
    pub(crate) fn running_mut(&mut self) -> Option<&mut Run> {
        match &mut self.phase {
            Phase::Runs(running) => Some(running),
            Phase::Rests | Phase::Loads | Phase::Paused | Phase::Starves => None,
        }
    }

    /// Ends the run that is under way.
    pub(crate) fn take_run(&mut self) -> Option<Run> {
        match std::mem::take(&mut self.phase) {
            Phase::Runs(running) => Some(running),
            other => {
                self.phase = other;
                None
            }
        }
    }

    /// The items of its run, without those that are settled.
    pub(crate) fn in_run(&self) -> impl Iterator<Item = &Item> {
        self.running().into_iter().flat_map(|running| &running.items)
    }

    /// The items whose turn is first: those of its run, or else its queue.
    pub(crate) fn first_mut(&mut self) -> &mut VecDeque<Item> {
        match &mut self.phase {
            Phase::Runs(running) => &mut running.items,
            Phase::Rests | Phase::Loads | Phase::Paused | Phase::Starves => &mut self.queue,
        }
    }

    /// The suspect whose start alone is durable: it runs, or is about to.
    pub(crate) fn started_alone(&self) -> Option<&Item> {
        let head = match self.trial {
            Permit::Granted => self.queue.front(),
            Permit::Used => self.running().filter(|run| !run.stale).and_then(|run| run.items.front()),
            Permit::None | Permit::Asked => None,
        };
        head.filter(|head| head.trial == Trial::Recorded)
    }

    /// True if sources wait for something of it.
    pub(crate) fn holds_positions(&self) -> bool {
        let mut items = self.in_run().chain(&self.queue).chain(&self.unsure);
        items.any(|item| matches!(item.from, From::Live(_)))
    }

    /// True if something of it runs, or is to run as soon as it can.
    pub(crate) fn is_busy(&self) -> bool {
        let rests = self.known.head.stops() || matches!(self.phase, Phase::Paused);
        matches!(self.phase, Phase::Loads | Phase::Runs(_))
            || !self.unsure.is_empty()
            || !rests && (!self.queue.is_empty() || self.known.rows.behind())
    }

    /// True if nothing of it is under way, so that it may be forgotten.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
            && self.overflow.is_empty()
            && self.unsure.is_empty()
            && self.uncommitted == 0
            && self.operations.is_empty()
            && self.blame.is_none()
            && self.timers.is_empty()
            && self.permit == Permit::None
            && self.trial == Permit::None
            && !matches!(self.phase, Phase::Loads | Phase::Runs(_))
            && !self.known.rows.paging
            && (!self.known.rows.behind() || self.known.head.stops())
    }
}

/// All slots, by index and by key.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Option<Slot>>,
    free: Vec<SlotIx>,
    index: HashMap<(ServiceIx, Arc<str>), SlotIx>,
    next_token: u64,
}

#[derive(Hash)]
struct SlotName<'a>(ServiceIx, &'a str);

impl hashbrown::Equivalent<(ServiceIx, Arc<str>)> for SlotName<'_> {
    fn equivalent(&self, other: &(ServiceIx, Arc<str>)) -> bool {
        self.0 == other.0 && *self.1 == *other.1
    }
}

impl Slots {
    /// The slot of a key, if it is in hand.
    pub(crate) fn find(&self, service: ServiceIx, key: &str) -> Option<SlotIx> {
        self.index.get(&SlotName(service, key)).copied()
    }

    /// A new slot for a key that is not in hand.
    pub(crate) fn insert(&mut self, service: ServiceIx, key: &str) -> SlotIx {
        self.next_token += 1;
        let key: Arc<str> = key.into();
        let slot = Slot { service, key: key.clone(), token: self.next_token, ..Slot::default() };
        let ix = match self.free.pop() {
            Some(ix) => {
                self.slots[ix] = Some(slot);
                ix
            }
            None => {
                self.slots.push(Some(slot));
                SlotIx::nth(self.slots.len() - 1)
            }
        };
        self.index.insert((service, key), ix);
        ix
    }

    /// Gives a slot a new token: answers to questions asked for it until now are void.
    pub(crate) fn renew(&mut self, ix: SlotIx) {
        self.next_token += 1;
        let token = self.next_token;
        self[ix].token = token;
    }

    /// Forgets a slot.
    pub(crate) fn remove(&mut self, ix: SlotIx) {
        if let Some(slot) = self.slots.get_mut(ix.place()).and_then(Option::take) {
            self.index.remove(&SlotName(slot.service, &slot.key));
            self.free.push(ix);
        }
    }

    /// True if the slot at the index still has `token`.
    pub(crate) fn current(&self, ix: SlotIx, token: u64) -> bool {
        self.slots.get(ix.place()).and_then(Option::as_ref).is_some_and(|slot| slot.token == token)
    }

    /// The slot, if there is one at the index.
    pub(crate) fn get(&self, ix: SlotIx) -> Option<&Slot> {
        self.slots.get(ix.place()).and_then(Option::as_ref)
    }

    /// The number of keys in hand.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// All slots, to change them.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().flatten()
    }

    /// All slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().flatten()
    }
}

impl std::ops::Index<SlotIx> for Slots {
    type Output = Slot;

    fn index(&self, ix: SlotIx) -> &Slot {
        self.slots[ix].as_ref().expect("slots are forgotten only when nothing refers to them")
    }
}

impl std::ops::IndexMut<SlotIx> for Slots {
    fn index_mut(&mut self, ix: SlotIx) -> &mut Slot {
        self.slots[ix].as_mut().expect("slots are forgotten only when nothing refers to them")
    }
}
