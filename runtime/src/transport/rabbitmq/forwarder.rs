//! Moves the messages of foreign publishers from an intake's queues to the streams.
//! In: deliveries of a queue, in its order. Out: messages in the streams, in that order; then, and only then,
//! acknowledgements.
//!
//! Every process has these tasks, and RabbitMQ lets one consumer of a queue work at a time. One that dies between a
//! confirm and an acknowledgement leaves messages that the next one moves again: the inbox drops them by their ids.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use lapin::options::BasicAckOptions;
use lapin::types::FieldTable;
use lapin::{Acker, Consumer};
use tokio::task::JoinSet;
use tracing::{error, warn};

use super::client::{Client, Declared};
use super::event::Publishing;
use super::forwarded::Rules;
use super::publisher::{ConfirmingPublisher, Fate, Returned};
use super::{RabbitmqFailure, topology};
use crate::clock::{Dice, sleep};
use crate::metrics::{IntakeMetrics, IntakeOutcome, Metrics};
use crate::settings::RabbitmqSettings;
use crate::transport::again::pause_after;

/// The tasks of all intakes. When dropped, they end.
pub(super) struct Forwarders {
    _tasks: JoinSet<()>,
}

impl Forwarders {
    /// Starts two forwarders for each intake: one for its queue, one for messages that RabbitMQ dead-letters.
    pub(super) fn start(
        settings: &RabbitmqSettings,
        shards: u32,
        declared: &Arc<Declared>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, RabbitmqFailure> {
        let mut tasks = JoinSet::new();
        for name in &settings.intakes {
            for dead in [false, true] {
                let queue = if dead { topology::dead(name) } else { topology::intake(name) };
                let rules = Rules {
                    exchange: name.as_str().into(),
                    shards,
                    key_header: settings.key_header.clone(),
                    without_id: settings.without_id,
                    dead,
                };
                // A connection of its own: a message that no client can read costs the others nothing.
                let client = Client::new(settings, shards, "intake", declared)?;
                let counts = metrics.intake(&queue);
                tasks.spawn(supervise(Forwarder { client, queue, rules, counts }));
            }
        }
        Ok(Self { _tasks: tasks })
    }
}

/// Runs a forwarder, and runs it again if it panics: nobody else would notice.
async fn supervise(forwarder: Forwarder) {
    loop {
        if AssertUnwindSafe(forwarder.run()).catch_unwind().await.is_err() {
            error!(queue = forwarder.queue, "the forwarder of an intake panicked, and begins again");
            sleep(pause_after(3)).await;
        }
    }
}

/// Moves the messages of one queue.
struct Forwarder {
    client: Client,
    queue: String,
    rules: Rules,
    counts: IntakeMetrics,
}

/// A message that is not acknowledged yet.
struct HeldMessage {
    acker: Acker,
    publishing: Publishing,
    outcome: IntakeOutcome,
    settled: bool,
}

impl Forwarder {
    async fn run(&self) {
        let mut failed = 0_u32;
        loop {
            // The end of the connection, whatever its cause, counts as a delivery of all messages in hand: after that
            // one at a time is, until as many have passed.
            let careful = failed > 0;
            match self.consume(careful).await {
                Ok(()) => failed = 0,
                Err(reason) => {
                    warn!(queue = self.queue, %reason, "an intake cannot be read, trying again");
                    failed = failed.saturating_add(1);
                    sleep(pause_after(failed)).await;
                }
            }
        }
    }

    /// Moves until the connection breaks; a careful one, until as many messages have passed as it would otherwise have
    /// in hand.
    async fn consume(&self, careful: bool) -> Result<(), RabbitmqFailure> {
        let most = usize::from(self.client.settings.intake_prefetch);
        let in_hand = if careful { 1 } else { self.client.settings.intake_prefetch };
        let (channel, mut consumer) = self.client.consume(&self.queue, in_hand, FieldTable::default()).await?;
        let mut passed = 0;
        let mut held = VecDeque::new();
        loop {
            match self.publish(&mut consumer, &mut held, &mut passed, careful.then_some(most)).await? {
                Forwarding::Passed => return Ok(()),
                // The consumer stays, and the messages that it holds: only a lost connection counts as a failed
                // delivery.
                Forwarding::Failed(reason) => {
                    warn!(queue = self.queue, %reason, "messages of an intake cannot be published, trying again");
                    held.iter_mut().for_each(|held: &mut HeldMessage| held.settled = false);
                    sleep(pause_after(3)).await;
                    // Another forwarder holds the messages by now.
                    if !channel.status().connected() {
                        return Err(RabbitmqFailure::Ended);
                    }
                }
            }
        }
    }

    /// Publishes messages that are held and that come, by one channel; the error says that the consumer is gone.
    async fn publish(
        &self,
        consumer: &mut Consumer,
        held: &mut VecDeque<HeldMessage>,
        passed: &mut usize,
        most: Option<usize>,
    ) -> Result<Forwarding, RabbitmqFailure> {
        let mut publisher = match ConfirmingPublisher::open(&self.client, Returned::Again).await {
            Ok(publisher) => publisher,
            Err(reason) => return Ok(Forwarding::Failed(reason)),
        };
        // Tags number the messages given to this channel: the first of them is the first that is held.
        let (mut first, mut next, mut dice) = (0_u64, 0_u64, Dice::from_system());
        for held in held.iter() {
            publisher.publish(next, held.publishing.clone());
            next += 1;
        }
        loop {
            tokio::select! {
                settled = publisher.settled() => {
                    let settled = match settled {
                        Ok(settled) => settled,
                        Err(reason) => return Ok(Forwarding::Failed(reason)),
                    };
                    settle(held, first, settled);
                    let done = self.acknowledge(held).await?;
                    first += done as u64;
                    *passed += done;
                    if most.is_some_and(|most| *passed >= most) && held.is_empty() {
                        return Ok(Forwarding::Passed);
                    }
                }
                delivery = consumer.next() => {
                    let delivery = delivery.ok_or(RabbitmqFailure::Ended)??;
                    let (publishing, outcome) = self.rules.publishing(&delivery, &mut dice);
                    publisher.publish(next, publishing.clone());
                    next += 1;
                    held.push_back(HeldMessage { acker: delivery.acker, publishing, outcome, settled: false });
                }
            }
        }
    }

    /// Acknowledges the messages that lie in the streams without a gap; returns their number.
    async fn acknowledge(&self, held: &mut VecDeque<HeldMessage>) -> Result<usize, RabbitmqFailure> {
        let done = held.iter().take_while(|held| held.settled).count();
        let mut last = None;
        for held in held.drain(..done) {
            self.counts.record(held.outcome);
            if held.outcome != IntakeOutcome::Moved {
                warn!(queue = self.queue, "a message of an intake becomes a dead letter");
            }
            last = Some(held.acker);
        }
        if let Some(acker) = last {
            // False: the channel by which they came is gone, and they will come again.
            if !acker.ack(BasicAckOptions { multiple: true }).await? {
                return Err(RabbitmqFailure::Ended);
            }
        }
        Ok(done)
    }
}

/// Marks the messages that lie in the streams.
fn settle(held: &mut VecDeque<HeldMessage>, first: u64, settled: Vec<(u64, Fate)>) {
    for (tag, _) in settled.into_iter().filter(|(_, settled)| settled.is_ok()) {
        let at = tag.checked_sub(first).and_then(|at| usize::try_from(at).ok());
        if let Some(held) = at.and_then(|at| held.get_mut(at)) {
            held.settled = true;
        }
    }
}

/// The reason why one channel's publishing ended.
enum Forwarding {
    /// Enough messages have passed.
    Passed,
    /// The channel is gone; all messages that are held are published again.
    Failed(RabbitmqFailure),
}
