//! `reshard`: another number of shards for a store that was drained.
//! In: how many. Out: what was moved, or everything that stands in the way.

use perkey::settings::Settings;
use perkey::store::reshard::Resharded;
use perkey::store::{self, Access};

use super::output::Out;
use super::{Done, Ended, open_beside};

/// Changes the number of shards.
pub async fn reshard(settings: &Settings, shards: u32, out: Out) -> Ended {
    let mut sinks: Vec<String> = settings.publish.iter().map(|publish| publish.sink.clone()).collect();
    // The embedded log has no watermark: whether it is read is looked at by itself.
    sinks.retain(|sink| sink != perkey::transport::embedded::NAME);
    // A tool never makes a store: a mistyped name is an error.
    open_beside(settings).await?.close().await;
    let resharded = store::open(settings, Access::Run).await?.reshard(shards, sinks).await?;
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
