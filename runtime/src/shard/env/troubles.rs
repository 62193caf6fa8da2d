//! The troubles of this process, for those that ask whether it is ready.
//! In: failures and recoveries. Out: sentences that name the store, or the broker.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Stopwatch;
use crate::message::{ShardNo, SinkIx, SourceIx};

/// The time after which a trouble that was not met again is over: nobody may be left to report that.
const QUIET: Duration = Duration::from_secs(20);

/// An end of a shard at a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Endpoint {
    /// A source, by its index.
    Source(SourceIx),
    /// A sink, by its index.
    Sink(SinkIx),
}

/// The troubles of a process.
#[derive(Debug)]
pub(crate) struct Troubles(Vec<Mutex<OfShard>>);

#[derive(Debug, Default)]
struct OfShard {
    /// The reason for which its commits cannot be written now.
    unwritten: Option<String>,
    /// The reason for which the store cannot be read for it now.
    unread: Option<String>,
    /// Its sources that lost their places, with the reasons.
    lost: BTreeMap<SourceIx, String>,
    /// Its ends that cannot be used now.
    away: BTreeMap<Endpoint, Away>,
}

#[derive(Debug)]
struct Away {
    since: Stopwatch,
    last: Stopwatch,
    why: String,
}

impl Troubles {
    /// No troubles, in `shards` shards.
    pub(crate) fn new(shards: u32) -> Self {
        Self((0..shards).map(|_| Mutex::default()).collect())
    }

    /// Notes that a shard's commits cannot be written now, or can again.
    pub(crate) fn set_unwritten(&self, shard: ShardNo, why: Option<String>) {
        self.of(shard).unwritten = why;
    }

    /// Notes that the store cannot be read for a shard now, or can again.
    pub(crate) fn set_unread(&self, shard: ShardNo, why: Option<String>) {
        self.of(shard).unread = why;
    }

    /// Notes that a source of a shard lost its place, or has found it again.
    pub(crate) fn set_lost(&self, shard: ShardNo, source: SourceIx, why: Option<String>) {
        match why {
            Some(why) => drop(self.of(shard).lost.insert(source, why)),
            None => drop(self.of(shard).lost.remove(&source)),
        }
    }

    /// The sources of a shard that lost their places, with the reasons.
    pub(crate) fn lost(&self, shard: ShardNo) -> BTreeMap<SourceIx, String> {
        self.of(shard).lost.clone()
    }

    /// Notes that an end is away, for the first time or still.
    pub(crate) fn away(&self, shard: ShardNo, end: Endpoint, why: &str) {
        let mut troubles = self.of(shard);
        match troubles.away.get_mut(&end).filter(|away| away.last.elapsed() < QUIET) {
            Some(away) => {
                away.last = Stopwatch::start();
                if away.why != why {
                    why.clone_into(&mut away.why);
                }
            }
            None => {
                let now = Stopwatch::start();
                troubles.away.insert(end, Away { since: now, last: now, why: why.to_owned() });
            }
        }
    }

    /// Notes that an end took, gave or confirmed something.
    pub(crate) fn back(&self, shard: ShardNo, end: Endpoint) {
        self.of(shard).away.remove(&end);
    }

    /// Forgets a shard that does not run here any longer.
    pub(crate) fn forget(&self, shard: ShardNo) {
        *self.of(shard) = OfShard::default();
    }

    /// All troubles, each a sentence; `name` gives the name of an end. An end counts once it has been away for
    /// `away_max`.
    pub(crate) fn problems(&self, away_max: Duration, name: impl Fn(Endpoint) -> String) -> Vec<String> {
        let mut problems = Vec::new();
        for (no, troubles) in self.0.iter().enumerate() {
            let troubles = troubles.lock().unwrap_or_else(PoisonError::into_inner);
            let OfShard { unwritten, unread, lost, away } = &*troubles;
            problems.extend(unwritten.iter().map(|why| {
                format!("the store cannot be written: {why} (commits of shard {no} cannot be written and wait)")
            }));
            problems.extend(
                unread.iter().map(|why| format!("the store cannot be used: {why} (what shard {no} asks of it waits)")),
            );
            problems.extend(lost.iter().map(|(source, why)| {
                format!("{} of shard {no} lost its place: {why}", name(Endpoint::Source(*source)))
            }));
            let away = away.iter().filter(|(_, away)| away.since.elapsed() >= away_max && away.last.elapsed() < QUIET);
            problems.extend(away.map(|(end, Away { since, why, .. })| {
                format!("{} of shard {no} has been away for {} s: {why}", name(*end), since.elapsed().as_secs())
            }));
        }
        problems
    }

    fn of(&self, shard: ShardNo) -> MutexGuard<'_, OfShard> {
        self.0[shard as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(end: Endpoint) -> String {
        match end {
            Endpoint::Source(_) => "source kafka".to_owned(),
            Endpoint::Sink(_) => "sink rabbitmq".to_owned(),
        }
    }

    #[test]
    fn each_trouble_is_told_until_it_is_over() {
        let troubles = Troubles::new(2);
        assert_eq!(troubles.problems(Duration::ZERO, name), Vec::<String>::new());
        troubles.set_unwritten(1, Some("database or disk is full".to_owned()));
        troubles.set_unread(0, Some("no such server".to_owned()));
        troubles.set_lost(0, SourceIx::nth(1), Some("removed".to_owned()));
        troubles.away(1, Endpoint::Source(SourceIx::FIRST), "no broker");
        troubles.away(1, Endpoint::Sink(SinkIx::FIRST), "it confirms nothing");
        let all = troubles.problems(Duration::ZERO, name).join("\n");
        for part in [
            "the store cannot be written: database or disk is full (commits of shard 1",
            "the store cannot be used: no such server (what shard 0 asks",
            "source kafka of shard 0 lost its place: removed",
            "source kafka of shard 1 has been away for 0 s: no broker",
            "sink rabbitmq of shard 1 has been away for 0 s: it confirms nothing",
        ] {
            assert!(all.contains(part), "{part}: {all}");
        }
        assert_eq!(troubles.problems(Duration::from_secs(30), name).len(), 3, "a short absence is none");
        troubles.set_unwritten(1, None);
        troubles.back(1, Endpoint::Sink(SinkIx::FIRST));
        troubles.forget(0);
        let rest = troubles.problems(Duration::ZERO, name);
        assert!(rest.len() == 1 && rest[0].contains("no broker"), "{rest:?}");
    }
}
