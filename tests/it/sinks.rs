//! A sink in memory, for tests: it keeps what it is given, and does as it is told.
//! In: events, and a control that stops it, breaks it or makes it refuse. Out: the events that arrived, in their order.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use perkey::Message;
use perkey::unstable::message::ShardNo;
use perkey::unstable::transport::{Outgoing, Sink, SinkAnswer, SinkError, SinkTransport};
use tokio::sync::Notify;

/// The topic at which every event is refused.
pub(crate) const REFUSED: &str = "refused";
const NAME: &str = "memory";
/// Events that wait at an end that is stopped.
const WINDOW: usize = 64;

/// The sink, and the hand that rules it.
#[derive(Clone, Default)]
pub(crate) struct MemorySink {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    arrived: Vec<(Arc<str>, Message)>,
    stopped: bool,
    /// Rises when it breaks: ends of an older number are of no use.
    generation: u64,
}

impl MemorySink {
    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The messages that arrived, in order, with their topics.
    pub(crate) fn arrived(&self) -> Vec<(Arc<str>, Message)> {
        self.state().arrived.clone()
    }

    /// Takes nothing more, or goes on.
    pub(crate) fn stop(&self, stopped: bool) {
        self.state().stopped = stopped;
        self.inner.changed.notify_waiters();
    }

    /// Makes every open end useless.
    pub(crate) fn break_ends(&self) {
        self.state().generation += 1;
        self.inner.changed.notify_waiters();
    }
}

impl SinkTransport for MemorySink {
    fn name(&self) -> &str {
        NAME
    }

    fn open(&self, _shard: ShardNo) -> BoxFuture<'_, Result<Box<dyn Sink>, SinkError>> {
        let generation = self.state().generation;
        let end = MemoryEnd { sink: self.clone(), generation, waiting: Vec::new() };
        Box::pin(async move { Ok(Box::new(end) as Box<dyn Sink>) })
    }
}

struct MemoryEnd {
    sink: MemorySink,
    generation: u64,
    waiting: Vec<Outgoing>,
}

impl MemoryEnd {
    fn check(&self) -> Result<(), SinkError> {
        let broken = self.sink.state().generation != self.generation;
        let error = || SinkError::Broken { name: NAME.to_owned(), reason: "it was broken".to_owned() };
        if broken { Err(error()) } else { Ok(()) }
    }
}

impl Sink for MemoryEnd {
    fn send(&mut self, events: &[Outgoing]) -> Result<usize, SinkError> {
        self.check()?;
        let taken = events.len().min(WINDOW - self.waiting.len());
        self.waiting.extend_from_slice(&events[..taken]);
        Ok(taken)
    }

    fn answers(&mut self) -> BoxFuture<'_, Result<Vec<SinkAnswer>, SinkError>> {
        Box::pin(async move {
            loop {
                let inner = Arc::clone(&self.sink.inner);
                let changed = inner.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                self.check()?;
                if !self.waiting.is_empty() && !self.sink.state().stopped {
                    let events = std::mem::take(&mut self.waiting);
                    return Ok(events.into_iter().map(|event| self.sink.take(event)).collect());
                }
                changed.await;
            }
        })
    }
}

impl MemorySink {
    fn take(&self, event: Outgoing) -> SinkAnswer {
        if &*event.topic == REFUSED {
            return SinkAnswer::Refused(event.seq, "told to".to_owned());
        }
        self.state().arrived.push((event.topic, event.message));
        SinkAnswer::Confirmed(event.seq)
    }
}
