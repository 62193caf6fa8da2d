//! Opens the sources and sinks that the settings name.
//! In: settings, the store. Out: the embedded log and the configured brokers, or the reason why one cannot be opened.

use std::sync::Arc;

use super::embedded::EmbeddedLog;
use super::intake::Intake;
#[cfg(feature = "kafka")]
use super::kafka::{KafkaFailure, KafkaSink, KafkaTransport};
#[cfg(feature = "rabbitmq")]
use super::rabbitmq::{RabbitmqFailure, RabbitmqSink, RabbitmqTransport};
use super::{SinkTransport, Transport};
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::store::{self, Store};

/// Sources and sinks of a process.
pub(crate) struct Ends {
    pub(crate) sources: Vec<Arc<dyn Transport>>,
    pub(crate) sinks: Vec<Arc<dyn SinkTransport>>,
}

/// The reason why a source or a sink cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[cfg(feature = "kafka")]
    #[error(transparent)]
    Kafka(#[from] KafkaFailure),
    #[cfg(feature = "rabbitmq")]
    #[error(transparent)]
    Rabbitmq(#[from] RabbitmqFailure),
}

/// The names of the sources and of the sinks that these settings have opened.
pub(crate) fn names(settings: &Settings) -> (Vec<&'static str>, Vec<&'static str>) {
    let mut names = (vec![crate::store::layout::log::NAME], Vec::new());
    names.0.extend(store::is_shared(settings).then_some(super::intake::NAME));
    #[cfg(feature = "kafka")]
    if !settings.kafka.brokers.is_empty() {
        names.0.extend((!settings.kafka.topics.is_empty()).then_some(super::kafka::NAME));
        names.1.push(super::kafka::NAME);
    }
    #[cfg(feature = "rabbitmq")]
    if !settings.rabbitmq.addresses.is_empty() {
        names.0.extend((!settings.rabbitmq.streams.is_empty()).then_some(super::rabbitmq::NAME));
        names.1.push(super::rabbitmq::NAME);
    }
    names
}

/// Opens the sources and sinks. The embedded log is always a source, and so is the intake of a store that has one; a
/// broker is a source when topics or streams are named, and a sink when its addresses are.
pub(crate) fn open(settings: &Settings, store: &Arc<dyn Store>, metrics: &Arc<Metrics>) -> Result<Ends, OpenError> {
    let mut sources: Vec<Arc<dyn Transport>> = vec![Arc::new(EmbeddedLog::new(Arc::clone(store), settings.log.poll))];
    if store.has_intake() {
        let bytes_max = settings.ingress.message_bytes_max;
        sources.push(Arc::new(Intake::new(Arc::clone(store), settings.log.poll, bytes_max)));
    }
    let mut ends = Ends { sources, sinks: Vec::new() };
    kafka(settings, metrics, &mut ends)?;
    rabbitmq(settings, metrics, &mut ends)?;
    Ok(ends)
}

#[cfg(feature = "kafka")]
fn kafka(settings: &Settings, metrics: &Arc<Metrics>, ends: &mut Ends) -> Result<(), OpenError> {
    let kafka = &settings.kafka;
    if !kafka.brokers.is_empty() {
        if !kafka.topics.is_empty() {
            ends.sources.push(KafkaTransport::new(kafka, settings.ownership.shards, metrics)?);
        }
        ends.sinks.push(KafkaSink::new(kafka)?);
    }
    Ok(())
}

/// Does nothing: settings that ask for Kafka are refused where they are checked.
#[cfg(not(feature = "kafka"))]
fn kafka(_: &Settings, _: &Arc<Metrics>, _: &mut Ends) -> Result<(), OpenError> {
    Ok(())
}

#[cfg(feature = "rabbitmq")]
fn rabbitmq(settings: &Settings, metrics: &Arc<Metrics>, ends: &mut Ends) -> Result<(), OpenError> {
    let (rabbitmq, shards) = (&settings.rabbitmq, settings.ownership.shards);
    if !rabbitmq.addresses.is_empty() {
        if !rabbitmq.streams.is_empty() {
            ends.sources.push(RabbitmqTransport::new(&settings.rabbitmq_in_memory(), shards, metrics)?);
        }
        ends.sinks.push(RabbitmqSink::new(rabbitmq, shards)?);
    }
    Ok(())
}

/// Does nothing: settings that ask for RabbitMQ are refused where they are checked.
#[cfg(not(feature = "rabbitmq"))]
fn rabbitmq(_: &Settings, _: &Arc<Metrics>, _: &mut Ends) -> Result<(), OpenError> {
    Ok(())
}
