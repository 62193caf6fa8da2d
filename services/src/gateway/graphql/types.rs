//! GraphQL's types: the same fields as in REST's bodies, in GraphQL's terms.
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
    /// Any value that could be an amount passes as it is: it is judged where REST's are.
    fn parse(value: Value) -> InputValueResult<Self> {
        match value {
            // The document's numbers have been read as doubles by now: their digits are lost.
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

/// Makes the input of a mutation: a missing value is not sent on.
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
    /// The order to place.
    OrderInput {
        /// The order's id; a new one if left out.
        id: String,
        /// The account that pays.
        account: String,
        /// The price of the whole order; above 0.
        amount: Cents,
        /// Its currency, such as EUR.
        currency: String,
        /// The time of the order: a date, or a time with its offset; now if left out.
        at: String,
        /// A note.
        memo: String,
    }

    /// The change of an order.
    OrderChange {
        /// completed or cancelled.
        status: String,
        /// The reason for a cancellation.
        reason: String,
    }

    /// An expense: money that was spent.
    ExpenseInput {
        /// The account.
        account: String,
        /// The category; `general` if left out.
        category: String,
        /// The amount; negative takes an expense back.
        amount: Cents,
        /// The currency, such as EUR.
        currency: String,
        /// The time: a date, or a time with its offset; now if left out.
        at: String,
        /// A note.
        memo: String,
    }

    /// The budget of a category for each month.
    BudgetInput {
        /// The account.
        account: String,
        /// The category; `general` if left out.
        category: String,
        /// The most that is meant to be spent in a month; no budget if left out.
        limit: Cents,
        /// The currency, such as EUR.
        currency: String,
    }

    /// The amount to book on an account.
    TransactionInput {
        /// The account.
        account: String,
        /// The amount; negative takes it away.
        amount: Cents,
        /// The currency, such as EUR.
        currency: String,
        /// The time: a date, or a time with its offset; now if left out.
        at: String,
        /// A note.
        memo: String,
    }

    /// The purchase to order, pay and book.
    CheckoutInput {
        /// The checkout's id; a new one if left out.
        id: String,
        /// The order's id; the checkout's if left out.
        order: String,
        /// The account that pays.
        account: String,
        /// The category; `general` if left out.
        category: String,
        /// The amount; above 0.
        amount: Cents,
        /// The currency, such as EUR.
        currency: String,
        /// The time: a date, or a time with its offset; now if left out.
        at: String,
        /// A note.
        memo: String,
    }

    /// The payment to make.
    ChargeInput {
        /// The order's id; a new one if left out.
        order: String,
        /// The account that pays.
        account: String,
        /// The amount; above 0.
        amount: Cents,
        /// The currency, such as EUR.
        currency: String,
    }
}

/// The argument of a mutation beside the id of its entity.
#[derive(Debug, Serialize)]
pub(super) struct Reason {
    /// The reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
}

/// Makes the types of entities, and their pages.
macro_rules! outputs {
    ($($(#[$doc:meta])* $name:ident, $page:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(SimpleObject, Deserialize)]
        pub(super) struct $name {
            $($(#[$field_doc])* pub(super) $field: $kind,)*
        }

        /// A page of an account's entities.
        #[derive(SimpleObject, Deserialize)]
        pub(super) struct $page {
            /// The items of the page.
            pub(super) items: Vec<$name>,
            /// The value of `after` for the next page; null if there is none.
            pub(super) next: Option<String>,
        }
    )*};
}

outputs! {
    /// An order.
    Order, OrderPage {
        /// Its id.
        id: String,
        /// The account that pays.
        account: Option<String>,
        /// The price of the whole order.
        amount: Option<Cents>,
        /// Its currency.
        currency: Option<String>,
        /// The time at which it was placed.
        at: Option<String>,
        /// A note.
        memo: Option<String>,
        /// Its status: placed, completed or cancelled.
        status: Option<String>,
        /// The reason for the cancellation.
        reason: Option<String>,
    }

    /// An expense.
    Expense, ExpensePage {
        /// Its id.
        id: String,
        /// The account.
        account: String,
        /// The category.
        category: String,
        /// The amount.
        amount: Cents,
        /// The currency.
        currency: String,
        /// The time.
        at: String,
        /// A note.
        memo: Option<String>,
        /// In the answer to a mutation: the sum spent on the category in that month, including this.
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
        /// The amount.
        amount: Cents,
        /// The currency.
        currency: Option<String>,
        /// The time.
        at: Option<String>,
        /// A note.
        memo: Option<String>,
        /// In the answer to a mutation: the account's balance after it.
        balance: Option<Cents>,
        /// In the answer to a mutation: the number of the account's transactions, including this.
        n: Option<Count>,
    }

    /// A checkout.
    Checkout, CheckoutPage {
        /// Its id.
        id: String,
        /// Its order's id.
        order: Option<String>,
        /// The account that pays.
        account: Option<String>,
        /// The amount.
        amount: Option<Cents>,
        /// The currency.
        currency: Option<String>,
        /// The time.
        at: Option<String>,
        /// Its status: running, cancelling, completed or cancelled.
        status: Option<String>,
        /// The reason for the cancellation.
        reason: Option<String>,
    }

    /// The payment of an order.
    Payment, PaymentPage {
        /// The order's id.
        order: String,
        /// The account that pays.
        account: Option<String>,
        /// The amount.
        amount: Option<Cents>,
        /// The currency.
        currency: Option<String>,
        /// Its status: charged, declined, refunded or void.
        status: Option<String>,
        /// The provider's id of the payment.
        reference: Option<String>,
        /// The reason why it was declined or given back.
        reason: Option<String>,
    }
}

/// A budget.
#[derive(SimpleObject, Deserialize)]
pub(super) struct Budget {
    /// The account.
    pub(super) account: String,
    /// The category.
    pub(super) category: String,
    /// The most that is meant to be spent in a month; null if there is no budget.
    pub(super) limit: Option<Cents>,
    /// The currency.
    pub(super) currency: String,
}

/// The balance of an account.
#[derive(SimpleObject, Deserialize)]
pub(super) struct Account {
    /// The account.
    pub(super) account: String,
    /// The sum of its transactions.
    pub(super) balance: Cents,
    /// The number of its transactions.
    pub(super) n: Count,
    /// Its currency, once it has one.
    pub(super) currency: Option<String>,
}
