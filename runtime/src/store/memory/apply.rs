//! Writing a commit in memory: the fence first, then all of it or nothing.
//! In: a commit. Out: its outcome, and the store as it is afterwards.

use serde_json::Value;

use super::{MemoryTables, Written};
use crate::handler::{Column, ColumnKind, RowWrite, Table};
use crate::message::ShardNo;
use crate::store::{Commit, CommitOutcome, Part, ServiceKey, Timer};

impl MemoryTables {
    pub(super) fn apply(&mut self, commit: &Commit) -> CommitOutcome {
        let Some(shard) = self.shards.get(commit.shard as usize) else { return CommitOutcome::Fenced };
        let fenced = shard.epoch != commit.epoch || shard.commit_no + 1 != commit.no;
        if fenced && !self.ignores_fence() {
            if self.leaks_parts() {
                commit.parts.iter().for_each(|part| self.write_waiting(commit.shard, part));
            }
            return CommitOutcome::Fenced;
        }
        if let Some((permanent, error)) = self.refused(commit) {
            return CommitOutcome::Refused { permanent, error };
        }
        self.write_shard(commit);
        for part in &commit.parts {
            self.write_waiting(commit.shard, part);
            self.write_part(commit.shard, part);
        }
        self.intake.extend(commit.intake.iter().map(|no| (commit.shard, *no)));
        let origin = commit.shard.to_string();
        for row in &commit.log {
            let place = (row.target, origin.as_str().into(), commit.no);
            self.log.insert(place, (row.count, row.messages.clone()));
        }
        let written = Written {
            shard: commit.shard,
            no: commit.no,
            epoch: commit.epoch,
            at: commit.at,
            first_seq: commit.first_seq,
            ids: commit.taken().copied().collect(),
            events: commit.events().cloned().collect(),
        };
        if !written.ids.is_empty() || !written.events.is_empty() {
            self.commits.insert((commit.shard, commit.no), self.journal.len());
        }
        self.journal.push(written);
        CommitOutcome::Committed
    }

    /// The reason for which this data cannot be written, and whether that is permanent.
    fn refused(&self, commit: &Commit) -> Option<(bool, String)> {
        commit.parts.iter().flat_map(|part| &part.rows).find_map(|row| {
            let hooked = self.refuse.as_ref().and_then(|refuse| refuse(row));
            hooked.or_else(|| self.misfit(row).map(|error| (false, error)))
        })
    }

    fn misfit(&self, write: &RowWrite) -> Option<String> {
        let Some((table, _)) = self.tables.get(write.table.name) else {
            return Some(format!("no such table: {}", write.table.name));
        };
        let row = write.row.as_ref()?;
        match serde_json::from_str::<Value>(row) {
            Ok(row) => table.columns.iter().find_map(|column| misfit(table, column, row.get(column.name))),
            Err(error) => Some(format!("a row of table {} is not JSON: {error}", table.name)),
        }
    }

    fn write_shard(&mut self, commit: &Commit) {
        let Some(shard) = self.shards.get_mut(commit.shard as usize) else { return };
        let events = commit.events().count() as u64;
        shard.commit_no = commit.no;
        if events > 0 {
            shard.outbox_seq = commit.first_seq + events - 1;
        }
        let waiting = commit.parts.iter().flat_map(|part| &part.pending).map(|row| row.seq);
        let dead = commit.parts.iter().flat_map(|part| &part.dead).map(|letter| letter.seq);
        shard.last_seq = waiting.chain(dead).fold(shard.last_seq, u64::max);
        shard.positions = commit.positions.clone();
        shard.ahead.clone_from(&commit.ahead);
        shard.watermarks = commit.watermarks.clone();
        shard.counters = commit.counters.clone();
        if commit.release {
            shard.owner = None;
        }
        if commit.clean {
            shard.unclean = 0;
        }
    }

    fn write_waiting(&mut self, shard: ShardNo, part: &Part) {
        for row in &part.pending {
            self.pending.insert((shard, row.seq), row.clone());
        }
        for seq in &part.settled {
            self.pending.remove(&(shard, *seq));
        }
        for letter in &part.dead {
            self.dead.insert((shard, letter.seq), letter.clone());
        }
        for seq in &part.undead {
            self.dead.remove(&(shard, *seq));
        }
        self.history.extend(part.history.iter().map(|line| (shard, line.clone())));
    }

    fn write_part(&mut self, shard: ShardNo, part: &Part) {
        if let Some(write) = &part.state {
            let key = (write.service.clone(), write.key.clone());
            match &write.state {
                Some(state) => self.states.insert(key, state.clone()),
                None => self.states.remove(&key),
            };
        }
        for write in &part.timers {
            let (of, name) =
                (ServiceKey { service: write.service.clone(), key: write.key.clone() }, write.name.clone());
            let place = (of.clone(), name.clone());
            match write.set.clone() {
                Some((due_at, message)) => self.timers.insert(place, (shard, Timer { of, name, due_at, message })),
                None => self.timers.remove(&place),
            };
        }
        for write in &part.rows {
            let Some((_, rows)) = self.tables.get_mut(write.table.name) else { continue };
            match write.row.as_ref().and_then(|row| serde_json::from_str(row).ok()) {
                Some(row) => rows.insert(write.key.clone(), row),
                None => rows.remove(&write.key),
            };
        }
        self.write_replies(&part.replies);
        if let Some(result) = &part.command {
            let (affected, done) = self.results.entry((result.command, shard)).or_default();
            *affected += result.affected;
            *done |= result.done;
        }
    }

    #[cfg(feature = "planted-defects")]
    fn ignores_fence(&self) -> bool {
        self.defect == Some(super::StoreDefect::NoFence)
    }

    #[cfg(feature = "planted-defects")]
    fn leaks_parts(&self) -> bool {
        self.defect == Some(super::StoreDefect::PartNotFenced)
    }

    #[cfg(not(feature = "planted-defects"))]
    fn ignores_fence(&self) -> bool {
        false
    }

    #[cfg(not(feature = "planted-defects"))]
    fn leaks_parts(&self) -> bool {
        false
    }
}

fn misfit(table: &Table, column: &Column, value: Option<&Value>) -> Option<String> {
    let value = value.unwrap_or(&Value::Null);
    let fits = match column.kind {
        _ if value.is_null() => column.nullable,
        ColumnKind::Text => value.is_string(),
        ColumnKind::Integer => value.is_i64(),
        ColumnKind::Real => value.is_number(),
        ColumnKind::Boolean => value.is_boolean(),
        ColumnKind::Json => true,
    };
    (!fits).then(|| format!("column {} of table {} cannot be {value}", column.name, table.name))
}
