//! Records of calls in SQLite: accepted with their messages in one transaction of the writer.
//! In: calls. Out: records.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sqlx::{SqliteConnection, query, query_scalar};

use super::args::RowArgs;
use super::failure::failed;
use super::group::hex;
use super::{SqliteStore, schema};
use crate::clock::Millis;
use crate::handler::CallId;
use crate::message::{ShardNo, shard_of};
use crate::store::append::log_rows;
use crate::store::calls::{
    CallRecord, CallStore, KeyCount, NewCall, answered, counted, firsts, hash, in_order, secret,
};
use crate::store::query::ask;
use crate::store::query::decode::{self, CALL};
use crate::store::query::sql::{Cells, signed};
use crate::store::{LogRow, StoreError, StoreFuture};

/// Returns the places of the calls that were written.
const INSERT: &str = "INSERT INTO calls (id, fingerprint, tenant, service, message_id, accepted_at, expires_at)
    SELECT unhex(value->>1), unhex(value->>2), value->>3, value->>4, value->>5, value->>6, value->>7
    FROM json_each(?) WHERE true
    ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint, tenant = excluded.tenant,
        service = excluded.service, message_id = excluded.message_id, accepted_at = excluded.accepted_at,
        expires_at = excluded.expires_at, ended = NULL, code = NULL, body = NULL
    WHERE calls.ended IS NOT NULL AND calls.expires_at <= excluded.accepted_at
    RETURNING id";

const LANE: &str = "INSERT INTO lanes (origin, no) VALUES (?1, 1) ON CONFLICT (origin) DO UPDATE SET no = no + 1
    RETURNING no";

const LOG: &str = "INSERT INTO log (target, origin, no, count, messages)
    SELECT value->>0, ?1, ?2, value->>1, coalesce(substr(?3, value->>2, value->>3), x'') FROM json_each(?4)";

const COUNT: &str = "INSERT INTO call_counts (tenant, until, lane, records)
    SELECT value->>0, value->>1, ?1, value->>2 FROM json_each(?2) WHERE true
    ON CONFLICT (tenant, until, lane) DO UPDATE SET records = records + excluded.records";

/// The places of the calls that were accepted, and the shards whose log has grown.
struct Accepted {
    new: HashSet<usize>,
    targets: Vec<ShardNo>,
}

async fn accept(connection: &mut SqliteConnection, lane: String, calls: &[NewCall]) -> Result<Accepted, StoreError> {
    let places = firsts(calls);
    let mut rows = RowArgs::default();
    for at in &places {
        let call = &calls[*at];
        rows.row().put(at).put(hex(&call.id.0)).put(hex(&call.fingerprint)).put(&call.tenant).put(call.service);
        rows.put(call.message.id()).put(signed(call.at)).put(signed(call.expires_at));
    }
    query("BEGIN IMMEDIATE").execute(&mut *connection).await.map_err(failed)?;
    let written = query(INSERT).bind(rows.finish().0).fetch_all(&mut *connection).await.map_err(failed)?;
    let by_id: HashMap<CallId, usize> = places.iter().map(|at| (calls[*at].id, *at)).collect();
    let mut new = HashSet::with_capacity(written.len());
    for row in &written {
        new.extend(by_id.get(&CallId(hash(row.get(0)?)?)).copied());
    }
    let row = query("SELECT count(*) FROM shards").fetch_one(&mut *connection).await.map_err(failed)?;
    let shards = row.number::<u32>(0)?.max(1);
    let messages = calls.iter().enumerate().filter(|(at, _)| new.contains(at));
    let log = log_rows(shards, messages.map(|(_, call)| (call.service, &call.message)));
    if !log.is_empty() {
        let mut counts = RowArgs::default();
        for ((tenant, until), records) in counted(calls, &new) {
            counts.row().put(tenant).put(signed(until)).put(records);
        }
        query(COUNT).bind(&*lane).bind(counts.finish().0).execute(&mut *connection).await.map_err(failed)?;
        append(connection, lane, &log).await?;
    }
    query("COMMIT").execute(&mut *connection).await.map_err(failed)?;
    Ok(Accepted { new, targets: calls.iter().map(|call| shard_of(call.message.key(), shards)).collect() })
}

async fn append(connection: &mut SqliteConnection, lane: String, log: &[LogRow]) -> Result<(), StoreError> {
    let no: i64 = query(LANE).bind(&lane).fetch_one(&mut *connection).await.map_err(failed)?.number(0)?;
    let mut rows = RowArgs::default();
    for row in log {
        rows.row().put(row.target).put(row.count).put_blob(&row.messages);
    }
    let (json, blob) = rows.finish();
    query(LOG).bind(lane).bind(no).bind(blob).bind(json).execute(connection).await.map(drop).map_err(failed)
}

impl CallStore for SqliteStore {
    fn secret(&self) -> StoreFuture<'_, [u8; 32]> {
        Box::pin(async move {
            let mut reader = self.readers.acquire().await.map_err(failed)?;
            let hash_key = schema::hash_key(&mut reader).await?;
            let life = query_scalar("SELECT value FROM meta WHERE name = 'life'").fetch_optional(&mut *reader).await;
            let life: Option<String> = life.map_err(failed)?;
            Ok(secret(&hash_key, &life.unwrap_or_default()))
        })
    }

    fn accept(&self, lane: String, calls: Vec<NewCall>) -> StoreFuture<'_, Vec<Option<CallRecord>>> {
        let calls: Arc<[NewCall]> = calls.into();
        let given = Arc::clone(&calls);
        let written =
            self.writer.call(move |connection| Box::pin(async move { accept(connection, lane, &given).await }));
        Box::pin(async move {
            let Accepted { new, targets } = written.await?;
            self.watch.appended(targets);
            answered(self, &calls, &new).await
        })
    }

    fn records(&self, ids: Vec<CallId>) -> StoreFuture<'_, Vec<Option<CallRecord>>> {
        Box::pin(async move {
            let mut rows = RowArgs::default();
            for id in &ids {
                rows.row().put(hex(&id.0));
            }
            let sql = format!("SELECT {CALL} FROM calls WHERE id IN (SELECT unhex(value->>0) FROM json_each(?))");
            let found = query(sqlx::AssertSqlSafe(sql)).bind(rows.finish().0).fetch_all(&self.readers).await;
            in_order(&ids, found.map_err(failed)?.iter().map(decode::call))
        })
    }

    fn counts(&self, now: Millis) -> StoreFuture<'_, Vec<KeyCount>> {
        Box::pin(ask::call_counts(&self.readers, now))
    }

    fn sweep(&self, before: Millis, limit: usize) -> StoreFuture<'_, u64> {
        self.writer.call(move |connection| {
            Box::pin(async move {
                let sql = query(
                    "DELETE FROM calls WHERE id IN (
                         SELECT id FROM calls WHERE expires_at <= ?1 AND ended IS NOT NULL LIMIT ?2)",
                );
                let counts = query("DELETE FROM call_counts WHERE until <= ?1").bind(signed(before));
                counts.execute(&mut *connection).await.map_err(failed)?;
                let swept = sql.bind(signed(before)).bind(signed(limit)).execute(connection).await.map_err(failed)?;
                Ok(swept.rows_affected())
            })
        })
    }
}
