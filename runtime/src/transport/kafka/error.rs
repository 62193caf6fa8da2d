//! Reasons why Kafka cannot be used, for whoever reads the log.
//! In: errors of the client library and of the system. Out: one closed enum, without any value that may be secret.

use rdkafka::error::KafkaError;

/// The reason why a client of Kafka cannot be made, or was not answered.
#[derive(Debug, thiserror::Error)]
pub enum KafkaFailure {
    /// A file that the settings name cannot be read: librdkafka would only say that OpenSSL failed.
    #[error("{setting}: {file} cannot be read: {error}")]
    File {
        /// The setting.
        setting: &'static str,
        /// The file.
        file: String,
        /// The system's error.
        error: std::io::Error,
    },
    /// A property cannot be used; its value may be secret, and so may what was said of it.
    #[error("kafka: {0} cannot be used")]
    Secret(String),
    /// A property cannot be used.
    #[error("kafka: {property}: {said}")]
    Property {
        /// The property, by librdkafka's name.
        property: String,
        /// The library's reason.
        said: String,
    },
    /// The client cannot be made.
    #[error("kafka: {0}")]
    Client(KafkaError),
    /// A thread of the consumer cannot be started.
    #[error("the thread {thread} cannot be started: {error}")]
    Thread {
        /// Its name.
        thread: &'static str,
        /// The system's error.
        error: std::io::Error,
    },
    /// A thread of the consumer is gone.
    #[error("a thread of the consumer has ended; the next opening starts it anew")]
    Ended,
    /// The brokers did not answer, or answered with an error.
    #[error("{0}")]
    Unanswered(KafkaError),
    /// The task that asked the brokers broke.
    #[error("{0}")]
    Task(tokio::task::JoinError),
}

impl KafkaFailure {
    /// The reason why a client cannot be made.
    pub(super) fn refused(error: KafkaError) -> Self {
        match error {
            KafkaError::ClientConfig(_, said, property, _) => {
                let secret = ["password", "secret", "pem", "token"].iter().any(|part| property.contains(part));
                if secret { Self::Secret(property) } else { Self::Property { property, said } }
            }
            other => Self::Client(other),
        }
    }
}
