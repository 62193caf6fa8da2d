//! Payloads in Protobuf, by a schema that is read at start: handlers keep their serde types.
//! In: a schema, the full name of a message, payloads. Out: messages and JSON, or what does not fit.

use prost_reflect::prost::Message as _;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::CodecError;
use super::codec::{Codec, Payload, Schema};

/// The content type that the codec writes.
const PROTOBUF: &str = "application/protobuf";
/// Other names under which payloads come.
const ALSO: [&str; 4] = [
    "application/x-protobuf",
    "application/vnd.google.protobuf",
    "application/x-google-protobuf",
    "application/octet-stream",
];
/// The name of a schema that is given as text.
const NAME: &str = "schema.proto";
/// The first byte of a JSON object, as Protobuf a field that begins a group.
const OBJECT: u8 = b'{';
const GROUP: u32 = 15;

/// The reason for which a schema cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// The schema cannot be read.
    #[error("the Protobuf schema cannot be read: {0}")]
    Unreadable(String),
    /// The schema has no such message.
    #[error("the Protobuf schema has no message {wanted:?}; it has: {known}")]
    NoMessage {
        /// The full name asked for.
        wanted: String,
        /// The messages that it has.
        known: String,
    },
}

/// Protobuf, as a codec of handlers ([`super::Handler::codec`]) and of events ([`super::Turn::emit_as`]).
///
/// A handler's message is decoded from the payload's JSON form: fields by their names in the schema, enums by their values'
/// names, 64-bit numbers as numbers, `bytes` as base64, well-known types as Protobuf's JSON mapping has them. Fields that
/// have no presence and are not there have their default.
///
/// ```
/// use perkey::{Codec, Payload, Protobuf, Schema, json};
/// use serde::Deserialize;
///
/// const SCHEMA: &str = r#"
///     syntax = "proto3";
///     package points.v1;
///     message Earned { string member = 1; int64 points = 2; }
///     message Lost { string member = 1; }
/// "#;
///
/// #[derive(Deserialize)]
/// struct Earned { member: String, points: i64 }
///
/// let codec = Protobuf::from_proto(SCHEMA, "points.v1.Earned").unwrap();
/// let payload = codec.encode(&json!({ "member": "ann", "points": 30 })).unwrap();
/// let earned: Earned = codec.decode(&Payload::new(&payload, "earned", Some("application/protobuf"))).unwrap();
/// assert_eq!((earned.member.as_str(), earned.points), ("ann", 30));
/// ```
#[derive(Clone, Debug)]
pub struct Protobuf {
    message: MessageDescriptor,
}

impl Protobuf {
    /// A codec by the text of a `.proto` file; it may import Google's well-known types. `message` is a full name:
    /// `shop.v1.OrderPlaced`.
    ///
    /// ```
    /// # use perkey::{Protobuf, SchemaError};
    /// let schema = "syntax = 'proto3'; package points.v1; message Earned { int64 points = 1; }";
    /// assert!(Protobuf::from_proto(schema, "points.v1.Earned").is_ok());
    /// assert!(matches!(Protobuf::from_proto(schema, "Earned"), Err(SchemaError::NoMessage { .. })));
    /// ```
    pub fn from_proto(text: &str, message: &str) -> Result<Self, SchemaError> {
        let mut files = ChainFileResolver::new();
        files.add(Text(text.to_owned()));
        files.add(GoogleFileResolver::new());
        let mut compiler = protox::Compiler::with_file_resolver(files);
        let compiled = compiler.include_imports(true).open_file(NAME).map(|compiler| compiler.descriptor_pool());
        Self::of(&compiled.map_err(|error| unreadable(&error))?, message)
    }

    /// A codec by an encoded `FileDescriptorSet` that holds its imports, as `protoc --include_imports --descriptor_set_out` and
    /// `buf build` write it.
    pub fn from_descriptor_set(set: &[u8], message: &str) -> Result<Self, SchemaError> {
        Self::of(&DescriptorPool::decode(set).map_err(|error| unreadable(&error))?, message)
    }

    /// A codec of another message of the same schema: one for each type of event.
    ///
    /// ```
    /// # use perkey::{Protobuf, SchemaError};
    /// let schema = "syntax = 'proto3'; message Earned { int64 points = 1; } message Lost { int64 points = 1; }";
    /// let earned = Protobuf::from_proto(schema, "Earned")?;
    /// let lost = earned.of_message("Lost")?;
    /// # Ok::<(), SchemaError>(())
    /// ```
    pub fn of_message(&self, message: &str) -> Result<Self, SchemaError> {
        Self::of(self.message.parent_pool(), message)
    }

    fn of(pool: &DescriptorPool, wanted: &str) -> Result<Self, SchemaError> {
        let found = pool.get_message_by_name(wanted.trim_start_matches('.'));
        let known = || {
            let names = pool.all_messages().map(|message| message.full_name().to_owned());
            let own: Vec<_> = names.filter(|name| !name.starts_with("google.protobuf.")).collect();
            SchemaError::NoMessage { wanted: wanted.to_owned(), known: own.join(", ") }
        };
        Ok(Self { message: found.ok_or_else(known)? })
    }

    /// True where the payload is JSON: as it says, or, where it says nothing, because it begins as no message of this schema can.
    fn is_json(&self, payload: &Payload<'_>) -> Result<bool, CodecError> {
        if payload.is_json() {
            return Ok(true);
        }
        match payload.content_type() {
            Some(said) if said == PROTOBUF || ALSO.contains(&said) => Ok(false),
            Some(said) => Err(CodecError::ContentType { found: said.to_owned(), wanted: "Protobuf and JSON" }),
            None => {
                let group = self.message.get_field(GROUP).is_some_and(|field| field.is_group());
                Ok(payload.bytes().first() == Some(&OBJECT) && !group)
            }
        }
    }

    fn read(&self, bytes: &[u8]) -> Result<DynamicMessage, CodecError> {
        let name = self.message.full_name();
        let read = DynamicMessage::decode(self.message.clone(), bytes).map_err(|error| {
            let framed =
                if bytes.first() == Some(&0) { "; it begins as one that a schema registry framed" } else { "" };
            CodecError::Payload(format!("it is not a Protobuf message {name}: {error}{framed}"))
        })?;
        if !bytes.is_empty() && read.fields().next().is_none() && read.unknown_fields().next().is_some() {
            let text =
                format!("none of its fields is one of the Protobuf message {name}: it was written by another schema");
            return Err(CodecError::Payload(text));
        }
        Ok(read)
    }

    fn written(&self, json: &Value) -> Result<DynamicMessage, CodecError> {
        let options = DeserializeOptions::new().deny_unknown_fields(true);
        DynamicMessage::deserialize_with_options(self.message.clone(), json, &options).map_err(|error| {
            CodecError::Payload(format!("it does not fit the Protobuf message {}: {error}", self.message.full_name()))
        })
    }
}

fn json(message: &DynamicMessage) -> Result<Value, CodecError> {
    let options =
        SerializeOptions::new().stringify_64_bit_integers(false).use_proto_field_name(true).skip_default_fields(false);
    Ok(message.serialize_with_options(serde_json::value::Serializer, &options)?)
}

impl Schema for Protobuf {
    fn content_type(&self) -> &'static str {
        PROTOBUF
    }

    fn to_json(&self, payload: &Payload<'_>) -> Result<Value, CodecError> {
        if self.is_json(payload)? {
            return payload.json();
        }
        let message = self.read(payload.bytes())?;
        let json = json(&message)?;
        // Fields that the schema does not have would be lost on the way back.
        if self.read(&self.encode(&json)?)? == message {
            return Ok(json);
        }
        let text = "it holds more than the schema says: fields of a newer one, or numbers that JSON does not have";
        Err(CodecError::Payload(text.to_owned()))
    }

    fn encode(&self, json: &Value) -> Result<Vec<u8>, CodecError> {
        Ok(self.written(json)?.encode_to_vec())
    }
}

impl<M: DeserializeOwned> Codec<M> for Protobuf {
    fn decode(&self, payload: &Payload<'_>) -> Result<M, CodecError> {
        if self.is_json(payload)? {
            return payload.json();
        }
        Ok(serde_json::from_value(json(&self.read(payload.bytes())?)?)?)
    }
}

/// A schema's text as the one file that there is.
struct Text(String);

impl FileResolver for Text {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if name == NAME { File::from_source(name, &self.0) } else { Err(protox::Error::file_not_found(name)) }
    }
}

fn unreadable(error: &dyn std::error::Error) -> SchemaError {
    SchemaError::Unreadable(error.to_string())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    const SCHEMA: &str = r#"
        syntax = "proto3";
        package shop.v1;
        import "google/protobuf/timestamp.proto";
        enum Size { SIZE_UNKNOWN = 0; LARGE = 1; }
        message Placed {
            string order_id = 1;
            int64 amount = 2;
            optional string memo = 3;
            repeated Line lines = 4;
            Size size = 5;
            google.protobuf.Timestamp at = 6;
            bytes raw = 7;
        }
        message Line { string sku = 1; uint32 count = 2; }
        message Newer { string order_id = 1; int64 amount = 2; string extra = 99; }
        message Other { double x = 1; repeated int32 y = 20; }
        message Far { string z = 40; }
    "#;

    #[derive(Debug, Deserialize, PartialEq)]
    struct Placed {
        order_id: String,
        amount: i64,
        memo: Option<String>,
        lines: Vec<Line>,
        size: Size,
        at: Option<String>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Line {
        sku: String,
        count: u32,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "SCREAMING_SNAKE_CASE")]
    enum Size {
        SizeUnknown,
        Large,
    }

    fn placed() -> Protobuf {
        Protobuf::from_proto(SCHEMA, "shop.v1.Placed").unwrap()
    }

    fn of<'a>(bytes: &'a [u8], content_type: Option<&'a str>) -> Payload<'a> {
        Payload::new(bytes, "order.placed", content_type)
    }

    #[test]
    fn a_message_is_what_its_serde_type_says() {
        let codec = placed();
        let json = json!({ "order_id": "o-1", "amount": 9_007_199_254_740_993_i64, "lines": [{ "sku": "a", "count": 2 }],
            "size": "LARGE", "at": "2026-01-31T10:00:00Z", "raw": "AAE=" });
        let bytes = codec.encode(&json).unwrap();
        let read: Placed = codec.decode(&of(&bytes, None)).unwrap();
        assert_eq!((read.order_id.as_str(), read.amount, read.memo), ("o-1", 9_007_199_254_740_993, None));
        assert_eq!(
            (read.lines[0].count, read.size, read.at.as_deref()),
            (2, Size::Large, Some("2026-01-31T10:00:00Z"))
        );
        // What is not there has its default.
        let empty: Placed = codec.decode(&of(b"", Some(PROTOBUF))).unwrap();
        assert_eq!((empty.amount, empty.lines.len(), empty.size), (0, 0, Size::SizeUnknown));
        let shown = codec.to_json(&of(&bytes, Some("application/x-protobuf"))).unwrap();
        assert_eq!((&shown["order_id"], &shown["raw"]), (&json!("o-1"), &json!("AAE=")));
        assert_eq!(codec.encode(&shown).unwrap(), bytes);
    }

    #[test]
    fn json_is_told_from_protobuf() {
        let codec = placed();
        let json = br#"{"order_id":"o-1","amount":5,"lines":[],"size":"LARGE"}"#;
        for said in [None, Some("application/json")] {
            let read: Placed = codec.decode(&of(json, said)).unwrap();
            assert_eq!(read.amount, 5, "{said:?}");
        }
        let error = Codec::<Placed>::decode(&codec, &of(json, Some("text/xml"))).unwrap_err();
        assert_eq!(error.to_string(), "it is text/xml, this service reads Protobuf and JSON");
        assert!(Codec::<Placed>::decode(&codec, &of(json, Some(PROTOBUF))).is_err());
    }

    #[test]
    fn bad_bytes_and_other_schemas_are_told() {
        let codec = placed();
        let fails = |bytes: &[u8]| Codec::<Placed>::decode(&codec, &of(bytes, None)).unwrap_err().to_string();
        assert!(fails(b"\xff\xff\xff").contains("it is not a Protobuf message shop.v1.Placed"));
        assert!(fails(b"\0\0\0\0\x05\0\x08\x01").contains("a schema registry framed"));
        let other = codec.of_message("shop.v1.Other").unwrap();
        let error = fails(&other.encode(&json!({ "x": 1.5 })).unwrap());
        assert!(error.contains("it is not a Protobuf message"), "{error}");
        let far = codec.of_message("shop.v1.Far").unwrap();
        assert!(fails(&far.encode(&json!({ "z": "z" })).unwrap()).contains("written by another schema"));
        let text = codec.encode(&json!({ "order": "o-1" })).unwrap_err().to_string();
        assert!(text.contains("does not fit the Protobuf message shop.v1.Placed"), "{text}");
    }

    #[test]
    fn what_json_cannot_say_is_not_shown_as_json() {
        let codec = placed();
        let newer = codec.of_message("shop.v1.Newer").unwrap();
        let bytes = newer.encode(&json!({ "order_id": "o-1", "amount": 5, "extra": "x" })).unwrap();
        // A handler reads what it knows of a newer schema.
        let read: Placed = codec.decode(&of(&bytes, None)).unwrap();
        assert_eq!(read.amount, 5);
        let error = codec.to_json(&of(&bytes, None)).unwrap_err().to_string();
        assert!(error.contains("more than the schema says"), "{error}");
    }

    #[test]
    fn a_schema_that_is_of_no_use_says_why() {
        let error = Protobuf::from_proto(SCHEMA, "Placed").unwrap_err().to_string();
        assert!(error.contains("no message \"Placed\"") && error.contains("shop.v1.Placed, shop.v1.Line"), "{error}");
        assert!(!error.contains("google"), "{error}");
        let error = Protobuf::from_proto("message {", "a").unwrap_err().to_string();
        assert!(error.contains("cannot be read"), "{error}");
        assert!(matches!(Protobuf::from_descriptor_set(b"\xff", "a"), Err(SchemaError::Unreadable(_))));
        let set =
            protox::Compiler::with_file_resolver(Text("syntax = \"proto3\"; message A { bool b = 1; }".to_owned()))
                .include_imports(true)
                .open_file(NAME)
                .unwrap()
                .encode_file_descriptor_set();
        assert!(Protobuf::from_descriptor_set(&set, "A").is_ok());
    }
}
