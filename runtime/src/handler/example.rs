//! The handler of the examples in the documentation: members earn points, and lose them after a minute.
//! In: `{"member":"ann","points":30}`. Out: the balance, a row of it, an event, a timer.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Answer, Column, ColumnKind, Fault, Handler, Row, Table, Turn};
use crate::message::Key;

/// Handles what members earn.
pub struct Points;

/// Points that were earned, or lost where there are fewer than 0.
#[derive(Deserialize)]
pub struct Earned {
    pub member: String,
    pub points: i64,
}

/// A row of the table `balances`.
#[derive(Serialize)]
pub struct Balance {
    pub member: String,
    pub points: i64,
}

impl Row for Balance {
    const TABLE: Table = Table {
        name: "balances",
        columns: &[Column::new("member", ColumnKind::Text), Column::new("points", ColumnKind::Integer)],
        primary_key: &["member"],
        key_column: Some("member"),
        indexes: &[],
    };
}

impl Handler for Points {
    const SERVICE: &'static str = "points";
    type Message = Earned;
    type State = i64;

    fn key(&self, earned: &Earned) -> Key {
        earned.member.as_str().into()
    }

    async fn handle(&self, balance: &mut i64, earned: Earned, turn: &mut Turn) -> Result<(), Fault> {
        let Earned { member, points } = earned;
        match points {
            0 => return Err(Fault::reject("no points")),
            101.. => return Err(Fault::reject("too many at once")),
            _ => *balance += points,
        }
        if points > 0 {
            turn.schedule("expiry", turn.now() + 60_000, &json!({ "member": member, "points": -points }))?;
        }
        turn.emit("points.earned", &json!({ "member": member, "points": points }))?;
        turn.write(&Balance { member, points: *balance })?;
        turn.reply(balance)
    }

    fn answer(&self, answer: Answer) -> Result<Earned, Fault> {
        Ok(Earned { member: answer.name, points: answer.outcome.reply()? })
    }

    fn tables(&self) -> Vec<Table> {
        vec![Balance::TABLE]
    }
}
