//! Reads of a shard from the store in memory.
//! In: a shard and bounds. Out: the rows that a database would give, in the same order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{MemoryShard, MemoryTables};
use crate::clock::Millis;
use crate::handler::CRON;
use crate::message::{Position, Positions, ShardNo, Stretch, TakenId};
use crate::store::append::WEIGHT_BYTES;
use crate::store::query::{DeadFilter, Pause};
use crate::store::{
    CommitIds, DeadLetter, DeadPlace, Due, DueTimers, Epoch, InboxRows, KeyRow, Letters, OfService, OldLetter,
    OldLetters, PendingRow, RowSpan, Runnable, ServiceKey, StoreError, StoredLogRow, TakenShard, Timer, Trim,
};

impl MemoryTables {
    pub(super) fn take(&mut self, shard: ShardNo, owner: &str) -> Result<TakenShard, StoreError> {
        let row = self.shards.get_mut(shard as usize);
        let row = row.ok_or_else(|| StoreError::Corrupt(format!("there is no shard {shard}")))?;
        row.epoch += 1;
        let died = row.owner.as_deref().is_some_and(|before| before != owner);
        row.unclean += u32::from(died);
        row.owner = Some(owner.to_owned());
        Ok(TakenShard { died, ..taken(shard, row) })
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
        found.pending = self.pending_of(shard).count() as u64;
        found.paused = self.pauses().into_iter().map(|pause| pause.scope).collect();
        found
    }

    pub(super) fn pauses(&self) -> Vec<Pause> {
        self.pauses.values().cloned().collect()
    }

    pub(super) fn load(&self, shard: ShardNo, key: &ServiceKey) -> KeyRow {
        let seqs: Vec<u64> = self.pending_of(shard).filter(|row| is_of(row, key)).map(|row| row.seq).collect();
        let ends = seqs.first().zip(seqs.last());
        KeyRow {
            state: self.states.get(&(Arc::clone(&key.service), Arc::clone(&key.key))).cloned(),
            held: self
                .dead_of(shard)
                .any(|letter| letter.holds_key && letter.service == key.service && letter.key == key.key),
            dead: self.dead_of(shard).any(|letter| letter.key == key.key),
            pending: ends.map(|(first, last)| RowSpan { first: *first, last: *last, count: seqs.len() as u64 }),
        }
    }

    pub(super) fn due(&self, shard: ShardNo, now: Millis, runnable: &Runnable, limit: usize) -> Due {
        let waiting = self.pending_of(shard).filter_map(|row| Some(((row.due_at?, row.seq), key_of(row))));
        let waiting: BTreeMap<(Millis, u64), ServiceKey> = waiting.filter(|(_, of)| runnable.has(of)).collect();
        Due::of(waiting.into_iter().map(|((due_at, _), of)| (due_at, of)), now, limit)
    }

    pub(super) fn orphans(
        &self,
        shard: ShardNo,
        runnable: &Runnable,
        after: Option<&ServiceKey>,
        limit: usize,
    ) -> Vec<ServiceKey> {
        let scheduled: BTreeSet<ServiceKey> =
            self.pending_of(shard).filter(|row| row.due_at.is_some()).map(key_of).collect();
        let all: BTreeSet<ServiceKey> = self.pending_of(shard).map(key_of).collect();
        let orphans = all.into_iter().filter(|key| runnable.has(key));
        let orphans = orphans.filter(|key| !scheduled.contains(key) && after.is_none_or(|after| key > after));
        orphans.take(limit).collect()
    }

    pub(super) fn page(&self, shard: ShardNo, key: &ServiceKey, after: u64, limit: usize) -> Vec<PendingRow> {
        let rows = self.pending_of(shard).filter(|row| is_of(row, key) && row.seq > after);
        rows.take(limit).cloned().collect()
    }

    pub(super) fn schedules(&self, shard: ShardNo) -> Vec<Timer> {
        let here = self.timers.values().filter(|(of, timer)| *of == shard && timer.name.starts_with(CRON));
        here.map(|(_, timer)| timer.clone()).collect()
    }

    pub(super) fn due_timers(&self, shard: ShardNo, now: Millis, runnable: &Runnable, limit: usize) -> DueTimers {
        let mine = self.timers.values().filter(|(of, timer)| *of == shard && runnable.has(&timer.of));
        let mine = mine.map(|(_, timer)| timer);
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

    pub(super) fn known(&self, shard: ShardNo, asked: &[(TakenId, String)]) -> Vec<bool> {
        let rows: BTreeSet<TakenId> = self.pending_of(shard).map(|row| row.id).collect();
        let letters: BTreeSet<TakenId> = self.dead_of(shard).map(|letter| letter.id).collect();
        asked.iter().map(|(id, _)| rows.contains(id) || letters.contains(id)).collect()
    }

    pub(super) fn letters(&self, shard: ShardNo) -> Letters {
        let each = self.dead_of(shard).map(|letter| Letters::one(&letter.id, letter.holds_key));
        each.fold(Letters::default(), Letters::plus)
    }

    pub(super) fn old(&self, shard: ShardNo, after: u64, before: Millis) -> OldLetters {
        let page = self.dead.range((shard, after + 1)..=(shard, u64::MAX)).map(|(_, letter)| letter);
        let page: Vec<&DeadLetter> = page.take(100).collect();
        let old = page.iter().filter(|letter| letter.at < before && !letter.holds_key);
        let letters = old.map(|letter| OldLetter {
            seq: letter.seq,
            service: letter.service.clone(),
            key: letter.key.clone(),
            id: letter.id,
            message_id: letter.message.id().to_owned(),
        });
        OldLetters { letters: letters.collect(), last: page.last().map(|letter| letter.seq) }
    }

    pub(super) fn of_service(&self, shard: ShardNo, service: &str, limit: usize) -> OfService {
        let mut pending: Vec<&PendingRow> = self.pending_of(shard).filter(|row| *row.service == *service).collect();
        pending.sort_by(|a, b| (&a.key, a.seq).cmp(&(&b.key, b.seq)));
        let timers = self.timers.values().filter(|(of, timer)| *of == shard && *timer.of.service == *service);
        OfService {
            pending: pending.into_iter().take(limit).cloned().collect(),
            timers: timers.take(limit).map(|(_, timer)| timer.clone()).collect(),
        }
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
                messages += (*count as usize).max(row.len() / WEIGHT_BYTES);
                found.push(StoredLogRow { origin: Arc::clone(origin), no: *no, messages: row.clone() });
            }
        }
        found
    }

    pub(super) fn trim(&mut self, shard: ShardNo, trim: &Trim) {
        self.log.retain(|(target, origin, no), (count, _)| {
            let whole = |read: &Stretch| *no >= read.rows().0 && passed(Some(read.to), *no, *count);
            *target != shard || !trim.log.get(origin).is_some_and(|read| read.iter().any(whole))
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

/// True if all messages of a row lie at or before `position`.
pub(super) fn passed(position: Option<Position>, no: u64, count: u32) -> bool {
    position.is_some_and(|position| {
        no < position.no || (no == position.no && u64::from(count) <= u64::from(position.index) + 1)
    })
}

fn taken(shard: ShardNo, row: &MemoryShard) -> TakenShard {
    TakenShard {
        shard,
        epoch: row.epoch,
        commit_no: row.commit_no,
        outbox_seq: row.outbox_seq,
        last_seq: row.last_seq,
        unclean: row.unclean,
        died: false,
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
