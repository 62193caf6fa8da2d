//! `outbox:stats`, `outbox:retire`: the events that sinks have not received yet, and giving up a sink that no longer
//! exists.
//! In: a store. Out: a row per shard and sink; a recorded command and its progress.

use clap::{Args, Subcommand};
use perkey::unstable::clock::{Clock, rfc3339};
use perkey::unstable::engine::host::operator;
use perkey::unstable::message::ShardNo;
use perkey::unstable::store;
use perkey::unstable::store::query::{CommandState, DeadFilter, NewCommand, OperatorAction, Queries, ShardRow};
use perkey::{Millis, Settings, StoreError};
use serde::Serialize;

use super::output::{Out, table};
use super::{Done, Ended, Failure, dlq, open_beside};

/// Commands about the outbox.
#[derive(Debug, Subcommand)]
pub enum OutboxCommand {
    /// Show the progress of each sink of each shard
    Stats,
    /// Give up a sink that is no longer configured: events that it has not received are no longer kept for it
    Retire(RetireArgs),
}

/// The sink to give up.
#[derive(Args, Debug)]
pub struct RetireArgs {
    /// Its name
    pub sink: String,
    /// The reason; kept with the command
    #[arg(long)]
    pub why: String,
    /// The longest time to wait until it is done
    #[arg(long, default_value = "10s", value_parser = perkey::unstable::settings::duration)]
    pub wait: std::time::Duration,
}

/// The progress of one sink of one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Stat {
    pub(crate) shard: ShardNo,
    pub(crate) sink: String,
    /// True if a route of these settings leads to it.
    pub(crate) configured: bool,
    pub(crate) watermark: u64,
    pub(crate) last_seq: u64,
    pub(crate) pending: u64,
    /// The commit time of the oldest event behind the watermark.
    pub(crate) oldest_at: Option<String>,
    pub(crate) oldest_age_seconds: Option<u64>,
}

/// The result of a retirement.
#[derive(Debug, Serialize)]
struct Retired {
    sink: String,
    /// Shards that keep commits for it.
    matched: u64,
    command: Option<i64>,
    done: bool,
    affected: u64,
    running: bool,
}

/// Shows the progress of each sink.
pub async fn stats(settings: &Settings, out: Out) -> Ended {
    let store = open_beside(settings).await?;
    let rows = store.queries().shards().await?;
    let stats = collected(settings, store.queries(), &rows).await?;
    let found = !stats.is_empty();
    out.show(&stats, |stats| {
        if stats.is_empty() {
            return "No shard has a sink.".to_owned();
        }
        let head = ["shard", "sink", "watermark", "last seq", "pending", "oldest"];
        table(&head, stats.iter().map(line))
    })?;
    Ok(if found { Done::All } else { Done::NothingFound })
}

/// The progress of each sink of each shard.
pub(crate) async fn collected(
    settings: &Settings,
    queries: &dyn Queries,
    rows: &[ShardRow],
) -> Result<Vec<Stat>, StoreError> {
    let now = Clock::system().now();
    let mut stats = Vec::new();
    for row in rows {
        for (sink, watermark) in &row.watermarks {
            stats.push(stat(settings, queries, row, sink, *watermark, now).await?);
        }
    }
    Ok(stats)
}

fn line(stat: &Stat) -> Vec<String> {
    let gone = if stat.configured { "" } else { " (not configured)" };
    let age = stat.oldest_age_seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s"));
    let numbers = [stat.watermark, stat.last_seq, stat.pending].map(|number| number.to_string());
    [stat.shard.to_string(), format!("{}{gone}", stat.sink)].into_iter().chain(numbers).chain([age]).collect()
}

async fn stat(
    settings: &Settings,
    queries: &dyn Queries,
    row: &ShardRow,
    sink: &str,
    watermark: u64,
    now: Millis,
) -> Result<Stat, StoreError> {
    let pending = row.outbox_seq.saturating_sub(watermark);
    let oldest = if pending == 0 { None } else { queries.events(row.shard, watermark, 1).await?.into_iter().next() };
    let at = oldest.map(|event| event.commit.at);
    Ok(Stat {
        shard: row.shard,
        sink: sink.to_owned(),
        configured: is_configured(settings, sink),
        watermark,
        last_seq: row.outbox_seq,
        pending,
        oldest_at: at.map(rfc3339),
        oldest_age_seconds: at.map(|at| now.saturating_sub(at) / 1_000),
    })
}

/// Asks the owners to give a sink up.
pub async fn retire(settings: &Settings, asked: &RetireArgs, out: Out) -> Ended {
    let sink = asked.sink.clone();
    if is_configured(settings, &sink) {
        let text =
            format!("sink {sink} is in the settings: remove its routes ([[publish]], kafka.dead_letter_topic) first");
        return Err(Failure::Usage(text));
    }
    let store = open_beside(settings).await?;
    let rows = store.queries().shards().await?;
    let matched = rows.iter().filter(|row| row.watermarks.contains_key(sink.as_str())).count() as u64;
    let running = store::is_running(settings).await;
    let mut retired = Retired { sink, matched, command: None, done: matched == 0, affected: 0, running };
    if matched > 0 {
        let command = NewCommand {
            action: OperatorAction::Retire(retired.sink.clone()),
            filter: DeadFilter::default(),
            who: operator(),
            why: asked.why.clone(),
            matched,
            at: Clock::system().now(),
        };
        let id = store.queries().command(command).await?;
        let wait = if running { asked.wait } else { std::time::Duration::ZERO };
        let CommandState { shards_done, shards, affected } = dlq::waited(&*store, id, wait).await?;
        retired = Retired { command: Some(id), done: shards_done >= shards, affected, ..retired };
    }
    out.show(&retired, text)?;
    Ok(if matched == 0 { Done::NothingFound } else { Done::All })
}

fn text(retired: &Retired) -> String {
    let Retired { sink, matched, affected, .. } = retired;
    match retired.command {
        None => format!("No shard keeps anything for sink {sink}."),
        Some(id) if retired.done && affected < matched => format!(
            "Command {id}: {affected} of {matched} shards gave sink {sink} up; the process that runs the others has it in its settings."
        ),
        Some(id) if retired.done => format!("Command {id}: {affected} of {matched} shards gave sink {sink} up."),
        Some(id) if retired.running => {
            format!("Command {id} to give sink {sink} up is recorded; {affected} of {matched} shards are done so far.")
        }
        Some(id) => format!("Command {id} to give sink {sink} up is recorded, but no process runs the store."),
    }
}

pub(crate) fn is_configured(settings: &Settings, sink: &str) -> bool {
    let dead_letters = !settings.kafka.dead_letter_topic.is_empty() && sink == "kafka";
    dead_letters || settings.publish.iter().any(|publish| publish.sink == sink)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retirement_says_what_became_of_it() {
        let retired = |command, done, running| {
            text(&Retired { sink: "kafka".to_owned(), matched: 8, command, done, affected: 3, running })
        };
        assert_eq!(retired(None, true, true), "No shard keeps anything for sink kafka.");
        assert!(retired(Some(1), true, true).contains("has it in its settings"));
        assert!(retired(Some(1), false, true).contains("3 of 8 shards are done so far"));
        assert!(retired(Some(1), false, false).contains("no process runs the store"));
    }
}
