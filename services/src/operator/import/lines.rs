//! The lines of an input, one at a time, of bounded length.
//! In: bytes. Out: each line without its end, and a hash over all lines so far.

use std::io::{self, BufRead};

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Reads lines and hashes them.
#[derive(Debug)]
pub struct Lines<R> {
    input: R,
    longest: usize,
    hash: blake3::Hasher,
    lines: u64,
    bytes: u64,
}

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 1.
    pub no: u64,
    /// Its length in bytes; more than was read of it when it is too long.
    pub bytes: u64,
}

impl<R: BufRead> Lines<R> {
    /// Lines of `input`, of which at most `longest` bytes each are kept.
    pub fn new(input: R, longest: usize) -> Self {
        Self { input, longest, hash: blake3::Hasher::new(), lines: 0, bytes: 0 }
    }

    /// Reads the next line into `text`, without its end.
    pub fn next(&mut self, text: &mut Vec<u8>) -> io::Result<Option<Line>> {
        text.clear();
        let mut bytes = 0;
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            self.hash.update(part);
            text.extend_from_slice(&part[..part.len().min(self.longest.saturating_sub(text.len()))]);
            bytes += part.len() as u64;
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            self.bytes += used as u64;
            if end.is_some() {
                return Ok(Some(self.ended(text, bytes)));
            }
        }
        Ok((bytes > 0).then(|| self.ended(text, bytes)))
    }

    /// Bytes read so far, ends of lines included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lines read so far.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Hash over the lines read so far, in hex.
    pub fn hash(&self) -> String {
        self.hash.finalize().to_hex().to_string()
    }

    fn ended(&mut self, text: &mut Vec<u8>, bytes: u64) -> Line {
        // The end of a line counts as hashed even where the input ends without one: it may grow.
        self.hash.update(b"\n");
        self.lines += 1;
        if self.lines == 1 && text.starts_with(BOM) {
            text.drain(..BOM.len());
        }
        if text.last() == Some(&b'\r') {
            text.pop();
        }
        Line { no: self.lines, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8], longest: usize) -> (Vec<(String, u64)>, String) {
        let mut lines = Lines::new(io::BufReader::with_capacity(3, input), longest);
        let (mut text, mut all) = (Vec::new(), Vec::new());
        while let Some(line) = lines.next(&mut text).unwrap() {
            assert_eq!(line.no, lines.lines());
            all.push((String::from_utf8(text.clone()).unwrap(), line.bytes));
        }
        assert_eq!(lines.bytes(), input.len() as u64);
        (all, lines.hash())
    }

    #[test]
    fn line_ends_and_byte_order_marks_are_no_content() {
        let expected = [("a,b", 6), ("", 0), ("c", 2), ("d", 1)].map(|(text, bytes)| (text.to_owned(), bytes));
        assert_eq!(read(b"\xef\xbb\xbfa,b\n\nc\r\nd", 10).0, expected);
        assert_eq!(read(b"", 10).0, []);
    }

    #[test]
    fn a_long_line_is_cut_and_its_length_told() {
        assert_eq!(read(b"0123456789\nx\n", 4).0, [("0123".to_owned(), 10), ("x".to_owned(), 1)]);
    }

    #[test]
    fn the_hash_goes_on_where_a_file_grew_and_differs_where_it_changed() {
        assert_eq!(read(b"a\nb", 10).1, read(b"a\nb\n", 10).1);
        assert_ne!(read(b"a\nb\n", 10).1, read(b"ab\n\n", 10).1);
        assert_ne!(read(b"0123x\n", 4).1, read(b"0123y\n", 4).1);
    }
}
