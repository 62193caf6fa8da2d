//! A read of the store that outlives the wait for it: a fetch may be given up long before a slow read ends.
//! In: a function that begins a read. Out: the result of the read that was begun first.

use crate::store::{StoreError, StoreFuture};

/// A read under way, if there is one.
pub(super) struct Ongoing<T>(Option<StoreFuture<'static, T>>);

impl<T> Default for Ongoing<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Ongoing<T> {
    /// Waits for the read under way, or for the one that `begin` begins. A wait that is dropped leaves it to the next.
    pub(super) async fn end(&mut self, begin: impl FnOnce() -> StoreFuture<'static, T>) -> Result<T, StoreError> {
        let ended = self.0.get_or_insert_with(begin).await;
        self.0 = None;
        ended
    }
}
