//! The listener for metrics and health, and the bounds of metrics.
//! In: the sections `[admin]` and `[metrics]`. Out: plain values.

use std::time::Duration;

use serde::{Deserialize, Serialize};

section! {
    /// The listener for metrics and health.
    AdminSettings {
        /// Its address.
        listen: String = "127.0.0.1:8082".to_owned(),
        /// Time after which an unreachable broker makes the process not ready.
        #[serde(with = "humantime_serde")]
        away_max: Duration = Duration::from_secs(30),
    }
}

section! {
    /// The bounds of metrics.
    MetricsSettings {
        /// Time from when a message was taken after which its outcome is late.
        #[serde(with = "humantime_serde")]
        late_after: Duration = Duration::from_secs(5),
    }
}
