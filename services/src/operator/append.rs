//! Files that grow by whole lines: an operator may have edited them, and an editor may have left the last line without
//! its end.
//! In: a file, opened to be read and appended to; text. Out: the text on lines of its own, on the disk.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

/// Appends a line, in one write: another process may do the same. The line before it is ended first.
pub fn append_line(file: &File, line: &str) -> io::Result<()> {
    append(file, format!("{line}\n").into_bytes()).map(drop)
}

/// Appends lines in one write, each with its end; returns the number of bytes added.
pub fn append(mut file: &File, mut lines: Vec<u8>) -> io::Result<u64> {
    if !ends_in_line_end(file)? {
        lines.insert(0, b'\n');
    }
    file.write_all(&lines)?;
    file.sync_all()?;
    Ok(lines.len() as u64)
}

fn ends_in_line_end(file: &File) -> io::Result<bool> {
    let Some(last) = file.metadata()?.len().checked_sub(1) else { return Ok(true) };
    let mut byte = [0];
    file.read_exact_at(&mut byte, last)?;
    Ok(byte == *b"\n")
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn a_last_line_without_its_end_is_ended_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        for (before, after) in [("", "x\n"), ("a", "a\nx\n"), ("a\n", "a\nx\n"), ("a\r\n", "a\r\nx\n")] {
            std::fs::write(&path, before).unwrap();
            let file = OpenOptions::new().read(true).append(true).open(&path).unwrap();
            append_line(&file, "x").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), after, "{before:?}");
        }
    }
}
