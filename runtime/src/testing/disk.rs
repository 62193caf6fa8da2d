//! The store as a simulated owner reaches it: sometimes away, its answers sometimes lost.
//! In: commits. Out: outcomes; commits that were written, for the checker.

use std::sync::Arc;

use super::checker::{Checker, Violation};
use super::plan::SimPlan;
use crate::clock::Dice;
use crate::store::memory::MemoryStore;
use crate::store::{Commit, CommitOutcome};

/// The store, and the line to it.
pub(super) struct SimDisk {
    pub(super) store: Arc<MemoryStore>,
    /// The time (in microseconds) until which nothing can be read or written.
    pub(super) away_until: u64,
}

/// The result of an attempt to commit.
pub(super) struct Attempted {
    pub(super) outcome: CommitOutcome,
    /// True if it is still on its way, although its answer was given up on.
    pub(super) late: bool,
}

impl SimDisk {
    /// Tries to write a commit, as the faults of the moment allow.
    pub(super) fn write(
        &self,
        plan: &SimPlan,
        commit: &Commit,
        faulty: bool,
        now: u64,
        dice: &mut Dice,
        checker: &mut Checker,
    ) -> Result<Attempted, Violation> {
        if now < self.away_until {
            let outcome = CommitOutcome::Unavailable("simulated: the store is away".to_owned());
            return Ok(Attempted { outcome, late: false });
        }
        let roll = if faulty && plan.faults.store { dice.below(100) } else { 100 };
        let lost = || CommitOutcome::Unknown("simulated: the answer was lost".to_owned());
        match roll {
            0..=2 => {
                checker.stats.unknown += 1;
                self.apply(plan, commit, checker)?;
                Ok(Attempted { outcome: lost(), late: false })
            }
            3..=5 => {
                checker.stats.unknown += 1;
                Ok(Attempted { outcome: lost(), late: true })
            }
            6..=8 => {
                checker.stats.unavailable += 1;
                let outcome = CommitOutcome::Unavailable("simulated: the store is busy".to_owned());
                Ok(Attempted { outcome, late: false })
            }
            _ => Ok(Attempted { outcome: self.apply(plan, commit, checker)?, late: false }),
        }
    }

    /// Writes a commit, and shows it to the checker.
    pub(super) fn apply(
        &self,
        plan: &SimPlan,
        commit: &Commit,
        checker: &mut Checker,
    ) -> Result<CommitOutcome, Violation> {
        let stale = checker.epochs.get(&commit.shard) != Some(&commit.epoch);
        let before = stale.then(|| self.waiting());
        let outcome = self.store.apply(commit);
        match &outcome {
            CommitOutcome::Committed => checker.committed(plan, commit)?,
            CommitOutcome::Fenced => {
                checker.stats.fenced += 1;
                if before.is_some_and(|before| before != self.waiting()) {
                    return Err(Violation::FencedRows { shard: commit.shard, no: commit.no });
                }
            }
            CommitOutcome::Refused { .. } => {
                checker.stats.refused += 1;
            }
            CommitOutcome::Unavailable(_) | CommitOutcome::Unknown(_) => {}
        }
        Ok(outcome)
    }

    fn waiting(&self) -> (usize, usize, usize) {
        (self.store.pending().len(), self.store.dead_letters().len(), self.store.history().len())
    }
}
