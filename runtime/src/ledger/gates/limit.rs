//! Limits of concurrency and rate.
//! In: settings, the time. Out: whether there is room for one more.

use std::time::Duration;

use crate::clock::Millis;
use crate::settings::ServiceLimit;

/// The limits of turns at once and of turns in a second; 0 means no limit.
#[derive(Debug, Default)]
pub(crate) struct Limit {
    concurrency: usize,
    used: usize,
    rate: Option<TokenBucket>,
}

impl Limit {
    pub(crate) fn new(concurrency: usize, rate: f64) -> Self {
        // A second's worth may come at once.
        let rate = (rate > 0.0).then(|| TokenBucket::new(rate, rate.max(1.0)));
        Self { concurrency, used: 0, rate }
    }

    pub(crate) fn of(limit: &ServiceLimit) -> Self {
        Self::new(limit.concurrency, limit.rate)
    }

    pub(crate) fn is_set(&self) -> bool {
        self.concurrency > 0 || self.rate.is_some()
    }

    pub(crate) fn has_room(&mut self, now: Millis) -> bool {
        (self.concurrency == 0 || self.used < self.concurrency) && self.rate.as_mut().is_none_or(|rate| rate.has(now))
    }

    pub(crate) fn take(&mut self) {
        self.used += 1;
        if let Some(rate) = &mut self.rate {
            rate.take();
        }
    }

    pub(crate) fn free(&mut self) {
        self.used = self.used.saturating_sub(1);
    }
}

/// Tokens that come with time.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    per_second: f64,
    most: f64,
    tokens: f64,
    filled_at: Option<Millis>,
}

impl TokenBucket {
    /// A full bucket of `most` tokens, of which `per_second` come back in a second.
    pub fn new(per_second: f64, most: f64) -> Self {
        Self { per_second, most, tokens: most, filled_at: None }
    }

    /// The bucket with `tokens` tokens.
    pub(crate) fn empty_but(self, tokens: f64) -> Self {
        Self { tokens, ..self }
    }

    /// True if there is a token at `now`.
    pub fn has(&mut self, now: Millis) -> bool {
        let since = now.saturating_sub(self.filled_at.replace(now).unwrap_or(now));
        #[expect(clippy::cast_precision_loss, reason = "a pause of 2^52 ms is none")]
        self.add(self.per_second * since as f64 / 1_000.0);
        self.tokens >= 1.0
    }

    /// Takes a token.
    pub fn take(&mut self) {
        self.tokens -= 1.0;
    }

    /// The time until there is a token.
    pub fn wait(&self) -> Duration {
        Duration::from_secs_f64(((1.0 - self.tokens) / self.per_second).max(0.0))
    }

    pub(crate) fn add(&mut self, tokens: f64) {
        self.tokens = (self.tokens + tokens).min(self.most);
    }
}
