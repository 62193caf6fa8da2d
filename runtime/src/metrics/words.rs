//! The closed sets of words that are values of labels, and names in logs.
//! In: nothing; plain data. Out: the same.

use crate::store::CommitOutcome;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All words, in the order of their declaration.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word in metrics and logs.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

pub(crate) use words;

words! {
    /// The way in which a delivery was recognised as already taken.
    DedupSource {
        /// The delivery lies at or before its source's position.
        Position = "position",
        /// The delivery's id is in the inbox.
        Inbox = "inbox",
    }
}

words! {
    /// A kind of child of the supervision tree.
    Child {
        /// A key's actor.
        KeyActor = "key_actor",
        /// An ingress.
        Ingress = "ingress",
        /// A committer.
        Committer = "committer",
        /// A dispatcher.
        Dispatcher = "dispatcher",
        /// A shard with all its children.
        Shard = "shard",
    }
}

words! {
    /// The reason why a child was restarted.
    RestartReason {
        /// The child panicked.
        Panicked = "panicked",
        /// The child said that it cannot go on.
        Failed = "failed",
        /// The child ended without being asked to.
        Ended = "ended",
        /// A child of its own used up its restarts.
        Escalated = "escalated",
    }
}

words! {
    /// Conditions of a shard that an operator must know of; `docs/operations.md` says what to do about each.
    Alarm {
        /// The dedup window in force is shorter than `dedup.window_min`.
        DedupWindowBelowMin = "dedup_window_below_min",
        /// A key or a shard has the most pending rows that it may have: sources pause.
        PendingBoundReached = "pending_bound_reached",
        /// A source has the most stretches of done deliveries ahead of its positions that it may have: it pauses.
        AheadBoundReached = "ahead_bound_reached",
        /// The store cannot be written: nothing is lost, nothing moves.
        StoreUnavailable = "store_unavailable",
        /// Keys wait for an operator.
        HeldKeys = "held_keys",
        /// A shard has the most unpublished events that it may have: its sources pause.
        OutboxBoundReached = "outbox_bound_reached",
        /// A sink refused events: they are dead letters.
        OutboxRefused = "outbox_refused",
        /// A sink is no longer configured and was not given up: commits are kept for it.
        SinkGone = "sink_gone",
        /// The next time of a schedule cannot be found.
        ScheduleEnded = "schedule_ended",
        /// A source of the shard lost its place and stands still until an operator has decided.
        SourceLost = "source_lost",
        /// A shard has four fifths of the dead letters that it may have.
        DeadLettersNearBound = "dead_letters_near_bound",
        /// A shard has the most dead letters that it may have: its sources pause.
        DeadLetterBoundReached = "dead_letter_bound_reached",
        /// Operators have paused a service or a key.
        Paused = "paused",
    }
}

words! {
    /// Conditions of a whole worker that an operator must know of; see [`Alarm`].
    WorkerAlarm {
        /// The lease could not be renewed: the worker stopped its shards.
        LeaseLost = "lease_lost",
        /// A shard without an owner was owned by a newer program than this one.
        CodeVersionTooLow = "code_version_too_low",
        /// A shard failed too often on this worker, which leaves it to others for a while.
        ShardsCooling = "shards_cooling",
        /// A transaction elsewhere in the store has been open for so long that it keeps dead rows from being removed.
        LongTransaction = "long_transaction",
    }
}

words! {
    /// The reason why a worker took a shard.
    TakeReason {
        /// The shard had no owner.
        Free = "free",
        /// The shard's owner's lease had expired.
        Expired = "expired",
        /// The worker had the shard already.
        Again = "again",
    }
}

words! {
    /// The state of a call's idempotency key.
    CallWord {
        /// The key was new: its call was made.
        New = "new",
        /// The key's call had ended: the answer was given again.
        Replay = "replay",
        /// The key's call still runs.
        InFlight = "in_flight",
        /// The key's call asked for something else.
        Mismatch = "mismatch",
    }
}

words! {
    /// The outcome of a commit, as a label.
    CommitWord {
        /// See [`CommitOutcome::Committed`].
        Committed = "committed",
        /// See [`CommitOutcome::Fenced`].
        Fenced = "fenced",
        /// See [`CommitOutcome::Refused`].
        Refused = "refused",
        /// See [`CommitOutcome::Unavailable`].
        Unavailable = "unavailable",
        /// See [`CommitOutcome::Unknown`].
        Unknown = "unknown",
    }
}

impl From<&CommitOutcome> for CommitWord {
    fn from(outcome: &CommitOutcome) -> Self {
        match outcome {
            CommitOutcome::Committed => Self::Committed,
            CommitOutcome::Fenced => Self::Fenced,
            CommitOutcome::Refused { .. } => Self::Refused,
            CommitOutcome::Unavailable(_) => Self::Unavailable,
            CommitOutcome::Unknown(_) => Self::Unknown,
        }
    }
}

words! {
    /// The outcome of a request at a front door.
    HttpOutcome {
        /// The request was carried out.
        Done = "done",
        /// The request was answered as before.
        Replayed = "replayed",
        /// The request was invalid, or refused by its handler.
        Refused = "refused",
        /// The sender may not make it.
        Forbidden = "forbidden",
        /// Another request came first.
        Conflict = "conflict",
        /// The key's request still runs.
        InFlight = "in_flight",
        /// The tenant sends too much.
        Limited = "limited",
        /// The request failed here.
        Failed = "failed",
        /// There was no room, or no store.
        Unavailable = "unavailable",
        /// It took longer than it may here.
        TimedOut = "timed_out",
    }
}

words! {
    /// The outcome of a message of an intake.
    IntakeOutcome {
        /// It will be handled.
        Moved = "moved",
        /// It will be a dead letter: it cannot be used.
        Refused = "refused",
        /// It will be a dead letter: the broker said so.
        Dead = "dead",
    }
}
