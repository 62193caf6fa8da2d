//! Batches on their way to the store: gathered, sent one at a time, finished, or taken apart when refused.
//! In: groups of settled turns, the store's outcomes. Out: commits; acknowledgements and credits once they are durable.

pub(crate) mod group;
mod refusal;

use std::collections::VecDeque;
use std::sync::Arc;

use self::group::{Batch, Group};
use super::defect::{Defect, planted};
use super::intake::inbox::Aging;
use super::outbox::Sum;
use super::protocol::{Action, Question, SlotIx};
use super::slot::{GroupIx, Newest};
use super::{Ledger, Ticket};
use crate::clock::{Millis, millis};
use crate::message::{Ahead, Position, Stretch, TakenId};
use crate::settings::Overflow;
use crate::store::{Commit, CommitOutcome, Epoch, Letters, Part, SourceAhead, StoreError, TakenShard, Trim};
use crate::transport::embedded;

/// The number of times in a row that a batch is found unwritten, its outcome unknown each time, before it is taken
/// apart: it may be the cause of the broken connection.
const UNWRITTEN_MAX: u32 = 3;

/// Commits between two rounds of trimming.
const TRIM_EVERY: u64 = 32;

#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) batch: Batch,
    /// Refused batches that wait for the fence alone to pass.
    pub(crate) suspects: Vec<Batch>,
    release: bool,
    unavailable: u32,
    /// The number of times in a row that its outcome was unknown and it was found unwritten.
    unwritten: u32,
    pub(crate) commit: Arc<Commit>,
    /// The number of dead letters once it is durable.
    letters: Letters,
    /// True if its outcome is being found out.
    unknown: bool,
}

/// All batches of a shard.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    pub(crate) gathering: Batch,
    loose: Group,
    /// The bytes of the messages in it.
    loose_bytes: usize,
    /// Groups like it that are as large as a commit may be.
    full: Vec<Group>,
    pub(crate) queue: VecDeque<Batch>,
    pub(crate) flight: Option<Flight>,
    gate_asked: bool,
    /// True if positions may be stored that moved with nothing else to write.
    moved: bool,
    released: bool,
}

impl Batches {
    pub(crate) fn is_empty(&self) -> bool {
        self.nothing_gathered() && self.queue.is_empty() && self.flight.is_none()
    }

    /// True if nothing is gathered that needs a commit: watermarks wait for something to ride on.
    fn nothing_gathered(&self) -> bool {
        self.gathering.groups.is_empty() && self.full.is_empty() && self.loose.only_watermarks() && !self.moved
    }

    /// Takes note that a delivery was done before, above the stored position: the next commit may pass it.
    pub(crate) fn moved(&mut self) {
        self.moved = true;
    }

    /// True if the last commit of this owner is written.
    pub(crate) fn is_released(&self) -> bool {
        self.released
    }

    /// The group of everything that belongs to no key.
    pub(crate) fn loose(&mut self) -> &mut Group {
        &mut self.loose
    }

    /// The group of everything that belongs to no key, with room for a message of this size: a full one becomes a group
    /// of its own.
    pub(crate) fn loose_with_room(&mut self, bytes: usize, max: usize) -> &mut Group {
        if self.loose_bytes > 0 && self.loose_bytes + bytes > max {
            self.full.push(std::mem::take(&mut self.loose));
            self.loose_bytes = 0;
        }
        self.loose_bytes += bytes;
        &mut self.loose
    }

    /// Takes back the copies of a message that would have been acknowledged behind it.
    pub(crate) fn take_copies(&mut self, id: TakenId) -> Vec<Ticket> {
        let queued = self.queue.iter_mut().flat_map(|batch| &mut batch.groups).filter(|group| group.slot.is_none());
        let mut copies = Vec::new();
        for group in queued.chain(&mut self.full).chain([&mut self.loose]) {
            let taken = group.copies.extract_if(.., |(copy, _)| *copy == id).map(|(_, ticket)| ticket);
            let taken: Vec<Ticket> = taken.collect();
            group.tickets.retain(|ticket| !taken.contains(ticket));
            copies.extend(taken);
        }
        copies
    }

    pub(crate) fn gathered(&mut self, at: GroupIx) -> &mut Group {
        &mut self.gathering.groups[at]
    }

    pub(crate) fn add(&mut self, slot: SlotIx) -> (GroupIx, &mut Group) {
        let at = self.gathering.groups.len();
        self.gathering.groups.push(Group { slot: Some(slot), ..Group::default() });
        (GroupIx::nth(at), &mut self.gathering.groups[at])
    }
}

impl Ledger {
    /// Asks for the gate when there is something to commit and nothing on its way.
    pub(crate) fn request_commit(&mut self) {
        if self.stopped || self.batches.released || self.batches.flight.is_some() || self.batches.gate_asked {
            return;
        }
        let drained = self.draining && !self.batches.released && self.batches.is_empty() && self.nothing_runs();
        if !self.batches.queue.is_empty()
            || !self.batches.nothing_gathered()
            || self.outbox.is_due()
            || drained
            || self.suspicion.is_passed()
        {
            self.batches.gate_asked = true;
            self.out.push(Action::CommitReady);
        }
    }

    /// Sends the next batch, if there is one: the store has room for a commit.
    pub(crate) fn gate(&mut self) {
        self.settle_down();
        self.batches.gate_asked = false;
        if self.stopped || self.batches.released || self.batches.flight.is_some() {
            return;
        }
        let moved = std::mem::take(&mut self.batches.moved);
        let batch = match self.batches.queue.pop_front() {
            Some(batch) => batch,
            None => self.seal(),
        };
        let last = batch.groups.iter().all(Group::only_watermarks) && self.batches.is_empty();
        let release = last && self.draining && !self.batches.released && self.nothing_runs();
        if release {
            self.leave_runs();
        }
        if !batch.groups.is_empty() || moved || release || self.suspicion.is_passed() {
            self.send(batch, Vec::new(), release);
        }
    }

    /// Closes the gathered batch; groups above `commit.turns_max` or `commit.bytes_max` become batches of their own.
    fn seal(&mut self) -> Batch {
        let mut groups = std::mem::take(&mut self.batches.gathering.groups);
        for group in &groups {
            if let Some(ix) = group.slot {
                self.slots[ix].group = None;
            }
        }
        groups.append(&mut self.batches.full);
        let loose = std::mem::take(&mut self.batches.loose);
        self.batches.loose_bytes = 0;
        self.outbox.sealed();
        if !loose.only_watermarks() || loose.outward.is_some() {
            groups.push(loose);
        }
        let (turns_max, bytes_max) = (self.config.settings.commit.turns_max, self.config.settings.commit.bytes_max);
        let mut batch = Batch::default();
        let (mut turns, mut bytes) = (0, 0);
        for group in groups {
            let size = group.bytes();
            if turns >= turns_max || bytes > 0 && bytes + size > bytes_max {
                self.batches.queue.push_back(std::mem::take(&mut batch));
                (turns, bytes) = (0, 0);
            }
            turns += group.turns.max(1);
            bytes += size;
            batch.groups.push(group);
        }
        match self.batches.queue.pop_front() {
            Some(first) => {
                self.batches.queue.push_back(batch);
                first
            }
            None => batch,
        }
    }

    pub(crate) fn send(&mut self, mut batch: Batch, suspects: Vec<Batch>, release: bool) {
        for ticket in batch.groups.iter().flat_map(|group| &group.tickets) {
            self.sources[ticket.source].mark(*ticket);
        }
        let mut parts: Vec<Part> = batch.groups.iter_mut().map(|group| std::mem::take(&mut group.part)).collect();
        let Sum { watermarks, onward, again } = self.outbox.outward(&batch);
        let log = self.config.bindings.log_rows(&parts, &onward);
        if !again.is_empty() {
            // They come behind those of the groups, and only here: no service handles them a second time.
            parts.push(Part { events: again, ..Part::default() });
        }
        let intake = self.sources.iter().flat_map(super::SourceTrack::rows_passed).collect();
        let letters = self.dead_letters.once_durable(&parts, &batch.groups);
        let mut counters = self.counters.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        letters.store(&mut counters);
        let (positions, ahead) = self.standing();
        let commit = Commit {
            shard: self.shard,
            epoch: self.epoch,
            no: self.commit_no + 1,
            at: self.now,
            positions,
            ahead,
            watermarks,
            counters,
            first_seq: self.outbox.seq() + 1,
            log,
            parts,
            intake,
            release,
            clean: release || self.suspicion.is_passed(),
        };
        if planted(Defect::AcknowledgeBeforeCommit) {
            self.acknowledge(&commit);
        }
        let commit = Arc::new(commit);
        self.out.push(Action::Commit(commit.clone()));
        self.batches.flight =
            Some(Flight { batch, suspects, release, unavailable: 0, unwritten: 0, commit, letters, unknown: false });
    }

    /// The store's answer to [`Action::Commit`] for the commit of this epoch and number.
    pub(crate) fn commit_ended(&mut self, epoch: Epoch, no: u64, outcome: CommitOutcome) {
        let Some(flight) = self.batches.flight.as_mut() else { return };
        if flight.unknown || (flight.commit.epoch, flight.commit.no) != (epoch, no) {
            return;
        }
        match outcome {
            CommitOutcome::Committed => self.finish(),
            CommitOutcome::Fenced => self.stop("another owner has the shard: its epoch or commit number moved on"),
            CommitOutcome::Unavailable(_) => {
                flight.unavailable += 1;
                flight.unwritten = 0;
                self.out.push(Action::CommitLater(flight.commit.clone(), flight.unavailable));
            }
            CommitOutcome::Unknown(_) => self.commit_lost(),
            CommitOutcome::Refused { permanent, error } => self.refused(permanent, &error),
        }
    }

    /// Finds out, after the committer was lost, whether the commit that it may have had was written.
    pub(crate) fn commit_lost(&mut self) {
        self.batches.gate_asked = false;
        if let Some(flight) = self.batches.flight.as_mut()
            && !flight.unknown
        {
            flight.unknown = true;
            self.ask(Question::Retake(self.epoch));
        }
    }

    /// The store's answer to [`Question::Retake`].
    pub(crate) fn retaken(&mut self, answer: Result<TakenShard, StoreError>) {
        let Some(flight) = self.batches.flight.as_mut().filter(|flight| flight.unknown) else { return };
        flight.unknown = false;
        match answer {
            Ok(taken) => {
                self.epoch = taken.epoch;
                if taken.commit_no == flight.commit.no {
                    self.finish();
                } else if taken.commit_no + 1 == flight.commit.no {
                    // It will never be written: its epoch is shut out. The same batch goes out under the new one.
                    flight.unwritten += 1;
                    if flight.unwritten >= UNWRITTEN_MAX && !flight.batch.groups.is_empty() {
                        let error = format!("its outcome was unknown {UNWRITTEN_MAX} times, and it was not written");
                        return self.refused(false, &error);
                    }
                    flight.commit = Arc::new(Commit { epoch: taken.epoch, ..Commit::clone(&flight.commit) });
                    self.out.push(Action::CommitLater(flight.commit.clone(), flight.unwritten - 1));
                } else {
                    self.stop("the shard's commit number is not the one that was left behind");
                }
            }
            Err(error) => self.stop(&format!("the outcome of a commit could not be found out: {error}")),
        }
    }

    /// Tells sources, sinks and keys of a durable commit: now, and only now. Callers that wait for their calls were
    /// told by the committer.
    fn finish(&mut self) {
        let Some(flight) = self.batches.flight.take() else { return };
        let commit = &flight.commit;
        (self.commit_no, self.dead_letters.count) = (commit.no, flight.letters);
        if self.outbox.committed(commit) {
            self.out.push(Action::Publish(commit.clone()));
        }
        if commit.clean {
            self.suspicion.cleaned();
        }
        self.sources.iter_mut().for_each(super::SourceTrack::committed);
        if !planted(Defect::AcknowledgeBeforeCommit) {
            self.acknowledge(commit);
        }
        self.inbox.committed(commit.no, commit.at, commit.ids().copied().collect());
        self.free_credits(&flight.batch);
        for (group, part) in flight.batch.groups.iter().zip(&commit.parts) {
            self.finish_group(group, part);
        }
        self.age(&commit.ahead);
        if flight.release {
            self.batches.released = true;
            self.out.push(Action::Drained);
        }
        for mut suspect in flight.suspects {
            suspect.proven = true;
            self.take_apart(suspect, None);
        }
    }

    fn finish_group(&mut self, group: &Group, part: &Part) {
        if let Some(due) = part.pending.iter().filter_map(|row| row.due_at).min() {
            self.waiting.at(due);
        }
        self.command_committed(part);
        let Some(ix) = group.slot else { return self.dead_letters.committed(part) };
        let slot = &mut self.slots[ix];
        let settled = (part.ids.len() - group.recorded + part.settled.len() + group.fired) as u64;
        let service = slot.service;
        *self.tally.processed.entry(service).or_insert(0) += settled;
        self.count_late(service, group);
        let slot = &mut self.slots[ix];
        slot.uncommitted -= 1;
        if !part.settled.is_empty() {
            self.waiting.settled(&mut slot.known);
        }
        slot.known.rows.unwritten = slot.known.rows.unwritten.saturating_sub(1);
        if slot.uncommitted == 0 && slot.is_warm() {
            slot.known.newest = Newest::Elsewhere;
        }
        self.timers_committed(ix, part);
        self.starts_recorded(ix, part);
        self.suspicion.survived(&group.items);
        if self.slots[ix].running().is_none() {
            self.trial_used(ix);
        }
        self.to_advance.push_back(ix);
    }

    /// Forgets ids and commits that are too old, and lets the store remove them; `ahead` is durable.
    fn age(&mut self, ahead: &SourceAhead) {
        let now = self.now;
        let settings = &self.config.settings;
        // While sources would rather pause, no id younger than the shortest window is given up for room.
        let old_enough = match settings.dedup.overflow {
            Overflow::Shrink => Millis::MAX,
            Overflow::Pause => now.saturating_sub(millis(settings.dedup.window_min)),
        };
        let window = millis(settings.dedup.window);
        self.inbox.age(Aging { now, window, max_ids: settings.dedup.max_ids, old_enough });
        if self.commit_no.is_multiple_of(TRIM_EVERY) {
            let embedded = self.sources.iter().position(|source| source.is_log);
            let positions = embedded.map(|at| self.sources[at].positions()).unwrap_or_default();
            let mut log: Ahead = positions.into_iter().map(|(origin, to)| (origin, vec![Stretch::up_to(to)])).collect();
            // A key that holds a position does not keep rows that others are done with. The last row of each stretch
            // stays: the next owner passes the stretch when it is handed that row.
            for (origin, read) in ahead.get(embedded::NAME).into_iter().flatten() {
                let before = |read: &Stretch| Some(Position::new(read.to.no.checked_sub(1)?, u32::MAX));
                let whole = read.iter().filter(|read| read.services.is_empty());
                let whole = whole.filter_map(|read| Some(Stretch { to: before(read)?, ..read.clone() }));
                log.entry(origin.clone()).or_default().extend(whole);
            }
            let in_window = self.inbox.oldest().map_or(self.commit_no, |(no, _)| no);
            let commits_below = in_window.min(self.outbox.published_below(self.commit_no));
            let settings = &self.config.settings;
            self.ask(Question::Trim(Trim {
                log,
                commits_below,
                history_before: now.saturating_sub(millis(settings.history.keep)),
            }));
        }
    }

    pub(crate) fn stop(&mut self, reason: &str) {
        self.stopped = true;
        self.out.push(Action::Stop(reason.to_owned()));
    }
}
