//! The carrier of a fleet's messages: topics of Kafka, streams of RabbitMQ, or the store's own log.
//! In: a choice, servers. Out: the settings of workers, the target of the load, the records that came out.

use crate::ChaosError;
use crate::fleet::beside::Beside;
use crate::fleet::faults::On;
use crate::fleet::load::Way;
use crate::fleet::servers::Servers;
use crate::fleet::streams::Streams;
use crate::fleet::topics::Topics;
use crate::proxy::Proxy;

/// The topics or streams that a scenario has for itself.
#[derive(Clone, Debug)]
pub enum Carrier {
    /// Topics of Kafka.
    Topics(Topics),
    /// Streams of RabbitMQ.
    Streams(Streams),
    /// The store's log: nothing needs to be made.
    Log,
}

/// A worker's connection to the server.
#[derive(Debug)]
pub struct Line {
    /// `host:port`.
    pub address: String,
    /// The proxy that listens there, unless it is the server itself.
    pub proxy: Option<Proxy>,
}

impl Line {
    async fn proxied(listen: &str, target: &str) -> Result<Self, ChaosError> {
        let proxy = Proxy::start(listen, target).await?;
        Ok(Self { address: proxy.address().to_string(), proxy: Some(proxy) })
    }
}

impl Carrier {
    /// Makes the topics or streams; their names end in `suffix`.
    pub async fn make(on: On, servers: &Servers, suffix: &str) -> Result<Self, ChaosError> {
        Ok(match on {
            On::Kafka => Self::Topics(Topics::make(&servers.broker, suffix).await?),
            On::Rabbitmq => Self::Streams(Streams::make(&servers.broker, suffix).await?),
            On::Postgres => Self::Log,
        })
    }

    /// Removes the topics or streams.
    pub async fn remove(&self) -> Result<(), ChaosError> {
        match self {
            Self::Topics(topics) => topics.remove().await,
            Self::Streams(streams) => streams.remove().await,
            Self::Log => Ok(()),
        }
    }

    /// The connection of worker number `number` to the server; `cut` says whether it will be cut.
    pub async fn line(&self, servers: &Servers, number: usize, cut: bool) -> Result<Line, ChaosError> {
        match self {
            // Kafka tells its clients one address: one worker goes through the proxy, the others connect directly.
            Self::Topics(_) if cut && number == 0 => {
                let (target, listen) = servers.proxied.as_ref().ok_or_else(|| {
                    ChaosError::Stuck("Kafka has no listener for a proxy: scripts/services restart kafka".to_owned())
                })?;
                Line::proxied(listen, target).await
            }
            // RabbitMQ does not tell its clients an address.
            Self::Streams(_) => Line::proxied("127.0.0.1:0", &servers.broker).await,
            _ => Ok(Line { address: servers.broker.clone(), proxy: None }),
        }
    }

    /// The settings of a worker that reaches the server at `address`.
    pub fn settings(&self, address: &str) -> String {
        match self {
            Self::Topics(topics) => topics.settings(address),
            Self::Streams(streams) => streams.settings(address),
            Self::Log => String::new(),
        }
    }

    /// The target of the load; `None` if that is the store.
    pub fn way(&self) -> Result<Option<Way>, ChaosError> {
        Ok(match self {
            Self::Topics(topics) => Some(Way::Topic(topics.producer()?)),
            Self::Streams(streams) => Some(Way::Streams(streams.producer())),
            Self::Log => None,
        })
    }

    /// A short queue beside the output, with a consumer that pauses at times; only RabbitMQ has such a thing.
    pub(super) async fn beside(&self, seed: u64) -> Result<Option<Beside>, ChaosError> {
        let Self::Streams(streams) = self else { return Ok(None) };
        Ok(Some(Beside::start(&streams.address, &streams.output, seed).await?))
    }

    /// The values of all records in the output, each partition in its order; `None` if the output is in the store.
    pub async fn read(&self) -> Result<Option<Vec<Vec<Vec<u8>>>>, ChaosError> {
        Ok(match self {
            Self::Topics(topics) => Some(topics.read(&topics.output).await?),
            Self::Streams(streams) => Some(streams.read(&streams.output).await?),
            Self::Log => None,
        })
    }
}
