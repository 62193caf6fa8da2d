//! One handler, given / when / then.
//! In: a handler, a state, messages. Out: the effects of the last turn, compared with the expected ones.

use std::cell::OnceCell;

use futures_util::FutureExt;
use serde::Serialize;
use serde_json::Value;

use crate::clock::Millis;
use crate::handler::codec::JSON;
use crate::handler::{
    ANSWER, Answer, Effects, Emitted, Fault, Handler, Outcome, Payload, Scheduled, Schema, Turn, TurnLimits,
};
use crate::handlers::{decode, understand};
use crate::message::Draft;

thread_local! {
    static RUNTIME: OnceCell<tokio::runtime::Runtime> = const { OnceCell::new() };
}

/// A handler and the state of one of its keys, before a turn.
///
/// ```
/// use perkey::testing::Given;
/// use perkey::{Fault, Handler, Key, Turn};
/// use serde::{Deserialize, Serialize};
/// use perkey::json;
///
/// struct Balances { limit: i64 }
///
/// #[derive(Deserialize)]
/// struct Posted { account: String, amount: i64 }
///
/// #[derive(Clone, Default, Serialize, Deserialize)]
/// struct Balance { cents: i64 }
///
/// impl Handler for Balances {
///     const SERVICE: &'static str = "balances";
///     type Message = Posted;
///     type State = Balance;
///
///     fn key(&self, message: &Posted) -> Key {
///         message.account.as_str().into()
///     }
///
///     async fn handle(&self, balance: &mut Balance, message: Posted, turn: &mut Turn) -> Result<(), Fault> {
///         balance.cents += message.amount;
///         if balance.cents < self.limit {
///             return Err(Fault::reject("the limit is reached"));
///         }
///         turn.emit("balance.changed", balance)?;
///         turn.reply(balance)
///     }
/// }
///
/// Given::handler(Balances { limit: 0 })
///     .messages([json!({ "account": "a", "amount": 70 })])
///     .when(json!({ "account": "a", "amount": -20 }))
///     .then_state(json!({ "cents": 50 }))
///     .then_events(["balance.changed"])
///     .then_reply(json!({ "cents": 50 }));
///
/// Given::handler(Balances { limit: 0 })
///     .when(json!({ "account": "a", "amount": -20 }))
///     .then_rejects("limit")
///     .then_state(json!({ "cents": 0 }));
/// ```
pub struct Given<H: Handler> {
    handler: H,
    state: H::State,
    attempt: u32,
    now: Millis,
    limits: TurnLimits,
    turns: u64,
    /// The key of the last message that was not an answer.
    key: String,
}

/// The outcome of a turn, to be compared with what it should have been.
///
/// ```
/// # use perkey::{json, testing::Given};
/// # use perkey::unstable::handler::example::Points;
/// let then = Given::handler(Points).when(json!({ "member": "ann", "points": 30 }));
/// then.then_state(30).then_reply(30).when(json!({ "member": "ann", "points": 30 })).then_reply(60);
/// ```
pub struct Then<H: Handler> {
    given: Given<H>,
    before: Value,
    effects: Effects,
    fault: Option<Fault>,
}

impl<H: Handler> Given<H> {
    /// The handler, with the state of a new key.
    ///
    /// ```
    /// # use perkey::{json, testing::Given};
    /// # use perkey::unstable::handler::example::Points;
    /// Given::handler(Points).when(json!({ "member": "ann", "points": 30 })).then_state(30);
    /// ```
    pub fn handler(handler: H) -> Self {
        Self {
            handler,
            state: H::State::default(),
            attempt: 1,
            now: 0,
            limits: TurnLimits::default(),
            turns: 0,
            key: String::new(),
        }
    }

    /// Sets the key's state.
    ///
    /// ```
    /// # use perkey::{json, testing::Given};
    /// # use perkey::unstable::handler::example::Points;
    /// Given::handler(Points).state(70).when(json!({ "member": "ann", "points": 30 })).then_state(100);
    /// ```
    #[must_use]
    pub fn state(mut self, state: H::State) -> Self {
        self.state = state;
        self
    }

    /// Sets the key's state as an older version of the handler stored it; it must be one that can be upgraded.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Turn, json, serde_json::Value, testing::Given};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// const STATE_VERSION: u32 = 2;
    ///
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// #     async fn handle(&self, balance: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    /// #         if earned.points == 0 {
    /// #             return Err(Fault::reject("no points"));
    /// #         }
    /// #         *balance += earned.points;
    /// #         turn.emit("points.earned", &json!({ "member": earned.member, "points": earned.points }))?;
    /// #         turn.reply(balance)
    /// #     }
    ///
    /// fn upgrade(_: u32, stored: Value) -> Result<i64, Fault> {
    ///     Ok(stored.as_str().unwrap_or_default().parse()?)
    /// }
    /// # }
    ///
    /// Given::handler(Points)
    ///     .stored(1, &json!("70"))
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_state(100);
    /// ```
    #[must_use]
    #[track_caller]
    pub fn stored(self, version: u32, state: &Value) -> Self {
        let state = decode::<H>(Some((version, state.to_string().into())));
        self.state(state.expect("a stored state is one that the handler upgrades"))
    }

    /// Handles messages beforehand; each must succeed.
    ///
    /// ```
    /// # use perkey::{json, testing::Given};
    /// # use perkey::unstable::handler::example::Points;
    /// Given::handler(Points)
    ///     .messages([json!({ "member": "ann", "points": 30 }), json!({ "member": "ann", "points": 30 })])
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_state(90);
    /// ```
    #[must_use]
    #[track_caller]
    pub fn messages<M: Serialize>(mut self, messages: impl IntoIterator<Item = M>) -> Self {
        for message in messages {
            self = self.when(message).then_succeeds().given;
        }
        self
    }

    /// Sets the number of the turn's attempt, from 1.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Turn, json, testing::Given};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// async fn handle(&self, _: &mut i64, _: Earned, turn: &mut Turn) -> Result<(), Fault> {
    ///     if turn.attempt() == 1 { Err(Fault::retry("busy")) } else { Ok(()) }
    /// }
    /// # }
    ///
    /// Given::handler(Points).attempt(1).when(json!({ "member": "ann", "points": 30 })).then_retries("busy");
    /// Given::handler(Points).attempt(2).when(json!({ "member": "ann", "points": 30 })).then_succeeds();
    /// ```
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Sets the time of the turn, in milliseconds since the epoch; 0 by default.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Turn, json, testing::Given};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// async fn handle(&self, _: &mut i64, _: Earned, turn: &mut Turn) -> Result<(), Fault> {
    ///     turn.reply(&json!({ "at": turn.now() }))
    /// }
    /// # }
    ///
    /// Given::handler(Points)
    ///     .now(1_000)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_reply(json!({ "at": 1_000 }));
    /// ```
    #[must_use]
    pub fn now(mut self, now: Millis) -> Self {
        self.now = now;
        self
    }

    /// Sets the bounds of the turn.
    ///
    /// ```
    /// # use perkey::{json, testing::{Given, TurnLimits}};
    /// # use perkey::unstable::handler::example::Points;
    /// let none = TurnLimits { events_max: 0, ..TurnLimits::default() };
    /// Given::handler(Points)
    ///     .limits(none)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_rejects("more than 0");
    /// ```
    #[must_use]
    pub fn limits(mut self, limits: TurnLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Handles a message, given as a value that becomes its JSON. Its id is `message-1`, `message-2`, and so on.
    ///
    /// ```
    /// # use perkey::{json, testing::Given};
    /// # use perkey::unstable::handler::example::Points;
    /// Given::handler(Points).when(json!({ "member": "ann", "points": 30 })).then_succeeds().then_state(30);
    /// ```
    #[track_caller]
    pub fn when(self, message: impl Serialize) -> Then<H> {
        let json = serde_json::to_vec(&message).expect("a message becomes JSON");
        let content_type = Schema::content_type(self.handler.codec());
        if content_type == JSON {
            return self.turn("given", &json, None);
        }
        let json = serde_json::from_slice(&json).expect("JSON that was just written is read");
        let payload = self.handler.codec().encode(&json).expect("a message fits its handler's schema");
        self.turn("given", &payload, Some(content_type))
    }

    /// Handles a message with this payload and content type, which need not be ones that the handler understands.
    ///
    /// ```
    /// # use perkey::{json, testing::Given};
    /// # use perkey::unstable::handler::example::Points;
    /// Given::handler(Points).when_payload(b"not JSON", None).then_rejects("does not decode");
    /// ```
    #[track_caller]
    pub fn when_payload(self, payload: &[u8], content_type: Option<&str>) -> Then<H> {
        self.turn("given", payload, content_type)
    }

    /// Handles the answer to the request that was made under this name, as [`Given::when`] handles a message.
    ///
    /// ```
    /// # use perkey::{Answer, Fault, Handler, Key, Outcome, Turn, json, testing::Given};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// #     async fn handle(&self, balance: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    /// #         if earned.points == 0 {
    /// #             return Err(Fault::reject("no points"));
    /// #         }
    /// #         *balance += earned.points;
    /// #         turn.emit("points.earned", &json!({ "member": earned.member, "points": earned.points }))?;
    /// #         turn.reply(balance)
    /// #     }
    ///
    /// fn answer(&self, answer: Answer) -> Result<Earned, Fault> {
    ///     Ok(Earned { member: answer.name, points: answer.outcome.reply()? })
    /// }
    /// # }
    ///
    /// Given::handler(Points).when_answered("ann", Outcome::Done(json!(30))).then_state(30);
    /// Given::handler(Points).when_answered("ann", Outcome::DeadLetter("no".to_owned())).then_rejects("no");
    /// ```
    #[track_caller]
    pub fn when_answered(self, name: &str, outcome: Outcome) -> Then<H> {
        let answer = Answer { name: name.to_owned(), outcome };
        self.turn(ANSWER, &serde_json::to_vec(&answer).expect("an answer becomes JSON"), None)
    }

    #[track_caller]
    fn turn(mut self, kind: &str, payload: &[u8], content_type: Option<&str>) -> Then<H> {
        let before = value(&self.state);
        self.turns += 1;
        let message = match understand(&self.handler, &Payload::new(payload, kind, content_type)) {
            Ok(message) => message,
            Err(fault) => return Then { given: self, before, effects: Effects::default(), fault: Some(fault) },
        };
        let (id, key) = (format!("message-{}", self.turns), self.handler.key(&message));
        // An answer comes to the key that asked.
        if kind != ANSWER || self.key.is_empty() {
            key.as_str().clone_into(&mut self.key);
        }
        let headers: Vec<_> = content_type.map(|said| ("content-type", said)).into_iter().collect();
        let draft = Draft { id: &id, key: &self.key, kind, headers: &headers, payload, ..Draft::default() };
        let frame = draft.build().expect("the handler gives the message a usable key");
        let mut turn = Turn::new(frame, self.attempt, self.now, self.limits);
        let mut state = self.state.clone();
        match complete(self.handler.handle(&mut state, message, &mut turn)) {
            Ok(()) => {
                let effects = turn.into_effects();
                self.state = if effects.forget { H::State::default() } else { state };
                Then { given: self, before, effects, fault: None }
            }
            Err(fault) => Then { given: self, before, effects: Effects::default(), fault: Some(fault) },
        }
    }
}

impl<H: Handler> Then<H> {
    /// Checks that the turn succeeded.
    ///
    /// ```
    /// # use perkey::{json, testing::Given};
    /// # use perkey::unstable::handler::example::Points;
    /// Given::handler(Points).when(json!({ "member": "ann", "points": 30 })).then_succeeds();
    /// ```
    #[track_caller]
    pub fn then_succeeds(self) -> Self {
        assert!(self.fault.is_none(), "the turn failed\n  fault: {:?}\n  state: {}", self.fault, self.before);
        self
    }

    /// Checks the key's state after the turn; a turn that failed left it as it was.
    ///
    /// ```
    /// # use perkey::{json, testing::Given};
    /// # use perkey::unstable::handler::example::Points;
    /// Given::handler(Points)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_state(30)
    ///     .when(json!({ "member": "ann", "points": 0 }))
    ///     .then_rejects("no points")
    ///     .then_state(30);
    /// ```
    #[track_caller]
    pub fn then_state(self, expected: impl Serialize) -> Self {
        let state = value(&self.given.state);
        self.same("state", &state, &value(&expected))
    }

    /// Checks that the turn deletes its key's state.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Turn, json, testing::Given};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// async fn handle(&self, _: &mut i64, _: Earned, turn: &mut Turn) -> Result<(), Fault> {
    ///     turn.forget();
    ///     Ok(())
    /// }
    /// # }
    ///
    /// Given::handler(Points)
    ///     .state(70)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_forgets()
    ///     .then_state(0);
    /// ```
    #[track_caller]
    pub fn then_forgets(self) -> Self {
        assert!(self.effects.forget, "the turn kept the state\n  outcome: {}", self.outcome());
        self
    }

    /// Checks the commands that the turn sent, those that it asked included, in order: service, key, payload.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Turn, json, testing::Given};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// async fn handle(&self, _: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    ///     turn.send::<Points>("bob", &json!({ "member": "bob", "points": earned.points / 10 }))
    /// }
    /// # }
    ///
    /// Given::handler(Points)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_sends([("points", "bob", json!({ "member": "bob", "points": 3 }))]);
    /// ```
    #[track_caller]
    pub fn then_sends<'a, P: Serialize>(self, expected: impl IntoIterator<Item = (&'a str, &'a str, P)>) -> Self {
        let sent = self.effects.sent.iter().map(|sent| (sent.service, sent.key.as_str(), parse(&sent.payload)));
        let (sent, expected): (Vec<_>, Vec<_>) = (sent.collect(), expected.into_iter().collect());
        let (sent, expected) = (value(&sent), value(&expected));
        self.same("commands", &sent, &expected)
    }

    /// Checks the timers that the turn set and cancelled, in order: name, and time and message of one that it set.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Turn, json, testing::Given};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// async fn handle(&self, _: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    ///     turn.schedule("expiry", turn.now() + 60_000, &earned.member)
    /// }
    /// # }
    ///
    /// Given::handler(Points)
    ///     .now(1_000)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_schedules([("expiry", Some((61_000, "ann")))]);
    /// ```
    #[track_caller]
    pub fn then_schedules<'a, P: Serialize>(
        self,
        expected: impl IntoIterator<Item = (&'a str, Option<(Millis, P)>)>,
    ) -> Self {
        let set = |timer: &Scheduled| timer.set.as_ref().map(|(at, message)| (*at, parse(message)));
        let found: Vec<_> = self.effects.timers.iter().map(|timer| (timer.name.clone(), set(timer))).collect();
        let expected: Vec<_> = expected.into_iter().collect();
        let (found, expected) = (value(&found), value(&expected));
        self.same("timers", &found, &expected)
    }

    /// Checks the types of the events that the turn emitted, in order.
    ///
    /// ```
    /// # use perkey::{json, testing::Given};
    /// # use perkey::unstable::handler::example::Points;
    /// Given::handler(Points).when(json!({ "member": "ann", "points": 30 })).then_events(["points.earned"]);
    /// ```
    #[track_caller]
    pub fn then_events<'a>(self, expected: impl IntoIterator<Item = &'a str>) -> Self {
        let kinds: Vec<_> = self.effects.events.iter().map(|event| event.kind.as_str()).collect();
        let expected: Vec<_> = expected.into_iter().collect();
        let (kinds, expected) = (value(&kinds), value(&expected));
        self.same("events", &kinds, &expected)
    }

    /// Checks the payload of one of the turn's events, counted from 0.
    ///
    /// ```
    /// # use perkey::{json, testing::Given};
    /// # use perkey::unstable::handler::example::Points;
    /// Given::handler(Points)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_event(0, json!({ "member": "ann", "points": 30 }));
    /// ```
    #[track_caller]
    pub fn then_event(self, at: usize, expected: impl Serialize) -> Self {
        let event = self.effects.events.get(at).map(|event| parse(&event.payload));
        self.same(&format!("event {at}"), &value(&event), &value(&expected))
    }

    /// Checks the payload of one of the turn's events that a schema wrote, counted from 0.
    ///
    /// ```
    /// # use perkey::{Json, json, testing::Given};
    /// # use perkey::unstable::handler::example::Points;
    /// Given::handler(Points)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_event_as(0, &Json, json!({ "member": "ann", "points": 30 }));
    /// ```
    #[track_caller]
    pub fn then_event_as(self, at: usize, schema: &dyn Schema, expected: impl Serialize) -> Self {
        let read = |event: &Emitted| {
            let payload = Payload::new(&event.payload, &event.kind, event.content_type);
            schema.to_json(&payload).expect("the event is one of this schema")
        };
        let event = self.effects.events.get(at).map(read);
        self.same(&format!("event {at}"), &value(&event), &value(&expected))
    }

    /// Checks the rows that the turn wrote, as JSON objects in order; a row that it deleted is `null`.
    ///
    /// ```
    /// # use perkey::{Column, ColumnKind, Fault, Handler, Key, Row, Table, Turn, json, testing::Given};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # #[derive(serde::Serialize)]
    /// # struct Balance { member: String, points: i64 }
    /// # impl Row for Balance {
    /// #     const TABLE: Table = Table {
    /// #         name: "balances",
    /// #         columns: &[Column::new("member", ColumnKind::Text), Column::new("points", ColumnKind::Integer)],
    /// #         primary_key: &["member"],
    /// #         key_column: Some("member"),
    /// #         indexes: &[],
    /// #     };
    /// # }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// async fn handle(&self, _: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    ///     turn.write(&Balance { member: earned.member, points: earned.points })
    /// }
    /// # }
    ///
    /// Given::handler(Points)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_rows([json!({ "member": "ann", "points": 30 })]);
    /// ```
    #[track_caller]
    pub fn then_rows<R: Serialize>(self, expected: impl IntoIterator<Item = R>) -> Self {
        let rows = self.effects.rows.iter().map(|row| row.row.as_ref().map(|row| parse(row.as_bytes())));
        let expected: Vec<_> = expected.into_iter().map(|row| value(&row)).collect();
        let rows = value(&rows.collect::<Vec<_>>());
        self.same("rows", &rows, &value(&expected))
    }

    /// Checks the turn's reply.
    ///
    /// ```
    /// # use perkey::{json, testing::Given};
    /// # use perkey::unstable::handler::example::Points;
    /// Given::handler(Points).when(json!({ "member": "ann", "points": 30 })).then_reply(30);
    /// ```
    #[track_caller]
    pub fn then_reply(self, expected: impl Serialize) -> Self {
        let reply = self.effects.reply.as_ref().map(|reply| parse(reply));
        self.same("reply", &value(&reply), &value(&expected))
    }

    /// Checks that the message was rejected, for a reason that contains `text`.
    ///
    /// ```
    /// # use perkey::{json, testing::Given};
    /// # use perkey::unstable::handler::example::Points;
    /// Given::handler(Points).when(json!({ "member": "ann", "points": 0 })).then_rejects("no points");
    /// ```
    #[track_caller]
    pub fn then_rejects(self, text: &str) -> Self {
        let fine =
            matches!(&self.fault, Some(Fault::Reject(reason) | Fault::Refuse { reason, .. }) if reason.contains(text));
        self.failed(fine, &format!("a rejection with {text:?}"))
    }

    /// Checks that the message is to be tried again, for a reason that contains `text`.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Turn, json, testing::Given};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// async fn handle(&self, _: &mut i64, _: Earned, _: &mut Turn) -> Result<(), Fault> {
    ///     Err(Fault::retry("the ledger is busy"))
    /// }
    /// # }
    ///
    /// Given::handler(Points).when(json!({ "member": "ann", "points": 30 })).then_retries("busy");
    /// ```
    #[track_caller]
    pub fn then_retries(self, text: &str) -> Self {
        let fine = matches!(&self.fault, Some(Fault::Retry(reason)) if reason.contains(text));
        self.failed(fine, &format!("a retry with {text:?}"))
    }

    /// Checks that the message was deferred for this long.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Turn, json, testing::Given};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # use std::time::Duration;
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// async fn handle(&self, _: &mut i64, _: Earned, _: &mut Turn) -> Result<(), Fault> {
    ///     Err(Fault::Defer(Duration::from_secs(5)))
    /// }
    /// # }
    ///
    /// Given::handler(Points)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_defers(Duration::from_secs(5));
    /// ```
    #[track_caller]
    pub fn then_defers(self, delay: std::time::Duration) -> Self {
        let fine = matches!(&self.fault, Some(Fault::Defer(found)) if *found == delay);
        self.failed(fine, &format!("a deferral for {delay:?}"))
    }

    /// Checks that the turn found this dependency unavailable.
    ///
    /// ```
    /// # use perkey::{Fault, Handler, Key, Turn, json, testing::Given};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// async fn handle(&self, _: &mut i64, _: Earned, _: &mut Turn) -> Result<(), Fault> {
    ///     Err(Fault::unavailable("mail", "no connection"))
    /// }
    /// # }
    ///
    /// Given::handler(Points).when(json!({ "member": "ann", "points": 30 })).then_unavailable("mail");
    /// ```
    #[track_caller]
    pub fn then_unavailable(self, dependency: &str) -> Self {
        let fine = matches!(&self.fault, Some(Fault::Unavailable { dependency: found, .. }) if *found == dependency);
        self.failed(fine, &format!("{dependency} unavailable"))
    }

    /// Handles the next message of the same key.
    ///
    /// ```
    /// # use perkey::{json, testing::Given};
    /// # use perkey::unstable::handler::example::Points;
    /// Given::handler(Points)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_state(30)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .then_state(60);
    /// ```
    #[track_caller]
    pub fn when(self, message: impl Serialize) -> Self {
        self.given.when(message)
    }

    /// Handles the next answer to the same key.
    ///
    /// ```
    /// # use perkey::{Answer, Fault, Handler, Key, Outcome, Turn, json, testing::Given};
    /// # #[derive(serde::Deserialize)]
    /// # struct Earned { member: String, points: i64 }
    /// # struct Points;
    /// # impl Handler for Points {
    /// #     const SERVICE: &'static str = "points";
    /// #     type Message = Earned;
    /// #     type State = i64;
    /// #     fn key(&self, earned: &Earned) -> Key {
    /// #         earned.member.as_str().into()
    /// #     }
    /// #     async fn handle(&self, balance: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
    /// #         if earned.points == 0 {
    /// #             return Err(Fault::reject("no points"));
    /// #         }
    /// #         *balance += earned.points;
    /// #         turn.emit("points.earned", &json!({ "member": earned.member, "points": earned.points }))?;
    /// #         turn.reply(balance)
    /// #     }
    ///
    /// fn answer(&self, answer: Answer) -> Result<Earned, Fault> {
    ///     Ok(Earned { member: answer.name, points: answer.outcome.reply()? })
    /// }
    /// # }
    ///
    /// Given::handler(Points)
    ///     .when(json!({ "member": "ann", "points": 30 }))
    ///     .when_answered("ann", Outcome::Done(json!(5)))
    ///     .then_state(35);
    /// ```
    #[track_caller]
    pub fn when_answered(self, name: &str, outcome: Outcome) -> Self {
        self.given.when_answered(name, outcome)
    }

    #[track_caller]
    fn failed(self, fine: bool, expected: &str) -> Self {
        assert!(fine, "the turn ended otherwise\n  expected: {expected}\n  found:    {}", self.outcome());
        self
    }

    #[track_caller]
    fn same(self, what: &str, found: &Value, expected: &Value) -> Self {
        assert!(
            found == expected,
            "the {what} differs\n  expected: {expected}\n  found:    {found}\n  before:   {}\n  outcome:  {}",
            self.before,
            self.outcome()
        );
        self
    }

    fn outcome(&self) -> String {
        self.fault.as_ref().map_or_else(|| "it succeeded".to_owned(), |fault| format!("{fault:?}"))
    }
}

fn value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("states and expectations become JSON")
}

fn parse(json: &[u8]) -> Value {
    serde_json::from_slice(json).expect("it is JSON; then_event_as compares what a schema wrote")
}

/// Runs a handler to its end: at once when it never waits, else with timers.
fn complete<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    RUNTIME.with(|runtime| {
        let runtime = runtime.get_or_init(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime for one thread starts")
        });
        let first = {
            let _context = runtime.enter();
            future.as_mut().now_or_never()
        };
        first.unwrap_or_else(|| runtime.block_on(future))
    })
}
