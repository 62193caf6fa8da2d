//! Perkey: an actor-based event-processing runtime in which each message takes effect exactly once.

// values
pub mod clock;
pub mod handler;
pub mod handlers;
pub mod message;
pub mod settings;

// what is decided, and who acts
pub mod engine;
pub mod fleet;
pub mod ledger;
pub mod shard;

// the edges
pub mod store;
pub mod transport;

// what is seen from outside
pub mod metrics;
pub mod telemetry;

// how all of it is tested
pub mod testing;

pub use engine::{Engine, SendError, host};
pub use handler::{
    AfterDeadLetter, Answer, Column, ColumnKind, Fault, Handler, RetryPolicy, Row, Schedule, Table, Turn,
};
pub use handlers::Handlers;
pub use message::{Key, Message};
pub use tokio;

// what a program of one's own needs beside it, in the versions that are used here
pub use serde_json::{self, json};
