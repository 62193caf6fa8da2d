//! The members of bodies with their kinds, and the check of a body against them.
//! In: JSON. Out: an object with known members of the right kind, or every place where it is not.

use budget_actors::money::Currency;
use budget_actors::posting::{At, Memo};
use budget_actors::texts::{self, TEXT_BYTES_MAX};
use perkey::check_name;
use serde_json::{Map, Value, json};

use crate::gateway::problem::{ERRORS_MAX, FieldError, Problem};

/// A member of a body.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Its name.
    pub name: &'static str,
    /// The kind of its value.
    pub kind: MemberKind,
    /// True if it must be given.
    pub required: bool,
    /// A description.
    pub about: &'static str,
}

/// The kinds of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// An amount in minor units.
    Amount,
    /// An amount, or null.
    Limit,
    /// The name of an entity of a tenant.
    Name,
    /// A name within such an entity.
    Label,
    /// A currency.
    Currency,
    /// A date or a time.
    At,
    /// A text.
    Text,
    /// A status that an order can be given.
    Status,
}

impl Member {
    /// A member that must be given.
    pub const fn required(name: &'static str, kind: MemberKind, about: &'static str) -> Self {
        Self { name, kind, required: true, about }
    }

    /// A member that may be left out, or null.
    pub const fn optional(name: &'static str, kind: MemberKind, about: &'static str) -> Self {
        Self { name, kind, required: false, about }
    }

    /// Its JSON schema.
    pub fn schema(&self) -> Value {
        let mut schema = match self.kind {
            MemberKind::Amount => json!({ "type": "integer", "format": "int64" }),
            MemberKind::Limit => json!({ "type": ["integer", "null"], "format": "int64", "minimum": 0 }),
            MemberKind::Name | MemberKind::Label => json!({ "type": "string", "minLength": 1, "maxLength": 256 }),
            MemberKind::Currency => json!({ "type": "string", "pattern": "^[A-Z]{3}$" }),
            MemberKind::At => json!({ "type": "string" }),
            MemberKind::Text => json!({ "type": "string", "maxLength": TEXT_BYTES_MAX }),
            MemberKind::Status => json!({ "type": "string", "enum": ["completed", "cancelled"] }),
        };
        schema["description"] = self.about.into();
        schema
    }

    fn wrong(&self, value: &Value) -> Option<String> {
        let text = value.as_str();
        match (self.kind, text) {
            (MemberKind::Limit, _) if value.is_null() => None,
            (MemberKind::Amount | MemberKind::Limit, _) if value.as_i64().is_some() => None,
            (MemberKind::Amount | MemberKind::Limit, _) => {
                Some(format!("{value} is not a whole number of minor units (1250 is 12.50)"))
            }
            (MemberKind::Name | MemberKind::Label, Some(text)) => {
                check_name(self.name, text.as_bytes()).err().map(|error| error.to_string())
            }
            (MemberKind::Currency, Some(text)) => text.parse::<Currency>().err().map(|error| error.to_string()),
            (MemberKind::At | MemberKind::Text, Some(text)) if text.len() > TEXT_BYTES_MAX => {
                texts::check(self.name, text).err().map(|error| error.to_string())
            }
            (MemberKind::At, Some(text)) => At::try_from(text.to_owned()).err().map(|error| error.to_string()),
            (MemberKind::Text, Some(text)) => Memo::try_from(text.to_owned()).err().map(|error| error.to_string()),
            (MemberKind::Status, Some("completed" | "cancelled")) => None,
            (MemberKind::Status, Some(text)) => Some(format!("an order becomes completed or cancelled, not {text:?}")),
            (_, None) => Some("is not a text".to_owned()),
        }
    }
}

/// Checks the body against these members; a missing body counts as an empty object.
pub fn checked(members: &[Member], body: Value) -> Result<Map<String, Value>, Problem> {
    let body = match body {
        Value::Object(body) => body,
        Value::Null => Map::new(),
        _ => return Err(Problem::at("", "the body is not a JSON object")),
    };
    let mut errors = Vec::new();
    let mut wrong = |name: &str, detail: String| {
        let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        if errors.len() < ERRORS_MAX {
            errors.push(FieldError::new(pointer, detail));
        }
    };
    for member in members {
        match body.get(member.name) {
            None if member.required => wrong(member.name, format!("is missing. {}", member.about)),
            None => {}
            Some(Value::Null) if !member.required => {}
            Some(value) => {
                if let Some(detail) = member.wrong(value) {
                    wrong(member.name, detail);
                }
            }
        }
    }
    let known: Vec<_> = members.iter().map(|member| member.name).collect();
    for name in body.keys().filter(|name| !known.contains(&name.as_str())) {
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        wrong(name, format!("is not known here; there are: {known}"));
    }
    if errors.is_empty() { Ok(body) } else { Err(Problem::malformed(errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::operations::operation;

    #[test]
    fn every_wrong_member_is_told_with_its_place() {
        let members = operation("transactions.post").unwrap().members;
        let body = json!({ "account": "", "amount": "12", "currency": "eur", "at": "soon", "memo": "\0", "x/y": 1 });
        let problem = checked(members, body).unwrap_err();
        let places: Vec<_> = problem.errors.iter().map(|error| error.pointer.as_str()).collect();
        assert_eq!(places, ["/account", "/amount", "/currency", "/at", "/memo", "/x~1y"]);
        let problem = checked(members, Value::Null).unwrap_err();
        assert_eq!(problem.errors.len(), 3, "{problem:?}");
        assert_eq!(checked(members, json!([])).unwrap_err().errors[0].pointer, "");
    }

    #[test]
    fn null_is_as_good_as_left_out_where_that_is_allowed() {
        let members = operation("transactions.post").unwrap().members;
        let body = json!({ "account": "a", "amount": -1, "currency": "EUR", "at": null, "memo": null });
        assert!(checked(members, body).is_ok());
        let budget = operation("expenses.budget").unwrap().members;
        assert!(checked(budget, json!({ "account": "a", "currency": "EUR", "limit": null })).is_ok());
        assert!(checked(budget, json!({ "account": "a", "currency": "EUR" })).is_err());
    }
}
