//! Handlers' tables: made at start, checked, and written many rows per statement.
//! In: table declarations, rows as JSON. Out: tables that fit, one upsert and one delete per table.

use serde_json::Value;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection};

use super::failure::failed;
use crate::handler::{Column, ColumnKind, RowWrite, Statement, Table};
use crate::store::StoreError;
use crate::store::declared::{self, Shape, Writes, names};
use crate::store::query::sql::Cells;

/// Checks the declaration, then makes the table, or compares the one that is there.
pub(super) async fn prepare(connection: &mut SqliteConnection, table: &Table) -> Result<(), StoreError> {
    declared::check(table)?;
    let found = sqlx::query("SELECT name, type, \"notnull\", pk FROM pragma_table_info(?1)")
        .bind(table.name)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
    if found.is_empty() {
        run(connection, table, create(table)).await?;
        return make_indexes(connection, table).await;
    }
    let mut shapes = Vec::with_capacity(found.len());
    for row in &found {
        shapes.push(Shape {
            name: row.get(0)?,
            kind: row.get(1)?,
            nullable: !row.get::<bool>(2)?,
            place: row.number(3)?,
        });
    }
    declared::compare(table, kind, &shapes)?;
    make_indexes(connection, table).await
}

async fn make_indexes(connection: &mut SqliteConnection, table: &Table) -> Result<(), StoreError> {
    // The primary key is an index of its own.
    for index in table.indexes.iter().filter(|index| !table.primary_key.starts_with(index)) {
        let (name, on) = (declared::index_name(table, index), table.name);
        run(connection, table, format!("CREATE INDEX IF NOT EXISTS \"{name}\" ON \"{on}\" ({})", names(index))).await?;
    }
    Ok(())
}

async fn run(connection: &mut SqliteConnection, table: &Table, sql: String) -> Result<(), StoreError> {
    let made = sqlx::query(AssertSqlSafe(sql)).execute(connection).await;
    made.map(drop).map_err(|error| declared::wrong(table, error.to_string()))
}

/// The statements that write `rows`: for each primary key the last one, in the key's order.
pub(super) fn writes<'a>(rows: impl Iterator<Item = &'a RowWrite>) -> Vec<Query<'static, Sqlite, SqliteArguments>> {
    let mut queries = Vec::new();
    for Writes { table, written, deleted } in declared::writes(rows) {
        if !written.is_empty() {
            queries.push(sqlx::query(AssertSqlSafe(upsert(table))).bind(format!("[{}]", written.join(","))));
        }
        if !deleted.is_empty() {
            queries.push(sqlx::query(AssertSqlSafe(delete(table))).bind(format!("[{}]", deleted.join(","))));
        }
    }
    queries
}

/// A handler's own statement.
pub(super) fn statement(statement: &Statement) -> Query<'static, Sqlite, SqliteArguments> {
    statement.args.iter().fold(sqlx::query(AssertSqlSafe(statement.sql.clone())), bound)
}

pub(super) fn bound(
    query: Query<'static, Sqlite, SqliteArguments>,
    arg: &Value,
) -> Query<'static, Sqlite, SqliteArguments> {
    match arg {
        Value::Bool(value) => query.bind(*value),
        Value::Number(number) => match number.as_i64() {
            Some(value) => query.bind(value),
            None => query.bind(number.as_f64()),
        },
        Value::String(text) => query.bind(text.clone()),
        // All other values were refused before.
        Value::Null | Value::Array(_) | Value::Object(_) => query.bind(None::<String>),
    }
}

fn kind(column: &Column) -> &'static str {
    match column.kind {
        ColumnKind::Text | ColumnKind::Json => "TEXT",
        ColumnKind::Integer | ColumnKind::Boolean => "INTEGER",
        ColumnKind::Real => "REAL",
    }
}

fn create(table: &Table) -> String {
    let columns = table.columns.iter().map(|column| {
        let null = if column.nullable { "" } else { " NOT NULL" };
        let bound = match column.kind {
            ColumnKind::Boolean => {
                let (table, name) = (table.name, column.name);
                format!(" CONSTRAINT \"{table}.{name} is true or false\" CHECK (\"{name}\" IN (0, 1))")
            }
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
    format!(
        "INSERT INTO \"{}\" ({}) SELECT {values} FROM json_each(?1) WHERE true {}",
        table.name,
        names(&all),
        declared::replacing(table)
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
