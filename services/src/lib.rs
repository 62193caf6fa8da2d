//! Budget Manager: connects the handlers of `budget-actors` to the world, and gives operators access to their data.
//! In: a command line. Out: its result, and an exit code.

pub mod defaults;
pub mod gateway;
pub mod operator;
