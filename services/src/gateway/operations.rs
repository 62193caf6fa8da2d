//! All operations, each once for every protocol. A new one here is an endpoint with the whole contract.
//! In: a checked request. Out: the message that its handler understands.

mod members;

use perkey::Millis;
use perkey::unstable::clock::rfc3339;
use serde_json::{Map, Value, json};

pub use self::members::{Member, MemberKind, checked};
use super::problem::{Kind, Problem};

/// An operation of the front doors.
#[derive(Debug)]
pub struct Operation {
    /// Its name, part of the scope of every key: it must never change.
    pub name: &'static str,
    /// Its HTTP method.
    pub method: &'static str,
    /// Its path; `{id}` is the target.
    pub path: &'static str,
    /// A short description.
    pub summary: &'static str,
    /// The service that carries it out.
    pub service: &'static str,
    /// The entity that it is about.
    pub entity: Entity,
    /// True if it makes a new entity.
    pub creates: bool,
    /// The members of its body.
    pub members: &'static [Member],
    /// Makes the message for a request.
    pub message: fn(&Request<'_>) -> Result<Value, Problem>,
    /// The problem in a reply that says no.
    pub verdict: fn(&Value) -> Option<Problem>,
}

/// A request whose body was checked, with the names of the tenant as stored.
#[derive(Debug)]
pub struct Request<'a> {
    /// The body.
    pub body: &'a Map<String, Value>,
    /// The id in the path.
    pub target: Option<&'a str>,
    /// The id of the entity that it makes, unless the body brings one: the same for each repeat.
    pub id: &'a str,
    /// The time at which it came.
    pub now: Millis,
}

/// The kinds of entities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entity {
    /// An order.
    Order,
    /// An expense.
    Expense,
    /// A posting.
    Transaction,
    /// A checkout.
    Checkout,
    /// A payment, by the id of its order.
    Payment,
    /// An account, with its balance.
    Account,
}

impl Entity {
    /// All entities.
    pub const ALL: [Self; 6] =
        [Self::Order, Self::Expense, Self::Transaction, Self::Checkout, Self::Payment, Self::Account];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Expense => "expense",
            Self::Transaction => "transaction",
            Self::Checkout => "checkout",
            Self::Payment => "payment",
            Self::Account => "account",
        }
    }

    /// The path of its list; with `/{id}` behind it, of one entity.
    pub fn path(self) -> &'static str {
        match self {
            Self::Order => "/api/orders",
            Self::Expense => "/api/expenses",
            Self::Transaction => "/api/transactions",
            Self::Checkout => "/api/checkouts",
            Self::Payment => "/charge",
            Self::Account => "/api/accounts",
        }
    }

    /// The table that has its rows; an account is a state.
    pub fn table(self) -> Option<&'static str> {
        match self {
            Self::Order => Some("orders"),
            Self::Expense => Some("expenses"),
            Self::Transaction => Some("transactions"),
            Self::Checkout => Some("checkouts"),
            Self::Payment => Some("payments"),
            Self::Account => None,
        }
    }

    /// The member that identifies it.
    pub fn id_member(self) -> &'static str {
        match self {
            Self::Payment => "order_id",
            Self::Account => "account",
            Self::Order | Self::Expense | Self::Transaction | Self::Checkout => "id",
        }
    }
}

impl Request<'_> {
    /// A message with these members of the body, as far as they are given.
    fn taken(&self, command: Option<&str>, names: &[&str]) -> Map<String, Value> {
        let mut message = Map::new();
        if let Some(command) = command {
            message.insert("command".to_owned(), command.into());
        }
        for name in names {
            if let Some(value) = self.body.get(*name).filter(|value| !value.is_null()) {
                message.insert((*name).to_owned(), value.clone());
            }
        }
        message
    }

    /// The id that the body brings under this name, or the derived one.
    fn id_or_derived(&self, name: &str) -> Value {
        self.body.get(name).filter(|id| !id.is_null()).cloned().unwrap_or_else(|| self.id.into())
    }

    /// The time that the body brings, or the time at which the request came.
    fn at(&self) -> Value {
        self.body.get("at").filter(|at| !at.is_null()).cloned().unwrap_or_else(|| rfc3339(self.now).into())
    }

    /// The category that the body brings, or the default one.
    fn category(&self) -> Value {
        self.body.get("category").filter(|at| !at.is_null()).cloned().unwrap_or_else(|| "general".into())
    }
}

const ACCOUNT: Member = Member::required("account", MemberKind::Name, "The account's name, 1 to 256 bytes.");
const AMOUNT: Member = Member::required("amount", MemberKind::Amount, "Whole minor units: 1250 is 12.50.");
const CURRENCY: Member = Member::required("currency", MemberKind::Currency, "ISO 4217 code; an account has only one.");
const AT: Member = Member::optional("at", MemberKind::At, "A date, or a time with its offset; now where left out.");
const MEMO: Member = Member::optional("memo", MemberKind::Text, "A note.");
const REASON: Member = Member::optional("reason", MemberKind::Text, "Why.");
const ID: Member = Member::optional("id", MemberKind::Name, "An id of the client's own; made where left out.");
const CATEGORY: Member =
    Member::optional("category", MemberKind::Label, "What it is spent on; `general` where left out.");

/// All operations.
pub static OPERATIONS: &[Operation] = &[
    Operation {
        name: "orders.place",
        method: "POST",
        path: "/api/orders",
        summary: "Place an order",
        service: "orders",
        entity: Entity::Order,
        creates: true,
        members: &[ID, ACCOUNT, AMOUNT, CURRENCY, AT, MEMO],
        message: place,
        verdict: fine,
    },
    Operation {
        name: "orders.change",
        method: "PATCH",
        path: "/api/orders/{id}",
        summary: "Complete or cancel an order",
        service: "orders",
        entity: Entity::Order,
        creates: false,
        members: &[Member::required("status", MemberKind::Status, "completed or cancelled."), REASON],
        message: change,
        verdict: fine,
    },
    Operation {
        name: "orders.complete",
        method: "POST",
        path: "/api/orders/{id}/complete",
        summary: "Complete an order",
        service: "orders",
        entity: Entity::Order,
        creates: false,
        members: &[],
        message: |request| Ok(of_order(request, "complete")),
        verdict: fine,
    },
    Operation {
        name: "orders.cancel",
        method: "POST",
        path: "/api/orders/{id}/cancel",
        summary: "Cancel an order that was placed",
        service: "orders",
        entity: Entity::Order,
        creates: false,
        members: &[REASON],
        message: |request| Ok(cancel(request)),
        verdict: fine,
    },
    Operation {
        name: "expenses.record",
        method: "POST",
        path: "/api/expenses",
        summary: "Record an expense",
        service: "expenses",
        entity: Entity::Expense,
        creates: true,
        members: &[ACCOUNT, CATEGORY, AMOUNT, CURRENCY, AT, MEMO],
        message: record,
        verdict: fine,
    },
    Operation {
        name: "expenses.budget",
        method: "POST",
        path: "/api/budgets",
        summary: "Set the budget of a category for each month; null for no budget",
        service: "expenses",
        entity: Entity::Account,
        creates: false,
        members: &[
            ACCOUNT,
            CATEGORY,
            Member::required("limit", MemberKind::Limit, "Whole minor units, or null."),
            CURRENCY,
        ],
        message: budget,
        verdict: fine,
    },
    Operation {
        name: "transactions.post",
        method: "POST",
        path: "/api/transactions",
        summary: "Post an amount to an account",
        service: "transactions",
        entity: Entity::Transaction,
        creates: true,
        members: &[ACCOUNT, AMOUNT, CURRENCY, AT, MEMO],
        message: post,
        verdict: fine,
    },
    Operation {
        name: "checkouts.start",
        method: "POST",
        path: "/api/checkouts",
        summary: "Check out: order, payment, expense and posting, or none of them",
        service: "checkouts",
        entity: Entity::Checkout,
        creates: true,
        members: &[
            ID,
            Member::optional(
                "order",
                MemberKind::Name,
                "The id of the order that it places; the checkout's where left out.",
            ),
            ACCOUNT,
            CATEGORY,
            AMOUNT,
            CURRENCY,
            AT,
            MEMO,
        ],
        message: check_out,
        verdict: fine,
    },
    Operation {
        name: "payments.charge",
        method: "POST",
        path: "/charge",
        summary: "Take the money for an order",
        service: "payments",
        entity: Entity::Payment,
        creates: true,
        members: &[
            Member::optional("order", MemberKind::Name, "The order's id; made where left out."),
            ACCOUNT,
            AMOUNT,
            CURRENCY,
        ],
        message: charge,
        verdict: charged,
    },
    Operation {
        name: "payments.refund",
        method: "POST",
        path: "/charge/{id}/refund",
        summary: "Give the money for an order back; nothing is charged for it any more",
        service: "payments",
        entity: Entity::Payment,
        creates: false,
        members: &[REASON],
        message: |request| Ok(of_order(request, "refund")),
        verdict: fine,
    },
];

/// The operation of this name.
pub fn operation(name: &str) -> Option<&'static Operation> {
    OPERATIONS.iter().find(|operation| operation.name == name)
}

fn place(request: &Request<'_>) -> Result<Value, Problem> {
    let mut message = request.taken(Some("place"), &["account", "amount", "currency", "memo"]);
    message.insert("order".to_owned(), request.id_or_derived("id"));
    message.insert("at".to_owned(), request.at());
    Ok(message.into())
}

/// A command about the order in the path.
fn of_order(request: &Request<'_>, command: &str) -> Value {
    let mut message = request.taken(Some(command), &["reason"]);
    message.insert("order".to_owned(), json!(request.target));
    message.into()
}

/// A cancellation from outside is about an order that exists.
fn cancel(request: &Request<'_>) -> Value {
    let mut message = of_order(request, "cancel");
    message["placed"] = true.into();
    message
}

fn change(request: &Request<'_>) -> Result<Value, Problem> {
    let completes = request.body.get("status").is_some_and(|status| status == "completed");
    match (completes, request.body.get("reason")) {
        (true, Some(reason)) if !reason.is_null() => Err(Problem::at("/reason", "only a cancelled order has one")),
        (true, _) => Ok(json!({ "command": "complete", "order": request.target })),
        (false, _) => Ok(cancel(request)),
    }
}

fn record(request: &Request<'_>) -> Result<Value, Problem> {
    let mut message = request.taken(Some("record"), &["account", "amount", "currency", "memo"]);
    message.insert("category".to_owned(), request.category());
    message.insert("at".to_owned(), request.at());
    Ok(message.into())
}

fn budget(request: &Request<'_>) -> Result<Value, Problem> {
    let mut message = request.taken(Some("budget"), &["account", "limit", "currency"]);
    message.insert("category".to_owned(), request.category());
    Ok(message.into())
}

fn post(request: &Request<'_>) -> Result<Value, Problem> {
    let mut message = request.taken(None, &["account", "amount", "currency", "memo"]);
    message.insert("at".to_owned(), request.at());
    Ok(message.into())
}

fn check_out(request: &Request<'_>) -> Result<Value, Problem> {
    let mut message = request.taken(Some("start"), &["account", "amount", "currency", "memo"]);
    let saga = request.id_or_derived("id");
    let order = request.body.get("order").filter(|order| !order.is_null()).unwrap_or(&saga);
    message.insert("order".to_owned(), order.clone());
    message.insert("saga".to_owned(), saga);
    message.insert("category".to_owned(), request.category());
    message.insert("at".to_owned(), request.at());
    Ok(message.into())
}

fn charge(request: &Request<'_>) -> Result<Value, Problem> {
    let mut message = request.taken(Some("charge"), &["account", "amount", "currency"]);
    message.insert("order".to_owned(), request.id_or_derived("order"));
    Ok(message.into())
}

fn fine(_: &Value) -> Option<Problem> {
    None
}

/// A payment that was declined is not a success, though its handler has done its work.
fn charged(reply: &Value) -> Option<Problem> {
    let reason = reply.get("reason").and_then(Value::as_str).unwrap_or("no reason was given");
    match reply.get("status").and_then(Value::as_str) {
        Some("declined") => Some(Problem::new(Kind::Declined, format!("the payment was declined: {reason}"))),
        Some("void") => {
            Some(Problem::new(Kind::Conflict, "the order was refunded before: nothing is charged for it any more"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_and_routes_are_unique_and_a_target_is_in_the_path() {
        let names: BTreeSet<_> = OPERATIONS.iter().map(|operation| operation.name).collect();
        let routes: BTreeSet<_> = OPERATIONS.iter().map(|operation| (operation.method, operation.path)).collect();
        assert_eq!((names.len(), routes.len()), (OPERATIONS.len(), OPERATIONS.len()));
        assert!(OPERATIONS.iter().all(|operation| self::operation(operation.name).is_some()));
        assert!(OPERATIONS.iter().all(|operation| !(operation.creates && operation.path.contains("{id}"))));
    }

    /// The message of a request with this body.
    fn message(name: &str, body: &Value) -> Value {
        let operation = operation(name).unwrap();
        let body = checked(operation.members, body.clone()).unwrap();
        let request = Request { body: &body, target: Some("t-1"), id: "made", now: 0 };
        (operation.message)(&request).unwrap()
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        let body = json!({ "account": "a", "amount": 5, "currency": "EUR" });
        let at = "1970-01-01T00:00:00Z";
        let posted = json!({ "account": "a", "amount": 5, "currency": "EUR", "at": at });
        assert_eq!(message("transactions.post", &body), posted);
        let placed =
            json!({ "command": "place", "order": "made", "account": "a", "amount": 5, "currency": "EUR", "at": at });
        assert_eq!(message("orders.place", &body), placed);
        let saga = message("checkouts.start", &body);
        assert_eq!(
            (&saga["saga"], &saga["order"], &saga["category"]),
            (&"made".into(), &"made".into(), &"general".into())
        );
        let own = json!({ "id": "o-1", "account": "a", "amount": 5, "currency": "EUR", "at": "2026-01-31" });
        let own = message("orders.place", &own);
        assert_eq!((&own["order"], &own["at"]), (&"o-1".into(), &"2026-01-31".into()));
        let cancel = message("orders.change", &json!({ "status": "cancelled", "reason": "late" }));
        assert_eq!(cancel, json!({ "command": "cancel", "order": "t-1", "placed": true, "reason": "late" }));
    }

    #[test]
    fn a_payment_that_was_not_made_is_no_success() {
        let verdict = operation("payments.charge").unwrap().verdict;
        assert_eq!(verdict(&json!({ "status": "declined", "reason": "x" })).unwrap().kind, Kind::Declined);
        assert_eq!(verdict(&json!({ "status": "void" })).unwrap().kind, Kind::Conflict);
        assert_eq!(verdict(&json!({ "status": "charged" })), None);
    }
}
