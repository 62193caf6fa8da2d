//! The variables of an operation, with defaults for those that were left out.
//! In: a parsed document, the variables that came. Out: all variables; or the one that decides nothing, or is too
//! large.

use std::collections::HashSet;

use async_graphql::parser::types::{ExecutableDocument, OperationDefinition, Selection, SelectionSet};
use async_graphql::{Positioned, Value, Variables};

use super::COPIED_BYTES_MAX;
use crate::gateway::problem::Problem;

/// Refuses large values that are used often: each use of a variable copies it.
pub(super) fn check(document: &str, variables: &Variables) -> Result<(), Problem> {
    let uses = document.bytes().filter(|byte| *byte == b'$').count();
    let bytes: usize = variables.values().map(weight).sum();
    if bytes.saturating_mul(uses) <= COPIED_BYTES_MAX {
        return Ok(());
    }
    let detail = format!("{bytes} bytes of variables are used {uses} times: send them in requests of their own");
    Err(Problem::at("/variables", detail))
}

fn weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::List(values) => values.iter().map(|value| 8 + weight(value)).sum(),
        Value::Object(members) => members.iter().map(|(name, value)| 8 + name.len() + weight(value)).sum(),
        _ => 8,
    }
}

/// Gives missing variables their defaults: conditions and costs are computed from these values alone.
pub(super) fn fill(operation: &OperationDefinition, variables: &mut Variables) {
    for variable in &operation.variable_definitions {
        let (name, default) = (&variable.node.name.node, &variable.node.default_value);
        if let Some(default) = default {
            variables.entry(name.clone()).or_insert_with(|| default.node.clone());
        }
    }
}

/// Refuses an operation with a `@skip` or `@include` that says neither true nor false: taken as false it would run
/// fields that were not meant to run.
pub(super) fn decided(
    document: &ExecutableDocument,
    operation: &Positioned<OperationDefinition>,
    variables: &Variables,
) -> Result<(), Problem> {
    let mut conditions = Conditions { document, variables, seen: HashSet::new() };
    conditions.check(&operation.node.selection_set.node)
}

struct Conditions<'a> {
    document: &'a ExecutableDocument,
    variables: &'a Variables,
    /// Fragments that were looked at.
    seen: HashSet<&'a str>,
}

impl<'a> Conditions<'a> {
    fn check(&mut self, set: &'a SelectionSet) -> Result<(), Problem> {
        for item in &set.items {
            for directive in item.node.directives() {
                let name = directive.node.name.node.as_str();
                // The schema reports a missing condition.
                let condition = matches!(name, "skip" | "include").then(|| directive.node.get_argument("if")).flatten();
                let Some(condition) = condition else { continue };
                let value =
                    condition.node.clone().into_const_with(|name| self.variables.get(&name).cloned().ok_or(name));
                let detail = match value {
                    Ok(Value::Boolean(_)) => continue,
                    Ok(_) => format!("the condition of @{name} is neither true nor false"),
                    Err(variable) => format!("@{name} asks about ${variable}, which has no value"),
                };
                return Err(Problem::at("/query", detail));
            }
            match &item.node {
                Selection::Field(field) => self.check(&field.node.selection_set.node)?,
                Selection::InlineFragment(fragment) => self.check(&fragment.node.selection_set.node)?,
                Selection::FragmentSpread(spread) => {
                    let name = spread.node.fragment_name.node.as_str();
                    if let Some(fragment) = self.document.fragments.get(name)
                        && self.seen.insert(name)
                    {
                        self.check(&fragment.node.selection_set.node)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;
    use serde_json::json;

    use super::*;

    fn filled(document: &str, given: serde_json::Value) -> Result<serde_json::Value, String> {
        let (document, mut variables) = (parse_query(document).unwrap(), Variables::from_json(given));
        let (_, operation) = document.operations.iter().next().unwrap();
        fill(&operation.node, &mut variables);
        decided(&document, operation, &variables).map_err(|problem| problem.detail)?;
        Ok(serde_json::to_value(&variables).unwrap())
    }

    #[test]
    fn what_was_left_out_has_its_default_and_what_came_stands() {
        let document = "query($a: Int = 5, $b: [Int] = [1], $c: Int, $d: Int = 1) { x }";
        let all = json!({ "a": 5, "b": [1], "d": null });
        assert_eq!(filled(document, json!({ "d": null })), Ok(all));
    }

    #[test]
    fn a_condition_is_true_or_false_wherever_it_stands() {
        let (yes, no) = (json!({ "s": true }), json!({}));
        assert_eq!(filled("query($s: Boolean = true) { x @skip(if: $s) }", no.clone()), Ok(yes.clone()));
        assert_eq!(filled("query($s: Boolean!) { x @include(if: $s) }", yes.clone()), Ok(yes));
        assert_eq!(filled("{ x @skip(if: false) y @other(if: 5) }", no.clone()), Ok(no.clone()));
        for (document, given) in [
            ("query($s: Boolean!) { x @skip(if: $s) }", no.clone()),
            ("query($s: Boolean = true) { x @skip(if: $s) }", json!({ "s": null })),
            ("query($s: Boolean!) { x @skip(if: $s) }", json!({ "s": "true" })),
            ("query($s: Boolean) { x { ... { y @include(if: $s) } } }", no.clone()),
            ("query($s: Boolean) { x { ...F @skip(if: $s) } } fragment F on Y { y }", no.clone()),
            ("query($s: Boolean) { x { ...F } } fragment F on Y { y @skip(if: $s) }", no.clone()),
            ("{ x @skip(if: 1) }", no),
        ] {
            let refused = filled(document, given).unwrap_err();
            assert!(refused.contains("true nor false") || refused.contains("$s, which has no value"), "{refused}");
        }
    }

    #[test]
    fn large_values_are_used_as_often_as_their_bytes_allow() {
        let large = Variables::from_json(json!({ "in": { "memo": "x".repeat(1 << 20), "more": [1, "2"] } }));
        assert!(check("mutation($in: In!) { a(in: $in) }", &large).is_ok());
        let refused = check(&format!("query($in: In!) {{ {} }}", "a(in: $in) ".repeat(40)), &large).unwrap_err();
        assert!(refused.detail.contains("used 41 times"), "{refused:?}");
    }
}
