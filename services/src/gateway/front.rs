//! The one layer that every command passes, whatever the protocol: it checks the caller and the key, and calls once.
//! In: a caller, an operation, its request. Out: a reply, the same for each repeat; or a problem, the same as well.

mod limit;
mod read;
mod scope;
pub mod tenant;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use perkey::unstable::clock::Clock;
use perkey::unstable::engine::calls::{Call, CallAnswer, CallError, Calls};
use perkey::unstable::message::ShardNo;
use perkey::unstable::metrics::{CallWord, Metrics, OperationMetrics};
use perkey::unstable::settings::GatewaySettings;
use perkey::unstable::store::Store;
use perkey::unstable::store::calls::{CallEnd, CallOutcome};
use perkey::{Handlers, Settings, Table};
use serde_json::Value;
use tracing::{debug, warn};

use self::limit::Limits;
pub use self::read::{PAGE, PAGE_MAX};
use self::tenant::Names;
use super::auth::{Caller, Role};
use super::key::IdempotencyKey;
use super::operations::{OPERATIONS, Operation, Request, checked};
use super::problem::{Kind, Problem};
use crate::defaults::{self, Lack};

/// The pause before a client whose request still runs asks again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The pause before a client for which there was no room asks again.
const COME_BACK: Duration = Duration::from_secs(2);

/// Headers, and metadata, that are copied to a message.
pub(super) const TAKEN_ALONG: [&str; 2] = ["traceparent", "tracestate"];

/// A request.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The client's key.
    pub key: Option<IdempotencyKey>,
    /// `{id}` of the path.
    pub target: Option<String>,
    /// The body, as [`super::json::parse`] has read it.
    pub body: Value,
    /// `traceparent` and `tracestate`; others are dropped.
    pub headers: Vec<(String, String)>,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// True if something was made: 201.
    pub created: bool,
    /// The id of the entity that was made, or that the operation is about.
    pub id: Option<String>,
    /// The entity's address.
    pub location: Option<String>,
    /// JSON; the same bytes for each repeat.
    pub body: Bytes,
    /// True if it was answered before, under the same key.
    pub replayed: bool,
}

/// A page of items.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// As many items as were asked for, or all that there are.
    pub items: Vec<Value>,
    /// The cursor of the next page; `None` on the last one.
    pub next: Option<String>,
}

/// The layer.
pub struct Front {
    settings: GatewaySettings,
    shards: ShardNo,
    tables: Vec<Table>,
    store: Arc<dyn Store>,
    calls: Arc<Calls>,
    limits: Limits,
    /// The handles of each operation, by its name.
    counts: HashMap<&'static str, OperationMetrics>,
    lacks: Vec<Lack>,
    clock: Clock,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Front {
    /// A layer in front of these calls.
    pub fn new(
        settings: &Settings,
        handlers: &Handlers,
        store: Arc<dyn Store>,
        calls: Arc<Calls>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let names = OPERATIONS.iter().map(|operation| operation.name);
        Arc::new(Self {
            settings: settings.gateway.clone(),
            shards: settings.ownership.shards,
            tables: handlers.tables(),
            store,
            calls,
            limits: Limits::new(settings.gateway.rate),
            counts: names.map(|name| (name, metrics.operation(name))).collect(),
            lacks: defaults::lacks(settings),
            clock: Clock::system(),
        })
    }

    /// The settings.
    pub fn settings(&self) -> &GatewaySettings {
        &self.settings
    }

    /// The tables that entities are read from.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// The key under which a request runs: the client's, or a new one if the operation does not require the client's
    /// own.
    pub fn key(&self, operation: &Operation, given: Option<IdempotencyKey>) -> Result<IdempotencyKey, Problem> {
        match given {
            Some(key) => Ok(key),
            None if self.settings.require_key.iter().any(|name| name == operation.name) => {
                let name = operation.name;
                Err(Problem::new(Kind::KeyMissing, format!("{name} needs an Idempotency-Key of the client's own")))
            }
            None => IdempotencyKey::minted(),
        }
    }

    /// Makes a call, or returns its earlier outcome.
    pub async fn command(
        &self,
        caller: &Caller,
        operation: &'static Operation,
        request: Asked,
    ) -> Result<Reply, Problem> {
        self.admit(caller, Role::Write)?;
        let key = self.key(operation, request.key.clone())?;
        let names = Names::of(&caller.tenant);
        let call = self.call_of(caller, operation, &key, request, &names)?;
        let id = call.id;
        if let Some(lack) = self.lacks.iter().find(|lack| lack.services.contains(&operation.service)) {
            // A request that was answered before is answered so again.
            if !self.calls.is_known(id).await.map_err(|error| not_accepted(&error))? {
                return Err(Problem::new(Kind::NotConfigured, lack.what));
            }
        }
        let answer = self.calls.call(call, self.settings.wait).await.map_err(|error| not_accepted(&error))?;
        if let Some(counts) = self.counts.get(operation.name) {
            counts.record(CallWord::from(&answer));
        }
        debug!(call = %id, operation = operation.name, "a call was answered");
        match answer {
            CallAnswer::New(outcome) => told(operation, &names, outcome, false),
            CallAnswer::Replay(outcome) => told(operation, &names, outcome, true),
            CallAnswer::InFlight => {
                Err(Problem::new(Kind::InFlight, "the same request still runs: ask again with the same key")
                    .retry_after(ASK_AGAIN))
            }
            CallAnswer::Mismatch => {
                let detail = "the key was used for a request that asked for something else; nothing was changed";
                Err(Problem::new(Kind::Mismatch, detail))
            }
        }
    }

    /// Checks that the caller may make the request, and that there is room for it.
    fn admit(&self, caller: &Caller, role: Role) -> Result<(), Problem> {
        caller.check(role)?;
        self.limits.take(&caller.tenant, self.clock.now()).map_err(|pause| {
            let rate = self.settings.rate;
            Problem::new(Kind::RateLimited, format!("the tenant may send {rate} requests a second")).retry_after(pause)
        })
    }

    fn call_of(
        &self,
        caller: &Caller,
        operation: &'static Operation,
        key: &IdempotencyKey,
        request: Asked,
        names: &Names,
    ) -> Result<Call, Problem> {
        let Asked { target, body, headers, .. } = request;
        let body = checked(operation.members, body)?;
        let fingerprint = scope::fingerprint(operation, target.as_deref(), &Value::Object(body.clone()))?;
        let id = scope::id(caller, operation, key);
        let body = names.store(operation.members, body)?;
        let target = match target {
            Some(name) => {
                let stored = names.stored(&name);
                Some(stored.ok_or_else(|| Problem::new(Kind::NotFound, format!("{name:?}: {}", names.unfit(&name))))?)
            }
            None => None,
        };
        let made = names.stored(&scope::made(id).to_string()).unwrap_or_default();
        let now = self.clock.now();
        let request = Request { body: &body, target: target.as_deref(), id: &made, now };
        let payload = (operation.message)(&request)?.to_string().into_bytes();
        let headers = headers.into_iter().filter(|(name, _)| TAKEN_ALONG.contains(&name.as_str())).collect();
        Ok(Call { id, fingerprint, tenant: caller.tenant.clone(), service: operation.service, payload, headers })
    }
}

/// The problem for the sender of a call that was not accepted: without anything that only the log should have.
fn not_accepted(error: &CallError) -> Problem {
    match error {
        CallError::Malformed(why) => Problem::new(Kind::Malformed, why),
        CallError::Full => Problem::new(Kind::Overloaded, "too many requests wait: nothing was stored under the key")
            .retry_after(COME_BACK),
        CallError::TooManyKeys(count) => {
            Problem::new(Kind::TooManyKeys, format!("the tenant has {count} keys, the most that it may have"))
                .retry_after(Duration::from_secs(60))
        }
        CallError::Store(error) => {
            warn!(%error, "a call could not be made");
            Problem::new(Kind::Unavailable, "the store does not answer: ask again with the same key")
                .retry_after(COME_BACK)
        }
    }
}

/// The outcome of a call as it is answered; the same again for each repeat.
fn told(operation: &Operation, names: &Names, outcome: CallOutcome, replayed: bool) -> Result<Reply, Problem> {
    let text = || names.say(&String::from_utf8_lossy(&outcome.body));
    let problem = match outcome.end {
        CallEnd::Done => match done(operation, names, &outcome.body, replayed) {
            Ok(reply) => return Ok(reply),
            Err(problem) => problem,
        },
        CallEnd::Refused => Problem::new(Kind::of_refusal(&outcome.code), text()),
        CallEnd::Failed => {
            debug!(reason = text(), "a call has failed");
            let detail = "the request was tried as often as it may be, and had no effect in the store; what it asked of \
                          others, such as the payment provider, may have happened";
            Problem::new(Kind::Failed, detail)
        }
    };
    Err(Problem { replayed, ..problem })
}

fn done(operation: &Operation, names: &Names, body: &Bytes, replayed: bool) -> Result<Reply, Problem> {
    let mut value: Value = serde_json::from_slice(body).unwrap_or_default();
    names.show(&mut value);
    if let Some(problem) = (operation.verdict)(&value) {
        return Err(problem);
    }
    let id = value.get(operation.entity.id_member()).and_then(Value::as_str).map(str::to_owned);
    let place = id.as_deref().filter(|_| operation.creates);
    let location = place.map(|id| format!("{}/{}", operation.entity.path(), escaped(id)));
    let body = if names.are_plain() { body.clone() } else { value.to_string().into() };
    Ok(Reply { created: operation.creates, id, location, body, replayed })
}

/// An id as a part of a path.
fn escaped(id: &str) -> String {
    let mut path = String::with_capacity(id.len());
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::gateway::operations::operation;

    fn outcome(end: CallEnd, code: &str, body: &str) -> CallOutcome {
        CallOutcome { end, code: code.to_owned(), body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    #[test]
    fn an_end_is_told_the_same_each_time() {
        let post = operation("transactions.post").unwrap();
        let names = Names::of("default");
        let body = r#"{"id":"a/1","account":"x","amount":5,"balance":5,"n":1}"#;
        for replayed in [false, true] {
            let reply = told(post, &names, outcome(CallEnd::Done, "", body), replayed).unwrap();
            assert_eq!((reply.created, &reply.body[..], reply.replayed), (true, body.as_bytes(), replayed));
            assert_eq!(reply.location.as_deref(), Some("/api/transactions/a%2F1"));
            let refused = told(post, &names, outcome(CallEnd::Refused, "already_exists", "it is there"), replayed);
            let refused = refused.unwrap_err();
            assert_eq!(
                (refused.kind, refused.detail.as_str(), refused.replayed),
                (Kind::AlreadyExists, "it is there", replayed)
            );
            let failed = told(post, &names, outcome(CallEnd::Failed, "", "SELECT secret"), replayed).unwrap_err();
            assert!(failed.kind == Kind::Failed && !failed.detail.contains("SELECT"), "{failed:?}");
        }
        let charge = operation("payments.charge").unwrap();
        let declined = outcome(CallEnd::Done, "", r#"{"order_id":"o","status":"declined","reason":"no"}"#);
        let declined = told(charge, &names, declined, true).unwrap_err();
        assert_eq!((declined.kind, declined.replayed), (Kind::Declined, true));
    }

    #[test]
    fn a_tenant_hears_its_own_names() {
        let place = operation("orders.place").unwrap();
        let names = Names::of("acme");
        let body = json!({ "id": "@acme/o", "account": "@acme/a", "status": "placed" }).to_string();
        let reply = told(place, &names, outcome(CallEnd::Done, "", &body), false).unwrap();
        assert_eq!((reply.id.as_deref(), reply.location.as_deref()), (Some("o"), Some("/api/orders/o")));
        assert!(!String::from_utf8_lossy(&reply.body).contains('@'));
        let refused = told(place, &names, outcome(CallEnd::Refused, "x", "order @acme/o is there"), false).unwrap_err();
        assert_eq!((refused.kind, refused.detail.as_str()), (Kind::Rejected, "order o is there"));
    }
}
