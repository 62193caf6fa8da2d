//! Events on their way to sinks: in order, at least once, past what is refused, whatever dies meanwhile.
//! In: an engine over a fresh store, a sink in memory that misbehaves as it is told. Out: the sink's events;
//! watermarks.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::metrics::{Child, Metrics};
use perkey::unstable::store::query::{DeadFilter, NewCommand, OperatorAction, ShardRow};
use perkey::unstable::store::sqlite::SqliteStore;
use perkey::unstable::store::{DeadLetter, Store};
use perkey::unstable::transport::embedded::EmbeddedLog;
use perkey::unstable::transport::memory::MemorySink;
use perkey::unstable::transport::{SinkTransport, Transport};
use perkey::{Engine, Message, Publish, Settings};

use crate::support::{append, count, handlers, open};

fn publish(kind: &str, sink: &str) -> Publish {
    Publish { service: "*".to_owned(), kind: kind.to_owned(), sink: sink.to_owned(), topic: "counts".to_owned() }
}

fn settings(shards: u32) -> Settings {
    let mut settings = Settings { publish: vec![publish("counted", "kafka")], ..Settings::default() };
    settings.ownership.shards = shards;
    settings.retry.base = Duration::from_millis(2);
    settings.retry.cap = Duration::from_millis(5);
    settings
}

struct Scene {
    folder: tempfile::TempDir,
    settings: Settings,
    sink: MemorySink,
    store: Arc<SqliteStore>,
    metrics: Arc<Metrics>,
    engine: Engine,
}

async fn start(settings: &Settings, store: &Arc<SqliteStore>, metrics: &Arc<Metrics>, sinks: &[MemorySink]) -> Engine {
    let log = EmbeddedLog::new(store.clone(), settings.log.poll);
    let sources: Vec<Arc<dyn Transport>> = vec![Arc::new(log)];
    let sinks = sinks.iter().map(|sink| Arc::new(sink.clone()) as Arc<dyn SinkTransport>).collect();
    Engine::start_with(settings, handlers(), store.clone(), metrics.clone(), sources, sinks).await.unwrap()
}

impl Scene {
    async fn new(settings: Settings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&path(folder.path())).await;
        let (sink, metrics) = (MemorySink::new("kafka"), Metrics::new());
        let engine = start(&settings, &store, &metrics, std::slice::from_ref(&sink)).await;
        Self { folder, settings, sink, store, metrics, engine }
    }

    /// The process leaves and another one comes, with these settings.
    async fn again(self, change: impl FnOnce(&mut Settings)) -> Self {
        let Self { folder, mut settings, sink, store, .. } = self;
        self.engine.drain().await.unwrap();
        store.close().await;
        drop(store);
        change(&mut settings);
        let (store, metrics) = (open(&path(folder.path())).await, Metrics::new());
        let engine = start(&settings, &store, &metrics, std::slice::from_ref(&sink)).await;
        Self { folder, settings, sink, store, metrics, engine }
    }

    async fn give(&self, numbers: std::ops::Range<usize>) {
        let messages: Vec<_> = numbers.map(|n| count(&format!("m{n}"), &format!("k{}", n % 7), None)).collect();
        append(&*self.store, self.settings.ownership.shards, "counting", &messages).await;
    }

    async fn rows(&self) -> Vec<ShardRow> {
        self.store.queries().shards().await.unwrap()
    }

    /// All watermarks are at the last event.
    async fn published(&self) {
        until("everything is published", async || {
            self.engine.idle().await;
            let rows = self.rows().await;
            rows.iter().all(|row| row.watermarks.get("kafka") == Some(&row.outbox_seq))
        })
        .await;
    }

    async fn dead(&self) -> Vec<DeadLetter> {
        let dead = self.store.queries().peek(DeadFilter::default(), 1_000).await.unwrap();
        dead.into_iter().map(|(_, letter)| letter).collect()
    }

    async fn command(&self, action: OperatorAction) -> u64 {
        let (filter, who, why) = (DeadFilter::default(), "ann".to_owned(), "test".to_owned());
        let id =
            self.store.queries().command(NewCommand { action, filter, who, why, matched: 0, at: 1 }).await.unwrap();
        let mut affected = 0;
        until("the command is executed", async || {
            let state = self.store.queries().command_state(id).await.unwrap();
            affected = state.affected;
            state.shards_done == state.shards
        })
        .await;
        affected
    }
}

fn path(folder: &Path) -> std::path::PathBuf {
    folder.join("s.db")
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if holds().await {
            return;
        }
        perkey::sleep(Duration::from_millis(20)).await;
    }
    panic!("it never came to pass: {what}");
}

/// The counts that each key's events tell, repeats by id removed.
fn counts(sink: &MemorySink) -> BTreeMap<String, Vec<u64>> {
    let mut known = HashSet::new();
    let mut counts: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (_, record) in sink.records() {
        assert_eq!(&*record.topic, "counts");
        if known.insert(record.message.id().to_owned()) {
            counts.entry(record.message.key().to_owned()).or_default().push(n(&record.message));
        }
    }
    counts
}

fn n(message: &Message) -> u64 {
    serde_json::from_slice::<serde_json::Value>(message.payload()).unwrap()["n"].as_u64().unwrap()
}

/// Each event came, and those of a key in their order.
fn complete(sink: &MemorySink, messages: usize) {
    let counts = counts(sink);
    assert_eq!(counts.values().map(Vec::len).sum::<usize>(), messages);
    for (key, counts) in counts {
        assert!(counts.iter().copied().eq(1..=counts.len() as u64), "{key}: {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_once_and_in_order_when_nothing_goes_wrong() {
    let scene = Scene::new(settings(3)).await;
    scene.give(0..5_000).await;
    scene.published().await;
    complete(&scene.sink, 5_000);
    assert_eq!(scene.sink.len(), 5_000, "no repeats");
    let text = scene.metrics.encode();
    assert!(text.contains("outbox_published_total{sink=\"kafka\"} 5000\n"), "{text}");
    let scene = scene.again(|_| {}).await;
    scene.give(5_000..5_010).await;
    scene.published().await;
    assert_eq!(scene.sink.len(), 5_010, "nothing is repeated after a drain with everything published");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_nobody_wants_does_not_hold_the_watermark() {
    let scene = Scene::new(Settings { publish: vec![publish("other", "kafka")], ..settings(2) }).await;
    scene.give(0..50).await;
    scene.published().await;
    assert!(scene.sink.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_dies_or_breaks_repeats_events_and_loses_none() {
    let mut settings = settings(2);
    settings.outbox.window = 64;
    settings.supervision.dispatcher.restarts = 1_000;
    settings.supervision.dispatcher.backoff = Duration::from_millis(1);
    let scene = Scene::new(settings).await;
    for round in 0..30 {
        scene.give(round * 100..(round + 1) * 100).await;
        match round % 3 {
            0 => scene.engine.kill(round % 2, Child::Dispatcher).await,
            1 => scene.sink.break_ends(),
            _ => scene.engine.kill(round % 2, Child::Shard).await,
        }
        perkey::sleep(Duration::from_millis(5)).await;
    }
    scene.published().await;
    complete(&scene.sink, 3_000);
    let text = scene.metrics.encode();
    let mut of_it = text.lines().filter(|line| line.starts_with("perkey_restarts_total{child=\"dispatcher\""));
    assert!(of_it.any(|line| !line.ends_with(" 0")), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_sink_holds_a_window_and_the_rest_waits_in_the_store() {
    let mut settings = settings(1);
    settings.outbox.window = 100;
    let scene = Scene::new(settings).await;
    scene.sink.set_silent(true);
    scene.give(0..2_000).await;
    scene.engine.idle().await;
    until("the window is full", async || scene.sink.unanswered_most() == 100).await;
    assert_eq!(scene.rows().await[0].watermarks["kafka"], 0, "nothing is confirmed");
    scene.sink.set_silent(false);
    scene.published().await;
    complete(&scene.sink, 2_000);
    assert_eq!((scene.sink.len(), scene.sink.unanswered_most()), (2_000, 100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_is_away_is_waited_for_up_to_a_bound() {
    let mut settings = settings(1);
    settings.outbox.max_pending = 500;
    settings.ingress.credits = 16;
    let scene = Scene::new(settings).await;
    scene.sink.set_away(true);
    scene.give(0..1_000).await;
    until("the bound is an alarm", async || {
        scene.metrics.encode().contains("perkey_alarm{alarm=\"outbox_bound_reached\",shard=\"0\"} 1\n")
    })
    .await;
    let row = &scene.rows().await[0];
    assert!((500..600).contains(&row.outbox_seq), "sources paused at {}", row.outbox_seq);
    assert!(scene.engine.health().await.ready);
    scene.sink.set_away(false);
    scene.published().await;
    complete(&scene.sink, 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_is_away_for_long_is_told_and_so_is_its_return() {
    let mut settings = settings(1);
    settings.admin.away_max = Duration::ZERO;
    let scene = Scene::new(settings).await;
    assert!(scene.engine.health().await.ready);
    let told = async |part: &str| {
        let health = scene.engine.health().await;
        !health.ready
            && health.problems.iter().any(|told| told.contains("sink kafka of shard 0") && told.contains(part))
    };
    scene.sink.set_away(true);
    scene.give(0..10).await;
    until("its absence is told", async || told("has been away for").await).await;
    scene.sink.set_away(false);
    until("its return is told", async || scene.engine.health().await.ready).await;
    // It is there, and confirms nothing.
    scene.sink.set_silent(true);
    scene.give(10..20).await;
    until("its silence is told", async || told("confirms nothing").await).await;
    scene.sink.set_silent(false);
    until("its answers are told", async || scene.engine.health().await.ready).await;
    scene.published().await;
    complete(&scene.sink, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_does_not_wait_for_the_outbox_and_the_next_owner_publishes() {
    let scene = Scene::new(settings(2)).await;
    scene.sink.set_away(true);
    scene.give(0..500).await;
    scene.engine.idle().await;
    let scene = scene.again(|_| {}).await;
    scene.sink.set_away(false);
    scene.published().await;
    complete(&scene.sink, 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_event_is_a_dead_letter_and_its_replay_publishes_it() {
    let mut settings = settings(1);
    settings.kafka.dead_letter_topic = "dead".to_owned();
    let scene = Scene::new(settings).await;
    scene.sink.refuse(|message| (message.kind() == "counted" && n(message) == 3).then(|| "too large".to_owned()));
    scene.give(0..70).await;
    scene.published().await;
    let dead = scene.dead().await;
    assert_eq!(dead.len(), 7);
    assert!(dead.iter().all(|letter| letter.error == "sink kafka refused it for counts: too large"));
    assert!(dead.iter().all(|letter| &*letter.service == "counting" && !letter.holds_key));
    let told: Vec<_> = scene.sink.records().into_iter().filter(|(_, record)| &*record.topic == "dead").collect();
    assert_eq!(told.len(), 7, "each dead letter is told of in the topic for them");
    assert_eq!(told[0].1.message.header("deadservice"), Some("counting"));
    let alarm = "perkey_alarm{alarm=\"outbox_refused\",shard=\"0\"}";
    until("an alarm", async || scene.metrics.encode().contains(&format!("{alarm} 1\n"))).await;

    // The alarm outlives its process; the replay publishes and runs nothing.
    let scene = scene.again(|_| {}).await;
    until("an alarm again", async || scene.metrics.encode().contains(&format!("{alarm} 1\n"))).await;
    scene.sink.refuse(|_| None);
    assert_eq!(scene.command(OperatorAction::Replay).await, 7);
    scene.published().await;
    let events = scene.sink.records().into_iter().filter(|(_, record)| &*record.topic == "counts");
    assert_eq!(events.map(|(_, record)| record.message.id().to_owned()).collect::<HashSet<_>>().len(), 70);
    assert_eq!((scene.dead().await.len(), scene.rows().await[0].pending), (0, 0));
    until("no alarm", async || scene.metrics.encode().contains(&format!("{alarm} 0\n"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_told_of_with_its_payload_and_its_reason() {
    let mut settings = settings(1);
    settings.kafka.dead_letter_topic = "dead".to_owned();
    let scene = Scene::new(settings).await;
    let messages = [count("m1", "k", Some("reject"))];
    append(&*scene.store, 1, "counting", &messages).await;
    append(&*scene.store, 1, "nobody", &messages).await;
    scene.published().await;
    let mut records = scene.sink.records();
    assert_eq!(records.len(), 2);
    // One is refused by its handler, the other by the ledger: either can be first.
    records.sort_by_key(|(_, record)| record.message.header("deadservice") == Some("nobody"));
    for (_, record) in &records {
        assert_eq!((&*record.topic, record.message.kind()), ("dead", "perkey.dead_letter"));
        assert_eq!((record.message.key(), record.message.payload()), ("k", messages[0].payload()));
        assert_eq!(record.message.header("deadid"), Some("m1"));
    }
    let services: Vec<_> = records.iter().map(|(_, record)| record.message.header("deadservice").unwrap()).collect();
    assert_eq!(services, ["counting", "nobody"]);
    assert_eq!(records[0].1.message.header("deaderror"), Some("as told"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_are_kept_for_a_sink_until_it_has_them_or_is_given_up() {
    let mut settings = settings(1);
    settings.dedup.window = Duration::from_millis(1);
    settings.commit.turns_max = 4;
    settings.actors.run_max = 1;
    let scene = Scene::new(settings).await;
    scene.sink.set_away(true);
    scene.give(0..2_000).await;
    scene.engine.idle().await;
    let first = async |scene: &Scene| scene.store.queries().events(0, 0, 1).await.unwrap()[0].seq;
    assert_eq!(first(&scene).await, 1, "all events are kept");
    // The sink is no longer there; what it has not got is kept all the same.
    let scene = scene.again(|settings| settings.publish.clear()).await;
    let alarm = "perkey_alarm{alarm=\"sink_gone\",shard=\"0\"}";
    until("an alarm", async || scene.metrics.encode().contains(&format!("{alarm} 1\n"))).await;
    scene.give(2_000..4_000).await;
    scene.engine.idle().await;
    assert_eq!(first(&scene).await, 1, "they still are");
    assert_eq!(scene.command(OperatorAction::Retire("kafka".to_owned())).await, 1);
    until("no alarm", async || scene.metrics.encode().contains(&format!("{alarm} 0\n"))).await;
    assert!(scene.rows().await[0].watermarks.is_empty());
    let mut given = 4_000;
    until("they are removed", async || {
        scene.give(given..given + 400).await;
        given += 400;
        scene.engine.idle().await;
        first(&scene).await > 1
    })
    .await;
    // Back again, it is a new one: it begins with what is emitted from then on.
    let before = scene.rows().await[0].outbox_seq;
    let scene = scene.again(|settings| settings.publish = vec![publish("counted", "kafka")]).await;
    scene.sink.set_away(false);
    scene.give(given..given + 10).await;
    scene.published().await;
    assert_eq!(scene.sink.records().into_iter().map(|(_, record)| record.seq).min(), Some(before + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_is_configured_is_not_given_up() {
    let scene = Scene::new(settings(2)).await;
    scene.give(0..10).await;
    scene.published().await;
    assert_eq!(scene.command(OperatorAction::Retire("kafka".to_owned())).await, 0);
    assert!(scene.rows().await.iter().all(|row| row.watermarks.contains_key("kafka")));
}

#[tokio::test]
async fn all_routes_that_lead_nowhere_are_named_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&path(folder.path())).await;
    let mut settings = settings(1);
    settings.publish.push(publish("counted", "rabbitmq"));
    settings.publish.push(Publish { service: "balances".to_owned(), ..publish("x", "kafka") });
    let refused = Engine::start(&settings, handlers(), store, Metrics::new()).await.unwrap_err().to_string();
    assert!(refused.contains("\"balances\""), "{refused}");
    for name in ["kafka", "rabbitmq"] {
        assert!(refused.contains(&format!("there is no sink \"{name}\"")), "{refused}");
    }
}
