//! Dead letters as commits write and take them back.
//! In: letters. Out: the first promise that was broken: dead without a reason, or taken back without a letter.

use super::{Checker, MessageEnd, Violation};
use crate::message::ServiceIx;
use crate::message::ShardNo;
use crate::store::{DeadLetter, Part};
use crate::testing::fault_plan::FaultPlan;
use crate::testing::plan::SimPlan;

impl Checker {
    /// A message became a dead letter.
    pub(super) fn died(
        &mut self,
        plan: &SimPlan,
        shard: ShardNo,
        letter: &DeadLetter,
        service: Option<ServiceIx>,
    ) -> Result<(), Violation> {
        let (seq, id, holds, last) = (letter.seq, letter.id, letter.holds_key, letter.history.last());
        self.stats.dead_letters += 1;
        let name = self.name(&id);
        let Some(expected) = self.expected.get_mut(&id) else { return Err(Violation::DeadNotDelivered(name)) };
        if !matches!(expected.end, MessageEnd::Open | MessageEnd::Replayed) {
            return Err(Violation::DeadAfterEnd { name, end: format!("{:?}", expected.end) });
        }
        if let Some(service) = service {
            let service = &plan.services[service];
            let planned = FaultPlan::of(plan.seed, plan.faults, &service.name, &expected.id);
            if !expected.may_die && (!planned.is_deadly() || self.healed && expected.end == MessageEnd::Replayed) {
                return Err(Violation::DeadUnplanned { name, planned, last: last.cloned() });
            }
            let attempts = service.retry.attempts;
            let spent = last.map_or(0, |attempt| attempt.attempt);
            if spent > attempts || planned == FaultPlan::Hopeless && spent != attempts && !expected.may_die {
                return Err(Violation::DeadOutOfBounds { name, spent, attempts });
            }
        }
        expected.end = MessageEnd::Dead;
        if holds && let Some(service) = expected.service {
            self.held.insert((service, expected.key.clone()), seq);
        }
        self.dead.insert((shard, seq), (id, holds));
        Ok(())
    }

    /// A dead letter is taken back.
    pub(super) fn undead(&mut self, shard: ShardNo, seq: u64, part: &Part) -> Result<(), Violation> {
        let Some((id, holds)) = self.dead.remove(&(shard, seq)) else {
            return Err(Violation::NoDeadLetter(seq));
        };
        self.stats.operations += 1;
        let replayed = part.pending.iter().any(|row| row.id == id);
        if let Some(expected) = self.expected.get_mut(&id) {
            expected.end = if replayed { MessageEnd::Replayed } else { MessageEnd::Discarded };
            if holds && let Some(service) = expected.service {
                self.held.remove(&(service, expected.key.clone()));
            }
        }
        Ok(())
    }
}
