//! Rows of a handler's table, page by page, as programs beside the handler read them.
//! In: a request for rows. Out: the statement that reads them, and the rows as JSON.

use std::cmp::Ordering;

use serde_json::Value;

use crate::handler::{Column, ColumnKind, Table};
use crate::store::StoreError;
use crate::store::declared::{self, wrong};

/// A request for rows. They come in the order of the table's primary key, texts in that of their bytes.
#[derive(Clone, Debug)]
pub struct RowsAsk {
    /// The table, as its handler declares it.
    pub table: Table,
    /// Only rows whose text columns have these values.
    pub equals: Vec<(&'static str, String)>,
    /// Only rows behind this primary key: a value for each of its columns, numbers and booleans as text.
    pub after: Option<Vec<String>>,
    /// The number of rows at most.
    pub limit: usize,
    /// The bytes of texts after which no more rows come: the row that exceeds them is the last.
    pub bytes: usize,
}

/// Some of the rows that were asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FoundRows {
    /// The rows, as objects.
    pub rows: Vec<Value>,
    /// True if there are others behind them.
    pub more: bool,
}

/// The number of rows found, one beyond the limit among them: a column of each row, behind the table's own.
const FOUND: &str = "rows found";
/// The bytes of the rows before this one: a column of each row.
const BEFORE: &str = "bytes before";

/// The parts of SQL that each database writes in its own way.
pub(in crate::store) struct Dialect {
    /// The words behind a text column that make texts compare by their bytes.
    pub(in crate::store) collate: &'static str,
    /// True if a text may have U+0000 in it.
    pub(in crate::store) nul: bool,
}

impl RowsAsk {
    /// The statement, with `$1`, `$2`, … for its arguments; `None` if no row can match.
    pub(in crate::store) fn statement(&self, dialect: &Dialect) -> Result<Option<(String, Vec<Value>)>, StoreError> {
        self.check()?;
        let (mut args, mut conditions) = (Vec::new(), Vec::new());
        let mut place = |value: Value| {
            args.push(value);
            format!("${}", args.len())
        };
        let collate = if self.is_indexed() { dialect.collate } else { "" };
        for (column, value) in &self.equals {
            if !dialect.nul && value.contains('\0') {
                return Ok(None);
            }
            conditions.push(format!("\"{column}\"{collate} = {}", place(value.as_str().into())));
        }
        if let Some(after) = self.key_after()? {
            let (mut columns, mut values) = (Vec::new(), Vec::new());
            for (column, value) in self.key_columns().zip(after) {
                columns.push(ordered(column, dialect));
                // The database has no text equal to this one: rows behind it are behind its beginning.
                let cut = value.as_str().filter(|_| !dialect.nul).and_then(|text| text.split_once('\0'));
                let cut = cut.map(|(beginning, _)| Value::from(beginning));
                let ends = cut.is_some();
                values.push(place(cut.unwrap_or(value)));
                if ends {
                    break;
                }
            }
            conditions.push(format!("({}) > ({})", columns.join(", "), values.join(", ")));
        }
        let columns = self.table.columns.iter().map(|column| match column.kind {
            ColumnKind::Json => format!("\"{0}\"::text AS \"{0}\"", column.name),
            ColumnKind::Text | ColumnKind::Integer | ColumnKind::Real | ColumnKind::Boolean => {
                format!("\"{}\"", column.name)
            }
        });
        let columns = columns.collect::<Vec<_>>().join(", ");
        let only = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
        let order: Vec<String> = self.key_columns().map(|column| ordered(column, dialect)).collect();
        let mut bound = |bound: usize| place(i64::try_from(bound).unwrap_or(i64::MAX).into());
        let (limit, beyond, bytes) = (bound(self.limit), bound(self.limit.saturating_add(1)), bound(self.bytes));
        let (table, order) = (self.table.name, order.join(", "));
        let found = format!("SELECT {columns} FROM \"{table}\"{only} ORDER BY {order} LIMIT {beyond}");
        // Rows that are too many do not leave the database.
        let weighed = format!(
            "SELECT *, count(*) OVER () AS \"{FOUND}\", sum({}) OVER (ORDER BY {order} ROWS BETWEEN UNBOUNDED \
             PRECEDING AND 1 PRECEDING) AS \"{BEFORE}\" FROM ({found}) AS found",
            self.weight()
        );
        let names: Vec<_> = self.table.columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
        let names = names.join(", ");
        let sql = format!(
            "SELECT {names}, \"{FOUND}\" FROM ({weighed}) AS weighed WHERE coalesce(\"{BEFORE}\", 0) <= {bytes} \
             ORDER BY {order} LIMIT {limit}"
        );
        Ok(Some((sql, args)))
    }

    /// The expression for the bytes of a row's texts.
    fn weight(&self) -> String {
        let texts = self.texts().map(|column| format!("coalesce(octet_length(\"{}\"), 0)", column.name));
        let texts: Vec<_> = texts.collect();
        if texts.is_empty() { "0".to_owned() } else { texts.join(" + ") }
    }

    fn texts(&self) -> impl Iterator<Item = &Column> {
        self.table.columns.iter().filter(|column| matches!(column.kind, ColumnKind::Text | ColumnKind::Json))
    }

    /// The rows that a statement returned; `found` is the value of the column behind the table's own.
    pub(in crate::store) fn part(rows: Vec<Value>, found: Option<i64>) -> FoundRows {
        let more = found.is_some_and(|found| usize::try_from(found).is_ok_and(|found| found > rows.len()));
        FoundRows { rows, more }
    }

    /// A row as an object; `value` gives that of the column at a place.
    pub(in crate::store) fn object(
        &self,
        value: impl Fn(usize, &Column) -> Result<Value, StoreError>,
    ) -> Result<Value, StoreError> {
        let columns = self.table.columns.iter().enumerate();
        let fields = columns.map(|(at, column)| Ok((column.name.to_owned(), value(at, column)?)));
        Ok(Value::Object(fields.collect::<Result<_, StoreError>>()?))
    }

    /// The rows that a database would return if it had `rows`, which are as their handler wrote them.
    pub(in crate::store) fn of<'a>(&self, rows: impl Iterator<Item = &'a Value>) -> Result<FoundRows, StoreError> {
        self.check()?;
        let after = self.key_after()?;
        let meant = |row: &&Value| {
            let equal = |(column, value): &(&'static str, String)| field(row, column).as_str() == Some(value);
            let compared = |after: &Vec<Value>| {
                let mut pairs =
                    self.key_columns().zip(after).map(|(column, value)| compare(field(row, column.name), value));
                pairs.find(|order| *order != Ordering::Equal) == Some(Ordering::Greater)
            };
            self.equals.iter().all(equal) && after.as_ref().is_none_or(compared)
        };
        let mut found: Vec<&Value> = rows.filter(meant).collect();
        found.sort_by(|a, b| {
            let pairs = self.key_columns().map(|column| compare(field(a, column.name), field(b, column.name)));
            pairs.fold(Ordering::Equal, Ordering::then)
        });
        let all = found.len();
        found.truncate(self.limit);
        let mut before = 0;
        found.retain(|row| {
            let fits = before <= self.bytes;
            before += self.texts().map(|column| bytes(field(row, column.name))).sum::<usize>();
            fits
        });
        let more = !found.is_empty() && found.len() < all;
        let written = found.into_iter().map(|row| self.object(|_, column| Ok(typed(column, field(row, column.name)))));
        Ok(FoundRows { rows: written.collect::<Result<_, _>>()?, more })
    }

    fn check(&self) -> Result<(), StoreError> {
        declared::check(&self.table)?;
        for (name, _) in &self.equals {
            let column = self.table.columns.iter().find(|column| column.name == *name);
            if column.is_none_or(|column| column.kind != ColumnKind::Text) {
                return Err(wrong(
                    &self.table,
                    format!("rows are asked for by {name}, which is not one of its text columns"),
                ));
            }
        }
        Ok(())
    }

    fn key_columns(&self) -> impl Iterator<Item = &Column> {
        let key = self.table.primary_key.iter();
        key.filter_map(|name| self.table.columns.iter().find(|column| column.name == *name))
    }

    /// The values of `after`, each of its column's type.
    fn key_after(&self) -> Result<Option<Vec<Value>>, StoreError> {
        let Some(after) = &self.after else { return Ok(None) };
        if after.len() != self.table.primary_key.len() {
            let reason =
                format!("{} values are not a place in its order: its primary key has other columns", after.len());
            return Err(wrong(&self.table, reason));
        }
        let value = |(column, text): (&Column, &String)| {
            let value = match column.kind {
                ColumnKind::Text => Some(text.as_str().into()),
                ColumnKind::Integer => text.parse::<i64>().ok().map(Value::from),
                ColumnKind::Real => text.parse::<f64>().ok().map(Value::from),
                ColumnKind::Boolean => text.parse::<bool>().ok().map(Value::from),
                ColumnKind::Json => None,
            };
            value.ok_or_else(|| wrong(&self.table, format!("{text:?} is not a value of column {}", column.name)))
        };
        self.key_columns().zip(after).map(value).collect::<Result<_, _>>().map(Some)
    }

    /// True if the columns of `equals` lead at least as far into one of the table's indexes as into its primary key. A
    /// database that does not order texts by their bytes uses an index only for comparisons in the index's own order.
    fn is_indexed(&self) -> bool {
        let leads = |index: &&[&str]| {
            index.iter().take_while(|name| self.equals.iter().any(|(column, _)| column == *name)).count()
        };
        let best = self.table.indexes.iter().map(leads).max().unwrap_or(0);
        best > 0 && best >= leads(&self.table.primary_key)
    }
}

fn ordered(column: &Column, dialect: &Dialect) -> String {
    let collate = if column.kind == ColumnKind::Text { dialect.collate } else { "" };
    format!("\"{}\"{collate}", column.name)
}

fn field<'a>(row: &'a Value, column: &str) -> &'a Value {
    row.get(column).unwrap_or(&Value::Null)
}

/// The bytes of a value as text.
fn bytes(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::String(text) => text.len(),
        other => other.to_string().len(),
    }
}

/// Values of one column of a primary key.
fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.cmp(b),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
        },
        _ => Ordering::Equal,
    }
}

/// A value as a column of its type holds it.
fn typed(column: &Column, value: &Value) -> Value {
    match (column.kind, value.as_f64()) {
        (ColumnKind::Real, Some(number)) => number.into(),
        _ => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIALECT: Dialect = Dialect { collate: " COLLATE \"C\"", nul: false };
    const TABLE: Table = Table {
        name: "orders",
        columns: &[
            Column::new("id", ColumnKind::Text),
            Column::new("account", ColumnKind::Text),
            Column::new("n", ColumnKind::Integer),
            Column::nullable("extra", ColumnKind::Json),
        ],
        primary_key: &["id", "n"],
        key_column: None,
        indexes: &[&["account", "id"]],
    };

    fn ask(equals: &[(&'static str, &str)], after: Option<&[&str]>) -> RowsAsk {
        let equals = equals.iter().map(|(column, value)| (*column, (*value).to_owned())).collect();
        let after = after.map(|after| after.iter().map(|value| (*value).to_owned()).collect());
        RowsAsk { table: TABLE, equals, after, limit: 5, bytes: 100 }
    }

    #[test]
    fn what_leads_into_an_index_is_compared_as_the_index_is_made() {
        let sql = |ask: RowsAsk| ask.statement(&DIALECT).unwrap().unwrap().0;
        let all = "(SELECT \"id\", \"account\", \"n\", \"extra\"::text AS \"extra\" FROM \"orders\"";
        let order = "ORDER BY \"id\" COLLATE \"C\", \"n\" LIMIT";
        for (asked, wanted) in [
            (ask(&[], None), format!("{all} {order} $2)")),
            (ask(&[("id", "a")], None), format!("{all} WHERE \"id\" = $1 {order} $3)")),
            (
                ask(&[("account", "a")], Some(&["x", "7"])),
                format!(
                    "{all} WHERE \"account\" COLLATE \"C\" = $1 AND (\"id\" COLLATE \"C\", \"n\") > ($2, $3) {order} $5)"
                ),
            ),
        ] {
            let sql = sql(asked);
            assert!(sql.contains(&wanted), "{sql}: not {wanted}");
        }
        let sql = sql(ask(&[], None));
        assert!(sql.ends_with(&format!("coalesce(\"bytes before\", 0) <= $3 {order} $1")), "{sql}");
    }

    #[test]
    fn a_text_that_cannot_be_is_equal_to_none_and_has_its_place_in_the_order() {
        assert_eq!(ask(&[("id", "a\0")], None).statement(&DIALECT), Ok(None));
        let (sql, args) = ask(&[], Some(&["a\0b", "7"])).statement(&DIALECT).unwrap().unwrap();
        assert!(sql.contains("(\"id\" COLLATE \"C\") > ($1)"), "{sql}");
        assert_eq!(args, [Value::from("a"), 5.into(), 6.into(), 100.into()]);
    }

    #[test]
    fn what_is_no_value_of_its_column_is_refused_in_words() {
        for (ask, word) in [
            (ask(&[("n", "1")], None), "not one of its text columns"),
            (ask(&[("nothing", "1")], None), "not one of its text columns"),
            (ask(&[], Some(&["x"])), "not a place in its order"),
            (ask(&[], Some(&["x", "many"])), "\"many\" is not a value of column n"),
        ] {
            let refused = ask.statement(&DIALECT).unwrap_err().to_string();
            assert!(refused.contains(word), "{refused}");
            assert!(ask.of(std::iter::empty()).is_err());
        }
    }
}
