//! What the parts promise together, one binary.
//! In: the crates as a user has them. Out: promises kept, on every driver.

#![expect(clippy::unwrap_used, reason = "tests may")]

mod engine;
mod fixture;
mod operator;
mod simulation;
mod sqlite_store;
mod store_contract;
mod support;
mod tidy;
mod transport_contract;
