//! The pause before a broker that failed is asked again.
//! In: failures in a row. Out: a pause.

use std::time::Duration;

/// Pause after a first failure.
pub(super) const AGAIN: Duration = Duration::from_millis(250);
/// The longest pause.
pub(super) const AGAIN_MAX: Duration = Duration::from_secs(5);

/// The pause after this many failures in a row, from 1: it doubles, up to a bound.
pub(super) fn pause_after(failures: u32) -> Duration {
    (AGAIN * 2_u32.pow(failures.min(6).saturating_sub(1))).min(AGAIN_MAX)
}
