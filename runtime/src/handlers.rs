//! The handlers of a program, behind one face: typed inside, bytes outside.
//! In: handlers; runs of messages. Out: what each turn did, the state after them.

mod outgoing;
mod panics;
mod payloads;
pub mod run;
mod states;

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either, select};
pub(crate) use panics::discard;
use panics::{beside_the_turns, panic_text, panicked};
use payloads::own_key;
pub(crate) use payloads::understand;
pub use payloads::{PayloadError, Shown};
pub(crate) use states::decode;
use states::encode;
use tracing::{Instrument, Span};

pub(crate) use self::run::{Cell, RunContext, Settled};
use self::run::{HandlerPanic, RunItem, Stored, TurnEnd, TurnFault};
use crate::clock::{Stopwatch, millis, sleep};
use crate::handler::{AfterDeadLetter, Fault, Handler, Payload, RetryPolicy, Schedule, Schema, Table, Turn};
use crate::message::{Key, ServiceIx};
use crate::settings::load::or_near;
use crate::store::lease::Code;
use crate::telemetry::traces;

/// The handlers that a program runs.
///
/// ```
/// # use perkey::Handlers;
/// # use perkey::unstable::handler::example::Points;
/// let handlers = Handlers::new().with(Points);
/// assert_eq!(handlers.services().len(), 1);
/// ```
#[derive(Clone, Default)]
pub struct Handlers {
    services: Vec<Arc<dyn Service>>,
}

impl std::fmt::Debug for Handlers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.services.iter().map(|service| service.name())).finish()
    }
}

impl Handlers {
    /// No handlers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a handler; one of the same service replaces the earlier one.
    ///
    /// ```
    /// # use perkey::Handlers;
    /// # use perkey::unstable::handler::example::Points;
    /// let handlers = Handlers::new().with(Points);
    /// assert_eq!(&*handlers.services()[0], "points");
    /// ```
    #[must_use]
    pub fn with<H: Handler>(mut self, handler: H) -> Self {
        self.services.retain(|service| service.name() != H::SERVICE);
        self.services.push(Arc::new(Typed::new(handler)));
        self
    }

    /// The services' names, in the order of their indices.
    pub fn services(&self) -> Vec<Arc<str>> {
        self.services.iter().map(|service| service.name().into()).collect()
    }
}

#[doc(hidden)]
impl Handlers {
    /// The versions of the states that they read: the `STATE_VERSION` of each.
    pub fn code(&self) -> Code {
        Code::of(self.services.iter().map(|service| (service.name(), service.state_version())))
    }

    /// The tables of all handlers.
    pub fn tables(&self) -> Vec<Table> {
        self.services.iter().flat_map(|service| service.tables()).collect()
    }

    /// The services' names, each with what it needs, in the order of their indices.
    pub fn needs(&self) -> Vec<(&str, &'static [&'static str])> {
        self.services.iter().map(|service| (service.name(), service.needs())).collect()
    }

    /// The index of a service.
    pub fn index_of(&self, service: &str) -> Option<ServiceIx> {
        self.services.iter().position(|known| known.name() == service).map(ServiceIx::nth)
    }

    /// A sentence that there is no such service, with the existing ones.
    pub fn unknown(&self, service: &str) -> String {
        let known = self.services();
        let near = or_near(service, known.iter().map(|name| &**name));
        format!("there is no service {service:?}; this program has: {}{near}", known.join(", "))
    }

    pub(crate) fn all(&self) -> &[Arc<dyn Service>] {
        &self.services
    }
}

/// A handler without its types.
pub(crate) trait Service: Send + Sync {
    fn name(&self) -> &'static str;
    fn after_dead_letter(&self) -> AfterDeadLetter;
    fn retry(&self) -> Option<RetryPolicy>;
    fn tables(&self) -> Vec<Table>;
    fn schedules(&self) -> Vec<Schedule>;
    fn state_version(&self) -> u32;
    fn needs(&self) -> &'static [&'static str];
    fn schema(&self) -> &dyn Schema;
    fn key_of(&self, payload: &Payload<'_>) -> Result<Key, PayloadError>;
    /// Runs messages in order. `early` is told what has settled when a turn outlasts the slice, once.
    fn run<'a>(
        &'a self,
        cell: &'a mut Cell,
        state: Option<Stored>,
        items: Vec<RunItem>,
        context: &'a RunContext,
        early: &'a (dyn Fn(Settled) + Send + Sync),
    ) -> BoxFuture<'a, Settled>;
}

struct Typed<H> {
    handler: H,
    origin: outgoing::TurnOrigin,
}

impl<H: Handler> Typed<H> {
    fn new(handler: H) -> Self {
        Self { handler, origin: outgoing::TurnOrigin::of(H::SERVICE) }
    }
}

impl<H: Handler> Service for Typed<H> {
    fn name(&self) -> &'static str {
        H::SERVICE
    }

    fn after_dead_letter(&self) -> AfterDeadLetter {
        self.handler.after_dead_letter()
    }

    fn retry(&self) -> Option<RetryPolicy> {
        self.handler.retry()
    }

    fn tables(&self) -> Vec<Table> {
        self.handler.tables()
    }

    fn schedules(&self) -> Vec<Schedule> {
        self.handler.schedules()
    }

    fn state_version(&self) -> u32 {
        H::STATE_VERSION
    }

    fn needs(&self) -> &'static [&'static str] {
        H::NEEDS
    }

    fn schema(&self) -> &dyn Schema {
        self.handler.codec()
    }

    fn key_of(&self, payload: &Payload<'_>) -> Result<Key, PayloadError> {
        payloads::key_of(&self.handler, payload)
    }

    fn run<'a>(
        &'a self,
        cell: &'a mut Cell,
        state: Option<Stored>,
        items: Vec<RunItem>,
        context: &'a RunContext,
        early: &'a (dyn Fn(Settled) + Send + Sync),
    ) -> BoxFuture<'a, Settled> {
        Box::pin(async move {
            let (all, told) = (items.len(), AtomicUsize::new(0));
            let early = |settled: Settled| {
                told.fetch_add(settled.turns.len(), Ordering::Relaxed);
                early(settled);
            };
            // Around the turns, too, code of the handler's runs: its state is decoded, copied, encoded and dropped.
            let run = AssertUnwindSafe(ready(self, cell, state, items, context, &early)).catch_unwind().await;
            run.unwrap_or_else(|panic| beside_the_turns(all - told.into_inner(), panic_text(panic)))
        })
    }
}

/// A run, once the state is there that it starts from.
async fn ready<H: Handler>(
    service: &Typed<H>,
    cell: &mut Cell,
    state: Option<Stored>,
    items: Vec<RunItem>,
    context: &RunContext,
    early: &(dyn Fn(Settled) + Send + Sync),
) -> Settled {
    let failed = |error| Settled { turns: vec![TurnEnd::Fault(TurnFault::Retry(error))], ..Settled::default() };
    if let Some(state) = state {
        // What is left of another key must not be this one's fault.
        discard(cell.take());
        match decode::<H>(state) {
            Ok(state) => *cell = Some(Box::new(state)),
            Err(error) => return failed(error.to_string()),
        }
    }
    match cell.as_mut().and_then(|cell| cell.downcast_mut::<H::State>()) {
        Some(state) => run(service, state, items, context, early).await,
        None => failed("the key's actor lost its state".to_owned()),
    }
}

/// One run of one key: turns in order, until one has to be tried later, panics, or the slice is over.
async fn run<H: Handler>(
    service: &Typed<H>,
    state: &mut H::State,
    items: Vec<RunItem>,
    context: &RunContext,
    early: &(dyn Fn(Settled) + Send + Sync),
) -> Settled {
    let watch = Stopwatch::start();
    let mut settled = Settled { turns: Vec::with_capacity(items.len()), ..Settled::default() };
    let mut change = Change::None;
    let handler = &service.handler;
    let hold = handler.after_dead_letter() == AfterDeadLetter::HoldKey;
    let mut told = false;
    for item in items {
        let before = state.clone();
        let mut turn = Turn::new(item.message.clone(), item.attempt, context.clock.now(), context.limits);
        let span = traces::turn(H::SERVICE, &item.message, item.attempt);
        let end = {
            let attempt = attempt(handler, state, &mut turn).instrument(span.clone());
            let attempt = AssertUnwindSafe(attempt).catch_unwind();
            let mut attempt = pin!(attempt);
            match attempt.as_mut().now_or_never() {
                Some(end) => end,
                None if told || settled.turns.is_empty() => attempt.await,
                None => match select(attempt.as_mut(), pin!(sleep(context.slice))).await {
                    Either::Left((end, _)) => end,
                    Either::Right(((), _)) => {
                        told = true;
                        // A state that does not encode is dealt with when the run ends.
                        if change != Change::Written || encode::<H>(&before).is_ok() {
                            let mut part = std::mem::take(&mut settled);
                            close::<H>(&mut part, &before, std::mem::take(&mut change));
                            early(part);
                        }
                        attempt.await
                    }
                },
            }
        };
        let own = traces::traceparent(&span);
        let stop = match end {
            Ok(Ok(())) => {
                change = changed::<H>(state, &turn);
                let (origin, trace) = (&service.origin, own.as_deref());
                settled.turns.push(outgoing::end(origin, &item.message, trace, turn.into_effects(), context));
                false
            }
            Ok(Err(end)) => {
                note(&span, &end);
                *state = before;
                let stop = hold || !matches!(end, TurnEnd::Fault(TurnFault::Reject(_) | TurnFault::Refuse(..)));
                settled.turns.push(end);
                stop
            }
            Err(panic) => {
                *state = before;
                let reason = panic_text(panic);
                traces::failed(&span, &reason);
                settled.turns.push(TurnEnd::Fault(TurnFault::Retry(format!("the handler panicked: {reason}"))));
                settled.panic = Some(panicked(&item.message, own, reason));
                true
            }
        };
        if stop || watch.elapsed() >= context.slice {
            break;
        }
    }
    close::<H>(&mut settled, state, change);
    settled
}

/// The change that a successful turn made to the state.
fn changed<H: Handler>(state: &mut H::State, turn: &Turn) -> Change {
    if turn.effects().forget {
        *state = H::State::default();
        return Change::Forgotten;
    }
    Change::Written
}

/// A turn's span says how it failed.
fn note(span: &Span, end: &TurnEnd) {
    match end {
        TurnEnd::Fault(TurnFault::Defer(_)) | TurnEnd::Done { .. } => {}
        TurnEnd::Fault(
            TurnFault::Retry(error) | TurnFault::Reject(error) | TurnFault::Refuse(_, error) | TurnFault::GiveUp(error),
        )
        | TurnEnd::Unavailable(_, error) => traces::failed(span, error),
    }
}

async fn attempt<H: Handler>(handler: &H, state: &mut H::State, turn: &mut Turn) -> Result<(), TurnEnd> {
    let message = understand(handler, &turn.message().into()).map_err(faulted::<H>)?;
    own_key(handler, &message, turn.message()).map_err(faulted::<H>)?;
    handler.handle(state, message, turn).await.map_err(faulted::<H>)
}

fn faulted<H: Handler>(fault: Fault) -> TurnEnd {
    TurnEnd::Fault(match fault {
        Fault::Retry(error) => TurnFault::Retry(error),
        Fault::Reject(reason) => TurnFault::Reject(reason),
        Fault::Refuse { code, reason } => TurnFault::Refuse(code, reason),
        Fault::Defer(delay) => TurnFault::Defer(millis(delay)),
        Fault::Unavailable { dependency, reason } => match H::NEEDS.iter().position(|need| *need == dependency) {
            Some(which) => return TurnEnd::Unavailable(which, reason),
            None => {
                let service = H::SERVICE;
                TurnFault::Retry(format!(
                    "{dependency} is not available ({service} does not name it in NEEDS): {reason}"
                ))
            }
        },
    })
}

/// The change that the turns so far made to the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Change {
    #[default]
    None,
    Written,
    Forgotten,
}

/// Encodes the state, once for all turns of a run.
fn close<H: Handler>(settled: &mut Settled, state: &H::State, change: Change) {
    match change {
        Change::None => return,
        Change::Forgotten => {
            settled.state = Some(None);
            return;
        }
        Change::Written => {}
    }
    match encode::<H>(state) {
        Ok(json) => settled.state = Some(Some((H::STATE_VERSION, json))),
        // None of them counts: the actor's copy is given up with it.
        Err(fault) => {
            settled.alone = settled.turns.len() > 1;
            settled.turns.clear();
            if !settled.alone {
                settled.turns.push(TurnEnd::Fault(fault));
            }
            settled.panic.get_or_insert_with(|| HandlerPanic {
                message_id: String::new(),
                cause: None,
                reason: "the state does not encode".to_owned(),
            });
        }
    }
}
