//! Reads the project's own files, and Rust text with its comments and strings told apart from its code.
//! In: the folder of the workspace. Out: files by their path in it, code without comments, literals with their place.

use std::fs;
use std::path::{Path, PathBuf};

/// A text file of the project.
pub(super) struct File {
    /// Its path from the root of the workspace, with `/`.
    pub(super) path: String,
    pub(super) text: String,
}

impl File {
    pub(super) fn planted(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    pub(super) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// True if it belongs to a crate's source, as opposed to the tests that are a crate of their own.
    pub(super) fn is_source(&self) -> bool {
        self.is_rust() && self.path.split('/').nth(1) == Some("src")
    }

    pub(super) fn rust(&self) -> Rust {
        Rust::new(&self.text)
    }
}

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the workspace").to_owned()
}

/// Every text file of the project, in the order of their paths.
pub(super) fn project() -> Vec<File> {
    let mut files = Vec::new();
    walk(&root(), &root(), &mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(files.iter().filter(|file| file.is_source()).count() > 10, "the walk found too little to be believed");
    files
}

fn walk(root: &Path, folder: &Path, files: &mut Vec<File>) {
    for entry in fs::read_dir(folder).expect("a folder of the project can be read") {
        let path = entry.expect("an entry of the project can be read").path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let made = [".git", "demo"].contains(&name.as_str()) && path.parent() == Some(root);
        let made = made || ["target", "Cargo.lock"].contains(&name.as_str());
        if made {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, files);
        } else if let Ok(text) = fs::read_to_string(&path) {
            let path = path.strip_prefix(root).expect("the walk starts at the root");
            files.push(File { path: path.to_string_lossy().replace('\\', "/"), text });
        }
    }
}

/// Rust text, taken apart.
pub(super) struct Rust {
    /// The text, byte for byte as long, with comments and the inside of literals blanked.
    pub(super) code: String,
    /// The string literals.
    pub(super) literals: Vec<Literal>,
}

/// A string literal.
pub(super) struct Literal {
    /// The place of its opening quote in the code.
    pub(super) start: usize,
    /// The place behind its closing quote.
    pub(super) end: usize,
    /// The text between the quotes, with escapes as written.
    pub(super) text: String,
}

impl Rust {
    pub(super) fn new(text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut code = bytes.to_vec();
        let mut literals = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let end = if rest.starts_with(b"//") {
                at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
            } else if rest.starts_with(b"/*") {
                at + block_comment(rest)
            } else if let Some((quote, length)) = string(rest, at > 0 && is_word(bytes[at - 1])) {
                let hashes = rest[..quote].iter().filter(|byte| **byte == b'#').count();
                let inside = at + quote + 1..(at + length).saturating_sub(1 + hashes).max(at + quote + 1);
                literals.push(Literal { start: at + quote, end: at + length, text: text[inside.clone()].to_owned() });
                blank(&mut code[inside]);
                at += length;
                continue;
            } else if let Some(length) = character(&text.as_bytes()[at..]) {
                at + length
            } else {
                at += 1;
                continue;
            };
            blank(&mut code[at..end]);
            at = end;
        }
        Self { code: String::from_utf8_lossy(&code).into_owned(), literals }
    }

    /// The number of the line, from 1, in which the byte `at` stands.
    pub(super) fn line(&self, at: usize) -> usize {
        1 + self.code.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count()
    }

    /// The place where the tests at the end of a source file begin; its length if there are none.
    pub(super) fn tests_at(&self) -> usize {
        self.code.find("#[cfg(test)]\nmod ").unwrap_or(self.code.len())
    }

    /// Every identifier and keyword with its place.
    pub(super) fn words(&self) -> impl Iterator<Item = (usize, &str)> {
        let bytes = self.code.as_bytes();
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < bytes.len() && !is_word(bytes[at]) {
                at += 1;
            }
            let start = at;
            while at < bytes.len() && is_word(bytes[at]) {
                at += 1;
            }
            (at > start).then(|| (start, &self.code[start..at]))
        })
    }

    /// The code around a place: the last byte before it and the first from it on that is no white space.
    pub(super) fn neighbours(&self, before: usize, after: usize) -> (u8, u8) {
        let seen = |byte: &&u8| !byte.is_ascii_whitespace();
        let code = self.code.as_bytes();
        let left = code[..before].iter().rev().find(seen).copied().unwrap_or(0);
        let right = code[after..].iter().find(seen).copied().unwrap_or(0);
        (left, right)
    }

    /// Behind the bracket that closes the one at `open`.
    pub(super) fn closing(&self, open: usize) -> usize {
        let mut depth = 0;
        for (offset, byte) in self.code.as_bytes()[open..].iter().enumerate() {
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return open + offset + 1;
            }
        }
        self.code.len()
    }
}

pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|byte| **byte != b'\n') {
        *byte = b' ';
    }
}

/// Length of the (nested) block comment at the start.
fn block_comment(bytes: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Offset of the opening quote and length of the string literal at the start, when one is there.
fn string(bytes: &[u8], within_word: bool) -> Option<(usize, usize)> {
    let prefix = if within_word { 0 } else { bytes.iter().take(2).take_while(|b| b"bcr".contains(b)).count() };
    let raw = bytes[..prefix].contains(&b'r');
    let hashes = if raw { bytes[prefix..].iter().take_while(|b| **b == b'#').count() } else { 0 };
    let quote = prefix + hashes;
    if bytes.get(quote) != Some(&b'"') {
        return None;
    }
    let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    let mut at = quote + 1;
    while at < bytes.len() {
        if bytes[at] == b'\\' && !raw {
            at += 2;
        } else if bytes[at..].starts_with(&close) {
            return Some((quote, at + close.len()));
        } else {
            at += 1;
        }
    }
    Some((quote, bytes.len()))
}

/// Length of the character literal at the start, when it is one and no lifetime.
fn character(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'\'', b'\\', _, rest @ ..] => rest.iter().position(|byte| *byte == b'\'').map(|end| end + 4),
        [b'\'', first, rest @ ..] => {
            // The rest of a character of several bytes: each of them begins with the bits 10.
            let more = rest.iter().take_while(|byte| *first >= 0x80 && **byte & 0xc0 == 0x80).count();
            (rest.get(more) == Some(&b'\'')).then_some(more + 3)
        }
        _ => None,
    }
}

#[test]
fn code_is_told_apart_from_comments_and_literals() {
    let rust = Rust::new(concat!(
        "let a = \"job \\\" // not a comment\"; // job\n",
        "/* job /* job */ job */ let b = r#\"job \"x\" job\"#;\n",
        "let c: &'static str = f('\"', '\\'', 'é'); let d = b\"job\"; fn over<'a>() {}\n",
    ));
    assert!(!rust.code.contains("job") && !rust.code.contains("comment"), "{}", rust.code);
    assert!(rust.code.contains("let b =") && rust.code.contains("fn over<'") && rust.code.contains("let d = b\"   \""));
    let texts: Vec<&str> = rust.literals.iter().map(|literal| literal.text.as_str()).collect();
    assert_eq!(texts, ["job \\\" // not a comment", "job \"x\" job", "job"]);
    assert_eq!(rust.line(rust.literals[1].start), 2);
}
