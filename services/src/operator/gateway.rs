//! `gateway`: the front doors alone, in front of a store that workers run.
//! In: settings. Out: a process that answers until it is told to stop.

use std::sync::Arc;

use perkey::unstable::engine::cache;
use perkey::unstable::engine::calls::Calls;
use perkey::unstable::engine::host::Signals;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::settings::load::redact;
use perkey::unstable::store::{self, Access};
use perkey::{Settings, StoreError};
use tracing::info;

use crate::gateway::front::Front;
use crate::gateway::{self, Doors};
use crate::operator::admin::{self, Admin, Stage};
use crate::operator::cli::up::{admin_listener, shut};
use crate::operator::cli::{Done, Ended, Failure, handlers};

/// Runs the front doors.
pub async fn gateway(settings: &Settings) -> Ended {
    if !store::is_shared(settings) {
        let shown = redact("store.url", &settings.store.url);
        let why = format!(
            "store.url: `gateway` stands in front of a store that workers share, and {shown} is run by one process, \
             which listens itself: set store.url = \"postgres://user@host/database\", or use `budget-manager up`"
        );
        return Err(Failure::Settings(vec![why]));
    }
    let mut signals = Signals::take()?;
    let opened = store::open(settings, Access::Serve).await?;
    fits(settings, opened.shards_recorded().await?)?;
    let store = opened.store();
    let doors = Doors::bind(settings).await.map_err(Failure::Failed)?;
    let (listener, address) = admin_listener(settings).await?;
    let (metrics, handlers) = (Metrics::new(), handlers(settings)?);
    let cache = cache::open(settings, &store.calls().secret().await?, &metrics);
    let cache = cache.map_err(|error| Failure::Settings(vec![error.to_string()]))?;
    let calls = Calls::new(settings, handlers.clone(), Arc::clone(&store), cache, Arc::clone(&metrics));
    let front = Front::new(settings, &handlers, Arc::clone(&store), Arc::clone(&calls), &metrics);
    metrics.set_build(env!("CARGO_PKG_VERSION"), handlers.code().number);
    let admin = Admin::new(settings, Arc::clone(&metrics));
    admin.set(Stage::Reading(store, calls));
    let open = gateway::start(doors, front, metrics);
    info!(store = %redact("store.url", &settings.store.url), metrics = %address, "requests are being answered");
    tokio::select! {
        () = signals.next() => {}
        () = admin::serve(listener, Arc::clone(&admin)) => return Err(admin::failed()),
    }
    info!("draining; a second signal ends the process at once");
    admin.set(Stage::Draining);
    Ok(if shut(open, &mut signals).await { Done::All } else { Done::Interrupted })
}

/// Checks that workers have given the store the shape that the settings say.
fn fits(settings: &Settings, recorded: u32) -> Result<(), Failure> {
    let wanted = settings.ownership.shards;
    match recorded {
        0 => Err(Failure::Failed(
            "no worker has prepared this store yet: start `budget-manager worker` first".to_owned(),
        )),
        _ if recorded != wanted => Err(StoreError::Shards { recorded, wanted }.into()),
        _ => Ok(()),
    }
}
