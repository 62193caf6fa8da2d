//! Texts of messages are long enough for people and bounded, so that a page of them stays a page.
//! In: payloads from outside. Out: messages whose texts have a bound, or the name of the text that is too long.

use perkey::{Codec, CodecError, Json, Payload, Schema};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The most bytes of a text, such as a memo or a reason. Names have fewer.
pub const TEXT_BYTES_MAX: usize = 4 << 10;

/// A text is too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {name} has {bytes} bytes, at most {TEXT_BYTES_MAX} are allowed")]
pub struct TooLong {
    /// The member that holds it.
    pub name: String,
    /// The bytes of the text.
    pub bytes: usize,
}

/// JSON whose texts are no longer than [`TEXT_BYTES_MAX`]: the codec of these services for messages from outside.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShortTexts;

/// Checks one text, the value of the member `name`.
pub fn check(name: &str, text: &str) -> Result<(), TooLong> {
    let bytes = text.len();
    if bytes <= TEXT_BYTES_MAX { Ok(()) } else { Err(TooLong { name: name.to_owned(), bytes }) }
}

/// A text from elsewhere, cut to the bound.
pub(crate) fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

impl Schema for ShortTexts {
    fn content_type(&self) -> &'static str {
        Json.content_type()
    }

    fn to_json(&self, payload: &Payload<'_>) -> Result<Value, CodecError> {
        Json.to_json(payload)
    }

    fn encode(&self, json: &Value) -> Result<Vec<u8>, CodecError> {
        Json.encode(json)
    }
}

impl<M: DeserializeOwned> Codec<M> for ShortTexts {
    fn decode(&self, payload: &Payload<'_>) -> Result<M, CodecError> {
        let message = Json.decode(payload)?;
        // Most payloads are shorter than the bound of one text, so no text in them can be too long.
        if payload.bytes().len() > TEXT_BYTES_MAX {
            let json: Value = payload.json()?;
            in_value("payload", &json).map_err(|error| CodecError::Payload(error.to_string()))?;
        }
        Ok(message)
    }
}

fn in_value(name: &str, value: &Value) -> Result<(), TooLong> {
    match value {
        Value::String(text) => check(name, text),
        Value::Array(values) => values.iter().try_for_each(|value| in_value(name, value)),
        Value::Object(members) => members.iter().try_for_each(|(name, value)| in_value(name, value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::posting::Posting;

    fn read(memo: &str) -> Result<Posting, String> {
        let posting = json!({ "account": "a", "amount": 1, "currency": "EUR", "at": "2026-01-31", "memo": memo });
        let bytes = serde_json::to_vec(&posting).unwrap();
        ShortTexts.decode(&Payload::from(&bytes)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_text_has_a_bound_in_bytes_however_it_is_written() {
        let full = "é".repeat(TEXT_BYTES_MAX / 2);
        assert!(read(&full).is_ok());
        let escaped = format!(
            r#"{{"account":"a","amount":1,"currency":"EUR","at":"2026-01-31","memo":"{}"}}"#,
            "\\u00e9".repeat(TEXT_BYTES_MAX / 2)
        );
        let read_escaped: Posting = ShortTexts.decode(&Payload::from(escaped.as_bytes())).unwrap();
        assert_eq!(read(&full), Ok(read_escaped));
        assert_eq!(read(&format!("{full}x")).unwrap_err(), "the memo has 4097 bytes, at most 4096 are allowed");
    }

    #[test]
    fn what_somebody_else_says_is_cut_between_characters() {
        assert_eq!(shortened("short".to_owned()), "short");
        assert_eq!(shortened(format!("x{}", "é".repeat(TEXT_BYTES_MAX))).len(), TEXT_BYTES_MAX - 1);
    }
}
