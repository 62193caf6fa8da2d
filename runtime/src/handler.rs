//! The types that a user of Perkey writes and imports: a handler, the turn it works on, the fault it may answer.
//! In: one message and the state of its key. Out: the changed state and what the turn is to do when it commits.

pub(crate) mod codec;
mod command;
mod dialect;
#[cfg(feature = "doc-examples")]
#[doc(hidden)]
pub mod example;
#[cfg(feature = "protobuf")]
mod protobuf;
mod retry;
mod schedule;
mod statement;
mod table;
mod turn;

use std::fmt;
use std::future::Future;
use std::time::Duration;

pub use codec::{Codec, Json, Payload, Schema};
pub use command::{ANSWER, Answer, CALL, COMMAND, CallId, Outcome, Sent, SentMessage, TIMER, call_of, is_between_keys};
pub(crate) use command::{Asked, CALL_ID, TIMER_NAME, is_reserved, stays_inside};
pub use dialect::{CodecError, named_once, whole_number, whole_numbers};
pub use retry::RetryPolicy;
pub use schedule::Schedule;
pub(crate) use schedule::{CRON, SCHEDULE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
pub use statement::Statement;
pub use table::{Column, ColumnKind, Row, Table};
pub use turn::{Effects, Emitted, RowWrite, Scheduled, Turn, TurnLimits};

use crate::message::Key;
#[cfg(feature = "protobuf")]
pub use protobuf::{Protobuf, SchemaError};

/// Handles the messages of one service: one key's at a time, in order, each taking effect exactly once.
///
/// ```
/// # use perkey::{Fault, Handler, Key, Turn, json};
/// # #[derive(serde::Deserialize)]
/// # struct Earned { member: String, points: i64 }
/// struct Points;
/// impl Handler for Points {
///     const SERVICE: &'static str = "points";
///     type Message = Earned;
///     type State = i64;
///     fn key(&self, earned: &Earned) -> Key {
///         earned.member.as_str().into()
///     }
///     async fn handle(&self, balance: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
///         *balance += earned.points;
///         turn.emit("points.earned", balance)
///     }
/// }
///
/// perkey::testing::Given::handler(Points)
///     .when(json!({ "member": "ann", "points": 30 }))
///     .then_state(30)
///     .then_events(["points.earned"]);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "implement `perkey::Handler` for it: SERVICE, Message, State, key and handle"
)]
pub trait Handler: Send + Sync + 'static {
    /// The handler's public name: part of every message's scope, so it must never change.
    const SERVICE: &'static str;
    /// The dependencies outside that it needs, by names of its own choice: while one of them is not available
    /// ([`Fault::Unavailable`]) no turn starts. `[[dependency]]` sections of the settings say how each is treated.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Turn, json};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// const NEEDS: &'static [&'static str] = &["mail"];
    ///
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    ///
    /// async fn handle(&self, _: &mut i64, _: Earned, _: &mut Turn) -> Result<(), Fault> {
    ///     Err(Fault::unavailable("mail", "no connection"))
    /// }
    /// # }
    /// # perkey::testing::Given::handler(Points).when(json!({ "member": "ann", "points": 1 })).then_unavailable("mail");
    /// ```
    const NEEDS: &'static [&'static str] = &[];
    /// Rises when the stored form of [`Handler::State`] changes; [`Handler::upgrade`] then reads the older ones.
    const STATE_VERSION: u32 = 1;
    /// The message that it understands; decoded from JSON, or by [`Handler::codec`]. A payload that does not decode is
    /// rejected, never retried.
    type Message: DeserializeOwned + Send;
    /// The state that it keeps for each key; stored as JSON in the commit of the turn that changed it.
    type State: Default + Clone + Serialize + DeserializeOwned + Send + 'static;

    /// The key of a message: what an import and a `key = "handler"` binding run it under. One that comes from outside under
    /// another key is rejected. An empty key leaves the message under the key with which it came.
    /// It is not asked for answers, timers and commands of handlers: these run under the key that they were set for.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Turn, json};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// fn key(&self, earned: &Earned) -> Key {
    ///     earned.member.as_str().into()
    /// }
    /// #     async fn handle(&self, balance: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    /// #         *balance += earned.points;
    /// #         turn.emit("points.earned", balance)
    /// #     }
    /// # }
    ///
    /// let earned = Earned { member: "ann".to_owned(), points: 30 };
    /// assert_eq!(Points.key(&earned), Key::from("ann"));
    /// ```
    fn key(&self, message: &Self::Message) -> Key;

    /// Handles one message. On any fault the change of `state` and everything put on the turn are dropped.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Turn, json};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// async fn handle(&self, balance: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    ///     *balance += earned.points;
    ///     turn.emit("points.earned", balance)
    /// }
    /// # }
    ///
    /// perkey::testing::Given::handler(Points)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_state(30);
    /// ```
    fn handle(
        &self,
        state: &mut Self::State,
        message: Self::Message,
        turn: &mut Turn,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Today's form of a state that was stored under a lower [`Handler::STATE_VERSION`]. It is stored anew with the
    /// next turn that changes it. Unless written otherwise: what still decodes is taken as it is.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Turn, json, serde_json::Value};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// const STATE_VERSION: u32 = 2;
    ///
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// #     async fn handle(&self, balance: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    /// #         *balance += earned.points;
    /// #         turn.emit("points.earned", balance)
    /// #     }
    ///
    /// /// Version 1 counted in hundreds.
    /// fn upgrade(version: u32, stored: Value) -> Result<i64, Fault> {
    ///     match (version, stored.as_i64()) {
    ///         (1, Some(hundreds)) => Ok(hundreds * 100),
    ///         _ => Err(Fault::reject("not a balance of version 1")),
    ///     }
    /// }
    /// # }
    ///
    /// perkey::testing::Given::handler(Points)
    ///     .stored(1, &json!(3))
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_state(330);
    /// ```
    fn upgrade(version: u32, stored: Value) -> Result<Self::State, Fault> {
        let _ = version;
        Ok(serde_json::from_value(stored)?)
    }

    /// The message that the answer to one of its commands is to this handler: see [`Turn::ask`].
    ///
    /// ```
    /// # use perkey::{Answer, Fault, Handler, Key, Outcome, Turn, json};
    /// # #[derive(serde::Deserialize)]
    /// # struct Charge { charge: u64 }
    /// # struct Tills;
    /// # impl Handler for Tills {
    /// #     const SERVICE: &'static str = "tills";
    /// #     type Message = Charge;
    /// #     type State = u64;
    /// #     fn key(&self, _: &Charge) -> Key {
    /// #         "till-1".into()
    /// #     }
    /// #     async fn handle(&self, taken: &mut u64, charge: Charge, turn: &mut Turn) -> Result<(), Fault> {
    /// #         *taken += charge.charge;
    /// #         turn.reply(taken)
    /// #     }
    /// # }
    /// # struct Orders;
    /// #[derive(serde::Deserialize, serde::Serialize)]
    /// #[serde(rename_all = "snake_case")]
    /// enum Step { Order { order: String }, Paid { order: String }, Failed { order: String } }
    ///
    /// # impl Handler for Orders {
    /// #     const SERVICE: &'static str = "orders";
    /// #     type Message = Step;
    /// #     type State = String;
    /// #     fn key(&self, step: &Step) -> Key {
    /// #         let (Step::Order { order } | Step::Paid { order } | Step::Failed { order }) = step;
    /// #         order.as_str().into()
    /// #     }
    ///
    /// async fn handle(&self, status: &mut String, step: Step, turn: &mut Turn) -> Result<(), Fault> {
    ///     match step {
    ///         // The name of the question is the order, so that the answer tells which one was paid.
    ///         Step::Order { order } => turn.ask::<Tills>(&order, "till-1", &json!({ "charge": 1250 }))?,
    ///         Step::Paid { .. } => "paid".clone_into(status),
    ///         Step::Failed { .. } => "failed".clone_into(status),
    ///     }
    ///     Ok(())
    /// }
    ///
    /// fn answer(&self, answer: Answer) -> Result<Step, Fault> {
    ///     let order = answer.name;
    ///     Ok(match answer.outcome {
    ///         Outcome::Done(_) => Step::Paid { order },
    ///         Outcome::DeadLetter(_) => Step::Failed { order },
    ///     })
    /// }
    /// # }
    ///
    /// perkey::testing::Given::handler(Orders)
    ///     .messages([json!({ "order": { "order": "o-1" } })])
    ///     .when_answered("o-1", Outcome::Done(json!(null)))
    ///     .then_state("paid");
    /// ```
    fn answer(&self, answer: Answer) -> Result<Self::Message, Fault> {
        let (service, name) = (Self::SERVICE, answer.name);
        Err(Fault::reject(format!("{service} asked {name:?} and does not say what its answer is: see Handler::answer")))
    }

    /// The codec of its messages from outside; those of other handlers and its timers are JSON in any case.
    ///
    /// ```
    /// # use perkey::{Codec, CodecError, Fault, Handler, Json, Key, Payload, Schema, Turn, json, serde_json};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # use perkey::serde_json::Value;
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// #     async fn handle(&self, balance: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    /// #         *balance += earned.points;
    /// #         turn.emit("points.earned", balance)
    /// #     }
    ///
    /// fn codec(&self) -> &dyn Codec<Earned> {
    ///     &Lines
    /// }
    /// # }
    ///
    /// /// A member and points in one line: `ann 30`.
    /// struct Lines;
    ///
    /// impl Codec<Earned> for Lines {
    ///     fn decode(&self, payload: &Payload<'_>) -> Result<Earned, CodecError> {
    ///         Ok(serde_json::from_value(self.to_json(payload)?)?)
    ///     }
    /// }
    /// # impl Schema for Lines {
    /// #     fn content_type(&self) -> &'static str { "text/plain" }
    /// #     fn to_json(&self, payload: &Payload<'_>) -> Result<Value, CodecError> {
    /// #         let line = std::str::from_utf8(payload.bytes()).ok().and_then(|line| line.split_once(' '));
    /// #         let (member, points) = line.ok_or(CodecError::Payload("not a member and points".to_owned()))?;
    /// #         Ok(json!({ "member": member, "points": points.parse::<i64>().unwrap_or(0) }))
    /// #     }
    /// #     fn encode(&self, json: &Value) -> Result<Vec<u8>, CodecError> {
    /// #         Ok(format!("{} {}", json["member"].as_str().unwrap_or(""), json["points"]).into_bytes())
    /// #     }
    /// # }
    ///
    /// perkey::testing::Given::handler(Points).when_payload(b"ann 30", Some("text/plain")).then_state(30);
    /// ```
    fn codec(&self) -> &dyn Codec<Self::Message> {
        &Json
    }

    /// The way on for the messages of a key behind a dead letter.
    ///
    /// ```
    /// # use perkey::{AfterDeadLetter, Fault, Handler, Key, Turn, json};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// #     async fn handle(&self, balance: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    /// #         *balance += earned.points;
    /// #         turn.emit("points.earned", balance)
    /// #     }
    ///
    /// fn after_dead_letter(&self) -> AfterDeadLetter {
    ///     AfterDeadLetter::HoldKey
    /// }
    /// # }
    /// ```
    fn after_dead_letter(&self) -> AfterDeadLetter {
        AfterDeadLetter::Continue
    }

    /// The retry policy, when it is to differ from the settings'.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, RetryPolicy, Turn, json};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # use std::time::Duration;
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// #     async fn handle(&self, balance: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    /// #         *balance += earned.points;
    /// #         turn.emit("points.earned", balance)
    /// #     }
    ///
    /// fn retry(&self) -> Option<RetryPolicy> {
    ///     Some(RetryPolicy {
    ///         base: Duration::from_millis(100),
    ///         factor: 2.0,
    ///         cap: Duration::from_secs(10),
    ///         attempts: 4,
    ///         give_up_after: Duration::from_secs(3_600),
    ///     })
    /// }
    /// # }
    /// ```
    fn retry(&self) -> Option<RetryPolicy> {
        None
    }

    /// Messages that come by the clock, each for one of its keys. The `[[cron]]` sections of the settings change their
    /// times or turn them off.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Schedule, Turn, json};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// #     async fn handle(&self, balance: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    /// #         *balance += earned.points;
    /// #         turn.emit("points.earned", balance)
    /// #     }
    ///
    /// fn schedules(&self) -> Vec<Schedule> {
    ///     vec![Schedule::new("bonus", "0 9 * * MON", "ann", &json!({ "member": "ann", "points": 5 }))]
    /// }
    /// # }
    /// ```
    fn schedules(&self) -> Vec<Schedule> {
        Vec::new()
    }

    /// The tables that [`Turn::write`] fills; made at start where they do not exist.
    ///
    /// ```
    /// # use perkey::{Column, ColumnKind, Fault, Handler, Key, Row, Table, Turn, json};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # #[derive(serde::Serialize)]
    /// # struct Balance { member: String, points: i64 }
    /// # impl Row for Balance {
    /// #     const TABLE: Table = Table {
    /// #         name: "balances",
    /// #         columns: &[Column::new("member", ColumnKind::Text), Column::new("points", ColumnKind::Integer)],
    /// #         primary_key: &["member"],
    /// #         key_column: Some("member"),
    /// #         indexes: &[],
    /// #     };
    /// # }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    ///
    /// async fn handle(&self, balance: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    ///     *balance += earned.points;
    ///     turn.write(&Balance { member: earned.member, points: *balance })
    /// }
    ///
    /// fn tables(&self) -> Vec<Table> {
    ///     vec![Balance::TABLE]
    /// }
    /// # }
    ///
    /// perkey::testing::Given::handler(Points)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_rows([json!({ "member": "ann", "points": 30 })]);
    /// ```
    fn tables(&self) -> Vec<Table> {
        Vec::new()
    }
}

/// The way on for a key after one of its messages became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDeadLetter {
    /// Its later messages go on.
    Continue,
    /// Its later messages wait until an operator replays or discards the dead letter. Calls, and commands whose asker is told
    /// how they ended, hold nobody.
    HoldKey,
}

/// The ways in which a turn fails. `?` on any error gives [`Fault::Retry`].
///
/// ```
/// use perkey::Fault;
///
/// /// Text that will never be a number is rejected.
/// fn points(text: &str) -> Result<u64, Fault> {
///     text.parse().map_err(Fault::reject)
/// }
///
/// /// `?` makes of any error a fault that is tried again.
/// fn lines(file: &str) -> Result<usize, Fault> {
///     Ok(std::fs::read_to_string(file)?.lines().count())
/// }
///
/// assert!(matches!(points("many"), Err(Fault::Reject(_))));
/// assert!(matches!(lines("not/there"), Err(Fault::Retry(_))));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Try again later: spends an attempt, with full jitter between attempts.
    Retry(String),
    /// Never try again: a dead letter now, which is a message that was given up and is kept with its reason until an operator
    /// replays or discards it. Of a call (a command through Perkey's gateway, whose sender waits for its end): its sender is
    /// told, and that is all. A refusal that is part of the business is better a [`Turn::reply`], unless it came by a call.
    Reject(String),
    /// Never try again: as [`Fault::Reject`], with a word by which the sender of a call may know the reason.
    Refuse {
        /// The word, in snake case: `already_exists`, `insufficient_funds`.
        code: &'static str,
        /// The reason.
        reason: String,
    },
    /// Try again after this long: spends no attempt, bounded by `retry.give_up_after`.
    Defer(Duration),
    /// Something of [`Handler::NEEDS`] is not available: the turn is run again when it is, and spends no attempt.
    Unavailable {
        /// The dependency, as [`Handler::NEEDS`] names it.
        dependency: &'static str,
        /// The reason to believe so.
        reason: String,
    },
}

impl Fault {
    /// [`Fault::Reject`] with a reason.
    ///
    /// ```
    /// # use perkey::Fault;
    /// let fault = Fault::reject("no account holds less than nothing");
    /// assert!(matches!(fault, Fault::Reject(_)));
    /// ```
    pub fn reject(reason: impl fmt::Display) -> Self {
        Self::Reject(reason.to_string())
    }

    /// [`Fault::Refuse`] with a code and a reason.
    ///
    /// ```
    /// # use perkey::Fault;
    /// let fault = Fault::refuse("insufficient_funds", "30 points are more than the 20 that are there");
    /// assert!(matches!(fault, Fault::Refuse { code: "insufficient_funds", .. }));
    /// ```
    pub fn refuse(code: &'static str, reason: impl fmt::Display) -> Self {
        Self::Refuse { code, reason: reason.to_string() }
    }

    /// [`Fault::Unavailable`] with a reason.
    ///
    /// ```
    /// # use perkey::Fault;
    /// let fault = Fault::unavailable("mail", "the server refuses connections");
    /// assert!(matches!(fault, Fault::Unavailable { dependency: "mail", .. }));
    /// ```
    pub fn unavailable(dependency: &'static str, reason: impl fmt::Display) -> Self {
        Self::Unavailable { dependency, reason: reason.to_string() }
    }

    /// [`Fault::Retry`] with a reason.
    ///
    /// ```
    /// # use perkey::Fault;
    /// let fault = Fault::retry("the other side is busy");
    /// assert!(matches!(fault, Fault::Retry(_)));
    /// ```
    pub fn retry(reason: impl fmt::Display) -> Self {
        Self::Retry(reason.to_string())
    }
}

// `Fault` is deliberately no `Error` itself: that is what lets every error become one by `?`.
impl<E: std::error::Error> From<E> for Fault {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            cause = inner.source();
        }
        Self::Retry(text)
    }
}
