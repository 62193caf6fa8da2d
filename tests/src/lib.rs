//! Tools that tests and benches share.
//! In: a store. Out: the same store, with some calls replaced.

mod tapped;

pub use tapped::{Tapped, Taps};
