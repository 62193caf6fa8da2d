//! SetTimers as commits set and remove them, checked against the turns that they become.
//! In: parts of commits. Out: the first promise that was broken: too early, after a cancellation, or left behind; of a
//! schedule: twice, moved, or not set again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Checker, DeliveryPlace, Expected, MessageEnd, Violation};
use crate::clock::Millis;
use crate::handler::CRON;
use crate::ledger::cron::Planned;
use crate::message::{Position, ShardNo, SourceIx, TakenId};
use crate::store::{Part, TimerWrite};
use crate::testing::plan::SimPlan;

/// The timers that are set, by service, key and name: their message's id and their time.
pub(super) type SetTimers = HashMap<(Arc<str>, Arc<str>, Arc<str>), (TakenId, Millis)>;

impl Checker {
    /// Checks the timers that a part sets and removes; `ends` are the messages of which something became in it.
    pub(super) fn timed(
        &mut self,
        plan: &SimPlan,
        shard: ShardNo,
        at: Millis,
        part: &Part,
        ends: &HashSet<TakenId>,
    ) -> Result<(), Violation> {
        for write in &part.timers {
            let place = (write.service.clone(), write.key.clone(), write.name.clone());
            if let Some((id, due)) = self.timers.remove(&place) {
                let name = self.name(&id);
                let fired = ends.contains(&id);
                if fired && at < due {
                    return Err(Violation::TimerEarly { name, due, at });
                }
                self.stats.fired += u64::from(fired);
                self.occurred(write, &name, due, fired)?;
                self.stats.cancelled += u64::from(!fired);
                if let Some(expected) = self.expected.get_mut(&id).filter(|_| !fired) {
                    expected.end = MessageEnd::Discarded;
                }
            }
            let Some((due, message)) = &write.set else { continue };
            let service = plan.handlers.index_of(&write.service);
            let id = plan.taken_id(service, message);
            let (key, text) = (message.key().to_owned(), message.id().to_owned());
            self.names.insert((write.service.clone(), key.clone(), text.clone()), id);
            let set = Expected {
                service,
                key,
                id: text,
                place: DeliveryPlace {
                    shard,
                    source: SourceIx::FIRST,
                    origin: "timer".into(),
                    position: Position::new(0, 0),
                },
                unordered: true,
                may_die: false,
                end: MessageEnd::Open,
            };
            // Nothing takes its id: its row is what makes it count once.
            if self.expected.insert(id, set).is_some() || !self.taken.insert(id) {
                return Err(Violation::TimerTwice(self.name(&id)));
            }
            self.timers.insert(place, (id, *due));
        }
        match self.timers.values().find(|(id, _)| ends.contains(id)) {
            Some((id, _)) => Err(Violation::TimerStays(self.name(id))),
            None => Ok(()),
        }
    }

    /// Checks a change of a schedule's timer: only because it fired, and then to a later one.
    fn occurred(&mut self, write: &TimerWrite, name: &str, due: Millis, fired: bool) -> Result<(), Violation> {
        if !write.name.starts_with(CRON) {
            return Ok(());
        }
        self.stats.occurred += 1;
        let schedule = Arc::clone(&write.name);
        match &write.set {
            Some((next, _)) if fired && *next > due => Ok(()),
            Some((next, _)) => {
                Err(Violation::ScheduleMoved { name: name.to_owned(), schedule, due, next: *next, fired })
            }
            None => Err(Violation::ScheduleNotSet { name: name.to_owned(), schedule, fired }),
        }
    }

    /// A schedule that has no timer.
    pub(in crate::testing) fn unset(&self, plan: &SimPlan) -> Option<String> {
        let planned = plan.services.iter().flat_map(|service| service.schedules.iter());
        let missing = planned.map(Planned::place).find(|place| !self.timers.contains_key(place));
        missing.map(|(service, key, name)| format!("{name} of {service} {key:?} is not set"))
    }

    /// The messages of schedules that wait for their time.
    pub(super) fn scheduled(&self) -> HashSet<TakenId> {
        let set = self.timers.iter().filter(|((_, _, name), _)| name.starts_with(CRON));
        set.map(|(_, (id, _))| *id).collect()
    }
}
