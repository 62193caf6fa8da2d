//! What a shard reads back: its inbox, states, waiting messages, dead letters and the embedded log.
//! In: a shard and bounds. Out: rows; every statement is bounded and follows an index.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::AssertSqlSafe;

use super::commit::shard_no;
use super::decode::{self, stored};
use super::links::{Args, Links};
use super::queries::one;
use crate::clock::Millis;
use crate::message::{Positions, ShardNo};
use crate::store::query::{DeadFilter, PAUSES, Pause, Scope};
use crate::store::{
    CommitIds, DeadLetter, DeadPlace, Due, DueTimers, InboxRows, KeyRow, KeyWalk, PendingRow, RowSpan, Runnable,
    ServiceKey, StoreError, StoredLogRow, Timer, layout,
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
            let ids = layout::taken(decode::get(row, 2)?, decode::get(row, 3)?)?;
            count += ids.len();
            below = decode::get(row, 0)?;
            found.commits.push(CommitIds { no: decode::number(row, 0)?, at: decode::number(row, 1)?, ids });
        }
        if rows.len() < INBOX_PAGE as usize {
            break;
        }
    }
    found.commits.reverse();
    found.pending = count_pending(links, shard).await?;
    found.paused = pauses(links).await?.into_iter().map(|pause| pause.scope).collect();
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
        let (count, last) = one(&links.read(sql, args).await?, |row| {
            Ok((decode::number::<u64>(row, 0)?, decode::maybe::<u64>(row, 1)?))
        })?;
        (sum, after) = (sum + count, last);
    }
    Ok(sum)
}

pub(super) async fn pauses(links: &Links) -> Result<Vec<Pause>, StoreError> {
    let rows = links.read(PAUSES, Args::default()).await?;
    let pause = |row| {
        let key = decode::get::<Option<&str>>(row, 1)?.map(|_| decode::string(row, 1)).transpose()?;
        let scope = Scope { service: decode::string(row, 0)?, key };
        Ok(Pause { scope, who: decode::get(row, 2)?, why: decode::get(row, 3)?, since: decode::number(row, 4)? })
    };
    rows.iter().map(pause).collect()
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
    // Keys of which nothing is stored give no row: a row costs more to hand over than to find.
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
        let at: usize = decode::number(row, 0)?;
        let version: Option<u32> = decode::maybe(row, 1)?;
        let state = match version {
            Some(version) => Some((version, Bytes::copy_from_slice(decode::get::<&str>(row, 2)?.as_bytes()))),
            None => None,
        };
        let pending = decode::maybe(row, 4)?.zip(decode::maybe(row, 5)?);
        let count = decode::number(row, 6)?;
        let pending = pending.map(|(first, last)| RowSpan { first, last, count });
        if let Some(slot) = found.get_mut(at) {
            *slot = KeyRow { state, held: decode::get(row, 3)?, dead: decode::get(row, 7)?, pending };
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

// Service by service, each from its own place in the index: what others have is not looked at. OFFSET 0 keeps the look-ups
// of a row's key what they are, whatever is planned; where one row is enough, the order does: it is the index's.

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

/// Whether any of these is due, and when the next one is that is not.
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
    let args = Args::default().put(shard_no(shard)).put(count(limit.saturating_add(1)));
    let rows = links.read(DUE, runnable_args(args, runnable)).await?;
    let row =
        |row| Ok((decode::number(row, 2)?, ServiceKey { service: decode::text(row, 0)?, key: decode::text(row, 1)? }));
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
    let rows = links.read(TIMERS, runnable_args(args.clone().put(count(limit)), runnable)).await?;
    let found = links.read(NEXT_TIMER, runnable_args(args, runnable)).await?;
    let mut due =
        DueTimers { timers: rows.iter().map(decode::timer).collect::<Result<_, _>>()?, ..DueTimers::default() };
    if let Some(row) = found.first() {
        (due.any, due.next) = (decode::get(row, 0)?, decode::maybe(row, 1)?);
    }
    Ok(due)
}

pub(super) async fn schedules(links: &Links, shard: ShardNo) -> Result<Vec<Timer>, StoreError> {
    let sql = "SELECT service, key, name, due_at, message FROM timers
        WHERE shard = $1 AND name >= 'cron:' AND name < 'cron;' ORDER BY service, key, name";
    links.read(sql, Args::default().put(shard_no(shard))).await?.iter().map(decode::timer).collect()
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
        let rows = links.read(sql, args.put(behind.as_deref().map(stored)).put(count(KEYS_PAGE))).await?;
        for row in &rows {
            let of = ServiceKey { service: service.clone(), key: decode::text(row, 0)? };
            walk.reached(&of.key);
            if decode::get(row, 1)? && runnable.has(&of) {
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
        .put(count(limit));
    links.read(AssertSqlSafe(sql), args).await?.iter().map(decode::pending).collect()
}

/// The conditions of a [`DeadFilter`] over arguments $1 to $6.
pub(super) const FILTER: &str = "($1::text IS NULL OR service = $1) AND ($2::text IS NULL OR key = $2)
    AND ($3::text IS NULL OR message_id = $3) AND ($4::bigint IS NULL OR at >= $4)
    AND ($5::bigint IS NULL OR at <= $5) AND ($6::text IS NULL OR strpos(error, $6) > 0)";

/// A [`DeadFilter`] as [`FILTER`] expects it.
pub(super) fn filtered(filter: &DeadFilter) -> Args {
    Args::default()
        .put(filter.service.as_deref().map(stored))
        .put(filter.key.as_deref().map(stored))
        .put(filter.id.as_deref().map(stored))
        .put(filter.since.map(signed))
        .put(filter.until.map(signed))
        .put(filter.error.as_deref().map(stored))
}

pub(super) async fn dead(
    links: &Links,
    shard: ShardNo,
    filter: &DeadFilter,
    after: Option<DeadPlace>,
    limit: usize,
) -> Result<Vec<DeadLetter>, StoreError> {
    let sql = format!(
        "SELECT {} FROM dead_letters WHERE shard = $7 AND ($9::text IS NULL OR (key, seq) > ($9, $10)) AND {FILTER}
         ORDER BY key, seq LIMIT $8",
        decode::DEAD
    );
    let (key, seq) = after.unzip();
    let args =
        filtered(filter).put(shard_no(shard)).put(count(limit)).put(key.as_deref().map(stored)).put(seq.map(signed));
    links.read(AssertSqlSafe(sql), args).await?.iter().map(decode::dead).collect()
}

/// From each origin's first unread row on, row by row, until their messages reach the limit, a large row counting for as
/// many as its bytes are by [`crate::store::append::WEIGHT_BYTES`]: each origin gets its
/// share, so that a busy one does not keep the others waiting. The origins are found by hopping from one to the next
/// in the index.
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
        .put(count(limit));
    let rows = links.read(READ_LOG, args).await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let origin: &str = decode::get(row, 0)?;
        let origin = from.get_key_value(origin).map_or_else(|| Arc::from(origin), |(origin, _)| Arc::clone(origin));
        found.push(StoredLogRow { origin, no: decode::number(row, 1)?, messages: decode::blob(row, 2)? });
    }
    found.sort_by(|a, b| (&a.origin, a.no).cmp(&(&b.origin, b.no)));
    Ok(found)
}

/// Of other roles' sessions only a member of `pg_monitor` sees since when they are in a transaction. A session that has read
/// under read committed, and waits, keeps nothing; what vacuum itself does keeps nothing either.
const OLDEST: &str = "SELECT greatest(
        (SELECT max(extract(epoch FROM clock_timestamp() - xact_start)) FROM pg_stat_activity
            WHERE datname = current_database() AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
                AND backend_type <> 'autovacuum worker' AND pid <> pg_backend_pid()),
        (SELECT max(extract(epoch FROM clock_timestamp() - prepared)) FROM pg_prepared_xacts
            WHERE database = current_database()), 0)::float8";

pub(super) async fn oldest_transaction(links: &Links) -> Result<Option<Duration>, StoreError> {
    let rows = links.read(OLDEST, Args::default()).await?;
    let seconds: f64 = rows.first().map_or(Ok(0.0), |row| decode::get(row, 0))?;
    Ok(Some(Duration::try_from_secs_f64(seconds).unwrap_or_default()))
}

/// A number as PostgreSQL has it; one that is too large is larger than all that is stored either way.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A bound as PostgreSQL has it.
pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
