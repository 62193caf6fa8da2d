//! The store in memory, for tests: the same contract, without files and without waiting.
//! In: commits. Out: the promises of [`Store`], and everything that a checker wants to see.

mod apply;
mod calls;
mod leases;
mod queries;
mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use serde_json::Value;

use super::calls::{CallRecord, CallStore};
use super::lease::{Code, Leases, Worker};
use super::query::{DeadFilter, ImportProgress, NewCommand, Pause, Queries, Scope};
use super::watch::LogWatch;
use super::{
    Commit, Counters, DeadLetter, DeadPlace, Due, DueTimers, Epoch, Event, HistoryRow, Identity, InboxRows, KeyRow,
    Letters, OfService, OldLetters, Outcome, PendingRow, Runnable, ServiceKey, Setup, SourceAhead, SourcePositions,
    Store, StoreError, StoreFuture, StoredLogRow, TakenShard, Timer, Trim, Watermarks, declared,
};
use crate::clock::{Clock, Millis};
use crate::handler::{CallId, Column, ColumnKind, RowWrite, Table};
use crate::message::{Positions, ShardNo, Taken, TakenId};

/// A store in memory. What is committed outlives every owner of a shard, not the process.
#[derive(Default)]
pub struct MemoryStore {
    inner: Mutex<MemoryTables>,
    watch: LogWatch,
    /// Its own clock, where several workers share it.
    clock: Option<Clock>,
}

/// A function that says which rows the store refuses: whether for good, and with which error.
pub type RefuseRow = dyn Fn(&RowWrite) -> Option<(bool, String)> + Send;

/// A mistake that the store makes on purpose, so that a simulator can show that it would notice.
#[cfg(feature = "planted-defects")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreDefect {
    /// Neither epoch nor number of a commit is checked.
    NoFence,
    /// Pending rows, dead letters and history are written even when the fence does not match.
    PartNotFenced,
}

/// A commit as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The shard.
    pub shard: ShardNo,
    /// Its number.
    pub no: u64,
    /// The epoch under which it was written.
    pub epoch: Epoch,
    /// The time at which it was written.
    pub at: Millis,
    /// Number of its first event.
    pub first_seq: u64,
    /// The ids that it took.
    pub ids: Vec<Taken>,
    /// The events that it emitted.
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, Default)]
struct MemoryShard {
    owner: Option<String>,
    epoch: Epoch,
    commit_no: u64,
    outbox_seq: u64,
    last_seq: u64,
    unclean: u32,
    code: Code,
    positions: SourcePositions,
    ahead: SourceAhead,
    watermarks: Watermarks,
    counters: Counters,
}

#[derive(Default)]
struct MemoryTables {
    shards: Vec<MemoryShard>,
    /// The workers, each with the time at which its lease expires.
    workers: BTreeMap<String, (Worker, Millis)>,
    /// True while renewals of leases fail.
    away: bool,
    services: BTreeMap<Arc<str>, u16>,
    /// All commits that were ever written, in that order.
    journal: Vec<Written>,
    /// The commits that were not trimmed, as places in the journal.
    commits: BTreeMap<(ShardNo, u64), usize>,
    states: BTreeMap<(Arc<str>, Arc<str>), (u32, Bytes)>,
    pending: BTreeMap<(ShardNo, u64), PendingRow>,
    dead: BTreeMap<(ShardNo, u64), DeadLetter>,
    timers: BTreeMap<(ServiceKey, Arc<str>), (ShardNo, Timer)>,
    history: Vec<(ShardNo, HistoryRow)>,
    log: BTreeMap<(ShardNo, Arc<str>, u64), (u32, Bytes)>,
    lanes: BTreeMap<String, u64>,
    calls: BTreeMap<CallId, CallRecord>,
    /// The number of records, by tenant and the time at which they stop counting.
    call_counts: BTreeMap<(String, Millis), u64>,
    intake: BTreeSet<(ShardNo, u64)>,
    imports: BTreeMap<(String, String), ImportProgress>,
    commands: BTreeMap<i64, NewCommand>,
    commands_made: i64,
    pauses: BTreeMap<Scope, Pause>,
    results: BTreeMap<(i64, ShardNo), (u64, bool)>,
    tables: BTreeMap<&'static str, (Table, BTreeMap<String, Value>)>,
    refuse: Option<Box<RefuseRow>>,
    #[cfg(feature = "planted-defects")]
    defect: Option<StoreDefect>,
}

/// Ids are hashed under the same key in every run: a simulation repeats itself.
const HASH_KEY: [u8; 32] = [0x50; 32];

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store that several workers share: it has leases, which expire by `clock`.
    pub fn shared(clock: Clock) -> Self {
        Self { clock: Some(clock), ..Self::default() }
    }

    /// From now on rows for which `refuse` gives a reason are refused, with the commit that holds them.
    pub fn refuse_rows(&self, refuse: impl Fn(&RowWrite) -> Option<(bool, String)> + Send + 'static) {
        self.inner().refuse = Some(Box::new(refuse));
    }

    /// Makes renewals of leases fail from now on, or succeed again.
    pub fn refuse_renewals(&self, refuse: bool) {
        self.inner().away = refuse;
    }

    /// From now on the store makes this mistake.
    #[cfg(feature = "planted-defects")]
    pub fn plant(&self, defect: StoreDefect) {
        self.inner().defect = Some(defect);
    }

    /// [`Store::commit`]: writes all of it now, or nothing.
    pub fn apply(&self, commit: &Commit) -> Outcome {
        let outcome = self.inner().apply(commit);
        if matches!(outcome, Outcome::Committed) {
            self.watch.appended(commit.log.iter().map(|row| row.target));
        }
        outcome
    }

    /// The states of all keys: version and JSON by service and key.
    pub fn states(&self) -> BTreeMap<(Arc<str>, Arc<str>), (u32, Bytes)> {
        self.inner().states.clone()
    }

    /// All commits ever written, trimmed ones too, in the order in which they were.
    pub fn journal(&self) -> Vec<Written> {
        self.inner().journal.clone()
    }

    /// All pending rows, by shard and `seq`.
    pub fn pending(&self) -> BTreeMap<(ShardNo, u64), PendingRow> {
        self.inner().pending.clone()
    }

    /// All timers, by key and name.
    pub fn timers(&self) -> Vec<Timer> {
        self.inner().timers.values().map(|(_, timer)| timer.clone()).collect()
    }

    /// All dead letters, by shard and `seq`.
    pub fn dead_letters(&self) -> BTreeMap<(ShardNo, u64), DeadLetter> {
        self.inner().dead.clone()
    }

    /// All history, in the order in which it was written.
    pub fn history(&self) -> Vec<(ShardNo, HistoryRow)> {
        self.inner().history.clone()
    }

    /// All rows of the log: count and messages by target, origin and number.
    pub fn log(&self) -> BTreeMap<(ShardNo, Arc<str>, u64), (u32, Bytes)> {
        self.inner().log.clone()
    }

    /// True if a commit of the shard took this row of the intake.
    pub fn has_taken_in(&self, shard: ShardNo, no: u64) -> bool {
        self.inner().intake.contains(&(shard, no))
    }

    /// The rows of a handler's table, in the order of their primary key's JSON.
    pub fn rows(&self, table: &str) -> Vec<Value> {
        self.inner().tables.get(table).map_or_else(Vec::new, |(_, rows)| rows.values().cloned().collect())
    }

    fn inner(&self) -> MutexGuard<'_, MemoryTables> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryTables {
    fn prepare(&mut self, setup: &Setup) -> Result<Identity, StoreError> {
        let recorded = u32::try_from(self.shards.len()).unwrap_or(u32::MAX);
        if recorded != 0 && recorded != setup.shards {
            return Err(StoreError::Shards { recorded, wanted: setup.shards });
        }
        for table in &setup.tables {
            declared::check(table)?;
            if let Some((there, _)) = self.tables.get(table.name) {
                declared::compare(table, kind, &declared::shapes(there, kind))?;
            }
        }
        self.shards.resize(setup.shards as usize, MemoryShard::default());
        for service in &setup.services {
            let next = u16::try_from(self.services.len() + 1)
                .map_err(|_| StoreError::Corrupt("more services than there are numbers".to_owned()))?;
            self.services.entry(Arc::clone(service)).or_insert(next);
        }
        for table in &setup.tables {
            self.tables.entry(table.name).or_insert_with(|| (*table, BTreeMap::new()));
        }
        Ok(Identity { hash_key: HASH_KEY, services: self.services.clone() })
    }
}

/// The answer of a store in memory, which never waits.
pub fn at_once<T>(answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let waits = || Err(StoreError::Unavailable("the store in memory waits".to_owned()));
    answer.now_or_never().unwrap_or_else(waits)
}

fn kind(column: &Column) -> &'static str {
    match column.kind {
        ColumnKind::Text => "text",
        ColumnKind::Integer => "integer",
        ColumnKind::Real => "real",
        ColumnKind::Boolean => "boolean",
        ColumnKind::Json => "json",
    }
}

impl Store for MemoryStore {
    fn prepare(&self, setup: Setup) -> StoreFuture<'_, Identity> {
        Box::pin(async move { self.inner().prepare(&setup) })
    }

    fn take(&self, shard: ShardNo, owner: &str) -> StoreFuture<'_, TakenShard> {
        let mut inner = self.inner();
        let may = self.clock.as_ref().map_or(Ok(()), |clock| inner.may_take(shard, owner, clock.now()));
        Box::pin(ready(may.and_then(|()| inner.take(shard, owner))))
    }

    fn retake(&self, shard: ShardNo, epoch: Epoch) -> StoreFuture<'_, TakenShard> {
        Box::pin(ready(self.inner().retake(shard, epoch)))
    }

    fn inbox(&self, shard: ShardNo, since: Millis, max: usize) -> StoreFuture<'_, InboxRows> {
        Box::pin(async move { Ok(self.inner().inbox(shard, since, max)) })
    }

    fn known(&self, shard: ShardNo, asked: Vec<(TakenId, String)>) -> StoreFuture<'_, Vec<bool>> {
        Box::pin(async move { Ok(self.inner().known(shard, &asked)) })
    }

    fn letters(&self, shard: ShardNo) -> StoreFuture<'_, Letters> {
        Box::pin(async move { Ok(self.inner().letters(shard)) })
    }

    fn old(&self, shard: ShardNo, after: u64, before: Millis) -> StoreFuture<'_, OldLetters> {
        Box::pin(async move { Ok(self.inner().old(shard, after, before)) })
    }

    fn load(&self, shard: ShardNo, keys: Vec<ServiceKey>) -> StoreFuture<'_, Vec<KeyRow>> {
        Box::pin(async move {
            let inner = self.inner();
            Ok(keys.iter().map(|key| inner.load(shard, key)).collect())
        })
    }

    fn due(&self, shard: ShardNo, now: Millis, runnable: Runnable, limit: usize) -> StoreFuture<'_, Due> {
        Box::pin(async move { Ok(self.inner().due(shard, now, &runnable, limit)) })
    }

    fn orphans(
        &self,
        shard: ShardNo,
        runnable: Runnable,
        after: Option<ServiceKey>,
        limit: usize,
    ) -> StoreFuture<'_, Vec<ServiceKey>> {
        Box::pin(async move { Ok(self.inner().orphans(shard, &runnable, after.as_ref(), limit)) })
    }

    fn page(&self, shard: ShardNo, key: ServiceKey, after: u64, limit: usize) -> StoreFuture<'_, Vec<PendingRow>> {
        Box::pin(async move { Ok(self.inner().page(shard, &key, after, limit)) })
    }

    fn timers(&self, shard: ShardNo, now: Millis, runnable: Runnable, limit: usize) -> StoreFuture<'_, DueTimers> {
        Box::pin(async move { Ok(self.inner().due_timers(shard, now, &runnable, limit)) })
    }

    fn of_service(&self, shard: ShardNo, service: Arc<str>, limit: usize) -> StoreFuture<'_, OfService> {
        Box::pin(async move { Ok(self.inner().of_service(shard, &service, limit)) })
    }

    fn schedules(&self, shard: ShardNo) -> StoreFuture<'_, Vec<Timer>> {
        Box::pin(async move { Ok(self.inner().schedules(shard)) })
    }

    fn dead(
        &self,
        shard: ShardNo,
        filter: DeadFilter,
        after: Option<DeadPlace>,
        limit: usize,
    ) -> StoreFuture<'_, Vec<DeadLetter>> {
        Box::pin(async move { Ok(self.inner().dead_letters(shard, &filter, after.as_ref(), limit)) })
    }

    fn commit<'a>(&'a self, commit: &'a Commit) -> BoxFuture<'a, Outcome> {
        // At once, so that dropping the future does not undo it.
        Box::pin(ready(self.apply(commit)))
    }

    fn read_log(&self, target: ShardNo, from: Positions, limit: usize) -> StoreFuture<'_, Vec<StoredLogRow>> {
        Box::pin(async move { Ok(self.inner().read_log(target, &from, limit)) })
    }

    fn log_changed(&self, target: ShardNo) -> BoxFuture<'_, ()> {
        Box::pin(self.watch.changed(target))
    }

    fn trim(&self, shard: ShardNo, trim: Trim) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            self.inner().trim(shard, &trim);
            Ok(())
        })
    }

    fn queries(&self) -> &dyn Queries {
        self
    }

    fn calls(&self) -> &dyn CallStore {
        self
    }

    fn leases(&self) -> Option<&dyn Leases> {
        self.clock.is_some().then_some(self as &dyn Leases)
    }
}
