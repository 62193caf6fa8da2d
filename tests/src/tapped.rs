//! A store with some calls replaced, for tests and measurements.
//! In: a store, and the replacements. Out: a store that passes everything else on.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use perkey::Millis;
use perkey::unstable::message::{Positions, ShardNo, TakenId};
use perkey::unstable::store::calls::CallStore;
use perkey::unstable::store::lease::Leases;
use perkey::unstable::store::query::{DeadFilter, EventRow, Queries};
use perkey::unstable::store::{
    Commit, CommitOutcome, DeadLetter, DeadPlace, Due, DueTimers, Epoch, Identity, InboxRows, IntakeRows, KeyRow,
    Letters, OfService, OldLetters, PendingRow, Runnable, ServiceKey, Setup, Store, StoreFuture, StoredLogRow,
    TakenShard, Timer, Trim,
};

/// The replaced calls of a [`Tapped`] store; a call that is not here is passed on.
pub trait Taps: Send + Sync + 'static {
    /// Replaces [`Store::commit`] of `store`.
    fn commit<'a>(&'a self, store: &'a dyn Store, commit: &'a Commit) -> BoxFuture<'a, CommitOutcome> {
        store.commit(commit)
    }

    /// Replaces [`Store::dead`] of `store`.
    fn dead<'a>(
        &'a self,
        store: &'a dyn Store,
        shard: ShardNo,
        filter: DeadFilter,
        after: Option<DeadPlace>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DeadLetter>> {
        store.dead(shard, filter, after, limit)
    }
}

/// A store whose calls go through `taps`.
#[derive(Debug)]
pub struct Tapped<S, T> {
    /// The store itself.
    pub store: Arc<S>,
    /// The replacements.
    pub taps: T,
}

/// Passes calls on as they come.
macro_rules! passed_on {
    ($(fn $name:ident($($given:ident: $kind:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $($given: $kind),*) -> $answer {
            self.store.$name($($given),*)
        })*
    };
}

impl<S: Store, T: Taps> Store for Tapped<S, T> {
    fn commit<'a>(&'a self, commit: &'a Commit) -> BoxFuture<'a, CommitOutcome> {
        self.taps.commit(&*self.store, commit)
    }

    fn dead(
        &self,
        shard: ShardNo,
        filter: DeadFilter,
        after: Option<DeadPlace>,
        limit: usize,
    ) -> StoreFuture<'_, Vec<DeadLetter>> {
        self.taps.dead(&*self.store, shard, filter, after, limit)
    }

    passed_on! {
        fn prepare(setup: Setup) -> StoreFuture<'_, Identity>;
        fn take(shard: ShardNo, owner: &str) -> StoreFuture<'_, TakenShard>;
        fn retake(shard: ShardNo, epoch: Epoch) -> StoreFuture<'_, TakenShard>;
        fn inbox(shard: ShardNo, since: Millis, max: usize) -> StoreFuture<'_, InboxRows>;
        fn known(shard: ShardNo, asked: Vec<(TakenId, String)>) -> StoreFuture<'_, Vec<bool>>;
        fn letters(shard: ShardNo) -> StoreFuture<'_, Letters>;
        fn old(shard: ShardNo, after: u64, before: Millis) -> StoreFuture<'_, OldLetters>;
        fn load(shard: ShardNo, keys: Vec<ServiceKey>) -> StoreFuture<'_, Vec<KeyRow>>;
        fn due(shard: ShardNo, now: Millis, of: Runnable, limit: usize) -> StoreFuture<'_, Due>;
        fn orphans(shard: ShardNo, of: Runnable, after: Option<ServiceKey>, limit: usize) -> StoreFuture<'_, Vec<ServiceKey>>;
        fn page(shard: ShardNo, key: ServiceKey, after: u64, limit: usize) -> StoreFuture<'_, Vec<PendingRow>>;
        fn timers(shard: ShardNo, now: Millis, of: Runnable, limit: usize) -> StoreFuture<'_, DueTimers>;
        fn of_service(shard: ShardNo, service: Arc<str>, limit: usize) -> StoreFuture<'_, OfService>;
        fn schedules(shard: ShardNo) -> StoreFuture<'_, Vec<Timer>>;
        fn read_log(target: ShardNo, from: Positions, limit: usize) -> StoreFuture<'_, Vec<StoredLogRow>>;
        fn read_intake(shard: ShardNo, held: Vec<u64>, limit: usize, bytes_max: usize) -> StoreFuture<'_, IntakeRows>;
        fn has_intake() -> bool;
        fn log_changed(target: ShardNo) -> BoxFuture<'_, ()>;
        fn outbox(shard: ShardNo, from: u64, after: u64, limit: usize) -> StoreFuture<'_, Vec<EventRow>>;
        fn trim(shard: ShardNo, trim: Trim) -> StoreFuture<'_, ()>;
        fn queries() -> &dyn Queries;
        fn calls() -> &dyn CallStore;
        fn leases() -> Option<&dyn Leases>;
        fn oldest_transaction() -> StoreFuture<'_, Option<Duration>>;
        fn writes_in_parallel() -> bool;
    }
}
