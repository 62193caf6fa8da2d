//! RabbitMQ's facts about the streams, queues and exchanges that are used. Nothing is judged here, nothing is declared.
//! In: the settings, exchanges. Out: plain values.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::RabbitmqFailure;
use super::client::{self, Client};
use super::topology::{self, stream};
use crate::settings::RabbitmqSettings;
use crate::settings::topic_of;

/// The broker, and its objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RabbitmqHealth {
    /// The server's name and version, `RabbitMQ 3.10.8`; empty if the connection is made by TLS.
    pub version: String,
    /// Streams and queues by name; `None` for one that does not exist.
    pub queues: BTreeMap<String, Option<QueueHealth>>,
    /// Exchanges by name, and whether each exists.
    pub exchanges: BTreeMap<String, bool>,
}

/// A stream, or a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueHealth {
    /// The number of messages that it holds; for a stream about as many as its retention keeps.
    pub messages: u32,
    /// The number of consumers.
    pub consumers: u32,
}

/// Asks about all streams of `shards` shards, the queues of the intakes, and `exchanges`.
pub async fn look(
    settings: &RabbitmqSettings,
    shards: u32,
    exchanges: Vec<String>,
) -> Result<RabbitmqHealth, RabbitmqFailure> {
    let settings = RabbitmqSettings { declare: false, ..settings.clone() };
    let client = Client::new(&settings, shards, "doctor", &Arc::default())?;
    let mut health = RabbitmqHealth { version: client::version(&settings).await?, ..RabbitmqHealth::default() };
    let names = settings.streams.iter().map(|entry| topic_of(entry));
    let mut queues: Vec<String> = names.flat_map(|name| (0..shards).map(move |no| stream(name, no))).collect();
    for name in &settings.intakes {
        queues.extend([topology::intake(name), topology::dead(name)]);
    }
    for name in queues {
        let found = there(topology::look(&client.channel().await?, &name).await)?;
        let found =
            found.map(|queue| QueueHealth { messages: queue.message_count(), consumers: queue.consumer_count() });
        health.queues.insert(name, found);
    }
    for name in exchanges {
        let found = there(topology::look_for_exchange(&client.channel().await?, &name).await)?;
        health.exchanges.insert(name, found.is_some());
    }
    Ok(health)
}

/// The answer, or `None` if the object does not exist.
fn there<T>(answer: Result<T, RabbitmqFailure>) -> Result<Option<T>, RabbitmqFailure> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(reason) if reason.is_missing() => Ok(None),
        Err(reason) => Err(reason),
    }
}
