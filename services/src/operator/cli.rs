//! The commands, and what they share: how they end, the handlers, the store.
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

/// How a command ended when nothing stood in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// All of it was done.
    All,
    /// It was done, but some of the input was refused.
    SomeRefused,
    /// There was nothing to do it to.
    NothingFound,
    /// It was told to stop; what it did so far is kept.
    Interrupted,
    /// It was done, and what was looked at is not as it must be.
    Unsound,
}

/// How a command ended.
pub type Ended = Result<Done, Failure>;

/// The handlers, as the settings want them.
pub fn handlers(settings: &Settings) -> Result<Handlers, Failure> {
    defaults::handlers(settings).map_err(Failure::Settings)
}

/// Opens the store for a command that works beside a running process, or without one.
pub(crate) async fn open_beside(settings: &Settings) -> Result<Opened, Failure> {
    Ok(open(settings, Access::Tool).await?)
}

/// The command that runs a store such as the settings name.
pub(crate) fn runner(settings: &Settings) -> &'static str {
    if is_shared(settings) { "budget-manager worker" } else { "budget-manager up" }
}
