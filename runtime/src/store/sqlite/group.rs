//! Commits as the arguments of a handful of statements, however many turns and shards they hold.
//! In: commits. Out: one text of SQL for everything but handlers' tables, and its arguments.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::Sqlite;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;

use super::args::RowArgs;
use crate::handler::{RowWrite, Statement};
use crate::message::ShardNo;
use crate::store::calls::Reply;
use crate::store::query::sql::signed;
use crate::store::{CommandResult, Commit, DeadLetter, HistoryRow, LogRow, PendingRow, StateWrite, TimerWrite, layout};

/// A commit, owned and with its bytes laid out as they are stored.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) shard: ShardNo,
    epoch: u64,
    no: u64,
    at: u64,
    first_seq: u64,
    events_count: u64,
    last_seq: u64,
    positions: String,
    ahead: Vec<u8>,
    watermarks: String,
    counters: String,
    release: bool,
    clean: bool,
    ids: Vec<u8>,
    prints: Vec<u8>,
    events: Vec<u8>,
    states: Vec<StateWrite>,
    pending: BTreeMap<u64, Option<PendingRow>>,
    dead: BTreeMap<u64, Option<DeadLetter>>,
    history: Vec<HistoryRow>,
    results: Vec<CommandResult>,
    pub(super) log: Vec<LogRow>,
    pub(super) rows: Vec<RowWrite>,
    pub(super) statements: Vec<Statement>,
    timers: Vec<TimerWrite>,
    replies: Vec<Reply>,
}

impl Piece {
    /// Lays `commit` out.
    pub(super) fn of(commit: &Commit, services: &BTreeMap<Arc<str>, u16>) -> Self {
        let (events, events_count) = layout::lay_events(commit, services);
        let mut piece = Self {
            shard: commit.shard,
            epoch: commit.epoch,
            no: commit.no,
            at: commit.at,
            first_seq: commit.first_seq,
            events_count,
            last_seq: 0,
            positions: serde_json::to_string(&commit.positions).expect("maps of numbers always have a JSON form"),
            ahead: layout::lay_ahead(&commit.ahead),
            watermarks: serde_json::to_string(&commit.watermarks).expect("maps of numbers always have a JSON form"),
            counters: serde_json::to_string(&commit.counters).expect("maps of numbers always have a JSON form"),
            release: commit.release,
            clean: commit.clean,
            ids: layout::lay_ids(commit),
            prints: layout::lay_prints(commit),
            events,
            states: Vec::with_capacity(commit.parts.len()),
            pending: BTreeMap::new(),
            dead: BTreeMap::new(),
            history: Vec::new(),
            results: Vec::new(),
            log: commit.log.clone(),
            rows: Vec::new(),
            statements: Vec::new(),
            timers: TimerWrite::newest(&commit.parts).into_iter().cloned().collect(),
            replies: commit.parts.iter().flat_map(|part| part.replies.iter().cloned()).collect(),
        };
        for part in &commit.parts {
            piece.states.extend(part.state.clone());
            piece.pending.extend(part.pending.iter().map(|row| (row.seq, Some(row.clone()))));
            piece.pending.extend(part.settled.iter().map(|seq| (*seq, None)));
            piece.dead.extend(part.dead.iter().map(|letter| (letter.seq, Some(letter.clone()))));
            piece.dead.extend(part.undead.iter().map(|seq| (*seq, None)));
            piece.history.extend(part.history.iter().cloned());
            piece.results.extend(part.command.clone());
            piece.rows.extend(part.rows.iter().cloned());
            piece.statements.extend(part.statements.iter().cloned());
        }
        let seqs =
            [piece.pending.last_key_value().map(|(seq, _)| *seq), piece.dead.last_key_value().map(|(seq, _)| *seq)];
        piece.last_seq = seqs.into_iter().flatten().max().unwrap_or(0);
        piece
    }
}

// The driver runs all statements of a text in one call, and a call costs more than most of them.

/// Opens the transaction of a whole group and writes it.
pub(super) const ALL: &str = concat!("BEGIN IMMEDIATE;", include_str!("commit.sql"));
/// Writes one commit of a group so that it alone can be undone.
pub(super) const ONE: &str = concat!("SAVEPOINT perkey_commit;", include_str!("commit.sql"));

/// The place of the fence among the statements of [`ALL`] and of [`ONE`]; it answers with a row per shard that passed.
pub(super) const FENCE: usize = 2;

/// The arguments of [`ALL`] or [`ONE`] for `pieces`, whose shards differ.
pub(super) fn arguments(sql: &'static str, pieces: &[&Piece]) -> Query<'static, Sqlite, SqliteArguments> {
    let Laid { commits, ahead, ids, events, prints } = commits(pieces);
    let ((states, states_blob), forgotten) = states(pieces);
    let (log, log_blob) = log(pieces).finish();
    let ((pending, pending_blob), settled) = pending(pieces);
    let ((dead, dead_blob), undead) = dead(pieces);
    let query = sqlx::query(sql).bind(ahead).bind(commits.clone());
    let query = query.bind(ids).bind(events).bind(prints).bind(commits);
    let query = query.bind(states_blob).bind(states).bind(forgotten).bind(log_blob).bind(log);
    let query = query.bind(pending_blob).bind(pending).bind(settled).bind(dead_blob).bind(dead).bind(undead);
    let ((timers, timers_blob), stopped) = timers(pieces);
    let query = query.bind(timers_blob).bind(timers).bind(stopped);
    let (replies, replies_blob) = replies(pieces).finish();
    let query = query.bind(replies_blob).bind(replies);
    let results = results(pieces).finish().0;
    query.bind(history(pieces).finish().0).bind(results.clone()).bind(results)
}

/// The fence's rows, and the bytes that they point into.
struct Laid {
    commits: String,
    ahead: Vec<u8>,
    ids: Vec<u8>,
    events: Vec<u8>,
    prints: Vec<u8>,
}

fn commits(pieces: &[&Piece]) -> Laid {
    let (mut rows, mut ahead, mut prints) = (RowArgs::default(), Vec::new(), Vec::new());
    let mut events = Vec::with_capacity(pieces.iter().map(|piece| piece.events.len()).sum());
    for piece in pieces {
        let outbox_seq = (piece.events_count > 0).then(|| piece.first_seq + piece.events_count - 1);
        rows.row().put(piece.shard).put(piece.epoch).put(piece.no).put(piece.at).put(piece.first_seq).put(outbox_seq);
        rows.put(piece.last_seq).put(&piece.positions).put(&piece.counters).put(piece.release).put(piece.clean);
        rows.put_blob(&piece.ids).put(events.len() + 1).put(piece.events.len()).put(&piece.watermarks);
        rows.put(ahead.len() + 1).put(piece.ahead.len()).put(prints.len() + 1).put(piece.prints.len());
        ahead.extend_from_slice(&piece.ahead);
        prints.extend_from_slice(&piece.prints);
        events.extend_from_slice(&piece.events);
    }
    let (commits, ids) = rows.finish();
    Laid { commits, ahead, ids, events, prints }
}

/// Characters of a state's row beside its key, about.
const STATE_ROW: usize = 40;

fn states(pieces: &[&Piece]) -> ((String, Vec<u8>), String) {
    let mut states: Vec<&StateWrite> = pieces.iter().flat_map(|piece| &piece.states).collect();
    // In the order of the primary key, so that neighbours share a page; of several of one key the last is the newest.
    states.sort_by(|a, b| (&a.service, &a.key).cmp(&(&b.service, &b.key)));
    let bytes: usize = states.iter().map(|state| state.json().len()).sum();
    let mut rows = RowArgs::with_capacity(states.iter().map(|state| STATE_ROW + state.key.len()).sum(), bytes);
    let mut forgotten = RowArgs::default();
    for (at, state) in states.iter().enumerate() {
        if states.get(at + 1).is_some_and(|next| next.key == state.key && next.service == state.service) {
            continue;
        }
        match &state.state {
            Some((version, json)) => rows.row().put(&*state.service).put(&*state.key).put(version).put_blob(json),
            None => forgotten.row().put(&*state.service).put(&*state.key),
        };
    }
    (rows.finish(), forgotten.finish().0)
}

fn log(pieces: &[&Piece]) -> RowArgs {
    let mut rows = RowArgs::default();
    for piece in pieces {
        let origin = piece.shard.to_string();
        for row in &piece.log {
            rows.row().put(row.target).put(&origin).put(piece.no).put(row.count).put_blob(&row.messages);
        }
    }
    rows
}

fn pending(pieces: &[&Piece]) -> ((String, Vec<u8>), String) {
    let mut written = RowArgs::default();
    let mut settled = RowArgs::default();
    for piece in pieces {
        for (seq, row) in &piece.pending {
            let Some(row) = row else {
                settled.row().put(piece.shard).put(seq);
                continue;
            };
            written.row().put(piece.shard).put(seq).put(&*row.service).put(&*row.key).put(row.kind.as_str());
            written.put(row.due_at).put(hex(&row.id.0)).put(row.message.id()).put(row.taken_at).put(row.attempt);
            written.put(row.starts).put(json(&row.history)).put_blob(row.message.frame());
        }
    }
    (written.finish(), settled.finish().0)
}

fn dead(pieces: &[&Piece]) -> ((String, Vec<u8>), String) {
    let mut written = RowArgs::default();
    let mut undead = RowArgs::default();
    for piece in pieces {
        for (seq, letter) in &piece.dead {
            let Some(letter) = letter else {
                undead.row().put(piece.shard).put(seq);
                continue;
            };
            written.row().put(piece.shard).put(seq).put(&*letter.service).put(&*letter.key).put(hex(&letter.id.0));
            written.put(letter.message.id()).put(letter.at).put(letter.taken_at).put(&letter.error);
            written.put(letter.holds_key).put(json(&letter.history)).put_blob(letter.message.frame());
        }
    }
    (written.finish(), undead.finish().0)
}

fn timers(pieces: &[&Piece]) -> ((String, Vec<u8>), String) {
    let mut set = RowArgs::default();
    let mut stopped = RowArgs::default();
    for (piece, timer) in pieces.iter().flat_map(|piece| piece.timers.iter().map(move |timer| (piece, timer))) {
        let (service, key, name) = (&*timer.service, &*timer.key, &*timer.name);
        match &timer.set {
            Some((due_at, message)) => set
                .row()
                .put(piece.shard)
                .put(service)
                .put(key)
                .put(name)
                .put(signed(*due_at))
                .put_blob(message.frame()),
            None => stopped.row().put(service).put(key).put(name),
        };
    }
    (set.finish(), stopped.finish().0)
}

fn replies(pieces: &[&Piece]) -> RowArgs {
    let mut rows = RowArgs::default();
    for Reply { call, outcome } in pieces.iter().flat_map(|piece| &piece.replies) {
        rows.row().put(hex(&call.0)).put(outcome.end.as_str()).put(&outcome.code).put_blob(&outcome.body);
    }
    rows
}

fn history(pieces: &[&Piece]) -> RowArgs {
    let mut rows = RowArgs::default();
    for piece in pieces {
        for line in &piece.history {
            rows.row().put(piece.shard).put(&*line.service).put(&*line.key).put(&line.id).put(line.at);
            rows.put(line.attempt).put(line.generation).put(&line.what).put(&line.error);
        }
    }
    rows
}

fn results(pieces: &[&Piece]) -> RowArgs {
    let mut rows = RowArgs::default();
    for piece in pieces {
        for result in &piece.results {
            rows.row().put(result.command).put(piece.shard).put(result.affected).put(result.done);
        }
    }
    rows
}

pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn json(attempts: &[crate::store::Attempt]) -> String {
    serde_json::to_string(attempts).expect("attempts always have a JSON form")
}
