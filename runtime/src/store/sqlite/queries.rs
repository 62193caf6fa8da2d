//! Queries of operators and tools to a SQLite store, and their few writes.
//! In: filters, commands, imports. Out: rows; writes that are one transaction each.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::TryStreamExt;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, Row, Sqlite, query};

use super::args::{RowArgs, untyped};
use super::failure::failed;
use super::writer::SqliteWriter;
use super::{SqliteStore, schema, tables, waiting};
use crate::clock::Millis;
use crate::message::ShardNo;
use crate::store::health::{self, StoreHealth};
use crate::store::query::sql::{Arg, Cells, Sql, SqlCell, signed};
use crate::store::query::{
    CommandState, DeadFilter, Dialect, EventRow, FoundRows, ImportBatch, ImportProgress, NewCommand, OpenCommand,
    Pause, Queries, RowsAsk, ShardRow, Story, Strange, WaitingKey, ask, decode, story,
};
use crate::store::{DeadLetter, LogRow, StoreError, StoreFuture, Timer};

impl Cells for SqliteRow {
    fn get<'r, T: SqlCell<'r>>(&'r self, at: usize) -> Result<T, StoreError> {
        self.try_get(at).map_err(|error| StoreError::Corrupt(error.to_string()))
    }
}

impl Sql for SqlitePool {
    type Row = SqliteRow;

    const DIALECT: Dialect = Dialect { collate: "", nul: true };
    const POSITIONS: &str = "positions (shard, origin, no, passed) AS MATERIALIZED (
        SELECT s.shard, p.key, p.value->>'no', (p.value->>'index') + 1
        FROM shards s, json_each(s.positions, '$.embedded') p)";
    const LINE: &str = "rowid";
    const PAGE: &str = "WITH sizes AS (
            SELECT commit_no, length(events) AS bytes FROM commits
            WHERE shard = $1 AND commit_no >= $2 AND length(events) > 0 ORDER BY commit_no LIMIT $3),
        page AS (
            SELECT commit_no, row_number() OVER sofar AS nth, sum(bytes) OVER sofar AS bytes FROM sizes
            WINDOW sofar AS (ORDER BY commit_no ROWS UNBOUNDED PRECEDING))
        SELECT c.shard, c.commit_no, c.epoch, c.at, c.first_seq, c.events
        FROM page p JOIN commits c ON c.shard = $1 AND c.commit_no = p.commit_no
        WHERE p.nth <= 2 OR p.bytes <= $4 ORDER BY p.commit_no";

    fn holds(place: &str, what: &str) -> String {
        format!("instr({place}, {what}) > 0")
    }

    fn each(array: &str) -> String {
        format!("json_each({array})")
    }

    async fn rows(&self, sql: &str, args: &[Arg<'_>]) -> Result<Vec<SqliteRow>, StoreError> {
        asked(sql, args).fetch_all(self).await.map_err(failed)
    }

    async fn scan(
        &self,
        sql: &str,
        args: &[Arg<'_>],
        _most: usize,
        mut take: impl FnMut(&SqliteRow) -> Result<bool, StoreError> + Send,
    ) -> Result<(), StoreError> {
        let mut rows = asked(sql, args).fetch(self);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            if take(&row)? {
                break;
            }
        }
        Ok(())
    }
}

fn asked(sql: &str, args: &[Arg<'_>]) -> Query<'static, Sqlite, SqliteArguments> {
    args.iter().fold(query(AssertSqlSafe(untyped(sql))), |query, arg| match arg {
        Arg::Number(number) => query.bind(*number),
        Arg::Text(text) => query.bind(text.map(str::to_owned)),
        Arg::Plain(text) => query.bind((*text).to_owned()),
        Arg::Blob(bytes) => query.bind(bytes.to_vec()),
        Arg::Value(value) => tables::bound(query, value),
    })
}

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

impl Queries for SqliteStore {
    fn shards(&self) -> StoreFuture<'_, Vec<ShardRow>> {
        Box::pin(shards(&self.readers))
    }

    fn unread(&self, shards: Vec<ShardNo>) -> StoreFuture<'_, Vec<(ShardNo, u64)>> {
        Box::pin(ask::unread(&self.readers, shards))
    }

    fn count_waiting(&self, shards: Vec<ShardNo>) -> StoreFuture<'_, Vec<(ShardNo, u64)>> {
        Box::pin(ask::count_waiting(&self.readers, shards))
    }

    fn services(&self) -> StoreFuture<'_, BTreeMap<Arc<str>, u16>> {
        Box::pin(ask::services(&self.readers))
    }

    fn peek(&self, filter: DeadFilter, limit: usize) -> StoreFuture<'_, Vec<(ShardNo, DeadLetter)>> {
        Box::pin(ask::peek(&self.readers, filter, limit))
    }

    fn count_dead(&self, filter: DeadFilter) -> StoreFuture<'_, u64> {
        Box::pin(ask::count_dead(&self.readers, filter))
    }

    fn explain(&self, text: String) -> StoreFuture<'_, Story> {
        Box::pin(async move {
            let hash_key = schema::hash_key(&mut *self.readers.acquire().await.map_err(failed)?).await?;
            story::story(&self.readers, &hash_key, &text).await
        })
    }

    fn events(&self, shard: ShardNo, after: u64, limit: usize) -> StoreFuture<'_, Vec<EventRow>> {
        Box::pin(ask::events(&self.readers, shard, after, limit))
    }

    fn scheduled(&self, service: Option<String>, key: Option<String>, limit: usize) -> StoreFuture<'_, Vec<Timer>> {
        Box::pin(ask::scheduled(&self.readers, service, key, limit))
    }

    fn waiting_keys(&self, service: Option<String>, limit: usize) -> StoreFuture<'_, Vec<WaitingKey>> {
        Box::pin(ask::waiting_keys(&self.readers, service, limit))
    }

    fn rows(&self, ask: RowsAsk) -> StoreFuture<'_, FoundRows> {
        Box::pin(ask::table(&self.readers, ask))
    }

    fn unread_outside(&self) -> StoreFuture<'_, BTreeMap<ShardNo, u64>> {
        Box::pin(ask::unread_outside(&self.readers))
    }

    fn import_progress(&self, service: String, source: String) -> StoreFuture<'_, ImportProgress> {
        Box::pin(ask::import_progress(&self.readers, service, source))
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
        Box::pin(ask::pauses(&self.readers))
    }

    fn open_commands(&self, shard: ShardNo, without: Vec<i64>) -> StoreFuture<'_, Vec<Result<OpenCommand, Strange>>> {
        Box::pin(ask::open_commands(&self.readers, shard, without))
    }

    fn forget_commands(&self, before: Millis, limit: usize) -> StoreFuture<'_, u64> {
        self.writer
            .call(move |connection| Box::pin(async move { waiting::forget_commands(connection, before, limit).await }))
    }

    fn command_state(&self, id: i64) -> StoreFuture<'_, CommandState> {
        Box::pin(ask::command_state(&self.readers, id))
    }

    fn health(&self) -> StoreFuture<'_, StoreHealth> {
        Box::pin(health::sqlite::health(&self.readers, &self.path))
    }
}

async fn shards(pool: &SqlitePool) -> Result<Vec<ShardRow>, StoreError> {
    let sql = format!(
        "WITH {},
         unread (shard, messages) AS (
             SELECT l.target, sum(l.count) FROM log l
             LEFT JOIN positions p ON p.shard = l.target AND p.origin = l.origin
             WHERE l.no > coalesce(p.no, 0) OR (l.no = p.no AND l.count > p.passed) GROUP BY l.target)
         SELECT {}, owner, coalesce((SELECT messages FROM unread u WHERE u.shard = s.shard), 0),
             (SELECT count(*) FROM pending p WHERE p.shard = s.shard),
             (SELECT count(*) FROM (SELECT DISTINCT service, key FROM pending p WHERE p.shard = s.shard) AS keys
                 WHERE NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.shard = s.shard
                     AND d.service = keys.service AND d.key = keys.key AND d.holds_key = 1)),
             (SELECT count(*) FROM dead_letters d WHERE d.shard = s.shard),
             (SELECT count(*) FROM (SELECT DISTINCT service, key FROM dead_letters d
                 WHERE d.shard = s.shard AND holds_key = 1))
         FROM shards s ORDER BY shard",
        SqlitePool::POSITIONS,
        decode::SHARD
    );
    pool.rows(&sql, &[]).await?.iter().map(decode::shown).collect()
}

/// Rows for the log: what to insert, and the bytes that it is cut out of.
fn log_rows(rows: &[LogRow]) -> (String, Vec<u8>) {
    let mut written = RowArgs::default();
    for row in rows {
        written.row().put(row.target).put(row.count).put_blob(&row.messages);
    }
    written.finish()
}

fn append_import(writer: &SqliteWriter, batch: ImportBatch) -> StoreFuture<'static, ()> {
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
