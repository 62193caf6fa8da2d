//! Queries of operators and tools to a database, and the plain ones of a shard: each statement once, for both
//! databases.
//! In: a database, filters and bounds. Out: rows as the store's own values.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::calls::KeyCount;
use super::decode::{self, DEAD, PENDING};
use super::sql::{Arg, Cells, Sql, json, one};
use super::{
    CommandState, DeadFilter, EventRow, FoundRows, ImportProgress, OpenCommand, Pause, RowsAsk, Strange, WaitingKey,
};
use crate::clock::Millis;
use crate::handler::{Column, ColumnKind};
use crate::message::ShardNo;
use crate::store::append::OUTSIDE;
use crate::store::layout::OUTBOX_BYTES_MAX;
use crate::store::{DeadLetter, DeadPlace, OfService, OldLetters, ServiceKey, StoreError, Timer};

/// The number of commands that a shard is given at once.
const COMMANDS_MAX: i64 = 100;
/// The number of dead letters that one statement looks through.
const OLD_PAGE: i64 = 2_000;

/// The conditions of a [`DeadFilter`] over arguments $1 to $6.
fn meant<S: Sql>() -> String {
    format!(
        "($1::text IS NULL OR service = $1) AND ($2::text IS NULL OR key = $2)
         AND ($3::text IS NULL OR message_id = $3) AND ($4::bigint IS NULL OR at >= $4)
         AND ($5::bigint IS NULL OR at <= $5) AND ($6::text IS NULL OR {})",
        S::holds("error", "$6")
    )
}

/// A [`DeadFilter`] as [`meant`] expects it, and arguments behind it.
fn filtered<'a>(filter: &'a DeadFilter, then: impl IntoIterator<Item = Arg<'a>>) -> Vec<Arg<'a>> {
    let [service, key, id, error] =
        [&filter.service, &filter.key, &filter.id, &filter.error].map(|text| Arg::Text(text.as_deref()));
    let [since, until] = [filter.since, filter.until].map(Arg::maybe);
    [service, key, id, since, until, error].into_iter().chain(then).collect()
}

/// Dead letters, newest first.
pub(in crate::store) async fn peek<S: Sql>(
    db: &S,
    filter: DeadFilter,
    limit: usize,
) -> Result<Vec<(ShardNo, DeadLetter)>, StoreError> {
    let only = meant::<S>();
    let sql = format!(
        "SELECT {DEAD}, shard::bigint FROM dead_letters WHERE {only} ORDER BY at DESC, shard, seq DESC LIMIT $7"
    );
    let rows = db.rows(&sql, &filtered(&filter, [Arg::number(limit)])).await?;
    rows.iter().map(|row| Ok((row.number(10)?, decode::dead(row)?))).collect()
}

/// The number of dead letters that the filter selects.
pub(in crate::store) async fn count_dead<S: Sql>(db: &S, filter: DeadFilter) -> Result<u64, StoreError> {
    let sql = format!("SELECT count(*) FROM dead_letters WHERE {}", meant::<S>());
    one(&db.rows(&sql, &filtered(&filter, [])).await?, |row| row.number(0))
}

/// Dead letters of a shard behind a place, in the order of their keys.
pub(in crate::store) async fn dead<S: Sql>(
    db: &S,
    shard: ShardNo,
    filter: DeadFilter,
    after: Option<DeadPlace>,
    limit: usize,
) -> Result<Vec<DeadLetter>, StoreError> {
    let only = meant::<S>();
    let sql = format!(
        "SELECT {DEAD} FROM dead_letters WHERE shard = $7 AND ($9::text IS NULL OR (key, seq) > ($9, $10)) AND {only}
         ORDER BY key, seq LIMIT $8"
    );
    let (key, seq) = after.unzip();
    let then = [Arg::number(shard), Arg::number(limit), Arg::Text(key.as_deref()), Arg::maybe(seq)];
    db.rows(&sql, &filtered(&filter, then)).await?.iter().map(decode::dead).collect()
}

/// Dead letters behind a number that were given up before a time and hold no key.
pub(in crate::store) async fn old(
    db: &impl Sql,
    shard: ShardNo,
    after: u64,
    before: Millis,
) -> Result<OldLetters, StoreError> {
    let sql = "SELECT seq, service, key, taken_id, message_id, at < $4 AND NOT holds_key FROM dead_letters
        WHERE shard = $1 AND seq > $2 ORDER BY seq LIMIT $3";
    let args = [Arg::number(shard), Arg::number(after), Arg::number(OLD_PAGE), Arg::number(before)];
    let mut found = OldLetters::default();
    for row in &db.rows(sql, &args).await? {
        found.last = Some(row.number(0)?);
        if row.get(5)? {
            found.letters.push(decode::old(row)?);
        }
    }
    Ok(found)
}

/// The pending rows and timers of a service that no program has.
pub(in crate::store) async fn of_service(
    db: &impl Sql,
    shard: ShardNo,
    service: Arc<str>,
    limit: usize,
) -> Result<OfService, StoreError> {
    let args = [Arg::number(shard), Arg::Text(Some(&service)), Arg::number(limit)];
    let sql = format!("SELECT {PENDING} FROM pending WHERE shard = $1 AND service = $2 ORDER BY key, seq LIMIT $3");
    let pending = db.rows(&sql, &args).await?.iter().map(decode::pending).collect::<Result<_, _>>()?;
    let sql = "SELECT service, key, name, due_at, message FROM timers
        WHERE shard = $1 AND service = $2 ORDER BY due_at LIMIT $3";
    let timers = db.rows(sql, &args).await?.iter().map(decode::timer).collect::<Result<_, _>>()?;
    Ok(OfService { pending, timers })
}

/// Timers of a shard that are schedules.
pub(in crate::store) async fn schedules(db: &impl Sql, shard: ShardNo) -> Result<Vec<Timer>, StoreError> {
    let sql = "SELECT service, key, name, due_at, message FROM timers
        WHERE shard = $1 AND name >= 'cron:' AND name < 'cron;' ORDER BY service, key, name";
    db.rows(sql, &[Arg::number(shard)]).await?.iter().map(decode::timer).collect()
}

/// Timers, first due first.
pub(in crate::store) async fn scheduled(
    db: &impl Sql,
    service: Option<String>,
    key: Option<String>,
    limit: usize,
) -> Result<Vec<Timer>, StoreError> {
    let sql = "SELECT service, key, name, due_at, message FROM timers
        WHERE ($1::text IS NULL OR service = $1) AND ($2::text IS NULL OR key = $2)
        ORDER BY due_at, service, key, name LIMIT $3";
    let args = [Arg::Text(service.as_deref()), Arg::Text(key.as_deref()), Arg::number(limit)];
    db.rows(sql, &args).await?.iter().map(decode::timer).collect()
}

/// Keys that most messages wait for.
pub(in crate::store) async fn waiting_keys(
    db: &impl Sql,
    service: Option<String>,
    limit: usize,
) -> Result<Vec<WaitingKey>, StoreError> {
    let sql = "SELECT service, key, count(*), min(taken_at) FROM pending WHERE $2::text IS NULL OR service = $2
        GROUP BY service, key ORDER BY 3 DESC, 4, 1, 2 LIMIT $1";
    let rows = db.rows(sql, &[Arg::number(limit), Arg::Text(service.as_deref())]).await?;
    let waiting = rows.iter().map(|row| {
        let of = ServiceKey { service: row.text(0)?, key: row.text(1)? };
        Ok(WaitingKey { of, pending: row.number(2)?, oldest_at: row.number(3)? })
    });
    waiting.collect()
}

/// Unread messages of these shards in the embedded log.
pub(in crate::store) async fn unread<S: Sql>(db: &S, shards: Vec<ShardNo>) -> Result<Vec<(ShardNo, u64)>, StoreError> {
    let (positions, each) = (S::POSITIONS, S::each("$1"));
    let sql = format!(
        "WITH {positions} SELECT a.value, (SELECT coalesce(sum(l.count), 0)::bigint FROM log l
             LEFT JOIN positions p ON p.shard = l.target AND p.origin = l.origin
             WHERE l.target = a.value AND (l.no > coalesce(p.no, 0) OR (l.no = p.no AND l.count > p.passed)))
         FROM {each} AS a"
    );
    db.rows(&sql, &[Arg::Plain(&json(&shards)?)]).await?.iter().map(decode::by_shard).collect()
}

/// The number of keys with rows in `pending` that no dead letter holds, for each of these shards.
pub(in crate::store) async fn count_waiting<S: Sql>(
    db: &S,
    shards: Vec<ShardNo>,
) -> Result<Vec<(ShardNo, u64)>, StoreError> {
    let each = S::each("$1");
    let sql = format!(
        "SELECT a.value,
             (SELECT count(*) FROM (SELECT DISTINCT service, key FROM pending p WHERE p.shard = a.value) AS keys
                  WHERE NOT EXISTS (SELECT 1 FROM dead_letters d WHERE d.shard = a.value
                      AND d.service = keys.service AND d.key = keys.key AND d.holds_key))
         FROM {each} AS a"
    );
    db.rows(&sql, &[Arg::Plain(&json(&shards)?)]).await?.iter().map(decode::by_shard).collect()
}

/// Unread messages of the lanes that are written from outside, by shard.
pub(in crate::store) async fn unread_outside<S: Sql>(db: &S) -> Result<BTreeMap<ShardNo, u64>, StoreError> {
    let positions = S::POSITIONS;
    let sql = format!(
        "WITH {positions}
         SELECT s.shard::bigint, sum(l.count)::bigint FROM shards s CROSS JOIN ({OUTSIDE}) AS o
         LEFT JOIN positions p ON p.shard = s.shard AND p.origin = o.column1
         JOIN log l ON l.target = s.shard AND l.origin = o.column1 AND l.no >= coalesce(p.no, 0)
             AND (l.no > coalesce(p.no, 0) OR l.count > coalesce(p.passed, 0))
         GROUP BY s.shard"
    );
    db.rows(&sql, &[]).await?.iter().map(decode::by_shard).collect()
}

/// Events of a shard above a number.
pub(in crate::store) async fn events(
    db: &impl Sql,
    shard: ShardNo,
    after: u64,
    limit: usize,
) -> Result<Vec<EventRow>, StoreError> {
    let from = first(db, shard, after).await?;
    page(db, shard, from, after, limit, i64::MAX).await
}

/// Events of a shard above a number, looked for from commit `from` on (0: not known).
pub(in crate::store) async fn outbox(
    db: &impl Sql,
    shard: ShardNo,
    from: u64,
    after: u64,
    limit: usize,
) -> Result<Vec<EventRow>, StoreError> {
    let from = if from == 0 { first(db, shard, after).await? } else { from };
    page(db, shard, from, after, limit, OUTBOX_BYTES_MAX).await
}

/// The last commit that begins at or below the event behind `after`.
async fn first(db: &impl Sql, shard: ShardNo, after: u64) -> Result<u64, StoreError> {
    // Numbers rise with commits: the first commit of interest is the last one that begins at or below `after + 1`. It
    // is searched from the newest on, because readers are mostly near it.
    let sql = "SELECT commit_no FROM commits WHERE shard = $1 AND first_seq <= $2 AND length(events) > 0
        ORDER BY commit_no DESC LIMIT 1";
    let found = db.rows(sql, &[Arg::number(shard), Arg::number(after.saturating_add(1))]).await?;
    Ok(found.first().map(|row| row.number(0)).transpose()?.unwrap_or(0))
}

async fn page<S: Sql>(
    db: &S,
    shard: ShardNo,
    from: u64,
    after: u64,
    limit: usize,
    bytes_max: i64,
) -> Result<Vec<EventRow>, StoreError> {
    let names = names(db).await?;
    // All of the first commit's events may be known: the second always comes with it.
    let most = limit.saturating_add(1);
    let args = [Arg::number(shard), Arg::number(from), Arg::number(most), Arg::number(bytes_max)];
    let rows = db.rows(S::PAGE, &args).await?;
    let (mut found, mut commits) = (Vec::new(), 0);
    for row in &rows {
        let (_, events) = decode::commit(row, 5, &names)?;
        let before = found.len();
        found.extend(events.into_iter().filter(|event| event.seq > after));
        commits += usize::from(found.len() > before);
        if commits == limit {
            break;
        }
    }
    Ok(found)
}

/// The services' numbers by their names.
pub(in crate::store) async fn services(db: &impl Sql) -> Result<BTreeMap<Arc<str>, u16>, StoreError> {
    decode::services(&db.rows(decode::NUMBERS, &[]).await?)
}

/// The services' names by their numbers.
pub(in crate::store) async fn names(db: &impl Sql) -> Result<BTreeMap<u16, Arc<str>>, StoreError> {
    Ok(services(db).await?.into_iter().map(|(name, number)| (number, name)).collect())
}

/// An import's progress so far.
pub(in crate::store) async fn import_progress(
    db: &impl Sql,
    service: String,
    source: String,
) -> Result<ImportProgress, StoreError> {
    let sql = "SELECT lines, messages, rejects, rejects_bytes, lines_hash FROM imports
        WHERE service = $1 AND source = $2";
    let rows = db.rows(sql, &[Arg::Plain(&service), Arg::Plain(&source)]).await?;
    rows.first().map_or_else(|| Ok(ImportProgress::default()), decode::progress)
}

/// The pauses.
pub(in crate::store) async fn pauses(db: &impl Sql) -> Result<Vec<Pause>, StoreError> {
    let sql = "SELECT service, key, who, why, since FROM pauses ORDER BY service, key NULLS FIRST";
    db.rows(sql, &[]).await?.iter().map(decode::pause).collect()
}

/// Commands that a shard has still to execute. An older program executes them without closing them.
pub(in crate::store) async fn open_commands<S: Sql>(
    db: &S,
    shard: ShardNo,
    without: Vec<i64>,
) -> Result<Vec<Result<OpenCommand, Strange>>, StoreError> {
    let each = S::each("$3");
    let sql = format!(
        "SELECT c.id, c.action, c.filter, c.who FROM operator_open o JOIN operator_commands c ON c.id = o.command
         WHERE o.shard = $1 AND o.command NOT IN (SELECT value FROM {each} AS passed)
             AND NOT EXISTS (SELECT 1 FROM operator_results r
                 WHERE r.command = o.command AND r.shard = o.shard AND r.done)
         ORDER BY o.command LIMIT $2"
    );
    let args = [Arg::number(shard), Arg::number(COMMANDS_MAX), Arg::Plain(&json(&without)?)];
    db.rows(&sql, &args).await?.iter().map(decode::command).collect()
}

/// The progress of a command.
pub(in crate::store) async fn command_state(db: &impl Sql, id: i64) -> Result<CommandState, StoreError> {
    let sql = "SELECT count(*) FILTER (WHERE done), (SELECT count(*) FROM shards),
            coalesce(sum(affected), 0)::bigint FROM operator_results WHERE command = $1";
    one(&db.rows(sql, &[Arg::number(id)]).await?, decode::command_state)
}

/// The number of records of calls that each tenant has and that still count at `now`.
pub(in crate::store) async fn call_counts(db: &impl Sql, now: Millis) -> Result<Vec<KeyCount>, StoreError> {
    let sql = "SELECT tenant, until, sum(records)::bigint FROM call_counts WHERE until > $1 GROUP BY tenant, until";
    db.rows(sql, &[Arg::number(now)]).await?.iter().map(decode::key_count).collect()
}

/// Rows of a handler's table.
pub(in crate::store) async fn table<S: Sql>(db: &S, ask: RowsAsk) -> Result<FoundRows, StoreError> {
    let Some((sql, args)) = ask.statement(&S::DIALECT)? else { return Ok(FoundRows::default()) };
    let args: Vec<Arg<'_>> = args.iter().map(Arg::Value).collect();
    let found = db.rows(&sql, &args).await?;
    let rows = found.iter().map(|row| ask.object(|at, column| value(row, at, column))).collect::<Result<_, _>>()?;
    let beyond = found.first().map(|row| row.get(ask.table.columns.len())).transpose()?;
    Ok(RowsAsk::part(rows, beyond))
}

fn value(row: &impl Cells, at: usize, column: &Column) -> Result<Value, StoreError> {
    Ok(match column.kind {
        ColumnKind::Text => row.get::<Option<String>>(at)?.into(),
        ColumnKind::Integer => row.get::<Option<i64>>(at)?.into(),
        ColumnKind::Real => row.get::<Option<f64>>(at)?.into(),
        ColumnKind::Boolean => row.get::<Option<bool>>(at)?.into(),
        ColumnKind::Json if row.get::<Option<&str>>(at)?.is_none() => Value::Null,
        ColumnKind::Json => row.json(at)?,
    })
}
