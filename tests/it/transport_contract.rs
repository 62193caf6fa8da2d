//! The promises of every source, written once and run on each transport.
//! In: a transport, and a hand that appends to it. Out: the same behaviour everywhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use perkey::Message;
use perkey::unstable::message::{Position, Positions};
use perkey::unstable::store::{Commit, LogRow, Outcome, Store};
use perkey::unstable::transport::embedded::{self, EmbeddedLog};
use perkey::unstable::transport::{Content, Delivery, Source, Transport};

use crate::fixture::{MemoryPlace, Place, SHARDS, SqlitePlace, commit, message};
use crate::postgres_place::PostgresPlace;
use crate::sources::{fetch_by, next};
use crate::store_contract::contract;

/// A transport with something at its other end that writes.
pub(crate) trait Line: Send + Sync {
    /// The transport.
    fn transport(&self) -> &dyn Transport;
    /// Appends messages as one record of `origin`, for one shard; each origin has its own order.
    fn append<'a>(&'a mut self, origin: u32, target: u32, messages: &'a [Message]) -> BoxFuture<'a, ()>;
    /// Appends bytes that are no message.
    fn garble(&mut self, origin: u32, target: u32) -> BoxFuture<'_, ()>;
    /// A part of the reason why those bytes are not a message.
    fn garbled(&self) -> &'static str;
    /// Time after which an idle source would have handed over what it had no right to.
    fn settled(&self) -> Duration;
}

/// The embedded log of a store.
struct Log {
    _place: Box<dyn Place>,
    store: Arc<dyn Store>,
    transport: EmbeddedLog,
    written: BTreeMap<u32, (u64, u64)>,
}

impl Log {
    async fn over(place: Box<dyn Place>) -> Box<Self> {
        let store = place.store();
        // So long that a test which waits for it fails by its own bound.
        let transport = EmbeddedLog::new(Arc::clone(&store), Duration::from_secs(3_600));
        Box::new(Self { _place: place, store, transport, written: BTreeMap::new() })
    }

    async fn memory() -> Box<Self> {
        Self::over(MemoryPlace::new().await).await
    }

    async fn sqlite() -> Box<Self> {
        Self::over(SqlitePlace::new().await).await
    }

    async fn postgres() -> Box<Self> {
        Self::over(PostgresPlace::new().await).await
    }

    async fn write(&mut self, origin: u32, row: LogRow) {
        let (epoch, no) = match self.written.get(&origin) {
            Some((epoch, no)) => (*epoch, no + 1),
            None => (self.store.take(origin, "writer").await.unwrap().epoch, 1),
        };
        let outcome = self.store.commit(&Commit { log: vec![row], ..commit(origin, epoch, no) }).await;
        assert!(matches!(outcome, Outcome::Committed), "{outcome:?}");
        self.written.insert(origin, (epoch, no));
    }
}

impl Line for Log {
    fn transport(&self) -> &dyn Transport {
        &self.transport
    }

    fn append<'a>(&'a mut self, origin: u32, target: u32, messages: &'a [Message]) -> BoxFuture<'a, ()> {
        let named: Vec<(&str, &Message)> = messages.iter().map(|message| ("balances", message)).collect();
        let count = u32::try_from(named.len()).unwrap();
        let row = LogRow { target, count, messages: embedded::encode(&named) };
        Box::pin(self.write(origin, row))
    }

    fn garble(&mut self, origin: u32, target: u32) -> BoxFuture<'_, ()> {
        Box::pin(self.write(origin, LogRow { target, count: 3, messages: Bytes::from_static(b"\xff\xfenot a row") }))
    }

    fn garbled(&self) -> &'static str {
        "does not decode"
    }

    fn settled(&self) -> Duration {
        Duration::from_millis(50)
    }
}

contract! {
    embedded_memory: super::Log::memory();
    embedded_sqlite: super::Log::sqlite();
    embedded_postgres: super::Log::postgres();
    kafka: crate::kafka_topic::KafkaLine::new();
    rabbitmq: crate::rabbitmq_place::RabbitmqLine::new();
    => [
        each_origin_comes_in_its_order,
        it_goes_on_after_any_position,
        never_more_than_asked_for,
        a_dropped_fetch_loses_nothing,
        shards_see_only_their_own,
        what_cannot_be_read_is_handed_over_once,
        an_append_wakes_who_waits,
        an_origin_that_comes_late_appears,
        a_large_message_comes_whole,
    ]
}

const BOUND: Duration = Duration::from_secs(20);

fn batch(tag: &str, ids: std::ops::Range<u32>) -> Vec<Message> {
    ids.map(|id| message(&format!("{tag}-{id}"), "k", b"{}")).collect()
}

async fn open(line: &dyn Line, shard: u32, from: Positions) -> Box<dyn Source> {
    line.transport().open(shard, from).await.unwrap()
}

fn id(delivery: &Delivery) -> &str {
    match &delivery.content {
        Content::For(_, message) | Content::Unrouted(message) => message.id(),
        Content::Unreadable { .. } => "unreadable",
    }
}

fn of<'a>(all: &'a [Delivery], tag: &str) -> Vec<&'a str> {
    all.iter().map(id).filter(|id| id.starts_with(tag)).collect()
}

fn ids(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(Message::id).collect()
}

/// True if nothing more is ready. It is asked twice, so that anything that has to be read first has been read.
async fn is_dry(line: &dyn Line, source: &mut dyn Source) -> bool {
    tokio::time::timeout(line.settled(), source.fetch(9)).await.is_err()
}

async fn each_origin_comes_in_its_order(mut line: Box<impl Line>) {
    let (a, b) = (batch("a", 0..50), batch("b", 0..50));
    for at in (0..50).step_by(10) {
        line.append(0, 2, &a[at..at + 10]).await;
        line.append(1, 2, &b[at..at + 10]).await;
    }
    let mut source = open(&*line, 2, Positions::new()).await;
    let all = fetch_by(&mut *source, 7, 100).await;
    assert_eq!((of(&all, "a"), of(&all, "b")), (ids(&a), ids(&b)));
    let mut last: BTreeMap<Arc<str>, Position> = BTreeMap::new();
    for delivery in &all {
        let before = last.insert(Arc::clone(&delivery.origin), delivery.position);
        assert!(before.is_none_or(|before| before < delivery.position), "{delivery:?} after {before:?}");
    }
    assert!(is_dry(&*line, &mut *source).await);
}

async fn it_goes_on_after_any_position(mut line: Box<impl Line>) {
    let (a, b) = (batch("a", 0..9), batch("b", 0..2));
    for at in (0..9).step_by(3) {
        line.append(0, 2, &a[at..at + 3]).await;
    }
    line.append(1, 2, &b).await;
    let all = fetch_by(&mut *open(&*line, 2, Positions::new()).await, 99, 11).await;
    let mut from = Positions::new();
    for (taken, delivery) in all.iter().enumerate() {
        from.insert(Arc::clone(&delivery.origin), delivery.position);
        let mut source = open(&*line, 2, from.clone()).await;
        let rest = if taken == 10 { Vec::new() } else { fetch_by(&mut *source, 4, 10 - taken).await };
        for tag in ["a", "b"] {
            assert_eq!(of(&rest, tag), of(&all[taken + 1..], tag), "{from:?}");
        }
        assert!(is_dry(&*line, &mut *source).await, "{from:?}");
    }
}

async fn never_more_than_asked_for(mut line: Box<impl Line>) {
    line.append(0, 2, &batch("a", 0..500)).await;
    let mut source = open(&*line, 2, Positions::new()).await;
    assert_eq!(fetch_by(&mut *source, 1, 1).await.len(), 1);
    assert!(source.fetch(300).await.unwrap().len() <= 300);
    // No credit: nothing is handed over, and nothing is lost.
    assert!(tokio::time::timeout(Duration::from_millis(20), source.fetch(0)).await.is_err());
    let mut last = String::new();
    while last != "a-499" {
        let rest = next(&mut *source, 10_000, "a-499", &last).await.unwrap();
        last = id(rest.last().unwrap()).to_owned();
    }
}

async fn a_dropped_fetch_loses_nothing(mut line: Box<impl Line>) {
    let mut source = open(&*line, 2, Positions::new()).await;
    let a = batch("a", 0..40);
    for at in 0..40 {
        // Dropped while it waits, and dropped while it reads.
        assert!(source.fetch(9).now_or_never().is_none_or(|got| got.is_ok_and(|got| got.is_empty())));
        line.append(0, 2, &a[at..=at]).await;
        if at % 2 == 0 {
            let got = fetch_by(&mut *source, 1, 1).await;
            assert_eq!(of(&got, "a"), [a[at].id()]);
        } else {
            let polled = source.fetch(1);
            let got = polled.now_or_never().unwrap_or_else(|| Ok(Vec::new())).unwrap();
            let got = if got.is_empty() { fetch_by(&mut *source, 1, 1).await } else { got };
            assert_eq!(of(&got, "a"), [a[at].id()]);
        }
    }
    assert!(is_dry(&*line, &mut *source).await);
}

async fn shards_see_only_their_own(mut line: Box<impl Line>) {
    for target in 0..SHARDS {
        line.append(0, target, &batch(&format!("t{target}"), 0..5)).await;
    }
    for target in 0..SHARDS {
        let mut source = open(&*line, target, Positions::new()).await;
        let all = fetch_by(&mut *source, 99, 5).await;
        assert_eq!(of(&all, &format!("t{target}")).len(), 5);
        assert!(is_dry(&*line, &mut *source).await);
    }
}

async fn what_cannot_be_read_is_handed_over_once(mut line: Box<impl Line>) {
    line.append(0, 2, &batch("a", 0..2)).await;
    line.garble(0, 2).await;
    line.append(0, 2, &batch("b", 0..2)).await;
    let mut source = open(&*line, 2, Positions::new()).await;
    let all = fetch_by(&mut *source, 99, 5).await;
    assert_eq!(all.iter().map(id).collect::<Vec<_>>(), ["a-0", "a-1", "unreadable", "b-0", "b-1"]);
    assert!(matches!(
        &all[2].content,
        Content::Unreadable { reason, message }
            if reason.contains(line.garbled()) && message.payload().starts_with(b"\xff\xfe")
    ));
    let from = Positions::from([(Arc::clone(&all[2].origin), all[2].position)]);
    let rest = fetch_by(&mut *open(&*line, 2, from).await, 99, 2).await;
    assert_eq!(of(&rest, "b").len(), 2);
}

async fn an_append_wakes_who_waits(mut line: Box<impl Line>) {
    let mut source = open(&*line, 2, Positions::new()).await;
    for round in 0..20 {
        let messages = batch(&format!("r{round}"), 0..1);
        let (got, ()) =
            tokio::join!(tokio::time::timeout(BOUND, source.fetch(9)), line.append(round % SHARDS, 2, &messages));
        assert_eq!(got.expect("it must wake").unwrap().len(), 1);
    }
}

async fn an_origin_that_comes_late_appears(mut line: Box<impl Line>) {
    line.append(1, 2, &batch("a", 0..3)).await;
    let mut source = open(&*line, 2, Positions::new()).await;
    fetch_by(&mut *source, 99, 3).await;
    line.append(0, 2, &batch("b", 0..3)).await;
    line.append(1, 2, &batch("c", 0..1)).await;
    let all = fetch_by(&mut *source, 99, 4).await;
    assert_eq!((of(&all, "b").len(), of(&all, "c").len()), (3, 1));
}

async fn a_large_message_comes_whole(mut line: Box<impl Line>) {
    let payload = vec![b'x'; 8 << 20];
    let large = message("large", "k", &payload);
    line.append(0, 2, &[batch("a", 0..1).remove(0), large.clone()]).await;
    let all = fetch_by(&mut *open(&*line, 2, Positions::new()).await, 99, 2).await;
    let whole = match &all[1].content {
        Content::For(service, message) => &**service == "balances" && *message == large,
        Content::Unrouted(message) => *message == large,
        Content::Unreadable { .. } => false,
    };
    assert!(whole, "{:?}", all[1]);
}
