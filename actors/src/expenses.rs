//! `expenses`: the spending of each account, against a monthly budget for each category.
//! In: expenses and budgets, by account. Out: rows of `expenses` and `budgets`; `budget.exceeded` when a budget is.

use std::collections::BTreeMap;

use perkey::{Codec, Column, ColumnKind, Fault, Handler, Key, Row, Table, Turn};
use serde::{Deserialize, Serialize};

use crate::money::{Cents, Currency};
use crate::names::{Account, Category};
use crate::posting::{At, Memo};
use crate::texts::ShortTexts;

/// Number of months for which an account's sums are kept; budgets are not applied to older expenses.
const MONTHS_KEPT: usize = 24;
/// The most categories that an account may have: each is a part of its state.
const CATEGORIES_MAX: usize = 200;

/// Keeps the expenses of each account.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expenses;

/// The messages of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Records an expense.
    Record(Expense),
    /// Sets the monthly budget of a category.
    Budget(Budget),
}

/// An expense: money that was spent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expense {
    /// The account.
    pub account: Account,
    /// The category.
    pub category: Category,
    /// The amount; negative takes an expense back.
    #[serde(deserialize_with = "crate::money::amount")]
    pub amount: Cents,
    /// The currency: an account has only one.
    pub currency: Currency,
    /// The time of the expense; its month is the one that counts.
    pub at: At,
    /// A note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memo: Option<Memo>,
}

/// A budget: the most that is meant to be spent on a category.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The account.
    pub account: Account,
    /// The category.
    pub category: Category,
    /// The limit for a month; `null` for no budget.
    #[serde(default, deserialize_with = "crate::money::maybe_amount")]
    pub limit: Option<Cents>,
    /// The currency: an account has only one.
    pub currency: Currency,
}

/// The state of an account's expenses; the expenses themselves are rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spending {
    /// The account's currency; `None` before the first message that names one.
    pub currency: Option<Currency>,
    /// Budget and sums of each category.
    pub categories: BTreeMap<Category, Spent>,
}

/// The state of a category.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// The category's budget, if it has one.
    pub limit: Option<Cents>,
    /// The sums of the latest months, by month (`2026-01`).
    pub months: BTreeMap<String, Cents>,
}

/// Reasons why an expense or a budget cannot be recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpenseError {
    /// The account has too many categories: its state would grow without bound.
    #[error("the account has {CATEGORIES_MAX} categories, the most that it may have")]
    Categories,
    /// The budget is negative.
    #[error("a budget is 0 or more, this one's limit is {0}")]
    Limit(Cents),
}

/// The event `expense.recorded`, and the reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The expense's id: the id of its message.
    pub id: String,
    /// The expense.
    #[serde(flatten)]
    pub expense: Expense,
    /// The sum of its category in its month, including it; `null` if that month is no longer kept.
    pub spent: Option<Cents>,
    /// The category's budget, if it has one.
    pub limit: Option<Cents>,
}

/// A row of table `expenses`.
#[derive(Serialize)]
struct ExpenseRow<'a> {
    id: &'a str,
    #[serde(flatten)]
    expense: &'a Expense,
}

impl Row for ExpenseRow<'_> {
    const TABLE: Table = Table {
        name: "expenses",
        columns: &[
            Column::new("id", ColumnKind::Text),
            Column::new("account", ColumnKind::Text),
            Column::new("category", ColumnKind::Text),
            Column::new("amount", ColumnKind::Integer),
            Column::new("currency", ColumnKind::Text),
            Column::new("at", ColumnKind::Text),
            Column::nullable("memo", ColumnKind::Text),
        ],
        primary_key: &["account", "id"],
        key_column: Some("account"),
        indexes: &[&["id"], &["account", "id"]],
    };
}

/// A row of table `budgets`.
#[derive(Serialize)]
struct BudgetRow<'a> {
    account: &'a Account,
    category: &'a Category,
    monthly_limit: Option<Cents>,
    currency: Currency,
}

impl Row for BudgetRow<'_> {
    const TABLE: Table = Table {
        name: "budgets",
        columns: &[
            Column::new("account", ColumnKind::Text),
            Column::new("category", ColumnKind::Text),
            Column::nullable("monthly_limit", ColumnKind::Integer),
            Column::new("currency", ColumnKind::Text),
        ],
        primary_key: &["account", "category"],
        key_column: Some("account"),
        indexes: &[],
    };
}

impl Handler for Expenses {
    const SERVICE: &'static str = "expenses";
    type Message = Command;
    type State = Spending;

    fn key(&self, command: &Command) -> Key {
        match command {
            Command::Record(expense) => &expense.account,
            Command::Budget(budget) => &budget.account,
        }
        .into()
    }

    fn codec(&self) -> &dyn Codec<Command> {
        &ShortTexts
    }

    async fn handle(&self, spending: &mut Spending, command: Command, turn: &mut Turn) -> Result<(), Fault> {
        match command {
            Command::Record(expense) => record(spending, expense, turn),
            Command::Budget(budget) => {
                if let Some(limit) = budget.limit.filter(|limit| *limit < Cents(0)) {
                    return Err(Fault::reject(ExpenseError::Limit(limit)));
                }
                spending.category(&budget.category, budget.currency)?.limit = budget.limit;
                let Budget { account, category, limit, currency } = &budget;
                turn.write(&BudgetRow { account, category, monthly_limit: *limit, currency: *currency })?;
                turn.reply(&budget)
            }
        }
    }

    fn tables(&self) -> Vec<Table> {
        vec![ExpenseRow::TABLE, BudgetRow::TABLE]
    }
}

fn record(spending: &mut Spending, expense: Expense, turn: &mut Turn) -> Result<(), Fault> {
    let id = turn.id().to_owned();
    let spent = spending.category(&expense.category, expense.currency)?;
    let limit = spent.limit;
    let sums = spent.add(&expense)?;
    turn.write(&ExpenseRow { id: &id, expense: &expense })?;
    let recorded = Recorded { id, expense, spent: sums.map(|(_, after)| after), limit };
    turn.emit("expense.recorded", &recorded)?;
    // `budget.exceeded` is sent once: by the expense that takes the sum over the limit.
    if let (Some((before, after)), Some(limit)) = (sums, limit)
        && before <= limit
        && after > limit
    {
        turn.emit("budget.exceeded", &recorded)?;
    }
    turn.reply(&recorded)
}

impl Spending {
    /// The state of a category; settles the account's currency, too.
    fn category(&mut self, category: &Category, currency: Currency) -> Result<&mut Spent, Fault> {
        self.currency = Some(Currency::settle(self.currency, currency).map_err(Fault::reject)?);
        if !self.categories.contains_key(category) && self.categories.len() >= CATEGORIES_MAX {
            return Err(Fault::reject(ExpenseError::Categories));
        }
        Ok(self.categories.entry(category.clone()).or_default())
    }
}

impl Spent {
    /// Adds to the sum of the expense's month, and returns the sum before and after; `None` if the month is no longer
    /// kept.
    fn add(&mut self, expense: &Expense) -> Result<Option<(Cents, Cents)>, Fault> {
        let month = expense.at.month();
        let oldest = self.months.first_key_value().map(|(oldest, _)| oldest.as_str());
        if self.months.len() >= MONTHS_KEPT && oldest.is_some_and(|oldest| *month < *oldest) {
            return Ok(None);
        }
        let before = self.months.get(&month).copied().unwrap_or_default();
        let after = before.plus(expense.amount).map_err(Fault::reject)?;
        self.months.insert(month, after);
        while self.months.len() > MONTHS_KEPT {
            self.months.pop_first();
        }
        Ok(Some((before, after)))
    }
}

#[cfg(test)]
mod tests {
    use perkey::testing::Given;
    use serde_json::{Value, json};

    use super::*;

    fn spend(category: &str, amount: i64, at: &str) -> Value {
        let command = "record";
        json!({ "command": command, "account": "a-1", "category": category, "amount": amount, "currency": "EUR", "at": at })
    }

    fn budget(limit: Value) -> Value {
        json!({ "command": "budget", "account": "a-1", "category": "food", "limit": limit, "currency": "EUR" })
    }

    #[test]
    fn an_expense_is_a_row_an_event_and_a_reply() {
        let mut row = spend("food", 250, "2026-01-31");
        row.as_object_mut().unwrap().remove("command");
        row["id"] = json!("message-1");
        let mut recorded = row.clone();
        recorded["spent"] = json!(250);
        recorded["limit"] = Value::Null;
        Given::handler(Expenses)
            .when(spend("food", 250, "2026-01-31"))
            .then_rows([row])
            .then_events(["expense.recorded"])
            .then_event(0, &recorded)
            .then_reply(&recorded);
    }

    #[test]
    fn a_budget_is_exceeded_once_a_month() {
        Given::handler(Expenses)
            .messages([budget(json!(1_000)), spend("food", 1_000, "2026-01-01"), spend("rent", 5_000, "2026-01-02")])
            .when(spend("food", 1, "2026-01-31T23:59:59Z"))
            .then_events(["expense.recorded", "budget.exceeded"])
            .when(spend("food", 1, "2026-01-31"))
            .then_events(["expense.recorded"])
            .when(spend("food", -500, "2026-01-31"))
            .then_events(["expense.recorded"])
            .when(spend("food", 500, "2026-01-31"))
            .then_events(["expense.recorded", "budget.exceeded"])
            .when(spend("food", 1_000, "2026-02-01"))
            .then_events(["expense.recorded"])
            .when(budget(Value::Null))
            .then_succeeds()
            .when(spend("food", 9_000, "2026-02-01"))
            .then_events(["expense.recorded"]);
    }

    #[test]
    fn the_state_of_an_account_is_bounded() {
        let months: Vec<_> =
            (0..30).map(|n| spend("food", 1, &format!("{}-{:02}-01", 2020 + n / 12, n % 12 + 1))).collect();
        let then = Given::handler(Expenses).messages(months).when(spend("food", 7, "2020-01-01"));
        then.then_succeeds().then_event(0, {
            let mut recorded = spend("food", 7, "2020-01-01");
            recorded.as_object_mut().unwrap().remove("command");
            recorded["id"] = json!("message-31");
            recorded["spent"] = Value::Null;
            recorded["limit"] = Value::Null;
            recorded
        });
        let categories: Vec<_> = (0..CATEGORIES_MAX).map(|n| spend(&format!("c{n}"), 1, "2026-01-01")).collect();
        Given::handler(Expenses)
            .messages(categories)
            .when(spend("one-more", 1, "2026-01-01"))
            .then_rejects("200 categories")
            .when(spend("c7", 1, "2026-01-01"))
            .then_succeeds();
    }

    #[test]
    fn what_makes_no_sense_is_rejected() {
        Given::handler(Expenses).when(budget(json!(-1))).then_rejects("0 or more");
        Given::handler(Expenses).when(spend("", 1, "2026-01-01")).then_rejects("category is empty");
        Given::handler(Expenses).when(spend("food", 1, "yesterday")).then_rejects("neither a date");
        let mut dollars = spend("food", 1, "2026-01-01");
        dollars["currency"] = json!("USD");
        Given::handler(Expenses).messages([spend("food", 1, "2026-01-01")]).when(dollars).then_rejects("kept in EUR");
    }
}
