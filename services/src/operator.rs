//! The tools of operators: the command line, imports, and the listener for metrics and health.
//! In: commands and probes. Out: an engine that runs, rows for its owner, answers; an exit code.

pub mod admin;
pub mod append;
pub mod cli;
pub mod doctor;
pub mod gateway;
pub mod import;
pub mod token;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory;
use perkey::Settings;
use perkey::unstable::engine::host::{environment, misfits, said};
use perkey::unstable::settings::load::{Loaded, Sources, load, or_near};
use perkey::unstable::telemetry;

use self::cli::args::{self, Cli, Command, DlqCommand, Global, KeysCommand, ScheduleCommand, StateCommand};
use self::cli::outbox::{self, OutboxCommand};
use self::cli::output::{self, Out, complain};
use self::cli::store::{self, StoreCommand};
use self::cli::{Done, Ended, Failure, call, config, dlq, edit, explain, handlers, keys, leases, pause, status, up};
use self::token::TokenCommand;
use crate::defaults;
use crate::gateway::operations::OPERATIONS;

/// Carries out the command line.
pub async fn run(argv: Vec<OsString>) -> ExitCode {
    let cli = match args::parsed(argv) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            // There is nobody left to tell that this cannot be written.
            error.print().ok();
            return ExitCode::from(64);
        }
        Err(help) => return ExitCode::from(code_of(asked_for(&help))),
    };
    let ended = execute(cli).await;
    ExitCode::from(code_of(ended))
}

/// Help or version, in colour on a terminal.
fn asked_for(help: &clap::Error) -> Ended {
    match help.print().and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(output::unwritten(error)),
        Ok(()) | Err(_) => Ok(Done::All),
    }
}

fn code_of(ended: Ended) -> u8 {
    match ended {
        Ok(Done::All) => 0,
        Ok(Done::Interrupted) => 1,
        Ok(Done::SomeRefused) => 2,
        Ok(Done::NothingFound) => 3,
        Ok(Done::Unsound) => 5,
        Err(failure) => {
            failure.lines().into_iter().for_each(complain);
            failure.code()
        }
    }
}

async fn execute(cli: Cli) -> Ended {
    let out = Out::new(cli.global.output);
    if let Command::Completions { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "budget-manager", &mut script);
        return said(String::from_utf8_lossy(&script).trim_end()).map(|()| Done::All);
    }
    let serves = matches!(cli.command, Command::Up | Command::Worker | Command::Gateway);
    let filter = if serves { "info" } else { "warn" };
    let telemetry = telemetry::init(cli.global.log_format.into(), defaults::LOG_VARIABLE, filter)
        .map_err(|error| Failure::Settings(vec![error.to_string()]))?;
    let ended = Box::pin(perform(cli, out)).await;
    telemetry.end().await;
    ended
}

async fn perform(cli: Cli, out: Out) -> Ended {
    let loaded = settings(&cli.global)?;
    let settings = &loaded.settings;
    match cli.command {
        Command::Up => up::up(settings).await,
        Command::Worker => up::worker(settings).await,
        Command::Gateway => gateway::gateway(settings).await,
        Command::Token(TokenCommand::New(asked)) => token::new(settings, &asked, out),
        Command::Store(StoreCommand::Prepare) => store::prepare(settings, out).await,
        Command::Store(StoreCommand::Restored) => store::restored(settings, out).await,
        Command::Reshard { shards } => store::reshard(settings, shards, out).await,
        Command::Leases => leases::leases(settings, out).await,
        Command::Import(asked) => Box::pin(import::import(settings, &asked, out)).await,
        Command::Dlq(DlqCommand::Peek(asked)) => dlq::peek(settings, &asked, out).await,
        Command::Dlq(DlqCommand::Replay(asked)) => dlq::replay(settings, &asked, out).await,
        Command::Dlq(DlqCommand::Discard(asked)) => dlq::discard(settings, &asked, out).await,
        Command::Dlq(DlqCommand::Edit(asked)) => edit::edit(settings, &asked, out).await,
        Command::State(StateCommand::Get(asked)) => keys::get(settings, &asked, out).await,
        Command::Schedule(ScheduleCommand::List(asked)) => keys::schedule(settings, &asked, out).await,
        Command::Keys(KeysCommand::Top(asked)) => keys::top(settings, &asked, out).await,
        Command::Service(asked) => pause::service(settings, asked, out).await,
        Command::Key(asked) => pause::key(settings, asked, out).await,
        Command::Outbox(OutboxCommand::Stats) => outbox::stats(settings, out).await,
        Command::Outbox(OutboxCommand::Retire(asked)) => outbox::retire(settings, &asked, out).await,
        Command::Explain { id_or_key } => explain::explain(settings, id_or_key, out).await,
        Command::Call(asked) => call::call(settings, asked, out).await,
        Command::Doctor => Box::pin(doctor::doctor(settings, out)).await,
        Command::Status => status::status(settings, out).await,
        Command::Config(asked) => config::config(&loaded, &asked, out),
        Command::Completions { .. } => Ok(Done::All),
    }
}

fn settings(global: &Global) -> Result<Loaded, Failure> {
    let sources = Sources {
        defaults: defaults::settings(),
        file: global.config.clone(),
        prefix: defaults::ENV_PREFIX.to_owned(),
        env: environment(),
        flags: global.flags(),
    };
    let loaded = load(&sources).map_err(Failure::Settings)?;
    let handlers = handlers(&loaded.settings)?;
    let mut problems = misfits(&loaded.settings, &handlers);
    problems.extend(no_operations(&loaded.settings));
    if problems.is_empty() { Ok(loaded) } else { Err(Failure::Settings(problems)) }
}

/// Names in `gateway.require_key` that are not operations: the rule would protect nothing.
fn no_operations(settings: &Settings) -> impl Iterator<Item = String> {
    let known = || OPERATIONS.iter().map(|operation| operation.name);
    let unknown = settings.gateway.require_key.iter().filter(move |name| known().all(|known| known != name.as_str()));
    unknown.map(move |name| {
        let (near, all) = (or_near(name, known()), known().collect::<Vec<_>>().join(", "));
        format!("gateway.require_key: there is no operation {name:?}; there are: {all}{near}")
    })
}

#[cfg(test)]
mod tests {
    use perkey::StoreError;

    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_help() {
        let unavailable = StoreError::Unavailable("no such file".to_owned());
        let newer = StoreError::Newer { found: 9, known: 1 };
        let shards = StoreError::Shards { recorded: 8, wanted: 4 };
        for (ended, code) in [
            (Ok(Done::All), 0),
            (Ok(Done::Interrupted), 1),
            (Err(StoreError::Corrupt("x".to_owned()).into()), 1),
            (Ok(Done::SomeRefused), 2),
            (Ok(Done::NothingFound), 3),
            (Ok(Done::Unsound), 5),
            (Err(unavailable.into()), 4),
            (Err(newer.into()), 4),
            (Err(StoreError::Locked("pid 1".to_owned()).into()), 4),
            (Err(Failure::Usage("x".to_owned())), 64),
            (Err(shards.into()), 78),
        ] {
            assert!(args::EXIT_CODES.contains(&format!("\n  {code} ")), "{code} is not in the help");
            assert_eq!(code_of(ended), code);
        }
    }
}
