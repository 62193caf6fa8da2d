//! Records of calls in PostgreSQL: accepted with their messages by one statement.
//! In: calls. Out: records.

use std::collections::HashSet;

use sqlx::AssertSqlSafe;

use super::links::{Args, shard_no};
use super::texts::stored;
use super::{PgStore, schema};
use crate::clock::Millis;
use crate::handler::CallId;
use crate::message::{ShardNo, shard_of};
use crate::store::calls::{CallRecord, CallStore, KeyCount, NewCall, answered, firsts, in_order, secret};
use crate::store::layout::log;
use crate::store::query::ask;
use crate::store::query::decode::{self, CALL};
use crate::store::query::sql::{Cells, one, signed};
use crate::store::{StoreError, StoreFuture};

/// Accepts calls, unless the number of shards has changed: then nobody would read the messages. They go in the order of
/// their ids, so that two such statements cannot wait for each other. The lane's row is locked until the numbers that
/// it gave are visible.
const ACCEPT: &str = "WITH given AS (
        SELECT * FROM UNNEST($2::bytea[], $3::bytea[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[],
            $9::integer[], $10::bytea[], $12::bigint[]) WITH ORDINALITY
            AS g (id, fingerprint, tenant, service, message_id, at, expires_at, target, messages, until, place)
        WHERE (SELECT count(*) FROM shards) = $11),
    taken AS (
        INSERT INTO calls AS c (id, fingerprint, tenant, service, message_id, accepted_at, expires_at)
        SELECT id, fingerprint, tenant, service, message_id, at, expires_at FROM given ORDER BY id
        ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint, tenant = excluded.tenant,
            service = excluded.service, message_id = excluded.message_id, accepted_at = excluded.accepted_at,
            expires_at = excluded.expires_at, ended = NULL, code = NULL, body = NULL
        WHERE c.ended IS NOT NULL AND c.expires_at <= excluded.accepted_at
        RETURNING id),
    new AS (
        SELECT g.place, g.target, g.messages, row_number() OVER (ORDER BY g.place) AS number
        FROM given g WHERE g.id IN (SELECT id FROM taken)),
    lane AS (
        INSERT INTO lanes AS l (origin, no) SELECT $1, count(*) FROM new HAVING count(*) > 0
        ON CONFLICT (origin) DO UPDATE SET no = l.no + excluded.no
        RETURNING no - (SELECT count(*) FROM new) AS before),
    counted AS (
        INSERT INTO call_counts AS k (tenant, until, lane, records)
        SELECT g.tenant, g.until, $1, count(*) FROM given g, lane WHERE g.id IN (SELECT id FROM taken)
        GROUP BY g.tenant, g.until ORDER BY g.tenant, g.until
        ON CONFLICT (tenant, until, lane) DO UPDATE SET records = k.records + excluded.records),
    log_rows AS (
        INSERT INTO log (target, origin, no, count, messages)
        SELECT n.target, $1, lane.before + n.number, 1, n.messages FROM new n, lane)
    SELECT place FROM new";

fn accept_args(lane: &str, calls: &[NewCall], places: &[usize], shards: u32) -> Args {
    let calls: Vec<&NewCall> = places.iter().map(|at| &calls[*at]).collect();
    let messages: Vec<_> = calls.iter().map(|call| log::encode(&[(call.service, &call.message)])).collect();
    Args::default()
        .put(lane)
        .put(calls.iter().map(|call| &call.id.0[..]).collect::<Vec<&[u8]>>())
        .put(calls.iter().map(|call| &call.fingerprint[..]).collect::<Vec<&[u8]>>())
        .put(calls.iter().map(|call| &*call.tenant).collect::<Vec<_>>())
        .put(calls.iter().map(|call| call.service).collect::<Vec<_>>())
        .put(calls.iter().map(|call| stored(call.message.id())).collect::<Vec<_>>())
        .put(calls.iter().map(|call| signed(call.at)).collect::<Vec<_>>())
        .put(calls.iter().map(|call| signed(call.expires_at)).collect::<Vec<_>>())
        .put(calls.iter().map(|call| shard_no(shard_of(call.message.key(), shards))).collect::<Vec<_>>())
        .put(messages.iter().map(|row| &row[..]).collect::<Vec<&[u8]>>())
        .put(i64::from(shards))
        .put(calls.iter().map(|call| signed(call.counted_until())).collect::<Vec<_>>())
}

impl PgStore {
    /// The number of shards. A process without an engine outlives a change of it, so it asks each time.
    async fn shards(&self) -> Result<u32, StoreError> {
        if let Ok(prepared) = self.prepared() {
            return Ok(prepared.shards);
        }
        match self.shards_recorded().await? {
            0 => Err(StoreError::Unavailable("it has no shards yet: start a worker once".to_owned())),
            shards => Ok(shards),
        }
    }
}

/// The values that tell one life of a store from another: those that a restore to another place, or from a dump,
/// changes by itself, and the one that the owner changes after any other restore. [`SERVER`] adds the server's system
/// identifier and its timeline: each promotion begins another.
const LIFE: &str = "SELECT decode(k.value, 'hex'), concat_ws(' ', l.value, 'meta'::regclass::oid,
        (SELECT oid FROM pg_database WHERE datname = current_database()))
    FROM meta k LEFT JOIN meta l ON l.name = 'life' WHERE k.name = 'hash_key'";
const SERVER: &str = "SELECT system_identifier::text || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
    FROM pg_control_system()";

impl PgStore {
    /// Begins another life of the store, for a restore that nothing else tells from the life before.
    pub(in crate::store) async fn restored(&self) -> Result<(), StoreError> {
        let sql = "INSERT INTO meta (name, value) VALUES ('life', gen_random_uuid()::text)
            ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        self.writer.call(sql, Args::default()).await.map(drop)
    }
}

impl CallStore for PgStore {
    fn secret(&self) -> StoreFuture<'_, [u8; 32]> {
        Box::pin(async move {
            let rows = self.queries.read(LIFE, Args::default()).await?;
            let hash_key = schema::hash_key(&rows)?;
            let life: String = one(&rows, |row| row.get(1))?;
            let server = self.queries.read(SERVER, Args::default()).await;
            let server: String = match server.map(|rows| one(&rows, |row| row.get(0))) {
                Ok(server) => server?,
                Err(failure) => {
                    let error = StoreError::from(failure);
                    tracing::warn!(%error, "the server's history cannot be read: a restore is told by store:restored alone");
                    String::new()
                }
            };
            Ok(secret(&hash_key, &format!("{life} {server}")))
        })
    }

    fn accept(&self, lane: String, calls: Vec<NewCall>) -> StoreFuture<'_, Vec<Option<CallRecord>>> {
        Box::pin(async move {
            let (places, shards) = (firsts(&calls), self.shards().await?);
            let args = accept_args(&lane, &calls, &places, shards);
            let mut new = HashSet::new();
            for row in &self.writer.call(ACCEPT, args).await? {
                let place: usize = row.number(0)?;
                new.extend(places.get(place.saturating_sub(1)).copied());
            }
            let targets: Vec<ShardNo> = new.iter().map(|at| shard_of(calls[*at].message.key(), shards)).collect();
            self.writer.appended(&targets);
            answered(self, &calls, &new).await
        })
    }

    fn records(&self, ids: Vec<CallId>) -> StoreFuture<'_, Vec<Option<CallRecord>>> {
        Box::pin(async move {
            let sql = format!("SELECT {CALL} FROM calls WHERE id = ANY ($1)");
            let asked = Args::default().put(ids.iter().map(|id| &id.0[..]).collect::<Vec<&[u8]>>());
            in_order(&ids, self.queries.read(AssertSqlSafe(sql), asked).await?.iter().map(decode::call))
        })
    }

    fn counts(&self, now: Millis) -> StoreFuture<'_, Vec<KeyCount>> {
        Box::pin(ask::call_counts(&self.queries, now))
    }

    fn sweep(&self, before: Millis, limit: usize) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let sql = "WITH uncounted AS (DELETE FROM call_counts WHERE until <= $1),
                gone AS (DELETE FROM calls WHERE ctid = ANY (ARRAY(
                    SELECT ctid FROM calls WHERE expires_at <= $1 AND ended IS NOT NULL LIMIT $2))
                    AND ended IS NOT NULL AND expires_at <= $1 RETURNING 1)
                SELECT count(*) FROM gone";
            let args = Args::default().put(signed(before)).put(signed(limit));
            one(&self.queries.run(sql, args).await?, |row| row.number(0))
        })
    }
}
