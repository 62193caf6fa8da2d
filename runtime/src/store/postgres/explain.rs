//! What a PostgreSQL store knows of a message or a key: its story, which scans, for people; events; what waits for long; rows of
//! the intake.
//! In: an id or a key as text; a shard and numbers. Out: what took it, what it caused, where it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgRow;

use super::commit::shard_no;
use super::decode::{self, stored};
use super::links::{Args, Links};
use super::queries::one;
use super::read::{ROWS_PAGE, count, signed};
use super::schema;
use crate::clock::Millis;
use crate::message::{KEPT_BYTES, ShardNo, TakenId, digest};
use crate::store::layout::{self, log};
use crate::store::query::{CommitRow, EventRow, Story};
use crate::store::{IntakeRow, IntakeRows, Letters, OfService, OldLetter, OldLetters, StoreError};

/// One more than are told: then there are more.
const LINES: usize = Story::LINES_MAX + 1;

pub(super) async fn story(links: &Links, text: &str) -> Result<Story, StoreError> {
    let mut story = Story::default();
    let hash_key = links.read(schema::HASH_KEY, Args::default()).await?;
    commits(links, text, &digest(text, &schema::hash_key(&hash_key)?), &mut story).await?;
    waiting(links, text, &mut story).await?;
    log(links, text, &mut story).await?;
    let sql = "SELECT service, version, state::text FROM states
        WHERE service IN (SELECT name FROM services) AND key = $1 ORDER BY service";
    for row in &links.read(sql, Args::default().put(stored(text))).await? {
        let json = Bytes::copy_from_slice(decode::get::<&str>(row, 2)?.as_bytes());
        story.states.push((decode::text(row, 0)?, decode::number(row, 1)?, json));
    }
    Ok(story)
}

/// The services' names by their numbers.
pub(super) async fn names(links: &Links) -> Result<BTreeMap<u16, Arc<str>>, StoreError> {
    let rows = links.read(schema::SERVICES, Args::default()).await?;
    Ok(schema::services(&rows)?.into_iter().map(|(name, number)| (number, name)).collect())
}

async fn commits(links: &Links, text: &str, digest: &[u8; 16], story: &mut Story) -> Result<(), StoreError> {
    let names = names(links).await?;
    // The bytes may be found by chance, or across two entries: what is found is decoded and compared.
    let sql = "SELECT shard::bigint, commit_no, epoch, at, first_seq, ids, events FROM commits
        WHERE position($1 IN ids) > 0 OR position($1 IN events) > 0 OR position($2 IN events) > 0
        ORDER BY at DESC, shard DESC, commit_no DESC LIMIT $3";
    let args = Args::default().put(&digest[..]).put(text.as_bytes()).put(count(LINES));
    let (mut taken, mut emitted) = (Vec::new(), Vec::new());
    for row in &links.read(sql, args).await? {
        let commit = commit(row)?;
        for id in layout::ids(decode::get(row, 5)?)?.iter().filter(|id| id.is(digest)) {
            let number = u16::from_le_bytes([id.0[TakenId::BYTES - 2], id.0[TakenId::BYTES - 1]]);
            let name = names.get(&number).cloned().unwrap_or_else(|| Arc::from(number.to_string()));
            taken.push((commit.clone(), name));
        }
        let events =
            layout::events(&commit, decode::number(row, 4)?, decode::blob(row, 6)?, |no| names.get(&no).cloned())?;
        emitted.extend(events.into_iter().rev().filter(|row| {
            let message = &row.event.message;
            row.event.cause == *digest || message.id() == text || message.key() == text
        }));
        if emitted.len() >= LINES {
            break;
        }
    }
    story.taken = story.told("commits that took it", taken);
    story.events = story.told("events", emitted);
    Ok(())
}

async fn waiting(links: &Links, text: &str, story: &mut Story) -> Result<(), StoreError> {
    let args = || Args::default().put(stored(text)).put(count(LINES));
    let sql =
        format!("SELECT {} FROM history WHERE id = $1 OR key = $1 ORDER BY at DESC, no DESC LIMIT $2", decode::HISTORY);
    let rows = links.read(AssertSqlSafe(sql), args()).await?;
    let lines = rows.iter().map(decode::history).collect::<Result<_, _>>()?;
    story.history = story.told("history", lines);
    let sql = format!(
        "SELECT {} FROM pending WHERE message_id = $1 OR key = $1 ORDER BY shard DESC, seq DESC LIMIT $2",
        decode::PENDING
    );
    let rows = links.read(AssertSqlSafe(sql), args()).await?;
    let lines = rows.iter().map(decode::pending).collect::<Result<_, _>>()?;
    story.pending = story.told("waiting messages", lines);
    let sql = format!(
        "SELECT {} FROM dead_letters WHERE message_id = $1 OR key = $1 ORDER BY shard DESC, seq DESC LIMIT $2",
        decode::DEAD
    );
    let rows = links.read(AssertSqlSafe(sql), args()).await?;
    let lines = rows.iter().map(decode::dead).collect::<Result<_, _>>()?;
    story.dead = story.told("dead letters", lines);
    Ok(())
}

async fn log(links: &Links, text: &str, story: &mut Story) -> Result<(), StoreError> {
    let sql = "SELECT target::bigint, origin, no, messages FROM log WHERE position($1 IN messages) > 0
        ORDER BY target DESC, origin DESC, no DESC LIMIT $2";
    let mut found = Vec::new();
    for row in &links.read(sql, Args::default().put(text.as_bytes()).put(count(LINES))).await? {
        let Ok(messages) = log::decode(decode::blob(row, 3)?) else { continue };
        if messages.iter().any(|(_, message)| message.id() == text || message.key() == text) {
            found.push((decode::number(row, 0)?, decode::text(row, 1)?, decode::number(row, 2)?));
        }
    }
    story.log = story.told("rows of the log", found);
    Ok(())
}

/// Dead letters that are looked through by one statement.
const OLD_PAGE: i64 = 2_000;

/// Letters among which those that sinks refused are looked for, when they are counted.
const REFUSED_AMONG: u64 = 500_000;

/// All by the primary key and those that hold by their index, which costs little; those that are refused events are looked
/// for in the letters themselves, where there are not too many: the alarm is then of those to come.
pub(super) async fn letters(links: &Links, shard: ShardNo) -> Result<Letters, StoreError> {
    let pages = "SELECT count(*), max(seq) FROM (
        SELECT seq FROM dead_letters WHERE shard = $1 AND seq > $2 ORDER BY seq LIMIT $3) page";
    let holding = "SELECT count(*) FROM dead_letters WHERE shard = $1 AND holds_key";
    let refused = "SELECT count(*) FROM dead_letters WHERE shard = $1 AND substring(taken_id FROM 21) = $2";
    let (mut letters, mut after) = (Letters::default(), Some(0));
    while let Some(behind) = after {
        let args = Args::default().put(shard_no(shard)).put(signed(behind)).put(ROWS_PAGE);
        let (page, last) = one(&links.read(pages, args).await?, |row| {
            Ok((decode::number::<u64>(row, 0)?, decode::maybe::<u64>(row, 1)?))
        })?;
        (letters.count, after) = (letters.count + page, last);
    }
    let args = || Args::default().put(shard_no(shard));
    letters.holding = one(&links.read(holding, args()).await?, |row| decode::number(row, 0))?;
    if letters.count <= REFUSED_AMONG {
        let args = args().put(&TakenId::OUTGOING.to_le_bytes()[..]);
        letters.refused = one(&links.read(refused, args).await?, |row| decode::number(row, 0))?;
    }
    Ok(letters)
}

pub(super) async fn old(links: &Links, shard: ShardNo, after: u64, before: Millis) -> Result<OldLetters, StoreError> {
    let sql = "SELECT seq, service, key, taken_id, message_id, at < $4 AND NOT holds_key FROM dead_letters
        WHERE shard = $1 AND seq > $2 ORDER BY seq LIMIT $3";
    let args = Args::default().put(shard_no(shard)).put(signed(after)).put(OLD_PAGE).put(signed(before));
    let mut found = OldLetters::default();
    for row in &links.read(sql, args).await? {
        found.last = Some(decode::number(row, 0)?);
        if decode::get(row, 5)? {
            let (service, key) = (decode::text(row, 1)?, decode::text(row, 2)?);
            let (id, message_id) = (layout::id(decode::get(row, 3)?)?, decode::string(row, 4)?);
            found.letters.push(OldLetter { seq: decode::number(row, 0)?, service, key, id, message_id });
        }
    }
    Ok(found)
}

pub(super) async fn known(links: &Links, shard: ShardNo, asked: &[(TakenId, String)]) -> Result<Vec<bool>, StoreError> {
    let args = Args::default()
        .put(shard_no(shard))
        .put(asked.iter().map(|(id, _)| &id.0[..]).collect::<Vec<&[u8]>>())
        .put(asked.iter().map(|(_, message)| stored(message)).collect::<Vec<_>>());
    // By the message's id, in whichever shard: "+ 0" keeps the planner from an index that begins with the shard.
    let sql = "SELECT e.at - 1 FROM UNNEST($2::bytea[], $3::text[]) WITH ORDINALITY AS e (id, message_id, at)
        WHERE EXISTS (SELECT FROM pending p
                WHERE p.message_id = e.message_id AND p.shard + 0 = $1 AND p.taken_id = e.id OFFSET 0)
            OR EXISTS (SELECT FROM dead_letters d
                WHERE d.message_id = e.message_id AND d.shard + 0 = $1 AND d.taken_id = e.id OFFSET 0)";
    let mut known = vec![false; asked.len()];
    for row in &links.read(sql, args).await? {
        let at: usize = decode::number(row, 0)?;
        if let Some(place) = known.get_mut(at) {
            *place = true;
        }
    }
    Ok(known)
}

pub(super) async fn of_service(
    links: &Links,
    shard: ShardNo,
    service: &str,
    limit: usize,
) -> Result<OfService, StoreError> {
    let args = || Args::default().put(shard_no(shard)).put(stored(service)).put(count(limit));
    let sql =
        format!("SELECT {} FROM pending WHERE shard = $1 AND service = $2 ORDER BY key, seq LIMIT $3", decode::PENDING);
    let pending =
        links.read(AssertSqlSafe(sql), args()).await?.iter().map(decode::pending).collect::<Result<_, _>>()?;
    let sql = "SELECT service, key, name, due_at, message FROM timers
        WHERE shard = $1 AND service = $2 ORDER BY due_at LIMIT $3";
    let timers = links.read(sql, args()).await?.iter().map(decode::timer).collect::<Result<_, _>>()?;
    Ok(OfService { pending, timers })
}

pub(super) async fn events(
    links: &Links,
    shard: ShardNo,
    after: u64,
    limit: usize,
) -> Result<Vec<EventRow>, StoreError> {
    page(links, (shard, first(links, shard, after).await?, after), limit, i64::MAX).await
}

/// The commit that begins last at or below the event behind `after`.
async fn first(links: &Links, shard: ShardNo, after: u64) -> Result<u64, StoreError> {
    // Numbers rise with commits: the first commit of interest is the last one that begins at or below `after + 1`.
    // It is found from the newest on, as who asks mostly stands near it.
    let sql = "SELECT commit_no FROM commits WHERE shard = $1 AND first_seq <= $2 AND length(events) > 0
        ORDER BY commit_no DESC LIMIT 1";
    let args = Args::default().put(shard_no(shard)).put(signed(after).saturating_add(1));
    Ok(links.read(sql, args).await?.first().map(|row| decode::number(row, 0)).transpose()?.unwrap_or(0))
}

/// Events above a number, looked for from a commit on, 0 where that is not known.
pub(super) async fn outbox(
    links: &Links,
    shard: ShardNo,
    (from, after): (u64, u64),
    limit: usize,
) -> Result<Vec<EventRow>, StoreError> {
    let from = if from == 0 { first(links, shard, after).await? } else { from };
    page(links, (shard, from, after), limit, layout::OUTBOX_BYTES_MAX).await
}

async fn page(
    links: &Links,
    (shard, from, after): (ShardNo, u64, u64),
    limit: usize,
    bytes_max: i64,
) -> Result<Vec<EventRow>, StoreError> {
    let names = names(links).await?;
    // All of the first commit's events may be known: the second always comes with it.
    let sql = "SELECT shard::bigint, commit_no, epoch, at, first_seq, events FROM (
            SELECT c.*, row_number() OVER sofar AS nth, sum(length(events)) OVER sofar AS bytes FROM (
                SELECT shard, commit_no, epoch, at, first_seq, events FROM commits
                WHERE shard = $1 AND commit_no >= $2 AND length(events) > 0 ORDER BY commit_no LIMIT $3) c
            WINDOW sofar AS (ORDER BY commit_no ROWS UNBOUNDED PRECEDING)) page
        WHERE nth <= 2 OR bytes <= $4 ORDER BY commit_no";
    let args =
        Args::default().put(shard_no(shard)).put(signed(from)).put(count(limit.saturating_add(1))).put(bytes_max);
    let mut found = Vec::new();
    let mut commits = 0;
    for row in &links.read(sql, args).await? {
        let commit = commit(row)?;
        let events =
            layout::events(&commit, decode::number(row, 4)?, decode::blob(row, 5)?, |no| names.get(&no).cloned())?;
        let before = found.len();
        found.extend(events.into_iter().filter(|event| event.seq > after));
        commits += usize::from(found.len() > before);
        if commits == limit {
            break;
        }
    }
    Ok(found)
}

/// As many as are asked for, fewer where these are large; one at least. What is too large stays where it is: no more of it
/// is decompressed than is kept.
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
    (limit, bytes_max): (usize, usize),
) -> Result<IntakeRows, StoreError> {
    let held: Vec<i64> = held.iter().copied().map(signed).collect();
    let mut found = IntakeRows::default();
    if !held.is_empty() {
        let sql = "SELECT no FROM perkey_intake WHERE shard = $1 AND no = ANY ($2)";
        for row in &links.read(sql, Args::default().put(shard_no(shard)).put(&held)).await? {
            found.left.push(decode::number(row, 0)?);
        }
    }
    let args = Args::default().put(shard_no(shard)).put(&held).put(count(limit)).put(count(bytes_max));
    for row in &links.read(INTAKE, args.put(i32::try_from(KEPT_BYTES).unwrap_or(i32::MAX))).await? {
        found.rows.push(IntakeRow {
            no: decode::number(row, 0)?,
            service: decode::get::<Option<&str>>(row, 1)?.map(Arc::from),
            key: decode::get(row, 2)?,
            id: decode::get(row, 3)?,
            kind: decode::get(row, 4)?,
            headers: decode::get(row, 5)?,
            payload: decode::get(row, 6)?,
            at: decode::number(row, 7)?,
            bytes: decode::number(row, 8)?,
        });
    }
    Ok(found)
}

/// A row that begins with shard, commit_no, epoch, at.
pub(super) fn commit(row: &PgRow) -> Result<CommitRow, StoreError> {
    Ok(CommitRow {
        shard: decode::number(row, 0)?,
        no: decode::number(row, 1)?,
        epoch: decode::number(row, 2)?,
        at: decode::number(row, 3)?,
    })
}
