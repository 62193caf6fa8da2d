//! `balances`: the balance of each account. The smallest complete handler.
//! In: postings. Out: `balance.changed` with the new balance and the number of postings that made it.

use perkey::{Codec, Fault, Handler, Key, Turn};
use serde::{Deserialize, Serialize};

use crate::money::{Cents, Currency};
use crate::names::Account;
use crate::posting::Posting;
use crate::texts::ShortTexts;

/// Keeps a balance per account.
#[derive(Clone, Copy, Debug, Default)]
pub struct Balances;

/// The balance of an account: this key's state, loaded and saved by Perkey.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// The sum of its postings.
    pub balance: Cents,
    /// The number of the account's postings.
    pub n: u64,
    /// The account's currency; `None` before the first posting.
    pub currency: Option<Currency>,
}

/// The event `balance.changed`, and the reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalanceChanged {
    /// The posting that changed it.
    pub id: String,
    /// The account.
    pub account: Account,
    /// The balance after it.
    pub balance: Cents,
    /// The account's postings up to it: strictly increasing.
    pub n: u64,
}

impl Handler for Balances {
    const SERVICE: &'static str = "balances";
    type Message = Posting;
    type State = Balance;

    fn key(&self, posting: &Posting) -> Key {
        Key::from(&posting.account)
    }

    fn codec(&self) -> &dyn Codec<Posting> {
        &ShortTexts
    }

    async fn handle(&self, state: &mut Balance, posting: Posting, turn: &mut Turn) -> Result<(), Fault> {
        state.currency = Some(Currency::settle(state.currency, posting.currency).map_err(Fault::reject)?);
        state.balance = state.balance.plus(posting.amount).map_err(Fault::reject)?;
        state.n += 1;

        let id = posting.id.unwrap_or_else(|| turn.id().to_owned());
        let changed = BalanceChanged { id, account: posting.account, balance: state.balance, n: state.n };
        turn.emit("balance.changed", &changed)?;
        turn.reply(&changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{rejected, turn_of};

    #[tokio::test]
    async fn a_posting_changes_the_balance_and_says_so() {
        let mut state = Balance { balance: Cents(100), n: 1, currency: Some("EUR".parse().unwrap()) };
        let (posting, mut turn) = turn_of::<Posting>("m-2", r#""amount":-30,"currency":"EUR""#);
        Balances.handle(&mut state, posting, &mut turn).await.unwrap();

        assert_eq!(state, Balance { balance: Cents(70), n: 2, currency: Some("EUR".parse().unwrap()) });
        let said = br#"{"id":"m-2","account":"acct-1","balance":70,"n":2}"#;
        let effects = turn.into_effects();
        assert_eq!(effects.events.len(), 1);
        assert_eq!((effects.events[0].kind.as_str(), &effects.events[0].payload[..]), ("balance.changed", &said[..]));
        assert_eq!(effects.reply.unwrap(), said[..]);
    }

    #[tokio::test]
    async fn an_event_keeps_the_id_of_the_posting_it_came_from() {
        let (posting, mut turn) = turn_of::<Posting>("derived", r#""id":"p-1","amount":1,"currency":"EUR""#);
        Balances.handle(&mut Balance::default(), posting, &mut turn).await.unwrap();
        let event: BalanceChanged = serde_json::from_slice(&turn.effects().events[0].payload).unwrap();
        assert_eq!(event.id, "p-1");
    }

    #[tokio::test]
    async fn overflow_and_another_currency_are_rejected() {
        let full = Balance { balance: Cents(i64::MAX), n: 1, currency: Some("EUR".parse().unwrap()) };
        for (fields, reason) in
            [(r#""amount":1,"currency":"EUR""#, "overflows"), (r#""amount":1,"currency":"USD""#, "kept in EUR")]
        {
            let (posting, mut turn) = turn_of::<Posting>("m", fields);
            rejected(Balances.handle(&mut full.clone(), posting, &mut turn).await, reason);
        }
    }
}
