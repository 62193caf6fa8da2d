//! A channel that publishes with confirms, knows which of its messages came back, and tries those again that were nacked.
//! In: messages, each with a tag. Out: each tag once: taken, or returned with the reason; or the end of the channel.
//!
//! The client (lapin 4) hands a returned message to whichever confirm ends next, and RabbitMQ confirms many at once. So a
//! confirm alone says nothing: returned messages are matched by what they are, and a tag is settled when an answer of the same
//! channel has come behind its confirm. RabbitMQ sends the return before the confirm, and the client takes what comes in order: by
//! then every return that belongs to a confirm before that answer has been seen.
//!
//! A nack is no end: a queue is full, or has no leader for the moment. What may be sent when is [`Pace`]'s to say.

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

use super::client::{Blocked, Client};
use super::event::Publishing;
use super::topology::within;
use crate::clock::{Dice, Stopwatch, sleep};
use crate::transport::attributes::absorb;
use crate::transport::pace::{Pace, Sent};

/// What became of a message: the broker has it, or returned it with the reason.
pub(super) type Settled = Result<(), String>;

/// What a message is that no queue takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Returned {
    /// Settled: nobody wants it.
    Settled,
    /// Tried again, like one that was nacked: somebody will.
    Again,
}

/// A message on its way.
struct Ticket<T> {
    tag: T,
    name: u64,
    sent: Sent,
    publishing: Publishing,
}

/// A message that is confirmed, of which it is not known yet whether it came back.
enum Confirmed<T> {
    /// It goes no second time: the next one of its key may be on its way.
    Done { tag: T, name: u64 },
    /// It does if it came back.
    Held(Box<Ticket<T>>),
}

/// How long after a channel was opened a first message that comes back is sent again: for a moment after its start a broker
/// does not route to streams that are there (seen with 3.10).
const STARTING: Duration = Duration::from_secs(5);
/// Within this the first message of a way is confirmed; else it never is (seen with 3.10, after the server was killed).
const FIRST_WITHIN: Duration = Duration::from_secs(10);
/// How often it is said that messages are nacked.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// An answer under way.
struct Asked<T> {
    answer: BoxFuture<'static, lapin::Result<()>>,
    /// What was confirmed before it was asked for.
    behind: Vec<Confirmed<T>>,
}

/// A channel in confirm mode.
pub(super) struct Publisher<T> {
    channel: Channel,
    pace: Pace<(T, Publishing)>,
    confirms: FuturesUnordered<BoxFuture<'static, (Ticket<T>, lapin::Result<Confirmation>)>>,
    /// Confirmed since the answer under way was asked for.
    confirmed: Vec<Confirmed<T>>,
    asked: Option<Asked<T>>,
    /// Reasons for which messages of a name came back.
    returned: HashMap<u64, Vec<String>>,
    returns: Returned,
    opened: Stopwatch,
    /// Since something was heard.
    quiet: Stopwatch,
    /// Whether messages were nacked since that was told.
    nacked: bool,
    /// Since it was said that they are.
    said: Option<Stopwatch>,
    blocked: Blocked,
}

impl<T: Send + 'static> Publisher<T> {
    /// A channel of its own.
    pub(super) async fn open(client: &Client, returns: Returned) -> Result<Self, String> {
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

    /// Hands a message over; it goes, and whatever is wrong is told, by [`Self::settled`]. A broker that has just started may
    /// lose what comes behind a message that had to wait for its stream's leader, and confirm it all the same (seen with 3.10):
    /// so nothing follows the first message of a way before that has arrived.
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
            self.send(Ticket { tag, name, sent, publishing });
        }
    }

    fn send(&mut self, ticket: Ticket<T>) {
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

    /// Waits until some are settled; none are where messages were nacked, which is a sign of life. The error ends the channel,
    /// and nothing is known of what was not settled. Dropping the future loses nothing.
    pub(super) async fn settled(&mut self) -> Result<Vec<(T, Settled)>, String> {
        loop {
            self.take_ready()?;
            self.send_due();
            if take(&mut self.nacked) {
                return Ok(Vec::new());
            }
            if self.asked.is_none() && !self.confirmed.is_empty() {
                let channel = self.channel.clone();
                let answer = async move { channel.confirm_select(ConfirmSelectOptions::default()).await };
                self.asked = Some(Asked { answer: answer.boxed(), behind: take(&mut self.confirmed) });
            }
            let longest = FIRST_WITHIN / 4;
            let pause = self.pace.due_in(self.opened.elapsed()).map_or(longest, |due| due.min(longest));
            let Some(Asked { answer, .. }) = &mut self.asked else {
                tokio::select! {
                    Some((ticket, confirmation)) = self.confirms.next() => self.take(ticket, confirmation)?,
                    () = sleep(pause) => self.listen()?,
                }
                continue;
            };
            tokio::select! {
                answer = answer => answer.map_err(|error| error.to_string())?,
                // What is behind it in its key may go; what was nacked is due again.
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

    /// A first message that is not confirmed in time never is; a broker that takes nothing for now is waited for.
    fn listen(&mut self) -> Result<(), String> {
        if self.blocked.is_now() {
            self.quiet = Stopwatch::start();
        }
        if self.quiet.elapsed() > FIRST_WITHIN && self.pace.awaits_first() {
            return Err(format!(
                "the first message to a stream or an exchange was not confirmed within {FIRST_WITHIN:?}"
            ));
        }
        Ok(())
    }

    /// Takes all that has come. A set of futures may say that nothing is ready when one of them was woken while it was
    /// asked: so it is asked until it has said so several times.
    fn take_ready(&mut self) -> Result<(), String> {
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

    /// Why the channel is closed: of those who wait for it, a confirm is told what the broker said.
    fn why(&mut self, error: lapin::Error) -> String {
        if error.is_amqp_error() {
            return error.to_string();
        }
        while let Some(Some((_, confirmation))) = self.confirms.next().now_or_never() {
            if let Err(said) = confirmation
                && said.is_amqp_error()
            {
                return said.to_string();
            }
        }
        error.to_string()
    }

    fn take(&mut self, ticket: Ticket<T>, confirmation: lapin::Result<Confirmation>) -> Result<(), String> {
        let confirmation = match confirmation {
            Ok(confirmation) => confirmation,
            Err(error) => return Err(self.why(error)),
        };
        let acked = confirmation.is_ack();
        // Whichever message it is that came back.
        if let Some(message) = confirmation.take_message() {
            let BasicReturnMessage { delivery, .. } = &message;
            let of = name(&delivery.exchange, &delivery.routing_key, &delivery.properties);
            self.returned.entry(of).or_default().push(reason(&message));
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

    /// It goes again, alone of its key, after a pause.
    fn again(&mut self, Ticket { tag, sent, publishing, .. }: Ticket<T>, reason: &str) {
        if self.said.is_none_or(|said| said.elapsed() > SAID_EVERY) {
            self.said = Some(Stopwatch::start());
            let (exchange, routing_key) = (publishing.exchange.as_str(), publishing.routing_key.as_str());
            warn!(exchange, routing_key, reason, "the broker does not take messages for now, they are tried again");
        }
        self.quiet = Stopwatch::start();
        self.nacked = true;
        self.pace.refused(sent, (tag, publishing), self.opened.elapsed());
    }

    /// What became of a message; none where it is sent again.
    fn settle(&mut self, confirmed: Confirmed<T>) -> Option<(T, Settled)> {
        let ticket = match confirmed {
            Confirmed::Done { tag, name } => return Some((tag, self.came_back(name).map_or(Ok(()), Err))),
            Confirmed::Held(ticket) => *ticket,
        };
        let Some(reason) = self.came_back(ticket.name) else {
            self.pace.settled(&ticket.sent, true);
            return Some((ticket.tag, Ok(())));
        };
        if self.returns == Returned::Again || self.opened.elapsed() < STARTING {
            self.again(ticket, &reason);
            return None;
        }
        self.pace.settled(&ticket.sent, false);
        Some((ticket.tag, Err(reason)))
    }

    /// Why a message of this name came back, if one did.
    fn came_back(&mut self, name: u64) -> Option<String> {
        let reasons = self.returned.get_mut(&name)?;
        let reason = reasons.pop();
        if reasons.is_empty() {
            self.returned.remove(&name);
        }
        reason
    }
}

/// What a message is told by when it comes back: where it went, its id, and the header in which an id stands that is too long
/// for a property.
fn name(exchange: &ShortString, routing_key: &ShortString, properties: &BasicProperties) -> u64 {
    let id = super::record::property(properties.message_id()).unwrap_or_default();
    let header = super::record::id_header(properties).unwrap_or_default();
    [exchange.as_str().as_bytes(), routing_key.as_str().as_bytes(), id.as_bytes(), header].into_iter().fold(0, absorb)
}

fn reason(message: &BasicReturnMessage) -> String {
    let (exchange, key) = (&message.delivery.exchange, &message.delivery.routing_key);
    format!(
        "it came back: {} (exchange {exchange:?}, routing key {key:?} has no queue bound to it)",
        message.reply_text
    )
}
