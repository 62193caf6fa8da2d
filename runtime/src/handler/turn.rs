//! The turn that a handler works on: one attempt at one message, and what is to happen if it commits.
//! In: a message. Out: the effects that the handler put on the turn, within its bounds.

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::{CRON, Fault, Handler, Row, Schema, Sent, Statement, Table};
use crate::clock::Millis;
use crate::message::{Key, Message, check_name};

/// The bounds of a turn's commit; checked as the handler goes.
///
/// ```
/// use perkey::testing::TurnLimits;
///
/// let small = TurnLimits { events_max: 1, ..TurnLimits::default() };
/// # let message = perkey::Draft { id: "m-1", key: "ann", kind: "earned", ..Default::default() }.build().unwrap();
/// let mut turn = perkey::Turn::new(message, 1, 0, small);
/// assert!(turn.emit("one", &1).is_ok());
/// assert!(turn.emit("two", &2).is_err());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TurnLimits {
    /// Rows written or deleted.
    pub rows_max: usize,
    /// Events emitted, and as many commands sent, and as many timers.
    pub events_max: usize,
    /// Bytes of rows, events and reply together.
    pub bytes_max: usize,
}

impl Default for TurnLimits {
    fn default() -> Self {
        Self { rows_max: 1_000, events_max: 1_000, bytes_max: 4 << 20 }
    }
}

/// One attempt to apply one message: what is known of it, and what is to happen if it commits.
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
///     turn.emit("points.earned", &json!({ "member": turn.key(), "points": earned.points }))?;
///     turn.reply(&json!({ "balance": balance }))
/// }
/// # }
///
/// perkey::testing::Given::handler(Points)
///     .when(json!({ "member": "ann", "points": 30 }))
///     .then_events(["points.earned"])
///     .then_reply(json!({ "balance": 30 }));
/// ```
#[derive(Debug)]
pub struct Turn {
    message: Message,
    attempt: u32,
    now: Millis,
    limits: TurnLimits,
    bytes: usize,
    effects: Effects,
}

/// Everything that a settled turn does when its commit succeeds.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// Events, in the order emitted.
    pub events: Vec<Emitted>,
    /// Rows of the handler's tables.
    pub rows: Vec<RowWrite>,
    /// Statements, in order, after all rows.
    pub statements: Vec<Statement>,
    /// The reply, as JSON.
    pub reply: Option<Bytes>,
    /// The key's state is deleted.
    pub forget: bool,
    /// Commands for other keys, in the order sent.
    pub sent: Vec<Sent>,
    /// Timers set and cancelled, in order.
    pub timers: Vec<Scheduled>,
    /// The saga that whatever it sends and emits belongs to, where that is not its message's.
    pub saga: Option<String>,
}

/// A timer as a handler set or cancelled it.
#[derive(Clone, Debug)]
pub struct Scheduled {
    /// Its name.
    pub name: String,
    /// The time at which it fires, and the JSON of the message that it then becomes; `None` cancels it.
    pub set: Option<(Millis, Bytes)>,
}

/// An event as a handler emitted it: not yet numbered.
#[derive(Clone, Debug)]
pub struct Emitted {
    /// CloudEvents `type`.
    pub kind: String,
    /// JSON, or what the content type says.
    pub payload: Bytes,
    /// Its media type, where it is not JSON.
    pub content_type: Option<&'static str>,
}

/// One row of a handler's table to write, or to delete.
#[derive(Clone, Debug)]
pub struct RowWrite {
    /// The table.
    pub table: Table,
    /// Primary key as canonical JSON array: rows are coalesced and sorted by it.
    pub key: String,
    /// The row as a JSON object; `None` deletes it.
    pub row: Option<String>,
}

impl Turn {
    /// A turn over `message`. Handlers are given one; tests may make their own.
    ///
    /// ```
    /// use perkey::testing::TurnLimits;
    /// use perkey::{Draft, Fault, Turn};
    ///
    /// let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// let turn = Turn::new(message, 1, 0, TurnLimits::default());
    /// assert_eq!(turn.key(), "ann");
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn new(message: Message, attempt: u32, now: Millis, limits: TurnLimits) -> Self {
        Self { message, attempt, now, limits, bytes: 0, effects: Effects::default() }
    }

    /// The message's id.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// assert_eq!(turn.id(), "m-1");
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn id(&self) -> &str {
        self.message.id()
    }

    /// The key whose turn this is.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// assert_eq!(turn.key(), "ann");
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn key(&self) -> &str {
        self.message.key()
    }

    /// The whole message, with its headers.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// assert_eq!(turn.message().kind(), "earned");
    /// assert_eq!(turn.message().header("traceparent"), None);
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The number of this attempt, from 1.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// if turn.attempt() > 3 {
    ///     return Err(Fault::reject("three attempts are enough"));
    /// }
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Wall time at the start of the turn, in milliseconds since the epoch.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// let in_a_minute = turn.now() + 60_000;
    /// assert_eq!(in_a_minute, 61_000);
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn now(&self) -> Millis {
        self.now
    }

    /// A key for another system's own idempotency: the same on each attempt of this message, different for each `name`.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// let charge = turn.token("charge");
    /// assert_eq!(charge, turn.token("charge"), "each attempt sends the same one");
    /// assert_ne!(charge, turn.token("refund"));
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn token(&self, name: &str) -> Uuid {
        let scope = Uuid::new_v5(&Uuid::NAMESPACE_OID, self.message.key().as_bytes());
        let id = Uuid::new_v5(&scope, self.message.id().as_bytes());
        Uuid::new_v5(&id, name.as_bytes())
    }

    /// Writes a row of one of the handler's tables in this turn's commit, replacing the one with the same primary key.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// # use perkey::{Column, ColumnKind, Row, Table};
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
    /// turn.write(&Balance { member: "ann".to_owned(), points: 30 })?;
    ///
    /// let others = turn.write(&Balance { member: "bob".to_owned(), points: 30 });
    /// assert!(others.is_err(), "the table's key column holds the key of the turn");
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn write<R: Row>(&mut self, row: &R) -> Result<(), Fault> {
        let value = serde_json::to_value(row)?;
        let key = R::TABLE.key_of(&value, self.key())?;
        let text = value.to_string();
        self.grow(text.len())?;
        self.push_row(RowWrite { table: R::TABLE, key, row: Some(text) })
    }

    /// Deletes the row whose primary key has these values (an object with the key columns) in this turn's commit.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// # use perkey::{Column, ColumnKind, Row, Table};
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
    /// turn.delete::<Balance>(&json!({ "member": "ann" }))?;
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn delete<R: Row>(&mut self, key: &Value) -> Result<(), Fault> {
        let key = R::TABLE.key_of(key, self.key())?;
        self.push_row(RowWrite { table: R::TABLE, key, row: None })
    }

    /// Runs a statement of SQL in this turn's commit, for what rows cannot say: `UPDATE … SET n = n + $1`. It runs after the
    /// rows of all turns of the commit, in the order of the turns; what it answers is not read. `args` is a tuple, an array
    /// or a list of null, booleans, numbers and text; on PostgreSQL a text for a column of another type needs a cast
    /// (`$1::uuid`). Where the database refuses it, the turn fails as for a row that is refused.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// turn.execute("UPDATE totals SET points = points + $1 WHERE day = $2", &(30, "2026-01-31"))?;
    ///
    /// assert!(turn.execute("COMMIT", &()).is_err());
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn execute(&mut self, sql: &str, args: &impl Serialize) -> Result<(), Fault> {
        let statement = Statement::new(sql, args)?;
        if self.effects.statements.len() >= self.limits.rows_max {
            return Err(self.over("statements", "rows", self.limits.rows_max));
        }
        self.grow(statement.bytes())?;
        self.effects.statements.push(statement);
        Ok(())
    }

    /// Emits an event of this key. It leaves after the commit, in the order of the key's turns, to where `[[bind]]` and
    /// `[[publish]]` of the settings lead it; where none does, it goes nowhere.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// let member = turn.key().to_owned();
    /// turn.emit("points.earned", &json!({ "member": member, "points": 30 }))?;
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn emit(&mut self, kind: &str, payload: &impl Serialize) -> Result<(), Fault> {
        self.push_event(kind, serde_json::to_vec(payload)?, None)
    }

    /// Emits an event whose payload and content type are `schema`'s. A payload that does not fit the schema is a fault.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// use perkey::Json;
    ///
    /// // `Protobuf` in the place of `Json` writes what its schema says.
    /// turn.emit_as(&Json, "points.earned", &json!({ "points": 30 }))?;
    /// assert_eq!(turn.effects().events[0].content_type, Some("application/json"));
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn emit_as(&mut self, schema: &dyn Schema, kind: &str, payload: &impl Serialize) -> Result<(), Fault> {
        let payload = schema.encode(&serde_json::to_value(payload)?)?;
        self.push_event(kind, payload, Some(schema.content_type()))
    }

    fn push_event(&mut self, kind: &str, payload: Vec<u8>, content_type: Option<&'static str>) -> Result<(), Fault> {
        check_name("type", kind.as_bytes()).map_err(Fault::reject)?;
        if self.effects.events.len() >= self.limits.events_max {
            return Err(self.over("events", "events", self.limits.events_max));
        }
        self.grow(payload.len())?;
        self.effects.events.push(Emitted { kind: kind.to_owned(), payload: payload.into(), content_type });
        Ok(())
    }

    /// Sends a command to a key of another handler, or of this one, with this turn's commit. It is handled once, behind
    /// what the key has in hand by then. Commands of one key's turns to another key arrive in the order sent.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// # use perkey::unstable::handler::example::Points;
    ///
    /// turn.send::<Points>("bob", &json!({ "member": "bob", "points": 10 }))?;
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn send<H: Handler>(&mut self, key: impl Into<Key>, command: &impl Serialize) -> Result<(), Fault> {
        self.put::<H>(key.into(), command, None)
    }

    /// Sends a command like [`Turn::send`], and asks how it ends: this key gets a message that [`Handler::answer`] makes of the answer.
    /// `name` comes back with it, and tells this handler's questions apart.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// # use perkey::unstable::handler::example::Points;
    ///
    /// // `Handler::answer` of the handler that asks is told how it ended.
    /// turn.ask::<Points>("gift", "bob", &json!({ "member": "bob", "points": 10 }))?;
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn ask<H: Handler>(&mut self, name: &str, key: impl Into<Key>, command: &impl Serialize) -> Result<(), Fault> {
        check_name("name", name.as_bytes()).map_err(Fault::reject)?;
        self.put::<H>(key.into(), command, Some(name.to_owned()))
    }

    /// Sets the key's timer of this name, with this turn's commit: at `at` (milliseconds since the epoch) or soon after,
    /// `message` is handled by this handler under this key, once, behind what the key has in hand by then. Setting it
    /// again before its turn begins moves it. While the key waits or is held, it waits, too.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// let in_a_minute = turn.now() + 60_000;
    /// turn.schedule("expiry", in_a_minute, &json!({ "do": "expire", "member": "ann" }))?;
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn schedule(&mut self, name: &str, at: Millis, message: &impl Serialize) -> Result<(), Fault> {
        let message = serde_json::to_vec(message)?;
        self.grow(message.len())?;
        self.push_timer(name, Some((at, message.into())))
    }

    /// Cancels the key's timer of this name, with this turn's commit; there may be none. A timer whose turn has not begun
    /// by then never fires.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// turn.cancel("expiry")?;
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn cancel(&mut self, name: &str) -> Result<(), Fault> {
        self.push_timer(name, None)
    }

    fn push_timer(&mut self, name: &str, set: Option<(Millis, Bytes)>) -> Result<(), Fault> {
        check_name("name", name.as_bytes()).map_err(Fault::reject)?;
        if name.starts_with(CRON) {
            let reason = "names that begin with cron: are of schedules (Handler::schedules); take another";
            return Err(Fault::reject(format!("the timer {name:?} cannot be set or cancelled by a turn: {reason}")));
        }
        if self.effects.timers.len() >= self.limits.events_max {
            return Err(self.over("timers", "events", self.limits.events_max));
        }
        self.effects.timers.push(Scheduled { name: name.to_owned(), set });
        Ok(())
    }

    fn put<H: Handler>(&mut self, key: Key, command: &impl Serialize, ask: Option<String>) -> Result<(), Fault> {
        check_name("key", key.as_str().as_bytes()).map_err(Fault::reject)?;
        if self.effects.sent.len() >= self.limits.events_max {
            return Err(self.over("commands", "events", self.limits.events_max));
        }
        let payload = serde_json::to_vec(command)?;
        self.grow(payload.len())?;
        self.effects.sent.push(Sent { service: H::SERVICE, key, payload: payload.into(), ask });
        Ok(())
    }

    /// Sets the reply; the last one counts. It reaches a handler that used [`Turn::ask`], and the sender of a call (a command
    /// through Perkey's gateway). Of messages from a source or by `Engine::send` nobody hears it.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// turn.reply(&json!({ "balance": 30 }))?;
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn reply(&mut self, payload: &impl Serialize) -> Result<(), Fault> {
        let payload = serde_json::to_vec(payload)?;
        self.grow(payload.len())?;
        self.effects.reply = Some(payload.into());
        Ok(())
    }

    /// Deletes the key's state with this turn's commit; what the turn makes of it is dropped. The key's next message
    /// finds `State::default()`.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// turn.forget();
    /// assert!(turn.effects().forget);
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn forget(&mut self) {
        self.effects.forget = true;
    }

    /// Makes this the saga that the turn belongs to: its events, commands and timers carry the id as their header
    /// `sagaid`, and so does what follows from them. Where it is not set, that of the turn's message is carried on.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// let order = turn.key().to_owned();
    /// turn.set_saga(&order);
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn set_saga(&mut self, id: &str) {
        self.effects.saga = Some(id.to_owned());
    }

    /// Everything that the handler put on the turn.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// turn.emit("points.earned", &json!({ "points": 30 }))?;
    /// assert_eq!(turn.effects().events[0].kind, "points.earned");
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn effects(&self) -> &Effects {
        &self.effects
    }

    /// Takes everything that the handler put on the turn.
    ///
    /// ```
    /// # use perkey::{Draft, Fault, Turn, json};
    /// # let message = Draft { id: "m-1", key: "ann", kind: "earned", ..Draft::default() }.build()?;
    /// # let mut turn = Turn::new(message, 1, 1_000, Default::default());
    /// turn.reply(&json!({ "balance": 30 }))?;
    /// let effects = turn.into_effects();
    /// assert!(effects.reply.is_some());
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn into_effects(self) -> Effects {
        self.effects
    }

    fn push_row(&mut self, row: RowWrite) -> Result<(), Fault> {
        if self.effects.rows.len() >= self.limits.rows_max {
            return Err(self.over("rows", "rows", self.limits.rows_max));
        }
        self.effects.rows.push(row);
        Ok(())
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Fault> {
        self.bytes += bytes;
        if self.bytes > self.limits.bytes_max {
            return Err(self.over("bytes", "bytes", self.limits.bytes_max));
        }
        Ok(())
    }

    fn over(&self, what: &str, limit: &str, max: usize) -> Fault {
        Fault::Reject(format!("the turn has more than {max} {what}; see limits.turn_{limit}_max"))
    }
}
