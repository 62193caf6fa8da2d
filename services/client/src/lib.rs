//! A client of Perkey's front doors over REST: each logical operation takes effect once, whatever happens on the way.
//! In: operations. Out: their answers, asked for again under one idempotency key until there is one, or time is up.
//!
//! ```no_run
//! # async fn example() -> Result<(), perkey_client::CallError> {
//! use perkey_client::{Client, Operation, Options};
//!
//! let client = Client::new("http://127.0.0.1:8080", Options::default())?;
//! let body = serde_json::json!({ "account": "a-1", "amount": 1250, "currency": "USD" });
//! let answer = client.call(Operation::post("/api/transactions", &body)?).await?;
//! assert!(answer.is_success());
//! # Ok(())
//! # }
//! ```

mod answer;
mod budget;
mod chance;
mod client;
mod operation;
mod pause;
mod policy;

pub use answer::{Answer, CallError, Last, Problem};
pub use client::{Client, Options};
pub use operation::Operation;
pub use pause::{Pushback, pushback};
