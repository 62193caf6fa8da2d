//! The engine: binds handlers to sources, starts the tree, drains it in order.
//! In: settings, handlers, a store. Out: a running engine, until it is drained or gives up.

pub mod cache;
pub mod calls;
mod entry;
pub mod host;
mod start;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use ractor::{ActorRef, call_t};
use tokio::sync::watch;
use tracing::{info, warn};

use self::calls::Calls;
use self::entry::Entry;
pub use self::entry::SendError;
pub use self::start::setup;
use crate::clock::{Stopwatch, since_boot, sleep};
use crate::fleet;
use crate::fleet::messages::{News, RootMessage};
use crate::handlers::Handlers;
use crate::message::ShardNo;
use crate::metrics::{Child, Metrics};
use crate::settings::Settings;
use crate::shard::env::Env;
use crate::shard::env::recorder::Recorder;
use crate::shard::supervisor::{LAST_COMMITS, ShardSupervisorMessage};
use crate::store::lease::{Fleet, WorkerRow};
use crate::store::{Store, StoreError};
use crate::transport::{SinkTransport, Transport};

/// The time that a shard may take to answer a question.
const ANSWER_MS: u64 = 5_000;

/// The time that a worker may take to leave its fleet.
const LEAVE_MS: u64 = 2_000;

/// A running engine. A clone is another hold on the same one.
///
/// ```
/// # use perkey::{Engine, json};
/// # use perkey::unstable::handler::example::Points;
/// use perkey::host::{Failure, Running};
///
/// /// The work of a program beside its engine: see `perkey::host::Host::run`.
/// async fn work(running: Running) -> Result<(), Failure> {
///     let engine = running.engine;
///     engine.send::<Points>("line-1", &json!({ "member": "ann", "points": 30 })).await?;
///     engine.idle().await;
///     println!("ann has {:?} points", engine.state::<Points>("ann").await?);
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Engine {
    env: Arc<Env>,
    root: ActorRef<RootMessage>,
    failed: watch::Receiver<Option<String>>,
    entry: Arc<Entry>,
    calls: Arc<Calls>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("owner", &self.env.owner()).finish_non_exhaustive()
    }
}

/// The health of an engine: can it do its work?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// It owns all its shards (in a fleet: those that are assigned to it) and nothing stands in its way.
    pub ready: bool,
    /// Everything that stands in its way.
    pub problems: Vec<String>,
}

/// An engine could not start, or not leave in order.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The settings do not fit the handlers.
    #[error("the settings do not fit: {0}")]
    Settings(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tree did not start.
    #[error("the runtime did not start: {0}")]
    Start(String),
    /// Some shards did not give up their ownership in time; the next owner takes over from where they stood.
    #[error("shards {0:?} did not end in time; what was not committed is handled again by the next start")]
    Drain(Vec<usize>),
}

impl Engine {
    /// Prepares the store, takes its shards and starts handling. The embedded log is always a source. Where the store has
    /// leases this is one worker of a fleet: it is given its shards, and gives them up, as others come and go.
    #[doc(hidden)]
    pub async fn start(
        settings: &Settings,
        handlers: Handlers,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, EngineError> {
        start::open(settings, handlers, store, metrics, None).await
    }

    /// [`Engine::start`], with a recorder that keeps what every ledger is told, so that
    /// [`Recording::replay`](crate::testing::Recording::replay) can show what it decided. The record grows with each message.
    ///
    /// # Errors
    /// Those of [`Engine::start`].
    pub async fn start_recorded(
        settings: &Settings,
        handlers: Handlers,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        recorder: Arc<Recorder>,
    ) -> Result<Self, EngineError> {
        start::open(settings, handlers, store, metrics, Some(recorder)).await
    }

    /// [`Engine::start`] with these sources and sinks. A sink that no route leads to is not opened.
    #[doc(hidden)]
    pub async fn start_with(
        settings: &Settings,
        handlers: Handlers,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        transports: Vec<Arc<dyn Transport>>,
        sinks: Vec<Arc<dyn SinkTransport>>,
    ) -> Result<Self, EngineError> {
        start::launch(settings, handlers, store, metrics, transports, sinks, None).await
    }

    /// The entry for commands whose senders wait for an answer.
    #[doc(hidden)]
    pub fn calls(&self) -> Arc<Calls> {
        Arc::clone(&self.calls)
    }

    /// The engine's health: can it do its work, and what stands in its way?
    ///
    /// ```
    /// # use perkey::Engine;
    /// async fn report(engine: &Engine) -> String {
    ///     let health = engine.health().await;
    ///     if health.ready { "ready".to_owned() } else { health.problems.join("; ") }
    /// }
    /// ```
    pub async fn health(&self) -> Health {
        let shards = self.shards().await;
        let mut problems: Vec<String> = self.failed.borrow().iter().cloned().collect();
        let here = self.expected();
        if let Some(fleet) = &self.env.fleet {
            problems.extend(fleet.view().problems(since_boot()));
        }
        let gone = shards.iter().enumerate().filter(|(no, shard)| shard.is_none() && here.contains(no));
        problems.extend(gone.map(|(no, _)| format!("shard {no} is being taken again")));
        problems.extend(self.env.problems());
        problems.extend(self.calls.trouble());
        Health { ready: problems.is_empty() && !shards.is_empty(), problems }
    }

    /// Resolves when nothing is unread, in hand or being committed. Messages that wait for their time do not count.
    ///
    /// ```
    /// # use perkey::Engine;
    /// async fn once_handled(engine: &Engine) {
    ///     engine.idle().await;
    ///     println!("everything that was sent is handled");
    /// }
    /// ```
    pub async fn idle(&self) {
        let mut quiet = 0;
        while quiet < 2 {
            quiet = if self.is_idle().await { quiet + 1 } else { 0 };
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn is_idle(&self) -> bool {
        let shards = self.shards().await;
        let here = self.expected();
        let steady = self.env.fleet.as_ref().is_none_or(|fleet| fleet.view().problems(since_boot()).is_empty());
        if !steady || shards.is_empty() || here.iter().any(|shard| shards[*shard].is_none()) {
            return false;
        }
        let answers =
            shards.iter().flatten().map(async |shard| call_t!(shard, ShardSupervisorMessage::IsIdle, ANSWER_MS));
        if !join_all(answers).await.into_iter().all(|answer| answer.unwrap_or(false)) {
            return false;
        }
        let here = here.into_iter().filter_map(|shard| ShardNo::try_from(shard).ok()).collect();
        let unread = self.env.store.queries().unread(here).await;
        unread.is_ok_and(|rows| rows.iter().all(|(_, unread)| *unread == 0))
    }

    /// The shards that should run here.
    fn expected(&self) -> Vec<usize> {
        match &self.env.fleet {
            Some(fleet) => fleet.view().expected.iter().map(|shard| *shard as usize).collect(),
            None => (0..self.env.settings.ownership.shards as usize).collect(),
        }
    }

    /// This process as the store names owners; in a fleet the worker's id, with its incarnation.
    #[doc(hidden)]
    pub fn owner(&self) -> String {
        self.env.owner()
    }

    /// The shards that run here, in a fleet.
    #[doc(hidden)]
    pub fn owned(&self) -> Vec<ShardNo> {
        self.env.fleet.as_ref().map(|fleet| fleet.view().running.clone()).unwrap_or_default()
    }

    /// All workers and shards as of the last heartbeat, where the store has leases.
    #[doc(hidden)]
    pub fn fleet(&self) -> Option<Fleet> {
        self.env.fleet.as_ref().map(|fleet| fleet.view().fleet.clone())
    }

    /// All workers and shards as they are now; `None` if the store has no leases.
    #[doc(hidden)]
    pub async fn look(&self) -> Result<Option<Fleet>, StoreError> {
        if self.env.fleet.is_none() {
            return Ok(None);
        }
        let look = call_t!(self.root, |reply| RootMessage::News(News::Look(reply)), ANSWER_MS);
        let lost = |error: ractor::RactorErr<RootMessage>| StoreError::Unavailable(format!("no heartbeat: {error}"));
        look.map_err(lost)?.map(Some)
    }

    /// The worker that owns the shard of `key` as of the last heartbeat; [`Engine::look`] and
    /// [`fleet::owner_of`] for a fresh answer.
    #[doc(hidden)]
    pub fn owner_of(&self, key: &str) -> Option<WorkerRow> {
        let fleet = self.env.fleet.as_ref()?;
        fleet::owner_of(&fleet.view().fleet, key).cloned()
    }

    /// Resolves with the reason when the tree gave up: the process should end, non-zero.
    ///
    /// ```
    /// # use perkey::{Engine, tokio};
    /// async fn watch(engine: Engine) {
    ///     tokio::spawn(async move { eprintln!("the engine gave up: {}", engine.failed().await) });
    /// }
    /// ```
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the runtime's root ended".to_owned(),
        }
    }

    /// Ends a child of one shard, as a fault would: for chaos tests.
    #[doc(hidden)]
    pub async fn kill(&self, shard: usize, child: Child) {
        if let Some(Some(supervisor)) = self.shards().await.get(shard) {
            drop(supervisor.cast(ShardSupervisorMessage::Kill(child)));
        }
    }

    /// Leaves in order: sources stop, runs end, everything settled is committed, the shards are given up.
    ///
    /// ```
    /// # use perkey::{Engine, EngineError};
    /// async fn leave(engine: Engine) -> Result<(), EngineError> {
    ///     engine.drain().await
    /// }
    /// ```
    pub async fn drain(self) -> Result<(), EngineError> {
        drop(self.root.cast(RootMessage::Draining));
        let exit = self.env.settings.drain.exit;
        let watch = Stopwatch::start();
        let mut shards = self.shards().await;
        while shards.is_empty() && watch.elapsed() < exit {
            // The root is taking a shard again: it answers when that is done.
            shards = self.shards().await;
        }
        if shards.is_empty() {
            self.root.get_cell().kill();
            return Err(EngineError::Drain((0..self.env.settings.ownership.shards as usize).collect()));
        }
        let in_fleet = self.env.fleet.is_some();
        let drains = shards.iter().map(async |shard| match shard {
            Some(shard) => drain(shard, exit).await,
            // In a fleet it belongs to another worker.
            None => in_fleet,
        });
        let drained = join_all(drains).await;
        for (no, _) in (0..).zip(&drained).filter(|(_, done)| **done) {
            self.env.metrics.forget_shard(no);
        }
        let left: Vec<_> = drained.iter().enumerate().filter(|(_, done)| !**done).map(|(no, _)| no).collect();
        if in_fleet {
            // Without an answer the lease expires by itself.
            call_t!(self.root, |reply| RootMessage::News(News::Leave(reply)), LEAVE_MS).ok();
        }
        if self.root.get_cell().stop_and_wait(None, Some(Duration::from_millis(500))).await.is_err() {
            self.root.get_cell().kill();
        }
        if left.is_empty() {
            info!("engine drained");
            return Ok(());
        }
        warn!(shards = ?left, "shards did not drain in time");
        Err(EngineError::Drain(left))
    }

    async fn shards(&self) -> Vec<Option<ActorRef<ShardSupervisorMessage>>> {
        call_t!(self.root, RootMessage::Shards, ANSWER_MS).unwrap_or_default()
    }
}

async fn drain(shard: &ActorRef<ShardSupervisorMessage>, exit: Duration) -> bool {
    let watch = Stopwatch::start();
    let (reply, drained) = tokio::sync::oneshot::channel();
    if shard.cast(ShardSupervisorMessage::Drain(reply.into())).is_err() {
        return false;
    }
    let mut drained = std::pin::pin!(drained);
    if let Ok(answer) = tokio::time::timeout(exit, drained.as_mut()).await {
        return answer.is_ok();
    }
    // Runs that outlast the drain end here; their messages were not taken and come again.
    drop(shard.cast(ShardSupervisorMessage::KillRuns));
    let answer = tokio::time::timeout(LAST_COMMITS, drained).await;
    info!(elapsed_ms = watch.elapsed().as_millis(), "runs were ended to drain");
    matches!(answer, Ok(Ok(())))
}
