//! Schedules of a handler: messages that come by the clock, as its author writes them.
//! In: a name, a cron expression and its time zone, a key, a message. Out: plain values, checked when the program starts.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::message::Key;

/// Timers whose names begin with this are set by schedules, and by nothing else.
pub(crate) const CRON: &str = "cron:";

/// Header of an occurrence's message: expression and time zone of its schedule.
pub(crate) const SCHEDULE: &str = "perkeycron";

/// A message that a key of the handler is given at each time that a cron expression means.
///
/// ```
/// use perkey::Schedule;
/// use perkey::json;
///
/// let close = Schedule::new("close", "0 18 * * MON-FRI", "till-1", &json!({ "command": "close" }));
/// let close = close.zone("Europe/Berlin");
/// ```
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Its name, unique for the key.
    pub name: String,
    /// The cron expression: minute, hour, day of month, month, day of week; seconds may stand before them.
    pub cron: String,
    /// The time zone that the expression is meant in, by its name in the IANA database.
    pub zone: String,
    /// The key that gets the message.
    pub key: Key,
    /// The message's JSON, or why it has none.
    pub(crate) message: Result<Bytes, Arc<serde_json::Error>>,
}

impl Schedule {
    /// A schedule in UTC.
    ///
    /// ```
    /// # use perkey::{Schedule, json};
    /// let bonus = Schedule::new("bonus", "0 9 * * MON", "ann", &json!({ "member": "ann", "points": 5 }));
    /// assert_eq!(bonus.zone, "UTC");
    /// ```
    pub fn new(name: &str, cron: &str, key: impl Into<Key>, message: &impl Serialize) -> Self {
        let message = serde_json::to_vec(message).map(Bytes::from).map_err(Arc::new);
        Self { name: name.to_owned(), cron: cron.to_owned(), zone: "UTC".to_owned(), key: key.into(), message }
    }

    /// Sets the time zone, such as `Europe/Berlin`.
    ///
    /// ```
    /// # use perkey::{Schedule, json};
    /// let close = Schedule::new("close", "0 18 * * *", "till-1", &json!("close")).zone("Europe/Berlin");
    /// assert_eq!(close.zone, "Europe/Berlin");
    /// ```
    #[must_use]
    pub fn zone(mut self, zone: &str) -> Self {
        zone.clone_into(&mut self.zone);
        self
    }
}
