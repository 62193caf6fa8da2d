//! Payloads on their way between bytes, handlers and people: each service's by its codec.
//! In: payloads, JSON. Out: messages, keys, what is shown, what is written.

use std::panic::AssertUnwindSafe;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::{Handlers, Service, panic_text};
use crate::handler::codec::{JSON, undecodable};
use crate::handler::{ANSWER, CodecError, Fault, Handler, Payload, named_once, stays_inside};
use crate::message::{Key, Message};

/// A payload as people see it: all of it, in whatever form says all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// It is text.
    Text(String),
    /// The JSON that its service's codec makes of it.
    Decoded(Value),
    /// Neither.
    Base64(String),
}

/// The reason why a payload is of no use to a service.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// There is no such service; the sentence names the existing ones.
    #[error("{0}")]
    NoService(String),
    /// The handler cannot read it, or not write it.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The handler panicked over it.
    #[error("the handler panicked: {0}")]
    Panicked(String),
    /// It is JSON that may be read in several ways.
    #[error("it is not JSON that can be taken: {0}")]
    Ambiguous(CodecError),
    /// It is not JSON.
    #[error("it is not JSON: {0}")]
    NotJson(serde_json::Error),
}

impl Handlers {
    /// The key that `service`'s handler gives a payload; the error says why it does not decode, or which services exist.
    pub fn key_of<'a>(&self, service: &str, payload: impl Into<Payload<'a>>) -> Result<Key, PayloadError> {
        self.wanted(service)?.key_of(&payload.into())
    }

    /// A message's payload for people.
    pub fn shown(&self, service: &str, message: &Message) -> Shown {
        let payload = Payload::from(message);
        let schema = self.named(service).map(|service| service.schema());
        let decodes = schema.filter(|schema| schema.content_type() != JSON && !payload.is_json());
        if let Some(Ok(json)) = decodes.map(|schema| schema.to_json(&payload)) {
            return Shown::Decoded(json);
        }
        match std::str::from_utf8(payload.bytes()) {
            Ok(text) => Shown::Text(text.to_owned()),
            Err(_) => Shown::Base64(BASE64_STANDARD.encode(payload.bytes())),
        }
    }

    /// A payload of `service` that says what `json` says, with the content type that must be named beside it. In the place
    /// of `like` it is written as that was, whose content type then stays.
    pub fn written(
        &self,
        service: &str,
        json: Vec<u8>,
        like: Option<&Message>,
    ) -> Result<(Vec<u8>, Option<&'static str>), PayloadError> {
        let schema = self.wanted(service)?.schema();
        if schema.content_type() == JSON || like.is_some_and(is_json) {
            return Ok((json, None));
        }
        named_once(&json).map_err(PayloadError::Ambiguous)?;
        let json: Value = serde_json::from_slice(&json).map_err(PayloadError::NotJson)?;
        let payload = schema.encode(&json)?;
        Ok((payload, Some(schema.content_type())))
    }

    fn wanted(&self, service: &str) -> Result<&dyn Service, PayloadError> {
        self.named(service).ok_or_else(|| PayloadError::NoService(self.unknown(service)))
    }

    fn named(&self, service: &str) -> Option<&dyn Service> {
        self.services.iter().find(|known| known.name() == service).map(|service| &**service)
    }
}

/// True where a message's payload is JSON, as it says, or as it is where it says nothing.
fn is_json(message: &Message) -> bool {
    let payload = Payload::from(message);
    payload.is_json() || payload.content_type().is_none() && payload.json::<IgnoredAny>().is_ok()
}

/// A message as its handler understands it; an answer is what the handler makes of it.
pub(crate) fn understand<H: Handler>(handler: &H, payload: &Payload<'_>) -> Result<H::Message, Fault> {
    let rejected = |error| Fault::Reject(undecodable(&error, payload));
    if payload.kind() == ANSWER {
        handler.answer(payload.json().map_err(rejected)?)
    } else {
        read(handler, payload).map_err(rejected)
    }
}

/// Refuses a message from outside that came under another key than its own: it would change what it is not about. What
/// services of a store send each other is under the key that its sender chose.
pub(super) fn own_key<H: Handler>(handler: &H, read: &H::Message, message: &Message) -> Result<(), Fault> {
    if stays_inside(message.kind()) {
        return Ok(());
    }
    let own = handler.key(read);
    let own = own.as_str();
    // A message that names no key is of whichever it came under.
    if own.is_empty() || own == message.key() {
        return Ok(());
    }
    Err(Fault::Reject(format!(
        "the message came under the key {:?}, its own is {own:?}: send it under its own, or let the binding say key = \
         \"handler\"",
        message.key()
    )))
}

/// The key that a handler gives a payload.
pub(super) fn key_of<H: Handler>(handler: &H, payload: &Payload<'_>) -> Result<Key, PayloadError> {
    // Keys are worked out by the shard's own actor, which a panic must not end.
    let key = AssertUnwindSafe(|| read(handler, payload).map(|message| handler.key(&message)));
    let key = std::panic::catch_unwind(key);
    Ok(key.map_err(|panic| PayloadError::Panicked(panic_text(panic)))??)
}

fn read<H: Handler>(handler: &H, payload: &Payload<'_>) -> Result<H::Message, CodecError> {
    if payload.is_internal() { payload.json() } else { handler.codec().decode(payload) }
}
