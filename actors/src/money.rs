//! Money as whole minor units (cents) of a currency; nothing is ever rounded.
//! In: integers and three-letter codes. Out: sums that are exact or refused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why money cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// A sum leaves the range of 64 bits.
    #[error("{balance} plus {amount} overflows: a balance is a 64-bit number of minor units")]
    Overflow {
        /// The balance before.
        balance: Cents,
        /// What was to be added.
        amount: Cents,
    },
    /// A currency is not written as its ISO 4217 code.
    #[error("currency {0:?} is not three upper-case letters, such as EUR")]
    NotACurrency(String),
    /// An account has one currency: that of its first message.
    #[error("the account is kept in {account}, the message has {message}")]
    OtherCurrency {
        /// The account's currency.
        account: Currency,
        /// The message's.
        message: Currency,
    },
}

/// An amount in minor units: 1234 is 12.34.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cents(pub i64);

impl Cents {
    /// The exact sum, or [`MoneyError::Overflow`].
    pub fn plus(self, amount: Self) -> Result<Self, MoneyError> {
        let sum = self.0.checked_add(amount.0).map(Self);
        sum.ok_or(MoneyError::Overflow { balance: self, amount })
    }
}

impl fmt::Display for Cents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A currency by its ISO 4217 code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Currency([u8; 3]);

impl Currency {
    /// The code.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("only ASCII letters are let in")
    }

    /// The currency that an account has once a message in `message` counts: its own, or the first one's.
    pub fn settle(account: Option<Self>, message: Self) -> Result<Self, MoneyError> {
        match account {
            Some(account) if account != message => Err(MoneyError::OtherCurrency { account, message }),
            Some(_) | None => Ok(message),
        }
    }
}

impl FromStr for Currency {
    type Err = MoneyError;

    fn from_str(code: &str) -> Result<Self, MoneyError> {
        match <[u8; 3]>::try_from(code.as_bytes()) {
            Ok(letters) if letters.iter().all(u8::is_ascii_uppercase) => Ok(Self(letters)),
            _ => Err(MoneyError::NotACurrency(code.to_owned())),
        }
    }
}

impl TryFrom<String> for Currency {
    type Error = MoneyError;

    fn try_from(code: String) -> Result<Self, MoneyError> {
        code.parse()
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> Self {
        currency.as_str().to_owned()
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_exact_or_refused() {
        assert_eq!(Cents(-5).plus(Cents(7)), Ok(Cents(2)));
        let refused = Cents(i64::MAX).plus(Cents(1)).unwrap_err().to_string();
        assert!(refused.contains("overflows"), "{refused}");
        assert!(Cents(i64::MIN).plus(Cents(-1)).is_err());
    }

    #[test]
    fn a_currency_is_three_upper_case_letters() {
        assert_eq!("EUR".parse::<Currency>().unwrap().to_string(), "EUR");
        for bad in ["", "eur", "EURO", "E1R", "€", "EU "] {
            assert_eq!(bad.parse::<Currency>(), Err(MoneyError::NotACurrency(bad.to_owned())));
        }
    }

    #[test]
    fn an_account_keeps_its_first_currency() {
        let (eur, usd) = ("EUR".parse().unwrap(), "USD".parse().unwrap());
        assert_eq!(Currency::settle(None, eur), Ok(eur));
        assert_eq!(Currency::settle(Some(eur), eur), Ok(eur));
        assert_eq!(
            Currency::settle(Some(eur), usd).unwrap_err().to_string(),
            "the account is kept in EUR, the message has USD"
        );
    }
}
