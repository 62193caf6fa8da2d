//! The bounds of metrics.
//! In: the section `[metrics]`. Out: plain values.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The bounds of metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsSettings {
    /// Time from when a message was taken after which its outcome is late.
    #[serde(with = "humantime_serde")]
    pub late_after: Duration,
}

impl Default for MetricsSettings {
    fn default() -> Self {
        Self { late_after: Duration::from_secs(5) }
    }
}
