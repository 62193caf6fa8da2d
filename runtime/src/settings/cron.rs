//! Schedules of handlers as the settings change them.
//! In: `[[cron]]` sections. Out: plain values, or problems.

use serde::{Deserialize, Serialize};

use super::Settings;
use super::problems::Problems;

/// Changes to a handler's schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CronSettings {
    /// The service.
    pub service: String,
    /// The schedule's name; the changes apply to it under every key.
    pub name: String,
    /// Its cron expression; empty: the handler's own.
    #[serde(default)]
    pub cron: String,
    /// Its time zone; empty: the handler's own.
    #[serde(default)]
    pub zone: String,
    /// True if it is on.
    #[serde(default = "on")]
    pub enabled: bool,
}

fn on() -> bool {
    true
}

pub(super) fn check(settings: &Settings, found: &mut Problems) {
    for (at, CronSettings { service, name, .. }) in settings.cron.iter().enumerate() {
        if settings.cron[..at].iter().any(|other| (&other.service, &other.name) == (service, name)) {
            let text = format!("cron {name:?} of {service:?}: there is more than one section of it");
            found.add(&["cron"], text);
        }
    }
}
