//! Doc lines name their subject: a clause without a head ("What it holds.") does not say what it is about.
//! In: the project's Rust files. Out: each doc comment that begins so.

use super::scan::{File, project};
use super::{found, holds};

/// First words of a clause without a head.
const HEADLESS: &[&str] = &[
    "What",
    "How",
    "Whether",
    "Who",
    "Whose",
    "Where",
    "When",
    "Which",
    "Why",
    "Since when",
    "Until when",
    "From when",
    "The same",
];

/// The text of a doc comment's line.
fn doc(line: &str) -> Option<&str> {
    let line = line.trim_start();
    line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))
}

fn is_headless(text: &str) -> bool {
    let begins = |words: &&str| text.strip_prefix(*words).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric));
    HEADLESS.iter().any(begins)
}

fn headless_docs(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let mut inside = false;
        for (no, line) in file.text.lines().enumerate() {
            let text = doc(line).map(str::trim_start);
            if let Some(text) = text.filter(|text| !inside && is_headless(text)) {
                let (path, line) = (&file.path, no + 1);
                problems.push(format!("{path}:{line}: {text:?}: name the subject (\"The owner of …\", \"True if …\")"));
            }
            inside = text.is_some();
        }
    }
    problems
}

#[test]
fn doc_lines_name_their_subject() {
    holds(headless_docs(&project()));
}

#[test]
fn a_headless_doc_line_is_found() {
    let text =
        "//! What it is.\n\n/// What it holds.\nstruct A;\n    /// Whether it is.\n/// The owner.\n/// What it has.\n";
    let files = [
        File::planted("actors/src/a.rs", text),
        File::planted("runtime/src/fleet.rs", "//! x\n// What follows.\n/// Who it is.\n/// Whatever it is.\n"),
        File::planted("tests/it/a.rs", "//! x\n/// Whatever it is.\nstruct A;\n/// When.\n"),
    ];
    let starts = [
        "actors/src/a.rs:1: \"What it is.\"",
        "actors/src/a.rs:3: \"What it holds.\"",
        "actors/src/a.rs:5: \"Whether it is.\"",
        "runtime/src/fleet.rs:3: \"Who it is.\"",
        "tests/it/a.rs:4: \"When.\"",
    ];
    found(headless_docs(&files), &starts);
}
