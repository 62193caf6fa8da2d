//! Budget Manager: lets the world into the handlers of `budget-actors`, and operators to what they keep.
//! In: a command line. Out: what it asked for, and an exit code.

pub mod defaults;
pub mod gateway;
pub mod operator;
