//! Breaks the program from outside, and checks that nothing was lost and nothing counted twice.
//! In: a scenario and a seed. Out: what happened, what does not hold, and the command that runs it again.
//!
//! A scenario makes postings of which it knows the outcome ([`postings`]), disturbs whoever handles them ([`kill`],
//! [`children`], [`flood`]), and then reads nothing but the store ([`check`]). [`fleet`] does the same to several workers
//! on real servers, with a [`proxy`] between each worker and what it talks to. [`checkouts`] disturbs sagas, beside a
//! payment [`provider`] that has faults of its own; [`timers`] restarts an engine while many are due; [`suspects`] has a
//! message that ends the process; [`neighbours`] measures what a slow key, or a dependency that is away, costs the others;
//! [`calls`] has clients that ask again and again at gateways which are killed and cut off.

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

/// A scenario could not be run to its end; that says nothing about what it was to prove.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// A file, or a process that did not start.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] perkey::StoreError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] perkey::EngineError),
    /// A message that cannot be made.
    #[error(transparent)]
    Message(#[from] perkey::MessageError),
    /// What was to happen did not.
    #[error("{0}")]
    Stuck(String),
}

/// How a scenario ended.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// What happened, a line each.
    pub facts: Vec<String>,
    /// What does not hold; empty when everything does.
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
