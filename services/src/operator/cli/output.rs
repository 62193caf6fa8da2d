//! What the command line writes: tables or JSON on standard output, problems on standard error.
//! In: rows and values. Out: text without colour or bars unless someone looks.

use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people
    Table,
    /// For programs: one document, whose shape docs/cli.md keeps stable
    Json,
}

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    form: Form,
}

impl Out {
    /// Writes in this form.
    pub fn new(form: Form) -> Self {
        Self { form }
    }

    /// Writes `value` for programs, or what `text` makes of it for people.
    pub fn show<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) {
        match self.form {
            Form::Table => self.text(&text(value)),
            Form::Json => self.text(&serde_json::to_string_pretty(value).unwrap_or_default()),
        }
    }

    /// Writes a text.
    pub fn text(self, text: &str) {
        // A reader that has seen enough closes the pipe: that is no failure.
        writeln!(std::io::stdout().lock(), "{text}").ok();
    }
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

/// Says what is wrong, or what is going on, on standard error.
pub fn complain(text: &str) {
    writeln!(std::io::stderr().lock(), "budget-manager: {text}").ok();
}

/// Whether a progress bar would be seen.
pub fn bars() -> bool {
    std::io::stderr().is_terminal()
}

/// Text of strangers in one line: control characters could move the cursor or change colours.
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
}
