//! What a GraphQL document asks for, known before anything of it runs.
//! In: a parsed document, the operation's name. Out: how many mutations it has, and how many aliases.

use std::collections::HashSet;

use async_graphql::parser::types::{ExecutableDocument, OperationDefinition, OperationType, Selection, SelectionSet};

/// What is counted in a document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Mutations of the operation that is to run, whichever way it says them. `@skip` and `@include` are not looked at.
    pub(super) mutations: usize,
    /// Aliases, wherever they are.
    pub(super) aliases: usize,
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
    let mutations = chosen.map_or(0, |(_, operation)| mutations(document, &operation.node));
    Counted { mutations, aliases }
}

fn mutations(document: &ExecutableDocument, operation: &OperationDefinition) -> usize {
    match operation.ty {
        OperationType::Mutation => top(document, &operation.selection_set.node, &mut HashSet::new()),
        OperationType::Query | OperationType::Subscription => 0,
    }
}

/// The fields at the top. A fragment that spreads itself is refused later; here it must only come to an end.
fn top<'a>(document: &'a ExecutableDocument, set: &'a SelectionSet, within: &mut HashSet<&'a str>) -> usize {
    let count = |selection: &'a Selection, within: &mut HashSet<&'a str>| match selection {
        Selection::Field(_) => 1,
        Selection::InlineFragment(fragment) => top(document, &fragment.node.selection_set.node, within),
        Selection::FragmentSpread(spread) => {
            let name = spread.node.fragment_name.node.as_str();
            let Some(fragment) = document.fragments.get(name) else { return 0 };
            // Two spreads are two at most to whoever counts: a document that doubles itself is not followed.
            if within.insert(name) { top(document, &fragment.node.selection_set.node, within) } else { 1 }
        }
    };
    set.items.iter().map(|item| count(&item.node, within)).sum()
}

fn aliases(set: &SelectionSet) -> usize {
    set.items.iter().map(|item| in_selection(&item.node)).sum()
}

fn in_selection(selection: &Selection) -> usize {
    match selection {
        Selection::Field(field) => {
            usize::from(field.node.alias.is_some()) + aliases(&field.node.selection_set.node)
        }
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
    fn fragments_that_spread_themselves_come_to_an_end() {
        let (mutations, _) = counted("mutation { ...F } fragment F on Mutation { a ...G } fragment G on Mutation { ...F }", None);
        assert!(mutations >= 1, "{mutations}");
        let (mutations, _) = counted("mutation { ...F ...F } fragment F on Mutation { a }", None);
        assert_eq!(mutations, 2);
    }
}
