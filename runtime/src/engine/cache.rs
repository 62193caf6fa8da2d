//! The cache of answers that calls were given: it makes repeats faster, and is never an authority.
//! In: records of calls that have ended. Out: the same, or nothing.

use futures_util::future::BoxFuture;

use crate::store::calls::{CallId, CallRecord};

/// A cache of ended calls. It may forget any of them at any time; whoever asks compares fingerprint and expiry.
pub trait ReplayCache: Send + Sync + std::fmt::Debug {
    /// The record of a call, where the cache has it.
    fn get(&self, id: CallId) -> BoxFuture<'_, Option<CallRecord>>;

    /// Keeps records, each until it expires. It does not wait for anybody.
    fn put(&self, records: Vec<CallRecord>);
}
