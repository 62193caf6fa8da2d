//! Runs: keys get actors and runs, actors answer.
//! In: keys with queued items, actors' reports. Out: run orders; settled turns.

mod permits;
pub(crate) mod pool;

use std::collections::VecDeque;

use super::Ledger;
use super::defect::{Defect, planted};
use super::protocol::{Action, ActorIx, RunOrder, RunReport, SlotIx};
use super::settle::record::HistoryKind;
use super::slot::{Assigned, From, Item, Newest, Permit, Phase, Running, Slot};
use crate::clock::millis;
use crate::handlers::run::{RunItem, bounded};

impl Ledger {
    /// Decides what a key does next: the first thing that stands between it and an actor, in the order of the ledger's head.
    pub(crate) fn advance(&mut self, ix: SlotIx) {
        let Some(slot) = self.slots.get(ix) else { return };
        if !slot.known.read || matches!(slot.phase, Phase::Loads | Phase::Starves | Phase::Runs(_)) {
            return;
        }
        if !slot.operations.is_empty() {
            return self.operate(ix);
        }
        self.spare_permit(ix);
        let slot = &mut self.slots[ix];
        if slot.queue.is_empty() && !slot.known.rows.behind() && !slot.known.head.stops() {
            slot.queue = std::mem::take(&mut slot.overflow);
        }
        if slot.known.head.stops() && !planted(Defect::FollowersNotAppended) {
            return self.rest(ix);
        }
        if slot.queue.is_empty() && !slot.known.rows.behind() {
            return self.rest(ix);
        }
        if self.rests_paused(ix) {
            return;
        }
        let slot = &mut self.slots[ix];
        if slot.queue.is_empty() {
            return self.page(ix);
        }
        if slot.solo > 0 && slot.uncommitted > 0 || self.draining {
            return;
        }
        if self.fault_at_head(ix) {
            self.to_advance.push_back(ix);
            return;
        }
        let slot = &mut self.slots[ix];
        let reload = planted(Defect::ReloadUncommitted) && slot.uncommitted > 0;
        if !slot.is_warm() && (slot.known.newest == Newest::Elsewhere || reload) {
            slot.known.newest = Newest::Elsewhere;
            return self.load(ix);
        }
        if !self.awaits_record(ix) && !self.awaits_permit(ix) && !self.awaits_trial(ix) {
            self.place(ix);
        }
    }

    /// Finds an actor for a key that can run.
    fn place(&mut self, ix: SlotIx) {
        let assigned = self.slots[ix].assigned.map(|assigned| assigned.actor);
        if let Some(actor) = assigned.or_else(|| self.find_actor()) {
            self.start(ix, actor);
        } else {
            self.slots[ix].phase = Phase::Starves;
            self.actors.starved.push_back(ix);
        }
    }

    fn start(&mut self, ix: SlotIx, actor: ActorIx) {
        self.runs += 1;
        let no = self.runs;
        let settings = &self.config.settings;
        let slot = &mut self.slots[ix];
        let alone = slot.permit == Permit::Granted || slot.trial == Permit::Granted;
        for permit in [&mut slot.permit, &mut slot.trial] {
            if *permit == Permit::Granted {
                *permit = Permit::Used;
            }
        }
        let most = if slot.solo > 0 || alone { 1 } else { settings.actors.run_max };
        // A timer runs alone: a message before it may cancel it.
        let timer = slot.queue.iter().take(most).position(|item| item.from == From::Timer);
        let most = timer.map_or(most, |at| at.max(1));
        let runs = |(at, item): &(usize, &Item)| item.refusal.is_none() && (*at == 0 || item.is_free());
        let runnable = slot.queue.iter().take(most).enumerate().take_while(runs).count();
        let items: VecDeque<Item> = slot.queue.drain(..runnable).collect();
        let orders = items.iter().map(|item| RunItem { message: item.message.clone(), attempt: item.attempt + 1 });
        let orders = orders.collect();
        let state = if slot.is_warm() {
            None
        } else {
            self.tally.activations += 1;
            match &slot.known.newest {
                Newest::Here(state) => Some(state.clone()),
                Newest::Elsewhere => Some(None),
            }
        };
        slot.assigned = Some(Assigned { actor, warm: true });
        if slot.uncommitted == 0 {
            slot.known.newest = Newest::Elsewhere;
        }
        slot.phase = Phase::Runs(Running { no, items, stale: false });
        slot.busy_since = self.now;
        let service = slot.service;
        self.actors.assign(actor, ix);
        self.out.push(Action::Run(actor, RunOrder { slot: ix, no, service, state, items: orders }));
    }

    /// An actor's answer to [`Action::Run`].
    pub(crate) fn ran(&mut self, report: RunReport) {
        let Some(running) = self.slots.get(report.slot).and_then(Slot::running) else { return };
        if running.no != report.no {
            return;
        }
        let stale = running.stale;
        if report.gone {
            self.actors.leave(report.actor);
            self.slots[report.slot].assigned = None;
        }
        if stale {
            if report.done {
                self.permit_used(report.slot);
                self.slots[report.slot].take_run();
                self.reset_done(report.slot);
            }
            return;
        }
        self.settle_run(report.slot, report.turns, report.state);
        if report.alone {
            let slot = &mut self.slots[report.slot];
            slot.solo = slot.solo.max(1 + slot.in_run().count());
        }
        if report.done {
            self.end_run(report.slot);
        }
        self.to_advance.push_back(report.slot);
    }

    /// Ends a run: the items that it did not get to go back to the head of the queue.
    fn end_run(&mut self, ix: SlotIx) {
        let Some(running) = self.slots[ix].take_run() else { return };
        self.permit_used(ix);
        let mut rest = running.items;
        let slot = &mut self.slots[ix];
        if slot.known.head.stops() && !planted(Defect::FollowersNotAppended) {
            let behind = std::mem::take(&mut slot.queue);
            rest.extend(behind);
            self.follow_all(ix, rest);
        } else {
            rest.append(&mut slot.queue);
            slot.queue = rest;
        }
    }

    /// True if no run is under way that a drain waits for. One that takes long has its rows: its messages run again at
    /// the next owner, and waiting for it would keep the shard from all others.
    pub(crate) fn nothing_runs(&self) -> bool {
        let long = millis(self.config.settings.pending.spill_after);
        self.slots.iter().all(|slot| {
            slot.running().is_none_or(|run| {
                let spilled = run.items.iter().all(|item| matches!(item.from, From::Row(_)));
                spilled && self.now.saturating_sub(slot.busy_since) >= long
            })
        })
    }

    /// Leaves messages that still run to the next owner.
    pub(crate) fn leave_runs(&mut self) {
        self.slots.iter_mut().filter_map(Slot::running_mut).for_each(|run| run.stale = true);
    }

    /// Takes note that an actor is ready: newly started, or started again.
    pub(crate) fn actor_ready(&mut self, actor: ActorIx) {
        self.actors.ready(actor);
        self.feed_starved();
    }

    /// Takes note that an actor died. Its key goes on with another, from the newest settled state; unanswered turns run
    /// again.
    pub(crate) fn actor_died(&mut self, actor: ActorIx, reason: &str) {
        let Some(ix) = self.actors.died(actor) else { return };
        self.permit_used(ix);
        let slot = &mut self.slots[ix];
        match slot.take_run() {
            Some(running) if running.stale => self.reset_done(ix),
            Some(mut running) => {
                running.items.append(&mut slot.queue);
                slot.queue = running.items;
                if let Some(head) = slot.queue.front().cloned() {
                    let reason = bounded(reason.to_owned());
                    self.note(ix, &head, HistoryKind::Restarted, &reason);
                }
            }
            None => {}
        }
        self.slots[ix].assigned = None;
        self.to_advance.push_back(ix);
    }
}
