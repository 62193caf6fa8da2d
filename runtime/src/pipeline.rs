//! The stages of a message, in the order in which it meets them.
//! In: deliveries of sources. Out: commits, and what follows from them.

pub(crate) mod ingress;

mod defect;

pub(crate) mod gates;

pub mod bindings;
pub mod cron;
pub mod ledger;

mod inbox;
mod tracker;

pub(crate) mod shard;

pub(crate) mod reader;

pub(crate) mod committer;

pub mod dispatcher;

pub use gates::Bucket;
