//! Postings whose outcome is known: some accounts are much busier than others, some lines come twice.
//! In: a seed. Out: postings one by one, as lines of a file or as messages; the result that they must have in the end.

use std::collections::HashMap;
use std::io::{self, Write};

use perkey::unstable::clock::Dice;
use perkey::{Draft, Message, MessageError};

/// The service that postings are sent to.
pub const SERVICE: &str = "balances";

/// The number in a thousand that repeat an earlier one.
const REPEATS_PER_MILLE: u64 = 50;
/// The distance to the repeated one: within the inbox of a single shard, so that no repeat may count.
const REPEATS_WITHIN: usize = 200_000;

/// One posting. A repeat equals the original.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posting {
    /// Its id.
    pub id: String,
    /// Its account: the key.
    pub account: String,
    /// The amount in minor units.
    pub amount: i64,
}

/// The expected result of an account: its postings' numbers in order, each with the balance after it.
pub type Course = Vec<(u32, i64)>;

/// Makes postings, and keeps the result that they must have.
#[derive(Debug)]
pub struct Postings {
    dice: Dice,
    prefix: String,
    accounts: u64,
    made: Vec<(u32, i64)>,
    courses: HashMap<String, Course>,
    repeats: u64,
}

impl Postings {
    /// Postings on this many accounts; the same seed makes the same ones.
    pub fn new(seed: u64, accounts: u64) -> Self {
        Self {
            dice: Dice::seeded(seed),
            prefix: format!("p{seed:x}"),
            accounts: accounts.max(2),
            made: Vec::new(),
            courses: HashMap::new(),
            repeats: 0,
        }
    }

    /// Makes the next posting.
    pub fn make(&mut self) -> Posting {
        if !self.made.is_empty() && self.dice.below(1_000) < REPEATS_PER_MILLE {
            self.repeats += 1;
            let back = self.dice.below(self.made.len().min(REPEATS_WITHIN) as u64) as usize;
            return self.posting(self.made.len() - 1 - back);
        }
        // Zipf's law: the second account is half as busy as the first, the tenth a tenth.
        let rank = (self.accounts as f64).powf(self.dice.unit()) as u32;
        let amount = self.dice.below(20_000).cast_signed() - 5_000;
        self.made.push((rank, amount));
        let no = self.made.len() - 1;
        let posting = self.posting(no);
        let course = self.courses.entry(posting.account.clone()).or_default();
        let before = course.last().map_or(0, |(_, balance)| *balance);
        course.push((no as u32, before + amount));
        posting
    }

    fn posting(&self, at: usize) -> Posting {
        let (rank, amount) = self.made[at];
        Posting { id: format!("{}-{at}", self.prefix), account: format!("acct-{rank}"), amount }
    }

    /// The number of the posting with this id.
    pub fn number(&self, id: &str) -> Option<u32> {
        id.strip_prefix(&self.prefix)?.strip_prefix('-')?.parse().ok()
    }

    /// The expected result of each account.
    pub fn courses(&self) -> &HashMap<String, Course> {
        &self.courses
    }

    /// The number of different postings made so far.
    pub fn unique(&self) -> usize {
        self.made.len()
    }

    /// The number of repeats made so far.
    pub fn repeats(&self) -> u64 {
        self.repeats
    }

    /// Writes `lines` more postings as a file for `import`.
    pub fn write_csv(&mut self, lines: usize, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "id,account,amount,currency,at,memo")?;
        for _ in 0..lines {
            let Posting { id, account, amount } = self.make();
            writeln!(out, "{id},{account},{amount},EUR,2026-01-31,")?;
        }
        Ok(())
    }
}

impl Posting {
    /// The posting as a message.
    pub fn message(&self) -> Result<Message, MessageError> {
        let Self { id, account, amount } = self;
        let payload = format!(r#"{{"account":"{account}","amount":{amount},"currency":"EUR","at":"2026-01-31"}}"#);
        let payload = payload.as_bytes();
        Draft { id, key: account, kind: "posting", source: "chaos", payload, ..Draft::default() }.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_postings_again() {
        let all = |seed| {
            let mut postings = Postings::new(seed, 100);
            (0..500).map(|_| postings.make()).collect::<Vec<_>>()
        };
        assert_eq!(all(7), all(7));
        assert_ne!(all(7), all(8));
    }

    #[test]
    fn one_in_twenty_repeats_and_repeats_change_no_course() {
        let mut postings = Postings::new(1, 1_000);
        let made: Vec<_> = (0..20_000).map(|_| postings.make()).collect();
        assert!((800..1_200).contains(&postings.repeats()), "{}", postings.repeats());
        assert_eq!(postings.unique() as u64 + postings.repeats(), 20_000);
        let sum: i64 = postings.courses().values().map(|course| course.last().unwrap().1).sum();
        let mut seen = std::collections::HashSet::new();
        let once: i64 = made.iter().filter(|posting| seen.insert(&posting.id)).map(|posting| posting.amount).sum();
        assert_eq!(sum, once);
        let busiest = postings.courses()["acct-1"].len();
        assert!(busiest > 20 * postings.courses()["acct-500"].len(), "some accounts are much busier");
    }
}
