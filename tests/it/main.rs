//! What the parts promise together, one binary.
//! In: the crates as a user has them. Out: promises kept, on every driver.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests may")]

mod bad_input;
mod chaos;
mod cli;
mod engine;
mod fixture;
mod ledger_model;
mod operator;
mod outbox;
mod refused;
mod rekeying;
mod simulation;
mod sqlite_store;
mod store_contract;
mod support;
mod tidy;
mod transport_contract;
