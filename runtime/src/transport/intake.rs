//! The store's intake table as a source: messages that applications inserted in transactions of their own.
//! In: rows. Out: deliveries without a position to resume from; the commit that takes one deletes its row.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

use super::ongoing::Ongoing;
use super::{Content, Delivery, Source, SourceError, Transport};
use crate::handler::is_reserved;
use crate::message::{CUT_FROM, Draft, Message, MessageError, Position, Positions, ShardNo, kept};
use crate::store::append::INTAKE;
use crate::store::{IntakeRow, IntakeRows, Store, StoreError, StoreFuture};

/// The transport's name in settings and metrics, and its one origin.
pub const NAME: &str = INTAKE;

/// The intake of a store, as a transport.
pub struct Intake {
    store: Arc<dyn Store>,
    poll: Duration,
    bytes_max: usize,
}

impl Intake {
    /// The intake of `store`; it looks for new rows every `poll`. Only a part is read of rows with more than
    /// `bytes_max` bytes.
    pub fn new(store: Arc<dyn Store>, poll: Duration, bytes_max: usize) -> Self {
        Self { store, poll, bytes_max }
    }
}

impl Transport for Intake {
    fn name(&self) -> &str {
        NAME
    }

    fn ordered(&self) -> bool {
        false
    }

    fn open(&self, shard: ShardNo, _from: Positions) -> BoxFuture<'_, Result<Box<dyn Source>, SourceError>> {
        let source = IntakeSource {
            store: Arc::clone(&self.store),
            poll: self.poll,
            bytes_max: self.bytes_max,
            shard,
            origin: Arc::from(NAME),
            held: BTreeSet::new(),
            reading: Ongoing::default(),
        };
        Box::pin(async move { Ok(Box::new(source) as Box<dyn Source>) })
    }
}

struct IntakeSource {
    store: Arc<dyn Store>,
    poll: Duration,
    bytes_max: usize,
    shard: ShardNo,
    origin: Arc<str>,
    /// Rows handed over by this opening that may still be in the table. As many as deliveries can be in hand: numbers
    /// become visible out of order, so no single number says which rows were seen.
    held: BTreeSet<u64>,
    reading: Ongoing<IntakeRows>,
}

impl Source for IntakeSource {
    fn fetch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        Box::pin(async move {
            loop {
                if max > 0 {
                    let mut found = self.rows(max).await.map_err(unavailable)?;
                    // Nothing is awaited from here on: a dropped fetch loses nothing.
                    self.held = found.left.into_iter().collect();
                    // The fetch that began the read may have asked for more: rows beyond `max` are found again.
                    found.rows.truncate(max);
                    if !found.rows.is_empty() {
                        self.held.extend(found.rows.iter().map(|row| row.no));
                        return Ok(found.rows.into_iter().map(|row| self.delivery(row)).collect());
                    }
                }
                crate::clock::sleep(self.poll).await;
            }
        })
    }

    fn committed(&mut self, _positions: &Positions) {
        // A committed row is gone from the table, which the next look notices.
    }
}

impl IntakeSource {
    async fn rows(&mut self, limit: usize) -> Result<IntakeRows, StoreError> {
        let begin = || -> StoreFuture<'static, _> {
            let (store, shard, held) = (Arc::clone(&self.store), self.shard, self.held.iter().copied().collect());
            let bytes_max = self.bytes_max;
            Box::pin(async move { store.read_intake(shard, held, limit, bytes_max).await })
        };
        self.reading.end(begin).await
    }

    fn delivery(&self, row: IntakeRow) -> Delivery {
        let content = match message(&row, self.bytes_max) {
            Ok(message) => match &row.service {
                Some(service) => Content::For(Arc::clone(service), message),
                None => Content::Unrouted(message),
            },
            Err(error) => unreadable(&row, error.to_string()),
        };
        Delivery { origin: Arc::clone(&self.origin), position: Position::new(row.no, 0), content }
    }
}

/// The reason why a row is not a message.
#[derive(Debug, thiserror::Error)]
enum IntakeError {
    #[error("the headers are not a JSON object: {0}")]
    Headers(serde_json::Error),
    #[error(transparent)]
    Message(#[from] MessageError),
}

fn message(row: &IntakeRow, bytes_max: usize) -> Result<Message, IntakeError> {
    let bytes = row.bytes.to_string();
    let cut = (row.bytes > bytes_max as u64).then_some((CUT_FROM, bytes.as_str()));
    let headers: Map<String, Value> = serde_json::from_str(&row.headers).map_err(IntakeError::Headers)?;
    let texts: Vec<(String, String)> = headers
        .into_iter()
        .filter(|(name, _)| !is_reserved(name))
        .map(|(name, value)| match value {
            Value::String(text) => (name, text),
            other => (name, other.to_string()),
        })
        .collect();
    let headers = texts.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(cut);
    let headers: Vec<(&str, &str)> = headers.collect();
    let draft = Draft {
        id: &row.id,
        key: &row.key,
        kind: &row.kind,
        source: NAME,
        time: row.at,
        headers: &headers,
        payload: if cut.is_some() { kept(row.payload.as_bytes()) } else { row.payload.as_bytes() },
    };
    Ok(draft.build()?)
}

fn unreadable(row: &IntakeRow, reason: String) -> Content {
    let id = format!("{NAME}/{}", row.no);
    let payload = kept(row.payload.as_bytes());
    let draft = Draft { id: &id, source: NAME, time: row.at, payload, ..Draft::default() };
    let message = draft.build_unchecked().expect("64 KiB of payload and a short id fit a frame");
    Content::Unreadable { message, reason }
}

fn unavailable(error: StoreError) -> SourceError {
    SourceError::Unavailable { name: NAME.to_owned(), reason: error.to_string() }
}
