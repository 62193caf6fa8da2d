//! Runs as key actors perform them, through the handlers' real code, with the faults of the seed in between.
//! In: run orders. Out: reports, and whether the actor dies.

use super::fault_plan::FaultPlan;
use super::plan::{PROBE, SimPlan};
use crate::clock::Dice;
use crate::handler::RowWrite;
use crate::handlers::run::{RunItem, TurnEnd, TurnFault};
use crate::handlers::{Cell, Settled};
use crate::ledger::protocol::RunOrder;
use crate::message::ServiceIx;

/// A key actor.
#[derive(Default)]
pub(super) struct SimActor {
    pub(super) cell: Cell,
    pub(super) alive: bool,
    /// Rises when it dies: reports of earlier generations are dropped.
    pub(super) generation: u32,
}

/// The results of a run: one part, or two if the first turns were reported early.
#[derive(Default)]
pub(super) struct Worked {
    pub(super) parts: Vec<Settled>,
    pub(super) dies: bool,
    /// Messages whose handler failed by itself.
    pub(super) failed: Vec<RunItem>,
}

/// The surroundings of a run.
pub(super) struct Bench<'a> {
    pub(super) plan: &'a SimPlan,
    pub(super) runtime: &'a tokio::runtime::Runtime,
    pub(super) dice: &'a mut Dice,
    /// True if turns fail only by their handler's own will.
    pub(super) healed: bool,
    /// The number of turns that were ever run.
    pub(super) turns: &'a mut u64,
    /// The number of times that each message was put off.
    pub(super) deferred: &'a mut std::collections::HashMap<String, u32>,
}

impl Bench<'_> {
    /// Performs a run.
    pub(super) fn work(&mut self, cell: &mut Cell, order: RunOrder) -> Worked {
        let mut worked = Worked::default();
        let count = order.items.len() as u64;
        // The end of the slice, and the turn before which earlier ones are reported while it is still under way.
        let cut = if self.dice.below(4) == 0 { 1 + self.dice.below(count) } else { count };
        let early = if self.dice.below(4) == 0 { self.dice.below(count) } else { 0 };
        let mut state = order.state;
        let mut part = Settled::default();
        for (at, item) in (0..).zip(order.items) {
            if at >= cut {
                break;
            }
            if at > 0 && at == early {
                worked.parts.push(std::mem::take(&mut part));
            }
            let stop = match self.fault(order.service, &item) {
                Some((end, dies)) => {
                    let settled = self.run(cell, order.service, state.take(), Vec::new());
                    part.turns.extend(settled.turns);
                    worked.dies |= dies;
                    let stop = self.stops(order.service, &end) || dies;
                    part.turns.push(end);
                    stop
                }
                None => self.turn(cell, order.service, state.take(), item, &mut part, &mut worked),
            };
            if stop {
                break;
            }
        }
        worked.parts.push(part);
        worked
    }

    fn turn(
        &mut self,
        cell: &mut Cell,
        service: ServiceIx,
        state: Option<crate::handlers::run::Stored>,
        item: RunItem,
        part: &mut Settled,
        worked: &mut Worked,
    ) -> bool {
        let mut settled = self.run(cell, service, state, vec![item.clone()]);
        let mut stop = settled.panic.is_some();
        worked.dies |= stop;
        for turn in &mut settled.turns {
            match turn {
                TurnEnd::Done { rows, .. } => rows.push(self.probe(service, &item)),
                end => {
                    stop |= self.stops(service, end);
                    worked.failed.push(item.clone());
                }
            }
        }
        part.turns.extend(settled.turns);
        part.state = settled.state.or(part.state.take());
        stop
    }

    fn run(
        &self,
        cell: &mut Cell,
        service: ServiceIx,
        state: Option<crate::handlers::run::Stored>,
        items: Vec<RunItem>,
    ) -> Settled {
        let service = &self.plan.handlers.all()[service];
        self.runtime.block_on(service.run(cell, state, items, &self.plan.context, &|_| ()))
    }

    fn stops(&self, service: ServiceIx, end: &TurnEnd) -> bool {
        let hold = self.plan.services[service].after_dead_letter == crate::AfterDeadLetter::HoldKey;
        hold || !matches!(end, TurnEnd::Fault(TurnFault::Reject(_) | TurnFault::Refuse(..)))
    }

    /// The seed's fault for this attempt, and whether the actor dies of it.
    fn fault(&mut self, service: ServiceIx, item: &RunItem) -> Option<(TurnEnd, bool)> {
        if self.healed {
            return None;
        }
        let (name, id) = (&self.plan.services[service].name, item.message.id());
        let retry = |what: &str| TurnEnd::Fault(TurnFault::Retry(format!("simulated: {what}")));
        match FaultPlan::of(self.plan.seed, self.plan.faults, name, id) {
            FaultPlan::Retry(times) if item.attempt <= times => Some((retry("fails for a while"), false)),
            FaultPlan::Panic(times) if item.attempt <= times => Some((retry("the handler panicked"), true)),
            FaultPlan::Hopeless => Some((retry("fails always"), false)),
            FaultPlan::Reject => Some((TurnEnd::Fault(TurnFault::Reject("simulated: rejected".to_owned())), false)),
            FaultPlan::Defer(times) => {
                let seen = self.deferred.entry(format!("{name}/{id}")).or_insert(0);
                *seen += 1;
                (*seen <= times).then(|| (TurnEnd::Fault(TurnFault::Defer(self.dice.below(300))), false))
            }
            FaultPlan::Unavailable(times) if self.plan.services[service].guarded => {
                let seen = self.deferred.entry(format!("{name}/{id}")).or_insert(0);
                *seen += 1;
                (*seen <= times).then(|| (TurnEnd::Unavailable(0, "simulated".to_owned()), false))
            }
            _ => None,
        }
    }

    fn probe(&mut self, service: ServiceIx, item: &RunItem) -> RowWrite {
        *self.turns += 1;
        let (name, id, key) = (&*self.plan.services[service].name, item.message.id(), item.message.key());
        let row = serde_json::json!({ "turn": *self.turns, "service": name, "key": key, "id": id });
        let place = serde_json::json!([name, id, *self.turns]);
        RowWrite { table: PROBE, key: place.to_string(), row: Some(row.to_string()) }
    }
}
