//! What the parts promise together, one binary.
//! In: the crates as a user has them. Out: promises kept, on every driver.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests may")]

mod fixture;
mod store_contract;
mod tidy;
