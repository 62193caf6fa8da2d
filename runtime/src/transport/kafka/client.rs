//! The configuration of librdkafka's clients, and their logs and statistics.
//! In: the settings. Out: configurations of consumers and producers; log lines without secrets; the consumer's lag.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionList;
use tracing::{debug, error, info, warn};

use super::error::KafkaFailure;
use crate::metrics::Metrics;
use crate::settings::KafkaSettings;
use crate::settings::kafka::property;

/// The configuration that both kinds of client share.
fn common(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set_log_level(RDKafkaLogLevel::Info);
    config.set("client.id", "perkey").set("socket.keepalive.enable", "true");
    config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "2000");
    config.set("bootstrap.servers", &settings.brokers);
    config.set("security.protocol", &settings.security);
    if settings.security.starts_with("sasl") {
        config.set("sasl.mechanism", &settings.sasl_mechanism);
        config.set("sasl.username", &settings.username).set("sasl.password", &settings.password);
    }
    if settings.security.ends_with("ssl") {
        let files = [
            ("ssl.ca.location", &settings.ca_file),
            ("ssl.certificate.location", &settings.cert_file),
            ("ssl.key.location", &settings.key_file),
        ];
        for (name, file) in files.into_iter().filter(|(_, file)| !file.is_empty()) {
            config.set(name, file);
        }
    }
    config
}

/// Checks that the configured files can be read; the error is about the first that cannot.
pub(super) fn check_files(settings: &KafkaSettings) -> Result<(), KafkaFailure> {
    let files = [
        ("kafka.ca_file", &settings.ca_file),
        ("kafka.cert_file", &settings.cert_file),
        ("kafka.key_file", &settings.key_file),
    ];
    for (setting, file) in files.into_iter().filter(|(_, file)| !file.is_empty()) {
        std::fs::File::open(file).map_err(|error| KafkaFailure::File { setting, file: file.clone(), error })?;
    }
    Ok(())
}

fn with_properties(mut config: ClientConfig, settings: &KafkaSettings) -> ClientConfig {
    for (name, value) in settings.properties.iter().filter_map(|entry| property(entry)) {
        config.set(name, value);
    }
    config
}

/// The configuration of the one consumer.
pub(super) fn consumer(settings: &KafkaSettings) -> ClientConfig {
    let mut config = common(settings);
    // A broker answers at once when it has records; an empty fetch would hold up partitions that were just added.
    config.set("fetch.wait.max.ms", "10");
    // By default a fetch is put off for a second whenever enough is queued.
    config.set("fetch.queue.backoff.ms", "2").set("queued.min.messages", "100000");
    config.set("statistics.interval.ms", "5000");
    let mut config = with_properties(config, settings);
    config.set("group.id", &settings.group);
    config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    config.set("auto.offset.reset", "error").set("isolation.level", "read_committed");
    config.set("enable.partition.eof", "false").set("allow.auto.create.topics", "false");
    config
}

/// The configuration of the one producer.
pub(super) fn producer(settings: &KafkaSettings) -> ClientConfig {
    let mut config = common(settings);
    config.set("linger.ms", "2");
    let mut config = with_properties(config, settings);
    config.set("enable.idempotence", "true").set("acks", "all");
    config.set("partitioner", "murmur2_random").set("message.timeout.ms", "0");
    // Each shard's end has its own bound; the bound of the whole must never be the narrower one.
    config.set("queue.buffering.max.messages", "0").set("queue.buffering.max.kbytes", "2097151");
    config
}

/// The configuration of a client that only asks about topics.
pub(super) fn admin(settings: &KafkaSettings) -> ClientConfig {
    let mut config = with_properties(common(settings), settings);
    config.set("allow.auto.create.topics", "false").set_log_level(RDKafkaLogLevel::Critical);
    config
}

/// A line of librdkafka's own log.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, said: &str) {
    // Properties go to both kinds of client; each takes those that concern it.
    if facility == "CONFWARN" {
        debug!(facility, said, "librdkafka");
        return;
    }
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            error!(facility, said, "librdkafka");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => warn!(facility, said, "librdkafka"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => info!(facility, said, "librdkafka"),
        RDKafkaLogLevel::Debug => debug!(facility, said, "librdkafka"),
    }
}

/// The context of the consumer, which records its statistics.
pub(super) struct ConsumerEvents {
    metrics: Arc<Metrics>,
    /// The error of the last commit to the group, so that a lasting failure is logged once.
    commit: Mutex<Option<KafkaError>>,
}

impl ConsumerEvents {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, commit: Mutex::new(None) }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

impl ClientContext for ConsumerEvents {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, said: &str) {
        log(level, facility, said);
    }

    fn stats(&self, statistics: Statistics) {
        for topic in statistics.topics.values() {
            for partition in topic.partitions.values().filter(|partition| partition.fetch_state == "active") {
                // Below 0: not known yet.
                if let Ok(lag) = u64::try_from(partition.consumer_lag) {
                    self.metrics.set_kafka_lag(&topic.topic, partition.partition, lag);
                }
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "kafka client");
    }
}

impl ConsumerContext for ConsumerEvents {
    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        let mut last = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => *last = None,
            Err(error) if last.as_ref() == Some(&error) => {}
            Err(error) => {
                warn!(%error, "positions cannot be committed to the group; only lag tools miss them");
                *last = Some(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_overrule_what_is_only_a_habit() {
        let properties = ["linger.ms=50", "fetch.wait.max.ms=100", "isolation.level=read_uncommitted", "acks=1"];
        let settings = KafkaSettings { properties: properties.map(str::to_owned).to_vec(), ..KafkaSettings::default() };
        let (consumer, producer) = (consumer(&settings), producer(&settings));
        assert_eq!((producer.get("linger.ms"), consumer.get("fetch.wait.max.ms")), (Some("50"), Some("100")));
        assert_eq!((producer.get("acks"), consumer.get("isolation.level")), (Some("all"), Some("read_committed")));
    }

    #[test]
    fn a_refused_client_tells_no_secret() {
        let refused = |error| KafkaFailure::refused(error).to_string();
        let settings = KafkaSettings {
            security: "ssl".to_owned(),
            properties: vec!["ssl.key.password=hunter2\0".to_owned(), "no.such.property=1".to_owned()],
            ..KafkaSettings::default()
        };
        let secret = ClientConfig::new().set("ssl.key.pem", "hunter2").create_native_config().err().map(refused);
        assert!(secret.is_none_or(|said| !said.contains("hunter2")));
        let plain = KafkaSettings { properties: settings.properties[1..].to_vec(), ..KafkaSettings::default() };
        let said = consumer(&plain).create_native_config().err().map(refused).unwrap();
        assert!(said.contains("no.such.property"), "{said}");
    }
}
