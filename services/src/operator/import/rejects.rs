//! The file of refused lines, beside the input.
//! In: lines and the reasons why they were refused. Out: one JSON object a line, each refused line once.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::operator::append::append;

/// A refused line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reject {
    /// Its number, from 1.
    pub line: u64,
    /// Why.
    pub reason: String,
    /// What it says; the start of it where it is too long.
    pub text: String,
}

/// The file.
#[derive(Debug)]
pub struct Rejects {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
}

impl Rejects {
    /// Takes the file at `path` back to its first `keep` bytes: what was written after them is refused again.
    pub fn open(path: PathBuf, keep: u64) -> io::Result<Self> {
        let bytes = match std::fs::metadata(&path) {
            Ok(found) if keep == 0 => {
                std::fs::remove_file(&path)?;
                found.len().min(keep)
            }
            Ok(found) => {
                // It is never made longer: the operator may have cleared it.
                let bytes = found.len().min(keep);
                OpenOptions::new().write(true).open(&path)?.set_len(bytes)?;
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Self { path, file: None, bytes })
    }

    /// Adds lines, durably: the progress that counts them is written after this.
    pub fn add(&mut self, rejects: &[Reject]) -> io::Result<()> {
        if rejects.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        for reject in rejects {
            serde_json::to_writer(&mut text, reject)?;
            text.push(b'\n');
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().create(true).read(true).append(true).open(&self.path)?),
        };
        self.bytes += append(file, text)?;
        Ok(())
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reject(line: u64) -> Reject {
        Reject { line, reason: "bad".to_owned(), text: "x".to_owned() }
    }

    #[test]
    fn what_was_not_counted_is_written_again_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.csv.rejects.ndjson");
        let mut rejects = Rejects::open(path.clone(), 0).unwrap();
        assert!(!path.exists(), "no file without a refused line");
        rejects.add(&[reject(1)]).unwrap();
        let counted = rejects.bytes();
        rejects.add(&[reject(2)]).unwrap();

        let mut again = Rejects::open(path.clone(), counted).unwrap();
        again.add(&[reject(2)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines, [r#"{"line":1,"reason":"bad","text":"x"}"#, r#"{"line":2,"reason":"bad","text":"x"}"#]);
        assert_eq!(again.bytes(), text.len() as u64);

        Rejects::open(path.clone(), 0).unwrap();
        assert!(!path.exists(), "an import from the start begins without refused lines");
    }

    #[test]
    fn a_file_that_the_operator_cleared_is_not_filled_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        std::fs::write(&path, "ab").unwrap();
        let rejects = Rejects::open(path.clone(), 100).unwrap();
        assert_eq!((rejects.bytes(), std::fs::read(&path).unwrap()), (2, b"ab".to_vec()));
    }
}
