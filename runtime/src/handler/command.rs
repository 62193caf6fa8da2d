//! Commands that a handler sends to other keys, and the answers that it gets.
//! In: commands put on a turn. Out: messages for the embedded log; answers as their asker is given them.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::Fault;
use crate::clock::Millis;
use crate::message::{Draft, Key, Message};

/// CloudEvents `type` of a command that a handler sent.
pub const COMMAND: &str = "perkey.command";
/// CloudEvents `type` of the answer to one.
pub const ANSWER: &str = "perkey.answer";

/// CloudEvents `type` of a call: a command whose sender, outside, waits for its reply.
pub const CALL: &str = "perkey.call";

/// Header of a call's message: what identifies the call.
pub(crate) const CALL_ID: &str = "perkeycall";

/// The call that a message is, if it is one.
pub fn call_of(message: &Message) -> Option<CallId> {
    let id = (message.kind() == CALL).then(|| message.header(CALL_ID)).flatten()?;
    id.parse().ok()
}

/// CloudEvents `type` of a timer that fired.
pub const TIMER: &str = "perkey.timer";

/// Header of a timer's message: its name.
pub(crate) const TIMER_NAME: &str = "perkeytimer";

/// Headers of a command whose sender wants to hear how it ended.
const ASKED: [&str; 3] = ["perkeyaskedby", "perkeyaskedkey", "perkeyaskedname"];

/// True for types of messages that are made within a store only: whoever can put a message into a topic or a table could
/// otherwise answer in another's name.
pub(crate) fn stays_inside(kind: &str) -> bool {
    kind == COMMAND || kind == ANSWER || kind == TIMER || kind == CALL
}

/// True for headers that mean something to Perkey itself: none of them is taken from outside.
pub(crate) fn is_reserved(header: &str) -> bool {
    header.starts_with("perkey")
}

/// True for a message whose end another key hears of, and for one by which a key heard of an end: that key would not know
/// of a change to it.
pub fn is_between_keys(message: &Message) -> bool {
    message.kind() == ANSWER || Asked::of(message).is_some()
}

/// The key that wants to hear how a command ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) service: &'a str,
    pub(crate) key: &'a str,
    pub(crate) name: &'a str,
}

impl<'a> Asked<'a> {
    pub(crate) fn of(command: &'a Message) -> Option<Self> {
        if command.kind() != COMMAND {
            return None;
        }
        let [service, key, name] = ASKED.map(|name| command.header(name));
        Some(Self { service: service?, key: key?, name: name? })
    }

    pub(crate) fn headers(self) -> [(&'static str, &'a str); 3] {
        let [by, key, name] = ASKED;
        [(by, self.service), (key, self.key), (name, self.name)]
    }

    /// The answer to `of` at this time, for the key that asked.
    pub(crate) fn answer(self, from: &str, id: Uuid, outcome: Outcome, of: (&Message, Millis)) -> Option<SentMessage> {
        let (command, time) = of;
        let payload = serde_json::to_vec(&Answer { name: self.name.to_owned(), outcome }).ok()?;
        let carried: Vec<_> = command.headers().filter(|(name, _)| !is_reserved(name)).collect();
        let draft = Draft {
            id: &id.to_string(),
            key: self.key,
            kind: ANSWER,
            source: from,
            time,
            headers: &carried,
            payload: &payload,
        };
        let message = draft.build_unchecked().ok()?;
        Some(SentMessage { service: self.service.into(), message })
    }
}

/// A command as a handler sent it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The service whose handler is to handle it.
    pub service: &'static str,
    /// The key under which it is handled.
    pub key: Key,
    /// JSON.
    pub payload: Bytes,
    /// The name that its answer is wanted under.
    pub ask: Option<String>,
}

/// The answer to a command that a turn asked for with [`super::Turn::ask`]. There is one in every case: when the command
/// succeeded, and when it became a dead letter; and a second one where an operator's replay of that succeeds.
///
/// ```
/// use perkey::{Answer, Outcome, json};
///
/// let answer = Answer { name: "charge".to_owned(), outcome: Outcome::Done(json!({ "receipt": "r-1" })) };
/// let told = match answer.outcome {
///     Outcome::Done(reply) => format!("{}: {}", answer.name, reply["receipt"]),
///     Outcome::DeadLetter(reason) => format!("{}: given up, as {reason}", answer.name),
/// };
/// assert_eq!(told, r#"charge: "r-1""#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The name that it was asked under.
    pub name: String,
    /// The end of the command.
    pub outcome: Outcome,
}

/// The end of a command.
///
/// ```
/// use perkey::{Outcome, json};
///
/// let done = Outcome::Done(json!({ "balance": 30 }));
/// let failed = Outcome::DeadLetter("there is no such member".to_owned());
/// assert_ne!(done, failed);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It took effect, and its handler replied this; `null` where it replied nothing.
    Done(Value),
    /// It had no effect in the store and is a dead letter, for this reason; what it asked of others may have happened. Where
    /// an operator replays it and it succeeds, that is answered, too.
    DeadLetter(String),
}

impl Outcome {
    /// The reply as `T`; an error where it was given up, or is something else. In `Handler::answer`, match on the outcome where
    /// a failure is to be compensated: `?` there rejects the answer, and no turn hears of it.
    ///
    /// ```
    /// use perkey::{Fault, Outcome, json};
    ///
    /// let balance: u64 = Outcome::Done(json!(30)).reply()?;
    /// assert_eq!(balance, 30);
    /// assert!(matches!(Outcome::DeadLetter("no".to_owned()).reply::<u64>(), Err(Fault::Reject(_))));
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn reply<T: DeserializeOwned>(self) -> Result<T, Fault> {
        match self {
            Self::Done(reply) => Ok(serde_json::from_value(reply)?),
            Self::DeadLetter(reason) => Err(Fault::reject(reason)),
        }
    }
}

/// A message for a service of this store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentMessage {
    /// The service that is to handle it.
    pub service: Arc<str>,
    /// The message, under the key that it is to be handled under.
    pub message: Message,
}

/// The identity of a call: a hash of tenant, principal, operation and idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub [u8; 16]);

impl std::fmt::Display for CallId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for CallId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut id = [0; 16];
        if text.len() != 32 || !text.is_ascii() {
            return Err(());
        }
        for (at, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| ())?;
        }
        Ok(Self(id))
    }
}
