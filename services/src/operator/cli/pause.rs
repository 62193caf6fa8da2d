//! `service:pause`, `service:resume`, `key:pause`, `key:resume`: stop and start turns; `service:drop`: gives up the
//! messages of a service that no program has.
//! In: a service or one of its keys. Out: a recorded command and its progress.

use std::time::Duration;

use clap::{Args, Subcommand};
use perkey::Settings;
use perkey::unstable::clock::Clock;
use perkey::unstable::engine::host::operator;
use perkey::unstable::store;
use perkey::unstable::store::query::{CommandState, DeadFilter, NewCommand, OperatorAction, Scope};
use serde::Serialize;

use super::output::Out;
use super::{Done, Ended, Failure, dlq, handlers, open_beside};

/// Commands about a service.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Start no turn of a service until it is resumed; its messages wait
    Pause(ServiceArgs),
    /// Start the turns of a service again, those of its paused keys too
    Resume(ServiceArgs),
    /// Give up the messages of a service that no program has any more: its timers are removed, its messages become dead
    /// letters
    Drop(DropArgs),
}

/// Commands about a key.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Start no turn of a key until it is resumed; its messages wait
    Pause(KeyArgs),
    /// Start the turns of a key again
    Resume(KeyArgs),
}

/// The service to pause or resume.
#[derive(Args, Debug)]
pub struct ServiceArgs {
    /// Its name
    pub service: String,
    #[command(flatten)]
    asked: Asked,
}

/// The service to give up.
#[derive(Args, Debug)]
pub struct DropArgs {
    /// Its name
    pub service: String,
    /// Only show the number of messages that wait for it
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    asked: Asked,
}

/// The key to pause or resume.
#[derive(Args, Debug)]
pub struct KeyArgs {
    /// Its service
    #[arg(long)]
    pub service: String,
    /// The key
    #[arg(long)]
    pub key: String,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Args, Debug)]
struct Asked {
    /// The reason; kept with the command
    #[arg(long)]
    why: String,
    /// The longest time to wait until all shards know
    #[arg(long, default_value = "10s", value_parser = perkey::unstable::settings::duration)]
    wait: Duration,
}

/// The result of a pause or its end.
#[derive(Debug, Serialize)]
struct Told {
    paused: bool,
    service: String,
    key: Option<String>,
    /// True if it was paused before.
    before: bool,
    command: Option<i64>,
    done: bool,
    running: bool,
}

/// Pauses or resumes a service.
pub async fn service(settings: &Settings, command: ServiceCommand, out: Out) -> Ended {
    let (paused, ServiceArgs { service, asked }) = match command {
        ServiceCommand::Pause(args) => (true, args),
        ServiceCommand::Resume(args) => (false, args),
        ServiceCommand::Drop(args) => return given_up(settings, args, out).await,
    };
    tell(settings, Scope { service, key: None }, paused, asked, out).await
}

/// Pauses or resumes a key.
pub async fn key(settings: &Settings, command: KeyCommand, out: Out) -> Ended {
    let (paused, KeyArgs { key, service, asked }) = match command {
        KeyCommand::Pause(args) => (true, args),
        KeyCommand::Resume(args) => (false, args),
    };
    tell(settings, Scope { service, key: Some(key) }, paused, asked, out).await
}

async fn tell(settings: &Settings, scope: Scope, paused: bool, asked: Asked, out: Out) -> Ended {
    let handlers = handlers(settings)?;
    if handlers.index_of(&scope.service).is_none() {
        return Err(Failure::Usage(handlers.unknown(&scope.service)));
    }
    let store = open_beside(settings).await?;
    let pauses = store.queries().pauses().await?;
    let wider = pauses.iter().find(|pause| pause.scope != scope && pause.scope.covers(&scope));
    if let (false, Some(wider)) = (paused, wider) {
        let text = format!("{} is paused, and the key with it: resume that", wider.scope);
        return Err(Failure::Usage(text));
    }
    let before = pauses.iter().any(|pause| scope.covers(&pause.scope));
    let running = store::is_running(settings).await;
    let (service, key) = (scope.service.clone(), scope.key.clone());
    let mut told = Told { paused, service, key, before, command: None, done: true, running };
    if before != paused {
        let action = if paused { OperatorAction::Pause(scope.clone()) } else { OperatorAction::Resume(scope.clone()) };
        let (who, why, at) = (operator(), asked.why, Clock::system().now());
        let command = NewCommand { action, filter: DeadFilter::default(), who, why, matched: 1, at };
        let id = store.queries().command(command).await?;
        let wait = if running { asked.wait } else { Duration::ZERO };
        let CommandState { shards_done, shards, .. } = dlq::waited(&*store, id, wait).await?;
        told = Told { command: Some(id), done: shards_done >= shards, ..told };
    }
    let found = told.command.is_some();
    out.show(&told, |told| text(told, &scope))?;
    Ok(if found { Done::All } else { Done::NothingFound })
}

/// The result of giving a service up.
#[derive(Debug, Serialize)]
struct Dropped {
    service: String,
    /// The number of messages that wait for it.
    pending: u64,
    /// The number of its timers.
    timers: u64,
    dry_run: bool,
    command: Option<i64>,
    done: bool,
    affected: u64,
    running: bool,
}

/// Gives up the messages of a service that no program has.
async fn given_up(settings: &Settings, args: DropArgs, out: Out) -> Ended {
    let DropArgs { service, dry_run, asked } = args;
    if handlers(settings)?.index_of(&service).is_some() {
        let text = format!(
            "this program has service {service}: its messages will run. Pause it (service:pause), or discard its dead letters"
        );
        return Err(Failure::Usage(text));
    }
    let store = open_beside(settings).await?;
    let waits = store.queries().health().await?.services.into_iter().find(|row| row.service == service);
    let (pending, timers) = waits.map_or((0, 0), |row| (row.pending, row.timers));
    let running = store::is_running(settings).await;
    let matched = pending + timers;
    let (command, done, affected) = (None, matched == 0, 0);
    let mut dropped = Dropped { service, pending, timers, dry_run, command, done, affected, running };
    if matched > 0 && !dry_run {
        let (action, who, why) = (OperatorAction::Drop(dropped.service.clone()), operator(), asked.why);
        let at = Clock::system().now();
        let id = store
            .queries()
            .command(NewCommand { action, filter: DeadFilter::default(), who, why, matched, at })
            .await?;
        let wait = if running { asked.wait } else { Duration::ZERO };
        let CommandState { shards_done, shards, affected } = dlq::waited(&*store, id, wait).await?;
        dropped = Dropped { command: Some(id), done: shards_done >= shards, affected, ..dropped };
    }
    out.show(&dropped, dropped_text)?;
    Ok(if matched == 0 { Done::NothingFound } else { Done::All })
}

fn dropped_text(dropped: &Dropped) -> String {
    let Dropped { service, pending, timers, affected, .. } = dropped;
    let all = pending + timers;
    match dropped.command {
        None if all == 0 => format!("Nothing waits for service {service}."),
        None => format!("{pending} messages would become dead letters, {timers} timers would be removed."),
        Some(id) if dropped.done => format!(
            "Command {id}: {affected} of {all} messages and timers of service {service} were given up; dlq:peek --service {service} shows the messages."
        ),
        Some(id) if dropped.running => format!(
            "Command {id} to give up the messages of service {service} is recorded; {affected} of {all} are done so far."
        ),
        Some(id) => {
            format!(
                "Command {id} to give up the messages of service {service} is recorded, but no process runs the store."
            )
        }
    }
}

fn text(told: &Told, scope: &Scope) -> String {
    let now = if told.paused { "paused" } else { "resumed" };
    match told.command {
        None if told.paused => format!("{scope} is paused already."),
        None => format!("{scope} is not paused."),
        Some(id) if told.done => format!("Command {id}: {scope} is {now}. A turn that was under way ends."),
        Some(id) if told.running => format!("Command {id}: {scope} will be {now}; not all shards have done so yet."),
        Some(id) => format!("Command {id}: {scope} is {now} when a process runs the store."),
    }
}
