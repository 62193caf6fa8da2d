//! Tells members what they lost: a row for each loss, for whoever sends letters.
//! In: the event `points.expired`. Out: rows of the table `notices`.

use perkey::{Column, ColumnKind, Fault, Handler, Key, Row, Table, Turn};
use serde::{Deserialize, Serialize};

/// Handles losses.
pub struct Notices;

/// The payload of `points.expired`.
#[derive(Debug, Deserialize)]
pub struct Expired {
    member: String,
    points: u64,
}

/// A row of the table `notices`.
#[derive(Serialize)]
struct Notice<'a> {
    member: &'a str,
    id: &'a str,
    points: u64,
}

impl Row for Notice<'_> {
    const TABLE: Table = Table {
        name: "notices",
        columns: &[
            Column::new("member", ColumnKind::Text),
            Column::new("id", ColumnKind::Text),
            Column::new("points", ColumnKind::Integer),
        ],
        primary_key: &["member", "id"],
        key_column: Some("member"),
        indexes: &[],
    };
}

impl Handler for Notices {
    const SERVICE: &'static str = "notices";
    type Message = Expired;
    type State = ();

    fn key(&self, expired: &Expired) -> Key {
        Key::from(expired.member.as_str())
    }

    async fn handle(&self, (): &mut (), expired: Expired, turn: &mut Turn) -> Result<(), Fault> {
        let id = turn.id().to_owned();
        turn.write(&Notice { member: &expired.member, id: &id, points: expired.points })
    }

    fn tables(&self) -> Vec<Table> {
        vec![Notice::TABLE]
    }
}
