//! The test kit: one handler in microseconds, or the whole pipeline in memory on virtual time.
//! In: handlers, messages, a seed. Out: the effects of a turn; the effects that a simulated program made durable, under
//! all faults.
//!
//! [`Given`] runs one turn of one handler. `Stage` runs several handlers together, with their commands, answers and
//! timers. `Simulation` runs shards with their ledgers, sources, actors and commits against a store in memory, kills,
//! freezes and repeats as the seed says, and checks that each message still counted once and in order. These two need
//! the feature `simulation`. A [`Recorder`] keeps the events that the ledgers of a running engine are told, and a
//! [`Recording`] shows what each of them decided.

mod given;

#[cfg(feature = "simulation")]
mod actions;
#[cfg(feature = "simulation")]
mod checker;
#[cfg(feature = "simulation")]
mod disk;
#[cfg(feature = "simulation")]
mod events;
#[cfg(feature = "simulation")]
mod fault_plan;
#[cfg(feature = "simulation")]
mod faults;
#[cfg(feature = "simulation")]
mod owner;
#[cfg(feature = "simulation")]
mod plan;
#[cfg(feature = "simulation")]
mod sim;
#[cfg(feature = "simulation")]
mod simulation;
#[cfg(feature = "simulation")]
mod stage;
#[cfg(feature = "simulation")]
mod transports;
#[cfg(feature = "simulation")]
mod work;

pub use crate::shard::env::recorder::{Decision, Recorder, Recording};
#[cfg(feature = "simulation")]
pub use checker::{Effect, Seen};
pub use given::{Given, Then};
#[cfg(feature = "simulation")]
pub use plan::Faults;
#[cfg(feature = "simulation")]
pub use simulation::{Broken, Report, Simulation};
#[cfg(feature = "simulation")]
pub use stage::Stage;

// what a test's own turn is made with, and its results
pub use crate::handler::{Effects, Emitted, RowWrite, Scheduled, Sent, Statement, TurnLimits};
#[cfg(feature = "simulation")]
pub use crate::store::{DeadLetter, Timer};
