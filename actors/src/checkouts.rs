//! `checkouts`: a saga over the other services: order → payment → expense → transaction → order completed.
//! In: a checkout, the answers to its steps, timeouts. Out: commands to the services; `checkout.completed` or
//! `checkout.cancelled`; a row of table `checkouts`.
//!
//! Each step is a command whose answer the saga asks for, so it is answered in every case; a timeout bounds how long
//! that may take. When a step does not succeed, the saga undoes all that took effect or may have: it cancels an order
//! and refunds a payment at once, as both remember that for a command that comes late; it takes back an expense or a
//! transaction once the answer says that it stands. The completion of the order is the step after which there is no way
//! back: the saga waits for it.

mod steps;

use std::collections::BTreeMap;
use std::time::Duration;

use perkey::{Answer, Codec, Column, ColumnKind, Fault, Handler, Key, Outcome, Row, Table, Turn, millis};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::money::{Cents, Currency};
use crate::names::{Account, Category, OrderId, SagaId};
use crate::posting::{At, Memo};
use crate::texts::{ShortTexts, shortened};
pub use steps::{Progress, Step};

/// Keeps one checkout per key.
#[derive(Clone, Copy, Debug)]
pub struct Checkouts {
    /// The longest time that a step may take before the checkout is given up.
    pub patience: Duration,
    /// Pause before a failed undoing is tried again; doubled each time, up to an hour.
    pub pause: Duration,
}

/// The longest pause before an undoing is tried again.
const PAUSE_MAX: Duration = Duration::from_secs(3_600);

impl Default for Checkouts {
    fn default() -> Self {
        Self { patience: Duration::from_secs(15 * 60), pause: Duration::from_secs(10) }
    }
}

/// The messages of a checkout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Starts the checkout.
    Start(Checkout),
    /// A timer: a step took too long, or it is time to try an undoing again.
    Late {
        /// The checkout.
        saga: SagaId,
        /// The step.
        step: Step,
    },
    /// The answer to a step, or to its undoing.
    #[serde(skip)]
    Answered {
        /// The step.
        step: Step,
        /// True if the answer is that of the undoing.
        undone: bool,
        /// The outcome of the step or of its undoing.
        outcome: Outcome,
    },
}

/// The purchase and its buyer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkout {
    /// The checkout's id.
    pub saga: SagaId,
    /// The order that the checkout places.
    pub order: OrderId,
    /// The account that pays.
    pub account: Account,
    /// The category under which the expense is booked.
    pub category: Category,
    /// The price; above 0.
    #[serde(deserialize_with = "crate::money::amount")]
    pub amount: Cents,
    /// Its currency.
    pub currency: Currency,
    /// The time of the checkout.
    pub at: At,
    /// A note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memo: Option<Memo>,
}

/// The state of a checkout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saga {
    /// The purchase, once it is known.
    pub checkout: Option<Checkout>,
    /// The status of the checkout.
    pub status: Option<Status>,
    /// The progress of each step; steps that were never begun are missing.
    pub steps: BTreeMap<Step, Progress>,
    /// The number of undoings that have failed so far.
    #[serde(default)]
    pub failed: u32,
    /// The reason why the checkout was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Memo>,
}

/// The status of a checkout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The steps are under way.
    Running,
    /// The checkout was given up, and its finished steps are being undone.
    Cancelling,
    /// All steps are done.
    Completed,
    /// Nothing of the checkout stands.
    Cancelled,
}

/// A row of table `checkouts`.
#[derive(Serialize)]
struct CheckoutRow<'a> {
    id: &'a SagaId,
    #[serde(rename = "order_id")]
    order: &'a OrderId,
    account: &'a Account,
    amount: Cents,
    currency: Currency,
    at: &'a At,
    status: Status,
    reason: Option<&'a Memo>,
}

impl Row for CheckoutRow<'_> {
    const TABLE: Table = Table {
        name: "checkouts",
        columns: &[
            Column::new("id", ColumnKind::Text),
            Column::new("order_id", ColumnKind::Text),
            Column::new("account", ColumnKind::Text),
            Column::new("amount", ColumnKind::Integer),
            Column::new("currency", ColumnKind::Text),
            Column::new("at", ColumnKind::Text),
            Column::new("status", ColumnKind::Text),
            Column::nullable("reason", ColumnKind::Text),
        ],
        primary_key: &["id"],
        key_column: Some("id"),
        indexes: &[&["account", "id"]],
    };
}

impl Handler for Checkouts {
    const SERVICE: &'static str = "checkouts";
    type Message = Command;
    type State = Saga;

    fn key(&self, command: &Command) -> Key {
        match command {
            Command::Start(checkout) => (&checkout.saga).into(),
            Command::Late { saga, .. } => saga.into(),
            // Answers come with the key that asked.
            Command::Answered { .. } => "".into(),
        }
    }

    fn codec(&self) -> &dyn Codec<Command> {
        &ShortTexts
    }

    fn answer(&self, answer: Answer) -> Result<Command, Fault> {
        let (step, undone) = Step::asked(&answer.name)?;
        Ok(Command::Answered { step, undone, outcome: answer.outcome })
    }

    async fn handle(&self, saga: &mut Saga, command: Command, turn: &mut Turn) -> Result<(), Fault> {
        let before = saga.status;
        let id = turn.key().to_owned();
        turn.set_saga(&id);
        match command {
            Command::Start(checkout) => self.start(saga, checkout, turn)?,
            Command::Late { step, .. } => self.late(saga, step, turn)?,
            Command::Answered { step, undone, outcome } => self.answered(saga, step, undone, outcome, turn)?,
        }
        saga.settle();
        let (Some(checkout), Some(status)) = (&saga.checkout, saga.status) else { return turn.reply(saga) };
        let row = CheckoutRow::of(checkout, status, saga.reason.as_ref());
        if before != Some(status) {
            turn.write(&row)?;
            turn.emit(&format!("checkout.{status}"), saga)?;
        }
        turn.reply(&row)
    }

    fn tables(&self) -> Vec<Table> {
        vec![CheckoutRow::TABLE]
    }
}

impl Checkouts {
    /// Begins the checkout. The same checkout again changes nothing.
    fn start(&self, saga: &mut Saga, checkout: Checkout, turn: &mut Turn) -> Result<(), Fault> {
        match &saga.checkout {
            Some(before) if *before == checkout => return Ok(()),
            Some(_) => return Err(Fault::refuse("already_exists", "another checkout has this id")),
            None => {}
        }
        if checkout.amount <= Cents(0) {
            return Err(Fault::reject(format!("a checkout is above 0, this one is {}", checkout.amount)));
        }
        saga.checkout = Some(checkout);
        saga.status = Some(Status::Running);
        self.begin(saga, Step::FIRST, turn)
    }

    fn begin(&self, saga: &mut Saga, step: Step, turn: &mut Turn) -> Result<(), Fault> {
        let Some(checkout) = &saga.checkout else { return Ok(()) };
        step.ask(checkout, turn)?;
        saga.steps.insert(step, Progress::Asked);
        remind(checkout, step, step.as_str(), self.patience, turn)
    }

    fn late(&self, saga: &mut Saga, step: Step, turn: &mut Turn) -> Result<(), Fault> {
        let Some(checkout) = saga.checkout.clone() else { return Ok(()) };
        match (saga.status, saga.steps.get(&step)) {
            // It is not known whether the order is complete, and there may be no way back: wait for its answer.
            (Some(Status::Running), Some(Progress::Asked)) if step == Step::Completion => {
                remind(&checkout, step, step.as_str(), self.patience, turn)
            }
            (Some(Status::Running), Some(Progress::Asked)) => {
                self.give_up(saga, &format!("step {step} took too long"), turn)
            }
            (_, Some(Progress::Undoing)) => step.undo(&checkout, turn),
            _ => Ok(()),
        }
    }

    fn answered(
        &self,
        saga: &mut Saga,
        step: Step,
        undone: bool,
        outcome: Outcome,
        turn: &mut Turn,
    ) -> Result<(), Fault> {
        let Some(checkout) = saga.checkout.clone() else { return Ok(()) };
        if undone {
            return match outcome {
                Outcome::Done(_) => {
                    saga.steps.insert(step, Progress::Undone);
                    Ok(())
                }
                // It must succeed in the end: money must not stay where it does not belong.
                Outcome::DeadLetter(_) if step.may_be_undone_twice() => {
                    let pause = self.pause.saturating_mul(1 << saga.failed.min(20)).min(PAUSE_MAX);
                    saga.failed = saga.failed.saturating_add(1);
                    remind(&checkout, step, &step.undoing(), pause, turn)
                }
                // A second command might undo it twice: an operator replays the dead letter, and that is answered.
                Outcome::DeadLetter(_) => Ok(()),
            };
        }
        turn.cancel(step.as_str())?;
        let refusal = match outcome {
            Outcome::Done(reply) => step.refusal(&reply),
            Outcome::DeadLetter(reason) => Some(reason),
        };
        match (saga.status, refusal) {
            (Some(Status::Running), None) => {
                saga.steps.insert(step, Progress::Done);
                step.next().map_or(Ok(()), |next| self.begin(saga, next, turn))
            }
            (Some(Status::Running), Some(reason)) => {
                saga.steps.insert(step, Progress::Refused);
                self.give_up(saga, &format!("step {step}: {reason}"), turn)
            }
            (_, None) if saga.steps.get(&step) != Some(&Progress::Undoing) => {
                saga.steps.insert(step, Progress::Undoing);
                saga.status = Some(Status::Cancelling);
                step.undo(&checkout, turn)
            }
            (_, Some(_)) if saga.steps.get(&step) == Some(&Progress::Asked) => {
                saga.steps.insert(step, Progress::Refused);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Undoes each step that took effect or may have.
    fn give_up(&self, saga: &mut Saga, reason: &str, turn: &mut Turn) -> Result<(), Fault> {
        saga.status = Some(Status::Cancelling);
        saga.reason = Memo::try_from(shortened(reason.replace('\0', " "))).ok();
        let Some(checkout) = &saga.checkout else { return Ok(()) };
        for (step, progress) in saga.steps.iter_mut().rev() {
            if step.is_to_be_undone(*progress) {
                *progress = Progress::Undoing;
                step.undo(checkout, turn)?;
            }
        }
        Ok(())
    }
}

/// Sets a timer of this name that reminds the checkout of a step.
fn remind(checkout: &Checkout, step: Step, name: &str, after: Duration, turn: &mut Turn) -> Result<(), Fault> {
    let at = turn.now().saturating_add(millis(after));
    turn.schedule(name, at, &Command::Late { saga: checkout.saga.clone(), step })
}

impl Saga {
    /// Ends the checkout when its last step is done, or when nothing is left to be undone.
    fn settle(&mut self) {
        match self.status {
            Some(Status::Running) if self.steps.get(&Step::Completion) == Some(&Progress::Done) => {
                self.status = Some(Status::Completed);
            }
            Some(Status::Cancelling) if self.steps.values().all(|progress| progress.is_settled()) => {
                self.status = Some(Status::Cancelled);
            }
            _ => {}
        }
    }
}

impl<'a> CheckoutRow<'a> {
    fn of(checkout: &'a Checkout, status: Status, reason: Option<&'a Memo>) -> Self {
        let Checkout { saga: id, order, account, amount, currency, at, .. } = checkout;
        Self { id, order, account, amount: *amount, currency: *currency, at, status, reason }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
        })
    }
}

/// The text in a field of a reply.
fn word<'a>(reply: &'a Value, field: &str) -> &'a str {
    reply.get(field).and_then(Value::as_str).unwrap_or_default()
}
