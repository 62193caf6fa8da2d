//! A request on its way through a document: its caller and its keys.
//! In: a field with its arguments. Out: an answer, or the problem as an error.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_graphql::{Context, Error, SelectionField};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::Mutex as Turns;

use super::error::error;
use crate::gateway::auth::Caller;
use crate::gateway::front::{Asked, Front};
use crate::gateway::key::IdempotencyKey;
use crate::gateway::operations::{Entity, operation};
use crate::gateway::problem::{Kind, Problem};
use crate::gateway::typed::{self, typed, typed_page, typed_reply, untyped};

/// The state that all fields of a request share.
pub(super) struct Asking {
    /// The layer that it asks.
    pub(super) front: Arc<Front>,
    /// The caller.
    pub(super) caller: Caller,
    /// The key of the header.
    pub(super) key: Option<IdempotencyKey>,
    /// Headers that are copied to each call.
    pub(super) headers: Vec<(String, String)>,
    /// The number of mutations in the document.
    pub(super) mutations: usize,
    /// True if it asks about the schema alone.
    pub(super) about_itself: bool,
    /// The fields whose answer was given before.
    pub(super) replayed: Mutex<Vec<String>>,
    /// The bytes that the answer may still have. Reads take turns: none begins before the rest left by earlier ones is
    /// known.
    pub(super) left: Turns<usize>,
}

/// Runs a mutation: the operation of this name.
pub(super) async fn told<T: DeserializeOwned>(
    ctx: &Context<'_>,
    name: &'static str,
    input: Input<'_, impl Serialize + Sync>,
) -> Result<Option<T>, Error> {
    asking(ctx)?.tell(ctx.item.node.response_key().node.as_str(), name, input).await.map_err(|problem| error(&problem))
}

/// An entity by its id.
pub(super) async fn one<T: DeserializeOwned>(ctx: &Context<'_>, entity: Entity, id: &str) -> Result<Option<T>, Error> {
    asking(ctx)?.one(entity, id, repeats(ctx)).await.map_err(|problem| error(&problem))
}

/// A page of an account's entities.
pub(super) async fn page<T: DeserializeOwned>(
    ctx: &Context<'_>,
    entity: Entity,
    asked: PageOf,
) -> Result<Option<T>, Error> {
    asking(ctx)?.page(entity, asked, repeats(ctx)).await.map_err(|problem| error(&problem))
}

/// The input of a mutation.
pub(super) struct Input<'a, I> {
    /// The id that the path would have.
    pub(super) id: Option<&'a str>,
    /// The members that the body would have.
    pub(super) body: I,
    /// Its own key.
    pub(super) key: Option<String>,
}

/// The page that is asked for.
pub(super) struct PageOf {
    /// The account.
    pub(super) account: String,
    /// The cursor at which the page before ended.
    pub(super) after: Option<String>,
    /// The number of items.
    pub(super) limit: Option<u32>,
}

fn asking<'a>(ctx: &Context<'a>) -> Result<&'a Arc<Asking>, Error> {
    ctx.data::<Arc<Asking>>()
}

/// The most times that the answer repeats one field: once for each of its aliases.
fn repeats(ctx: &Context<'_>) -> usize {
    fn count<'a>(field: SelectionField<'a>, times: &mut HashMap<&'a str, usize>) {
        for inner in field.selection_set() {
            *times.entry(inner.name()).or_default() += 1;
            count(inner, times);
        }
    }
    let mut times = HashMap::new();
    count(ctx.field(), &mut times);
    times.into_values().max().unwrap_or(1)
}

/// The number of bytes that the answer takes.
fn said(value: &[Value]) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |json| json.len())
}

impl Asking {
    async fn tell<T: DeserializeOwned>(
        &self,
        field: &str,
        name: &'static str,
        input: Input<'_, impl Serialize>,
    ) -> Result<Option<T>, Problem> {
        let operation =
            operation(name).ok_or_else(|| Problem::new(Kind::Internal, format!("there is no operation {name}")))?;
        let key = key(input.key.as_deref(), self.key.as_ref(), self.mutations)?;
        let (_, body) = untyped(operation, &input.body)?;
        let target = input.id.map(str::to_owned);
        let asked = Asked { key, target, body, headers: self.headers.clone() };
        let told = self.front.command(&self.caller, operation, asked).await;
        if told.as_ref().map_or_else(|problem| problem.replayed, |reply| reply.replayed) {
            self.replayed.lock().unwrap_or_else(PoisonError::into_inner).push(field.to_owned());
        }
        let reply = told?;
        typed_reply(operation.entity, &reply).map(Some)
    }

    async fn one<T: DeserializeOwned>(&self, entity: Entity, id: &str, repeats: usize) -> Result<Option<T>, Problem> {
        let mut left = self.left.lock().await;
        self.room(*left)?;
        let found = self.front.one(&self.caller, entity, id).await?;
        *left = left.saturating_sub(said(std::slice::from_ref(&found)).saturating_mul(repeats));
        typed(entity, found, Some(id)).map(Some)
    }

    async fn page<T: DeserializeOwned>(
        &self,
        entity: Entity,
        asked: PageOf,
        repeats: usize,
    ) -> Result<Option<T>, Problem> {
        let PageOf { account, after, limit } = asked;
        let mut left = self.left.lock().await;
        self.room(*left)?;
        let (limit, bytes) = (typed::limit(limit), *left / repeats);
        let page = self.front.page(&self.caller, entity, &account, after.as_deref(), limit, bytes).await?;
        *left = left.saturating_sub(said(&page.items).saturating_mul(repeats));
        typed_page(entity, page).map(Some)
    }

    /// Refuses a read once the answer has all the bytes that it may have.
    fn room(&self, left: usize) -> Result<(), Problem> {
        if left > 0 {
            return Ok(());
        }
        let most = self.front.settings().answer_bytes_max;
        let detail =
            format!("the answer has {most} bytes before this (gateway.answer_bytes_max): ask for it by itself");
        Err(Problem::new(Kind::TooLarge, detail))
    }
}

/// The key of a mutation: its own, or the header's if it is the only mutation.
fn key(
    own: Option<&str>,
    header: Option<&IdempotencyKey>,
    mutations: usize,
) -> Result<Option<IdempotencyKey>, Problem> {
    let own = own.map(IdempotencyKey::new).transpose()?;
    match (own, header) {
        (Some(own), Some(header)) if own != *header => Err(Problem::new(
            Kind::KeyMalformed,
            "idempotencyKey and the header Idempotency-Key differ: give one of them",
        )),
        (None, None) if mutations > 1 => Err(Problem::new(
            Kind::KeyMissing,
            "each of several mutations in one document needs a key of its own: give it idempotencyKey",
        )),
        (own, header) => Ok(own.or_else(|| header.cloned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutation_has_its_own_key_or_the_headers() {
        let (one, other) = (IdempotencyKey::new("one").unwrap(), IdempotencyKey::new("other").unwrap());
        assert_eq!(key(None, None, 1), Ok(None));
        assert_eq!(key(None, Some(&one), 1), Ok(Some(one.clone())));
        assert_eq!(key(Some("one"), Some(&one), 1), Ok(Some(one.clone())));
        assert_eq!(key(Some("one"), None, 2), Ok(Some(one)));
        assert_eq!(key(Some("one"), Some(&other), 1).unwrap_err().kind, Kind::KeyMalformed);
        assert_eq!(key(None, None, 2).unwrap_err().kind, Kind::KeyMissing);
        assert_eq!(key(Some(""), None, 1).unwrap_err().kind, Kind::KeyMalformed);
    }
}
