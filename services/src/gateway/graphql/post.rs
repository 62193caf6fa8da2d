//! GraphQL over HTTP.
//! In: a POST with one request. Out: the schema's answer; a batch or a request that is too large is refused unread.

use std::sync::{Arc, Mutex, PoisonError};

use async_graphql::parser::parse_query;
use async_graphql::{ErrorExtensionValues, Request, Response, ServerError, Value};
use axum::extract::Request as HttpRequest;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response as HttpResponse};
use tokio::sync::Mutex as Turns;

use super::asking::Asking;
use super::document::{Counted, chosen, count, named_twice};
use super::error::whole;
use super::text::is_deeper;
use super::{ALIASES_MAX, DOCUMENT_BYTES_MAX, Door, NESTING_MAX, expanded, variables};
use crate::gateway::key::{self, IdempotencyKey};
use crate::gateway::problem::{ERRORS_MAX, Kind, POLICY, Problem, shortened};
use crate::gateway::rest::{self, Rest};

/// The answer to a request.
pub(super) async fn answer(door: &Door, request: HttpRequest) -> HttpResponse {
    match asked(&door.rest, request).await {
        Ok((request, asking)) => {
            let asking = Arc::new(asking);
            let schema = if asking.about_itself { &door.about } else { &door.schema };
            let response = schema.execute(request.data(Arc::clone(&asking))).await;
            let replayed = std::mem::take(&mut *asking.replayed.lock().unwrap_or_else(PoisonError::into_inner));
            rendered(response, replayed, asking.mutations)
        }
        Err(problem) => refused(&problem),
    }
}

/// The request, if it may run. The caller is known before its body is read.
async fn asked(rest: &Rest, request: HttpRequest) -> Result<(Request, Asking), Problem> {
    let authorization = request.headers().get_all(header::AUTHORIZATION).iter().map(HeaderValue::as_bytes);
    let caller = rest.auth.caller(authorization)?;
    let values = request.headers().get_all(key::HEADER).iter().map(HeaderValue::as_bytes);
    let key = IdempotencyKey::of_header(values, rest.front.settings().lenient_keys)?;
    let headers = rest::taken_along(request.headers());
    let body = rest::body(request).await?;
    if body.is_array() {
        return Err(Problem::at("", "a batch is not answered: send each request by itself"));
    }
    let mut request: Request = serde_json::from_value(body)
        .map_err(|error| Problem::at("", format!("the body is not a GraphQL request: {error}")))?;
    let Counted { mutations, aliases, about_itself } = counted(&mut request)?;
    if aliases > ALIASES_MAX {
        return Err(Problem::at("/query", format!("the document has {aliases} aliases, at most {ALIASES_MAX} may be")));
    }
    if key.is_some() && mutations > 1 {
        let detail = "the header Idempotency-Key is for one mutation: give each of several its idempotencyKey";
        return Err(Problem::new(Kind::KeyMalformed, detail));
    }
    let (front, replayed) = (Arc::clone(&rest.front), Mutex::default());
    let left = Turns::new(front.settings().answer_bytes_max);
    Ok((request, Asking { front, caller, key, headers, mutations, about_itself, replayed, left }))
}

/// Checks the whole of a request before any part of it runs, at a cost that its bytes bound.
fn counted(request: &mut Request) -> Result<Counted, Problem> {
    let bytes = request.query.len();
    if bytes > DOCUMENT_BYTES_MAX {
        let detail =
            format!("the document has {bytes} bytes, at most {DOCUMENT_BYTES_MAX} may be; give values as variables");
        return Err(Problem::at("/query", detail));
    }
    if is_deeper(&request.query, NESTING_MAX) {
        return Err(Problem::at("/query", format!("the document is nested deeper than {NESTING_MAX}")));
    }
    if let Some(member) = named_twice(&request.query) {
        return Err(Problem::at(
            "/query",
            format!("{member:?} stands twice in one object, or in one field's arguments"),
        ));
    }
    let document = parse_query(&request.query).map_err(|error| Problem::at("/query", error.to_string()))?;
    expanded::check(&document)?;
    variables::check(&request.query, &request.variables)?;
    let name = request.operation_name.as_deref();
    if let Some(operation) = chosen(&document, name) {
        variables::fill(&operation.node, &mut request.variables);
        variables::decided(&document, operation, &request.variables)?;
    }
    let counted = count(&document, name);
    request.set_parsed_query(document);
    Ok(counted)
}

/// The response as HTTP has it: 200 as soon as any part of it ran.
fn rendered(mut response: Response, replayed: Vec<String>, mutations: usize) -> HttpResponse {
    // An error of a field has a path: that field was run.
    let ran = response.data != Value::Null || response.errors.iter().any(|error| !error.path.is_empty());
    response.errors.truncate(ERRORS_MAX);
    response.errors.iter_mut().for_each(classified);
    let mut headers = HeaderMap::new();
    if !replayed.is_empty() {
        if mutations == 1 {
            headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
        }
        let fields = replayed.into_iter().map(Value::from).collect();
        response.extensions.insert("replayed".to_owned(), Value::List(fields));
    }
    let status = if ran { StatusCode::OK } else { StatusCode::BAD_REQUEST };
    (status, headers, axum::Json(response)).into_response()
}

/// Classifies an error: the schema's own complaints are the document's fault.
fn classified(error: &mut ServerError) {
    error.message = shortened(std::mem::take(&mut error.message));
    error.locations.truncate(ERRORS_MAX);
    let extensions = error.extensions.get_or_insert_with(ErrorExtensionValues::default);
    if extensions.get("code").is_none() {
        extensions.set("code", Kind::Malformed.code());
        extensions.set("status", i32::from(Kind::Malformed.status()));
        extensions.set("describedBy", POLICY);
    }
}

/// The answer to a request of which no part ran.
fn refused(problem: &Problem) -> HttpResponse {
    let status = StatusCode::from_u16(problem.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers: HeaderMap = rest::wanted(problem.kind).into_iter().collect();
    (status, headers, axum::Json(Response::from_errors(vec![whole(problem)]))).into_response()
}
