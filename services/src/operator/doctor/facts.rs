//! The facts that `doctor` judges, gathered once: nothing is judged here.
//! In: settings. Out: facts; an unreachable part has a reason instead.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::clock::Clock;
use perkey::unstable::settings::topic_of;
use perkey::unstable::store::calls::KeyCount;
use perkey::unstable::store::health::{Disk, StoreHealth};
use perkey::unstable::store::lease::{Code, Fleet};
use perkey::unstable::store::query::{ShardRow, WaitingKey};
use perkey::unstable::store::{self, Opened};
use perkey::unstable::transport::kafka::health::KafkaHealth;
use perkey::unstable::transport::rabbitmq::health::RabbitmqHealth;
use perkey::unstable::transport::{kafka, rabbitmq};
use perkey::{Millis, Settings, StoreError};

use super::super::cli::outbox::{self, Stat};
use super::super::cli::{Failure, handlers, open_beside};

/// All facts.
pub(super) struct Facts {
    pub(super) settings: Settings,
    /// This program's services, and the versions of states that it reads.
    pub(super) services: Vec<Arc<str>>,
    pub(super) code: Code,
    /// True if several workers share the store.
    pub(super) shared: bool,
    pub(super) disk: Option<Disk>,
    /// The store's facts, or the reason why there are none.
    pub(super) store: Result<StoreFacts, String>,
    /// Kafka's facts, if the settings name brokers, or the reason why they do not answer.
    pub(super) kafka: Option<Result<KafkaHealth, String>>,
    /// RabbitMQ's facts, if the settings name it, or the reason why it does not answer.
    pub(super) rabbitmq: Option<Result<RabbitmqHealth, String>>,
}

/// The store's facts.
#[derive(Default)]
pub(super) struct StoreFacts {
    pub(super) health: StoreHealth,
    pub(super) rows: Vec<ShardRow>,
    /// Workers and owners, if the store has leases.
    pub(super) fleet: Option<Fleet>,
    /// The key that most messages wait for.
    pub(super) busiest: Option<WaitingKey>,
    pub(super) oldest_transaction: Option<Duration>,
    pub(super) sinks: Vec<Stat>,
    /// The number of idempotency keys of each tenant.
    pub(super) keys: Vec<KeyCount>,
    /// True if a process runs it.
    pub(super) running: bool,
    /// This machine's time before and after the store told its own.
    pub(super) asked: (Millis, Millis),
}

/// Gathers all facts, even if some parts are unreachable.
pub(super) async fn gathered(settings: &Settings) -> Result<Facts, Failure> {
    let handlers = handlers(settings)?;
    let store = match open_beside(settings).await {
        Ok(store) => {
            let told = told(settings, &store).await.map_err(said);
            store.close().await;
            told
        }
        Err(Failure::Store(text) | Failure::Failed(text) | Failure::Usage(text)) => Err(text),
        Err(Failure::Settings(problems)) => Err(problems.join("; ")),
    };
    let rows = store.as_ref().map_or(&[][..], |told| &told.rows);
    let kafka = match settings.kafka.brokers.is_empty() {
        true => None,
        false => Some(kafka::health::look(&settings.kafka, topics(settings), partitions(rows)).await.map_err(said)),
    };
    let shards = settings.ownership.shards;
    let rabbitmq = match settings.rabbitmq.addresses.is_empty() {
        true => None,
        false => Some(rabbitmq::health::look(&settings.rabbitmq, shards, exchanges(settings)).await.map_err(said)),
    };
    Ok(Facts {
        settings: settings.clone(),
        services: handlers.services(),
        code: handlers.code(),
        shared: store::is_shared(settings),
        disk: store::disk(settings),
        store,
        kafka,
        rabbitmq,
    })
}

fn said(error: impl std::error::Error) -> String {
    error.to_string()
}

async fn told(settings: &Settings, store: &Opened) -> Result<StoreFacts, StoreError> {
    let queries = store.queries();
    let before = Clock::system().now();
    let health = queries.health().await?;
    let asked = (before, Clock::system().now());
    let rows = queries.shards().await?;
    let fleet = match store.leases() {
        Some(leases) => Some(leases.fleet().await?),
        None => None,
    };
    Ok(StoreFacts {
        busiest: queries.waiting_keys(None, 1).await?.into_iter().next(),
        oldest_transaction: store.oldest_transaction().await?,
        sinks: outbox::collected(settings, queries, &rows).await?,
        keys: store.calls().counts(before).await?,
        running: store::is_running(settings).await,
        health,
        rows,
        fleet,
        asked,
    })
}

/// The topics that are read.
pub(super) fn read_topics(settings: &Settings) -> BTreeSet<&str> {
    settings.kafka.topics.iter().map(|entry| topic_of(entry)).collect()
}

/// The topics that are written.
pub(super) fn written_topics(settings: &Settings) -> BTreeSet<&str> {
    let published = settings.publish.iter().filter(|route| route.sink == kafka::NAME).map(|route| route.topic.as_str());
    let dead_letters = Some(settings.kafka.dead_letter_topic.as_str()).filter(|topic| !topic.is_empty());
    published.chain(dead_letters).collect()
}

fn topics(settings: &Settings) -> Vec<String> {
    let all: BTreeSet<_> = read_topics(settings).into_iter().chain(written_topics(settings)).collect();
    all.into_iter().map(str::to_owned).collect()
}

fn partitions(rows: &[ShardRow]) -> Vec<String> {
    let positions = rows.iter().filter_map(|row| row.positions.get(kafka::NAME));
    positions.flat_map(|positions| positions.keys()).map(ToString::to_string).collect()
}

/// The exchanges that events go to, other than those of streams; a route names a routing key behind a colon.
pub(super) fn written_exchanges(settings: &Settings) -> BTreeSet<&str> {
    let routes = settings.publish.iter().filter(|route| route.sink == rabbitmq::NAME).map(|route| route.topic.as_str());
    let others = routes.filter(|topic| !settings.rabbitmq.streams.iter().any(|entry| topic_of(entry) == *topic));
    // The broker's own exchange, which has no name, is always there.
    others.map(|topic| topic.split_once(':').map_or(topic, |(name, _)| name)).filter(|name| !name.is_empty()).collect()
}

/// All exchanges that must exist.
fn exchanges(settings: &Settings) -> Vec<String> {
    let streams = settings.rabbitmq.streams.iter().map(|entry| topic_of(entry).to_owned());
    let intakes = settings.rabbitmq.intakes.iter();
    let intakes = intakes.flat_map(|name| [format!("{name}.intake"), format!("{name}.intake.dead")]);
    let written = written_exchanges(settings).into_iter().map(str::to_owned);
    streams.chain(intakes).chain(written).collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use perkey::unstable::store::health::{ServerHealth, ShardHealth};
    use perkey::unstable::store::lease::{LeaseRow, Worker, WorkerRow};

    use super::super::{Finding, Level};
    use super::*;

    pub(in super::super) const NOW: Millis = 1_000_000_000_000;

    /// The facts of a fleet of one worker and one shard on PostgreSQL, with nothing wrong.
    pub(in super::super) fn sound() -> Facts {
        let mut settings = Settings::default();
        settings.store.url = "postgres://h/d".to_owned();
        settings.ownership.shards = 1;
        let names = [
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("synchronous_commit", "on"),
            ("synchronous_standby_names", "b"),
            ("autovacuum", "on"),
            ("max_connections", "100"),
            ("idle_in_transaction_session_timeout", "60000"),
        ];
        let server = ServerHealth {
            version: 150_004,
            now: Some(NOW),
            settings: names.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            format: 2,
            sessions: 10,
            ..ServerHealth::default()
        };
        let at = Some(NOW - 1_000);
        let shard = ShardHealth { newest_at: at, latest_at: at, oldest_at: at, ..ShardHealth::default() };
        let worker = Worker {
            id: "w".to_owned(),
            code: Code::of([("orders", 8)]),
            version: "1".to_owned(),
            ..Worker::default()
        };
        let row = LeaseRow { shard: 0, owner: Some("w".to_owned()), epoch: 1, code: Code::of([("orders", 8)]) };
        let store = StoreFacts {
            health: StoreHealth { server, shards: vec![shard], services: Vec::new() },
            rows: vec![row_of(0)],
            fleet: Some(Fleet { workers: vec![WorkerRow { worker, expires_in: 9_000 }], shards: vec![row] }),
            running: true,
            asked: (NOW - 5, NOW + 5),
            ..StoreFacts::default()
        };
        Facts {
            settings,
            services: vec!["orders".into()],
            code: Code::of([("orders", 8)]),
            shared: true,
            disk: None,
            store: Ok(store),
            kafka: None,
            rabbitmq: None,
        }
    }

    pub(in super::super) fn row_of(shard: u32) -> ShardRow {
        ShardRow {
            shard,
            owner: Some("w".to_owned()),
            epoch: 1,
            commit_no: 1,
            unclean: 0,
            unread: 0,
            pending: 0,
            waiting_keys: 0,
            dead_letters: 0,
            held_keys: 0,
            outbox_seq: 0,
            positions: BTreeMap::new(),
            ahead: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            counters: BTreeMap::new(),
        }
    }

    /// The findings beyond "ok" once `change` was made to sound facts.
    pub(in super::super) fn found(
        checks: fn(&Facts) -> Vec<Finding>,
        change: impl FnOnce(&mut Facts, &mut StoreFacts),
    ) -> Vec<(&'static str, Level)> {
        let mut facts = sound();
        let mut store = std::mem::replace(&mut facts.store, Err(String::new())).unwrap();
        change(&mut facts, &mut store);
        facts.store = Ok(store);
        let found = checks(&facts).into_iter().filter(|found| found.level > Level::Ok);
        found.map(|found| (found.check, found.level)).collect()
    }
}
