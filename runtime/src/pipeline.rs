//! The stages of a message, in the order in which it meets them.

pub mod retry;
