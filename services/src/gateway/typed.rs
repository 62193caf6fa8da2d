//! Converts between JSON and the types of GraphQL and gRPC, once for all operations.
//! In: a typed request, or an answer in JSON. Out: the JSON that REST would have brought, or a typed answer.
//!
//! A request is the same JSON over every protocol: a key that was used over one protocol is a repeat over another.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tracing::error;

use super::front::{PAGE, Page, Reply};
use super::json;
use super::operations::{Entity, MemberKind, Operation};
use super::problem::{Kind, Problem};

/// The number of items of a page, if the protocol has a number for that.
pub(super) fn limit(asked: Option<u32>) -> usize {
    asked.map_or(PAGE, |asked| usize::try_from(asked).unwrap_or(usize::MAX))
}

/// Parts of a handler's reply that hold the entity.
const NESTED: [&str; 3] = ["placement", "charge", "checkout"];

/// The id that the path of an operation would have, and its body.
pub(super) fn untyped(operation: &Operation, request: &impl Serialize) -> Result<(Option<String>, Value), Problem> {
    let bytes = serde_json::to_vec(request).map_err(|error| Problem::at("", error.to_string()))?;
    // Read as strictly as a body of REST.
    let Value::Object(mut body) = json::parse(&bytes)? else {
        return Err(Problem::at("", "the request is not an object"));
    };
    let target = if operation.path.contains("{id}") { body.remove("id") } else { None };
    // `null` means no limit; neither protobuf nor an input without the member can say it.
    let nullable = operation.members.iter().filter(|member| member.required && member.kind == MemberKind::Limit);
    for member in nullable {
        body.entry(member.name).or_insert(Value::Null);
    }
    Ok((target.and_then(|id| id.as_str().map(str::to_owned)), body.into()))
}

/// A typed answer about an entity; `id` is its id, in case the answer does not have it.
pub(super) fn typed<T: DeserializeOwned>(entity: Entity, value: Value, id: Option<&str>) -> Result<T, Problem> {
    as_type(entity, flat(entity, value, id))
}

/// The typed answer to a command.
pub(super) fn typed_reply<T: DeserializeOwned>(entity: Entity, reply: &Reply) -> Result<T, Problem> {
    let body = serde_json::from_slice(&reply.body)
        .map_err(|error| Problem::new(Kind::Internal, format!("the answer is not JSON: {error}")))?;
    typed(entity, body, reply.id.as_deref())
}

/// A typed page of entities.
pub(super) fn typed_page<T: DeserializeOwned>(entity: Entity, page: Page) -> Result<T, Problem> {
    let items = page.items.into_iter().map(|item| flat(entity, item, None)).collect();
    let mut members = Map::from_iter([("items".to_owned(), Value::Array(items))]);
    members.extend(page.next.map(|next| ("next".to_owned(), next.into())));
    as_type(entity, members.into())
}

fn as_type<T: DeserializeOwned>(entity: Entity, value: Value) -> Result<T, Problem> {
    serde_json::from_value(value).map_err(|error| {
        error!(%error, entity = entity.as_str(), "an answer does not have its type");
        Problem::new(Kind::Internal, "the answer does not have its type; REST has it as it is")
    })
}

/// An entity from a row or a reply: a row's columns, and the reply's further members.
fn flat(entity: Entity, value: Value, id: Option<&str>) -> Value {
    let Value::Object(members) = value else { return value };
    let mut flat = Map::new();
    for (name, value) in members {
        match value {
            Value::Object(inner) if NESTED.contains(&name.as_str()) => {
                for (name, value) in inner {
                    flat.entry(name).or_insert(value);
                }
            }
            value if name == "order_id" => drop(flat.insert("order".to_owned(), value)),
            value => drop(flat.insert(name, value)),
        }
    }
    let (own, stored) = match entity {
        Entity::Order => ("id", "order"),
        Entity::Checkout => ("id", "saga"),
        Entity::Payment => ("order", "id"),
        Entity::Account => ("account", "id"),
        Entity::Expense | Entity::Transaction => ("id", "id"),
    };
    if !flat.contains_key(own) {
        let found = flat.get(stored).cloned().or_else(|| id.map(Value::from));
        flat.extend(found.map(|id| (own.to_owned(), id)));
    }
    flat.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::gateway::operations::operation;

    #[test]
    fn what_the_path_names_is_no_part_of_the_body() {
        let cancel = operation("orders.cancel").unwrap();
        let (target, body) = untyped(cancel, &json!({ "id": "o-1", "reason": "x" })).unwrap();
        assert_eq!((target.as_deref(), body), (Some("o-1"), json!({ "reason": "x" })));
        let place = operation("orders.place").unwrap();
        let (target, body) = untyped(place, &json!({ "id": "o-1" })).unwrap();
        assert_eq!((target, body), (None, json!({ "id": "o-1" })));
        let budget = operation("expenses.budget").unwrap();
        assert_eq!(untyped(budget, &json!({ "account": "a" })).unwrap().1, json!({ "account": "a", "limit": null }));
    }

    #[test]
    fn rows_and_replies_are_the_same() {
        let reply = json!({ "placement": { "order": "o", "amount": 5 }, "status": "placed" });
        let order = flat(Entity::Order, reply, None);
        assert_eq!((&order["id"], &order["amount"], &order["status"]), (&json!("o"), &json!(5), &json!("placed")));
        assert_eq!(flat(Entity::Order, json!({ "status": "cancelled" }), Some("o"))["id"], "o");
        let saga = json!({ "checkout": { "saga": "s", "order": "o" }, "status": "running", "steps": {} });
        let checkout = flat(Entity::Checkout, saga, Some("other"));
        assert_eq!((&checkout["id"], &checkout["order"]), (&json!("s"), &json!("o")));
        let row = json!({ "order_id": "o", "status": "charged" });
        assert_eq!(flat(Entity::Payment, row, None)["order"], "o");
        assert_eq!(flat(Entity::Payment, json!({ "charge": { "order": "o" } }), None)["order"], "o");
        assert_eq!(flat(Entity::Checkout, json!({ "id": "s", "order_id": "o" }), None)["order"], "o");
    }
}
