//! What operators use: the command line, imports, and the listener for metrics and health.
//! In: commands and probes. Out: an engine that runs, rows for its owner, answers.

pub mod admin;
pub mod append;
pub mod cli;
pub mod doctor;
pub mod gateway;
pub mod import;
pub mod token;
