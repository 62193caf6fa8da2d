//! An event as a record of Kafka: the binary mode of CloudEvents, and the trace context of the W3C beside it.
//! In: an event of the outbox. Out: a record with key, value, time and headers.

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;
use rdkafka::util::IntoOpaque;

use crate::message::Message;
use crate::transport::Outgoing;
use crate::transport::attributes::{content_type, say};

/// The bytes that a record takes in memory and on the wire beside its message: names of headers, the client's own
/// structures.
const OVERHEAD: usize = 256;

/// The bytes that an event takes of those that may be on their way.
pub(super) fn bytes_of(event: &Outgoing) -> usize {
    OVERHEAD + event.message.frame().len()
}

/// The record of an event; `opaque` comes back with its answer.
pub(super) fn record<D: IntoOpaque>(event: &Outgoing, opaque: D) -> BaseRecord<'_, str, [u8], D> {
    let message = &event.message;
    let mut record = BaseRecord::with_opaque_to(&event.topic, opaque).payload(message.payload());
    record = record.headers(headers(message));
    if !message.key().is_empty() {
        record = record.key(message.key());
    }
    // The event's own time, so that a repeat is the same record.
    match i64::try_from(message.time()) {
        Ok(time @ 1..) => record.timestamp(time),
        Ok(_) | Err(_) => record,
    }
}

fn headers(message: &Message) -> OwnedHeaders {
    let mut headers = Some(OwnedHeaders::new_with_capacity(8));
    let mut put = |key: &str, value: &str| {
        headers = headers.take().map(|headers| headers.insert(Header { key, value: Some(value) }));
    };
    put("content-type", content_type(message));
    say(message, "ce_", put);
    headers.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rdkafka::message::Headers;

    use super::*;
    use crate::message::Draft;

    fn event(draft: &Draft<'_>) -> Outgoing {
        Outgoing { seq: 1, topic: Arc::from("out"), message: draft.build_unchecked().unwrap() }
    }

    fn pairs(headers: &OwnedHeaders) -> Vec<(&str, &str)> {
        let text = |value: Option<&'_ [u8]>| std::str::from_utf8(value.unwrap()).unwrap().to_owned();
        headers.iter().map(|header| (header.key, &*text(header.value).leak())).collect()
    }

    #[test]
    fn an_event_carries_its_attributes_in_headers() {
        let headers =
            [("traceparent", "00-1-2-01"), ("sagaid", "s-1"), ("x-tenant", "t"), ("content-type", "text/plain")];
        let event = event(&Draft {
            id: "e-1",
            key: "acct-1",
            kind: "posted",
            source: "balances",
            time: 1_500,
            headers: &headers,
            payload: b"{}",
        });
        let record = record(&event, ());
        assert_eq!((record.topic, record.key, record.payload), ("out", Some("acct-1"), Some(&b"{}"[..])));
        assert_eq!(record.timestamp, Some(1_500));
        let expected = [
            ("content-type", "text/plain"),
            ("ce_specversion", "1.0"),
            ("ce_id", "e-1"),
            ("ce_type", "posted"),
            ("ce_source", "balances"),
            ("ce_time", "1970-01-01T00:00:01.5Z"),
            ("traceparent", "00-1-2-01"),
            ("ce_sagaid", "s-1"),
            ("x-tenant", "t"),
        ];
        assert_eq!(pairs(record.headers.as_ref().unwrap()), expected);
    }

    #[test]
    fn what_an_event_lacks_is_left_out_or_made_up() {
        let event = event(&Draft { id: "e-1", kind: "posted", ..Draft::default() });
        let record = record(&event, ());
        assert_eq!((record.key, record.timestamp), (None, None));
        let headers = record.headers.unwrap();
        let pairs = pairs(&headers);
        assert!(pairs.contains(&("ce_source", "perkey")) && pairs.contains(&("content-type", "application/json")));
        assert!(pairs.iter().all(|(name, _)| *name != "ce_time"));
    }
}
