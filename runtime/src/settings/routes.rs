//! Routes: from sources to services, and from services to sinks.
//! In: `[[bind]]` and `[[publish]]` sections. Out: plain values.

use serde::{Deserialize, Serialize};

/// A route: messages of `source` whose type matches `kind` go to `service`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// The transport that they come from; `embedded` for the events of this store's own handlers.
    #[serde(default = "embedded")]
    pub source: String,
    /// Their CloudEvents type; `*` at the end matches any rest.
    #[serde(rename = "type")]
    pub kind: String,
    /// The service that handles them.
    pub service: String,
    /// The origin of their key.
    #[serde(default)]
    pub key: KeyFrom,
    /// The scope in which their id is unique.
    #[serde(default)]
    pub id: IdWithin,
}

fn embedded() -> String {
    "embedded".to_owned()
}

/// The origin of a bound message's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyFrom {
    /// The record's own key; the payload is not decoded to route it.
    #[default]
    Record,
    /// The service's `Handler::key`.
    Handler,
}

/// The scope in which the id of a bound message is unique: a second message with it there is a repeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdWithin {
    /// The key and the service: the same id under the same key is the same message, whoever sent it.
    #[default]
    Key,
    /// The CloudEvents `source` as well.
    Source,
}

/// A route: events of `service` whose type matches `kind` go to `topic` of `sink`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// The service that emits them; `*` for all.
    #[serde(default = "any")]
    pub service: String,
    /// Their CloudEvents type; `*` at the end matches any rest.
    #[serde(rename = "type")]
    pub kind: String,
    /// The sink that they go to, by name.
    pub sink: String,
    /// The place in the sink: a Kafka topic.
    pub topic: String,
}

fn any() -> String {
    "*".to_owned()
}
