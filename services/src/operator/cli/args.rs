//! The arguments: commands, their flags, and the colon spelling of grouped commands.
//! In: the argument vector. Out: one typed command.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::Resettable;
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::call::CallArgs;
use super::dlq::{ChangeArgs, PeekArgs};
use super::edit::EditArgs;
use super::keys::{KeyArgs, ScheduleArgs, TopArgs};
use super::outbox::OutboxCommand;
use super::pause::{KeyCommand, ServiceCommand};
use super::store::StoreCommand;
use crate::operator::import::args::ImportArgs;
use crate::operator::token::TokenCommand;
use perkey::unstable::settings::load::Flag;
use perkey::unstable::telemetry;

use super::output::Form;

/// The exit codes, as the help shows them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   failed, or interrupted (what was done so far is kept)
  2   done, but some of the input was refused
  3   nothing found
  4   the store is not available: missing, locked by another process, or from a newer version
  5   doctor found an error
  64  wrong usage
  78  wrong settings";

/// The options that take a value and may stand before the command.
const GLOBAL_WITH_VALUE: [&str; 5] = ["--config", "--store-url", "--output", "--set", "--log-format"];

/// Commands with commands of their own: `dlq peek` may be written `dlq:peek`.
const GROUPS: [&str; 10] = ["dlq", "outbox", "config", "state", "schedule", "keys", "service", "key", "token", "store"];

/// Budget Manager: accounts as per-key actors on Perkey, each message taking effect exactly once.
#[derive(Debug, Parser)]
#[command(name = "budget-manager", version, after_help = EXIT_CODES)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Debug)]
pub struct Global {
    /// A settings file (TOML)
    #[arg(long, global = true, value_name = "FILE", env = "BUDGET_CONFIG")]
    pub config: Option<PathBuf>,
    /// The store: sqlite:///path/to.db (setting store.url)
    #[arg(long, global = true, value_name = "URL")]
    pub store_url: Option<String>,
    /// The form of results
    #[arg(long, global = true, value_enum, default_value_t = Form::Table, env = "BUDGET_OUTPUT")]
    pub output: Form,
    /// A setting by its name, such as retry.attempts=3; may be repeated
    #[arg(long, global = true, value_name = "SETTING=VALUE", value_parser = set)]
    pub set: Vec<(String, String)>,
    /// The form of the log on standard error
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Auto, env = "BUDGET_LOG_FORMAT")]
    pub log_format: LogFormat,
}

impl Global {
    /// The settings among the options.
    pub fn flags(&self) -> Vec<Flag> {
        let named = self.set.iter().map(|(setting, value)| ("--set", setting.as_str(), value));
        let url = self.store_url.iter().map(|url| ("--store-url", "store.url", url));
        let flag = |(flag, setting, value): (&str, &str, &String)| Flag {
            flag: flag.to_owned(),
            setting: setting.to_owned(),
            value: value.clone(),
        };
        named.chain(url).map(flag).collect()
    }
}

/// The form of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise
    Auto,
    /// One JSON object a line
    Json,
    /// Text
    Text,
}

impl From<LogFormat> for telemetry::Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Auto => Self::Auto,
            LogFormat::Json => Self::Json,
            LogFormat::Text => Self::Text,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything in this process until it is told to stop
    Up,
    /// Run one worker of a fleet, which shares a PostgreSQL store, until it is told to stop
    Worker,
    /// Run front doors alone, in front of a store that workers run, until it is told to stop
    Gateway,
    /// Make bearer tokens for the front doors (token new may be written token:new)
    #[command(subcommand)]
    Token(TokenCommand),
    /// Show the workers of a fleet and the owner of each shard
    Leases,
    /// Make a store, or bring it up to date, without running it (store prepare may be written store:prepare)
    #[command(subcommand)]
    Store(StoreCommand),
    /// Give a store that nobody runs another number of shards
    Reshard {
        /// The new number
        #[arg(long)]
        shards: u32,
    },
    /// Import messages from a file; killed and run again it continues without a duplicate
    Import(ImportArgs),
    /// Look at dead letters and decide about them (dlq peek may be written dlq:peek)
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Look at the events that sinks have not received yet (outbox stats may be written outbox:stats)
    #[command(subcommand)]
    Outbox(OutboxCommand),
    /// Look at the state of a key (state get may be written state:get)
    #[command(subcommand)]
    State(StateCommand),
    /// Look at timers (schedule list may be written schedule:list)
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// Look at keys (keys top may be written keys:top)
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Pause, resume or give up a service (service pause may be written service:pause)
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Pause or resume a key (key pause may be written key:pause)
    #[command(subcommand)]
    Key(KeyCommand),
    /// Show in time order the events of a message, or of a key's messages
    Explain {
        /// A message's id, or a key
        #[arg(value_name = "MESSAGE-ID|KEY")]
        id_or_key: String,
    },
    /// Call a front door: the operation takes effect once, however often it has to be sent
    Call(CallArgs),
    /// Show the shards and the messages that wait in them
    Status,
    /// Report problems and risks in settings, store and brokers, and what to do about them
    Doctor,
    /// Show or check the settings
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a completion script
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Commands about the settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show them, without secrets
    Show {
        /// Also show the origin of each
        #[arg(long)]
        origins: bool,
    },
    /// Report everything that is wrong with them
    Check,
}

/// Commands about dead letters.
#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// Show them, newest first
    Peek(PeekArgs),
    /// Run them again, in key order
    Replay(ChangeArgs),
    /// Remove them; a held key goes on
    Discard(ChangeArgs),
    /// Replace one by a message with another payload, which runs in its place
    Edit(EditArgs),
}

/// Commands about a key's state.
#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// Show it, with the messages that wait for the key
    Get(KeyArgs),
}

/// Commands about timers.
#[derive(Debug, Subcommand)]
pub enum ScheduleCommand {
    /// Show them, first due first
    List(ScheduleArgs),
}

/// Commands about keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Show those that most messages wait for
    Top(TopArgs),
}

/// The command in the arguments and the environment. An empty variable counts as not set.
pub fn parsed(argv: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut command = without_empty(Cli::command());
    let mut matches = command.try_get_matches_from_mut(rewritten(argv))?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

fn without_empty(command: clap::Command) -> clap::Command {
    let is_empty =
        |arg: &Arg| arg.get_env().is_some_and(|name| std::env::var_os(name).is_some_and(|set| set.is_empty()));
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(Resettable::Reset) } else { arg });
    command.mut_subcommands(without_empty)
}

/// The arguments with `dlq:peek` written as `dlq peek`, wherever the command stands.
pub fn rewritten(argv: Vec<OsString>) -> Vec<OsString> {
    let mut rewritten = Vec::with_capacity(argv.len() + 1);
    let mut argv = argv.into_iter();
    rewritten.extend(argv.next());
    while let Some(arg) = argv.next() {
        let text = arg.to_str().unwrap_or_default();
        if text.starts_with('-') {
            let takes_value = GLOBAL_WITH_VALUE.contains(&text);
            rewritten.push(arg);
            rewritten.extend(takes_value.then(|| argv.next()).flatten());
            continue;
        }
        match text.split_once(':').filter(|(group, _)| GROUPS.contains(group)) {
            Some((group, command)) => rewritten.extend([group.into(), command.into()]),
            None => rewritten.push(arg),
        }
        break;
    }
    rewritten.extend(argv);
    rewritten
}

fn set(text: &str) -> Result<(String, String), String> {
    let (setting, value) = text.split_once('=').ok_or("write it as SETTING=VALUE")?;
    Ok((setting.trim().to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn grouped_commands_have_two_spellings() {
        for (colon, spaces) in [
            ("budget-manager dlq:peek --limit 3", "budget-manager dlq peek --limit 3"),
            ("budget-manager --output json dlq:replay", "budget-manager --output json dlq replay"),
            ("budget-manager --output=json config:check", "budget-manager --output=json config check"),
            ("budget-manager outbox:stats", "budget-manager outbox stats"),
            ("budget-manager --set x=dlq:peek status", "budget-manager --set x=dlq:peek status"),
            ("budget-manager explain dlq:peek", "budget-manager explain dlq:peek"),
            ("budget-manager account:1", "budget-manager account:1"),
            ("budget-manager", "budget-manager"),
        ] {
            assert_eq!(rewritten(words(colon)), words(spaces));
        }
    }

    #[test]
    fn every_global_option_with_a_value_is_known_to_the_rewriting() {
        let command = Cli::command();
        let with_value = command.get_arguments().filter(|arg| arg.get_action().takes_values());
        let names: Vec<_> = with_value.filter_map(|arg| arg.get_long()).map(|long| format!("--{long}")).collect();
        assert_eq!(names, GLOBAL_WITH_VALUE);
    }

    #[test]
    fn the_arguments_make_sense_to_clap() {
        Cli::command().debug_assert();
        let line = "budget-manager import --service transactions f.csv --store-url sqlite:///x.db --set a.b=c=d";
        let cli = Cli::try_parse_from(words(line)).unwrap();
        let settings: Vec<_> =
            cli.global.flags().into_iter().map(|flag| (flag.flag, flag.setting, flag.value)).collect();
        let expected = [("--set", "a.b", "c=d"), ("--store-url", "store.url", "sqlite:///x.db")];
        assert_eq!(settings, expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())));
        assert!(Cli::try_parse_from(words("budget-manager status --set nothing")).is_err());
    }
}
