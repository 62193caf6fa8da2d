//! All that a SQLite store knows of a message or a key.
//! In: an id or a key as text. Out: what took it, what it caused, where it is. It scans: for people, not for handlers.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::sqlite::SqlitePool;
use sqlx::{AssertSqlSafe, query};

use super::queries::commit;
use super::writer::failed;
use super::{decode, schema};
use crate::message::{TakenId, digest};
use crate::store::StoreError;
use crate::store::layout::{self, log};
use crate::store::query::Story;

/// One more than are told: then there are more.
const LINES: usize = Story::LINES_MAX + 1;

pub(super) async fn story(pool: &SqlitePool, text: &str) -> Result<Story, StoreError> {
    let mut story = Story::default();
    let hash_key = schema::hash_key(&mut *pool.acquire().await.map_err(failed)?).await?;
    commits(pool, text, &digest(text, &hash_key), &mut story).await?;
    waiting(pool, text, &mut story).await?;
    log(pool, text, &mut story).await?;
    let rows = query(
        "SELECT service, version, state FROM states
         WHERE service IN (SELECT name FROM services) AND key = ?1 ORDER BY service",
    );
    for row in &rows.bind(text).fetch_all(pool).await.map_err(failed)? {
        let json = Bytes::copy_from_slice(decode::get::<&str>(row, 2)?.as_bytes());
        story.states.push((decode::text(row, 0)?, decode::number(row, 1)?, json));
    }
    Ok(story)
}

/// The services' names by their numbers.
pub(super) async fn names(pool: &SqlitePool) -> Result<BTreeMap<u16, Arc<str>>, StoreError> {
    let numbers = schema::numbers(&mut *pool.acquire().await.map_err(failed)?).await?;
    Ok(numbers.into_iter().map(|(name, number)| (number, name)).collect())
}

async fn commits(pool: &SqlitePool, text: &str, digest: &[u8; 16], story: &mut Story) -> Result<(), StoreError> {
    let names = names(pool).await?;
    // The bytes may be found by chance, or across two entries: what is found is decoded and compared.
    let mut rows = query(
        "SELECT shard, commit_no, epoch, at, first_seq, ids, events FROM commits
         WHERE instr(ids, ?1) > 0 OR instr(events, ?1) > 0 OR instr(events, ?2) > 0
         ORDER BY at DESC, shard DESC, commit_no DESC",
    )
    .bind(&digest[..])
    .bind(text.as_bytes())
    .fetch(pool);
    let (mut taken, mut emitted) = (Vec::new(), Vec::new());
    while taken.len().max(emitted.len()) < LINES
        && let Some(row) = rows.try_next().await.map_err(failed)?
    {
        let commit = commit(&row)?;
        for id in layout::ids(decode::get(&row, 5)?)?.iter().filter(|id| id.is(digest)) {
            let number = u16::from_le_bytes([id.0[TakenId::BYTES - 2], id.0[TakenId::BYTES - 1]]);
            let name = names.get(&number).cloned().unwrap_or_else(|| Arc::from(number.to_string()));
            taken.push((commit.clone(), name));
        }
        let events =
            layout::events(&commit, decode::number(&row, 4)?, decode::blob(&row, 6)?, |no| names.get(&no).cloned())?;
        emitted.extend(events.into_iter().rev().filter(|row| {
            let message = &row.event.message;
            row.event.cause == *digest || message.id() == text || message.key() == text
        }));
    }
    story.taken = story.told("commits that took it", taken);
    story.events = story.told("events", emitted);
    Ok(())
}

async fn waiting(pool: &SqlitePool, text: &str, story: &mut Story) -> Result<(), StoreError> {
    let max = i64::try_from(LINES).unwrap_or(i64::MAX);
    let sql = format!(
        "SELECT {} FROM history WHERE id = ?1 OR key = ?1 ORDER BY at DESC, rowid DESC LIMIT ?2",
        decode::HISTORY
    );
    let rows = query(AssertSqlSafe(sql)).bind(text).bind(max).fetch_all(pool).await.map_err(failed)?;
    let lines = rows.iter().map(decode::history).collect::<Result<_, _>>()?;
    story.history = story.told("history", lines);
    let sql = format!(
        "SELECT {} FROM pending WHERE message_id = ?1 OR key = ?1 ORDER BY shard DESC, seq DESC LIMIT ?2",
        decode::PENDING
    );
    let rows = query(AssertSqlSafe(sql)).bind(text).bind(max).fetch_all(pool).await.map_err(failed)?;
    let lines = rows.iter().map(decode::pending).collect::<Result<_, _>>()?;
    story.pending = story.told("waiting messages", lines);
    let sql = format!(
        "SELECT {} FROM dead_letters WHERE message_id = ?1 OR key = ?1 ORDER BY shard DESC, seq DESC LIMIT ?2",
        decode::DEAD
    );
    let rows = query(AssertSqlSafe(sql)).bind(text).bind(max).fetch_all(pool).await.map_err(failed)?;
    let lines = rows.iter().map(decode::dead).collect::<Result<_, _>>()?;
    story.dead = story.told("dead letters", lines);
    Ok(())
}

async fn log(pool: &SqlitePool, text: &str, story: &mut Story) -> Result<(), StoreError> {
    let mut rows = query(
        "SELECT target, origin, no, messages FROM log WHERE instr(messages, ?1) > 0
         ORDER BY target DESC, origin DESC, no DESC",
    )
    .bind(text.as_bytes())
    .fetch(pool);
    let mut found = Vec::new();
    while found.len() < LINES
        && let Some(row) = rows.try_next().await.map_err(failed)?
    {
        let Ok(messages) = log::decode(decode::blob(&row, 3)?) else { continue };
        if messages.iter().any(|(_, message)| message.id() == text || message.key() == text) {
            found.push((decode::number(&row, 0)?, decode::text(&row, 1)?, decode::number(&row, 2)?));
        }
    }
    story.log = story.told("rows of the log", found);
    Ok(())
}
