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

/// Milliseconds, of a time since the Unix epoch or of a duration.
///
/// ```
/// use perkey::Millis;
///
/// const NEW_YEAR: Millis = 1_767_225_600_000; // 2026-01-01T00:00:00Z
/// ```
#[doc(inline)]
pub use clock::Millis;
/// The milliseconds of a duration, as timers count them.
///
/// ```
/// assert_eq!(perkey::millis(std::time::Duration::from_secs(60)), 60_000);
/// ```
#[doc(inline)]
pub use clock::millis;
/// The way for a handler to wait: under simulation it takes virtual time.
///
/// ```
/// async fn ask(busy: bool) {
///     if busy {
///         perkey::sleep(std::time::Duration::from_millis(50)).await;
///     }
/// }
/// ```
#[doc(inline)]
pub use clock::sleep;
pub use engine::{Engine, EngineError, Health, SendError};
pub use handler::{
    AfterDeadLetter, Answer, Codec, CodecError, Column, ColumnKind, Fault, Handler, Json, Outcome, Payload,
    RetryPolicy, Row, Schedule, Schema, Table, Turn,
};
#[cfg(feature = "protobuf")]
pub use handler::{Protobuf, SchemaError};
pub use handlers::Handlers;
/// The attributes of a message that is to be made.
///
/// ```
/// use perkey::Draft;
///
/// let message = Draft { id: "m-1", key: "ann", kind: "earned", payload: b"{}", ..Draft::default() }.build()?;
/// assert_eq!((message.id(), message.key(), message.kind()), ("m-1", "ann", "earned"));
/// assert!(Draft { id: "m-1", key: "", kind: "earned", ..Draft::default() }.build().is_err());
/// # Ok::<(), perkey::MessageError>(())
/// ```
#[doc(inline)]
pub use message::Draft;
/// The key of a message: its messages are handled one at a time and in order, and share one state.
///
/// ```
/// use perkey::Key;
///
/// let key = Key::from("ann");
/// assert_eq!(key.as_str(), "ann");
/// assert_eq!(Key::from(format!("member-{}", 7)).to_string(), "member-7");
/// ```
#[doc(inline)]
pub use message::Key;
/// A message as it is handled, with its attributes and its payload.
///
/// ```
/// use perkey::{Draft, Message};
///
/// let headers = [("traceparent", "00-1-2-01")];
/// let draft = Draft { id: "m-1", key: "ann", kind: "earned", headers: &headers, payload: b"30", ..Draft::default() };
/// let message: Message = draft.build()?;
/// assert_eq!(message.header("traceparent"), Some("00-1-2-01"));
/// assert_eq!(message.payload(), b"30");
/// # Ok::<(), perkey::MessageError>(())
/// ```
#[doc(inline)]
pub use message::Message;
#[doc(inline)]
pub use message::MessageError;
/// The check that every key, id and type passes, for names of a program's own.
///
/// ```
/// use perkey::check_name;
///
/// assert_eq!(check_name("member", b"ann"), Ok("ann"));
/// assert_eq!(check_name("member", b" ann").unwrap_err().to_string(), "the member begins or ends with white space");
/// ```
#[doc(inline)]
pub use message::check_name;
/// A route of messages from a source to a handler; the settings file has it as `[[bind]]`.
///
/// ```
/// use perkey::{Bind, IdWithin, KeyFrom};
///
/// // The events `points.expired` of this program's own handlers go to the handler `notices`.
/// let bind = Bind {
///     source: "embedded".to_owned(),
///     kind: "points.expired".to_owned(),
///     service: "notices".to_owned(),
///     key: KeyFrom::Record,
///     id: IdWithin::Key,
/// };
/// ```
#[doc(inline)]
pub use settings::Bind;
/// All settings of a program, as `config/default.toml` explains them.
///
/// ```
/// use perkey::Settings;
///
/// let mut settings = Settings::default();
/// settings.store.url = "sqlite://loyalty.db".to_owned();
/// settings.retry.attempts = 3;
/// settings.app.insert("valid_seconds".to_owned(), "31536000".to_owned());
/// assert!(settings.problems().is_empty());
/// ```
#[doc(inline)]
pub use settings::Settings;
pub use settings::{IdWithin, KeyFrom, Publish};
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
