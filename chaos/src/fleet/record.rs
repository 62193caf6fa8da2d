//! A posting as a record, with an id that tells which posting it is.
//! In: a seed, a number, a posting. Out: a record for a topic, a stream or a log; the number of a record that comes
//! back.

use perkey::{Draft, Message, MessageError};
use serde_json::json;

use crate::postings::Posting;

/// A posting as a record of the ledger workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The message's id, a UUID.
    pub id: String,
    /// The key.
    pub account: String,
    /// JSON of about 200 bytes.
    pub value: String,
}

impl Record {
    /// The record of `posting`, the `number`th of a seed.
    pub fn new(seed: u64, number: u32, posting: &Posting) -> Self {
        let id = uuid(seed, number);
        let account = &posting.account;
        let value = json!({
            "id": &id, "account": account, "amount": posting.amount, "currency": "USD", "at": "2026-01-31T10:00:00Z",
            "memo": format!("posting {number} of a steady load, whose memo brings it to some two hundred bytes"),
        });
        Self { id, account: account.clone(), value: value.to_string() }
    }

    /// The record as a message of the log.
    pub(super) fn message(&self) -> Result<Message, MessageError> {
        let payload = self.value.as_bytes();
        Draft { id: &self.id, key: &self.account, kind: "posting", source: "chaos", payload, ..Draft::default() }
            .build()
    }
}

/// The id of a seed's `number`th posting. Its UUID version says that its bits are of a custom format.
fn uuid(seed: u64, number: u32) -> String {
    let seed = seed & 0xffff_ffff_ffff;
    format!("{number:08x}-5eed-8000-8000-{seed:012x}")
}

/// The number of the posting with this id, if it belongs to the seed; hyphens may be missing.
pub fn number(seed: u64, id: &str) -> Option<u32> {
    let digits = id.replace('-', "");
    let number = u32::from_str_radix(digits.get(..8)?, 16).ok()?;
    (uuid(seed, number).replace('-', "") == digits).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_its_number_to_its_own_seed_alone() {
        let posting = Posting { id: "p7-513".to_owned(), account: "acct-1".to_owned(), amount: -5 };
        let record = Record::new(7, 513, &posting);
        assert_eq!(record.id.parse::<uuid::Uuid>().unwrap().to_string(), record.id);
        assert_eq!(number(7, &record.id), Some(513));
        assert_eq!(number(7, &record.id.replace('-', "")), Some(513));
        assert_eq!(number(8, &record.id), None);
        assert_eq!(number(7, "p7-513"), None);
        assert!((150..250).contains(&record.value.len()), "{}", record.value.len());
    }
}
