//! A channel that publishes with confirms, and knows which of its messages came back.
//! In: messages, each with a tag. Out: each tag once: taken, or returned with the reason; or the end of the channel.
//!
//! The client (lapin 4) hands a returned message to whichever confirm ends next, and RabbitMQ confirms many at once. So a
//! confirm alone says nothing: returned messages are matched by what they are, and a tag is settled when an answer of the same
//! channel has come behind its confirm. RabbitMQ sends the return before the confirm, and the client takes what comes in order: by
//! then every return that belongs to a confirm before that answer has been seen.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::mem::take;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};

use super::client::{Blocked, Client, within};
use super::event::Publishing;
use crate::clock::{Stopwatch, sleep};
use crate::transport::attributes::absorb;

/// What became of a message: the broker has it, or returned it with the reason.
pub(super) type Settled = Result<(), String>;

/// A message on its way.
struct Ticket<T> {
    tag: T,
    name: u64,
    way: u64,
    /// The message itself, where it is the first of its way.
    first: Option<Publishing>,
}

/// How long after a channel was opened a first message that comes back is sent again: for a moment after its start a broker
/// does not route to streams that are there (seen with 3.10).
const STARTING: Duration = Duration::from_secs(5);
/// Before it is sent again.
const AGAIN: Duration = Duration::from_millis(100);
/// Within this the first message of a way is confirmed; else it never is (seen with 3.10, after the server was killed).
const FIRST_WITHIN: Duration = Duration::from_secs(10);

/// An answer under way.
struct Asked<T> {
    answer: BoxFuture<'static, lapin::Result<()>>,
    /// What was confirmed before it was asked for.
    behind: Vec<Ticket<T>>,
}

/// A channel in confirm mode.
pub(super) struct Publisher<T> {
    channel: Channel,
    confirms: FuturesUnordered<BoxFuture<'static, (Ticket<T>, lapin::Result<Confirmation>)>>,
    /// Confirmed since the answer under way was asked for.
    confirmed: Vec<Ticket<T>>,
    asked: Option<Asked<T>>,
    /// Reasons for which messages of a name came back.
    returned: HashMap<u64, Vec<String>>,
    /// Ways whose first message is on its way, and whether it has arrived.
    ways: HashMap<u64, bool>,
    /// What waits until it has.
    waiting: VecDeque<(Ticket<T>, Publishing)>,
    /// First messages that came back, and are sent again.
    again: FuturesUnordered<BoxFuture<'static, (Ticket<T>, Publishing)>>,
    opened: Stopwatch,
    /// Since something was heard.
    quiet: Stopwatch,
    blocked: Blocked,
}

impl<T: Send + 'static> Publisher<T> {
    /// A channel of its own.
    pub(super) async fn open(client: &Client) -> Result<Self, String> {
        let channel = client.channel().await?;
        within(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Self {
            channel,
            confirms: FuturesUnordered::new(),
            confirmed: Vec::new(),
            asked: None,
            returned: HashMap::new(),
            ways: HashMap::new(),
            waiting: VecDeque::new(),
            again: FuturesUnordered::new(),
            opened: Stopwatch::start(),
            quiet: Stopwatch::start(),
            blocked: client.blocked().clone(),
        })
    }

    /// Hands a message over; whatever is wrong is told by [`Self::settled`]. A broker that has just started may lose what comes
    /// behind a message that had to wait for its stream's leader, and confirm it all the same (seen with 3.10): so nothing
    /// follows the first message of a way before that has arrived.
    pub(super) fn publish(&mut self, tag: T, publishing: Publishing) {
        let Publishing { exchange, routing_key, by_key, properties, .. } = &publishing;
        let (exchange, key) = (exchange.as_str(), routing_key.as_str());
        let way = absorb(absorb(0, exchange.as_bytes()), if *by_key { key.as_bytes() } else { b"" });
        let ticket = Ticket { tag, name: name(exchange, key, properties), way, first: None };
        self.waiting.push_back((ticket, publishing));
        self.send_waiting();
    }

    fn send_waiting(&mut self) {
        while let Some((ticket, _)) = self.waiting.front()
            && self.ways.get(&ticket.way) != Some(&false)
            && let Some((mut ticket, publishing)) = self.waiting.pop_front()
        {
            if let Entry::Vacant(way) = self.ways.entry(ticket.way) {
                way.insert(false);
                ticket.first = Some(publishing.clone());
                self.quiet = Stopwatch::start();
            }
            self.send(ticket, publishing);
        }
    }

    fn send(&mut self, ticket: Ticket<T>, publishing: Publishing) {
        let channel = self.channel.clone();
        let mut sent = async move {
            let Publishing { exchange, routing_key, properties, payload, .. } = publishing;
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

    /// Waits until some are settled; the error ends the channel, and nothing is known of what was not. Dropping the future loses
    /// nothing.
    pub(super) async fn settled(&mut self) -> Result<Vec<(T, Settled)>, String> {
        loop {
            self.take_ready()?;
            if self.asked.is_none() && !self.confirmed.is_empty() {
                let channel = self.channel.clone();
                let answer = async move { channel.confirm_select(ConfirmSelectOptions::default()).await };
                self.asked = Some(Asked { answer: answer.boxed(), behind: take(&mut self.confirmed) });
            }
            let Some(Asked { answer, .. }) = &mut self.asked else {
                tokio::select! {
                    Some((ticket, confirmation)) = self.confirms.next() => self.take(ticket, confirmation)?,
                    Some((ticket, publishing)) = self.again.next() => self.send(ticket, publishing),
                    () = sleep(FIRST_WITHIN / 4) => self.listen()?,
                }
                continue;
            };
            answer.await.map_err(|error| error.to_string())?;
            self.quiet = Stopwatch::start();
            self.take_ready()?;
            let behind = self.asked.take().map(|asked| asked.behind).unwrap_or_default();
            let settled: Vec<_> = behind.into_iter().filter_map(|ticket| self.settle(ticket)).collect();
            self.send_waiting();
            if !settled.is_empty() {
                return Ok(settled);
            }
        }
    }

    /// A first message that is not confirmed in time never is; a broker that takes nothing for now is waited for.
    fn listen(&mut self) -> Result<(), String> {
        if self.blocked.is_now() {
            self.quiet = Stopwatch::start();
        }
        if self.quiet.elapsed() > FIRST_WITHIN && self.ways.values().any(|arrived| !arrived) {
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
        if !confirmation.is_ack() {
            return Err("the broker could not take a message (nack)".to_owned());
        }
        if let Some(message) = confirmation.take_message() {
            let of = name(
                message.delivery.exchange.as_str(),
                message.delivery.routing_key.as_str(),
                &message.delivery.properties,
            );
            self.returned.entry(of).or_default().push(reason(&message));
        }
        self.confirmed.push(ticket);
        Ok(())
    }

    /// What became of a message; none where it is sent again.
    fn settle(&mut self, mut ticket: Ticket<T>) -> Option<(T, Settled)> {
        let reason = self.returned.get_mut(&ticket.name).and_then(Vec::pop);
        if self.returned.get(&ticket.name).is_some_and(Vec::is_empty) {
            self.returned.remove(&ticket.name);
        }
        let Some(reason) = reason else {
            self.ways.insert(ticket.way, true);
            return Some((ticket.tag, Ok(())));
        };
        if self.opened.elapsed() < STARTING
            && let Some(publishing) = ticket.first.clone()
        {
            let pause = async move {
                sleep(AGAIN).await;
                (ticket, publishing)
            };
            self.again.push(pause.boxed());
            return None;
        }
        // It says nothing of the way: the next one is the first.
        if ticket.first.take().is_some() {
            self.ways.remove(&ticket.way);
        }
        Some((ticket.tag, Err(reason)))
    }
}

/// What a message is told by when it comes back: where it went, its id, and the header in which an id stands that is too long
/// for a property.
fn name(exchange: &str, routing_key: &str, properties: &lapin::BasicProperties) -> u64 {
    let id = super::record::property(properties.message_id()).unwrap_or_default();
    let header = super::record::id_header(properties).unwrap_or_default();
    [exchange.as_bytes(), routing_key.as_bytes(), id.as_bytes(), header].into_iter().fold(0, absorb)
}

fn reason(message: &BasicReturnMessage) -> String {
    let (exchange, key) = (&message.delivery.exchange, &message.delivery.routing_key);
    format!(
        "it came back: {} (exchange {exchange:?}, routing key {key:?} has no queue bound to it)",
        message.reply_text
    )
}
