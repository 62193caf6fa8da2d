//! The only source of time and chance.
//! In: nothing, or a test's control. Out: wall time in milliseconds, monotonic time, time since boot, seeded dice.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Milliseconds since the Unix epoch.
pub type Millis = u64;

/// A duration in whole milliseconds; the largest number if the duration is longer than that.
pub fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

/// The clock of a process, or of a simulated one.
#[derive(Clone, Debug)]
pub struct Clock(ClockKind);

#[derive(Clone, Debug)]
enum ClockKind {
    System,
    Virtual(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(ClockKind::System)
    }

    /// A clock that stands still until [`Clock::advance`] moves it; `start` in milliseconds since the epoch.
    pub fn manual(start: Millis) -> Self {
        Self(ClockKind::Virtual(Arc::new(AtomicU64::new(start))))
    }

    /// Wall time now.
    #[expect(clippy::disallowed_methods, reason = "this is the one reader of wall time")]
    pub fn now(&self) -> Millis {
        match &self.0 {
            ClockKind::System => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis),
            ClockKind::Virtual(now) => now.load(Ordering::Acquire),
        }
    }

    /// Moves a manual clock on; the machine's clock ignores it.
    pub fn advance(&self, by: Duration) {
        if let ClockKind::Virtual(now) = &self.0 {
            now.fetch_add(millis(by), Ordering::AcqRel);
        }
    }
}

/// A point of monotonic time, for measuring how long something took.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts measuring.
    #[expect(clippy::disallowed_methods, reason = "this is the one reader of monotonic time")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Milliseconds since the machine started, time asleep included: the time by which a lease is counted. Monotonic time
/// stands still while a machine is suspended, its lease at the store does not.
pub fn since_boot() -> Millis {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = rustix::time::ClockId::Boottime;
    // Elsewhere monotonic time goes on during suspend, or only the fence catches a suspended machine.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(clock);
    let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    seconds * 1_000 + nanos / 1_000_000
}

/// Waits in real time. Everything that waits goes through here, so that waiting is easy to find.
#[expect(clippy::disallowed_methods, reason = "this is the one place that sleeps")]
pub async fn sleep(duration: Duration) {
    if let Some(before) = WAITED.get() {
        return WAITED.set(Some(before.saturating_add(duration)));
    }
    tokio::time::sleep(duration).await;
}

thread_local! {
    /// The time that this thread would have slept, while it is told not to sleep.
    static WAITED: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Does something on this thread in which no sleep takes time; says how long all of them would have been.
#[cfg(feature = "simulation")]
pub(crate) fn without_waiting<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    WAITED.set(Some(Duration::ZERO));
    let done = what();
    (done, WAITED.take().unwrap_or_default())
}

/// A source of chance that gives the same results for the same seed.
#[derive(Clone, Debug)]
pub struct Dice(SmallRng);

impl Dice {
    /// Dice that fall the same way for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    /// Dice seeded by the operating system.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system for chance")]
    pub fn from_system() -> Self {
        Self::seeded(rand::random())
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        self.0.random()
    }

    /// Uniform in `[0, bound)`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.0.random_range(0..bound) }
    }
}

/// The time as RFC 3339 text in UTC, for people and for logs.
pub fn rfc3339(at: Millis) -> String {
    let millis = i64::try_from(at).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| at.to_string(), |stamp| stamp.to_string())
}

/// Parses RFC 3339 text into milliseconds; `None` if the text is invalid or its time lies before the epoch.
pub fn from_rfc3339(text: &str) -> Option<Millis> {
    let stamp: jiff::Timestamp = text.parse().ok()?;
    Millis::try_from(stamp.as_millisecond()).ok()
}
