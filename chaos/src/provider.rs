//! A payment provider to test against: a real HTTP server with its own idempotency, its own faults, and a ledger of the
//! money that it took and gave back.
//! In: `POST /charges`, `POST /refunds`, each with an `Idempotency-Key`; the shares of its faults. Out: answers, or
//! none; `GET /ledger`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use clap::Args;
use perkey::sleep;
use perkey::unstable::clock::Dice;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::ChaosError;

/// Accounts whose name begins with this have no money.
pub const BROKE: &str = "broke";
/// The time for which a hanging call hangs.
const HANGS: Duration = Duration::from_secs(60);

/// The provider's faults, as shares of all calls.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// The share of calls that it answers with 503; half of them take effect all the same.
    #[arg(long, default_value_t)]
    pub fail: f64,
    /// The share of calls that it does not answer for a minute; half of them take effect all the same.
    #[arg(long, default_value_t)]
    pub hang: f64,
    /// The share of calls that take effect and whose answers are lost.
    #[arg(long, default_value_t)]
    pub lose: f64,
    /// The share of calls whose answer names another amount than was taken.
    #[arg(skip)]
    pub lie: f64,
    /// The milliseconds that each call takes.
    #[arg(skip)]
    pub slow_ms: u64,
    /// Answers 503 to every call and does nothing.
    #[arg(skip)]
    pub away: bool,
}

/// The options of a provider that runs by itself.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// The address on which it listens.
    #[arg(long, default_value = "127.0.0.1:8090")]
    pub listen: SocketAddr,
    /// The faults.
    #[command(flatten)]
    pub faults: Faults,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Runs `plan` until the process ends.
pub async fn provider(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<(), ChaosError> {
    let mut provider = Provider::start(plan.listen, plan.faults, plan.seed).await?;
    say(&format!("provider at {}", provider.url()));
    // Only a panic of the server could end it.
    drop((&mut provider.task).await);
    Ok(())
}

/// The provider's record of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The order.
    pub order: String,
    /// The number of times money was taken for it.
    pub charges: u32,
    /// The sum that was taken, in minor units.
    pub charged: i64,
    /// The sum that was given back.
    pub refunded: i64,
    /// True once it was refunded: nothing is taken for it any more.
    pub closed: bool,
}

/// A provider that runs in this process.
#[derive(Debug)]
pub struct Provider {
    /// The address on which it listens.
    pub address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Inner {
    faults: Faults,
    dice: Dice,
    calls: u64,
    ledger: HashMap<String, Entry>,
    /// By idempotency key: the body of the first request, and the answer.
    answers: HashMap<String, (Bytes, (StatusCode, Value))>,
}

#[derive(Deserialize)]
struct Charge {
    order: String,
    account: String,
    amount: i64,
}

#[derive(Deserialize)]
struct Refund {
    order: String,
}

/// The fate of a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    Fails { done: bool },
    Hangs { done: bool },
    Lost,
    Lies,
}

impl Provider {
    /// Starts a provider at `listen`.
    #[expect(clippy::disallowed_methods, reason = "it is a server of its own, and ends when it is dropped")]
    pub async fn start(listen: SocketAddr, faults: Faults, seed: u64) -> Result<Self, ChaosError> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let dice = Dice::seeded(seed);
        let inner = Inner { faults, dice, calls: 0, ledger: HashMap::new(), answers: HashMap::new() };
        let inner = Arc::new(Mutex::new(inner));
        let router = Router::new()
            .route("/charges", post(charge))
            .route("/refunds", post(refund))
            .route("/ledger", get(async |State(inner): State<Shared>| Json(entries(&lock(&inner)))))
            .route("/faults", put(set_faults))
            .with_state(inner.clone());
        let task = tokio::spawn(async move {
            // It serves until it is dropped.
            drop(axum::serve(listener, router).await);
        });
        Ok(Self { address, inner, task })
    }

    /// Its base address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Replaces the faults from now on.
    pub fn set(&self, faults: Faults) {
        lock(&self.inner).faults = faults;
    }

    /// The number of calls that came in.
    pub fn calls(&self) -> u64 {
        lock(&self.inner).calls
    }

    /// The sums that it took and gave back, by order.
    pub fn ledger(&self) -> Vec<Entry> {
        entries(&lock(&self.inner))
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Shared = Arc<Mutex<Inner>>;

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entries(inner: &Inner) -> Vec<Entry> {
    let mut entries: Vec<_> = inner.ledger.values().cloned().collect();
    entries.sort_by(|a, b| a.order.cmp(&b.order));
    entries
}

async fn set_faults(State(inner): State<Shared>, Json(faults): Json<Faults>) -> StatusCode {
    lock(&inner).faults = faults;
    StatusCode::NO_CONTENT
}

async fn charge(State(inner): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    call(&inner, &headers, body, |inner, body| match serde_json::from_slice::<Charge>(body) {
        Ok(charge) => inner.charge(&charge),
        Err(error) => (StatusCode::BAD_REQUEST, json!({ "reason": error.to_string() })),
    })
    .await
}

async fn refund(State(inner): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    call(&inner, &headers, body, |inner, body| match serde_json::from_slice::<Refund>(body) {
        Ok(refund) => inner.refund(refund.order),
        Err(error) => (StatusCode::BAD_REQUEST, json!({ "reason": error.to_string() })),
    })
    .await
}

async fn call(
    inner: &Shared,
    headers: &HeaderMap,
    body: Bytes,
    effect: impl FnOnce(&mut Inner, &Bytes) -> (StatusCode, Value),
) -> Response {
    let (fate, answer, slow) = {
        let mut inner = lock(inner);
        inner.calls += 1;
        let fate = inner.fate();
        let does = !matches!(fate, Fate::Fails { done: false } | Fate::Hangs { done: false });
        (fate, does.then(|| inner.once(headers, body, effect)), inner.faults.slow_ms)
    };
    sleep(Duration::from_millis(slow)).await;
    match (fate, answer) {
        (Fate::Hangs { .. }, _) => {
            sleep(HANGS).await;
            StatusCode::GATEWAY_TIMEOUT.into_response()
        }
        // The client sees the head of an answer, and a connection that ends.
        (Fate::Lost, _) => Response::new(Body::from_stream(futures_util::stream::iter([Err::<Bytes, _>(
            std::io::Error::other("the answer is lost"),
        )]))),
        (Fate::Lies, Some((status, mut answer))) => {
            if let Some(amount) = answer.get_mut("amount") {
                *amount = json!(amount.as_i64().unwrap_or_default() + 1);
            }
            (status, Json(answer)).into_response()
        }
        (Fate::Answered, Some((status, answer))) => (status, Json(answer)).into_response(),
        (Fate::Fails { .. }, _) | (_, None) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

impl Inner {
    fn fate(&mut self) -> Fate {
        let Faults { fail, hang, lose, lie, away, .. } = self.faults;
        if away {
            return Fate::Fails { done: false };
        }
        let (roll, done) = (self.dice.unit(), self.dice.unit() < 0.5);
        match roll {
            _ if roll < fail => Fate::Fails { done },
            _ if roll < fail + hang => Fate::Hangs { done },
            _ if roll < fail + hang + lose => Fate::Lost,
            _ if roll < fail + hang + lose + lie => Fate::Lies,
            _ => Fate::Answered,
        }
    }

    /// Answers calls by key: the same key gets the same answer, and has its effect once.
    fn once(
        &mut self,
        headers: &HeaderMap,
        body: Bytes,
        effect: impl FnOnce(&mut Self, &Bytes) -> (StatusCode, Value),
    ) -> (StatusCode, Value) {
        let Some(key) = headers.get("idempotency-key").and_then(|key| key.to_str().ok()).map(str::to_owned) else {
            return (StatusCode::BAD_REQUEST, json!({ "reason": "an Idempotency-Key is required" }));
        };
        match self.answers.get(&key) {
            Some((before, _)) if *before != body => {
                (StatusCode::UNPROCESSABLE_ENTITY, json!({ "reason": "the key came with another request" }))
            }
            Some((_, answer)) => answer.clone(),
            None => {
                let answer = effect(self, &body);
                self.answers.insert(key, (body, answer.clone()));
                answer
            }
        }
    }

    fn entry(&mut self, order: &str) -> &mut Entry {
        let entry = || Entry { order: order.to_owned(), ..Entry::default() };
        self.ledger.entry(order.to_owned()).or_insert_with(entry)
    }

    fn charge(&mut self, charge: &Charge) -> (StatusCode, Value) {
        let declined = |reason: &str| (StatusCode::PAYMENT_REQUIRED, json!({ "reason": reason }));
        if charge.account.starts_with(BROKE) {
            return declined("insufficient funds");
        }
        let entry = self.entry(&charge.order);
        if entry.closed {
            return declined("the order was refunded");
        }
        // The provider does not know that an order is paid once: two calls with two keys charge twice.
        entry.charges += 1;
        entry.charged += charge.amount;
        let id = format!("ch-{}-{}", charge.order, entry.charges);
        (StatusCode::CREATED, json!({ "id": id, "order": charge.order, "amount": charge.amount }))
    }

    fn refund(&mut self, order: String) -> (StatusCode, Value) {
        let entry = self.entry(&order);
        entry.closed = true;
        entry.refunded = entry.charged;
        (StatusCode::OK, json!({ "order": order, "refunded": entry.refunded }))
    }
}
