//! What commits say is done above positions: all of it must be.
//! In: commits. Out: the first that says what is not so.

use super::{SOURCES, Witness};
use crate::store::Commit;

impl Witness {
    /// A commit says what is done above the positions of its sources.
    pub(super) fn above(&mut self, commit: &Commit) -> Result<(), String> {
        self.stats.ahead += u64::from(!commit.ahead.is_empty());
        for (source, origins) in &commit.ahead {
            let Some(at) = SOURCES.iter().position(|name| **name == **source) else { continue };
            for (origin, stretches) in origins {
                let place = (commit.shard, u16::try_from(at).unwrap_or(0), origin.clone());
                let Some(track) = self.tracks.get(&place) else { continue };
                // Of a part it is not known which of its ids it means.
                for stretch in stretches.iter().filter(|stretch| stretch.services.is_empty()) {
                    let first = track.entries.partition_point(|(at, _)| at.place() < stretch.from.place());
                    let said = track.entries[first..].iter().take_while(|(at, _)| at.place() <= stretch.to.place());
                    let mut ids = said.flat_map(|(_, ids)| ids);
                    if let Some(id) = ids.find(|id| !self.taken.contains(*id) && !self.onward.contains(*id)) {
                        let name = self.name(id);
                        return Err(format!("{source}/{origin}: {name} is said to be done, but is not taken"));
                    }
                }
            }
        }
        Ok(())
    }
}
