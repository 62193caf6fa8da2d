//! `transactions`: the ledger of each account's postings, as rows that any SQL client can read.
//! In: postings. Out: a row of table `transactions` and the event `transaction.posted` for each.

use perkey::{AfterDeadLetter, Codec, Column, ColumnKind, Fault, Handler, Key, Row, Table, Turn};
use serde::{Deserialize, Serialize};

use crate::money::{Cents, Currency};
use crate::names::Account;
use crate::posting::{Posting, PostingError};
use crate::texts::ShortTexts;

/// Keeps a ledger per account.
#[derive(Clone, Copy, Debug, Default)]
pub struct Transactions;

/// The state of an account's ledger; the postings themselves are rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// The sum of its postings.
    pub balance: Cents,
    /// The number of the account's postings.
    pub postings: u64,
    /// The account's currency; `None` before the first posting.
    pub currency: Option<Currency>,
}

/// The reply to a posting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Posted {
    /// The posting.
    pub id: String,
    /// The account.
    pub account: Account,
    /// The amount that was posted.
    pub amount: Cents,
    /// The balance after it.
    pub balance: Cents,
    /// The number of the account's postings up to this one.
    pub n: u64,
}

/// A row of table `transactions`: a posting with its id.
#[derive(Serialize)]
#[serde(transparent)]
struct TransactionRow<'a>(&'a Posting);

impl Row for TransactionRow<'_> {
    const TABLE: Table = Table {
        name: "transactions",
        columns: &[
            Column::new("id", ColumnKind::Text),
            Column::new("account", ColumnKind::Text),
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

impl Handler for Transactions {
    const SERVICE: &'static str = "transactions";
    type Message = Posting;
    type State = Ledger;

    fn key(&self, posting: &Posting) -> Key {
        Key::from(&posting.account)
    }

    fn codec(&self) -> &dyn Codec<Posting> {
        &ShortTexts
    }

    async fn handle(&self, ledger: &mut Ledger, mut posting: Posting, turn: &mut Turn) -> Result<(), Fault> {
        let id = turn.id().to_owned();
        if let Some(payload) = posting.id.replace(id.clone())
            && payload != id
        {
            return Err(Fault::reject(PostingError::OtherId { payload, message: id }));
        }
        ledger.currency = Some(Currency::settle(ledger.currency, posting.currency).map_err(Fault::reject)?);
        ledger.balance = ledger.balance.plus(posting.amount).map_err(Fault::reject)?;
        ledger.postings += 1;

        turn.write(&TransactionRow(&posting))?;
        turn.emit("transaction.posted", &posting)?;
        turn.reply(&Posted {
            id,
            account: posting.account,
            amount: posting.amount,
            balance: ledger.balance,
            n: ledger.postings,
        })
    }

    /// A ledger with a gap is wrong: later postings wait until an operator has decided about the one before them.
    fn after_dead_letter(&self) -> AfterDeadLetter {
        AfterDeadLetter::HoldKey
    }

    fn tables(&self) -> Vec<Table> {
        vec![TransactionRow::TABLE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{rejected, turn_of};

    #[tokio::test]
    async fn a_posting_is_a_row_an_event_and_a_reply() {
        let mut ledger = Ledger::default();
        let (posting, mut turn) = turn_of::<Posting>("m-1", r#""amount":1234,"currency":"EUR","memo":"tea""#);
        Transactions.handle(&mut ledger, posting, &mut turn).await.unwrap();

        assert_eq!(ledger, Ledger { balance: Cents(1234), postings: 1, currency: Some("EUR".parse().unwrap()) });
        let effects = turn.into_effects();
        let row: serde_json::Value = serde_json::from_str(effects.rows[0].row.as_deref().unwrap()).unwrap();
        let posted: serde_json::Value = serde_json::from_slice(&effects.events[0].payload).unwrap();
        let expected = serde_json::json!(
            {"id": "m-1", "account": "acct-1", "amount": 1234, "currency": "EUR", "at": "2026-01-31", "memo": "tea"}
        );
        assert_eq!((&row, &posted), (&expected, &expected));
        assert_eq!(
            (effects.rows[0].key.as_str(), effects.events[0].kind.as_str()),
            (r#"["acct-1","m-1"]"#, "transaction.posted")
        );
        let reply: Posted = serde_json::from_slice(&effects.reply.unwrap()).unwrap();
        assert_eq!((reply.balance, reply.n), (Cents(1234), 1));
    }

    #[tokio::test]
    async fn what_is_emitted_is_a_posting_for_the_next_service() {
        let (posting, mut turn) = turn_of::<Posting>("m-1", r#""amount":0,"currency":"EUR""#);
        Transactions.handle(&mut Ledger::default(), posting.clone(), &mut turn).await.unwrap();
        let emitted: Posting = serde_json::from_slice(&turn.effects().events[0].payload).unwrap();
        assert_eq!(emitted, Posting { id: Some("m-1".to_owned()), ..posting });
    }

    #[tokio::test]
    async fn overflow_another_currency_and_another_id_are_rejected() {
        let full = Ledger { balance: Cents(i64::MIN), postings: 1, currency: Some("EUR".parse().unwrap()) };
        for (fields, reason) in [
            (r#""amount":-1,"currency":"EUR""#, "overflows"),
            (r#""amount":1,"currency":"USD""#, "kept in EUR"),
            (r#""amount":1,"currency":"EUR","id":"other""#, "not the message's id"),
        ] {
            let (posting, mut turn) = turn_of::<Posting>("m", fields);
            rejected(Transactions.handle(&mut full.clone(), posting, &mut turn).await, reason);
        }
    }

    #[test]
    fn a_key_waits_behind_its_dead_letter() {
        assert_eq!(Transactions.after_dead_letter(), AfterDeadLetter::HoldKey);
    }
}
