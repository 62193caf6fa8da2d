//! `dlq:peek`, `dlq:replay`, `dlq:discard`: dead letters looked at, and commands about them for the shards' owners.
//! In: a filter. Out: the dead letters, or a recorded command and its progress.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use perkey::unstable::clock::{Clock, Stopwatch, rfc3339};
use perkey::unstable::handlers::Shown as Payload;
use perkey::unstable::message::ShardNo;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::settings::{DurationError, duration};
use perkey::unstable::store::query::{CommandState, DeadFilter, NewCommand, OperatorAction};
use perkey::unstable::store::{self, Access, DeadLetter, Opened, Store};
use perkey::{Engine, Handlers, Millis, Settings, StoreError, millis, sleep};
use serde::Serialize;

use super::output::{Out, complain, table};
use super::up::leave;
use super::{Done, Ended, Failure, handlers, open_beside, runner};
use perkey::unstable::engine::host::{Signals, operator};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A filter of dead letters.
#[derive(Args, Clone, Debug, Default)]
pub struct Filter {
    /// Of this service
    #[arg(long)]
    pub service: Option<String>,
    /// Of this key
    #[arg(long)]
    pub key: Option<String>,
    /// With this message id
    #[arg(long)]
    pub id: Option<String>,
    /// Given up since: 15m, 2h, or a time such as 2026-01-31T10:00:00Z
    #[arg(long)]
    pub since: Option<String>,
    /// With this text in its error
    #[arg(long, value_name = "TEXT")]
    pub error: Option<String>,
}

/// The dead letters to show.
#[derive(Args, Debug)]
pub struct PeekArgs {
    /// The filter.
    #[command(flatten)]
    pub filter: Filter,
    /// The most to show
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
}

/// The dead letters to change, and how.
#[derive(Args, Debug)]
pub struct ChangeArgs {
    /// The filter.
    #[command(flatten)]
    pub filter: Filter,
    /// All of them: needed to discard without a filter
    #[arg(long)]
    pub all: bool,
    /// Only show the exact number
    #[arg(long)]
    pub dry_run: bool,
    /// The reason; kept with the command
    #[arg(long, default_value = "")]
    pub reason: String,
    /// The longest time to wait until it is done
    #[arg(long, default_value = "10s", value_parser = perkey::unstable::settings::duration)]
    pub wait: Duration,
    /// Run the engine here just long enough to do it, when no process runs the store
    #[arg(long)]
    pub offline: bool,
}

/// A dead letter as it is shown.
#[derive(Serialize)]
struct Shown {
    shard: ShardNo,
    seq: u64,
    at: String,
    service: String,
    key: String,
    id: String,
    #[serde(rename = "type")]
    kind: String,
    source: String,
    holds_key: bool,
    error: String,
    attempts: Vec<ShownAttempt>,
    payload: String,
    /// The form of the payload: its `text`, its service's codec's `decoded` JSON, or its `base64`.
    payload_is: &'static str,
    content_type: Option<String>,
}

/// A failed attempt as it is shown.
#[derive(Serialize)]
struct ShownAttempt {
    attempt: u32,
    at: String,
    generation: u64,
    error: String,
}

/// The result of a command.
#[derive(Debug, Serialize)]
struct Changed {
    action: OperatorAction,
    matched: u64,
    dry_run: bool,
    /// The command's number; `None` for a dry run or when nothing matched.
    command: Option<i64>,
    /// True if every shard is done with it.
    done: bool,
    affected: u64,
    /// True if a process runs the store, and so executes it.
    running: bool,
    /// The command that would run the store.
    #[serde(skip)]
    runner: &'static str,
}

/// Shows dead letters.
pub async fn peek(settings: &Settings, asked: &PeekArgs, out: Out) -> Ended {
    let filter = filter(&asked.filter, Clock::system().now(), None)?;
    let store = open_beside(settings).await?;
    let letters = store.queries().peek(filter, asked.limit).await?;
    let found = !letters.is_empty();
    let handlers = handlers(settings)?;
    let letters: Vec<_> = letters.into_iter().map(|(shard, letter)| shown(&handlers, shard, &letter)).collect();
    out.show(&letters, |letters| {
        if letters.is_empty() {
            return "No dead letter matches.".to_owned();
        }
        let head = ["at", "service", "key", "id", "attempts", "holds key", "error"];
        let row = |letter: &Shown| {
            let held = if letter.holds_key { "yes" } else { "no" };
            let attempts = letter.attempts.len().to_string();
            let texts = [&letter.at, &letter.service, &letter.key, &letter.id, &attempts, held, &letter.error];
            texts.map(str::to_owned).to_vec()
        };
        table(&head, letters.iter().map(row))
    })?;
    Ok(if found { Done::All } else { Done::NothingFound })
}

/// Asks the owners to run dead letters again.
pub async fn replay(settings: &Settings, asked: &ChangeArgs, out: Out) -> Ended {
    change(settings, OperatorAction::Replay, asked, out).await
}

/// Asks the owners to remove dead letters.
pub async fn discard(settings: &Settings, asked: &ChangeArgs, out: Out) -> Ended {
    let filter = &asked.filter;
    let given = [&filter.service, &filter.key, &filter.id, &filter.since, &filter.error];
    if !asked.all && given.iter().all(|part| part.is_none()) {
        let text = "discarding cannot be undone: name a filter (--service, --key, --id, --since, --error), or --all";
        return Err(Failure::Usage(text.to_owned()));
    }
    change(settings, OperatorAction::Discard, asked, out).await
}

async fn change(settings: &Settings, action: OperatorAction, asked: &ChangeArgs, out: Out) -> Ended {
    let now = Clock::system().now();
    // Only dead letters given up before this instant are meant: a command must not chase those that it replays.
    let filter = filter(&asked.filter, now, Some(now))?;
    let access = if asked.offline && !asked.dry_run { Access::Run } else { Access::Tool };
    // A tool never makes a store: a mistyped name is an error, with `--offline` too.
    open_beside(settings).await?.close().await;
    let store = store::open(settings, access).await?;
    let matched = store.queries().count_dead(filter.clone()).await?;
    let running = asked.offline || store::is_running(settings).await;
    let runner = runner(settings);
    let mut changed = Changed {
        action: action.clone(),
        matched,
        dry_run: asked.dry_run,
        command: None,
        done: matched == 0,
        affected: 0,
        running,
        runner,
    };
    let mut ended = Ok(if matched == 0 { Done::NothingFound } else { Done::All });
    if matched > 0 && !asked.dry_run {
        let command = NewCommand { action, filter, who: operator(), why: asked.reason.clone(), matched, at: now };
        if asked.offline {
            ended = offline(settings, &store, command, asked.wait, &mut changed).await;
        } else {
            let id = store.queries().command(command).await?;
            let wait = if running { asked.wait } else { Duration::ZERO };
            watch(&*store, id, wait, &mut changed).await?;
        }
    }
    out.show(&changed, text)?;
    ended
}

/// Records a command for the process that runs the store.
pub(super) async fn command(
    settings: &Settings,
    action: OperatorAction,
    filter: DeadFilter,
    why: &str,
    wait: Duration,
    out: Out,
) -> Ended {
    let store = open_beside(settings).await?;
    let running = store::is_running(settings).await;
    let command = NewCommand {
        action: action.clone(),
        filter,
        who: operator(),
        why: why.to_owned(),
        matched: 1,
        at: Clock::system().now(),
    };
    let id = store.queries().command(command).await?;
    let runner = runner(settings);
    let (command, done, affected) = (Some(id), false, 0);
    let mut changed = Changed { action, matched: 1, dry_run: false, command, done, affected, running, runner };
    watch(&*store, id, if running { wait } else { Duration::ZERO }, &mut changed).await?;
    out.show(&changed, text)?;
    Ok(Done::All)
}

/// Executes a command with an engine of its own: for a store that no process runs.
async fn offline(
    settings: &Settings,
    store: &Opened,
    command: NewCommand,
    wait: Duration,
    changed: &mut Changed,
) -> Ended {
    // A file has a lock; a database has signs of life.
    if store::is_shared(settings) && store::is_running(settings).await {
        return Err(StoreError::Locked("its workers give signs of life".to_owned()).into());
    }
    let mut signals = Signals::take()?;
    let engine = Engine::start(settings, handlers(settings)?, store.store(), Metrics::new()).await?;
    let id = store.queries().command(command).await?;
    tokio::select! {
        watched = watch(&**store, id, wait, changed) => watched?,
        reason = engine.failed() => return Err(Failure::Failed(format!("the engine gave up: {reason}"))),
        () = signals.next() => complain("told to stop; the command stays recorded"),
    }
    let ended = leave(engine, &mut signals).await?;
    Ok(if changed.done { ended } else { Done::Interrupted })
}

/// Waits until all shards are done with a command, or `wait` is over.
async fn watch(store: &dyn Store, id: i64, wait: Duration, changed: &mut Changed) -> Result<(), Failure> {
    changed.command = Some(id);
    let CommandState { shards_done, shards, affected } = waited(store, id, wait).await?;
    changed.affected = affected;
    changed.done = shards_done >= shards;
    Ok(())
}

/// The progress of a command, when all shards are done with it or `wait` is over.
pub(super) async fn waited(store: &dyn Store, id: i64, wait: Duration) -> Result<CommandState, StoreError> {
    let since = Stopwatch::start();
    loop {
        let state = store.queries().command_state(id).await?;
        if state.shards_done >= state.shards || since.elapsed() >= wait {
            return Ok(state);
        }
        sleep(LOOK_EVERY).await;
    }
}

fn text(changed: &Changed) -> String {
    let Changed { matched, affected, .. } = changed;
    let (verb, past) = match &changed.action {
        OperatorAction::Replay => ("replay", "replayed"),
        OperatorAction::Discard => ("discard", "discarded"),
        OperatorAction::Edit { .. } => ("edit", "edited"),
        OperatorAction::Retire(_) => ("retire", "retired"),
        OperatorAction::Pause(_) => ("pause", "paused"),
        OperatorAction::Resume(_) => ("resume", "resumed"),
        OperatorAction::Drop(_) => ("drop", "dropped"),
    };
    let letters = if *matched == 1 { "dead letter" } else { "dead letters" };
    let Some(id) = changed.command else {
        return match matched {
            0 => "No dead letter matches.".to_owned(),
            _ => format!("{matched} {letters} would be {past}."),
        };
    };
    if changed.done {
        return format!("Command {id}: {affected} of {matched} {letters} {past}.");
    }
    let what = format!("Command {id} to {verb} {matched} {letters} is recorded");
    if changed.running {
        return format!("{what}; {affected} are done so far, the rest follows.");
    }
    format!("{what}, but no process runs the store: start `{}`, or use --offline next time.", changed.runner)
}

fn filter(asked: &Filter, now: Millis, until: Option<Millis>) -> Result<DeadFilter, Failure> {
    let since = asked.since.as_deref().map(|text| since(text, now)).transpose().map_err(Failure::Usage)?;
    let Filter { service, key, id, error, .. } = asked.clone();
    Ok(DeadFilter { service, key, id, since, until, error })
}

/// An instant: an age, a time, or the start of a day in UTC.
fn since(text: &str, now: Millis) -> Result<Millis, String> {
    match duration(text) {
        Ok(ago) => return Ok(now.saturating_sub(millis(ago))),
        // A time has digits before each of its letters as well: only months are told apart.
        Err(problem @ DurationError::Months { .. }) => return Err(format!("--since {problem}")),
        Err(DurationError::Unclear { .. }) => (),
    }
    let day = || text.parse::<Date>().ok()?.to_zoned(TimeZone::UTC).ok().map(|day| day.timestamp());
    let at = text.parse::<Timestamp>().ok().or_else(day);
    let at =
        at.ok_or_else(|| format!("--since {text:?} is neither a duration (15m) nor a time (2026-01-31T10:00:00Z)"))?;
    Ok(u64::try_from(at.as_millisecond()).unwrap_or_default())
}

fn shown(handlers: &Handlers, shard: ShardNo, letter: &DeadLetter) -> Shown {
    let (payload, payload_is) = match handlers.shown(&letter.service, &letter.message) {
        Payload::Text(text) => (text, "text"),
        Payload::Decoded(json) => (json.to_string(), "decoded"),
        Payload::Base64(text) => (text, "base64"),
    };
    let attempts = letter.history.iter().map(|failed| ShownAttempt {
        attempt: failed.attempt,
        at: rfc3339(failed.at),
        generation: failed.generation,
        error: failed.error.clone(),
    });
    Shown {
        shard,
        seq: letter.seq,
        at: rfc3339(letter.at),
        service: letter.service.to_string(),
        key: letter.key.to_string(),
        id: letter.message.id().to_owned(),
        kind: letter.message.kind().to_owned(),
        source: letter.message.source().to_owned(),
        holds_key: letter.holds_key,
        error: letter.error.clone(),
        attempts: attempts.collect(),
        payload,
        payload_is,
        content_type: perkey::Payload::from(&letter.message).content_type().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_duration_a_time_or_a_day() {
        let now = 1_000_000_000_000;
        assert_eq!(since("15m", now), Ok(now - 900_000));
        assert_eq!(since("1h 30m", now), Ok(now - 5_400_000));
        assert_eq!(since("1970-01-01T00:00:01Z", now), Ok(1_000));
        assert_eq!(since("1970-01-01T01:00:01+01:00", now), Ok(1_000));
        assert_eq!(since("1970-01-02", now), Ok(86_400_000));
        assert!(since("15M", now).unwrap_err().contains("months"));
        for bad in ["", "yesterday", "15", "2026-13-01"] {
            assert!(since(bad, now).unwrap_err().contains("--since"), "{bad}");
        }
    }

    #[test]
    fn a_command_says_what_became_of_it() {
        let changed = |command: Option<i64>, done, running| {
            let action = OperatorAction::Replay;
            text(&Changed {
                action,
                matched: 3,
                dry_run: command.is_none(),
                command,
                done,
                affected: 2,
                running,
                runner: "up",
            })
        };
        assert_eq!(changed(None, false, true), "3 dead letters would be replayed.");
        assert_eq!(changed(Some(7), true, true), "Command 7: 2 of 3 dead letters replayed.");
        assert!(changed(Some(7), false, true).contains("2 are done so far"));
        assert!(changed(Some(7), false, false).contains("no process runs the store"));
    }
}
