//! Handlers' tables: made at start, checked, and written as parts of the commit's statement.
//! In: table declarations, rows as JSON. Out: tables that fit; per table one upsert and one delete over lists.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, Postgres};
use sqlx::{AssertSqlSafe, PgConnection, SqlSafeStr, SqlStr, Type};

use super::failure::PgFailure;
use super::links::{Args, Links};
use crate::handler::{Column, ColumnKind, RowWrite, Statement, Table};
use crate::store::StoreError;
use crate::store::declared::{self, Shape, Writes, names};
use crate::store::query::sql::{Cells, Sql};

/// Characters of a value that does not fit, as an error shows it.
const SHOWN: usize = 60;

/// Checks the declaration, then makes the table, or compares the one that is there.
pub(super) async fn prepare(connection: &mut PgConnection, table: &Table) -> Result<(), StoreError> {
    declared::check(table)?;
    let found = sqlx::query(
        "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
             coalesce(array_position(i.indkey::smallint[], a.attnum), -1)::bigint + 1
         FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
         WHERE a.attrelid = to_regclass(quote_ident($1)) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
    )
    .bind(table.name)
    .fetch_all(&mut *connection)
    .await
    .map_err(|error| PgFailure::of(&error))?;
    if found.is_empty() {
        run(connection, table, create(table)).await?;
        for index in table.indexes {
            // Nobody else has seen the table yet.
            run(connection, table, create_index(table, index, "")).await?;
        }
        return Ok(());
    }
    let mut shapes = Vec::with_capacity(found.len());
    for row in &found {
        shapes.push(Shape { name: row.get(0)?, kind: row.get(1)?, nullable: row.get(2)?, place: row.number(3)? });
    }
    declared::compare(table, kind, &shapes)
}

async fn run(connection: &mut PgConnection, table: &Table, sql: String) -> Result<(), StoreError> {
    let made = sqlx::query(AssertSqlSafe(sql)).execute(connection).await;
    made.map(drop).map_err(|error| declared::wrong(table, error.to_string()))
}

/// Adds the parts that write `rows`: for each primary key the last one, in the key's order. `count` arguments come
/// before theirs.
pub(super) fn write<'a>(
    rows: impl Iterator<Item = &'a RowWrite>,
    mut count: usize,
    sql: &mut String,
    args: &mut Args,
) -> Result<(), PgFailure> {
    for Writes { table, written, deleted } in declared::writes(rows) {
        if !written.is_empty() {
            upsert(sql, table, count);
            count += table.columns.len();
            let mut lists: Vec<List> = table.columns.iter().map(List::of).collect();
            for row in written {
                let row: HashMap<Cow<'_, str>, &RawValue> = read(table, row)?;
                for (list, column) in lists.iter_mut().zip(table.columns) {
                    list.push(table, column, row.get(column.name).copied())?;
                }
            }
            lists.into_iter().for_each(|list| list.put(args));
        }
        if !deleted.is_empty() {
            let columns: Vec<&Column> = key_columns(table).collect();
            delete(sql, table, count);
            count += columns.len();
            let mut lists: Vec<List> = columns.iter().copied().map(List::of).collect();
            for key in deleted {
                let key: Vec<&RawValue> = read(table, key)?;
                for (at, (list, column)) in lists.iter_mut().zip(&columns).enumerate() {
                    list.push(table, column, key.get(at).copied())?;
                }
            }
            lists.into_iter().for_each(|list| list.put(args));
        }
    }
    Ok(())
}

fn read<'a, T: Deserialize<'a>>(table: &Table, json: &'a str) -> Result<T, PgFailure> {
    serde_json::from_str(json).map_err(|error| PgFailure::Refused {
        permanent: true,
        error: format!("a row of table {} does not decode: {error}", table.name),
    })
}

fn key_columns(table: &Table) -> impl Iterator<Item = &Column> {
    table.primary_key.iter().filter_map(|name| table.columns.iter().find(|column| column.name == *name))
}

/// The values of a column, row by row.
enum List<'a> {
    Text(Vec<Option<String>>),
    Integer(Vec<Option<i64>>),
    Real(Vec<Option<f64>>),
    Boolean(Vec<Option<bool>>),
    Json(Vec<Option<&'a str>>),
}

impl<'a> List<'a> {
    fn of(column: &Column) -> Self {
        match column.kind {
            ColumnKind::Text => Self::Text(Vec::new()),
            ColumnKind::Integer => Self::Integer(Vec::new()),
            ColumnKind::Real => Self::Real(Vec::new()),
            ColumnKind::Boolean => Self::Boolean(Vec::new()),
            ColumnKind::Json => Self::Json(Vec::new()),
        }
    }

    /// Adds a value; one that PostgreSQL would not take is refused here, before it costs a statement.
    fn push(&mut self, table: &Table, column: &Column, value: Option<&'a RawValue>) -> Result<(), PgFailure> {
        let value = value.map(RawValue::get).filter(|value| *value != "null");
        let fits = match self {
            Self::Text(list) => parse::<String>(value)
                .filter(|text| !text.as_ref().is_some_and(|text| text.contains('\0')))
                .map(|value| list.push(value)),
            Self::Integer(list) => parse(value).map(|value| list.push(value)),
            Self::Real(list) => parse(value).map(|value| list.push(value)),
            Self::Boolean(list) => parse(value).map(|value| list.push(value)),
            Self::Json(list) => {
                list.push(value);
                Some(())
            }
        };
        fits.ok_or_else(|| {
            let shown: String = value.unwrap_or("null").chars().take(SHOWN).collect();
            let error = format!("column {} ({}) of table {} cannot be {shown}", column.name, kind(column), table.name);
            PgFailure::Refused { permanent: true, error }
        })
    }

    fn put(self, args: &mut Args) {
        match self {
            Self::Text(list) => args.push(list),
            Self::Integer(list) => args.push(list),
            Self::Real(list) => args.push(list),
            Self::Boolean(list) => args.push(list),
            Self::Json(list) => args.push(list),
        }
    }
}

/// `None` if `value` is not of the kind, else the value or NULL.
fn parse<'a, T: Deserialize<'a>>(value: Option<&'a str>) -> Option<Option<T>> {
    match value {
        None => Some(None),
        Some(value) => serde_json::from_str(value).ok().map(Some),
    }
}

fn kind(column: &Column) -> &'static str {
    match column.kind {
        ColumnKind::Text => "text",
        ColumnKind::Integer => "bigint",
        ColumnKind::Real => "double precision",
        ColumnKind::Boolean => "boolean",
        ColumnKind::Json => "json",
    }
}

fn create(table: &Table) -> String {
    let columns = table.columns.iter().map(|column| {
        let null = if column.nullable { "" } else { " NOT NULL" };
        format!("\"{}\" {}{null}", column.name, kind(column))
    });
    let columns = columns.collect::<Vec<_>>().join(", ");
    format!("CREATE TABLE \"{}\" ({columns}, PRIMARY KEY ({}))", table.name, names(table.primary_key))
}

/// The statement that makes an index; `how` stands before its name.
pub(super) fn create_index(table: &Table, index: &[&str], how: &str) -> String {
    let columns = table.columns.iter();
    let text = |name: &str| columns.clone().any(|column| column.name == name && column.kind == ColumnKind::Text);
    let column = |name: &&str| format!("\"{name}\"{}", if text(name) { Links::DIALECT.collate } else { "" });
    let columns = index.iter().map(column).collect::<Vec<_>>().join(", ");
    format!("CREATE INDEX {how}\"{}\" ON \"{}\" ({columns})", declared::index_name(table, index), table.name)
}

/// The lists of `columns` as rows, from argument `count + 1` on.
fn unnest<'a>(columns: impl Iterator<Item = &'a Column>, count: usize) -> String {
    let lists = columns.enumerate().map(|(at, column)| {
        let kind = if column.kind == ColumnKind::Json { "text" } else { kind(column) };
        format!("${}::{kind}[]", count + at + 1)
    });
    let lists: Vec<String> = lists.collect();
    let names: Vec<String> = (0..lists.len()).map(|at| format!("c{at}")).collect();
    format!("UNNEST({}) AS r ({})", lists.join(", "), names.join(", "))
}

fn upsert(sql: &mut String, table: &Table, count: usize) {
    let all: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
    let values = table.columns.iter().enumerate().map(|(at, column)| match column.kind {
        ColumnKind::Json => format!("r.c{at}::json"),
        ColumnKind::Text | ColumnKind::Integer | ColumnKind::Real | ColumnKind::Boolean => format!("r.c{at}"),
    });
    let values = values.collect::<Vec<_>>().join(", ");
    let (name, rows) = (table.name, unnest(table.columns.iter(), count));
    let (all, replacing) = (names(&all), declared::replacing(table));
    *sql += &format!(
        ", \"write {name}\" AS (INSERT INTO \"{name}\" ({all}) SELECT {values} FROM fence, {rows} {replacing})\n"
    );
}

fn delete(sql: &mut String, table: &Table, count: usize) {
    let same = table.primary_key.iter().enumerate().map(|(at, name)| format!("t.\"{name}\" = r.c{at}"));
    let (name, same) = (table.name, same.collect::<Vec<_>>().join(" AND "));
    let rows = unnest(key_columns(table), count);
    // Looked up one by one, as in `commit_more.sql`.
    *sql += &format!(
        ", \"delete {name}\" AS (DELETE FROM \"{name}\" WHERE ctid = ANY (ARRAY(
             SELECT there.ctid FROM fence CROSS JOIN {rows}
             CROSS JOIN LATERAL (SELECT t.ctid FROM \"{name}\" t WHERE {same} OFFSET 0) there)))\n"
    );
}

/// A handler's own statement.
pub(super) fn statement(statement: &Statement) -> (SqlStr, Args) {
    let args = statement.args.iter().fold(Args::default(), bound);
    // The server prepares a statement for the types of its first arguments: those of other types are another statement.
    let types: String = statement.args.iter().map(letter).collect();
    (AssertSqlSafe(format!("/* {types} */ {}", statement.sql)).into_sql_str(), args)
}

pub(super) fn bound(args: Args, arg: &Value) -> Args {
    match arg {
        Value::Bool(value) => args.put(*value),
        Value::Number(number) => match number.as_i64() {
            Some(value) => args.put(value),
            None => args.put(number.as_f64()),
        },
        Value::String(text) => args.put(text.clone()),
        // All other values were refused before.
        Value::Null | Value::Array(_) | Value::Object(_) => args.put(Nothing),
    }
}

/// The type that an argument is sent as.
fn letter(arg: &Value) -> char {
    match arg {
        Value::Bool(_) => 'b',
        Value::Number(number) if number.is_i64() => 'i',
        Value::Number(_) => 'f',
        Value::String(_) => 't',
        Value::Null | Value::Array(_) | Value::Object(_) => 'n',
    }
}

/// A NULL whose type the server works out.
struct Nothing;

/// The pseudo-type `unknown`: the server works the type out, as for a NULL that is written in the statement.
const UNKNOWN: Oid = Oid(705);

impl Type<Postgres> for Nothing {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(UNKNOWN)
    }
}

impl Encode<'_, Postgres> for Nothing {
    fn encode_by_ref(&self, _: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Ok(IsNull::Yes)
    }
}
