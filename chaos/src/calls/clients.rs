//! Three clients for each operation, which ask until they are answered, and sometimes leave early.
//! In: operations, addresses. Out: every answer that a client got.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perkey::sleep;
use perkey::unstable::clock::Dice;
use reqwest::{Client, StatusCode};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::ChaosError;

/// The number of clients of each operation.
const CLIENTS: u64 = 3;
/// The most requests on their way at once.
const TOGETHER: usize = 24;
/// The longest time that a client waits before it leaves early.
const LEAVES_AFTER_MS: u64 = 40;
/// The time for which any other client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// The longest pause before the next request of a client that was not answered.
const PAUSE_MS: u64 = 120;
/// The number of accounts.
const ACCOUNTS: u64 = 50;

/// The operations: postings, each with its own key.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) operations: Vec<Operation>,
}

#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) key: String,
    pub(super) account: String,
    pub(super) amount: i64,
}

impl Given {
    pub(super) fn new(seed: u64, count: u64) -> Self {
        let mut dice = Dice::seeded(seed);
        let operation = |no: u64| Operation {
            key: format!("op-{seed}-{no}"),
            account: format!("acct-{}", dice.below(ACCOUNTS)),
            amount: (1 + dice.below(1_000)).cast_signed(),
        };
        Self { operations: (0..count).map(operation).collect() }
    }

    /// The number and the sum of the postings of each account.
    pub(super) fn accounts(&self) -> BTreeMap<&str, (u64, i64)> {
        let mut accounts: BTreeMap<&str, (u64, i64)> = BTreeMap::new();
        for operation in &self.operations {
            let (count, sum) = accounts.entry(&operation.account).or_default();
            *count += 1;
            *sum += operation.amount;
        }
        accounts
    }
}

/// The answers that the clients saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) requests: u64,
    pub(super) left: u64,
    /// For each operation, by its index: the bodies of all answers that say it is done, and the number of those that
    /// said so for the first time.
    pub(super) answers: BTreeMap<usize, (BTreeSet<String>, u64)>,
    /// Answers that no client should get.
    pub(super) odd: Vec<String>,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Seen>,
    answered: AtomicU64,
}

pub(super) struct Clients {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Clients {
    pub(super) fn start(given: &Given, urls: Vec<String>, cut: f64, seed: u64) -> Result<Self, ChaosError> {
        let client = Client::builder().build().map_err(|error| ChaosError::Stuck(error.to_string()))?;
        let (shared, together) = (Arc::<Shared>::default(), Arc::new(Semaphore::new(TOGETHER)));
        let urls: Arc<[String]> = urls.into();
        let mut tasks = JoinSet::new();
        for (at, operation) in given.operations.iter().enumerate() {
            for no in 0..CLIENTS {
                let asks = Asks {
                    at,
                    operation: operation.clone(),
                    urls: Arc::clone(&urls),
                    client: client.clone(),
                    shared: Arc::clone(&shared),
                    cut,
                    dice: Dice::seeded(seed ^ ((at as u64) << 8) ^ no),
                };
                tasks.spawn(asks.ask(Arc::clone(&together)));
            }
        }
        Ok(Self { shared, tasks })
    }

    /// The number of operations of which a client was told that they are done.
    pub(super) fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Everything that the clients have seen; those that still ask may finish for a while.
    pub(super) async fn finish(mut self) -> Seen {
        let rest = async { while self.tasks.join_next().await.is_some() {} };
        // The clients that are not answered by then show in the verdict, as answers are missing.
        tokio::time::timeout(Duration::from_secs(120), rest).await.ok();
        std::mem::take(&mut *self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Asks {
    at: usize,
    operation: Operation,
    urls: Arc<[String]>,
    client: Client,
    shared: Arc<Shared>,
    cut: f64,
    dice: Dice,
}

impl Asks {
    /// Asks until the operation is said to be done.
    async fn ask(mut self, together: Arc<Semaphore>) {
        loop {
            let Ok(turn) = together.acquire().await else { return };
            let leaves = self.dice.unit() < self.cut;
            let patience = if leaves { Duration::from_millis(self.dice.below(LEAVES_AFTER_MS)) } else { PATIENCE };
            let asked = tokio::time::timeout(patience, self.once()).await;
            drop(turn);
            let done = match asked {
                Err(_) => {
                    self.seen(|seen| seen.left += 1);
                    false
                }
                Ok(None) => false,
                Ok(Some((status, replayed, body))) => self.told(status, replayed, body),
            };
            if done {
                return;
            }
            sleep(Duration::from_millis(self.dice.below(PAUSE_MS))).await;
        }
    }

    async fn once(&mut self) -> Option<(StatusCode, bool, String)> {
        self.seen(|seen| seen.requests += 1);
        let at = usize::try_from(self.dice.below(self.urls.len() as u64)).unwrap_or(0);
        let Operation { key, account, amount } = &self.operation;
        let body = json!({
            "account": account, "amount": amount, "currency": "EUR", "at": "2026-01-31", "memo": key,
        });
        let request = self.client.post(format!("{}/api/transactions", self.urls[at]));
        let request = request.header("content-type", "application/json").body(body.to_string());
        let answer = request.header("idempotency-key", format!("\"{key}\"")).send().await.ok()?;
        let (status, replayed) = (answer.status(), answer.headers().contains_key("idempotent-replayed"));
        Some((status, replayed, answer.text().await.ok()?))
    }

    /// Records an answer; returns whether the operation is done.
    fn told(&self, status: StatusCode, replayed: bool, body: String) -> bool {
        match status {
            StatusCode::CREATED => {
                let at = self.at;
                let first = self.seen(|seen| {
                    let (bodies, new) = seen.answers.entry(at).or_default();
                    let first = bodies.is_empty();
                    bodies.insert(body);
                    *new += u64::from(!replayed);
                    first
                });
                self.shared.answered.fetch_add(u64::from(first), Ordering::Relaxed);
                true
            }
            StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => false,
            other => {
                let key = &self.operation.key;
                self.seen(|seen| seen.odd.push(format!("{key} was answered {other}: {body}")));
                false
            }
        }
    }

    fn seen<T>(&self, change: impl FnOnce(&mut Seen) -> T) -> T {
        change(&mut self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
