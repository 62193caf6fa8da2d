//! The REST door.

use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::header::HeaderValue;
use reqwest::{Client, RequestBuilder};
use serde_json::Value;

use super::{Answered, Door, Sent};

/// The REST listener of a process.
pub(crate) struct RestDoor {
    pub(crate) base: String,
    pub(crate) client: Client,
}

/// Method and path of an operation.
pub(crate) fn route(operation: &str, target: Option<&str>) -> (reqwest::Method, String) {
    let target = target.unwrap_or_default();
    let (method, path) = match operation {
        "orders.place" => ("POST", "/api/orders".to_owned()),
        "orders.change" => ("PATCH", format!("/api/orders/{target}")),
        "orders.complete" => ("POST", format!("/api/orders/{target}/complete")),
        "orders.cancel" => ("POST", format!("/api/orders/{target}/cancel")),
        "expenses.record" => ("POST", "/api/expenses".to_owned()),
        "expenses.budget" => ("POST", "/api/budgets".to_owned()),
        "transactions.post" => ("POST", "/api/transactions".to_owned()),
        "checkouts.start" => ("POST", "/api/checkouts".to_owned()),
        "payments.charge" => ("POST", "/charge".to_owned()),
        "payments.refund" => ("POST", format!("/charge/{target}/refund")),
        other => panic!("no route for {other}"),
    };
    (method.parse().unwrap(), path)
}

impl RestDoor {
    pub(crate) fn new(base: &str) -> Self {
        let client = Client::builder().timeout(Duration::from_secs(60)).build().unwrap();
        Self { base: base.to_owned(), client }
    }

    fn request(&self, sent: &Sent) -> RequestBuilder {
        let (method, path) = route(sent.operation, sent.target.as_deref());
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        for value in &sent.keys.0 {
            request = request.header("idempotency-key", HeaderValue::from_bytes(value).unwrap());
        }
        if let Some(token) = &sent.token {
            request = request.bearer_auth(token);
        }
        request
    }
}

/// The answer to a request, with the parts that HTTP adds; status and document agree.
async fn answered(request: RequestBuilder) -> Answered {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let mut bytes = format!("{status} {:?}\n", text("location")).into_bytes();
    let body = response.bytes().await.unwrap();
    let document: Value = serde_json::from_slice(&body).unwrap_or_default();
    let mut code = String::new();
    if !status.is_success() {
        assert_eq!(text("content-type").as_deref(), Some("application/problem+json"), "{document}");
        assert_eq!(document["status"], status.as_u16(), "{document}");
        assert!(document["instance"].is_string() && document["title"].is_string(), "{document}");
        document["code"].as_str().unwrap().clone_into(&mut code);
    }
    let link = text("link").unwrap_or_default();
    bytes.extend_from_slice(&body);
    Answered {
        code,
        bytes,
        replayed: text("idempotent-replayed").as_deref() == Some("true"),
        retry_after: text("retry-after").map(|seconds| seconds.parse().unwrap()),
        documented: link.contains("/.well-known/idempotency") && link.contains("describedby"),
    }
}

impl Door for RestDoor {
    fn send(&self, sent: Sent) -> BoxFuture<'_, Answered> {
        let request = self.request(&sent);
        let request = if sent.body.is_null() { request } else { request.json(&sent.body) };
        Box::pin(answered(request))
    }

    fn send_text<'a>(&'a self, sent: Sent, body: &'a str) -> Option<BoxFuture<'a, Answered>> {
        let request = self.request(&sent).header("content-type", "application/json").body(body.to_owned());
        Some(Box::pin(answered(request)))
    }

    fn one<'a>(&'a self, entity: &'a str, id: &'a str, token: Option<&'a str>) -> BoxFuture<'a, Answered> {
        let place = if entity == "payment" { "charge".to_owned() } else { format!("api/{entity}s") };
        let request = self.client.get(format!("{}/{place}/{id}", self.base));
        let request = token.iter().fold(request, |request, token| request.bearer_auth(token));
        Box::pin(answered(request))
    }
}
