//! The promises that a simulation holds a program to, as they are broken.
//! In: facts of commits, sources and sinks. Out: one closed enum, for whoever reads why a seed failed.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Millis;
use crate::message::{Position, ShardNo};
use crate::store::layout::log::RowError;
use crate::store::{Attempt, StoreError};
use crate::testing::fault_plan::FaultPlan;
use crate::transport::SourceError;

/// A promise that was broken, or a part of the simulation that does not do its work.
#[derive(Debug, thiserror::Error)]
pub(in crate::testing) enum Violation {
    #[error("shard {shard}, commit {no}: {violation}")]
    Commit { shard: ShardNo, no: u64, violation: Box<Self> },
    #[error("written under epoch {0}, which was over")]
    StaleEpoch(u64),
    #[error("a fenced commit (shard {shard}, {no}) left rows behind")]
    FencedRows { shard: ShardNo, no: u64 },

    // ---- sources
    #[error("row {0} of the intake is deleted, but not taken")]
    IntakeRowLost(u64),
    #[error("{source_name}/{origin} goes back to {position:?}")]
    PositionBack { source_name: &'static str, origin: Arc<str>, position: Position },
    #[error("{source_name}/{origin} is passed up to {position:?}, but {id:?} at {at:?} is not taken")]
    PassedOver { source_name: &'static str, origin: Arc<str>, position: Position, id: String, at: Position },
    #[error("{source_name}/{origin}: {name} is said to be done, but is not taken")]
    AheadNotTaken { source_name: Arc<str>, origin: Arc<str>, name: String },

    // ---- messages, by their names
    #[error("{0} is taken twice")]
    TakenTwice(String),
    #[error("{0} is taken, but nothing became of it")]
    TakenForNothing(String),
    #[error("the row {seq} of {name} is written over")]
    RowWrittenOver { seq: u64, name: String },
    #[error("row {0} is settled, but there is none")]
    NoRow(u64),
    #[error("the row of {0} is settled, but nothing became of it")]
    SettledForNothing(String),

    // ---- effects
    #[error("an effect of {0:?}, which was never delivered")]
    EffectNotDelivered(String),
    #[error("{service}: an effect of {id:?}, which is not taken")]
    EffectNotTaken { service: Arc<str>, id: String },
    #[error("{0:?} is of no service")]
    EffectOfNone(String),
    #[error("{service}: an effect of {id:?}, whose fate is {planned:?}")]
    EffectOfDeadly { service: Arc<str>, id: String, planned: FaultPlan },
    #[error("{service}: an effect of {id:?}, which was {end} already")]
    EffectAfterEnd { service: Arc<str>, id: String, end: String },
    #[error("{service}: an effect of {id:?}, but a dead letter holds {key:?}")]
    EffectOfHeld { service: Arc<str>, id: String, key: String },
    #[error("{service}: the effect of {id:?} ({position:?}) comes after that of {last:?}")]
    EffectOutOfOrder { service: Arc<str>, id: String, position: Position, last: Position },

    // ---- dead letters
    #[error("{0} was never delivered")]
    DeadNotDelivered(String),
    #[error("{name} is dead, but was {end} already")]
    DeadAfterEnd { name: String, end: String },
    #[error("{name} is dead, but its fate was {planned:?}: {last:?}")]
    DeadUnplanned { name: String, planned: FaultPlan, last: Option<Attempt> },
    #[error("{name} is dead after {spent} attempts, {attempts} are its bound")]
    DeadOutOfBounds { name: String, spent: u32, attempts: u32 },
    #[error("the dead letter {0} is taken back, but there is none")]
    NoDeadLetter(u64),

    // ---- attempts, timers, schedules
    #[error("attempt {attempt} is tried again after {delay} ms, {bound:?} is its bound")]
    RetryOutOfBounds { attempt: u32, delay: u64, bound: Duration },
    #[error("the timer {name} is due at {due} and was handled at {at}")]
    TimerEarly { name: String, due: Millis, at: Millis },
    #[error("the timer {0} is set twice")]
    TimerTwice(String),
    #[error("the timer {0} was handled, and its row stays")]
    TimerStays(String),
    #[error("{name} of {schedule} is moved from {due} to {next}, fired: {fired}")]
    ScheduleMoved { name: String, schedule: Arc<str>, due: Millis, next: Millis, fired: bool },
    #[error("{name} of {schedule} is not set again, fired: {fired}")]
    ScheduleNotSet { name: String, schedule: Arc<str>, fired: bool },

    // ---- events
    #[error("shard {shard}: event {seq} ({id}) is published before its commit, or under another number")]
    PublishedEarly { shard: ShardNo, seq: u64, id: String },
    #[error("shard {shard}: event {seq} of {key:?} is published after {newest}")]
    PublishedLate { shard: ShardNo, seq: u64, key: String, newest: u64 },
    #[error("the watermark of a sink is missing")]
    NoWatermark,
    #[error("a watermark goes back from {stored} to {watermark}")]
    WatermarkBack { stored: u64, watermark: u64 },
    #[error("the watermark {watermark} passes event {seq}, which is not published")]
    WatermarkAhead { watermark: u64, seq: u64 },
    #[error("shard {shard}: the store lacks events after {after}")]
    EventsLost { shard: ShardNo, after: u64 },

    // ---- the end
    #[error("nothing happens any more")]
    Still,
    #[error("it never ends: {0}")]
    Endless(String),
    /// Something is not as it must be when everything is done.
    #[error("{0}")]
    Unfinished(String),

    // ---- the simulation itself
    #[error("{0} at once")]
    Slow(&'static str),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    LogRow(#[from] RowError),
    #[error(transparent)]
    Probe(#[from] serde_json::Error),
}
