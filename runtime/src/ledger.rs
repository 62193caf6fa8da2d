//! A shard's record of the messages in hand, and every decision about them. Pure: no await, no clock, no I/O.
//! In: events, each with its time ([`protocol::Event`]). Out: actions, performed by the shard's actors or by the simulator.
//!
//! [`Ledger::step`] is told an event; [`Ledger::actions`] lets every key that it touched go on and returns the actions.
//! A message's way: [`intake`] sees whether it is known and queues it for its key; [`runs`] gives the key an actor;
//! [`settle`] turns reports into groups of rows; [`batches`] gathers groups into commits and answers for their ends.
//! Beside the way: [`waiting`] has the rows on disk with their timers and suspects, [`tracker`] the places of the
//! sources, [`outbox`] those of the sinks, [`gates`] the permits, [`operator`] the commands, [`routes`] the services of
//! messages, [`cron`] the schedules.
//!
//! A key goes on by `advance` (in [`runs`]), unless it is unknown yet, being read, running or queued already. It asks
//! in this order: the wishes of operators (`operator`); whether it is held, waits (`runs::pool`) or is paused
//! (`operator`); whether its messages must be read from disk (`waiting`); whether it must wait for its own commit, or
//! the shard is being left; whether its head was refused or blamed without a run (`settle`); whether its state is
//! known; whether a record, a permit or a trial is still owed (`waiting::suspects`, `runs::pool`); and only then which
//! actor runs it. Each question is cheaper, or closer to what is durable, than the next, and an answer that is still on
//! its way ends the questions.

pub mod protocol;

mod batches;
pub mod cron;
pub(crate) mod defect;
pub mod gates;
mod intake;
mod operator;
pub mod outbox;
pub mod routes;
mod runs;
pub(crate) mod settle;
mod slot;
mod tracker;
mod waiting;

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashMap;

pub use self::defect::Defect;
#[cfg(feature = "planted-defects")]
pub use self::defect::plant;
pub use self::gates::{Line, PermitEnd};
use self::intake::inbox::Inbox;
use self::protocol::{Action, Answer, Event, LedgerConfig, Question, ServiceInfo};
pub use self::protocol::{ActorIx, RunOrder, RunReport, SlotIx};
pub use self::routes::{Arrival, What};
use self::settle::dead::DeadLetters;
pub use self::settle::record::{FaultNote, Gauges, OTHER_CONTENT, Tally};
use self::slot::Slots;
use self::tracker::{Received, SourceTrack, Ticket};
use crate::clock::{Dice, Millis, millis};
pub use crate::handlers::run::{RunItem, TurnEnd, TurnFault};
use crate::message::{ServiceIx, ShardNo, SourceIx};
use crate::store::{Counters, Epoch, InboxRows, Letters, TakenShard};

/// The ledger of one shard under one epoch.
#[derive(Debug)]
pub struct Ledger {
    config: LedgerConfig,
    shard: ShardNo,
    /// The time of the event that is being decided.
    now: Millis,
    epoch: Epoch,
    commit_no: u64,
    last_seq: u64,
    suspicion: waiting::suspects::Suspicion,
    counters: BTreeMap<&'static str, u64>,
    inbox: Inbox,
    sources: Vec<SourceTrack>,
    absent: intake::sources::Absent,
    slots: Slots,
    actors: runs::pool::Pool,
    /// Keys that asked for permits, by line; entries with an old token are void.
    asked: HashMap<Line, VecDeque<(SlotIx, u64)>>,
    runs: u64,
    arrivals: u64,
    batches: batches::Batches,
    waiting: waiting::Waiting,
    timers: waiting::timers::Timers,
    outbox: outbox::Outbox,
    dead_letters: settle::dead::DeadLetters,
    command: Option<operator::CommandProgress>,
    pauses: operator::Pauses,
    dice: Dice,
    draining: bool,
    stopped: bool,
    to_load: Vec<SlotIx>,
    to_check: Vec<SlotIx>,
    to_advance: VecDeque<SlotIx>,
    out: Vec<Action>,
    tally: Tally,
}

impl Ledger {
    /// The ledger of a shard that was just taken over; `inbox` was read after its epoch was raised.
    pub fn new(config: LedgerConfig, mut taken: TakenShard, inbox: InboxRows, now: Millis) -> Self {
        let outbox = outbox::Outbox::restore(config.bindings.sinks(), &mut taken);
        let sources = config.sources.iter().map(|source| {
            let stored = taken.positions.remove(&source.name).unwrap_or_default();
            SourceTrack::restore(source, &stored, taken.ahead.remove(&source.name).unwrap_or_default())
        });
        let sources = sources.collect();
        let mut ledger = Self {
            shard: taken.shard,
            now,
            epoch: taken.epoch,
            commit_no: taken.commit_no,
            last_seq: taken.last_seq,
            suspicion: waiting::suspects::Suspicion::new(taken.unclean, taken.died, taken.last_seq),
            counters: restore_counters(&taken.counters),
            dead_letters: DeadLetters::new(Letters::stored(&taken.counters).unwrap_or_default()),
            outbox,
            waiting: waiting::Waiting::new(inbox.pending),
            pauses: operator::Pauses::of(&inbox.paused),
            timers: waiting::timers::Timers::default(),
            inbox: Inbox::restore(inbox),
            sources,
            absent: intake::sources::Absent { positions: taken.positions, ahead: taken.ahead },
            slots: Slots::default(),
            actors: runs::pool::Pool::new(config.actors_max),
            asked: HashMap::new(),
            runs: 0,
            arrivals: 0,
            batches: batches::Batches::default(),
            command: None,
            dice: Dice::seeded(config.seed),
            draining: false,
            stopped: false,
            to_load: Vec::new(),
            to_check: Vec::new(),
            to_advance: VecDeque::new(),
            out: Vec::new(),
            tally: Tally::default(),
            config,
        };
        for source in SourceIx::all(ledger.sources.len()) {
            ledger.out.push(Action::Credit(source, ledger.config.settings.ingress.credits));
        }
        ledger.ask(Question::Orphans(ledger.runnable(), None, ledger.config.settings.pending.page));
        ledger.ask(Question::Due(ledger.runnable(), ledger.config.settings.pending.page));
        ledger.fetch_timers();
        ledger
    }

    /// Decides what follows from an event; [`Ledger::actions`] returns the actions.
    pub fn step(&mut self, event: Event, now: Millis) {
        self.now = now;
        match event {
            Event::Fetched(source, arrivals) => self.fetched(source, arrivals),
            Event::Ran(report) => self.ran(report),
            Event::ActorReady(actor) => self.actor_ready(actor),
            Event::ActorDied(actor, reason) => self.actor_died(actor, &reason),
            Event::Permit(line) => self.permit(line),
            Event::Published(sink, progress) => self.published(sink, progress),
            Event::Gate => self.gate(),
            Event::CommitEnded(epoch, no, outcome) => self.commit_ended(epoch, no, outcome),
            Event::CommitLost => self.commit_lost(),
            Event::Answered(answer) => self.answered(answer),
            Event::Commands(commands) => commands.into_iter().for_each(|command| self.command(command)),
            Event::Tick => self.tick(),
            Event::Drain => self.draining = true,
        }
    }

    fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Loaded(slots, rows) => self.loaded(&slots, rows),
            Answer::Checked(slots, known) => self.checked(&slots, &known),
            Answer::Due(due) => self.due(due),
            Answer::Orphans(keys) => self.orphans(keys),
            Answer::Schedules(timers) => self.schedules(timers),
            Answer::Timers(due) => self.timers_due(due),
            Answer::Page(slot, token, rows) => self.paged(slot, token, rows),
            Answer::OldLetters(found) => self.old_found(found),
            Answer::DeadLetters(command, letters) => self.dead_found(command, letters),
            Answer::DeadRefused(command) => self.command_ends(command),
            Answer::Service(command, found) => self.service_found(command, found),
            Answer::Retaken(taken) => self.retaken(taken),
        }
    }

    /// The actions decided since the last call, in order.
    pub fn actions(&mut self) -> Vec<Action> {
        self.settle_down();
        if self.stopped {
            self.out.drain(..).filter(|a| matches!(a, Action::Stop(_))).collect()
        } else {
            std::mem::take(&mut self.out)
        }
    }

    /// The tally since the last call.
    pub fn tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// True if nothing can be run now, or is being committed. Messages that wait on disk for their time, for an
    /// operator or for a resumption do not count; those that have their row and only wait for their turn do.
    pub fn is_idle(&self) -> bool {
        self.batches.is_empty()
            && self.sources.iter().all(|source| source.used == 0)
            && self.waiting.is_read(self.now)
            && self.command.is_none()
            && self.timers.rest(self.now)
            && self.slots.iter().all(|slot| !slot.is_busy() && !slot.holds_positions())
    }

    /// The gauges: how full the ledger is.
    pub fn gauges(&self, now: Millis) -> Gauges {
        let settings = &self.config.settings;
        Gauges {
            slots: self.slots.len(),
            actors: self.actors.len(),
            credits_used: self.sources.iter().map(|source| source.used).sum(),
            bytes_in_hand: self.sources.iter().map(|source| source.bytes).sum(),
            pending: self.waiting.rows,
            inbox_ids: self.inbox.len(),
            ahead: self.sources.iter().map(SourceTrack::stretches).sum(),
            ahead_full: self.sources.iter().any(|source| self.is_far_ahead(source)),
            window: self.inbox.oldest().filter(|_| self.inbox.is_short()).map_or(0, |(_, at)| now.saturating_sub(at)),
            pending_full: self.waiting.rows >= settings.pending.max_per_shard
                || self.slots.iter().any(|slot| !slot.overflow.is_empty()),
            outbox_full: self.outbox.is_full(settings.outbox.max_pending),
            paused: !self.pauses.is_empty(),
            letters: self.dead_letters.count,
            letters_full: self.dead_letters.is_full(settings.dlq.max),
            sink_gone: self.outbox.has_gone_sink(),
            schedules_ended: self.timers.ended,
            epoch: self.epoch,
            commit_no: self.commit_no,
        }
    }

    fn tick(&mut self) {
        self.fetch_due();
        self.fetch_timers();
        self.spill();
        self.passivate_idle();
        self.outbox.tick(self.now, millis(self.config.settings.outbox.idle));
        self.calm_down();
        self.tick_trials();
        self.look_for_old();
        for source in SourceIx::all(self.sources.len()) {
            self.grant(source, 0);
        }
    }

    fn ask(&mut self, question: Question) {
        self.out.push(Action::Ask(question));
    }

    fn policy(&self, service: ServiceIx) -> &ServiceInfo {
        &self.config.services[service]
    }

    /// The index of a service by its name; `None` if this program does not have it.
    fn service_of(&self, name: &str) -> Option<ServiceIx> {
        self.config.services.iter().position(|service| *service.name == *name).map(ServiceIx::nth)
    }

    fn count(&mut self, counter: &'static str, by: u64) {
        *self.counters.entry(counter).or_insert(0) += by;
    }

    fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }

    /// Lets every key that something happened to go on, until nothing more can be decided.
    fn settle_down(&mut self) {
        while let Some(slot) = self.to_advance.pop_front() {
            self.advance(slot);
        }
        if !self.to_load.is_empty() {
            self.request_loads();
        }
        if !self.to_check.is_empty() {
            self.request_checks();
        }
        self.request_commit();
    }
}

const COUNTERS: [&str; 9] =
    ["taken", "duplicates", "conflicts", "dead_letters", "retries", "unbound", "rekeyed", "takeovers", "two_senders"];

fn restore_counters(stored: &Counters) -> BTreeMap<&'static str, u64> {
    let known = COUNTERS.iter().map(|name| (*name, stored.get(*name).copied().unwrap_or(0)));
    let mut counters: BTreeMap<_, _> = known.collect();
    *counters.entry("takeovers").or_insert(0) += 1;
    counters
}
