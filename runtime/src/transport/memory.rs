//! A sink in memory, for tests: confirms its events, or misbehaves as it is told.
//! In: events, orders. Out: answers; every event that it ever had, in the order in which it had them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, ready};
use tokio::sync::Notify;

use super::{Outgoing, Sink, SinkAnswer, SinkError, SinkTransport};
use crate::message::{Message, ShardNo};

/// Says which events the sink refuses, and why.
pub type RefuseEvent = dyn Fn(&Message) -> Option<String> + Send;

/// A sink in memory. Its events outlive every end of it, not the process.
#[derive(Clone)]
pub struct MemorySink {
    name: Arc<str>,
    shared: Arc<MemorySinkState>,
}

#[derive(Default)]
struct MemorySinkState {
    inner: Mutex<MemoryRecords>,
    changed: Notify,
}

#[derive(Default)]
struct MemoryRecords {
    records: Vec<(ShardNo, Outgoing)>,
    refuse: Option<Box<RefuseEvent>>,
    away: bool,
    silent: bool,
    /// A number that rises when all open ends break.
    breaks: u64,
    unanswered: usize,
    unanswered_most: usize,
}

impl std::fmt::Debug for MemorySink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemorySink").field("name", &self.name).finish_non_exhaustive()
    }
}

impl MemorySink {
    /// An empty sink of this name.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), shared: Arc::default() }
    }

    /// Every event that it had, repeats too, each with the shard that published it.
    pub fn records(&self) -> Vec<(ShardNo, Outgoing)> {
        self.inner().records.clone()
    }

    /// The number of records that it has.
    pub fn len(&self) -> usize {
        self.inner().records.len()
    }

    /// Returns whether it has no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses events for which `refuse` gives a reason, from now on.
    pub fn refuse(&self, refuse: impl Fn(&Message) -> Option<String> + Send + 'static) {
        self.inner().refuse = Some(Box::new(refuse));
    }

    /// Makes it unreachable, or reachable again.
    pub fn set_away(&self, away: bool) {
        self.inner().away = away;
        self.shared.changed.notify_waiters();
    }

    /// Makes it take events without answers, or answer again; also the events that it has taken in the meantime.
    pub fn set_silent(&self, silent: bool) {
        self.inner().silent = silent;
        self.shared.changed.notify_waiters();
    }

    /// Breaks all open ends: they never answer the events that they have not answered yet.
    pub fn break_ends(&self) {
        self.inner().breaks += 1;
        self.shared.changed.notify_waiters();
    }

    /// The most events that all its ends together had not answered at a time.
    pub fn unanswered_most(&self) -> usize {
        self.inner().unanswered_most
    }

    fn inner(&self) -> MutexGuard<'_, MemoryRecords> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unavailable(&self) -> SinkError {
        SinkError::Unavailable { name: self.name.to_string(), reason: "told to be away".to_owned() }
    }

    fn broken(&self) -> SinkError {
        SinkError::Broken { name: self.name.to_string(), reason: "told to break".to_owned() }
    }
}

impl SinkTransport for MemorySink {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, shard: ShardNo) -> BoxFuture<'_, Result<Box<dyn Sink>, SinkError>> {
        let (away, breaks) = {
            let inner = self.inner();
            (inner.away, inner.breaks)
        };
        let end = MemoryEnd { sink: self.clone(), shard, breaks, answers: VecDeque::new() };
        Box::pin(ready(if away { Err(self.unavailable()) } else { Ok(Box::new(end) as Box<dyn Sink>) }))
    }
}

struct MemoryEnd {
    sink: MemorySink,
    shard: ShardNo,
    /// The value when it was opened.
    breaks: u64,
    answers: VecDeque<SinkAnswer>,
}

impl Sink for MemoryEnd {
    fn send(&mut self, events: &[Outgoing]) -> Result<usize, SinkError> {
        let mut inner = self.sink.inner();
        if inner.breaks != self.breaks {
            return Err(self.sink.broken());
        }
        if inner.away {
            return Err(self.sink.unavailable());
        }
        for event in events {
            let refused = inner.refuse.as_ref().and_then(|refuse| refuse(&event.message));
            self.answers.push_back(match refused {
                Some(reason) => SinkAnswer::Refused(event.seq, reason),
                None => {
                    inner.records.push((self.shard, event.clone()));
                    SinkAnswer::Confirmed(event.seq)
                }
            });
        }
        inner.unanswered += events.len();
        inner.unanswered_most = inner.unanswered_most.max(inner.unanswered);
        Ok(events.len())
    }

    fn answers(&mut self) -> BoxFuture<'_, Result<Vec<SinkAnswer>, SinkError>> {
        Box::pin(async move {
            loop {
                let changed = self.sink.shared.changed.notified();
                let mut changed = std::pin::pin!(changed);
                // From here on no change is missed.
                changed.as_mut().enable();
                {
                    let mut inner = self.sink.inner();
                    if inner.breaks != self.breaks {
                        return Err(self.sink.broken());
                    }
                    if !inner.silent && !inner.away && !self.answers.is_empty() {
                        inner.unanswered -= self.answers.len();
                        // Newest first: answers come in any order.
                        return Ok(self.answers.drain(..).rev().collect());
                    }
                }
                changed.await;
            }
        })
    }
}

impl Drop for MemoryEnd {
    fn drop(&mut self) {
        self.sink.inner().unanswered -= self.answers.len();
    }
}
