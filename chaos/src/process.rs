//! The real binary as a process: found, started, killed, told to end.
//! In: arguments and a store. Out: a child process that ends with its parent, and its output in a file.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use perkey::sleep;
use perkey::unstable::clock::Stopwatch;
use tokio::process::{Child, Command};

use crate::ChaosError;

/// The interval between looks at something that cannot be awaited.
pub const LOOK_EVERY: Duration = Duration::from_millis(5);

static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);

/// The binary beside this executable, of the same profile; built first, which takes no time when it is fresh.
pub fn built() -> Result<PathBuf, ChaosError> {
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(path) = &*built {
        return Ok(path.clone());
    }
    let exe = std::env::current_exe()?;
    let outside = || ChaosError::Stuck(format!("{} is in no target directory; name the binary", exe.display()));
    let folder = exe.parent().ok_or_else(outside)?;
    let folder = if folder.ends_with("deps") { folder.parent().ok_or_else(outside)? } else { folder };
    let target = folder.parent().ok_or_else(outside)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(cargo);
    // The whole workspace is named so that dependencies keep the features, and the builds, that they have already.
    command.args(["build", "--quiet", "--locked", "--workspace", "--bin", "budget-manager"]);
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).env("CARGO_TARGET_DIR", target);
    // Variables that cargo sets for a test: build scripts that look at them would run again, here and at the next build
    // outside.
    let told = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_", "OUT_DIR"];
    for (name, _) in std::env::vars_os() {
        if told.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    if folder.ends_with("release") {
        command.arg("--release");
    }
    let path = folder.join("budget-manager");
    if !command.status()?.success() || !path.is_file() {
        return Err(ChaosError::Stuck(format!("{} could not be built", path.display())));
    }
    *built = Some(path.clone());
    Ok(path)
}

/// The binary that is `named`, or the one that [`built`] makes.
pub(crate) async fn binary(named: Option<&Path>) -> Result<PathBuf, ChaosError> {
    let stuck = |error: &dyn std::fmt::Display| ChaosError::Stuck(error.to_string());
    match named {
        Some(path) => path.canonicalize().map_err(|error| stuck(&format!("{}: {error}", path.display()))),
        None => tokio::task::spawn_blocking(built).await.map_err(|error| stuck(&error))?,
    }
}

/// The place where processes run: the binary, the store that they share, and the file that they write to.
#[derive(Clone, Debug)]
pub struct Place {
    /// The binary.
    pub binary: PathBuf,
    /// The folder of the store and everything else.
    pub folder: PathBuf,
    /// `store.url`.
    pub url: String,
}

impl Place {
    /// A place in `folder`.
    pub fn new(binary: &Path, folder: &Path) -> Self {
        let url = format!("sqlite://{}", folder.join("store.db").display());
        Self { binary: binary.to_owned(), folder: folder.to_owned(), url }
    }

    /// A command of the binary on this place's store; it takes no setting from the environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).current_dir(&self.folder).stdin(Stdio::null()).kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BUDGET_") {
                command.env_remove(name);
            }
        }
        command.env("BUDGET_STORE__URL", &self.url).env("BUDGET_LOG_FORMAT", "text");
        // Ports that the system chooses: many processes run at once.
        command.env("BUDGET_GATEWAY__LISTEN", "127.0.0.1:0").env("BUDGET_GATEWAY__GRPC_LISTEN", "127.0.0.1:0");
        command
    }

    /// Starts the binary with `args`; its output is appended to the file `log`.
    pub fn start(&self, log: &str, args: &[&str]) -> Result<Running, ChaosError> {
        let file = OpenOptions::new().create(true).append(true).open(self.folder.join(log))?;
        let errors: File = file.try_clone()?;
        let child = self.command(args).stdout(file).stderr(errors).spawn()?;
        let pid = child.id().unwrap_or_default();
        Ok(Running { child, pid })
    }

    /// Runs the binary with `args` to its end, at most this long.
    pub async fn run(&self, args: &[&str], within: Duration) -> Result<std::process::Output, ChaosError> {
        let output = tokio::time::timeout(within, self.command(args).output()).await;
        output.map_err(|_| stuck(&format!("{} did not end", args.join(" ")), within))?.map_err(ChaosError::from)
    }

    /// The end of what was written to `log`, for a report.
    pub fn tail(&self, log: &str) -> String {
        let text = std::fs::read_to_string(self.folder.join(log)).unwrap_or_default();
        let from = text.lines().count().saturating_sub(5);
        text.lines().skip(from).collect::<Vec<_>>().join("\n")
    }
}

/// A process that was started here. When dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    pub(crate) child: Child,
    /// The process id.
    pub pid: u32,
}

impl Running {
    /// Returns whether it is still running.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> Result<ExitStatus, ChaosError> {
        Ok(self.child.wait().await?)
    }

    /// Waits for its end, at most this long.
    pub async fn ends(&mut self, within: Duration) -> Result<ExitStatus, ChaosError> {
        let ended = tokio::time::timeout(within, self.child.wait()).await;
        ended.map_err(|_| stuck(&format!("process {} did not end", self.pid), within))?.map_err(ChaosError::from)
    }

    /// Ends it with SIGKILL; returns false if it had ended by itself.
    pub async fn kill(&mut self) -> Result<bool, ChaosError> {
        if !self.is_alive() {
            return Ok(false);
        }
        self.child.start_kill()?;
        let status = self.child.wait().await?;
        // It may have ended by itself in the instant between.
        Ok(status.code().is_none())
    }

    /// Sends it SIGTERM.
    pub async fn terminate(&mut self) -> Result<(), ChaosError> {
        self.signal("TERM").await
    }

    /// Sends it a signal: `STOP` freezes it, `CONT` wakes it.
    pub async fn signal(&mut self, name: &str) -> Result<(), ChaosError> {
        let pid = self.pid.to_string();
        if self.is_alive() && !Command::new("kill").args([&format!("-{name}"), &pid]).status().await?.success() {
            return Err(ChaosError::Stuck(format!("SIG{name} did not reach process {pid}")));
        }
        Ok(())
    }
}

/// Waits until `holds`, at most this long.
pub async fn until(what: &str, within: Duration, mut holds: impl AsyncFnMut() -> bool) -> Result<(), ChaosError> {
    let watch = Stopwatch::start();
    while !holds().await {
        if watch.elapsed() > within {
            return Err(stuck(what, within));
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn stuck(what: &str, within: Duration) -> ChaosError {
    ChaosError::Stuck(format!("{what} within {within:?}"))
}
