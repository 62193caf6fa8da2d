//! Reads of a shard: its inbox, states, waiting messages and the embedded log.
//! In: a shard and bounds. Out: rows; every statement is bounded and follows an index.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::sqlite::SqlitePool;
use sqlx::{AssertSqlSafe, query};

use super::args::RowArgs;
use super::failure::failed;
use crate::clock::Millis;
use crate::message::{Positions, ShardNo};
use crate::store::query::sql::{Cells, signed};
use crate::store::query::{ask, decode};
use crate::store::{CommitIds, InboxRows, KeyRow, PendingRow, RowSpan, ServiceKey, StoreError, StoredLogRow, layout};

pub(super) async fn inbox(
    pool: &SqlitePool,
    shard: ShardNo,
    since: Millis,
    max: usize,
) -> Result<InboxRows, StoreError> {
    let mut found = InboxRows::default();
    let mut count = 0;
    let mut rows = query(
        "SELECT commit_no, at, ids, prints FROM commits
         WHERE shard = ?1 AND at >= ?2 AND length(ids) > 0 ORDER BY commit_no DESC",
    )
    .bind(shard)
    .bind(signed(since))
    .fetch(pool);
    while count < max
        && let Some(row) = rows.try_next().await.map_err(failed)?
    {
        let ids = layout::taken(row.get(2)?, row.get(3)?)?;
        count += ids.len();
        found.commits.push(CommitIds { no: row.number(0)?, at: row.number(1)?, ids });
    }
    drop(rows);
    found.commits.reverse();
    let row = query("SELECT count(*) FROM pending WHERE shard = ?1").bind(shard).fetch_one(pool).await;
    found.pending = row.map_err(failed)?.number(0)?;
    found.paused = ask::pauses(pool).await?.into_iter().map(|pause| pause.scope).collect();
    Ok(found)
}

pub(super) async fn load(pool: &SqlitePool, shard: ShardNo, keys: &[ServiceKey]) -> Result<Vec<KeyRow>, StoreError> {
    let mut asked = RowArgs::default();
    for key in keys {
        asked.row().put(&*key.service).put(&*key.key);
    }
    // Keys without stored rows give no row: a row costs more to hand over than to find.
    let rows = query(
        "SELECT at, version, state, held, first, last, waiting, dead FROM (
             SELECT e.key AS at, s.version, s.state,
                 EXISTS (SELECT 1 FROM dead_letters d
                     WHERE d.shard = ?1 AND d.service = e.value->>0 AND d.key = e.value->>1
                         AND d.holds_key = 1) AS held,
                 EXISTS (SELECT 1 FROM dead_letters d WHERE d.shard = ?1 AND d.key = e.value->>1) AS dead,
                 (SELECT min(seq) FROM pending p
                     WHERE p.shard = ?1 AND p.service = e.value->>0 AND p.key = e.value->>1) AS first,
                 (SELECT max(seq) FROM pending p
                     WHERE p.shard = ?1 AND p.service = e.value->>0 AND p.key = e.value->>1) AS last,
                 (SELECT count(seq) FROM pending p
                     WHERE p.shard = ?1 AND p.service = e.value->>0 AND p.key = e.value->>1) AS waiting
             FROM json_each(?2) e LEFT JOIN states s ON s.service = e.value->>0 AND s.key = e.value->>1
         ) WHERE version IS NOT NULL OR dead OR first IS NOT NULL",
    )
    .bind(shard)
    .bind(asked.finish().0)
    .fetch_all(pool)
    .await
    .map_err(failed)?;
    let mut found = vec![KeyRow::default(); keys.len()];
    for row in &rows {
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

pub(super) async fn page(
    pool: &SqlitePool,
    shard: ShardNo,
    key: ServiceKey,
    after: u64,
    limit: usize,
) -> Result<Vec<PendingRow>, StoreError> {
    let sql = format!(
        "SELECT {} FROM pending WHERE shard = ?1 AND service = ?2 AND key = ?3 AND seq > ?4 ORDER BY seq LIMIT ?5",
        decode::PENDING
    );
    let rows = query(AssertSqlSafe(sql))
        .bind(shard)
        .bind(key.service)
        .bind(key.key)
        .bind(signed(after))
        .bind(signed(limit))
        .fetch_all(pool)
        .await
        .map_err(failed)?;
    rows.iter().map(decode::pending).collect()
}

/// The origins of a target, found by hopping from one to the next in the index.
const ORIGINS: &str = "origins (origin) AS (
    SELECT min(origin) FROM log WHERE target = ?1
    UNION ALL
    SELECT (SELECT min(l.origin) FROM log l WHERE l.target = ?1 AND l.origin > o.origin)
    FROM origins o WHERE o.origin IS NOT NULL)";

/// The weight of a row of the log: its messages, or its bytes by [`crate::store::append::WEIGHT_BYTES`].
const WEIGHT: &str = "max(l.count, length(l.messages) / 2048)";

pub(super) async fn read_log(
    pool: &SqlitePool,
    target: ShardNo,
    from: &Positions,
    limit: usize,
) -> Result<Vec<StoredLogRow>, StoreError> {
    let mut known = RowArgs::default();
    for (origin, position) in from {
        known.row().put(&**origin).put(position.no).put(u64::from(position.index) + 1);
    }
    // From each origin's first unread row on, row by row, until their messages reach the limit: each origin gets its
    // share, so that a busy one does not keep the others waiting. A large row counts by its bytes.
    let sql = format!(
        "WITH RECURSIVE {ORIGINS},
         known (origin, no, passed) AS (SELECT value->>0, value->>1, value->>2 FROM json_each(?2)),
         starts (origin, no, share) AS (
             SELECT o.origin, (
                 SELECT l.no FROM log l
                 WHERE l.target = ?1 AND l.origin = o.origin AND l.no >= coalesce(k.no, 0)
                     AND (l.no > coalesce(k.no, 0) OR l.count > coalesce(k.passed, 0))
                 ORDER BY l.no LIMIT 1
             ), max(1, ?3 / (SELECT count(*) FROM origins))
             FROM origins o LEFT JOIN known k ON k.origin = o.origin WHERE o.origin IS NOT NULL),
         picked (origin, no, share, sum) AS (
             SELECT s.origin, s.no, s.share,
                 (SELECT {WEIGHT} FROM log l WHERE l.target = ?1 AND l.origin = s.origin AND l.no = s.no)
             FROM starts s WHERE s.no IS NOT NULL
             UNION ALL
             SELECT p.origin, l.no, p.share, p.sum + {WEIGHT}
             FROM picked p JOIN log l ON l.target = ?1 AND l.origin = p.origin AND l.no = (
                 SELECT min(n.no) FROM log n WHERE n.target = ?1 AND n.origin = p.origin AND n.no > p.no)
             WHERE p.sum < p.share)
         SELECT l.origin, l.no, l.messages FROM picked p
         CROSS JOIN log l ON l.target = ?1 AND l.origin = p.origin AND l.no = p.no"
    );
    let rows = query(AssertSqlSafe(sql))
        .bind(target)
        .bind(known.finish().0)
        .bind(signed(limit))
        .fetch_all(pool)
        .await
        .map_err(failed)?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let origin: &str = row.get(0)?;
        let origin = from.get_key_value(origin).map_or_else(|| Arc::from(origin), |(origin, _)| Arc::clone(origin));
        found.push(StoredLogRow { origin, no: row.number(1)?, messages: row.blob(2)? });
    }
    found.sort_by(|a, b| (&a.origin, a.no).cmp(&(&b.origin, b.no)));
    Ok(found)
}
