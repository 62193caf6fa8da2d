//! The tools that the suites share: small handlers, messages, an engine over a fresh store.
//! In: names and numbers. Out: engines, messages.

use std::path::Path;
use std::sync::Arc;

use perkey::unstable::message::shard_of;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::query::{ImportBatch, ImportProgress};
use perkey::unstable::store::sqlite::{Access, SqliteStore};
use perkey::unstable::store::{LogRow, ServiceKey, Store};
use perkey::unstable::transport::embedded;
use perkey::{Draft, Engine, Fault, Handler, Handlers, Key, Message, Settings, Turn};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Counts the messages of each key and emits the count.
pub(crate) struct Counting;

#[derive(Deserialize)]
pub(crate) struct Count {
    pub(crate) key: String,
    #[serde(default)]
    pub(crate) fail: Option<String>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub(crate) n: u64,
}

impl Handler for Counting {
    const SERVICE: &'static str = "counting";
    type Message = Count;
    type State = Counted;

    fn key(&self, message: &Count) -> Key {
        message.key.as_str().into()
    }

    async fn handle(&self, counted: &mut Counted, message: Count, turn: &mut Turn) -> Result<(), Fault> {
        counted.n += 1;
        turn.emit("counted", &serde_json::json!({ "id": turn.id(), "n": counted.n }))?;
        match message.fail.as_deref() {
            None => Ok(()),
            #[expect(clippy::panic, reason = "a handler that panics is what is tested")]
            Some("panic") => panic!("as told"),
            Some("forget") => {
                turn.forget();
                Ok(())
            }
            Some("reject") => Err(Fault::reject("as told")),
            Some("once") if turn.attempt() > 1 => Ok(()),
            Some(_) => Err(Fault::retry("as told")),
        }
    }
}

pub(crate) fn handlers() -> Handlers {
    Handlers::new().with(Counting)
}

/// A message for `counting`.
pub(crate) fn count(id: &str, key: &str, fail: Option<&str>) -> Message {
    let payload = serde_json::json!({ "key": key, "fail": fail }).to_string();
    Draft { id, key, kind: "count", source: "test", payload: payload.as_bytes(), ..Draft::default() }.build().unwrap()
}

pub(crate) async fn open(path: &Path) -> Arc<SqliteStore> {
    let url = format!("sqlite://{}", path.display());
    Arc::new(SqliteStore::open(&url, Access::Run).await.unwrap())
}

pub(crate) async fn start(settings: &Settings, store: Arc<SqliteStore>, handlers: Handlers) -> Engine {
    Engine::start(settings, handlers, store, Metrics::new()).await.unwrap()
}

/// The state of a key of a service, in a store with as many shards as the settings have by default.
pub(crate) async fn state<S: DeserializeOwned>(store: &dyn Store, service: &str, key: &str) -> Option<S> {
    let shard = shard_of(key, Settings::default().ownership.shards);
    let asked = vec![ServiceKey { service: service.into(), key: key.into() }];
    let row = store.load(shard, asked).await.unwrap().remove(0);
    row.state.map(|(_, json)| serde_json::from_slice(&json).unwrap())
}

/// Appends messages for a service to the log's import lane.
pub(crate) async fn append(store: &dyn Store, shards: u32, service: &str, messages: &[Message]) {
    for chunk in messages.chunks(1_000) {
        let mut rows = Vec::new();
        for target in 0..shards {
            let mine: Vec<_> =
                chunk.iter().filter(|m| shard_of(m.key(), shards) == target).map(|m| (service, m)).collect();
            if !mine.is_empty() {
                rows.push(LogRow { target, count: mine.len() as u32, messages: embedded::encode(&mine) });
            }
        }
        let progress = ImportProgress::default();
        let batch = ImportBatch { service: service.into(), source: "test".to_owned(), rows, progress, at: 0 };
        store.queries().append_import(batch).await.unwrap();
    }
}
