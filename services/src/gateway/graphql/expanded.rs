//! The size of a document once each fragment stands where it is spread: every check and every run follows them there.
//! In: a parsed document. Out: nothing if it is small, else the excess; the exponential work is not done.

use std::collections::HashMap;

use async_graphql::parser::types::{ExecutableDocument, Selection, SelectionSet};

use super::{NESTING_MAX, SELECTIONS_MAX};
use crate::gateway::problem::Problem;

/// The size of a set of selections with its fragments.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    /// Selections in all.
    selections: usize,
    /// Levels below it.
    depth: usize,
}

/// The knowledge about a fragment.
#[derive(Clone, Copy, Debug)]
enum Known {
    /// It is being looked at.
    Open,
    /// It was looked at, and has this size.
    Seen(Extent),
}

/// Refuses a document in which too much is written or spread; fragments that nothing spreads count, too: they are
/// checked like the others.
pub(super) fn check(document: &ExecutableDocument) -> Result<(), Problem> {
    let mut expansion = Expansion { document, known: HashMap::new() };
    let mut selections = 0_usize;
    for (_, operation) in document.operations.iter() {
        let extent = expansion.extent(&operation.node.selection_set.node, 0)?;
        selections = selections.saturating_add(extent.selections);
    }
    for fragment in document.fragments.keys() {
        selections = selections.saturating_add(expansion.fragment(fragment, 0)?.selections);
    }
    if selections <= SELECTIONS_MAX {
        return Ok(());
    }
    let detail = format!(
        "the document has more than {SELECTIONS_MAX} fields with each fragment where it is spread: ask for less at once"
    );
    Err(Problem::at("/query", detail))
}

struct Expansion<'a> {
    document: &'a ExecutableDocument,
    /// The fragments, each of which is looked at once.
    known: HashMap<&'a str, Known>,
}

impl<'a> Expansion<'a> {
    /// The size of a set that stands `above` levels deep.
    fn extent(&mut self, set: &'a SelectionSet, above: usize) -> Result<Extent, Problem> {
        let mut extent = Extent::default();
        for item in &set.items {
            let inner = match &item.node {
                Selection::Field(field) => self.below(&field.node.selection_set.node, above)?,
                Selection::InlineFragment(fragment) => self.below(&fragment.node.selection_set.node, above)?,
                Selection::FragmentSpread(spread) => self.fragment(&spread.node.fragment_name.node, above)?,
            };
            extent.selections = extent.selections.saturating_add(inner.selections).saturating_add(1);
            extent.depth = extent.depth.max(inner.depth);
        }
        Ok(extent)
    }

    fn below(&mut self, set: &'a SelectionSet, above: usize) -> Result<Extent, Problem> {
        if set.items.is_empty() {
            return Ok(Extent::default());
        }
        deep(above + 1)?;
        let extent = self.extent(set, above + 1)?;
        Ok(Extent { depth: extent.depth + 1, ..extent })
    }

    fn fragment(&mut self, name: &'a str, above: usize) -> Result<Extent, Problem> {
        // The schema reports a fragment that does not exist.
        let Some(fragment) = self.document.fragments.get(name) else { return Ok(Extent::default()) };
        let extent = match self.known.insert(name, Known::Open) {
            None => self.below(&fragment.node.selection_set.node, above)?,
            Some(Known::Seen(extent)) => {
                deep(above + extent.depth)?;
                extent
            }
            Some(Known::Open) => return Err(Problem::at("/query", format!("the fragment {name:?} spreads itself"))),
        };
        self.known.insert(name, Known::Seen(extent));
        Ok(extent)
    }
}

fn deep(depth: usize) -> Result<(), Problem> {
    if depth <= NESTING_MAX {
        return Ok(());
    }
    Err(Problem::at("/query", format!("the document's fragments are nested deeper than {NESTING_MAX}")))
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;

    use super::*;

    fn checked(document: &str) -> Result<(), String> {
        check(&parse_query(document).unwrap()).map_err(|problem| problem.detail)
    }

    /// A chain of fragments, each of which spreads the next one `times` times; the last one asks.
    fn chain(levels: usize, times: usize) -> String {
        let spread = |next: usize| format!("...F{next} ").repeat(times);
        let links: String = (0..levels).map(|at| format!("fragment F{at} on Query {{ {}}} ", spread(at + 1))).collect();
        format!("{{ ...F0 }} {links} fragment F{levels} on Query {{ account(account: \"a\") {{ n }} }}")
    }

    #[test]
    fn what_fragments_make_of_a_document_is_bounded_and_not_followed() {
        assert_eq!(checked(&chain(5, 2)), Ok(()));
        for (document, words) in [
            (chain(12, 2), "more than 2000 fields"),
            (chain(22, 2), "more than 2000 fields"),
            // 3^29: it would overflow 32 bits.
            (chain(29, 3), "more than 2000 fields"),
            (chain(29, 100), "more than 2000 fields"),
            (chain(32, 1), "nested deeper than 32"),
            (chain(600, 1), "nested deeper than 32"),
            (format!("{{ a }} {}", chain(600, 1).split_once('}').unwrap().1), "nested deeper than 32"),
            (format!("{{ {} }}", "a ".repeat(2_001)), "more than 2000 fields"),
            ("{ ...A } fragment A on Query { ...A }".to_owned(), "\"A\" spreads itself"),
            ("{ ...A } fragment A on Query { x { ... { ...B } } } fragment B on Query { ...A }".to_owned(), "itself"),
            ("{ a } fragment A on Query { b { ...A ...A } }".to_owned(), "\"A\" spreads itself"),
        ] {
            let refused = checked(&document).unwrap_err();
            assert!(refused.contains(words), "{refused}: {document:.80}");
        }
    }

    #[test]
    fn one_fragment_may_stand_in_many_places_and_one_that_is_not_there_is_the_schemas_to_tell() {
        let spreads: String = (0..200).map(|at| format!("a{at}: account(account: \"{at}\") {{ ...A }} ")).collect();
        assert_eq!(checked(&format!("{{ {spreads} }} fragment A on Account {{ n balance currency }}")), Ok(()));
        assert_eq!(checked("{ ...Nobody }"), Ok(()));
        // A fragment that was first seen high up is looked at again where it stands deep.
        let deep =
            format!("{{ ...A {}...A{} }} fragment A on Query {{ b {{ c }} }}", "x { ".repeat(31), " }".repeat(31));
        assert!(checked(&deep).unwrap_err().contains("nested deeper"));
    }
}
