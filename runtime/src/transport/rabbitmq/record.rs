//! A delivery of RabbitMQ as a message: CloudEvents in its headers, else its properties, else its place. Pure.
//! In: a delivery's parts. Out: a message, or the reason why it is not one; the fingerprint of the record.

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};

use crate::clock::Millis;
use crate::message::{Draft, Message, check_name};
use crate::transport::Content;
use crate::transport::attributes::{JSON, Named, RecordError, Scheme, absorb, shown};

/// Prefixes of attributes: the one that is written, and the other that the AMQP binding of CloudEvents accepts.
pub(super) const PREFIXES: &[&str] = &["cloudEvents_", "cloudEvents:"];
/// The header with the reason why a message is a dead letter.
pub(super) const REFUSED: &str = "perkey-refused";
/// The header with a record's offset in its stream.
const OFFSET: &str = "x-stream-offset";

/// The place that records come from, worked out once per stream.
#[derive(Clone, Debug)]
pub(super) struct StreamPlace {
    /// The stream's name in positions: `orders/3`, or `orders#2/3`.
    pub(super) origin: String,
    /// The name of the streams: the `type` of a record that names none.
    pub(super) name: String,
    /// The `source` of a record that names none.
    pub(super) source: String,
}

/// A record's parts.
pub(super) struct StreamRecord<'a> {
    /// `None`: it did not come from a stream.
    pub(super) offset: Option<u64>,
    properties: &'a BasicProperties,
    payload: &'a [u8],
}

/// Headers of a delivery that are text, in the order of their names.
pub(super) fn texts(properties: &BasicProperties) -> impl Iterator<Item = (&str, &[u8])> {
    let all = properties.headers().iter().flat_map(|table| table.inner());
    all.filter_map(|(name, value)| Some((name.as_str(), bytes_of(value)?)))
}

fn bytes_of(value: &AMQPValue) -> Option<&[u8]> {
    match value {
        AMQPValue::LongString(text) => Some(text.as_bytes()),
        AMQPValue::ShortString(text) => Some(text.as_str().as_bytes()),
        AMQPValue::ByteArray(bytes) => Some(bytes.as_slice()),
        _ => None,
    }
}

/// The header with the id, if there is one.
pub(super) fn id_header(properties: &BasicProperties) -> Option<&[u8]> {
    let is_id = |name: &str| PREFIXES.iter().any(|prefix| name.strip_prefix(prefix) == Some("id"));
    texts(properties).find(|(name, _)| is_id(name)).map(|(_, id)| id)
}

/// The text of a property.
pub(super) fn property(value: &Option<lapin::types::ShortString>) -> Option<&str> {
    value.as_ref().map(lapin::types::ShortString::as_str).filter(|text| !text.is_empty())
}

impl<'a> StreamRecord<'a> {
    pub(super) fn of(delivery: &'a Delivery) -> Self {
        let offset = delivery.properties.headers().as_ref().and_then(offset_of);
        Self { offset, properties: &delivery.properties, payload: &delivery.data }
    }

    /// A fingerprint that tells this record from another one at the same offset of a stream that was made anew: of the
    /// parts that no version of the broker writes in another way. Never 0, which stands for "not known".
    pub(super) fn mark(&self) -> u64 {
        let properties = self.properties;
        let hash = absorb(properties.timestamp().unwrap_or_default(), self.payload);
        let names = [property(properties.message_id()), property(properties.kind())];
        names.into_iter().fold(hash, |hash, name| absorb(hash, name.unwrap_or_default().as_bytes())).max(1)
    }

    /// The message, or the reason why there is none.
    pub(super) fn content(&self, place: &StreamPlace, key_header: &str) -> Content {
        let refused = texts(self.properties).find(|(name, _)| *name == REFUSED);
        let refused = refused.map(|(_, reason)| String::from_utf8_lossy(reason).into_owned());
        match (self.message(place, key_header), refused) {
            (Ok(message), None) => Content::Unrouted(message),
            (Ok(message), Some(reason)) => Content::Unreadable { message, reason },
            (Err(error), refused) => {
                let reason = refused.unwrap_or_else(|| error.to_string());
                Content::Unreadable { message: self.shown(place, key_header), reason }
            }
        }
    }

    fn message(&self, place: &StreamPlace, key_header: &str) -> Result<Message, RecordError> {
        let named = named(self.properties, key_header)?;
        let derived;
        let id = match named.id.or_else(|| property(self.properties.message_id()).map(str::as_bytes)) {
            Some(id) => check_name("id", id)?,
            None => {
                derived = self.at(place);
                &derived
            }
        };
        let kind = named.kind.or_else(|| property(self.properties.kind()).map(str::as_bytes));
        // A record without a key is a message without one: the key that its binding gives it is not known here.
        let key = named.key.or(named.plain_key).filter(|key| !key.is_empty());
        let mut headers = named.others;
        let media = property(self.properties.content_type()).filter(|media| *media != JSON);
        headers.extend(media.map(|media| ("content-type", media)));
        let draft = Draft {
            id,
            key: key.map_or(Ok(""), |key| check_name("key", key))?,
            kind: kind.map_or(Ok(place.name.as_str()), |kind| check_name("type", kind))?,
            source: named.source.map_or(Ok(place.source.as_str()), |source| check_name("source", source))?,
            time: named.time.unwrap_or_else(|| self.time()),
            headers: &headers,
            payload: self.payload,
        };
        Ok(draft.build_unchecked()?)
    }

    /// The time in milliseconds; the protocol has seconds since 1970.
    fn time(&self) -> Millis {
        self.properties.timestamp().map_or(0, |seconds| seconds.saturating_mul(1_000))
    }

    fn at(&self, place: &StreamPlace) -> String {
        format!("{}/{}", place.origin, self.offset.unwrap_or_default())
    }

    /// The message that an operator sees for a record that cannot be used.
    fn shown(&self, place: &StreamPlace, key_header: &str) -> Message {
        let named = named(self.properties, key_header).unwrap_or_default();
        let key = named.key.or(named.plain_key).unwrap_or_default();
        shown(&Draft {
            id: &self.at(place),
            key: check_name("key", key).unwrap_or_default(),
            kind: &place.name,
            source: &place.source,
            time: self.time(),
            headers: &[],
            payload: self.payload,
        })
    }
}

/// The headers by their meaning.
pub(super) fn named<'a>(properties: &'a BasicProperties, key_header: &str) -> Result<Named<'a>, RecordError> {
    let scheme = Scheme { prefixes: PREFIXES, id_header: "", key_header };
    let mut named = Named::default();
    // Headers that RabbitMQ adds itself say nothing about the message.
    for (name, value) in
        texts(properties).filter(|(name, _)| !name.starts_with("x-first-") && !name.starts_with("x-last-"))
    {
        named.take(name, value, &scheme)?;
    }
    Ok(named)
}

fn offset_of(headers: &FieldTable) -> Option<u64> {
    match headers.inner().get(OFFSET)? {
        AMQPValue::LongLongInt(offset) => u64::try_from(*offset).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> StreamPlace {
        StreamPlace { origin: "in#2/3".to_owned(), name: "in".to_owned(), source: "rabbitmq:in".to_owned() }
    }

    fn delivery(headers: &[(&str, &[u8])], properties: BasicProperties) -> Delivery {
        let mut table = FieldTable::default();
        table.insert(OFFSET.into(), AMQPValue::LongLongInt(17));
        table.insert("number".into(), AMQPValue::LongInt(5));
        for (name, value) in headers {
            table.insert((*name).into(), AMQPValue::LongString(value.to_vec().into()));
        }
        let mut delivery = Delivery::mock(1, "".into(), "".into(), false, b"{}".to_vec());
        delivery.properties = properties.with_headers(table);
        delivery
    }

    fn message(delivery: &Delivery) -> Message {
        match StreamRecord::of(delivery).content(&place(), "key") {
            Content::Unrouted(message) => message,
            other => panic!("{other:?}"),
        }
    }

    fn reason(delivery: &Delivery) -> String {
        match StreamRecord::of(delivery).content(&place(), "key") {
            Content::Unreadable { message, reason } => {
                assert_eq!((message.id(), message.kind(), message.payload()), ("in#2/3/17", "in", &b"{}"[..]));
                reason
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_event_is_read_whole() {
        let properties =
            BasicProperties::default().with_message_id("other".into()).with_content_type("text/plain".into());
        let read = message(&delivery(
            &[
                ("cloudEvents_specversion", b"1.0"),
                ("cloudEvents_id", b"e-1"),
                ("cloudEvents:type", b"posted"),
                ("cloudEvents_source", b"bank"),
                ("cloudEvents_time", b"1970-01-01T00:00:01.5Z"),
                ("cloudEvents_partitionkey", b"acct-1"),
                ("cloudEvents_sagaid", b"s-1"),
                ("key", b"other"),
                ("traceparent", b"00-1-2-01"),
            ],
            properties,
        ));
        assert_eq!([read.id(), read.key(), read.kind(), read.source()], ["e-1", "acct-1", "posted", "bank"]);
        assert_eq!((read.time(), read.payload()), (1_500, &b"{}"[..]));
        let headers: Vec<_> = read.headers().collect();
        assert_eq!(headers, [("sagaid", "s-1"), ("traceparent", "00-1-2-01"), ("content-type", "text/plain")]);
    }

    #[test]
    fn what_is_missing_comes_from_properties_and_from_the_place() {
        let properties = BasicProperties::default();
        let bare = message(&delivery(&[], properties.clone()));
        assert_eq!([bare.id(), bare.key(), bare.kind(), bare.source()], ["in#2/3/17", "", "in", "rabbitmq:in"]);
        let properties = properties.with_message_id("m-1".into()).with_type("posted".into()).with_timestamp(7);
        let read = message(&delivery(&[("key", b"acct-1"), ("b3", b"1"), ("raw", b"\xff")], properties));
        assert_eq!([read.id(), read.key(), read.kind()], ["m-1", "acct-1", "posted"]);
        assert_eq!((read.time(), read.headers().collect::<Vec<_>>()), (7_000, vec![("b3", "1")]));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let long = vec![b'x'; 257];
        for (headers, part) in [
            ([("cloudEvents_id", &b"\xff"[..])], "the id is not valid UTF-8"),
            ([("cloudEvents_type", b"")], "the type is empty"),
            ([("cloudEvents_sagaid", b"\xff")], "\"cloudEvents_sagaid\" is not valid UTF-8"),
            ([("key", &long)], "the key has 257 bytes"),
        ] {
            let reason = reason(&delivery(&headers, BasicProperties::default()));
            assert!(reason.contains(part), "{reason}");
        }
    }

    #[test]
    fn what_was_refused_on_its_way_is_kept_whole() {
        let properties = BasicProperties::default().with_message_id("m-1".into()).with_type("posted".into());
        let refused = delivery(&[(REFUSED, b"rejected"), ("b3", b"1")], properties);
        match StreamRecord::of(&refused).content(&place(), "key") {
            Content::Unreadable { message, reason } => {
                assert_eq!((message.id(), message.kind(), &*reason), ("m-1", "posted", "rejected"));
                assert_eq!(message.headers().collect::<Vec<_>>(), [("b3", "1")]);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn another_record_has_another_mark() {
        let properties = BasicProperties::default;
        let mark = |headers: &[(&str, &[u8])], properties| StreamRecord::of(&delivery(headers, properties)).mark();
        let mut other = delivery(&[], properties());
        other.data.push(0);
        let marks = [
            mark(&[], properties()),
            mark(&[], properties().with_message_id("a".into())),
            mark(&[], properties().with_type("a".into())),
            mark(&[], properties().with_timestamp(1)),
            StreamRecord::of(&other).mark(),
        ];
        assert!((0..marks.len()).all(|a| (0..a).all(|b| marks[a] != marks[b])), "{marks:?}");
        // Headers and the offset are not part of it.
        assert_eq!(mark(&[("a", b"1")], properties()), marks[0]);
    }
}
