//! The account of a member: its points in lots, the one that is lost first in front.
//! In: what members do, and a timer. Out: the account, a reply, events.

use perkey::serde_json::Value;
use perkey::{Fault, Handler, Key, Millis, Turn, json};
use serde::{Deserialize, Serialize};

/// Handles what happens to points.
pub struct Points {
    /// The time for which points are valid.
    pub valid_seconds: u64,
}

/// A change of a member's points.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Message {
    Earn {
        member: String,
        points: u64,
    },
    Redeem {
        member: String,
        points: u64,
    },
    /// The timer: some lots may be over.
    Expire {
        member: String,
    },
}

/// The account of a member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Account {
    pub lots: Vec<Lot>,
}

/// Points that were earned together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lot {
    pub points: u64,
    /// The time at which they are lost; `None` if they are from before points were lost.
    pub expires_at: Option<Millis>,
}

impl Handler for Points {
    const SERVICE: &'static str = "points";
    const STATE_VERSION: u32 = 2;
    type Message = Message;
    type State = Account;

    fn key(&self, message: &Message) -> Key {
        let (Message::Earn { member, .. } | Message::Redeem { member, .. } | Message::Expire { member }) = message;
        Key::from(member.as_str())
    }

    async fn handle(&self, account: &mut Account, message: Message, turn: &mut Turn) -> Result<(), Fault> {
        match message {
            Message::Earn { points, .. } => {
                let expires_at = Some(turn.now() + self.valid_seconds * 1_000);
                account.lots.push(Lot { points, expires_at });
            }
            Message::Redeem { points, .. } => {
                account.take(points).map_err(Fault::reject)?;
                turn.emit("points.redeemed", &json!({ "member": turn.key(), "points": points }))?;
            }
            Message::Expire { .. } => {
                let points = account.expire(turn.now());
                if points > 0 {
                    turn.emit("points.expired", &json!({ "member": turn.key(), "points": points }))?;
                }
            }
        }
        account.set_timer(turn)?;
        turn.reply(&json!({ "balance": account.balance() }))
    }

    fn upgrade(version: u32, stored: Value) -> Result<Account, Fault> {
        match (version, stored["balance"].as_u64()) {
            // Version 1 was a balance alone.
            (1, Some(points)) => Ok(Account { lots: vec![Lot { points, expires_at: None }] }),
            _ => Err(Fault::reject("neither a balance nor lots")),
        }
    }
}

impl Account {
    /// All points.
    pub fn balance(&self) -> u64 {
        self.lots.iter().map(|lot| lot.points).sum()
    }

    /// Takes points out of the lots that are lost first.
    fn take(&mut self, points: u64) -> Result<(), String> {
        let balance = self.balance();
        if points > balance {
            return Err(format!("{points} points are more than the {balance} that are there"));
        }
        let mut left = points;
        for lot in &mut self.lots {
            let taken = left.min(lot.points);
            lot.points -= taken;
            left -= taken;
        }
        self.lots.retain(|lot| lot.points > 0);
        Ok(())
    }

    /// Drops the lots that are over, and says how many points these were.
    fn expire(&mut self, now: Millis) -> u64 {
        let before = self.balance();
        self.lots.retain(|lot| lot.expires_at.is_none_or(|at| at > now));
        before - self.balance()
    }

    /// One timer for each member: for the lot that is lost next.
    fn set_timer(&self, turn: &mut Turn) -> Result<(), Fault> {
        let expire = Message::Expire { member: turn.key().to_owned() };
        match self.lots.iter().filter_map(|lot| lot.expires_at).min() {
            Some(at) => turn.schedule("expiry", at, &expire),
            None => turn.cancel("expiry"),
        }
    }
}
