//! Doc lines name their subject: a clause without a head ("What it holds.") does not say what it is about.
//! In: the project's Rust files. Out: each doc comment that begins so, in the folders that have none any more.

use super::scan::{File, project};
use super::{found, holds};

/// Starts of the paths of folders and files without headless doc comments. A folder that has become clean is added.
const CLEAN: &[&str] = &[
    "actors/src/",
    "chaos/src/",
    "runtime/src/clock",
    "runtime/src/fleet",
    "runtime/src/message",
    "runtime/src/metrics",
    "runtime/src/settings",
    "runtime/src/shard",
    "runtime/src/store",
    "runtime/src/telemetry",
    "runtime/src/testing",
    "runtime/src/transport",
    "services/",
    "tests/src/",
];

/// First words of a clause without a head.
const HEADLESS: &[&str] =
    &["What ", "How ", "Whether ", "Who ", "Whose ", "Where ", "When ", "Which ", "Why ", "The same "];

/// The text of a doc comment's line.
fn doc(line: &str) -> Option<&str> {
    let line = line.trim_start();
    line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))
}

fn headless_docs(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in files.iter().filter(|file| file.is_rust() && CLEAN.iter().any(|clean| file.path.starts_with(clean))) {
        let mut inside = false;
        for (no, line) in file.text.lines().enumerate() {
            let text = doc(line).map(str::trim_start);
            if let Some(text) = text.filter(|text| !inside && HEADLESS.iter().any(|word| text.starts_with(word))) {
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
    let files = project();
    let gone = CLEAN.iter().find(|clean| !files.iter().any(|file| file.path.starts_with(**clean)));
    assert_eq!(gone, None, "a path in CLEAN is not there: name the one that is");
    holds(headless_docs(&files));
}

#[test]
fn a_headless_doc_line_is_found() {
    let text =
        "//! What it is.\n\n/// What it holds.\nstruct A;\n    /// Whether it is.\n/// The owner.\n/// What it has.\n";
    let files = [
        File::planted("actors/src/a.rs", text),
        File::planted("runtime/src/fleet.rs", "//! x\n// What follows.\n/// Who it is.\n/// Whatever it is.\n"),
        File::planted("runtime/src/ledger/a.rs", "//! x\n/// What it holds.\n"),
    ];
    let starts = [
        "actors/src/a.rs:1: \"What it is.\"",
        "actors/src/a.rs:3: \"What it holds.\"",
        "actors/src/a.rs:5: \"Whether it is.\"",
        "runtime/src/fleet.rs:3: \"Who it is.\"",
    ];
    found(headless_docs(&files), &starts);
}
