//! The JSON that every door takes alike: no member twice, and numbers as they are written, never as a double has them.
//! In: JSON. Out: the same with whole numbers written as such; or where a member stands twice.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Most digits that a whole number of 64 bits has.
const DIGITS_MAX: usize = 20;

/// JSON with each whole number written without point and exponent: `1250.0` and `1.25e3` are `1250`, `-0` is `0`. What is not
/// whole by its digits stays as it is, however close it comes: a reader of whole numbers refuses it.
pub fn whole_numbers(json: &[u8]) -> Cow<'_, [u8]> {
    let mut written: Option<Vec<u8>> = None;
    let (mut at, mut kept) = (0, 0);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => at += string(&json[at..]),
            b'-' | b'0'..=b'9' => {
                let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                let length = json[at..].iter().position(|byte| !is_part(byte)).unwrap_or(json.len() - at);
                let token = std::str::from_utf8(&json[at..at + length]).ok();
                if let Some(whole) = token.and_then(whole_number) {
                    let written = written.get_or_insert_default();
                    written.extend_from_slice(&json[kept..at]);
                    written.extend_from_slice(whole.as_bytes());
                    kept = at + length;
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    match written {
        Some(mut written) => {
            written.extend_from_slice(&json[kept..]);
            written.into()
        }
        None => json.into(),
    }
}

/// A number of JSON without its point and its exponent, where it has some and is whole.
pub fn whole_number(token: &str) -> Option<String> {
    let (sign, unsigned) = token.strip_prefix('-').map_or(("", token), |rest| ("-", rest));
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).map_or((unsigned, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(whole, rest)| (whole, Some(rest)));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_json = digits(whole) && (whole == "0" || !whole.starts_with('0')) && fraction.is_none_or(digits);
    let power = exponent.map(|exponent| exponent.strip_prefix(['-', '+']).unwrap_or(exponent));
    if !is_json || !power.is_none_or(digits) || fraction.is_none() && exponent.is_none() && token != "-0" {
        return None;
    }
    let all = [whole, fraction.unwrap_or_default()].concat();
    let significant = all.trim_end_matches('0');
    if significant.is_empty() {
        return Some("0".to_owned());
    }
    let exponent: i64 = exponent.map_or(Some(0), |exponent| exponent.parse().ok())?;
    let point = usize::try_from(exponent.checked_add(i64::try_from(whole.len()).ok()?)?).ok()?;
    let leading = significant.len() - significant.trim_start_matches('0').len();
    if point < significant.len() || point - leading > DIGITS_MAX {
        return None;
    }
    Some(format!("{sign}{:0<width$}", &significant[leading..], width = point - leading))
}

/// The length of the string that begins here, with its quotes.
fn string(json: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    json.len()
}

/// Refuses JSON in which an object names a member twice: readers differ in which of the two they take.
pub fn named_once(json: &[u8]) -> Result<(), CodecError> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    Once.deserialize(&mut deserializer)?;
    Ok(deserializer.end()?)
}

/// Looks at one value.
struct Once;

impl<'de> DeserializeSeed<'de> for Once {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        while values.next_element_seed(Once)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key::<Cow<'de, str>>()? {
            if names.contains(&name) {
                members.next_value::<IgnoredAny>()?;
                return Err(A::Error::custom(format!("{name:?} stands here twice")));
            }
            names.insert(name);
            members.next_value_seed(Once)?;
        }
        Ok(())
    }
}

/// The reason for which a payload cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// It is said to be something that the codec does not read.
    #[error("it is {found}, this service reads {wanted}")]
    ContentType {
        /// The content type that the message names.
        found: String,
        /// The content types that the codec reads.
        wanted: &'static str,
    },
    /// It is not what it should be.
    #[error("{0}")]
    Payload(String),
}

impl From<serde_json::Error> for CodecError {
    fn from(error: serde_json::Error) -> Self {
        Self::Payload(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_judged_as_it_is_written() {
        for (text, whole) in [
            ("1250.0", "1250"),
            ("1.25e3", "1250"),
            ("1.25E+3", "1250"),
            ("12500e-1", "1250"),
            ("-1250.000", "-1250"),
            ("-0", "0"),
            ("0.0", "0"),
            ("0e99999999999999999999", "0"),
            ("0.001e3", "1"),
            ("9007199254740993.0", "9007199254740993"),
            ("-9223372036854775808.0", "-9223372036854775808"),
        ] {
            assert_eq!(whole_number(text).as_deref(), Some(whole), "{text}");
        }
        for text in [
            "1250",
            "0",
            "-5",
            "12.34",
            "1250.0000000000000001",
            "1249.9999999999999999",
            "1e-400",
            "0.0000000000000000001",
            "1e400",
            "1e99999999999999999999",
            "01.0",
            "1.",
            ".5",
            "1e",
            "-",
            "1.0.0",
            "--1.0",
        ] {
            assert_eq!(whole_number(text), None, "{text}");
        }
    }

    #[test]
    fn only_numbers_are_written_anew() {
        let text = r#"{"a":1250.0,"b":"1.0 \" 2.0","c":[1e2,-0,1.5,7],"1.0":-2.50e1}"#;
        let wanted = r#"{"a":1250,"b":"1.0 \" 2.0","c":[100,0,1.5,7],"1.0":-25}"#;
        assert_eq!(whole_numbers(text.as_bytes()), wanted.as_bytes());
        for same in ["", "{\"a\":1}", "\"1.0", "\"\\", "x", "[1.5]"] {
            assert!(matches!(whole_numbers(same.as_bytes()), Cow::Borrowed(_)), "{same}");
        }
    }

    #[test]
    fn a_member_is_named_once() {
        assert_eq!(named_once(br#"{"a":1,"b":{"a":[1,{"a":2.5}],"c":null},"c":"x","d":true}"#), Ok(()));
        for twice in [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":2}"#, r#"[{"x":[{"a":{},"a":1}]}]"#] {
            let error = named_once(twice.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("\"a\" stands here twice"), "{error}");
        }
        assert!(named_once(b"{\"a\":1").is_err() && named_once(b"{} x").is_err());
    }
}
