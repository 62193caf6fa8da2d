//! The only source of time and chance in this crate, which stands alone, without the runtime's clock.
//! In: nothing. Out: points of time, pauses, random numbers and keys.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// A point of monotonic time.
#[expect(clippy::disallowed_methods, reason = "this is the one reader of monotonic time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Seconds since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "this is the one reader of wall time")]
pub(crate) fn wall_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Waits in real time.
#[expect(clippy::disallowed_methods, reason = "this is the one place that sleeps")]
pub(crate) async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// A random number, uniform in `[0, 1)`.
#[expect(clippy::disallowed_methods, reason = "this is the one place that asks for chance")]
pub(crate) fn unit() -> f64 {
    rand::random()
}

/// A new unique key.
#[expect(clippy::disallowed_methods, reason = "this is the one place that makes keys")]
pub(crate) fn key() -> String {
    Uuid::new_v4().to_string()
}
