//! Long-lived rows of a PostgreSQL store: dead letters, their ids and their number, and rows of the intake.
//! In: a shard, ids, numbers. Out: rows; every statement is bounded.

use std::sync::Arc;

use super::links::{Args, Links, shard_no};
use super::read::ROWS_PAGE;
use super::texts::stored;
use crate::message::{KEPT_BYTES, ShardNo, TakenId};
use crate::store::query::sql::{Cells, one, signed};
use crate::store::{IntakeRow, IntakeRows, Letters, StoreError};

/// The most letters among which those that sinks refused are looked for when they are counted.
const REFUSED_AMONG: u64 = 500_000;

/// Counts all by the primary key and those that hold by their index, which costs little. Refused events are looked for
/// in the letters themselves, unless there are too many: then only later ones raise the alarm.
pub(super) async fn letters(links: &Links, shard: ShardNo) -> Result<Letters, StoreError> {
    let pages = "SELECT count(*), max(seq) FROM (
        SELECT seq FROM dead_letters WHERE shard = $1 AND seq > $2 ORDER BY seq LIMIT $3) page";
    let holding = "SELECT count(*) FROM dead_letters WHERE shard = $1 AND holds_key";
    let refused = "SELECT count(*) FROM dead_letters WHERE shard = $1 AND substring(taken_id FROM 21) = $2";
    let (mut letters, mut after) = (Letters::default(), Some(0));
    while let Some(behind) = after {
        let args = Args::default().put(shard_no(shard)).put(signed(behind)).put(ROWS_PAGE);
        let (page, last) =
            one(&links.read(pages, args).await?, |row| Ok((row.number::<u64>(0)?, row.maybe::<u64>(1)?)))?;
        (letters.count, after) = (letters.count + page, last);
    }
    let args = || Args::default().put(shard_no(shard));
    letters.holding = one(&links.read(holding, args()).await?, |row| row.number(0))?;
    if letters.count <= REFUSED_AMONG {
        let args = args().put(&TakenId::OUTGOING.to_le_bytes()[..]);
        letters.refused = one(&links.read(refused, args).await?, |row| row.number(0))?;
    }
    Ok(letters)
}

pub(super) async fn known(links: &Links, shard: ShardNo, asked: &[(TakenId, String)]) -> Result<Vec<bool>, StoreError> {
    let args = Args::default()
        .put(shard_no(shard))
        .put(asked.iter().map(|(id, _)| &id.0[..]).collect::<Vec<&[u8]>>())
        .put(asked.iter().map(|(_, message)| stored(message)).collect::<Vec<_>>());
    // By the message's id, in any shard: "+ 0" keeps the planner from an index that begins with the shard.
    let sql = "SELECT e.at - 1 FROM UNNEST($2::bytea[], $3::text[]) WITH ORDINALITY AS e (id, message_id, at)
        WHERE EXISTS (SELECT FROM pending p
                WHERE p.message_id = e.message_id AND p.shard + 0 = $1 AND p.taken_id = e.id OFFSET 0)
            OR EXISTS (SELECT FROM dead_letters d
                WHERE d.message_id = e.message_id AND d.shard + 0 = $1 AND d.taken_id = e.id OFFSET 0)";
    let mut known = vec![false; asked.len()];
    for row in &links.read(sql, args).await? {
        let at: usize = row.number(0)?;
        if let Some(place) = known.get_mut(at) {
            *place = true;
        }
    }
    Ok(known)
}

/// As many rows as are asked for, fewer if they are large, but at least one. Of one that is too large no more is
/// decompressed than is kept.
const INTAKE: &str = "SELECT no, service, key, id, type, CASE WHEN bytes > $4 THEN '{}' ELSE headers::text END,
        CASE WHEN bytes > $4 THEN left(payload, $5) ELSE payload END,
        greatest((extract(epoch FROM at) * 1000)::bigint, 0), bytes
    FROM (SELECT i.*, sum(least(bytes, $4)) OVER (ORDER BY no) - least(bytes, $4) AS before
        FROM (SELECT *, octet_length(payload)::bigint + octet_length(headers::text) AS bytes FROM perkey_intake
            WHERE shard = $1 AND no <> ALL ($2) ORDER BY no LIMIT $3) i) i
    WHERE before < 4194304 ORDER BY no";

pub(super) async fn intake(
    links: &Links,
    shard: ShardNo,
    held: &[u64],
    limit: usize,
    bytes_max: usize,
) -> Result<IntakeRows, StoreError> {
    let held: Vec<i64> = held.iter().copied().map(signed).collect();
    let mut found = IntakeRows::default();
    if !held.is_empty() {
        let sql = "SELECT no FROM perkey_intake WHERE shard = $1 AND no = ANY ($2)";
        for row in &links.read(sql, Args::default().put(shard_no(shard)).put(&held)).await? {
            found.left.push(row.number(0)?);
        }
    }
    let args = Args::default().put(shard_no(shard)).put(&held).put(signed(limit)).put(signed(bytes_max));
    for row in &links.read(INTAKE, args.put(i32::try_from(KEPT_BYTES).unwrap_or(i32::MAX))).await? {
        found.rows.push(IntakeRow {
            no: row.number(0)?,
            service: row.get::<Option<&str>>(1)?.map(Arc::from),
            key: row.get(2)?,
            id: row.get(3)?,
            kind: row.get(4)?,
            headers: row.get(5)?,
            payload: row.get(6)?,
            at: row.number(7)?,
            bytes: row.number(8)?,
        });
    }
    Ok(found)
}
