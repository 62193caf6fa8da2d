//! The tables that a handler may declare and the rows that it may write to them, whatever the store.
//! In: declarations, the shape of tables that exist, rows. Out: a sentence about what does not fit; the rows to write,
//! table by table.

use std::collections::BTreeMap;

use super::StoreError;
use crate::handler::{Column, ColumnKind, RowWrite, Table};

/// Names of the store's own tables.
const OURS: [&str; 17] = [
    "meta",
    "services",
    "shards",
    "commits",
    "states",
    "pending",
    "dead_letters",
    "history",
    "log",
    "lanes",
    "imports",
    "operator_commands",
    "operator_results",
    "workers",
    "inbox_messages",
    "outbox_events",
    "perkey_intake",
];
/// The longest name that every database takes.
const NAME_BYTES_MAX: usize = 60;

/// A column of a table that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Its name.
    pub(crate) name: String,
    /// Its type in the database's words.
    pub(crate) kind: String,
    /// True if it may be NULL.
    pub(crate) nullable: bool,
    /// Its place in the primary key, from 1; 0 if it is not part of it.
    pub(crate) place: usize,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}{}", self.name, self.kind, if self.nullable { "" } else { " NOT NULL" })?;
        if self.place > 0 { write!(f, " (number {} of the primary key)", self.place) } else { Ok(()) }
    }
}

/// The error that says `reason` of `table`.
pub(crate) fn wrong(table: &Table, reason: impl Into<String>) -> StoreError {
    StoreError::Table { table: table.name.to_owned(), reason: reason.into() }
}

/// Checks that a table can be made as declared.
pub(crate) fn check(table: &Table) -> Result<(), StoreError> {
    if !named(table.name) || table.name.starts_with("sqlite_") {
        return Err(wrong(table, "a name has lower-case letters, digits and _, and begins with a letter"));
    }
    if OURS.contains(&table.name) {
        return Err(wrong(table, "this name is one of the store's own: choose another"));
    }
    if table.columns.is_empty() || table.primary_key.is_empty() {
        return Err(wrong(table, "a table needs columns and a primary key"));
    }
    for (at, column) in table.columns.iter().enumerate() {
        let name = column.name;
        if !named(name) {
            let rule = "a name has lower-case letters, digits and _, and begins with a letter";
            return Err(wrong(table, format!("column {name:?}: {rule}")));
        }
        if table.columns[..at].iter().any(|other| other.name == name) {
            return Err(wrong(table, format!("column {name} is declared twice")));
        }
    }
    for name in table.primary_key {
        match table.columns.iter().find(|column| column.name == *name) {
            None => return Err(wrong(table, format!("the primary key's column {name} is not declared"))),
            Some(column) if column.nullable => {
                return Err(wrong(table, format!("the primary key's column {name} must not be nullable")));
            }
            Some(_) => {}
        }
    }
    for (at, index) in table.indexes.iter().enumerate() {
        if index.is_empty() || table.indexes[..at].contains(index) {
            return Err(wrong(table, format!("index {index:?} has no columns, or is declared twice")));
        }
        for (at, name) in index.iter().enumerate() {
            match table.columns.iter().find(|column| column.name == *name) {
                None => return Err(wrong(table, format!("the index's column {name} is not declared"))),
                Some(column) if column.kind == ColumnKind::Json || index[..at].contains(name) => {
                    return Err(wrong(table, format!("the index's column {name} is JSON, or comes twice")));
                }
                Some(_) => {}
            }
        }
    }
    match table.key_column {
        Some(name) if !table.primary_key.contains(&name) => {
            Err(wrong(table, format!("column {name} has the handler's key, so it must be in the primary key")))
        }
        Some(_) | None => Ok(()),
    }
}

/// Checks that the table that exists is the declared one; `kind` gives a column's type in the database's words.
pub(crate) fn compare(table: &Table, kind: fn(&Column) -> &'static str, found: &[Shape]) -> Result<(), StoreError> {
    let wanted = shapes(table, kind);
    for (at, wanted) in wanted.iter().enumerate() {
        match found.get(at) {
            Some(there) if there == wanted => {}
            Some(there) => {
                let reason = format!("column {} is declared as {wanted}, the store has {there}", at + 1);
                return Err(wrong(table, reason));
            }
            None => return Err(wrong(table, format!("the store lacks the declared column {wanted}"))),
        }
    }
    match found.get(wanted.len()) {
        Some(extra) => Err(wrong(table, format!("the store has a column that is not declared: {extra}"))),
        None => Ok(()),
    }
}

/// The name of an index, which no table can have.
pub(crate) fn index_name(table: &Table, index: &[&str]) -> String {
    let name = format!("{} by {}", table.name, index.join(", "));
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    // Databases cut longer names, and would take two indexes for one.
    let hash = blake3::hash(name.as_bytes()).to_hex();
    format!("{:.40} by {:.16}", table.name, hash)
}

/// The columns that `table` declares.
pub(crate) fn shapes(table: &Table, kind: fn(&Column) -> &'static str) -> Vec<Shape> {
    let shape = |column: &Column| Shape {
        name: column.name.to_owned(),
        kind: kind(column).to_owned(),
        nullable: column.nullable,
        place: table.primary_key.iter().position(|name| *name == column.name).map_or(0, |at| at + 1),
    };
    table.columns.iter().map(shape).collect()
}

fn named(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// The writes to a table: for each primary key the last row, in the key's order.
pub(crate) struct Writes<'a> {
    /// The table.
    pub(crate) table: &'a Table,
    /// Rows as JSON objects.
    pub(crate) written: Vec<&'a str>,
    /// Primary keys of rows to delete, as JSON arrays.
    pub(crate) deleted: Vec<&'a str>,
}

/// The writes of `rows`, by the tables' names.
pub(crate) fn writes<'a>(rows: impl Iterator<Item = &'a RowWrite>) -> impl Iterator<Item = Writes<'a>> {
    let mut tables: BTreeMap<&str, (&Table, BTreeMap<&str, Option<&str>>)> = BTreeMap::new();
    for row in rows {
        let (_, writes) = tables.entry(row.table.name).or_insert_with(|| (&row.table, BTreeMap::new()));
        writes.insert(&row.key, row.row.as_deref());
    }
    tables.into_values().map(|(table, writes)| {
        let deleted = writes.iter().filter(|(_, row)| row.is_none()).map(|(key, _)| *key).collect();
        Writes { table, written: writes.values().flatten().copied().collect(), deleted }
    })
}

/// Names as a list in SQL. They are checked: they need no quoting but for SQL's own words.
pub(crate) fn names(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

/// The end of a statement that inserts rows, which replace those of the same primary key.
pub(crate) fn replacing(table: &Table) -> String {
    let others = table.columns.iter().map(|column| column.name).filter(|name| !table.primary_key.contains(name));
    let sets: Vec<String> = others.map(|name| format!("\"{name}\" = excluded.\"{name}\"")).collect();
    let then = if sets.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", sets.join(", ")) };
    format!("ON CONFLICT ({}) DO {then}", names(table.primary_key))
}
