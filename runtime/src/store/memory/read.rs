//! What a shard reads back from the store in memory.
//! In: a shard and bounds. Out: the rows that a database would give, in the same order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Inner, Shard};
use crate::clock::Millis;
use crate::message::ShardNo;
use crate::store::query::{DeadFilter, NewCommand, Pause};
use crate::store::{
    CommitIds, DeadLetter, DeadPlace, Due, DueTimers, Epoch, InboxRows, KeyRow, PendingRow, RowSpan, ServiceKey,
    StoreError, StoredLogRow, TakenShard, Timer, Trim,
};
use crate::transport::{Position, Positions};

impl Inner {
    pub(super) fn take(&mut self, shard: ShardNo, owner: &str) -> Result<TakenShard, StoreError> {
        let row = self.shards.get_mut(shard as usize);
        let row = row.ok_or_else(|| StoreError::Corrupt(format!("there is no shard {shard}")))?;
        row.epoch += 1;
        row.unclean += u32::from(row.owner.as_deref().is_some_and(|before| before != owner));
        row.owner = Some(owner.to_owned());
        Ok(taken(shard, row))
    }

    pub(super) fn retake(&mut self, shard: ShardNo, epoch: Epoch) -> Result<TakenShard, StoreError> {
        let row = self.shards.get_mut(shard as usize).filter(|row| row.epoch == epoch);
        let row = row.ok_or(StoreError::Fenced(shard))?;
        row.epoch += 1;
        Ok(taken(shard, row))
    }

    pub(super) fn inbox(&self, shard: ShardNo, since: Millis, max: usize) -> InboxRows {
        let mut found = InboxRows::default();
        let mut count = 0;
        for at in self.commits.range((shard, 0)..=(shard, u64::MAX)).rev().map(|(_, at)| *at) {
            let commit = &self.journal[at];
            if count >= max {
                break;
            }
            if commit.at >= since && !commit.ids.is_empty() {
                count += commit.ids.len();
                found.commits.push(CommitIds { no: commit.no, at: commit.at, ids: commit.ids.clone() });
            }
        }
        found.commits.reverse();
        found.pinned.extend(self.pending_of(shard).map(|row| row.id));
        found.pending = found.pinned.len() as u64;
        found.pinned.extend(self.dead_of(shard).map(|letter| letter.id));
        found.paused = self.pauses().into_iter().map(|pause| pause.scope).collect();
        found
    }

    pub(super) fn pauses(&self) -> Vec<Pause> {
        let action = |command: &NewCommand| serde_json::to_string(&command.action).unwrap_or_default();
        let row = |command: &NewCommand| (action(command), command.who.clone(), command.why.clone(), command.at);
        Pause::after(self.commands.iter().map(row))
    }

    pub(super) fn load(&self, shard: ShardNo, key: &ServiceKey) -> KeyRow {
        let seqs: Vec<u64> = self.pending_of(shard).filter(|row| is_of(row, key)).map(|row| row.seq).collect();
        let ends = seqs.first().zip(seqs.last());
        KeyRow {
            state: self.states.get(&(Arc::clone(&key.service), Arc::clone(&key.key))).cloned(),
            held: self
                .dead_of(shard)
                .any(|letter| letter.holds_key && letter.service == key.service && letter.key == key.key),
            pending: ends.map(|(first, last)| RowSpan { first: *first, last: *last, count: seqs.len() as u64 }),
        }
    }

    pub(super) fn due(&self, shard: ShardNo, now: Millis, limit: usize) -> Due {
        let waiting = self.pending_of(shard).filter_map(|row| Some((row.due_at?, row.seq, row)));
        let waiting: BTreeMap<(Millis, u64), &PendingRow> = waiting.map(|(at, seq, row)| ((at, seq), row)).collect();
        let mut due = Due::default();
        for ((due_at, _), row) in waiting {
            if due_at > now || due.keys.len() == limit {
                due.next = Some(due_at);
                break;
            }
            due.keys.push(key_of(row));
        }
        due
    }

    pub(super) fn orphans(&self, shard: ShardNo, after: Option<&ServiceKey>, limit: usize) -> Vec<ServiceKey> {
        let scheduled: BTreeSet<ServiceKey> =
            self.pending_of(shard).filter(|row| row.due_at.is_some()).map(key_of).collect();
        let all: BTreeSet<ServiceKey> = self.pending_of(shard).map(key_of).collect();
        let orphans = all.into_iter().filter(|key| !scheduled.contains(key) && after.is_none_or(|after| key > after));
        orphans.take(limit).collect()
    }

    pub(super) fn page(&self, shard: ShardNo, key: &ServiceKey, after: u64, limit: usize) -> Vec<PendingRow> {
        let rows = self.pending_of(shard).filter(|row| is_of(row, key) && row.seq > after);
        rows.take(limit).cloned().collect()
    }

    pub(super) fn due_timers(&self, shard: ShardNo, now: Millis, limit: usize) -> DueTimers {
        let mine = self.timers.values().filter(|(of, _)| *of == shard).map(|(_, timer)| timer);
        let (mut timers, later): (Vec<&Timer>, Vec<&Timer>) = mine.partition(|timer| timer.due_at <= now);
        let any = !timers.is_empty();
        timers.sort_by_key(|timer| timer.due_at);
        let free = timers.into_iter().filter(|timer| {
            let row = self.load(shard, &timer.of);
            !row.held && row.pending.is_none()
        });
        let timers = free.take(limit).cloned().collect();
        DueTimers { timers, any, next: later.iter().map(|timer| timer.due_at).min() }
    }

    pub(super) fn dead_letters(
        &self,
        shard: ShardNo,
        filter: &DeadFilter,
        after: Option<&DeadPlace>,
        limit: usize,
    ) -> Vec<DeadLetter> {
        let behind = |letter: &DeadLetter| after.is_none_or(|(key, seq)| (&letter.key, letter.seq) > (key, *seq));
        let found = self.dead_of(shard).filter(|letter| filter.matches(letter) && behind(letter));
        let mut letters: Vec<&DeadLetter> = found.collect();
        letters.sort_by(|a, b| (&a.key, a.seq).cmp(&(&b.key, b.seq)));
        letters.into_iter().take(limit).cloned().collect()
    }

    pub(super) fn read_log(&self, target: ShardNo, from: &Positions, limit: usize) -> Vec<StoredLogRow> {
        let all = (target, Arc::from(""), 0)..(target + 1, Arc::from(""), 0);
        let origins: BTreeSet<&Arc<str>> = self.log.range(all).map(|((_, origin, _), _)| origin).collect();
        // Each origin gets its share, so that a busy one does not keep the others waiting.
        let share = (limit / origins.len().max(1)).max(1);
        let mut found = Vec::new();
        for origin in origins {
            let position = from.get(origin).copied();
            let start = position.map_or(0, |position| position.no);
            let mut messages = 0;
            let range = (target, Arc::clone(origin), start)..=(target, Arc::clone(origin), u64::MAX);
            for ((_, _, no), (count, row)) in self.log.range(range) {
                if passed(position, *no, *count) {
                    continue;
                }
                if messages >= share {
                    break;
                }
                messages += *count as usize;
                found.push(StoredLogRow { origin: Arc::clone(origin), no: *no, messages: row.clone() });
            }
        }
        found
    }

    pub(super) fn trim(&mut self, shard: ShardNo, trim: &Trim) {
        self.log.retain(|(target, origin, no), (count, _)| {
            *target != shard || !passed(trim.log.get(origin).copied(), *no, *count)
        });
        self.commits.retain(|(of, no), _| *of != shard || *no >= trim.commits_below);
        self.history.retain(|(of, line)| *of != shard || line.at >= trim.history_before);
    }

    pub(super) fn pending_of(&self, shard: ShardNo) -> impl Iterator<Item = &PendingRow> {
        self.pending.range((shard, 0)..=(shard, u64::MAX)).map(|(_, row)| row)
    }

    pub(super) fn dead_of(&self, shard: ShardNo) -> impl Iterator<Item = &DeadLetter> {
        self.dead.range((shard, 0)..=(shard, u64::MAX)).map(|(_, letter)| letter)
    }
}

/// Whether all messages of a row lie at or before `position`.
pub(super) fn passed(position: Option<Position>, no: u64, count: u32) -> bool {
    position.is_some_and(|position| {
        no < position.no || (no == position.no && u64::from(count) <= u64::from(position.index) + 1)
    })
}

fn taken(shard: ShardNo, row: &Shard) -> TakenShard {
    TakenShard {
        shard,
        epoch: row.epoch,
        commit_no: row.commit_no,
        outbox_seq: row.outbox_seq,
        last_seq: row.last_seq,
        unclean: row.unclean,
        positions: row.positions.clone(),
        ahead: row.ahead.clone(),
        watermarks: row.watermarks.clone(),
        counters: row.counters.clone(),
    }
}

fn key_of(row: &PendingRow) -> ServiceKey {
    ServiceKey { service: Arc::clone(&row.service), key: Arc::clone(&row.key) }
}

fn is_of(row: &PendingRow, key: &ServiceKey) -> bool {
    row.service == key.service && row.key == key.key
}
