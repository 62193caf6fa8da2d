//! Queries of operators and tools to a PostgreSQL store, and their few writes.
//! In: filters, commands, imports. Out: rows; writes that are one statement each.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgRow;

use super::links::{Args, Links, shard_no};
use super::place::Use;
use super::texts::stored;
use super::{PgStore, TOOL_PATIENCE, schema, tables};
use crate::clock::Millis;
use crate::message::ShardNo;
use crate::store::health::{self, StoreHealth};
use crate::store::query::sql::{Arg, Cells, Sql, json, one, signed};
use crate::store::query::{
    CommandState, DeadFilter, Dialect, EventRow, FoundRows, ImportBatch, ImportProgress, NewCommand, OpenCommand,
    Pause, Queries, RowsAsk, ShardRow, Story, Strange, WaitingKey, ask, decode, story,
};
use crate::store::{DeadLetter, LogRow, StoreError, StoreFuture, Timer};

impl Sql for Links {
    type Row = PgRow;

    /// Rows are read in the order of their texts' bytes, whatever the order of the database.
    const DIALECT: Dialect = Dialect { collate: " COLLATE \"C\"", nul: false };
    const POSITIONS: &str = "positions (shard, origin, no, passed) AS MATERIALIZED (
        SELECT s.shard, p.key COLLATE \"C\", (p.value->>'no')::bigint, (p.value->>'index')::bigint + 1
        FROM shards s CROSS JOIN LATERAL json_each(s.positions->'embedded') p)";
    const LINE: &str = "no";
    const PAGE: &str = "SELECT shard::bigint, commit_no, epoch, at, first_seq, events FROM (
            SELECT c.*, row_number() OVER sofar AS nth, sum(length(events)) OVER sofar AS bytes FROM (
                SELECT shard, commit_no, epoch, at, first_seq, events FROM commits
                WHERE shard = $1 AND commit_no >= $2 AND length(events) > 0 ORDER BY commit_no LIMIT $3) c
            WINDOW sofar AS (ORDER BY commit_no ROWS UNBOUNDED PRECEDING)) page
        WHERE nth <= 2 OR bytes <= $4 ORDER BY commit_no";

    fn holds(place: &str, what: &str) -> String {
        format!("position({what} IN {place}) > 0")
    }

    fn each(array: &str) -> String {
        format!("(SELECT value::bigint AS value FROM json_array_elements_text({array}::json))")
    }

    async fn rows(&self, sql: &str, args: &[Arg<'_>]) -> Result<Vec<PgRow>, StoreError> {
        let args = args.iter().fold(Args::default(), |args, arg| match arg {
            Arg::Number(number) => args.put(*number),
            Arg::Text(text) => args.put(text.map(stored)),
            Arg::Plain(text) => args.put(*text),
            Arg::Blob(bytes) => args.put(*bytes),
            Arg::Value(value) => tables::bound(args, value),
        });
        Ok(self.read(AssertSqlSafe(sql), args).await?)
    }

    async fn scan(
        &self,
        sql: &str,
        args: &[Arg<'_>],
        most: usize,
        mut take: impl FnMut(&PgRow) -> Result<bool, StoreError> + Send,
    ) -> Result<(), StoreError> {
        for row in &self.rows(&format!("{sql} LIMIT {most}"), args).await? {
            if take(row)? {
                break;
            }
        }
        Ok(())
    }
}

/// A statement that begins with rows for the log. The lane's row is locked until the numbers that it gave are visible,
/// so they become visible in their order.
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

/// Records a command, and its change of the pauses; a trigger records the shards in which it is open.
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

impl Queries for PgStore {
    fn shards(&self) -> StoreFuture<'_, Vec<ShardRow>> {
        Box::pin(shards(&self.queries))
    }

    fn unread(&self, shards: Vec<ShardNo>) -> StoreFuture<'_, Vec<(ShardNo, u64)>> {
        Box::pin(ask::unread(&self.queries, shards))
    }

    fn count_waiting(&self, shards: Vec<ShardNo>) -> StoreFuture<'_, Vec<(ShardNo, u64)>> {
        Box::pin(ask::count_waiting(&self.queries, shards))
    }

    fn services(&self) -> StoreFuture<'_, BTreeMap<Arc<str>, u16>> {
        Box::pin(ask::services(&self.queries))
    }

    fn peek(&self, filter: DeadFilter, limit: usize) -> StoreFuture<'_, Vec<(ShardNo, DeadLetter)>> {
        Box::pin(ask::peek(&self.queries, filter, limit))
    }

    fn count_dead(&self, filter: DeadFilter) -> StoreFuture<'_, u64> {
        Box::pin(ask::count_dead(&self.queries, filter))
    }

    fn explain(&self, text: String) -> StoreFuture<'_, Story> {
        Box::pin(async move {
            let hash_key = schema::hash_key(&self.queries.read(schema::HASH_KEY, Args::default()).await?)?;
            story::story(&self.queries, &hash_key, &text).await
        })
    }

    fn events(&self, shard: ShardNo, after: u64, limit: usize) -> StoreFuture<'_, Vec<EventRow>> {
        Box::pin(ask::events(&self.queries, shard, after, limit))
    }

    fn scheduled(&self, service: Option<String>, key: Option<String>, limit: usize) -> StoreFuture<'_, Vec<Timer>> {
        Box::pin(ask::scheduled(&self.queries, service, key, limit))
    }

    fn waiting_keys(&self, service: Option<String>, limit: usize) -> StoreFuture<'_, Vec<WaitingKey>> {
        Box::pin(ask::waiting_keys(&self.queries, service, limit))
    }

    fn rows(&self, ask: RowsAsk) -> StoreFuture<'_, FoundRows> {
        Box::pin(ask::table(&self.queries, ask))
    }

    fn unread_outside(&self) -> StoreFuture<'_, BTreeMap<ShardNo, u64>> {
        Box::pin(ask::unread_outside(&self.queries))
    }

    fn import_progress(&self, service: String, source: String) -> StoreFuture<'_, ImportProgress> {
        Box::pin(ask::import_progress(&self.queries, service, source))
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
            one(&self.writer.call(COMMAND, args).await?, |row| row.get(0))
        })
    }

    fn pauses(&self) -> StoreFuture<'_, Vec<Pause>> {
        Box::pin(ask::pauses(&self.queries))
    }

    fn open_commands(&self, shard: ShardNo, without: Vec<i64>) -> StoreFuture<'_, Vec<Result<OpenCommand, Strange>>> {
        Box::pin(ask::open_commands(&self.queries, shard, without))
    }

    fn forget_commands(&self, before: Millis, limit: usize) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let args = Args::default().put(signed(before)).put(signed(limit));
            one(&self.queries.run(FORGET_COMMANDS, args).await?, |row| row.number(0))
        })
    }

    fn command_state(&self, id: i64) -> StoreFuture<'_, CommandState> {
        Box::pin(ask::command_state(&self.queries, id))
    }

    fn health(&self) -> StoreFuture<'_, StoreHealth> {
        Box::pin(async move {
            // Connected as any other program: this one's own options must not hide what others get.
            let links = Links::new(&self.place, Use::Look, 1, TOOL_PATIENCE);
            let health = health::postgres::health(&links).await;
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

async fn shards(links: &Links) -> Result<Vec<ShardRow>, StoreError> {
    let sql = format!(
        "WITH {},
         unread (shard, messages) AS (
             SELECT l.target, sum(l.count) FROM log l
             LEFT JOIN positions p ON p.shard = l.target AND p.origin = l.origin
             WHERE l.no > coalesce(p.no, 0) OR (l.no = p.no AND l.count > p.passed) GROUP BY l.target),
         waiting (shard, messages, keys) AS (
             SELECT p.shard, count(*), count(DISTINCT (p.service, p.key)) FILTER (WHERE h.key IS NULL)
             FROM pending p LEFT JOIN (SELECT DISTINCT shard, service, key FROM dead_letters WHERE holds_key) h
                 ON h.shard = p.shard AND h.service = p.service AND h.key = p.key
             GROUP BY p.shard),
         dead (shard, messages, held) AS (
             SELECT shard, count(*), count(DISTINCT (service, key)) FILTER (WHERE holds_key)
             FROM dead_letters GROUP BY shard)
         SELECT s.{}, owner, coalesce(u.messages, 0)::bigint, coalesce(w.messages, 0), coalesce(w.keys, 0),
             coalesce(d.messages, 0), coalesce(d.held, 0)
         FROM shards s LEFT JOIN unread u USING (shard) LEFT JOIN waiting w USING (shard) LEFT JOIN dead d USING (shard)
         ORDER BY shard",
        Links::POSITIONS,
        decode::SHARD
    );
    links.read(AssertSqlSafe(sql), Args::default()).await?.iter().map(decode::shown).collect()
}
