//! A source whose records lie with other shards than their keys: each message goes on to the shard of its key.
//! In: a log with a number of partitions that is not a multiple of the shards. Out: each message counted once, in
//! order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, pending, ready};
use perkey::unstable::message::{Position, Positions, ShardNo, shard_of};
use perkey::unstable::metrics::{Child, Metrics};
use perkey::unstable::store::Store;
use perkey::unstable::transport::embedded::EmbeddedLog;
use perkey::unstable::transport::{Content, Delivery, Source, SourceError, Transport};
use perkey::{Bind, Draft, Engine, IdWithin, KeyFrom, Message, Settings};

use crate::support::{handlers, open};

const SHARDS: u32 = 4;
const PARTITIONS: u32 = 5;

/// A log whose partition `p` is read by shard `p mod shards`.
#[derive(Clone)]
struct Partitions(Arc<Vec<Vec<Message>>>);

impl Transport for Partitions {
    fn name(&self) -> &str {
        "partitions"
    }

    fn open(&self, shard: ShardNo, from: Positions) -> BoxFuture<'_, Result<Box<dyn Source>, SourceError>> {
        let mine = (0..PARTITIONS).filter(|partition| partition % SHARDS == shard);
        let read = mine.map(|partition| {
            let origin: Arc<str> = partition.to_string().into();
            let no = from.get(&origin).map_or(0, |position| position.no);
            (partition, origin, no)
        });
        let source = Reader { log: self.clone(), read: read.collect() };
        Box::pin(ready(Ok(Box::new(source) as Box<dyn Source>)))
    }
}

struct Reader {
    log: Partitions,
    read: Vec<(u32, Arc<str>, u64)>,
}

impl Source for Reader {
    fn fetch(&mut self, max: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        let mut found = Vec::new();
        for (partition, origin, no) in &mut self.read {
            let messages = self.log.0[*partition as usize].iter().skip(usize::try_from(*no).unwrap());
            for message in messages.take(max - found.len()) {
                *no += 1;
                let (origin, position) = (origin.clone(), Position::new(*no, 0));
                found.push(Delivery { origin, position, content: Content::Unrouted(message.clone()) });
            }
        }
        if found.is_empty() { Box::pin(pending()) } else { Box::pin(ready(Ok(found))) }
    }

    fn committed(&mut self, _: &Positions) {}
}

/// Messages of some keys, each in the partition of its record's key; of so many senders with the same ids.
fn filled(messages: u64, senders: u64, record_key: impl Fn(u64) -> String) -> Partitions {
    let mut partitions = vec![Vec::new(); PARTITIONS as usize];
    for n in 0..messages {
        let (id, key, source) = (format!("m{}", n / senders), record_key(n), format!("/till/{}", n % senders));
        let payload = serde_json::json!({ "key": format!("k{}", n / senders % 50) }).to_string();
        let (kind, payload) = ("count", payload.as_bytes());
        let draft = Draft { id: &id, key: &key, kind, source: &source, payload, ..Draft::default() };
        partitions[shard_of(&key, PARTITIONS) as usize].push(draft.build().unwrap());
    }
    Partitions(Arc::new(partitions))
}

/// Runs them, with deaths; returns the counts of each key in the order in which they were emitted, and how many were
/// passed on.
async fn counted(log: Partitions, key: KeyFrom, id: IdWithin, messages: u64) -> (BTreeMap<String, Vec<String>>, u64) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("s.db")).await;
    let (source, kind, service) = ("partitions".to_owned(), "count".to_owned(), "counting".to_owned());
    let mut settings = Settings { bind: vec![Bind { source, kind, service, key, id }], ..Settings::default() };
    settings.ownership.shards = SHARDS;
    settings.ingress.credits = 64;
    settings.supervision.shard.restarts = 100;
    let own = Arc::new(EmbeddedLog::new(store.clone(), settings.log.poll));
    let sources: Vec<Arc<dyn Transport>> = vec![own, Arc::new(log)];
    let engine =
        Engine::start_with(&settings, handlers(), store.clone(), Metrics::new(), sources, Vec::new()).await.unwrap();
    let rows = async || store.queries().shards().await.unwrap();
    let sum = async |name: &str| rows().await.iter().map(|row| row.counters[name]).sum::<u64>();
    for round in 0..8 {
        engine.kill(round % SHARDS as usize, Child::Shard).await;
        perkey::sleep(Duration::from_millis(10)).await;
    }
    while sum("taken").await < messages {
        perkey::sleep(Duration::from_millis(10)).await;
    }
    engine.idle().await;
    let mut counts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for shard in 0..SHARDS {
        for row in store.queries().events(shard, 0, 1_000_000).await.unwrap() {
            let message = &row.event.message;
            assert_eq!(shard_of(message.key(), SHARDS), shard, "a key is run by its own shard only");
            let event: serde_json::Value = serde_json::from_slice(message.payload()).unwrap();
            let counted = counts.entry(message.key().to_owned()).or_default();
            counted.push(event["id"].as_str().unwrap().to_owned());
            assert_eq!(event["n"], counted.len());
        }
    }
    let rekeyed = sum("rekeyed").await;
    assert_eq!(sum("taken").await, messages);
    engine.drain().await.unwrap();
    (counts, rekeyed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_count_that_is_no_multiple_of_the_shards_changes_nothing() {
    let (counts, rekeyed) =
        counted(filled(4_000, 1, |n| format!("k{}", n % 50)), KeyFrom::Record, IdWithin::Key, 4_000).await;
    for (key, ids) in &counts {
        let own: u64 = key[1..].parse().unwrap();
        let expected: Vec<_> = (0..80).map(|n| format!("m{}", own + n * 50)).collect();
        assert_eq!(*ids, expected, "{key}");
    }
    assert_eq!(counts.len(), 50);
    assert!((1..4_000).contains(&rekeyed), "some lie where they belong, {rekeyed} do not");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_runs_under_the_key_that_its_handler_gives_it() {
    let (counts, rekeyed) =
        counted(filled(1_000, 1, |n| format!("record-{n}")), KeyFrom::Handler, IdWithin::Key, 1_000).await;
    assert_eq!(counts.values().map(Vec::len).sum::<usize>(), 1_000);
    assert!(counts.keys().all(|key| key.starts_with('k')) && counts.len() == 50);
    assert!(rekeyed > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_id_of_another_source_is_another_message_where_a_binding_says_so() {
    // Across shards, and through deaths: the log and the redeliveries keep what the id is unique in.
    let log = filled(1_000, 2, |n| format!("record-{n}"));
    let (counts, rekeyed) = counted(log, KeyFrom::Handler, IdWithin::Source, 1_000).await;
    assert!(rekeyed > 0);
    for (key, ids) in &counts {
        let own: u64 = key[1..].parse().unwrap();
        let mut ids = ids.clone();
        ids.sort();
        let mut expected: Vec<_> = (0..20).map(|n| format!("m{}", own + n / 2 * 50)).collect();
        expected.sort();
        assert_eq!(ids, expected, "{key}: each id once of each source");
    }
    assert_eq!(counts.len(), 50);
}
