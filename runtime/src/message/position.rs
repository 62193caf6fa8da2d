//! Places in the logs of sources. Plain values.
//! In: a record's number, and the message's index within it. Out: places in their order; the position of each origin.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A place in an ordered log: the record's number, then the message's index within the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The record (a log row, a Kafka offset), from 1.
    pub no: u64,
    /// The message within it, from 0.
    pub index: u32,
    /// A fingerprint of the record, if the log might be made anew under the same name; otherwise 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mark: u64,
}

impl Position {
    /// The message `index` of record `no`, of a log that is never made anew.
    pub fn new(no: u64, index: u32) -> Self {
        Self { no, index, mark: 0 }
    }

    /// The place in the log, whatever lies there.
    pub(crate) fn place(&self) -> (u64, u32) {
        (self.no, self.index)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(mark: &u64) -> bool {
    *mark == 0
}

/// For each origin (a log lane, a Kafka partition, a stream), the last position whose predecessors are all taken.
pub type Positions = BTreeMap<Arc<str>, Position>;
