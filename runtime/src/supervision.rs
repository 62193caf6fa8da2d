//! Who is restarted when, and when a failure becomes the supervisor's own.
//! In: how children ended. Out: restarts after a delay, or escalations.

pub mod policy;
