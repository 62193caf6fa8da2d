//! Limits of services, and the treatment of dependencies.
//! In: `[[limit]]` and `[[dependency]]` sections. Out: plain values, or problems.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Settings;
use super::problems::Problems;

/// Bounds of one service's turns, for each process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceLimit {
    /// The service.
    pub service: String,
    /// Turns at once; 0: as many as there are keys.
    #[serde(default)]
    pub concurrency: usize,
    /// Turns a second; 0: no bound.
    #[serde(default)]
    pub rate: f64,
}

/// The treatment of a dependency that handlers name in `NEEDS`, for each process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DependencySettings {
    /// Its name in `NEEDS`.
    pub name: String,
    /// Failures in a row that open its circuit breaker.
    pub failures: u32,
    /// Time for which it stays open at first; doubled each time, half of it by chance.
    #[serde(with = "humantime_serde")]
    pub open_for: Duration,
    /// Longest time for which it stays open.
    #[serde(with = "humantime_serde")]
    pub open_max: Duration,
    /// Turns at once; 0: as many as there are keys.
    pub concurrency: usize,
    /// Turns a second; 0: no bound.
    pub rate: f64,
}

impl Default for DependencySettings {
    fn default() -> Self {
        Self {
            name: String::new(),
            failures: 5,
            open_for: Duration::from_millis(500),
            open_max: Duration::from_secs(10),
            concurrency: 0,
            rate: 0.0,
        }
    }
}

pub(super) fn check(settings: &Settings, found: &mut Problems) {
    let mut names = std::collections::BTreeSet::new();
    for DependencySettings { name, failures, open_for, open_max, rate, .. } in &settings.dependency {
        let mut check = |fine: bool, problem: &str| {
            if !fine {
                found.add(&["dependency"], format!("dependency {name:?}: {problem}"));
            }
        };
        check(!name.is_empty(), "name must be set");
        check(names.insert(name), "there is a section of this name already");
        check(*failures >= 1, "failures must be at least 1");
        check(!open_for.is_zero() && open_max >= open_for, "open_for must be above 0, open_max at least open_for");
        check(rate.is_finite() && *rate >= 0.0, "rate must be 0 or more");
    }
    for ServiceLimit { service, rate, .. } in &settings.limit {
        if !rate.is_finite() || *rate < 0.0 {
            found.add(&["limit"], format!("limit of {service:?}: rate must be 0 or more"));
        }
        if settings.limit.iter().filter(|limit| limit.service == *service).count() > 1 {
            found.add(&["limit"], format!("limit of {service:?}: there is more than one section of it"));
        }
    }
}
