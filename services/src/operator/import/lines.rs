//! The records of an input, one at a time, of bounded length: lines, or records of CSV.
//! In: bytes. Out: each record without its end, the kind of its end, and a hash over all records so far.

use std::io::{self, BufRead};

const BOM: &[u8] = b"\xef\xbb\xbf";

/// The rule for the end of a record.
#[derive(Debug)]
pub enum Ends {
    /// At its line's end.
    Line,
    /// The CSV reader's rule: line ends within quotes belong to the record, and a bare CR is a line end.
    Csv(Box<csv_core::Reader>),
}

/// Reads records and hashes them.
#[derive(Debug)]
pub struct Lines<R> {
    input: R,
    ends: Ends,
    longest: usize,
    place: Place,
    /// The place where the last record began, if it has no end.
    before: Option<Place>,
}

/// The place up to which the input was read.
#[derive(Clone, Debug, Default)]
struct Place {
    hash: blake3::Hasher,
    lines: u64,
    bytes: u64,
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Number of its first line, from 1.
    pub no: u64,
    /// Its length in bytes; more than was kept of it if it is too long.
    pub bytes: u64,
    /// The kind of its end.
    pub end: End,
}

/// The kinds of ends of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A line end.
    Line,
    /// The end of the input: there may be more to come.
    Input,
    /// The end of the input, within a quote.
    OpenQuote,
}

impl Ends {
    /// The rule of CSV.
    pub fn csv() -> Self {
        Self::Csv(Box::new(csv_core::Reader::new()))
    }

    /// The number of these bytes that belong to the record, and whether the last of them ends it.
    fn find(&mut self, bytes: &[u8]) -> (usize, bool) {
        match self {
            Self::Line => {
                let end = bytes.iter().position(|byte| *byte == b'\n');
                end.map_or((bytes.len(), false), |at| (at + 1, true))
            }
            Self::Csv(reader) => {
                // The format reads its values again later; only the end is looked for here.
                let (mut values, mut ends, mut used) = ([0; 1_024], [0; 64], 0);
                while used < bytes.len() {
                    let (found, read, ..) = reader.read_record(&bytes[used..], &mut values, &mut ends);
                    used += read;
                    if found == csv_core::ReadRecordResult::Record {
                        return (used, true);
                    }
                }
                (used, false)
            }
        }
    }

    /// The kind of end of a record within which the input ended.
    fn cut_off(&mut self) -> End {
        match self {
            Self::Csv(reader) => {
                // Within a quote a line end does not end the record.
                let ended = reader.read_record(b"\n", &mut [0; 2], &mut [0; 2]).0 == csv_core::ReadRecordResult::Record;
                reader.reset();
                if ended { End::Input } else { End::OpenQuote }
            }
            Self::Line => End::Input,
        }
    }
}

impl<R: BufRead> Lines<R> {
    /// The records of `input`, of which at most `longest` bytes each are kept; lines until [`Lines::end_at`] changes
    /// that.
    pub fn new(input: R, longest: usize) -> Self {
        Self { input, ends: Ends::Line, longest, place: Place::default(), before: None }
    }

    /// Sets the rule for the end of the next records.
    pub fn end_at(&mut self, ends: Ends) {
        self.ends = ends;
    }

    /// Some of the next bytes, without the byte-order mark at the input's start; empty at its end.
    pub fn peek(&mut self) -> io::Result<&[u8]> {
        if self.place.bytes == 0 && self.input.fill_buf()?.starts_with(BOM) {
            self.used(BOM.len())?;
        }
        self.input.fill_buf()
    }

    /// Reads the next record into `text`, without its end. An empty line is a record, in CSV too.
    pub fn next(&mut self, text: &mut Vec<u8>) -> io::Result<Option<Line>> {
        text.clear();
        self.before = None;
        let (no, mut bytes) = (self.place.lines + 1, 0);
        // The CSV reader skips empty lines, and would count them to the record behind them.
        let is_empty = matches!(self.peek()?.first(), Some(b'\r' | b'\n')) && matches!(self.ends, Ends::Csv(_));
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            let (used, ended) = if is_empty { (1, true) } else { self.ends.find(chunk) };
            let part = &chunk[..used - usize::from(ended)];
            let end = chunk[used - 1];
            text.extend_from_slice(&part[..part.len().min(self.longest.saturating_sub(text.len()))]);
            bytes += part.len() as u64;
            if !ended {
                self.before.get_or_insert_with(|| self.place.clone());
                self.used(used)?;
                continue;
            }
            self.before = None;
            self.used(used - 1)?;
            self.input.consume(1);
            self.place.bytes += 1;
            if end == b'\r' {
                // Lines that end with CR and with CR LF are the same: the LF may not have been written yet.
                self.place.hash.update(b"\r");
                if self.input.fill_buf()?.first() == Some(&b'\n') {
                    self.input.consume(1);
                    self.place.bytes += 1;
                }
            } else if text.last() == Some(&b'\r') {
                text.pop();
            }
            return Ok(Some(self.ended(Line { no, bytes, end: End::Line })));
        }
        if bytes == 0 {
            return Ok(None);
        }
        let end = self.ends.cut_off();
        Ok(Some(self.ended(Line { no, bytes, end })))
    }

    /// Takes the last record back if it has no end: it is as if it had not been read.
    pub fn leave_last(&mut self) {
        if let Some(before) = self.before.take() {
            self.place = before;
        }
    }

    /// The number of bytes read so far, ends of lines included.
    pub fn bytes(&self) -> u64 {
        self.place.bytes
    }

    /// The number of lines read so far.
    pub fn lines(&self) -> u64 {
        self.place.lines
    }

    /// The hash over the records read so far, in hex.
    pub fn hash(&self) -> String {
        self.place.hash.finalize().to_hex().to_string()
    }

    /// Consumes this many of the bytes that are read ahead; they are a part of a record.
    fn used(&mut self, bytes: usize) -> io::Result<()> {
        let part = &self.input.fill_buf()?[..bytes];
        self.place.hash.update(part);
        self.place.lines += part.iter().filter(|byte| **byte == b'\n').count() as u64;
        self.place.bytes += bytes as u64;
        self.input.consume(bytes);
        Ok(())
    }

    fn ended(&mut self, line: Line) -> Line {
        // The end of a line is hashed even if the input ends without one: it may grow.
        self.place.hash.update(b"\n");
        self.place.lines += 1;
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8], longest: usize, ends: Ends) -> (Vec<(String, u64, u64, End)>, String) {
        let mut lines = Lines::new(io::BufReader::with_capacity(3, input), longest);
        lines.end_at(ends);
        let (mut text, mut all) = (Vec::new(), Vec::new());
        while let Some(line) = lines.next(&mut text).unwrap() {
            all.push((String::from_utf8(text.clone()).unwrap(), line.no, line.bytes, line.end));
        }
        assert_eq!(lines.bytes(), input.len() as u64);
        (all, lines.hash())
    }

    fn read(input: &[u8], longest: usize) -> (Vec<(String, u64)>, String) {
        let (all, hash) = lines(input, longest, Ends::Line);
        (all.into_iter().map(|(text, _, bytes, _)| (text, bytes)).collect(), hash)
    }

    fn csv(input: &[u8]) -> Vec<(String, u64, End)> {
        lines(input, 100, Ends::csv()).0.into_iter().map(|(text, no, _, end)| (text, no, end)).collect()
    }

    fn hash(input: &[u8]) -> String {
        lines(input, 100, Ends::csv()).1
    }

    #[test]
    fn line_ends_and_byte_order_marks_are_no_content() {
        let expected = [("a,b", 3), ("", 0), ("c", 2), ("d", 1)].map(|(text, bytes)| (text.to_owned(), bytes));
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
        // This version must find the hash that an older one stored.
        assert_eq!(hash(b"a,b\r\n\r\nc,d\n"), read(b"a,b\r\n\r\nc,d\n", 10).1);
        assert_eq!(hash(b"a,b\r"), hash(b"a,b\r\n"), "the rest of a line end may come later");
    }

    #[test]
    fn a_quoted_line_end_is_none_and_every_other_is_one() {
        let record = |text: &str, no| (text.to_owned(), no, End::Line);
        let text = b"a,\"x\n1,\"\"2\r\ny\",b\n\nc\rd\r\n\r\n\re,\"\"\n";
        assert_eq!(
            csv(text),
            [
                record("a,\"x\n1,\"\"2\r\ny\",b", 1),
                record("", 4),
                record("c", 5),
                record("d", 6),
                record("", 7),
                record("", 8),
                record("e,\"\"", 9),
            ]
        );
        // A quote within a value is a part of it.
        assert_eq!(csv(b"a,12\" pipe\nb\n"), [record("a,12\" pipe", 1), record("b", 2)]);
    }

    #[test]
    fn a_record_without_an_end_is_told_from_one_whose_quote_is_open() {
        for (text, end) in [(&b"a\nb,c"[..], End::Input), (b"a\nb,\"c\"", End::Input), (b"a\n\"b,c\nd", End::OpenQuote)]
        {
            let found = csv(text);
            assert_eq!((found[1].1, found[1].2), (2, end), "{found:?}");
            assert_eq!(found.len(), 2, "no line within an open quote is read");
        }
    }

    #[test]
    fn a_record_that_is_left_is_as_if_it_had_not_been_read() {
        for ends in [Ends::Line, Ends::csv()] {
            let mut lines = Lines::new(io::BufReader::with_capacity(3, &b"a,b\n\"c,\nd"[..]), 100);
            lines.end_at(ends);
            let mut text = Vec::new();
            lines.next(&mut text).unwrap().unwrap();
            let before = (lines.lines(), lines.bytes(), lines.hash());
            let mut last = End::Line;
            let mut seen = before.clone();
            while let Some(line) = lines.next(&mut text).unwrap() {
                last = line.end;
                if last != End::Line {
                    lines.leave_last();
                } else {
                    seen = (lines.lines(), lines.bytes(), lines.hash());
                }
            }
            assert_ne!(last, End::Line);
            assert_eq!((lines.lines(), lines.bytes(), lines.hash()), seen);
        }
    }
}
