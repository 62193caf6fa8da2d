//! The idempotency contract, row by row, as a client sees it: over each protocol, on each store.
//! In: doors of real processes. Out: the rows I-01 to I-25 and I-28; each is a function over a [`Door`].

mod door;
mod graphql;
mod grpc;
mod life;
mod owners;
mod provider;
mod rest;
mod rows;
mod scene;

pub(crate) use door::{Answered, Door, Keys, Sent};
pub(crate) use graphql::GraphqlDoor;
pub(crate) use grpc::GrpcDoor;
pub(crate) use rest::RestDoor;
pub(crate) use scene::{Kind, Scene};

/// The door of a scene for a protocol. Another protocol is another line here, and an implementation of [`Door`].
fn door(protocol: &str, scene: &Scene) -> Box<dyn Door> {
    match protocol {
        "rest" => Box::new(RestDoor::new(&scene.http)),
        "graphql" => Box::new(GraphqlDoor::new(&scene.http)),
        "grpc" => Box::new(GrpcDoor::new(&scene.grpc)),
        other => panic!("no door speaks {other}"),
    }
}

/// Each suite over each protocol and store, a test each.
macro_rules! suites {
    ($($module:ident: $protocol:literal on $kind:ident;)*) => {$(
        mod $module {
            use super::{Kind, life, owners, rows};

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_key_is_one_effect() {
                rows::hold($protocol, Kind::$kind).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_key_is_its_owners_own() {
                owners::hold($protocol, Kind::$kind).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_key_outlives_faults_and_crashes() {
                life::hold($protocol, Kind::$kind).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_key_expires() {
                life::expires($protocol, Kind::$kind).await;
            }
        }
    )*};
}

suites! {
    rest_on_sqlite: "rest" on Sqlite;
    rest_on_postgres: "rest" on Postgres;
    graphql_on_sqlite: "graphql" on Sqlite;
    graphql_on_postgres: "graphql" on Postgres;
    grpc_on_sqlite: "grpc" on Sqlite;
    grpc_on_postgres: "grpc" on Postgres;
}
