//! What a line says: its fields as a JSON payload, from CSV or NDJSON.
//! In: a line of text. Out: the id it names and the payload's fields, or why it cannot be used.

use std::collections::BTreeMap;

use serde_json::value::{RawValue, to_raw_value};

/// The columns of a CSV file, in the order in which the documentation names them.
pub(super) const COLUMNS: [&str; 6] = ["id", "account", "amount", "currency", "at", "memo"];
const REQUIRED: [&str; 4] = ["account", "amount", "currency", "at"];

/// A payload's fields.
pub type Fields = BTreeMap<String, Box<RawValue>>;

/// How the lines of an input are read.
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

    /// The id that a line names, if it does, and its fields without the id.
    pub fn read(&self, line: &str) -> Result<(Option<String>, Fields), String> {
        if line.contains('\0') {
            return Err("the line contains a NUL character".to_owned());
        }
        let mut fields = match self {
            Self::Csv(columns) => csv_fields(columns, line)?,
            Self::Ndjson => serde_json::from_str(line).map_err(|error| format!("no JSON object: {error}"))?,
        };
        if let Some(amount) = fields.get_mut("amount") {
            let text: String = match serde_json::from_str(amount.get()) {
                Ok(text) => text,
                Err(_) => amount.get().to_owned(),
            };
            *amount = raw(&minor_units(&text)?)?;
        }
        let id = fields.remove("id").filter(|id| id.get() != "null");
        let id = id.map(|id| serde_json::from_str(id.get())).transpose().map_err(|_| "the id is no text")?;
        Ok((id, fields))
    }
}

/// A value as raw JSON.
fn raw<T: serde::Serialize + ?Sized>(value: &T) -> Result<Box<RawValue>, String> {
    to_raw_value(value).map_err(|error| error.to_string())
}

fn csv_fields(columns: &[&str], line: &str) -> Result<Fields, String> {
    let values = values(line)?;
    if values.len() != columns.len() {
        return Err(format!("{} values where the header names {} columns", values.len(), columns.len()));
    }
    let mut fields = Fields::new();
    for (column, value) in columns.iter().zip(&values) {
        // An empty value of a column that may be left out is left out.
        if !value.is_empty() || REQUIRED.contains(column) {
            fields.insert((*column).to_owned(), raw(value)?);
        }
    }
    Ok(fields)
}

fn values(line: &str) -> Result<csv::StringRecord, String> {
    if line.bytes().filter(|byte| *byte == b'"').count() % 2 == 1 {
        return Err("a quote is not closed on its line".to_owned());
    }
    let capacity = line.len().max(64);
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).buffer_capacity(capacity).from_reader(line.as_bytes());
    let mut values = csv::StringRecord::new();
    reader.read_record(&mut values).map_err(|error| error.to_string())?;
    Ok(values)
}

/// An amount in minor units: a whole number is one, with a point it has at most two decimals.
fn minor_units(text: &str) -> Result<i64, String> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, decimals) = unsigned.split_once('.').map_or((unsigned, None), |(whole, rest)| (whole, Some(rest)));
    let fits = digits(whole) && decimals.is_none_or(|part| digits(part) && part.len() <= 2);
    if !fits {
        return Err(format!("amount {text:?} is neither whole minor units (1234) nor has one or two decimals (12.34)"));
    }
    let sign = if text.starts_with('-') { "-" } else { "" };
    let number = decimals.map_or_else(|| format!("{sign}{whole}"), |part| format!("{sign}{whole}{part:0<2}"));
    number.parse().map_err(|_| format!("amount {text:?} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: &Format, line: &str) -> Result<(Option<String>, String), String> {
        format.read(line).map(|(id, fields)| (id, serde_json::to_string(&fields).unwrap()))
    }

    #[test]
    fn amounts_are_minor_units_or_have_up_to_two_decimals() {
        for (text, cents) in [
            ("1234", 1234),
            ("-5", -5),
            ("+5", 5),
            ("12.34", 1234),
            ("12.3", 1230),
            ("-0.05", -5),
            ("0.00", 0),
            ("9223372036854775807", i64::MAX),
            ("-92233720368547758.08", i64::MIN),
        ] {
            assert_eq!(minor_units(text), Ok(cents), "{text}");
        }
        for bad in
            ["", "-", "12.", ".5", "1.234", "1,5", "1e3", " 1", "--1", "0x1", "9223372036854775808", "1.2.3", "NaN"]
        {
            assert!(minor_units(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn csv_columns_come_in_any_order() {
        let format = Format::csv("at,Amount, currency ,account,memo").unwrap();
        assert_eq!(
            read(&format, r#"2026-01-31,12.3,EUR,acct-1,"tea, ""green""""#).unwrap(),
            (
                None,
                r#"{"account":"acct-1","amount":1230,"at":"2026-01-31","currency":"EUR","memo":"tea, \"green\""}"#
                    .to_owned()
            )
        );
        let format = Format::csv("id,account,amount,currency,at").unwrap();
        let same = r#"{"account":"a","amount":1,"at":"2026-01-31","currency":"EUR"}"#.to_owned();
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
        let same = r#"{"account":"a","amount":1230}"#.to_owned();
        for amount in ["12.3", "1230", "\"12.30\""] {
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
            (&csv, "a,1,\"EUR,2026-01-31", "quote is not closed"),
            (&csv, "a,1.234,EUR,2026-01-31", "amount \"1.234\""),
            (&csv, "a\0,1,EUR,2026-01-31", "NUL"),
            (&Format::Ndjson, "{\"a\":", "no JSON object"),
            (&Format::Ndjson, "[1]", "no JSON object"),
            (&Format::Ndjson, "{\"id\":7}", "id is no text"),
            (&Format::Ndjson, "{\"amount\":1e3}", "amount \"1e3\""),
            (&Format::Ndjson, "{\"amount\":null}", "amount \"null\""),
        ] {
            let said = read(format, line).unwrap_err();
            assert!(said.contains(reason), "{line}: {said}");
        }
    }
}
