//! The writer of calls: it writes those that come at once together, in a task that no caller cancels.
//! In: calls. Out: for each call whether it is new, or the existing record.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::warn;

use super::CallError;
use crate::clock::{Clock, Dice, Millis, Stopwatch, millis, sleep};
use crate::handler::CallId;
use crate::message::{ShardNo, shard_of};
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::store::append::{CALL_LANES, Room, Targets, patiently};
use crate::store::calls::{CallRecord, KeyCount, NewCall, tenant_keys};
use crate::store::{Store, StoreError};

/// Calls that may wait to be written.
const WAITING_MAX: usize = 16_384;
/// Calls in one write.
const BATCH_MAX: usize = 256;
/// The time for which calls that could not be written are a trouble, unless others are.
const TROUBLED: Duration = Duration::from_secs(10);
/// The time between two counts of the records that tenants have; what is accepted here is counted as it comes.
const COUNT_EVERY: Duration = Duration::from_secs(10);

/// The fate of a call.
#[derive(Debug)]
pub(super) enum Acceptance {
    /// It is durable, and will be handled.
    New,
    /// There was a call under its key before.
    Known(CallRecord),
}

type Accepting = Result<Acceptance, CallError>;
type WaitingCall = (NewCall, Caller);

/// The sender of a call, who waits to be told, and the bytes that the call has meanwhile.
struct Caller {
    tell: oneshot::Sender<Accepting>,
    bytes: OwnedSemaphorePermit,
}

impl Caller {
    /// Tells the sender of a call, if it still listens. Its bytes are free by then: the sender may come at once with another.
    fn answer(self, told: Accepting) {
        drop(self.bytes);
        self.tell.send(told).ok();
    }
}

/// The handle of the task.
pub(super) struct Accepts {
    store: Arc<dyn Store>,
    calls: mpsc::Sender<WaitingCall>,
    /// The bytes that waiting calls may have, and the number that is left.
    most: usize,
    left: Arc<Semaphore>,
    quota: Arc<Quota>,
    trouble: Arc<Mutex<Option<(Stopwatch, String)>>>,
}

impl Accepts {
    #[expect(clippy::disallowed_methods, reason = "a write outlives its caller, who may be gone when it is done")]
    pub(super) fn start(store: Arc<dyn Store>, settings: &Settings, metrics: &Arc<Metrics>) -> Self {
        let (calls, mut inbox) = mpsc::channel(WAITING_MAX);
        let shards = settings.ownership.shards;
        let quota = Arc::new(Quota {
            max: settings.gateway.keys_max,
            keep: millis(settings.gateway.keep),
            counts: Mutex::default(),
            metrics: Arc::clone(metrics),
        });
        tokio::spawn(keep_count(Arc::downgrade(&quota), Arc::clone(&store)));
        let kept = Arc::clone(&store);
        let lane = Dice::from_system().below(CALL_LANES.len() as u64);
        let lane = usize::try_from(lane).ok().and_then(|lane| CALL_LANES.get(lane)).copied().unwrap_or(CALL_LANES[0]);
        let (room, trouble) = (Room::new(settings.log.max_unread, shards), Arc::default());
        let mut task =
            AcceptTask { room, shards, quota: Arc::clone(&quota), lane, store, trouble: Arc::clone(&trouble) };
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while inbox.recv_many(&mut batch, BATCH_MAX).await > 0 {
                task.write(std::mem::take(&mut batch)).await;
            }
        });
        let most = settings.memory.calls().min(Semaphore::MAX_PERMITS);
        Self { store: kept, calls, most, left: Arc::new(Semaphore::new(most)), quota, trouble }
    }

    /// The reason for which calls could not be written just now. Only clients try again: after a while they may.
    pub(super) fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.as_ref().filter(|(since, _)| since.elapsed() < TROUBLED).map(|(_, why)| why.clone())
    }

    /// The record of a call, if there is one.
    pub(super) async fn known(&self, id: CallId) -> Result<Option<CallRecord>, CallError> {
        Ok(self.store.calls().records(vec![id]).await?.into_iter().next().flatten())
    }

    /// Writes a call, with others that come meanwhile.
    pub(super) async fn accept(&self, call: NewCall) -> Accepting {
        self.quota.check(&call.tenant)?;
        let (tell, told) = oneshot::channel();
        // A call that is larger than all of them together takes them all.
        let bytes = u32::try_from(call.message.frame().len().min(self.most)).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.left).try_acquire_many_owned(bytes).map_err(|_| CallError::Full)?;
        self.calls.try_send((call, Caller { tell, bytes })).map_err(|_| CallError::Full)?;
        told.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the process is ending".to_owned()).into()))
    }
}

/// The number of records that each tenant has, about.
#[derive(Debug)]
struct Quota {
    max: u64,
    keep: Millis,
    counts: Mutex<HashMap<String, u64>>,
    metrics: Arc<Metrics>,
}

impl Quota {
    fn check(&self, tenant: &str) -> Result<(), CallError> {
        let has = self.counts().get(tenant).copied().unwrap_or(0);
        if has >= self.max { Err(CallError::TooManyKeys(has)) } else { Ok(()) }
    }

    fn add(&self, tenant: &str) {
        *self.counts().entry(tenant.to_owned()).or_default() += 1;
    }

    fn counted(&self, counts: &[KeyCount], now: Millis) {
        let tenants = tenant_keys(counts, now, self.keep);
        self.metrics.set_call_keys(tenants.values(), self.max);
        *self.counts() = tenants.iter().map(|(tenant, keys)| ((*tenant).to_owned(), keys.records)).collect();
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct AcceptTask {
    store: Arc<dyn Store>,
    room: Room,
    shards: u32,
    quota: Arc<Quota>,
    lane: &'static str,
    trouble: Arc<Mutex<Option<(Stopwatch, String)>>>,
}

impl AcceptTask {
    async fn write(&mut self, batch: Vec<WaitingCall>) {
        let (calls, callers): (Vec<_>, Vec<_>) = self.with_room(batch).await.into_iter().unzip();
        if calls.is_empty() {
            return;
        }
        let accepted = patiently(|| self.store.calls().accept(self.lane.to_owned(), calls.clone())).await;
        let why = accepted.as_ref().err().map(|error| (Stopwatch::start(), error.to_string()));
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
        match accepted {
            Ok(known) => {
                for ((caller, known), call) in callers.into_iter().zip(known).zip(&calls) {
                    caller.answer(Ok(self.acceptance(call, known)));
                }
            }
            Err(error) => callers.into_iter().for_each(|caller| caller.answer(Err(error.clone().into()))),
        }
    }

    /// The calls for whose shards the log has room; the others are answered.
    async fn with_room(&mut self, batch: Vec<WaitingCall>) -> Vec<WaitingCall> {
        let mut shards: BTreeMap<ShardNo, Vec<WaitingCall>> = BTreeMap::new();
        for asked in batch {
            shards.entry(shard_of(asked.0.message.key(), self.shards)).or_default().push(asked);
        }
        let mut fit = Vec::new();
        for (shard, asked) in shards {
            let wanted = Targets::from([(shard, asked.len() as u64)]);
            let error = match self.room.is_there(self.store.queries(), &wanted).await {
                Ok(true) => {
                    self.room.used(&wanted);
                    fit.extend(asked);
                    continue;
                }
                Ok(false) => CallError::Full,
                Err(error) => error.into(),
            };
            asked.into_iter().for_each(|(_, caller)| caller.answer(Err(error.clone())));
        }
        fit
    }

    fn acceptance(&self, call: &NewCall, known: Option<CallRecord>) -> Acceptance {
        match known {
            // Its own record: the answer to the write that made it was lost, and it was written again.
            Some(record) if record.message_id != call.message.id() => Acceptance::Known(record),
            _ => {
                self.quota.add(&call.tenant);
                Acceptance::New
            }
        }
    }
}

/// Counts the tenants' records, at once and then from time to time, as long as anybody asks.
async fn keep_count(quota: Weak<Quota>, store: Arc<dyn Store>) {
    let clock = Clock::system();
    loop {
        let now = clock.now();
        let counted = store.calls().counts(now).await;
        let Some(quota) = quota.upgrade() else { return };
        match counted {
            Ok(counts) => quota.counted(&counts, now),
            Err(error) => {
                // There is no known count any more to which the calls since then could be added: nobody is refused.
                quota.counts().clear();
                warn!(%error, "the idempotency keys that tenants have cannot be counted now");
            }
        }
        drop(quota);
        sleep(COUNT_EVERY).await;
    }
}
