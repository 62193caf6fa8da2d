//! `leases`: the workers of a fleet and the owner of each shard.
//! In: the store. Out: two tables, or one document.

use std::collections::BTreeMap;
use std::sync::Arc;

use perkey::Settings;
use perkey::unstable::store;
use perkey::unstable::store::lease::{Fleet, LeaseRow, WorkerRow};
use serde::Serialize;

use super::output::{Out, table};
use super::{Done, Ended, Failure, open_beside};

/// A worker as it is shown.
#[derive(Debug, Serialize)]
struct ShownWorker {
    id: String,
    state: &'static str,
    /// The time until its lease expires; below 0 when it has.
    lease_ms: i64,
    shards: usize,
    cooling: Vec<u32>,
    address: String,
    version: String,
    code_version: u32,
    code_versions: BTreeMap<Arc<str>, u32>,
    #[serde(skip)]
    code: String,
}

/// A shard as it is shown.
#[derive(Debug, Serialize)]
struct ShownShard {
    shard: u32,
    owner: Option<String>,
    state: &'static str,
    epoch: u64,
    code_version: u32,
    code_versions: BTreeMap<Arc<str>, u32>,
    #[serde(skip)]
    code: String,
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Shown {
    workers: Vec<ShownWorker>,
    shards: Vec<ShownShard>,
}

/// Shows the leases.
pub async fn leases(settings: &Settings, out: Out) -> Ended {
    if !store::is_shared(settings) {
        let text = "leases are for a store that several workers share (store.url = postgres://…); one process runs a \
                    SQLite store, and `budget-manager status` shows it";
        return Err(Failure::Usage(text.to_owned()));
    }
    let store = open_beside(settings).await?;
    let fleet = match store.leases() {
        Some(leases) => leases.fleet().await?,
        None => Fleet::default(),
    };
    out.show(&shown(&fleet), text)?;
    Ok(if fleet.workers.is_empty() { Done::NothingFound } else { Done::All })
}

fn shown(fleet: &Fleet) -> Shown {
    let owned = |id: &str| fleet.shards.iter().filter(|row| row.owner.as_deref() == Some(id)).count();
    let worker = |row: &WorkerRow| ShownWorker {
        id: row.worker.id.clone(),
        state: match (row.is_alive(), row.worker.draining) {
            (false, _) => "expired",
            (true, true) => "draining",
            (true, false) => "alive",
        },
        lease_ms: row.expires_in,
        shards: owned(&row.worker.id),
        cooling: row.worker.cooling.clone(),
        address: row.worker.address.clone(),
        version: row.worker.version.clone(),
        code_version: row.worker.code.number,
        code_versions: row.worker.code.versions.clone(),
        code: row.worker.code.to_string(),
    };
    let shard = |row: &LeaseRow| {
        let owner = fleet.workers.iter().find(|worker| row.owner.as_ref() == Some(&worker.worker.id));
        let state = match (&row.owner, owner.is_some_and(WorkerRow::is_alive)) {
            (None, _) => "free",
            (Some(_), true) => "owned",
            (Some(_), false) => "expired",
        };
        ShownShard {
            shard: row.shard,
            owner: row.owner.clone(),
            state,
            epoch: row.epoch,
            code_version: row.code.number,
            code_versions: row.code.versions.clone(),
            code: row.code.to_string(),
            problem: (state != "owned").then(|| problem(fleet, row)).flatten(),
        }
    };
    Shown { workers: fleet.workers.iter().map(worker).collect(), shards: fleet.shards.iter().map(shard).collect() }
}

/// The reason why no worker takes a shard, unless it is a matter of moments.
pub(crate) fn problem(fleet: &Fleet, shard: &LeaseRow) -> Option<String> {
    let alive: Vec<_> = fleet.workers.iter().filter(|row| row.is_alive() && !row.worker.draining).collect();
    // If a worker may not own it, the reason: that of the closest one, or any.
    let behind = alive
        .iter()
        .map(|row| row.worker.code.behind(&shard.code))
        .min_by_key(|behind| behind.as_ref().map(|behind| behind.stored - behind.ours));
    match behind {
        None => Some("no worker is alive".to_owned()),
        Some(Some(behind)) => Some(format!("{behind}: run the newer program, or one whose states are as new")),
        Some(None) if alive.iter().all(|row| row.worker.cooling.contains(&shard.shard)) => {
            Some("it failed too often on every worker, which leave it alone for ownership.cool_down".to_owned())
        }
        Some(None) => None,
    }
}

fn text(shown: &Shown) -> String {
    let lease = |millis: i64| format!("{:.1}s", millis as f64 / 1_000.0);
    let workers = shown.workers.iter().map(|row| {
        let counts = [row.shards.to_string(), row.address.clone(), row.version.clone(), row.code.clone()];
        [row.id.clone(), row.state.to_owned(), lease(row.lease_ms)].into_iter().chain(counts).collect()
    });
    let workers = table(&["worker", "state", "lease", "shards", "address", "version", "code"], workers);
    let shards = shown.shards.iter().map(|row| {
        let owner = row.owner.clone().unwrap_or_else(|| "-".to_owned());
        let numbers = [row.epoch.to_string(), row.code.clone(), row.problem.clone().unwrap_or_default()];
        [row.shard.to_string(), row.state.to_owned(), owner].into_iter().chain(numbers).collect()
    });
    let shards = table(&["shard", "state", "owner", "epoch", "code", "problem"], shards);
    format!("{workers}\n\n{shards}")
}

#[cfg(test)]
mod tests {
    use perkey::unstable::store::lease::{Code, Worker};

    use super::*;

    fn worker(id: &str, version: u32, expires_in: i64) -> WorkerRow {
        let code = Code::of([("orders", version)]);
        WorkerRow { worker: Worker { id: id.to_owned(), code, ..Worker::default() }, expires_in }
    }

    fn shard(shard: u32, owner: Option<&str>, version: u32) -> LeaseRow {
        LeaseRow { shard, owner: owner.map(str::to_owned), epoch: 3, code: Code::of([("orders", version)]) }
    }

    #[test]
    fn what_nobody_takes_says_why() {
        let mut fleet = Fleet {
            workers: vec![worker("a", 1, 7_000), worker("b", 2, -10)],
            shards: vec![shard(0, Some("a"), 1), shard(1, Some("b"), 2), shard(2, None, 1), shard(3, None, 1)],
        };
        fleet.workers[0].worker.cooling = vec![2];
        let seen = shown(&fleet);
        let states: Vec<_> = seen.shards.iter().map(|row| row.state).collect();
        assert_eq!(states, ["owned", "expired", "free", "free"]);
        let problems: Vec<_> = seen.shards.iter().map(|row| row.problem.as_deref().unwrap_or("-")).collect();
        assert!(
            problems[1].contains("run the newer program") && problems[2].contains("failed too often"),
            "{problems:?}"
        );
        assert_eq!((problems[0], problems[3]), ("-", "-"));
        assert_eq!((seen.workers[0].shards, seen.workers[1].state), (1, "expired"));
        assert!(text(&seen).contains("7.0s"), "{}", text(&seen));
        fleet.workers.clear();
        assert_eq!(shown(&fleet).shards[2].problem.as_deref(), Some("no worker is alive"));
    }
}
