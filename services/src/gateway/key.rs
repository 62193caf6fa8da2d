//! The header `Idempotency-Key`: one structured-field string (RFC 8941), or leniently a plain token.
//! In: header values as they came. Out: a key that may be looked up, or the problem with it.

use uuid::Builder;

use super::problem::{Kind, Problem};

/// The header's name.
pub const HEADER: &str = "idempotency-key";

/// The most characters of a key.
pub const KEY_BYTES_MAX: usize = 255;

/// A key: 1 to 255 printable ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The key of a request with these values of the header; `None` if there is no value.
    pub fn of_header<'a>(values: impl IntoIterator<Item = &'a [u8]>, lenient: bool) -> Result<Option<Self>, Problem> {
        let mut values = values.into_iter();
        let Some(value) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(malformed("the header came twice; a request has one key"));
        }
        let value = trimmed(value);
        match value.first() {
            Some(b'"') => quoted(&value[1..]).and_then(Self::checked).map(Some),
            Some(_) if lenient => plain(value).and_then(Self::checked).map(Some),
            Some(_) => Err(malformed("it is not in quotes: Idempotency-Key: \"…\"")),
            None => Err(malformed("it is empty")),
        }
    }

    /// A key from outside of a header, as it is.
    pub fn new(key: &str) -> Result<Self, Problem> {
        Self::checked(key.to_owned())
    }

    /// A new key for a request that brought none.
    pub fn minted() -> Result<Self, Problem> {
        let mut random = [0; 16];
        fill(&mut random)?;
        Ok(Self(Builder::from_random_bytes(random).into_uuid().to_string()))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key as a header's value.
    pub fn quoted(&self) -> String {
        format!("\"{}\"", self.0.replace('\\', "\\\\").replace('"', "\\\""))
    }

    fn checked(key: String) -> Result<Self, Problem> {
        match key.len() {
            0 => Err(malformed("it is empty")),
            bytes if bytes > KEY_BYTES_MAX => {
                Err(malformed(&format!("it has {bytes} characters, at most {KEY_BYTES_MAX} may be")))
            }
            _ if !key.bytes().all(is_printable) => Err(malformed("it has characters that are not printable ASCII")),
            _ => Ok(Self(key)),
        }
    }
}

/// Fills the bytes with random ones that nobody can guess.
pub fn fill(bytes: &mut [u8]) -> Result<(), Problem> {
    let filled = rustls::crypto::ring::default_provider().secure_random.fill(bytes);
    filled.map_err(|_| Problem::new(Kind::Internal, "the system gives no random bytes"))
}

fn malformed(why: &str) -> Problem {
    Problem::new(Kind::KeyMalformed, format!("Idempotency-Key: {why}"))
}

fn is_printable(byte: u8) -> bool {
    (0x20..0x7f).contains(&byte)
}

fn trimmed(value: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let from = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let to = value.iter().rposition(|byte| !is_space(byte)).map_or(from, |at| at + 1);
    &value[from..to]
}

/// The text between quotes, with nothing behind them but parameters, which are ignored.
fn quoted(value: &[u8]) -> Result<String, Problem> {
    let mut key = String::new();
    let mut bytes = value.iter().copied();
    loop {
        match bytes.next() {
            Some(b'"') => break,
            Some(b'\\') => match bytes.next() {
                Some(byte @ (b'"' | b'\\')) => key.push(char::from(byte)),
                _ => return Err(malformed("only \\\" and \\\\ may stand behind a backslash")),
            },
            Some(byte) if is_printable(byte) => key.push(char::from(byte)),
            Some(_) => return Err(malformed("it has characters that are not printable ASCII")),
            None => return Err(malformed("its quotes are not closed")),
        }
    }
    let rest: Vec<u8> = bytes.collect();
    match rest.first() {
        None => Ok(key),
        Some(b';') if rest.iter().all(|byte| is_printable(*byte) && *byte != b',') => Ok(key),
        Some(_) => Err(malformed("something stands behind it; a request has one key")),
    }
}

/// A key without quotes, as real clients send it. A comma would make it a list.
fn plain(value: &[u8]) -> Result<String, Problem> {
    if value.iter().any(|byte| matches!(byte, b',' | b'"' | b'\\' | b';' | b' ' | b'\t')) {
        return Err(malformed(
            "put it in quotes: without them it may hold no space, comma, semicolon, quote or backslash",
        ));
    }
    if !value.iter().copied().all(is_printable) {
        return Err(malformed("it has characters that are not printable ASCII"));
    }
    Ok(value.iter().copied().map(char::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(value: &[u8], lenient: bool) -> Result<Option<String>, Kind> {
        let key = IdempotencyKey::of_header([value], lenient);
        key.map(|key| key.map(|key| key.as_str().to_owned())).map_err(|problem| problem.kind)
    }

    #[test]
    fn one_quoted_string_is_a_key_and_a_token_only_where_that_is_allowed() {
        for (value, key) in [(&b"\"abc\""[..], "abc"), (b"  \"a b,c\" ", "a b,c"), (b"\"a\\\"\\\\b\";x=1", "a\"\\b")] {
            assert_eq!(parsed(value, false), Ok(Some(key.to_owned())));
        }
        assert_eq!(parsed(b"abc", true), Ok(Some("abc".to_owned())));
        assert_eq!(parsed(b"abc", false), Err(Kind::KeyMalformed));
        assert_eq!(IdempotencyKey::of_header([], true), Ok(None));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = [b"\"".as_slice(), &[b'a'; 256], b"\""].concat();
        let values: [&[u8]; 11] = [
            b"",
            b"\"\"",
            b"  ",
            b"a,b",
            b"\"a\", \"b\"",
            b"\"a",
            b"\"a\x07\"",
            b"\"\xc3\xa9\"",
            b"\"a\\n\"",
            &long,
            b"\"a\"b",
        ];
        for value in values {
            assert_eq!(parsed(value, true), Err(Kind::KeyMalformed), "{:?}", String::from_utf8_lossy(value));
        }
        let twice = IdempotencyKey::of_header([&b"\"a\""[..], b"\"a\""], true);
        assert_eq!(twice.map_err(|problem| problem.kind), Err(Kind::KeyMalformed));
    }

    #[test]
    fn a_key_is_echoed_as_it_would_be_sent() {
        let key = IdempotencyKey::new("a\"\\b").unwrap();
        assert_eq!(IdempotencyKey::of_header([key.quoted().as_bytes()], false), Ok(Some(key)));
        assert_ne!(IdempotencyKey::minted().unwrap(), IdempotencyKey::minted().unwrap());
    }
}
