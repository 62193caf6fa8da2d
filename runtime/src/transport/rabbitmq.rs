//! RabbitMQ: streams as a source that the owners of their shards read, exchanges as a sink, an intake for foreign
//! publishers.
//! In: deliveries; events. Out: deliveries, each stream's in order; messages in the order of the commits, confirmed.
//!
//! `docs/rabbitmq.md` says how deliveries and messages correspond.

mod ahead;
mod client;
mod error;
mod event;
mod forwarded;
mod forwarder;
pub mod health;
mod publisher;
mod record;
mod sink;
mod source;
mod start;
mod topology;

use std::sync::Arc;

use futures_util::future::BoxFuture;

use self::client::{Client, Declared};
pub use self::error::RabbitmqFailure;
use self::forwarder::Forwarders;
pub use self::sink::RabbitmqSink;
use self::source::RabbitmqSource;
use super::{Source, SourceError, Transport};
use crate::message::{Positions, ShardNo};
use crate::metrics::Metrics;
use crate::settings::RabbitmqSettings;

/// The transport's name in settings, positions and metrics.
pub const NAME: &str = "rabbitmq";

/// Streams of RabbitMQ, as a transport: a connection for each shard that is read here, and one for each queue of an
/// intake.
pub struct RabbitmqTransport {
    settings: RabbitmqSettings,
    shards: u32,
    declared: Arc<Declared>,
    _forwarders: Forwarders,
}

impl RabbitmqTransport {
    /// The transport, and the forwarders of messages from the intakes to their streams; for use within a runtime of tokio.
    /// The nodes need not be there yet; unusable settings are an error.
    pub fn new(settings: &RabbitmqSettings, shards: u32, metrics: &Arc<Metrics>) -> Result<Arc<Self>, RabbitmqFailure> {
        // Files that cannot be read are reported now, not when the first shard is opened.
        client::tls(settings)?;
        let declared = Arc::default();
        let forwarders = Forwarders::start(settings, shards, &declared, metrics)?;
        Ok(Arc::new(Self { settings: settings.clone(), shards, declared, _forwarders: forwarders }))
    }
}

impl Transport for RabbitmqTransport {
    fn name(&self) -> &str {
        NAME
    }

    fn open(&self, shard: ShardNo, from: Positions) -> BoxFuture<'_, Result<Box<dyn Source>, SourceError>> {
        // A connection of its own: a message that the client cannot read ends all users of the same connection.
        let opened = Client::new(&self.settings, self.shards, "source", &self.declared);
        let opened = match opened {
            Ok(client) => Ok(Box::new(RabbitmqSource::new(Arc::new(client), shard, from)) as Box<dyn Source>),
            Err(failure) => Err(SourceError::Unavailable { name: NAME.to_owned(), reason: failure.to_string() }),
        };
        Box::pin(std::future::ready(opened))
    }
}
