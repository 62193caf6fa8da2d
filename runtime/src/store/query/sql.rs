//! The interface through which a statement is written once for both databases.
//! In: SQL as PostgreSQL has it, arguments. Out: rows, whose columns are read by their places.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::{Decode, Postgres, Sqlite, Type};

use super::rows::Dialect;
use crate::store::StoreError;

/// A value that both databases can have in a column.
pub(in crate::store) trait SqlCell<'r>:
    Decode<'r, Postgres> + Type<Postgres> + Decode<'r, Sqlite> + Type<Sqlite>
{
}

impl<'r, T> SqlCell<'r> for T where T: Decode<'r, Postgres> + Type<Postgres> + Decode<'r, Sqlite> + Type<Sqlite> {}

/// A row of either database.
pub(in crate::store) trait Cells {
    /// The value of the column, as the type that it should have.
    fn get<'r, T: SqlCell<'r>>(&'r self, at: usize) -> Result<T, StoreError>;

    /// The text whose stored form is `stored`.
    fn given(stored: &str) -> Cow<'_, str> {
        Cow::Borrowed(stored)
    }

    /// A number that is never negative.
    fn number<T: TryFrom<i64>>(&self, at: usize) -> Result<T, StoreError> {
        whole(self.get(at)?, at)
    }

    /// A number that may be missing.
    fn maybe<T: TryFrom<i64>>(&self, at: usize) -> Result<Option<T>, StoreError> {
        let raw: Option<i64> = self.get(at)?;
        raw.map(|raw| whole(raw, at)).transpose()
    }

    /// A text, whatever characters it has.
    fn text(&self, at: usize) -> Result<Arc<str>, StoreError> {
        self.get::<&str>(at).map(|stored| Arc::from(Self::given(stored)))
    }

    /// A text, whatever characters it has, as a string.
    fn string(&self, at: usize) -> Result<String, StoreError> {
        self.get::<&str>(at).map(|stored| Self::given(stored).into_owned())
    }

    /// Bytes.
    fn blob(&self, at: usize) -> Result<Bytes, StoreError> {
        self.get::<&[u8]>(at).map(Bytes::copy_from_slice)
    }

    /// A text that is JSON, read.
    fn json<T: DeserializeOwned>(&self, at: usize) -> Result<T, StoreError> {
        serde_json::from_str(self.get(at)?).map_err(|error| StoreError::Corrupt(error.to_string()))
    }
}

fn whole<T: TryFrom<i64>>(raw: i64, at: usize) -> Result<T, StoreError> {
    T::try_from(raw).map_err(|_| StoreError::Corrupt(format!("number {raw} in column {at}")))
}

/// A number as a column has it. One that is too large becomes the largest, which is above all that is stored.
pub(in crate::store) fn signed(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// A value as JSON text.
pub(in crate::store) fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// The value of the one row of an answer.
pub(in crate::store) fn one<R, T>(rows: &[R], read: impl FnOnce(&R) -> Result<T, StoreError>) -> Result<T, StoreError> {
    rows.first().map_or_else(|| Err(StoreError::Corrupt("an answer without a row".to_owned())), read)
}

/// An argument of a statement.
pub(in crate::store) enum Arg<'a> {
    /// A number, or none.
    Number(Option<i64>),
    /// A text with any characters, or none: [`Cells::text`] reads it.
    Text(Option<&'a str>),
    /// A text as it is, known to have only characters that the database can hold.
    Plain(&'a str),
    /// Bytes.
    Blob(&'a [u8]),
    /// A value of a handler's table.
    Value(&'a Value),
}

impl Arg<'_> {
    /// A number.
    pub(in crate::store) fn number(number: impl TryInto<i64>) -> Self {
        Self::Number(Some(signed(number)))
    }

    /// A number, or none.
    pub(in crate::store) fn maybe(number: Option<u64>) -> Self {
        Self::Number(number.map(signed))
    }
}

/// A database for queries.
pub(in crate::store) trait Sql: Sync {
    /// A row of the database.
    type Row: Cells + Send + Sync;

    /// Its way to write the parts of SQL that differ.
    const DIALECT: Dialect;
    /// Positions of the embedded log, one row per shard and origin, for `WITH`.
    const POSITIONS: &str;
    /// The column of `history` that rises with each line.
    const LINE: &str;

    /// Commits of shard $1 from number $2 on that have events, at most $3, in order: two of them, and as many more as have $4
    /// bytes of events with those before. Their shard, number, epoch, time, first event and events.
    const PAGE: &str;

    /// The expression that is true if `what` lies somewhere in `place`, both of them texts or both bytes.
    fn holds(place: &str, what: &str) -> String;

    /// The rows of an argument that is a JSON array of numbers, each with one of them as `value`.
    fn each(array: &str) -> String;

    /// All rows of a statement that only reads. Its arguments are `$1`, `$2`, …, and a type stands behind `::`, as
    /// PostgreSQL has it.
    fn rows(&self, sql: &str, args: &[Arg<'_>]) -> impl Future<Output = Result<Vec<Self::Row>, StoreError>> + Send;

    /// Hands rows of such a statement to `take`, one by one, until it has enough; if they come all at once, at most
    /// `most` of them.
    fn scan(
        &self,
        sql: &str,
        args: &[Arg<'_>],
        most: usize,
        take: impl FnMut(&Self::Row) -> Result<bool, StoreError> + Send,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}
