//! The steps of a checkout: the command of each, its undoing, and the meaning of its answer.
//! In: a checkout. Out: commands on a turn.

use perkey::{Fault, Turn};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Checkout, word};
use crate::expenses::{self, Expense, Expenses};
use crate::money::Cents;
use crate::orders::{self, Orders, Placement};
use crate::payments::{self, Charge, Payments};
use crate::posting::{Memo, Posting};
use crate::transactions::Transactions;

/// The steps, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The order is placed.
    Order,
    /// The money is taken.
    Payment,
    /// The expense is recorded.
    Expense,
    /// The transaction is posted.
    Transaction,
    /// The order is completed.
    Completion,
}

/// The progress of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// The command is sent and its answer is awaited.
    Asked,
    /// The step took effect.
    Done,
    /// The step had no effect.
    Refused,
    /// The step is being undone.
    Undoing,
    /// The step was undone.
    Undone,
}

impl Progress {
    /// Returns whether nothing of the step stands or may still come.
    pub(super) fn is_settled(self) -> bool {
        matches!(self, Self::Refused | Self::Undone)
    }
}

/// The prefix of the name of a question about an undoing.
const UNDO: &str = "undo-";

impl Step {
    /// The first step.
    pub(super) const FIRST: Self = Self::Order;

    const ALL: [Self; 5] = [Self::Order, Self::Payment, Self::Expense, Self::Transaction, Self::Completion];

    /// The name of the step's question and of its timer.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Payment => "payment",
            Self::Expense => "expense",
            Self::Transaction => "transaction",
            Self::Completion => "completion",
        }
    }

    /// The step that was asked about under a name, and whether the question was about its undoing.
    pub(super) fn asked(name: &str) -> Result<(Self, bool), Fault> {
        let (word, undone) = name.strip_prefix(UNDO).map_or((name, false), |word| (word, true));
        let step = Self::ALL.into_iter().find(|step| step.as_str() == word);
        step.map(|step| (step, undone)).ok_or_else(|| Fault::reject(format!("no step of a checkout is named {name:?}")))
    }

    /// The name of the undoing's question and of its timer.
    pub(super) fn undoing(self) -> String {
        format!("{UNDO}{}", self.as_str())
    }

    /// Returns whether the undoing may be asked for again: an order and a payment know that they are undone.
    pub(super) fn may_be_undone_twice(self) -> bool {
        !matches!(self, Self::Expense | Self::Transaction)
    }

    /// The step after this one.
    pub(super) fn next(self) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step > self)
    }

    /// Sends the step's command.
    pub(super) fn ask(self, checkout: &Checkout, turn: &mut Turn) -> Result<(), Fault> {
        let Checkout { saga, order, account, amount, currency, at, memo, .. } = checkout.clone();
        let name = self.as_str();
        match self {
            Self::Order => {
                let placement = Placement { order, account, amount, currency, at, memo, saga: Some(saga) };
                turn.ask::<Orders>(name, &checkout.order, &orders::Command::Place(placement))
            }
            Self::Payment => {
                let charge = Charge { order, account, amount, currency };
                turn.ask::<Payments>(name, &checkout.order, &payments::Command::Charge(charge))
            }
            Self::Expense => turn.ask::<Expenses>(name, &account, &record(checkout, amount)),
            Self::Transaction => turn.ask::<Transactions>(name, &account, &post(checkout, Cents(-amount.0))),
            Self::Completion => turn.ask::<Orders>(name, &checkout.order, &orders::Command::Complete { order }),
        }
    }

    /// Sends the command that undoes the step.
    pub(super) fn undo(self, checkout: &Checkout, turn: &mut Turn) -> Result<(), Fault> {
        let Checkout { order, account, amount, .. } = checkout.clone();
        let name = self.undoing();
        let reason = Memo::try_from("the checkout was given up".to_owned()).ok();
        match self {
            Self::Order | Self::Completion => {
                turn.ask::<Orders>(&name, &checkout.order, &orders::Command::Cancel { order, reason, placed: false })
            }
            Self::Payment => turn.ask::<Payments>(&name, &checkout.order, &payments::Command::Refund { order, reason }),
            Self::Expense => turn.ask::<Expenses>(&name, &account, &record(checkout, Cents(-amount.0))),
            Self::Transaction => turn.ask::<Transactions>(&name, &account, &post(checkout, amount)),
        }
    }

    /// Returns whether the step is to be undone when the checkout is given up. An order or a payment that may come late
    /// is undone in advance, as both remember it; the other steps are undone only once they stand.
    pub(super) fn is_to_be_undone(self, progress: Progress) -> bool {
        match (self, progress) {
            (Self::Completion, _) | (_, Progress::Undoing | Progress::Undone) => false,
            // A payment that was given up here may have reached the provider.
            (Self::Payment, _) => true,
            (Self::Order, Progress::Asked | Progress::Done) => true,
            (Self::Order, Progress::Refused) => false,
            (Self::Expense | Self::Transaction, progress) => progress == Progress::Done,
        }
    }

    /// The reason why a step that was answered did not take effect, if it did not.
    pub(super) fn refusal(self, reply: &Value) -> Option<String> {
        let status = word(reply, "status");
        match self {
            // The order may have been there before, with another status.
            Self::Order if status != "placed" => Some(format!("the order is {status}")),
            Self::Payment if status != "charged" => {
                Some(format!("the payment is {status} ({})", word(reply, "reason")))
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

fn record(checkout: &Checkout, amount: Cents) -> expenses::Command {
    let Checkout { account, category, currency, at, memo, .. } = checkout.clone();
    expenses::Command::Record(Expense { account, category, amount, currency, at, memo })
}

fn post(checkout: &Checkout, amount: Cents) -> Posting {
    let Checkout { account, currency, at, memo, .. } = checkout.clone();
    Posting { id: None, account, amount, currency, at, memo }
}
