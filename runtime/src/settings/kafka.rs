//! The settings for Kafka, and their checks.
//! In: the section `kafka`. Out: every problem, each with what to do; topics by name and incarnation.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::address;
use super::problems::Problems;

section! {
    /// Kafka as source and sink; not used while `brokers` is empty.
    KafkaSettings {
        /// Addresses of some brokers: `host:port,host:port`.
        brokers: String = String::new(),
        /// Topics to read; `topic#2` reads a topic that was made anew as one that was never read.
        topics: Vec<String> = Vec::new(),
        /// Consumer group that positions are also committed to, for lag tools; reading resumes from the store's
        /// positions.
        group: String = "perkey".to_owned(),
        /// Place at which reading begins in a topic that was never read.
        first_start: FirstStart = FirstStart::Earliest,
        /// Header with the message's id where there is no `ce_id`.
        id_header: String = "id".to_owned(),
        /// Bytes per shard that are read ahead, and bytes per shard on their way to the brokers.
        buffer_bytes: usize = 8 << 20,
        /// Time after which a producer that has events and confirms none is replaced.
        #[serde(with = "humantime_serde")]
        answer_timeout: Duration = Duration::from_secs(120),
        /// Topic that dead letters are copied to, or empty.
        dead_letter_topic: String = String::new(),
        /// `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`.
        security: String = "plaintext".to_owned(),
        /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`; used with `sasl_…`.
        sasl_mechanism: String = "SCRAM-SHA-512".to_owned(),
        /// User name for SASL.
        username: String = String::new(),
        /// Password for SASL.
        password: String = String::new(),
        /// File with the certificates to trust, or empty for the system's.
        ca_file: String = String::new(),
        /// File with the client's certificate, or empty.
        cert_file: String = String::new(),
        /// File with the client's key, or empty.
        key_file: String = String::new(),
        /// Further properties of librdkafka: `name=value`.
        properties: Vec<String> = Vec::new(),
    }
}

/// The place at which reading begins in a topic that was never read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FirstStart {
    /// The oldest record.
    Earliest,
    /// The first record written from now on.
    Latest,
}

/// Longest entry of `kafka.topics`: ids derived from it must stay within a message's bounds.
const TOPIC_BYTES_MAX: usize = 220;

/// Properties that must not be set, each with the reason or the setting to use.
const TAKEN: &[(&str, &str)] = &[
    ("bootstrap.servers", "set kafka.brokers"),
    ("metadata.broker.list", "set kafka.brokers"),
    ("group.id", "set kafka.group"),
    ("security.protocol", "set kafka.security"),
    ("sasl.mechanism", "set kafka.sasl_mechanism"),
    ("sasl.mechanisms", "set kafka.sasl_mechanism"),
    ("sasl.username", "set kafka.username"),
    ("sasl.password", "set kafka.password"),
    ("ssl.ca.location", "set kafka.ca_file"),
    ("ssl.certificate.location", "set kafka.cert_file"),
    ("ssl.key.location", "set kafka.key_file"),
    ("auto.offset.reset", "set kafka.first_start; a lost position must stop the source, not move it"),
    ("enable.auto.commit", "positions are committed with the store, and to the group after that"),
    ("enable.auto.offset.store", "positions are committed with the store, and to the group after that"),
    ("enable.partition.eof", "the end of a partition is not a message"),
    ("isolation.level", "records of aborted transactions must not be handled: it is read_committed"),
    ("allow.auto.create.topics", "a topic made by reading it would have an arbitrary number of partitions"),
    ("group.protocol", "partitions are read by the owner of their shard, not by a member of a group"),
    ("group.instance.id", "partitions are read by the owner of their shard, not by a member of a group"),
    ("queue.buffering.max.messages", "set kafka.buffer_bytes and outbox.window"),
    ("queue.buffering.max.kbytes", "set kafka.buffer_bytes"),
    ("enable.idempotence", "events must not be repeated or swapped by a retry: it is true"),
    ("acks", "an event is confirmed when all replicas in sync have it: it is all"),
    ("request.required.acks", "an event is confirmed when all replicas in sync have it: it is all"),
    ("partitioner", "a key's partition must be that of Kafka's Java clients: it is murmur2_random"),
    ("message.timeout.ms", "an event that is given up would leave a hole: it is 0"),
    ("delivery.timeout.ms", "an event that is given up would leave a hole: it is 0"),
    ("message.send.max.retries", "an event that is given up would leave a hole"),
    ("retries", "an event that is given up would leave a hole"),
    ("delivery.report.only.error", "an event is confirmed by the report that it was delivered: it is false"),
    ("transactional.id", "the outbox needs no transactions of Kafka"),
];

/// The topic, or stream, that an entry of `kafka.topics` or `rabbitmq.streams` names: the part before `#`; the number
/// behind it counts the topic's lives.
pub fn topic_of(entry: &str) -> &str {
    entry.split_once('#').map_or(entry, |(topic, _)| topic)
}

/// The entry that begins the same topic, or stream, anew: `orders#2` for `orders`, `orders#3` for `orders#2`.
pub fn next_life(entry: &str) -> String {
    let (topic, life) = entry.split_once('#').unwrap_or((entry, "1"));
    format!("{topic}#{}", life.parse().unwrap_or(1_u64) + 1)
}

/// Name and value of an entry of `kafka.properties`.
pub(crate) fn property(entry: &str) -> Option<(&str, &str)> {
    let (name, value) = entry.split_once('=')?;
    Some((name.trim(), value.trim()))
}

/// Returns whether this is the address of a broker as librdkafka takes it: protocol and port may be left out.
fn is_broker(broker: &str) -> bool {
    let host = broker.split_once("://").map_or(broker, |(_, host)| host);
    address(host).is_some() || !host.is_empty() && !host.contains([':', ' '])
}

/// Finds all problems of the section.
pub(super) fn check(kafka: &KafkaSettings, found: &mut Problems) {
    found.check(
        kafka.brokers.is_empty() || cfg!(feature = "kafka"),
        &["kafka.brokers"],
        "must be empty: this program was built without Kafka; build it with perkey's feature `kafka`",
    );
    found.check(
        kafka.brokers.is_empty() || kafka.brokers.split(',').all(|broker| is_broker(broker.trim())),
        &["kafka.brokers"],
        "must be \"host:port\", separated by commas",
    );
    found.check(
        kafka.brokers.is_empty() || !kafka.group.is_empty(),
        &["kafka.group", "kafka.brokers"],
        "must not be empty when kafka.brokers is set",
    );
    found.check(
        ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"].contains(&kafka.security.as_str()),
        &["kafka.security"],
        "must be plaintext, ssl, sasl_plaintext or sasl_ssl",
    );
    let sasl = kafka.security.starts_with("sasl");
    found.check(
        !sasl || !kafka.username.is_empty(),
        &["kafka.username", "kafka.security"],
        "must be set when kafka.security is sasl_plaintext or sasl_ssl",
    );
    found.check(
        !sasl || ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].contains(&kafka.sasl_mechanism.as_str()),
        &["kafka.sasl_mechanism"],
        "must be PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
    );
    found.check(
        kafka.cert_file.is_empty() == kafka.key_file.is_empty(),
        &["kafka.cert_file", "kafka.key_file"],
        "and kafka.key_file must be set together",
    );
    found.check(kafka.buffer_bytes >= 64 << 10, &["kafka.buffer_bytes"], "must be at least 65536");
    found.check(kafka.answer_timeout >= Duration::from_secs(10), &["kafka.answer_timeout"], "must be at least 10s");
    found.check(!kafka.id_header.is_empty(), &["kafka.id_header"], "must not be empty");
    let mut seen = std::collections::BTreeSet::new();
    for entry in &kafka.topics {
        if topic_of(entry).is_empty() || entry.len() > TOPIC_BYTES_MAX {
            let text = format!("kafka.topics: {entry:?} must have 1 to {TOPIC_BYTES_MAX} bytes, also before a #");
            found.add(&["kafka.topics"], text);
        }
        if !seen.insert(topic_of(entry)) {
            let text = format!("kafka.topics: {:?} is there twice: name each topic once", topic_of(entry));
            found.add(&["kafka.topics"], text);
        }
    }
    for entry in &kafka.properties {
        let named = property(entry).map(|(name, _)| name);
        found.check(named.is_some(), &["kafka.properties"], "must be a list of \"name=value\"");
        if let Some((name, why)) = TAKEN.iter().find(|(taken, _)| Some(*taken) == named) {
            found.add(&["kafka.properties"], format!("kafka.properties: {name} cannot be set there: {why}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;

    fn problems(kafka: KafkaSettings) -> Vec<String> {
        Settings { kafka, ..Settings::default() }.problems()
    }

    #[test]
    fn what_correctness_needs_is_not_free() {
        let properties = [
            "enable.auto.commit=true",
            " acks = 1",
            "linger.ms=5",
            "nonsense",
            "group.id=x",
            "delivery.report.only.error=true",
        ];
        let kafka = KafkaSettings { properties: properties.map(str::to_owned).to_vec(), ..KafkaSettings::default() };
        let problems = problems(kafka);
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert!(problems[0].contains("enable.auto.commit") && problems[1].contains("acks"), "{problems:?}");
        assert!(problems[2].contains("name=value") && problems[3].contains("kafka.group"), "{problems:?}");
    }

    #[test]
    fn brokers_are_addresses() {
        let with = |brokers: &str| problems(KafkaSettings { brokers: brokers.to_owned(), ..KafkaSettings::default() });
        for brokers in ["h:9092, i:9092", "h", "PLAINTEXT://h:9092", "[::1]:9092"] {
            assert_eq!(with(brokers), Vec::<String>::new(), "{brokers}");
        }
        for brokers in ["h:9092,", "h:90920", ":9092", "h i:1"] {
            assert!(with(brokers)[0].starts_with("kafka.brokers"), "{brokers}");
        }
    }

    #[test]
    fn a_topic_is_named_once_whatever_its_incarnation() {
        let topics = ["orders", "orders#2", "#3"].map(str::to_owned).to_vec();
        let problems = problems(KafkaSettings { topics, ..KafkaSettings::default() });
        assert!(problems.len() == 2 && problems[0].contains("twice") && problems[1].contains("#3"), "{problems:?}");
    }

    #[test]
    fn each_life_of_a_topic_has_the_next_number() {
        assert_eq!(["t", "t#2", "t#9"].map(next_life), ["t#2", "t#3", "t#10"]);
    }

    #[test]
    fn security_needs_what_it_needs() {
        let kafka = KafkaSettings {
            security: "sasl_ssl".to_owned(),
            sasl_mechanism: "GSSAPI".to_owned(),
            cert_file: "client.pem".to_owned(),
            ..KafkaSettings::default()
        };
        let problems = problems(kafka).join("\n");
        for name in ["kafka.username", "kafka.sasl_mechanism", "kafka.key_file"] {
            assert!(problems.contains(name), "{problems}");
        }
    }
}
