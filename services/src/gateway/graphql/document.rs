//! Counts a GraphQL document before any part of it runs.
//! In: a parsed document, the operation's name. Out: the numbers of its mutations and aliases.

use std::collections::HashSet;

use async_graphql::Positioned;
use async_graphql::parser::types::{ExecutableDocument, OperationDefinition, OperationType, Selection, SelectionSet};

use super::text::no_code;

/// The counts of a document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Mutations of the operation to run, in whichever form. `@skip` and `@include` are ignored.
    pub(super) mutations: usize,
    /// Aliases, wherever they are.
    pub(super) aliases: usize,
    /// True if it asks about the schema and nothing else.
    pub(super) about_itself: bool,
}

/// Counts a document, with each fragment counted once for each time that it is spread at the top.
pub(super) fn count(document: &ExecutableDocument, name: Option<&str>) -> Counted {
    let operations = || document.operations.iter().map(|(_, operation)| &operation.node);
    let fragments = || document.fragments.values().map(|fragment| &fragment.node.selection_set.node);
    let aliases = operations().map(|operation| aliases(&operation.selection_set.node)).sum::<usize>()
        + fragments().map(aliases).sum::<usize>();
    let Some(operation) = chosen(document, name) else { return Counted { aliases, ..Counted::default() } };
    let mut fields = Vec::new();
    top(document, &operation.node.selection_set.node, &mut HashSet::new(), &mut fields);
    let mutations = if operation.node.ty == OperationType::Mutation { fields.len() } else { 0 };
    Counted { mutations, aliases, about_itself: !fields.is_empty() && fields.iter().all(|name| name.starts_with("__")) }
}

/// The operation to run.
pub(super) fn chosen<'a>(
    document: &'a ExecutableDocument,
    name: Option<&str>,
) -> Option<&'a Positioned<OperationDefinition>> {
    let found = document.operations.iter().find(|(known, _)| match (known, name) {
        (Some(known), Some(name)) => known.as_str() == name,
        (_, None) => true,
        (None, Some(_)) => false,
    });
    found.map(|(_, operation)| operation)
}

/// The fields at the top. A fragment that spreads itself is refused later; here it must only come to an end.
fn top<'a>(
    document: &'a ExecutableDocument,
    set: &'a SelectionSet,
    spread: &mut HashSet<&'a str>,
    fields: &mut Vec<&'a str>,
) {
    for item in &set.items {
        match &item.node {
            Selection::Field(field) => fields.push(field.node.name.node.as_str()),
            Selection::InlineFragment(fragment) => top(document, &fragment.node.selection_set.node, spread, fields),
            Selection::FragmentSpread(fragment) => {
                let name = fragment.node.fragment_name.node.as_str();
                let Some(inner) = document.fragments.get(name) else { continue };
                // The second time it counts as one: a document that doubles itself is not followed.
                if spread.insert(name) {
                    top(document, &inner.node.selection_set.node, spread, fields);
                } else {
                    fields.push(name);
                }
            }
        }
    }
}

/// The first member that an object of the document names twice: the parser would take the last of them.
pub(super) fn named_twice(document: &str) -> Option<&str> {
    let (mut at, mut objects): (usize, Vec<Option<HashSet<&str>>>) = (0, Vec::new());
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    while let Some(first) = document[at..].chars().next() {
        let rest = &document[at..];
        at += match first {
            '#' | '"' => no_code(rest),
            // Within the arguments of a field braces hold an object, elsewhere a selection.
            '(' => {
                objects.push(Some(HashSet::new()));
                1
            }
            '{' => {
                let is_object = matches!(objects.last(), Some(Some(_)));
                objects.push(is_object.then(HashSet::new));
                1
            }
            ')' | '}' => {
                objects.pop();
                1
            }
            first if is_name(first) => {
                let length = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                let (name, behind) = rest.split_at(length);
                let is_member = behind.trim_start_matches(|c: char| c.is_whitespace() || c == ',').starts_with(':');
                // A variable is declared with its `$`; its name is not a member.
                let is_variable = document[..at].ends_with('$');
                if let Some(Some(names)) = objects.last_mut()
                    && is_member
                    && !is_variable
                    && !names.insert(name)
                {
                    return Some(name);
                }
                length
            }
            first => first.len_utf8(),
        };
    }
    None
}

fn aliases(set: &SelectionSet) -> usize {
    set.items.iter().map(|item| in_selection(&item.node)).sum()
}

fn in_selection(selection: &Selection) -> usize {
    match selection {
        Selection::Field(field) => usize::from(field.node.alias.is_some()) + aliases(&field.node.selection_set.node),
        Selection::InlineFragment(fragment) => aliases(&fragment.node.selection_set.node),
        Selection::FragmentSpread(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;

    use super::*;

    fn counted(document: &str, name: Option<&str>) -> (usize, usize) {
        let counted = count(&parse_query(document).unwrap(), name);
        (counted.mutations, counted.aliases)
    }

    #[test]
    fn mutations_are_counted_however_they_are_said() {
        assert_eq!(counted("{ a b }", None), (0, 0));
        assert_eq!(counted("mutation { a { x y } }", None), (1, 0));
        assert_eq!(counted("mutation { one: a { x } two: a { x z: y } }", None), (2, 3));
        let named = "mutation A { a } mutation B { ...F ... on Mutation { c } } fragment F on Mutation { a b: a }";
        assert_eq!(counted(named, Some("A")), (1, 1));
        assert_eq!(counted(named, Some("B")), (3, 1));
        assert_eq!(counted(named, Some("C")), (0, 1));
    }

    #[test]
    fn a_member_that_is_named_twice_is_found_wherever_it_stands() {
        for fine in [
            "{ a }",
            "mutation ($a: Int, $b: Int) { x(input: {a: $a, b: {a: 1}, c: [{a: 1}, {a: 2}]}) { a: x a: x } }",
            r#"mutation { x(input: {m: "a: 1 } \" a:", n: """a: "1" \""" { a:1 a:1""", o: 1}) }"#,
            "mutation { x(input: {a: 1}) { a } y(input: {a: 1}) # a: 1, a: 2\n }",
        ] {
            assert_eq!(named_twice(fine), None, "{fine}");
        }
        for twice in [
            "mutation { x(input: {a: 1, a: 2}) }",
            "mutation { x(input: {b: {a: 1 # x\n a : 2}}) }",
            "mutation { x(input: {b: [{c: 1}, {a: \"}\", a: \"é\"}]}) }",
            "mutation { x(a: 1, a: 1) }",
            "mutation ($i: In = {a: 1, a: 2}) { x(input: $i) }",
            "mutation { x(input: {b: \"\\\\\", a: 1, a: 2}) }",
            // Not a block string: it does not end.
            "mutation { x(input: {b: [\"\"\"\"], a: 1, a: 2}) }",
        ] {
            assert_eq!(named_twice(twice), Some("a"), "{twice}");
        }
    }

    #[test]
    fn what_is_only_about_the_schema_is_known() {
        let about = |document: &str| count(&parse_query(document).unwrap(), None).about_itself;
        assert!(about("{ __schema { types { name } } __typename }"));
        assert!(about("{ ...F } fragment F on Query { __typename }"));
        assert!(!about("{ __typename a }") && !about("{ ...F __typename } fragment F on Query { a }"));
    }

    #[test]
    fn fragments_that_spread_themselves_come_to_an_end() {
        let (mutations, _) =
            counted("mutation { ...F } fragment F on Mutation { a ...G } fragment G on Mutation { ...F }", None);
        assert!(mutations >= 1, "{mutations}");
        let (mutations, _) = counted("mutation { ...F ...F } fragment F on Mutation { a }", None);
        assert_eq!(mutations, 2);
    }
}
