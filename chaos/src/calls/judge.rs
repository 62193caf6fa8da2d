//! Checks that each operation took effect once: by the answers to its clients, by a client's reads, by the database.
//! In: the operations; answers; a gateway; a store. Out: the violations.

use std::collections::BTreeMap;
use std::sync::Arc;

use perkey::Settings;
use perkey::unstable::message::shard_of;
use perkey::unstable::store::query::DeadFilter;
use perkey::unstable::store::{Access, ServiceKey, Store};
use serde_json::Value;

use super::clients::{Given, Seen};
use crate::{ChaosError, Verdict};

const SERVICE: &str = "transactions";
/// The most violations of one kind that are reported.
const TOLD_MAX: usize = 5;

/// Checks that all answers of an operation are the same, and that at most one is not a repeat.
pub(super) fn answers(given: &Given, seen: &Seen, verdict: &mut Verdict) {
    let mut wrong: Vec<String> = seen.odd.clone();
    for (at, operation) in given.operations.iter().enumerate() {
        match seen.answers.get(&at) {
            Some((bodies, new)) if bodies.len() == 1 && *new <= 1 => {}
            Some((bodies, new)) => wrong.push(format!("{}: {new} times new, answers {bodies:?}", operation.key)),
            None => wrong.push(format!("{} was never answered", operation.key)),
        }
    }
    let count = wrong.len();
    verdict.violations.extend(wrong.into_iter().take(TOLD_MAX));
    verdict.expect(count <= TOLD_MAX, || format!("{count} operations were answered wrongly in all"));
}

/// Checks that a client that pages through each account finds each posting once.
pub(super) async fn pages(url: &str, given: &Given, verdict: &mut Verdict) -> Result<(), ChaosError> {
    let client = reqwest::Client::new();
    let failed = |error: reqwest::Error| ChaosError::Stuck(format!("the postings cannot be read: {error}"));
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    for account in given.accounts().keys() {
        let mut after = String::new();
        loop {
            let page = format!("{url}/api/transactions?account={account}&limit=100{after}");
            let page: Value = client.get(page).send().await.map_err(failed)?.json().await.map_err(failed)?;
            for item in page["items"].as_array().into_iter().flatten() {
                *found.entry(item["memo"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
            }
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
    }
    for operation in &given.operations {
        let times = found.remove(&operation.key).unwrap_or(0);
        verdict.expect(times == 1, || format!("{} is found {times} times", operation.key));
    }
    verdict.expect(found.is_empty(), || format!("postings that nobody asked for: {found:?}"));
    Ok(())
}

/// Checks that the states of the accounts count each posting once, and that nothing was given up.
pub(super) async fn database(url: &str, given: &Given, verdict: &mut Verdict) -> Result<(), ChaosError> {
    let mut settings = Settings::default();
    url.clone_into(&mut settings.store.url);
    let store: Arc<dyn Store> = perkey::unstable::store::open(&settings, Access::Tool).await?.store();
    let shards = settings.ownership.shards;
    let mut sum = (0, 0);
    for (account, expected) in given.accounts() {
        let of = ServiceKey { service: SERVICE.into(), key: account.into() };
        let row = store.load(shard_of(account, shards), vec![of]).await?.pop().unwrap_or_default();
        let state: Value = row.state.and_then(|(_, json)| serde_json::from_slice(&json).ok()).unwrap_or(Value::Null);
        let found = (state["postings"].as_u64().unwrap_or(0), state["balance"].as_i64().unwrap_or(0));
        verdict.expect(found == expected, || format!("{account} has {found:?} (count, sum), not {expected:?}"));
        sum = (sum.0 + found.0, sum.1 + found.1);
    }
    let dead = store.queries().count_dead(DeadFilter::default()).await?;
    verdict.expect(dead == 0, || format!("{dead} messages are dead letters"));
    verdict.facts.push(format!("{} effects, {} in all", sum.0, sum.1));
    Ok(())
}
