//! The commands, and their shared parts: their outcomes, the handlers, the store.
//! In: settings and arguments. Out: text or JSON on standard output, problems on standard error.

pub mod args;
pub mod call;
pub mod config;
pub mod dlq;
pub mod edit;
pub mod explain;
pub mod keys;
pub mod leases;
pub mod outbox;
pub mod output;
pub mod pause;
pub mod status;
pub mod store;
pub mod up;

use perkey::Handlers;
use perkey::Settings;
pub use perkey::host::Failure;
use perkey::unstable::store::{Access, Opened, is_shared, open};

use crate::defaults;

/// The ways in which a command can end without a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Everything was done.
    All,
    /// It was done, but some of the input was refused.
    SomeRefused,
    /// There was nothing to act on.
    NothingFound,
    /// The command was told to stop; its work so far is kept.
    Interrupted,
    /// The check was done, and found a problem.
    Unsound,
}

/// The result of a command.
pub type Ended = Result<Done, Failure>;

/// The handlers, configured by the settings.
pub fn handlers(settings: &Settings) -> Result<Handlers, Failure> {
    defaults::handlers(settings).map_err(Failure::Settings)
}

/// Opens the store for a command that works beside a running process, or without one.
pub(crate) async fn open_beside(settings: &Settings) -> Result<Opened, Failure> {
    Ok(open(settings, Access::Tool).await?)
}

/// The command that runs a store of the kind that the settings name.
pub(crate) fn runner(settings: &Settings) -> &'static str {
    if is_shared(settings) { "budget-manager worker" } else { "budget-manager up" }
}
