//! The stages of a message, in the order in which it meets them.
//! In: deliveries of sources. Out: commits, and what follows from them.

pub mod bindings;
pub mod ledger;
pub mod retry;
