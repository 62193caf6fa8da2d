//! REST: every operation at its path, every entity by id and by account, and the documents that describe them.
//! In: HTTP requests. Out: JSON, or RFC 9457 problem details.

mod answer;
mod documents;
mod guard;
mod media;
pub mod openapi;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request};
use axum::http::{HeaderMap, Method, header};
use axum::response::Response;
use axum::routing::{MethodFilter, get, on};
use axum::{RequestExt, middleware};
use http_body_util::BodyExt;
use perkey::unstable::metrics::Metrics;
use serde_json::{Value, json};

use self::answer::Echo;
pub use self::answer::wanted;
use self::guard::Guard;
pub use self::guard::from_elsewhere;
use super::auth::{Auth, Caller, Role};
use super::front::{Asked, Front, PAGE, TAKEN_ALONG};
use super::json;
use super::key::{self, IdempotencyKey};
use super::operations::{Entity, OPERATIONS, Operation};
use super::problem::{Kind, Problem};
use super::server::BodyError;

/// The state that every route has.
#[derive(Clone, Debug)]
pub struct Rest {
    /// The layer behind all protocols.
    pub front: Arc<Front>,
    /// Authentication and roles.
    pub auth: Arc<Auth>,
    /// The metrics that count outcomes.
    pub metrics: Arc<Metrics>,
}

/// The routes of REST; others may be merged with them before [`guarded`].
pub fn routes(rest: &Rest) -> Router {
    let mut router = Router::new();
    for operation in OPERATIONS {
        let rest = rest.clone();
        let handler = move |request: Request| {
            let rest = rest.clone();
            async move { rest.command(operation, request).await }
        };
        router = router.route(operation.path, on(method(operation), handler));
    }
    for entity in Entity::ALL {
        let one = rest.clone();
        let one = get(move |request: Request| {
            let rest = one.clone();
            async move { rest.answer(request, async |rest, request| rest.one(entity, request).await).await }
        });
        router = router.route(&format!("{}/{{id}}", entity.path()), one);
        let many = rest.clone();
        let many = get(move |request: Request| {
            let rest = many.clone();
            async move { rest.answer(request, async |rest, request| rest.page(entity, request).await).await }
        });
        if entity.table().is_some() {
            router = router.route(entity.path(), many);
        }
    }
    router
        .merge(documents::routes(rest))
        .fallback(documents::not_found)
        .method_not_allowed_fallback(documents::no_method)
}

/// The templates of [`routes`].
pub fn templates() -> Vec<String> {
    let operations = OPERATIONS.iter().map(|operation| operation.path.to_owned());
    let one = Entity::ALL.iter().map(|entity| format!("{}/{{id}}", entity.path()));
    let many = Entity::ALL.iter().filter(|entity| entity.table().is_some()).map(|entity| entity.path().to_owned());
    operations.chain(one).chain(many).chain(documents::TEMPLATES.map(str::to_owned)).collect()
}

/// Routes behind the rules for all of them: time limits, a check of the request's host, a count of outcomes by these
/// templates.
pub fn guarded(rest: &Rest, routes: Router, templates: Vec<String>) -> Router {
    routes.layer(middleware::from_fn_with_state(Guard::of(rest, templates), guard::guard))
}

fn method(operation: &Operation) -> MethodFilter {
    match operation.method {
        "PATCH" => MethodFilter::PATCH,
        "PUT" => MethodFilter::PUT,
        "DELETE" => MethodFilter::DELETE,
        _ => MethodFilter::POST,
    }
}

impl Rest {
    /// The caller that sends a request with these headers.
    pub fn caller(&self, headers: &HeaderMap, role: Role) -> Result<Caller, Problem> {
        let caller = self.auth.caller(headers.get_all(header::AUTHORIZATION).iter().map(|value| value.as_bytes()))?;
        caller.check(role)?;
        Ok(caller)
    }

    async fn command(&self, operation: &'static Operation, request: Request) -> Response {
        let instance = request.uri().path().to_owned();
        let mut echo = Echo::default();
        match self.made(operation, request, &mut echo).await {
            Ok(response) => response,
            Err(problem) => answer::problem(&problem, &instance, &echo),
        }
    }

    /// The key of a request with these headers, and the form in which its answer repeats it.
    fn key(&self, operation: &Operation, headers: &HeaderMap) -> Result<(IdempotencyKey, Echo), Problem> {
        let values = || headers.get_all(key::HEADER).into_iter();
        let lenient = self.front.settings().lenient_keys;
        let given = IdempotencyKey::of_header(values().map(|value| value.as_bytes()), lenient)?;
        let key = self.front.key(operation, given)?;
        let echo = Echo::of(values().next().cloned(), &key);
        Ok((key, echo))
    }

    async fn made(
        &self,
        operation: &'static Operation,
        mut request: Request,
        echo: &mut Echo,
    ) -> Result<Response, Problem> {
        let caller = self.caller(request.headers(), Role::Write)?;
        let (key, repeated) = self.key(operation, request.headers())?;
        *echo = repeated;
        let target = target(&mut request).await?;
        let headers = taken_along(request.headers());
        let body = body(request).await?;
        let asked = Asked { key: Some(key), target, body, headers };
        let reply = self.front.command(&caller, operation, asked).await?;
        Ok(answer::reply(reply, echo))
    }

    /// Answers a request that changes nothing.
    async fn answer(
        &self,
        request: Request,
        found: impl AsyncFnOnce(&Self, Request) -> Result<Value, Problem>,
    ) -> Response {
        let instance = request.uri().path().to_owned();
        match found(self, request).await {
            Ok(value) => answer::json(&value),
            Err(problem) => answer::problem(&problem, &instance, &Echo::default()),
        }
    }

    async fn one(&self, entity: Entity, mut request: Request) -> Result<Value, Problem> {
        let caller = self.caller(request.headers(), Role::Read)?;
        let id = target(&mut request).await?.unwrap_or_default();
        self.front.one(&caller, entity, &id).await
    }

    async fn page(&self, entity: Entity, request: Request) -> Result<Value, Problem> {
        let caller = self.caller(request.headers(), Role::Read)?;
        let (mut account, mut after, mut limit) = (None, None, PAGE);
        for (name, value) in answer::query(request.uri().query().unwrap_or_default())? {
            match name.as_str() {
                "account" => account = Some(value),
                "after" => after = Some(value),
                "limit" => limit = value.parse().map_err(|_| wrong("limit", &format!("{value:?} is not a number")))?,
                _ => return Err(wrong(&name, "is not known here; there are: account, after, limit")),
            }
        }
        let account = account.ok_or_else(|| wrong("account", "is missing: ?account=NAME"))?;
        let bytes = self.front.settings().answer_bytes_max;
        let page = self.front.page(&caller, entity, &account, after.as_deref(), limit, bytes).await?;
        Ok(json!({ "items": page.items, "next": page.next }))
    }
}

/// The problem of a parameter of the query.
fn wrong(name: &str, detail: &str) -> Problem {
    Problem::new(Kind::Malformed, format!("{name} in the query: {detail}"))
}

/// `{id}` of the path.
async fn target(request: &mut Request) -> Result<Option<String>, Problem> {
    let params = request.extract_parts::<RawPathParams>().await;
    let params = params.map_err(|error: RawPathParamsRejection| Problem::new(Kind::Malformed, error.to_string()))?;
    Ok(params.iter().find(|(name, _)| *name == "id").map(|(_, value)| value.to_owned()))
}

/// The headers that are copied to the call.
pub fn taken_along(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |name: &str| Some((name.to_owned(), headers.get(name)?.to_str().ok()?.to_owned()));
    TAKEN_ALONG.into_iter().filter_map(text).collect()
}

/// The body as JSON. Another content type is refused even if the bytes are JSON: a page of another site could send it.
pub async fn body(request: Request) -> Result<Value, Problem> {
    let headers = request.headers().clone();
    let bytes = read(request.into_body()).await?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    media::check(&headers)?;
    json::parse(media::text(&bytes)?)
}

/// All bytes of a body, within the bounds of the server.
pub async fn read(body: Body) -> Result<bytes::Bytes, Problem> {
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => {
            let error = error.into_inner();
            Err(match error.downcast_ref::<BodyError>() {
                Some(BodyError::TooLarge(_)) => Problem::new(Kind::TooLarge, error.to_string()),
                Some(BodyError::TooSlow(_)) => Problem::new(Kind::TooSlow, error.to_string()),
                _ => Problem::new(Kind::Malformed, "the body did not arrive"),
            })
        }
    }
}

/// Returns whether a request of this method can change something.
fn changes(method: &Method) -> bool {
    !method.is_safe()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_trace_is_taken_along() {
        let mut headers = HeaderMap::new();
        for name in ["traceparent", "tracestate", "baggage", "cookie", "authorization"] {
            headers.insert(name, axum::http::HeaderValue::from_static("x"));
        }
        let taken = taken_along(&headers);
        assert_eq!(taken.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["traceparent", "tracestate"]);
    }
}
