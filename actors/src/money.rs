//! Money as whole minor units (cents) of a currency; nothing is ever rounded.
//! In: integers and three-letter codes. Out: sums that are exact or refused.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};

/// Reasons why an amount or a currency cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// The sum leaves the range of 64 bits.
    #[error("{balance} plus {amount} overflows: a balance is a 64-bit number of minor units")]
    Overflow {
        /// The balance before.
        balance: Cents,
        /// The amount to be added.
        amount: Cents,
    },
    /// The text is not the form of an ISO 4217 code.
    #[error("currency {0:?} is not three upper-case letters, such as EUR")]
    NotACurrency(String),
    /// The code is not in ISO 4217, or has no minor units, such as that of gold.
    #[error("currency {0:?} is not one for which ISO 4217 has minor units")]
    UnknownCurrency(String),
    /// The message has another currency than the account, which has one: that of its first message.
    #[error("the account is kept in {account}, the message has {message}")]
    OtherCurrency {
        /// The account's currency.
        account: Currency,
        /// The message's currency.
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

/// Largest amount of a message: every reader of JSON reads integers up to 2^53 exactly.
const AMOUNT_MAX: i64 = 1 << 53;

/// Reads the amount of a message: a whole number of minor units, within the range that every reader has exactly. Sums
/// may exceed it.
pub fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cents, D::Error> {
    deserializer.deserialize_i64(Amount)
}

/// Reads an amount that may be null.
pub fn maybe_amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cents>, D::Error> {
    #[derive(Deserialize)]
    struct Given(#[serde(deserialize_with = "amount")] Cents);
    Ok(Option::<Given>::deserialize(deserializer)?.map(|Given(amount)| amount))
}

struct Amount;

impl Visitor<'_> for Amount {
    type Value = Cents;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an amount in whole minor units (1250 is 12.50)")
    }

    fn visit_i64<E: Error>(self, amount: i64) -> Result<Cents, E> {
        if amount.unsigned_abs() > AMOUNT_MAX.unsigned_abs() {
            return Err(E::custom(format!("amount {amount} is beyond 2^53, from where on readers differ")));
        }
        Ok(Cents(amount))
    }

    fn visit_u64<E: Error>(self, amount: u64) -> Result<Cents, E> {
        let beyond = || E::custom(format!("amount {amount} is beyond 2^53, from where on readers differ"));
        self.visit_i64(i64::try_from(amount).map_err(|_| beyond())?)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Cents, E> {
        Err(E::custom("the amount has decimals, or is beyond 2^53: whole minor units are wanted (1250 is 12.50)"))
    }

    fn visit_str<E: Error>(self, amount: &str) -> Result<Cents, E> {
        Err(E::custom(format!("the amount is the text {amount:?}: whole minor units are wanted (1250 is 12.50)")))
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

    /// The number of decimals in ISO 4217: 1250 minor units are 12.50 EUR, 1250 JPY, 1.250 KWD.
    pub fn decimals(&self) -> u8 {
        decimals(self.as_str()).unwrap_or_default()
    }

    /// The currency of an account once a message in `message` counts: its own, or the first message's.
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
            Ok(letters) if letters.iter().all(u8::is_ascii_uppercase) => match decimals(code) {
                Some(_) => Ok(Self(letters)),
                None => Err(MoneyError::UnknownCurrency(code.to_owned())),
            },
            _ => Err(MoneyError::NotACurrency(code.to_owned())),
        }
    }
}

fn decimals(code: &str) -> Option<u8> {
    iso_currency::Currency::from_code(code)?.exponent().and_then(|decimals| u8::try_from(decimals).ok())
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
    fn a_currency_is_one_of_iso_4217_and_has_its_decimals() {
        for (code, decimals) in [("EUR", 2), ("JPY", 0), ("KWD", 3), ("CLF", 4), ("ISK", 0)] {
            assert_eq!(code.parse::<Currency>().map(|currency| currency.decimals()), Ok(decimals), "{code}");
        }
        for unknown in ["ABC", "XDR", "XTS", "XAU", "EUX"] {
            assert_eq!(unknown.parse::<Currency>(), Err(MoneyError::UnknownCurrency(unknown.to_owned())));
        }
    }

    #[test]
    fn an_amount_is_exact_or_refused() {
        #[derive(Deserialize)]
        struct Said {
            #[serde(deserialize_with = "amount")]
            amount: Cents,
            #[serde(default, deserialize_with = "maybe_amount")]
            limit: Option<Cents>,
        }
        let read = |text: &str| serde_json::from_str::<Said>(text).map(|said| (said.amount.0, said.limit.map(|l| l.0)));
        assert_eq!(read(r#"{"amount":-9007199254740992,"limit":5}"#).unwrap(), (-9_007_199_254_740_992, Some(5)));
        assert_eq!(read(r#"{"amount":1,"limit":null}"#).unwrap(), (1, None));
        for (text, why) in [
            (r#"{"amount":9007199254740993}"#, "9007199254740993 is beyond 2^53"),
            (r#"{"amount":18446744073709551615}"#, "beyond 2^53"),
            (r#"{"amount":1,"limit":-9007199254740993}"#, "beyond 2^53"),
            (r#"{"amount":12.5}"#, "whole minor units"),
            (r#"{"amount":"1"}"#, "whole minor units"),
            (r#"{"amount":null}"#, "whole minor units"),
        ] {
            let said = read(text).map_err(|error| error.to_string()).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
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
