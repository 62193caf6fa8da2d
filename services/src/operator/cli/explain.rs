//! `explain`: the events of a message, or of a key's messages, in time order.
//! In: an id or a key. Out: its source, failed attempts, commits, events, dead-letter moves, and its present state.

use perkey::unstable::clock::rfc3339;
use perkey::unstable::store::query::{CommitRow, Story};
use perkey::unstable::store::{DeadLetter, HistoryRow};
use perkey::{Message, Millis, Settings};
use serde::Serialize;

use super::output::{Out, table};
use super::{Done, Ended, open_beside};

/// The story as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    asked: String,
    story: Vec<Line>,
    states: Vec<State>,
    /// The kinds of which only the newest are shown, as there are too many.
    cut: Vec<&'static str>,
}

/// One event of the story.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Line {
    #[serde(skip)]
    millis: Millis,
    at: String,
    what: String,
    service: String,
    key: String,
    id: String,
    detail: String,
}

/// A key's state.
#[derive(Debug, Serialize)]
struct State {
    service: String,
    version: u32,
    state: serde_json::Value,
}

/// Shows the story of a message or a key.
pub async fn explain(settings: &Settings, asked: String, out: Out) -> Ended {
    let store = open_beside(settings).await?;
    let story = store.queries().explain(asked.clone()).await?;
    let states = story.states.iter().map(|(service, version, json)| State {
        service: service.to_string(),
        version: *version,
        state: serde_json::from_slice(json).unwrap_or_default(),
    });
    let shown = Shown { states: states.collect(), story: lines(&story, &asked), asked, cut: story.cut };
    out.show(&shown, text)?;
    let found = !(shown.story.is_empty() && shown.states.is_empty());
    Ok(if found { Done::All } else { Done::NothingFound })
}

fn lines(story: &Story, asked: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut sources = Vec::new();
    for row in &story.pending {
        let from = sent(&row.service, &row.message);
        sources.push(from);
        let due = row.due_at.map_or_else(|| "behind the one before it".to_owned(), |at| format!("due {}", rfc3339(at)));
        let what = format!("waits ({})", row.kind.as_str());
        let detail = format!("{due}; taken {}, attempts spent: {}", rfc3339(row.taken_at), row.attempt);
        // Messages that still wait come last: their time is yet to come.
        let waits = line(row.taken_at, &what, &row.service, &row.message, detail);
        lines.push(Line { millis: Millis::MAX, at: String::new(), ..waits });
    }
    for letter in &story.dead {
        sources.push(sent(&letter.service, &letter.message));
        let held = if letter.holds_key { "; its key waits for an operator" } else { "" };
        let attempts = letter.history.len();
        let detail = format!("{}{held}; failed attempts: {attempts}", letter.error);
        lines.push(line(letter.at, "dead letter", &letter.service, &letter.message, detail));
    }
    for (commit, service) in &story.taken {
        lines.push(Line {
            millis: commit.at,
            at: rfc3339(commit.at),
            what: "taken".to_owned(),
            service: service.to_string(),
            id: asked.to_owned(),
            detail: place(commit),
            ..Line::default()
        });
    }
    for row in &story.events {
        let message = &row.event.message;
        let detail = format!("{} as event {} of {}", message.kind(), row.seq, place(&row.commit));
        lines.push(line(row.commit.at, "emitted", &row.event.service, message, detail));
    }
    // A letter that is still one is in the story already, in more detail.
    let told = |row: &HistoryRow| {
        let same = |letter: &DeadLetter| letter.at == row.at && letter.message.id() == row.id;
        row.what == "dead_letter" && story.dead.iter().any(same)
    };
    for row in story.history.iter().filter(|row| !told(row)) {
        let error = if row.error.is_empty() { String::new() } else { format!(": {}", row.error) };
        lines.push(Line {
            millis: row.at,
            at: rfc3339(row.at),
            what: row.what.replace('_', " "),
            service: row.service.to_string(),
            key: row.key.to_string(),
            id: row.id.clone(),
            detail: format!("attempt {}, generation {}{error}", row.attempt, row.generation),
        });
    }
    for (shard, origin, no) in &story.log {
        let detail = format!("row {no} of lane {origin} for shard {shard}");
        lines.push(Line { what: "in the log".to_owned(), detail, ..Line::default() });
    }
    lines.extend(sources);
    // Events of the same instant are in the order in which they must have happened.
    lines.sort_by_key(|line| (line.millis, rank(&line.what)));
    lines.dedup();
    lines
}

fn rank(what: &str) -> u8 {
    match what {
        "sent" => 0,
        "in the log" => 1,
        "restarted" => 2,
        "fault" => 3,
        "dead letter" => 6,
        "emitted" => 5,
        _ => 4,
    }
}

fn line(at: Millis, what: &str, service: &str, message: &Message, detail: String) -> Line {
    Line {
        millis: at,
        at: rfc3339(at),
        what: what.to_owned(),
        service: service.to_owned(),
        key: message.key().to_owned(),
        id: message.id().to_owned(),
        detail,
    }
}

fn sent(service: &str, message: &Message) -> Line {
    let line_no = message.header("importline").map_or_else(String::new, |no| format!(", line {no}"));
    let detail = format!("{} from {}{line_no}", message.kind(), message.source());
    line(message.time(), "sent", service, message, detail)
}

fn place(commit: &CommitRow) -> String {
    format!("commit {} of shard {} under epoch {}", commit.no, commit.shard, commit.epoch)
}

fn text(shown: &Shown) -> String {
    if shown.story.is_empty() && shown.states.is_empty() {
        return format!(
            "Nothing is known of {:?}: no commit within the window took it, and it waits nowhere.",
            shown.asked
        );
    }
    let row = |line: &Line| {
        [&line.at, &line.what, &line.service, &line.key, &line.id, &line.detail].map(String::clone).to_vec()
    };
    let mut text = String::new();
    if !shown.cut.is_empty() {
        let (most, cut) = (Story::LINES_MAX, shown.cut.join(", "));
        text = format!("There is more than is shown: only the newest {most} of each ({cut}).\n\n");
    }
    text.push_str(&table(&["at", "what", "service", "key", "id", "detail"], shown.story.iter().map(row)));
    for state in &shown.states {
        text.push_str(&format!("\n\nstate of {} (version {}): {}", state.service, state.version, state.state));
    }
    text
}

#[cfg(test)]
mod tests {
    use perkey::Draft;
    use perkey::unstable::message::TakenId;
    use perkey::unstable::store::EmittedEvent;
    use perkey::unstable::store::query::EventRow;

    use super::*;

    fn message() -> Message {
        let headers = [("importline", "7")];
        let draft = Draft {
            id: "m-1",
            key: "k",
            kind: "transactions.import",
            source: "import:x.csv",
            time: 5,
            ..Draft::default()
        };
        Draft { headers: &headers, ..draft }.build().unwrap()
    }

    #[test]
    fn a_story_is_told_in_time_order() {
        let commit = CommitRow { shard: 3, no: 12, epoch: 2, at: 20 };
        let fault = HistoryRow {
            service: "transactions".into(),
            key: "k".into(),
            id: "m-1".to_owned(),
            at: 20,
            attempt: 1,
            generation: 4,
            what: "fault".to_owned(),
            error: "boom".to_owned(),
        };
        let letter = DeadLetter {
            seq: 1,
            service: "transactions".into(),
            key: "k".into(),
            id: TakenId([0; 22]),
            at: 30,
            taken_at: 20,
            error: "boom".to_owned(),
            holds_key: true,
            history: Vec::new(),
            message: message(),
        };
        let event = EmittedEvent { service: "transactions".into(), cause: [0; 16], message: message() };
        let story = Story {
            taken: vec![(commit.clone(), "transactions".into())],
            events: vec![EventRow { commit, seq: 9, event }],
            history: vec![fault],
            dead: vec![letter],
            ..Story::default()
        };
        let told = lines(&story, "m-1");
        let told: Vec<_> = told.iter().map(|line| (line.what.as_str(), line.detail.as_str())).collect();
        assert_eq!(
            told,
            [
                ("sent", "transactions.import from import:x.csv, line 7"),
                ("fault", "attempt 1, generation 4: boom"),
                ("taken", "commit 12 of shard 3 under epoch 2"),
                ("emitted", "transactions.import as event 9 of commit 12 of shard 3 under epoch 2"),
                ("dead letter", "boom; its key waits for an operator; failed attempts: 0"),
            ]
        );
    }
}
