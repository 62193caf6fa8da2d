//! The guide shows code that is there: each block is cut out of the file that is named above it.
//! In: the pages of `docs/guide`. Out: each block that is not, with its page and line.

use std::collections::BTreeSet;

use crate::tidy::scan::root;

/// A fenced block.
struct Block {
    line: usize,
    language: String,
    /// The last text in back quotes before it.
    named: Option<String>,
    text: Vec<String>,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let (mut open, mut named): (Option<Block>, Option<String>) = (None, None);
    for (line, text) in (1..).zip(page.lines()) {
        let fence = text.strip_prefix("```");
        match (open.take(), fence) {
            (None, Some(language)) => {
                let (language, text) = (language.to_owned(), Vec::new());
                open = Some(Block { line, language, named: named.clone(), text });
            }
            (Some(block), Some(_)) => blocks.push(block),
            (Some(mut block), None) => {
                block.text.push(text.trim().to_owned());
                open = Some(block);
            }
            // A line that leads to a block ends in the file's name and a colon.
            (None, None) => {
                if let Some(name) = text.strip_suffix("`:").and_then(|text| text.rsplit('`').next()) {
                    named = Some(name.to_owned());
                }
            }
        }
    }
    blocks
}

/// The problems of the code on a page; `read` gives a file's text.
fn strangers(name: &str, page: &str, read: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut problems = Vec::new();
    for Block { line, language, named, text } in blocks(page) {
        if !["rust", "toml"].contains(&language.as_str()) {
            continue;
        }
        let Some(file) = named else {
            problems.push(format!("{name}:{line}: say which file it is from: \"From `examples/…`:\""));
            continue;
        };
        let Some(source) = read(&file) else {
            problems.push(format!("{name}:{line}: {file} is not there"));
            continue;
        };
        let source: Vec<_> = source.lines().map(str::trim).collect();
        if text.is_empty() || !source.windows(text.len()).any(|part| part == text) {
            problems.push(format!("{name}:{line}: this is not in {file}: copy it anew"));
        }
    }
    problems
}

#[test]
fn the_guide_shows_code_that_is_there() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).ok();
    let folder = root().join("docs/guide");
    let pages = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let pages: BTreeSet<String> = pages.collect();
    let problems = pages.iter().flat_map(|name| {
        let page = read(&format!("docs/guide/{name}")).unwrap();
        strangers(&format!("docs/guide/{name}"), &page, read)
    });
    let problems: Vec<_> = problems.collect();
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
    // Whoever reads the index finds all pages.
    let index = read("docs/guide/README.md").unwrap();
    let named = |name: &&String| *name == "README.md" || index.contains(&format!("({name})"));
    let lost: Vec<_> = pages.iter().filter(|name| !named(name)).collect();
    assert!(lost.is_empty() && pages.len() == 10, "docs/guide/README.md:1: {lost:?} of {pages:?} is not named");
}

#[test]
fn code_that_is_not_there_is_found() {
    let page = concat!(
        "From `a.rs`:\n\n```rust\n  fn a() {\n}\n```\n```rust\nfn b() {}\n```\n",
        "In `b.rs`:\n```toml\nx = 1\n```\n```sh\nls\n```\n",
    );
    let read = |path: &str| (path == "a.rs").then(|| "//! a\nfn a() {\n    }\n".to_owned());
    let found = strangers("p.md", page, read);
    let starts = ["p.md:7: this is not in a.rs", "p.md:11: b.rs is not there"];
    assert!(found.len() == 2 && found.iter().zip(starts).all(|(found, start)| found.starts_with(start)), "{found:?}");
    assert_eq!(strangers("p.md", "```rust\nfn a() {}\n```\n", |_| None).len(), 1);
}
