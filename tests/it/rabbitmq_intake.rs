//! The intake: what others publish, who know nothing of shards, takes effect once and in its keys' order.
//! In: a publisher in Python, an engine over a fresh store, forwarders that die. Out: the handled messages; dead letters.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicRejectOptions};
use perkey::unstable::message::Positions;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::settings::{RabbitmqSettings, WithoutId};
use perkey::unstable::store::query::DeadFilter;
use perkey::unstable::store::sqlite::SqliteStore;
use perkey::unstable::store::{DeadLetter, Store};
use perkey::unstable::transport::embedded::EmbeddedLog;
use perkey::unstable::transport::rabbitmq::RabbitmqTransport;
use perkey::unstable::transport::{Content, Transport};
use perkey::{Bind, Engine, IdWithin, KeyFrom, Settings};
use perkey_chaos::proxy::{Mode, Proxy};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::fixture::SHARDS;
use crate::rabbitmq_nacks::Narrow;
use crate::rabbitmq_place::{Streams, headed, table, text};
use crate::servers;
use crate::sink_contract::by_key;
use crate::support::{handlers, open};

const BOUND: Duration = Duration::from_secs(60);
const KEYS: usize = 7;

/// An engine that handles what comes by an intake, and all that it needs.
struct Scene {
    engine: Engine,
    store: Arc<SqliteStore>,
    metrics: Arc<Metrics>,
    settings: Settings,
    folder: tempfile::TempDir,
    streams: Streams,
}

impl Scene {
    async fn new(change: impl FnOnce(&mut RabbitmqSettings)) -> Self {
        Self::with(|settings| change(&mut settings.rabbitmq)).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let streams = Streams::named().await;
        let bind = |kind: &str, key| {
            let (source, kind, service) = ("rabbitmq".to_owned(), kind.to_owned(), "counting".to_owned());
            Bind { source, kind, service, key, id: IdWithin::Key }
        };
        let bind = vec![bind("count", KeyFrom::Record), bind("loose", KeyFrom::Handler)];
        let mut settings = Settings { bind, rabbitmq: with_intake(&streams), ..Settings::default() };
        settings.ownership.shards = SHARDS;
        change(&mut settings);
        let folder = tempfile::tempdir().unwrap();
        let (engine, store, metrics) = start(&settings, &folder).await;
        streams.wire.await_intake(&intake(&streams)).await;
        Self { engine, store, metrics, settings, folder, streams }
    }

    /// The process ends and another one comes, with these addresses.
    async fn again(self, addresses: &str) -> Self {
        let Self { engine, store, mut settings, folder, streams, .. } = self;
        engine.drain().await.unwrap();
        store.close().await;
        drop(store);
        settings.rabbitmq.addresses = addresses.to_owned();
        let (engine, store, metrics) = start(&settings, &folder).await;
        Self { engine, store, metrics, settings, folder, streams }
    }

    /// Ids of what was handled, by key, in its order.
    async fn handled(&self) -> BTreeMap<String, Vec<String>> {
        let mut keys = BTreeMap::<String, Vec<String>>::new();
        for shard in 0..SHARDS {
            for row in self.store.queries().events(shard, 0, 100_000).await.unwrap() {
                let message = row.event.message;
                let counted: Value = serde_json::from_slice(message.payload()).unwrap();
                keys.entry(message.key().to_owned()).or_default().push(counted["id"].as_str().unwrap().to_owned());
            }
        }
        keys
    }

    async fn until_handled(&self, count: usize) -> BTreeMap<String, Vec<String>> {
        until(&format!("{count} are handled"), async || {
            self.handled().await.values().map(Vec::len).sum::<usize>() >= count
        })
        .await;
        self.handled().await
    }

    async fn until_dead(&self, count: usize) -> Vec<DeadLetter> {
        let dead = async || self.store.queries().peek(DeadFilter::default(), 1_000).await.unwrap();
        until(&format!("{count} are dead letters"), async || dead().await.len() >= count).await;
        dead().await.into_iter().map(|(_, letter)| letter).collect()
    }

    async fn end(self) {
        self.engine.drain().await.unwrap();
        self.store.close().await;
    }
}

fn with_intake(streams: &Streams) -> RabbitmqSettings {
    RabbitmqSettings { declare: true, intakes: vec![streams.name.clone()], ..streams.settings() }
}

fn intake(streams: &Streams) -> String {
    format!("{}.intake", streams.name)
}

async fn start(settings: &Settings, folder: &tempfile::TempDir) -> (Engine, Arc<SqliteStore>, Arc<Metrics>) {
    let store = open(&folder.path().join("s.db")).await;
    let metrics = Metrics::new();
    let log = Arc::new(EmbeddedLog::new(store.clone(), settings.log.poll));
    let rabbitmq = RabbitmqTransport::new(&settings.rabbitmq_in_memory(), SHARDS, &metrics).unwrap();
    let sources: Vec<Arc<dyn Transport>> = vec![log, rabbitmq];
    let engine = Engine::start_with(settings, handlers(), store.clone(), metrics.clone(), sources, Vec::new());
    (engine.await.unwrap(), store, metrics)
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let met = async {
        while !condition().await {
            perkey::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(BOUND, met).await.is_ok(), "it never came to pass: {what}");
}

/// Publishes with the client of others.
async fn publish(messages: &[Value]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/it/pika/publish.py");
    let url = format!("amqp://guest:guest@{}/%2F", servers::rabbitmq());
    let mut python = tokio::process::Command::new(servers::python());
    python.args([script, &url]).stdin(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut running = python.spawn().unwrap_or_else(|error| panic!("PERKEY_TEST_PYTHON: {error}"));
    let lines: String = messages.iter().map(|message| format!("{message}\n")).collect();
    // Should it end early, what it says tells more than the pipe.
    running.stdin.take().unwrap().write_all(lines.as_bytes()).await.ok();
    let ended = running.wait_with_output().await.unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

fn key(no: usize) -> String {
    format!("k{}", no % KEYS)
}

/// A message for `counting`, published with its key as routing key.
fn message(streams: &Streams, no: usize) -> Value {
    json!({
        "exchange": intake(streams),
        "routing_key": key(no),
        "body": json!({ "key": key(no) }).to_string(),
        "properties": { "message_id": format!("m{no}"), "type": "count" },
    })
}

/// Ids of `count` messages, by key, in the order in which they were published.
fn published(count: usize) -> BTreeMap<String, Vec<String>> {
    let mut keys = BTreeMap::<String, Vec<String>>::new();
    for no in 0..count {
        keys.entry(key(no)).or_default().push(format!("m{no}"));
    }
    keys
}

/// The counts of an intake's forwarder.
fn counted(metrics: &Metrics, queue: &str, outcome: &str) -> u64 {
    let text = metrics.encode();
    let labels = [format!("queue=\"{queue}\""), format!("outcome=\"{outcome}\"")];
    let counts = text.lines().filter(|line| line.starts_with("rabbitmq_intake_total{"));
    let line = counts.into_iter().find(|line| labels.iter().all(|label| line.contains(label.as_str())));
    line.and_then(|line| line.rsplit_once(' ')).map_or(0, |(_, count)| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_publish_is_handled_once_and_in_its_keys_order() {
    let scene = Scene::new(|_| {}).await;
    let streams = &scene.streams;
    let all = (0..500).flat_map(|no| {
        let mut once = message(streams, no);
        match no % 5 {
            // Twice in a row.
            1 => once["times"] = json!(2),
            // Its key in a header, where the routing key says something else.
            2 => {
                once["routing_key"] = json!("posted.eu");
                once["properties"]["headers"] = json!({ "key": key(no) });
            }
            // Straight into the queue.
            3 => {
                (once["exchange"], once["routing_key"]) = (json!(""), json!(intake(streams)));
                once["properties"]["headers"] = json!({ "cloudEvents_partitionkey": key(no), "key": "other" });
            }
            _ => {}
        }
        // Again, long after.
        let again = (no >= 100 && no % 10 == 0).then(|| message(streams, no - 100));
        std::iter::once(once).chain(again)
    });
    let all: Vec<Value> = all.collect();
    let sent = all.iter().map(|message| message["times"].as_u64().unwrap_or(1)).sum::<u64>();
    publish(&all).await;
    assert_eq!(scene.until_handled(500).await, published(500));
    let queue = intake(streams);
    until("all are counted", async || counted(&scene.metrics, &queue, "moved") == sent).await;
    // What was published last was handled, and so its repeats before it were dropped.
    scene.engine.idle().await;
    assert_eq!(scene.handled().await, published(500));
    assert!(scene.until_dead(0).await.is_empty());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lacks_an_id_or_a_key_is_refused_with_the_reason() {
    let scene = Scene::new(|_| {}).await;
    let queue = intake(&scene.streams);
    let straight = |id: Value, kind: &str, headers: Value| {
        json!({
            "exchange": "", "routing_key": &queue, "body": "{\"key\":\"k9\"}",
            "properties": { "message_id": id, "type": kind, "headers": headers },
        })
    };
    let mut nameless = message(&scene.streams, 0);
    nameless["properties"]["message_id"] = Value::Null;
    nameless["body"] = json!("{\"key\":\"nameless\"}");
    publish(&[
        nameless,
        straight(json!("keyless"), "count", json!({})),
        straight(json!("loose"), "loose", json!({})),
        straight(Value::Null, "loose", json!({ "cloudEvents:id": "event" })),
    ])
    .await;
    let handled = scene.until_handled(2).await;
    let ids: BTreeSet<&str> = handled["k9"].iter().map(String::as_str).collect();
    assert_eq!((ids, handled.len()), (BTreeSet::from(["event", "loose"]), 1), "their handler knows the key");
    let dead = scene.until_dead(2).await;
    let [refused, keyless] = ["nameless", "k9"].map(|key| {
        let shown = format!("{{\"key\":\"{key}\"}}");
        dead.iter().find(|letter| letter.message.payload() == shown.as_bytes()).unwrap()
    });
    assert!(refused.error.contains("message_id") && refused.error.contains("without_id"), "{}", refused.error);
    assert!(keyless.error.contains("key") && keyless.message.id() == "keyless", "{}", keyless.error);
    assert_eq!((dead.len(), counted(&scene.metrics, &queue, "refused")), (2, 1));
    // The next ones are not held up.
    publish(&[message(&scene.streams, 1)]).await;
    scene.until_handled(3).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_without_an_id_is_given_one_where_that_is_asked_for() {
    let scene = Scene::new(|rabbitmq| rabbitmq.without_id = WithoutId::Mint).await;
    let all = (0..30).map(|no| {
        let mut message = message(&scene.streams, no);
        message["properties"]["message_id"] = Value::Null;
        message
    });
    publish(&all.collect::<Vec<_>>()).await;
    let handled = scene.until_handled(30).await;
    let ids: BTreeSet<&String> = handled.values().flatten().collect();
    assert_eq!((ids.len(), handled.len()), (30, KEYS), "each has its own");
    assert!(scene.until_dead(0).await.is_empty());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_of_a_foreign_queue_are_dead_letters_here() {
    let scene = Scene::new(|_| {}).await;
    let streams = &scene.streams;
    let (beside, dead) = (format!("{}.beside", streams.name), format!("{}.dead", intake(streams)));
    streams.wire.queue(&beside, table(&[("x-dead-letter-exchange", text(&dead))])).await;
    let properties = headed(&[("key", text("k1"))]).with_message_id("m1".into()).with_type("count".into());
    let nameless = BasicProperties::default().with_expiration("1".into());
    // One is rejected, another expires in the queue of others.
    streams.wire.publish("", [(beside.clone(), &b"{\"key\":\"k1\"}"[..], properties)]).await;
    let got = streams.wire.channel.basic_get(beside.as_str().into(), BasicGetOptions::default()).await.unwrap();
    got.unwrap().reject(BasicRejectOptions { requeue: false }).await.unwrap();
    streams.wire.publish("", [(beside.clone(), &b"nobody's"[..], nameless)]).await;
    let letters = scene.until_dead(2).await;
    for (payload, reason) in [(&b"{\"key\":\"k1\"}"[..], "rejected"), (b"nobody's", "expired")] {
        let letter = letters.iter().find(|letter| letter.message.payload() == payload).unwrap();
        assert!(letter.error.contains(reason) && letter.error.contains(&beside), "{}", letter.error);
    }
    until("both are counted", async || counted(&scene.metrics, &dead, "dead") == 2).await;
    assert!(scene.handled().await.is_empty());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_dies_amid_its_moving_changes_nothing() {
    let proxy = Proxy::start("127.0.0.1:0", &servers::rabbitmq()).await.unwrap();
    let address = proxy.address().to_string();
    let mut scene = Scene::new(|rabbitmq| rabbitmq.addresses = address).await;
    let all: Vec<Value> = (0..700).map(|no| message(&scene.streams, no)).collect();
    let dying = async {
        let mut line = proxy;
        for handled in [50, 200, 400] {
            scene.until_handled(handled).await;
            // As the broker sees a crash: the connections are gone, with whatever was on its way.
            drop(line);
            line = Proxy::start("127.0.0.1:0", &servers::rabbitmq()).await.unwrap();
            scene = scene.again(&line.address().to_string()).await;
        }
        (scene, line)
    };
    let ((), (scene, _line)) = tokio::join!(publish(&all), dying);
    assert_eq!(scene.until_handled(700).await, published(700));
    scene.engine.idle().await;
    assert_eq!(scene.handled().await, published(700));
    assert!(scene.until_dead(0).await.is_empty());
    scene.end().await;
}

/// Of the forwarders of several processes one works at a time; another goes on where its line breaks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_forwarder_goes_on_where_one_is_cut_off() {
    let streams = Streams::named().await;
    let queue = intake(&streams);
    let proxy = Proxy::start("127.0.0.1:0", &servers::rabbitmq()).await.unwrap();
    let metrics = [Metrics::new(), Metrics::new()];
    let far = RabbitmqSettings { addresses: proxy.address().to_string(), ..with_intake(&streams) };
    let _first = RabbitmqTransport::new(&far, SHARDS, &metrics[0]).unwrap();
    streams.wire.await_intake(&queue).await;
    let write = async |numbers: std::ops::Range<usize>| {
        let all = numbers.map(|no| {
            let properties = BasicProperties::default().with_message_id(format!("m{no}").into());
            (key(no), &b"{}"[..], properties)
        });
        streams.wire.publish(&queue, all.collect::<Vec<_>>()).await;
    };
    write(0..1).await;
    until("the first one works", async || counted(&metrics[0], &queue, "moved") == 1).await;
    let _second = RabbitmqTransport::new(&with_intake(&streams), SHARDS, &metrics[1]).unwrap();
    let cutting = async {
        until("some are moved", async || counted(&metrics[0], &queue, "moved") > 200).await;
        assert_eq!(counted(&metrics[1], &queue, "moved"), 0, "one works at a time");
        proxy.set(Mode::Cut);
    };
    tokio::join!(write(1..1_500), cutting);
    let reader = streams.transport();
    let (mut keys, mut seen) = (BTreeMap::<String, Vec<String>>::new(), BTreeSet::new());
    for shard in 0..SHARDS {
        let mine: BTreeSet<String> = (0..1_500)
            .filter(|no| perkey::unstable::message::shard_of(&key(*no), SHARDS) == shard)
            .map(|no| format!("m{no}"))
            .collect();
        let mut source = reader.open(shard, Positions::new()).await.unwrap();
        while !mine.is_subset(&seen) {
            for delivery in tokio::time::timeout(BOUND, source.fetch(500)).await.expect("all are moved").unwrap() {
                let Content::Unrouted(message) = delivery.content else { panic!("{delivery:?}") };
                if seen.insert(message.id().to_owned()) {
                    keys.entry(message.key().to_owned()).or_default().push(message.id().to_owned());
                }
            }
        }
    }
    assert_eq!(keys, published(1_500));
    assert!(counted(&metrics[1], &queue, "moved") > 0, "the second one did it");
}

/// A queue of others beside the streams that becomes full: the forwarder waits for it, and swaps nothing in either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_beside_the_streams_is_waited_for_and_swaps_nothing() {
    let scene = Scene::new(|_| {}).await;
    let routes: Vec<String> = (0..SHARDS).map(|shard| shard.to_string()).collect();
    let Scene { engine, store, metrics, settings, folder, streams } = scene;
    let narrow = Narrow::beside(streams, "quorum", &routes.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let all: Vec<Value> = (0..500).map(|no| message(&narrow.streams, no)).collect();
    let name = |delivery: &lapin::message::Delivery| {
        let body: Value = serde_json::from_slice(&delivery.data).unwrap();
        let id = delivery.properties.message_id().as_ref().unwrap().to_string();
        (body["key"].as_str().unwrap().to_owned(), id)
    };
    let consumed = async {
        narrow.is_full().await;
        narrow.consume(500, name).await
    };
    let ((), arrived) = tokio::join!(publish(&all), consumed);
    assert_eq!(by_key(arrived), published(500));
    let scene = Scene { engine, store, metrics, settings, folder, streams: narrow.streams };
    assert_eq!(scene.until_handled(500).await, published(500));
    assert!(scene.until_dead(0).await.is_empty());
    scene.end().await;
}

/// Large messages: a forwarder that cannot go on has about as many bytes as it may, and not as many messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_forwarder_has_on_its_way_is_bounded_by_its_bytes() {
    const COUNT: usize = 120;
    // A quarter of it, for its two queues: 5 messages each.
    let scene = Scene::with(|settings| {
        settings.ingress.message_bytes_max = 200_000;
        settings.memory.in_hand = 4 * 2 * 5 * 200_000;
    });
    let scene = scene.await;
    let routes: Vec<String> = (0..SHARDS).map(|shard| shard.to_string()).collect();
    let Scene { engine, store, metrics, settings, folder, streams } = scene;
    let narrow = Narrow::beside(streams, "quorum", &routes.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let large = |no| {
        let mut message = message(&narrow.streams, no);
        message["body"] = json!(json!({ "key": key(no), "pad": "x".repeat(100_000) }).to_string());
        message
    };
    publish(&(0..COUNT).map(large).collect::<Vec<_>>()).await;
    narrow.is_full().await;
    // Neither acknowledged nor in the queue.
    let queue = intake(&narrow.streams);
    let moved = usize::try_from(counted(&metrics, &queue, "moved")).unwrap();
    let on_its_way = COUNT - moved - narrow.streams.wire.count(&queue).await;
    assert!((1..=5).contains(&on_its_way), "{on_its_way} of {COUNT}, {moved} are moved");
    let name = |delivery: &lapin::message::Delivery| {
        let body: Value = serde_json::from_slice(&delivery.data).unwrap();
        let id = delivery.properties.message_id().as_ref().unwrap().to_string();
        (body["key"].as_str().unwrap().to_owned(), id)
    };
    assert_eq!(by_key(narrow.consume(COUNT, name).await), published(COUNT));
    let scene = Scene { engine, store, metrics, settings, folder, streams: narrow.streams };
    assert_eq!(scene.until_handled(COUNT).await, published(COUNT));
    assert!(scene.until_dead(0).await.is_empty());
    scene.end().await;
}
