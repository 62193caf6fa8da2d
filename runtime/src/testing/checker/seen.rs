//! Counts of a simulation's events, which show that the faults were really met.
//! In: nothing; plain data. Out: sums over several simulations, and the events that never happened.

/// The number of times that things happened in a simulation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Commits that were written.
    pub commits: u64,
    /// Commits that were fenced off.
    pub fenced: u64,
    /// Commits that were refused.
    pub refused: u64,
    /// Commits whose answer was lost.
    pub unknown: u64,
    /// Commits for which the store was away.
    pub unavailable: u64,
    /// Owners that died, drained, or stopped by themselves.
    pub takeovers: u64,
    /// Owners that went on after another one took over.
    pub zombies: u64,
    /// Key actors, committers, ingresses and dispatchers that died.
    pub deaths: u64,
    /// Pages of waiting rows that were read.
    pub pages: u64,
    /// Keys that gave their actor to another.
    pub passivations: u64,
    /// Times that a bound of the waiting rows was reached.
    pub overflows: u64,
    /// Commits that stored what was done above a position.
    pub ahead: u64,
    /// Ticks at which a source had as much ahead as it may.
    pub far_ahead: u64,
    /// Deliveries that were dropped by their position.
    pub passed: u64,
    /// Pauses of services and keys.
    pub pauses: u64,
    /// Duplicates that were dropped.
    pub duplicates: u64,
    /// Attempts that were put off for later.
    pub retries: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Dead letters that were replayed or discarded.
    pub operations: u64,
    /// Messages that were passed on to the shard of their key.
    pub rekeyed: u64,
    /// Events that sinks confirmed.
    pub published: u64,
    /// Events that sinks refused.
    pub unpublished: u64,
    /// Events that sinks did not take at the moment.
    pub nacked: u64,
    /// Pages of events that were read back.
    pub read_back: u64,
    /// Ends of sinks that were reopened.
    pub reopened: u64,
    /// Timers that were handled.
    pub fired: u64,
    /// Occurrences of schedules that were handled.
    pub occurred: u64,
    /// Timers that were cancelled or moved.
    pub cancelled: u64,
    /// Messages that were given rows while their turns took long.
    pub spilled: u64,
}

impl Seen {
    /// The sums of two.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        for ((_, sum), (_, more)) in self.all().into_iter().zip(other.clone().all()) {
            *sum += *more;
        }
        self
    }

    /// The names of those that never happened.
    pub fn missing(&self) -> Vec<&'static str> {
        self.clone().all().into_iter().filter(|(_, count)| **count == 0).map(|(name, _)| name).collect()
    }

    fn all(&mut self) -> [(&'static str, &mut u64); 29] {
        [
            ("commits", &mut self.commits),
            ("fenced", &mut self.fenced),
            ("refused", &mut self.refused),
            ("unknown", &mut self.unknown),
            ("unavailable", &mut self.unavailable),
            ("takeovers", &mut self.takeovers),
            ("zombies", &mut self.zombies),
            ("deaths", &mut self.deaths),
            ("pages", &mut self.pages),
            ("passivations", &mut self.passivations),
            ("overflows", &mut self.overflows),
            ("ahead", &mut self.ahead),
            ("far_ahead", &mut self.far_ahead),
            ("passed", &mut self.passed),
            ("pauses", &mut self.pauses),
            ("duplicates", &mut self.duplicates),
            ("retries", &mut self.retries),
            ("dead_letters", &mut self.dead_letters),
            ("operations", &mut self.operations),
            ("rekeyed", &mut self.rekeyed),
            ("published", &mut self.published),
            ("unpublished", &mut self.unpublished),
            ("nacked", &mut self.nacked),
            ("read_back", &mut self.read_back),
            ("reopened", &mut self.reopened),
            ("fired", &mut self.fired),
            ("occurred", &mut self.occurred),
            ("cancelled", &mut self.cancelled),
            ("spilled", &mut self.spilled),
        ]
    }
}
