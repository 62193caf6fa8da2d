//! The callers that wait in this process for the ends of calls.
//! In: waiting calls; commits of this process; the store's records. Out: outcomes, for the callers.
//!
//! A commit of this process tells them at once. Ends that another process commits, or that this one committed without
//! an answer from the store, are looked up: often if the call's shard is elsewhere, seldom if it is here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tracing::debug;

use crate::clock::sleep;
use crate::handler::CallId;
use crate::store::calls::{CallOutcome, CallRecord};
use crate::store::{Commit, Store};

/// The time between two looks at calls that run elsewhere.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The number of looks of which one includes the calls that run here.
const SELDOM: u32 = 25;
/// The number of calls in one query.
const LOOK_MAX: usize = 1_000;

/// The calls of this process that wait for their ends.
#[derive(Debug, Default)]
pub(crate) struct PendingCalls {
    waiting: Mutex<Callers>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Callers {
    /// Bounded by the requests that are served at once.
    calls: HashMap<CallId, Vec<Waiter>>,
    last: u64,
}

#[derive(Debug)]
struct Waiter {
    no: u64,
    /// The id of its message: there may be a record of an older call under the same id.
    message_id: String,
    here: bool,
    tell: oneshot::Sender<CallOutcome>,
}

/// One call that waits for its end; given up when it is dropped.
pub(crate) struct PendingCall {
    pending: Arc<PendingCalls>,
    id: CallId,
    no: u64,
    told: oneshot::Receiver<CallOutcome>,
}

impl PendingCall {
    /// The outcome of the call; `None` if nobody will tell any more.
    pub(crate) async fn outcome(mut self) -> Option<CallOutcome> {
        (&mut self.told).await.ok()
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        let mut waiting = self.pending.waiting();
        if let Some(waiters) = waiting.calls.get_mut(&self.id) {
            waiters.retain(|waiter| waiter.no != self.no);
            if waiters.is_empty() {
                waiting.calls.remove(&self.id);
            }
        }
    }
}

impl PendingCalls {
    /// Waits for the end of a call; `here` tells whether its shard runs here.
    pub(crate) fn wait(self: &Arc<Self>, id: CallId, message_id: &str, here: bool) -> PendingCall {
        let (tell, told) = oneshot::channel();
        let mut waiting = self.waiting();
        waiting.last += 1;
        let no = waiting.last;
        waiting.calls.entry(id).or_default().push(Waiter { no, message_id: message_id.to_owned(), here, tell });
        drop(waiting);
        self.more.notify_one();
        PendingCall { pending: Arc::clone(self), id, no, told }
    }

    /// Tells the callers whose calls ended with this durable commit.
    pub(crate) fn committed(&self, commit: &Commit) {
        for reply in commit.parts.iter().flat_map(|part| &part.replies) {
            self.tell(reply.call, &reply.outcome, |_| true);
        }
    }

    fn tell(&self, id: CallId, outcome: &CallOutcome, whom: impl Fn(&Waiter) -> bool) {
        let told: Vec<Waiter> = {
            let mut waiting = self.waiting();
            let Some(waiters) = waiting.calls.get_mut(&id) else { return };
            let told = waiters.extract_if(.., |waiter| whom(waiter)).collect();
            if waiters.is_empty() {
                waiting.calls.remove(&id);
            }
            told
        };
        for waiter in told {
            // A caller that gave up does not listen.
            waiter.tell.send(outcome.clone()).ok();
        }
    }

    /// Tells the callers whose calls have ended by these records of the store.
    fn found(&self, records: Vec<Option<CallRecord>>) {
        for CallRecord { id, message_id, outcome, .. } in records.into_iter().flatten() {
            if let Some(outcome) = outcome {
                self.tell(id, &outcome, |waiter| waiter.message_id == message_id);
            }
        }
    }

    /// Looks calls up in the store from now on, until nobody holds this.
    #[expect(clippy::disallowed_methods, reason = "it ends with the last holder, and waits for nobody")]
    pub(crate) fn serve(pending: &Arc<Self>, store: Arc<dyn Store>) {
        let pending = Arc::downgrade(pending);
        tokio::spawn(async move {
            let mut round = 0_u32;
            while let Some(ids) = next(&pending, round).await {
                round = round.wrapping_add(1);
                for ids in ids.chunks(LOOK_MAX) {
                    let found = store.calls().records(ids.to_vec()).await;
                    let Some(pending) = pending.upgrade() else { return };
                    match found {
                        Ok(records) => pending.found(records),
                        Err(error) => debug!(%error, "the ends of calls cannot be looked up now"),
                    }
                }
            }
        });
    }

    /// The calls to look up in this round.
    fn wanted(&self, round: u32) -> Vec<CallId> {
        let all = round.is_multiple_of(SELDOM);
        let waiting = self.waiting();
        let wanted = waiting.calls.iter().filter(|(_, waiters)| all || waiters.iter().any(|waiter| !waiter.here));
        wanted.map(|(id, _)| *id).collect()
    }

    fn waiting(&self) -> MutexGuard<'_, Callers> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits a while; returns the calls to look up, or `None` when nobody holds `pending` any more. It rests while nobody waits.
async fn next(pending: &Weak<PendingCalls>, round: u32) -> Option<Vec<CallId>> {
    sleep(LOOK_EVERY).await;
    let here = pending.upgrade()?;
    if here.waiting().calls.is_empty() {
        // A second at most: then it checks whether somebody still holds it.
        let rest = here.more.notified();
        tokio::select! {
            () = rest => {}
            () = sleep(Duration::from_secs(1)) => {}
        }
        return Some(Vec::new());
    }
    Some(here.wanted(round))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Part;
    use crate::store::calls::Reply;

    fn commit(id: CallId) -> Commit {
        let outcome = CallOutcome::done(None);
        let part = Part { replies: vec![Reply { call: id, outcome }], ..Part::default() };
        Commit { parts: vec![part], ..Commit::default() }
    }

    #[tokio::test]
    async fn a_commit_tells_whoever_waits_for_its_calls_and_nobody_else() {
        let pending = Arc::new(PendingCalls::default());
        let (one, two, other) = (CallId([1; 16]), CallId([1; 16]), CallId([2; 16]));
        let (one, two) = (pending.wait(one, "m-1", true), pending.wait(two, "m-2", false));
        let other = pending.wait(other, "m-3", true);
        pending.committed(&commit(CallId([1; 16])));
        assert_eq!(one.outcome().await, Some(CallOutcome::done(None)));
        assert_eq!(two.outcome().await, Some(CallOutcome::done(None)));
        assert_eq!(pending.wanted(0), [CallId([2; 16])]);
        assert!(pending.wanted(1).is_empty(), "what runs here is looked up seldom");
        let old = CallRecord {
            id: CallId([2; 16]),
            fingerprint: [0; 32],
            message_id: "of an older call".to_owned(),
            accepted_at: 0,
            expires_at: 0,
            outcome: Some(CallOutcome::done(None)),
        };
        pending.found(vec![Some(old.clone()), None]);
        assert_eq!(pending.wanted(0), [CallId([2; 16])], "its key had been used before");
        pending.found(vec![Some(CallRecord { message_id: "m-3".to_owned(), ..old })]);
        assert_eq!(other.outcome().await, Some(CallOutcome::done(None)));
        assert!(pending.wanted(0).is_empty(), "nobody waits any more");
    }
}
