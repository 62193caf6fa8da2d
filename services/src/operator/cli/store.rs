//! `store:prepare`, `store:restored` and `reshard`: the work of a store's owner while nobody runs it, or beside those
//! that do.
//! In: settings; a number of shards. Out: a store in shape, or the moves, or every obstacle.

use clap::Subcommand;
use perkey::Settings;
use perkey::unstable::engine;
use perkey::unstable::settings::load::redact;
use perkey::unstable::store::reshard::Resharded;
use perkey::unstable::store::{Access, open};
use serde::Serialize;

use super::output::Out;
use super::{Done, Ended, handlers, open_beside};

/// Commands of the store's owner.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum StoreCommand {
    /// Make it, or bring it up to date, as a start would: workers then need not own it
    Prepare,
    /// Mark it as restored, before anything is started: older answers in Redis no longer count
    Restored,
}

/// A store that is in shape.
#[derive(Serialize)]
struct Prepared {
    store: String,
    shards: u32,
    services: usize,
}

/// A store that was restored.
#[derive(Serialize)]
struct Restored {
    store: String,
}

/// Brings the store into shape: its format, this program's services and their tables.
pub async fn prepare(settings: &Settings, out: Out) -> Ended {
    let setup = engine::setup(settings, &handlers(settings)?);
    let (shards, store) = (setup.shards, redact("store.url", &settings.store.url));
    let services = open(settings, Access::Run).await?.prepare(setup).await?.services.len();
    let text = |it: &Prepared| format!("{} is in shape: {} shards, {} services", it.store, it.shards, it.services);
    out.show(&Prepared { store, shards, services }, text)?;
    Ok(Done::All)
}

/// Makes the store begin another life.
pub async fn restored(settings: &Settings, out: Out) -> Ended {
    open_beside(settings).await?.restored().await?;
    let store = redact("store.url", &settings.store.url);
    out.show(&Restored { store }, |it| format!("{} believes nothing that was kept elsewhere before", it.store))?;
    Ok(Done::All)
}

/// Changes the number of shards.
pub async fn reshard(settings: &Settings, shards: u32, out: Out) -> Ended {
    let mut sinks: Vec<String> = settings.publish.iter().map(|publish| publish.sink.clone()).collect();
    // The embedded log has no watermark: whether it is read is looked at by itself.
    sinks.retain(|sink| sink != perkey::unstable::transport::embedded::NAME);
    // A tool never makes a store: a mistyped name is an error.
    open_beside(settings).await?.close().await;
    let resharded = open(settings, Access::Run).await?.reshard(shards, sinks).await?;
    out.show(&resharded, text)?;
    Ok(Done::All)
}

fn text(resharded: &Resharded) -> String {
    let Resharded { from, to, commits, pending, dead_letters } = resharded;
    format!(
        "{from} shards are {to} now: {commits} commits, {pending} waiting messages and {dead_letters} dead letters were \
         moved.\nSet ownership.shards = {to} wherever the store is run."
    )
}
