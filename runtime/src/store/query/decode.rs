//! Rows of either database as the store's own values.
//! In: rows. Out: values, or what does not decode.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::calls::{CallOutcome, CallRecord, KeyCount, hash};
use super::sql::Cells;
use super::{CommandState, CommitRow, EventRow, ImportProgress, OpenCommand, Pause, Scope, ShardRow, Strange};
use crate::handler::CallId;
use crate::message::ShardNo;
use crate::store::commit::stretches;
use crate::store::layout::{self, message};
use crate::store::{DeadLetter, HistoryRow, OldLetter, PendingRow, ServiceKey, StoreError, TakenShard, Timer};

pub(in crate::store) const SHARD: &str = "shard::bigint, epoch, commit_no, outbox_seq, last_seq, unclean, \
    positions::text, watermarks::text, counters::text, ahead";
pub(in crate::store) const PENDING: &str =
    "seq, service, key, kind, due_at, taken_id, taken_at, attempt, message, history, starts";
pub(in crate::store) const DEAD: &str = "seq, service, key, taken_id, at, taken_at, error, holds_key, history, message";
pub(in crate::store) const HISTORY: &str = "service, key, id, at, attempt, generation, what, error";
pub(in crate::store) const CALL: &str = "id, fingerprint, message_id, accepted_at, expires_at, ended, code, body";

/// Asks for the services' numbers.
pub(in crate::store) const NUMBERS: &str = "SELECT name, number::bigint FROM services";

/// A row of [`SHARD`].
pub(in crate::store) fn shard(row: &impl Cells) -> Result<TakenShard, StoreError> {
    Ok(TakenShard {
        shard: row.number(0)?,
        epoch: row.number(1)?,
        commit_no: row.number(2)?,
        outbox_seq: row.number(3)?,
        last_seq: row.number(4)?,
        unclean: row.number(5)?,
        died: false,
        positions: row.json(6)?,
        watermarks: row.json(7)?,
        counters: row.json(8)?,
        ahead: layout::ahead(row.get(9)?)?,
    })
}

/// A row of [`SHARD`], the owner, and what is unread, waits, is dead and holds keys.
pub(in crate::store) fn shown(row: &impl Cells) -> Result<ShardRow, StoreError> {
    let shard = shard(row)?;
    Ok(ShardRow {
        shard: shard.shard,
        owner: row.get(10)?,
        epoch: shard.epoch,
        commit_no: shard.commit_no,
        unclean: shard.unclean,
        unread: row.number(11)?,
        pending: row.number(12)?,
        waiting_keys: row.number(13)?,
        dead_letters: row.number(14)?,
        held_keys: row.number(15)?,
        outbox_seq: shard.outbox_seq,
        positions: shard.positions,
        ahead: stretches(&shard.ahead),
        watermarks: shard.watermarks,
        counters: shard.counters,
    })
}

/// A row of [`PENDING`].
pub(in crate::store) fn pending(row: &impl Cells) -> Result<PendingRow, StoreError> {
    Ok(PendingRow {
        seq: row.number(0)?,
        service: row.text(1)?,
        key: row.text(2)?,
        kind: row.get::<&str>(3)?.parse()?,
        due_at: row.maybe(4)?,
        id: layout::id(row.get(5)?)?,
        taken_at: row.number(6)?,
        attempt: row.number(7)?,
        message: message(row.blob(8)?)?,
        history: row.json(9)?,
        starts: row.number(10)?,
    })
}

/// A row of service, key, name, due time and message.
pub(in crate::store) fn timer(row: &impl Cells) -> Result<Timer, StoreError> {
    Ok(Timer {
        of: ServiceKey { service: row.text(0)?, key: row.text(1)? },
        name: row.text(2)?,
        due_at: row.number(3)?,
        message: message(row.blob(4)?)?,
    })
}

/// A row of [`DEAD`].
pub(in crate::store) fn dead(row: &impl Cells) -> Result<DeadLetter, StoreError> {
    Ok(DeadLetter {
        seq: row.number(0)?,
        service: row.text(1)?,
        key: row.text(2)?,
        id: layout::id(row.get(3)?)?,
        at: row.number(4)?,
        taken_at: row.number(5)?,
        error: row.string(6)?,
        holds_key: row.get(7)?,
        history: row.json(8)?,
        message: message(row.blob(9)?)?,
    })
}

/// A row of number, service, key, id and message's id.
pub(in crate::store) fn old(row: &impl Cells) -> Result<OldLetter, StoreError> {
    let (service, key, id) = (row.text(1)?, row.text(2)?, layout::id(row.get(3)?)?);
    Ok(OldLetter { seq: row.number(0)?, service, key, id, message_id: row.string(4)? })
}

/// A row of [`HISTORY`].
pub(in crate::store) fn history(row: &impl Cells) -> Result<HistoryRow, StoreError> {
    Ok(HistoryRow {
        service: row.text(0)?,
        key: row.text(1)?,
        id: row.string(2)?,
        at: row.number(3)?,
        attempt: row.number(4)?,
        generation: row.number(5)?,
        what: row.string(6)?,
        error: row.string(7)?,
    })
}

/// A row that begins with shard, commit_no, epoch, at and first_seq: the commit, and its events of column `events`.
pub(in crate::store) fn commit(
    row: &impl Cells,
    events: usize,
    names: &BTreeMap<u16, Arc<str>>,
) -> Result<(CommitRow, Vec<EventRow>), StoreError> {
    let commit = CommitRow { shard: row.number(0)?, no: row.number(1)?, epoch: row.number(2)?, at: row.number(3)? };
    let events = layout::events(&commit, row.number(4)?, row.blob(events)?, |no| names.get(&no).cloned())?;
    Ok((commit, events))
}

/// A row of service, key, who, why and since when.
pub(in crate::store) fn pause(row: &impl Cells) -> Result<Pause, StoreError> {
    let key = row.get::<Option<&str>>(1)?.map(|_| row.string(1)).transpose()?;
    let scope = Scope { service: row.string(0)?, key };
    Ok(Pause { scope, who: row.get(2)?, why: row.get(3)?, since: row.number(4)? })
}

/// A row of number, action, filter and who.
pub(in crate::store) fn command(row: &impl Cells) -> Result<Result<OpenCommand, Strange>, StoreError> {
    let id = row.get(0)?;
    let read = || Ok(OpenCommand { id, action: row.json(1)?, filter: row.json(2)?, who: row.get(3)? });
    Ok(read().map_err(|error: StoreError| Strange { id, error: error.to_string() }))
}

/// A row of shards that are done, shards, messages changed.
pub(in crate::store) fn command_state(row: &impl Cells) -> Result<CommandState, StoreError> {
    Ok(CommandState { shards_done: row.number(0)?, shards: row.number(1)?, affected: row.number(2)? })
}

/// A row of lines, messages, rejects, their bytes, hash.
pub(in crate::store) fn progress(row: &impl Cells) -> Result<ImportProgress, StoreError> {
    Ok(ImportProgress {
        lines: row.number(0)?,
        messages: row.number(1)?,
        rejects: row.number(2)?,
        rejects_bytes: row.number(3)?,
        lines_hash: row.get(4)?,
    })
}

/// A row of [`CALL`].
pub(in crate::store) fn call(row: &impl Cells) -> Result<CallRecord, StoreError> {
    let outcome = match row.get::<Option<&str>>(5)? {
        Some(end) => Some(CallOutcome { end: end.parse()?, code: row.string(6)?, body: row.blob(7)? }),
        None => None,
    };
    Ok(CallRecord {
        id: CallId(hash(row.get(0)?)?),
        fingerprint: hash(row.get(1)?)?,
        message_id: row.string(2)?,
        accepted_at: row.number(3)?,
        expires_at: row.number(4)?,
        outcome,
    })
}

/// A row of tenant, time and number.
pub(in crate::store) fn key_count(row: &impl Cells) -> Result<KeyCount, StoreError> {
    Ok(KeyCount { tenant: row.string(0)?, until: row.number(1)?, records: row.number(2)? })
}

/// A row of a shard and a number.
pub(in crate::store) fn by_shard(row: &impl Cells) -> Result<(ShardNo, u64), StoreError> {
    Ok((row.number(0)?, row.number(1)?))
}

/// Rows of a service's name and number.
pub(in crate::store) fn services<R: Cells>(rows: &[R]) -> Result<BTreeMap<Arc<str>, u16>, StoreError> {
    rows.iter().map(|row| Ok((row.text(0)?, row.number(1)?))).collect()
}
