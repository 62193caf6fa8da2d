//! The forms of payloads: JSON, or what a handler's codec understands.
//! In: a payload and its content type. Out: the handler's message, the JSON that people read and write, or what is wrong.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{CodecError, stays_inside, whole_numbers};
use crate::message::Message;

/// Media type of JSON.
pub(crate) const JSON: &str = "application/json";

/// Headers that name a payload's media type: as Kafka's CloudEvents have it, and by the attribute's own name.
const CONTENT_TYPE: [&str; 2] = ["content-type", "datacontenttype"];

/// A payload, and what its message says of it.
///
/// ```
/// use perkey::Payload;
///
/// let payload = Payload::new(br#"{"points":30}"#, "earned", Some("application/json; charset=utf-8"));
/// assert_eq!((payload.kind(), payload.content_type()), ("earned", Some("application/json")));
/// assert!(payload.is_json());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    bytes: &'a [u8],
    kind: &'a str,
    said: Said<'a>,
}

/// The place of the content type: it is looked up only when it is needed.
#[derive(Clone, Copy, Debug)]
enum Said<'a> {
    In(&'a Message),
    Type(Option<&'a str>),
}

impl<'a> Payload<'a> {
    /// A payload by itself, of a message of this type.
    pub fn new(bytes: &'a [u8], kind: &'a str, content_type: Option<&'a str>) -> Self {
        Self { bytes, kind, said: Said::Type(content_type) }
    }

    /// The payload's bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// CloudEvents `type` of its message.
    pub fn kind(&self) -> &'a str {
        self.kind
    }

    /// CloudEvents `datacontenttype`, where the message names it, without parameters such as `charset`.
    pub fn content_type(&self) -> Option<&'a str> {
        let said = match self.said {
            Said::Type(said) => said,
            Said::In(message) => CONTENT_TYPE.iter().find_map(|name| message.header(name)),
        };
        said.map(|said| said.split(';').next().unwrap_or(said).trim()).filter(|said| !said.is_empty())
    }

    /// True for what services of a store say to each other: it is JSON without any codec.
    pub fn is_internal(&self) -> bool {
        stays_inside(self.kind)
    }

    /// True where the message says that the payload is JSON.
    pub fn is_json(&self) -> bool {
        self.is_internal() || self.content_type().is_some_and(|said| said == JSON || said.ends_with("+json"))
    }

    /// Reads the payload as JSON. Where whole numbers are wanted, `1250.0` is one; 1250.4 is not. Types whose reading
    /// serde derives refuse a member that is named twice; maps do not: see [`named_once`](super::named_once).
    ///
    /// ```
    /// # use perkey::{CodecError, Payload};
    /// let points: u64 = Payload::new(b"30.0", "earned", None).json()?;
    /// assert_eq!(points, 30);
    /// assert!(Payload::new(b"30.5", "earned", None).json::<u64>().is_err());
    /// # Ok::<(), CodecError>(())
    /// ```
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, CodecError> {
        serde_json::from_slice(self.bytes).or_else(|error| match whole_numbers(self.bytes) {
            Cow::Owned(written) => Ok(serde_json::from_slice(&written)?),
            Cow::Borrowed(_) => Err(error.into()),
        })
    }
}

impl<'a> From<&'a Message> for Payload<'a> {
    fn from(message: &'a Message) -> Self {
        Self { bytes: message.payload(), kind: message.kind(), said: Said::In(message) }
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::new(bytes, "", None)
    }
}

impl<'a> From<&'a Vec<u8>> for Payload<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        bytes.as_slice().into()
    }
}

/// The form in which the payloads of a service are written. It is asked for messages from outside only: commands, answers
/// and timers are JSON.
///
/// ```
/// use perkey::{Json, Payload, Schema, json};
///
/// let payload = Json.encode(&json!({ "points": 30 }))?;
/// assert_eq!(Json.to_json(&Payload::from(&payload))?, json!({ "points": 30 }));
/// # Ok::<(), perkey::CodecError>(())
/// ```
pub trait Schema: Send + Sync {
    /// The media type that it writes.
    fn content_type(&self) -> &'static str;

    /// The JSON that people read instead of the payload: all of it. What JSON cannot say is an error, and the bytes are
    /// shown.
    fn to_json(&self, payload: &Payload<'_>) -> Result<Value, CodecError>;

    /// The payload that says what this JSON says.
    fn encode(&self, json: &Value) -> Result<Vec<u8>, CodecError>;
}

/// A [`Schema`] that reads the messages of a handler.
///
/// ```
/// use perkey::serde_json::Value;
/// use perkey::{Codec, CodecError, Payload, Schema, json};
///
/// /// A number of points as text: `30`.
/// struct Text;
///
/// impl Schema for Text {
///     fn content_type(&self) -> &'static str {
///         "text/plain"
///     }
///
///     fn to_json(&self, payload: &Payload<'_>) -> Result<Value, CodecError> {
///         self.decode(payload).map(|points: u64| json!(points))
///     }
///
///     fn encode(&self, json: &Value) -> Result<Vec<u8>, CodecError> {
///         Ok(json.to_string().into_bytes())
///     }
/// }
///
/// impl Codec<u64> for Text {
///     fn decode(&self, payload: &Payload<'_>) -> Result<u64, CodecError> {
///         let text = std::str::from_utf8(payload.bytes()).unwrap_or_default();
///         text.parse().map_err(|_| CodecError::Payload(format!("{text:?} is not a number of points")))
///     }
/// }
///
/// assert_eq!(Text.decode(&Payload::new(b"30", "earned", None)), Ok(30));
/// ```
pub trait Codec<M>: Schema {
    /// The message in a payload.
    fn decode(&self, payload: &Payload<'_>) -> Result<M, CodecError>;
}

/// JSON, whatever the content type says: what every handler reads that names no other codec.
///
/// ```
/// use perkey::{Codec, Json, Payload};
///
/// let names: Vec<String> = Json.decode(&Payload::new(br#"["ann","bob"]"#, "members", None))?;
/// assert_eq!(names, ["ann", "bob"]);
/// # Ok::<(), perkey::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl Schema for Json {
    fn content_type(&self) -> &'static str {
        JSON
    }

    fn to_json(&self, payload: &Payload<'_>) -> Result<Value, CodecError> {
        payload.json()
    }

    fn encode(&self, json: &Value) -> Result<Vec<u8>, CodecError> {
        Ok(serde_json::to_vec(json)?)
    }
}

impl<M: DeserializeOwned> Codec<M> for Json {
    fn decode(&self, payload: &Payload<'_>) -> Result<M, CodecError> {
        payload.json()
    }
}

/// Says why a payload is rejected: what it was taken for and what it is said to be.
pub(crate) fn undecodable(error: &CodecError, payload: &Payload<'_>) -> String {
    let content_type = payload.content_type().unwrap_or("not named");
    if payload.bytes().is_empty() {
        let what = "a record without a value (in Kafka a tombstone, by which a compacted topic forgets a key) is not a message";
        return format!("the payload is empty: {what} (type {:?}, content type {content_type})", payload.kind());
    }
    format!("the payload does not decode: {error} (type {:?}, content type {content_type})", payload.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Draft;

    #[test]
    fn the_content_type_is_found_by_either_name_and_without_parameters() {
        for (headers, expected) in [
            (&[][..], None),
            (&[("content-type", "application/json; charset=utf-8")][..], Some("application/json")),
            (&[("datacontenttype", "application/protobuf")][..], Some("application/protobuf")),
            (&[("content-type", " ")][..], None),
        ] {
            let message = Draft { id: "1", key: "k", kind: "t", headers, ..Draft::default() }.build().unwrap();
            let payload = Payload::from(&message);
            assert_eq!(payload.content_type(), expected, "{headers:?}");
            assert_eq!(payload.is_json(), expected == Some("application/json"));
        }
        assert!(Payload::new(b"", "perkey.command", None).is_json());
        assert!(Payload::new(b"", "t", Some("application/cloudevents+json")).is_json());
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_written_and_nothing_is_rounded() {
        let read = |text: &str| Payload::from(text.as_bytes()).json::<i64>();
        assert_eq!((read("1250"), read("1250.0"), read("1.25e3"), read("-0")), (Ok(1250), Ok(1250), Ok(1250), Ok(0)));
        for text in ["12.34", "1250.0000000000000001", "1e-400", "1e400", "9223372036854775808.0"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn json_is_read_whatever_it_is_called() {
        let payload = Payload::new(b"{\"a\":1}", "t", Some("text/plain"));
        let read: Value = Json.decode(&payload).unwrap();
        assert_eq!(Json.encode(&read).unwrap(), payload.bytes());
        let bad = Payload::new(b"\x08\x01", "t", Some("application/protobuf"));
        let error = Codec::<Value>::decode(&Json, &bad).unwrap_err();
        let said = undecodable(&error, &bad);
        assert!(said.contains("type \"t\", content type application/protobuf"), "{said}");
    }

    #[test]
    fn a_tombstone_is_named() {
        let error = CodecError::Payload("EOF while parsing a value".to_owned());
        let said = undecodable(&error, &Payload::new(b"", "posted", None));
        assert!(said.contains("tombstone") && said.contains("\"posted\"") && !said.contains("EOF"), "{said}");
        assert!(undecodable(&error, &Payload::new(b"{", "posted", None)).contains("EOF"));
    }
}
