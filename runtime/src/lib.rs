//! Perkey is an actor-based event-processing runtime in which each message takes effect exactly once.
//!
//! You write a [`Handler`]: it names the key of a message, and changes the state of that key. Perkey runs the messages of
//! one key one at a time and in order, those of different keys side by side. State, table rows, events, commands, timers
//! and the reply of a turn are one commit: after a crash they are there together, or not at all. A message that comes
//! again changes nothing.
//!
//! ```
//! use perkey::testing::Given;
//! use perkey::{Fault, Handler, Key, Turn, json};
//! use serde::{Deserialize, Serialize};
//!
//! /// Counts the points of each member.
//! struct Points;
//!
//! #[derive(Deserialize)]
//! struct Earned {
//!     member: String,
//!     points: u64,
//! }
//!
//! #[derive(Clone, Default, Serialize, Deserialize)]
//! struct Account {
//!     balance: u64,
//! }
//!
//! impl Handler for Points {
//!     const SERVICE: &'static str = "points";
//!     type Message = Earned;
//!     type State = Account;
//!
//!     fn key(&self, earned: &Earned) -> Key {
//!         earned.member.as_str().into()
//!     }
//!
//!     async fn handle(&self, account: &mut Account, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
//!         if earned.points == 0 {
//!             return Err(Fault::reject("no points were earned"));
//!         }
//!         account.balance += earned.points;
//!         turn.emit("points.earned", account)?;
//!         turn.reply(account)
//!     }
//! }
//!
//! Given::handler(Points)
//!     .messages([json!({ "member": "ann", "points": 70 })])
//!     .when(json!({ "member": "ann", "points": 30 }))
//!     .then_state(json!({ "balance": 100 }))
//!     .then_events(["points.earned"])
//!     .then_reply(json!({ "balance": 100 }))
//!     .when(json!({ "member": "ann", "points": 0 }))
//!     .then_rejects("no points");
//! ```
//!
//! # The map
//!
//! - **What you write**: a [`Handler`], the [`Turn`] that it works on, the [`Fault`] by which it fails; a [`Table`] with its
//!   [`Row`]s, a [`Schedule`], a [`Codec`] where it needs one.
//! - **What travels**: a [`Message`] under its [`Key`], an [`Answer`] to whoever asked.
//! - **What runs it**: [`host`] makes a program of your [`Handlers`] and [`Settings`]; its [`Engine`] takes messages in and
//!   shows states.
//! - **What tests it**: [`testing`] runs one handler in microseconds, several on virtual time, and whole programs under
//!   crashes that are drawn from a seed.
//! - **What is underneath**: [`unstable`] holds all else, which may change with any version.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `kafka` | yes | Kafka as source and sink; it builds librdkafka, which takes minutes |
//! | `rabbitmq` | yes | RabbitMQ as source and sink |
//! | `redis` | yes | Redis as the replay cache of a fleet's gateways |
//! | `otlp` | yes | traces, exported by OTLP |
//! | `protobuf` | no | payloads in Protobuf: `Protobuf` |
//! | `simulation` | no | `testing::Stage` and `testing::Simulation`; for `[dev-dependencies]` |

// values
mod clock;
mod handler;
mod handlers;
mod message;
mod settings;

// what is decided, and who acts
mod engine;
mod fleet;
mod ledger;
mod shard;

// the edges
mod store;
mod transport;

// what is seen from outside
mod metrics;
mod telemetry;

// how all of it is tested
pub mod testing;

pub use clock::{Millis, millis, sleep};
pub use engine::{Engine, EngineError, Health, SendError};
pub use handler::{
    AfterDeadLetter, Answer, Codec, CodecError, Column, ColumnKind, Fault, Handler, Json, Outcome, Payload,
    RetryPolicy, Row, Schedule, Schema, Table, Turn,
};
#[cfg(feature = "protobuf")]
pub use handler::{Protobuf, SchemaError};
pub use handlers::Handlers;
pub use message::{Draft, Key, Message, MessageError, check_name};
pub use settings::{Bind, IdWithin, KeyFrom, Publish, Settings};
pub use store::StoreError;

// what a program of one's own needs beside it, in the versions that are used here
pub use serde_json::{self, json};
pub use tokio;

pub mod host {
    //! A program around handlers: all that its `main` needs.
    //!
    //! [`Host`] reads settings, opens the store, starts the [`Engine`](crate::Engine), does the program's own work beside
    //! it, and drains in order when the process is told to stop.

    pub use crate::engine::host::{Failure, Host, Running};
}

/// A module of [`unstable`] for each of these of the crate's own.
macro_rules! parts {
    ($($part:ident),*) => {$(
        #[doc(hidden)]
        pub mod $part {
            pub use crate::$part::*;
        }
    )*};
}

pub mod unstable {
    //! Everything that is not meant for handlers: stores, transports, ledgers, shards, metrics, all settings.
    //!
    //! **What is in here may change or go with any version, and no release says so.** Perkey's own tools are built with it;
    //! the documentation of its modules is in their source.

    parts!(
        clock, engine, fleet, handler, handlers, ledger, message, metrics, settings, shard, store, telemetry, transport
    );
}
