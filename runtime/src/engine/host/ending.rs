//! The end of a program: told to stop, in order, or because it could not do its work.
//! In: signals, errors. Out: an engine that is drained in order; exit codes.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

use crate::engine::{Engine, EngineError, SendError};
use crate::store::reshard::ReshardError;
use crate::store::{StoreError, leave_open};

/// A drain ends within this, whatever happens.
const DRAIN_MAX: Duration = Duration::from_secs(25);

/// The reason why a program could not do what was asked.
///
/// ```
/// use perkey::host::Failure;
///
/// let failure = Failure::Usage("show MEMBER; see --help".to_owned());
/// assert_eq!((failure.code(), failure.lines()), (64, vec!["show MEMBER; see --help"]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Something went wrong.
    Failed(String),
    /// The store is not available.
    Store(String),
    /// The arguments make no sense together.
    Usage(String),
    /// The settings are wrong: everything that is.
    Settings(Vec<String>),
}

impl Failure {
    /// [`Failure::Failed`] with what an error says.
    ///
    /// ```
    /// # use perkey::host::Failure;
    /// fn read(file: &str) -> Result<String, Failure> {
    ///     std::fs::read_to_string(file).map_err(Failure::failed)
    /// }
    /// assert_eq!(read("not/there").unwrap_err().code(), 1);
    /// ```
    pub fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Store(_) => 4,
            Self::Usage(_) => 64,
            Self::Settings(_) => 78,
        }
    }

    /// The lines to be shown to the operator.
    pub fn lines(&self) -> Vec<&str> {
        match self {
            Self::Failed(text) | Self::Store(text) | Self::Usage(text) => text.lines().collect(),
            Self::Settings(problems) => problems.iter().flat_map(|problem| problem.lines()).collect(),
        }
    }
}

impl From<ReshardError> for Failure {
    fn from(error: ReshardError) -> Self {
        match error {
            ReshardError::Refused(_) => Self::Failed(error.to_string()),
            ReshardError::Store(error) => error.into(),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        match error {
            StoreError::Unavailable(_)
            | StoreError::Refused(_)
            | StoreError::Newer { .. }
            | StoreError::Older { .. } => Self::Store(text),
            StoreError::Locked(_) => {
                Self::Store(format!("{text}: stop it first, or use a command that works beside it"))
            }
            StoreError::Url(_) | StoreError::Shards { .. } => Self::Settings(vec![text]),
            StoreError::Fenced(_)
            | StoreError::Owned { .. }
            | StoreError::CodeVersion { .. }
            | StoreError::Table { .. }
            | StoreError::Corrupt(_) => Self::Failed(text),
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Store(error) => error.into(),
            EngineError::Settings(problem) => Self::Settings(vec![problem]),
            EngineError::Start(_) | EngineError::Drain(_) => Self::Failed(error.to_string()),
        }
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Store(error) => error.into(),
            SendError::Refused(_) | SendError::Ended => Self::Failed(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// Takes the signals over: from now on they no longer end the process by themselves.
    pub fn take() -> Result<Self, Failure> {
        let take = |kind| signal(kind).map_err(|error| Failure::Failed(format!("cannot watch for signals: {error}")));
        Ok(Self { term: take(SignalKind::terminate())?, int: take(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => (),
            _ = self.int.recv() => (),
        }
    }
}

/// The end of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Everything settled is committed, and the shards are given up.
    InOrder,
    /// A signal cut it short: what was in hand is handled again at the next start.
    CutShort,
}

/// Drains the engine in order; a signal meanwhile cuts it short.
pub async fn drain(engine: Engine, signals: &mut Signals) -> Result<Drained, Failure> {
    tokio::select! {
        ended = tokio::time::timeout(DRAIN_MAX, engine.drain()) => match ended {
            Ok(drained) => {
                drained?;
                info!("drained");
                Ok(Drained::InOrder)
            }
            Err(_) => {
                leave_open();
                Err(Failure::Failed(format!("the drain did not end within {DRAIN_MAX:?}")))
            }
        },
        () = signals.next() => {
            warn!("told to stop a second time; what was in hand is handled again at the next start");
            leave_open();
            Ok(Drained::CutShort)
        }
    }
}
