//! A simulated topic, as a broker has it.
//! In: events that sinks published. Out: the first promise about them that was broken.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Violation;
use crate::message::ShardNo;
use crate::store::{self, Commit};
use crate::transport::Outgoing;

/// A broker's end of one sink, and the events that must reach it.
#[derive(Debug, Default)]
pub(in crate::testing) struct Topic {
    /// Every event wanted there: its id and its key.
    emitted: BTreeMap<(ShardNo, u64), (String, String)>,
    /// The last event of each shard, wanted or not.
    last: BTreeMap<ShardNo, u64>,
    /// The events that were written, each counted once.
    written: HashSet<(ShardNo, u64)>,
    /// The last event of each key, by first writes.
    newest: HashMap<(ShardNo, String), u64>,
    /// Dead letters of refused events that no watermark has passed, by id; and all that there ever were.
    graves: HashMap<(ShardNo, String), u32>,
    buried: HashSet<String>,
    watermarks: BTreeMap<ShardNo, u64>,
}

impl Topic {
    /// A commit is durable: its events may come.
    pub(in crate::testing) fn committed(&mut self, commit: &Commit, wanted: impl Fn(&store::EmittedEvent) -> bool) {
        for (seq, event) in (commit.first_seq..).zip(commit.events()) {
            self.last.insert(commit.shard, seq);
            if wanted(event) {
                let (id, key) = (event.message.id().to_owned(), event.message.key().to_owned());
                self.emitted.insert((commit.shard, seq), (id, key));
            }
        }
        let letters = commit.parts.iter().flat_map(|part| &part.dead).filter(|letter| letter.id.is_outgoing());
        for letter in letters {
            let id = letter.message.id().to_owned();
            *self.graves.entry((commit.shard, id.clone())).or_insert(0) += 1;
            self.buried.insert(id);
        }
    }

    /// The broker writes an event.
    pub(in crate::testing) fn write(&mut self, shard: ShardNo, event: &Outgoing) -> Result<(), Violation> {
        let (seq, id) = (event.seq, event.message.id());
        let Some((emitted, key)) = self.emitted.get(&(shard, seq)).filter(|(emitted, _)| emitted == id) else {
            return Err(Violation::PublishedEarly { shard, seq, id: id.to_owned() });
        };
        if !self.written.insert((shard, seq)) || self.buried.contains(emitted) {
            return Ok(());
        }
        let newest = self.newest.entry((shard, key.clone())).or_default();
        if seq <= *newest {
            return Err(Violation::PublishedLate { shard, seq, key: key.clone(), newest: *newest });
        }
        *newest = seq;
        Ok(())
    }

    /// A watermark is stored: all before it must be there, or be dead letters.
    pub(in crate::testing) fn reached(&mut self, shard: ShardNo, watermark: Option<u64>) -> Result<(), Violation> {
        let stored = self.watermarks.entry(shard).or_default();
        let Some(watermark) = watermark else { return Err(Violation::NoWatermark) };
        if watermark < *stored {
            return Err(Violation::WatermarkBack { stored: *stored, watermark });
        }
        if watermark == *stored {
            return Ok(());
        }
        for ((_, seq), (id, _)) in self.emitted.range((shard, *stored + 1)..=(shard, watermark)) {
            if self.written.contains(&(shard, *seq)) {
                continue;
            }
            match self.graves.get_mut(&(shard, id.clone())).filter(|graves| **graves > 0) {
                Some(graves) => *graves -= 1,
                None => return Err(Violation::WatermarkAhead { watermark, seq: *seq }),
            }
        }
        *stored = watermark;
        Ok(())
    }

    /// The first shard whose events are not all there yet.
    pub(in crate::testing) fn unfinished(&self) -> Option<String> {
        let stored = |shard| self.watermarks.get(shard).copied().unwrap_or(0);
        let behind = self.last.iter().find(|(shard, last)| stored(shard) < **last);
        behind.map(|(shard, last)| format!("shard {shard}: a sink stands at {} of {last}", stored(shard)))
    }
}
