//! The embedded log: messages between services, in the same store and the same commit as their causes.
//! In: messages for services, as rows of the log. Out: deliveries of one shard, each origin's in order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::ongoing::Ongoing;
use super::{Content, Delivery, Source, SourceError, Transport};
use crate::message::{Draft, Position, Positions, ShardNo};
pub use crate::store::layout::log::{NAME, RowError, decode, encode};
use crate::store::{Store, StoreError, StoreFuture, StoredLogRow};

/// The number of messages that are read ahead of the request.
const READ_AHEAD: usize = 2_048;
/// The bytes that are shown of a row that does not decode.
const SHOWN_BYTES: usize = 4_096;

/// The log of a store, as a transport.
pub struct EmbeddedLog {
    store: Arc<dyn Store>,
    poll: Duration,
}

impl EmbeddedLog {
    /// The log of `store`; it looks for rows of other processes every `poll`.
    pub fn new(store: Arc<dyn Store>, poll: Duration) -> Self {
        Self { store, poll }
    }
}

impl Transport for EmbeddedLog {
    fn name(&self) -> &str {
        NAME
    }

    fn open(&self, shard: ShardNo, from: Positions) -> BoxFuture<'_, Result<Box<dyn Source>, SourceError>> {
        let source = LogSource {
            store: Arc::clone(&self.store),
            poll: self.poll,
            shard,
            read: from.clone(),
            from,
            ready: VecDeque::new(),
            names: HashMap::new(),
            reading: Ongoing::default(),
        };
        Box::pin(async move { Ok(Box::new(source) as Box<dyn Source>) })
    }
}

struct LogSource {
    store: Arc<dyn Store>,
    poll: Duration,
    shard: ShardNo,
    /// The positions where the opening began: a row may be partly taken.
    from: Positions,
    /// The positions up to which rows were read.
    read: Positions,
    /// Deliveries that were read and not yet handed over.
    ready: VecDeque<Delivery>,
    /// Services' names, one `Arc` for each.
    names: HashMap<Arc<str>, Arc<str>>,
    reading: Ongoing<Vec<StoredLogRow>>,
}

impl Source for LogSource {
    fn fetch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        Box::pin(async move {
            // Nothing is awaited between taking from `ready` and returning it: a dropped fetch loses nothing.
            while self.ready.is_empty() || max == 0 {
                if max > 0 {
                    let rows = self.rows(max.max(READ_AHEAD)).await.map_err(unavailable)?;
                    if !rows.is_empty() {
                        self.take_in(rows);
                        continue;
                    }
                }
                tokio::select! {
                    () = self.store.log_changed(self.shard) => {}
                    () = crate::clock::sleep(self.poll) => {}
                }
            }
            let count = max.min(self.ready.len());
            Ok(self.ready.drain(..count).collect())
        })
    }

    fn committed(&mut self, _positions: &Positions) {
        // The shard trims the log by the positions it has committed.
    }
}

impl LogSource {
    async fn rows(&mut self, limit: usize) -> Result<Vec<StoredLogRow>, StoreError> {
        let begin = || -> StoreFuture<'static, _> {
            let (store, shard, read) = (Arc::clone(&self.store), self.shard, self.read.clone());
            Box::pin(async move { store.read_log(shard, read, limit).await })
        };
        self.reading.end(begin).await
    }

    fn take_in(&mut self, rows: Vec<StoredLogRow>) {
        for row in rows {
            let passed =
                self.from.get(&row.origin).filter(|from| from.no == row.no).map_or(0, |from| u64::from(from.index) + 1);
            // A position behind every message of the row, whatever their number.
            self.read.insert(Arc::clone(&row.origin), Position::new(row.no, u32::MAX));
            let messages = match decode(row.messages.clone()) {
                Ok(messages) => messages,
                Err(error) => {
                    self.ready.push_back(unreadable(&row, &error));
                    continue;
                }
            };
            // Neighbours are mostly for the same service: its name is looked up once.
            let mut known: Option<(Arc<str>, Arc<str>)> = None;
            for (index, (service, message)) in (0_u32..).zip(messages) {
                if u64::from(index) < passed {
                    continue;
                }
                let service = match &known {
                    Some((in_row, known)) if Arc::ptr_eq(in_row, &service) => Arc::clone(known),
                    Some(_) | None => {
                        let name = self.name(Arc::clone(&service));
                        known = Some((service, Arc::clone(&name)));
                        name
                    }
                };
                self.ready.push_back(Delivery {
                    origin: Arc::clone(&row.origin),
                    position: Position::new(row.no, index),
                    content: Content::For(service, message),
                });
            }
        }
    }

    /// Returns the same `Arc` for the same name, in whichever row it came.
    fn name(&mut self, name: Arc<str>) -> Arc<str> {
        Arc::clone(self.names.entry(Arc::clone(&name)).or_insert(name))
    }
}

/// One delivery for a whole row: its bytes, kept for inspection. Its place is the row's end.
fn unreadable(row: &StoredLogRow, error: &RowError) -> Delivery {
    let shown = &row.messages[..row.messages.len().min(SHOWN_BYTES)];
    let id = format!("{}/{}", row.origin, row.no);
    let draft = Draft { id: &id, source: NAME, payload: shown, ..Draft::default() };
    let message = draft.build_unchecked().expect("4 KiB of payload and a short id fit a frame");
    Delivery {
        origin: Arc::clone(&row.origin),
        position: Position::new(row.no, u32::MAX),
        content: Content::Unreadable { message, reason: error.to_string() },
    }
}

fn unavailable(error: StoreError) -> SourceError {
    SourceError::Unavailable { name: NAME.to_owned(), reason: error.to_string() }
}
