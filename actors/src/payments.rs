//! `payments`: money that is taken for orders and given back, through a payment provider.
//! In: commands, by order id. Out: a row of table `payments`, an event for each change, and the payment as it is now.
//!
//! The provider is called before the commit, so after a crash it is called again: with the same token, which it knows
//! by then. A refund that comes first is remembered here and at the provider, and a charge that comes late is refused.

mod provider;

use perkey::{Codec, Column, ColumnKind, Fault, Handler, Key, Row, Table, Turn};
use serde::{Deserialize, Serialize};

use crate::money::{Cents, Currency};
use crate::names::{Account, OrderId};
use crate::posting::Memo;
use crate::texts::{ShortTexts, shortened};
pub use provider::{PROVIDER, PaymentProvider, Provider, ProviderAnswer, ProviderError};

/// Keeps the payment of each order.
#[derive(Clone, Debug)]
pub struct Payments<P = Provider> {
    /// The provider that moves the money.
    pub provider: P,
}

/// The commands for the payment of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Takes the money.
    Charge(Charge),
    /// Gives the money back. A refund that comes first is remembered: the order is not charged any more.
    Refund {
        /// The order.
        order: OrderId,
        /// The reason for the refund.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<Memo>,
    },
}

/// The details of a charge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charge {
    /// The order.
    pub order: OrderId,
    /// The account that pays.
    pub account: Account,
    /// The amount; above 0.
    #[serde(deserialize_with = "crate::money::amount")]
    pub amount: Cents,
    /// The currency.
    pub currency: Currency,
}

/// The state of an order's payment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// The charge, once there was one.
    pub charge: Option<Charge>,
    /// The status; `None` before the first command.
    pub status: Option<Status>,
    /// The provider's id of the payment, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The reason why it was declined or given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Memo>,
}

/// The status of a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The money was taken.
    Charged,
    /// The provider declined the charge.
    Declined,
    /// The money was given back.
    Refunded,
    /// The payment was refunded before anything was charged: nothing ever will be.
    Void,
}

/// Reasons why a payment refuses a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaymentError {
    /// Another charge of this order came first.
    #[error("another charge of this order came first; an order is paid once")]
    Another,
    /// The amount is zero or negative.
    #[error("a charge is above 0, this one is {0}")]
    Amount(Cents),
}

/// A row of table `payments`.
#[derive(Serialize)]
struct PaymentRow<'a> {
    #[serde(rename = "order_id")]
    order: &'a str,
    account: Option<&'a Account>,
    amount: Option<Cents>,
    currency: Option<Currency>,
    status: Status,
    reference: Option<&'a str>,
    reason: Option<&'a Memo>,
}

impl Row for PaymentRow<'_> {
    const TABLE: Table = Table {
        name: "payments",
        columns: &[
            Column::new("order_id", ColumnKind::Text),
            Column::nullable("account", ColumnKind::Text),
            Column::nullable("amount", ColumnKind::Integer),
            Column::nullable("currency", ColumnKind::Text),
            Column::new("status", ColumnKind::Text),
            Column::nullable("reference", ColumnKind::Text),
            Column::nullable("reason", ColumnKind::Text),
        ],
        primary_key: &["order_id"],
        key_column: Some("order_id"),
        indexes: &[&["account", "order_id"]],
    };
}

impl<P: PaymentProvider> Handler for Payments<P> {
    const SERVICE: &'static str = "payments";
    const NEEDS: &'static [&'static str] = &[PROVIDER];
    type Message = Command;
    type State = Payment;

    fn key(&self, command: &Command) -> Key {
        match command {
            Command::Charge(charge) => &charge.order,
            Command::Refund { order, .. } => order,
        }
        .into()
    }

    fn codec(&self) -> &dyn Codec<Command> {
        &ShortTexts
    }

    async fn handle(&self, payment: &mut Payment, command: Command, turn: &mut Turn) -> Result<(), Fault> {
        let before = payment.status;
        match command {
            Command::Charge(charge) => self.charge(payment, charge, turn).await?,
            Command::Refund { order, reason } => self.refund(payment, order, reason, turn).await?,
        }
        let Some(status) = payment.status else { return turn.reply(payment) };
        let order = turn.key().to_owned();
        if before != Some(status) {
            turn.write(&payment.row(&order, status))?;
            turn.emit(&format!("payment.{status}"), payment)?;
        }
        turn.reply(&payment.row(&order, status))
    }

    fn tables(&self) -> Vec<Table> {
        vec![PaymentRow::TABLE]
    }
}

impl<P: PaymentProvider> Payments<P> {
    /// Takes the money, unless the payment was refunded before. The same charge again changes nothing.
    async fn charge(&self, payment: &mut Payment, charge: Charge, turn: &Turn) -> Result<(), Fault> {
        if charge.amount <= Cents(0) {
            return Err(Fault::reject(PaymentError::Amount(charge.amount)));
        }
        match (&payment.charge, payment.status) {
            (_, Some(Status::Void)) => return Ok(()),
            (Some(before), _) if *before == charge => return Ok(()),
            (Some(_), _) => return Err(Fault::refuse("already_exists", PaymentError::Another)),
            (None, _) => {}
        }
        match self.provider.charge(turn.token("charge"), &charge).await.map_err(ProviderError::fault)? {
            ProviderAnswer::Charged { id, order, amount } if (&order, amount) == (&charge.order, charge.amount) => {
                (payment.status, payment.reference) = (Some(Status::Charged), Some(id));
            }
            ProviderAnswer::Charged { order, amount, .. } => {
                let said = format!("it says that it took {amount} for order {order:?}");
                return Err(ProviderError::Nonsense(said).fault());
            }
            ProviderAnswer::Declined { reason } => {
                payment.status = Some(Status::Declined);
                payment.reason = Memo::try_from(shortened(reason)).ok();
            }
        }
        payment.charge = Some(charge);
        Ok(())
    }

    /// Gives the money back. The provider is called even if no charge is known here: a charge that was given up may
    /// have reached it.
    async fn refund(
        &self,
        payment: &mut Payment,
        order: OrderId,
        reason: Option<Memo>,
        turn: &Turn,
    ) -> Result<(), Fault> {
        let status = match payment.status {
            Some(Status::Declined | Status::Refunded | Status::Void) => return Ok(()),
            Some(Status::Charged) => Status::Refunded,
            None => Status::Void,
        };
        let refunded = self.provider.refund(turn.token("refund"), &order).await.map_err(ProviderError::fault)?;
        if refunded != order {
            return Err(ProviderError::Nonsense(format!("it says that it refunded order {refunded:?}")).fault());
        }
        payment.status = Some(status);
        payment.reason = reason;
        Ok(())
    }
}

impl Payment {
    fn row<'a>(&'a self, order: &'a str, status: Status) -> PaymentRow<'a> {
        let charge = self.charge.as_ref();
        PaymentRow {
            order,
            account: charge.map(|charge| &charge.account),
            amount: charge.map(|charge| charge.amount),
            currency: charge.map(|charge| charge.currency),
            status,
            reference: self.reference.as_deref(),
            reason: self.reason.as_ref(),
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Charged => "charged",
            Self::Declined => "declined",
            Self::Refunded => "refunded",
            Self::Void => "void",
        })
    }
}
