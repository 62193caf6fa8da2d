//! The policy of restarts: the decision whether a child that failed is restarted, and after which delay. Pure.
//! In: failures with their time, and dice. Out: a delay with full jitter, or the end of the supervisor's patience.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::{Dice, Millis, millis};
use crate::handler::RetryPolicy;
use crate::settings::Intensity;

/// A supervisor's decision about a child that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again after this long.
    Restart(Duration),
    /// It was restarted too often: fail in its place.
    Escalate,
}

/// The budget of a child's restarts: at most `restarts` within any `window`.
#[derive(Clone, Debug)]
pub struct RestartBudget {
    restarts: usize,
    window: Millis,
    backoff: RetryPolicy,
    /// Restarts within the window, oldest first; never more than `restarts`.
    recent: VecDeque<Millis>,
    latest: Millis,
}

impl RestartBudget {
    /// An unspent budget.
    pub fn new(intensity: Intensity) -> Self {
        Self {
            restarts: usize::try_from(intensity.restarts).unwrap_or(usize::MAX),
            window: millis(intensity.window),
            backoff: RetryPolicy::from(&intensity),
            recent: VecDeque::new(),
            latest: 0,
        }
    }

    /// Decides about a failure at `now`, and spends a restart when one is left.
    ///
    /// The bound of the delay doubles with each restart within the window. Once the window has passed without a
    /// failure, all restarts are available again, and the delay starts small.
    pub fn on_failure(&mut self, now: Millis, dice: &mut Dice) -> Verdict {
        // Wall time may be set back: restarts must not look younger than they are because of that.
        let now = now.max(self.latest);
        self.latest = now;
        while self.recent.front().is_some_and(|at| now - at >= self.window) {
            self.recent.pop_front();
        }
        if self.recent.len() >= self.restarts {
            return Verdict::Escalate;
        }
        self.recent.push_back(now);
        let spent = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        Verdict::Restart(self.backoff.delay(spent, dice))
    }

    /// Restarts spent within the window, as of the last failure.
    pub fn spent(&self) -> usize {
        self.recent.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Millis = 30_000;

    fn intensity(restarts: u32) -> Intensity {
        Intensity { restarts, window: Duration::from_millis(WINDOW), ..Intensity::default() }
    }

    fn restarts(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Restart(_))
    }

    #[test]
    fn the_failure_after_the_last_restart_escalates() {
        let mut budget = RestartBudget::new(intensity(3));
        let mut dice = Dice::seeded(1);
        let verdicts: Vec<_> = (0..5).map(|at| restarts(budget.on_failure(at, &mut dice))).collect();
        assert_eq!(verdicts, [true, true, true, false, false]);
    }

    #[test]
    fn no_restarts_means_that_every_failure_escalates() {
        let mut budget = RestartBudget::new(intensity(0));
        assert_eq!(budget.on_failure(0, &mut Dice::seeded(1)), Verdict::Escalate);
    }

    #[test]
    fn the_window_slides() {
        let mut budget = RestartBudget::new(intensity(2));
        let mut dice = Dice::seeded(1);
        assert!(restarts(budget.on_failure(0, &mut dice)));
        assert!(restarts(budget.on_failure(20_000, &mut dice)));
        assert!(!restarts(budget.on_failure(WINDOW - 1, &mut dice)), "both still count");
        assert!(restarts(budget.on_failure(WINDOW, &mut dice)), "the first has left the window");
        assert!(!restarts(budget.on_failure(WINDOW + 1, &mut dice)), "a whole new budget would be wrong");
    }

    #[test]
    fn a_quiet_window_resets_budget_and_delay() {
        let mut budget = RestartBudget::new(intensity(8));
        let mut dice = Dice::seeded(1);
        for at in 0..8 {
            assert!(restarts(budget.on_failure(at, &mut dice)));
        }
        let later = 7 + WINDOW;
        let Verdict::Restart(delay) = budget.on_failure(later, &mut dice) else { panic!("escalated") };
        assert_eq!(budget.spent(), 1);
        assert!(delay <= Intensity::default().backoff, "{delay:?}");
    }

    #[test]
    fn the_delays_bound_doubles_up_to_its_cap() {
        // The largest of many draws comes close to the bound and never above it.
        let mut largest = [Duration::ZERO; 10];
        for seed in 0..500 {
            let mut budget = RestartBudget::new(intensity(10));
            let mut dice = Dice::seeded(seed);
            for slot in &mut largest {
                let Verdict::Restart(delay) = budget.on_failure(0, &mut dice) else { panic!("escalated") };
                *slot = delay.max(*slot);
            }
        }
        for (spent, delay) in largest.iter().enumerate() {
            let bound = Duration::from_millis(50 << spent).min(Duration::from_secs(5));
            assert!(*delay <= bound && *delay > bound.mul_f64(0.9), "{delay:?} of {bound:?}");
        }
    }

    #[test]
    fn a_clock_set_back_gives_no_restarts_away() {
        let mut budget = RestartBudget::new(intensity(1));
        let mut dice = Dice::seeded(1);
        assert!(restarts(budget.on_failure(1_000_000, &mut dice)));
        assert!(!restarts(budget.on_failure(0, &mut dice)));
        assert!(!restarts(budget.on_failure(1_000_000 + WINDOW - 1, &mut dice)));
        assert!(restarts(budget.on_failure(1_000_000 + WINDOW, &mut dice)));
    }

    proptest! {
        #[test]
        fn never_more_than_the_budget_within_any_window(
            limit in 0u32..6,
            gaps in prop::collection::vec(0u64..20_000, 1..60),
        ) {
            let mut budget = RestartBudget::new(intensity(limit));
            let mut dice = Dice::seeded(3);
            let mut now = 0;
            let mut restarted: Vec<Millis> = Vec::new();
            for gap in gaps {
                now += gap;
                let within = restarted.iter().filter(|at| now - **at < WINDOW).count();
                let restart = restarts(budget.on_failure(now, &mut dice));
                prop_assert_eq!(restart, within < limit as usize, "{} within the window at {}", within, now);
                if restart {
                    restarted.push(now);
                }
            }
        }
    }
}
