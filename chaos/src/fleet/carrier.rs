//! What carries a fleet's messages: topics of Kafka's, streams of RabbitMQ's, or the store's own log.
//! In: a choice, servers. Out: what workers are told of it, where the load goes, what came out.

use crate::ChaosError;
use crate::fleet::beside::Beside;
use crate::fleet::faults::On;
use crate::fleet::load::Way;
use crate::fleet::servers::Servers;
use crate::fleet::streams::Streams;
use crate::fleet::topics::Topics;
use crate::proxy::Proxy;

/// What a scenario has for itself.
#[derive(Clone, Debug)]
pub enum Carrier {
    /// Of Kafka's.
    Topics(Topics),
    /// Of RabbitMQ's.
    Streams(Streams),
    /// Of the store's: there is nothing to be made.
    Log,
}

/// How a worker reaches the server.
#[derive(Debug)]
pub struct Line {
    /// `host:port`.
    pub address: String,
    /// What listens there, unless that is the server itself.
    pub proxy: Option<Proxy>,
}

impl Line {
    async fn proxied(listen: &str, target: &str) -> Result<Self, ChaosError> {
        let proxy = Proxy::start(listen, target).await?;
        Ok(Self { address: proxy.address().to_string(), proxy: Some(proxy) })
    }
}

impl Carrier {
    /// Makes what is needed; its names end in `suffix`.
    pub async fn make(on: On, servers: &Servers, suffix: &str) -> Result<Self, ChaosError> {
        Ok(match on {
            On::Kafka => Self::Topics(Topics::make(&servers.broker, suffix).await?),
            On::Rabbitmq => Self::Streams(Streams::make(&servers.broker, suffix).await?),
            On::Postgres => Self::Log,
        })
    }

    /// Removes it.
    pub async fn remove(&self) -> Result<(), ChaosError> {
        match self {
            Self::Topics(topics) => topics.remove().await,
            Self::Streams(streams) => streams.remove().await,
            Self::Log => Ok(()),
        }
    }

    /// The way of worker number `number` to the server; `cut`: whether it will be cut.
    pub async fn line(&self, servers: &Servers, number: usize, cut: bool) -> Result<Line, ChaosError> {
        match self {
            // Kafka tells its clients one address: one worker goes by way of the proxy, the others go straight.
            Self::Topics(_) if cut && number == 0 => {
                let (target, listen) = servers.proxied.as_ref().ok_or_else(|| {
                    ChaosError::Stuck("Kafka has no listener for a proxy: scripts/services restart kafka".to_owned())
                })?;
                Line::proxied(listen, target).await
            }
            // RabbitMQ tells them none.
            Self::Streams(_) => Line::proxied("127.0.0.1:0", &servers.broker).await,
            _ => Ok(Line { address: servers.broker.clone(), proxy: None }),
        }
    }

    /// What the settings of a worker say that reaches the server at `address`.
    pub fn settings(&self, address: &str) -> String {
        match self {
            Self::Topics(topics) => topics.settings(address),
            Self::Streams(streams) => streams.settings(address),
            Self::Log => String::new(),
        }
    }

    /// Where the load goes; nothing where that is the store.
    pub fn way(&self) -> Result<Option<Way>, ChaosError> {
        Ok(match self {
            Self::Topics(topics) => Some(Way::Topic(topics.producer()?)),
            Self::Streams(streams) => Some(Way::Streams(streams.producer())),
            Self::Log => None,
        })
    }

    /// A short queue beside what comes out, with a consumer that stands still at times; only RabbitMQ has such a thing.
    pub(super) async fn beside(&self, seed: u64) -> Result<Option<Beside>, ChaosError> {
        let Self::Streams(streams) = self else { return Ok(None) };
        Ok(Some(Beside::start(&streams.address, &streams.output, seed).await?))
    }

    /// The values of everything that came out, each partition in its order; nothing where that is in the store.
    pub async fn read(&self) -> Result<Option<Vec<Vec<Vec<u8>>>>, ChaosError> {
        Ok(match self {
            Self::Topics(topics) => Some(topics.read(&topics.output).await?),
            Self::Streams(streams) => Some(streams.read(&streams.output).await?),
            Self::Log => None,
        })
    }
}
