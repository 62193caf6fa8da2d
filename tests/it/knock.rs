//! Clients of GraphQL and gRPC that speak REST's JSON, so that one test can go through each door.
//! In: an operation, its key as it is sent, its target and its body. Out: how it ended, in REST's words.

use std::collections::HashMap;
use std::time::Duration;

use budget_manager::gateway::grpc::proto;
use proto::checkouts_client::CheckoutsClient;
use proto::expenses_client::ExpensesClient;
use proto::orders_client::OrdersClient;
use proto::payments_client::PaymentsClient;
use proto::transactions_client::TransactionsClient;
use serde_json::{Value, json};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// How an operation ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Told {
    /// The HTTP status that REST would have; 200 for all that went well.
    pub(crate) status: u16,
    /// The problem's code, if there was one.
    pub(crate) code: Option<String>,
    /// The answer, or the problem's words.
    pub(crate) body: Value,
    /// It was told before.
    pub(crate) replayed: bool,
    /// When to try again.
    pub(crate) retry_after: Option<Duration>,
    /// Where the input is wrong: JSON pointers.
    pub(crate) pointers: Vec<String>,
}

/// What is asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Knock<'a> {
    /// The operation's name.
    pub(crate) operation: &'a str,
    /// The keys as they are sent, one header each.
    pub(crate) keys: &'a [&'a str],
    /// What the path would name.
    pub(crate) target: Option<&'a str>,
    /// The body.
    pub(crate) body: Value,
    /// The token.
    pub(crate) token: Option<&'a str>,
}

/// The mutation of an operation: its name, its input's type if it has one, and what is asked of the answer.
fn mutation(operation: &str) -> (&'static str, Option<&'static str>, &'static str) {
    const ORDER: &str = "id account amount currency at memo status reason";
    const PAYMENT: &str = "order account amount currency status reference reason";
    match operation {
        "orders.place" => ("createOrder", Some("OrderInput"), ORDER),
        "orders.change" => ("changeOrder", Some("OrderChange"), ORDER),
        "orders.complete" => ("completeOrder", None, ORDER),
        "orders.cancel" => ("cancelOrder", None, ORDER),
        "expenses.record" => {
            ("createExpense", Some("ExpenseInput"), "id account category amount currency at memo spent limit")
        }
        "expenses.budget" => ("setBudget", Some("BudgetInput"), "account category limit currency"),
        "transactions.post" => ("createTransaction", Some("TransactionInput"), "id account amount balance n"),
        "checkouts.start" => {
            ("checkout", Some("CheckoutInput"), "id order account amount currency at status reason")
        }
        "payments.charge" => ("charge", Some("ChargeInput"), PAYMENT),
        "payments.refund" => ("refund", None, PAYMENT),
        other => panic!("no mutation for {other}"),
    }
}

/// Asks over GraphQL.
pub(crate) async fn graphql(client: &reqwest::Client, base: &str, knock: &Knock<'_>) -> Told {
    let (name, input, fields) = mutation(knock.operation);
    let (mut declared, mut given) = (Vec::new(), Vec::new());
    let mut variables = json!({});
    if let Some(target) = knock.target {
        declared.push("$id: String!".to_owned());
        given.push("id: $id");
        variables["id"] = target.into();
    }
    match input {
        Some(input) => {
            declared.push(format!("$input: {input}!"));
            given.push("input: $input");
            variables["input"] = knock.body.clone();
        }
        None if knock.body.get("reason").is_some() => {
            declared.push("$reason: String".to_owned());
            given.push("reason: $reason");
            variables["reason"] = knock.body["reason"].clone();
        }
        None => {}
    }
    let list = |parts: String| if parts.is_empty() { parts } else { format!("({parts})") };
    let (declared, given) = (list(declared.join(", ")), list(given.join(", ")));
    let query = format!("mutation{declared} {{ {name}{given} {{ {fields} }} }}");
    let mut request = client.post(format!("{base}/graphql")).json(&json!({ "query": query, "variables": variables }));
    for key in knock.keys {
        request = request.header("Idempotency-Key", *key);
    }
    if let Some(token) = knock.token {
        request = request.bearer_auth(token);
    }
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let told: Value = response.json().await.unwrap();
    match told["errors"].get(0) {
        None => {
            let replayed = told["extensions"]["replayed"] == json!([name]);
            Told { status, body: told["data"][name].clone(), replayed, ..Told::default() }
        }
        Some(error) => of_error(error),
    }
}

fn of_error(error: &Value) -> Told {
    let extensions = &error["extensions"];
    let pointers = extensions["errors"].as_array().into_iter().flatten();
    Told {
        status: extensions["status"].as_u64().and_then(|status| status.try_into().ok()).unwrap_or_default(),
        code: extensions["code"].as_str().map(str::to_owned),
        body: error["message"].clone(),
        replayed: extensions["replayed"] == true,
        retry_after: extensions["retryAfterMs"].as_u64().map(Duration::from_millis),
        pointers: pointers.filter_map(|error| error["pointer"].as_str()).map(str::to_owned).collect(),
    }
}

/// A call of one of the methods, message and answer as JSON.
macro_rules! call {
    ($client:ident, $method:ident, $channel:expr, $message:expr, $metadata:expr) => {{
        let mut request = Request::new(serde_json::from_value($message).map_err(|error| unfit(&error))?);
        *request.metadata_mut() = $metadata;
        let answer = $client::new($channel).$method(request).await?;
        let (metadata, message, _) = answer.into_parts();
        Ok((metadata, serde_json::to_value(message).unwrap()))
    }};
}

/// Asks over gRPC. What a message cannot say, such as an amount in words, is refused here as a client's library would.
pub(crate) async fn grpc(channel: &Channel, knock: &Knock<'_>) -> Told {
    let mut metadata = MetadataMap::new();
    for key in knock.keys {
        let Ok(key) = MetadataValue::try_from(key.as_bytes()) else { return unsent("key_malformed") };
        metadata.append("idempotency-key", key);
    }
    if let Some(token) = knock.token {
        metadata.insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let mut message = knock.body.clone();
    if message.is_null() {
        message = json!({});
    }
    if let Some(target) = knock.target {
        message["id"] = target.into();
    }
    match called(channel.clone(), knock.operation, message, metadata).await {
        Ok((metadata, body)) => {
            let replayed = metadata.contains_key("idempotent-replayed");
            Told { status: 200, body, replayed, ..Told::default() }
        }
        Err(status) => of_status(&status),
    }
}

async fn called(
    channel: Channel,
    operation: &str,
    message: Value,
    metadata: MetadataMap,
) -> Result<(MetadataMap, Value), Status> {
    match operation {
        "orders.place" => call!(OrdersClient, place_order, channel, message, metadata),
        "orders.change" => call!(OrdersClient, change_order, channel, message, metadata),
        "orders.complete" => call!(OrdersClient, complete_order, channel, message, metadata),
        "orders.cancel" => call!(OrdersClient, cancel_order, channel, message, metadata),
        "expenses.record" => call!(ExpensesClient, record_expense, channel, message, metadata),
        "expenses.budget" => call!(ExpensesClient, set_budget, channel, message, metadata),
        "transactions.post" => call!(TransactionsClient, post_transaction, channel, message, metadata),
        "checkouts.start" => call!(CheckoutsClient, start_checkout, channel, message, metadata),
        "payments.charge" => call!(PaymentsClient, charge, channel, message, metadata),
        "payments.refund" => call!(PaymentsClient, refund, channel, message, metadata),
        other => panic!("no method for {other}"),
    }
}

fn unfit(error: &serde_json::Error) -> Status {
    Status::invalid_argument(format!("the message cannot say this: {error}"))
}

fn unsent(code: &str) -> Told {
    Told { status: 400, code: Some(code.to_owned()), ..Told::default() }
}

/// `google.rpc.Status`, as `grpc-status-details-bin` has it.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Detail>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Detail {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(map = "string, string", tag = "3")]
    about: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BadRequest {
    #[prost(message, repeated, tag = "1")]
    violations: Vec<Violation>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Violation {
    #[prost(string, tag = "1")]
    field: String,
}

fn of_status(status: &Status) -> Told {
    let details = <RpcStatus as prost::Message>::decode(status.details()).unwrap_or_default().details;
    let detail = |kind: &str| details.iter().find(|detail| detail.kind.ends_with(kind));
    let info = detail("google.rpc.ErrorInfo");
    let info = info.map(|detail| <ErrorInfo as prost::Message>::decode(&detail.value[..]).unwrap());
    let Some(info) = info else {
        // Nothing of ours: the client's own library, or the transport.
        return Told { body: status.to_string().into(), ..unsent("malformed") };
    };
    let wrong = detail("google.rpc.BadRequest");
    let wrong = wrong.map(|detail| <BadRequest as prost::Message>::decode(&detail.value[..]).unwrap());
    let pushback = status.metadata().get("grpc-retry-pushback-ms").and_then(|value| value.to_str().ok());
    Told {
        status: info.about["status"].parse().unwrap(),
        code: Some(info.reason),
        body: status.message().into(),
        replayed: status.metadata().contains_key("idempotent-replayed"),
        retry_after: pushback.map(|pause| Duration::from_millis(pause.parse().unwrap())),
        pointers: wrong.into_iter().flat_map(|wrong| wrong.violations).map(|at| format!("/{}", at.field)).collect(),
    }
}
