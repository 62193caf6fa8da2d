//! What operators and tools ask of a PostgreSQL store, and the little they write.
//! In: filters, commands, imports. Out: rows; writes that are one statement each.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, SqlSafeStr};

use super::commit::shard_no;
use super::decode::stored;
use super::links::{Args, Links};
use super::place::Use;
use super::read::{self, FILTER, count, filtered, signed};
use super::{PgStore, TOOL_PATIENCE, decode, explain, schema, tables};
use crate::clock::Millis;
use crate::message::ShardNo;
use crate::store::append::OUTSIDE;
use crate::store::commit::stretches;
use crate::store::health::{self, Health};
use crate::store::query::{
    CommandState, DeadFilter, EventRow, FoundRows, ImportBatch, ImportProgress, NewCommand, OpenCommand, Pause,
    Queries, RowsAsk, ShardRow, Story, Strange, WaitingKey,
};
use crate::store::{DeadLetter, LogRow, ServiceKey, StoreError, StoreFuture, Timer};

/// Commands that a shard is given at once.
const COMMANDS_MAX: i64 = 100;

/// Positions of the embedded log, one row per shard and origin.
const POSITIONS: &str = "positions (shard, origin, no, passed) AS MATERIALIZED (
    SELECT s.shard, p.key COLLATE \"C\", (p.value->>'no')::bigint, (p.value->>'index')::bigint + 1
    FROM shards s CROSS JOIN LATERAL json_each(s.positions->'embedded') p)";

/// A statement that begins with rows for the log. The lane's row is locked until the numbers that it gave are visible, so
/// they become so in their order.
macro_rules! appending {
    ($then:literal) => {
        concat!(
            "WITH lane AS (
                INSERT INTO lanes AS l (origin, no) VALUES ('import', 1) ON CONFLICT (origin) DO UPDATE SET no = l.no + 1
                RETURNING l.no
            ),
            rows AS (
                INSERT INTO log (target, origin, no, count, messages)
                SELECT r.target, 'import', lane.no, r.count, r.messages
                FROM lane, UNNEST($1::integer[], $2::bigint[], $3::bytea[]) AS r (target, count, messages)
            ) ",
            $then
        )
    };
}

const APPEND: &str = appending!("SELECT no FROM lane");

const APPEND_IMPORT: &str = appending!(
    "INSERT INTO imports (service, source, lines, messages, rejects, rejects_bytes, lines_hash, at)
    VALUES ($4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT (service, source) DO UPDATE SET lines = excluded.lines, messages = excluded.messages,
        rejects = excluded.rejects, rejects_bytes = excluded.rejects_bytes, lines_hash = excluded.lines_hash,
        at = excluded.at"
);

/// A command, and what it changes of what is paused; a trigger says in which shards it is open.
const COMMAND: &str = "WITH made AS (
        INSERT INTO operator_commands (action, filter, who, why, matched, at) VALUES ($1, $2, $3, $4, $5, $6) RETURNING id),
    paused AS (
        INSERT INTO pauses (service, key, who, why, since) SELECT $7, $8, $3, $4, $6 WHERE $9::boolean
        ON CONFLICT DO NOTHING),
    resumed AS (
        DELETE FROM pauses WHERE NOT $9::boolean AND service = $7 AND ($8::text IS NULL OR key = $8))
    SELECT id FROM made";

const FORGET_COMMANDS: &str = "WITH gone AS (
        DELETE FROM operator_commands WHERE id = ANY (ARRAY(
            SELECT c.id FROM operator_commands c WHERE c.at < $1 AND NOT EXISTS (
                SELECT FROM operator_open o WHERE o.command = c.id AND NOT EXISTS (
                    SELECT FROM operator_results r WHERE r.command = c.id AND r.shard = o.shard AND r.done))
            ORDER BY c.id LIMIT $2)) RETURNING id),
    results AS (DELETE FROM operator_results r USING gone WHERE r.command = gone.id),
    open AS (DELETE FROM operator_open o USING gone WHERE o.command = gone.id)
    SELECT count(*) FROM gone";

const UNREAD: &str = "SELECT a.shard::bigint, (SELECT coalesce(sum(l.count), 0)::bigint FROM log l
        LEFT JOIN positions p ON p.shard = l.target AND p.origin = l.origin
        WHERE l.target = a.shard AND (l.no > coalesce(p.no, 0) OR (l.no = p.no AND l.count > p.passed)))
    FROM UNNEST($1::integer[]) AS a (shard)";

const COUNT_WAITING: &str = "SELECT a.shard::bigint,
        (SELECT count(*) FROM (SELECT DISTINCT service, key FROM pending p WHERE p.shard = a.shard) keys)
    FROM UNNEST($1::integer[]) AS a (shard)";

impl Queries for PgStore {
    fn shards(&self) -> StoreFuture<'_, Vec<ShardRow>> {
        Box::pin(shards(&self.queries))
    }

    fn unread(&self, shards: Vec<ShardNo>) -> StoreFuture<'_, Vec<(ShardNo, u64)>> {
        Box::pin(
            async move { by_shard(&self.queries, AssertSqlSafe(format!("WITH {POSITIONS} {UNREAD}")), &shards).await },
        )
    }

    fn count_waiting(&self, shards: Vec<ShardNo>) -> StoreFuture<'_, Vec<(ShardNo, u64)>> {
        Box::pin(async move { by_shard(&self.queries, COUNT_WAITING, &shards).await })
    }

    fn services(&self) -> StoreFuture<'_, BTreeMap<Arc<str>, u16>> {
        Box::pin(async move { schema::services(&self.queries.read(schema::SERVICES, Args::default()).await?) })
    }

    fn peek(&self, filter: DeadFilter, limit: usize) -> StoreFuture<'_, Vec<(ShardNo, DeadLetter)>> {
        Box::pin(async move {
            let sql = format!(
                "SELECT {}, shard::bigint FROM dead_letters WHERE {FILTER} ORDER BY at DESC, shard, seq DESC LIMIT $7",
                decode::DEAD
            );
            let rows = self.queries.read(AssertSqlSafe(sql), filtered(&filter).put(count(limit))).await?;
            rows.iter().map(|row| Ok((decode::number(row, 10)?, decode::dead(row)?))).collect()
        })
    }

    fn count_dead(&self, filter: DeadFilter) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let sql = format!("SELECT count(*) FROM dead_letters WHERE {FILTER}");
            one(&self.queries.read(AssertSqlSafe(sql), filtered(&filter)).await?, |row| decode::number(row, 0))
        })
    }

    fn explain(&self, text: String) -> StoreFuture<'_, Story> {
        Box::pin(async move { explain::story(&self.queries, &text).await })
    }

    fn events(&self, shard: ShardNo, after: u64, limit: usize) -> StoreFuture<'_, Vec<EventRow>> {
        Box::pin(explain::events(&self.queries, shard, after, limit))
    }

    fn scheduled(&self, service: Option<String>, key: Option<String>, limit: usize) -> StoreFuture<'_, Vec<Timer>> {
        Box::pin(async move {
            let sql = "SELECT service, key, name, due_at, message FROM timers
                WHERE ($1::text IS NULL OR service = $1) AND ($2::text IS NULL OR key = $2)
                ORDER BY due_at, service, key, name LIMIT $3";
            let args = Args::default().put(service.as_deref().map(stored)).put(key.as_deref().map(stored));
            self.queries.read(sql, args.put(count(limit))).await?.iter().map(decode::timer).collect()
        })
    }

    fn waiting_keys(&self, service: Option<String>, limit: usize) -> StoreFuture<'_, Vec<WaitingKey>> {
        Box::pin(async move {
            let sql = "SELECT service, key, count(*), min(taken_at) FROM pending WHERE $2::text IS NULL OR service = $2
                GROUP BY service, key ORDER BY 3 DESC, 4, 1, 2 LIMIT $1";
            let args = Args::default().put(count(limit)).put(service.as_deref().map(stored));
            let rows = self.queries.read(sql, args).await?;
            let waiting = rows.iter().map(|row| {
                let of = ServiceKey { service: decode::text(row, 0)?, key: decode::text(row, 1)? };
                Ok(WaitingKey { of, pending: decode::number(row, 2)?, oldest_at: decode::number(row, 3)? })
            });
            waiting.collect()
        })
    }

    fn rows(&self, ask: RowsAsk) -> StoreFuture<'_, FoundRows> {
        Box::pin(async move { tables::rows(&self.queries, &ask).await })
    }

    fn unread_outside(&self) -> StoreFuture<'_, BTreeMap<ShardNo, u64>> {
        Box::pin(async move {
            let sql = format!(
                "WITH {POSITIONS}
                 SELECT s.shard::bigint, sum(l.count)::bigint FROM shards s CROSS JOIN ({OUTSIDE}) AS o
                 LEFT JOIN positions p ON p.shard = s.shard AND p.origin = o.column1
                 JOIN log l ON l.target = s.shard AND l.origin = o.column1 AND l.no >= coalesce(p.no, 0)
                     AND (l.no > coalesce(p.no, 0) OR l.count > coalesce(p.passed, 0))
                 GROUP BY s.shard"
            );
            let rows = self.queries.read(AssertSqlSafe(sql), Args::default()).await?;
            rows.iter().map(|row| Ok((decode::number(row, 0)?, decode::number(row, 1)?))).collect()
        })
    }

    fn import_progress(&self, service: String, source: String) -> StoreFuture<'_, ImportProgress> {
        Box::pin(async move {
            let sql = "SELECT lines, messages, rejects, rejects_bytes, lines_hash FROM imports
                WHERE service = $1 AND source = $2";
            let rows = self.queries.read(sql, Args::default().put(service).put(source)).await?;
            rows.first().map_or_else(|| Ok(ImportProgress::default()), progress)
        })
    }

    fn append(&self, rows: Vec<LogRow>) -> StoreFuture<'_, ()> {
        append(self, APPEND, &rows, log_rows(&rows))
    }

    fn append_import(&self, batch: ImportBatch) -> StoreFuture<'_, ()> {
        let progress = &batch.progress;
        let args = log_rows(&batch.rows)
            .put(&*batch.service)
            .put(&*batch.source)
            .put(signed(progress.lines))
            .put(signed(progress.messages))
            .put(signed(progress.rejects))
            .put(signed(progress.rejects_bytes))
            .put(&*progress.lines_hash)
            .put(signed(batch.at));
        append(self, APPEND_IMPORT, &batch.rows, args)
    }

    fn command(&self, command: NewCommand) -> StoreFuture<'_, i64> {
        Box::pin(async move {
            let (scope, paused) = command.pauses().unzip();
            let (service, key) =
                (scope.map(|scope| stored(&scope.service)), scope.and_then(|scope| scope.key.as_deref()));
            let args = Args::default()
                .put(json(&command.action)?)
                .put(json(&command.filter)?)
                .put(&*command.who)
                .put(&*command.why)
                .put(signed(command.matched))
                .put(signed(command.at))
                .put(service)
                .put(key.map(stored))
                .put(paused);
            one(&self.writer.call(COMMAND, args).await?, |row| decode::get(row, 0))
        })
    }

    fn pauses(&self) -> StoreFuture<'_, Vec<Pause>> {
        Box::pin(read::pauses(&self.queries))
    }

    fn open_commands(&self, shard: ShardNo, without: Vec<i64>) -> StoreFuture<'_, Vec<Result<OpenCommand, Strange>>> {
        Box::pin(async move {
            // An older program has them done without closing them.
            let sql = "SELECT c.id, c.action, c.filter, c.who
                FROM operator_open o JOIN operator_commands c ON c.id = o.command
                WHERE o.shard = $1 AND o.command <> ALL ($3) AND NOT EXISTS (SELECT FROM operator_results r
                    WHERE r.command = o.command AND r.shard = o.shard AND r.done)
                ORDER BY o.command LIMIT $2";
            let args = Args::default().put(shard_no(shard)).put(COMMANDS_MAX).put(without);
            let open = |row: &PgRow| {
                let id = decode::get(row, 0)?;
                let read = || {
                    let (action, filter) = (decode::json(row, 1)?, decode::json(row, 2)?);
                    Ok(OpenCommand { id, action, filter, who: decode::get(row, 3)? })
                };
                Ok(read().map_err(|error: StoreError| Strange { id, error: error.to_string() }))
            };
            self.queries.read(sql, args).await?.iter().map(open).collect()
        })
    }

    fn forget_commands(&self, before: Millis, limit: usize) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let args = Args::default().put(signed(before)).put(count(limit));
            one(&self.queries.run(FORGET_COMMANDS, args).await?, |row| decode::number(row, 0))
        })
    }

    fn command_state(&self, id: i64) -> StoreFuture<'_, CommandState> {
        Box::pin(async move {
            let sql = "SELECT count(*) FILTER (WHERE done), (SELECT count(*) FROM shards),
                    coalesce(sum(affected), 0)::bigint FROM operator_results WHERE command = $1";
            one(&self.queries.read(sql, Args::default().put(id)).await?, |row| {
                Ok(CommandState {
                    shards_done: decode::number(row, 0)?,
                    shards: decode::number(row, 1)?,
                    affected: decode::number(row, 2)?,
                })
            })
        })
    }

    fn health(&self) -> StoreFuture<'_, Health> {
        Box::pin(async move {
            // As any other program is connected: what this one asks for must not hide what the others get.
            let links = Links::new(&self.place, Use::Look, 1, TOOL_PATIENCE);
            let health = health(&links).await;
            links.close().await;
            health
        })
    }
}

/// Rows for the log, as a statement of [`appending`] has them first.
fn log_rows(rows: &[LogRow]) -> Args {
    Args::default()
        .put(rows.iter().map(|row| shard_no(row.target)).collect::<Vec<_>>())
        .put(rows.iter().map(|row| i64::from(row.count)).collect::<Vec<_>>())
        .put(rows.iter().map(|row| &*row.messages).collect::<Vec<&[u8]>>())
}

fn append<'a>(store: &'a PgStore, sql: &'static str, rows: &[LogRow], args: Args) -> StoreFuture<'a, ()> {
    let targets: Vec<ShardNo> = rows.iter().map(|row| row.target).collect();
    let written = store.writer.call(sql, args);
    Box::pin(async move {
        written.await?;
        store.writer.appended(&targets);
        Ok(())
    })
}

/// What the one row of an answer says.
pub(super) fn one<T>(rows: &[PgRow], read: impl Fn(&PgRow) -> Result<T, StoreError>) -> Result<T, StoreError> {
    rows.first().map_or_else(|| Err(StoreError::Corrupt("an answer without a row".to_owned())), read)
}

fn json(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn progress(row: &PgRow) -> Result<ImportProgress, StoreError> {
    Ok(ImportProgress {
        lines: decode::number(row, 0)?,
        messages: decode::number(row, 1)?,
        rejects: decode::number(row, 2)?,
        rejects_bytes: decode::number(row, 3)?,
        lines_hash: decode::get(row, 4)?,
    })
}

async fn by_shard(links: &Links, sql: impl SqlSafeStr, shards: &[ShardNo]) -> Result<Vec<(ShardNo, u64)>, StoreError> {
    let args = Args::default().put(shards.iter().copied().map(shard_no).collect::<Vec<_>>());
    let rows = links.read(sql, args).await?;
    rows.iter().map(|row| Ok((decode::number(row, 0)?, decode::number(row, 1)?))).collect()
}

async fn shards(links: &Links) -> Result<Vec<ShardRow>, StoreError> {
    let sql = format!(
        "WITH {POSITIONS},
         unread (shard, messages) AS (
             SELECT l.target, sum(l.count) FROM log l
             LEFT JOIN positions p ON p.shard = l.target AND p.origin = l.origin
             WHERE l.no > coalesce(p.no, 0) OR (l.no = p.no AND l.count > p.passed) GROUP BY l.target),
         waiting (shard, messages, keys) AS (
             SELECT shard, count(*), count(DISTINCT (service, key)) FROM pending GROUP BY shard),
         dead (shard, messages, held) AS (
             SELECT shard, count(*), count(DISTINCT (service, key)) FILTER (WHERE holds_key)
             FROM dead_letters GROUP BY shard)
         SELECT s.{}, owner, coalesce(u.messages, 0)::bigint, coalesce(w.messages, 0), coalesce(w.keys, 0),
             coalesce(d.messages, 0), coalesce(d.held, 0)
         FROM shards s LEFT JOIN unread u USING (shard) LEFT JOIN waiting w USING (shard) LEFT JOIN dead d USING (shard)
         ORDER BY shard",
        decode::SHARD
    );
    let show = |row: &PgRow| {
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
    links.read(AssertSqlSafe(sql), Args::default()).await?.iter().map(show).collect()
}

async fn health(links: &Links) -> Result<Health, StoreError> {
    use health::postgres;

    let settings = links.read(postgres::SETTINGS, Args::default()).await?;
    let mut server =
        one(&links.read(postgres::SERVER, Args::default()).await?, |row| postgres::server(row, &settings))?;
    server.slots =
        links.read(postgres::SLOTS, Args::default()).await?.iter().map(postgres::slot).collect::<Result<_, _>>()?;
    // Not everybody may look there.
    server.wal_bytes = match links.read(postgres::WAL, Args::default()).await {
        Ok(rows) => Some(one(&rows, postgres::wal)?),
        Err(_) => None,
    };
    let shards = links.read(AssertSqlSafe(postgres::shards_sql()), Args::default()).await?;
    let services = links.read(AssertSqlSafe(postgres::services_sql()), Args::default()).await?;
    Ok(Health {
        server,
        shards: shards.iter().map(postgres::shard).collect::<Result<_, _>>()?,
        services: services.iter().map(postgres::service).collect::<Result<_, _>>()?,
    })
}
