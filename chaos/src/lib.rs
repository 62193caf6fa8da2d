//! Breaks the program from outside, and checks that nothing was lost and nothing counted twice.
//! In: a scenario and a seed. Out: a report, the violations, and the command that runs it again.
//!
//! A scenario makes postings with a known outcome ([`postings`]), disturbs the processes that handle them ([`kill`],
//! [`children`], [`flood`]), and then reads nothing but the store ([`check`]). [`fleet`] does the same to several
//! workers on real servers, with a [`proxy`] between each worker and its servers. [`checkouts`] disturbs sagas, beside
//! a payment [`provider`] that has faults of its own; [`timers`] restarts an engine while many are due; [`suspects`]
//! has a message that ends the process; [`neighbours`] measures the cost of a slow key, or of an unavailable
//! dependency, for others; [`calls`] has clients that ask again and again at gateways which are killed and cut off.

pub mod calls;
pub mod check;
pub mod checkouts;
pub mod engine;
pub mod fleet;
pub mod kill;
pub mod neighbours;
pub mod postings;
pub mod process;
pub mod provider;
pub mod proxy;
pub mod suspects;
pub mod timers;

pub use engine::{children, flood};

/// The reason why a scenario could not be run to its end; that says nothing about what it was to prove.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// A file failed, or a process did not start.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] perkey::StoreError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] perkey::EngineError),
    /// A message cannot be made.
    #[error(transparent)]
    Message(#[from] perkey::MessageError),
    /// An expected change did not happen.
    #[error("{0}")]
    Stuck(String),
}

/// The result of a scenario.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// The facts of the report, a line each.
    pub facts: Vec<String>,
    /// The violations; empty if there are none.
    pub violations: Vec<String>,
}

impl Verdict {
    /// Records a violation unless `holds`.
    pub fn expect(&mut self, holds: bool, violation: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(violation());
        }
    }
}
