//! What a GraphQL document asks for, known before anything of it runs.
//! In: a parsed document, the operation's name. Out: how many mutations it has, and how many aliases.

use std::collections::HashSet;

use async_graphql::parser::types::{ExecutableDocument, OperationType, Selection, SelectionSet};

/// What is counted in a document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Mutations of the operation that is to run, whichever way it says them. `@skip` and `@include` are not looked at.
    pub(super) mutations: usize,
    /// Aliases, wherever they are.
    pub(super) aliases: usize,
    /// It asks about the schema and nothing else.
    pub(super) about_itself: bool,
}

/// Counts, each fragment once for each time that it is spread at the top.
pub(super) fn count(document: &ExecutableDocument, name: Option<&str>) -> Counted {
    let operations = || document.operations.iter().map(|(_, operation)| &operation.node);
    let fragments = || document.fragments.values().map(|fragment| &fragment.node.selection_set.node);
    let aliases = operations().map(|operation| aliases(&operation.selection_set.node)).sum::<usize>()
        + fragments().map(aliases).sum::<usize>();
    let chosen = document.operations.iter().find(|(known, _)| match (known, name) {
        (Some(known), Some(name)) => known.as_str() == name,
        (_, None) => true,
        (None, Some(_)) => false,
    });
    let Some((_, operation)) = chosen else { return Counted { aliases, ..Counted::default() } };
    let mut fields = Vec::new();
    top(document, &operation.node.selection_set.node, &mut HashSet::new(), &mut fields);
    let mutations = if operation.node.ty == OperationType::Mutation { fields.len() } else { 0 };
    Counted { mutations, aliases, about_itself: !fields.is_empty() && fields.iter().all(|name| name.starts_with("__")) }
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
