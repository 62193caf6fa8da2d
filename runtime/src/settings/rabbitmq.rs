//! The settings for RabbitMQ, and their checks.
//! In: the section `rabbitmq`. Out: every problem, each with what to do; addresses.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::address;
use super::kafka::topic_of;
use super::problems::Problems;

section! {
    /// RabbitMQ as source and sink; not used while `addresses` is empty.
    RabbitmqSettings {
        /// Addresses of its nodes: `host:port,host:port`, tried in turn.
        addresses: String = String::new(),
        /// The virtual host.
        vhost: String = "/".to_owned(),
        /// User name.
        username: String = "guest".to_owned(),
        /// Password.
        password: String = "guest".to_owned(),
        /// Connects by TLS.
        tls: bool = false,
        /// File with certificates to trust beside the system's, or empty.
        ca_file: String = String::new(),
        /// File with the client's certificate, or empty.
        cert_file: String = String::new(),
        /// File with the client's key, or empty.
        key_file: String = String::new(),
        /// Streams to read: `orders` stands for `orders-0`, `orders-1`, … one for each shard; `orders#2` reads streams
        /// that were made anew.
        streams: Vec<String> = Vec::new(),
        /// Those of the streams that have an intake queue, for foreign publishers.
        intakes: Vec<String> = Vec::new(),
        /// The fate of a message of an intake that has no id.
        without_id: WithoutId = WithoutId::Refuse,
        /// Header with a message's key where there is no `cloudEvents_partitionkey`.
        key_header: String = "key".to_owned(),
        /// Declares streams, queues, exchanges and bindings.
        declare: bool = true,
        /// Age from which a stream drops segments, read or not; 0: without a bound.
        #[serde(with = "humantime_serde")]
        max_age: Duration = Duration::from_secs(7 * 86_400),
        /// Bytes above which a stream drops its oldest segments, read or not; 0: without a bound.
        max_bytes: u64 = 0,
        /// Messages of a stream that are read ahead; fewer if these would be more than `buffer_bytes`.
        prefetch: u16 = 500,
        /// Messages of an intake that are on their way to its stream; fewer if they might have more bytes than
        /// [`Settings::rabbitmq_in_memory`](super::Settings::rabbitmq_in_memory) allows.
        intake_prefetch: u16 = 100,
        /// Bytes of a shard's events on their way to the broker; and of its streams' messages that are read ahead.
        buffer_bytes: usize = 8 << 20,
        /// Bytes of an event's payload above which it is refused before it is sent.
        message_bytes_max: usize = 16 << 20,
        /// Time after which a sink's connection that has events and hears nothing is opened anew.
        #[serde(with = "humantime_serde")]
        answer_timeout: Duration = Duration::from_secs(120),
        /// Interval of heartbeats; a node that is silent for two of these is left.
        #[serde(with = "humantime_serde")]
        heartbeat: Duration = Duration::from_secs(10),
    }
}

/// The fate of a message of an intake that has no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithoutId {
    /// The message becomes a dead letter: without an id a repeat cannot be told from another message.
    Refuse,
    /// The message is given a new id; it may take effect twice when a worker dies while it is moved.
    Mint,
}

/// Longest name of a stream: names that are derived from it must stay within 255 bytes.
const STREAM_BYTES_MAX: usize = 200;

/// Host and port of each node; `None` if any node does not parse.
pub(crate) fn nodes(addresses: &str) -> Option<Vec<(String, u16)>> {
    let node = |node: &str| address(node.trim()).map(|(host, port)| (host.to_owned(), port));
    addresses.split(',').map(node).collect()
}

/// Finds all problems of the section.
pub(super) fn check(rabbitmq: &RabbitmqSettings, found: &mut Problems) {
    let used = !rabbitmq.addresses.is_empty();
    found.check(
        !used || cfg!(feature = "rabbitmq"),
        &["rabbitmq.addresses"],
        "must be empty: this program was built without RabbitMQ; build it with perkey's feature `rabbitmq`",
    );
    found.check(
        !used || nodes(&rabbitmq.addresses).is_some(),
        &["rabbitmq.addresses"],
        "must be \"host:port\", separated by commas",
    );
    found.check(!rabbitmq.username.is_empty(), &["rabbitmq.username"], "must not be empty");
    found.check(
        rabbitmq.cert_file.is_empty() == rabbitmq.key_file.is_empty(),
        &["rabbitmq.cert_file", "rabbitmq.key_file"],
        "and rabbitmq.key_file must be set together",
    );
    found.check(
        rabbitmq.tls || (rabbitmq.ca_file.is_empty() && rabbitmq.cert_file.is_empty()),
        &["rabbitmq.tls", "rabbitmq.ca_file", "rabbitmq.cert_file"],
        "must be true where rabbitmq.ca_file or rabbitmq.cert_file is set",
    );
    found.check(!rabbitmq.key_header.is_empty(), &["rabbitmq.key_header"], "must not be empty");
    found.check(
        rabbitmq.prefetch >= 1,
        &["rabbitmq.prefetch"],
        "must be at least 1: without a bound all of a stream would come",
    );
    found.check(rabbitmq.intake_prefetch >= 1, &["rabbitmq.intake_prefetch"], "must be at least 1");
    found.check(rabbitmq.buffer_bytes >= 64 << 10, &["rabbitmq.buffer_bytes"], "must be at least 65536");
    found.check(rabbitmq.message_bytes_max >= 1 << 10, &["rabbitmq.message_bytes_max"], "must be at least 1024");
    found.check(
        rabbitmq.answer_timeout >= Duration::from_secs(10),
        &["rabbitmq.answer_timeout"],
        "must be at least 10s",
    );
    let beat = rabbitmq.heartbeat;
    found.check(
        (Duration::from_secs(1)..=Duration::from_secs(600)).contains(&beat) && beat.subsec_nanos() == 0,
        &["rabbitmq.heartbeat"],
        "must be whole seconds, 1s to 10m",
    );
    found.check(
        rabbitmq.max_age.subsec_nanos() == 0,
        &["rabbitmq.max_age"],
        "must be whole seconds: RabbitMQ knows nothing shorter",
    );
    let mut seen = std::collections::BTreeSet::new();
    for entry in &rabbitmq.streams {
        let name = topic_of(entry);
        if name.is_empty() || entry.len() > STREAM_BYTES_MAX || name.starts_with("amq.") {
            let text = format!(
                "rabbitmq.streams: {entry:?} must have 1 to {STREAM_BYTES_MAX} bytes, also before a #, and not begin with amq."
            );
            found.add(&["rabbitmq.streams"], text);
        }
        if !seen.insert(name) {
            let text = format!("rabbitmq.streams: {name:?} is there twice: name each stream once");
            found.add(&["rabbitmq.streams"], text);
        }
    }
    for intake in rabbitmq.intakes.iter().filter(|intake| !seen.contains(intake.as_str())) {
        let text =
            format!("rabbitmq.intakes: {intake:?} is not one of rabbitmq.streams: its messages would go nowhere");
        found.add(&["rabbitmq.intakes", "rabbitmq.streams"], text);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;

    #[test]
    fn addresses_are_hosts_and_ports() {
        let found = nodes("a:5672, [::1]:5671").unwrap();
        assert_eq!(found, [("a".to_owned(), 5672), ("::1".to_owned(), 5671)]);
        for bad in ["", "a", "a:b", ":5672", "a:5672,"] {
            assert_eq!(nodes(bad), None, "{bad}");
        }
    }

    #[test]
    fn everything_that_is_wrong_is_told() {
        let rabbitmq = RabbitmqSettings {
            addresses: "a".to_owned(),
            streams: ["s", "s#2", "#3", "amq.s"].map(str::to_owned).to_vec(),
            intakes: vec!["t".to_owned()],
            cert_file: "client.pem".to_owned(),
            prefetch: 0,
            heartbeat: Duration::from_millis(1_500),
            ..RabbitmqSettings::default()
        };
        let problems = Settings { rabbitmq, ..Settings::default() }.problems().join("\n");
        for part in ["addresses", "key_file", "tls", "prefetch", "heartbeat", "twice", "\"#3\"", "\"amq.s\"", "\"t\""] {
            assert!(problems.contains(part), "{part}: {problems}");
        }
        assert!(Settings::default().problems().is_empty());
    }
}
