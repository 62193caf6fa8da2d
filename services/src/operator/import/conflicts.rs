//! Lines whose ids were taken before with other content: dead letters of this import, or of an earlier run of it.
//! In: a store. Out: the lines.

use perkey::unstable::ledger::OTHER_CONTENT;
use perkey::unstable::store::query::DeadFilter;
use perkey::unstable::store::{DeadLetter, Store};
use perkey::{Millis, StoreError};
use serde::Serialize;

/// The most dead letters that are looked through.
const LOOKED_AT: usize = 1_000;
/// The most lines that are named in a text; all are in the JSON.
const NAMED: usize = 10;

/// A line that was not posted.
#[derive(Debug, Serialize)]
pub struct Conflict {
    line: u64,
    id: String,
    key: String,
}

/// The conflicts of a source, since a time if one is given.
pub async fn found(
    store: &dyn Store,
    service: &str,
    source: &str,
    since: Option<Millis>,
) -> Result<Vec<Conflict>, StoreError> {
    let (service, error) = (Some(service.to_owned()), Some(OTHER_CONTENT.to_owned()));
    let filter = DeadFilter { service, since, error, ..DeadFilter::default() };
    let letters = store.queries().peek(filter, LOOKED_AT).await?;
    let source = format!("import:{source}");
    let mine = letters.iter().filter(|(_, letter)| letter.message.source() == source);
    let mut found: Vec<_> = mine.map(|(_, letter)| conflict(letter)).collect();
    found.sort_by_key(|conflict| conflict.line);
    Ok(found)
}

fn conflict(letter: &DeadLetter) -> Conflict {
    let line = letter.message.header("importline").and_then(|line| line.parse().ok()).unwrap_or(0);
    Conflict { line, id: letter.message.id().to_owned(), key: letter.key.to_string() }
}

/// The text about conflicts; `None` if there are none.
pub fn text(conflicts: &[Conflict]) -> String {
    if conflicts.is_empty() {
        return String::new();
    }
    let count = conflicts.len();
    let mut text = format!(
        "\nnot posted, as the id {OTHER_CONTENT}: {count} (dead letters; dlq:edit gives one an id of its own, dlq:discard \
         removes it)"
    );
    for Conflict { line, id, key } in conflicts.iter().take(NAMED) {
        text.push_str(&format!("\n  line {line}: id {id:?} of {key}"));
    }
    if count > NAMED {
        text.push_str(&format!("\n  and {} more: dlq:peek", count - NAMED));
    }
    text
}
