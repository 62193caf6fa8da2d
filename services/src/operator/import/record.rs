//! The content of a record: its fields as a JSON payload, from CSV or NDJSON.
//! In: a record's text. Out: the id it names and the payload's fields, or the reason why it cannot be used.

use std::collections::BTreeMap;

use perkey::unstable::handler::named_once;
use serde_json::value::{RawValue, to_raw_value};

/// The columns of a CSV file, in the order in which the documentation names them.
pub(super) const COLUMNS: [&str; 6] = ["id", "account", "amount", "currency", "at", "memo"];
const REQUIRED: [&str; 4] = ["account", "amount", "currency", "at"];

/// A payload's fields.
pub type Fields = BTreeMap<String, Box<RawValue>>;

/// The format of an input's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// Values in this order.
    Csv(Vec<&'static str>),
    /// JSON objects.
    Ndjson,
}

impl Format {
    /// The CSV that `header` announces.
    pub fn csv(header: &str) -> Result<Self, String> {
        let names = values(header).map_err(|reason| format!("the header cannot be read: {reason}"))?;
        let mut columns = Vec::new();
        let mut problems = Vec::new();
        for name in names.iter().map(str::trim) {
            match COLUMNS.iter().find(|column| column.eq_ignore_ascii_case(name)) {
                Some(column) if columns.contains(column) => problems.push(format!("column {column} is there twice")),
                Some(column) => columns.push(*column),
                None => problems.push(format!("there is no column {name:?}")),
            }
        }
        let missing: Vec<_> = REQUIRED.into_iter().filter(|column| !columns.contains(column)).collect();
        if !missing.is_empty() {
            problems.push(format!("it lacks {}", missing.join(", ")));
        }
        if problems.is_empty() {
            return Ok(Self::Csv(columns));
        }
        let known = COLUMNS.join(",");
        Err(format!(
            "the header (line 1) does not fit: {}; the columns are {known}, without id and memo if you like",
            problems.join("; ")
        ))
    }

    /// The id that a record names, if it does, and its fields without the id.
    pub fn read(&self, line: &str) -> Result<(Option<String>, Fields), String> {
        if line.contains('\0') {
            return Err("the record contains a NUL character".to_owned());
        }
        let mut fields = match self {
            Self::Csv(columns) => csv_fields(columns, line)?,
            Self::Ndjson => members(line)?,
        };
        let id = fields.remove("id").filter(|id| id.get() != "null");
        let id = id.map(|id| serde_json::from_str(id.get())).transpose().map_err(|_| "the id is not a text")?;
        Ok((id, fields))
    }
}

/// A value as raw JSON.
fn raw<T: serde::Serialize + ?Sized>(value: &T) -> Result<Box<RawValue>, String> {
    to_raw_value(value).map_err(|error| error.to_string())
}

/// The members of a JSON object.
fn members(line: &str) -> Result<Fields, String> {
    let members = serde_json::from_str(line).map_err(|error| format!("not a JSON object: {error}"))?;
    named_once(line.as_bytes()).map_err(|error| error.to_string())?;
    Ok(members)
}

fn csv_fields(columns: &[&str], line: &str) -> Result<Fields, String> {
    let values = values(line)?;
    if values.len() != columns.len() {
        return Err(format!("{} values where the header names {} columns", values.len(), columns.len()));
    }
    let mut fields = Fields::new();
    for (column, value) in columns.iter().zip(&values) {
        // An empty value of an optional column is left out.
        if !value.is_empty() || REQUIRED.contains(column) {
            fields.insert((*column).to_owned(), raw(value)?);
        }
    }
    Ok(fields)
}

fn values(line: &str) -> Result<csv::StringRecord, String> {
    let capacity = line.len().max(64);
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).buffer_capacity(capacity).from_reader(line.as_bytes());
    let mut values = csv::StringRecord::new();
    reader.read_record(&mut values).map_err(|error| error.to_string())?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: &Format, line: &str) -> Result<(Option<String>, String), String> {
        format.read(line).map(|(id, fields)| (id, serde_json::to_string(&fields).unwrap()))
    }

    #[test]
    fn csv_columns_come_in_any_order() {
        let format = Format::csv("at,Amount, currency ,account,memo").unwrap();
        assert_eq!(
            read(&format, r#"2026-01-31,12.3,EUR,acct-1,"tea, ""green""""#).unwrap(),
            (
                None,
                r#"{"account":"acct-1","amount":"12.3","at":"2026-01-31","currency":"EUR","memo":"tea, \"green\""}"#
                    .to_owned()
            )
        );
        let format = Format::csv("id,account,amount,currency,at").unwrap();
        let same = r#"{"account":"a","amount":"1","at":"2026-01-31","currency":"EUR"}"#.to_owned();
        assert_eq!(read(&format, "m-1,a,1,EUR,2026-01-31").unwrap(), (Some("m-1".to_owned()), same.clone()));
        assert_eq!(read(&format, ",a,1,EUR,2026-01-31").unwrap(), (None, same));
    }

    #[test]
    fn a_header_that_does_not_fit_says_all_that_is_wrong() {
        let problem = Format::csv("id,acount,amount,amount").unwrap_err();
        for part in ["no column \"acount\"", "amount is there twice", "lacks account, currency, at"] {
            assert!(problem.contains(part), "{problem}");
        }
    }

    #[test]
    fn ndjson_has_the_same_fields() {
        for amount in ["12.3", "1230", "\"12.30\""] {
            let same = format!(r#"{{"account":"a","amount":{amount}}}"#);
            let line = format!(r#"{{"amount":{amount},"account":"a","id":"m-1"}}"#);
            assert_eq!(read(&Format::Ndjson, &line).unwrap(), (Some("m-1".to_owned()), same.clone()), "{line}");
        }
        assert_eq!(read(&Format::Ndjson, r#"{"id":null}"#).unwrap(), (None, "{}".to_owned()));
    }

    #[test]
    fn bad_lines_say_why() {
        let csv = Format::csv("account,amount,currency,at").unwrap();
        for (format, line, reason) in [
            (&csv, "a,1,EUR", "3 values where the header names 4 columns"),
            (&csv, "a\0,1,EUR,2026-01-31", "NUL"),
            (&Format::Ndjson, "{\"a\":", "not a JSON object"),
            (&Format::Ndjson, "[1]", "not a JSON object"),
            (&Format::Ndjson, "{\"id\":7}", "id is not a text"),
            (&Format::Ndjson, "{\"a\":1,\"\\u0061\":2}", "\"a\" stands here twice"),
            (&Format::Ndjson, "{\"x\":{\"a\":1,\"a\":2}}", "\"a\" stands here twice"),
        ] {
            let said = read(format, line).unwrap_err();
            assert!(said.contains(reason), "{line}: {said}");
        }
    }
}
