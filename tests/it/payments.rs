//! Payments and checkouts against a real provider: declined, away, slow, lying, losing its answers.
//! In: commands and answers, given to one handler; whole checkouts on an engine. Out: charges, and the handler's
//! states.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use budget_actors::checkouts::{Progress, Saga, Status, Step};
use budget_actors::payments::{PROVIDER, Payment, ProviderError};
use budget_actors::{App, Checkouts, PaymentProvider, Payments, Provider};
use perkey::testing::Given;
use perkey::unstable::store::Store;
use perkey::unstable::store::query::DeadFilter;
use perkey::{Draft, Outcome, Settings};
use perkey_chaos::process::until;
use perkey_chaos::provider::{Entry, Faults, Provider as Server};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{append, open, start, state};

const SOON: Duration = Duration::from_secs(30);

/// A provider on threads of its own: one turn of a handler is run outside of any runtime.
struct Bank {
    server: Server,
    _runtime: tokio::runtime::Runtime,
}

impl Bank {
    fn open() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(Server::start(([127, 0, 0, 1], 0).into(), Faults::default(), 1)).unwrap();
        Self { server, _runtime: runtime }
    }

    fn payments(&self) -> Given<Payments> {
        Given::handler(Payments { provider: line(&self.server) })
    }

    fn entry(&self, order: &str) -> Option<Entry> {
        self.server.ledger().into_iter().find(|entry| entry.order == order)
    }
}

fn line(server: &Server) -> Provider {
    Provider::new(&server.url(), Duration::from_millis(300)).unwrap()
}

fn charge(account: &str) -> Value {
    json!({ "command": "charge", "order": "o-1", "account": account, "amount": 1_250, "currency": "EUR" })
}

fn refund() -> Value {
    json!({ "command": "refund", "order": "o-1", "reason": "changed my mind" })
}

#[test]
fn a_charge_is_made_once_and_given_back_once() {
    let bank = Bank::open();
    let charged = bank.payments().when(charge("a")).then_succeeds().then_events(["payment.charged"]);
    assert_eq!(bank.entry("o-1").unwrap().charged, 1_250);
    let again = charged.when(charge("a")).then_succeeds().then_events([]);
    assert_eq!(bank.entry("o-1").unwrap().charges, 1);
    let refunded = again.when(refund()).then_succeeds().then_events(["payment.refunded"]);
    refunded.when(refund()).then_succeeds().then_events([]).when(charge("b")).then_rejects("an order is paid once");
    let entry = bank.entry("o-1").unwrap();
    assert_eq!((entry.charged, entry.refunded, entry.charges), (1_250, 1_250, 1));
}

#[test]
fn a_declined_charge_is_an_answer_and_no_fault() {
    let bank = Bank::open();
    let declined = bank.payments().when(charge("broke-1")).then_succeeds().then_events(["payment.declined"]);
    declined.when(refund()).then_succeeds().then_events([]);
    assert_eq!(bank.entry("o-1"), None, "nothing is to be given back");
    bank.payments()
        .when(json!({ "command": "charge", "order": "o", "account": "a", "amount": 0, "currency": "EUR" }))
        .then_rejects("above 0");
}

#[test]
fn a_refund_that_comes_first_is_found_by_the_late_charge() {
    let bank = Bank::open();
    let void = bank.payments().when(refund()).then_succeeds().then_events(["payment.void"]);
    void.when(charge("a")).then_succeeds().then_events([]);
    assert_eq!(bank.entry("o-1").unwrap().charges, 0);
    // Also where the charge was given up here and had reached the provider.
    let bank = Bank::open();
    drop(bank.payments().when(charge("a")).then_succeeds());
    drop(bank.payments().when(refund()).then_succeeds().then_events(["payment.void"]));
    let entry = bank.entry("o-1").unwrap();
    assert_eq!((entry.charged, entry.refunded), (1_250, 1_250));
}

#[test]
fn a_provider_that_is_away_slow_or_silent_is_unavailable_and_a_lying_one_is_not_believed() {
    let bank = Bank::open();
    let faults = [
        Faults { away: true, ..Faults::default() },
        Faults { slow_ms: 1_000, ..Faults::default() },
        Faults { lose: 1.0, ..Faults::default() },
        Faults { fail: 1.0, ..Faults::default() },
    ];
    for fault in faults {
        bank.server.set(fault);
        drop(bank.payments().when(charge("a")).then_unavailable(PROVIDER));
    }
    bank.server.set(Faults { lie: 1.0, ..Faults::default() });
    drop(bank.payments().when(charge("a")).then_retries("makes no sense"));
    bank.server.set(Faults::default());
    drop(bank.payments().when(charge("a")).then_succeeds());
    assert_eq!(bank.entry("o-1").unwrap().charges, 1, "all of them had the same token");
    let nobody = Provider::new("", Duration::from_secs(1)).unwrap();
    drop(Given::handler(Payments { provider: nobody }).when(charge("a")).then_unavailable(PROVIDER));
}

/// Answers each request with this; tells its address, and counts.
async fn stranger(answer: impl IntoResponse + Clone + Send + Sync + 'static) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, count) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    let asked = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::ready(answer.clone())
    };
    #[expect(clippy::disallowed_methods, reason = "it ends with the test")]
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(asked)).await });
    (url, count)
}

#[tokio::test]
async fn a_provider_that_points_elsewhere_or_says_too_much_is_not_believed() {
    let charge = serde_json::from_value(json!({ "order": "o-1", "account": "a", "amount": 1_250, "currency": "EUR" }));
    let (charge, token) = (charge.unwrap(), uuid::Uuid::from_u128(7));
    let asked = async |url: &str| Provider::new(url, SOON).unwrap().charge(token, &charge).await;
    let charged = r#"{"id":"c","order":"o-1","amount":1250}"#;
    let (elsewhere, heard) = stranger(charged).await;
    assert!(asked(&elsewhere).await.is_ok());
    let (points, _) = stranger((StatusCode::TEMPORARY_REDIRECT, [("location", elsewhere)])).await;
    let said = asked(&points).await.unwrap_err();
    assert!(matches!(&said, ProviderError::Unavailable(why) if why.contains("points elsewhere")), "{said}");
    assert_eq!(heard.load(Ordering::Relaxed), 1, "who is pointed at hears of no charge");
    let (talks, _) = stranger(format!("{charged}{}", " ".repeat(64 << 10))).await;
    let said = asked(&talks).await.unwrap_err();
    assert!(matches!(&said, ProviderError::Nonsense(why) if why.contains("65536 bytes")), "{said}");
}

fn checkout(no: u32, account: &str, currency: &str) -> Value {
    json!({
        "command": "start", "saga": format!("s-{no}"), "order": format!("o-{no}"), "account": account,
        "category": "shop", "amount": 700, "currency": currency, "at": "2026-01-31"
    })
}

fn done(reply: Value) -> Outcome {
    Outcome::Done(reply)
}

fn started() -> perkey::testing::Then<Checkouts> {
    let place = json!({
        "command": "place", "order": "o-1", "account": "a", "amount": 700, "currency": "EUR", "at": "2026-01-31",
        "saga": "s-1"
    });
    Given::handler(Checkouts::default())
        .now(1_000)
        .when(checkout(1, "a", "EUR"))
        .then_succeeds()
        .then_sends([("orders", "o-1", place)])
        .then_schedules([("order", Some((901_000, json!({ "command": "late", "saga": "s-1", "step": "order" }))))])
        .then_events(["checkout.running"])
}

fn paid() -> perkey::testing::Then<Checkouts> {
    let charge = json!({ "command": "charge", "order": "o-1", "account": "a", "amount": 700, "currency": "EUR" });
    started()
        .when_answered("order", done(json!({ "status": "placed" })))
        .then_sends([("payments", "o-1", charge)])
        .when_answered("payment", done(json!({ "status": "charged" })))
        .then_succeeds()
}

fn recorded(amount: i64) -> Value {
    json!({
        "command": "record", "account": "a", "category": "shop", "amount": amount, "currency": "EUR", "at": "2026-01-31"
    })
}

fn cancel() -> Value {
    json!({ "command": "cancel", "order": "o-1", "reason": "the checkout was given up" })
}

fn give_back() -> Value {
    json!({ "command": "refund", "order": "o-1", "reason": "the checkout was given up" })
}

#[test]
fn a_checkout_takes_its_steps_in_order() {
    let posted = json!({ "account": "a", "amount": -700, "currency": "EUR", "at": "2026-01-31" });
    let complete = json!({ "command": "complete", "order": "o-1" });
    paid()
        .then_sends([("expenses", "a", recorded(700))])
        .when_answered("expense", done(Value::Null))
        .then_sends([("transactions", "a", posted)])
        .when_answered("transaction", done(Value::Null))
        .then_sends([("orders", "o-1", complete)])
        .when_answered("completion", done(json!({ "status": "completed" })))
        .then_sends::<Value>([])
        .then_events(["checkout.completed"])
        .when(checkout(1, "a", "EUR"))
        .then_events([])
        .when(checkout(1, "a", "USD"))
        .then_rejects("another checkout");
}

#[test]
fn a_declined_payment_cancels_the_order() {
    started()
        .when_answered("order", done(json!({ "status": "placed" })))
        .when_answered("payment", done(json!({ "status": "declined", "reason": "no money" })))
        .then_sends([("payments", "o-1", give_back()), ("orders", "o-1", cancel())])
        .then_events(["checkout.cancelling"])
        .when_answered("undo-payment", done(json!({ "status": "declined" })))
        .then_events([])
        .when_answered("undo-order", done(json!({ "status": "cancelled" })))
        .then_events(["checkout.cancelled"]);
}

#[test]
fn a_payment_that_stands_is_refunded_when_a_later_step_is_rejected() {
    let then = paid()
        .when_answered("expense", Outcome::DeadLetter("no such category".to_owned()))
        .then_sends([("payments", "o-1", give_back()), ("orders", "o-1", cancel())]);
    // An undoing that fails is tried again: it must succeed in the end.
    let late = |step: &str| json!({ "command": "late", "saga": "s-1", "step": step });
    then.when_answered("undo-payment", Outcome::DeadLetter("?".to_owned()))
        .then_schedules([("undo-payment", Some((11_000, late("payment"))))])
        .when(late("payment"))
        .then_sends([("payments", "o-1", give_back())])
        .when_answered("undo-payment", done(Value::Null))
        .when_answered("undo-order", done(Value::Null))
        .then_events(["checkout.cancelled"]);
}

#[test]
fn a_step_that_takes_too_long_is_undone_also_when_it_comes_late() {
    let late = |step: &str| json!({ "command": "late", "saga": "s-1", "step": step });
    let cancelling = paid()
        .when(late("payment"))
        .then_sends::<Value>([])
        .when(late("expense"))
        .then_sends([("payments", "o-1", give_back()), ("orders", "o-1", cancel())])
        .when_answered("undo-payment", done(Value::Null))
        .when_answered("undo-order", done(Value::Null))
        .then_events([]);
    // Whether the expense stands is not known before it is answered.
    cancelling
        .when_answered("expense", done(Value::Null))
        .then_sends([("expenses", "a", recorded(-700))])
        .then_events([])
        .when_answered("undo-expense", done(Value::Null))
        .then_events(["checkout.cancelled"]);
    // The payment's answer comes behind its refund's question and before its answer: nothing is asked twice.
    started()
        .when_answered("order", done(json!({ "status": "placed" })))
        .when(late("payment"))
        .then_sends([("payments", "o-1", give_back()), ("orders", "o-1", cancel())])
        .when_answered("payment", done(json!({ "status": "charged" })))
        .then_sends::<Value>([])
        .then_events([]);
}

#[test]
fn an_order_of_another_checkout_is_left_alone() {
    started()
        .when_answered("order", Outcome::DeadLetter("the order exists already".to_owned()))
        .then_sends::<Value>([])
        .then_events(["checkout.cancelled"]);
    started()
        .when_answered("order", done(json!({ "status": "cancelled" })))
        .then_sends::<Value>([])
        .then_events(["checkout.cancelled"]);
}

#[test]
fn an_undoing_that_fails_again_and_again_is_tried_ever_less_often() {
    let late = json!({ "command": "late", "saga": "s-1", "step": "order" });
    let failed = || Outcome::DeadLetter("?".to_owned());
    let given_up = started().when(late.clone()).then_sends([("orders", "o-1", cancel())]);
    let twice = given_up.when_answered("undo-order", failed()).when_answered("undo-order", failed());
    let later = twice.then_schedules([("undo-order", Some((21_000, late.clone())))]);
    // A replay of the order's own command that succeeds does not stop that.
    let replayed = later.when_answered("order", done(json!({ "status": "placed" })));
    replayed.then_schedules([("order", None::<(u64, Value)>)]).when(late).then_sends([("orders", "o-1", cancel())]);
}

#[test]
fn the_last_step_is_waited_for() {
    let late = json!({ "command": "late", "saga": "s-1", "step": "completion" });
    paid()
        .when_answered("expense", done(Value::Null))
        .when_answered("transaction", done(Value::Null))
        .when(late.clone())
        .then_sends::<Value>([])
        .then_schedules([("completion", Some((901_000, late)))])
        .when_answered("completion", Outcome::DeadLetter("the order is cancelled".to_owned()))
        .then_events(["checkout.cancelling"]);
}

struct Shop {
    store: std::sync::Arc<perkey::unstable::store::sqlite::SqliteStore>,
    server: Server,
    engine: perkey::Engine,
    _dir: tempfile::TempDir,
}

impl Shop {
    async fn open(patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::default();
        let store = open(&dir.path().join("s.db")).await;
        let server = Server::start(([127, 0, 0, 1], 0).into(), Faults::default(), 1).await.unwrap();
        let checkouts = Checkouts { patience, pause: Duration::from_millis(50) };
        let handlers = budget_actors::handlers(&App { provider: line(&server), checkouts });
        let engine = start(&settings, store.clone(), handlers).await;
        Self { store, server, engine, _dir: dir }
    }

    async fn buy(&self, checkouts: &[Value]) {
        let messages: Vec<_> = checkouts
            .iter()
            .map(|checkout| {
                let (key, payload) = (checkout["saga"].as_str().unwrap(), checkout.to_string());
                let id = format!("buy-{key}");
                Draft { id: &id, key, kind: "checkout", payload: payload.as_bytes(), ..Draft::default() }
                    .build()
                    .unwrap()
            })
            .collect();
        append(&*self.store, Settings::default().ownership.shards, "checkouts", &messages).await;
    }

    async fn state<S: serde::de::DeserializeOwned>(&self, service: &str, key: &str) -> Option<S> {
        state(&*self.store, service, key).await
    }

    async fn ends(&self, saga: &str) -> Saga {
        let mut found = None;
        until("the checkout does not end", Duration::from_secs(30), async || {
            found = self.state::<Saga>("checkouts", saga).await;
            let status = found.as_ref().and_then(|saga| saga.status);
            matches!(status, Some(Status::Completed | Status::Cancelled))
        })
        .await
        .unwrap();
        found.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkouts_end_in_one_of_two_states_and_nothing_is_paid_that_does_not_stand() {
    let shop = Shop::open(Duration::from_secs(60)).await;
    // The third's expense is refused: the account is kept in another currency there.
    shop.buy(&[checkout(1, "a", "EUR"), checkout(2, "broke-1", "EUR")]).await;
    assert_eq!(shop.ends("s-1").await.status, Some(Status::Completed));
    shop.buy(&[checkout(3, "a", "USD")]).await;
    let declined = shop.ends("s-2").await;
    let refused = shop.ends("s-3").await;
    assert_eq!((declined.status, refused.status), (Some(Status::Cancelled), Some(Status::Cancelled)));
    assert_eq!(refused.steps[&Step::Payment], Progress::Undone);
    assert!(format!("{:?}", refused.reason).contains("step expense"), "{refused:?}");
    let net: Vec<_> =
        shop.server.ledger().iter().map(|entry| (entry.order.clone(), entry.charged - entry.refunded)).collect();
    assert_eq!(net, [("o-1".to_owned(), 700), ("o-3".to_owned(), 0)], "the second was declined");
    let letters = shop.store.queries().peek(DeadFilter::default(), 9).await.unwrap();
    assert_eq!(letters.len(), 1, "the refused expense");
    assert_eq!(letters[0].1.message.header("sagaid"), Some("s-3"), "the saga's id travels");
    shop.engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkout_that_runs_out_of_patience_while_the_provider_is_away_is_undone_when_it_returns() {
    let shop = Shop::open(Duration::from_millis(400)).await;
    shop.server.set(Faults { away: true, ..Faults::default() });
    shop.buy(&[checkout(1, "a", "EUR")]).await;
    let cancelling = async || {
        let saga = shop.state::<Saga>("checkouts", "s-1").await;
        saga.is_some_and(|saga| saga.status == Some(Status::Cancelling))
    };
    until("it is given up", Duration::from_secs(20), cancelling).await.unwrap();
    shop.server.set(Faults::default());
    let saga = shop.ends("s-1").await;
    assert_eq!(saga.status, Some(Status::Cancelled));
    let payment: Payment = shop.state("payments", "o-1").await.unwrap();
    assert!(payment.status.is_some(), "{payment:?}");
    let paid: i64 = shop.server.ledger().iter().map(|entry| entry.charged - entry.refunded).sum();
    assert_eq!(paid, 0);
    shop.engine.drain().await.unwrap();
}
