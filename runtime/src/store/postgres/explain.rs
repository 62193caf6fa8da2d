//! All that a PostgreSQL store knows of a message or a key.
//! In: an id or a key as text. Out: what took it, what it caused, where it is. It scans: for people, not for handlers.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sqlx::AssertSqlSafe;

use super::decode::stored;
use super::links::{Args, Links};
use super::queries::commit;
use super::read::count;
use super::{decode, schema};
use crate::message::{TakenId, digest};
use crate::store::query::Story;
use crate::store::{StoreError, layout};
use crate::transport::embedded;

/// Lines of each kind that are looked for.
const LINES_MAX: usize = 10_000;

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
        ORDER BY at, shard, commit_no LIMIT $3";
    let args = Args::default().put(&digest[..]).put(text.as_bytes()).put(count(LINES_MAX));
    for row in &links.read(sql, args).await? {
        let commit = commit(row)?;
        for id in layout::ids(decode::get(row, 5)?)?.iter().filter(|id| id.is(digest)) {
            let number = u16::from_le_bytes([id.0[TakenId::BYTES - 2], id.0[TakenId::BYTES - 1]]);
            let name = names.get(&number).cloned().unwrap_or_else(|| Arc::from(number.to_string()));
            story.taken.push((commit.clone(), name));
        }
        let events =
            layout::events(&commit, decode::number(row, 4)?, decode::blob(row, 6)?, |no| names.get(&no).cloned())?;
        story.events.extend(events.into_iter().filter(|row| {
            let message = &row.event.message;
            row.event.cause == *digest || message.id() == text || message.key() == text
        }));
        if story.events.len() >= LINES_MAX {
            break;
        }
    }
    Ok(())
}

async fn waiting(links: &Links, text: &str, story: &mut Story) -> Result<(), StoreError> {
    let args = || Args::default().put(stored(text)).put(count(LINES_MAX));
    let sql = format!("SELECT {} FROM history WHERE id = $1 OR key = $1 ORDER BY at, no LIMIT $2", decode::HISTORY);
    for row in &links.read(AssertSqlSafe(sql), args()).await? {
        story.history.push(decode::history(row)?);
    }
    let sql = format!(
        "SELECT {} FROM pending WHERE message_id = $1 OR key = $1 ORDER BY shard, seq LIMIT $2",
        decode::PENDING
    );
    for row in &links.read(AssertSqlSafe(sql), args()).await? {
        story.pending.push(decode::pending(row)?);
    }
    let sql = format!(
        "SELECT {} FROM dead_letters WHERE message_id = $1 OR key = $1 ORDER BY shard, seq LIMIT $2",
        decode::DEAD
    );
    for row in &links.read(AssertSqlSafe(sql), args()).await? {
        story.dead.push(decode::dead(row)?);
    }
    Ok(())
}

async fn log(links: &Links, text: &str, story: &mut Story) -> Result<(), StoreError> {
    let sql = "SELECT target::bigint, origin, no, messages FROM log WHERE position($1 IN messages) > 0
        ORDER BY target, origin, no LIMIT $2";
    for row in &links.read(sql, Args::default().put(text.as_bytes()).put(count(LINES_MAX))).await? {
        let Ok(messages) = embedded::decode(decode::blob(row, 3)?) else { continue };
        if messages.iter().any(|(_, message)| message.id() == text || message.key() == text) {
            story.log.push((decode::number(row, 0)?, decode::text(row, 1)?, decode::number(row, 2)?));
        }
    }
    Ok(())
}
