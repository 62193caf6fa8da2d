//! The progress of the sources: the positions that a commit stores, the acknowledgements to them, and the credits that
//! they get.
//! In: deliveries that are done, bounds that are reached or left. Out: positions and the stretches done above them;
//! acknowledgements, credits.

use crate::clock::millis;
use crate::ledger::batches::group::Batch;
use crate::ledger::protocol::Action;
use crate::ledger::{Ledger, SourceTrack};
use crate::message::{Positions, SourceIx};
use crate::settings::Overflow;
use crate::store::{Commit, SourceAhead, SourcePositions};

/// The stored progress of sources that this process does not have, kept for one that has them: without it their
/// messages would come again from the start.
#[derive(Debug)]
pub(crate) struct Absent {
    pub(crate) positions: SourcePositions,
    pub(crate) ahead: SourceAhead,
}

impl Ledger {
    /// The position at which each origin of a source was last read: a restarted ingress goes on from there.
    pub fn received(&self, source: SourceIx) -> Positions {
        self.sources[source].received()
    }

    /// The credits that a restarted ingress starts with; below 0 if a last delivery was for more services than there
    /// were credits.
    pub fn credits_free(&self, source: SourceIx) -> isize {
        let source = &self.sources[source];
        self.config.settings.ingress.credits.cast_signed() - (source.used + source.owed).cast_signed()
    }

    /// The bytes that a restarted ingress may take in hand; 0 or below if the deliveries in hand have used them up.
    pub fn room_free(&self, source: SourceIx) -> isize {
        let ends = self.config.sources.len() + self.config.bindings.sinks().len();
        let share = self.config.settings.memory.share(self.config.settings.ownership.shards, ends);
        share.cast_signed() - self.sources[source].bytes.cast_signed()
    }

    /// The positions of all sources with the commit under way, and the stretches done above them.
    pub(crate) fn standing(&mut self) -> (SourcePositions, SourceAhead) {
        let (mut positions, mut ahead) = (self.absent.positions.clone(), self.absent.ahead.clone());
        for (info, source) in self.config.sources.iter().zip(&mut self.sources) {
            positions.insert(info.name.clone(), source.positions());
            let above = source.ahead(&info.name);
            if !above.is_empty() {
                ahead.insert(info.name.clone(), above);
            }
        }
        (positions, ahead)
    }

    pub(crate) fn acknowledge(&mut self, commit: &Commit) {
        for (at, source) in SourceIx::all(self.sources.len()).zip(self.config.sources.iter()) {
            let Some(positions) = commit.positions.get(&source.name) else { continue };
            let track = &mut self.sources[at];
            if track.acknowledged != *positions {
                track.acknowledged.clone_from(positions);
                self.out.push(Action::Acknowledge(at, positions.clone()));
            }
        }
    }

    pub(crate) fn free_credits(&mut self, batch: &Batch) {
        let mut freed = vec![(0, 0); self.sources.len()];
        for ticket in batch.groups.iter().flat_map(|group| &group.tickets) {
            let (credits, bytes) = &mut freed[ticket.source];
            *credits += 1;
            *bytes += ticket.bytes as usize;
        }
        for (source, (freed, bytes)) in SourceIx::all(freed.len()).zip(freed).filter(|(_, (freed, _))| *freed > 0) {
            self.make_room(source, bytes);
            self.grant(source, freed);
        }
    }

    /// Takes note that bytes of a source are not in hand any more.
    pub(crate) fn make_room(&mut self, source: SourceIx, bytes: usize) {
        if bytes > 0 {
            self.sources[source].bytes -= bytes;
            self.out.push(Action::Room(source, bytes));
        }
    }

    /// True if as many stretches are done above a source's positions as may be: the messages between them are waited
    /// for.
    pub(crate) fn is_far_ahead(&self, source: &SourceTrack) -> bool {
        source.stretches() >= self.config.settings.ingress.ahead_max
    }

    /// Frees credits and grants what may be granted.
    pub(crate) fn grant(&mut self, source: SourceIx, freed: usize) {
        let dedup = &self.config.settings.dedup;
        let window_min = millis(dedup.window_min);
        let young = self.inbox.oldest().is_some_and(|(_, at)| self.now.saturating_sub(at) < window_min);
        let full = self.outbox.is_full(self.config.settings.outbox.max_pending)
            || dedup.overflow == Overflow::Pause && self.inbox.len() >= dedup.max_ids && young;
        let settings = &self.config.settings;
        let room = self.waiting.rows < settings.pending.max_per_shard && !self.dead_letters.is_full(settings.dlq.max);
        let far = self.is_far_ahead(&self.sources[source]);
        let track = &mut self.sources[source];
        track.used -= freed;
        track.owed += freed;
        if track.owed > 0 && !full && room && !far {
            let granted = std::mem::take(&mut track.owed);
            self.out.push(Action::Credit(source, granted));
        }
    }
}
