//! Permits to run a turn, for services that need them.
//! In: keys that can run, permits that are given. Out: permits asked for, and given back once their turn is over.

use std::collections::VecDeque;

use crate::ledger::Ledger;
use crate::ledger::gates::{Line, PermitEnd};
use crate::ledger::protocol::{Action, SlotIx};
use crate::ledger::slot::Permit;

impl Ledger {
    /// True if a key with something to run has to wait for a permit; asks for one.
    pub(crate) fn awaits_permit(&mut self, ix: SlotIx) -> bool {
        let slot = &mut self.slots[ix];
        let guarded = self.config.services[slot.service].guarded;
        if !guarded || slot.permit == Permit::Granted || slot.is_watched(self.now) {
            return false;
        }
        if slot.permit == Permit::None {
            slot.permit = Permit::Asked;
            slot.busy_since = self.now;
            let (line, again) = (Line::Service(slot.service), slot.unavailable.is_some());
            self.ask_permit(ix, line, again);
        }
        true
    }

    /// Asks for a permit for a key.
    pub(crate) fn ask_permit(&mut self, ix: SlotIx, line: Line, again: bool) {
        self.asked.entry(line).or_default().push_back((ix, self.slots[ix].token));
        self.out.push(Action::AskPermit(line, again));
        self.give_actor_back(ix);
    }

    /// The answer to an [`Action::AskPermit`] for this line.
    pub(crate) fn permit(&mut self, line: Line) {
        while let Some((ix, token)) = self.asked.get_mut(&line).and_then(VecDeque::pop_front) {
            if !self.slots.current(ix, token) {
                continue;
            }
            let slot = &mut self.slots[ix];
            let permit = match line {
                Line::Service(_) => &mut slot.permit,
                Line::Trial => &mut slot.trial,
            };
            if *permit == Permit::Asked {
                *permit = Permit::Granted;
                self.to_advance.push_back(ix);
                return;
            }
        }
        self.out.push(Action::PermitEnded(line, PermitEnd::Unused));
    }

    /// Returns the permit of a key that has nothing to run.
    pub(crate) fn spare_permit(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        let paused = self.pauses.holds(&self.config.services[slot.service].name, &slot.key);
        let idle = slot.queue.is_empty() || slot.known.head.stops() || self.draining || paused;
        let suspect = slot.queue.front().is_some_and(|head| head.is_alone());
        if idle {
            self.return_permit(ix);
        }
        if self.slots[ix].trial == Permit::Granted && (idle || !suspect) {
            self.end_trial(ix, PermitEnd::Unused);
        }
    }

    /// Returns a key's permit, which it does not use now.
    pub(crate) fn return_permit(&mut self, ix: SlotIx) {
        let slot = &mut self.slots[ix];
        if slot.permit == Permit::Granted {
            slot.permit = Permit::None;
            self.out.push(Action::PermitEnded(Line::Service(slot.service), PermitEnd::Unused));
        }
    }

    /// Ends the permit of a key whose turn is over.
    pub(crate) fn permit_used(&mut self, ix: SlotIx) {
        self.trial_used(ix);
        let slot = &mut self.slots[ix];
        if slot.permit == Permit::Used {
            slot.permit = Permit::None;
            let ended = slot.unavailable.map_or(PermitEnd::Done, PermitEnd::Unavailable);
            self.out.push(Action::PermitEnded(Line::Service(slot.service), ended));
        }
    }

    /// Makes a key's request void.
    pub(crate) fn reset_permit(&mut self, ix: SlotIx) {
        if self.slots[ix].trial != Permit::Used || self.slots[ix].running().is_none() {
            self.end_trial(ix, PermitEnd::Unused);
        }
        let slot = &mut self.slots[ix];
        slot.unavailable = None;
        if slot.permit == Permit::Asked {
            slot.permit = Permit::None;
        }
        self.return_permit(ix);
    }
}
