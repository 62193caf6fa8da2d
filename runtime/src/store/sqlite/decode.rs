//! Rows of SQLite as the store's own values.
//! In: rows. Out: values, or what does not decode.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;
use sqlx::{Decode, Row, Sqlite, Type};

use crate::message::TakenId;
use crate::store::layout::{self, message};
use crate::store::{DeadLetter, HistoryRow, PendingRow, ServiceKey, StoreError, TakenShard, Timer};

pub(super) const SHARD: &str =
    "shard, epoch, commit_no, outbox_seq, last_seq, unclean, positions, watermarks, counters, ahead";
pub(super) const PENDING: &str =
    "seq, service, key, kind, due_at, taken_id, taken_at, attempt, message, history, starts";
pub(super) const DEAD: &str = "seq, service, key, taken_id, at, taken_at, error, holds_key, history, message";
pub(super) const HISTORY: &str = "service, key, id, at, attempt, generation, what, error";

/// A column, of whatever type it should have.
pub(super) fn get<'r, T: Decode<'r, Sqlite> + Type<Sqlite>>(row: &'r SqliteRow, at: usize) -> Result<T, StoreError> {
    row.try_get(at).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// A number that is never negative.
pub(super) fn number<T: TryFrom<i64>>(row: &SqliteRow, at: usize) -> Result<T, StoreError> {
    let raw: i64 = get(row, at)?;
    T::try_from(raw).map_err(|_| StoreError::Corrupt(format!("number {raw} in column {at}")))
}

/// A number that may be missing.
pub(super) fn maybe<T: TryFrom<i64>>(row: &SqliteRow, at: usize) -> Result<Option<T>, StoreError> {
    let raw: Option<i64> = get(row, at)?;
    let Some(raw) = raw else { return Ok(None) };
    T::try_from(raw).map(Some).map_err(|_| StoreError::Corrupt(format!("number {raw} in column {at}")))
}

pub(super) fn text(row: &SqliteRow, at: usize) -> Result<Arc<str>, StoreError> {
    get::<&str>(row, at).map(Arc::from)
}

pub(super) fn blob(row: &SqliteRow, at: usize) -> Result<Bytes, StoreError> {
    get::<&[u8]>(row, at).map(Bytes::copy_from_slice)
}

pub(super) fn json<T: DeserializeOwned>(row: &SqliteRow, at: usize) -> Result<T, StoreError> {
    serde_json::from_str(get(row, at)?).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn id(row: &SqliteRow, at: usize) -> Result<TakenId, StoreError> {
    layout::id(get(row, at)?)
}

/// A row of [`SHARD`].
pub(super) fn shard(row: &SqliteRow) -> Result<TakenShard, StoreError> {
    Ok(TakenShard {
        shard: number(row, 0)?,
        epoch: number(row, 1)?,
        commit_no: number(row, 2)?,
        outbox_seq: number(row, 3)?,
        last_seq: number(row, 4)?,
        unclean: number(row, 5)?,
        died: false,
        positions: json(row, 6)?,
        watermarks: json(row, 7)?,
        counters: json(row, 8)?,
        ahead: layout::ahead(get(row, 9)?)?,
    })
}

/// A row of [`PENDING`].
pub(super) fn pending(row: &SqliteRow) -> Result<PendingRow, StoreError> {
    Ok(PendingRow {
        seq: number(row, 0)?,
        service: text(row, 1)?,
        key: text(row, 2)?,
        kind: get::<&str>(row, 3)?.parse()?,
        due_at: maybe(row, 4)?,
        id: id(row, 5)?,
        taken_at: number(row, 6)?,
        attempt: number(row, 7)?,
        message: message(blob(row, 8)?)?,
        history: json(row, 9)?,
        starts: number(row, 10)?,
    })
}

/// A row of service, key, name, due time and message.
pub(super) fn timer(row: &SqliteRow) -> Result<Timer, StoreError> {
    Ok(Timer {
        of: ServiceKey { service: text(row, 0)?, key: text(row, 1)? },
        name: text(row, 2)?,
        due_at: number(row, 3)?,
        message: message(blob(row, 4)?)?,
    })
}

/// A row of [`DEAD`].
pub(super) fn dead(row: &SqliteRow) -> Result<DeadLetter, StoreError> {
    Ok(DeadLetter {
        seq: number(row, 0)?,
        service: text(row, 1)?,
        key: text(row, 2)?,
        id: id(row, 3)?,
        at: number(row, 4)?,
        taken_at: number(row, 5)?,
        error: get(row, 6)?,
        holds_key: get(row, 7)?,
        history: json(row, 8)?,
        message: message(blob(row, 9)?)?,
    })
}

/// A row of [`HISTORY`].
pub(super) fn history(row: &SqliteRow) -> Result<HistoryRow, StoreError> {
    Ok(HistoryRow {
        service: text(row, 0)?,
        key: text(row, 1)?,
        id: get(row, 2)?,
        at: number(row, 3)?,
        attempt: number(row, 4)?,
        generation: number(row, 5)?,
        what: get(row, 6)?,
        error: get(row, 7)?,
    })
}
