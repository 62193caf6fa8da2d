//! Records of calls in PostgreSQL: accepted with their messages by one statement.
//! In: calls. Out: records; the part of a commit that writes their outcomes.

use std::collections::{BTreeMap, HashSet};

use sqlx::postgres::PgRow;

use super::PgStore;
use super::commit::shard_no;
use super::decode::{self, stored};
use super::links::Args;
use super::read::signed;
use crate::clock::Millis;
use crate::handler::CallId;
use crate::message::{ShardNo, shard_of};
use crate::store::calls::{
    CallOutcome, CallRecord, CallStore, KeyCount, NewCall, Reply, answered, firsts, hash, in_order, secret,
};
use crate::store::layout::log;
use crate::store::{StoreError, StoreFuture};

/// Nothing is accepted where the number of shards is another by now: the messages would lie where nobody reads them. In
/// the order of their ids, so that two of these cannot wait for each other. The lane's row is locked until the
/// numbers that it gave are visible.
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

const RECORDS: &str = "SELECT id, fingerprint, message_id, accepted_at, expires_at, ended, code, body
    FROM calls WHERE id = ANY ($1)";

/// Among the arguments of a commit, behind so many: outcomes of calls. As an upsert, because it always goes by the index;
/// each record is there, as none is removed before it has ended.
pub(super) fn reply_rows(behind: usize) -> String {
    let [id, ended, code, body] = [1, 2, 3, 4].map(|at| behind + at);
    format!(
        ", reply_rows AS (
             INSERT INTO calls AS c
                 (id, ended, code, body, fingerprint, tenant, service, message_id, accepted_at, expires_at)
             SELECT r.*, ''::bytea, '', '', '', 0, 0
             FROM fence, UNNEST(${id}::bytea[], ${ended}::text[], ${code}::text[], ${body}::bytea[])
                 AS r (id, ended, code, body)
             ON CONFLICT (id) DO UPDATE SET ended = excluded.ended, code = excluded.code, body = excluded.body)\n"
    )
}

/// Arguments of [`reply_rows`].
pub(super) const REPLIES: usize = 4;

/// Its arguments: of each call the last outcome, in the order of their ids.
pub(super) fn put_replies(args: Args, replies: &[&Reply]) -> Args {
    let newest: BTreeMap<CallId, &CallOutcome> = replies.iter().map(|reply| (reply.call, &reply.outcome)).collect();
    args.put(newest.keys().map(|id| &id.0[..]).collect::<Vec<&[u8]>>())
        .put(newest.values().map(|outcome| outcome.end.as_str()).collect::<Vec<_>>())
        .put(newest.values().map(|outcome| stored(&outcome.code)).collect::<Vec<_>>())
        .put(newest.values().map(|outcome| &outcome.body[..]).collect::<Vec<&[u8]>>())
}

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

fn record(row: &PgRow) -> Result<CallRecord, StoreError> {
    let ended: Option<&str> = decode::get(row, 5)?;
    let outcome = match ended {
        Some(end) => {
            Some(CallOutcome { end: end.parse()?, code: decode::string(row, 6)?, body: decode::blob(row, 7)? })
        }
        None => None,
    };
    Ok(CallRecord {
        id: CallId(hash(decode::get(row, 0)?)?),
        fingerprint: hash(decode::get(row, 1)?)?,
        message_id: decode::string(row, 2)?,
        accepted_at: decode::number(row, 3)?,
        expires_at: decode::number(row, 4)?,
        outcome,
    })
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

/// What tells one life of a store from another: what a restore to another place, or from a dump, changes by itself, and what
/// the owner changes after any other. Of a server, its system and its history of timelines: each promotion begins one.
const LIFE: &str = "SELECT decode(k.value, 'hex'), concat_ws(' ', l.value, 'meta'::regclass::oid,
        (SELECT oid FROM pg_database WHERE datname = current_database()))
    FROM meta k LEFT JOIN meta l ON l.name = 'life' WHERE k.name = 'hash_key'";
const SERVER: &str = "SELECT system_identifier::text || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
    FROM pg_control_system()";

impl PgStore {
    /// Begins another life of the store, as after a restore that nothing else tells from what was before.
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
            let hash_key = super::schema::hash_key(&rows)?;
            let life: String = super::queries::one(&rows, |row| decode::get(row, 1))?;
            let server = self.queries.read(SERVER, Args::default()).await;
            let server: String = match server.map(|rows| super::queries::one(&rows, |row| decode::get(row, 0))) {
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
                let place: usize = decode::number(row, 0)?;
                new.extend(places.get(place.saturating_sub(1)).copied());
            }
            let targets: Vec<ShardNo> = new.iter().map(|at| shard_of(calls[*at].message.key(), shards)).collect();
            self.writer.appended(&targets);
            answered(self, &calls, &new).await
        })
    }

    fn records(&self, ids: Vec<CallId>) -> StoreFuture<'_, Vec<Option<CallRecord>>> {
        Box::pin(async move {
            let asked = Args::default().put(ids.iter().map(|id| &id.0[..]).collect::<Vec<&[u8]>>());
            in_order(&ids, self.queries.read(RECORDS, asked).await?.iter().map(record))
        })
    }

    fn counts(&self, now: Millis) -> StoreFuture<'_, Vec<KeyCount>> {
        Box::pin(async move {
            let sql =
                "SELECT tenant, until, sum(records)::bigint FROM call_counts WHERE until > $1 GROUP BY tenant, until";
            let rows = self.queries.read(sql, Args::default().put(signed(now))).await?;
            let count = |row: &PgRow| {
                Ok(KeyCount {
                    tenant: decode::string(row, 0)?,
                    until: decode::number(row, 1)?,
                    records: decode::number(row, 2)?,
                })
            };
            rows.iter().map(count).collect()
        })
    }

    fn sweep(&self, before: Millis, limit: usize) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let sql = "WITH uncounted AS (DELETE FROM call_counts WHERE until <= $1),
                gone AS (DELETE FROM calls WHERE ctid = ANY (ARRAY(
                    SELECT ctid FROM calls WHERE expires_at <= $1 AND ended IS NOT NULL LIMIT $2))
                    AND ended IS NOT NULL AND expires_at <= $1 RETURNING 1)
                SELECT count(*) FROM gone";
            let args = Args::default().put(signed(before)).put(i64::try_from(limit).unwrap_or(i64::MAX));
            super::queries::one(&self.queries.run(sql, args).await?, |row| decode::number(row, 0))
        })
    }
}
