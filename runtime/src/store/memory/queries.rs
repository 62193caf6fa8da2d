//! Queries of operators and tools to the store in memory.
//! In: filters, commands, imports. Out: rows, in the order in which a database would give them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::ready;

use super::read::passed;
use super::{HASH_KEY, MemoryStore, MemoryTables, Written};
use crate::clock::Millis;
use crate::message::{Position, ShardNo, TakenId, digest};
use crate::store::append::CALL_LANES;
use crate::store::commit::stretches;
use crate::store::declared::wrong;
use crate::store::layout::log;
use crate::store::query::{
    CommandState, CommitRow, DeadFilter, EventRow, FoundRows, ImportBatch, ImportProgress, NewCommand, OpenCommand,
    Pause, Queries, RowsAsk, ShardRow, Story, Strange, WaitingKey,
};
use crate::store::{DeadLetter, LogRow, ServiceKey, StoreError, StoreFuture, Timer};

/// The lane of the log that imports write.
const IMPORT: &str = "import";

impl Queries for MemoryStore {
    fn shards(&self) -> StoreFuture<'_, Vec<ShardRow>> {
        Box::pin(ready(Ok(self.inner().shard_rows())))
    }

    fn unread(&self, shards: Vec<ShardNo>) -> StoreFuture<'_, Vec<(ShardNo, u64)>> {
        let rows = self.inner().shard_rows().into_iter().filter(|row| shards.contains(&row.shard));
        Box::pin(ready(Ok(rows.map(|row| (row.shard, row.unread)).collect())))
    }

    fn count_waiting(&self, shards: Vec<ShardNo>) -> StoreFuture<'_, Vec<(ShardNo, u64)>> {
        let rows = self.inner().shard_rows().into_iter().filter(|row| shards.contains(&row.shard));
        Box::pin(ready(Ok(rows.map(|row| (row.shard, row.waiting_keys)).collect())))
    }

    fn services(&self) -> StoreFuture<'_, BTreeMap<Arc<str>, u16>> {
        Box::pin(ready(Ok(self.inner().services.clone())))
    }

    fn peek(&self, filter: DeadFilter, limit: usize) -> StoreFuture<'_, Vec<(ShardNo, DeadLetter)>> {
        let inner = self.inner();
        let found = inner.dead.iter().filter(|(_, letter)| filter.matches(letter));
        let mut found: Vec<_> = found.map(|((shard, _), letter)| (*shard, letter.clone())).collect();
        found.sort_by(|(a_shard, a), (b_shard, b)| (b.at, a_shard, b.seq).cmp(&(a.at, b_shard, a.seq)));
        found.truncate(limit);
        Box::pin(ready(Ok(found)))
    }

    fn count_dead(&self, filter: DeadFilter) -> StoreFuture<'_, u64> {
        Box::pin(ready(Ok(self.inner().dead.values().filter(|letter| filter.matches(letter)).count() as u64)))
    }

    fn explain(&self, text: String) -> StoreFuture<'_, Story> {
        Box::pin(ready(Ok(self.inner().story(&text))))
    }

    fn events(&self, shard: ShardNo, after: u64, limit: usize) -> StoreFuture<'_, Vec<EventRow>> {
        let inner = self.inner();
        let commits =
            inner.commits.range((shard, 0)..=(shard, u64::MAX)).map(|(_, at)| event_rows(&inner.journal[*at]));
        let commits = commits.map(|mut events| {
            events.retain(|event| event.seq > after);
            events
        });
        let found = commits.filter(|events| !events.is_empty()).take(limit).flatten().collect();
        Box::pin(ready(Ok(found)))
    }

    fn scheduled(&self, service: Option<String>, key: Option<String>, limit: usize) -> StoreFuture<'_, Vec<Timer>> {
        let asked = |timer: &Timer| {
            service.as_deref().is_none_or(|service| *timer.of.service == *service)
                && key.as_deref().is_none_or(|key| *timer.of.key == *key)
        };
        let mut timers: Vec<_> = self.timers().into_iter().filter(asked).collect();
        timers.sort_by(|a, b| (a.due_at, &a.of, &a.name).cmp(&(b.due_at, &b.of, &b.name)));
        timers.truncate(limit);
        Box::pin(ready(Ok(timers)))
    }

    fn waiting_keys(&self, service: Option<String>, limit: usize) -> StoreFuture<'_, Vec<WaitingKey>> {
        let mut keys: BTreeMap<ServiceKey, WaitingKey> = BTreeMap::new();
        let rows = self.pending().into_values();
        for row in rows.filter(|row| service.as_deref().is_none_or(|service| *service == *row.service)) {
            let of = ServiceKey { service: row.service, key: row.key };
            let new = WaitingKey { of: of.clone(), pending: 0, oldest_at: row.taken_at };
            let known = keys.entry(of).or_insert(new);
            known.pending += 1;
            known.oldest_at = known.oldest_at.min(row.taken_at);
        }
        let mut keys: Vec<_> = keys.into_values().collect();
        keys.sort_by_key(|key| (std::cmp::Reverse(key.pending), key.oldest_at));
        keys.truncate(limit);
        Box::pin(ready(Ok(keys)))
    }

    fn rows(&self, ask: RowsAsk) -> StoreFuture<'_, FoundRows> {
        let inner = self.inner();
        let found = match inner.tables.get(ask.table.name) {
            Some((_, rows)) => ask.of(rows.values()),
            None => Err(wrong(&ask.table, "it was not prepared")),
        };
        Box::pin(ready(found))
    }

    fn unread_outside(&self) -> StoreFuture<'_, BTreeMap<ShardNo, u64>> {
        let inner = self.inner();
        let mut unread = BTreeMap::new();
        for ((target, origin, no), (count, _)) in &inner.log {
            let outside = &**origin == IMPORT || CALL_LANES.contains(&&**origin);
            if outside && !passed(inner.position(*target, origin), *no, *count) {
                *unread.entry(*target).or_default() += u64::from(*count);
            }
        }
        Box::pin(ready(Ok(unread)))
    }

    fn import_progress(&self, service: String, source: String) -> StoreFuture<'_, ImportProgress> {
        Box::pin(ready(Ok(self.inner().imports.get(&(service, source)).cloned().unwrap_or_default())))
    }

    fn append(&self, rows: Vec<LogRow>) -> StoreFuture<'_, ()> {
        let targets: BTreeSet<ShardNo> = rows.iter().map(|row| row.target).collect();
        if targets.len() != rows.len() {
            let error = "a batch has one row per target".to_owned();
            return Box::pin(ready(Err(StoreError::Unavailable(error))));
        }
        let mut inner = self.inner();
        let no = inner.lanes.entry(IMPORT.to_owned()).or_default();
        *no += 1;
        let no = *no;
        for row in rows {
            inner.log.insert((row.target, IMPORT.into(), no), (row.count, row.messages));
        }
        drop(inner);
        self.watch.appended(targets);
        Box::pin(ready(Ok(())))
    }

    fn append_import(&self, batch: ImportBatch) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            self.append(batch.rows).await?;
            self.inner().imports.insert((batch.service.to_string(), batch.source), batch.progress);
            Ok(())
        })
    }

    fn command(&self, command: NewCommand) -> StoreFuture<'_, i64> {
        let mut inner = self.inner();
        if let Some((scope, paused)) = command.pauses() {
            if paused {
                let (scope, who, why) = (scope.clone(), command.who.clone(), command.why.clone());
                let pause = Pause { scope: scope.clone(), who, why, since: command.at };
                inner.pauses.entry(scope).or_insert(pause);
            } else {
                inner.pauses.retain(|other, _| !scope.covers(other));
            }
        }
        inner.commands_made += 1;
        let id = inner.commands_made;
        inner.commands.insert(id, command);
        Box::pin(ready(Ok(id)))
    }

    fn pauses(&self) -> StoreFuture<'_, Vec<Pause>> {
        Box::pin(ready(Ok(self.inner().pauses())))
    }

    fn open_commands(&self, shard: ShardNo, without: Vec<i64>) -> StoreFuture<'_, Vec<Result<OpenCommand, Strange>>> {
        let inner = self.inner();
        let is_open = |id: &i64| !inner.results.get(&(*id, shard)).is_some_and(|(_, done)| *done);
        let open = inner.commands.iter().filter(|(id, _)| is_open(id) && !without.contains(id));
        let open = open.map(|(id, command)| {
            Ok(OpenCommand {
                id: *id,
                action: command.action.clone(),
                filter: command.filter.clone(),
                who: command.who.clone(),
            })
        });
        Box::pin(ready(Ok(open.collect())))
    }

    fn forget_commands(&self, before: Millis, limit: usize) -> StoreFuture<'_, u64> {
        let mut inner = self.inner();
        let shards = inner.shards.len();
        let done = |id: i64| inner.results.range((id, 0)..=(id, ShardNo::MAX)).filter(|(_, (_, done))| *done).count();
        let old = inner.commands.iter().filter(|(id, command)| command.at < before && done(**id) == shards);
        let old: Vec<i64> = old.map(|(id, _)| *id).take(limit).collect();
        inner.commands.retain(|id, _| !old.contains(id));
        inner.results.retain(|(id, _), _| !old.contains(id));
        Box::pin(ready(Ok(old.len() as u64)))
    }

    fn command_state(&self, id: i64) -> StoreFuture<'_, CommandState> {
        let inner = self.inner();
        let shards = u32::try_from(inner.shards.len()).unwrap_or(u32::MAX);
        let mut state = CommandState { shards_done: 0, shards, affected: 0 };
        for (_, (affected, done)) in inner.results.range((id, 0)..=(id, ShardNo::MAX)) {
            state.shards_done += u32::from(*done);
            state.affected += affected;
        }
        Box::pin(ready(Ok(state)))
    }
}

impl MemoryTables {
    fn position(&self, target: ShardNo, origin: &str) -> Option<Position> {
        self.shards.get(target as usize)?.positions.get(log::NAME)?.get(origin).copied()
    }

    fn shard_rows(&self) -> Vec<ShardRow> {
        let row = |(no, shard): (ShardNo, &super::MemoryShard)| {
            let unread = self.log.iter().filter(|((target, origin, row), (count, _))| {
                *target == no && !passed(self.position(no, origin), *row, *count)
            });
            let held: BTreeSet<_> = self
                .dead_of(no)
                .filter(|letter| letter.holds_key)
                .map(|letter| (&letter.service, &letter.key))
                .collect();
            let mut waiting: BTreeSet<_> = self.pending_of(no).map(|row| (&row.service, &row.key)).collect();
            waiting.retain(|key| !held.contains(key));
            ShardRow {
                shard: no,
                owner: shard.owner.clone(),
                epoch: shard.epoch,
                commit_no: shard.commit_no,
                unclean: shard.unclean,
                unread: unread.map(|(_, (count, _))| u64::from(*count)).sum(),
                pending: self.pending_of(no).count() as u64,
                waiting_keys: waiting.len() as u64,
                dead_letters: self.dead_of(no).count() as u64,
                held_keys: held.len() as u64,
                outbox_seq: shard.outbox_seq,
                positions: shard.positions.clone(),
                ahead: stretches(&shard.ahead),
                watermarks: shard.watermarks.clone(),
                counters: shard.counters.clone(),
            }
        };
        (0..).zip(&self.shards).map(row).collect()
    }

    fn story(&self, text: &str) -> Story {
        let digest = digest(text, &HASH_KEY);
        let mut story = Story::default();
        let mut commits: Vec<&Written> = self.commits.values().map(|at| &self.journal[*at]).collect();
        commits.sort_by_key(|commit| (commit.at, commit.shard, commit.no));
        for commit in commits {
            let ids = commit.ids.iter().map(|taken| &taken.id).filter(|id| id.is(&digest));
            story.taken.extend(ids.map(|id| (commit_row(commit), self.name_of(id))));
            story.events.extend(event_rows(commit).into_iter().filter(|row| {
                let message = &row.event.message;
                row.event.cause == digest || message.id() == text || message.key() == text
            }));
        }
        let lines = self.history.iter().filter(|(_, line)| line.id == text || &*line.key == text);
        story.history.extend(lines.map(|(_, line)| line.clone()));
        story.history.sort_by_key(|line| line.at);
        let waits = self.pending.values().filter(|row| row.message.id() == text || &*row.key == text);
        story.pending.extend(waits.cloned());
        let dead = self.dead.values().filter(|letter| letter.message.id() == text || &*letter.key == text);
        story.dead.extend(dead.cloned());
        for ((target, origin, no), (_, row)) in &self.log {
            let messages = log::decode(row.clone()).unwrap_or_default();
            if messages.iter().any(|(_, message)| message.id() == text || message.key() == text) {
                story.log.push((*target, Arc::clone(origin), *no));
            }
        }
        // The newest are told, where there are too many.
        fn told<T>(story: &mut Story, what: &'static str, lines: Vec<T>) -> Vec<T> {
            story.told(what, lines.into_iter().rev().collect())
        }
        let lines = std::mem::take(&mut story.history);
        story.history = told(&mut story, "history", lines);
        let lines = std::mem::take(&mut story.events);
        story.events = told(&mut story, "events", lines);
        for ((service, _), (version, json)) in self.states.iter().filter(|((_, key), _)| &**key == text) {
            story.states.push((Arc::clone(service), *version, json.clone()));
        }
        story
    }

    fn name_of(&self, id: &TakenId) -> Arc<str> {
        let number = u16::from_le_bytes([id.0[TakenId::BYTES - 2], id.0[TakenId::BYTES - 1]]);
        let name = self.services.iter().find(|(_, known)| **known == number);
        name.map_or_else(|| Arc::from(number.to_string()), |(name, _)| Arc::clone(name))
    }
}

fn commit_row(commit: &Written) -> CommitRow {
    CommitRow { shard: commit.shard, no: commit.no, epoch: commit.epoch, at: commit.at }
}

fn event_rows(commit: &Written) -> Vec<EventRow> {
    let row = |(seq, event): (u64, &crate::store::EmittedEvent)| EventRow {
        commit: commit_row(commit),
        seq,
        event: event.clone(),
    };
    (commit.first_seq..).zip(&commit.events).map(row).collect()
}
