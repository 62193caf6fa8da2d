//! A posting: an amount on an account at a time, the message of both `balances` and `transactions`.
//! In: JSON from outside. Out: a posting whose every field can be trusted, or the reason why it is refused.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::money::{Cents, Currency};
use crate::names::Account;

/// Reasons why a posting cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostingError {
    /// The text is neither a date nor a time.
    #[error("{0:?} is neither a date (2026-01-31) nor a time with its offset (2026-01-31T10:00:00Z)")]
    NotATime(String),
    /// The memo has a NUL character, which no SQL text can hold.
    #[error("the memo contains a NUL character")]
    NulInMemo,
    /// The payload's id differs from the message's.
    #[error("the payload's id {payload:?} is not the message's id {message:?}: leave one of them out")]
    OtherId {
        /// The payload's id.
        payload: String,
        /// The message's id.
        message: String,
    },
}

/// An amount on an account at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Posting {
    /// The posting's id; the message's id where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The account.
    pub account: Account,
    /// The amount to add to the account's balance; negative takes away.
    #[serde(deserialize_with = "crate::money::amount")]
    pub amount: Cents,
    /// The currency: an account has only one.
    pub currency: Currency,
    /// The time at which it happened.
    pub at: At,
    /// A note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memo: Option<Memo>,
}

/// A date, or a time with its offset, as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct At(String);

/// A note without NUL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Memo(String);

impl TryFrom<String> for At {
    type Error = PostingError;

    fn try_from(text: String) -> Result<Self, PostingError> {
        let date = text.len() == "2026-01-31".len() && text.parse::<Date>().is_ok();
        if date || text.parse::<Timestamp>().is_ok() { Ok(Self(text)) } else { Err(PostingError::NotATime(text)) }
    }
}

impl TryFrom<String> for Memo {
    type Error = PostingError;

    fn try_from(text: String) -> Result<Self, PostingError> {
        if text.contains('\0') { Err(PostingError::NulInMemo) } else { Ok(Self(text)) }
    }
}

impl At {
    /// The year and month in the offset as written (`2026-01`); for a time in UTC, in UTC.
    pub fn month(&self) -> String {
        let there = self.0.parse::<Date>();
        let date = there.or_else(|_| self.0.parse::<Timestamp>().map(|time| TimeZone::UTC.to_datetime(time).date()));
        date.map_or_else(|_| String::new(), |date| date.strftime("%Y-%m").to_string())
    }
}

impl From<At> for String {
    fn from(at: At) -> Self {
        at.0
    }
}

impl From<Memo> for String {
    fn from(memo: Memo) -> Self {
        memo.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(field: &str, value: &str) -> String {
        let mut posting: serde_json::Value =
            serde_json::from_str(r#"{"account":"acct-1","amount":5,"currency":"EUR","at":"2026-01-31","memo":"tea"}"#)
                .unwrap();
        posting[field] = serde_json::from_str(value).unwrap();
        serde_json::from_value::<Posting>(posting).unwrap_err().to_string()
    }

    #[test]
    fn every_bad_field_is_refused_with_its_reason() {
        assert_eq!(refused("account", r#""""#), "the account is empty");
        assert_eq!(refused("account", r#""a\u0000b""#), "the account contains a NUL character");
        assert_eq!(refused("memo", r#""a\u0000b""#), "the memo contains a NUL character");
        assert!(refused("account", &format!("{:?}", "a".repeat(257))).contains("257 bytes"));
        assert!(refused("amount", "1.5").contains("has decimals"));
        assert!(refused("amount", "9223372036854775808").contains("9223372036854775808"));
        assert!(refused("currency", r#""eur""#).contains("upper-case"));
        assert!(refused("colour", "1").contains("unknown field `colour`"));
    }

    #[test]
    fn a_month_is_the_one_where_it_was_written() {
        for (text, month) in [
            ("2026-01-31", "2026-01"),
            ("2026-01-31T23:59:59Z", "2026-01"),
            ("2026-02-01T00:30:00+02:00", "2026-02"),
            ("2026-01-31T23:30:00-02:00", "2026-01"),
        ] {
            assert_eq!(At::try_from(text.to_owned()).unwrap().month(), month, "{text}");
        }
    }

    #[test]
    fn a_time_is_a_date_or_has_an_offset() {
        for good in ["1997-01-31", "2026-01-31T10:00:00Z", "2026-01-31T10:00:00.5+02:00"] {
            assert!(At::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "19970131", "1997-02-30", "31.1.1997", "2026-01-31T10:00:00", "yesterday"] {
            assert!(At::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
