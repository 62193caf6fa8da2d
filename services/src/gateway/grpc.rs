//! The gRPC door: the operations and reads of REST as services, with health and reflection.
//! In: calls. Out: answers, or statuses with details.

mod calls;
mod services;
mod status;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn_with_state, map_request};
use axum::response::Response;
use http_body_util::BodyExt;
use tokio::sync::watch;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};
use tracing::error;

use self::calls::Calls;
use self::proto::checkouts_server::CheckoutsServer;
use self::proto::expenses_server::ExpensesServer;
use self::proto::orders_server::OrdersServer;
use self::proto::payments_server::PaymentsServer;
use self::proto::transactions_server::TransactionsServer;
use self::status::status;
use super::auth::Auth;
use super::problem::{Kind, Problem};
use super::rest::Rest;
use super::server::BodyError;

/// The prefix of the paths of the services.
const CALLS: &str = "/budget.v1.";

/// The types, clients and services of `services/proto/budget/v1/budget.proto`.
#[expect(clippy::allow_attributes, clippy::too_many_lines, reason = "the code is generated")]
pub mod proto {
    tonic::include_proto!("budget.v1");

    /// Its descriptor, and those of its imports.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/budget.bin"));
}

/// The names of the services that are not the application's own.
const COMMON: [&str; 3] =
    ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// The templates of [`routes`]: one for each service.
pub fn templates() -> Vec<String> {
    let own = Readiness::NAMES.into_iter().filter(|name| !name.is_empty());
    own.chain(COMMON).map(|name| format!("/{name}/{{*rest}}")).collect()
}

/// The services as routes, and the reporter of their readiness.
pub fn routes(rest: &Rest) -> (axum::Router, Readiness) {
    let calls = Calls { front: Arc::clone(&rest.front), auth: Arc::clone(&rest.auth) };
    let (reporter, health) = health_reporter();
    let max = rest.front.settings().body_bytes_max;
    let routes = Routes::new(OrdersServer::new(calls.clone()).max_decoding_message_size(max))
        .add_service(ExpensesServer::new(calls.clone()).max_decoding_message_size(max))
        .add_service(TransactionsServer::new(calls.clone()).max_decoding_message_size(max))
        .add_service(CheckoutsServer::new(calls.clone()).max_decoding_message_size(max))
        .add_service(PaymentsServer::new(calls).max_decoding_message_size(max))
        .add_service(health);
    let known = from_fn_with_state(Arc::clone(&rest.auth), known);
    let routes = reflected(routes).into_axum_router().layer(known);
    (routes.layer(map_request(async |request: Request| request.map(said_in_status))), Readiness(reporter))
}

/// Lets a call through if its caller is known, before its body is read. Anybody may ask about the process itself.
async fn known(State(auth): State<Arc<Auth>>, request: Request, next: Next) -> Response {
    let header = request.headers().get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes);
    match request.uri().path().starts_with(CALLS).then(|| auth.caller(header)) {
        Some(Err(problem)) => status(&problem).into_http(),
        _ => next.run(request).await,
    }
}

/// The body of a call; if the server cuts it off, for its size or its slowness, the client is told why.
fn said_in_status(body: Body) -> Body {
    Body::new(body.map_err(|error| {
        let error = error.into_inner();
        let kind = match error.downcast_ref::<BodyError>() {
            Some(BodyError::TooLarge(_)) => Kind::TooLarge,
            Some(BodyError::TooSlow(_)) => Kind::TooSlow,
            Some(BodyError::Broken(_)) | None => Kind::Malformed,
        };
        status(&Problem::new(kind, error.to_string()))
    }))
}

/// The routes with reflection in both versions that tools ask for.
fn reflected(routes: Routes) -> Routes {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    match (builder().build_v1(), builder().build_v1alpha()) {
        (Ok(new), Ok(old)) => routes.add_service(new).add_service(old),
        (Err(error), _) | (_, Err(error)) => {
            error!(%error, "there is no reflection: the descriptor of the services cannot be read");
            routes
        }
    }
}

/// The health service's answers about the services.
#[derive(Debug)]
pub struct Readiness(HealthReporter);

impl Readiness {
    /// Every name that may be asked about; the empty one is the process.
    const NAMES: [&str; 6] = [
        "",
        OrdersServer::<Calls>::NAME,
        ExpensesServer::<Calls>::NAME,
        TransactionsServer::<Calls>::NAME,
        CheckoutsServer::<Calls>::NAME,
        PaymentsServer::<Calls>::NAME,
    ];

    /// Reports ready until `stop` is true, or its sender is gone. Load balancers see both states;
    /// watchers are let go, as a watch would hold its connection open.
    pub async fn follow(mut self, mut stop: watch::Receiver<bool>) {
        self.tell(ServingStatus::Serving).await;
        stop.wait_for(|stop| *stop).await.ok();
        self.tell(ServingStatus::NotServing).await;
        for name in Self::NAMES {
            self.0.clear_service_status(name).await;
        }
    }

    async fn tell(&self, status: ServingStatus) {
        for name in Self::NAMES {
            self.0.set_service_status(name, status).await;
        }
    }
}
