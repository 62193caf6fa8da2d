//! A change of the number of shards of a store that nobody runs. The decisions are pure; [`on`] has the statements.
//! In: the shards as they are. Out: the same commits, waiting messages and positions under other shards, or the
//! obstacles.
//!
//! These must not change: the ids taken (each goes to the shard that its key now has, in the order of time), the order
//! of a key's waiting messages, the position of each source and the stretches done above it. Numbers only rise: commits
//! and events are numbered on from the highest of all shards, so that no lane of the embedded log and no sink meets a
//! number twice.

pub(super) mod on;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::lease::Code;
use super::{Counters, Letters, SourceAhead, SourcePositions, StoreError, Watermarks, layout};
use crate::clock::Millis;
use crate::message::{Message, Positions, ShardNo, Taken, TakenId, murmur2, shard_of, united};
use crate::store::append::INTAKE;
use crate::store::layout::log;

/// The number of rows moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Resharded {
    /// Shards before.
    pub from: u32,
    /// Shards now.
    pub to: u32,
    /// Commits whose ids and events were moved.
    pub commits: u64,
    /// Waiting messages.
    pub pending: u64,
    /// Dead letters.
    pub dead_letters: u64,
}

/// The error of a store that keeps its number of shards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReshardError {
    /// Something cannot be moved. Nothing was changed.
    #[error("the number of shards stays as it is: {}", .0.join("; "))]
    Refused(Vec<String>),
    /// The store failed. Nothing was changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A shard as it is.
#[derive(Clone, Debug, Default)]
struct Old {
    shard: ShardNo,
    owner: Option<String>,
    epoch: u64,
    commit_no: u64,
    outbox_seq: u64,
    code: Code,
    positions: SourcePositions,
    ahead: SourceAhead,
    watermarks: Watermarks,
    counters: Counters,
}

/// A shard as it will be.
#[derive(Clone, Debug, PartialEq)]
struct New {
    shard: ShardNo,
    epoch: u64,
    commit_no: u64,
    outbox_seq: u64,
    last_seq: u64,
    code: Code,
    positions: SourcePositions,
    ahead: SourceAhead,
    watermarks: Watermarks,
    counters: Counters,
}

/// A commit's row, before or after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ReshardRow {
    shard: ShardNo,
    no: u64,
    epoch: u64,
    at: Millis,
    first_seq: u64,
    ids: Vec<u8>,
    prints: Vec<u8>,
    events: Bytes,
}

/// Other findings in the store.
#[derive(Clone, Debug, Default)]
struct Found {
    alive: Vec<String>,
    unread: u64,
    intake: u64,
    open_commands: u64,
}

/// The obstacles, each with what to do about it.
fn obstacles(old: &[Old], found: &Found, sinks: &[String], to: u32) -> Vec<String> {
    let mut obstacles = Vec::new();
    if old.len() == to as usize {
        obstacles.push(format!("the store has {to} shards already"));
    }
    if !(1..=256).contains(&to) {
        obstacles.push("a store has 1 to 256 shards".to_owned());
    }
    if !found.alive.is_empty() {
        obstacles
            .push(format!("{} run it: stop them (SIGTERM), and wait until they have left", found.alive.join(", ")));
    }
    if let Some((shard, owner)) = old.iter().find_map(|row| Some((row.shard, row.owner.as_ref()?))) {
        obstacles.push(format!(
            "shard {shard} was not given up by {owner}: run the store once more and let it drain (SIGTERM)"
        ));
    }
    if found.unread > 0 {
        let unread = found.unread;
        obstacles.push(format!("{unread} messages of the embedded log are not read: run the store until they are"));
    }
    if found.intake > 0 {
        obstacles.push(format!("{} messages of the intake are not taken: run the store until they are", found.intake));
    }
    if found.open_commands > 0 {
        let open = found.open_commands;
        obstacles.push(format!("{open} operator commands are not executed: run the store until they are"));
    }
    for row in old {
        let sinks = sinks.iter().map(String::as_str).chain(row.watermarks.keys().map(|sink| &**sink));
        let behind = sinks.filter(|sink| row.watermarks.get(*sink).copied().unwrap_or(0) < row.outbox_seq);
        let behind: std::collections::BTreeSet<&str> = behind.collect();
        for sink in behind {
            obstacles.push(format!(
                "sink {sink} has not confirmed all events of shard {}: run the store until it has, or give the sink up",
                row.shard
            ));
        }
    }
    obstacles
}

/// A new shard's share of a commit.
#[derive(Default)]
struct Dealt {
    ids: Vec<u8>,
    prints: Vec<u8>,
    events: Vec<u8>,
    count: u64,
}

/// The plan by which rows are dealt out to the new shards.
#[derive(Clone, Debug)]
struct Plan {
    to: u32,
    /// Each new shard's last number of a commit, of an event and of a waiting row.
    last: Vec<(u64, u64, u64)>,
}

impl Plan {
    fn new(old: &[Old], to: u32) -> Self {
        let commit_no = old.iter().map(|row| row.commit_no).max().unwrap_or(0);
        let outbox_seq = old.iter().map(|row| row.outbox_seq).max().unwrap_or(0);
        Self { to, last: vec![(commit_no, outbox_seq, 0); to as usize] }
    }

    /// The shard of an id: its key's. An id without a key goes to the shard that the one that took it becomes.
    fn shard_of_id(&self, id: &TakenId, from: ShardNo) -> ShardNo {
        let mut raw = [0; 4];
        raw.copy_from_slice(&id.0[16..20]);
        let hash = u32::from_le_bytes(raw);
        if hash == murmur2(b"") { from % self.to } else { (hash & 0x7fff_ffff) % self.to }
    }

    /// Deals a commit's ids and events out; the commits of all shards are to come in the order of time.
    fn deal(&mut self, row: &ReshardRow) -> Result<Vec<ReshardRow>, StoreError> {
        let mut dealt: BTreeMap<ShardNo, Dealt> = BTreeMap::new();
        for Taken { id, print } in layout::taken(&row.ids, &row.prints)? {
            let dealt = dealt.entry(self.shard_of_id(&id, row.shard)).or_default();
            dealt.ids.extend_from_slice(&id.0);
            // A row without prints becomes rows without.
            if !row.prints.is_empty() {
                dealt.prints.extend_from_slice(&print.0);
            }
        }
        for event in layout::raw_events(row.events.clone()) {
            let raw = event.ok_or_else(|| {
                StoreError::Corrupt(format!("events of commit {} of shard {} are cut short", row.no, row.shard))
            })?;
            let message = Message::from_frame(raw.slice(layout::EVENT_HEAD..));
            let message = message.map_err(|error| StoreError::Corrupt(error.to_string()))?;
            let dealt = dealt.entry(shard_of(message.key(), self.to)).or_default();
            dealt.events.extend_from_slice(&raw);
            dealt.count += 1;
        }
        let mut rows = Vec::with_capacity(dealt.len());
        for (shard, Dealt { ids, prints, events, count }) in dealt {
            let (commit_no, outbox_seq, _) = &mut self.last[shard as usize];
            *commit_no += 1;
            let first_seq = *outbox_seq + 1;
            *outbox_seq += count;
            let events = Bytes::from(events);
            rows.push(ReshardRow {
                shard,
                no: *commit_no,
                epoch: row.epoch,
                at: row.at,
                first_seq,
                ids,
                prints,
                events,
            });
        }
        Ok(rows)
    }

    /// The place of a waiting row or dead letter; those of all shards are to come in the order of their numbers.
    fn place(&mut self, id: &TakenId, from: ShardNo) -> (ShardNo, u64) {
        let shard = self.shard_of_id(id, from);
        let (_, _, seq) = &mut self.last[shard as usize];
        *seq += 1;
        (shard, *seq)
    }

    /// The shards as they will be.
    fn shards(&self, old: &[Old]) -> Vec<New> {
        let positions = positions(old);
        let ahead = ahead(old, &positions);
        let sinks: std::collections::BTreeSet<&Arc<str>> = old.iter().flat_map(|row| row.watermarks.keys()).collect();
        let mut totals = Counters::new();
        for (name, count) in old.iter().flat_map(|row| &row.counters) {
            *totals.entry(name.clone()).or_default() += count;
        }
        // Each shard counts what it is dealt.
        Letters::forget(&mut totals);
        let shard = |(shard, (commit_no, outbox_seq, last_seq)): (ShardNo, &(u64, u64, u64))| New {
            shard,
            // A process that still believes it owns a shard of this number is fenced off.
            epoch: old.iter().map(|row| row.epoch).max().unwrap_or(0) + 1,
            commit_no: *commit_no,
            outbox_seq: *outbox_seq,
            last_seq: *last_seq,
            code: Code::all(old.iter().map(|row| &row.code)),
            positions: positions.clone(),
            ahead: ahead.clone(),
            watermarks: sinks.iter().map(|sink| (Arc::clone(sink), *outbox_seq)).collect(),
            counters: if shard == 0 { totals.clone() } else { Counters::new() },
        };
        (0..).zip(&self.last).map(shard).collect()
    }
}

/// The positions of the sources, for every new shard: an origin was read by one shard, whose position is the furthest,
/// and any shard that reads it from now on finds that. The embedded log is read to its end and begins anew.
fn positions(old: &[Old]) -> SourcePositions {
    let mut merged = SourcePositions::new();
    for (source, origins) in old.iter().flat_map(|row| &row.positions) {
        let of: &mut Positions = merged.entry(Arc::clone(source)).or_default();
        for (origin, position) in origins.iter().filter(|_| &**source != log::NAME) {
            let known = of.entry(Arc::clone(origin)).or_insert(*position);
            if position.place() > known.place() {
                *known = *position;
            }
        }
    }
    merged
}

/// The stretches done above the positions, for every new shard. Several shards may know of an origin whose reader has
/// changed: what any of them did is done. The log and the intake are empty, and begin with other places.
fn ahead(old: &[Old], positions: &SourcePositions) -> SourceAhead {
    let mut known = SourceAhead::new();
    let sources = old.iter().flat_map(|row| &row.ahead);
    for (source, origins) in sources.filter(|(source, _)| ![log::NAME, INTAKE].contains(&&***source)) {
        let of = known.entry(Arc::clone(source)).or_default();
        for (origin, stretches) in origins {
            of.entry(Arc::clone(origin)).or_default().extend(stretches.iter().cloned());
        }
    }
    for (source, origins) in &mut known {
        let positions = positions.get(source);
        for (origin, stretches) in &mut *origins {
            let position = positions.and_then(|positions| positions.get(origin)).copied();
            *stretches = united(std::mem::take(stretches), position);
        }
        origins.retain(|_, stretches| !stretches.is_empty());
    }
    known.retain(|_, origins| !origins.is_empty());
    known
}

/// Commits in the order of time: shard, number and time of each. Within a shard the time never goes back.
fn in_time(mut commits: Vec<(ShardNo, u64, Millis)>) -> Vec<(ShardNo, u64, Millis)> {
    commits.sort_by_key(|(shard, no, _)| (*shard, *no));
    let mut latest: BTreeMap<ShardNo, Millis> = BTreeMap::new();
    for (shard, _, at) in &mut commits {
        let latest = latest.entry(*shard).or_default();
        *latest = (*latest).max(*at);
        *at = *latest;
    }
    commits.sort_by_key(|(shard, no, at)| (*at, *shard, *no));
    commits
}

#[cfg(test)]
mod tests;
