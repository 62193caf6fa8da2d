//! Messages that a program sends from outside any turn, without a broker; and its reads beside its handlers.
//! In: an id and a message for a handler. Out: a row of the embedded log, durable before the call returns.
//!
//! Calls that come while an append is on its way go together with the next one: the first in line writes for all.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::{Mutex as Line, oneshot, watch};

use super::Engine;
use crate::clock::sleep;
use crate::handler::Handler;
use crate::handlers::decode;
use crate::message::{Draft, Message, shard_of};
use crate::shard::env::Env;
use crate::store::append::{LOOK_EVERY, Room, Targets, log_rows, patiently};
use crate::store::query::Queries;
use crate::store::{ServiceKey, StoreError};

/// Messages in one append, about; `log.max_unread` is never below it.
const BATCH_MAX: usize = 1_000;

/// A message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// It can never be taken: its handler does not understand it, its key or id cannot be used, or it is too large.
    #[error("the message cannot be sent: {0}")]
    Refused(String),
    /// The store did not say that it has it. Sent again with the same id it takes effect once.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log is full, and the engine that would read it has ended.
    #[error("the engine has ended, and the log has no room (log.max_unread)")]
    Ended,
}

impl Engine {
    /// Sends a message to a handler of this program, under the key that [`Handler::key`] gives it. When this returns,
    /// the message is durable and will be handled; of several with the same id and key one takes effect (within
    /// `dedup.window`). Messages of one key that are sent one after the other are handled in that order. While the log
    /// has no room for the key's shard (`log.max_unread`), this waits; messages for other shards do not.
    ///
    /// ```
    /// # use perkey::{Engine, SendError, json};
    /// # use perkey::unstable::handler::example::Points;
    /// async fn earn(engine: &Engine, line: u64) -> Result<(), SendError> {
    ///     let id = format!("line-{line}");
    ///     engine.send::<Points>(&id, &json!({ "member": "ann", "points": 30 })).await
    /// }
    /// ```
    pub async fn send<H: Handler>(&self, id: &str, message: &impl Serialize) -> Result<(), SendError> {
        let message = self.entry.message::<H>(id, message)?;
        self.entry.put(vec![(H::SERVICE, message)]).await
    }

    /// Sends many, each with its id, in order and in few writes. On an error any number of the first ones may have been
    /// sent: sent again with the same ids each takes effect once.
    ///
    /// ```
    /// # use perkey::{Engine, SendError, json};
    /// # use perkey::unstable::handler::example::Points;
    /// async fn earn(engine: &Engine, points: Vec<u64>) -> Result<(), SendError> {
    ///     let lines = points.iter().zip(1..);
    ///     let message = |(points, line)| (format!("line-{line}"), json!({ "member": "ann", "points": points }));
    ///     engine.send_all::<Points, _>(lines.map(message)).await
    /// }
    /// ```
    pub async fn send_all<H: Handler, M: Serialize>(
        &self,
        messages: impl IntoIterator<Item = (String, M)>,
    ) -> Result<(), SendError> {
        let mut batch = Vec::new();
        for (id, message) in messages {
            batch.push((H::SERVICE, self.entry.message::<H>(&id, &message)?));
            if batch.len() == BATCH_MAX {
                self.entry.put(std::mem::take(&mut batch)).await?;
            }
        }
        if batch.is_empty() { Ok(()) } else { self.entry.put(batch).await }
    }

    /// The state of a key as of its last commit, or `None` if it has none. It is read from the store, beside the key's
    /// actor: a turn that is under way is not in it yet.
    ///
    /// ```
    /// # use perkey::{Engine, StoreError};
    /// # use perkey::unstable::handler::example::Points;
    /// async fn balance(engine: &Engine, member: &str) -> Result<i64, StoreError> {
    ///     Ok(engine.state::<Points>(member).await?.unwrap_or_default())
    /// }
    /// ```
    pub async fn state<H: Handler>(&self, key: &str) -> Result<Option<H::State>, StoreError> {
        let shard = shard_of(key, self.env.settings.ownership.shards);
        let of = ServiceKey { service: H::SERVICE.into(), key: key.into() };
        let row = self.env.store.load(shard, vec![of]).await?.into_iter().next().unwrap_or_default();
        let state =
            row.state.map(|stored| decode::<H>(Some(stored)).map_err(|error| StoreError::Corrupt(error.to_string())));
        state.transpose()
    }

    /// The questions of operators and tools to the store: shards, dead letters, timers, what happened to a message.
    #[doc(hidden)]
    pub fn queries(&self) -> &dyn Queries {
        self.env.store.queries()
    }
}

/// The entry for messages.
pub(super) struct Entry {
    env: Arc<Env>,
    /// Closed when the engine has ended.
    engine: watch::Receiver<Option<String>>,
    /// Bounded by the calls at once: each waits for its own.
    waiting: Mutex<VecDeque<WaitingSend>>,
    /// The line of the callers that want to write.
    line: Line<Room>,
}

struct WaitingSend {
    messages: Vec<(&'static str, Message)>,
    tell: oneshot::Sender<Result<(), SendError>>,
}

impl Entry {
    pub(super) fn new(env: Arc<Env>, engine: watch::Receiver<Option<String>>) -> Self {
        let room = Room::new(env.settings.log.max_unread, env.settings.ownership.shards);
        Self { env, engine, waiting: Mutex::default(), line: Line::new(room) }
    }

    fn message<H: Handler>(&self, id: &str, message: &impl Serialize) -> Result<Message, SendError> {
        let payload = serde_json::to_vec(message).map_err(|error| SendError::Refused(error.to_string()))?;
        let key =
            self.env.handlers.key_of(H::SERVICE, &payload).map_err(|error| SendError::Refused(error.to_string()))?;
        let draft = Draft {
            id,
            key: key.as_str(),
            kind: &format!("{}.sent", H::SERVICE),
            source: "perkey:send",
            time: self.env.clock.now(),
            headers: &[],
            payload: &payload,
        };
        let message = draft.build().map_err(|error| SendError::Refused(error.to_string()))?;
        let (bytes, max) = (message.frame().len(), self.env.settings.ingress.message_bytes_max);
        if bytes > max {
            let reason = format!("it has {bytes} bytes, at most {max} are allowed (ingress.message_bytes_max)");
            return Err(SendError::Refused(reason));
        }
        Ok(message)
    }

    async fn put(&self, messages: Vec<(&'static str, Message)>) -> Result<(), SendError> {
        loop {
            let (tell, mut told) = oneshot::channel();
            self.waiting().push_back(WaitingSend { messages: messages.clone(), tell });
            loop {
                tokio::select! {
                    biased;
                    answer = &mut told => match answer {
                        Ok(done) => return done,
                        // The caller that wrote for this one was dropped meanwhile: a message that was written all the
                        // same has its id.
                        Err(_) => break,
                    },
                    mut room = self.line.lock() => self.write(&mut room).await,
                }
            }
        }
    }

    /// Writes for the callers that have waited longest, among those for whose shards there is room.
    async fn write(&self, room: &mut Room) {
        let (mut batch, mut count, mut passed) = (Vec::new(), 0, 0);
        while count < BATCH_MAX {
            let Some(next) = self.next(BATCH_MAX - count, passed) else { break };
            let wanted = self.targets(&next);
            match room.is_there(self.env.store.queries(), &wanted).await {
                Ok(true) => {
                    room.used(&wanted);
                    count += next.messages.len();
                    batch.push(next);
                }
                // Nobody will make room any more.
                Ok(false) if self.engine.has_changed().is_err() => drop(next.tell.send(Err(SendError::Ended))),
                Ok(false) => {
                    self.put_back(next, passed);
                    passed += 1;
                }
                Err(error) => drop(next.tell.send(Err(error.into()))),
            }
        }
        if batch.is_empty() {
            if passed > 0 {
                sleep(LOOK_EVERY).await;
            }
            return;
        }
        let written = self.append(&batch).await;
        for waiting in batch {
            // A caller that gave up does not listen.
            waiting.tell.send(written.clone()).ok();
        }
    }

    /// The call at `place` of those that still wait, if it has at most `max` messages.
    fn next(&self, max: usize, place: usize) -> Option<WaitingSend> {
        let mut waiting = self.waiting();
        while waiting.get(place).is_some_and(|next| next.tell.is_closed()) {
            waiting.remove(place);
        }
        let fits = waiting.get(place).is_some_and(|next| next.messages.len() <= max);
        if fits { waiting.remove(place) } else { None }
    }

    fn put_back(&self, passed: WaitingSend, place: usize) {
        let mut waiting = self.waiting();
        let place = place.min(waiting.len());
        waiting.insert(place, passed);
    }

    fn targets(&self, waiting: &WaitingSend) -> Targets {
        let mut targets = Targets::new();
        for (_, message) in &waiting.messages {
            *targets.entry(shard_of(message.key(), self.env.settings.ownership.shards)).or_default() += 1;
        }
        targets
    }

    async fn append(&self, batch: &[WaitingSend]) -> Result<(), SendError> {
        let queries = self.env.store.queries();
        let messages = batch.iter().flat_map(|waiting| &waiting.messages);
        let rows = log_rows(self.env.settings.ownership.shards, messages.map(|(service, message)| (*service, message)));
        Ok(patiently(|| queries.append(rows.clone())).await?)
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<WaitingSend>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
