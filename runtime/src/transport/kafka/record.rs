//! A record of Kafka as a message: the binary mode of CloudEvents, with missing attributes made up from the record's
//! place.
//! In: a record's parts, as librdkafka holds them. Out: a message, or the reason why it is not one; the fingerprint of
//! the record.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::message::{BorrowedMessage, Headers, Message as _};

use crate::clock::Millis;
use crate::message::{Draft, Message, check_name};
use crate::transport::Content;
use crate::transport::attributes::{Named, RecordError, Scheme, absorb, shown};

/// The place that records come from, worked out once per partition.
#[derive(Clone, Debug)]
pub(super) struct PartitionPlace {
    /// The partition's name in positions: `topic/3`, or `topic#2/3`.
    pub(super) origin: String,
    /// The topic: the `type` of a record that names none.
    pub(super) topic: String,
    /// The `source` of a record that names none.
    pub(super) source: String,
}

/// A record's parts.
#[derive(Debug)]
pub(super) struct KafkaRecord<'a> {
    pub(super) offset: u64,
    pub(super) time: Option<Millis>,
    pub(super) key: &'a [u8],
    pub(super) payload: &'a [u8],
    /// `None`: a header's name is not UTF-8.
    pub(super) headers: Option<Vec<(&'a str, &'a [u8])>>,
}

impl<'a> KafkaRecord<'a> {
    pub(super) fn of(message: &'a BorrowedMessage<'a>) -> Self {
        // The client's accessor panics at a name that is not UTF-8, and a foreign producer must not stop the reader.
        let headers = catch_unwind(AssertUnwindSafe(|| {
            let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
            headers.filter_map(|header| Some((header.key, header.value?))).collect()
        }));
        Self {
            offset: u64::try_from(message.offset()).unwrap_or(0),
            time: message.timestamp().to_millis().and_then(|time| Millis::try_from(time).ok()),
            key: message.key().unwrap_or_default(),
            payload: message.payload().unwrap_or_default(),
            headers: headers.ok(),
        }
    }

    /// A fingerprint that tells this record from another one at the same offset of a topic that was made anew: a hash
    /// of its time, key, payload and headers, and of no setting. Stored with positions. Never 0, which stands for "not
    /// known".
    pub(super) fn mark(&self) -> u64 {
        let hash = absorb(absorb(self.time.unwrap_or(0), self.key), self.payload);
        let headers = self.headers.as_deref().unwrap_or_default();
        let hash = headers.iter().fold(hash, |hash, (name, value)| absorb(absorb(hash, name.as_bytes()), value));
        hash.max(1)
    }

    /// The message, or the reason why there is none.
    pub(super) fn content(&self, place: &PartitionPlace, id_header: &str) -> Content {
        match self.message(place, id_header) {
            Ok(message) => Content::Unrouted(message),
            Err(error) => Content::Unreadable { message: self.shown(place), reason: error.to_string() },
        }
    }

    fn message(&self, place: &PartitionPlace, id_header: &str) -> Result<Message, RecordError> {
        let headers = self.headers.as_deref().ok_or(RecordError::HeaderName)?;
        let mut named = Named::default();
        let scheme = Scheme { prefixes: &["ce_"], id_header, key_header: "" };
        for (name, value) in headers {
            named.take(name, value, &scheme)?;
        }
        let derived;
        let id = match named.id.or(named.plain_id) {
            Some(id) => check_name("id", id)?,
            None => {
                derived = format!("{}/{}", place.origin, self.offset);
                &derived
            }
        };
        // A record without a key is a message without one: the key that its binding gives it is not known here.
        let key = if self.key.is_empty() { "" } else { check_name("key", self.key)? };
        let draft = Draft {
            id,
            key,
            kind: named.kind.map_or(Ok(place.topic.as_str()), |kind| check_name("type", kind))?,
            source: named.source.map_or(Ok(place.source.as_str()), |source| check_name("source", source))?,
            time: named.time.or(self.time).unwrap_or(0),
            headers: &named.others,
            payload: self.payload,
        };
        Ok(draft.build_unchecked()?)
    }

    /// The message that an operator sees for a record that cannot be used.
    fn shown(&self, place: &PartitionPlace) -> Message {
        let id = format!("{}/{}", place.origin, self.offset);
        shown(&Draft {
            id: &id,
            key: check_name("key", self.key).unwrap_or_default(),
            kind: &place.topic,
            source: &place.source,
            time: self.time.unwrap_or(0),
            headers: &[],
            payload: self.payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> PartitionPlace {
        PartitionPlace { origin: "in#2/3".to_owned(), topic: "in".to_owned(), source: "kafka:in".to_owned() }
    }

    fn record<'a>(headers: &[(&'a str, &'a [u8])]) -> KafkaRecord<'a> {
        KafkaRecord { offset: 17, time: Some(42), key: b"acct-1", payload: b"{}", headers: Some(headers.to_vec()) }
    }

    fn message(record: &KafkaRecord<'_>) -> Message {
        match record.content(&place(), "id") {
            Content::Unrouted(message) => message,
            other => panic!("{other:?}"),
        }
    }

    fn reason(record: &KafkaRecord<'_>) -> String {
        match record.content(&place(), "id") {
            Content::Unreadable { message, reason } => {
                assert_eq!((message.id(), message.kind(), message.payload()), ("in#2/3/17", "in", &b"{}"[..]));
                reason
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_event_in_binary_mode_is_read_whole() {
        let read = message(&record(&[
            ("ce_specversion", b"1.0"),
            ("ce_id", b"e-1"),
            ("ce_type", b"posted"),
            ("ce_source", b"bank"),
            ("ce_time", b"1970-01-01T00:00:01.5Z"),
            ("ce_sagaid", b"s-1"),
            ("id", b"other"),
            ("content-type", b"application/avro"),
            ("traceparent", b"00-1-2-01"),
        ]));
        assert_eq!([read.id(), read.key(), read.kind(), read.source()], ["e-1", "acct-1", "posted", "bank"]);
        assert_eq!((read.time(), read.payload()), (1_500, &b"{}"[..]));
        let headers: Vec<_> = read.headers().collect();
        assert_eq!(headers, [("sagaid", "s-1"), ("content-type", "application/avro"), ("traceparent", "00-1-2-01")]);
    }

    #[test]
    fn what_is_missing_comes_from_the_records_place() {
        let read = message(&record(&[("id", b"m-1"), ("content-type", b"application/json")]));
        assert_eq!([read.id(), read.kind(), read.source()], ["m-1", "in", "kafka:in"]);
        assert_eq!((read.time(), read.headers().count()), (42, 0));
        let bare = KafkaRecord { key: b"", payload: b"", ..record(&[]) };
        assert_eq!((message(&bare).id(), message(&bare).key()), ("in#2/3/17", ""));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let long = "x".repeat(257);
        for (bad, part) in [
            (record(&[("ce_id", b"\xff")]), "the id is not valid UTF-8"),
            (record(&[("id", long.as_bytes())]), "the id has 257 bytes"),
            (record(&[("ce_type", b"")]), "the type is empty"),
            (record(&[("ce_source", b"a\0b")]), "the source contains a NUL"),
            (record(&[("ce_sagaid", b"\xff")]), "\"ce_sagaid\" is not valid UTF-8"),
            (record(&[("traceparent", b"\xff")]), "\"traceparent\" is not valid UTF-8"),
            (KafkaRecord { headers: None, ..record(&[]) }, "a header's name is not valid UTF-8"),
            (KafkaRecord { key: b"\xfe", ..record(&[]) }, "the key is not valid UTF-8"),
            (KafkaRecord { key: long.as_bytes(), ..record(&[]) }, "the key has 257 bytes"),
        ] {
            let reason = reason(&bad);
            assert!(reason.contains(part), "{reason}");
        }
    }

    #[test]
    fn foreign_bytes_and_bad_times_cost_nothing() {
        let read = message(&record(&[
            ("id", b"m"),
            ("schema", b"\0\xff"),
            ("ce_perkeyaskedby", b"me"),
            ("ce_time", b"yesterday"),
            ("b3", b"1"),
        ]));
        assert_eq!((read.time(), read.headers().collect::<Vec<_>>()), (42, vec![("b3", "1")]));
    }

    #[test]
    fn another_record_has_another_mark() {
        let plain = || record(&[("id", b"m-1")]);
        let long = "x".repeat(4_000);
        let marks = [
            plain().mark(),
            record(&[("id", b"m-2")]).mark(),
            record(&[("ce_id", b"m-3"), ("id", b"m-1")]).mark(),
            record(&[]).mark(),
            KafkaRecord { headers: None, time: Some(41), ..plain() }.mark(),
            KafkaRecord { time: Some(43), ..plain() }.mark(),
            KafkaRecord { key: b"acct-2", ..plain() }.mark(),
            KafkaRecord { payload: b"{ }", ..plain() }.mark(),
            KafkaRecord { payload: b"{}\0", ..plain() }.mark(),
            KafkaRecord { payload: long.as_bytes(), ..plain() }.mark(),
            KafkaRecord { payload: &long.as_bytes()[1..], ..plain() }.mark(),
        ];
        assert!((0..marks.len()).all(|a| (0..a).all(|b| marks[a] != marks[b])), "{marks:?}");
        // Stored with positions: it must not change, and no setting may affect it.
        assert_eq!(marks[0], MARK);
    }

    const MARK: u64 = 438_117_808_719_812_973;
}
