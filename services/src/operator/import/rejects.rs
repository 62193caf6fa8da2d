//! The file of refused lines, beside the input.
//! In: lines and the reasons why they were refused. Out: one JSON object a line, each refused line once.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::operator::append::append;

/// A refused line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reject {
    /// Its number, from 1.
    pub line: u64,
    /// The reason.
    pub reason: String,
    /// Its text; the start of it if it is too long.
    pub text: String,
}

/// The owner of refused lines: named in each, so that no import takes another's for its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The service that they were for.
    pub service: String,
    /// The input's name.
    pub source: String,
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    reject: &'a Reject,
    #[serde(flatten)]
    owner: &'a Owner,
}

/// The file.
#[derive(Debug)]
pub struct Rejects {
    path: PathBuf,
    owner: Owner,
    file: Option<File>,
    bytes: u64,
}

impl Rejects {
    /// Opens the file of `owner` at the first of the places that is free, or its own, cut back to its first `keep`
    /// bytes: lines written after them are refused again. Lines of others, or of an import that begins anew, are moved
    /// aside.
    pub fn open(places: Vec<PathBuf>, owner: Owner, keep: u64) -> Result<Self, (PathBuf, io::Error)> {
        let mut last = PathBuf::new();
        for path in places {
            if is_free_for(&path, &owner).map_err(|error| (path.clone(), error))? {
                return Self::at(path.clone(), owner, keep).map_err(|error| (path, error));
            }
            last = path;
        }
        Self::at(last.clone(), owner, 0).map_err(|error| (last, error))
    }

    fn at(path: PathBuf, owner: Owner, keep: u64) -> io::Result<Self> {
        let found = match std::fs::metadata(&path) {
            // A device or pipe has no bytes to cut.
            Ok(found) if found.is_file() => found.len(),
            Ok(_) => 0,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        // It is never made longer: the operator may have cleared it.
        let bytes = found.min(keep);
        if bytes == 0 && found > 0 {
            move_aside(&path)?;
        } else if bytes < found {
            OpenOptions::new().write(true).open(&path)?.set_len(bytes)?;
        }
        Ok(Self { path, owner, file: None, bytes })
    }

    /// Adds lines durably: the progress that counts them is written after this.
    pub fn add(&mut self, rejects: &[Reject]) -> io::Result<()> {
        if rejects.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        for reject in rejects {
            serde_json::to_writer(&mut text, &Entry { reject, owner: &self.owner })?;
            text.push(b'\n');
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(OpenOptions::new().create(true).read(true).append(true).open(&self.path)?),
        };
        if file.metadata()?.is_file() {
            self.bytes += append(file, text)?;
        } else {
            file.write_all(&text)?;
        }
        Ok(())
    }

    /// The number of its bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Returns whether the place is empty or has lines of the same import. Lines of an older version do not name their
/// owner.
fn is_free_for(path: &Path, owner: &Owner) -> io::Result<bool> {
    let found = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        found => found?,
    };
    if !found.is_file() || found.len() == 0 {
        return Ok(true);
    }
    let mut first = Vec::new();
    BufReader::new(File::open(path)?).read_until(b'\n', &mut first)?;
    Ok(serde_json::from_slice::<Owner>(&first).map_or(true, |theirs| theirs == *owner))
}

/// Moves a file that is in the way to the first free name with a number.
fn move_aside(path: &Path) -> io::Result<()> {
    let aside = |no: u64| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{no}"));
        PathBuf::from(name)
    };
    let free = (1..).map(aside).find(|path| !path.exists());
    free.map_or(Ok(()), |free| std::fs::rename(path, free))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reject(line: u64) -> Reject {
        Reject { line, reason: "bad".to_owned(), text: "x".to_owned() }
    }

    fn owner(service: &str) -> Owner {
        Owner { service: service.to_owned(), source: "f.csv".to_owned() }
    }

    fn open(places: &[&Path], service: &str, keep: u64) -> Rejects {
        let places = places.iter().map(|path| path.to_path_buf()).collect();
        Rejects::open(places, owner(service), keep).unwrap()
    }

    fn lines(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["line"].as_u64().unwrap();
        text.lines().map(line).collect()
    }

    #[test]
    fn what_was_not_counted_is_written_again_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.csv.rejects.ndjson");
        let mut rejects = open(&[&path], "s", 0);
        assert!(!path.exists(), "no file without a refused line");
        rejects.add(&[reject(1)]).unwrap();
        let counted = rejects.bytes();
        rejects.add(&[reject(2)]).unwrap();

        let mut again = open(&[&path], "s", counted);
        again.add(&[reject(2)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().next(), Some(r#"{"line":1,"reason":"bad","text":"x","service":"s","source":"f.csv"}"#));
        assert_eq!((lines(&path), again.bytes()), (vec![1, 2], text.len() as u64));
    }

    #[test]
    fn an_import_that_begins_anew_leaves_the_lines_of_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        for no in 1..=3 {
            open(&[&path], "s", 0).add(&[reject(no)]).unwrap();
        }
        let aside = [folder.path().join("r.1"), folder.path().join("r.2")];
        assert_eq!((lines(&aside[0]), lines(&aside[1]), lines(&path)), (vec![1], vec![2], vec![3]));
    }

    #[test]
    fn another_imports_lines_are_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["f.rejects", "f.s2.rejects"].map(|name| folder.path().join(name));
        let places = [&*first, &*second];
        let mut mine = open(&places, "s", 0);
        mine.add(&[reject(1)]).unwrap();
        let mut other = open(&places, "s2", 0);
        other.add(&[reject(7)]).unwrap();
        assert_eq!((lines(&first), lines(&second)), (vec![1], vec![7]));
        let mut mine = open(&places, "s", mine.bytes());
        mine.add(&[reject(2)]).unwrap();
        open(&places, "s2", other.bytes()).add(&[reject(8)]).unwrap();
        assert_eq!((lines(&first), lines(&second)), (vec![1, 2], vec![7, 8]));
        // If only one place is named, a foreign file there is moved aside.
        open(&[&first], "s3", 50).add(&[reject(9)]).unwrap();
        assert_eq!((lines(&first), lines(&folder.path().join("f.rejects.1"))), (vec![9], vec![1, 2]));
    }

    #[test]
    fn a_file_that_the_operator_cleared_is_not_filled_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        std::fs::write(&path, "ab").unwrap();
        let rejects = open(&[&path], "s", 100);
        assert_eq!((rejects.bytes(), std::fs::read(&path).unwrap()), (2, b"ab".to_vec()));
        let mut nowhere = open(&[Path::new("/dev/null")], "s", 100);
        nowhere.add(&[reject(1)]).unwrap();
    }
}
