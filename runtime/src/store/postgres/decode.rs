//! Rows of PostgreSQL as the store's own values, and texts as it can hold them: its text knows no U+0000.
//! In: rows, texts. Out: values, or what does not decode; texts that it can hold.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use sqlx::postgres::PgRow;
use sqlx::{Decode, Postgres, Row, Type};

use crate::store::layout::{self, message};
use crate::store::{DeadLetter, HistoryRow, PendingRow, ServiceKey, StoreError, TakenShard, Timer};

pub(super) const SHARD: &str = "shard::bigint, epoch, commit_no, outbox_seq, last_seq, unclean, positions::text, \
    watermarks::text, counters::text, ahead";
pub(super) const PENDING: &str =
    "seq, service, key, kind, due_at, taken_id, taken_at, attempt, message, history, starts";
pub(super) const DEAD: &str = "seq, service, key, taken_id, at, taken_at, error, holds_key, history, message";
pub(super) const HISTORY: &str = "service, key, id, at, attempt, generation, what, error";

/// A column, of whatever type it should have.
pub(super) fn get<'r, T: Decode<'r, Postgres> + Type<Postgres>>(row: &'r PgRow, at: usize) -> Result<T, StoreError> {
    row.try_get(at).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// A number that is never negative.
pub(super) fn number<T: TryFrom<i64>>(row: &PgRow, at: usize) -> Result<T, StoreError> {
    let raw: i64 = get(row, at)?;
    T::try_from(raw).map_err(|_| StoreError::Corrupt(format!("number {raw} in column {at}")))
}

/// A number that may be missing.
pub(super) fn maybe<T: TryFrom<i64>>(row: &PgRow, at: usize) -> Result<Option<T>, StoreError> {
    let raw: Option<i64> = get(row, at)?;
    let Some(raw) = raw else { return Ok(None) };
    T::try_from(raw).map(Some).map_err(|_| StoreError::Corrupt(format!("number {raw} in column {at}")))
}

/// A text that was written by [`stored`].
pub(super) fn text(row: &PgRow, at: usize) -> Result<Arc<str>, StoreError> {
    get::<&str>(row, at).map(|text| Arc::from(given(text)))
}

/// The same, as a string.
pub(super) fn string(row: &PgRow, at: usize) -> Result<String, StoreError> {
    get::<&str>(row, at).map(|text| given(text).into_owned())
}

pub(super) fn blob(row: &PgRow, at: usize) -> Result<Bytes, StoreError> {
    get::<&[u8]>(row, at).map(Bytes::copy_from_slice)
}

pub(super) fn json<T: DeserializeOwned>(row: &PgRow, at: usize) -> Result<T, StoreError> {
    serde_json::from_str(get(row, at)?).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// A row of [`SHARD`].
pub(super) fn shard(row: &PgRow) -> Result<TakenShard, StoreError> {
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
pub(super) fn pending(row: &PgRow) -> Result<PendingRow, StoreError> {
    Ok(PendingRow {
        seq: number(row, 0)?,
        service: text(row, 1)?,
        key: text(row, 2)?,
        kind: get::<&str>(row, 3)?.parse()?,
        due_at: maybe(row, 4)?,
        id: layout::id(get(row, 5)?)?,
        taken_at: number(row, 6)?,
        attempt: number(row, 7)?,
        message: message(blob(row, 8)?)?,
        history: json(row, 9)?,
        starts: number(row, 10)?,
    })
}

/// A row of service, key, name, due time and message.
pub(super) fn timer(row: &PgRow) -> Result<Timer, StoreError> {
    Ok(Timer {
        of: ServiceKey { service: text(row, 0)?, key: text(row, 1)? },
        name: text(row, 2)?,
        due_at: number(row, 3)?,
        message: message(blob(row, 4)?)?,
    })
}

/// A row of [`DEAD`].
pub(super) fn dead(row: &PgRow) -> Result<DeadLetter, StoreError> {
    Ok(DeadLetter {
        seq: number(row, 0)?,
        service: text(row, 1)?,
        key: text(row, 2)?,
        id: layout::id(get(row, 3)?)?,
        at: number(row, 4)?,
        taken_at: number(row, 5)?,
        error: string(row, 6)?,
        holds_key: get(row, 7)?,
        history: json(row, 8)?,
        message: message(blob(row, 9)?)?,
    })
}

/// A row of [`HISTORY`].
pub(super) fn history(row: &PgRow) -> Result<HistoryRow, StoreError> {
    Ok(HistoryRow {
        service: text(row, 0)?,
        key: text(row, 1)?,
        id: string(row, 2)?,
        at: number(row, 3)?,
        attempt: number(row, 4)?,
        generation: number(row, 5)?,
        what: string(row, 6)?,
        error: string(row, 7)?,
    })
}

/// Stands for itself when it comes twice, for U+0000 when a 0 follows.
const MARK: char = '\u{241B}';

/// `text` as it is stored.
pub(super) fn stored(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', MARK]) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\0' => escaped.extend([MARK, '0']),
            MARK => escaped.extend([MARK, MARK]),
            other => escaped.push(other),
        }
    }
    Cow::Owned(escaped)
}

/// The text that [`stored`] was given.
pub(super) fn given(text: &str) -> Cow<'_, str> {
    if !text.contains(MARK) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            MARK => plain.extend(chars.next().map(|next| if next == '0' { '\0' } else { next })),
            other => plain.push(other),
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_comes_back(text in "[a0\u{0}\u{241B}é]{0,12}") {
            let stored = stored(&text);
            prop_assert!(!stored.contains('\0'));
            prop_assert_eq!(given(&stored), text.as_str());
        }
    }
}
