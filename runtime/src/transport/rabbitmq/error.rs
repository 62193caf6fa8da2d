//! Reasons why RabbitMQ cannot be used, for whoever reads the log.
//! In: errors of the client library and of the system. Out: one closed enum, without the password; what a broker's
//! refusal is about.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use lapin::ErrorKind;

/// The broker's code for an object that may not be used.
const ACCESS_REFUSED: u16 = 403;
/// The broker's code for an object that does not exist.
const NOT_FOUND: u16 = 404;
/// The broker's code for an object that is there with other arguments.
const PRECONDITION_FAILED: u16 = 406;

/// The reason why a connection or a channel cannot be had, or broke.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RabbitmqFailure {
    /// A file that the settings name cannot be read.
    #[error("rabbitmq.{setting}: {file} cannot be read: {error}")]
    File {
        /// The setting.
        setting: &'static str,
        /// The file.
        file: String,
        /// The system's error.
        error: Arc<std::io::Error>,
    },
    /// The file of certificates is not text.
    #[error("rabbitmq.ca_file: {0} is not a PEM file")]
    NotPem(String),
    /// None of the nodes could be used.
    #[error("{}", listed(.0))]
    Nodes(Vec<(String, Self)>),
    /// The client, or the broker by it.
    #[error(transparent)]
    Client(#[from] lapin::Error),
    /// The line to a node broke.
    #[error("{0}")]
    Line(Arc<std::io::Error>),
    /// A node does not answer.
    #[error("no answer within {0:?}")]
    Unanswered(Duration),
    /// A node takes connections and does not greet.
    #[error("it says nothing within {0:?}")]
    Silent(Duration),
    /// An object of the same name is of another kind.
    #[error(
        "{0}. It is there with other arguments than docs/rabbitmq.md says: remove it, or declare all of it yourself and set \
         rabbitmq.declare = false"
    )]
    Unlike(lapin::Error),
    /// A consumer or a channel ended without an error of its own.
    #[error("the broker ended it: the queue was deleted, or its leader is gone")]
    Ended,
    /// No channel was given by a broker that is short of memory or disk.
    #[error("{0}: the broker takes nothing for now")]
    Blocked(Box<Self>),
    /// A confirm did not come, and never will.
    #[error("the first message to a stream or an exchange was not confirmed within {0:?}")]
    Unconfirmed(Duration),
}

impl RabbitmqFailure {
    /// Returns whether the broker says that the object does not exist.
    pub(super) fn is_missing(&self) -> bool {
        self.code() == Some(NOT_FOUND)
    }

    /// Returns whether the broker says that the object may not be used.
    pub(super) fn is_refused(&self) -> bool {
        self.code() == Some(ACCESS_REFUSED)
    }

    /// Returns whether the broker says that a stream has another retention.
    pub(super) fn is_other_retention(&self) -> bool {
        matches!(self, Self::Unlike(error) if error.to_string().contains("inequivalent arg 'x-max-"))
    }

    /// The failure of a declaration, with advice where an object of another kind has the same name.
    pub(super) fn explained(self) -> Self {
        match self {
            Self::Client(error) if code(&error) == Some(PRECONDITION_FAILED) => Self::Unlike(error),
            other => other,
        }
    }

    fn code(&self) -> Option<u16> {
        match self {
            Self::Client(error) | Self::Unlike(error) => code(error),
            _ => None,
        }
    }
}

/// The code of a broker's error.
fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(said) => Some(said.get_id()),
        _ => None,
    }
}

fn listed(nodes: &[(String, RabbitmqFailure)]) -> String {
    let mut said = String::new();
    for (node, failure) in nodes {
        let between = if said.is_empty() { "" } else { "; " };
        // Text is always writable.
        write!(said, "{between}{node}: {failure}").ok();
    }
    said
}
