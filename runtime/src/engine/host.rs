//! A program of one's own around handlers: all that its `main` needs.
//! In: a name, handlers, defaults, work to be done beside them. Out: a process that drains in order, and its exit code.

mod arguments;
mod ending;
mod files;

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use self::arguments::Arguments;
pub use self::ending::{Drained, Failure, Signals, drain};
pub use self::files::{TooFewFiles, files_fit, raise_files};
use super::Engine;
use crate::clock::Clock;
use crate::handlers::Handlers;
use crate::ledger::cron;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::settings::load::{Sources, load, or_near, redact};
use crate::store::{self, Access};
use crate::telemetry::{self, Format};
use crate::transport;

/// The time that is left to work that still runs when the process ends.
const SHUTDOWN: Duration = Duration::from_millis(100);

/// The arguments that every program understands.
const ARGUMENTS: &str = "  --config FILE         settings (TOML)
  --set SETTING=VALUE   one setting, such as --set retry.attempts=3; may be repeated
  --help                this text";

/// The meaning of the exit codes.
const CODES: &str = "Exit codes:
  0   done, or told to stop
  1   failed, or told to stop twice
  4   the store is not available: missing, locked by another process, or from a newer version
  64  wrong usage
  78  wrong settings";

/// A program: its name, its handlers, its settings.
///
/// ```no_run
/// # use perkey::{Fault, Handler, Key, Turn};
/// # #[derive(serde::Deserialize)] struct Said { room: String }
/// # struct Rooms;
/// # impl Handler for Rooms {
/// #     const SERVICE: &'static str = "rooms";
/// #     type Message = Said;
/// #     type State = u64;
/// #     fn key(&self, said: &Said) -> Key { said.room.as_str().into() }
/// #     async fn handle(&self, n: &mut u64, _: Said, _: &mut Turn) -> Result<(), Fault> { *n += 1; Ok(()) }
/// # }
/// use std::process::ExitCode;
///
/// use perkey::host::{Failure, Host, Running};
/// use perkey::{Handlers, json};
///
/// fn main() -> ExitCode {
///     Host::new("chat").handlers(Handlers::new().with(Rooms)).run(work)
/// }
///
/// /// Beside the engine; when it ends, the engine is drained and the process ends.
/// async fn work(running: Running) -> Result<(), Failure> {
///     running.engine.send::<Rooms>("message-1", &json!({ "room": "lobby" })).await?;
///     running.engine.idle().await;
///     Ok(())
/// }
/// ```
///
/// Settings come from `defaults`, then `--config FILE` or the variable `CHAT_CONFIG` or else `chat.toml` in the current
/// folder, then variables such as `CHAT_STORE__URL`, then `--set store.url=…`. The log goes to standard error
/// (`CHAT_LOG=debug`, `CHAT_LOG_FORMAT=json`).
pub struct Host {
    program: String,
    about: String,
    defaults: Settings,
    handlers: Box<Make>,
}

type Make = dyn FnOnce(&Settings) -> Result<Handlers, Vec<String>>;

/// Everything that a program has while its engine runs.
///
/// ```
/// # use perkey::json;
/// # use perkey::unstable::handler::example::Points;
/// use perkey::host::{Failure, Running};
///
/// async fn work(running: Running) -> Result<(), Failure> {
///     let [member] = running.arguments.as_slice() else {
///         return Err(Failure::Usage("MEMBER; see --help".to_owned()));
///     };
///     println!("{:?}", running.engine.state::<Points>(member).await?);
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Running {
    /// The engine: messages go in by [`Engine::send`], states come out by [`Engine::state`].
    pub engine: Engine,
    /// The engine's metrics: `metrics.encode()` is their text in the OpenMetrics format.
    pub metrics: Arc<Metrics>,
    /// The settings.
    pub settings: Arc<Settings>,
    /// The program's own arguments.
    pub arguments: Vec<String>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("program", &self.program).finish_non_exhaustive()
    }
}

impl Host {
    /// A program of this name; `-` in it becomes `_` in the names of its variables. Without `store.url` in its settings
    /// its store is `NAME.db` in the current folder.
    ///
    /// ```
    /// # use perkey::host::Host;
    /// let host = Host::new("loyalty");
    /// ```
    pub fn new(program: &str) -> Self {
        let mut defaults = Settings::default();
        defaults.store.url = format!("sqlite://{program}.db");
        Self {
            program: program.to_owned(),
            about: String::new(),
            defaults,
            handlers: Box::new(|_| Ok(Handlers::new())),
        }
    }

    /// The text of `--help` on the program's own arguments.
    ///
    /// ```
    /// # use perkey::host::Host;
    /// let host = Host::new("loyalty").about("Arguments:\n  show MEMBER   shows the account of a member");
    /// ```
    #[must_use]
    pub fn about(mut self, text: &str) -> Self {
        text.clone_into(&mut self.about);
        self
    }

    /// Changes the settings that hold where nothing else is said. `settings.app` declares those of the program's own.
    ///
    /// ```
    /// # use perkey::host::Host;
    /// let host = Host::new("loyalty").settings(|settings| {
    ///     settings.retry.attempts = 3;
    ///     settings.app.insert("valid_seconds".to_owned(), "31536000".to_owned());
    /// });
    /// ```
    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.defaults);
        self
    }

    /// Sets the program's handlers.
    ///
    /// ```
    /// # use perkey::{Handlers, host::Host};
    /// # use perkey::unstable::handler::example::Points;
    /// let host = Host::new("loyalty").handlers(Handlers::new().with(Points));
    /// ```
    #[must_use]
    pub fn handlers(self, handlers: Handlers) -> Self {
        self.handlers_from(move |_| Ok(handlers))
    }

    /// Sets a function that makes the program's handlers from the settings, or says everything that is wrong with those.
    ///
    /// ```
    /// # use perkey::{Handlers, Settings, host::Host};
    /// # use perkey::unstable::handler::example::Points;
    /// fn handlers(settings: &Settings) -> Result<Handlers, Vec<String>> {
    ///     match settings.app.get("valid_seconds").map(|text| text.parse::<u64>()) {
    ///         Some(Ok(_)) => Ok(Handlers::new().with(Points)),
    ///         _ => Err(vec!["app.valid_seconds is not a number of seconds".to_owned()]),
    ///     }
    /// }
    ///
    /// let host = Host::new("loyalty").handlers_from(handlers);
    /// ```
    #[must_use]
    pub fn handlers_from(mut self, make: impl FnOnce(&Settings) -> Result<Handlers, Vec<String>> + 'static) -> Self {
        self.handlers = Box::new(make);
        self
    }

    /// Runs until SIGTERM or SIGINT.
    ///
    /// ```no_run
    /// # use perkey::{Handlers, host::Host};
    /// # use perkey::unstable::handler::example::Points;
    /// fn main() -> std::process::ExitCode {
    ///     Host::new("loyalty").handlers(Handlers::new().with(Points)).serve()
    /// }
    /// ```
    pub fn serve(self) -> ExitCode {
        self.run(async |running: Running| match running.arguments.first() {
            Some(word) => Err(Failure::Usage(format!("{word:?} is not understood; see --help"))),
            None => std::future::pending().await,
        })
    }

    /// Runs until `work` ends, or SIGTERM or SIGINT ends it at its next `await`. Then the engine is drained: messages
    /// that were sent and not handled by then are handled at the next start.
    ///
    /// ```no_run
    /// # use perkey::{Handlers, host::{Host, Running}, json};
    /// # use perkey::unstable::handler::example::Points;
    /// fn main() -> std::process::ExitCode {
    ///     Host::new("loyalty").handlers(Handlers::new().with(Points)).run(async |running: Running| {
    ///         running.engine.send::<Points>("line-1", &json!({ "member": "ann", "points": 30 })).await?;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    pub fn run(self, work: impl AsyncFnOnce(Running) -> Result<(), Failure>) -> ExitCode {
        let program = self.program.clone();
        let ended = Arguments::of(words()).map_err(|error| Failure::Usage(error.to_string())).and_then(|arguments| {
            if arguments.help {
                return said(&self.help()).map(|()| Drained::InOrder);
            }
            in_runtime(Box::pin(self.execute(arguments, work)))?
        });
        match ended {
            Ok(Drained::InOrder) => ExitCode::SUCCESS,
            Ok(Drained::CutShort) => ExitCode::FAILURE,
            Err(failure) => {
                let mut out = std::io::stderr().lock();
                for line in failure.lines() {
                    // Nobody is left to be told that this cannot be written.
                    writeln!(out, "{program}: {line}").ok();
                }
                ExitCode::from(failure.code())
            }
        }
    }

    async fn execute(
        self,
        arguments: Arguments,
        work: impl AsyncFnOnce(Running) -> Result<(), Failure>,
    ) -> Result<Drained, Failure> {
        let prefix = prefix(&self.program);
        let format = log_format(&prefix, std::env::var(format!("{prefix}LOG_FORMAT")).ok().as_deref())?;
        let telemetry = telemetry::init(format, &format!("{prefix}LOG"), "info")
            .map_err(|error| Failure::Settings(vec![error.to_string()]))?;
        let ended = self.perform(arguments, prefix, work).await;
        telemetry.end().await;
        ended
    }

    async fn perform(
        self,
        arguments: Arguments,
        prefix: String,
        work: impl AsyncFnOnce(Running) -> Result<(), Failure>,
    ) -> Result<Drained, Failure> {
        let sources = Sources {
            file: file(&self.program, arguments.config, Path::new("")),
            defaults: self.defaults,
            env: environment(),
            flags: arguments.set,
            prefix,
        };
        let settings = Arc::new(load(&sources).map_err(Failure::Settings)?.settings);
        let handlers = (self.handlers)(&settings).map_err(Failure::Settings)?;
        let problems = misfits(&settings, &handlers);
        if !problems.is_empty() {
            return Err(Failure::Settings(problems));
        }
        let mut signals = Signals::take()?;
        let store = store::open(&settings, Access::Run).await?.store();
        let metrics = Metrics::new();
        let engine = Engine::start(&settings, handlers, store, Arc::clone(&metrics)).await?;
        info!(store = %redact("store.url", &settings.store.url), "messages are being handled");
        let running = Running { engine: engine.clone(), metrics, settings, arguments: arguments.rest };
        let ended = tokio::select! {
            ended = work(running) => ended,
            reason = engine.failed() => return Err(Failure::Failed(format!("the engine gave up: {reason}"))),
            () = signals.next() => {
                info!("draining; a second signal ends the process at once");
                Ok(())
            }
        };
        let drained = drain(engine, &mut signals).await;
        ended.and(drained)
    }

    fn help(&self) -> String {
        let Self { program, about, .. } = self;
        let about = if about.is_empty() { String::new() } else { format!("{}\n\n", about.trim_end()) };
        let prefix = prefix(program);
        format!(
            "Usage: {program} [--config FILE] [--set SETTING=VALUE]... [ARGUMENTS]\n\n{about}{ARGUMENTS}\n\n\
             Settings: {program}.toml in the current folder, or the file that {prefix}CONFIG names; variables such as\n\
             {prefix}STORE__URL overrule it. The log: {prefix}LOG=info, {prefix}LOG_FORMAT=text, json or auto.\n\n{CODES}"
        )
    }
}

/// Writes a text to standard output, to the last byte. A reader that has seen enough closes the pipe: that is not a failure.
pub fn said(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("cannot write: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Runs a process's one future on all cores, and closes the stores that it opened. Work that still runs by then is cut
/// off: a thread that reads a terminal would never end.
pub fn in_runtime<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    // A connection is a file, and many systems allow only few of them by default.
    raise_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Failed(format!("cannot start: {error}")))?;
    let ended = runtime.block_on(store::closing(future));
    runtime.shutdown_timeout(SHUTDOWN);
    Ok(ended)
}

/// The process's environment, without values that are not text.
pub fn environment() -> Vec<(String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// The operator who runs this process, as commands are recorded: the user's name, else the number, and the machine.
pub fn operator() -> String {
    let name = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|who| !who.is_empty()));
    named(name, rustix::process::getuid().as_raw(), &rustix::system::uname().nodename().to_string_lossy())
}

fn named(name: Option<String>, uid: u32, host: &str) -> String {
    // A container has neither name in its environment.
    let name = name.unwrap_or_else(|| format!("uid {uid}"));
    format!("{name} on {host}")
}

/// Everything that settings name and that does not exist: services, dependencies, schedules, sources, sinks. A start
/// refuses the same.
pub fn misfits(settings: &Settings, handlers: &Handlers) -> Vec<String> {
    let binds = settings.bind.iter().map(|bind| ("bind", &bind.service));
    let publishes = settings.publish.iter().map(|publish| ("publish", &publish.service));
    let publishes = publishes.filter(|(_, service)| *service != "*");
    let limits = settings.limit.iter().map(|limit| ("limit", &limit.service));
    let unknown = binds.chain(publishes).chain(limits).filter(|(_, service)| handlers.index_of(service).is_none());
    let mut problems: Vec<_> =
        unknown.map(|(route, service)| format!("{route}: {}", handlers.unknown(service))).collect();
    let needs: BTreeSet<_> = handlers.needs().into_iter().flat_map(|(_, needs)| needs).copied().collect();
    let named = settings.dependency.iter().map(|dependency| dependency.name.as_str());
    problems.extend(named.filter(|name| !needs.contains(name)).map(|name| {
        let near = or_near(name, needs.iter().copied());
        let needed = needs.iter().copied().collect::<Vec<_>>().join(", ");
        format!("dependency: no handler needs {name:?}; they need {needed}{near}")
    }));
    let schedules = cron::plan(handlers, settings, Clock::system().now());
    problems.extend(schedules.err().into_iter().flatten());
    let (sources, sinks) = transport::open::names(settings);
    problems.extend(super::start::unrouted(settings, &sources, &sinks));
    problems.extend(super::cache::check(settings).err().map(|error| error.to_string()));
    problems
}

/// The arguments, without the program's name. One that is not text is shown as well as possible, and not understood.
fn words() -> impl Iterator<Item = String> {
    std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned())
}

/// The prefix of the program's environment variables.
fn prefix(program: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    program.chars().map(word).chain(['_']).collect()
}

/// The settings file: the one that is named, else the one with the program's name, if it exists.
fn file(program: &str, named: Option<PathBuf>, folder: &Path) -> Option<PathBuf> {
    let variable = || std::env::var_os(format!("{}CONFIG", prefix(program))).filter(|file| !file.is_empty());
    let here = || Some(folder.join(format!("{program}.toml"))).filter(|file| file.exists());
    named.or_else(|| variable().map(PathBuf::from)).or_else(here)
}

fn log_format(prefix: &str, asked: Option<&str>) -> Result<Format, Failure> {
    match asked {
        None | Some("" | "auto") => Ok(Format::Auto),
        Some("text") => Ok(Format::Text),
        Some("json") => Ok(Format::Json),
        Some(other) => {
            Err(Failure::Settings(vec![format!("{prefix}LOG_FORMAT: {other:?} is not one of text, json and auto")]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_gave_a_command_is_known() {
        assert_eq!(named(Some("ann".to_owned()), 0, "db-1"), "ann on db-1");
        assert_eq!(named(None, 1_000, "db-1"), "uid 1000 on db-1");
        assert!(operator().contains(" on "), "{}", operator());
    }

    #[test]
    fn a_programs_variables_have_its_name() {
        assert_eq!(prefix("loyalty"), "LOYALTY_");
        assert_eq!(prefix("budget-manager"), "BUDGET_MANAGER_");
    }

    #[test]
    fn the_file_of_the_programs_name_is_read_when_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let program = "perkey-test-host";
        assert_eq!(file(program, None, folder.path()), None);
        let named = Some(PathBuf::from("x.toml"));
        std::fs::write(folder.path().join("perkey-test-host.toml"), "").unwrap();
        assert_eq!(file(program, None, folder.path()), Some(folder.path().join("perkey-test-host.toml")));
        assert_eq!(file(program, named.clone(), folder.path()), named);
    }

    #[test]
    fn a_form_of_the_log_that_is_none_is_told() {
        assert_eq!(log_format("X_", Some("json")), Ok(Format::Json));
        assert_eq!(log_format("X_", Some("")), Ok(Format::Auto), "an empty variable is as one that is not set");
        let Err(Failure::Settings(problems)) = log_format("X_", Some("xml")) else { panic!("xml is no form") };
        assert!(problems[0].starts_with("X_LOG_FORMAT: \"xml\""), "{problems:?}");
    }
}
