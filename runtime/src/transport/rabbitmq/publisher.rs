//! A channel that publishes with confirms, knows which of its messages came back, and tries nacked messages again.
//! In: messages, each with a tag. Out: each tag once: taken, or returned with the reason; or the end of the channel.
//!
//! The client (lapin 4) hands a returned message to whichever confirm ends next, and RabbitMQ confirms many at once. So
//! a confirm alone says nothing: returned messages are matched by their names, and a tag is settled when an answer of
//! the same channel has come behind its confirm. RabbitMQ sends the return before the confirm, and the client takes
//! what comes in order: by then every return that belongs to a confirm before that answer has been seen.
//!
//! A nack is not final: a queue is full, or has no leader for the moment. [`Pace`] decides which message may be sent
//! when.

use std::collections::HashMap;
use std::mem::take;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tracing::warn;

use super::RabbitmqFailure;
use super::client::{Blocked, Client};
use super::event::Publishing;
use super::topology::within;
use crate::clock::{Dice, Stopwatch, sleep};
use crate::transport::attributes::absorb;
use crate::transport::pace::{Pace, PacedMessage};

/// The fate of a message: the broker has it, or returned it.
pub(super) type Fate = Result<(), CameBack>;

/// The reason why a message came back: no queue takes it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("it came back: {said} (exchange {exchange:?}, routing key {routing_key:?} has no queue bound to it)")]
pub(super) struct CameBack {
    said: ShortString,
    exchange: ShortString,
    routing_key: ShortString,
}

/// The treatment of a message that no queue takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Returned {
    /// Settled: there is no consumer for it.
    Settled,
    /// Tried again, like one that was nacked: there will be a queue.
    Again,
}

/// A message on its way.
struct MessageTicket<T> {
    tag: T,
    name: u64,
    sent: PacedMessage,
    publishing: Publishing,
}

/// A message that is confirmed, while it is not known yet whether it came back.
enum Confirmed<T> {
    /// The message is not sent a second time: the next one of its key may be on its way.
    Done { tag: T, name: u64 },
    /// The message is sent again if it came back.
    Held(Box<MessageTicket<T>>),
}

/// The time after the opening of a channel in which a first message that comes back is sent again: for a moment after
/// its start a broker does not route to streams that are there (seen with 3.10).
const STARTING: Duration = Duration::from_secs(5);
/// The time within which the first message of a way is confirmed; else it never is (seen with 3.10, after the server
/// was killed).
const FIRST_WITHIN: Duration = Duration::from_secs(10);
/// The interval at which nacks are logged.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// An answer under way.
struct AwaitedAnswer<T> {
    answer: BoxFuture<'static, lapin::Result<()>>,
    /// The messages that were confirmed before it was asked for.
    behind: Vec<Confirmed<T>>,
}

/// A channel in confirm mode.
pub(super) struct ConfirmingPublisher<T> {
    channel: Channel,
    pace: Pace<(T, Publishing)>,
    confirms: FuturesUnordered<BoxFuture<'static, (MessageTicket<T>, lapin::Result<Confirmation>)>>,
    /// Messages confirmed since the answer under way was asked for.
    confirmed: Vec<Confirmed<T>>,
    asked: Option<AwaitedAnswer<T>>,
    /// Reasons why messages of a name came back.
    returned: HashMap<u64, Vec<CameBack>>,
    returns: Returned,
    opened: Stopwatch,
    /// The time since an answer came.
    quiet: Stopwatch,
    /// True if messages were nacked since that was reported.
    nacked: bool,
    /// The time since nacks were logged.
    said: Option<Stopwatch>,
    blocked: Blocked,
}

impl<T: Send + 'static> ConfirmingPublisher<T> {
    /// Opens a channel of its own.
    pub(super) async fn open(client: &Client, returns: Returned) -> Result<Self, RabbitmqFailure> {
        let channel = client.channel().await?;
        within(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Self {
            channel,
            pace: Pace::new(Dice::from_system()),
            confirms: FuturesUnordered::new(),
            confirmed: Vec::new(),
            asked: None,
            returned: HashMap::new(),
            returns,
            opened: Stopwatch::start(),
            quiet: Stopwatch::start(),
            nacked: false,
            said: None,
            blocked: client.blocked().clone(),
        })
    }

    /// Hands a message over; [`Self::settled`] tells its fate, and any failure. A broker that has just started may lose
    /// the messages behind one that had to wait for its stream's leader, and confirm them all the same (seen with
    /// 3.10): so nothing follows the first message of a way before that one has arrived.
    pub(super) fn publish(&mut self, tag: T, publishing: Publishing) {
        let (way, key) = (publishing.way(), publishing.key);
        self.pace.push(way, key, (tag, publishing));
    }

    fn send_due(&mut self) {
        for (sent, (tag, publishing)) in self.pace.due(self.opened.elapsed()) {
            if sent.first {
                self.quiet = Stopwatch::start();
            }
            let name = name(&publishing.exchange, &publishing.routing_key, &publishing.properties);
            self.send(MessageTicket { tag, name, sent, publishing });
        }
    }

    fn send(&mut self, ticket: MessageTicket<T>) {
        let channel = self.channel.clone();
        let mut sent = async move {
            let Publishing { exchange, routing_key, properties, payload, .. } = ticket.publishing.clone();
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let confirmation = match channel.basic_publish(exchange, routing_key, options, &payload, properties).await {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            (ticket, confirmation)
        }
        .boxed();
        // Begun at once, so that messages are written in this order; the rest is waiting.
        if let Some((ticket, confirmation)) = (&mut sent).now_or_never() {
            sent = std::future::ready((ticket, confirmation)).boxed();
        }
        self.confirms.push(sent);
    }

    /// Waits until some are settled; an empty list means that messages were nacked, which is a sign of life. The error
    /// ends the channel, and the fate of messages that were not settled is unknown. Dropping the future loses nothing.
    pub(super) async fn settled(&mut self) -> Result<Vec<(T, Fate)>, RabbitmqFailure> {
        loop {
            self.take_ready()?;
            self.send_due();
            if take(&mut self.nacked) {
                return Ok(Vec::new());
            }
            if self.asked.is_none() && !self.confirmed.is_empty() {
                let channel = self.channel.clone();
                let answer = async move { channel.confirm_select(ConfirmSelectOptions::default()).await };
                self.asked = Some(AwaitedAnswer { answer: answer.boxed(), behind: take(&mut self.confirmed) });
            }
            let longest = FIRST_WITHIN / 4;
            let pause = self.pace.due_in(self.opened.elapsed()).map_or(longest, |due| due.min(longest));
            let Some(AwaitedAnswer { answer, .. }) = &mut self.asked else {
                tokio::select! {
                    Some((ticket, confirmation)) = self.confirms.next() => self.take(ticket, confirmation)?,
                    () = sleep(pause) => self.listen()?,
                }
                continue;
            };
            tokio::select! {
                answer = answer => answer?,
                // The next message of its key may go; a nacked one is due again.
                Some((ticket, confirmation)) = self.confirms.next() => {
                    self.take(ticket, confirmation)?;
                    continue;
                }
                () = sleep(pause) => continue,
            }
            self.quiet = Stopwatch::start();
            self.take_ready()?;
            let behind = self.asked.take().map(|asked| asked.behind).unwrap_or_default();
            let settled: Vec<_> = behind.into_iter().filter_map(|confirmed| self.settle(confirmed)).collect();
            if !settled.is_empty() {
                self.send_due();
                return Ok(settled);
            }
        }
    }

    /// Fails if a first message is not confirmed in time, as it never is then; a broker that takes nothing for now is
    /// waited for.
    fn listen(&mut self) -> Result<(), RabbitmqFailure> {
        if self.blocked.is_now() {
            self.quiet = Stopwatch::start();
        }
        if self.quiet.elapsed() > FIRST_WITHIN && self.pace.awaits_first() {
            return Err(RabbitmqFailure::Unconfirmed(FIRST_WITHIN));
        }
        Ok(())
    }

    /// Takes everything that has come. A set of futures may report nothing ready when one of them was woken during the
    /// poll: so it is polled until it has reported that several times.
    fn take_ready(&mut self) -> Result<(), RabbitmqFailure> {
        let mut dry = 0;
        while dry < 3 {
            match self.confirms.next().now_or_never() {
                Some(Some((ticket, confirmation))) => {
                    self.take(ticket, confirmation)?;
                    dry = 0;
                }
                Some(None) => break,
                None => dry += 1,
            }
        }
        Ok(())
    }

    /// The reason why the channel is closed: among those who wait for it, a confirm gets the broker's error.
    fn why(&mut self, error: lapin::Error) -> lapin::Error {
        if error.is_amqp_error() {
            return error;
        }
        while let Some(Some((_, confirmation))) = self.confirms.next().now_or_never() {
            if let Err(said) = confirmation
                && said.is_amqp_error()
            {
                return said;
            }
        }
        error
    }

    fn take(
        &mut self,
        ticket: MessageTicket<T>,
        confirmation: lapin::Result<Confirmation>,
    ) -> Result<(), RabbitmqFailure> {
        let confirmation = match confirmation {
            Ok(confirmation) => confirmation,
            Err(error) => return Err(self.why(error).into()),
        };
        let acked = confirmation.is_ack();
        // It does not matter which message came back.
        if let Some(message) = confirmation.take_message() {
            let BasicReturnMessage { delivery, .. } = &message;
            let of = name(&delivery.exchange, &delivery.routing_key, &delivery.properties);
            self.returned.entry(of).or_default().push(came_back(&message));
        }
        if !acked {
            self.again(ticket, "a queue is full, or has no leader (nack)");
        } else if ticket.sent.first || self.returns == Returned::Again {
            self.confirmed.push(Confirmed::Held(Box::new(ticket)));
        } else {
            self.pace.settled(&ticket.sent, true);
            self.confirmed.push(Confirmed::Done { tag: ticket.tag, name: ticket.name });
        }
        Ok(())
    }

    /// Sends a message again, alone of its key, after a pause.
    fn again(&mut self, MessageTicket { tag, sent, publishing, .. }: MessageTicket<T>, reason: &str) {
        if self.said.is_none_or(|said| said.elapsed() > SAID_EVERY) {
            self.said = Some(Stopwatch::start());
            let (exchange, routing_key) = (publishing.exchange.as_str(), publishing.routing_key.as_str());
            warn!(exchange, routing_key, reason, "the broker does not take messages for now, they are tried again");
        }
        self.quiet = Stopwatch::start();
        self.nacked = true;
        self.pace.refused(sent, (tag, publishing), self.opened.elapsed());
    }

    /// The fate of a message; `None` if it is sent again.
    fn settle(&mut self, confirmed: Confirmed<T>) -> Option<(T, Fate)> {
        let ticket = match confirmed {
            Confirmed::Done { tag, name } => return Some((tag, self.came_back(name).map_or(Ok(()), Err))),
            Confirmed::Held(ticket) => *ticket,
        };
        let Some(reason) = self.came_back(ticket.name) else {
            self.pace.settled(&ticket.sent, true);
            return Some((ticket.tag, Ok(())));
        };
        if self.returns == Returned::Again || self.opened.elapsed() < STARTING {
            self.again(ticket, &reason.to_string());
            return None;
        }
        self.pace.settled(&ticket.sent, false);
        Some((ticket.tag, Err(reason)))
    }

    /// The reason why a message of this name came back, if one did.
    fn came_back(&mut self, name: u64) -> Option<CameBack> {
        let reasons = self.returned.get_mut(&name)?;
        let reason = reasons.pop();
        if reasons.is_empty() {
            self.returned.remove(&name);
        }
        reason
    }
}

/// The name by which a message that comes back is recognised: its target, its id, and the header for an id that is too
/// long for a property.
fn name(exchange: &ShortString, routing_key: &ShortString, properties: &BasicProperties) -> u64 {
    let id = super::record::property(properties.message_id()).unwrap_or_default();
    let header = super::record::id_header(properties).unwrap_or_default();
    [exchange.as_str().as_bytes(), routing_key.as_str().as_bytes(), id.as_bytes(), header].into_iter().fold(0, absorb)
}

fn came_back(message: &BasicReturnMessage) -> CameBack {
    let BasicReturnMessage { delivery, reply_text, .. } = message;
    let (exchange, routing_key) = (delivery.exchange.clone(), delivery.routing_key.clone());
    CameBack { said: reply_text.clone(), exchange, routing_key }
}
