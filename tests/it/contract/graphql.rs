//! The GraphQL door.

use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::header::HeaderValue;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use super::{Answered, Door, Sent};

/// The GraphQL listener of a process.
pub(crate) struct GraphqlDoor {
    base: String,
    client: Client,
}

/// The mutation of an operation: its name, its input as it is declared if it has one, and what is asked of the answer.
fn mutation(operation: &str) -> (&'static str, Option<&'static str>, &'static str) {
    const ORDER: &str = "id account amount currency at memo status reason";
    const PAYMENT: &str = "order account amount currency status reference reason";
    match operation {
        "orders.place" => ("createOrder", Some("$input: OrderInput!"), ORDER),
        "orders.change" => ("changeOrder", Some("$input: OrderChange!"), ORDER),
        "orders.complete" => ("completeOrder", None, ORDER),
        "orders.cancel" => ("cancelOrder", None, ORDER),
        "expenses.record" => {
            ("createExpense", Some("$input: ExpenseInput!"), "id account category amount currency at memo spent limit")
        }
        "expenses.budget" => ("setBudget", Some("$input: BudgetInput!"), "account category limit currency"),
        "transactions.post" => ("createTransaction", Some("$input: TransactionInput!"), "id account amount balance n"),
        "checkouts.start" => {
            ("checkout", Some("$input: CheckoutInput!"), "id order account amount currency at status reason")
        }
        "payments.charge" => ("charge", Some("$input: ChargeInput!"), PAYMENT),
        "payments.refund" => ("refund", None, PAYMENT),
        other => panic!("no mutation for {other}"),
    }
}

/// The query that reads an entity.
fn query(entity: &str) -> &'static str {
    match entity {
        "account" => "query($id: String!) { account(account: $id) { account balance n currency } }",
        "transaction" => "query($id: String!) { transaction(id: $id) { id account amount currency at memo } }",
        "payment" => "query($id: String!) { payment(id: $id) { order status } }",
        other => panic!("no query for {other}"),
    }
}

/// A parameter that a mutation declares, the argument that it is for, and its value as text.
type Given<'a> = (&'static str, &'static str, &'a str);

impl GraphqlDoor {
    pub(crate) fn new(base: &str) -> Self {
        let client = Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        Self { base: base.to_owned(), client }
    }

    /// The request of a mutation; `body` is the text of its input.
    fn mutation(&self, sent: &Sent, body: &str) -> (RequestBuilder, &'static str) {
        let (name, input, fields) = mutation(sent.operation);
        let id = json!(sent.target).to_string();
        let reason = json!(sent.body["reason"]).to_string();
        let mut given: Vec<Given<'_>> = Vec::new();
        given.extend(sent.target.is_some().then_some(("$id: String!", "id", id.as_str())));
        match input {
            Some(input) => given.push((input, "input", body)),
            None if sent.body["reason"].is_null() => {}
            None => given.push(("$reason: String", "reason", reason.as_str())),
        }
        let list =
            |parts: Vec<String>| if parts.is_empty() { String::new() } else { format!("({})", parts.join(", ")) };
        let declared = list(given.iter().map(|(declared, ..)| (*declared).to_owned()).collect());
        let arguments = list(given.iter().map(|(_, name, _)| format!("{name}: ${name}")).collect());
        let values: Vec<_> = given.iter().map(|(_, name, value)| format!("\"{name}\":{value}")).collect();
        let document = json!(format!("mutation{declared} {{ {name}{arguments} {{ {fields} }} }}"));
        let text = format!("{{\"query\":{document},\"variables\":{{{}}}}}", values.join(","));
        let mut request = self.client.post(format!("{}/graphql", self.base));
        request = request.header("content-type", "application/json").body(text);
        for key in &sent.keys.0 {
            request = request.header("idempotency-key", HeaderValue::from_bytes(key).unwrap());
        }
        if let Some(token) = &sent.token {
            request = request.bearer_auth(token);
        }
        (request, name)
    }
}

async fn answered(request: RequestBuilder, name: &'static str) -> Answered {
    let response = request.send().await.unwrap();
    let said = response.headers().contains_key("idempotent-replayed");
    let told: Value = response.json().await.unwrap();
    let Some(error) = told["errors"].get(0) else {
        let replayed = told["extensions"]["replayed"] == json!([name]);
        assert_eq!(said, replayed, "{told}");
        return Answered { bytes: told["data"][name].to_string().into(), replayed, ..Answered::default() };
    };
    let extensions = &error["extensions"];
    assert!(told["data"].is_null() || told["data"][name].is_null(), "{told}");
    Answered {
        code: extensions["code"].as_str().unwrap().to_owned(),
        bytes: format!("{} {} {}", extensions["status"], error["message"], extensions["errors"]).into(),
        replayed: extensions["replayed"] == true,
        retry_after: extensions["retryAfterMs"].as_u64().map(|pause| Duration::from_millis(pause).as_secs_f64()),
        documented: extensions["describedBy"] == "/.well-known/idempotency",
    }
}

impl Door for GraphqlDoor {
    fn send(&self, sent: Sent) -> BoxFuture<'_, Answered> {
        let (request, name) = self.mutation(&sent, &sent.body.to_string());
        Box::pin(answered(request, name))
    }

    fn send_text<'a>(&'a self, sent: Sent, body: &'a str) -> Option<BoxFuture<'a, Answered>> {
        let (request, name) = self.mutation(&sent, body);
        Some(Box::pin(answered(request, name)))
    }

    fn one<'a>(&'a self, entity: &'a str, id: &'a str, token: Option<&'a str>) -> BoxFuture<'a, Answered> {
        let name = ["account", "transaction", "payment"].into_iter().find(|name| *name == entity).unwrap();
        let body = json!({ "query": query(entity), "variables": { "id": id } });
        let request = self.client.post(format!("{}/graphql", self.base)).json(&body);
        let request = token.iter().fold(request, |request, token| request.bearer_auth(token));
        Box::pin(answered(request, name))
    }
}
