//! The progress bar: rate and time left, for people.
//! In: bytes and messages done. Out: a line on standard error, or nothing if that is not a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use perkey::unstable::clock::Stopwatch;

use crate::operator::cli::output::{bars, complain};

const DRAWS_PER_SECOND: u8 = 5;

/// The bar.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    since: Stopwatch,
    messages: u64,
}

impl Bar {
    /// A bar over `bytes`, or a spinner if the length is not known.
    pub fn new(bytes: Option<u64>) -> Self {
        let shown = bars();
        let target =
            if shown { ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(bytes, target);
        let template = match bytes {
            Some(_) => "{bar:30} {percent:>3}%  {msg}  {eta} left",
            None => "{spinner} {bytes}  {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, since: Stopwatch::start(), messages: 0 }
    }

    /// Skips bytes that an earlier run has done, so that they do not count for the rate.
    pub fn skip(&self, bytes: u64) {
        self.bar.set_position(bytes);
        self.bar.reset_eta();
    }

    /// Shows the progress of the import.
    pub fn at(&mut self, bytes: u64, more_messages: u64) {
        self.messages += more_messages;
        self.bar.set_position(bytes);
        self.bar.set_message(format!("{} messages, {:.0}/s", self.messages, self.rate()));
    }

    /// Shows the number of unread messages, once only handling is left.
    pub fn handling(&self, unread: u64) {
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            self.bar.set_style(style);
        }
        self.bar.set_message(format!("all {} messages are in the log, {unread} still unread", self.messages));
    }

    /// Writes a text above the bar.
    pub fn say(&self, text: &str) {
        self.bar.suspend(|| complain(text));
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    fn rate(&self) -> f64 {
        rate(self.messages, self.elapsed())
    }
}

/// Messages per second.
#[expect(clippy::cast_precision_loss, reason = "a rate is read by people")]
pub fn rate(messages: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { messages as f64 / elapsed.as_secs_f64() }
}
