//! Tables of a handler's own, in types that every store has.
//! In: rows. Out: their primary keys, checked against the key whose turn writes them.

use serde::Serialize;
use serde_json::Value;

use super::Fault;

/// A typed row of one of the handler's tables. Its serialised form is an object with the table's columns.
///
/// ```
/// use perkey::{Column, ColumnKind, Row, Table};
/// use serde::Serialize;
///
/// #[derive(Serialize)]
/// struct Notice<'a> {
///     member: &'a str,
///     id: &'a str,
///     points: u64,
/// }
///
/// impl Row for Notice<'_> {
///     const TABLE: Table = Table {
///         name: "notices",
///         columns: &[
///             Column::new("member", ColumnKind::Text),
///             Column::new("id", ColumnKind::Text),
///             Column::new("points", ColumnKind::Integer),
///         ],
///         primary_key: &["member", "id"],
///         key_column: Some("member"),
///         indexes: &[],
///     };
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a row of a table",
    label = "implement `perkey::Row` for it, with its TABLE",
    note = "put `#[derive(serde::Serialize)]` on it, too: its fields are the table's columns; `Handler::tables` names the table"
)]
pub trait Row: Serialize {
    /// The table that it belongs to.
    const TABLE: Table;
}

/// A table of a handler.
///
/// ```
/// use perkey::{Column, ColumnKind, Table};
///
/// /// Points by day, whoever's turn adds them: the table is shared.
/// const TOTALS: Table = Table {
///     name: "totals",
///     columns: &[Column::new("day", ColumnKind::Text), Column::new("points", ColumnKind::Integer)],
///     primary_key: &["day"],
///     key_column: None,
///     indexes: &[&["points", "day"]],
/// };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name: lower-case letters, digits and `_`.
    pub name: &'static str,
    /// Its columns.
    pub columns: &'static [Column],
    /// The columns of its primary key.
    pub primary_key: &'static [&'static str],
    /// The primary-key column that holds the handler's key; `None` declares the table shared (the last commit wins).
    pub key_column: Option<&'static str>,
    /// Its secondary indexes, by their columns in order.
    pub indexes: &'static [&'static [&'static str]],
}

/// A column of a [`Table`].
///
/// ```
/// use perkey::{Column, ColumnKind};
///
/// const MEMO: Column = Column::nullable("memo", ColumnKind::Text);
/// assert!(MEMO.nullable);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name: lower-case letters, digits and `_`.
    pub name: &'static str,
    /// Its type.
    pub kind: ColumnKind,
    /// True where it may be NULL.
    pub nullable: bool,
}

impl Column {
    /// A column that is NOT NULL.
    ///
    /// ```
    /// # use perkey::{Column, ColumnKind};
    /// let points = Column::new("points", ColumnKind::Integer);
    /// assert_eq!(points, Column { name: "points", kind: ColumnKind::Integer, nullable: false });
    /// ```
    pub const fn new(name: &'static str, kind: ColumnKind) -> Self {
        Self { name, kind, nullable: false }
    }

    /// A column that may be NULL.
    ///
    /// ```
    /// # use perkey::{Column, ColumnKind};
    /// let memo = Column::nullable("memo", ColumnKind::Text);
    /// assert_eq!(memo, Column { name: "memo", kind: ColumnKind::Text, nullable: true });
    /// ```
    pub const fn nullable(name: &'static str, kind: ColumnKind) -> Self {
        Self { name, kind, nullable: true }
    }
}

/// The types a column can have in every store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// Text.
    Text,
    /// A 64-bit signed integer.
    Integer,
    /// A 64-bit float.
    Real,
    /// True or false.
    Boolean,
    /// JSON.
    Json,
}

impl Table {
    pub(super) fn key_of(&self, row: &Value, key: &str) -> Result<String, Fault> {
        if let Some(column) = self.key_column
            && row.get(column).and_then(Value::as_str) != Some(key)
        {
            let name = self.name;
            return Err(Fault::Reject(format!(
                "a row of table {name} must have this turn's key in column {column}; declare the table shared to write others'"
            )));
        }
        let mut values = Vec::with_capacity(self.primary_key.len());
        for column in self.primary_key {
            let value = row.get(*column).filter(|value| !value.is_null());
            let value = value.ok_or_else(|| {
                Fault::Reject(format!("a row of table {} lacks its primary key's column {column}", self.name))
            })?;
            values.push(value);
        }
        Ok(serde_json::to_string(&values)?)
    }
}
