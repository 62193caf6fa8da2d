//! Exchanges as a sink: each shard's end is a task with a channel of its own.
//! In: events of a shard, in sequence. Out: persistent messages in that sequence; an answer to each event.
//!
//! An end whose channel ended is of no further use: its messages on their way may have arrived or not, and the next end
//! publishes from the watermark.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tracing::warn;

use super::client::Client;
use super::event::{Publishing, Routes, bytes_of};
use super::publisher::{ConfirmingPublisher, Returned};
use super::{NAME, RabbitmqFailure, topology};
use crate::clock::{Stopwatch, sleep};
use crate::message::ShardNo;
use crate::settings::RabbitmqSettings;
use crate::transport::again::pause_after;
use crate::transport::{Outgoing, Sink, SinkAnswer, SinkError, SinkTransport};

/// The most events handed to the channel before answers are read.
const BATCH: usize = 256;
/// The time for which an unusable exchange is not asked about again.
const CLOSED_FOR: Duration = Duration::from_secs(10);

/// Exchanges of RabbitMQ, as a sink.
pub struct RabbitmqSink {
    shared: Arc<SharedSink>,
}

/// The state that all ends share.
struct SharedSink {
    client: Client,
    routes: Routes,
    /// The ways by which nothing can be published for now, and the reasons.
    closed: Mutex<HashMap<ClosedWay, (Stopwatch, String)>>,
}

/// An exchange; with a routing key if only that one may not be used.
type ClosedWay = (String, Option<String>);

impl SharedSink {
    fn close(&self, way: ClosedWay, reason: &str) {
        locked(&self.closed).insert(way, (Stopwatch::start(), reason.to_owned()));
    }

    /// The reason why nothing can be published there for now.
    fn closed(&self, exchange: &str, routing_key: &str) -> Option<String> {
        let closed = locked(&self.closed);
        // Asked for each event, and mostly there is none.
        if closed.is_empty() {
            return None;
        }
        let ways = [None, Some(routing_key.to_owned())].map(|key| (exchange.to_owned(), key));
        let mut found = ways.iter().filter_map(|way| closed.get(way));
        found.find(|(since, _)| since.elapsed() < CLOSED_FOR).map(|(_, reason)| reason.clone())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RabbitmqSink {
    /// The sink. The nodes need not be there yet; unusable settings are an error.
    pub fn new(settings: &RabbitmqSettings, shards: u32) -> Result<Arc<Self>, RabbitmqFailure> {
        let client = Client::new(settings, shards, "sink", &Arc::default())?;
        let (routes, closed) = (Routes::new(settings, shards), Mutex::default());
        Ok(Arc::new(Self { shared: Arc::new(SharedSink { client, routes, closed }) }))
    }
}

impl SinkTransport for RabbitmqSink {
    fn name(&self) -> &str {
        NAME
    }

    fn open(&self, _shard: ShardNo) -> BoxFuture<'_, Result<Box<dyn Sink>, SinkError>> {
        let (events, orders) = unbounded_channel();
        let end = Arc::new(SinkEnd::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(run(Arc::clone(&self.shared), orders, Arc::clone(&end)));
        let RabbitmqSettings { buffer_bytes, answer_timeout, .. } = self.shared.client.settings;
        let (bound, silence, quiet) = (buffer_bytes, answer_timeout, Stopwatch::start());
        let shared = Arc::clone(&self.shared);
        let opened = RabbitmqEnd { shared, events, end, bound, silence, quiet, _tasks: tasks };
        Box::pin(std::future::ready(Ok(Box::new(opened) as Box<dyn Sink>)))
    }
}

/// The state that an end and its task share.
#[derive(Default)]
struct SinkEnd {
    answers: Mutex<Vec<SinkAnswer>>,
    answered: Notify,
    /// The bytes on their way.
    bytes: AtomicUsize,
    /// True if the broker takes nothing for now, but has said so.
    heard: AtomicBool,
    broken: Mutex<Option<String>>,
}

impl SinkEnd {
    fn answer(&self, answer: SinkAnswer, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        locked(&self.answers).push(answer);
        self.answered.notify_one();
    }

    fn heard(&self) {
        self.heard.store(true, Ordering::Release);
    }

    fn fail(&self, reason: &str) {
        locked(&self.broken).get_or_insert_with(|| reason.to_owned());
        self.answered.notify_one();
    }

    fn broken(&self) -> Option<String> {
        locked(&self.broken).clone()
    }
}

// ---- the task

async fn run(shared: Arc<SharedSink>, orders: UnboundedReceiver<Outgoing>, end: Arc<SinkEnd>) {
    let publisher = connect(&shared).await;
    let mut line = PublishingTask { shared: &shared, end: &end, publisher, known: Vec::new() };
    if let Err(failure) = line.serve(orders).await {
        let reason = failure.to_string();
        if (failure.is_missing() || failure.is_refused())
            && let Some(way) = way_in(&reason)
        {
            shared.close(way, &reason);
        }
        end.fail(&reason);
    }
}

/// Waits for the broker: nothing was sent yet, so nothing is unknown.
async fn connect(shared: &SharedSink) -> ConfirmingPublisher<(u64, usize)> {
    let mut failed = 0_u32;
    loop {
        match ConfirmingPublisher::open(&shared.client, Returned::Settled).await {
            Ok(publisher) => return publisher,
            Err(reason) => warn!(sink = NAME, %reason, "the broker cannot be reached, trying again"),
        }
        failed = failed.saturating_add(1);
        sleep(pause_after(failed)).await;
    }
}

/// The way that a broker's error is about, which says that it is missing or not allowed.
fn way_in(reason: &str) -> Option<ClosedWay> {
    let quoted = |behind: &str| {
        let (_, rest) = reason.split_once(behind)?;
        rest.split_once('\'').map(|(name, _)| name.to_owned())
    };
    // The name under which the broker speaks of the exchange without a name.
    let exchange = quoted("exchange '").map(|name| if name == "amq.default" { String::new() } else { name })?;
    Some((exchange, quoted("access to topic '")))
}

/// A channel at work.
struct PublishingTask<'a> {
    shared: &'a SharedSink,
    end: &'a SinkEnd,
    publisher: ConfirmingPublisher<(u64, usize)>,
    /// Exchanges that exist.
    known: Vec<String>,
}

impl PublishingTask<'_> {
    async fn serve(&mut self, mut orders: UnboundedReceiver<Outgoing>) -> Result<(), RabbitmqFailure> {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                settled = self.publisher.settled() => {
                    let settled = settled?;
                    if settled.is_empty() {
                        self.end.heard();
                    }
                    for ((seq, bytes), settled) in settled {
                        let answer = match settled {
                            Ok(()) => SinkAnswer::Confirmed(seq),
                            Err(returned) => SinkAnswer::Refused(seq, returned.to_string()),
                        };
                        self.end.answer(answer, bytes);
                    }
                }
                count = orders.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return Ok(());
                    }
                    for event in batch.drain(..) {
                        self.publish(&event).await?;
                    }
                }
            }
        }
    }

    async fn publish(&mut self, event: &Outgoing) -> Result<(), RabbitmqFailure> {
        let bytes = bytes_of(event);
        let refused = match self.shared.routes.publishing(event) {
            Err(error) => error.to_string(),
            Ok(publishing) => match self.closed(&publishing).await? {
                Some(reason) => reason,
                None => {
                    self.publisher.publish((event.seq, bytes), publishing);
                    return Ok(());
                }
            },
        };
        self.end.answer(SinkAnswer::Refused(event.seq, refused), bytes);
        Ok(())
    }

    /// The reason why a message cannot be published for now: sent to an exchange that does not exist, it would end the
    /// channel.
    async fn closed(
        &mut self,
        Publishing { exchange, routing_key, .. }: &Publishing,
    ) -> Result<Option<String>, RabbitmqFailure> {
        let exchange = exchange.as_str();
        if let Some(reason) = self.shared.closed(exchange, routing_key.as_str()) {
            return Ok(Some(reason));
        }
        // The default exchange is always there, and may not be asked about.
        if exchange.is_empty() || self.known.iter().any(|known| known == exchange) {
            return Ok(None);
        }
        let channel = self.shared.client.channel().await?;
        match topology::look_for_exchange(&channel, exchange).await {
            Ok(()) => {
                self.known.push(exchange.to_owned());
                Ok(None)
            }
            Err(failure) if failure.is_missing() => {
                let reason = failure.to_string();
                self.shared.close((exchange.to_owned(), None), &reason);
                Ok(Some(reason))
            }
            Err(failure) => Err(failure),
        }
    }
}

// ---- the shard's side

struct RabbitmqEnd {
    shared: Arc<SharedSink>,
    events: UnboundedSender<Outgoing>,
    end: Arc<SinkEnd>,
    bound: usize,
    silence: Duration,
    /// The time since it took answers, or sent the first event after all were answered.
    quiet: Stopwatch,
    /// The task, which ends with this end.
    _tasks: JoinSet<()>,
}

impl Sink for RabbitmqEnd {
    fn send(&mut self, events: &[Outgoing]) -> Result<usize, SinkError> {
        if let Some(reason) = self.end.broken() {
            return Err(broken(reason));
        }
        if self.end.bytes.load(Ordering::Acquire) == 0 {
            self.quiet = Stopwatch::start();
        }
        let mut taken = 0;
        for event in events {
            let bytes = bytes_of(event);
            let waiting = self.end.bytes.load(Ordering::Acquire);
            // One event always goes: one larger than the bound must not wait for ever.
            if waiting > 0 && waiting + bytes > self.bound {
                break;
            }
            self.end.bytes.fetch_add(bytes, Ordering::AcqRel);
            if self.events.send(event.clone()).is_err() {
                return Err(broken("its task has ended".to_owned()));
            }
            taken += 1;
        }
        Ok(taken)
    }

    fn answers(&mut self) -> BoxFuture<'_, Result<Vec<SinkAnswer>, SinkError>> {
        Box::pin(async move {
            loop {
                // Read before the answers are taken: answers from before the break are told before it.
                let reason = self.end.broken();
                let answers = std::mem::take(&mut *locked(&self.end.answers));
                if !answers.is_empty() {
                    self.quiet = Stopwatch::start();
                    return Ok(answers);
                }
                if let Some(reason) = reason {
                    return Err(broken(reason));
                }
                // A broker that takes nothing for now says so, and is waited for.
                if self.shared.client.blocked().is_now() || self.end.heard.swap(false, Ordering::AcqRel) {
                    self.quiet = Stopwatch::start();
                }
                let quiet = self.quiet.elapsed();
                if self.end.bytes.load(Ordering::Acquire) > 0 && quiet >= self.silence {
                    self.end.fail(&format!("nothing was confirmed for {quiet:.0?}"));
                    continue;
                }
                tokio::select! {
                    () = self.end.answered.notified() => {}
                    () = sleep(self.silence / 4) => {}
                }
            }
        })
    }
}

fn broken(reason: String) -> SinkError {
    SinkError::Broken { name: NAME.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_broker_speaks_of_is_found() {
        let way = |exchange: &str, key: Option<&str>| Some((exchange.to_owned(), key.map(str::to_owned)));
        let said = "NOT_FOUND - no exchange 'shop.events' in vhost '/'";
        assert_eq!(way_in(said), way("shop.events", None));
        let said = "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user 'u'";
        assert_eq!(way_in(said), way("", None));
        let said = "ACCESS_REFUSED - write access to topic 'a.b' in exchange 'e' in vhost '/' refused for user 'u'";
        assert_eq!(way_in(said), way("e", Some("a.b")));
        assert_eq!(way_in("the connection is gone"), None);
    }
}
