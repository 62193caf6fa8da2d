//! The test kit: one handler in microseconds, or the whole pipeline in memory on virtual time.
//! In: handlers, messages, a seed. Out: what a turn did; what a simulated program made durable, all faults included.
//!
//! [`Given`] runs one turn of one handler. [`Stage`] runs several handlers together, with their commands, answers and
//! timers. A [`Recorder`] keeps what the ledgers of a
//! running engine are told, and a [`Recording`] shows what each of them decided. [`Simulation`] runs shards with their ledgers, sources, actors and commits
//! against a store in memory, kills, freezes and repeats whatever the seed says, and checks that each message still
//! counted once and in order.

mod disk;
mod fate;
mod given;
mod owner;
mod perform;
mod plan;
mod simulation;
mod stage;
mod tell;
mod transports;
mod trouble;
mod witness;
mod work;
mod world;

pub use crate::shard::env::recorder::{Decision, Recorder, Recording};
pub use given::{Given, Then};
pub use plan::Faults;
pub use simulation::{Broken, Report, Simulation};
pub use stage::Stage;
pub use witness::{Effect, Seen};
