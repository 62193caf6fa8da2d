//! Reads of a shard: its inbox, states, waiting messages and the embedded log.
//! In: a shard and bounds. Out: rows; every statement is bounded and follows an index.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgRow;

use super::links::{Args, Links, shard_no};
use super::texts::stored;
use crate::clock::Millis;
use crate::message::{Positions, ShardNo};
use crate::store::query::sql::{Cells, one, signed};
use crate::store::query::{ask, decode};
use crate::store::{
    CommitIds, Due, DueTimers, InboxRows, KeyRow, KeyWalk, PendingRow, RowSpan, Runnable, ServiceKey, StoreError,
    StoredLogRow, layout,
};

/// Commits whose ids are read at once.
const INBOX_PAGE: i64 = 2_000;

pub(super) async fn inbox(links: &Links, shard: ShardNo, since: Millis, max: usize) -> Result<InboxRows, StoreError> {
    let mut found = InboxRows::default();
    let (mut count, mut below) = (0, i64::MAX);
    'pages: loop {
        let args = Args::default().put(shard_no(shard)).put(signed(since)).put(below).put(INBOX_PAGE);
        let rows = links
            .read(
                "SELECT commit_no, at, ids, prints FROM commits
                 WHERE shard = $1 AND at >= $2 AND commit_no < $3 AND length(ids) > 0
                 ORDER BY commit_no DESC LIMIT $4",
                args,
            )
            .await?;
        for row in &rows {
            if count >= max {
                break 'pages;
            }
            let ids = layout::taken(row.get(2)?, row.get(3)?)?;
            count += ids.len();
            below = row.get(0)?;
            found.commits.push(CommitIds { no: row.number(0)?, at: row.number(1)?, ids });
        }
        if rows.len() < INBOX_PAGE as usize {
            break;
        }
    }
    found.commits.reverse();
    found.pending = count_pending(links, shard).await?;
    found.paused = ask::pauses(links).await?.into_iter().map(|pause| pause.scope).collect();
    Ok(found)
}

/// Rows that are counted by one statement.
pub(super) const ROWS_PAGE: i64 = 50_000;

async fn count_pending(links: &Links, shard: ShardNo) -> Result<u64, StoreError> {
    let sql = "SELECT count(*), max(seq) FROM (
        SELECT seq FROM pending WHERE shard = $1 AND seq > $2 ORDER BY seq LIMIT $3) page";
    let (mut sum, mut after) = (0, Some(0));
    while let Some(behind) = after {
        let args = Args::default().put(shard_no(shard)).put(signed(behind)).put(ROWS_PAGE);
        let (count, last) =
            one(&links.read(sql, args).await?, |row| Ok((row.number::<u64>(0)?, row.maybe::<u64>(1)?)))?;
        (sum, after) = (sum + count, last);
    }
    Ok(sum)
}

pub(super) async fn load(links: &Links, shard: ShardNo, keys: &[ServiceKey]) -> Result<Vec<KeyRow>, StoreError> {
    let mut found = vec![KeyRow::default(); keys.len()];
    if keys.is_empty() {
        return Ok(found);
    }
    let args = Args::default()
        .put(shard_no(shard))
        .put(keys.iter().map(|key| stored(&key.service)).collect::<Vec<_>>())
        .put(keys.iter().map(|key| stored(&key.key)).collect::<Vec<_>>());
    // Keys without stored rows give no row: a row costs more to hand over than to find.
    let sql = "SELECT e.at - 1, s.version, s.state::text, h.held, p.first, p.last, p.waiting, h.dead
        FROM UNNEST($2::text[], $3::text[]) WITH ORDINALITY AS e (service, key, at)
        LEFT JOIN states s ON s.service = e.service AND s.key = e.key
        CROSS JOIN LATERAL (SELECT EXISTS (SELECT 1 FROM dead_letters d
            WHERE d.shard = $1 AND d.service = e.service AND d.key = e.key AND d.holds_key OFFSET 0),
            EXISTS (SELECT 1 FROM dead_letters d WHERE d.shard = $1 AND d.key = e.key OFFSET 0)) AS h (held, dead)
        CROSS JOIN LATERAL (SELECT min(w.seq), max(w.seq), count(w.seq) FROM pending w
            WHERE w.shard = $1 AND w.service = e.service AND w.key = e.key) AS p (first, last, waiting)
        WHERE s.version IS NOT NULL OR h.dead OR p.first IS NOT NULL";
    for row in &links.read(sql, args).await? {
        let at: usize = row.number(0)?;
        let version: Option<u32> = row.maybe(1)?;
        let state = match version {
            Some(version) => Some((version, Bytes::copy_from_slice(row.get::<&str>(2)?.as_bytes()))),
            None => None,
        };
        let pending = row.maybe(4)?.zip(row.maybe(5)?);
        let count = row.number(6)?;
        let pending = pending.map(|(first, last)| RowSpan { first, last, count });
        if let Some(slot) = found.get_mut(at) {
            *slot = KeyRow { state, held: row.get(3)?, dead: row.get(7)?, pending };
        }
    }
    Ok(found)
}

/// The services of [`Runnable`] and its paused keys, as statements expect them last.
fn runnable_args(args: Args, runnable: &Runnable) -> Args {
    args.put(runnable.services.iter().map(|service| stored(service)).collect::<Vec<_>>())
        .put(runnable.without.iter().map(|of| stored(&of.service)).collect::<Vec<_>>())
        .put(runnable.without.iter().map(|of| stored(&of.key)).collect::<Vec<_>>())
}

// Service by service, each from its own place in the index: rows of others are not looked at. OFFSET 0 keeps the
// look-ups of a row's key look-ups, whatever the plan; where one row is enough the index's order does so.

const DUE: &str = "SELECT r.service, r.key, r.due_at FROM UNNEST($3::text[]) AS s (service) CROSS JOIN LATERAL (
        SELECT p.service, p.key, p.due_at, p.seq FROM pending p
        WHERE p.shard = $1 AND p.service = s.service AND p.due_at IS NOT NULL
            AND NOT EXISTS (SELECT FROM UNNEST($4::text[], $5::text[]) AS w (service, key)
                WHERE w.service = p.service AND w.key = p.key OFFSET 0)
        ORDER BY p.due_at, p.seq LIMIT $2) r
    ORDER BY r.due_at, r.seq LIMIT $2";

const TIMERS: &str = "SELECT r.* FROM UNNEST($4::text[]) AS s (service) CROSS JOIN LATERAL (
        SELECT t.service, t.key, t.name, t.due_at, t.message FROM timers t
        WHERE t.shard = $1 AND t.service = s.service AND t.due_at <= $2
            AND NOT EXISTS (SELECT FROM UNNEST($5::text[], $6::text[]) AS w (service, key)
                WHERE w.service = t.service AND w.key = t.key OFFSET 0)
            AND NOT EXISTS (SELECT FROM pending p
                WHERE p.shard = t.shard AND p.service = t.service AND p.key = t.key OFFSET 0)
            AND NOT EXISTS (SELECT FROM dead_letters d
                WHERE d.shard = t.shard AND d.service = t.service AND d.key = t.key AND d.holds_key OFFSET 0)
        ORDER BY t.due_at LIMIT $3) r
    ORDER BY r.due_at LIMIT $3";

/// True if any of these timers is due, and the time of the next one that is not.
const NEXT_TIMER: &str = "SELECT coalesce(bool_or(n.due), false), min(n.next) FROM UNNEST($3::text[]) AS s (service)
    CROSS JOIN LATERAL (SELECT
        (SELECT true FROM timers t WHERE t.shard = $1 AND t.service = s.service AND t.due_at <= $2
            AND NOT EXISTS (SELECT FROM UNNEST($4::text[], $5::text[]) AS w (service, key)
                WHERE w.service = t.service AND w.key = t.key OFFSET 0)
            ORDER BY t.due_at LIMIT 1),
        (SELECT t.due_at FROM timers t WHERE t.shard = $1 AND t.service = s.service AND t.due_at > $2
            ORDER BY t.due_at LIMIT 1)) AS n (due, next)";

pub(super) async fn due(
    links: &Links,
    shard: ShardNo,
    now: Millis,
    runnable: &Runnable,
    limit: usize,
) -> Result<Due, StoreError> {
    // One more than asked for: its due time is the next.
    let args = Args::default().put(shard_no(shard)).put(signed(limit.saturating_add(1)));
    let rows = links.read(DUE, runnable_args(args, runnable)).await?;
    let row = |row: &PgRow| Ok((row.number(2)?, ServiceKey { service: row.text(0)?, key: row.text(1)? }));
    let rows = rows.iter().map(row).collect::<Result<Vec<_>, StoreError>>()?;
    Ok(Due::of(rows, now, limit))
}

pub(super) async fn timers(
    links: &Links,
    shard: ShardNo,
    now: Millis,
    runnable: &Runnable,
    limit: usize,
) -> Result<DueTimers, StoreError> {
    let args = Args::default().put(shard_no(shard)).put(signed(now));
    let rows = links.read(TIMERS, runnable_args(args.clone().put(signed(limit)), runnable)).await?;
    let found = links.read(NEXT_TIMER, runnable_args(args, runnable)).await?;
    let mut due =
        DueTimers { timers: rows.iter().map(decode::timer).collect::<Result<_, _>>()?, ..DueTimers::default() };
    if let Some(row) = found.first() {
        (due.any, due.next) = (row.get(0)?, row.maybe(1)?);
    }
    Ok(due)
}

/// Keys of a service whose rows are looked at by one statement.
const KEYS_PAGE: usize = 1_000;

pub(super) async fn orphans(
    links: &Links,
    shard: ShardNo,
    runnable: &Runnable,
    after: Option<ServiceKey>,
    limit: usize,
) -> Result<Vec<ServiceKey>, StoreError> {
    let sql = "SELECT key, max(due_at) IS NULL FROM pending
        WHERE shard = $1 AND service = $2 AND ($3::text IS NULL OR key > $3) GROUP BY key ORDER BY key LIMIT $4";
    let mut found = Vec::new();
    let mut walk = KeyWalk::new(runnable, after, KEYS_PAGE);
    while let Some((service, behind)) = walk.place().filter(|_| found.len() < limit) {
        let args = Args::default().put(shard_no(shard)).put(stored(&service));
        let rows = links.read(sql, args.put(behind.as_deref().map(stored)).put(signed(KEYS_PAGE))).await?;
        for row in &rows {
            let of = ServiceKey { service: service.clone(), key: row.text(0)? };
            walk.reached(&of.key);
            if row.get(1)? && runnable.has(&of) {
                found.push(of);
            }
        }
        walk.read(rows.len());
    }
    found.truncate(limit);
    Ok(found)
}

pub(super) async fn page(
    links: &Links,
    shard: ShardNo,
    key: ServiceKey,
    after: u64,
    limit: usize,
) -> Result<Vec<PendingRow>, StoreError> {
    let sql = format!(
        "SELECT {} FROM pending WHERE shard = $1 AND service = $2 AND key = $3 AND seq > $4 ORDER BY seq LIMIT $5",
        decode::PENDING
    );
    let args = Args::default()
        .put(shard_no(shard))
        .put(stored(&key.service))
        .put(stored(&key.key))
        .put(signed(after))
        .put(signed(limit));
    links.read(AssertSqlSafe(sql), args).await?.iter().map(decode::pending).collect()
}

/// From each origin's first unread row on, row by row, until their messages reach the limit, a large row counting by
/// its bytes with [`crate::store::append::WEIGHT_BYTES`]: each origin gets its share, so that a busy one does not keep
/// the others waiting. The origins are found by hopping from one to the next in the index.
const READ_LOG: &str = "
    WITH RECURSIVE origins (origin) AS (
        (SELECT origin FROM log WHERE target = $1 ORDER BY origin LIMIT 1)
        UNION ALL
        SELECT n.origin FROM origins o CROSS JOIN LATERAL (
            SELECT l.origin FROM log l WHERE l.target = $1 AND l.origin > o.origin ORDER BY l.origin LIMIT 1) n),
    known (origin, no, passed) AS (SELECT * FROM UNNEST($2::text[], $3::bigint[], $4::bigint[])),
    picked (origin, no, share, sum) AS (
        SELECT o.origin, l.no, greatest(1, $5::bigint / (SELECT count(*) FROM origins)), l.weight
        FROM origins o LEFT JOIN known k ON k.origin = o.origin
        CROSS JOIN LATERAL (
            SELECT l.no, greatest(l.count, octet_length(l.messages) / 2048)::bigint AS weight FROM log l
            WHERE l.target = $1 AND l.origin = o.origin AND l.no >= coalesce(k.no, 0)
                AND (l.no > coalesce(k.no, 0) OR l.count > coalesce(k.passed, 0))
            ORDER BY l.no LIMIT 1) l
        UNION ALL
        SELECT p.origin, l.no, p.share, p.sum + l.weight
        FROM picked p CROSS JOIN LATERAL (
            SELECT l.no, greatest(l.count, octet_length(l.messages) / 2048)::bigint AS weight FROM log l
            WHERE l.target = $1 AND l.origin = p.origin AND l.no > p.no ORDER BY l.no LIMIT 1) l
        WHERE p.sum < p.share)
    SELECT l.origin, l.no, l.messages FROM picked p
    CROSS JOIN LATERAL (
        SELECT l.origin, l.no, l.messages FROM log l
        WHERE l.target = $1 AND l.origin = p.origin AND l.no = p.no OFFSET 0) l";

pub(super) async fn read_log(
    links: &Links,
    target: ShardNo,
    from: &Positions,
    limit: usize,
) -> Result<Vec<StoredLogRow>, StoreError> {
    let args = Args::default()
        .put(shard_no(target))
        .put(from.keys().map(|origin| &**origin).collect::<Vec<_>>())
        .put(from.values().map(|position| signed(position.no)).collect::<Vec<_>>())
        .put(from.values().map(|position| i64::from(position.index) + 1).collect::<Vec<_>>())
        .put(signed(limit));
    let rows = links.read(READ_LOG, args).await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let origin: &str = row.get(0)?;
        let origin = from.get_key_value(origin).map_or_else(|| Arc::from(origin), |(origin, _)| Arc::clone(origin));
        found.push(StoredLogRow { origin, no: row.number(1)?, messages: row.blob(2)? });
    }
    found.sort_by(|a, b| (&a.origin, a.no).cmp(&(&b.origin, b.no)));
    Ok(found)
}

/// Only a member of `pg_monitor` sees how long other roles' sessions have been in a transaction. A session that has
/// read under read committed and waits keeps no dead rows; nor does vacuum itself.
const OLDEST: &str = "SELECT greatest(
        (SELECT max(extract(epoch FROM clock_timestamp() - xact_start)) FROM pg_stat_activity
            WHERE datname = current_database() AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
                AND backend_type <> 'autovacuum worker' AND pid <> pg_backend_pid()),
        (SELECT max(extract(epoch FROM clock_timestamp() - prepared)) FROM pg_prepared_xacts
            WHERE database = current_database()), 0)::float8";

pub(super) async fn oldest_transaction(links: &Links) -> Result<Option<Duration>, StoreError> {
    let rows = links.read(OLDEST, Args::default()).await?;
    let seconds: f64 = rows.first().map_or(Ok(0.0), |row| row.get(0))?;
    Ok(Some(Duration::try_from_secs_f64(seconds).unwrap_or_default()))
}
