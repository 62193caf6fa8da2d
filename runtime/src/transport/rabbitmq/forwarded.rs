//! A message of an intake on its way to a stream. Pure.
//! In: a delivery of the intake, or of its dead-letter queue. Out: the message for the stream, and its outcome for
//! metrics.

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::event::{HEADERS_MAX, PERSISTENT, Publishing, partition, told_by};
use super::record::{PREFIXES, REFUSED, id_header, named, property, texts};
use super::topology::text;
use crate::clock::Dice;
use crate::metrics::IntakeOutcome;
use crate::settings::WithoutId;

/// Headers that mean something to RabbitMQ when a message is published: they would route copies elsewhere.
const ROUTING: &[&str] = &["CC", "BCC"];

/// The rules by which messages of an intake are rewritten.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// The exchange of the streams.
    pub(super) exchange: ShortString,
    pub(super) shards: u32,
    pub(super) key_header: String,
    pub(super) without_id: WithoutId,
    /// True if the messages were dead-lettered by RabbitMQ.
    pub(super) dead: bool,
}

impl Rules {
    /// The message for the stream.
    pub(super) fn publishing(&self, delivery: &Delivery, dice: &mut Dice) -> (Publishing, IntakeOutcome) {
        let properties = &delivery.properties;
        let id = id_of(properties);
        let (refusal, counted) = match (self.dead, &id, self.without_id) {
            (true, ..) => (Some(dead_because(properties)), IntakeOutcome::Dead),
            (false, None, WithoutId::Refuse) => (Some(NO_ID.to_owned()), IntakeOutcome::Refused),
            _ => (None, IntakeOutcome::Moved),
        };
        let minted;
        let id = match &id {
            Some(id) => id.as_str(),
            None => {
                minted = minted_by(dice);
                &minted
            }
        };
        let key = self.key(delivery);
        let mut headers = FieldTable::default();
        let large = texts(properties).map(|(name, value)| name.len() + value.len()).sum::<usize>() > HEADERS_MAX;
        let (refusal, counted) = match refusal {
            // With the added headers they might not fit, and would end the connection each time.
            None if large => (Some(LARGE.to_owned()), IntakeOutcome::Refused),
            other => (other, counted),
        };
        for (name, value) in properties.headers().iter().flat_map(|table| table.inner()).filter(|_| !large) {
            if !ROUTING.contains(&name.as_str()) && name.as_str() != REFUSED {
                headers.insert(name.clone(), value.clone());
            }
        }
        // As text, whatever type it had: the reader of the stream takes nothing else.
        if !key.is_empty() {
            headers.insert(format!("{}partitionkey", PREFIXES[0]).into(), text(&key));
        }
        if let Some(reason) = &refusal {
            headers.insert(REFUSED.into(), text(reason));
        }
        let mut moved = copied(properties).with_headers(headers);
        if property(properties.message_id()).is_none()
            && let Ok(id) = ShortString::try_new(id)
        {
            moved = moved.with_message_id(id);
        }
        let publishing = Publishing {
            exchange: self.exchange.clone(),
            routing_key: partition(&key, id, self.shards).to_string().into(),
            by_key: true,
            key: told_by(&key),
            properties: moved,
            payload: delivery.data.clone().into(),
        };
        (publishing, counted)
    }

    /// The key in a header; else the routing key, unless that was a queue's name.
    fn key(&self, delivery: &Delivery) -> String {
        let named = named(&delivery.properties, &self.key_header).unwrap_or_default();
        let key = named.key.or(named.plain_key).filter(|key| !key.is_empty());
        if key.is_none()
            && let Some(number) = number(delivery, &self.key_header)
        {
            return number;
        }
        match key.map(std::str::from_utf8) {
            Some(Ok(key)) => key.to_owned(),
            // Not UTF-8: the reader of the stream says so.
            Some(Err(_)) => String::new(),
            None if delivery.exchange.as_str().is_empty() => String::new(),
            None => delivery.routing_key.to_string(),
        }
    }
}

/// A key that was given as a number.
fn number(delivery: &Delivery, key_header: &str) -> Option<String> {
    match delivery.properties.headers().as_ref()?.inner().get(key_header)? {
        AMQPValue::ShortShortInt(number) => Some(number.to_string()),
        AMQPValue::ShortInt(number) => Some(number.to_string()),
        AMQPValue::LongInt(number) => Some(number.to_string()),
        AMQPValue::LongLongInt(number) => Some(number.to_string()),
        _ => None,
    }
}

/// The reason why a message with too many headers is refused; its headers are left out.
const LARGE: &str = "its headers have more than 64 KiB";

/// The reason why a message without an id is refused.
const NO_ID: &str = "it has no message_id, so a repeat could not be told from another message: let its publisher set one, or \
                     set rabbitmq.without_id = \"mint\"";

/// An id for a message that has none: a UUID of version 4.
fn minted_by(dice: &mut Dice) -> String {
    let mut bytes = [0; 16];
    let (high, low) = bytes.split_at_mut(8);
    high.copy_from_slice(&dice.below(u64::MAX).to_be_bytes());
    low.copy_from_slice(&dice.below(u64::MAX).to_be_bytes());
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

fn id_of(properties: &BasicProperties) -> Option<String> {
    let header = id_header(properties).map(|id| String::from_utf8_lossy(id).into_owned());
    header.or_else(|| property(properties.message_id()).map(str::to_owned))
}

/// The properties of a copy, without headers. The broker compares the user of a message with its publisher, and
/// lets messages expire: neither property is copied.
fn copied(from: &BasicProperties) -> BasicProperties {
    fn with<T: Clone>(
        copy: BasicProperties,
        value: &Option<T>,
        set: fn(BasicProperties, T) -> BasicProperties,
    ) -> BasicProperties {
        match value {
            Some(value) => set(copy, value.clone()),
            None => copy,
        }
    }
    let copy = BasicProperties::default().with_delivery_mode(PERSISTENT);
    let copy = with(copy, from.content_type(), BasicProperties::with_content_type);
    let copy = with(copy, from.content_encoding(), BasicProperties::with_content_encoding);
    let copy = with(copy, from.correlation_id(), BasicProperties::with_correlation_id);
    let copy = with(copy, from.reply_to(), BasicProperties::with_reply_to);
    let copy = with(copy, from.message_id(), BasicProperties::with_message_id);
    let copy = with(copy, from.timestamp(), BasicProperties::with_timestamp);
    let copy = with(copy, from.kind(), BasicProperties::with_type);
    with(copy, from.app_id(), BasicProperties::with_app_id)
}

/// RabbitMQ's reason for dead-lettering a message: the first entry of `x-death` is the last death.
fn dead_because(properties: &BasicProperties) -> String {
    let deaths = properties.headers().as_ref().and_then(|headers| headers.inner().get("x-death"));
    let death = match deaths {
        Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice().first(),
        _ => None,
    };
    let Some(AMQPValue::FieldTable(death)) = death else {
        return "it was published to the dead-letter exchange".to_owned();
    };
    let of = |name: &str| match death.inner().get(name) {
        Some(AMQPValue::LongString(text)) => text.to_string(),
        _ => "?".to_owned(),
    };
    format!("RabbitMQ dead-lettered it from the queue {}: {}", of("queue"), of("reason"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        let (key_header, without_id) = ("key".to_owned(), WithoutId::Refuse);
        Rules { exchange: "in".into(), shards: 8, key_header, without_id, dead: false }
    }

    fn delivery(exchange: &str, key: &str, properties: BasicProperties, headers: &[(&str, &str)]) -> Delivery {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), text(value));
        }
        let mut delivery = Delivery::mock(1, exchange.into(), key.into(), false, b"{}".to_vec());
        delivery.properties = properties.with_headers(table);
        delivery
    }

    fn header<'a>(publishing: &'a Publishing, name: &str) -> Option<&'a str> {
        let found = texts(&publishing.properties).find(|(known, _)| *known == name)?;
        std::str::from_utf8(found.1).ok()
    }

    #[test]
    fn a_message_goes_to_the_shard_of_its_key() {
        let id = || BasicProperties::default().with_message_id("m-1".into());
        let by_route = delivery("in.intake", "acct-1", id(), &[]);
        let (publishing, counted) = rules().publishing(&by_route, &mut Dice::seeded(1));
        assert_eq!(counted, IntakeOutcome::Moved);
        assert_eq!(publishing.routing_key.as_str(), partition("acct-1", "m-1", 8).to_string());
        assert_eq!(header(&publishing, "cloudEvents_partitionkey"), Some("acct-1"));
        let by_header = delivery("in.intake", "some.topic", id(), &[("key", "acct-2")]);
        let (publishing, _) = rules().publishing(&by_header, &mut Dice::seeded(1));
        assert_eq!(publishing.routing_key.as_str(), partition("acct-2", "m-1", 8).to_string());
        assert_eq!(header(&publishing, "cloudEvents_partitionkey"), Some("acct-2"));
        let mut by_number = delivery("in.intake", "some.topic", id(), &[]);
        let headers = FieldTable::from(std::collections::BTreeMap::from([("key".into(), AMQPValue::LongInt(42))]));
        by_number.properties = id().with_headers(headers);
        let (publishing, _) = rules().publishing(&by_number, &mut Dice::seeded(1));
        assert_eq!(header(&publishing, "cloudEvents_partitionkey"), Some("42"));
        let nameless = delivery("in.intake", "acct-1", id(), &[("cloudEvents_partitionkey", "")]);
        let (publishing, _) = rules().publishing(&nameless, &mut Dice::seeded(1));
        assert_eq!(header(&publishing, "cloudEvents_partitionkey"), Some("acct-1"));
        let (publishing, _) = rules().publishing(&delivery("", "in.intake", id(), &[]), &mut Dice::seeded(1));
        assert_eq!(publishing.routing_key.as_str(), partition("", "m-1", 8).to_string(), "a queue's name is not a key");
        assert_eq!(header(&publishing, "cloudEvents_partitionkey"), None);
    }

    #[test]
    fn without_an_id_it_is_refused_or_given_one() {
        let nameless = delivery("in.intake", "acct-1", BasicProperties::default(), &[]);
        let (publishing, counted) = rules().publishing(&nameless, &mut Dice::seeded(1));
        assert_eq!(counted, IntakeOutcome::Refused);
        assert!(header(&publishing, REFUSED).is_some_and(|reason| reason.contains("message_id")));
        let (publishing, counted) =
            Rules { without_id: WithoutId::Mint, ..rules() }.publishing(&nameless, &mut Dice::seeded(1));
        assert_eq!((counted, header(&publishing, REFUSED)), (IntakeOutcome::Moved, None));
        assert!(publishing.properties.message_id().is_some());
        let event = delivery("in.intake", "k", BasicProperties::default(), &[("cloudEvents:id", "e-1")]);
        assert_eq!(rules().publishing(&event, &mut Dice::seeded(1)).1, IntakeOutcome::Moved);
    }

    #[test]
    fn headers_that_might_not_fit_are_left_out() {
        let large = "x".repeat(HEADERS_MAX);
        let properties = BasicProperties::default().with_message_id("m-1".into());
        let many = delivery("in.intake", "acct-1", properties, &[("a", &large)]);
        let (publishing, counted) = rules().publishing(&many, &mut Dice::seeded(1));
        assert_eq!((counted, header(&publishing, "a")), (IntakeOutcome::Refused, None));
        assert_eq!(header(&publishing, REFUSED), Some(LARGE));
    }

    #[test]
    fn what_routes_or_binds_to_a_user_is_left_behind() {
        let properties = BasicProperties::default()
            .with_message_id("m-1".into())
            .with_user_id("bank".into())
            .with_expiration("5".into())
            .with_type("posted".into())
            .with_correlation_id("c".into());
        let (publishing, _) =
            rules().publishing(&delivery("x", "k", properties, &[("CC", "other"), ("b3", "1")]), &mut Dice::seeded(1));
        let properties = &publishing.properties;
        assert!(properties.user_id().is_none() && properties.expiration().is_none());
        assert_eq!(properties.kind().as_ref().map(ShortString::as_str), Some("posted"));
        assert_eq!((header(&publishing, "CC"), header(&publishing, "b3")), (None, Some("1")));
    }

    #[test]
    fn a_dead_letter_says_where_it_died() {
        let mut death = FieldTable::default();
        death.insert("queue".into(), text("shop"));
        death.insert("reason".into(), text("rejected"));
        let mut dead = delivery("in.intake.dead", "k", BasicProperties::default(), &[]);
        let mut headers = FieldTable::default();
        headers.insert("x-death".into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()));
        dead.properties = BasicProperties::default().with_headers(headers);
        let rules = Rules { dead: true, ..rules() };
        let (publishing, counted) = rules.publishing(&dead, &mut Dice::seeded(1));
        assert_eq!(counted, IntakeOutcome::Dead);
        assert_eq!(header(&publishing, REFUSED), Some("RabbitMQ dead-lettered it from the queue shop: rejected"));
        let (publishing, _) =
            rules.publishing(&delivery("in.intake.dead", "k", BasicProperties::default(), &[]), &mut Dice::seeded(1));
        assert_eq!(header(&publishing, REFUSED), Some("it was published to the dead-letter exchange"));
    }
}
