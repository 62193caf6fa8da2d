//! The work of every gRPC method, once.
//! In: a request of any type with its metadata. Out: an answer of any type, or a status.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Request, Response, Status};

use super::proto::ListRequest;
use super::status::{REPLAYED, status};
use crate::gateway::auth::{Auth, Caller};
use crate::gateway::front::{Asked, Front, TAKEN_ALONG};
use crate::gateway::key::{self, IdempotencyKey};
use crate::gateway::operations::{Entity, operation};
use crate::gateway::problem::{Kind, Problem};
use crate::gateway::typed::{self, typed, typed_page, typed_reply, untyped};

/// Answers calls of all services.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    /// The layer that it asks.
    pub(super) front: Arc<Front>,
    /// The tokens that identify callers.
    pub(super) auth: Arc<Auth>,
}

impl Calls {
    /// Runs the operation of this name.
    pub(super) async fn command<I: Serialize, O: DeserializeOwned>(
        &self,
        name: &'static str,
        request: Request<I>,
    ) -> Result<Response<O>, Status> {
        self.told(name, request).await.map_err(|problem| status(&problem))
    }

    /// An entity by its id.
    pub(super) async fn one<O: DeserializeOwned>(
        &self,
        entity: Entity,
        metadata: &MetadataMap,
        id: &str,
    ) -> Result<Response<O>, Status> {
        let found = async {
            let found = self.front.one(&self.caller(metadata)?, entity, id).await?;
            typed(entity, found, Some(id)).map(Response::new)
        };
        found.await.map_err(|problem| status(&problem))
    }

    /// A page of an account's entities.
    pub(super) async fn page<O: DeserializeOwned>(
        &self,
        entity: Entity,
        request: Request<ListRequest>,
    ) -> Result<Response<O>, Status> {
        let listed = async {
            let caller = self.caller(request.metadata())?;
            let ListRequest { account, after, limit } = request.get_ref();
            let (limit, bytes) = (typed::limit(*limit), self.front.settings().answer_bytes_max);
            let page = self.front.page(&caller, entity, account, after.as_deref(), limit, bytes).await?;
            typed_page(entity, page).map(Response::new)
        };
        listed.await.map_err(|problem| status(&problem))
    }

    async fn told<I: Serialize, O: DeserializeOwned>(
        &self,
        name: &'static str,
        request: Request<I>,
    ) -> Result<Response<O>, Problem> {
        let (metadata, _, message) = request.into_parts();
        let caller = self.caller(&metadata)?;
        let operation = operation(name).ok_or_else(|| unknown(name))?;
        let values = metadata.get_all(key::HEADER);
        let lenient = self.front.settings().lenient_keys;
        let key = IdempotencyKey::of_header(values.iter().map(|value| value.as_encoded_bytes()), lenient)?;
        let key = self.front.key(operation, key)?;
        let echo = key.quoted().parse::<MetadataValue<Ascii>>().ok();
        let (target, body) = untyped(operation, &message)?;
        let asked = Asked { key: Some(key), target, body, headers: headers(&metadata) };
        let reply = self.front.command(&caller, operation, asked).await?;
        let mut response = Response::new(typed_reply(operation.entity, &reply)?);
        let about = response.metadata_mut();
        if reply.replayed {
            about.insert(REPLAYED, MetadataValue::from_static("true"));
        }
        echo.into_iter().for_each(|key| drop(about.insert(key::HEADER, key)));
        let location = reply.location.and_then(|path| path.parse::<MetadataValue<Ascii>>().ok());
        location.into_iter().for_each(|path| drop(about.insert("location", path)));
        Ok(response)
    }

    fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Problem> {
        self.auth.caller(metadata.get_all("authorization").iter().map(|value| value.as_encoded_bytes()))
    }
}

fn unknown(name: &str) -> Problem {
    Problem::new(Kind::Internal, format!("there is no operation {name}"))
}

/// The headers in the metadata that are copied to the call.
fn headers(metadata: &MetadataMap) -> Vec<(String, String)> {
    let said = |name: &str| Some((name.to_owned(), metadata.get(name)?.to_str().ok()?.to_owned()));
    TAKEN_ALONG.into_iter().filter_map(said).collect()
}
