//! The conditions that must hold for a fleet's database and its output once everything is at rest.
//! In: both, and the postings that were given. Out: the violations.

use std::collections::{HashMap, HashSet};

use perkey::Settings;
use perkey::unstable::message::ShardNo;
use perkey::unstable::store::Store;
use serde::Deserialize;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};

use crate::check::compare;
use crate::fleet::record::number;
use crate::postings::{Course, Postings, SERVICE};
use crate::{ChaosError, Verdict};

/// Commits read at once.
const COMMITS: i64 = 500;
/// Bytes of an id in `commits.ids`; the first 16 are its UUID's.
const ID_BYTES: usize = 22;
/// Bytes of an event in `commits.events` before its frame: service, cause, length.
const EVENT_BYTES: usize = 22;
/// The most violations of one kind that are reported.
const TOLD_MAX: usize = 5;

impl From<sqlx::Error> for ChaosError {
    fn from(error: sqlx::Error) -> Self {
        Self::Stuck(format!("PostgreSQL: {error}"))
    }
}

/// The progress of a fleet with the postings it was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The number of messages taken.
    pub taken: i64,
    /// The number of messages waiting in `pending`, or unread in the log.
    pub waiting: i64,
    /// The number of events that a sink has not confirmed.
    pub unpublished: i64,
}

/// The progress of the fleet at `url`.
pub async fn progress(url: &str) -> Result<Progress, ChaosError> {
    let mut connection = PgConnection::connect(url).await?;
    let sql = "SELECT sum(coalesce((counters->>'taken')::bigint, 0))::bigint AS taken,
        (SELECT count(*) FROM pending) AS waiting,
        sum(outbox_seq - coalesce((SELECT min(value::bigint) FROM json_each_text(watermarks)), 0))::bigint AS unpublished
        FROM shards";
    let row = sqlx::query(sql).fetch_one(&mut connection).await?;
    let number = |name| row.try_get::<Option<i64>, _>(name).map(Option::unwrap_or_default);
    let progress =
        Progress { taken: number("taken")?, waiting: number("waiting")?, unpublished: number("unpublished")? };
    connection.close().await?;
    Ok(progress)
}

/// Checks the database at `url`.
pub async fn database(url: &str, seed: u64, given: &Postings, verdict: &mut Verdict) -> Result<(), ChaosError> {
    let mut connection = PgConnection::connect(url).await?;
    at_rest(&mut connection, verdict).await?;
    commits(&mut connection, seed, given, verdict).await?;
    states(&mut connection, given, verdict).await?;
    connection.close().await?;
    Ok(())
}

async fn at_rest(connection: &mut PgConnection, verdict: &mut Verdict) -> Result<(), ChaosError> {
    for (table, word) in [("pending", "pending"), ("dead_letters", "dead letters")] {
        let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&mut *connection).await?;
        verdict.expect(count == 0, || format!("{count} {word} are left"));
    }
    let sql = "SELECT shard, owner, epoch, outbox_seq, watermarks::text FROM shards ORDER BY shard";
    for row in sqlx::query(sql).fetch_all(connection).await? {
        let (shard, seq): (i32, i64) = (row.try_get("shard")?, row.try_get("outbox_seq")?);
        let owner: Option<String> = row.try_get("owner")?;
        verdict.expect(owner.is_some(), || format!("shard {shard} has no owner"));
        let watermarks: HashMap<String, i64> =
            serde_json::from_str(row.try_get("watermarks")?).map_err(|error| ChaosError::Stuck(error.to_string()))?;
        verdict.expect(watermarks.values().all(|at| *at == seq), || {
            format!("shard {shard} has events up to {seq}, and published them up to {watermarks:?}")
        });
    }
    Ok(())
}

/// The last commit of a shard that was read.
#[derive(Default)]
struct Last {
    no: i64,
    epoch: i64,
    next_seq: i64,
}

/// Checks that no commit of an older epoch follows one of a newer, events are numbered without a gap, no id is taken
/// twice.
async fn commits(
    connection: &mut PgConnection,
    seed: u64,
    given: &Postings,
    verdict: &mut Verdict,
) -> Result<(), ChaosError> {
    let mut taken: HashSet<[u8; 16]> = HashSet::new();
    let mut told: HashSet<[u8; 16]> = HashSet::new();
    let (mut stale, mut twice, mut strange, mut count) = (0, 0, 0, 0);
    let mut last: HashMap<i32, Last> = HashMap::new();
    let mut after = (-1_i32, -1_i64);
    let sql = "SELECT shard, commit_no, epoch, first_seq, ids, events FROM commits
        WHERE (shard, commit_no) > ($1, $2) ORDER BY shard, commit_no LIMIT $3";
    loop {
        let rows = sqlx::query(sql).bind(after.0).bind(after.1).bind(COMMITS).fetch_all(&mut *connection).await?;
        let Some(end) = rows.last() else { break };
        after = (end.try_get("shard")?, end.try_get("commit_no")?);
        for row in &rows {
            let shard = row.try_get("shard")?;
            count += 1;
            let causes = follow(row, last.entry(shard).or_default(), &mut stale, verdict)?;
            let ids: &[u8] = row.try_get("ids")?;
            let ids: Vec<[u8; 16]> = ids.chunks(ID_BYTES).filter_map(|id| id.get(..16)?.try_into().ok()).collect();
            told.extend(causes);
            for id in ids {
                strange += usize::from(number(seed, &hex(&id)).is_none());
                twice += usize::from(!taken.insert(id));
            }
        }
    }
    verdict.expect(stale == 0, || format!("{stale} commits are of an older epoch than the one before them"));
    verdict.expect(twice == 0, || format!("{twice} ids were taken twice"));
    verdict.expect(strange == 0, || format!("{strange} ids were taken that nobody gave"));
    // In this workload each message that is taken changes its account and says so: in the same commit, or in a later
    // one if the message became a row first.
    let apart = taken.symmetric_difference(&told).count();
    verdict.expect(apart == 0, || format!("{apart} ids were taken without an event, or the other way round"));
    let (ids, unique) = (taken.len(), given.unique());
    // If there are more ids than a shard's inbox remembers, the oldest are removed with their commits.
    let inbox = Settings::default().dedup.max_ids;
    verdict.expect(ids == unique || unique > inbox && ids < unique, || {
        format!("{ids} ids are in the inbox, {unique} are different")
    });
    verdict.facts.push(format!("{count} commits took {ids} ids of {unique}; {stale} of them stale, {twice} ids twice"));
    Ok(())
}

/// Checks a commit against the one before it; returns the causes of its events.
fn follow(
    row: &PgRow,
    last: &mut Last,
    stale: &mut u64,
    verdict: &mut Verdict,
) -> Result<HashSet<[u8; 16]>, ChaosError> {
    let (shard, no, epoch): (i32, i64, i64) = (row.try_get("shard")?, row.try_get("commit_no")?, row.try_get("epoch")?);
    let first_seq: i64 = row.try_get("first_seq")?;
    *stale += u64::from(epoch < last.epoch);
    let causes = causes(row.try_get("events")?);
    if let Some(causes) = &causes
        && !causes.is_empty()
    {
        let follows = last.next_seq == 0 || last.next_seq == first_seq;
        verdict.expect(follows, || {
            format!("shard {shard}: commit {no} begins with event {first_seq}, not {}", last.next_seq)
        });
        last.next_seq = first_seq + causes.len() as i64;
    }
    verdict.expect(causes.is_some(), || format!("shard {shard}: the events of commit {no} do not decode"));
    (last.no, last.epoch) = (no, epoch);
    Ok(causes.unwrap_or_default().into_iter().collect())
}

/// The causes of a commit's events.
fn causes(mut events: &[u8]) -> Option<Vec<[u8; 16]>> {
    let mut causes = Vec::new();
    while !events.is_empty() {
        let (head, rest) = events.split_at_checked(EVENT_BYTES)?;
        let length = u32::from_le_bytes(head.get(18..)?.try_into().ok()?) as usize;
        causes.push(head.get(2..18)?.try_into().ok()?);
        events = rest.get(length..)?;
    }
    Some(causes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Debug, PartialEq, Deserialize)]
struct Balance {
    balance: i64,
    n: u64,
}

async fn states(connection: &mut PgConnection, given: &Postings, verdict: &mut Verdict) -> Result<(), ChaosError> {
    let sql = "SELECT key, state::text AS state FROM states WHERE service = $1";
    let mut found = HashMap::new();
    for row in sqlx::query(sql).bind(SERVICE).fetch_all(connection).await? {
        let state: Option<Balance> = serde_json::from_str(row.try_get("state")?).ok();
        found.insert(row.try_get::<String, _>("key")?, state);
    }
    let effects: u64 = found.values().flatten().map(|state| state.n).sum();
    let unique = given.unique() as u64;
    verdict.expect(effects == unique, || format!("{effects} effects are in the states, {unique} postings were given"));
    verdict.expect(found.len() == given.courses().len(), || format!("{} accounts have a state", found.len()));
    let mut wrong = 0;
    for (account, course) in given.courses() {
        let should = Balance { balance: course.last().map_or(0, |(_, balance)| *balance), n: course.len() as u64 };
        let state = found.get(account).and_then(Option::as_ref);
        if state != Some(&should) {
            wrong += 1;
            verdict.expect(wrong > TOLD_MAX, || format!("the state of {account} is {state:?}, should be {should:?}"));
        }
    }
    verdict.expect(wrong <= TOLD_MAX, || format!("… {wrong} states in all"));
    verdict.facts.push(format!("{effects} effects in the states of {} accounts", found.len()));
    Ok(())
}

/// The values of all events in the commits, in order for each shard.
pub async fn events(store: &dyn Store, shards: ShardNo) -> Result<Vec<Vec<Vec<u8>>>, ChaosError> {
    let mut all = Vec::new();
    for shard in 0..shards {
        let mut values = Vec::new();
        let mut after = 0;
        loop {
            let rows = store.queries().events(shard, after, 500).await?;
            let Some(last) = rows.last() else { break };
            after = last.seq;
            values.extend(rows.iter().map(|row| row.event.message.payload().to_vec()));
        }
        all.push(values);
    }
    Ok(all)
}

/// The event of a posting that counted.
#[derive(Debug, Deserialize)]
struct Changed {
    id: String,
    account: String,
    balance: i64,
    n: u64,
}

/// Checks what was published: with repeats by id removed, each account's events are its postings in order.
pub fn output(partitions: &[Vec<Vec<u8>>], seed: u64, given: &Postings, verdict: &mut Verdict) {
    let mut found: HashMap<String, Course> = HashMap::new();
    let mut homes: HashMap<String, usize> = HashMap::new();
    let mut seen = HashSet::new();
    let (mut repeats, mut wrong) = (0, 0);
    let mut tell = |violation: String, verdict: &mut Verdict| {
        wrong += 1;
        if wrong <= TOLD_MAX {
            verdict.violations.push(violation);
        }
    };
    for (partition, records) in partitions.iter().enumerate() {
        for record in records {
            let changed: Changed = match serde_json::from_slice(record) {
                Ok(changed) => changed,
                Err(error) => {
                    tell(format!("a record of the output does not decode: {error}"), verdict);
                    continue;
                }
            };
            let Changed { id, account, balance, n } = changed;
            let Some(number) = number(seed, &id) else {
                tell(format!("{account} has an event of {id}, which nobody gave it"), verdict);
                continue;
            };
            if !seen.insert(number) {
                repeats += 1;
                continue;
            }
            if *homes.entry(account.clone()).or_insert(partition) != partition {
                tell(format!("{account} has events in several partitions"), verdict);
            }
            let course = found.entry(account.clone()).or_default();
            course.push((number, balance));
            if course.len() as u64 != n {
                tell(format!("{account}: its event {} of the output says n = {n}", course.len()), verdict);
            }
        }
    }
    verdict.expect(wrong <= TOLD_MAX, || format!("… {wrong} events of the output in all"));
    compare(&found, given.courses(), verdict);
    let published = seen.len() + repeats;
    verdict.facts.push(format!("{published} events came out, {repeats} of them repeats"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::record::Record;

    /// Postings and the records that must result from them.
    fn scene() -> (Postings, Vec<Vec<u8>>) {
        let mut given = Postings::new(1, 2);
        let (mut seen, mut records) = (HashSet::new(), Vec::new());
        for _ in 0..40 {
            let posting = given.make();
            let number = given.number(&posting.id).unwrap();
            if seen.insert(number) {
                let id = Record::new(1, number, &posting).id;
                let course = &given.courses()[&posting.account];
                let (account, n, balance) = (posting.account, course.len(), course[course.len() - 1].1);
                let record = format!(r#"{{"id":"{id}","account":"{account}","balance":{balance},"n":{n}}}"#);
                records.push(record.into_bytes());
            }
        }
        (given, records)
    }

    fn told(given: &Postings, records: Vec<Vec<u8>>) -> Vec<String> {
        let mut verdict = Verdict::default();
        output(&[records], 1, given, &mut verdict);
        verdict.violations
    }

    #[test]
    fn what_was_lost_or_turned_round_is_found_and_repeats_are_not() {
        let (given, records) = scene();
        assert_eq!(told(&given, records.clone()), [""; 0]);
        let again = [records.clone(), records[5..].to_vec()].concat();
        assert_eq!(told(&given, again), [""; 0]);
        let mut lost = records.clone();
        lost.remove(3);
        assert!(!told(&given, lost).is_empty());
        let mut turned = records;
        turned.reverse();
        assert!(!told(&given, turned).is_empty());
    }

    #[test]
    fn events_are_taken_apart() {
        let event = [&[1, 0][..], &[7; 16], &3_u32.to_le_bytes(), b"abc"].concat();
        assert_eq!(causes(&[event.clone(), event.clone()].concat()), Some(vec![[7; 16]; 2]));
        assert_eq!(causes(&event[..event.len() - 1]), None);
    }
}
