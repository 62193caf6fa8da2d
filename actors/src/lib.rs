//! Budget Manager's handlers, which run for each account and order. Start with [`balances`], the smallest complete one.
//! In: messages, one key's at a time. Out: states, rows, events and replies that commit together.

pub mod balances;
pub mod checkouts;
pub mod expenses;
pub mod money;
pub mod names;
pub mod orders;
pub mod payments;
pub mod posting;
pub mod texts;
pub mod transactions;

use perkey::Handlers;

pub use balances::Balances;
pub use checkouts::Checkouts;
pub use expenses::Expenses;
pub use orders::Orders;
pub use payments::{PaymentProvider, Payments, Provider};
pub use transactions::Transactions;

/// The configuration of the handlers.
#[derive(Clone, Debug)]
pub struct App<P = Provider> {
    /// The payment provider.
    pub provider: P,
    /// The timeouts and retries of checkouts.
    pub checkouts: Checkouts,
}

/// All handlers, ready for an engine.
pub fn handlers<P: PaymentProvider + Clone>(app: &App<P>) -> Handlers {
    let payments = Payments { provider: app.provider.clone() };
    let handlers = Handlers::new().with(Balances).with(app.checkouts).with(Expenses).with(Orders);
    handlers.with(payments).with(Transactions)
}

#[cfg(test)]
mod tests {
    use perkey::testing::TurnLimits;
    use perkey::{Draft, Fault, Turn};
    use serde::de::DeserializeOwned;

    /// A decoded message of account `acct-1` with more `fields`, and its turn.
    pub(crate) fn turn_of<M: DeserializeOwned>(id: &str, fields: &str) -> (M, Turn) {
        let payload = format!(r#"{{"account":"acct-1","at":"2026-01-31",{fields}}}"#);
        let draft = Draft { id, key: "acct-1", kind: "test", payload: payload.as_bytes(), ..Draft::default() };
        let turn = Turn::new(draft.build().unwrap(), 1, 0, TurnLimits::default());
        (serde_json::from_str(&payload).unwrap(), turn)
    }

    /// Checks that a handler rejects the message for good, with this reason.
    pub(crate) fn rejected(result: Result<(), Fault>, reason: &str) {
        let Err(Fault::Reject(said)) = result else { panic!("not rejected: {result:?}") };
        assert!(said.contains(reason), "{said}");
    }

    #[test]
    fn all_services_can_be_bound() {
        let provider = super::Provider::new("", std::time::Duration::from_secs(1)).unwrap();
        let services = super::handlers(&super::App { provider, checkouts: super::Checkouts::default() }).services();
        assert_eq!(
            services.iter().map(|name| &**name).collect::<Vec<_>>(),
            ["balances", "checkouts", "expenses", "orders", "payments", "transactions"]
        );
    }
}
