//! Simulated sources: a log that is read from a position, and a queue that hands over again what was not acknowledged.
//! In: contents with the time from which they can be read. Out: deliveries, each origin's in order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::{BoxFuture, pending, ready};

use crate::clock::{Clock, Millis};
use crate::message::ShardNo;
use crate::transport::{Content, Delivery, Position, Positions, Source, SourceError, Transport};

type Origins = BTreeMap<Arc<str>, Vec<(Millis, Content)>>;

#[derive(Default)]
struct Shelf {
    origins: BTreeMap<ShardNo, Origins>,
    acknowledged: BTreeMap<ShardNo, Positions>,
}

/// A log or a queue for every shard.
#[derive(Clone)]
pub(super) struct SimTransport {
    name: &'static str,
    /// It goes by what was acknowledged and not by positions.
    queue: bool,
    clock: Clock,
    shelf: Arc<Mutex<Shelf>>,
}

impl SimTransport {
    pub(super) fn new(name: &'static str, queue: bool, clock: Clock) -> Self {
        Self { name, queue, clock, shelf: Arc::default() }
    }

    /// Puts something at the end of an origin; it can be read from `at` on.
    pub(super) fn append(&self, shard: ShardNo, origin: &Arc<str>, at: Millis, content: Content) -> Position {
        let mut shelf = self.shelf();
        let log = shelf.origins.entry(shard).or_default().entry(origin.clone()).or_default();
        let at = log.last().map_or(at, |(last, _)| at.max(*last));
        log.push((at, content));
        Position::new(log.len() as u64, 0)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for SimTransport {
    fn name(&self) -> &str {
        self.name
    }

    fn open(&self, shard: ShardNo, from: Positions) -> BoxFuture<'_, Result<Box<dyn Source>, SourceError>> {
        let from = if self.queue { self.shelf().acknowledged.get(&shard).cloned().unwrap_or_default() } else { from };
        let source = SimSource { transport: self.clone(), shard, from };
        Box::pin(ready(Ok(Box::new(source) as Box<dyn Source>)))
    }
}

struct SimSource {
    transport: SimTransport,
    shard: ShardNo,
    from: Positions,
}

impl Source for SimSource {
    fn fetch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        let now = self.transport.clock.now();
        let mut found = Vec::new();
        {
            let shelf = self.transport.shelf();
            for (origin, log) in shelf.origins.get(&self.shard).into_iter().flatten() {
                let read = self.from.get(origin).map_or(0, |from| from.no);
                let there = log.iter().enumerate().skip(usize::try_from(read).unwrap_or(usize::MAX));
                for (at, (_, content)) in there.take_while(|(_, (from, _))| *from <= now) {
                    if found.len() == max {
                        break;
                    }
                    let position = Position::new(at as u64 + 1, 0);
                    self.from.insert(origin.clone(), position);
                    found.push(Delivery { origin: origin.clone(), position, content: content.clone() });
                }
            }
        }
        if found.is_empty() { Box::pin(pending()) } else { Box::pin(ready(Ok(found))) }
    }

    fn committed(&mut self, positions: &Positions) {
        let mut shelf = self.transport.shelf();
        let acknowledged = shelf.acknowledged.entry(self.shard).or_default();
        for (origin, position) in positions {
            let known = acknowledged.entry(origin.clone()).or_default();
            *known = (*known).max(*position);
        }
    }
}
