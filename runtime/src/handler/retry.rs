//! The time at which a failed message is tried again. Pure.
//! In: attempts spent and dice. Out: a delay with full jitter, never above the cap, or the end.
//!
//! `backoff` (advised against as unmaintained, kept because the project names it) supplies the growing bound; the
//! jitter is ours, because `backoff` draws from the thread's own generator and would overshoot its cap by half.
//! Full jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;

use crate::clock::Dice;
use crate::settings::{Intensity, RetrySettings};

/// The number of attempts, and the delays between them.
///
/// ```
/// use std::time::Duration;
/// use perkey::RetryPolicy;
///
/// let patient = RetryPolicy {
///     base: Duration::from_millis(100),
///     factor: 2.0,
///     cap: Duration::from_secs(1),
///     attempts: 8,
///     give_up_after: Duration::from_secs(3_600),
/// };
/// assert_eq!(patient.bound(1), Duration::from_millis(100));
/// assert_eq!(patient.bound(3), Duration::from_millis(400));
/// assert_eq!(patient.bound(7), Duration::from_secs(1), "the cap");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Bound of the first delay.
    pub base: Duration,
    /// Growth of the bound.
    pub factor: f64,
    /// The bound never grows above this.
    pub cap: Duration,
    /// Attempts in all, the first included.
    pub attempts: u32,
    /// The longest time for which a message may be deferred.
    pub give_up_after: Duration,
}

impl From<&RetrySettings> for RetryPolicy {
    fn from(settings: &RetrySettings) -> Self {
        Self {
            base: settings.base,
            factor: settings.factor,
            cap: settings.cap,
            attempts: settings.attempts,
            give_up_after: settings.give_up_after,
        }
    }
}

impl From<&Intensity> for RetryPolicy {
    fn from(settings: &Intensity) -> Self {
        Self {
            base: settings.backoff,
            factor: 2.0,
            cap: settings.backoff_max,
            attempts: u32::MAX,
            give_up_after: Duration::MAX,
        }
    }
}

impl RetryPolicy {
    /// The largest delay after `spent` attempts (1 or more): `min(cap, base · factor^(spent - 1))`.
    pub fn bound(&self, spent: u32) -> Duration {
        let mut bounds = ExponentialBackoff {
            current_interval: self.base,
            initial_interval: self.base,
            randomization_factor: 0.0,
            multiplier: self.factor,
            max_interval: self.cap,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        let mut bound = self.base.min(self.cap);
        for _ in 0..spent.clamp(1, 64) {
            bound = bounds.next_backoff().unwrap_or(self.cap).min(self.cap);
        }
        bound
    }

    /// A delay uniform in `[0, bound(spent)]`.
    #[doc(hidden)]
    pub fn delay(&self, spent: u32, dice: &mut Dice) -> Duration {
        self.bound(spent).mul_f64(dice.unit())
    }

    /// The delay before the next attempt, or `None` when all are spent.
    #[doc(hidden)]
    pub fn next(&self, spent: u32, dice: &mut Dice) -> Option<Duration> {
        (spent < self.attempts).then(|| self.delay(spent, dice))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_bounds_are_those_of_the_documents() {
        let policy = RetryPolicy::from(&RetrySettings::default());
        let bounds: Vec<_> = (1..=7).map(|spent| policy.bound(spent).as_millis()).collect();
        assert_eq!(bounds, [250, 750, 2_250, 6_750, 20_250, 30_000, 30_000]);
    }

    #[test]
    fn seven_attempts_are_six_waits() {
        let policy = RetryPolicy::from(&RetrySettings::default());
        let mut dice = Dice::seeded(1);
        let waits = (1..).take_while(|spent| policy.next(*spent, &mut dice).is_some()).count();
        assert_eq!(waits, 6);
    }

    proptest! {
        #[test]
        fn a_delay_stays_within_its_bound(seed: u64, spent in 1u32..2_000, base in 1u64..10_000, cap in 1u64..60_000) {
            let policy = RetryPolicy {
                base: Duration::from_millis(base),
                cap: Duration::from_millis(cap),
                ..RetryPolicy::from(&RetrySettings::default())
            };
            let delay = policy.delay(spent, &mut Dice::seeded(seed));
            let bound = (base as f64 * 3f64.powi((spent - 1).min(1_000) as i32)).min(cap as f64);
            prop_assert!(delay.as_secs_f64() * 1e3 <= bound + 1e-6, "{delay:?} above {bound} ms");
        }
    }

    #[test]
    fn delays_are_spread_evenly() {
        // Kolmogorov-Smirnov against the uniform distribution, 10,000 samples, significance 0.001.
        let policy = RetryPolicy::from(&RetrySettings::default());
        let mut dice = Dice::seeded(7);
        let mut samples: Vec<f64> = (0..10_000).map(|_| policy.delay(3, &mut dice).as_secs_f64() / 2.25).collect();
        samples.sort_by(f64::total_cmp);
        let n = samples.len() as f64;
        let distance = samples.iter().enumerate().map(|(i, x)| (x - i as f64 / n).abs()).fold(0.0, f64::max);
        assert!(distance < 1.95 / n.sqrt(), "{distance}");
    }
}
