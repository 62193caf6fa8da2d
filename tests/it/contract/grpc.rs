//! The gRPC door.

use std::collections::HashMap;
use std::time::Duration;

use budget_manager::gateway::grpc::proto;
use futures_util::future::BoxFuture;
use proto::checkouts_client::CheckoutsClient;
use proto::expenses_client::ExpensesClient;
use proto::orders_client::OrdersClient;
use proto::payments_client::PaymentsClient;
use proto::transactions_client::TransactionsClient;
use serde_json::{Value, json};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::{Answered, Door, Sent};

/// The gRPC listener of a process. Its messages are REST's JSON as the proto file has it.
pub(crate) struct GrpcDoor(Channel);

impl GrpcDoor {
    pub(crate) fn new(base: &str) -> Self {
        Self(Channel::from_shared(base.to_owned()).unwrap().connect_lazy())
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

/// Metadata of a call; `None` if no client's library would send such a key.
fn metadata(keys: &[Vec<u8>], token: Option<&str>) -> Option<MetadataMap> {
    let mut metadata = MetadataMap::new();
    for key in keys {
        metadata.append("idempotency-key", MetadataValue::try_from(key.as_slice()).ok()?);
    }
    token.iter().for_each(|token| drop(metadata.insert("authorization", format!("Bearer {token}").parse().unwrap())));
    Some(metadata)
}

fn answered(ended: Result<(MetadataMap, Value), Status>) -> Answered {
    match ended {
        Ok((metadata, message)) => {
            let place = metadata.get("location").map(|place| place.to_str().unwrap());
            let replayed = metadata.contains_key("idempotent-replayed");
            Answered { bytes: format!("{place:?} {message}").into(), replayed, ..Answered::default() }
        }
        Err(status) => of_status(&status),
    }
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

fn of_status(status: &Status) -> Answered {
    let details = <RpcStatus as prost::Message>::decode(status.details()).unwrap_or_default().details;
    let detail = |kind: &str| details.iter().find(|detail| detail.kind.ends_with(kind));
    let info = detail("google.rpc.ErrorInfo");
    let info = info.map(|detail| <ErrorInfo as prost::Message>::decode(&detail.value[..]).unwrap());
    let Some(info) = info else {
        // Nothing that the process said: the message could not be made, or did not arrive.
        let code = if status.code() == Code::InvalidArgument { "malformed".to_owned() } else { format!("{status}") };
        return Answered { code, ..Answered::default() };
    };
    assert!(!info.about["status"].is_empty(), "{info:?}");
    let help = detail("google.rpc.Help").map(|help| String::from_utf8_lossy(&help.value).into_owned());
    let pushback = status.metadata().get("grpc-retry-pushback-ms").and_then(|value| value.to_str().ok());
    let mut bytes = format!("{} {} ", status.code(), status.message()).into_bytes();
    bytes.extend_from_slice(status.details());
    Answered {
        code: info.reason,
        bytes,
        replayed: status.metadata().contains_key("idempotent-replayed"),
        retry_after: pushback.map(|pause| Duration::from_millis(pause.parse().unwrap()).as_secs_f64()),
        documented: help.is_some_and(|help| help.contains("/.well-known/idempotency")),
    }
}

async fn found(
    channel: Channel,
    entity: &str,
    id: &str,
    metadata: MetadataMap,
) -> Result<(MetadataMap, Value), Status> {
    match entity {
        "account" => call!(TransactionsClient, get_account, channel, json!({ "account": id }), metadata),
        "transaction" => call!(TransactionsClient, get_transaction, channel, json!({ "id": id }), metadata),
        "payment" => call!(PaymentsClient, get_payment, channel, json!({ "id": id }), metadata),
        other => panic!("no method for {other}"),
    }
}

impl Door for GrpcDoor {
    fn send(&self, sent: Sent) -> BoxFuture<'_, Answered> {
        Box::pin(async move {
            let Some(metadata) = metadata(&sent.keys.0, sent.token.as_deref()) else {
                return Answered { code: "key_malformed".to_owned(), ..Answered::default() };
            };
            let mut message = if sent.body.is_null() { json!({}) } else { sent.body };
            if let Some(target) = sent.target {
                message["id"] = target.into();
            }
            answered(called(self.0.clone(), sent.operation, message, metadata).await)
        })
    }

    /// A message is not text.
    fn send_text<'a>(&'a self, _: Sent, _: &'a str) -> Option<BoxFuture<'a, Answered>> {
        None
    }

    fn one<'a>(&'a self, entity: &'a str, id: &'a str, token: Option<&'a str>) -> BoxFuture<'a, Answered> {
        let metadata = metadata(&[], token).unwrap_or_default();
        Box::pin(async move { answered(found(self.0.clone(), entity, id, metadata).await) })
    }
}
