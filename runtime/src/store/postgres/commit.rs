//! A commit as one statement: a text that depends only on the kinds of its parts, and lists as arguments.
//! In: a commit. Out: SQL and arguments, or the reason for which the data cannot be written.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use super::failure::PgFailure;
use super::links::{Args, shard_no};
use super::tables;
use super::texts::stored;
use crate::handler::CallId;
use crate::message::ShardNo;
use crate::store::calls::{CallOutcome, Reply};
use crate::store::query::sql::signed;
use crate::store::{Attempt, Commit, DeadLetter, PendingRow, StateWrite, TimerWrite, layout};

/// Arguments of `commit.sql`, and of both texts.
const SLIM: usize = 23;
const WHOLE: usize = 59;
/// Arguments of [`timer_rows`], and of [`reply_rows`].
const TIMERS: usize = 8;
const REPLIES: usize = 4;

// The statements that remove what nobody needs any more.

pub(super) const TRIM_LOG: &str = "DELETE FROM log WHERE ctid = ANY (ARRAY(
    SELECT l.ctid FROM UNNEST($2::text[], $3::bigint[], $4::bigint[], $5::bigint[]) AS p (origin, first, last, messages)
    JOIN log l ON l.target = $1 AND l.origin = p.origin AND l.no BETWEEN p.first AND p.last
    WHERE l.no < p.last OR l.count <= p.messages LIMIT $6))";
pub(super) const TRIM_COMMITS: &str = "DELETE FROM commits WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM commits WHERE shard = $1 AND commit_no < $2 ORDER BY commit_no LIMIT $3))";
/// Its arguments are of other types than those of [`TRIM_COMMITS`]: if something in between mixed the statements up,
/// the server would refuse one's arguments for the other.
pub(super) const TRIM_HISTORY: &str = "DELETE FROM history WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM history WHERE at < $1 AND shard = $2 ORDER BY at LIMIT $3))";

/// A commit, ready to be sent.
#[derive(Debug)]
pub(super) struct CommitStatement {
    pub(super) shard: ShardNo,
    pub(super) no: u64,
    pub(super) sql: SqlStr,
    pub(super) args: Args,
    /// Handlers' statements: with them it is a transaction.
    pub(super) then: Vec<(SqlStr, Args)>,
    /// Shards whose log gets rows.
    pub(super) targets: Vec<ShardNo>,
    /// True if it is the fence and little else: if it fails, the data is not the cause.
    pub(super) alone: bool,
}

impl CommitStatement {
    /// Lays `commit` out; [`PgFailure::Refused`] where it cannot be.
    pub(super) fn of(commit: &Commit, services: &BTreeMap<Arc<str>, u16>) -> Result<Self, PgFailure> {
        let (events, count) = layout::lay_events(commit, services);
        let waiting = WaitingRows::of(commit);
        let (ids, prints) = (layout::lay_ids(commit), layout::lay_prints(commit));
        let args = Args::with_room(room(commit, ids.len() + prints.len() + events.len()));
        let args = fence(args, commit, (count > 0).then(|| commit.first_seq + count - 1), waiting.last_seq());
        let (written, forgotten): (Vec<_>, Vec<_>) =
            states(commit).into_iter().partition(|write| write.state.is_some());
        let mut args = log(put_states(args.put(ids).put(events).put(prints), &written), commit);
        let mut sql = include_str!("commit.sql").to_owned();
        let mut count = SLIM;
        if !waiting.is_empty() || commit.parts.iter().any(|part| part.command.is_some() || !part.history.is_empty()) {
            sql.push_str(include_str!("commit_more.sql"));
            args = results(history(waiting.put(args), commit), commit);
            count = WHOLE;
        }
        if !forgotten.is_empty() {
            count += 2;
            sql += &format!(
                ", forgotten_rows AS (DELETE FROM states WHERE ctid = ANY (ARRAY(
                     SELECT there.ctid FROM fence CROSS JOIN UNNEST(${}::text[], ${count}::text[]) AS r (service, key)
                     CROSS JOIN LATERAL (SELECT s.ctid FROM states s
                         WHERE s.service = r.service AND s.key = r.key OFFSET 0) there)))\n",
                count - 1
            );
            args = put_keys(args, &forgotten);
        }
        let timers = TimerWrite::newest(&commit.parts);
        if !timers.is_empty() {
            sql += &timer_rows(count);
            count += TIMERS;
            args = put_timers(args, &timers);
        }
        let replies: Vec<_> = commit.parts.iter().flat_map(|part| &part.replies).collect();
        if !replies.is_empty() {
            sql += &reply_rows(count);
            count += REPLIES;
            args = put_replies(args, &replies);
        }
        if !commit.intake.is_empty() {
            count += 1;
            sql += &format!(
                ", intake_rows AS (DELETE FROM perkey_intake WHERE ctid = ANY (ARRAY(
                     SELECT there.ctid FROM fence f CROSS JOIN UNNEST(${count}::bigint[]) AS r (no) CROSS JOIN LATERAL (
                         SELECT i.ctid FROM perkey_intake i WHERE i.no = r.no AND i.shard = f.shard OFFSET 0) there)))\n"
            );
            args.push(commit.intake.iter().copied().map(signed).collect::<Vec<_>>());
        }
        tables::write(commit.parts.iter().flat_map(|part| &part.rows), count, &mut sql, &mut args)?;
        sql.push_str("SELECT 1 FROM fence");
        Ok(Self {
            shard: commit.shard,
            no: commit.no,
            sql: AssertSqlSafe(sql).into_sql_str(),
            args,
            then: commit.parts.iter().flat_map(|part| &part.statements).map(tables::statement).collect(),
            targets: commit.log.iter().map(|row| row.target).collect(),
            alone: commit.parts.is_empty() && commit.log.is_empty() && commit.intake.is_empty(),
        })
    }
}

/// About the bytes of the arguments: growing into megabytes costs as much as filling them.
fn room(commit: &Commit, blobs: usize) -> usize {
    let states = commit.parts.iter().filter_map(|part| part.state.as_ref());
    let states: usize = states.map(|state| state.json().len() + state.key.len() + state.service.len() + 24).sum();
    blobs + states + commit.log.iter().map(|row| row.messages.len() + 24).sum::<usize>() + 4_096
}

fn fence(args: Args, commit: &Commit, outbox_seq: Option<u64>, last_seq: u64) -> Args {
    let json = |value: Result<String, serde_json::Error>| value.expect("maps of numbers always have a JSON form");
    args.put(shard_no(commit.shard))
        .put(signed(commit.epoch))
        .put(signed(commit.no))
        .put(signed(commit.at))
        .put(signed(commit.first_seq))
        .put(outbox_seq.map(signed))
        .put(signed(last_seq))
        .put(json(serde_json::to_string(&commit.positions)))
        .put(layout::lay_ahead(&commit.ahead))
        .put(json(serde_json::to_string(&commit.watermarks)))
        .put(json(serde_json::to_string(&commit.counters)))
        .put(commit.release)
        .put(commit.clean)
}

/// The newest state of each key.
fn states(commit: &Commit) -> Vec<&StateWrite> {
    let mut states: Vec<&StateWrite> = commit.parts.iter().filter_map(|part| part.state.as_ref()).collect();
    // In the order of the primary key, so that neighbours share a page; of several of one key the last is the newest.
    states.sort_by(|a, b| (&a.service, &a.key).cmp(&(&b.service, &b.key)));
    let same = |a: &StateWrite, b: &StateWrite| a.key == b.key && a.service == b.service;
    states.chunk_by(|a, b| same(a, b)).filter_map(|group| group.last().copied()).collect()
}

fn put_states(args: Args, states: &[&StateWrite]) -> Args {
    let version = |write: &&StateWrite| write.state.as_ref().map_or(0, |(version, _)| i64::from(*version));
    let json = |write: &&StateWrite| String::from_utf8_lossy(write.json()).into_owned();
    put_keys(args, states)
        .put(states.iter().map(version).collect::<Vec<_>>())
        .put(states.iter().map(json).collect::<Vec<_>>())
}

fn put_keys(args: Args, states: &[&StateWrite]) -> Args {
    args.put(states.iter().map(|state| &*state.service).collect::<Vec<_>>())
        .put(states.iter().map(|state| stored(&state.key)).collect::<Vec<_>>())
}

/// Timers set and removed; `behind` arguments come before its own.
fn timer_rows(behind: usize) -> String {
    let [set, due, message, gone] = [1, 4, 5, 6].map(|at| behind + at);
    let (key, name, gone_key, gone_name) = (set + 1, set + 2, gone + 1, gone + 2);
    format!(
        ", timers_set AS (INSERT INTO timers (shard, service, key, name, due_at, message)
             SELECT f.shard, r.* FROM fence f CROSS JOIN UNNEST(${set}::text[], ${key}::text[], ${name}::text[],
                 ${due}::bigint[], ${message}::bytea[]) AS r (service, key, name, due_at, message)
             ON CONFLICT (service, key, name) DO UPDATE SET due_at = excluded.due_at, message = excluded.message)
         , timers_gone AS (DELETE FROM timers WHERE ctid = ANY (ARRAY(
             SELECT there.ctid FROM fence
             CROSS JOIN UNNEST(${gone}::text[], ${gone_key}::text[], ${gone_name}::text[]) AS r (service, key, name)
             CROSS JOIN LATERAL (SELECT t.ctid FROM timers t
                 WHERE t.service = r.service AND t.key = r.key AND t.name = r.name OFFSET 0) there)))\n"
    )
}

fn put_timers(args: Args, timers: &[&TimerWrite]) -> Args {
    let set: Vec<_> = timers.iter().filter_map(|timer| Some((*timer, timer.set.as_ref()?))).collect();
    let gone: Vec<_> = timers.iter().filter(|timer| timer.set.is_none()).collect();
    args.put(set.iter().map(|(timer, _)| stored(&timer.service)).collect::<Vec<_>>())
        .put(set.iter().map(|(timer, _)| stored(&timer.key)).collect::<Vec<_>>())
        .put(set.iter().map(|(timer, _)| stored(&timer.name)).collect::<Vec<_>>())
        .put(set.iter().map(|(_, (due_at, _))| signed(*due_at)).collect::<Vec<_>>())
        .put(set.iter().map(|(_, (_, message))| &message.frame()[..]).collect::<Vec<_>>())
        .put(gone.iter().map(|timer| stored(&timer.service)).collect::<Vec<_>>())
        .put(gone.iter().map(|timer| stored(&timer.key)).collect::<Vec<_>>())
        .put(gone.iter().map(|timer| stored(&timer.name)).collect::<Vec<_>>())
}

/// Outcomes of calls; `behind` arguments come before its own. As an upsert, because that always goes by the index; each
/// record exists, because none is removed before its call has ended.
fn reply_rows(behind: usize) -> String {
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

/// The arguments of [`reply_rows`]: the last outcome of each call, in the order of their ids.
fn put_replies(args: Args, replies: &[&Reply]) -> Args {
    let newest: BTreeMap<CallId, &CallOutcome> = replies.iter().map(|reply| (reply.call, &reply.outcome)).collect();
    args.put(newest.keys().map(|id| &id.0[..]).collect::<Vec<&[u8]>>())
        .put(newest.values().map(|outcome| outcome.end.as_str()).collect::<Vec<_>>())
        .put(newest.values().map(|outcome| stored(&outcome.code)).collect::<Vec<_>>())
        .put(newest.values().map(|outcome| &outcome.body[..]).collect::<Vec<&[u8]>>())
}

fn log(args: Args, commit: &Commit) -> Args {
    args.put(commit.log.iter().map(|row| shard_no(row.target)).collect::<Vec<_>>())
        .put(commit.log.iter().map(|row| i64::from(row.count)).collect::<Vec<_>>())
        .put(commit.log.iter().map(|row| &*row.messages).collect::<Vec<&[u8]>>())
}

/// Pending rows and dead letters, each number once, as the last part has it.
struct WaitingRows<'a> {
    pending: BTreeMap<u64, Option<&'a PendingRow>>,
    dead: BTreeMap<u64, Option<&'a DeadLetter>>,
}

impl<'a> WaitingRows<'a> {
    fn of(commit: &'a Commit) -> Self {
        let mut waiting = Self { pending: BTreeMap::new(), dead: BTreeMap::new() };
        for part in &commit.parts {
            waiting.pending.extend(part.pending.iter().map(|row| (row.seq, Some(row))));
            waiting.pending.extend(part.settled.iter().map(|seq| (*seq, None)));
            waiting.dead.extend(part.dead.iter().map(|letter| (letter.seq, Some(letter))));
            waiting.dead.extend(part.undead.iter().map(|seq| (*seq, None)));
        }
        waiting
    }

    fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.dead.is_empty()
    }

    fn last_seq(&self) -> u64 {
        let last =
            [self.pending.last_key_value().map(|(seq, _)| *seq), self.dead.last_key_value().map(|(seq, _)| *seq)];
        last.into_iter().flatten().max().unwrap_or(0)
    }

    fn put(&self, args: Args) -> Args {
        let rows: Vec<&PendingRow> = self.pending.values().flatten().copied().collect();
        let gone = |(seq, there): (&u64, bool)| (!there).then(|| signed(*seq));
        let settled: Vec<i64> = self.pending.iter().filter_map(|(seq, row)| gone((seq, row.is_some()))).collect();
        let args = args
            .put(rows.iter().map(|row| signed(row.seq)).collect::<Vec<_>>())
            .put(rows.iter().map(|row| stored(&row.service)).collect::<Vec<_>>())
            .put(rows.iter().map(|row| stored(&row.key)).collect::<Vec<_>>())
            .put(rows.iter().map(|row| row.kind.as_str()).collect::<Vec<_>>())
            .put(rows.iter().map(|row| row.due_at.map(signed)).collect::<Vec<_>>())
            .put(rows.iter().map(|row| &row.id.0[..]).collect::<Vec<_>>())
            .put(rows.iter().map(|row| stored(row.message.id())).collect::<Vec<_>>())
            .put(rows.iter().map(|row| signed(row.taken_at)).collect::<Vec<_>>())
            .put(rows.iter().map(|row| i64::from(row.attempt)).collect::<Vec<_>>())
            .put(rows.iter().map(|row| i64::from(row.starts)).collect::<Vec<_>>())
            .put(rows.iter().map(|row| json(&row.history)).collect::<Vec<_>>())
            .put(rows.iter().map(|row| &row.message.frame()[..]).collect::<Vec<_>>())
            .put(settled);
        let letters: Vec<&DeadLetter> = self.dead.values().flatten().copied().collect();
        let undead: Vec<i64> = self.dead.iter().filter_map(|(seq, row)| gone((seq, row.is_some()))).collect();
        args.put(letters.iter().map(|letter| signed(letter.seq)).collect::<Vec<_>>())
            .put(letters.iter().map(|letter| stored(&letter.service)).collect::<Vec<_>>())
            .put(letters.iter().map(|letter| stored(&letter.key)).collect::<Vec<_>>())
            .put(letters.iter().map(|letter| &letter.id.0[..]).collect::<Vec<_>>())
            .put(letters.iter().map(|letter| stored(letter.message.id())).collect::<Vec<_>>())
            .put(letters.iter().map(|letter| signed(letter.at)).collect::<Vec<_>>())
            .put(letters.iter().map(|letter| signed(letter.taken_at)).collect::<Vec<_>>())
            .put(letters.iter().map(|letter| stored(&letter.error)).collect::<Vec<_>>())
            .put(letters.iter().map(|letter| letter.holds_key).collect::<Vec<_>>())
            .put(letters.iter().map(|letter| json(&letter.history)).collect::<Vec<_>>())
            .put(letters.iter().map(|letter| &letter.message.frame()[..]).collect::<Vec<_>>())
            .put(undead)
    }
}

fn history(args: Args, commit: &Commit) -> Args {
    let lines: Vec<_> = commit.parts.iter().flat_map(|part| &part.history).collect();
    args.put(lines.iter().map(|line| stored(&line.service)).collect::<Vec<_>>())
        .put(lines.iter().map(|line| stored(&line.key)).collect::<Vec<_>>())
        .put(lines.iter().map(|line| stored(&line.id)).collect::<Vec<_>>())
        .put(lines.iter().map(|line| signed(line.at)).collect::<Vec<_>>())
        .put(lines.iter().map(|line| i64::from(line.attempt)).collect::<Vec<_>>())
        .put(lines.iter().map(|line| signed(line.generation)).collect::<Vec<_>>())
        .put(lines.iter().map(|line| stored(&line.what)).collect::<Vec<_>>())
        .put(lines.iter().map(|line| stored(&line.error)).collect::<Vec<_>>())
}

/// A command's results, summed up: a row can be written only once in a statement.
fn results(args: Args, commit: &Commit) -> Args {
    let mut sums: BTreeMap<i64, (i64, bool)> = BTreeMap::new();
    for result in commit.parts.iter().filter_map(|part| part.command.as_ref()) {
        let (affected, done) = sums.entry(result.command).or_default();
        *affected = affected.saturating_add(signed(result.affected));
        *done |= result.done;
    }
    args.put(sums.keys().copied().collect::<Vec<_>>())
        .put(sums.values().map(|sum| sum.0).collect::<Vec<_>>())
        .put(sums.values().map(|sum| sum.1).collect::<Vec<_>>())
}

fn json(attempts: &[Attempt]) -> String {
    serde_json::to_string(attempts).expect("attempts always have a JSON form")
}
