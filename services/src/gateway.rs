//! The front doors: one contract over REST, GraphQL and gRPC. Start with `operations`, then `front`.
//! In: requests of clients. Out: answers, each effect once.

pub mod auth;
pub mod front;
pub mod graphql;
pub mod grpc;
pub mod json;
pub mod key;
pub mod operations;
pub mod problem;
pub mod rest;
pub mod server;
mod typed;

/// Compares a file of `docs/api` with what is served; with `BLESS=1` in the environment it is written.
#[cfg(test)]
#[track_caller]
fn published(file: &str, served: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api").join(file);
    if std::env::var_os("BLESS").is_some_and(|bless| bless == "1") {
        std::fs::write(&path, served).unwrap();
    }
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(published, served, "{} is another: run this test with BLESS=1", path.display());
}
