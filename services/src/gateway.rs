//! The front doors: one contract over REST, GraphQL and gRPC. Start with `operations`, then `front`.
//! In: requests of clients. Out: answers, each effect once.

pub mod auth;
pub mod front;
pub mod json;
pub mod key;
pub mod operations;
pub mod problem;
