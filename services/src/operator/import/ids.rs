//! Ids for lines without one: the same line of the same source always gets the same id.
//! In: lines. Out: UUIDv5 of service, source, line, and the number of its occurrence.

use std::collections::HashMap;

use uuid::Uuid;

/// Derives ids, and counts the occurrences that they depend on (about 30 bytes per distinct line).
#[derive(Debug)]
pub struct Ids {
    namespace: Uuid,
    source: String,
    /// Counts by 8 bytes of the line's hash: two lines that share them get other numbers, but the same ones each time.
    occurrences: HashMap<u64, u32>,
}

impl Ids {
    /// Ids for the lines of `source`, imported for `service`.
    pub fn new(service: &str, source: &str) -> Self {
        let namespace = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("perkey import {service}").as_bytes());
        Self { namespace, source: source.to_owned(), occurrences: HashMap::new() }
    }

    /// Counts an occurrence of `line` and returns its number, from 1.
    pub fn count(&mut self, line: &[u8]) -> u32 {
        let mut short = [0; 8];
        short.copy_from_slice(&blake3::hash(line).as_bytes()[..8]);
        let count = self.occurrences.entry(u64::from_le_bytes(short)).or_default();
        *count = count.saturating_add(1);
        *count
    }

    /// The id of `line`'s occurrence.
    pub fn id(&self, line: &[u8], occurrence: u32) -> Uuid {
        let number = occurrence.to_string();
        let name = [self.source.as_bytes(), line, number.as_bytes()].join(&0);
        Uuid::new_v5(&self.namespace, &name)
    }

    /// Forgets the occurrences: the input is read from its start again.
    pub fn forget(&mut self) {
        self.occurrences.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(service: &str, source: &str, lines: &[&str]) -> Vec<Uuid> {
        let mut ids = Ids::new(service, source);
        let id = |line: &&str| {
            let occurrence = ids.count(line.as_bytes());
            ids.id(line.as_bytes(), occurrence)
        };
        lines.iter().map(id).collect()
    }

    #[test]
    fn a_file_that_grew_keeps_the_ids_of_its_lines() {
        let before = ids("transactions", "f.csv", &["a", "b", "a"]);
        let after = ids("transactions", "f.csv", &["a", "b", "a", "a", "c"]);
        assert_eq!(after[..3], before);
        let mut distinct = after;
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 5, "identical lines are different messages");
    }

    #[test]
    fn service_and_source_are_part_of_an_id() {
        let id = ids("transactions", "f.csv", &["a"]);
        assert_ne!(id, ids("balances", "f.csv", &["a"]));
        assert_ne!(id, ids("transactions", "g.csv", &["a"]));
    }

    #[test]
    fn ids_never_change() {
        // Lines that an older version imported must be recognised by this one.
        let id = ids("transactions", "f.csv", &["a,1,EUR"])[0];
        assert_eq!(id.to_string(), "4607e9fb-9151-5f7b-b7c4-077092682517");
    }
}
