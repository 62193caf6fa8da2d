//! What tests and benches share.
//! In: a store. Out: the same one, of which some calls do something else.

mod tapped;

pub use tapped::{Tapped, Taps};
