//! The check of the stretches that commits declare done above positions: all of them must be.
//! In: commits. Out: the first false declaration.

use super::{Checker, SOURCES, Violation};
use crate::message::SourceIx;
use crate::store::Commit;

impl Checker {
    /// Checks the stretches above the positions of its sources that a commit declares done.
    pub(super) fn above(&mut self, commit: &Commit) -> Result<(), Violation> {
        self.stats.ahead += u64::from(!commit.ahead.is_empty());
        for (source, origins) in &commit.ahead {
            let Some(at) = SOURCES.iter().position(|name| **name == **source) else { continue };
            for (origin, stretches) in origins {
                let place = (commit.shard, SourceIx::nth(at), origin.clone());
                let Some(track) = self.tracks.get(&place) else { continue };
                // For a stretch of some services the ids that it means are not known.
                for stretch in stretches.iter().filter(|stretch| stretch.services.is_empty()) {
                    let first = track.entries.partition_point(|(at, _)| at.place() < stretch.from.place());
                    let said = track.entries[first..].iter().take_while(|(at, _)| at.place() <= stretch.to.place());
                    let mut ids = said.flat_map(|(_, ids)| ids);
                    if let Some(id) = ids.find(|id| !self.taken.contains(*id) && !self.onward.contains(*id)) {
                        let name = self.name(id);
                        return Err(Violation::AheadNotTaken {
                            source_name: source.clone(),
                            origin: origin.clone(),
                            name,
                        });
                    }
                }
            }
        }
        Ok(())
    }
}
