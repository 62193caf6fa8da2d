//! One shard's actors, in the order in which a message meets them, and the policy of their restarts. They act; the
//! ledger decides what to do.
//!
//! Root → janitor, heartbeat (in a fleet), and a supervisor per shard → ingress per source, owner, readers, committer,
//! dispatcher per sink, key supervisor → key actors.
//!
//! In: deliveries of sources. Out: commits, and the actions that follow them.

pub(crate) mod messages;

pub(crate) mod ingress;

pub(crate) mod owner;

pub(crate) mod key_actor;
pub(crate) mod keys;

pub(crate) mod reader;

pub(crate) mod committer;

pub(crate) mod dispatcher;

pub(crate) mod permits;
pub(crate) mod waiters;

pub(crate) mod supervisor;

pub mod policy;

pub mod env;
pub(crate) mod worker;
