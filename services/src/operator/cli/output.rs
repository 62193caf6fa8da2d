//! The output of the command line: tables or JSON on standard output, problems on standard error.
//! In: rows and values. Out: text without colour or bars unless someone looks.

use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use perkey::host::Failure;
use perkey::unstable::engine::host::said;
use perkey::unstable::message::is_unseen;
use serde::Serialize;

/// The form of results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people
    Table,
    /// For programs: one document, whose shape docs/cli.md keeps stable
    Json,
}

/// The writer of results.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    form: Form,
}

impl Out {
    /// A writer of this form.
    pub fn new(form: Form) -> Self {
        Self { form }
    }

    /// Writes `value` for programs, or `text` of it for people. A command that cannot show its result has failed:
    /// a user who keeps the output would take a part of it for all.
    pub fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        said(&self.written(value, text)?)
    }

    /// Writes a result that must not be lost: a reader that has gone is a failure, too.
    pub fn hand_over<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", self.written(value, text)?).and_then(|()| out.flush()).map_err(unwritten)
    }

    fn written<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<String, Failure> {
        match self.form {
            Form::Table => Ok(visible(&text(value), |c, shown| shown.push_str(&c.escape_unicode().to_string()))),
            Form::Json => {
                let json = serde_json::to_string_pretty(value).map_err(|error| unwritten(error.into()))?;
                // Unprintable characters stand within a JSON string, where they may be escaped.
                Ok(visible(&json, |c, shown| {
                    let units = &mut [0; 2];
                    shown.extend(c.encode_utf16(units).iter().map(|unit| format!("\\u{unit:04x}")));
                }))
            }
        }
    }
}

/// The failure of a write to standard output.
pub fn unwritten(error: std::io::Error) -> Failure {
    Failure::Failed(format!("cannot write: {error}"))
}

/// A table for people: a row is a line.
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.to_vec());
    // As wide as its content: a terminal wraps it, a program finds each row on one line.
    table.set_content_arrangement(ContentArrangement::Disabled);
    for row in rows {
        table.add_row(row.iter().map(|cell| one_line(cell)));
    }
    let lines = table.to_string();
    let lines: Vec<_> = lines.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// Writes a problem, or progress, to standard error.
pub fn complain(text: &str) {
    let text = visible(text, |c, shown| shown.push_str(&c.escape_unicode().to_string()));
    writeln!(std::io::stderr().lock(), "budget-manager: {text}").ok();
}

/// Text with its unprintable characters escaped: foreign text could turn the text beside it around, or hide it.
fn visible(text: &str, escaped: impl Fn(char, &mut String)) -> String {
    let plain = |c: char| matches!(c, ' '..='~' | '\n' | '\t') || !is_unseen(c);
    if text.chars().all(plain) {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if plain(c) { shown.push(c) } else { escaped(c, &mut shown) }
    }
    shown
}

/// Returns whether a progress bar would be seen.
pub fn bars() -> bool {
    std::io::stderr().is_terminal()
}

/// Foreign text in one line: control characters could move the cursor or change colours.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_cannot_be_broken_by_its_content() {
        let shown = table(&["key", "error"], [vec!["a\nb".to_owned(), "\u{1b}[31mred".to_owned()]]);
        assert_eq!(shown.lines().count(), 2, "{shown}");
        assert!(!shown.contains('\u{1b}'));
    }

    #[test]
    fn what_a_terminal_would_not_show_is_escaped_and_programs_read_the_same() {
        let error = "a\u{202e}b\u{2066}c\u{200b}d\u{e0041}é";
        let shown =
            Out::new(Form::Table).written(&error, |error| table(&["error"], [vec![(*error).to_owned()]])).unwrap();
        assert!(shown.ends_with("a\\u{202e}b\\u{2066}c\\u{200b}d\\u{e0041}é"), "{shown}");
        let json = Out::new(Form::Json).written(&[error], |_| String::new()).unwrap();
        assert!(json.is_ascii() || !json.chars().any(|c| c != '\n' && is_unseen(c)), "{json:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&json).unwrap(), [error]);
    }
}
