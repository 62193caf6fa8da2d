//! What a user of Perkey writes and imports: a handler, the turn it works on, the fault it may answer.
//! In: one message and the state of its key. Out: the changed state and what the turn is to do when it commits.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use crate::clock::Millis;
use crate::message::{Key, Message};
use crate::pipeline::retry::RetryPolicy;

/// Handles the messages of one service: one key's at a time, in order, each taking effect exactly once.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "implement `perkey::Handler` for it: SERVICE, Message, State, key and handle"
)]
pub trait Handler: Send + Sync + 'static {
    /// The handler's public name: part of every message's scope, so it must never change.
    const SERVICE: &'static str;
    /// Rises when the stored form of [`Handler::State`] changes.
    const STATE_VERSION: u32 = 1;
    /// What it understands; decoded from JSON. A payload that does not decode is rejected, never retried.
    type Message: DeserializeOwned + Send;
    /// What it remembers for each key; stored as JSON in the commit of the turn that changed it.
    type State: Default + Clone + Serialize + DeserializeOwned + Send + 'static;

    /// The key of a message that arrives without one (a command, an import, a `key = "handler"` binding).
    fn key(&self, message: &Self::Message) -> Key;

    /// Handles one message. On any fault the change of `state` and everything put on the turn are dropped.
    fn handle(
        &self,
        state: &mut Self::State,
        message: Self::Message,
        turn: &mut Turn,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// What happens to the messages of a key behind a dead letter.
    fn after_dead_letter(&self) -> AfterDeadLetter {
        AfterDeadLetter::Continue
    }

    /// The retry policy, when it is to differ from the settings'.
    fn retry(&self) -> Option<RetryPolicy> {
        None
    }

    /// The tables that [`Turn::write`] fills; made at start where they do not exist.
    fn tables(&self) -> Vec<Table> {
        Vec::new()
    }
}

/// What happens to a key after one of its messages became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDeadLetter {
    /// Its later messages go on.
    Continue,
    /// Its later messages wait until an operator replays or discards the dead letter.
    HoldKey,
}

/// How a turn fails. `?` on any error gives [`Fault::Retry`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Try again later: spends an attempt, with full jitter between attempts.
    Retry(String),
    /// Never try again: a dead letter now.
    Reject(String),
    /// Try again after this long: spends no attempt, bounded by `retry.give_up_after`.
    Defer(Duration),
}

impl Fault {
    /// [`Fault::Reject`] with a reason.
    pub fn reject(reason: impl fmt::Display) -> Self {
        Self::Reject(reason.to_string())
    }

    /// [`Fault::Retry`] with a reason.
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

/// Bounds of what one turn may put into its commit; checked as the handler goes.
#[derive(Clone, Copy, Debug)]
pub struct TurnLimits {
    /// Rows written or deleted.
    pub rows_max: usize,
    /// Events emitted.
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
#[derive(Debug)]
pub struct Turn {
    message: Message,
    attempt: u32,
    now: Millis,
    limits: TurnLimits,
    bytes: usize,
    effects: Effects,
}

/// What a settled turn does when its commit succeeds.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// Events, in the order emitted.
    pub events: Vec<Emitted>,
    /// Rows of the handler's tables.
    pub rows: Vec<RowWrite>,
    /// The reply, as JSON.
    pub reply: Option<Bytes>,
}

/// An event as a handler emitted it: not yet numbered.
#[derive(Clone, Debug)]
pub struct Emitted {
    /// CloudEvents `type`.
    pub kind: String,
    /// JSON.
    pub payload: Bytes,
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
    pub fn new(message: Message, attempt: u32, now: Millis, limits: TurnLimits) -> Self {
        Self { message, attempt, now, limits, bytes: 0, effects: Effects::default() }
    }

    /// The message's id.
    pub fn id(&self) -> &str {
        self.message.id()
    }

    /// The key whose turn this is.
    pub fn key(&self) -> &str {
        self.message.key()
    }

    /// The whole message, with its headers.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Wall time at the start of the turn, in milliseconds since the epoch.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// A key for another system's own idempotency: the same on each attempt of this message, different for each `name`.
    pub fn token(&self, name: &str) -> Uuid {
        let scope = Uuid::new_v5(&Uuid::NAMESPACE_OID, self.message.key().as_bytes());
        let id = Uuid::new_v5(&scope, self.message.id().as_bytes());
        Uuid::new_v5(&id, name.as_bytes())
    }

    /// Writes a row of one of the handler's tables in this turn's commit, replacing the one with the same primary key.
    pub fn write<R: Row>(&mut self, row: &R) -> Result<(), Fault> {
        let value = serde_json::to_value(row)?;
        let key = R::TABLE.key_of(&value, self.key())?;
        let text = value.to_string();
        self.grow(text.len())?;
        self.push_row(RowWrite { table: R::TABLE, key, row: Some(text) })
    }

    /// Deletes the row whose primary key has these values (an object with the key columns) in this turn's commit.
    pub fn delete<R: Row>(&mut self, key: &Value) -> Result<(), Fault> {
        let key = R::TABLE.key_of(key, self.key())?;
        self.push_row(RowWrite { table: R::TABLE, key, row: None })
    }

    /// Emits an event of this key. It leaves after the commit, in the order of the key's turns.
    pub fn emit(&mut self, kind: &str, payload: &impl Serialize) -> Result<(), Fault> {
        crate::message::check_name("type", kind.as_bytes()).map_err(Fault::reject)?;
        if self.effects.events.len() >= self.limits.events_max {
            return Err(self.over("events", self.limits.events_max));
        }
        let payload = serde_json::to_vec(payload)?;
        self.grow(payload.len())?;
        self.effects.events.push(Emitted { kind: kind.to_owned(), payload: payload.into() });
        Ok(())
    }

    /// Sets the reply to whoever sent the command; the last one counts.
    pub fn reply(&mut self, payload: &impl Serialize) -> Result<(), Fault> {
        let payload = serde_json::to_vec(payload)?;
        self.grow(payload.len())?;
        self.effects.reply = Some(payload.into());
        Ok(())
    }

    /// What the handler put on the turn.
    pub fn effects(&self) -> &Effects {
        &self.effects
    }

    /// Takes what the handler put on the turn.
    pub fn into_effects(self) -> Effects {
        self.effects
    }

    fn push_row(&mut self, row: RowWrite) -> Result<(), Fault> {
        if self.effects.rows.len() >= self.limits.rows_max {
            return Err(self.over("rows", self.limits.rows_max));
        }
        self.effects.rows.push(row);
        Ok(())
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Fault> {
        self.bytes += bytes;
        if self.bytes > self.limits.bytes_max {
            return Err(self.over("bytes", self.limits.bytes_max));
        }
        Ok(())
    }

    fn over(&self, what: &str, max: usize) -> Fault {
        Fault::Reject(format!("the turn has more than {max} {what}; see limits.turn_{what}_max"))
    }
}

/// A typed row of one of the handler's tables. Its serialised form is an object with the table's columns.
pub trait Row: Serialize {
    /// The table that it belongs to.
    const TABLE: Table;
}

/// A table of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name: lower-case letters, digits and `_`.
    pub name: &'static str,
    /// Its columns.
    pub columns: &'static [Column],
    /// The columns of its primary key.
    pub primary_key: &'static [&'static str],
    /// The primary-key column that holds the handler's key; `None` declares the table shared (the last commit wins).
    pub key_column: Option<&'static str>,
}

/// A column of a [`Table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name: lower-case letters, digits and `_`.
    pub name: &'static str,
    /// Its type.
    pub kind: ColumnKind,
    /// Whether it may be NULL.
    pub nullable: bool,
}

impl Column {
    /// A column that is NOT NULL.
    pub const fn new(name: &'static str, kind: ColumnKind) -> Self {
        Self { name, kind, nullable: false }
    }

    /// A column that may be NULL.
    pub const fn nullable(name: &'static str, kind: ColumnKind) -> Self {
        Self { name, kind, nullable: true }
    }
}

/// The types a column can have in every store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// Text.
    Text,
    /// A 64-bit signed integer.
    Integer,
    /// A 64-bit float.
    Real,
    /// True or false.
    Boolean,
    /// JSON.
    Json,
}

impl Table {
    fn key_of(&self, row: &Value, key: &str) -> Result<String, Fault> {
        if let Some(column) = self.key_column
            && row.get(column).and_then(Value::as_str) != Some(key)
        {
            let name = self.name;
            return Err(Fault::Reject(format!(
                "a row of table {name} must have this turn's key in column {column}; declare the table shared to write others'"
            )));
        }
        let mut values = Vec::with_capacity(self.primary_key.len());
        for column in self.primary_key {
            let value = row.get(*column).filter(|value| !value.is_null());
            let value = value.ok_or_else(|| {
                Fault::Reject(format!("a row of table {} lacks its primary key's column {column}", self.name))
            })?;
            values.push(value);
        }
        Ok(serde_json::to_string(&values)?)
    }
}
