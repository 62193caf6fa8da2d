//! `status`: the shards and the messages that wait in them.
//! In: a store. Out: a row per shard, and the totals.

use std::collections::BTreeMap;

use perkey::Settings;
use perkey::unstable::clock::rfc3339;
use perkey::unstable::settings::load::redact;
use perkey::unstable::store;
use perkey::unstable::store::query::{Pause, Scope, ShardRow};
use serde::Serialize;

use super::output::{Out, table};
use super::{Done, Ended, open_beside};

#[derive(Serialize)]
struct Status {
    store: String,
    running: bool,
    shards: Vec<ShardRow>,
    totals: Totals,
    paused: Vec<Paused>,
}

/// The services and keys that operators have paused.
#[derive(Serialize)]
struct Paused {
    #[serde(flatten)]
    scope: Scope,
    who: String,
    why: String,
    since: String,
}

/// Sums over shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// The number of commits.
    pub commits: u64,
    /// The number of unread messages in the embedded log.
    pub unread: u64,
    /// The number of rows in `pending`.
    pub pending: u64,
    /// The number of dead letters.
    pub dead_letters: u64,
    /// The number of keys held by a dead letter.
    pub held_keys: u64,
    /// The shards' counters, by name.
    pub counters: BTreeMap<String, u64>,
}

impl Totals {
    /// The sums over `shards`.
    pub fn of(shards: &[ShardRow]) -> Self {
        let mut totals = Self::default();
        for shard in shards {
            totals.commits += shard.commit_no;
            totals.unread += shard.unread;
            totals.pending += shard.pending;
            totals.dead_letters += shard.dead_letters;
            totals.held_keys += shard.held_keys;
            for (name, count) in &shard.counters {
                *totals.counters.entry(name.clone()).or_default() += count;
            }
        }
        totals
    }

    /// The sum of the shards' counters called `name`.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or_default()
    }
}

/// Shows the shards.
pub async fn status(settings: &Settings, out: Out) -> Ended {
    let store = open_beside(settings).await?;
    let shards = store.queries().shards().await?;
    let paused = store.queries().pauses().await?.into_iter().map(|pause| {
        let Pause { scope, who, why, since } = pause;
        Paused { scope, who, why, since: rfc3339(since) }
    });
    let status = Status {
        paused: paused.collect(),
        store: redact("store.url", &settings.store.url),
        running: store::is_running(settings).await,
        totals: Totals::of(&shards),
        shards,
    };
    out.show(&status, text)?;
    Ok(Done::All)
}

fn text(status: &Status) -> String {
    let head = ["shard", "owner", "epoch", "commit_no", "unread", "pending", "dead_letters", "held_keys"];
    let row = |shard: &ShardRow| {
        let owner = shard.owner.clone().unwrap_or_else(|| "-".to_owned());
        let counts = [shard.epoch, shard.commit_no, shard.unread, shard.pending, shard.dead_letters, shard.held_keys];
        let counts = counts.iter().map(u64::to_string);
        [shard.shard.to_string(), owner].into_iter().chain(counts).collect()
    };
    let totals = &status.totals;
    let sums = [totals.commits, totals.unread, totals.pending, totals.dead_letters, totals.held_keys];
    let blank = ["all".to_owned(), String::new(), String::new()];
    let sums: Vec<_> = blank.into_iter().chain(sums.iter().map(u64::to_string)).collect();
    let shards = table(&head, status.shards.iter().map(row).chain([sums]));
    let counters: Vec<_> = totals.counters.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let running = if status.running { "a process runs it" } else { "no process runs it" };
    let paused = status.paused.iter().map(|pause| {
        let Paused { scope, who, why, since } = pause;
        format!("\n{scope} is paused since {since} by {who}: {why}")
    });
    let paused: String = paused.collect();
    format!("{}: {running}\n\n{shards}\n\n{}{paused}", status.store, counters.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(shard: u32, count: u64) -> ShardRow {
        ShardRow {
            shard,
            owner: None,
            epoch: 1,
            commit_no: count,
            unclean: 0,
            unread: count,
            pending: count,
            dead_letters: count,
            waiting_keys: count,
            held_keys: count,
            outbox_seq: 0,
            positions: BTreeMap::new(),
            ahead: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            counters: [("taken".to_owned(), count)].into(),
        }
    }

    #[test]
    fn totals_are_sums_over_the_shards() {
        let totals = Totals::of(&[shard(0, 3), shard(1, 4)]);
        let sums = [totals.commits, totals.unread, totals.pending, totals.dead_letters, totals.held_keys];
        assert_eq!((sums, totals.counter("taken"), totals.counter("other")), ([7; 5], 7, 0));
    }
}
