//! Checkouts as whole sagas on virtual time: all services, a provider of the payments that does as it is told.
//! In: commands, moods of the provider, time, kills, seeds. Out: the end of each saga, and the owner of the money.
//! Below them each service by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use budget_actors::checkouts::{Progress, Status, Step};
use budget_actors::money::Cents;
use budget_actors::names::OrderId;
use budget_actors::payments::{self, Charge, PaymentProvider, ProviderAnswer, ProviderError};
use budget_actors::{App, Balances, Checkouts, Expenses, Orders, Payments, Transactions};
use perkey::testing::{Given, Stage};
use perkey::unstable::clock::Dice;
use perkey::{Outcome, sleep};
use serde_json::{Value, json};
use uuid::Uuid;

/// The outcomes of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Mood {
    #[default]
    Fine,
    /// Nobody answers, and nothing happens.
    Away,
    /// It takes this long.
    Slow(Duration),
    /// It does as it is told, and its answer is lost.
    Lost,
    /// It does as it is told, and says that it took this much.
    Lies(i64),
    /// It does not understand.
    Refuses,
}

#[derive(Default)]
struct Books {
    mood: Mood,
    /// By order: what was charged, what was given back, and whether nothing is to be charged any more.
    orders: BTreeMap<String, (i64, i64, bool)>,
    /// The answers given, by token.
    answers: BTreeMap<Uuid, ProviderAnswer>,
    calls: u32,
    /// Draws moods by itself.
    dice: Option<Dice>,
}

/// A provider with its own books, which are there before any answer is.
#[derive(Clone, Default)]
struct Bank(Arc<Mutex<Books>>);

impl Bank {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap()
    }

    fn set(&self, mood: Mood) {
        self.books().mood = mood;
    }

    /// The amount that it has taken for an order and not given back.
    fn net(&self, order: &str) -> i64 {
        self.books().orders.get(order).map_or(0, |(charged, refunded, _)| charged - refunded)
    }

    /// A call arrives: what becomes of it.
    fn call(&self) -> Mood {
        let mut books = self.books();
        books.calls += 1;
        let Some(dice) = books.dice.as_mut() else { return books.mood };
        match dice.below(10) {
            0 => Mood::Away,
            1 => Mood::Lost,
            2 => Mood::Slow(Duration::from_millis(dice.below(30_000))),
            3 => Mood::Lies(1),
            _ => Mood::Fine,
        }
    }

    async fn answer<T>(&self, mood: Mood, answer: T, lie: impl FnOnce(T, i64) -> T) -> Result<T, ProviderError> {
        match mood {
            Mood::Slow(time) => {
                sleep(time).await;
                Ok(answer)
            }
            Mood::Lost => Err(ProviderError::Unavailable("the answer was lost".to_owned())),
            Mood::Lies(amount) => Ok(lie(answer, amount)),
            Mood::Fine | Mood::Away | Mood::Refuses => Ok(answer),
        }
    }
}

fn turned_away(mood: Mood) -> Result<(), ProviderError> {
    match mood {
        Mood::Away => Err(ProviderError::Unavailable("nobody answers".to_owned())),
        Mood::Refuses => Err(ProviderError::Refused("400 Bad Request".to_owned())),
        _ => Ok(()),
    }
}

impl PaymentProvider for Bank {
    async fn charge(&self, token: Uuid, charge: &Charge) -> Result<ProviderAnswer, ProviderError> {
        let mood = self.call();
        turned_away(mood)?;
        let answer = {
            let mut books = self.books();
            let known = books.answers.get(&token).cloned();
            known.unwrap_or_else(|| {
                let order = String::from(charge.order.clone());
                let entry = books.orders.entry(order).or_default();
                let broke = String::from(charge.account.clone()).starts_with("broke");
                let answer = if broke || entry.2 {
                    ProviderAnswer::Declined { reason: "no money".to_owned() }
                } else {
                    entry.0 += charge.amount.0;
                    let (id, order, amount) = (format!("r-{token}"), charge.order.clone(), charge.amount);
                    ProviderAnswer::Charged { id, order, amount }
                };
                books.answers.insert(token, answer.clone());
                answer
            })
        };
        let lie = |answer, amount| match answer {
            ProviderAnswer::Charged { id, order, .. } => ProviderAnswer::Charged { id, order, amount: Cents(amount) },
            declined => declined,
        };
        self.answer(mood, answer, lie).await
    }

    async fn refund(&self, _: Uuid, order: &OrderId) -> Result<OrderId, ProviderError> {
        let mood = self.call();
        turned_away(mood)?;
        {
            let mut books = self.books();
            let entry = books.orders.entry(String::from(order.clone())).or_default();
            (entry.1, entry.2) = (entry.0, true);
        }
        self.answer(mood, order.clone(), |order, _| order).await
    }
}

struct Shop {
    stage: Stage,
    bank: Bank,
}

const PATIENCE: Duration = Duration::from_secs(15 * 60);

fn shop() -> Shop {
    shop_of(0)
}

fn shop_of(seed: u64) -> Shop {
    let bank = Bank::default();
    let checkouts = Checkouts { patience: PATIENCE, pause: Duration::from_secs(10) };
    let handlers = budget_actors::handlers(&App { provider: bank.clone(), checkouts });
    let stage = Stage::with(handlers, seed, |settings| {
        settings.bind = vec![perkey::Bind {
            source: "embedded".to_owned(),
            kind: "transaction.posted".to_owned(),
            service: "balances".to_owned(),
            key: perkey::KeyFrom::Record,
            id: perkey::IdWithin::Key,
        }];
    });
    Shop { stage, bank }
}

fn checkout(no: u64, account: &str) -> Value {
    json!({
        "command": "start", "saga": format!("s-{no}"), "order": format!("o-{no}"), "account": account,
        "category": "shop", "amount": 700, "currency": "EUR", "at": "2026-01-31"
    })
}

impl Shop {
    fn buys(&mut self, no: u64, account: &str) -> &mut Self {
        self.stage.send::<Checkouts>(&checkout(no, account));
        self
    }

    fn quiet(&mut self) -> &mut Self {
        self.stage.run_until_quiet();
        self
    }

    #[track_caller]
    fn ended(&self, saga: &str, status: Status) -> budget_actors::checkouts::Saga {
        let found = self.stage.state::<Checkouts>(saga);
        assert_eq!(found.status, Some(status), "{found:?}");
        found
    }

    /// The events about a saga's keys, in order.
    fn said(&self) -> Vec<String> {
        self.stage.events().into_iter().map(|(_, kind)| kind).collect()
    }

    /// The account's sums in expenses and transactions.
    fn booked(&self, account: &str) -> (i64, i64) {
        let spent = self.stage.state::<Expenses>(account).categories.into_values();
        let spent = spent.flat_map(|spent| spent.months.into_values()).map(|cents| cents.0).sum();
        (spent, self.stage.state::<Transactions>(account).balance.0)
    }
}

#[test]
fn a_checkout_goes_through_all_services() {
    let mut shop = shop();
    shop.buys(1, "a").quiet();
    shop.ended("s-1", Status::Completed);
    let said = shop.said();
    let steps = ["order.placed", "payment.charged", "expense.recorded", "transaction.posted", "order.completed"];
    let places = steps.map(|step| said.iter().position(|kind| kind == step).unwrap());
    assert!(places.is_sorted(), "{said:?}");
    assert_eq!((shop.bank.net("o-1"), shop.booked("a")), (700, (700, -700)));
    assert_eq!(shop.stage.state::<Balances>("a").balance, Cents(-700), "what was posted reaches the balance");
    for (table, field, value) in [
        ("orders", "status", "completed"),
        ("payments", "status", "charged"),
        ("expenses", "category", "shop"),
        ("transactions", "account", "a"),
        ("checkouts", "status", "completed"),
    ] {
        let rows = shop.stage.rows(table);
        assert_eq!((rows.len(), &rows[0][field]), (1, &json!(value)), "{table}: {rows:?}");
    }
    assert!(shop.stage.timers().is_empty(), "no time-out is left");
    shop.stage.advance(PATIENCE * 2);
    shop.buys(1, "a").quiet();
    assert_eq!(shop.said(), said, "neither time nor the same again changes anything");
    assert!(shop.stage.dead_letters().is_empty());
}

#[test]
fn a_payment_that_is_declined_cancels_the_order() {
    let mut shop = shop();
    shop.buys(1, "broke-1").quiet();
    let saga = shop.ended("s-1", Status::Cancelled);
    assert!(format!("{:?}", saga.reason).contains("step payment: the payment is declined (no money)"), "{saga:?}");
    assert_eq!(shop.stage.state::<Orders>("o-1").status, Some(budget_actors::orders::Status::Cancelled));
    assert_eq!((shop.bank.net("o-1"), shop.booked("broke-1")), (0, (0, 0)));
    assert!(shop.stage.dead_letters().is_empty() && shop.stage.timers().is_empty());
}

#[test]
fn an_expense_that_is_refused_gives_the_payment_back() {
    let mut shop = shop();
    let dollars = json!({
        "command": "budget", "account": "a", "category": "shop", "limit": 1, "currency": "USD"
    });
    shop.stage.send::<Expenses>(&dollars).run_until_quiet();
    shop.buys(1, "a").quiet();
    let saga = shop.ended("s-1", Status::Cancelled);
    assert_eq!((saga.steps[&Step::Expense], saga.steps[&Step::Payment]), (Progress::Refused, Progress::Undone));
    let (charged, refunded, _) = shop.bank.books().orders["o-1"];
    assert_eq!((charged, refunded), (700, 700));
    assert_eq!(shop.booked("a"), (0, 0));
    let letters = shop.stage.dead_letters();
    assert_eq!(letters.len(), 1);
    assert_eq!((&*letters[0].service, letters[0].message.header("sagaid")), ("expenses", Some("s-1")));
}

#[test]
fn a_step_that_takes_too_long_gives_the_checkout_up_and_what_comes_late_is_undone() {
    let mut shop = shop();
    shop.bank.set(Mood::Slow(PATIENCE * 2));
    shop.buys(1, "a");
    shop.stage.advance(PATIENCE - Duration::from_secs(1));
    shop.ended("s-1", Status::Running);
    shop.stage.advance(Duration::from_secs(2));
    let saga = shop.ended("s-1", Status::Cancelling);
    assert!(format!("{:?}", saga.reason).contains("step payment took too long"), "{saga:?}");
    assert_eq!(shop.bank.net("o-1"), 700, "it stands at the provider, who has not said so");
    shop.bank.set(Mood::Fine);
    shop.stage.advance(PATIENCE).run_until_quiet();
    shop.ended("s-1", Status::Cancelled);
    assert_eq!((shop.bank.net("o-1"), shop.booked("a")), (0, (0, 0)));
    assert_eq!(shop.stage.state::<Payments>("o-1").status, Some(payments::Status::Refunded));
}

#[test]
fn a_provider_that_is_away_is_waited_for_and_spends_no_attempt() {
    let mut shop = shop();
    shop.bank.set(Mood::Away);
    shop.buys(1, "a");
    shop.stage.advance(Duration::from_secs(600));
    shop.ended("s-1", Status::Running);
    assert!(shop.stage.waiting() > 0 && shop.stage.dead_letters().is_empty());
    shop.bank.set(Mood::Fine);
    shop.stage.advance(Duration::from_secs(30));
    shop.ended("s-1", Status::Completed);
    // Away for longer than a checkout has patience: it is undone when the provider is back, in the order of what was
    // asked.
    shop.bank.set(Mood::Away);
    shop.buys(2, "a");
    shop.stage.advance(PATIENCE * 2);
    shop.ended("s-2", Status::Cancelling);
    shop.bank.set(Mood::Fine);
    shop.stage.advance(Duration::from_secs(30)).run_until_quiet();
    shop.ended("s-2", Status::Cancelled);
    assert_eq!((shop.bank.net("o-1"), shop.bank.net("o-2")), (700, 0));
    assert!(shop.stage.dead_letters().is_empty());
}

#[test]
fn a_cancel_or_a_refund_that_comes_first_is_found_by_what_comes_late() {
    let mut shop = shop();
    let cancel = json!({ "command": "cancel", "order": "o-1" });
    let refund = json!({ "command": "refund", "order": "o-2" });
    shop.stage.send::<Orders>(&cancel).send::<Payments<Bank>>(&refund).run_until_quiet();
    shop.buys(1, "a").buys(2, "a").quiet();
    let (first, second) = (shop.ended("s-1", Status::Cancelled), shop.ended("s-2", Status::Cancelled));
    assert_eq!(first.steps.len(), 1, "it was refused before anything was paid: {first:?}");
    assert!(format!("{:?}", second.reason).contains("the payment is void"), "{second:?}");
    assert_eq!(shop.stage.state::<Payments>("o-2").status, Some(payments::Status::Void));
    assert!(shop.bank.books().orders.values().all(|(charged, ..)| *charged == 0));
    assert_eq!(shop.booked("a"), (0, 0));
}

#[test]
fn answers_that_are_lost_and_charges_that_stood_in_spite_of_an_error_count_once() {
    let mut shop = shop();
    shop.bank.set(Mood::Lost);
    shop.buys(1, "a");
    shop.stage.advance(Duration::from_secs(60));
    shop.ended("s-1", Status::Running);
    assert_eq!(shop.bank.net("o-1"), 700, "it stands, and nobody here knows");
    assert!(shop.bank.books().calls > 1, "it was asked again");
    shop.bank.set(Mood::Fine);
    shop.stage.advance(Duration::from_secs(30));
    shop.ended("s-1", Status::Completed);
    assert_eq!((shop.bank.net("o-1"), shop.bank.books().answers.len()), (700, 1), "always with the same token");
}

#[test]
fn a_provider_that_says_another_amount_is_not_believed_and_the_money_goes_back() {
    let mut shop = shop();
    shop.bank.set(Mood::Lies(7_000));
    shop.buys(1, "a");
    // Its attempts are spent before the checkout's patience is.
    shop.stage.advance(PATIENCE);
    shop.bank.set(Mood::Fine);
    shop.quiet();
    let saga = shop.ended("s-1", Status::Cancelled);
    let letters = shop.stage.dead_letters();
    assert!(letters.iter().any(|letter| letter.error.contains("it says that it took 7000")), "{letters:?} {saga:?}");
    let (charged, refunded, _) = shop.bank.books().orders["o-1"];
    assert_eq!((charged, refunded), (700, 700));
    assert_eq!(shop.booked("a"), (0, 0));
}

#[test]
fn a_refund_that_the_provider_refuses_is_tried_again_until_it_succeeds() {
    let mut shop = shop();
    shop.stage
        .send::<Expenses>(&json!({
            "command": "budget", "account": "a", "category": "shop", "limit": 1, "currency": "USD"
        }))
        .run_until_quiet();
    shop.bank.set(Mood::Slow(Duration::from_secs(2)));
    shop.buys(1, "a");
    shop.stage.advance(Duration::from_secs(1));
    // The charge stands; the refund is what it refuses.
    shop.bank.set(Mood::Refuses);
    shop.stage.advance(Duration::from_secs(60));
    shop.ended("s-1", Status::Cancelling);
    assert_eq!(shop.bank.net("o-1"), 700);
    assert!(shop.stage.timers().iter().any(|timer| &*timer.name == "undo-payment"), "{:?}", shop.stage.timers());
    shop.bank.set(Mood::Fine);
    shop.stage.advance(Duration::from_secs(3_600)).run_until_quiet();
    shop.ended("s-1", Status::Cancelled);
    assert_eq!(shop.bank.net("o-1"), 0);
}

#[test]
fn under_kills_and_with_a_moody_provider_every_saga_ends_and_the_books_agree() {
    for seed in 0..12 {
        let mut shop = shop_of(seed);
        shop.bank.books().dice = Some(Dice::seeded(seed));
        shop.stage.kills(300);
        for no in 1..=12 {
            let account = if no % 6 == 0 { "broke-1" } else { ["a", "b"][no as usize % 2] };
            shop.buys(no, account);
            shop.stage.advance(Duration::from_secs(5));
        }
        shop.stage.advance(PATIENCE);
        shop.stage.kills(0);
        shop.bank.books().dice = None;
        shop.stage.advance(PATIENCE * 5).run_until_quiet();
        let mut paid: BTreeMap<&str, i64> = BTreeMap::new();
        for no in 1..=12_u64 {
            let account = if no % 6 == 0 { "broke-1" } else { ["a", "b"][no as usize % 2] };
            let saga = shop.stage.state::<Checkouts>(&format!("s-{no}"));
            let net = shop.bank.net(&format!("o-{no}"));
            let due = match saga.status {
                Some(Status::Completed) => 700,
                Some(Status::Cancelled) => 0,
                status => panic!("seed {seed}: s-{no} is {status:?}: {saga:?}"),
            };
            assert_eq!(net, due, "seed {seed}: s-{no} {saga:?}");
            *paid.entry(account).or_default() += due;
        }
        for (account, paid) in paid {
            assert_eq!(shop.booked(account), (paid, -paid), "seed {seed}, account {account}");
            assert_eq!(shop.stage.state::<Balances>(account).balance, Cents(-paid), "seed {seed}, account {account}");
        }
    }
}

#[test]
fn the_same_seed_is_the_same_story() {
    let story = |seed| {
        let mut shop = shop_of(seed);
        shop.stage.kills(200);
        shop.bank.books().dice = Some(Dice::seeded(seed));
        for no in 1..=5 {
            shop.buys(no, "a");
        }
        shop.stage.advance(PATIENCE * 2);
        (shop.stage.events(), shop.stage.now(), shop.bank.books().calls)
    };
    assert_eq!(story(3), story(3));
    assert_ne!(story(3), story(4));
}

// ---- each service by itself: every line of its table in docs/services.md, and what else nobody asks for elsewhere

fn charge(amount: i64) -> Value {
    json!({ "command": "charge", "order": "o-1", "account": "a", "amount": amount, "currency": "EUR" })
}

fn told(command: &str) -> Value {
    json!({ "command": command, "order": "o-1" })
}

#[test]
fn a_payment_does_what_its_table_says() {
    let broke = json!({ "command": "charge", "order": "o-1", "account": "broke", "amount": 5, "currency": "EUR" });
    let states = [
        ("nothing known", vec![]),
        ("charged", vec![charge(5)]),
        ("declined", vec![broke.clone()]),
        ("refunded", vec![charge(5), told("refund")]),
        ("void", vec![told("refund")]),
    ];
    // Of each state: what the same charge, another one and a refund make of it; nothing: it is refused.
    let expected = [
        [Some("charged"), Some("charged"), Some("void")],
        [Some("charged"), None, Some("refunded")],
        [Some("declined"), None, Some("declined")],
        [Some("refunded"), None, Some("refunded")],
        [Some("void"), Some("void"), Some("void")],
    ];
    for ((state, before), expected) in states.into_iter().zip(expected) {
        let same = if state == "declined" { broke.clone() } else { charge(5) };
        for (message, expected) in [same, charge(6), told("refund")].into_iter().zip(expected) {
            let given = Given::handler(Payments { provider: Bank::default() }).messages(before.clone());
            let then = given.when(&message);
            match expected {
                None => drop(then.then_rejects("an order is paid once")),
                Some(status) => {
                    let changed = (status != state).then(|| format!("payment.{status}"));
                    drop(then.then_succeeds().then_events(changed.as_deref()));
                }
            }
        }
    }
}

#[test]
fn a_refund_goes_to_the_provider_once_and_also_where_nothing_is_known() {
    let bank = Bank::default();
    let calls = || bank.books().calls;
    let payments = || Given::handler(Payments { provider: bank.clone() });
    drop(payments().when(told("refund")).then_succeeds().when(told("refund")).then_succeeds());
    assert_eq!(calls(), 1, "a void payment asks nobody");
    let other = Bank::default();
    let charged = Given::handler(Payments { provider: other.clone() }).messages([charge(5)]);
    drop(charged.when(told("refund")).then_succeeds().when(charge(5)).then_succeeds());
    assert_eq!(other.books().calls, 2, "neither does the charge behind a refund");
    bank.set(Mood::Refuses);
    drop(payments().when(charge(5)).then_rejects("refuses the request"));
    bank.set(Mood::Away);
    drop(payments().when(told("refund")).then_unavailable("payment_provider"));
}

#[test]
fn an_order_does_what_its_table_says() {
    let place = |amount: i64| {
        json!({
            "command": "place", "order": "o-1", "account": "a", "amount": amount, "currency": "EUR", "at": "2026-01-31"
        })
    };
    let states = [
        ("not there", vec![]),
        ("placed", vec![place(5)]),
        ("completed", vec![place(5), told("complete")]),
        ("cancelled", vec![place(5), told("cancel")]),
    ];
    // Of each state: what the same order, another one, a completion and a cancellation make of it.
    let expected = [
        [Some("placed"), Some("placed"), None, Some("not there")],
        [Some("placed"), None, Some("completed"), Some("cancelled")],
        [Some("completed"), None, Some("completed"), None],
        [Some("cancelled"), None, None, Some("cancelled")],
    ];
    for ((state, before), expected) in states.into_iter().zip(expected) {
        for (message, expected) in [place(5), place(6), told("complete"), told("cancel")].into_iter().zip(expected) {
            let then = Given::handler(Orders).messages(before.clone()).when(&message);
            match expected {
                None => drop(then.then_rejects("order")),
                Some(status) => {
                    let changed = (status != state).then(|| format!("order.{status}"));
                    drop(then.then_succeeds().then_events(changed.as_deref()));
                }
            }
        }
    }
}

#[test]
fn a_posting_adds_up_in_transactions_and_balances() {
    let posting = |amount: i64| json!({ "account": "a", "amount": amount, "currency": "EUR", "at": "2026-01-31" });
    let row = |id: &str, amount: i64| json!({ "id": id, "account": "a", "amount": amount, "currency": "EUR", "at": "2026-01-31" });
    Given::handler(Transactions)
        .messages([posting(500)])
        .when(posting(-800))
        .then_rows([row("message-2", -800)])
        .then_reply(json!({ "id": "message-2", "account": "a", "amount": -800, "balance": -300, "n": 2 }))
        .then_events(["transaction.posted"])
        .then_state(json!({ "balance": -300, "postings": 2, "currency": "EUR" }));
    Given::handler(Balances)
        .messages([row("p-1", 500)])
        .when(row("p-2", -800))
        .then_event(0, json!({ "id": "p-2", "account": "a", "balance": -300, "n": 2 }));
}

#[test]
fn an_expense_that_is_taken_back_frees_its_budget_and_another_month_has_its_own() {
    let spend = |amount: i64, at: &str| {
        json!({
            "command": "record", "account": "a", "category": "food", "amount": amount, "currency": "EUR", "at": at
        })
    };
    let limit = json!({ "command": "budget", "account": "a", "category": "food", "limit": 100, "currency": "EUR" });
    Given::handler(Expenses)
        .messages([limit.clone(), spend(100, "2026-01-31")])
        .when(spend(100, "2026-02-01"))
        .then_events(["expense.recorded"])
        .when(spend(1, "2026-01-01"))
        .then_events(["expense.recorded", "budget.exceeded"])
        .when(limit)
        .then_rows([json!({ "account": "a", "category": "food", "monthly_limit": 100, "currency": "EUR" })])
        .then_events([]);
}

#[test]
fn what_a_checkout_cannot_undo_twice_waits_for_an_operator() {
    let done = |status: &str| Outcome::Done(json!({ "status": status }));
    let refused = || Outcome::DeadLetter("?".to_owned());
    let late = json!({ "command": "late", "saga": "s-1", "step": "transaction" });
    Given::handler(Checkouts::default())
        .messages([checkout(1, "a")])
        .when_answered("order", done("placed"))
        .when_answered("payment", done("charged"))
        .when_answered("expense", Outcome::Done(Value::Null))
        .when(late)
        .then_events(["checkout.cancelling"])
        .when_answered("undo-expense", refused())
        .then_schedules([("", None::<(u64, Value)>); 0])
        .then_sends::<Value>([])
        .when_answered("undo-payment", refused())
        .then_schedules([(
            "undo-payment",
            Some((10_000, json!({ "command": "late", "saga": "s-1", "step": "payment" }))),
        )]);
}

#[test]
fn a_checkout_that_makes_no_sense_is_rejected() {
    let mut free = checkout(1, "a");
    free["amount"] = json!(0);
    Given::handler(Checkouts::default()).when(free).then_rejects("a checkout is above 0").then_sends::<Value>([]);
    let asked = Outcome::Done(Value::Null);
    Given::handler(Checkouts::default()).when_answered("gift", asked).then_rejects("no step of a checkout is named");
    let late = json!({ "command": "late", "saga": "s-1", "step": "order" });
    Given::handler(Checkouts::default()).when(late).then_succeeds().then_sends::<Value>([]).then_events([]);
}
