//! The tests crate has no library.
