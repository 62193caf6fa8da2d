//! A dependency: its circuit breaker, its retry budget, its limits.
//! In: the ends of turns that needed it. Out: whether one more may start.

use super::Asker;
use super::limit::{Limit, TokenBucket};
use crate::clock::{Dice, Millis, millis};
use crate::settings::{DependencySettings, Settings};

/// The share of answered turns that may be retries, and the number of retries in a second besides. (Linkerd's retry
/// budgets have the same two numbers by default.)
const BUDGET_RATIO: f64 = 0.2;
const BUDGET_PER_SECOND: f64 = 10.0;
/// Tokens that are kept for later: a burst is never larger.
const BUDGET_MOST: f64 = 100.0;

/// The state of a circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakerState {
    /// Turns start.
    Closed,
    /// No turn starts.
    Open,
    /// One turn starts, to find out.
    HalfOpen,
}

/// A breaker opened or closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BreakerChange {
    pub(crate) dependency: &'static str,
    pub(crate) state: BreakerState,
    /// The time for which nothing is let through.
    pub(crate) wait: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breaker {
    Closed,
    Open { until: Millis },
    HalfOpen { prober: Option<Asker> },
}

/// Something outside that turns need.
#[derive(Debug)]
pub(crate) struct Dependency {
    pub(crate) name: &'static str,
    pub(crate) limit: Limit,
    settings: DependencySettings,
    breaker: Breaker,
    /// Failures since it last answered.
    failures: u32,
    /// The number of times that it opened since it last answered.
    opened: u32,
    budget: TokenBucket,
    /// True if it has just come back: turns that waited for it are let through by the budget.
    returning: bool,
}

impl Dependency {
    pub(crate) fn new(name: &'static str, settings: &Settings) -> Self {
        let found = settings.dependency.iter().find(|dependency| dependency.name == name).cloned();
        let settings = found.unwrap_or_default();
        Self {
            name,
            limit: Limit::new(settings.concurrency, settings.rate),
            settings,
            breaker: Breaker::Closed,
            failures: 0,
            opened: 0,
            budget: TokenBucket::new(BUDGET_PER_SECOND, BUDGET_MOST).empty_but(BUDGET_PER_SECOND),
            returning: false,
        }
    }

    pub(crate) fn state(&self) -> BreakerState {
        match self.breaker {
            Breaker::Closed => BreakerState::Closed,
            Breaker::Open { .. } => BreakerState::Open,
            Breaker::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// True if a turn that needs it may start; `again` if the turn found it unavailable before.
    pub(crate) fn admits(&mut self, again: bool, now: Millis) -> bool {
        if matches!(self.breaker, Breaker::Open { until } if until <= now) {
            self.breaker = Breaker::HalfOpen { prober: None };
        }
        let funded = self.budget.has(now) || !(again || self.returning);
        let lets = match self.breaker {
            Breaker::Closed => funded,
            Breaker::Open { .. } => false,
            Breaker::HalfOpen { prober } => prober.is_none(),
        };
        lets && self.limit.has_room(now)
    }

    /// Counts a turn that starts.
    pub(crate) fn take(&mut self, again: bool, asker: Asker) {
        self.limit.take();
        match &mut self.breaker {
            Breaker::HalfOpen { prober } => *prober = Some(asker),
            _ if again || self.returning => self.budget.take(),
            _ => {}
        }
    }

    /// Takes note that it answered.
    pub(crate) fn answered(&mut self) -> Option<BreakerChange> {
        match self.breaker {
            // A turn from before it opened.
            Breaker::Open { .. } => return None,
            // One answer makes room for one turn that waits, and a fifth more.
            Breaker::Closed if self.returning => self.budget.add(1.0 + BUDGET_RATIO),
            Breaker::Closed => self.budget.add(BUDGET_RATIO),
            Breaker::HalfOpen { .. } => {}
        }
        self.failures = 0;
        if self.breaker == Breaker::Closed {
            return None;
        }
        self.breaker = Breaker::Closed;
        self.opened = 0;
        self.returning = true;
        self.budget = TokenBucket::new(BUDGET_PER_SECOND, BUDGET_MOST).empty_but(1.0);
        Some(BreakerChange { dependency: self.name, state: BreakerState::Closed, wait: 0 })
    }

    /// Takes note that it was not available.
    pub(crate) fn failed(&mut self, now: Millis, dice: &mut Dice) -> Option<BreakerChange> {
        self.failures += 1;
        match self.breaker {
            Breaker::Open { .. } => return None,
            Breaker::Closed if self.failures < self.settings.failures => return None,
            Breaker::Closed | Breaker::HalfOpen { .. } => {}
        }
        let (first, most) = (millis(self.settings.open_for), millis(self.settings.open_max));
        let wait = first.saturating_mul(1 << self.opened.min(20)).min(most);
        // Half of it is random, so that the workers of a fleet do not come back together.
        let wait = wait / 2 + dice.below(wait / 2 + 1);
        self.opened += 1;
        self.breaker = Breaker::Open { until: now + wait };
        Some(BreakerChange { dependency: self.name, state: BreakerState::Open, wait })
    }

    /// Takes note that the turn which was to find out did not.
    pub(crate) fn undecided(&mut self, asker: Asker) {
        if self.breaker == (Breaker::HalfOpen { prober: Some(asker) }) {
            self.breaker = Breaker::HalfOpen { prober: None };
        }
    }

    /// Takes note that nobody waits for it any more.
    pub(crate) fn recovered(&mut self) {
        if self.breaker == Breaker::Closed {
            self.returning = false;
        }
    }
}
