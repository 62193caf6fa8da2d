//! The intake of deliveries: known or new, for a key in hand or not.
//! In: deliveries of a source, answers to loads. Out: items in their slots' queues, duplicates settled at once.

pub(crate) mod inbox;
pub(crate) mod sources;

use std::sync::Arc;

use self::inbox::Dedup;
use super::defect::{Defect, planted};
use super::protocol::{Question, SlotIx};
use super::routes::{Arrival, What};
use super::settle::dead::dead_letter;
use super::slot::{From, Head, Item, Newest, Phase};
use super::{Ledger, Received, Ticket};
use crate::handlers::run::bounded;
use crate::message::{Message, Print, ServiceIx, SourceIx, Taken, murmur2, shard_of};
use crate::store::{KeyRow, PendingKind, PendingRow, RowSpan, ServiceKey};

/// About the number of messages that the store is asked about at once.
const CHECK_MAX: usize = 1_000;

impl Ledger {
    /// Takes deliveries in that a source handed over, each origin's in order. Each uses one credit.
    pub(crate) fn fetched(&mut self, source: SourceIx, arrivals: Vec<Arrival>) {
        let (mut unused, mut unused_bytes, mut known) = (0, 0, false);
        self.sources[source].used += arrivals.len();
        for arrival in arrivals {
            let bytes = arrival.bytes();
            let Arrival { origin, position, last, what } = arrival;
            let number = self.number_of(&what).unwrap_or(u16::MAX);
            let track = &mut self.sources[source];
            track.bytes += bytes as usize;
            let received = track.receive(source, (&origin, position), number, last);
            if let Received::New(ticket) = received {
                self.arrive(Ticket { bytes, ..ticket }, what);
                continue;
            }
            self.tally.passed += 1;
            unused += 1;
            unused_bytes += bytes as usize;
            known |= received == Received::Known;
        }
        if known && self.sources[source].may_move() {
            self.batches.moved();
        }
        self.make_room(source, unused_bytes);
        if unused > 0 {
            self.grant(source, unused);
        }
    }

    /// The number in the store of the service that a delivery is for.
    fn number_of(&self, what: &What) -> Option<u16> {
        match what {
            What::Message(service, _) | What::Refused(Some(service), ..) => Some(self.policy(*service).number),
            What::Absent(_, number, _) => *number,
            What::Refused(None, ..) | What::Unbound => None,
        }
    }

    fn arrive(&mut self, ticket: Ticket, what: What) {
        let (number, mut name) = (self.number_of(&what), None);
        let (service, message, refusal) = match what {
            What::Message(service, message) => (Some(service), message, None),
            What::Refused(service, message, reason) => (service, message, Some(reason)),
            What::Absent(absent, known, message) => {
                let refusal = known.is_none().then(|| self.config.bindings.unknown(&absent));
                name = Some(absent);
                (None, message, refusal)
            }
            What::Unbound => {
                self.tally.unbound += 1;
                self.count("unbound", 1);
                return self.drop_ticket(ticket);
            }
        };
        if number.is_some() && self.is_anothers(ticket.source, &message) {
            let name = service.map(|service| self.policy(service).name.clone()).or(name).unwrap_or_default();
            return self.pass_on(ticket, name, message);
        }
        let hash_key = &self.config.hash_key;
        let mut taken = Taken::of(&message, number.unwrap_or(u16::MAX), hash_key);
        let mut seen = self.inbox.arrive(taken, ticket);
        let is_other = seen == Dedup::Other;
        if is_other {
            taken = taken.apart(hash_key);
            seen = self.inbox.arrive(taken, ticket);
        }
        match seen {
            Dedup::New => {}
            Dedup::InHand => return self.count_duplicate(),
            Dedup::Taken | Dedup::Other => {
                self.count_duplicate();
                // Its original may be on its way to the store: the copy is found again if that is refused.
                self.batches.loose().copies.push((taken.id, ticket));
                return self.drop_ticket(ticket);
            }
        }
        self.arrivals += 1;
        let (arrival, from, credits) = (self.arrivals, From::Live(ticket), self.config.settings.ingress.credits);
        let (starts, trial) = self.suspicion.arrive(&ticket, arrival, credits);
        let taken_at = self.now;
        let (id, attempt, history) = (taken.id, 0, Vec::new());
        let refusal = if is_other { Some(self.conflict(&message)) } else { refusal };
        let item = Item { message, id, from, arrival, taken_at, attempt, history, refusal, starts, trial };
        match (service, name) {
            (_, name) if is_other || item.message.key().is_empty() => self.refuse_at_once(service, name, item),
            (Some(service), _) => self.queue(service, item),
            (None, Some(name)) if number.is_some() => self.set_aside(name, item),
            (None, name) => self.refuse_at_once(None, name, item),
        }
    }

    /// Gives a message of a service that this program does not have a row behind those of its key: an owner of the
    /// shard that has the service finds them, in order.
    fn set_aside(&mut self, service: Arc<str>, item: Item) {
        let From::Live(ticket) = item.from else { return };
        let bytes_max = self.config.settings.commit.bytes_max;
        self.batches.loose_with_room(item.message.frame().len(), bytes_max);
        self.take(None, &item, ticket);
        self.inbox.pin(item.id);
        self.waiting.rows += 1;
        let seq = self.next_seq();
        self.tally.absent.push(service.clone());
        let Item { message, id, taken_at, attempt, history, .. } = item;
        let (key, kind, due_at) = (message.key().into(), PendingKind::Follower, None);
        let row = PendingRow { seq, service, key, kind, due_at, id, taken_at, attempt, starts: 0, message, history };
        self.batches.loose().part.pending.push(row);
    }

    /// True if a message's key belongs to another shard. Messages that the log holds for this shard belong to it.
    fn is_anothers(&self, source: SourceIx, message: &Message) -> bool {
        let shards = self.config.settings.ownership.shards;
        let key = message.key();
        !self.sources[source].is_log && !key.is_empty() && shard_of(key, shards) != self.shard
    }

    /// Passes a message of another shard's key on: it goes there by the log, in the commit that takes it from its
    /// source. A copy is recognised there, by its id.
    fn pass_on(&mut self, ticket: Ticket, service: Arc<str>, message: Message) {
        self.tally.rekeyed += 1;
        self.count("rekeyed", 1);
        let bytes_max = self.config.settings.commit.bytes_max;
        let loose = self.batches.loose_with_room(message.frame().len(), bytes_max);
        loose.tickets.push(ticket);
        loose.outward().onward.push((service, message));
    }

    fn count_duplicate(&mut self) {
        self.tally.duplicates += 1;
        self.count("duplicates", 1);
    }

    fn queue(&mut self, service: ServiceIx, item: Item) {
        let ix = self.slot_for(service, item.message.key());
        self.compare_sender(ix, &item.message);
        let slot = &mut self.slots[ix];
        if !slot.known.read {
            slot.queue.push_back(item);
        } else if slot.is_doubtful() {
            slot.unsure.push_back(item);
            self.to_check.push(ix);
        } else {
            self.enqueue(ix, item);
        }
    }

    /// Puts a new message behind those of its key in hand.
    fn enqueue(&mut self, ix: SlotIx, item: Item) {
        let slot = &mut self.slots[ix];
        if !slot.overflow.is_empty() {
            slot.overflow.push_back(item);
        } else if slot.must_follow() && !planted(Defect::FollowersNotAppended) {
            self.follow(ix, item);
        } else {
            slot.queue.push_back(item);
            self.to_advance.push_back(ix);
        }
    }

    /// Counts two senders of a key's messages whose ids are not UUIDs: they may give the same id to two messages, of
    /// which the second one becomes a dead letter, or is dropped as a repeat if both have the same content. `doctor`
    /// warns of it.
    fn compare_sender(&mut self, ix: SlotIx, message: &Message) {
        if is_unique(message.id()) || message.id_is_within_source() {
            return;
        }
        let sender = murmur2(message.source().as_bytes());
        if *self.slots[ix].sender.get_or_insert(sender) != sender {
            self.count("two_senders", 1);
        }
    }

    /// The slot of a key; a new one asks the store for the key's rows.
    pub(crate) fn slot_for(&mut self, service: ServiceIx, key: &str) -> SlotIx {
        if let Some(ix) = self.slots.find(service, key) {
            return ix;
        }
        let ix = self.slots.insert(service, key);
        self.load(ix);
        ix
    }

    pub(crate) fn load(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        if !matches!(slot.phase, Phase::Loads) {
            slot.phase = Phase::Loads;
            self.to_load.push(ix);
        }
    }

    pub(crate) fn request_loads(&mut self) {
        let wanted = std::mem::take(&mut self.to_load);
        for chunk in wanted.chunks(1_000) {
            let slots = chunk.iter().map(|ix| (*ix, self.slots[*ix].token)).collect();
            let keys = chunk.iter().map(|ix| self.service_key(*ix)).collect();
            self.ask(Question::Load(slots, keys));
        }
    }

    /// Asks the store about messages whose ids the inbox does not know, for keys with waiting messages or dead letters.
    pub(crate) fn request_checks(&mut self) {
        let (mut places, mut ids) = (Vec::new(), Vec::new());
        for ix in std::mem::take(&mut self.to_check) {
            let Some(_) = self.slots.get(ix).filter(|slot| slot.known.asked == 0) else { continue };
            let slot = &mut self.slots[ix];
            slot.known.asked = slot.unsure.len().min(CHECK_MAX);
            places.extend(std::iter::repeat_n((ix, slot.token), slot.known.asked));
            for item in slot.unsure.iter().take(slot.known.asked) {
                // It may be known as a message whose id was taken before with other content.
                let (print, hash_key) = (Print::of(&item.message, &self.config.hash_key), &self.config.hash_key);
                let apart = Taken { id: item.id, print }.apart(hash_key);
                ids.extend([item.id, apart.id].map(|id| (id, item.message.id().to_owned())));
            }
            if places.len() >= CHECK_MAX {
                self.ask(Question::Check(std::mem::take(&mut places), std::mem::take(&mut ids)));
            }
        }
        if !ids.is_empty() {
            self.ask(Question::Check(places, ids));
        }
    }

    /// The store's answer to [`Question::Check`]: which of these messages wait, or were given up.
    pub(crate) fn checked(&mut self, places: &[(SlotIx, u64)], known: &[bool]) {
        for ((ix, token), known) in places.iter().zip(known.chunks(2)) {
            if !self.slots.current(*ix, *token) {
                continue;
            }
            let slot = &mut self.slots[*ix];
            let Some(item) = slot.unsure.pop_front() else { continue };
            slot.known.asked = slot.known.asked.saturating_sub(1);
            self.to_check.push(*ix);
            self.to_advance.push_back(*ix);
            match item.from {
                From::Live(ticket) if known.contains(&true) => {
                    self.count_duplicate();
                    self.drop_ticket(ticket);
                    self.inbox.forget(item.id).into_iter().for_each(|copy| self.drop_ticket(copy));
                }
                _ => self.enqueue(*ix, item),
            }
        }
    }

    pub(crate) fn service_key(&self, ix: SlotIx) -> ServiceKey {
        let slot = &self.slots[ix];
        ServiceKey { service: self.policy(slot.service).name.clone(), key: slot.key.clone() }
    }

    /// The store's answer to [`Question::Load`].
    pub(crate) fn loaded(&mut self, slots: &[(SlotIx, u64)], rows: Vec<KeyRow>) {
        for ((ix, token), row) in slots.iter().zip(rows) {
            if !self.slots.current(*ix, *token) || !matches!(self.slots[*ix].phase, Phase::Loads) {
                continue;
            }
            let slot = &mut self.slots[*ix];
            slot.phase = Phase::Rests;
            if slot.known.newest == Newest::Elsewhere {
                slot.known.newest = Newest::Here(row.state);
                slot.cool();
            }
            if !slot.known.read {
                slot.known.read = true;
                slot.known.letters |= row.dead;
                self.know(*ix, row.held, row.pending);
            }
            self.to_advance.push_back(*ix);
        }
    }

    /// The ledger's knowledge of a key's rows, read once: later changes are all made here.
    fn know(&mut self, ix: SlotIx, held: bool, pending: Option<RowSpan>) {
        let woken = self.waiting.woken.remove(&ix);
        let slot = &mut self.slots[ix];
        let mut head = if held { Head::Held } else { Head::Free };
        if let Some(RowSpan { first, last, count }) = pending {
            slot.known.rows.loaded = first - 1;
            slot.known.rows.last = last;
            slot.known.rows.count = count;
            // Behind a dead letter that holds the key all messages are followers: only the operator is waited for.
            head = match head {
                Head::Held => Head::Held,
                _ if woken => Head::Due,
                _ => Head::Waits,
            };
        }
        self.waiting.set(&mut slot.known, head);
        if slot.is_doubtful() {
            let queue = std::mem::take(&mut slot.queue);
            let (live, rest) = queue.into_iter().partition(|item| matches!(item.from, From::Live(_)));
            (slot.unsure, slot.queue) = (live, rest);
            self.to_check.push(ix);
        }
        let slot = &mut self.slots[ix];
        if slot.must_follow() && !planted(Defect::FollowersNotAppended) {
            for item in std::mem::take(&mut slot.queue) {
                self.follow(ix, item);
            }
        }
    }

    /// Makes a message without a usable service, key or id a dead letter at once, under the name that it was sent to.
    /// It holds nobody up: it has no place in its key's order.
    fn refuse_at_once(&mut self, service: Option<ServiceIx>, name: Option<Arc<str>>, item: Item) {
        let From::Live(ticket) = item.from else { return };
        let bytes_max = self.config.settings.commit.bytes_max;
        self.batches.loose_with_room(item.message.frame().len(), bytes_max);
        self.take(None, &item, ticket);
        let seq = self.next_seq();
        let name = service.map(|service| self.policy(service).name.clone()).or(name).unwrap_or_default();
        let error = bounded(item.refusal.clone().unwrap_or_else(|| "the message has no key".to_owned()));
        let key = ServiceKey { service: name, key: item.message.key().into() };
        if let Some(ix) = service.and_then(|service| self.slots.find(service, &key.key)) {
            self.slots[ix].known.letters = true;
        }
        let letter = dead_letter(&item, seq, key, error, false, self.now);
        let death = self.dies(service, letter);
        death.write(&mut self.batches.loose().part);
    }

    /// Settles a delivery without anything to write: a duplicate, or unbound.
    pub(crate) fn drop_ticket(&mut self, ticket: Ticket) {
        self.batches.loose().tickets.push(ticket);
    }
}

/// True if an id looks like one that no other sender gives: a UUID, or made of a place such as
/// `topic/partition/offset`.
fn is_unique(id: &str) -> bool {
    id.len() == 36 && id.as_bytes()[8] == b'-' || id.contains('/')
}
