//! The conditions that must hold in the end, checked against the store alone.
//! In: a store at rest, and the postings it was given. Out: the violations.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use perkey::StoreError;
use perkey::unstable::message::{ShardNo, shard_of};
use perkey::unstable::store::postgres::{Bounds, PgStore};
use perkey::unstable::store::query::ShardRow;
use perkey::unstable::store::sqlite::SqliteStore;
use perkey::unstable::store::{Access, ServiceKey, Store};
use serde::Deserialize;

use crate::postings::{Course, Postings, SERVICE};
use crate::{ChaosError, Verdict};

/// The number of commits whose events are read at once.
const COMMITS: usize = 500;
/// The most violations of one kind that are reported in full.
const TOLD_MAX: usize = 5;

/// The event of a posting that counted.
#[derive(Debug, Deserialize)]
struct Changed {
    id: String,
    balance: i64,
    n: u64,
}

/// The state of an account.
#[derive(Debug, Default, PartialEq, Deserialize)]
struct Balance {
    balance: i64,
    n: u64,
}

/// The progress of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The number of messages that are taken or were dropped as duplicates.
    pub passed: u64,
    /// The number of messages that are unread or waiting.
    pub open: u64,
}

/// Opens the store at `url` for reading.
async fn look(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    if PgStore::names(url) {
        let bounds = Bounds { connections: 2, commits_in_flight: 1, statement_timeout: Duration::from_secs(30) };
        return Ok(Arc::new(PgStore::open(url, bounds, Access::Tool).await?));
    }
    Ok(Arc::new(SqliteStore::open(url, Access::Tool).await?))
}

/// The progress of the store at `url`; all zero while there is none yet.
pub async fn progress(url: &str) -> Progress {
    let Ok(store) = look(url).await else { return Progress::default() };
    let rows = store.queries().shards().await.unwrap_or_default();
    Progress {
        passed: total(&rows, "taken") + total(&rows, "duplicates"),
        open: rows.iter().map(|row| row.unread + row.pending).sum(),
    }
}

fn total(rows: &[ShardRow], counter: &str) -> u64 {
    rows.iter().filter_map(|row| row.counters.get(counter)).sum()
}

/// Checks the store at `url` against what it was given.
pub async fn check(url: &str, given: &Postings, verdict: &mut Verdict) -> Result<(), ChaosError> {
    let store = look(url).await?;
    let rows = store.queries().shards().await?;
    at_rest(&rows, given, verdict);
    let shards = u32::try_from(rows.len()).unwrap_or(u32::MAX);
    let mut found = HashMap::new();
    for shard in 0..shards {
        read_events(&*store, given, shard, shards, &mut found, verdict).await?;
    }
    compare(&found, given.courses(), verdict);
    states(&*store, shards, given.courses(), verdict).await?;
    Ok(())
}

fn at_rest(rows: &[ShardRow], given: &Postings, verdict: &mut Verdict) {
    for row in rows {
        let ShardRow { shard, unread, pending, dead_letters, held_keys, .. } = row;
        verdict.expect([*unread, *pending, *dead_letters, *held_keys] == [0; 4], || {
            format!("shard {shard} is not at rest: {unread} unread, {pending} pending, {dead_letters} dead, {held_keys} held")
        });
    }
    let (taken, duplicates) = (total(rows, "taken"), total(rows, "duplicates"));
    let unique = given.unique() as u64;
    verdict.expect(taken == unique, || format!("{taken} messages were taken, {unique} are different"));
    // A message that was taken ahead of its source's position comes again after a takeover, and counts as a duplicate,
    // too.
    let repeats = given.repeats();
    let fact = format!("{duplicates} copies dropped by their id, {repeats} of them repeats in the input");
    verdict.expect(duplicates >= repeats, || fact.clone());
    verdict.facts.push(fact);
}

/// Reads a shard's events in the order of their commits, and checks that each key's count rises by one each time.
async fn read_events(
    store: &dyn Store,
    given: &Postings,
    shard: ShardNo,
    shards: u32,
    found: &mut HashMap<String, Course>,
    verdict: &mut Verdict,
) -> Result<(), ChaosError> {
    let mut after = 0;
    loop {
        let rows = store.queries().events(shard, after, COMMITS).await?;
        let Some(last) = rows.last() else { return Ok(()) };
        verdict.expect(rows[0].seq == after + 1, || {
            format!("shard {shard}: event {} follows on event {after}", rows[0].seq)
        });
        for pair in rows.windows(2) {
            let [one, next] = [&pair[0], &pair[1]];
            verdict.expect(next.seq == one.seq + 1 && next.commit.no >= one.commit.no, || {
                format!("shard {shard}: event {} follows on event {}", next.seq, one.seq)
            });
        }
        after = last.seq;
        for row in &rows {
            let message = &row.event.message;
            let key = message.key();
            verdict.expect(shard_of(key, shards) == shard, || format!("{key} has an event in shard {shard}"));
            match serde_json::from_slice::<Changed>(message.payload()) {
                Ok(Changed { id, balance, n }) => {
                    let course = found.entry(key.to_owned()).or_default();
                    match given.number(&id) {
                        Some(number) => course.push((number, balance)),
                        None => verdict.violations.push(format!("{key} has an event of {id}, which nobody gave it")),
                    }
                    let count = course.len() as u64;
                    verdict.expect(n == count, || format!("{key}: event {count} says n = {n}"));
                }
                Err(error) => verdict.violations.push(format!("an event of {key} does not decode: {error}")),
            }
        }
    }
}

/// Checks that each account's events tell its postings in the order in which they were given, each once.
pub(crate) fn compare(found: &HashMap<String, Course>, given: &HashMap<String, Course>, verdict: &mut Verdict) {
    let mut told = 0;
    let mut tell = |violation: String, verdict: &mut Verdict| {
        told += 1;
        if told <= TOLD_MAX {
            verdict.violations.push(violation);
        }
    };
    let nothing = Course::new();
    for (account, course) in given {
        let events = found.get(account).unwrap_or(&nothing);
        let differs = events.iter().zip(course).position(|(event, posting)| event != posting);
        let at = differs.unwrap_or_else(|| events.len().min(course.len()));
        if events.len() != course.len() || differs.is_some() {
            let (is, should) = (events.get(at), course.get(at));
            let counts = format!("{} events for {} postings", events.len(), course.len());
            tell(format!("{account}: {counts}; the one at {} is {is:?}, should be {should:?}", at + 1), verdict);
        }
    }
    for account in found.keys().filter(|account| !given.contains_key(*account)) {
        tell(format!("{account} has events and was given nothing"), verdict);
    }
    verdict.expect(told <= TOLD_MAX, || format!("… {told} accounts in all"));
    let effects: usize = found.values().map(Vec::len).sum();
    verdict.facts.push(format!("{effects} effects on {} accounts", found.len()));
}

async fn states(
    store: &dyn Store,
    shards: u32,
    given: &HashMap<String, Course>,
    verdict: &mut Verdict,
) -> Result<(), ChaosError> {
    let mut by_shard: HashMap<ShardNo, Vec<&str>> = HashMap::new();
    for account in given.keys() {
        by_shard.entry(shard_of(account, shards)).or_default().push(account);
    }
    let mut wrong = Vec::new();
    for (shard, accounts) in by_shard {
        for some in accounts.chunks(500) {
            let key = |account: &&str| ServiceKey { service: SERVICE.into(), key: (*account).into() };
            let rows = store.load(shard, some.iter().map(key).collect()).await?;
            for (account, row) in some.iter().zip(rows) {
                let course = &given[*account];
                let should =
                    Balance { balance: course.last().map_or(0, |(_, balance)| *balance), n: course.len() as u64 };
                let state = row.state.and_then(|(_, json)| serde_json::from_slice(&json).ok());
                if state.as_ref() != Some(&should) {
                    wrong.push(format!("the state of {account} is {state:?}, should be {should:?}"));
                }
            }
        }
    }
    let count = wrong.len();
    verdict.expect(count <= TOLD_MAX, || format!("{count} states are wrong"));
    wrong.truncate(TOLD_MAX);
    verdict.violations.append(&mut wrong);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(found: &[(u32, i64)], given: &[(u32, i64)]) -> Vec<String> {
        let courses = |course: &[(u32, i64)]| HashMap::from([("acct-1".to_owned(), course.to_vec())]);
        let mut verdict = Verdict::default();
        compare(&courses(found), &courses(given), &mut verdict);
        verdict.violations
    }

    #[test]
    fn what_is_lost_repeated_out_of_order_or_wrong_is_found() {
        let given = [(0, 10), (3, 15), (7, 5)];
        assert_eq!(told(&given, &given), [""; 0]);
        for (found, word) in [
            (&given[..2], "2 events for 3 postings; the one at 3 is None"),
            (&[(0, 10), (3, 15), (3, 20), (7, 5)][..], "the one at 3 is Some((3, 20))"),
            (&[(3, 5), (0, 15), (7, 5)][..], "the one at 1 is Some((3, 5))"),
            (&[(0, 10), (3, 15), (7, 6)][..], "the one at 3 is Some((7, 6))"),
            (&[(0, 10), (3, 15), (7, 5), (8, 6)][..], "4 events for 3 postings; the one at 4"),
        ] {
            let told = told(found, &given);
            assert!(told.len() == 1 && told[0].contains(word), "{told:?}");
        }
    }

    #[test]
    fn an_account_that_was_given_nothing_is_found() {
        let found = HashMap::from([("acct-9".to_owned(), vec![(0, 1)])]);
        let mut verdict = Verdict::default();
        compare(&found, &HashMap::new(), &mut verdict);
        assert_eq!(verdict.violations, ["acct-9 has events and was given nothing"]);
    }
}
