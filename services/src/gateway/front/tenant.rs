//! Tenants: the names of their entities are kept apart by a prefix.
//! In: a name in a caller's terms, or a value as it is stored. Out: the other one.
//!
//! Those of the tenant `default` are stored as they are, so that imports and topics see the same. Those of others begin
//! with `@tenant/`, and none of the former may begin with `@`.

use perkey::check_name;
use perkey::unstable::message::NAME_BYTES_MAX;
use serde_json::{Map, Value};

use crate::gateway::auth::DEFAULT_TENANT;
use crate::gateway::operations::{Member, MemberKind};
use crate::gateway::problem::Problem;

/// The first character of the stored names of other tenants.
const MARK: char = '@';

/// Members of rows and replies that hold such a name.
const NAMED: [&str; 5] = ["id", "account", "order", "order_id", "saga"];

/// The names of one tenant.
#[derive(Debug)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// The names of this tenant.
    pub fn of(tenant: &str) -> Self {
        let prefix = if tenant == DEFAULT_TENANT { String::new() } else { format!("{MARK}{tenant}/") };
        Self { prefix }
    }

    /// A name as it is stored; `None` if no stored name looks like that.
    pub fn stored(&self, name: &str) -> Option<String> {
        if self.prefix.is_empty() && name.starts_with(MARK) {
            return None;
        }
        let stored = format!("{}{name}", self.prefix);
        [name, stored.as_str()].iter().all(|name| check_name("name", name.as_bytes()).is_ok()).then_some(stored)
    }

    /// The tenant's ranges among all stored names, in the order of their bytes: each range begins behind its first
    /// bound and ends before the second.
    pub fn ranges(&self) -> Vec<(String, Option<String>)> {
        if self.prefix.is_empty() {
            // All but those that begin with the mark, which is followed by "A".
            return vec![(String::new(), Some(MARK.to_string())), ("A".to_owned(), None)];
        }
        let end = self.prefix.replace('/', "0");
        vec![(self.prefix.clone(), Some(end))]
    }

    /// A name as the tenant knows it; `None` if it is another tenant's.
    pub fn shown<'a>(&self, stored: &'a str) -> Option<&'a str> {
        match stored.strip_prefix(self.prefix.as_str()) {
            Some(name) if self.prefix.is_empty() && name.starts_with(MARK) => None,
            shown => shown,
        }
    }

    /// A checked body with its names as they are stored.
    pub fn store(&self, members: &[Member], mut body: Map<String, Value>) -> Result<Map<String, Value>, Problem> {
        for member in members.iter().filter(|member| member.kind == MemberKind::Name) {
            let Some(Value::String(name)) = body.get_mut(member.name) else { continue };
            *name = self.stored(name).ok_or_else(|| Problem::at(format!("/{}", member.name), self.unfit(name)))?;
        }
        Ok(body)
    }

    /// The reason why a name cannot be one of this tenant's.
    pub fn unfit(&self, name: &str) -> String {
        if self.prefix.is_empty() && name.starts_with(MARK) {
            return format!("no name begins with {MARK}");
        }
        let most = NAME_BYTES_MAX - self.prefix.len();
        let error = check_name("name", name.as_bytes()).err();
        error.map_or_else(|| format!("a name of this tenant has 1 to {most} bytes"), |error| error.to_string())
    }

    /// Returns whether a row or a reply is this tenant's.
    pub fn own(&self, value: &Value) -> bool {
        let named = NAMED[1..].iter().filter_map(|name| value.get(*name).and_then(Value::as_str));
        named.into_iter().all(|name| self.shown(name).is_some())
    }

    /// Rewrites a row or a reply to the tenant's terms.
    pub fn show(&self, value: &mut Value) {
        if self.prefix.is_empty() {
            return;
        }
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    match value {
                        Value::String(text) if NAMED.contains(&name.as_str()) => {
                            if let Some(shown) = self.shown(text).map(str::to_owned) {
                                *text = shown;
                            }
                        }
                        value => self.show(value),
                    }
                }
            }
            Value::Array(values) => values.iter_mut().for_each(|value| self.show(value)),
            _ => {}
        }
    }

    /// A reason as the tenant may read it.
    pub fn say(&self, text: &str) -> String {
        if self.prefix.is_empty() { text.to_owned() } else { text.replace(&self.prefix, "") }
    }

    /// Returns whether names are stored as they are shown.
    pub fn are_plain(&self) -> bool {
        self.prefix.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::gateway::operations::operation;

    #[test]
    fn no_name_of_one_tenant_is_anothers() {
        let (default, acme, ac) = (Names::of("default"), Names::of("acme"), Names::of("ac"));
        assert_eq!(default.stored("a").as_deref(), Some("a"));
        assert_eq!(default.stored("@acme/a"), None);
        assert_eq!(acme.stored("a").as_deref(), Some("@acme/a"));
        assert_eq!(acme.stored("@ac/a").as_deref(), Some("@acme/@ac/a"));
        assert_eq!((acme.shown("@acme/a"), ac.shown("@acme/a"), default.shown("@acme/a")), (Some("a"), None, None));
        assert_eq!(acme.stored(&"x".repeat(251)), None);
        for (name, why) in [(" a", "white space"), ("a\u{200b}", "U+200B"), ("cafe\u{301}", "NFC")] {
            assert_eq!((acme.stored(name), default.stored(name)), (None, None));
            assert!(acme.unfit(name).contains(why) && default.unfit(name).contains(why), "{name:?}");
        }
    }

    #[test]
    fn a_name_is_in_a_range_of_its_tenant_alone() {
        let of = |tenant: &str, name: &str| {
            let ranges = Names::of(tenant).ranges().into_iter();
            ranges.filter(|(first, end)| name > first.as_str() && end.as_deref().is_none_or(|end| name < end)).count()
        };
        let names = ["1", "a", "Zoe", "~", "\u{10ffff}", "@ac/a", "@acme/a", "@acme/\u{10ffff}", "@acme2/a"];
        for name in names {
            for tenant in ["default", "ac", "acme", "acme2"] {
                let owned = usize::from(Names::of(tenant).shown(name).is_some());
                assert_eq!(of(tenant, name), owned, "{name:?} of {tenant}");
            }
        }
    }

    #[test]
    fn a_body_goes_in_and_a_reply_comes_out() {
        let names = Names::of("acme");
        let members = operation("transactions.post").unwrap().members;
        let body = json!({ "account": "a", "memo": "@acme/a" });
        let stored = Value::from(names.store(members, body.as_object().unwrap().clone()).unwrap());
        assert_eq!(stored, json!({ "account": "@acme/a", "memo": "@acme/a" }));
        assert!(names.own(&stored) && !Names::of("default").own(&stored));
        let mut reply = json!({ "id": "1", "account": "@acme/a", "memo": "@acme/a", "in": [{ "order": "@acme/o" }] });
        names.show(&mut reply);
        assert_eq!(reply, json!({ "id": "1", "account": "a", "memo": "@acme/a", "in": [{ "order": "o" }] }));
    }
}
