//! An event as a message of RabbitMQ. Pure.
//! In: an event of the outbox, the exchange and routing key for its topic. Out: a message to publish, or the reason why
//! it cannot be.

use std::collections::BTreeSet;

use lapin::BasicProperties;
use lapin::types::{FieldTable, ShortString};

use super::record::PREFIXES;
use super::topology::text;
use crate::message::{Message, shard_of};
use crate::settings::RabbitmqSettings;
use crate::settings::topic_of;
use crate::transport::Outgoing;
use crate::transport::attributes::{absorb, content_type, say};

/// The bytes that a message takes in memory and on the wire beside its frame: names of headers, the client's own
/// structures.
const OVERHEAD: usize = 512;
/// Bytes of headers above which a message is refused: all properties go in one frame, of 128 KiB by default,
/// and one that does not fit would end the connection for all.
pub(super) const HEADERS_MAX: usize = 64 << 10;
/// The delivery mode of a message that outlives the broker's process.
pub(super) const PERSISTENT: u8 = 2;

/// The bytes that an event takes of those that may be on their way.
pub(super) fn bytes_of(event: &Outgoing) -> usize {
    OVERHEAD + event.message.frame().len()
}

/// A message to publish.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Publishing {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    /// True if the routing key says which stream it goes to.
    pub(super) by_key: bool,
    /// A number that tells its key from others; `None` if it has no key.
    pub(super) key: Option<u64>,
    pub(super) properties: BasicProperties,
    pub(super) payload: bytes::Bytes,
}

impl Publishing {
    /// The unit that becomes full, or is missing, by itself: a stream, else an exchange with all queues behind it.
    pub(super) fn way(&self) -> u64 {
        let key = if self.by_key { self.routing_key.as_str() } else { "" };
        absorb(absorb(0, self.exchange.as_str().as_bytes()), key.as_bytes())
    }
}

/// A number that tells a key from others: two keys with the same number wait for each other, and no more.
pub(super) fn told_by(key: &str) -> Option<u64> {
    (!key.is_empty()).then(|| absorb(0, key.as_bytes()))
}

/// The reason why RabbitMQ will never take an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unpublishable {
    #[error("its payload has {bytes} bytes, more than rabbitmq.message_bytes_max ({most})")]
    Payload { bytes: usize, most: usize },
    #[error("its {what} has {bytes} bytes, more than 255")]
    Long { what: &'static str, bytes: usize },
    #[error("the name of a header has {0} bytes, more than 255")]
    HeaderName(usize),
    #[error("its headers have {0} bytes, more than {HEADERS_MAX}")]
    Headers(usize),
}

/// The targets of events, worked out once.
#[derive(Clone, Debug)]
pub(super) struct Routes {
    streams: BTreeSet<String>,
    shards: u32,
    payload_max: usize,
}

impl Routes {
    pub(super) fn new(settings: &RabbitmqSettings, shards: u32) -> Self {
        let streams = settings.streams.iter().map(|entry| topic_of(entry).to_owned()).collect();
        Self { streams, shards, payload_max: settings.message_bytes_max }
    }

    /// The event as a message, or the reason why RabbitMQ will never take it.
    pub(super) fn publishing(&self, event: &Outgoing) -> Result<Publishing, Unpublishable> {
        let message = &event.message;
        let bytes = message.payload().len();
        if bytes > self.payload_max {
            return Err(Unpublishable::Payload { bytes, most: self.payload_max });
        }
        let (exchange, routing_key) = self.way(&event.topic, message);
        Ok(Publishing {
            exchange: short("exchange", exchange)?,
            routing_key: short("routing key", &routing_key)?,
            by_key: self.streams.contains(&*event.topic),
            key: told_by(message.key()),
            properties: properties(message)?,
            payload: bytes::Bytes::copy_from_slice(message.payload()),
        })
    }

    /// Exchange and routing key: the key's shard for streams that are read here, else the part of the topic behind a
    /// colon.
    fn way<'a>(&self, topic: &'a str, message: &Message) -> (&'a str, String) {
        if self.streams.contains(topic) {
            return (topic, partition(message.key(), message.id(), self.shards).to_string());
        }
        let (exchange, key) = topic.split_once(':').unwrap_or((topic, "{type}"));
        (exchange, key.replace("{type}", message.kind()).replace("{key}", message.key()))
    }
}

/// The partition of a message: its key's shard. Without a key its id decides, so that a repeat goes to the same place.
pub(super) fn partition(key: &str, id: &str, shards: u32) -> u32 {
    shard_of(if key.is_empty() { id } else { key }, shards)
}

fn properties(message: &Message) -> Result<BasicProperties, Unpublishable> {
    let mut headers = FieldTable::default();
    let (mut long, mut bytes) = (None, 0);
    let mut put = |name: &str, value: &str| match ShortString::try_new(name) {
        Ok(name) => {
            bytes += name.as_str().len() + value.len();
            headers.insert(name, text(value));
        }
        Err(_) => long = Some(Unpublishable::HeaderName(name.len())),
    };
    if !message.key().is_empty() {
        put(&format!("{}partitionkey", PREFIXES[0]), message.key());
    }
    say(message, PREFIXES[0], put);
    if let Some(reason) = long {
        return Err(reason);
    }
    if bytes > HEADERS_MAX {
        return Err(Unpublishable::Headers(bytes));
    }
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type(short("content-type", content_type(message))?)
        .with_headers(headers);
    // The names are in headers as well: a property holds a byte less than an id may have.
    if let Ok(id) = ShortString::try_new(message.id()) {
        properties = properties.with_message_id(id);
    }
    if let Ok(kind) = ShortString::try_new(message.kind()) {
        properties = properties.with_type(kind);
    }
    if message.time() > 0 {
        properties = properties.with_timestamp(message.time() / 1_000);
    }
    Ok(properties)
}

fn short(what: &'static str, value: &str) -> Result<ShortString, Unpublishable> {
    ShortString::try_new(value).map_err(|_| Unpublishable::Long { what, bytes: value.len() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::record::texts;
    use super::*;
    use crate::message::Draft;

    fn event(topic: &str, draft: &Draft<'_>) -> Outgoing {
        Outgoing { seq: 1, topic: Arc::from(topic), message: draft.build_unchecked().unwrap() }
    }

    fn routes() -> Routes {
        let streams = vec!["orders#2".to_owned()];
        Routes::new(&RabbitmqSettings { streams, message_bytes_max: 1_024, ..RabbitmqSettings::default() }, 8)
    }

    fn way(topic: &str, key: &str) -> (String, String) {
        let draft = Draft { id: "e-1", key, kind: "posted", ..Draft::default() };
        let publishing = routes().publishing(&event(topic, &draft)).unwrap();
        (publishing.exchange.to_string(), publishing.routing_key.to_string())
    }

    #[test]
    fn a_topic_is_a_stream_or_an_exchange_and_a_routing_key() {
        let is = |exchange: &str, key: &str| (exchange.to_owned(), key.to_owned());
        assert_eq!(way("orders", "acct-1"), is("orders", &shard_of("acct-1", 8).to_string()));
        assert_eq!(way("orders", ""), is("orders", &shard_of("e-1", 8).to_string()));
        assert_eq!(way("events", "acct-1"), is("events", "posted"));
        assert_eq!(way("events:{key}", "acct-1"), is("events", "acct-1"));
        assert_eq!(way("events:shop.{type}.eu", "acct-1"), is("events", "shop.posted.eu"));
        assert_eq!(way(":queue", "acct-1"), is("", "queue"));
    }

    #[test]
    fn an_event_carries_its_attributes_in_headers_and_properties() {
        let headers =
            [("traceparent", "00-1-2-01"), ("sagaid", "s-1"), ("x-tenant", "t"), ("content-type", "text/plain")];
        let draft = Draft {
            id: "e-1",
            key: "acct-1",
            kind: "posted",
            source: "balances",
            time: 1_500,
            headers: &headers,
            payload: b"{}",
        };
        let Publishing { properties, payload, .. } = routes().publishing(&event("orders", &draft)).unwrap();
        assert_eq!(&*payload, b"{}");
        assert_eq!(properties.message_id().as_ref().map(ShortString::as_str), Some("e-1"));
        assert_eq!(properties.content_type().as_ref().map(ShortString::as_str), Some("text/plain"));
        assert_eq!((*properties.delivery_mode(), *properties.timestamp()), (Some(2), Some(1)));
        let expected: [(&str, &[u8]); 9] = [
            ("cloudEvents_id", b"e-1"),
            ("cloudEvents_partitionkey", b"acct-1"),
            ("cloudEvents_sagaid", b"s-1"),
            ("cloudEvents_source", b"balances"),
            ("cloudEvents_specversion", b"1.0"),
            ("cloudEvents_time", b"1970-01-01T00:00:01.5Z"),
            ("cloudEvents_type", b"posted"),
            ("traceparent", b"00-1-2-01"),
            ("x-tenant", b"t"),
        ];
        assert_eq!(texts(&properties).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_rabbitmq_will_never_take_says_why() {
        let long = "x".repeat(256);
        let refused =
            |topic: &str, draft: &Draft<'_>| routes().publishing(&event(topic, draft)).unwrap_err().to_string();
        let draft = Draft { id: "e-1", key: &long, kind: "posted", ..Draft::default() };
        assert!(refused("events:{key}", &draft).contains("routing key has 256 bytes"));
        assert!(refused(&long, &Draft::default()).contains("exchange has 256 bytes"));
        let payload = vec![0; 1_025];
        assert!(refused("orders", &Draft { payload: &payload, ..Draft::default() }).contains("message_bytes_max"));
        let headers = [(long.as_str(), "v")];
        assert!(refused("orders", &Draft { headers: &headers, ..Draft::default() }).contains("name of a header"));
        let large = "x".repeat(HEADERS_MAX);
        let headers = [("a", large.as_str())];
        assert!(refused("orders", &Draft { headers: &headers, ..Draft::default() }).contains("its headers have"));
        // An id fits in its header.
        let draft = Draft { id: &long, kind: "posted", ..Draft::default() };
        let properties = routes().publishing(&event("orders", &draft)).unwrap().properties;
        assert!(properties.message_id().is_none() && texts(&properties).any(|(name, _)| name == "cloudEvents_id"));
    }
}
