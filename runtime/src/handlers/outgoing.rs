//! The messages that a turn sends out. Their ids are derived from the message that caused them, so that a repeat has
//! the same ids.
//! In: a message, the effects of its turn. Out: events; commands and answers for services of this store.

use std::sync::Arc;

use uuid::Uuid;

use super::RunContext;
use super::run::TurnEnd;
use crate::handler::{Asked, COMMAND, Effects, Outcome, SentMessage, TIMER, TIMER_NAME, call_of};
use crate::message::{Draft, Message, digest, keyed_hash};
use crate::store::calls::{CallOutcome, Reply};
use crate::store::{EmittedEvent, TimerWrite};

/// The handler whose turns they are.
pub(super) struct TurnOrigin {
    service: Arc<str>,
    /// The CloudEvents source of what it sends.
    source: String,
}

impl TurnOrigin {
    pub(super) fn of(service: &str) -> Self {
        Self { service: service.into(), source: format!("perkey:{service}") }
    }
}

/// Headers of a message that whatever its turn sends out has, too.
const TRACE: &str = "traceparent";
const CARRIED: [&str; 3] = [TRACE, "tracestate", "idempotencykey"];
const SAGA: &str = "sagaid";
const CONTENT_TYPE: &str = "content-type";

/// Tells commands, the answer and timers from events, where an id is derived.
const SENT: &[u8] = b"sent";
const ANSWERED: &[u8] = b"answered";
const SCHEDULED: &[u8] = b"scheduled";

/// The end of a turn that succeeded.
/// `cause` is its message, with the `traceparent` of what it sends.
pub(super) fn end(
    origin: &TurnOrigin,
    cause: &Message,
    trace: Option<&str>,
    effects: Effects,
    context: &RunContext,
) -> TurnEnd {
    let (events, sent, timers) = of(origin, cause, trace, &effects, context);
    let Effects { rows, statements, reply, .. } = effects;
    let reply = call_of(cause).map(|call| Reply { call, outcome: CallOutcome::done(reply) });
    TurnEnd::Done { events, sent, rows, timers, statements, reply }
}

/// Of a turn that succeeded: its events, what it sends to services, the answer among it if one is wanted, its timers.
fn of(
    origin: &TurnOrigin,
    cause: &Message,
    trace: Option<&str>,
    effects: &Effects,
    context: &RunContext,
) -> (Vec<EmittedEvent>, Vec<SentMessage>, Vec<TimerWrite>) {
    let asked = Asked::of(cause);
    if effects.events.is_empty() && effects.sent.is_empty() && effects.timers.is_empty() && asked.is_none() {
        return (Vec::new(), Vec::new(), Vec::new());
    }
    let mut ids = Ids::new(origin, cause, &context.hash_key);
    let saga = effects.saga.as_deref();
    let carried = cause.headers().filter(|(name, _)| CARRIED.contains(name) || *name == SAGA && saga.is_none());
    let carried = carried.map(|(name, value)| (name, if name == TRACE { trace.unwrap_or(value) } else { value }));
    let carried: Vec<_> = carried.chain(saga.map(|id| (SAGA, id))).collect();
    let time = context.clock.now();
    let from = Draft { key: cause.key(), source: &origin.source, time, headers: &carried, ..Draft::default() };
    let mut events = Vec::with_capacity(effects.events.len());
    for (ordinal, event) in (0_u64..).zip(&effects.events) {
        let mut buffer = Uuid::encode_buffer();
        let id = ids.next(&[&ordinal.to_le_bytes()[..]]).hyphenated().encode_lower(&mut buffer);
        let typed: Vec<_>;
        let headers = match event.content_type {
            None => &carried[..],
            Some(said) => {
                typed = carried.iter().copied().chain([(CONTENT_TYPE, said)]).collect();
                &typed
            }
        };
        let draft = Draft { id, kind: &event.kind, payload: &event.payload, headers, ..from };
        // A turn's bytes are bounded far below what a frame can hold.
        events.extend(draft.build_unchecked().ok().map(|message| EmittedEvent {
            service: origin.service.clone(),
            cause: ids.cause,
            message,
        }));
    }
    let mut sent = Vec::with_capacity(effects.sent.len());
    for (ordinal, command) in (0_u64..).zip(&effects.sent) {
        let id = ids.next(&[&ordinal.to_le_bytes()[..], SENT]).to_string();
        let mut headers = carried.clone();
        if let Some(name) = &command.ask {
            headers.extend(Asked { service: &origin.service, key: cause.key(), name }.headers());
        }
        let (key, payload) = (command.key.as_str(), &command.payload[..]);
        let draft = Draft { id: &id, key, kind: COMMAND, headers: &headers, payload, ..from };
        let message = draft.build_unchecked().ok();
        sent.extend(message.map(|message| SentMessage { service: command.service.into(), message }));
    }
    let timers = (0_u64..).zip(&effects.timers).filter_map(|(ordinal, timer)| {
        let id = ids.next(&[&ordinal.to_le_bytes()[..], SCHEDULED]).to_string();
        let headers: Vec<_> = carried.iter().copied().chain([(TIMER_NAME, &*timer.name)]).collect();
        let draft = |payload| Draft { id: &id, kind: TIMER, headers: &headers, payload, ..from }.build_unchecked().ok();
        let set = match &timer.set {
            Some((at, payload)) => Some((*at, draft(payload)?)),
            None => None,
        };
        let key = cause.key().into();
        Some(TimerWrite { service: origin.service.clone(), key, name: timer.name.as_str().into(), set })
    });
    let timers = timers.collect();
    if let Some(asked) = asked {
        let reply = effects.reply.as_ref().and_then(|reply| serde_json::from_slice(reply).ok());
        let id = ids.next(&[ANSWERED]);
        sent.extend(asked.answer(&origin.source, id, Outcome::Done(reply.unwrap_or_default()), (cause, time)));
    }
    (events, sent, timers)
}

/// Ids derived from what a turn worked on.
struct Ids<'a> {
    cause: [u8; 16],
    hash_key: &'a [u8; 32],
    /// The part that all of them have in common; what tells one from another follows it.
    origin: Vec<u8>,
    common: usize,
}

impl<'a> Ids<'a> {
    fn new(from: &TurnOrigin, cause: &Message, hash_key: &'a [u8; 32]) -> Self {
        let cause_id = digest(cause.id(), hash_key);
        let mut origin = Vec::with_capacity(cause_id.len() + cause.key().len() + from.service.len() + 16);
        origin.extend_from_slice(&cause_id);
        origin.extend_from_slice(cause.key().as_bytes());
        origin.extend_from_slice(from.service.as_bytes());
        let common = origin.len();
        Self { cause: cause_id, hash_key, origin, common }
    }

    fn next(&mut self, own: &[&[u8]]) -> Uuid {
        self.origin.truncate(self.common);
        own.iter().for_each(|part| self.origin.extend_from_slice(part));
        Uuid::new_v8(keyed_hash(&self.origin, self.hash_key))
    }
}
