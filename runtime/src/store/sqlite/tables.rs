//! Handlers' tables: made at start, checked, and written many rows per statement.
//! In: table declarations, rows as JSON. Out: tables that fit, one upsert and one delete per table.

use std::collections::BTreeMap;

use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, Row, Sqlite, SqliteConnection};

use super::failure::store_error;
use crate::handler::{Column, ColumnKind, RowWrite, Table};
use crate::store::StoreError;

const OURS: [&str; 13] = [
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
];

/// Checks the declaration, then makes the table, or compares the one that is there.
pub(super) async fn prepare(connection: &mut SqliteConnection, table: &Table) -> Result<(), StoreError> {
    let wrong = |reason: String| StoreError::Table { table: table.name.to_owned(), reason };
    check(table).map_err(wrong)?;
    let found = sqlx::query("SELECT name, type, \"notnull\", pk FROM pragma_table_info(?1)")
        .bind(table.name)
        .fetch_all(&mut *connection)
        .await
        .map_err(|error| store_error(&error))?;
    if found.is_empty() {
        let made = sqlx::query(AssertSqlSafe(create(table))).execute(connection).await;
        return made.map(drop).map_err(|error| wrong(error.to_string()));
    }
    let found: Vec<String> = found
        .iter()
        .map(|row| {
            let (name, kind): (String, String) = (row.get(0), row.get(1));
            shape(&name, &kind, row.get::<i64, _>(2) != 0, row.get(3))
        })
        .collect();
    for (at, column) in table.columns.iter().enumerate() {
        let place = table.primary_key.iter().position(|name| *name == column.name).map_or(0, |at| at + 1);
        let wanted = shape(column.name, kind(column), !column.nullable, i64::try_from(place).unwrap_or(i64::MAX));
        match found.get(at) {
            Some(there) if *there == wanted => {}
            Some(there) => return Err(wrong(format!("column {} is declared {wanted}, the table has {there}", at + 1))),
            None => return Err(wrong(format!("the table lacks column {wanted}"))),
        }
    }
    match found.get(table.columns.len()) {
        Some(extra) => Err(wrong(format!("the table has a column that is not declared: {extra}"))),
        None => Ok(()),
    }
}

/// The statements that write `rows`: of each primary key the last one, in the key's order.
pub(super) fn writes<'a>(rows: impl Iterator<Item = &'a RowWrite>) -> Vec<Query<'static, Sqlite, SqliteArguments>> {
    let mut tables: BTreeMap<&str, (&Table, BTreeMap<&str, Option<&str>>)> = BTreeMap::new();
    for row in rows {
        let (_, writes) = tables.entry(row.table.name).or_insert_with(|| (&row.table, BTreeMap::new()));
        writes.insert(&row.key, row.row.as_deref());
    }
    let mut queries = Vec::new();
    for (table, writes) in tables.into_values() {
        let written: Vec<&str> = writes.values().flatten().copied().collect();
        if !written.is_empty() {
            queries.push(sqlx::query(AssertSqlSafe(upsert(table))).bind(format!("[{}]", written.join(","))));
        }
        let deleted: Vec<&str> = writes.iter().filter(|(_, row)| row.is_none()).map(|(key, _)| *key).collect();
        if !deleted.is_empty() {
            queries.push(sqlx::query(AssertSqlSafe(delete(table))).bind(format!("[{}]", deleted.join(","))));
        }
    }
    queries
}

fn check(table: &Table) -> Result<(), String> {
    if !named(table.name) || table.name.starts_with("sqlite_") || table.name.starts_with('_') {
        return Err("a table's name has lower-case letters, digits and _, and begins with a letter".to_owned());
    }
    if OURS.contains(&table.name) {
        return Err("this name is one of the store's own tables: choose another".to_owned());
    }
    if table.columns.is_empty() || table.primary_key.is_empty() {
        return Err("a table needs columns and a primary key".to_owned());
    }
    for (at, column) in table.columns.iter().enumerate() {
        if !named(column.name) {
            return Err(format!("column {:?}: a name has lower-case letters, digits and _", column.name));
        }
        if table.columns[..at].iter().any(|other| other.name == column.name) {
            return Err(format!("column {} is declared twice", column.name));
        }
    }
    for name in table.primary_key.iter().chain(&table.key_column) {
        match table.columns.iter().find(|column| column.name == *name) {
            None => return Err(format!("the primary key's column {name} is not declared")),
            Some(column) if column.nullable => {
                return Err(format!("the primary key's column {name} must not be nullable"));
            }
            Some(_) => {}
        }
    }
    match table.key_column {
        Some(name) if !table.primary_key.contains(&name) => {
            Err(format!("the key's column {name} is no part of the primary key"))
        }
        Some(_) | None => Ok(()),
    }
}

fn named(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name.len() <= 60
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn kind(column: &Column) -> &'static str {
    match column.kind {
        ColumnKind::Text | ColumnKind::Json => "TEXT",
        ColumnKind::Integer | ColumnKind::Boolean => "INTEGER",
        ColumnKind::Real => "REAL",
    }
}

fn shape(name: &str, kind: &str, not_null: bool, key: i64) -> String {
    let null = if not_null { " NOT NULL" } else { "" };
    let key = if key > 0 { format!(", number {key} of the primary key") } else { String::new() };
    format!("{name} {kind}{null}{key}")
}

// Names are checked by `check`: they need no quoting but for SQL's own words.

fn create(table: &Table) -> String {
    let columns = table.columns.iter().map(|column| {
        let null = if column.nullable { "" } else { " NOT NULL" };
        let bound = match column.kind {
            ColumnKind::Boolean => format!(" CHECK (\"{}\" IN (0, 1))", column.name),
            ColumnKind::Text | ColumnKind::Integer | ColumnKind::Real | ColumnKind::Json => String::new(),
        };
        format!("\"{}\" {}{null}{bound}", column.name, kind(column))
    });
    let columns = columns.collect::<Vec<_>>().join(", ");
    format!("CREATE TABLE \"{}\" ({columns}, PRIMARY KEY ({})) STRICT", table.name, names(table.primary_key))
}

fn upsert(table: &Table) -> String {
    let all: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
    let values = table.columns.iter().map(|column| match column.kind {
        ColumnKind::Json => format!("nullif(value->'$.\"{}\"', 'null')", column.name),
        ColumnKind::Text | ColumnKind::Integer | ColumnKind::Real | ColumnKind::Boolean => {
            format!("value->>'$.\"{}\"'", column.name)
        }
    });
    let values = values.collect::<Vec<_>>().join(", ");
    let others = all.iter().filter(|name| !table.primary_key.contains(name));
    let sets: Vec<String> = others.map(|name| format!("\"{name}\" = excluded.\"{name}\"")).collect();
    let then = if sets.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", sets.join(", ")) };
    format!(
        "INSERT INTO \"{}\" ({}) SELECT {values} FROM json_each(?1) WHERE true ON CONFLICT ({}) DO {then}",
        table.name,
        names(&all),
        names(table.primary_key)
    )
}

fn delete(table: &Table) -> String {
    let values = table.primary_key.iter().enumerate().map(|(at, name)| {
        let kind = table.columns.iter().find(|column| column.name == *name).map_or("TEXT", kind);
        format!("CAST(value->>{at} AS {kind})")
    });
    let values = values.collect::<Vec<_>>().join(", ");
    let key = names(table.primary_key);
    format!("DELETE FROM \"{}\" WHERE ({key}) IN (SELECT {values} FROM json_each(?1))", table.name)
}

fn names(names: &[&str]) -> String {
    names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}
