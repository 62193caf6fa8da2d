//! Work done above a source's position is not done again, whatever holds the position and however its owner ends.
//! In: a store, a source, a key that may have no more waiting messages while others go on. Out: as many effects as
//! messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use perkey::unstable::metrics::{Child, Metrics};
use perkey::unstable::store::query::{ImportBatch, ImportProgress, OperatorAction};
use perkey::unstable::store::{LogRow, ServiceKey, Store};
use perkey::unstable::transport::embedded;
use perkey::{
    AfterDeadLetter, Bind, Draft, Engine, Fault, Handler, Handlers, IdWithin, Key, KeyFrom, Message, Settings, Turn,
};
use perkey_chaos::process::until;
use tokio::runtime::Builder;

use crate::kafka_topic::Topic;
use crate::pauses::{scope, tell};
use crate::postgres_place::{Database, open};
use crate::rabbitmq_place::{Streams, Written, event};
use crate::support::{Count, Counted, Counting};

const SOON: Duration = Duration::from_secs(60);
/// Messages of the key that waits, besides its first; every fourth is for both services.
const WAITING: usize = 40;
/// Messages of other keys for each of these.
const OTHERS: usize = 5;

/// Counts the messages of each key, unless it is shut: then it fails as it is told.
struct Careful {
    shut: Arc<AtomicBool>,
    fault: fn(&'static str) -> Fault,
}

impl Handler for Careful {
    const SERVICE: &'static str = "careful";
    type Message = Count;
    type State = Counted;

    fn key(&self, message: &Count) -> Key {
        message.key.as_str().into()
    }

    async fn handle(&self, counted: &mut Counted, _: Count, _: &mut Turn) -> Result<(), Fault> {
        counted.n += 1;
        if self.shut.load(Ordering::Relaxed) { Err((self.fault)("shut")) } else { Ok(()) }
    }

    fn after_dead_letter(&self) -> AfterDeadLetter {
        AfterDeadLetter::HoldKey
    }
}

/// The origins of messages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Door {
    Log,
    Kafka,
    Rabbitmq,
    Intake,
}

/// The reasons for which a key waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Held,
    Retrying,
    KeyPaused,
    ServicePaused,
}

/// The ways in which the owner ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Drained,
    Killed,
    /// Another worker takes over.
    Moved,
}

pub(crate) enum Place {
    Sqlite(tempfile::TempDir),
    Postgres(Database),
}

pub(crate) struct Case {
    wait: Wait,
    from: Door,
    pub(crate) place: Place,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) topic: Option<Topic>,
    pub(crate) streams: Option<Streams>,
    shut: Arc<AtomicBool>,
    settings: Settings,
    metrics: Arc<Metrics>,
}

fn message(id: &str, key: &str, kind: &str) -> Message {
    let payload = serde_json::json!({ "key": key }).to_string();
    let draft = Draft { id, key, kind, source: "test", time: 1, payload: payload.as_bytes(), ..Draft::default() };
    draft.build().unwrap()
}

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.ownership.shards = 1;
    settings.ownership.lease_ttl = Duration::from_millis(1_500);
    settings.ownership.heartbeat = Duration::from_millis(100);
    settings.store.statement_timeout = Duration::from_secs(1);
    settings.supervision.shard.restarts = 100;
    settings.pending.max_per_key = 5;
    settings.pending.spill_after = Duration::from_millis(100);
    settings.ingress.credits = 64;
    settings.ingress.batch_max = 16;
    settings.dedup.max_ids = 20;
    settings.retry.base = Duration::from_millis(50);
    settings.retry.cap = Duration::from_millis(200);
    settings.retry.attempts = 1_000_000;
    settings
}

/// The bindings of a source that knows no services.
fn binds(source: &str) -> Vec<Bind> {
    let routes = [("count", "counting"), ("care", "careful"), ("both", "counting"), ("both", "careful")];
    let bind = |(kind, service): (&str, &str)| {
        let (source, kind, service) = (source.to_owned(), kind.to_owned(), service.to_owned());
        Bind { source, kind, service, key: KeyFrom::Record, id: IdWithin::default() }
    };
    routes.map(bind).into()
}

impl Case {
    pub(crate) async fn new(place: Place, from: Door, wait: Wait) -> Self {
        let store: Arc<dyn Store> = match &place {
            Place::Sqlite(folder) => crate::support::open(&folder.path().join("s.db")).await,
            Place::Postgres(database) => open(&database.url).await,
        };
        let (mut settings, mut topic, mut streams) = (settings(), None, None);
        settings.bind = match from {
            Door::Log => Vec::new(),
            Door::Kafka => binds("kafka"),
            Door::Rabbitmq => binds("rabbitmq"),
            Door::Intake => binds("intake"),
        };
        match from {
            Door::Kafka => settings.kafka = topic.insert(Topic::new(1).await).settings(),
            Door::Rabbitmq => settings.rabbitmq = streams.insert(Streams::new(1).await).settings(),
            Door::Log | Door::Intake => {}
        }
        let shut = Arc::new(AtomicBool::new(matches!(wait, Wait::Held | Wait::Retrying)));
        Self { wait, from, place, store, topic, streams, shut, settings, metrics: Metrics::new() }
    }

    pub(crate) async fn start(&self, worker: &str) -> Engine {
        let mut settings = self.settings.clone();
        settings.ownership.worker = worker.to_owned();
        let fault: fn(&'static str) -> Fault =
            if self.wait == Wait::Held { |reason| Fault::reject(reason) } else { |reason| Fault::retry(reason) };
        let store = match &self.place {
            // Another worker has its own way to the store.
            Place::Postgres(database) if worker != "a" => open(&database.url).await as Arc<dyn Store>,
            Place::Postgres(_) | Place::Sqlite(_) => Arc::clone(&self.store),
        };
        let handlers = Handlers::new().with(Counting).with(Careful { shut: Arc::clone(&self.shut), fault });
        let engine = Engine::start(&settings, handlers, store, Arc::clone(&self.metrics)).await;
        engine.unwrap()
    }

    pub(crate) async fn send(&self, messages: &[Message]) {
        match self.from {
            Door::Log => {
                let services = |message: &Message| match message.kind() {
                    "count" => vec!["counting"],
                    "care" => vec!["careful"],
                    _ => vec!["counting", "careful"],
                };
                let mut all = Vec::new();
                for message in messages {
                    all.extend(services(message).into_iter().map(|service| (service, message)));
                }
                let row = LogRow { target: 0, count: all.len() as u32, messages: embedded::encode(&all) };
                let (source, progress) = ("test".to_owned(), ImportProgress::default());
                let batch = ImportBatch { service: "counting".into(), source, rows: vec![row], progress, at: 0 };
                self.store.queries().append_import(batch).await.unwrap();
            }
            Door::Kafka => {
                let topic = self.topic.as_ref().unwrap();
                messages.iter().for_each(|message| topic.enqueue_message(0, message));
                topic.flush();
            }
            Door::Rabbitmq => {
                let all = messages.iter();
                let all =
                    all.map(|message| Written { stream: 0, payload: message.payload(), properties: event(message) });
                let all: Vec<_> = all.collect();
                self.streams.as_ref().unwrap().write(&all).await;
            }
            Door::Intake => {
                let Place::Postgres(database) = &self.place else { panic!("SQLite has no intake") };
                let mut connection = database.connection().await;
                for message in messages {
                    let sql = "INSERT INTO perkey_intake (key, id, type, payload) VALUES ($1, $2, $3, $4)";
                    let payload = std::str::from_utf8(message.payload()).unwrap();
                    let row =
                        sqlx::query(sql).bind(message.key()).bind(message.id()).bind(message.kind()).bind(payload);
                    row.execute(&mut connection).await.unwrap();
                }
            }
        }
    }

    /// The effects of a service on some keys.
    pub(crate) async fn counted(&self, service: &str, keys: &[&str]) -> u64 {
        let asked = keys.iter().map(|key| ServiceKey { service: service.into(), key: (*key).into() }).collect();
        let rows = self.store.load(0, asked).await.unwrap();
        let states = rows.iter().filter_map(|row| row.state.as_ref());
        states.map(|(_, json)| serde_json::from_slice::<Counted>(json).unwrap().n).sum()
    }

    async fn await_counted(&self, service: &str, keys: &[&str], count: u64) {
        let (wait, from) = (self.wait, self.from);
        let mut last = 0;
        let there = async || {
            last = self.counted(service, keys).await;
            last >= count
        };
        let waited = until("all are counted", SOON, there).await;
        assert!(waited.is_ok(), "{wait:?} {from:?}: {last} of {count} effects of {service} on {keys:?}");
        assert_eq!(last, count, "{wait:?} {from:?}: effects of {service} on {keys:?} repeat");
    }

    /// From now on the key waits.
    async fn wait(&self) {
        match self.wait {
            Wait::KeyPaused => tell(&*self.store, OperatorAction::Pause(scope("careful", Some("slow")))).await,
            Wait::ServicePaused => tell(&*self.store, OperatorAction::Pause(scope("careful", None))).await,
            Wait::Held | Wait::Retrying => {}
        }
        self.send(&[message("s", "slow", "care")]).await;
        let waits = async || {
            let row = self.store.queries().shards().await.unwrap().remove(0);
            row.pending + row.dead_letters == 1
        };
        until("the first message waits", SOON, waits).await.unwrap();
    }

    /// It goes on.
    async fn release(&self) {
        self.shut.store(false, Ordering::Relaxed);
        match self.wait {
            Wait::Held => tell(&*self.store, OperatorAction::Replay).await,
            Wait::Retrying => {}
            Wait::KeyPaused => tell(&*self.store, OperatorAction::Resume(scope("careful", Some("slow")))).await,
            Wait::ServicePaused => tell(&*self.store, OperatorAction::Resume(scope("careful", None))).await,
        }
    }

    fn alarm(&self) -> bool {
        let text = self.metrics.encode();
        let mut lines = text.lines().filter(|line| line.contains("\"ahead_bound_reached\""));
        lines.any(|line| line.ends_with(" 1"))
    }
}

/// Messages of the key that waits with others between them.
fn mixed() -> Vec<Message> {
    let mut all = Vec::new();
    for n in 0..WAITING {
        let kind = if n.is_multiple_of(4) { "both" } else { "care" };
        all.push(message(&format!("s-{n}"), "slow", kind));
        all.extend((0..OTHERS).map(|at| message(&format!("o-{n}-{at}"), ["a", "b", "c"][(n + at) % 3], "count")));
    }
    all
}

async fn runs(place: Place, from: Door, wait: Wait, end: End) {
    let case = Case::new(place, from, wait).await;
    let engine = case.start("a").await;
    case.wait().await;
    case.send(&mixed()).await;
    let (others, both) = ((WAITING * OTHERS) as u64, (WAITING / 4) as u64);
    case.await_counted("counting", &["a", "b", "c"], others).await;
    case.await_counted("counting", &["slow"], both).await;
    let next = match end {
        End::Drained => {
            engine.drain().await.unwrap();
            case.start("a").await
        }
        End::Killed => {
            engine.kill(0, Child::Shard).await;
            engine
        }
        End::Moved => {
            let next = case.start("b").await;
            engine.drain().await.unwrap();
            next
        }
    };
    // Behind all that is handed over again.
    let more: Vec<_> = (0..20).map(|n| message(&format!("m-{n}"), "a", "count")).collect();
    case.send(&more).await;
    case.await_counted("counting", &["a", "b", "c"], others + 20).await;
    assert_eq!(case.counted("careful", &["slow"]).await, 0, "{wait:?}: it waits");
    case.release().await;
    case.await_counted("careful", &["slow"], 1 + WAITING as u64).await;
    let idle = tokio::time::timeout(SOON, next.idle()).await;
    let rows = case.store.queries().shards().await.unwrap();
    assert!(idle.is_ok(), "{wait:?} {from:?} {end:?}: it is not idle: {rows:?} {}", case.metrics.encode());
    next.drain().await.unwrap();
    case.await_counted("careful", &["slow"], 1 + WAITING as u64).await;
    case.await_counted("counting", &["slow"], both).await;
    case.await_counted("counting", &["a", "b", "c"], others + 20).await;
    let row = case.store.queries().shards().await.unwrap().remove(0);
    assert_eq!((row.pending, row.dead_letters, row.unread), (0, 0, 0), "{wait:?} {from:?} {end:?}");
    assert_eq!(case.store.take(0, "looks").await.unwrap().ahead.len(), 0, "{wait:?} {from:?}: all is passed");
}

/// Runs cases side by side, each on a runtime of its own: clients of brokers block, and one that does must not hold up the others.
fn each_by_itself(cases: &[(Door, Wait, End)], place: fn() -> BoxFuture<'static, Place>) {
    std::thread::scope(|threads| {
        for (from, wait, end) in cases {
            threads.spawn(move || {
                let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
                runtime.block_on(async { runs(place().await, *from, *wait, *end).await });
            });
        }
    });
}

#[test]
fn no_effect_repeats_whatever_holds_a_position_on_sqlite() {
    let cases = [
        (Door::Log, Wait::Held, End::Drained),
        (Door::Log, Wait::KeyPaused, End::Killed),
        (Door::Log, Wait::Retrying, End::Drained),
        (Door::Log, Wait::ServicePaused, End::Drained),
        (Door::Kafka, Wait::ServicePaused, End::Killed),
        (Door::Rabbitmq, Wait::Held, End::Drained),
    ];
    each_by_itself(&cases, || Box::pin(async { Place::Sqlite(tempfile::tempdir().unwrap()) }));
}

#[test]
fn no_effect_repeats_whatever_holds_a_position_on_postgresql() {
    let cases = [
        (Door::Log, Wait::Held, End::Moved),
        (Door::Kafka, Wait::Held, End::Drained),
        (Door::Kafka, Wait::Retrying, End::Killed),
        (Door::Rabbitmq, Wait::KeyPaused, End::Moved),
        (Door::Rabbitmq, Wait::Retrying, End::Killed),
        (Door::Intake, Wait::Held, End::Drained),
        (Door::Intake, Wait::ServicePaused, End::Killed),
    ];
    each_by_itself(&cases, || Box::pin(async { Place::Postgres(Database::new().await) }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_key_keeps_no_room_in_the_log_that_others_have_used() {
    let case = Case::new(Place::Sqlite(tempfile::tempdir().unwrap()), Door::Log, Wait::Held).await;
    let engine = case.start("a").await;
    case.wait().await;
    // Five may wait: as many stay in the log, below all that follows.
    for n in 0..10 {
        case.send(&[message(&format!("s-{n}"), "slow", "care")]).await;
    }
    let unread = async || case.store.queries().unread(vec![0]).await.unwrap()[0].1;
    let mut others = 0;
    while others < 100 || unread().await > 40 {
        assert!(others < 1_000, "{} messages are unread", unread().await);
        case.send(&[message(&format!("o-{others}"), "a", "count")]).await;
        others += 1;
        case.await_counted("counting", &["a"], others).await;
    }
    assert!(unread().await >= 5, "what is held is there");
    engine.drain().await.unwrap();
    let next = case.start("a").await;
    case.send(&[message("m", "a", "count")]).await;
    case.await_counted("counting", &["a"], others + 1).await;
    case.release().await;
    case.await_counted("careful", &["slow"], 11).await;
    tokio::time::timeout(SOON, next.idle()).await.unwrap();
    next.drain().await.unwrap();
    case.await_counted("counting", &["a"], others + 1).await;
    assert_eq!(unread().await, 0);
    assert_eq!(case.store.take(0, "looks").await.unwrap().ahead.len(), 0, "all is passed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_far_ahead_pauses_with_an_alarm_until_its_key_goes_on() {
    let mut case = Case::new(Place::Sqlite(tempfile::tempdir().unwrap()), Door::Log, Wait::Held).await;
    case.settings.ingress.ahead_max = 3;
    let engine = case.start("a").await;
    case.wait().await;
    case.send(&mixed()).await;
    until("it pauses", SOON, async || case.alarm()).await.unwrap();
    let others = (WAITING * OTHERS) as u64;
    assert!(case.counted("counting", &["a", "b", "c"]).await < others);
    case.release().await;
    case.await_counted("counting", &["a", "b", "c"], others).await;
    case.await_counted("careful", &["slow"], 1 + WAITING as u64).await;
    until("the alarm is over", SOON, async || !case.alarm()).await.unwrap();
    engine.drain().await.unwrap();
}
