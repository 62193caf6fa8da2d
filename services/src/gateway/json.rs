//! JSON from outside, read strictly: text that two readers may understand differently is refused.
//! In: bytes. Out: a value without doubles, deep nesting and numbers that a double does not hold exactly; or the place
//! of the error.

use std::cell::RefCell;
use std::fmt;

use perkey::unstable::handler::whole_numbers;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::problem::{FieldError, Kind, Problem};

/// The deepest nesting.
pub const DEPTH_MAX: usize = 64;

/// The largest number that every reader has exactly: 2^53.
const EXACT_MAX: u64 = 1 << 53;

/// Reads a body; an empty one is null.
pub fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    if bytes.trim_ascii().is_empty() {
        return Ok(Value::Null);
    }
    let at = RefCell::new(Vec::new());
    let written = whole_numbers(bytes);
    let mut deserializer = serde_json::Deserializer::from_slice(&written);
    let value = Strict { at: &at }.deserialize(&mut deserializer);
    value.and_then(|value| deserializer.end().map(|()| value)).map_err(|error| problem(&at.borrow(), &error))
}

fn problem(at: &[String], error: &serde_json::Error) -> Problem {
    let pointer: String = at.iter().map(|part| format!("/{}", part.replace('~', "~0").replace('/', "~1"))).collect();
    let detail = format!("the body cannot be read as JSON: {error}");
    let errors = vec![FieldError::new(pointer, error.to_string())];
    Problem { errors, ..Problem::new(Kind::Malformed, detail) }
}

/// Reads one value; `at` is its place, and stays there when it is wrong.
struct Strict<'a> {
    at: &'a RefCell<Vec<String>>,
}

impl Strict<'_> {
    fn inside(&self, part: String) -> Result<Self, String> {
        self.at.borrow_mut().push(part);
        if self.at.borrow().len() > DEPTH_MAX {
            return Err(format!("it is nested deeper than {DEPTH_MAX}"));
        }
        Ok(Self { at: self.at })
    }

    fn outside(&self) {
        self.at.borrow_mut().pop();
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        if value > EXACT_MAX {
            return Err(E::custom(format!("{value} is beyond 2^53, from where on readers differ")));
        }
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        if value.unsigned_abs() > EXACT_MAX {
            return Err(E::custom(format!("{value} is beyond 2^53, from where on readers differ")));
        }
        Ok(value.into())
    }

    /// Whole numbers are written as such by now (1.0 is 1): a double that is still whole was rounded to it.
    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        if value.fract() == 0.0 {
            return Err(E::custom("it is a number that readers round, or beyond 2^53, from where on they differ"));
        }
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("it is not a number"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let inside = self.inside(list.len().to_string()).map_err(A::Error::custom)?;
            match values.next_element_seed(inside)? {
                Some(value) => list.push(value),
                None => break,
            }
            self.outside();
        }
        self.outside();
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let inside = self.inside(name.clone()).map_err(A::Error::custom)?;
            if map.contains_key(&name) {
                return Err(A::Error::custom(format!("{name:?} stands here twice")));
            }
            map.insert(name, members.next_value_seed(inside)?);
            self.outside();
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_everybody_reads_alike_is_read() {
        let text = br#" {"a": [1, -2, 1.5, 1.0, -0, 9007199254740992.0, "x\u00e9"], "b": {"c": null}, "d": true} "#;
        let value = json!({
            "a": [1, -2, 1.5, 1, 0, 9_007_199_254_740_992_i64, "x\u{e9}"], "b": { "c": null }, "d": true
        });
        assert_eq!(parse(text).unwrap(), value);
        assert_eq!((parse(b"").unwrap(), parse(b" \n").unwrap()), (Value::Null, Value::Null));
        assert_eq!(parse(b"[]").unwrap(), json!([]));
    }

    #[test]
    fn what_readers_differ_in_is_refused_with_its_place() {
        for (text, pointer) in [
            (r#"{"a":1,"b":{"c":1,"c":2}}"#, "/b/c"),
            (r#"{"a":9007199254740993}"#, "/a"),
            (r#"{"a":[0,-9007199254740993]}"#, "/a/1"),
            (r#"{"a":9007199254740993.0}"#, "/a"),
            (r#"{"a":1e20}"#, "/a"),
            (r#"{"a":1250.0000000000000001}"#, "/a"),
            (r#"{"a":1249.9999999999999999}"#, "/a"),
            (r#"{"a":1e-400}"#, "/a"),
            (r#"{"a":0.0}x"#, ""),
            (r#"{"a":1e400}"#, "/a"),
            (r#"{"a/b":{"~":}}"#, "/a~1b/~0"),
            (r#"{"a":1} x"#, ""),
            ("\u{1}", ""),
        ] {
            let problem = parse(text.as_bytes()).unwrap_err();
            assert_eq!((problem.kind, problem.errors[0].pointer.as_str()), (Kind::Malformed, pointer), "{text}");
        }
        assert_eq!(parse(b"\"\xff\"").unwrap_err().kind, Kind::Malformed);
    }

    #[test]
    fn nesting_has_a_bound() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert!(parse(nested(DEPTH_MAX + 1).as_bytes()).is_err());
        assert!(parse("{\"a\":".repeat(100_000).as_bytes()).is_err());
    }
}
