//! One name, one type: what a reader has met under a name is not met again as something else in the same crate. And errors
//! are types that say what may have happened, not sentences.
//! In: the runtime's files. Out: each name of two types, with their places; each result whose error is a `String`.

use std::collections::BTreeMap;

use super::scan::{File, project};
use super::{found, holds};

/// Names of two types, and why.
const TWICE: &[(&str, &str)] = &[(
    "Answer",
    "users meet that of a service to whoever asked it; that of the store to the ledger stays in the conversation of both",
)];

/// Words that begin the definition of a type.
const KINDS: &[&str] = &["struct ", "enum ", "trait ", "type ", "union "];

fn runtime(files: &[File]) -> impl Iterator<Item = &File> {
    files
        .iter()
        .filter(|file| file.path.starts_with("runtime/src/") && file.is_rust() && !file.path.ends_with("/tests.rs"))
}

/// The name of the type that a line defines, outside of functions.
fn defined(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub").map_or(line, |rest| rest.trim_start_matches(|c| c != ' ').trim_start());
    let rest = KINDS.iter().find_map(|kind| line.strip_prefix(kind))?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().filter(|name| !name.is_empty())
}

fn doubled(files: &[File]) -> Vec<String> {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in runtime(files) {
        let rust = file.rust();
        for (no, line) in rust.code[..rust.tests_at()].lines().enumerate() {
            if let Some(name) = defined(line) {
                places.entry(name.to_owned()).or_default().push(format!("{}:{}", file.path, no + 1));
            }
        }
    }
    let twice = places.into_iter().filter(|(name, at)| at.len() > 1 && TWICE.iter().all(|(known, _)| known != name));
    twice
        .map(|(name, at)| format!("{}: {name} is another type already: say of what it is one", at.join(", ")))
        .collect()
}

fn sentences(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    for file in runtime(files) {
        let rust = file.rust();
        for (no, line) in rust.code[..rust.tests_at()].lines().enumerate() {
            if line.find("Result<").is_some_and(|at| line[at..].contains(", String>")) {
                problems.push(format!("{}:{}: an error is a small enum, not a sentence", file.path, no + 1));
            }
        }
    }
    problems
}

#[test]
fn no_name_is_that_of_two_types() {
    let files = project();
    holds(doubled(&files));
    let names: Vec<_> = runtime(&files).flat_map(|file| file.text.lines()).filter_map(defined).collect();
    let idle = TWICE.iter().find(|(name, _)| names.iter().filter(|known| *known == name).count() < 2);
    assert_eq!(idle, None, "this name is that of one type: take it from the list");
}

#[test]
fn no_error_is_a_sentence() {
    holds(sentences(&project()));
}

#[test]
fn a_second_type_and_a_sentence_are_found() {
    let files = [
        File::planted("runtime/src/a.rs", "pub struct Place;\nfn a() -> Result<(), String> {}\n"),
        File::planted("runtime/src/b/c.rs", "// x\npub(crate) enum Place { One }\n    struct Inner;\n"),
        File::planted("runtime/src/d.rs", "struct Inner<T>(T);\n#[cfg(test)]\nmod tests {}\nstruct Place;\n"),
        File::planted("runtime/src/e/tests.rs", "struct Place;\nfn b() -> Result<u8, String> {}\n"),
    ];
    found(doubled(&files), &["runtime/src/a.rs:1, runtime/src/b/c.rs:2: Place"]);
    found(sentences(&files), &["runtime/src/a.rs:2: an error"]);
}
