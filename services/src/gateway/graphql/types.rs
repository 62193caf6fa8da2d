//! What GraphQL takes and gives: the same fields as REST's bodies have, in GraphQL's words.
//! In: arguments. Out: JSON, as REST would have sent it; and the other way.

use std::fmt;

use async_graphql::{InputObject, InputValueError, InputValueResult, Number, Scalar, ScalarType, SimpleObject, Value};
use serde::{Deserialize, Serialize};

/// An amount in whole minor units of its currency: 1250 is 12.50. A number of 64 bits, where `Int` has 32.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Cents(serde_json::Value);

#[Scalar]
impl ScalarType for Cents {
    /// Whatever could be an amount passes as it is: it is judged where REST's are.
    fn parse(value: Value) -> InputValueResult<Self> {
        match value {
            // A document's numbers have been read as doubles by now: what it wrote is not known any more.
            Value::Number(number) if number.is_f64() => Err(InputValueError::custom(
                "an amount is a whole number of minor units, without point and exponent (1250 is 12.50)",
            )),
            Value::Number(number) => Ok(Self(number.into())),
            Value::String(text) => Ok(Self(text.into())),
            other => Err(InputValueError::expected_type(other)),
        }
    }

    fn to_value(&self) -> Value {
        Value::from_json(self.0.clone()).unwrap_or_default()
    }
}

/// A whole number that may be large.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Count(Number);

#[Scalar]
impl ScalarType for Count {
    fn parse(value: Value) -> InputValueResult<Self> {
        match value {
            Value::Number(number) => Ok(Self(number)),
            other => Err(InputValueError::expected_type(other)),
        }
    }

    fn to_value(&self) -> Value {
        Value::Number(self.0.clone())
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Makes what a mutation takes: what is not given is not sent on.
macro_rules! inputs {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(InputObject, Serialize)]
        pub(super) struct $name {
            $($(#[$field_doc])* #[serde(skip_serializing_if = "Option::is_none")] pub(super) $field: Option<$kind>,)*
        }
    )*};
}

inputs! {
    /// What is ordered.
    OrderInput {
        /// The order's id; left out, one is made.
        id: String,
        /// Who pays.
        account: String,
        /// The price of all of it; above 0.
        amount: Cents,
        /// Its currency, such as EUR.
        currency: String,
        /// When it was placed: a date, or a time with its offset; left out, now.
        at: String,
        /// A note.
        memo: String,
    }

    /// What an order is to become.
    OrderChange {
        /// completed or cancelled.
        status: String,
        /// Why it is cancelled.
        reason: String,
    }

    /// Something that was spent.
    ExpenseInput {
        /// Whose expense it is.
        account: String,
        /// What it was spent on; left out, `general`.
        category: String,
        /// How much; negative takes an expense back.
        amount: Cents,
        /// The currency, such as EUR.
        currency: String,
        /// When: a date, or a time with its offset; left out, now.
        at: String,
        /// A note.
        memo: String,
    }

    /// What may be spent on a category in a month.
    BudgetInput {
        /// Whose budget it is.
        account: String,
        /// The category; left out, `general`.
        category: String,
        /// The most that is meant to be spent in a month; left out, there is no budget.
        limit: Cents,
        /// The currency, such as EUR.
        currency: String,
    }

    /// What is booked on an account.
    TransactionInput {
        /// The account.
        account: String,
        /// How much; negative takes it away.
        amount: Cents,
        /// The currency, such as EUR.
        currency: String,
        /// When: a date, or a time with its offset; left out, now.
        at: String,
        /// A note.
        memo: String,
    }

    /// What is to be ordered, paid and booked.
    CheckoutInput {
        /// The checkout's id; left out, one is made.
        id: String,
        /// The order's id; left out, the checkout's.
        order: String,
        /// Who pays.
        account: String,
        /// What it is spent on; left out, `general`.
        category: String,
        /// How much; above 0.
        amount: Cents,
        /// The currency, such as EUR.
        currency: String,
        /// When: a date, or a time with its offset; left out, now.
        at: String,
        /// A note.
        memo: String,
    }

    /// What is to be paid.
    ChargeInput {
        /// The order's id; left out, one is made.
        order: String,
        /// Who pays.
        account: String,
        /// How much; above 0.
        amount: Cents,
        /// The currency, such as EUR.
        currency: String,
    }
}

/// What a mutation has beside the id of what it is about.
#[derive(Debug, Serialize)]
pub(super) struct Reason {
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
}

/// Makes what is given, and its pages.
macro_rules! outputs {
    ($($(#[$doc:meta])* $name:ident, $page:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(SimpleObject, Deserialize)]
        pub(super) struct $name {
            $($(#[$field_doc])* pub(super) $field: $kind,)*
        }

        /// A page of what an account has.
        #[derive(SimpleObject, Deserialize)]
        pub(super) struct $page {
            /// The page.
            pub(super) items: Vec<$name>,
            /// What to give as `after` for those that follow; null when there are none.
            pub(super) next: Option<String>,
        }
    )*};
}

outputs! {
    /// An order.
    Order, OrderPage {
        /// Its id.
        id: String,
        /// Who pays.
        account: Option<String>,
        /// The price of all of it.
        amount: Option<Cents>,
        /// Its currency.
        currency: Option<String>,
        /// When it was placed.
        at: Option<String>,
        /// A note.
        memo: Option<String>,
        /// What became of it: placed, completed or cancelled.
        status: Option<String>,
        /// Why it was cancelled.
        reason: Option<String>,
    }

    /// An expense.
    Expense, ExpensePage {
        /// Its id.
        id: String,
        /// Whose expense it is.
        account: String,
        /// What it was spent on.
        category: String,
        /// How much.
        amount: Cents,
        /// The currency.
        currency: String,
        /// When.
        at: String,
        /// A note.
        memo: Option<String>,
        /// In the answer to a mutation: what was spent on the category in that month, with it.
        spent: Option<Cents>,
        /// In the answer to a mutation: the category's budget.
        limit: Option<Cents>,
    }

    /// A transaction.
    Transaction, TransactionPage {
        /// Its id.
        id: String,
        /// The account.
        account: String,
        /// How much.
        amount: Cents,
        /// The currency.
        currency: Option<String>,
        /// When.
        at: Option<String>,
        /// A note.
        memo: Option<String>,
        /// In the answer to a mutation: what the account has with it.
        balance: Option<Cents>,
        /// In the answer to a mutation: how many transactions the account has with it.
        n: Option<Count>,
    }

    /// A checkout.
    Checkout, CheckoutPage {
        /// Its id.
        id: String,
        /// Its order's id.
        order: Option<String>,
        /// Who pays.
        account: Option<String>,
        /// How much.
        amount: Option<Cents>,
        /// The currency.
        currency: Option<String>,
        /// When.
        at: Option<String>,
        /// What became of it: running, cancelling, completed or cancelled.
        status: Option<String>,
        /// Why it was cancelled.
        reason: Option<String>,
    }

    /// The payment of an order.
    Payment, PaymentPage {
        /// The order's id.
        order: String,
        /// Who pays.
        account: Option<String>,
        /// How much.
        amount: Option<Cents>,
        /// The currency.
        currency: Option<String>,
        /// What became of it: charged, declined, refunded or void.
        status: Option<String>,
        /// The provider's id of it.
        reference: Option<String>,
        /// Why it was declined, or given back.
        reason: Option<String>,
    }
}

/// A budget.
#[derive(SimpleObject, Deserialize)]
pub(super) struct Budget {
    /// Whose it is.
    pub(super) account: String,
    /// The category.
    pub(super) category: String,
    /// The most that is meant to be spent in a month; null where there is no budget.
    pub(super) limit: Option<Cents>,
    /// The currency.
    pub(super) currency: String,
}

/// What an account has.
#[derive(SimpleObject, Deserialize)]
pub(super) struct Account {
    /// The account.
    pub(super) account: String,
    /// The sum of its transactions.
    pub(super) balance: Cents,
    /// How many transactions it has.
    pub(super) n: Count,
    /// Its currency, once it has one.
    pub(super) currency: Option<String>,
}
