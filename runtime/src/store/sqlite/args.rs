//! Rows as JSON arrays for `json_each`, with their binary values in one blob beside them; statements as SQLite has them.
//! In: values in column order. Out: one JSON text and one blob, however many rows: two arguments of one statement.

use serde::Serialize;

/// The rows of one statement. Blobs are referred to by (start, length), for SQL's `substr`.
#[derive(Debug, Default)]
pub(super) struct RowArgs {
    json: Vec<u8>,
    blob: Vec<u8>,
    in_row: bool,
}

impl RowArgs {
    /// No rows yet, and room for this many bytes of values and of blobs.
    pub(super) fn with_capacity(json: usize, blob: usize) -> Self {
        Self { json: Vec::with_capacity(json), blob: Vec::with_capacity(blob), in_row: false }
    }

    /// Begins the next row.
    pub(super) fn row(&mut self) -> &mut Self {
        self.json.extend_from_slice(if self.json.is_empty() { b"[[" } else { b"],[" });
        self.in_row = false;
        self
    }

    /// A number, text, truth value or null.
    pub(super) fn put(&mut self, value: impl Serialize) -> &mut Self {
        if self.in_row {
            self.json.push(b',');
        }
        self.in_row = true;
        serde_json::to_writer(&mut self.json, &value).expect("numbers and texts always have a JSON form");
        self
    }

    /// A binary value, or text to be taken byte for byte: two values, its place in the blob.
    pub(super) fn put_blob(&mut self, bytes: &[u8]) -> &mut Self {
        let start = self.blob.len() + 1;
        self.blob.extend_from_slice(bytes);
        self.put(start).put(bytes.len())
    }

    /// The two arguments.
    pub(super) fn finish(mut self) -> (String, Vec<u8>) {
        self.json.extend_from_slice(if self.json.is_empty() { b"[]" } else { b"]]" });
        (String::from_utf8(self.json).expect("the serializer writes UTF-8"), self.blob)
    }
}

/// A statement without the types that PostgreSQL has behind `::`.
pub(super) fn untyped(sql: &str) -> String {
    let mut parts = sql.split("::");
    let first = parts.next().unwrap_or_default();
    parts.fold(first.to_owned(), |plain, part| plain + part.trim_start_matches(char::is_alphanumeric))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_arrays_and_blobs_places() {
        let mut rows = RowArgs::default();
        rows.row().put(1).put_blob(b"ab").row().put("x\"\0").put(None::<u8>).put_blob(b"c");
        let (json, blob) = rows.finish();
        assert_eq!(json, r#"[[1,1,2],["x\"\u0000",null,3,1]]"#);
        assert_eq!(blob, b"abc");
        assert_eq!(RowArgs::default().finish().0, "[]");
    }

    #[test]
    fn types_are_left_out_and_nothing_else_is() {
        let sql = "SELECT shard::bigint, sum(n)::bigint FROM t WHERE $1::text IS NULL OR key = '1:2'";
        assert_eq!(untyped(sql), "SELECT shard, sum(n) FROM t WHERE $1 IS NULL OR key = '1:2'");
        assert_eq!(untyped("SELECT 1"), "SELECT 1");
    }
}
