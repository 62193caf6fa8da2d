//! What operators and tools ask of a SQLite store, and the little they write.
//! In: filters, commands, imports. Out: rows; writes that are one transaction each.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, query, query_scalar};

use super::args::Rows;
use super::read::{self, FILTER, bind_filter, count, signed};
use super::writer::{Writer, failed};
use super::{SqliteStore, decode, explain, schema, tables, waiting};
use crate::clock::Millis;
use crate::message::ShardNo;
use crate::store::append::OUTSIDE;
use crate::store::commit::stretches;
use crate::store::health::{self, Health};
use crate::store::query::{
    CommandState, CommitRow, DeadFilter, EventRow, FoundRows, ImportBatch, ImportProgress, NewCommand, OpenCommand,
    Pause, Queries, RowsAsk, ShardRow, Story, Strange, WaitingKey,
};
use crate::store::{DeadLetter, LogRow, ServiceKey, StoreError, StoreFuture, Timer, layout};

/// Positions of the embedded log, one row per shard and origin.
const POSITIONS: &str = "positions (shard, origin, no, passed) AS MATERIALIZED (
    SELECT s.shard, p.key, p.value->>'no', (p.value->>'index') + 1
    FROM shards s, json_each(s.positions, '$.embedded') p)";

/// Statements that begin with rows for the log. The lane's row is locked until the commit, so numbers become visible in
/// their order.
macro_rules! appending {
    ($then:literal) => {
        concat!(
            "BEGIN IMMEDIATE;
             INSERT INTO lanes (origin, no) VALUES ('import', 1) ON CONFLICT (origin) DO UPDATE SET no = no + 1;
             INSERT INTO log (target, origin, no, count, messages)
             SELECT value->>0, 'import', (SELECT no FROM lanes WHERE origin = 'import'), value->>1,
                 coalesce(substr(?, value->>2, value->>3), x'')
             FROM json_each(?);
             ",
            $then
        )
    };
}

const UNREAD: &str = "SELECT a.value, (SELECT coalesce(sum(l.count), 0) FROM log l
        LEFT JOIN positions p ON p.shard = l.target AND p.origin = l.origin
        WHERE l.target = a.value AND (l.no > coalesce(p.no, 0) OR (l.no = p.no AND l.count > p.passed)))
    FROM json_each(?1) a";

const COUNT_WAITING: &str = "SELECT a.value,
        (SELECT count(*) FROM (SELECT DISTINCT service, key FROM pending p WHERE p.shard = a.value))
    FROM json_each(?1) a";

impl Queries for SqliteStore {
    fn shards(&self) -> StoreFuture<'_, Vec<ShardRow>> {
        Box::pin(shards(&self.readers))
    }

    fn unread(&self, shards: Vec<ShardNo>) -> StoreFuture<'_, Vec<(ShardNo, u64)>> {
        Box::pin(async move { by_shard(&self.readers, format!("WITH {POSITIONS} {UNREAD}"), &shards).await })
    }

    fn count_waiting(&self, shards: Vec<ShardNo>) -> StoreFuture<'_, Vec<(ShardNo, u64)>> {
        Box::pin(async move { by_shard(&self.readers, COUNT_WAITING.to_owned(), &shards).await })
    }

    fn services(&self) -> StoreFuture<'_, BTreeMap<Arc<str>, u16>> {
        Box::pin(async move { schema::numbers(&mut *self.readers.acquire().await.map_err(failed)?).await })
    }

    fn peek(&self, filter: DeadFilter, limit: usize) -> StoreFuture<'_, Vec<(ShardNo, DeadLetter)>> {
        Box::pin(async move {
            let sql = format!(
                "SELECT {}, shard FROM dead_letters WHERE {FILTER} ORDER BY at DESC, shard, seq DESC LIMIT ?7",
                decode::DEAD
            );
            let rows = bind_filter!(query(AssertSqlSafe(sql)), filter).bind(count(limit));
            let rows = rows.fetch_all(&self.readers).await.map_err(failed)?;
            rows.iter().map(|row| Ok((decode::number(row, 10)?, decode::dead(row)?))).collect()
        })
    }

    fn count_dead(&self, filter: DeadFilter) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let sql = format!("SELECT count(*) FROM dead_letters WHERE {FILTER}");
            let row = bind_filter!(query(AssertSqlSafe(sql)), filter).fetch_one(&self.readers).await;
            decode::number(&row.map_err(failed)?, 0)
        })
    }

    fn explain(&self, text: String) -> StoreFuture<'_, Story> {
        Box::pin(async move { explain::story(&self.readers, &text).await })
    }

    fn events(&self, shard: ShardNo, after: u64, limit: usize) -> StoreFuture<'_, Vec<EventRow>> {
        Box::pin(events(&self.readers, shard, after, limit))
    }

    fn scheduled(&self, service: Option<String>, key: Option<String>, limit: usize) -> StoreFuture<'_, Vec<Timer>> {
        Box::pin(async move {
            let sql = "SELECT service, key, name, due_at, message FROM timers
                WHERE (?1 IS NULL OR service = ?1) AND (?2 IS NULL OR key = ?2)
                ORDER BY due_at, service, key, name LIMIT ?3";
            let found = query(sql).bind(service).bind(key).bind(count(limit)).fetch_all(&self.readers).await;
            found.map_err(failed)?.iter().map(decode::timer).collect()
        })
    }

    fn waiting_keys(&self, service: Option<String>, limit: usize) -> StoreFuture<'_, Vec<WaitingKey>> {
        Box::pin(async move {
            let sql = "SELECT service, key, count(*), min(taken_at) FROM pending WHERE ?2 IS NULL OR service = ?2
                GROUP BY service, key ORDER BY 3 DESC, 4, 1, 2 LIMIT ?1";
            let rows = query(sql).bind(count(limit)).bind(service).fetch_all(&self.readers).await.map_err(failed)?;
            let waiting = rows.iter().map(|row| {
                let of = ServiceKey { service: decode::text(row, 0)?, key: decode::text(row, 1)? };
                Ok(WaitingKey { of, pending: decode::number(row, 2)?, oldest_at: decode::number(row, 3)? })
            });
            waiting.collect()
        })
    }

    fn rows(&self, ask: RowsAsk) -> StoreFuture<'_, FoundRows> {
        Box::pin(async move { tables::rows(&self.readers, &ask).await })
    }

    fn unread_outside(&self) -> StoreFuture<'_, BTreeMap<ShardNo, u64>> {
        Box::pin(async move {
            let sql = format!(
                "WITH {POSITIONS}
                 SELECT s.shard, sum(l.count) FROM shards s CROSS JOIN ({OUTSIDE}) AS o
                 LEFT JOIN positions p ON p.shard = s.shard AND p.origin = o.column1
                 JOIN log l ON l.target = s.shard AND l.origin = o.column1 AND l.no >= coalesce(p.no, 0)
                     AND (l.no > coalesce(p.no, 0) OR l.count > coalesce(p.passed, 0))
                 GROUP BY s.shard"
            );
            let rows = query(AssertSqlSafe(sql)).fetch_all(&self.readers).await.map_err(failed)?;
            rows.iter().map(|row| Ok((decode::number(row, 0)?, decode::number(row, 1)?))).collect()
        })
    }

    fn import_progress(&self, service: String, source: String) -> StoreFuture<'_, ImportProgress> {
        Box::pin(async move {
            let row = query(
                "SELECT lines, messages, rejects, rejects_bytes, lines_hash FROM imports
                 WHERE service = ?1 AND source = ?2",
            );
            let row = row.bind(service).bind(source).fetch_optional(&self.readers).await.map_err(failed)?;
            row.as_ref().map_or_else(|| Ok(ImportProgress::default()), progress)
        })
    }

    fn append(&self, rows: Vec<LogRow>) -> StoreFuture<'_, ()> {
        let targets: Vec<ShardNo> = rows.iter().map(|row| row.target).collect();
        let (json, blob) = log_rows(&rows);
        let written = self.writer.call(move |connection| {
            Box::pin(async move {
                let query = query(appending!("COMMIT")).bind(blob).bind(json);
                query.execute(connection).await.map(drop).map_err(failed)
            })
        });
        Box::pin(async move {
            written.await?;
            self.watch.appended(targets);
            Ok(())
        })
    }

    fn append_import(&self, batch: ImportBatch) -> StoreFuture<'_, ()> {
        let targets: Vec<ShardNo> = batch.rows.iter().map(|row| row.target).collect();
        let written = append_import(&self.writer, batch);
        Box::pin(async move {
            written.await?;
            self.watch.appended(targets);
            Ok(())
        })
    }

    fn command(&self, command: NewCommand) -> StoreFuture<'_, i64> {
        self.writer.call(move |connection| Box::pin(async move { waiting::record_command(connection, &command).await }))
    }

    fn pauses(&self) -> StoreFuture<'_, Vec<Pause>> {
        Box::pin(read::pauses(&self.readers))
    }

    fn open_commands(&self, shard: ShardNo, without: Vec<i64>) -> StoreFuture<'_, Vec<Result<OpenCommand, Strange>>> {
        Box::pin(async move { waiting::open_commands(&self.readers, shard, &without).await })
    }

    fn forget_commands(&self, before: Millis, limit: usize) -> StoreFuture<'_, u64> {
        self.writer
            .call(move |connection| Box::pin(async move { waiting::forget_commands(connection, before, limit).await }))
    }

    fn command_state(&self, id: i64) -> StoreFuture<'_, CommandState> {
        Box::pin(async move {
            let row = query(
                "SELECT coalesce(sum(done), 0), (SELECT count(*) FROM shards), coalesce(sum(affected), 0)
                 FROM operator_results WHERE command = ?1",
            );
            let row = row.bind(id).fetch_one(&self.readers).await.map_err(failed)?;
            Ok(CommandState {
                shards_done: decode::number(&row, 0)?,
                shards: decode::number(&row, 1)?,
                affected: decode::number(&row, 2)?,
            })
        })
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        Box::pin(health::sqlite::health(&self.readers, &self.path))
    }
}

async fn by_shard(pool: &SqlitePool, sql: String, shards: &[ShardNo]) -> Result<Vec<(ShardNo, u64)>, StoreError> {
    let rows = query(AssertSqlSafe(sql)).bind(json(&shards)?).fetch_all(pool).await.map_err(failed)?;
    rows.iter().map(|row| Ok((decode::number(row, 0)?, decode::number(row, 1)?))).collect()
}

pub(super) fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn progress(row: &SqliteRow) -> Result<ImportProgress, StoreError> {
    Ok(ImportProgress {
        lines: decode::number(row, 0)?,
        messages: decode::number(row, 1)?,
        rejects: decode::number(row, 2)?,
        rejects_bytes: decode::number(row, 3)?,
        lines_hash: decode::get(row, 4)?,
    })
}

async fn shards(pool: &SqlitePool) -> Result<Vec<ShardRow>, StoreError> {
    let sql = format!(
        "WITH {POSITIONS},
         unread (shard, messages) AS (
             SELECT l.target, sum(l.count) FROM log l
             LEFT JOIN positions p ON p.shard = l.target AND p.origin = l.origin
             WHERE l.no > coalesce(p.no, 0) OR (l.no = p.no AND l.count > p.passed) GROUP BY l.target)
         SELECT {}, owner, coalesce((SELECT messages FROM unread u WHERE u.shard = s.shard), 0),
             (SELECT count(*) FROM pending p WHERE p.shard = s.shard),
             (SELECT count(*) FROM (SELECT DISTINCT service, key FROM pending p WHERE p.shard = s.shard)),
             (SELECT count(*) FROM dead_letters d WHERE d.shard = s.shard),
             (SELECT count(*) FROM (SELECT DISTINCT service, key FROM dead_letters d
                 WHERE d.shard = s.shard AND holds_key = 1))
         FROM shards s ORDER BY shard",
        decode::SHARD
    );
    let rows = query(AssertSqlSafe(sql)).fetch_all(pool).await.map_err(failed)?;
    let show = |row: &SqliteRow| {
        let shard = decode::shard(row)?;
        Ok(ShardRow {
            shard: shard.shard,
            owner: decode::get(row, 10)?,
            epoch: shard.epoch,
            commit_no: shard.commit_no,
            unclean: shard.unclean,
            unread: decode::number(row, 11)?,
            pending: decode::number(row, 12)?,
            waiting_keys: decode::number(row, 13)?,
            dead_letters: decode::number(row, 14)?,
            held_keys: decode::number(row, 15)?,
            outbox_seq: shard.outbox_seq,
            positions: shard.positions,
            ahead: stretches(&shard.ahead),
            watermarks: shard.watermarks,
            counters: shard.counters,
        })
    };
    rows.iter().map(show).collect()
}

async fn events(pool: &SqlitePool, shard: ShardNo, after: u64, limit: usize) -> Result<Vec<EventRow>, StoreError> {
    page(pool, (shard, first(pool, shard, after).await?, after), limit, i64::MAX).await
}

/// The commit that begins last at or below the event behind `after`.
async fn first(pool: &SqlitePool, shard: ShardNo, after: u64) -> Result<i64, StoreError> {
    // Numbers rise with commits: the first commit of interest is the last one that begins at or below `after + 1`.
    let first: Option<i64> = query_scalar(
        "SELECT max(commit_no) FROM commits WHERE shard = ?1 AND first_seq <= ?2 + 1 AND length(events) > 0",
    )
    .bind(shard)
    .bind(signed(after).saturating_sub(1))
    .fetch_one(pool)
    .await
    .map_err(failed)?;
    Ok(first.unwrap_or(0))
}

/// Events above a number, looked for from a commit on, 0 where that is not known.
pub(super) async fn outbox(
    pool: &SqlitePool,
    shard: ShardNo,
    (from, after): (i64, u64),
    limit: usize,
) -> Result<Vec<EventRow>, StoreError> {
    let from = if from == 0 { first(pool, shard, after).await? } else { from };
    page(pool, (shard, from, after), limit, layout::OUTBOX_BYTES_MAX).await
}

async fn page(
    pool: &SqlitePool,
    (shard, from, after): (ShardNo, i64, u64),
    limit: usize,
    bytes_max: i64,
) -> Result<Vec<EventRow>, StoreError> {
    let names = explain::names(pool).await?;
    // All of the first commit's events may be known: the second always comes with it.
    let rows = query(
        "WITH sizes AS (
             SELECT commit_no, length(events) AS bytes FROM commits
             WHERE shard = ?1 AND commit_no >= ?2 AND length(events) > 0 ORDER BY commit_no LIMIT ?3),
         page AS (
             SELECT commit_no, row_number() OVER sofar AS nth, sum(bytes) OVER sofar AS bytes FROM sizes
             WINDOW sofar AS (ORDER BY commit_no ROWS UNBOUNDED PRECEDING))
         SELECT c.shard, c.commit_no, c.epoch, c.at, c.first_seq, c.events
         FROM page p JOIN commits c ON c.shard = ?1 AND c.commit_no = p.commit_no
         WHERE p.nth <= 2 OR p.bytes <= ?4 ORDER BY p.commit_no",
    );
    let rows = rows.bind(shard).bind(from).bind(count(limit.saturating_add(1))).bind(bytes_max);
    let rows = rows.fetch_all(pool).await.map_err(failed)?;
    let mut found = Vec::new();
    let mut commits = 0;
    for row in &rows {
        let commit = commit(row)?;
        let events =
            layout::events(&commit, decode::number(row, 4)?, decode::blob(row, 5)?, |no| names.get(&no).cloned())?;
        let before = found.len();
        found.extend(events.into_iter().filter(|event| event.seq > after));
        commits += usize::from(found.len() > before);
        if commits == limit {
            break;
        }
    }
    Ok(found)
}

/// A row that begins with shard, commit_no, epoch, at.
pub(super) fn commit(row: &SqliteRow) -> Result<CommitRow, StoreError> {
    Ok(CommitRow {
        shard: decode::number(row, 0)?,
        no: decode::number(row, 1)?,
        epoch: decode::number(row, 2)?,
        at: decode::number(row, 3)?,
    })
}

/// Rows for the log: what to insert, and the bytes that it is cut out of.
fn log_rows(rows: &[LogRow]) -> (String, Vec<u8>) {
    let mut written = Rows::default();
    for row in rows {
        written.row().put(row.target).put(row.count).put_blob(&row.messages);
    }
    written.finish()
}

fn append_import(writer: &Writer, batch: ImportBatch) -> StoreFuture<'static, ()> {
    let (json, blob) = log_rows(&batch.rows);
    let progress = batch.progress;
    let service: Arc<str> = batch.service;
    writer.call(move |connection| {
        Box::pin(async move {
            let query = query(appending!(
                "INSERT INTO imports (service, source, lines, messages, rejects, rejects_bytes, lines_hash, at)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)
                 ON CONFLICT (service, source) DO UPDATE SET lines = excluded.lines, messages = excluded.messages,
                     rejects = excluded.rejects, rejects_bytes = excluded.rejects_bytes,
                     lines_hash = excluded.lines_hash, at = excluded.at;
                 COMMIT"
            ));
            let query = query.bind(blob).bind(json).bind(service).bind(batch.source).bind(signed(progress.lines));
            let query = query.bind(signed(progress.messages)).bind(signed(progress.rejects));
            let query = query.bind(signed(progress.rejects_bytes)).bind(progress.lines_hash).bind(signed(batch.at));
            query.execute(connection).await.map(drop).map_err(failed)
        })
    })
}
