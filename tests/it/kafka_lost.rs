//! A source that lost its place, in a running engine: it stands still, and nothing else does.
//! In: a log that is lost and mended, beside the engine's own. Out: an alarm that comes and goes, no restart spent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, pending, ready};
use perkey::unstable::message::{Position, Positions, ShardNo};
use perkey::unstable::metrics::Metrics;
use perkey::unstable::store::Store;
use perkey::unstable::transport::embedded::EmbeddedLog;
use perkey::unstable::transport::{Content, Delivery, Source, SourceError, Transport};
use perkey::{Bind, Engine, IdWithin, KeyFrom, Settings};

use crate::support::{append, count, handlers, open};

const BOUND: Duration = Duration::from_secs(30);

/// A log of one message in shard 0, lost until it is mended.
#[derive(Clone, Default)]
struct Fragile {
    mended: Arc<AtomicBool>,
    openings: Arc<AtomicU64>,
}

impl Transport for Fragile {
    fn name(&self) -> &str {
        "fragile"
    }

    fn lost_for(&self) -> Duration {
        Duration::from_millis(20)
    }

    fn open(&self, shard: ShardNo, from: Positions) -> BoxFuture<'_, Result<Box<dyn Source>, SourceError>> {
        self.openings.fetch_add(1, Ordering::SeqCst);
        let source = FragileSource { log: self.clone(), left: shard == 0 && from.is_empty() };
        Box::pin(ready(Ok(Box::new(source) as Box<dyn Source>)))
    }
}

struct FragileSource {
    log: Fragile,
    left: bool,
}

impl Source for FragileSource {
    fn fetch(&mut self, _: usize) -> BoxFuture<'_, Result<Vec<Delivery>, SourceError>> {
        if !self.log.mended.load(Ordering::SeqCst) {
            let (name, reason) = ("fragile".to_owned(), "it was dropped".to_owned());
            return Box::pin(ready(Err(SourceError::Lost { name, reason })));
        }
        if !std::mem::take(&mut self.left) {
            return Box::pin(pending());
        }
        let content = Content::Unrouted(count("late", "k", None));
        Box::pin(ready(Ok(vec![Delivery { origin: "0".into(), position: Position::new(1, 0), content }])))
    }

    fn committed(&mut self, _: &Positions) {}
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let met = async {
        while !condition().await {
            perkey::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(BOUND, met).await.is_ok(), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_source_stands_still_and_disturbs_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("s.db")).await;
    let (kind, service) = ("count".to_owned(), "counting".to_owned());
    let bind = Bind { source: "fragile".to_owned(), kind, service, key: KeyFrom::Record, id: IdWithin::Key };
    let mut settings = Settings { bind: vec![bind], ..Settings::default() };
    settings.ownership.shards = 1;
    let (fragile, metrics) = (Fragile::default(), Metrics::new());
    let own = Arc::new(EmbeddedLog::new(store.clone(), settings.log.poll));
    let sources: Vec<Arc<dyn Transport>> = vec![own, Arc::new(fragile.clone())];
    let engine =
        Engine::start_with(&settings, handlers(), store.clone(), Arc::clone(&metrics), sources, Vec::new()).await;
    let engine = engine.unwrap();
    let alarm = |raised| metrics.encode().contains(&format!("{{alarm=\"source_lost\",shard=\"0\"}} {raised}\n"));
    let taken = async || store.queries().shards().await.unwrap()[0].counters.get("taken").copied().unwrap_or(0);
    // More often than an ingress may be restarted.
    until("it is opened again", async || fragile.openings.load(Ordering::SeqCst) > 20).await;
    let health = engine.health().await;
    assert!(alarm(1) && !health.ready, "{health:?}");
    assert_eq!(health.problems, ["source fragile of shard 0 lost its place: it was dropped"]);
    append(&*store, 1, "counting", &[count("m0", "k", None)]).await;
    until("the other source goes on", async || taken().await == 1).await;
    fragile.mended.store(true, Ordering::SeqCst);
    until("it goes on", async || taken().await == 2).await;
    until("the alarm is cleared", async || alarm(0) && engine.health().await.ready).await;
    let text = metrics.encode();
    let mut restarts = text.lines().filter(|line| line.starts_with("perkey_restarts_total{"));
    assert!(restarts.all(|line| line.ends_with(" 0")), "{text}");
    assert_eq!(store.queries().shards().await.unwrap()[0].epoch, 1, "the shard was not taken again");
    engine.drain().await.unwrap();
}
