//! The real servers of a scenario: those that already run, or a set of its own that it may kill.
//! In: the environment, or `scripts/services`. Out: the address of each; restarts and crashes on demand.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::ChaosError;
use crate::fleet::faults::{On, Server};

/// A server is up, or down, within this time, even if it must be installed first.
const WITHIN: Duration = Duration::from_secs(600);

/// The addresses of the servers.
#[derive(Clone, Debug)]
pub struct Servers {
    /// `postgres://…` of a database from which others are made.
    pub postgres: String,
    /// `host:port` of the server that carries the messages; empty if PostgreSQL does.
    pub broker: String,
    /// Kafka through a proxy: the address where Kafka listens, and the one where the proxy must listen.
    pub proxied: Option<(String, String)>,
    /// The folder of the servers, if they are the scenario's own.
    own: Option<PathBuf>,
}

impl Servers {
    /// The servers that the environment names.
    pub fn running(on: On) -> Result<Self, ChaosError> {
        Self::named(on, |name| std::env::var(name).ok(), None)
    }

    /// The scenario's own servers, started if need be.
    pub async fn own(on: On) -> Result<Self, ChaosError> {
        // Not below a folder that only its maker may enter: PostgreSQL runs as a user of its own.
        let folder = std::env::temp_dir().join("perkey-chaos-services");
        let mut up = vec!["up", Server::Postgres.as_str()];
        up.extend(on.broker().map(Server::as_str));
        let said = services(&folder, &up).await?;
        let value = |name: &str| {
            let mut words = said.split_whitespace().filter_map(|word| word.split_once('='));
            words.find(|(word, _)| *word == name).map(|(_, value)| value.to_owned())
        };
        Self::named(on, value, Some(folder.clone()))
    }

    fn named(on: On, value: impl Fn(&str) -> Option<String>, own: Option<PathBuf>) -> Result<Self, ChaosError> {
        let needed = |server: Server| {
            let name = server.variable();
            value(name).ok_or_else(|| ChaosError::Stuck(format!("{name} is not set: eval \"$(scripts/services up)\"")))
        };
        Ok(Self {
            postgres: needed(Server::Postgres)?,
            broker: on.broker().map(needed).transpose()?.unwrap_or_default(),
            proxied: value("PERKEY_TEST_KAFKA_PROXIED").zip(value("PERKEY_TEST_KAFKA_PROXY")),
            own,
        })
    }

    /// Does `verb` (`kill`, `restart`) to one of its own servers, and waits for it.
    pub async fn tell(&self, verb: &str, server: Server) -> Result<(), ChaosError> {
        let Some(folder) = &self.own else {
            return Err(ChaosError::Stuck("only servers of one's own may be killed".to_owned()));
        };
        services(folder, &[verb, server.as_str()]).await.map(drop)
    }

    /// Stops the scenario's own servers; the next scenario starts them again.
    pub async fn leave(&self) -> Result<(), ChaosError> {
        match &self.own {
            Some(folder) => services(folder, &["down", "--wipe"]).await.map(drop),
            None => Ok(()),
        }
    }
}

async fn services(folder: &Path, args: &[&str]) -> Result<String, ChaosError> {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/services"));
    command.args(args).env("PERKEY_SERVICES", folder).stdin(Stdio::null()).kill_on_drop(true);
    let what = format!("scripts/services {}", args.join(" "));
    let output = tokio::time::timeout(WITHIN, command.output()).await;
    let output = output.map_err(|_| ChaosError::Stuck(format!("{what} did not end within {WITHIN:?}")))??;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(ChaosError::Stuck(format!("{what} failed: {said}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
