//! The statements of a reshard, in one transaction, on either database.
//! In: a connection. Out: all of it done, or nothing.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row as _, SqliteConnection, query};

use super::{Found, New, Old, Plan, ReshardError, ReshardRow, Resharded, in_time, obstacles};
use crate::message::{Position, ShardNo, shard_of};
use crate::store::StoreError;
use crate::store::layout::{self, log};

/// The number that is added to those of the new shards while the old ones still exist.
const ASIDE: i64 = 1_000_000;

fn failed(error: &sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => StoreError::Corrupt(error.to_string()),
        other => StoreError::Unavailable(other.to_string()),
    }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn shard_no(number: i64) -> ShardNo {
    ShardNo::try_from(number).unwrap_or(ShardNo::MAX)
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn text<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// Unread messages of the log's rows: target, origin, number and count.
fn unread(old: &[Old], rows: Vec<(ShardNo, String, u64, u64)>) -> u64 {
    let at: BTreeMap<(ShardNo, &str), &Position> = old
        .iter()
        .filter_map(|row| Some((row.shard, row.positions.get(log::NAME)?)))
        .flat_map(|(shard, origins)| origins.iter().map(move |(origin, position)| ((shard, &**origin), position)))
        .collect();
    let passed = |target, origin: &str, no, count| {
        at.get(&(target, origin))
            .is_some_and(|position| no < position.no || (no == position.no && count <= u64::from(position.index) + 1))
    };
    rows.into_iter().filter(|(target, origin, no, count)| !passed(*target, origin, *no, *count)).map(|row| row.3).sum()
}

macro_rules! on {
    (
        $module:ident, $connection:ty, json: $json:literal, begin: $begin:literal, alive: $alive:literal,
        intake: $intake:literal
    ) => {
        pub(in crate::store) mod $module {
            use super::*;

            /// Gives the store another number of shards.
            pub(in crate::store) async fn reshard(
                connection: &mut $connection,
                to: u32,
                sinks: &[String],
            ) -> Result<Resharded, ReshardError> {
                let mut transaction = connection.begin_with($begin).await.map_err(|error| failed(&error))?;
                let resharded = all(&mut transaction, to, sinks).await?;
                transaction.commit().await.map_err(|error| failed(&error))?;
                Ok(resharded)
            }

            async fn all(
                connection: &mut $connection,
                to: u32,
                sinks: &[String],
            ) -> Result<Resharded, ReshardError> {
                let old = shards(connection).await?;
                let found = found(connection, &old).await?;
                let obstacles = obstacles(&old, &found, sinks, to);
                if !obstacles.is_empty() {
                    return Err(ReshardError::Refused(obstacles));
                }
                let from = u32::try_from(old.len()).unwrap_or(u32::MAX);
                let mut plan = Plan::new(&old, to);
                let commits = commits(connection, &mut plan).await?;
                let (pending, dead_letters) = waiting(connection, &mut plan).await?;
                commands(connection, to).await?;
                rewrite(connection, &plan.shards(&old)).await?;
                Ok(Resharded { from, to, commits, pending, dead_letters })
            }

            async fn run(connection: &mut $connection, sql: String) -> Result<(), StoreError> {
                query(AssertSqlSafe(sql)).execute(connection).await.map(drop).map_err(|error| failed(&error))
            }

            async fn count(connection: &mut $connection, sql: &'static str) -> Result<u64, StoreError> {
                let row = query(sql).fetch_one(connection).await.map_err(|error| failed(&error))?;
                row.try_get::<i64, _>(0).map(unsigned).map_err(|error| failed(&error))
            }

            async fn shards(connection: &mut $connection) -> Result<Vec<Old>, StoreError> {
                let sql = "SELECT CAST(shard AS bigint), owner, epoch, commit_no, outbox_seq, code_version,
                    CAST(positions AS text), CAST(watermarks AS text), CAST(counters AS text), ahead,
                    CAST(code_versions AS text)
                    FROM shards ORDER BY shard";
                let rows = query(sql).fetch_all(connection).await.map_err(|error| failed(&error))?;
                let mut old = Vec::with_capacity(rows.len());
                for row in &rows {
                    let number = |at: usize| row.try_get::<i64, _>(at).map_err(|error| failed(&error));
                    let text = |at: usize| row.try_get::<String, _>(at).map_err(|error| failed(&error));
                    old.push(Old {
                        shard: shard_no(number(0)?),
                        owner: row.try_get(1).map_err(|error| failed(&error))?,
                        epoch: unsigned(number(2)?),
                        commit_no: unsigned(number(3)?),
                        outbox_seq: unsigned(number(4)?),
                        code: layout::code(u32::try_from(number(5)?).unwrap_or(u32::MAX), &text(10)?)?,
                        positions: json(&text(6)?)?,
                        watermarks: json(&text(7)?)?,
                        counters: json(&text(8)?)?,
                        ahead: layout::ahead(&row.try_get::<Vec<u8>, _>(9).map_err(|error| failed(&error))?)?,
                    });
                }
                Ok(old)
            }

            async fn found(connection: &mut $connection, old: &[Old]) -> Result<Found, StoreError> {
                let alive = query($alive).fetch_all(&mut *connection).await.map_err(|error| failed(&error))?;
                let alive = alive.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>();
                let sql = "SELECT CAST(target AS bigint), origin, no, count FROM log";
                let rows = query(sql).fetch_all(&mut *connection).await.map_err(|error| failed(&error))?;
                let mut log = Vec::with_capacity(rows.len());
                for row in &rows {
                    let number = |at: usize| row.try_get::<i64, _>(at).map_err(|error| failed(&error));
                    let origin = row.try_get::<String, _>(1).map_err(|error| failed(&error))?;
                    log.push((shard_no(number(0)?), origin, unsigned(number(2)?), unsigned(number(3)?)));
                }
                let intake = match count(connection, $intake).await? {
                    0 => 0,
                    _ => count(connection, "SELECT count(*) FROM perkey_intake").await?,
                };
                let open = "SELECT count(*) FROM operator_commands c WHERE (SELECT count(*) FROM operator_results r
                    WHERE r.command = c.id AND r.done = true) < (SELECT count(*) FROM shards)";
                Ok(Found {
                    alive: alive.map_err(|error| failed(&error))?,
                    unread: unread(old, log),
                    intake,
                    open_commands: count(connection, open).await?,
                })
            }

            /// Moves the commits row by row, in the order of time, beside the old ones.
            async fn commits(connection: &mut $connection, plan: &mut Plan) -> Result<u64, StoreError> {
                let sql = "SELECT CAST(shard AS bigint), commit_no, at FROM commits";
                let rows = query(sql).fetch_all(&mut *connection).await.map_err(|error| failed(&error))?;
                let mut places = Vec::with_capacity(rows.len());
                for row in &rows {
                    let number = |at: usize| row.try_get::<i64, _>(at).map_err(|error| failed(&error));
                    places.push((shard_no(number(0)?), unsigned(number(1)?), unsigned(number(2)?)));
                }
                let moved = places.len() as u64;
                for (shard, no, at) in in_time(places) {
                    let sql = "SELECT epoch, first_seq, ids, events, prints FROM commits
                        WHERE shard = $1 AND commit_no = $2";
                    let row = query(sql).bind(i64::from(shard)).bind(signed(no)).fetch_one(&mut *connection).await;
                    let row = row.map_err(|error| failed(&error))?;
                    let number = |at: usize| row.try_get::<i64, _>(at).map(unsigned).map_err(|error| failed(&error));
                    let blob = |at: usize| row.try_get::<Vec<u8>, _>(at).map_err(|error| failed(&error));
                    let (epoch, first_seq, ids, events) = (number(0)?, number(1)?, blob(2)?, Bytes::from(blob(3)?));
                    let prints = blob(4)?;
                    for new in plan.deal(&ReshardRow { shard, no, epoch, at, first_seq, ids, prints, events })? {
                        let sql = "INSERT INTO commits (shard, commit_no, epoch, at, first_seq, ids, events, prints)
                            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
                        let insert = query(sql).bind(i64::from(new.shard) + ASIDE).bind(signed(new.no));
                        let insert = insert.bind(signed(new.epoch)).bind(signed(new.at)).bind(signed(new.first_seq));
                        let insert = insert.bind(new.ids).bind(new.events.to_vec()).bind(new.prints);
                        let inserted = insert.execute(&mut *connection).await;
                        inserted.map_err(|error| failed(&error))?;
                    }
                }
                run(connection, format!("DELETE FROM commits WHERE shard < {ASIDE}")).await?;
                run(connection, format!("UPDATE commits SET shard = shard - {ASIDE}")).await?;
                Ok(moved)
            }

            /// Moves waiting messages and dead letters, which are numbered together. Returns the number of each.
            async fn waiting(connection: &mut $connection, plan: &mut Plan) -> Result<(u64, u64), StoreError> {
                let sql = "SELECT CAST(shard AS bigint), seq, taken_id, CAST(0 AS bigint) AS dead FROM pending
                    UNION ALL SELECT CAST(shard AS bigint), seq, taken_id, CAST(1 AS bigint) FROM dead_letters
                    ORDER BY 2, 1";
                let rows = query(sql).fetch_all(&mut *connection).await.map_err(|error| failed(&error))?;
                let mut moved = [0, 0];
                for row in &rows {
                    let number = |at: usize| row.try_get::<i64, _>(at).map_err(|error| failed(&error));
                    let (shard, seq) = (number(0)?, number(1)?);
                    let id = layout::id(&row.try_get::<Vec<u8>, _>(2).map_err(|error| failed(&error))?)?;
                    let dead = number(3)? == 1;
                    let (new, no) = plan.place(&id, shard_no(shard));
                    let table = if dead { "dead_letters" } else { "pending" };
                    let sql = format!("UPDATE {table} SET shard = $1, seq = $2 WHERE shard = $3 AND seq = $4");
                    let update = query(AssertSqlSafe(sql)).bind(i64::from(new) + ASIDE).bind(signed(no));
                    let updated = update.bind(shard).bind(seq).execute(&mut *connection).await;
                    updated.map_err(|error| failed(&error))?;
                    moved[usize::from(dead)] += 1;
                }
                let sql = "SELECT service, key, name, message FROM timers";
                let rows = query(sql).fetch_all(&mut *connection).await.map_err(|error| failed(&error))?;
                for row in &rows {
                    let word = |at: usize| row.try_get::<String, _>(at).map_err(|error| failed(&error));
                    let frame = row.try_get::<Vec<u8>, _>(3).map_err(|error| failed(&error))?;
                    let new = i64::from(shard_of(layout::message(frame.into())?.key(), plan.to));
                    let sql = "UPDATE timers SET shard = $1 WHERE service = $2 AND key = $3 AND name = $4";
                    let update = query(sql).bind(new).bind(word(0)?).bind(word(1)?).bind(word(2)?);
                    update.execute(&mut *connection).await.map_err(|error| failed(&error))?;
                }
                for table in ["pending", "dead_letters"] {
                    run(connection, format!("UPDATE {table} SET shard = shard - {ASIDE}")).await?;
                }
                Ok((moved[0], moved[1]))
            }

            /// Closes the commands for the new shards: all are done, and are not to be executed again.
            async fn commands(connection: &mut $connection, to: u32) -> Result<(), StoreError> {
                run(connection, "DELETE FROM operator_open".to_owned()).await?;
                let sql = format!(
                    "INSERT INTO operator_results (command, shard, affected, done)
                     SELECT command, {ASIDE}, CAST(sum(affected) AS bigint), true FROM operator_results GROUP BY command"
                );
                run(connection, sql).await?;
                run(connection, format!("DELETE FROM operator_results WHERE shard < {ASIDE}")).await?;
                run(connection, format!("UPDATE operator_results SET shard = shard - {ASIDE}")).await?;
                for shard in 1..to {
                    let sql = format!(
                        "INSERT INTO operator_results (command, shard, affected, done)
                         SELECT id, {shard}, 0, true FROM operator_commands"
                    );
                    run(connection, sql).await?;
                }
                Ok(())
            }

            async fn rewrite(connection: &mut $connection, new: &[New]) -> Result<(), StoreError> {
                run(connection, "DELETE FROM log".to_owned()).await?;
                // Its shard only says who removes it when it is old.
                run(connection, format!("UPDATE history SET shard = shard % {}", new.len())).await?;
                run(connection, "DELETE FROM shards".to_owned()).await?;
                for row in new {
                    let sql = concat!(
                        "INSERT INTO shards (shard, epoch, commit_no, outbox_seq, last_seq, code_version, positions,
                             watermarks, counters, ahead, code_versions)
                         VALUES ($1, $2, $3, $4, $5, $6, $7", $json, ", $8", $json, ", $9", $json, ", $10, $11", $json, ")"
                    );
                    let insert = query(sql).bind(i64::from(row.shard)).bind(signed(row.epoch));
                    let insert = insert.bind(signed(row.commit_no)).bind(signed(row.outbox_seq));
                    let insert = insert.bind(signed(row.last_seq)).bind(i64::from(row.code.number));
                    let insert = insert.bind(text(&row.positions)?).bind(text(&row.watermarks)?);
                    let insert = insert.bind(text(&row.counters)?).bind(layout::lay_ahead(&row.ahead));
                    let inserted = insert.bind(layout::lay_code(&row.code)).execute(&mut *connection).await;
                    inserted.map_err(|error| failed(&error))?;
                }
                run(connection, format!("UPDATE meta SET value = '{}' WHERE name = 'shards'", new.len())).await
            }
        }
    };
}

on!(sqlite, SqliteConnection, json: "", begin: "BEGIN IMMEDIATE",
    alive: "SELECT '' WHERE false",
    intake: "SELECT count(*) FROM sqlite_master WHERE name = 'perkey_intake'");
on!(postgres, PgConnection, json: "::json",
    begin: "BEGIN; LOCK TABLE workers, shards, log, operator_commands, perkey_intake IN ACCESS EXCLUSIVE MODE",
    alive: "SELECT id FROM workers WHERE expires_at > clock_timestamp()",
    intake: "SELECT count(*) FROM pg_class WHERE relname = 'perkey_intake' AND relkind = 'r'");
