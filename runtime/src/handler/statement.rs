//! SQL of a handler's own, run in its turn's commit.
//! In: a statement and its arguments. Out: the same, checked; or what is wrong with it.

use serde::Serialize;
use serde_json::Value;

use super::Fault;

/// The words that a statement may begin with: one that begins or ends a transaction would break its turn's commit.
const VERBS: [&str; 5] = ["insert", "update", "delete", "merge", "with"];

/// A statement of a turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// The SQL, with `$1`, `$2`, … in the place of its arguments.
    pub sql: String,
    /// The arguments: null, booleans, numbers and text.
    pub args: Vec<Value>,
}

impl Statement {
    pub(super) fn new(sql: &str, args: &impl Serialize) -> Result<Self, Fault> {
        let sql = sql.trim().trim_end_matches(';');
        let verb = sql.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default().to_ascii_lowercase();
        if !VERBS.contains(&&*verb) || sql.contains([';', '\0']) {
            let verbs = VERBS.join(", ").to_uppercase();
            return Err(Fault::reject(format!(
                "turn.execute takes one statement that begins with {verbs} and has no `;` within (texts are arguments): {sql:?}"
            )));
        }
        if sql
            .to_ascii_lowercase()
            .split_whitespace()
            .collect::<Vec<_>>()
            .windows(2)
            .any(|two| two == ["or", "rollback"])
        {
            return Err(Fault::reject(format!("OR ROLLBACK would undo others' turns: {sql:?}")));
        }
        let args = match serde_json::to_value(args)? {
            Value::Null => Vec::new(),
            Value::Array(args) => args,
            _ => return Err(Fault::reject("the arguments of turn.execute are a tuple, an array or a list")),
        };
        if let Some(at) = args.iter().position(|arg| !fits(arg)) {
            let no = at + 1;
            return Err(Fault::reject(format!(
                "argument ${no} of turn.execute is {}: only null, booleans, numbers (integers of 64 bits with a sign) and \
                 text without NUL can be one; give JSON as text",
                args[at]
            )));
        }
        let places = places(sql);
        if places != args.len() {
            let found = args.len();
            return Err(Fault::reject(format!(
                "turn.execute has {found} arguments for {places} places ($1, $2, …): {sql:?}"
            )));
        }
        Ok(Self { sql: sql.to_owned(), args })
    }

    /// The bytes that it takes in a commit, about.
    pub(crate) fn bytes(&self) -> usize {
        self.sql.len() + self.args.iter().map(|arg| arg.as_str().map_or(8, str::len)).sum::<usize>()
    }
}

/// The highest number of an argument's place.
fn places(sql: &str) -> usize {
    let number = |after: &str| after.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    sql.split('$').skip(1).filter_map(number).max().unwrap_or(0)
}

fn fits(arg: &Value) -> bool {
    match arg {
        Value::Null | Value::Bool(_) => true,
        Value::Number(number) => number.is_i64() || number.is_f64(),
        Value::String(text) => !text.contains('\0'),
        Value::Array(_) | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_the_commit_is_no_statement() {
        for sql in [
            "COMMIT",
            "rollback",
            "",
            "SELECT 1",
            "UPDATE a SET b = 1; COMMIT",
            "PRAGMA x",
            "UPDATE OR  rollback a SET b = 1",
            "-- UPDATE\nCOMMIT",
        ] {
            assert!(matches!(Statement::new(sql, &()), Err(Fault::Reject(_))), "{sql:?}");
        }
        for sql in ["UPDATE a SET b = $1", " insert into a values ($1);\n", "WITH x AS (SELECT $1) DELETE FROM a"] {
            assert!(Statement::new(sql, &(1,)).is_ok(), "{sql:?}");
        }
    }

    #[test]
    fn arguments_are_values_of_one_column() {
        let sql = "UPDATE a SET b = $1 WHERE c = $2 OR d IN ($3, $4, $5)";
        let statement = Statement::new(sql, &(1, "x", 2.5, true, None::<i64>)).unwrap();
        assert!(Statement::new(sql, &(1, "x")).is_err(), "too few");
        assert_eq!(statement.args.len(), 5);
        assert!(Statement::new("UPDATE a SET b = $1", &(vec![1],)).is_err());
        assert!(Statement::new("UPDATE a SET b = $1", &(u64::MAX,)).is_err());
        assert!(Statement::new("UPDATE a SET b = $1", &("a\0b",)).is_err());
        assert!(Statement::new("UPDATE a SET b = $1", &"x").is_err());
    }
}
