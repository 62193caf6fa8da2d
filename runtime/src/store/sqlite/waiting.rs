//! Long-lived rows: due keys and timers, read service by service from each one's own place in the index, so that other
//! services' rows cost nothing; dead letters, their ids and their number; operators' commands.
//! In: a shard, the time, the keys that may run, ids. Out: keys, timers, rows; every statement is bounded.

use std::sync::Arc;

use sqlx::sqlite::SqlitePool;
use sqlx::{Connection, SqliteConnection, query};

use super::args::RowArgs;
use super::failure::failed;
use crate::clock::Millis;
use crate::message::{ShardNo, TakenId};
use crate::store::query::sql::{Cells, json, signed};
use crate::store::query::{NewCommand, decode};
use crate::store::{Due, DueTimers, KeyWalk, Letters, Runnable, ServiceKey, StoreError, Timer};

/// Keys of a service whose rows are looked at by one statement.
const KEYS_PAGE: usize = 1_000;

/// The paused keys of a service, for `json_each`.
fn paused(runnable: &Runnable, service: &str) -> Result<String, StoreError> {
    json(&runnable.without(service).collect::<Vec<&str>>())
}

pub(super) async fn due(
    pool: &SqlitePool,
    shard: ShardNo,
    now: Millis,
    runnable: &Runnable,
    limit: usize,
) -> Result<Due, StoreError> {
    let mut found: Vec<(Millis, u64, ServiceKey)> = Vec::new();
    for service in &runnable.services {
        let rows = query(
            "SELECT key, due_at, seq FROM pending
             WHERE shard = ?1 AND service = ?2 AND due_at IS NOT NULL AND key NOT IN (SELECT value FROM json_each(?3))
             ORDER BY due_at, seq LIMIT ?4",
        );
        let rows = rows.bind(shard).bind(&**service).bind(paused(runnable, service)?);
        // One more than asked for: its due time is the next.
        for row in &rows.bind(signed(limit.saturating_add(1))).fetch_all(pool).await.map_err(failed)? {
            let of = ServiceKey { service: Arc::clone(service), key: row.text(0)? };
            found.push((row.number(1)?, row.number(2)?, of));
        }
    }
    found.sort_by_key(|(due_at, seq, _)| (*due_at, *seq));
    Ok(Due::of(found.into_iter().map(|(due_at, _, of)| (due_at, of)), now, limit))
}

pub(super) async fn timers(
    pool: &SqlitePool,
    shard: ShardNo,
    now: Millis,
    runnable: &Runnable,
    limit: usize,
) -> Result<DueTimers, StoreError> {
    let mut found = DueTimers::default();
    for service in &runnable.services {
        let paused = paused(runnable, service)?;
        let rows = query(
            "SELECT service, key, name, due_at, message FROM timers t WHERE shard = ?1 AND service = ?2 AND due_at <= ?3
             AND key NOT IN (SELECT value FROM json_each(?4))
             AND NOT EXISTS (SELECT 1 FROM pending p
                 WHERE p.shard = t.shard AND p.service = t.service AND p.key = t.key)
             AND NOT EXISTS (SELECT 1 FROM dead_letters d
                 WHERE d.shard = t.shard AND d.service = t.service AND d.key = t.key AND d.holds_key = 1)
             ORDER BY due_at LIMIT ?5",
        );
        let rows = rows.bind(shard).bind(&**service).bind(signed(now)).bind(&paused).bind(signed(limit));
        let rows = rows.fetch_all(pool).await.map_err(failed)?;
        found.timers.extend(rows.iter().map(decode::timer).collect::<Result<Vec<_>, _>>()?);
        let row = query(
            "SELECT EXISTS (SELECT 1 FROM timers WHERE shard = ?1 AND service = ?2 AND due_at <= ?3
                     AND key NOT IN (SELECT value FROM json_each(?4))),
                 (SELECT min(due_at) FROM timers WHERE shard = ?1 AND service = ?2 AND due_at > ?3)",
        );
        let row = row.bind(shard).bind(&**service).bind(signed(now)).bind(&paused);
        let row = row.fetch_one(pool).await.map_err(failed)?;
        found.any |= row.get::<bool>(0)?;
        let next: Option<Millis> = row.maybe(1)?;
        found.next = [found.next, next].into_iter().flatten().min();
    }
    found.timers.sort_by_key(|timer: &Timer| timer.due_at);
    found.timers.truncate(limit);
    Ok(found)
}

pub(super) async fn orphans(
    pool: &SqlitePool,
    shard: ShardNo,
    runnable: &Runnable,
    after: Option<ServiceKey>,
    limit: usize,
) -> Result<Vec<ServiceKey>, StoreError> {
    let mut found = Vec::new();
    let mut walk = KeyWalk::new(runnable, after, KEYS_PAGE);
    while let Some((service, behind)) = walk.place().filter(|_| found.len() < limit) {
        let rows = query(
            "SELECT key, max(due_at) IS NULL FROM pending WHERE shard = ?1 AND service = ?2 AND (?3 IS NULL OR key > ?3)
             GROUP BY key ORDER BY key LIMIT ?4",
        );
        let rows = rows.bind(shard).bind(&*service).bind(behind.as_deref()).bind(signed(KEYS_PAGE));
        let rows = rows.fetch_all(pool).await.map_err(failed)?;
        for row in &rows {
            let of = ServiceKey { service: service.clone(), key: row.text(0)? };
            walk.reached(&of.key);
            if row.get::<bool>(1)? && runnable.has(&of) {
                found.push(of);
            }
        }
        walk.read(rows.len());
    }
    found.truncate(limit);
    Ok(found)
}

pub(super) async fn known(
    pool: &SqlitePool,
    shard: ShardNo,
    asked: &[(TakenId, String)],
) -> Result<Vec<bool>, StoreError> {
    let mut rows = RowArgs::default();
    for (id, message) in asked {
        rows.row().put(message).put_blob(&id.0);
    }
    let (json, ids) = rows.finish();
    // By the message's id, in any shard: the plus keeps the planner from an index that begins with the shard.
    let rows = query(
        "SELECT e.key FROM json_each(?2) e
         WHERE EXISTS (SELECT 1 FROM pending p WHERE p.message_id = e.value->>0 AND +p.shard = ?1
                 AND p.taken_id = substr(?3, e.value->>1, e.value->>2))
             OR EXISTS (SELECT 1 FROM dead_letters d WHERE d.message_id = e.value->>0 AND +d.shard = ?1
                 AND d.taken_id = substr(?3, e.value->>1, e.value->>2))",
    );
    let rows = rows.bind(shard).bind(json).bind(ids).fetch_all(pool).await.map_err(failed)?;
    let mut known = vec![false; asked.len()];
    for row in &rows {
        let at: usize = row.number(0)?;
        if let Some(place) = known.get_mut(at) {
            *place = true;
        }
    }
    Ok(known)
}

/// The most letters among which those that sinks refused are looked for when they are counted.
const REFUSED_AMONG: u64 = 500_000;

/// Counts all by the primary key and those that hold by their index, which costs little. Refused events are looked for
/// in the letters themselves, unless there are too many: then only later ones raise the alarm.
pub(super) async fn letters(pool: &SqlitePool, shard: ShardNo) -> Result<Letters, StoreError> {
    let row = query(
        "SELECT (SELECT count(*) FROM dead_letters WHERE shard = ?1),
             (SELECT count(*) FROM dead_letters INDEXED BY dead_letters_holding WHERE shard = ?1 AND holds_key = 1)",
    );
    let row = row.bind(shard).fetch_one(pool).await.map_err(failed)?;
    let mut letters = Letters { count: row.number(0)?, holding: row.number(1)?, refused: 0 };
    if letters.count <= REFUSED_AMONG {
        let row = query("SELECT count(*) FROM dead_letters WHERE shard = ?1 AND substr(taken_id, 21) = ?2");
        let row = row.bind(shard).bind(&TakenId::OUTGOING.to_le_bytes()[..]).fetch_one(pool).await.map_err(failed)?;
        letters.refused = row.number(0)?;
    }
    Ok(letters)
}

/// Records a command, and its change of the pauses; a trigger records the shards in which it is open.
pub(super) async fn record_command(connection: &mut SqliteConnection, command: &NewCommand) -> Result<i64, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let made =
        query("INSERT INTO operator_commands (action, filter, who, why, matched, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)");
    let made = made.bind(json(&command.action)?).bind(json(&command.filter)?).bind(&command.who).bind(&command.why);
    let made = made.bind(signed(command.matched)).bind(signed(command.at)).execute(&mut *transaction).await;
    let id = made.map_err(failed)?.last_insert_rowid();
    if let Some((scope, paused)) = command.pauses() {
        let sql = match paused {
            true => {
                "INSERT INTO pauses (service, key, who, why, since) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING"
            }
            false => "DELETE FROM pauses WHERE service = ?1 AND (?2 IS NULL OR key = ?2)",
        };
        let mut changed = query(sql).bind(&scope.service).bind(&scope.key);
        if paused {
            changed = changed.bind(&command.who).bind(&command.why).bind(signed(command.at));
        }
        changed.execute(&mut *transaction).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)?;
    Ok(id)
}

/// Forgets old commands that are open nowhere.
pub(super) async fn forget_commands(
    connection: &mut SqliteConnection,
    before: Millis,
    limit: usize,
) -> Result<u64, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let gone = query(
        "DELETE FROM operator_commands WHERE id IN (
             SELECT id FROM operator_commands c WHERE at < ?1
                 AND NOT EXISTS (SELECT 1 FROM operator_open o WHERE o.command = c.id) ORDER BY id LIMIT ?2)",
    );
    let gone = gone.bind(signed(before)).bind(signed(limit)).execute(&mut *transaction).await.map_err(failed)?;
    let sql = "DELETE FROM operator_results WHERE command NOT IN (SELECT id FROM operator_commands)";
    query(sql).execute(&mut *transaction).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok(gone.rows_affected())
}
