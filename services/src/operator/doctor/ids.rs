//! Checks that ids tell messages apart.
//! In: facts. Out: findings.

use super::facts::Facts;
use super::{Finding, or_ok, warning};

/// All checks of this file.
pub(super) fn checks(facts: &Facts) -> Vec<Finding> {
    let Ok(store) = &facts.store else { return Vec::new() };
    let count = |name: &str| -> u64 { store.rows.iter().filter_map(|row| row.counters.get(name)).sum() };
    let (mixed, duplicates) = (count("two_senders"), count("duplicates"));
    let mut found = Vec::new();
    if mixed > 0 {
        found.push(warning(
            "ids",
            format!(
                "{mixed} messages came under a key that another CloudEvents source sends to as well, with ids that are no UUIDs; \
                 {duplicates} messages were dropped as repeats"
            ),
            "where two sources may give the same id to two messages, set id = \"source\" in their [[bind]]: else the second \
             one is a dead letter, or dropped as a repeat where both say the same. UUIDs are unique without it",
        ));
    }
    let conflicts = count("conflicts");
    if conflicts > 0 {
        found.push(warning(
            "ids",
            format!("{conflicts} messages came with an id that was taken before with other content: each became a dead letter"),
            "look at them (dlq:peek): who sends another message gives it another id, who sends one again sends the same bytes. \
             dlq:edit gives one an id of its own",
        ));
    }
    or_ok("ids", found, "no key gets ids from two sources that could be the same, and none came with other content")
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::super::facts::tests::found;
    use super::*;

    #[test]
    fn ids_that_came_with_other_content_are_told_of() {
        let found = found(checks, |_, store| {
            store.rows[0].counters.insert("conflicts".to_owned(), 2);
        });
        assert_eq!(found, [("ids", Level::Warning)]);
    }

    #[test]
    fn a_key_whose_ids_come_from_two_sources_is_told_of() {
        let with = |mixed| {
            found(checks, |_, store| {
                store.rows[0].counters.insert("two_senders".to_owned(), mixed);
            })
        };
        assert_eq!((with(0), with(1)), (vec![], vec![("ids", Level::Warning)]));
    }
}
