//! The deliveries that the reader has for one shard and the shard has not fetched yet.
//! In: batches of deliveries, troubles. Out: at most as many deliveries as were asked for; when to pause and resume.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{KafkaFailure, NAME};
use crate::message::Positions;
use crate::transport::{Delivery, SourceError};

/// The bytes that a delivery takes in memory beside its message.
const OVERHEAD: usize = 128;

/// One opening's bounded buffer.
pub(super) struct ShardBuffer {
    inner: Mutex<Buffered>,
    filled: Notify,
    /// The number of bytes at which it is full.
    bound: usize,
    bytes: AtomicUsize,
}

enum BufferEnd {
    /// An operator has to decide.
    Lost(String),
    /// It has to be opened anew.
    Broken(String),
}

#[derive(Default)]
struct Buffered {
    ready: VecDeque<Delivery>,
    trouble: Option<SourceError>,
    /// The reason why the source cannot go on at all.
    end: Option<BufferEnd>,
    /// Positions that are committed and not yet told to the group.
    committed: Positions,
}

/// The bytes that one delivery takes of a buffer.
pub(super) fn bytes_of(delivery: &Delivery) -> usize {
    OVERHEAD + delivery.bytes()
}

impl ShardBuffer {
    pub(super) fn new(bound: usize) -> Self {
        Self { inner: Mutex::new(Buffered::default()), filled: Notify::new(), bound, bytes: AtomicUsize::new(0) }
    }

    fn inner(&self) -> MutexGuard<'_, Buffered> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a batch into the buffer and wakes a waiting fetch, once.
    pub(super) fn put(&self, batch: &mut Vec<Delivery>, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.inner().ready.extend(batch.drain(..));
        self.filled.notify_one();
    }

    /// Reports a temporary failure of the source; told once, after the deliveries that lie ready.
    pub(super) fn trouble(&self, reason: &str) {
        self.inner().trouble = Some(SourceError::Unavailable { name: NAME.to_owned(), reason: reason.to_owned() });
        self.filled.notify_one();
    }

    /// Ends the source, which cannot go on at all; told from now on. The next opening reads the deliveries that lie
    /// ready again.
    pub(super) fn lose(&self, reason: String) {
        self.inner().end = Some(BufferEnd::Lost(reason));
        self.filled.notify_one();
    }

    /// Reports that the filler of the buffer is gone; told from now on.
    pub(super) fn abandon(&self) {
        self.inner().end = Some(BufferEnd::Broken(KafkaFailure::Ended.to_string()));
        self.filled.notify_one();
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Acquire) >= self.bound
    }

    /// Returns whether a full buffer has room again: half of it, so that partitions are not paused and resumed all the
    /// time.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Acquire) <= self.bound / 2
    }

    /// Waits for deliveries and returns at most `max`. Nothing is awaited between taking and returning them.
    pub(super) async fn fetch(&self, max: usize) -> Result<Vec<Delivery>, SourceError> {
        loop {
            if max > 0 {
                let mut inner = self.inner();
                let name = || NAME.to_owned();
                match &inner.end {
                    Some(BufferEnd::Lost(reason)) => {
                        return Err(SourceError::Lost { name: name(), reason: reason.clone() });
                    }
                    Some(BufferEnd::Broken(reason)) => {
                        return Err(SourceError::Broken { name: name(), reason: reason.clone() });
                    }
                    None => {}
                }
                let count = max.min(inner.ready.len());
                if count > 0 {
                    let taken: Vec<Delivery> = inner.ready.drain(..count).collect();
                    drop(inner);
                    self.bytes.fetch_sub(taken.iter().map(bytes_of).sum(), Ordering::AcqRel);
                    return Ok(taken);
                }
                if let Some(error) = inner.trouble.take() {
                    return Err(error);
                }
            }
            self.filled.notified().await;
        }
    }

    /// Records positions that the store has.
    pub(super) fn committed(&self, positions: &Positions) {
        let mut inner = self.inner();
        for (origin, position) in positions {
            inner.committed.insert(origin.clone(), *position);
        }
    }

    /// The positions to tell the group, once.
    pub(super) fn to_commit(&self) -> Positions {
        std::mem::take(&mut self.inner().committed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::*;
    use crate::message::Draft;
    use crate::message::Position;
    use crate::transport::Content;

    fn delivery(no: u64) -> Delivery {
        let payload = vec![b'x'; 1_000];
        let message = Draft { id: "m", key: "k", kind: "t", payload: &payload, ..Draft::default() }.build().unwrap();
        Delivery { origin: Arc::from("t/0"), position: Position::new(no, 0), content: Content::Unrouted(message) }
    }

    #[test]
    fn it_is_full_at_its_bound_and_has_room_at_half() {
        let buffer = ShardBuffer::new(4_000);
        let mut batch: Vec<_> = (0..4).map(delivery).collect();
        let bytes = batch.iter().map(bytes_of).sum();
        buffer.put(&mut batch, bytes);
        assert!(batch.is_empty() && buffer.is_full() && !buffer.has_room());
        assert_eq!(buffer.fetch(2).now_or_never().unwrap().unwrap().len(), 2);
        assert!(!buffer.is_full() && !buffer.has_room());
        assert_eq!(buffer.fetch(9).now_or_never().unwrap().unwrap().len(), 2);
        assert!(buffer.has_room() && buffer.fetch(9).now_or_never().is_none());
    }

    #[test]
    fn troubles_come_after_what_was_ready_and_a_loss_before_it() {
        let buffer = ShardBuffer::new(4_000);
        buffer.trouble("away");
        buffer.put(&mut vec![delivery(0)], 1_128);
        assert_eq!(buffer.fetch(9).now_or_never().unwrap().unwrap().len(), 1);
        assert!(matches!(buffer.fetch(9).now_or_never(), Some(Err(SourceError::Unavailable { .. }))));
        assert!(buffer.fetch(9).now_or_never().is_none(), "told once");
        buffer.lose("gone".to_owned());
        buffer.put(&mut vec![delivery(1)], 1_128);
        buffer.trouble("away");
        for _ in 0..2 {
            assert!(matches!(buffer.fetch(9).now_or_never(), Some(Err(SourceError::Lost { .. }))));
        }
    }
}
