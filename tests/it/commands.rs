//! Commands from one key to another, and their answers: one in every case, each counted once.
//! In: two handlers on one store, messages, restarts. Out: the messages that each of them has seen.

use perkey::unstable::handler::ANSWER;
use perkey::unstable::ledger::routes::What;
use perkey::unstable::message::{Position, ServiceIx};
use perkey::unstable::store::Store;
use perkey::unstable::store::query::DeadFilter;
use perkey::unstable::transport::{Content, Delivery};
use perkey::{AfterDeadLetter, Answer, Draft, Fault, Handler, Handlers, Key, Outcome, Settings, Turn};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{self, append, open, start};

/// Asks a till for an amount.
struct Orders;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Place {
        order: String,
        amount: i64,
    },
    #[serde(skip)]
    Told(Answer),
}

/// The answers that an order has been told, in order.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Told(Vec<Answer>);

/// Pays an amount; one below 0 is refused, and one of 0 fails until it is given up.
struct Till;

#[derive(Deserialize)]
struct Pay {
    amount: i64,
}

impl Handler for Orders {
    const SERVICE: &'static str = "orders";
    type Message = Order;
    type State = Told;

    fn key(&self, order: &Order) -> Key {
        match order {
            Order::Place { order, .. } => order.as_str().into(),
            Order::Told(answer) => answer.name.as_str().into(),
        }
    }

    fn answer(&self, answer: Answer) -> Result<Order, Fault> {
        Ok(Order::Told(answer))
    }

    async fn handle(&self, told: &mut Told, order: Order, turn: &mut Turn) -> Result<(), Fault> {
        match order {
            Order::Place { amount, .. } => {
                turn.ask::<Till>("payment", "till-1", &json!({ "amount": amount }))?;
                turn.send::<Till>("till-2", &json!({ "amount": 1 }))
            }
            Order::Told(answer) => {
                told.0.push(answer);
                Ok(())
            }
        }
    }
}

impl Handler for Till {
    const SERVICE: &'static str = "till";
    type Message = Pay;
    type State = i64;

    fn key(&self, _: &Pay) -> Key {
        "till-1".into()
    }

    // What was asked holds nobody: its asker knows that it came to nothing.
    fn after_dead_letter(&self) -> AfterDeadLetter {
        AfterDeadLetter::HoldKey
    }

    async fn handle(&self, paid: &mut i64, pay: Pay, turn: &mut Turn) -> Result<(), Fault> {
        match pay.amount {
            ..0 => return Err(Fault::reject("no such amount")),
            0 => return Err(Fault::retry("the till is stuck")),
            1.. => *paid += pay.amount,
        }
        turn.reply(&json!({ "paid": *paid }))
    }
}

async fn state(store: &dyn Store, service: &str, key: &str) -> Value {
    support::state(store, service, key).await.unwrap_or_default()
}

fn place(order: &str, amount: i64) -> perkey::Message {
    let payload = json!({ "place": { "order": order, "amount": amount } }).to_string();
    Draft { id: order, key: order, kind: "place", payload: payload.as_bytes(), ..Draft::default() }.build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_question_is_answered_once_whatever_became_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::default();
    settings.retry.base = std::time::Duration::from_millis(5);
    settings.retry.cap = std::time::Duration::from_millis(20);
    let store = open(&dir.path().join("s.db")).await;
    let handlers = || Handlers::new().with(Orders).with(Till);
    let shards = settings.ownership.shards;
    let messages = [place("fine", 5), place("refused", -1), place("stuck", 0), place("fine", 5)];
    // Twice: what was sent and answered is not sent and answered again by the next process.
    for _ in 0..2 {
        let engine = start(&settings, store.clone(), handlers()).await;
        append(&*store, shards, "orders", &messages).await;
        let rows = async || store.queries().shards().await.unwrap();
        loop {
            engine.idle().await;
            let dead = store.queries().peek(DeadFilter::default(), 100).await.unwrap();
            assert!(dead.iter().all(|(_, letter)| !letter.holds_key), "{dead:?}");
            if rows().await.iter().all(|row| row.pending == 0 && row.unread == 0) {
                break;
            }
        }
        engine.drain().await.unwrap();
    }
    let told = async |order: &str| state(&*store, "orders", order).await;
    let answer = |outcome: Value| json!([{ "name": "payment", "outcome": outcome }]);
    assert_eq!(told("fine").await, answer(json!({ "done": { "paid": 5 } })));
    assert_eq!(told("refused").await, answer(json!({ "dead_letter": "no such amount" })));
    assert_eq!(told("stuck").await, answer(json!({ "dead_letter": "the till is stuck" })));
    assert_eq!((state(&*store, "till", "till-1").await, state(&*store, "till", "till-2").await), (json!(5), json!(3)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_for_a_service_that_is_not_there_is_answered_too() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::default();
    let store = open(&dir.path().join("s.db")).await;
    let engine = start(&settings, store.clone(), Handlers::new().with(Orders)).await;
    append(&*store, settings.ownership.shards, "orders", &[place("o", 5)]).await;
    let told = async || state(&*store, "orders", "o").await != json!([]);
    perkey_chaos::process::until("it is not told", std::time::Duration::from_secs(30), told).await.unwrap();
    engine.idle().await;
    let told = state(&*store, "orders", "o").await;
    let reason = told[0]["outcome"]["dead_letter"].as_str().unwrap();
    assert!(reason.contains("there is no service \"till\""), "{reason}");
    engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_answers_from_outside() {
    let bind = |source: &str| perkey::Bind {
        source: source.to_owned(),
        kind: "*".to_owned(),
        service: "orders".to_owned(),
        key: perkey::KeyFrom::Record,
        id: perkey::IdWithin::Key,
    };
    let settings = Settings { bind: vec![bind("kafka")], ..Settings::default() };
    let bindings = perkey::unstable::ledger::routes::Bindings::new(&settings, Handlers::new().with(Orders)).unwrap();
    let answer = Answer { name: "payment".to_owned(), outcome: Outcome::Done(Value::Null) };
    let payload = serde_json::to_vec(&answer).unwrap();
    let message = Draft { id: "m", key: "o", kind: ANSWER, payload: &payload, ..Draft::default() }.build().unwrap();
    let arrival = |source: &str, content| {
        let (origin, position) = ("t/0".into(), Position::new(1, 0));
        bindings.arrivals(source, Delivery { origin, position, content }).remove(0).what
    };
    let named = || Content::For("orders".into(), message.clone());
    for (source, content) in [("kafka", Content::Unrouted(message.clone())), ("intake", named())] {
        let what = arrival(source, content);
        let What::Refused(None, _, reason) = what else { panic!("{what:?} is taken from {source}") };
        assert!(reason.contains("perkey.answer are not taken from outside"), "{reason}");
    }
    assert!(matches!(arrival("embedded", named()), What::Message(ServiceIx::FIRST, _)), "the store's own are");
}
