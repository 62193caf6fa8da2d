//! `orders`: the status of each order: placed, completed or cancelled.
//! In: commands, by order id. Out: a row of table `orders`, an event for each change, and the order as it is now.

use perkey::{Codec, Column, ColumnKind, Fault, Handler, Key, Row, Table, Turn};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::money::{Cents, Currency};
use crate::names::{Account, OrderId, SagaId};
use crate::posting::{At, Memo};
use crate::texts::ShortTexts;

/// Keeps one order per key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Orders;

/// The commands for an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Places the order.
    Place(Placement),
    /// Completes the order: it is paid for and booked.
    Complete {
        /// The order.
        order: OrderId,
    },
    /// Cancels the order. A cancellation that comes first is remembered: the order is refused when it comes.
    Cancel {
        /// The order.
        order: OrderId,
        /// The reason for the cancellation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<Memo>,
        /// True to cancel only an order that was placed: if it was not, the reply says so, and nothing is remembered.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        placed: bool,
    },
}

/// The details of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// The order.
    pub order: OrderId,
    /// The account that pays.
    pub account: Account,
    /// The price of the whole order; above 0.
    #[serde(deserialize_with = "crate::money::amount")]
    pub amount: Cents,
    /// Its currency.
    pub currency: Currency,
    /// The time at which it was placed.
    pub at: At,
    /// A note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memo: Option<Memo>,
    /// The checkout that places the order: two checkouts do not place the same order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saga: Option<SagaId>,
}

/// The state of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The details, once the order was placed.
    pub placement: Option<Placement>,
    /// The status; `None` before the order is placed or cancelled.
    pub status: Option<Status>,
    /// The reason for the cancellation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Memo>,
}

/// The status of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The order stands and is not completed.
    Placed,
    /// The order is completed.
    Completed,
    /// The order is cancelled.
    Cancelled,
}

/// Reasons why an order refuses a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// The order exists already.
    #[error("the order exists already: it is {0}")]
    Exists(Status),
    /// The order was not placed.
    #[error("there is no such order")]
    NotPlaced,
    /// Another command settled the order first.
    #[error("the order is {0}, and stays that")]
    Settled(Status),
    /// The amount is zero or negative.
    #[error("an order's amount is above 0, this one's is {0}")]
    Amount(Cents),
}

impl OrderError {
    fn fault(self) -> Fault {
        let code = match self {
            Self::Exists(_) => "already_exists",
            Self::NotPlaced => "not_found",
            Self::Settled(_) => "conflict",
            Self::Amount(_) => "rejected",
        };
        Fault::refuse(code, self)
    }
}

/// A row of table `orders`, and the reply: an order that was placed.
#[derive(Serialize)]
struct OrderRow<'a> {
    id: &'a OrderId,
    account: &'a Account,
    amount: Cents,
    currency: Currency,
    at: &'a At,
    memo: Option<&'a Memo>,
    status: Status,
    reason: Option<&'a Memo>,
}

impl Row for OrderRow<'_> {
    const TABLE: Table = Table {
        name: "orders",
        columns: &[
            Column::new("id", ColumnKind::Text),
            Column::new("account", ColumnKind::Text),
            Column::new("amount", ColumnKind::Integer),
            Column::new("currency", ColumnKind::Text),
            Column::new("at", ColumnKind::Text),
            Column::nullable("memo", ColumnKind::Text),
            Column::new("status", ColumnKind::Text),
            Column::nullable("reason", ColumnKind::Text),
        ],
        primary_key: &["id"],
        key_column: Some("id"),
        indexes: &[&["account", "id"]],
    };
}

impl<'a> OrderRow<'a> {
    fn of(placement: &'a Placement, status: Status, reason: Option<&'a Memo>) -> Self {
        let Placement { order: id, account, amount, currency, at, memo, .. } = placement;
        Self { id, account, amount: *amount, currency: *currency, at, memo: memo.as_ref(), status, reason }
    }
}

impl Handler for Orders {
    const SERVICE: &'static str = "orders";
    type Message = Command;
    type State = Order;

    fn key(&self, command: &Command) -> Key {
        match command {
            Command::Place(placement) => &placement.order,
            Command::Complete { order } | Command::Cancel { order, .. } => order,
        }
        .into()
    }

    fn codec(&self) -> &dyn Codec<Command> {
        &ShortTexts
    }

    async fn handle(&self, order: &mut Order, command: Command, turn: &mut Turn) -> Result<(), Fault> {
        let before = order.status;
        order.follow(command).map_err(OrderError::fault)?;
        if let (Some(placement), Some(status)) = (&order.placement, order.status)
            && before != Some(status)
        {
            turn.write(&OrderRow::of(placement, status, order.reason.as_ref()))?;
            turn.emit(&format!("order.{status}"), order)?;
        }
        let id = turn.key().to_owned();
        match (&order.placement, order.status) {
            (Some(placement), Some(status)) => turn.reply(&OrderRow::of(placement, status, order.reason.as_ref())),
            (_, status) => turn.reply(&json!({ "id": id, "status": status, "reason": order.reason })),
        }
    }

    fn tables(&self) -> Vec<Table> {
        vec![OrderRow::TABLE]
    }
}

impl Order {
    /// Carries out a command. The same command again changes nothing.
    fn follow(&mut self, command: Command) -> Result<(), OrderError> {
        self.status = Some(match (command, self.status) {
            (Command::Place(placement), None) if placement.amount <= Cents(0) => {
                return Err(OrderError::Amount(placement.amount));
            }
            (Command::Place(placement), None) => {
                self.placement = Some(placement);
                Status::Placed
            }
            (Command::Place(placement), Some(status)) if self.placement.as_ref() == Some(&placement) => status,
            (Command::Place(_), Some(status)) => return Err(OrderError::Exists(status)),
            (Command::Complete { .. } | Command::Cancel { placed: true, .. }, None) => {
                return Err(OrderError::NotPlaced);
            }
            (Command::Complete { .. }, Some(Status::Placed | Status::Completed)) => Status::Completed,
            (Command::Cancel { reason, .. }, None | Some(Status::Placed)) => {
                self.reason = reason;
                Status::Cancelled
            }
            (Command::Cancel { .. }, Some(Status::Cancelled)) => Status::Cancelled,
            (_, Some(status)) => return Err(OrderError::Settled(status)),
        });
        Ok(())
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Placed => "placed",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
        })
    }
}

#[cfg(test)]
mod tests {
    use perkey::testing::Given;
    use serde_json::Value;

    use super::*;

    fn place(amount: i64) -> Value {
        let at = "2026-01-31T10:00:00Z";
        json!({ "command": "place", "order": "o-1", "account": "a-1", "amount": amount, "currency": "EUR", "at": at })
    }

    fn told(command: &str) -> Value {
        json!({ "command": command, "order": "o-1" })
    }

    fn row(status: &str, reason: Option<&str>) -> Value {
        let mut row = place(500);
        let fields = row.as_object_mut().unwrap();
        fields.remove("command");
        let id = fields.remove("order").unwrap();
        for (name, value) in [("id", id), ("memo", Value::Null), ("status", json!(status)), ("reason", json!(reason))] {
            fields.insert(name.to_owned(), value);
        }
        row
    }

    #[test]
    fn an_order_is_placed_and_completed_or_cancelled() {
        let placed = Given::handler(Orders).when(place(500)).then_events(["order.placed"]);
        placed
            .then_rows([row("placed", None)])
            .then_reply(row("placed", None))
            .when(told("complete"))
            .then_events(["order.completed"])
            .then_rows([row("completed", None)])
            .when(told("cancel"))
            .then_rejects("the order is completed, and stays that");
        Given::handler(Orders)
            .messages([place(500)])
            .when(json!({ "command": "cancel", "order": "o-1", "reason": "declined" }))
            .then_events(["order.cancelled"])
            .then_rows([row("cancelled", Some("declined"))])
            .when(told("complete"))
            .then_rejects("the order is cancelled, and stays that");
    }

    #[test]
    fn the_same_command_again_changes_nothing() {
        for commands in [vec![place(5)], vec![place(5), told("complete")], vec![place(5), told("cancel")]] {
            let last = commands.last().cloned().unwrap();
            Given::handler(Orders).messages(commands).when(last).then_succeeds().then_events([]).then_rows([(); 0]);
        }
        Given::handler(Orders).messages([place(5)]).when(place(6)).then_rejects("exists already: it is placed");
    }

    #[test]
    fn a_cancellation_that_comes_first_is_remembered() {
        let cancelled = Given::handler(Orders).when(told("cancel")).then_succeeds().then_rows([(); 0]).then_events([]);
        cancelled.when(place(5)).then_rejects("exists already: it is cancelled");
        let only_placed = json!({ "command": "cancel", "order": "o-1", "placed": true });
        Given::handler(Orders).when(only_placed.clone()).then_rejects("no such order");
        Given::handler(Orders).messages([place(5)]).when(only_placed).then_events(["order.cancelled"]);
    }

    #[test]
    fn what_makes_no_sense_is_rejected() {
        Given::handler(Orders).when(told("complete")).then_rejects("no such order");
        Given::handler(Orders).when(place(0)).then_rejects("above 0");
        Given::handler(Orders).when(json!({ "command": "place", "order": "" })).then_rejects("order is empty");
    }
}
