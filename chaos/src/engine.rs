//! An engine in this process, with a handler of adjustable pace, and a feeder that keeps its log filled.
//! In: settings, postings. Out: a running engine; postings appended as long as there is room.

pub mod children;
pub mod flood;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use perkey::unstable::message::shard_of;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::query::{ImportBatch, ImportProgress};
use perkey::unstable::store::sqlite::{Access, SqliteStore};
use perkey::unstable::store::{LogRow, Store};
use perkey::unstable::transport::embedded::{self, EmbeddedLog};
use perkey::unstable::transport::memory::MemorySink;
use perkey::unstable::transport::{SinkTransport, Transport};
use perkey::{Engine, Fault, Handler, Handlers, Key, Message, Settings, StoreError, Turn, sleep};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::ChaosError;
use crate::postings::{Postings, SERVICE};

/// Name of the sink that a scene publishes to, where its settings have a route there.
pub const SINK: &str = "memory";

/// The number of messages appended at once.
const BATCH: usize = 500;

/// Keeps a balance per account, as slowly as it is told to.
struct Accounts {
    pace: Pace,
}

/// Microseconds that a turn takes.
pub type Pace = Arc<AtomicU64>;

#[derive(Deserialize)]
struct Posting {
    account: String,
    amount: i64,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Balance {
    balance: i64,
    n: u64,
}

impl Handler for Accounts {
    const SERVICE: &'static str = SERVICE;
    type Message = Posting;
    type State = Balance;

    fn key(&self, posting: &Posting) -> Key {
        posting.account.as_str().into()
    }

    async fn handle(&self, state: &mut Balance, posting: Posting, turn: &mut Turn) -> Result<(), Fault> {
        let micros = self.pace.load(Ordering::Relaxed);
        if micros > 0 {
            sleep(Duration::from_micros(micros)).await;
        }
        state.balance += posting.amount;
        state.n += 1;
        let id = turn.id().to_owned();
        turn.emit("balance.changed", &json!({ "id": id, "balance": state.balance, "n": state.n }))
    }
}

/// An engine over a fresh store.
#[derive(Debug)]
pub struct Scene {
    /// The engine.
    pub engine: Engine,
    /// Its store.
    pub store: Arc<SqliteStore>,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    /// The sink that it publishes to.
    pub sink: MemorySink,
    /// The pace of its handler.
    pub pace: Pace,
    /// `store.url`.
    pub url: String,
    shards: u32,
}

impl Scene {
    /// Starts an engine in `folder`.
    pub async fn start(settings: &Settings, folder: &Path) -> Result<Self, ChaosError> {
        let url = format!("sqlite://{}", folder.join("store.db").display());
        let store = Arc::new(SqliteStore::open(&url, Access::Run).await?);
        let metrics = Metrics::new();
        let pace = Pace::default();
        let handlers = Handlers::new().with(Accounts { pace: pace.clone() });
        let sink = MemorySink::new(SINK);
        let log = Arc::new(EmbeddedLog::new(store.clone(), settings.log.poll));
        let (sources, sinks) =
            (vec![log as Arc<dyn Transport>], vec![Arc::new(sink.clone()) as Arc<dyn SinkTransport>]);
        let engine = Engine::start_with(settings, handlers, store.clone(), metrics.clone(), sources, sinks).await?;
        Ok(Self { engine, store, metrics, sink, pace, url, shards: settings.ownership.shards })
    }

    /// Appends postings until `stop`, as fast as possible while at most `unread_max` are unread; returns the most that
    /// were.
    pub async fn fill(&self, given: &mut Postings, unread_max: u64, stop: &AtomicBool) -> Result<u64, ChaosError> {
        let mut most = 0;
        while !stop.load(Ordering::Acquire) {
            let unread = self.store.queries().unread_imports().await?;
            most = most.max(unread);
            if unread + BATCH as u64 > unread_max {
                sleep(Duration::from_millis(5)).await;
                continue;
            }
            let batch = (0..BATCH).map(|_| given.make().message()).collect::<Result<Vec<_>, _>>()?;
            append(&*self.store, self.shards, &batch).await?;
        }
        Ok(most)
    }

    /// Waits until everything is handled, then leaves in order.
    pub async fn finish(self, within: Duration) -> Result<String, ChaosError> {
        let idle = tokio::time::timeout(within, self.engine.idle()).await;
        idle.map_err(|_| ChaosError::Stuck(format!("messages were left unread after {within:?}")))?;
        self.engine.drain().await?;
        self.store.close().await;
        Ok(self.url)
    }
}

/// Appends postings to the log.
pub(crate) async fn append(store: &dyn Store, shards: u32, messages: &[Message]) -> Result<(), StoreError> {
    append_for(SERVICE, store, shards, messages).await
}

/// Appends messages for a service to the log.
pub(crate) async fn append_for(
    service: &str,
    store: &dyn Store,
    shards: u32,
    messages: &[Message],
) -> Result<(), StoreError> {
    if messages.is_empty() {
        return Ok(());
    }
    let mut targets: Vec<Vec<(&str, &Message)>> = vec![Vec::new(); shards as usize];
    for message in messages {
        targets[shard_of(message.key(), shards) as usize].push((service, message));
    }
    let rows = (0..).zip(&targets).filter(|(_, some)| !some.is_empty());
    let rows = rows.map(|(target, some)| LogRow {
        target,
        count: u32::try_from(some.len()).unwrap_or(u32::MAX),
        messages: embedded::encode(some),
    });
    let progress = ImportProgress::default();
    let batch =
        ImportBatch { service: service.into(), source: "chaos".to_owned(), rows: rows.collect(), progress, at: 0 };
    store.queries().append_import(batch).await
}
