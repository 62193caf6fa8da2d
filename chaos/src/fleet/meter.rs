//! The owners and commits of shards over time, read from the store again and again while the fleet works.
//! In: the table of shards. Out: an entry for each change; takeover times and standstills.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perkey::sleep;
use perkey::unstable::clock::Stopwatch;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};
use tokio::task::JoinSet;

use crate::fleet::load::Gauge;

/// The time between two looks.
const EVERY: Duration = Duration::from_millis(20);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// A shard as it was seen after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The time of the look.
    pub at: Duration,
    /// Its owner.
    pub owner: Option<Arc<str>>,
    /// Its epoch.
    pub epoch: i64,
    /// Its last commit.
    pub commit_no: i64,
}

/// The changes seen of each shard, in order.
#[derive(Clone, Debug, Default)]
pub struct Timeline(pub Vec<Vec<Seen>>);

/// Watches the shards in the background.
#[derive(Debug)]
pub struct Meter {
    seen: Arc<Mutex<Timeline>>,
    watch: Stopwatch,
    _tasks: JoinSet<()>,
}

impl Meter {
    /// Starts watching the database at `url`; tells `gauge` the number of messages taken.
    pub fn start(url: &str, watch: Stopwatch, gauge: Arc<Gauge>) -> Self {
        let seen = Arc::new(Mutex::new(Timeline::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(look(url.to_owned(), watch, Arc::clone(&seen), gauge));
        Self { seen, watch, _tasks: tasks }
    }

    /// The time on the meter's stopwatch.
    pub fn now(&self) -> Duration {
        self.watch.elapsed()
    }

    /// The changes seen so far.
    pub fn timeline(&self) -> MutexGuard<'_, Timeline> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn look(url: String, watch: Stopwatch, seen: Arc<Mutex<Timeline>>, gauge: Arc<Gauge>) {
    loop {
        // A server that is away comes back, and so does the connection.
        let connected = tokio::time::timeout(CONNECT_WITHIN, PgConnection::connect(&url)).await;
        if let Ok(Ok(mut connection)) = connected {
            while let Ok(taken) = glance(&mut connection, watch, &seen).await {
                gauge.taken.store(taken, Ordering::Relaxed);
                sleep(EVERY).await;
            }
        }
        sleep(EVERY).await;
    }
}

/// Looks once; returns the number of messages taken so far.
async fn glance(connection: &mut PgConnection, watch: Stopwatch, seen: &Mutex<Timeline>) -> Result<u64, sqlx::Error> {
    let sql = "SELECT owner, epoch, commit_no, (counters->>'taken')::bigint AS taken FROM shards ORDER BY shard";
    let rows = sqlx::query(sql).fetch_all(connection).await?;
    let at = watch.elapsed();
    let mut taken = 0;
    let mut timeline = seen.lock().unwrap_or_else(PoisonError::into_inner);
    timeline.0.resize_with(rows.len(), Vec::new);
    for (track, row) in timeline.0.iter_mut().zip(&rows) {
        taken += row.try_get::<Option<i64>, _>("taken")?.unwrap_or_default();
        let owner: Option<&str> = row.try_get("owner")?;
        let (epoch, commit_no) = (row.try_get("epoch")?, row.try_get("commit_no")?);
        let last = track.last();
        if last.is_some_and(|last| last.owner.as_deref() == owner && (last.epoch, last.commit_no) == (epoch, commit_no))
        {
            continue;
        }
        let known = last.and_then(|last| last.owner.clone()).filter(|known| Some(&**known) == owner);
        track.push(Seen { at, owner: known.or_else(|| owner.map(Arc::from)), epoch, commit_no });
    }
    Ok(u64::try_from(taken).unwrap_or_default())
}

/// Returns whether `owner` is an incarnation of the worker `name`.
fn is_of(owner: Option<&Arc<str>>, name: &str) -> bool {
    owner.is_some_and(|owner| owner.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))
}

impl Timeline {
    /// The number of shards that each of `names` owns now.
    pub fn owned(&self, names: &[String]) -> Vec<usize> {
        let last = || self.0.iter().filter_map(|track| track.last());
        names.iter().map(|name| last().filter(|seen| is_of(seen.owner.as_ref(), name)).count()).collect()
    }

    /// For each shard that `name` owned at `at`: the time until the first commit by another incarnation or worker;
    /// `None` while there was no such commit.
    pub fn takeovers(&self, name: &str, at: Duration) -> Vec<Option<Duration>> {
        let mut times = Vec::new();
        for track in &self.0 {
            let Some(was) = track.iter().rev().find(|seen| seen.at <= at) else { continue };
            if !is_of(was.owner.as_ref(), name) {
                continue;
            }
            let after = || track.iter().filter(|seen| seen.at > at);
            let mut taken = after().skip_while(|seen| seen.owner == was.owner || seen.owner.is_none());
            let first = taken.next();
            let commit = first.and_then(|first| taken.find(|seen| seen.commit_no > first.commit_no));
            times.push(commit.map(|seen| seen.at - at));
        }
        times
    }

    /// For each shard, the time from `at` until its next commit.
    pub fn next_commits(&self, at: Duration) -> Vec<Option<Duration>> {
        let next = |track: &Vec<Seen>| {
            let before = track.iter().rev().find(|seen| seen.at <= at).map_or(0, |seen| seen.commit_no);
            track.iter().find(|seen| seen.at > at && seen.commit_no > before).map(|seen| seen.at - at)
        };
        self.0.iter().map(next).collect()
    }

    /// The longest time in `[from, to)` in which a shard did not commit.
    pub fn standstill(&self, from: Duration, to: Duration) -> Duration {
        let mut longest = Duration::ZERO;
        for track in &self.0 {
            let mut last = from;
            let mut commit_no = track.iter().rev().find(|seen| seen.at <= from).map_or(0, |seen| seen.commit_no);
            for seen in track.iter().filter(|seen| seen.at > from && seen.at < to) {
                if seen.commit_no > commit_no {
                    longest = longest.max(seen.at - last);
                    (last, commit_no) = (seen.at, seen.commit_no);
                }
            }
            longest = longest.max(to.saturating_sub(last));
        }
        longest
    }

    /// The number of times a shard went to another owner, and the number of times an owner took its own shard again.
    pub fn moves(&self) -> (usize, usize) {
        let (mut moved, mut again) = (0, 0);
        for track in &self.0 {
            let owned: Vec<&Seen> = track.iter().filter(|seen| seen.owner.is_some()).collect();
            for pair in owned.windows(2).filter(|pair| pair[0].epoch != pair[1].epoch) {
                *(if pair[0].owner == pair[1].owner { &mut again } else { &mut moved }) += 1;
            }
        }
        (moved, again)
    }

    /// Observations that no order of events explains: an epoch or a commit number that went back.
    pub fn regressions(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (shard, track) in self.0.iter().enumerate() {
            let back = |pair: &&[Seen]| pair[1].epoch < pair[0].epoch || pair[1].commit_no < pair[0].commit_no;
            found.extend(
                track
                    .windows(2)
                    .filter(back)
                    .map(|pair| format!("shard {shard} went back from {:?} to {:?}", pair[0], pair[1])),
            );
        }
        found
    }
}

/// A summary of times for people: their number and their spread.
pub fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let Some(max) = times.last() else { return "none".to_owned() };
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_millis();
    format!("{} times, p50 {} ms, p99 {} ms, max {} ms", times.len(), at(0.5), at(0.99), max.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(rows: &[(u64, &str, i64, i64)]) -> Timeline {
        let seen = |&(at, owner, epoch, commit_no): &(u64, &str, i64, i64)| Seen {
            at: Duration::from_millis(at),
            owner: (!owner.is_empty()).then(|| owner.into()),
            epoch,
            commit_no,
        };
        Timeline(vec![rows.iter().map(seen).collect()])
    }

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn a_takeover_ends_with_the_next_owners_first_commit() {
        let line = timeline(&[
            (10, "w1 (a)", 1, 5),
            (100, "w1 (a)", 1, 6),
            (150, "w1 (a)", 1, 7),
            (160, "", 1, 7),
            (300, "w2 (b)", 2, 7),
            (420, "w2 (b)", 2, 8),
        ]);
        assert_eq!(line.takeovers("w1", MS(120)), [Some(MS(300))]);
        assert_eq!(line.takeovers("w2", MS(120)), []);
        assert_eq!(line.takeovers("w2", MS(500)), [None]);
        assert_eq!(line.takeovers("w", MS(120)), []);
        assert_eq!(line.next_commits(MS(150)), [Some(MS(270))]);
        assert_eq!(line.standstill(MS(10), MS(430)), MS(270));
        assert_eq!(line.standstill(MS(10), MS(900)), MS(480));
        assert_eq!(line.owned(&["w1".to_owned(), "w2".to_owned()]), [0, 1]);
        assert_eq!((line.moves(), line.regressions().len()), ((1, 0), 0));
    }

    #[test]
    fn a_shard_taken_again_by_its_owner_has_not_moved() {
        let line = timeline(&[(10, "w1 (a)", 1, 5), (20, "w1 (a)", 2, 5), (30, "w1 (a)", 2, 4)]);
        assert_eq!(line.moves(), (0, 1));
        assert_eq!(line.regressions().len(), 1);
    }

    #[test]
    fn times_are_spread() {
        assert_eq!(spread(vec![]), "none");
        assert_eq!(spread((1..=101).rev().map(MS).collect()), "101 times, p50 51 ms, p99 100 ms, max 101 ms");
    }
}
