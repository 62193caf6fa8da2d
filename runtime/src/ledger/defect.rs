//! Defects that the simulator plants in itself, to prove that it would find them.
//! In: a choice, in builds for the simulator only. Out: whether a place in the ledger is to do the wrong thing.

/// Defects that the simulator plants in itself to prove that it would find them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Sources are told before the commit.
    AcknowledgeBeforeCommit,
    /// A restarted actor is given the store's state although a newer one is not committed yet.
    ReloadUncommitted,
    /// Messages behind one that waits run at once.
    FollowersNotAppended,
    /// An id counts only once its turn has run.
    IdTakenAfterRun,
    /// The stretches done above a position are not known to the next owner.
    AheadForgotten,
    /// The services for which a message above the position was done are not known to the next owner.
    PartForgotten,
    /// The highest finished position is stored instead of the contiguous one.
    HighestPosition,
    /// A sink's watermark is one too high.
    WatermarkTooHigh,
    /// A handled timer is found due by an older answer of the store.
    TimerLeavesEarly,
    /// A schedule whose timer was being set when its key had to start again is forgotten.
    ScheduleLost,
    /// Events go to a sink although one of their key before them is not known to be there.
    NackOvertaken,
}

#[cfg(feature = "planted-defects")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Defect>> = const { std::cell::Cell::new(None) };
}

/// Plants a defect in the ledgers of this thread.
#[cfg(feature = "planted-defects")]
pub fn plant(defect: Option<Defect>) {
    PLANTED.with(|planted| planted.set(defect));
}

#[cfg(feature = "planted-defects")]
pub(crate) fn planted(defect: Defect) -> bool {
    PLANTED.with(|planted| planted.get() == Some(defect))
}

#[cfg(not(feature = "planted-defects"))]
pub(crate) const fn planted(_: Defect) -> bool {
    false
}
