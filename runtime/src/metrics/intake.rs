//! Metrics of a broker's intake, which brings the messages of foreign publishers.
//! In: facts from the mover of its messages. Out: counters, by outcome.

use prometheus_client::metrics::counter::Counter;

use super::Metrics;

/// The outcome of a message of an intake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntakeOutcome {
    /// It will be handled.
    Moved,
    /// It will be a dead letter, as it cannot be used.
    Refused,
    /// It will be a dead letter, as the broker said so.
    Dead,
}

impl IntakeOutcome {
    const ALL: [Self; 3] = [Self::Moved, Self::Refused, Self::Dead];

    fn as_str(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::Refused => "refused",
            Self::Dead => "dead",
        }
    }
}

impl Metrics {
    /// The handles of a queue of an intake, by its name.
    pub fn intake(&self, queue: &str) -> IntakeMetrics {
        let counter = |outcome: IntakeOutcome| {
            let labels = vec![("queue", queue.into()), ("outcome", outcome.as_str().into())];
            self.families.intake.get_or_create_owned(&labels)
        };
        IntakeMetrics { counters: IntakeOutcome::ALL.map(counter) }
    }
}

/// The handles of a queue of an intake.
#[derive(Clone, Debug)]
pub struct IntakeMetrics {
    counters: [Counter; 3],
}

impl IntakeMetrics {
    /// Counts a message that lies in its stream now.
    pub fn record(&self, outcome: IntakeOutcome) {
        self.counters[outcome as usize].inc();
    }
}
