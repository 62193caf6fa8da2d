//! The gates, which let turns start that need something from outside: circuit breakers and retry budgets of
//! dependencies, limits of concurrency and rate. One for all shards of a process. Pure: it is told the time.
//! In: requests of shards, the ends of their turns. Out: permits, each for one turn; changes of breakers, for the log.
//!
//! While a dependency's breaker is open no turn starts that needs it: messages wait, nothing is counted.
//! After a while one turn is let through; if the dependency answers it, the others follow at the rate of the retry budget.

mod breaker;
mod limit;

use std::collections::{HashMap, VecDeque};

use self::breaker::Dependency;
pub(crate) use self::breaker::{BreakerChange, BreakerState};
use self::limit::Limit;
pub use self::limit::TokenBucket;
use crate::clock::{Dice, Millis};
use crate::message::ServiceIx;
use crate::settings::Settings;

/// A shard under one owner, which asks for permits.
pub(crate) type Asker = u64;

/// A line in which permits are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Line {
    /// Turns of a service, by its index.
    Service(ServiceIx),
    /// Messages that may end the process: one is started at a time.
    Trial,
}

/// The end of a turn, as far as its dependencies are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PermitEnd {
    /// It ended, in whatever way.
    Done,
    /// This dependency was not available, by its place among those that the service needs.
    Unavailable(usize),
    /// It was not run.
    Unused,
}

/// The gates of all services of a process.
#[derive(Debug)]
pub(crate) struct Gates {
    /// The queues of the services in the order of their indices, and that of trials.
    queues: Vec<Queue>,
    dependencies: Vec<Dependency>,
    dice: Dice,
    /// The service that is served first next time.
    first: usize,
}

/// The shards that wait to run a service's turns.
#[derive(Debug, Default)]
struct Queue {
    /// Places of its dependencies.
    needs: Vec<usize>,
    limit: Limit,
    /// The shards that asked, in order: for first attempts, and for turns that found a dependency unavailable before.
    asked: [VecDeque<Asker>; 2],
    /// Permits that are out.
    out: HashMap<Asker, u32>,
}

impl Queue {
    fn waits(&self) -> bool {
        self.asked.iter().any(|asked| !asked.is_empty())
    }
}

impl Gates {
    /// The gates of these services, each with the names of its dependencies.
    pub(crate) fn new(services: &[(&str, &[&'static str])], settings: &Settings, seed: u64) -> Self {
        let mut names: Vec<&'static str> = services.iter().flat_map(|(_, needs)| needs.iter().copied()).collect();
        names.sort_unstable();
        names.dedup();
        let place = |need: &&str| names.binary_search(need).ok();
        let line = |(service, needs): &(&str, &[&'static str])| Queue {
            needs: needs.iter().filter_map(place).collect(),
            limit: settings.limit.iter().find(|limit| limit.service == *service).map(Limit::of).unwrap_or_default(),
            ..Queue::default()
        };
        // Behind the services', for one message at a time that may end the process.
        let trials = Queue { limit: Limit::new(1, 0.0), ..Queue::default() };
        Self {
            queues: services.iter().map(line).chain([trials]).collect(),
            dependencies: names.iter().map(|name| Dependency::new(name, settings)).collect(),
            dice: Dice::seeded(seed),
            first: 0,
        }
    }

    /// The place of a line's queue.
    fn at(&self, line: Line) -> usize {
        match line {
            Line::Service(service) => service.place(),
            Line::Trial => self.queues.len() - 1,
        }
    }

    /// The line of the queue at a place.
    fn line(&self, at: usize) -> Line {
        if at + 1 < self.queues.len() { Line::Service(ServiceIx::nth(at)) } else { Line::Trial }
    }

    /// True if turns of a service need permits.
    pub(crate) fn guards(&self, service: ServiceIx) -> bool {
        let line = &self.queues[service];
        !line.needs.is_empty() || line.limit.is_set()
    }

    /// Puts a shard in a line; `again` if its turn found a dependency unavailable before.
    pub(crate) fn ask(&mut self, asker: Asker, line: Line, again: bool) {
        let at = self.at(line);
        self.queues[at].asked[usize::from(again)].push_back(asker);
    }

    /// Takes the permit of an ended turn back.
    pub(crate) fn ended(&mut self, asker: Asker, line: Line, ended: PermitEnd, now: Millis) -> Vec<BreakerChange> {
        let at = self.at(line);
        let line = &mut self.queues[at];
        let Some(out) = line.out.get_mut(&asker).filter(|out| **out > 0) else { return Vec::new() };
        *out -= 1;
        line.limit.free();
        let mut changes = Vec::new();
        for (at, need) in line.needs.iter().enumerate() {
            let dependency = &mut self.dependencies[*need];
            dependency.limit.free();
            changes.extend(match ended {
                PermitEnd::Done => dependency.answered(),
                PermitEnd::Unavailable(which) if which == at => dependency.failed(now, &mut self.dice),
                PermitEnd::Unavailable(_) | PermitEnd::Unused => {
                    dependency.undecided(asker);
                    None
                }
            });
        }
        changes
    }

    /// Removes a shard that is given up: its requests and its permits are void.
    pub(crate) fn leave(&mut self, asker: Asker) {
        for line in &mut self.queues {
            line.asked.iter_mut().for_each(|asked| asked.retain(|other| *other != asker));
            for _ in 0..line.out.remove(&asker).unwrap_or(0) {
                line.limit.free();
                line.needs.iter().for_each(|need| self.dependencies[*need].limit.free());
            }
            line.needs.iter().for_each(|need| self.dependencies[*need].undecided(asker));
        }
    }

    /// True if anybody waits for a permit.
    pub(crate) fn waits(&self) -> bool {
        self.queues.iter().any(Queue::waits)
    }

    /// Grants the permits that can be given now, in order.
    pub(crate) fn grant(&mut self, now: Millis) -> Vec<(Asker, Line)> {
        let mut granted = Vec::new();
        let count = self.queues.len();
        for at in (0..count).map(|at| (self.first + at) % count) {
            let named = self.line(at);
            let line = &mut self.queues[at];
            // First attempts before others: those are what the budget bounds.
            for again in [false, true] {
                while let Some(asker) = line.asked[usize::from(again)].front().copied() {
                    let free = line.limit.has_room(now)
                        && line.needs.iter().all(|need| self.dependencies[*need].admits(again, now));
                    if !free {
                        break;
                    }
                    line.limit.take();
                    line.needs.iter().for_each(|need| self.dependencies[*need].take(again, asker));
                    line.asked[usize::from(again)].pop_front();
                    *line.out.entry(asker).or_insert(0) += 1;
                    granted.push((asker, named));
                }
            }
        }
        self.first = (self.first + 1) % count.max(1);
        for (at, dependency) in self.dependencies.iter_mut().enumerate() {
            if !self.queues.iter().any(|line| line.waits() && line.needs.contains(&at)) {
                dependency.recovered();
            }
        }
        granted
    }

    /// The dependencies and the states of their breakers.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&'static str, BreakerState)> {
        self.dependencies.iter().map(|dependency| (dependency.name, dependency.state()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{DependencySettings, ServiceLimit};

    const NEEDS: [(&str, &[&str]); 2] = [("payments", &["provider"]), ("free", &[])];

    fn gates(change: impl FnOnce(&mut Settings)) -> Gates {
        let mut settings = Settings::default();
        let name = "provider".to_owned();
        settings.dependency = vec![DependencySettings { name, failures: 3, ..DependencySettings::default() }];
        change(&mut settings);
        Gates::new(&NEEDS, &settings, 1)
    }

    fn ask(gates: &mut Gates, times: usize, again: bool) {
        (0..times).for_each(|_| gates.ask(7, Line::Service(ServiceIx::FIRST), again));
    }

    fn open(gates: &mut Gates) {
        ask(gates, 3, false);
        assert_eq!(gates.grant(0).len(), 3);
        let changes: Vec<_> = (0..3)
            .flat_map(|_| gates.ended(7, Line::Service(ServiceIx::FIRST), PermitEnd::Unavailable(0), 0))
            .collect();
        assert!(matches!(changes[..], [BreakerChange { state: BreakerState::Open, .. }]), "{changes:?}");
    }

    #[test]
    fn only_what_needs_something_is_guarded() {
        let gates = gates(|_| ());
        assert!(gates.guards(ServiceIx::FIRST) && !gates.guards(ServiceIx::nth(1)));
    }

    #[test]
    fn an_open_breaker_lets_nothing_through_and_then_one() {
        let mut gates = gates(|_| ());
        open(&mut gates);
        ask(&mut gates, 5, true);
        ask(&mut gates, 5, false);
        assert!(gates.grant(10).is_empty());
        assert_eq!(gates.grant(60_000).len(), 1, "one is let through");
        assert!(gates.grant(60_000).is_empty(), "and no other before it has ended");
        gates.ended(7, Line::Service(ServiceIx::FIRST), PermitEnd::Unavailable(0), 60_000);
        assert!(gates.grant(60_000).is_empty(), "open again");
        assert_eq!(gates.grant(200_000).len(), 1);
        let changes = gates.ended(7, Line::Service(ServiceIx::FIRST), PermitEnd::Done, 200_000);
        assert!(matches!(changes[..], [BreakerChange { state: BreakerState::Closed, .. }]));
    }

    #[test]
    fn a_probe_that_was_not_run_or_whose_shard_left_is_let_through_again() {
        let mut gates = gates(|_| ());
        open(&mut gates);
        ask(&mut gates, 2, true);
        assert_eq!(gates.grant(60_000).len(), 1);
        gates.ended(7, Line::Service(ServiceIx::FIRST), PermitEnd::Unused, 60_000);
        assert_eq!(gates.grant(60_000).len(), 1);
        gates.leave(7);
        gates.ask(8, Line::Service(ServiceIx::FIRST), false);
        assert_eq!(gates.grant(60_000), [(8, Line::Service(ServiceIx::FIRST))]);
    }

    #[test]
    fn a_return_is_met_at_the_rate_of_the_budget() {
        let mut gates = gates(|_| ());
        open(&mut gates);
        ask(&mut gates, 20_000, false);
        assert_eq!(gates.grant(60_000).len(), 1);
        gates.ended(7, Line::Service(ServiceIx::FIRST), PermitEnd::Done, 60_000);
        let (mut started, mut answered) = (0, 1);
        // Each is answered 100 ms after it started.
        for tick in 0..100 {
            let now = 60_000 + tick * 100;
            let granted = gates.grant(now).len();
            started += granted;
            let budget = 10.0 + f64::from(10 * u32::try_from(tick).unwrap()) / 10.0 + 1.2 * f64::from(answered);
            assert!(f64::from(u32::try_from(started).unwrap()) <= budget + 1.0, "{started} started by {now}");
            for _ in 0..granted {
                gates.ended(7, Line::Service(ServiceIx::FIRST), PermitEnd::Done, now);
                answered += 1;
            }
        }
        assert!(started > 1_000, "it grows: {started}");
    }

    #[test]
    fn turns_that_failed_before_are_bounded_and_others_are_not() {
        let mut gates = gates(|settings| settings.dependency[0].failures = 1_000);
        ask(&mut gates, 100, true);
        ask(&mut gates, 100, false);
        let granted = gates.grant(0).len();
        assert!((100..=110).contains(&granted), "{granted}");
        for _ in 0..granted {
            gates.ended(7, Line::Service(ServiceIx::FIRST), PermitEnd::Done, 0);
        }
        let more = gates.grant(0).len();
        assert!((15..=25).contains(&more), "a fifth of what was answered: {more}");
        assert!((8..=12).contains(&gates.grant(1_000).len()), "and ten a second");
    }

    #[test]
    fn limits_of_concurrency_and_rate_hold() {
        let limit = ServiceLimit { service: "free".to_owned(), concurrency: 2, rate: 10.0 };
        let mut gates = gates(|settings| settings.limit = vec![limit]);
        assert!(gates.guards(ServiceIx::nth(1)));
        (0..50).for_each(|_| gates.ask(7, Line::Service(ServiceIx::nth(1)), false));
        assert_eq!(gates.grant(0).len(), 2);
        let mut started = 2;
        for tick in 1..=20_u64 {
            (0..2).for_each(|_| drop(gates.ended(7, Line::Service(ServiceIx::nth(1)), PermitEnd::Done, tick * 50)));
            started += gates.grant(tick * 50).len();
        }
        assert!((10..=21).contains(&started), "ten in a second, and ten at first: {started}");
    }

    #[test]
    fn what_a_shard_had_is_free_when_it_leaves() {
        let mut gates = gates(|settings| settings.dependency[0].concurrency = 1);
        gates.ask(1, Line::Service(ServiceIx::FIRST), false);
        gates.ask(2, Line::Service(ServiceIx::FIRST), false);
        assert_eq!(gates.grant(0), [(1, Line::Service(ServiceIx::FIRST))]);
        assert!(gates.grant(0).is_empty());
        gates.leave(1);
        assert_eq!(gates.grant(0), [(2, Line::Service(ServiceIx::FIRST))]);
        assert!(
            gates.ended(1, Line::Service(ServiceIx::FIRST), PermitEnd::Done, 0).is_empty(),
            "its answers count no more"
        );
    }
}
