//! All that a store knows of a message or a key. It scans: for people, not for handlers.
//! In: a database, an id or a key as text. Out: the commits that took it, its effects, the places where it is.

use std::sync::Arc;

use bytes::Bytes;

use super::decode::{self, DEAD, HISTORY, PENDING};
use super::sql::{Arg, Cells, Sql};
use super::{Story, ask};
use crate::message::{TakenId, digest};
use crate::store::StoreError;
use crate::store::layout;

/// One line more than are told: if it is found, there are more.
const LINES: usize = Story::LINES_MAX + 1;

/// The story of `text`; `hash_key` is the key that ids are hashed under.
pub(in crate::store) async fn story(db: &impl Sql, hash_key: &[u8; 32], text: &str) -> Result<Story, StoreError> {
    let mut story = Story::default();
    commits(db, text, &digest(text, hash_key), &mut story).await?;
    waiting(db, text, &mut story).await?;
    log(db, text, &mut story).await?;
    let sql = "SELECT service, version, state::text FROM states
        WHERE service IN (SELECT name FROM services) AND key = $1 ORDER BY service";
    for row in &db.rows(sql, &[Arg::Text(Some(text))]).await? {
        let json = Bytes::copy_from_slice(row.get::<&str>(2)?.as_bytes());
        story.states.push((row.text(0)?, row.number(1)?, json));
    }
    Ok(story)
}

async fn commits<S: Sql>(db: &S, text: &str, digest: &[u8; 16], story: &mut Story) -> Result<(), StoreError> {
    let names = ask::names(db).await?;
    // The bytes may be found by chance, or across two entries: what is found is decoded and compared.
    let sql = format!(
        "SELECT shard::bigint, commit_no, epoch, at, first_seq, ids, events FROM commits WHERE {} OR {} OR {}
         ORDER BY at DESC, shard DESC, commit_no DESC",
        S::holds("ids", "$1"),
        S::holds("events", "$1"),
        S::holds("events", "$2")
    );
    let (mut taken, mut emitted) = (Vec::new(), Vec::new());
    let take = |row: &S::Row| {
        let (commit, events) = decode::commit(row, 6, &names)?;
        for id in layout::ids(row.get(5)?)?.iter().filter(|id| id.is(digest)) {
            let number = u16::from_le_bytes([id.0[TakenId::BYTES - 2], id.0[TakenId::BYTES - 1]]);
            let name = names.get(&number).cloned().unwrap_or_else(|| Arc::from(number.to_string()));
            taken.push((commit.clone(), name));
        }
        emitted.extend(events.into_iter().rev().filter(|row| {
            let message = &row.event.message;
            row.event.cause == *digest || message.id() == text || message.key() == text
        }));
        Ok(taken.len().max(emitted.len()) >= LINES)
    };
    db.scan(&sql, &[Arg::Blob(digest), Arg::Blob(text.as_bytes())], LINES, take).await?;
    story.taken = story.told("commits that took it", taken);
    story.events = story.told("events", emitted);
    Ok(())
}

async fn waiting<S: Sql>(db: &S, text: &str, story: &mut Story) -> Result<(), StoreError> {
    let (args, line) = ([Arg::Text(Some(text)), Arg::number(LINES)], S::LINE);
    let sql = format!("SELECT {HISTORY} FROM history WHERE id = $1 OR key = $1 ORDER BY at DESC, {line} DESC LIMIT $2");
    let lines = db.rows(&sql, &args).await?.iter().map(decode::history).collect::<Result<_, _>>()?;
    story.history = story.told("history", lines);
    let newest = "WHERE message_id = $1 OR key = $1 ORDER BY shard DESC, seq DESC LIMIT $2";
    let rows = db.rows(&format!("SELECT {PENDING} FROM pending {newest}"), &args).await?;
    story.pending = story.told("waiting messages", rows.iter().map(decode::pending).collect::<Result<_, _>>()?);
    let rows = db.rows(&format!("SELECT {DEAD} FROM dead_letters {newest}"), &args).await?;
    story.dead = story.told("dead letters", rows.iter().map(decode::dead).collect::<Result<_, _>>()?);
    Ok(())
}

async fn log<S: Sql>(db: &S, text: &str, story: &mut Story) -> Result<(), StoreError> {
    let sql = format!(
        "SELECT target::bigint, origin, no, messages FROM log WHERE {} ORDER BY target DESC, origin DESC, no DESC",
        S::holds("messages", "$1")
    );
    let mut found = Vec::new();
    let take = |row: &S::Row| {
        let Ok(messages) = layout::log::decode(row.blob(3)?) else { return Ok(false) };
        if messages.iter().any(|(_, message)| message.id() == text || message.key() == text) {
            found.push((row.number(0)?, row.text(1)?, row.number(2)?));
        }
        Ok(found.len() >= LINES)
    };
    db.scan(&sql, &[Arg::Blob(text.as_bytes())], LINES, take).await?;
    story.log = story.told("rows of the log", found);
    Ok(())
}
