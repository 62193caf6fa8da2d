//! What the parts promise together, in one binary.

mod engine;
mod fixture;
mod store_contract;
mod support;
mod tidy;
