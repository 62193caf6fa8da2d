//! The OpenAPI document, generated from the operations and the tables.
//! In: operations, tables. Out: OpenAPI 3.1 as JSON.

use perkey::{ColumnKind, Table};
use serde_json::{Map, Value, json};

use crate::gateway::front::PAGE_MAX;
use crate::gateway::operations::{Entity, OPERATIONS, Operation};
use crate::gateway::problem::{CONTENT_TYPE, Kind, POLICY};

/// The document.
pub fn document(tables: &[Table]) -> Value {
    let mut paths = Map::new();
    let mut put = |path: &str, method: &str, operation: Value| {
        let at = paths.entry(path).or_insert_with(|| json!({}));
        at[method.to_ascii_lowercase()] = operation;
    };
    for operation in OPERATIONS {
        put(operation.path, operation.method, command(operation));
    }
    for entity in Entity::ALL {
        put(&format!("{}/{{id}}", entity.path()), "get", one(entity));
        if entity.table().is_some() {
            put(entity.path(), "get", many(entity));
        }
    }
    for (path, summary) in
        [("/api/openapi.json", "This document"), (POLICY, "The idempotency policy"), ("/api/problems", "Every problem")]
    {
        let response = json!({ "200": { "description": summary, "content": { "application/json": {} } } });
        put(path, "get", json!({ "summary": summary, "responses": response, "security": [] }));
    }
    let one_problem = json!({
        "summary": "One problem",
        "parameters": [{ "name": "code", "in": "path", "required": true, "schema": { "type": "string" } }],
        "responses": { "200": { "description": "What it means" }, "404": problems("There is no problem with this code") },
        "security": [],
    });
    put("/api/problems/{code}", "get", one_problem);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Budget Manager",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Orders, expenses, postings, checkouts, payments; each request takes effect once under \
                            its Idempotency-Key.",
        },
        "security": [{ "token": [] }, {}],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas(tables),
        },
    })
}

fn command(operation: &Operation) -> Value {
    let mut parameters = vec![json!({
        "name": "Idempotency-Key",
        "in": "header",
        "required": false,
        "description": format!("Where {} is named in gateway.require_key it is required.", operation.name),
        "schema": { "type": "string", "maxLength": 257 },
    })];
    if operation.path.contains("{id}") {
        parameters.push(target());
    }
    let properties: Map<_, _> =
        operation.members.iter().map(|member| (member.name.to_owned(), member.schema())).collect();
    let required: Vec<_> =
        operation.members.iter().filter(|member| member.required).map(|member| member.name).collect();
    let schema = json!({
        "type": "object", "properties": properties, "required": required, "additionalProperties": false,
    });
    let (status, description) = if operation.creates { ("201", "It was made") } else { ("200", "It was done") };
    let mut done = json!({ "description": description, "content": content(operation.entity) });
    done["headers"] = json!({
        "Idempotency-Key": { "schema": { "type": "string" } },
        "Idempotent-Replayed": { "schema": { "type": "string", "enum": ["true"] } },
    });
    if operation.creates {
        done["headers"]["Location"] = json!({ "schema": { "type": "string" } });
    }
    json!({
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "requestBody": {
            "required": operation.members.iter().any(|member| member.required),
            "content": { "application/json": { "schema": schema } },
        },
        "responses": { status: done, "default": problems("See /api/problems") },
    })
}

fn target() -> Value {
    json!({ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } })
}

fn content(entity: Entity) -> Value {
    json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{}", entity.as_str()) } } })
}

fn problems(description: &str) -> Value {
    let schema = json!({ "$ref": "#/components/schemas/problem" });
    json!({ "description": description, "content": { CONTENT_TYPE: { "schema": schema } } })
}

fn one(entity: Entity) -> Value {
    json!({
        "operationId": format!("{}.get", entity.as_str()),
        "summary": format!("One {}", entity.as_str()),
        "parameters": [target()],
        "responses": {
            "200": { "description": "As it is now", "content": content(entity) },
            "default": problems("See /api/problems"),
        },
    })
}

/// A parameter of the query.
fn parameter(name: &str, required: bool, schema: &Value) -> Value {
    json!({ "name": name, "in": "query", "required": required, "schema": schema })
}

fn many(entity: Entity) -> Value {
    let items = json!({ "type": "array", "items": { "$ref": format!("#/components/schemas/{}", entity.as_str()) } });
    let page = json!({
        "type": "object",
        "properties": { "items": items, "next": { "type": ["string", "null"] } },
        "required": ["items", "next"],
    });
    json!({
        "operationId": format!("{}.list", entity.as_str()),
        "summary": format!("What an account has, by id: {}", entity.as_str()),
        "parameters": [
            parameter("account", true, &json!({ "type": "string" })),
            parameter("after", false, &json!({ "type": "string" })),
            parameter("limit", false, &json!({ "type": "integer", "minimum": 1, "maximum": PAGE_MAX, "default": 20 })),
        ],
        "responses": {
            "200": { "description": "A page", "content": { "application/json": { "schema": page } } },
            "default": problems("See /api/problems"),
        },
    })
}

fn schemas(tables: &[Table]) -> Value {
    let mut schemas = Map::new();
    for entity in Entity::ALL {
        let table = tables.iter().find(|table| Some(table.name) == entity.table());
        let mut properties: Map<_, _> = table.map(columns).unwrap_or_default();
        for (name, kind) in more(entity) {
            properties.insert((*name).to_owned(), json!({ "type": *kind }));
        }
        let schema = json!({ "type": "object", "properties": properties, "required": [entity.id_member()] });
        schemas.insert(entity.as_str().to_owned(), schema);
    }
    let codes: Vec<_> = Kind::ALL.iter().map(|kind| kind.code()).collect();
    let text = json!({ "type": "string" });
    let place = json!({ "type": "object", "properties": { "pointer": text, "detail": text } });
    schemas.insert(
        "problem".to_owned(),
        json!({
            "type": "object",
            "properties": {
                "type": text,
                "title": text,
                "status": { "type": "integer" },
                "detail": text,
                "instance": text,
                "code": { "type": "string", "enum": codes },
                "errors": { "type": "array", "items": place },
                "retry_after_ms": { "type": "integer" },
            },
            "required": ["type", "title", "status", "detail", "instance", "code"],
        }),
    );
    schemas.into()
}

/// Members that are not columns.
fn more(entity: Entity) -> &'static [(&'static str, &'static str)] {
    match entity {
        Entity::Transaction => &[("balance", "integer"), ("n", "integer")],
        Entity::Expense => &[("spent", "integer"), ("limit", "integer")],
        Entity::Account => &[
            ("account", "string"),
            ("balance", "integer"),
            ("currency", "string"),
            ("n", "integer"),
            ("category", "string"),
        ],
        Entity::Order | Entity::Checkout | Entity::Payment => &[],
    }
}

fn columns(table: &Table) -> Map<String, Value> {
    let schema = |kind: ColumnKind, nullable: bool| {
        let word = match kind {
            ColumnKind::Text => "string",
            ColumnKind::Integer => "integer",
            ColumnKind::Real => "number",
            ColumnKind::Boolean => "boolean",
            ColumnKind::Json => return json!({}),
        };
        if nullable { json!({ "type": [word, "null"] }) } else { json!({ "type": word }) }
    };
    table.columns.iter().map(|column| (column.name.to_owned(), schema(column.kind, column.nullable))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_described_and_every_reference_leads_somewhere() {
        let document = document(&[]);
        for operation in OPERATIONS {
            let described = &document["paths"][operation.path][operation.method.to_ascii_lowercase()];
            assert_eq!(described["operationId"], operation.name);
        }
        let text = document.to_string();
        let references = text.split("\"#/components/schemas/").skip(1).filter_map(|rest| rest.split_once('"'));
        for (name, _) in references {
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
