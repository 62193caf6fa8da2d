//! The objects that are declared, and their names: the layout of RabbitMQ's own super streams, and an intake beside it.
//! In: the settings. Out: names (pure); exchanges, streams, queues and bindings that exist.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind, Queue};
use tokio::time::timeout;
use tracing::warn;

use super::RabbitmqFailure;
use crate::settings::{RabbitmqSettings, topic_of};

/// Deliveries of an intake's message after which RabbitMQ gives it to the dead-letter exchange. Perkey counts attempts
/// itself: this bounds the cost of a message that no client can even read. (4.0 and later have a limit of 20 if none is
/// set.)
const DELIVERIES_MAX: i32 = 100;
/// The limit for dead letters of an intake: beyond it they would be lost, so it is out of reach. (-1, which says so
/// from 4.0 on, makes 3.10 drop a message at its first return.)
const DEAD_DELIVERIES_MAX: i32 = i32::MAX;

/// The stream of a partition.
pub(super) fn stream(name: &str, partition: u32) -> String {
    format!("{name}-{partition}")
}

/// The exchange and the queue for foreign publishers.
pub(super) fn intake(name: &str) -> String {
    format!("{name}.intake")
}

/// The dead-letter exchange of an intake, and its queue.
pub(super) fn dead(name: &str) -> String {
    format!("{name}.intake.dead")
}

/// The name of a partition in positions.
pub(super) fn origin(entry: &str, partition: u32) -> String {
    format!("{entry}/{partition}")
}

/// Declares all objects that the settings name. Those that exist already, with the same arguments, are left as they
/// are.
pub(super) async fn declare(
    connection: &Connection,
    settings: &RabbitmqSettings,
    shards: u32,
) -> Result<(), RabbitmqFailure> {
    let mut channel = within(connection.create_channel()).await?;
    for name in settings.streams.iter().map(|entry| topic_of(entry)) {
        exchange(&channel, name, ExchangeKind::Direct).await?;
        for partition in 0..shards {
            let queue = stream(name, partition);
            if let Err(reason) = declare_queue(&channel, &queue, stream_arguments(settings)).await {
                // A retention other than the settings' does not change the records that are read: the object is used as
                // it is.
                if !reason.is_other_retention() {
                    return Err(reason);
                }
                warn!(queue, %reason, "a stream has another retention than rabbitmq.max_age and rabbitmq.max_bytes");
                channel = within(connection.create_channel()).await?;
            }
            bind(&channel, &queue, name, &partition.to_string()).await?;
        }
    }
    for name in &settings.intakes {
        let (intake, dead) = (intake(name), dead(name));
        exchange(&channel, &dead, ExchangeKind::Fanout).await?;
        declare_queue(&channel, &dead, quorum_arguments(None)).await?;
        bind(&channel, &dead, &dead, "").await?;
        exchange(&channel, &intake, ExchangeKind::Topic).await?;
        declare_queue(&channel, &intake, quorum_arguments(Some(&dead))).await?;
        bind(&channel, &intake, &intake, "#").await?;
    }
    within(channel.close(200, "done".into())).await
}

/// The broker's facts about a queue; the error is the broker's when it does not exist. It ends its channel then.
pub(super) async fn look(channel: &Channel, queue: &str) -> Result<Queue, RabbitmqFailure> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    within(channel.queue_declare(queue.into(), options, FieldTable::default())).await
}

/// Checks that an exchange exists; the error is the broker's when it does not. It ends its channel then.
pub(super) async fn look_for_exchange(channel: &Channel, name: &str) -> Result<(), RabbitmqFailure> {
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    // Its kind is not compared.
    within(channel.exchange_declare(name.into(), ExchangeKind::Direct, options, FieldTable::default())).await
}

async fn exchange(channel: &Channel, name: &str, kind: ExchangeKind) -> Result<(), RabbitmqFailure> {
    let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    within(channel.exchange_declare(name.into(), kind, options, FieldTable::default()))
        .await
        .map_err(RabbitmqFailure::explained)
}

async fn declare_queue(channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), RabbitmqFailure> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    within(channel.queue_declare(name.into(), options, arguments)).await.map(|_| ()).map_err(RabbitmqFailure::explained)
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), RabbitmqFailure> {
    let options = QueueBindOptions::default();
    within(channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default())).await
}

fn stream_arguments(settings: &RabbitmqSettings) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("stream"));
    if !settings.max_age.is_zero() {
        arguments.insert("x-max-age".into(), text(&format!("{}s", settings.max_age.as_secs())));
    }
    if settings.max_bytes > 0 {
        let bytes = i64::try_from(settings.max_bytes).unwrap_or(i64::MAX);
        arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(bytes));
    }
    arguments
}

/// The arguments of a queue with one active consumer at a time, in order. Its dead letters are kept until their own
/// queue has them.
fn quorum_arguments(dead: Option<&str>) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("quorum"));
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    let limit = if dead.is_some() { DELIVERIES_MAX } else { DEAD_DELIVERIES_MAX };
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(limit));
    if let Some(dead) = dead {
        arguments.insert("x-dead-letter-exchange".into(), text(dead));
        arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
        arguments.insert("x-overflow".into(), text("reject-publish"));
    }
    arguments
}

/// A value of an argument or a header.
pub(super) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// Waits for an answer, but not for ever.
pub(super) async fn within<T>(answer: impl Future<Output = lapin::Result<T>>) -> Result<T, RabbitmqFailure> {
    match timeout(ANSWER, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RabbitmqFailure::Unanswered(ANSWER)),
    }
}

/// The time for a node to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
