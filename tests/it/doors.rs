//! GraphQL and gRPC as their clients meet them: the real binary, real connections.
//! In: documents and messages. Out: the behaviour in docs/gateway-graphql-grpc.md; one key is one effect, over every
//! door.

use std::time::Duration;

use budget_manager::gateway::grpc::proto;
use perkey_chaos::process::{Running, until};
use proto::orders_client::OrdersClient;
use proto::transactions_client::TransactionsClient;
use serde_json::{Value, json};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::cli::Cli;

const SOON: Duration = Duration::from_secs(60);

/// `up` with its doors open.
struct House {
    http: String,
    grpc: Channel,
    client: reqwest::Client,
    up: Running,
    cli: Cli,
}

/// An answer of GraphQL.
#[derive(Debug)]
struct Answer {
    status: u16,
    replayed: bool,
    body: Value,
}

impl Answer {
    /// The only error's extensions.
    #[track_caller]
    fn problem(&self) -> &Value {
        assert_eq!(self.body["errors"].as_array().map(Vec::len), Some(1), "{self:?}");
        &self.body["errors"][0]["extensions"]
    }

    /// The data, when there are no errors.
    #[track_caller]
    fn data(&self) -> &Value {
        assert!(self.status == 200 && self.body["errors"].is_null(), "{self:?}");
        &self.body["data"]
    }
}

const POST: &str = "mutation($in: TransactionInput!, $key: String) { createTransaction(input: $in, idempotencyKey: $key) { id account amount balance n } }";

impl House {
    async fn open(settings: &[&str]) -> Self {
        Self::of(Cli::new().await, settings).await
    }

    async fn of(cli: Cli, settings: &[&str]) -> Self {
        let mut args = vec!["up", "--set", "admin.listen=127.0.0.1:0", "--set", "gateway.listen=127.0.0.1:0"];
        args.extend(["--set", "gateway.grpc_listen=127.0.0.1:0"]);
        settings.iter().for_each(|setting| args.extend(["--set", setting]));
        let up = cli.place.start("up.log", &args).unwrap();
        let log = cli.place.folder.join("up.log");
        let said = async || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("messages are being handled"));
        until("`up` handles messages", SOON, said).await.unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        let (http, grpc) = (address(&text, "the gateway listens"), address(&text, "the gateway listens for gRPC"));
        let grpc = Channel::from_shared(grpc).unwrap().connect().await.unwrap();
        Self { http, grpc, client: reqwest::Client::new(), up, cli }
    }

    async fn graphql(&self, query: &str, variables: Value) -> Answer {
        self.graphql_with(&[], &json!({ "query": query, "variables": variables })).await
    }

    async fn graphql_with(&self, headers: &[(&str, &str)], body: &Value) -> Answer {
        let mut request = self.client.post(format!("{}/graphql", self.http)).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let replayed = response.headers().contains_key("idempotent-replayed");
        Answer { status: response.status().as_u16(), replayed, body: response.json().await.unwrap() }
    }

    /// Posts over REST.
    async fn rest(&self, path: &str, key: &str, body: &Value) -> (u16, Value) {
        let request = self.client.post(format!("{}{path}", self.http)).header("Idempotency-Key", key).json(body);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn post(&self, key: &str, amount: i64) -> Result<Response<proto::Transaction>, Status> {
        self.transactions().post_transaction(keyed(key, posting("a", amount))).await
    }

    fn transactions(&self) -> TransactionsClient<Channel> {
        TransactionsClient::new(self.grpc.clone())
    }

    /// The number of transactions of an account.
    async fn postings(&self, account: &str) -> u64 {
        let asked = proto::GetAccountRequest { account: account.to_owned() };
        self.transactions().get_account(asked).await.map_or(0, |found| found.into_inner().n)
    }
}

/// The address in the first line of the log that has these words.
fn address(log: &str, words: &str) -> String {
    let line = log.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: not in {log}"));
    let (_, address) = line.split_once("address=").unwrap();
    address.trim_start_matches('"').chars().take_while(|c| !c.is_whitespace() && *c != '"').collect()
}

fn posting(account: &str, amount: i64) -> proto::PostTransactionRequest {
    proto::PostTransactionRequest {
        account: Some(account.to_owned()),
        amount: Some(amount),
        currency: Some("EUR".to_owned()),
        ..proto::PostTransactionRequest::default()
    }
}

fn input(account: &str, amount: i64) -> Value {
    json!({ "account": account, "amount": amount, "currency": "EUR" })
}

fn keyed<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("idempotency-key", key.parse().unwrap());
    request
}

fn said<'a>(metadata: &'a tonic::metadata::MetadataMap, name: &str) -> Option<&'a str> {
    metadata.get(name).and_then(|value| value.to_str().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn graphql_has_the_operations_and_the_reads() {
    // Where nobody listens: a saga waits for its provider.
    let house = House::open(&["app.provider_url=http://127.0.0.1:9"]).await;
    let posted = house.graphql(POST, json!({ "in": input("a", 1_250) })).await;
    let posted = posted.data()["createTransaction"].clone();
    assert_eq!((&posted["amount"], &posted["balance"], &posted["n"]), (&json!(1_250), &json!(1_250), &json!(1)));
    house.graphql(POST, json!({ "in": input("a", -250) })).await.data();
    let read = "query($id: String!, $after: String) {
        transaction(id: $id) { id account amount currency }
        account(account: \"a\") { balance n currency }
        transactions(account: \"a\", limit: 1, after: $after) { items { id amount } next }
    }";
    let first = house.graphql(read, json!({ "id": posted["id"] })).await;
    let first = first.data();
    assert_eq!(first["transaction"], json!({ "id": posted["id"], "account": "a", "amount": 1_250, "currency": "EUR" }));
    assert_eq!(first["account"], json!({ "balance": 1_000, "n": 2, "currency": "EUR" }));
    let page = &first["transactions"];
    assert_eq!(page["items"].as_array().map(Vec::len), Some(1), "{page}");
    let second = house.graphql(read, json!({ "id": posted["id"], "after": page["next"] })).await;
    let last = &second.data()["transactions"];
    assert!(last["next"].is_null() && last["items"][0]["id"] != page["items"][0]["id"], "{page} {last}");

    let orders = "mutation { place: createOrder(input: { id: \"o\", account: \"a\", amount: 5, currency: \"EUR\" }, idempotencyKey: \"k-1\")
        { id status amount } cancel: cancelOrder(id: \"o\", reason: \"rain\", idempotencyKey: \"k-2\") { id status reason } }";
    let answer = house.graphql(orders, json!({})).await;
    assert_eq!(answer.data()["place"], json!({ "id": "o", "status": "placed", "amount": 5 }));
    assert_eq!(answer.data()["cancel"], json!({ "id": "o", "status": "cancelled", "reason": "rain" }));
    let more = "mutation { budget: setBudget(input: { account: \"a\", limit: 10, currency: \"EUR\" }, idempotencyKey: \"k-3\") { category limit }
        spent: createExpense(input: { account: \"a\", amount: 7, currency: \"EUR\" }, idempotencyKey: \"k-4\") { id amount spent limit }
        saga: checkout(input: { account: \"a\", amount: 9, currency: \"EUR\" }, idempotencyKey: \"k-5\") { id order status } }";
    let answer = house.graphql(more, json!({})).await;
    assert_eq!(answer.data()["budget"], json!({ "category": "general", "limit": 10 }));
    assert_eq!((&answer.data()["spent"]["spent"], &answer.data()["spent"]["limit"]), (&json!(7), &json!(10)));
    assert_eq!(answer.data()["saga"]["status"], "running");
    let none = house.graphql("{ order(id: \"nobody's\") { id } }", json!({})).await;
    assert_eq!(
        (none.status, &none.problem()["code"], &none.body["data"]["order"]),
        (200, &json!("not_found"), &Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn graphql_repeats_an_answer_and_keeps_no_refusal_that_had_no_effect() {
    let house = House::open(&[]).await;
    let first = house.graphql(POST, json!({ "in": input("a", 5), "key": "k" })).await;
    let again = house.graphql(POST, json!({ "in": input("a", 5), "key": "k" })).await;
    assert_eq!(first.data(), again.data());
    assert!(!first.replayed && first.body["extensions"].is_null(), "{first:?}");
    assert!(again.replayed && again.body["extensions"]["replayed"] == json!(["createTransaction"]), "{again:?}");
    // The header is as good where there is one mutation.
    let body = json!({ "query": POST, "variables": { "in": input("a", 5) } });
    assert!(house.graphql_with(&[("Idempotency-Key", "\"k\"")], &body).await.replayed);
    let other = house.graphql(POST, json!({ "in": input("a", 6), "key": "k" })).await;
    assert_eq!(
        (other.status, &other.problem()["code"], &other.problem()["status"]),
        (200, &json!("key_reused"), &json!(422))
    );

    // Wrong input is an error in a 200 and nothing else: the key is free.
    let wrong = house
        .graphql(POST, json!({ "in": { "account": "b", "amount": "1.5", "currency": "EUR" }, "key": "free" }))
        .await;
    assert_eq!((wrong.status, &wrong.problem()["code"]), (200, &json!("malformed")));
    assert_eq!(wrong.problem()["errors"][0]["pointer"], "/amount", "{wrong:?}");
    house.graphql(POST, json!({ "in": input("b", 1), "key": "free" })).await.data();

    // What was accepted and refused is kept, and what stands beside it has its effect.
    let both = "mutation { one: createTransaction(input: { account: \"a\", amount: 1, currency: \"EUR\" }, idempotencyKey: \"m-1\") { n }
        two: createTransaction(input: { account: \"a\", amount: 1, currency: \"USD\" }, idempotencyKey: \"m-2\") { n } }";
    let first = house.graphql(both, json!({})).await;
    assert_eq!((&first.body["data"]["one"]["n"], &first.body["data"]["two"]), (&json!(2), &Value::Null), "{first:?}");
    assert_eq!((&first.problem()["code"], &first.problem()["replayed"]), (&json!("rejected"), &Value::Null));
    let again = house.graphql(both, json!({})).await;
    assert_eq!(again.problem()["replayed"], true);
    assert_eq!(
        (&again.body["data"], &again.body["extensions"]["replayed"]),
        (&first.body["data"], &json!(["one", "two"]))
    );
    assert_eq!((house.postings("a").await, house.postings("b").await), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn graphql_refuses_what_is_too_much_before_anything_runs() {
    let house = House::open(&[]).await;
    let batch = house.graphql_with(&[], &json!([{ "query": "{ account(account: \"a\") { n } }" }])).await;
    assert_eq!((batch.status, &batch.problem()["code"]), (400, &json!("malformed")));
    let aliases: String = (0..31).map(|n| format!("a{n}: account(account: \"a\") {{ n }} ")).collect();
    let nested = |depth: usize| {
        let (open, close) = ("ofType { ".repeat(depth), " }".repeat(depth));
        format!("__schema {{ types {{ fields {{ type {{ {open}name{close} }} }} }} }}")
    };
    for (query, word) in [
        (format!("{{ {aliases} }}"), "aliases"),
        (format!("{{ account(account: \"{}\") {{ n }} }}", "x".repeat(17 << 10)), "bytes"),
        (format!("{{ {} }}", nested(12)), "nested too deep"),
        ("{ transactions(account: \"a\", limit: 4000) { items { id amount } } }".to_owned(), "too complex"),
        ("{ nobody }".to_owned(), "nobody"),
        ("{ account(".to_owned(), "expected"),
        (
            "mutation { createTransaction(input: { account: \"a\", amount: 1, amount: 2, currency: \"EUR\" }) { n } }"
                .to_owned(),
            "\"amount\" stands twice",
        ),
        (format!("mutation {}1{}", "{ a".repeat(200), "}".repeat(200)), ""),
    ] {
        let refused = house.graphql(&query, json!({})).await;
        assert_eq!((refused.status, &refused.problem()["code"]), (400, &json!("malformed")), "{query:.80}");
        assert!(refused.body["errors"][0]["message"].as_str().unwrap().contains(word), "{word}: {refused:?}");
    }
    let amount = "mutation { createTransaction(input: { account: \"a\", amount: 1.0000000000000001, currency: \"EUR\" }) { n } }";
    let refused = house.graphql(amount, json!({})).await;
    assert_eq!(
        (refused.status, &refused.problem()["code"]),
        (200, &json!("malformed")),
        "a field was asked: {refused:?}"
    );
    assert!(refused.body["errors"][0]["message"].as_str().unwrap().contains("whole number"), "{refused:?}");
    let about = house.graphql(&format!("{{ {} }}", nested(9)), json!({})).await;
    assert!(about.data()["__schema"]["types"].is_array(), "{about:?}");
    let one = "createTransaction(input: { account: \"a\", amount: 1, currency: \"EUR\" }) { n }";
    let two = json!({ "query": format!("mutation {{ a: {one} b: {one} }}") });
    let keyless = house.graphql_with(&[], &two).await;
    assert!(keyless.body["errors"].as_array().is_some_and(|errors| errors.len() == 2), "{keyless:?}");
    assert_eq!(keyless.body["errors"][0]["extensions"]["code"], "key_missing");
    let shared = house.graphql_with(&[("Idempotency-Key", "k")], &two).await;
    assert_eq!((shared.status, &shared.problem()["code"]), (400, &json!("key_malformed")));
    let body = json!({ "query": POST, "variables": { "in": input("a", 1), "key": "k" } });
    let differ = house.graphql_with(&[("Idempotency-Key", "other")], &body).await;
    assert_eq!(differ.problem()["code"], "key_malformed");
    let charge = "mutation { charge(input: { account: \"a\", amount: 1, currency: \"EUR\" }) { status } }";
    assert_eq!(house.graphql(charge, json!({})).await.problem()["code"], "key_missing");
    assert_eq!(house.postings("a").await, 0);
    let text = house.client.post(format!("{}/graphql", house.http)).body("{}").send().await.unwrap();
    assert_eq!(text.status().as_u16(), 415);
    let served = house.client.get(format!("{}/graphql/schema", house.http)).send().await.unwrap().text().await.unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api/schema.graphql");
    assert_eq!(served, std::fs::read_to_string(path).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_has_the_operations_and_the_reads() {
    let house = House::open(&[]).await;
    let posted = house.post("k", 1_250).await.unwrap();
    assert_eq!(said(posted.metadata(), "idempotent-replayed"), None);
    let place = said(posted.metadata(), "location").unwrap().to_owned();
    let posted = posted.into_inner();
    assert_eq!(place, format!("/api/transactions/{}", posted.id));
    assert_eq!((posted.amount, posted.balance, posted.n), (1_250, Some(1_250), Some(1)));
    let again = house.post("k", 1_250).await.unwrap();
    assert_eq!((said(again.metadata(), "idempotent-replayed"), again.get_ref()), (Some("true"), &posted));
    house.post("k-2", -250).await.unwrap();

    let mut transactions = house.transactions();
    let one = transactions.get_transaction(proto::GetRequest { id: posted.id.clone() }).await.unwrap().into_inner();
    assert_eq!((one.amount, one.currency.as_deref(), one.balance), (1_250, Some("EUR"), None));
    let mut asked = proto::ListRequest { account: "a".to_owned(), after: None, limit: Some(1) };
    let mut seen = Vec::new();
    loop {
        let page = transactions.list_transactions(asked.clone()).await.unwrap().into_inner();
        seen.extend(page.items.into_iter().map(|item| item.amount));
        asked.after = page.next;
        if asked.after.is_none() {
            break;
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [-250, 1_250]);
    let mut orders = OrdersClient::new(house.grpc.clone());
    let order = proto::PlaceOrderRequest {
        id: Some("o".to_owned()),
        account: Some("a".to_owned()),
        amount: Some(5),
        currency: Some("EUR".to_owned()),
        ..proto::PlaceOrderRequest::default()
    };
    let placed = orders.place_order(order.clone()).await.unwrap().into_inner();
    assert_eq!((placed.id.as_str(), placed.status.as_deref(), placed.amount), ("o", Some("placed"), Some(5)));
    let cancel = proto::CancelOrderRequest { id: "o".to_owned(), reason: Some("rain".to_owned()) };
    let cancelled = orders.cancel_order(cancel).await.unwrap().into_inner();
    assert_eq!((cancelled.status.as_deref(), cancelled.reason.as_deref()), (Some("cancelled"), Some("rain")));
    let there = orders.place_order(order).await.unwrap_err();
    assert_eq!(there.code(), Code::AlreadyExists, "{there:?}");
    let read = orders.get_order(proto::GetRequest { id: "o".to_owned() }).await.unwrap().into_inner();
    assert_eq!(read, cancelled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_tells_errors_as_its_clients_understand_them() {
    let house = House::open(&["gateway.body_bytes_max=4096"]).await;
    let wrong = proto::PostTransactionRequest { currency: Some("eur".to_owned()), ..posting("a", 1) };
    let wrong = house.transactions().post_transaction(wrong).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument, "{wrong:?}");
    // The details name the field and the code, whatever the client makes of them.
    let details = String::from_utf8_lossy(wrong.details()).into_owned();
    for part in ["google.rpc.BadRequest", "currency", "google.rpc.ErrorInfo", "malformed"] {
        assert!(details.contains(part), "{part}: {details}");
    }
    let empty = house.transactions().post_transaction(proto::PostTransactionRequest::default()).await.unwrap_err();
    assert!(empty.code() == Code::InvalidArgument && empty.message().contains("/amount"), "{empty:?}");
    house.post("k", 1).await.unwrap();
    let reused = house.post("k", 2).await.unwrap_err();
    assert_eq!((reused.code(), said(reused.metadata(), "idempotent-replayed")), (Code::FailedPrecondition, None));
    for (replayed, key) in [(None, "usd"), (Some("true"), "usd")] {
        let dollars = proto::PostTransactionRequest { currency: Some("USD".to_owned()), ..posting("a", 1) };
        let refused = house.transactions().post_transaction(keyed(key, dollars)).await.unwrap_err();
        assert_eq!(
            (refused.code(), said(refused.metadata(), "idempotent-replayed")),
            (Code::FailedPrecondition, replayed)
        );
    }
    for key in ["", "\"unclosed", &"k".repeat(256)] {
        let malformed = house.post(key, 1).await.unwrap_err();
        assert_eq!(malformed.code(), Code::InvalidArgument, "{key}: {malformed:?}");
    }
    let mut twice = keyed("one", posting("a", 1));
    twice.metadata_mut().append("idempotency-key", "two".parse().unwrap());
    assert_eq!(house.transactions().post_transaction(twice).await.unwrap_err().code(), Code::InvalidArgument);
    let none = house.transactions().get_transaction(proto::GetRequest { id: "nobody's".to_owned() }).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound);
    let charge = proto::ChargeRequest {
        order: Some("o".to_owned()),
        account: Some("a".to_owned()),
        amount: Some(1),
        currency: Some("EUR".to_owned()),
    };
    let keyless = proto::payments_client::PaymentsClient::new(house.grpc.clone()).charge(charge).await.unwrap_err();
    assert_eq!(keyless.code(), Code::InvalidArgument, "{keyless:?}");
    let large = proto::PostTransactionRequest { memo: Some("x".repeat(5_000)), ..posting("a", 1) };
    let large = house.transactions().post_transaction(large).await.unwrap_err();
    assert!(matches!(large.code(), Code::OutOfRange | Code::ResourceExhausted), "{large:?}");
    assert_eq!(house.postings("a").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_is_one_effect_whichever_door_it_comes_through() {
    let house = House::open(&[]).await;
    let (status, rest) = house.rest("/api/transactions", "k", &input("a", 7)).await;
    assert_eq!(status, 201, "{rest}");
    let graphql = house.graphql(POST, json!({ "in": input("a", 7), "key": "k" })).await;
    assert!(graphql.replayed && graphql.data()["createTransaction"]["id"] == rest["id"], "{graphql:?} {rest}");
    let grpc = house.post("k", 7).await.unwrap();
    assert_eq!((said(grpc.metadata(), "idempotent-replayed"), &json!(grpc.get_ref().id)), (Some("true"), &rest["id"]));
    assert_eq!(house.post("k", 8).await.unwrap_err().code(), Code::FailedPrecondition);
    // The other way, with what a path names and with no limit at all.
    let mut orders = OrdersClient::new(house.grpc.clone());
    let order = proto::PlaceOrderRequest {
        account: Some("a".to_owned()),
        amount: Some(5),
        currency: Some("EUR".to_owned()),
        at: Some("2026-01-31".to_owned()),
        ..proto::PlaceOrderRequest::default()
    };
    let order = orders.place_order(keyed("place", order)).await.unwrap().into_inner();
    let body = json!({ "account": "a", "amount": 5, "currency": "EUR", "at": "2026-01-31" });
    let (status, placed) = house.rest("/api/orders", "place", &body).await;
    assert_eq!(
        (status, placed["id"].as_str().or(placed["placement"]["order"].as_str())),
        (201, Some(order.id.as_str()))
    );
    let cancel = proto::CancelOrderRequest { id: order.id.clone(), reason: None };
    orders.cancel_order(keyed("cancel", cancel)).await.unwrap();
    let cancel = "mutation($id: String!) { cancelOrder(id: $id, idempotencyKey: \"cancel\") { status } }";
    assert!(house.graphql(cancel, json!({ "id": order.id })).await.replayed);
    let (status, _) = house.rest(&format!("/api/orders/{}/cancel", order.id), "cancel", &json!({})).await;
    assert_eq!(status, 200);
    let budget = json!({ "account": "a", "category": "food", "limit": null, "currency": "EUR" });
    assert_eq!(house.rest("/api/budgets", "budget", &budget).await.0, 200);
    let budget = "mutation { setBudget(input: { account: \"a\", category: \"food\", currency: \"EUR\" }, idempotencyKey: \"budget\") { limit } }";
    assert!(house.graphql(budget, json!({})).await.replayed);
    assert_eq!(house.postings("a").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_retry_and_a_hedged_pair_are_one_effect() {
    let house = House::open(&[]).await;
    // Both of the pair at once; one that meets the other on its way is told so, and comes again.
    for pair in 0..20 {
        let key = format!("pair-{pair}");
        let call = async || {
            for _ in 0..50 {
                match house.post(&key, 1).await {
                    Err(status) if status.code() == Code::Aborted => {
                        let pause = said(status.metadata(), "grpc-retry-pushback-ms").unwrap().parse().unwrap();
                        perkey::sleep(Duration::from_millis(pause)).await;
                    }
                    ended => return ended.unwrap(),
                }
            }
            panic!("it is aborted for ever");
        };
        let (one, other) = tokio::join!(call(), call());
        assert_eq!(one.get_ref(), other.get_ref());
        let place = |response: &Response<_>| said(response.metadata(), "location").map(str::to_owned);
        assert_eq!(place(&one), place(&other));
    }
    assert_eq!(house.postings("a").await, 20);
    // A library's own retry says so; it is a repeat like any other.
    let first = house.post("retry", 1).await.unwrap();
    let mut retry = keyed("retry", posting("a", 1));
    retry.metadata_mut().insert("grpc-previous-rpc-attempts", "2".parse().unwrap());
    let again = house.transactions().post_transaction(retry).await.unwrap();
    assert_eq!((again.get_ref(), said(again.metadata(), "idempotent-replayed")), (first.get_ref(), Some("true")));
    for name in ["location", "idempotency-key"] {
        assert_eq!(said(again.metadata(), name), said(first.metadata(), name));
    }
    // The same for an error, whose metadata are its trailers.
    let mut ends = Vec::new();
    for attempts in ["0", "2", "3"] {
        let mut dollars =
            keyed("usd", proto::PostTransactionRequest { currency: Some("USD".to_owned()), ..posting("a", 1) });
        dollars.metadata_mut().insert("grpc-previous-rpc-attempts", attempts.parse().unwrap());
        let status = house.transactions().post_transaction(dollars).await.unwrap_err();
        ends.push((status.code(), status.message().to_owned(), status.details().to_vec()));
    }
    assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "{ends:?}");
    assert_eq!(house.postings("a").await, 21);
}

/// SHA-256 of the tokens `writer`, `reader` and `other`.
const TOKENS: &str = "\
b93006774cbdd4b299389a03ac3d88c3a76b460d538795bc12718011a909fba5 acme ann read,write
3d0941964aa3ebdcb00ccef58b1bb399f9f898465e9886d5aec7f31090a0fb30 acme bob read
d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa other ann read,write
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ask_for_tokens_and_keep_tenants_apart() {
    let cli = Cli::new().await;
    cli.file("tokens", TOKENS);
    let house = House::of(cli, &["gateway.tokens=tokens"]).await;
    let body = json!({ "query": POST, "variables": { "in": input("a", 1), "key": "k" } });
    for (header, status, code) in [
        (vec![], 401, "unauthenticated"),
        (vec![("Authorization", "Bearer nobody")], 401, "unauthenticated"),
        (vec![("Authorization", "Bearer reader")], 200, "forbidden"),
    ] {
        let refused = house.graphql_with(&header, &body).await;
        assert_eq!((refused.status, &refused.problem()["code"]), (status, &json!(code)), "{header:?}");
    }
    let call = async |token: &str, amount| {
        let mut call = keyed("k", posting("a", amount));
        call.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        house.transactions().post_transaction(call).await
    };
    assert_eq!(house.post("k", 1).await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(call("reader", 1).await.unwrap_err().code(), Code::PermissionDenied);
    let writer = [("Authorization", "Bearer writer")];
    let posted = house.graphql_with(&writer, &body).await;
    let again = call("writer", 1).await.unwrap();
    assert_eq!(said(again.metadata(), "idempotent-replayed"), Some("true"));
    assert_eq!(posted.data()["createTransaction"]["id"], json!(again.get_ref().id));
    // Another tenant's key and account of the same name are others, and so is what it sees of the first one's.
    let other = call("other", 2).await.unwrap();
    assert_eq!((said(other.metadata(), "idempotent-replayed"), other.get_ref().n), (None, Some(1)));
    assert_eq!(other.get_ref().account, "a");
    let read = json!({ "query": "query($id: String!) { transaction(id: $id) { id } account(account: \"a\") { balance } }",
        "variables": { "id": again.get_ref().id } });
    let seen = house.graphql_with(&[("Authorization", "Bearer other")], &read).await;
    assert_eq!((&seen.problem()["code"], &seen.body["data"]["account"]["balance"]), (&json!("not_found"), &json!(2)));
    let seen = house.graphql_with(&[("Authorization", "Bearer reader")], &read).await;
    assert_eq!(seen.data()["account"]["balance"], 1);
    // The schema says nothing of itself; the file has it.
    let about = json!({ "query": "{ __schema { types { name } } }" });
    let about = house.graphql_with(&writer, &about).await;
    assert!(about.body["data"]["__schema"].is_null(), "{about:?}");
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthAsked {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Health {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReflectionAsked {
    #[prost(string, optional, tag = "7")]
    list_services: Option<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Reflection {
    #[prost(message, optional, tag = "6")]
    services: Option<ServiceList>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceList {
    #[prost(message, repeated, tag = "1")]
    services: Vec<HealthAsked>,
}

async fn health(channel: &Channel, service: &str) -> Result<i32, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthAsked, Health>::default();
    let asked = Request::new(HealthAsked { service: service.to_owned() });
    client.unary(asked, path, codec).await.map(|health| health.into_inner().status)
}

async fn services(channel: &Channel, version: &'static str) -> Vec<String> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
    let path = PathAndQuery::from_maybe_shared(path).unwrap();
    let codec = tonic_prost::ProstCodec::<ReflectionAsked, Reflection>::default();
    let asked = tokio_stream::iter([ReflectionAsked { list_services: Some(String::new()) }]);
    let mut told = client.streaming(Request::new(asked), path, codec).await.unwrap().into_inner();
    let told = told.message().await.unwrap().unwrap().services.unwrap();
    told.services.into_iter().map(|service| service.service).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_tells_what_it_has_and_how_it_is() {
    let mut house = House::open(&[]).await;
    for service in ["", "budget.v1.Orders", "budget.v1.Payments"] {
        assert_eq!(health(&house.grpc, service).await.unwrap(), 1, "{service}");
    }
    assert_eq!(health(&house.grpc, "nobody").await.unwrap_err().code(), Code::NotFound);
    for version in ["v1", "v1alpha"] {
        let services = services(&house.grpc, version).await;
        for service in ["Orders", "Expenses", "Transactions", "Checkouts", "Payments"] {
            assert!(services.contains(&format!("budget.v1.{service}")), "{services:?}");
        }
        assert!(services.iter().any(|service| service == "grpc.health.v1.Health"), "{services:?}");
    }
    house.up.terminate().await.unwrap();
    house.up.ends(SOON).await.unwrap();
    drop(house.cli);
}
