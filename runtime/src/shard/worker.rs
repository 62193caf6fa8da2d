//! This worker's part in its fleet, as the rest of the process sees it.
//! In: the heartbeat's knowledge. Out: this worker's id, the shards that should run here, and the problems that keep
//! them from it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::clock::Millis;
use crate::message::ShardNo;
use crate::store::lease::{Behind, Code, Fleet, Worker};

/// The heartbeat's last knowledge, for the other parts of the process.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// This worker's id, with its incarnation.
    pub(crate) id: String,
    /// All workers and shards.
    pub(crate) fleet: Fleet,
    /// The time at which the shards are stopped unless the lease is renewed before.
    pub(crate) until: Option<Millis>,
    /// True if it is known which shards should run here.
    pub(crate) settled: bool,
    /// The shards that should run here.
    pub(crate) expected: Vec<ShardNo>,
    /// The shards that run here.
    pub(crate) running: Vec<ShardNo>,
    /// The reason for which the last renewal failed, if it did.
    pub(crate) failure: Option<String>,
    /// The versions of the states that this program reads.
    pub(crate) code: Code,
}

impl View {
    /// The problems that keep shards from running here.
    pub(crate) fn problems(&self, now: Millis) -> Vec<String> {
        let mut problems = Vec::new();
        if self.until.is_none_or(|until| now >= until) {
            let why = self.failure.as_deref().unwrap_or("it was not renewed yet");
            problems.push(format!("no lease is in force: {why}"));
        } else if !self.settled {
            problems.push("the worker has just joined: its shards are not known yet".to_owned());
        }
        let missing = self.expected.iter().filter(|shard| !self.running.contains(shard));
        problems.extend(missing.map(|shard| format!("shard {shard} is being taken")));
        problems.extend(self.too_new().map(|(shard, behind)| {
            format!(
                "shard {shard} has no owner, and is not taken: {behind}: run the newer program, or one whose states are \
                 as new"
            )
        }));
        problems
    }

    /// Shards without a living owner that were owned by a newer program.
    pub(crate) fn too_new(&self) -> impl Iterator<Item = (ShardNo, Behind)> {
        let alive = |id: &str| self.fleet.workers.iter().any(|row| row.worker.id == id && row.is_alive());
        let free = self.fleet.shards.iter().filter(move |row| !row.owner.as_deref().is_some_and(alive));
        free.filter_map(|row| Some((row.shard, self.code.behind(&row.code)?)))
    }
}

/// A worker's part in its fleet, as the rest of the process sees it.
#[derive(Debug)]
pub(crate) struct Ownership {
    view: Mutex<View>,
}

impl Ownership {
    pub(crate) fn new(worker: &Worker) -> Self {
        let view = View { id: worker.id.clone(), code: worker.code.clone(), ..View::default() };
        Self { view: Mutex::new(view) }
    }

    /// The heartbeat's last knowledge. The guard is never held across an await.
    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
