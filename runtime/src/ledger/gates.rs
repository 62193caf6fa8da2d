//! Whether turns may start that need something from outside: circuit breakers and retry budgets of dependencies, limits
//! of concurrency and rate. One for all shards of a process. Pure: it is told the time.
//! In: what shards ask for, how their turns ended. Out: permits, each for one turn; changes of breakers, for the log.
//!
//! While a dependency's breaker is open no turn starts that needs it: messages wait, nothing is counted.
//! After a while one turn is let through; if the dependency answers it, the others follow at the rate of the retry budget.

mod breaker;
mod limit;

use std::collections::{HashMap, VecDeque};

use self::breaker::Dependency;
pub(crate) use self::breaker::{Change, State};
pub use self::limit::Bucket;
use self::limit::Limit;
use crate::clock::{Dice, Millis};
use crate::settings::Settings;

/// Who asks: a shard under one owner.
pub(crate) type Seat = u64;

/// How a turn ended, as far as what it needed is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
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
    services: Vec<Line>,
    dependencies: Vec<Dependency>,
    dice: Dice,
    /// The service that is served first next time.
    first: usize,
}

/// What waits to run a service's turns.
#[derive(Debug, Default)]
struct Line {
    /// Places of its dependencies.
    needs: Vec<usize>,
    limit: Limit,
    /// Who asked, in order: first attempts, and turns that found a dependency unavailable before.
    asked: [VecDeque<Seat>; 2],
    /// Permits that are out.
    out: HashMap<Seat, u32>,
}

impl Line {
    fn waits(&self) -> bool {
        self.asked.iter().any(|asked| !asked.is_empty())
    }
}

impl Gates {
    /// The gates of these services, each with the names of what it needs.
    pub(crate) fn new(services: &[(&str, &[&'static str])], settings: &Settings, seed: u64) -> Self {
        let mut names: Vec<&'static str> = services.iter().flat_map(|(_, needs)| needs.iter().copied()).collect();
        names.sort_unstable();
        names.dedup();
        let place = |need: &&str| names.binary_search(need).ok();
        let line = |(service, needs): &(&str, &[&'static str])| Line {
            needs: needs.iter().filter_map(place).collect(),
            limit: settings.limit.iter().find(|limit| limit.service == *service).map(Limit::of).unwrap_or_default(),
            ..Line::default()
        };
        // Behind them, for one message at a time that may end the process.
        let trials = Line { limit: Limit::new(1, 0.0), ..Line::default() };
        Self {
            services: services.iter().map(line).chain([trials]).collect(),
            dependencies: names.iter().map(|name| Dependency::new(name, settings)).collect(),
            dice: Dice::seeded(seed),
            first: 0,
        }
    }

    /// Whether turns of a service need permits.
    pub(crate) fn guards(&self, service: u16) -> bool {
        let line = &self.services[usize::from(service)];
        !line.needs.is_empty() || line.limit.is_set()
    }

    /// A shard wants to run a turn of a service; `again` if that turn found a dependency unavailable before.
    pub(crate) fn ask(&mut self, seat: Seat, service: u16, again: bool) {
        self.services[usize::from(service)].asked[usize::from(again)].push_back(seat);
    }

    /// A turn with a permit ended.
    pub(crate) fn ended(&mut self, seat: Seat, service: u16, ended: Ended, now: Millis) -> Vec<Change> {
        let line = &mut self.services[usize::from(service)];
        let Some(out) = line.out.get_mut(&seat).filter(|out| **out > 0) else { return Vec::new() };
        *out -= 1;
        line.limit.free();
        let mut changes = Vec::new();
        for (at, need) in line.needs.iter().enumerate() {
            let dependency = &mut self.dependencies[*need];
            dependency.limit.free();
            changes.extend(match ended {
                Ended::Done => dependency.answered(),
                Ended::Unavailable(which) if which == at => dependency.failed(now, &mut self.dice),
                Ended::Unavailable(_) | Ended::Unused => {
                    dependency.undecided(seat);
                    None
                }
            });
        }
        changes
    }

    /// A shard is given up: what it asked for and what it has out is void.
    pub(crate) fn leave(&mut self, seat: Seat) {
        for line in &mut self.services {
            line.asked.iter_mut().for_each(|asked| asked.retain(|other| *other != seat));
            for _ in 0..line.out.remove(&seat).unwrap_or(0) {
                line.limit.free();
                line.needs.iter().for_each(|need| self.dependencies[*need].limit.free());
            }
            line.needs.iter().for_each(|need| self.dependencies[*need].undecided(seat));
        }
    }

    /// Whether anybody waits for a permit.
    pub(crate) fn waits(&self) -> bool {
        self.services.iter().any(Line::waits)
    }

    /// The permits that can be given now, in the order in which they are.
    pub(crate) fn grant(&mut self, now: Millis) -> Vec<(Seat, u16)> {
        let mut granted = Vec::new();
        let count = self.services.len();
        for service in (0..count).map(|at| (self.first + at) % count) {
            let line = &mut self.services[service];
            // First attempts before others: those are what the budget bounds.
            for again in [false, true] {
                while let Some(seat) = line.asked[usize::from(again)].front().copied() {
                    let free = line.limit.has_room(now)
                        && line.needs.iter().all(|need| self.dependencies[*need].admits(again, now));
                    if !free {
                        break;
                    }
                    line.limit.take();
                    line.needs.iter().for_each(|need| self.dependencies[*need].take(again, seat));
                    line.asked[usize::from(again)].pop_front();
                    *line.out.entry(seat).or_insert(0) += 1;
                    granted.push((seat, u16::try_from(service).unwrap_or(u16::MAX)));
                }
            }
        }
        self.first = (self.first + 1) % count.max(1);
        for (at, dependency) in self.dependencies.iter_mut().enumerate() {
            if !self.services.iter().any(|line| line.waits() && line.needs.contains(&at)) {
                dependency.recovered();
            }
        }
        granted
    }

    /// The dependencies and the states of their breakers.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&'static str, State)> {
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
        (0..times).for_each(|_| gates.ask(7, 0, again));
    }

    fn open(gates: &mut Gates) {
        ask(gates, 3, false);
        assert_eq!(gates.grant(0).len(), 3);
        let changes: Vec<_> = (0..3).flat_map(|_| gates.ended(7, 0, Ended::Unavailable(0), 0)).collect();
        assert!(matches!(changes[..], [Change { state: State::Open, .. }]), "{changes:?}");
    }

    #[test]
    fn only_what_needs_something_is_guarded() {
        let gates = gates(|_| ());
        assert!(gates.guards(0) && !gates.guards(1));
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
        gates.ended(7, 0, Ended::Unavailable(0), 60_000);
        assert!(gates.grant(60_000).is_empty(), "open again");
        assert_eq!(gates.grant(200_000).len(), 1);
        let changes = gates.ended(7, 0, Ended::Done, 200_000);
        assert!(matches!(changes[..], [Change { state: State::Closed, .. }]));
    }

    #[test]
    fn a_probe_that_was_not_run_or_whose_shard_left_is_let_through_again() {
        let mut gates = gates(|_| ());
        open(&mut gates);
        ask(&mut gates, 2, true);
        assert_eq!(gates.grant(60_000).len(), 1);
        gates.ended(7, 0, Ended::Unused, 60_000);
        assert_eq!(gates.grant(60_000).len(), 1);
        gates.leave(7);
        gates.ask(8, 0, false);
        assert_eq!(gates.grant(60_000), [(8, 0)]);
    }

    #[test]
    fn a_return_is_met_at_the_rate_of_the_budget() {
        let mut gates = gates(|_| ());
        open(&mut gates);
        ask(&mut gates, 20_000, false);
        assert_eq!(gates.grant(60_000).len(), 1);
        gates.ended(7, 0, Ended::Done, 60_000);
        let (mut started, mut answered) = (0, 1);
        // Each is answered 100 ms after it started.
        for tick in 0..100 {
            let now = 60_000 + tick * 100;
            let granted = gates.grant(now).len();
            started += granted;
            let budget = 10.0 + f64::from(10 * u32::try_from(tick).unwrap()) / 10.0 + 1.2 * f64::from(answered);
            assert!(f64::from(u32::try_from(started).unwrap()) <= budget + 1.0, "{started} started by {now}");
            for _ in 0..granted {
                gates.ended(7, 0, Ended::Done, now);
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
            gates.ended(7, 0, Ended::Done, 0);
        }
        let more = gates.grant(0).len();
        assert!((15..=25).contains(&more), "a fifth of what was answered: {more}");
        assert!((8..=12).contains(&gates.grant(1_000).len()), "and ten a second");
    }

    #[test]
    fn limits_of_concurrency_and_rate_hold() {
        let limit = ServiceLimit { service: "free".to_owned(), concurrency: 2, rate: 10.0 };
        let mut gates = gates(|settings| settings.limit = vec![limit]);
        assert!(gates.guards(1));
        (0..50).for_each(|_| gates.ask(7, 1, false));
        assert_eq!(gates.grant(0).len(), 2);
        let mut started = 2;
        for tick in 1..=20_u64 {
            (0..2).for_each(|_| drop(gates.ended(7, 1, Ended::Done, tick * 50)));
            started += gates.grant(tick * 50).len();
        }
        assert!((10..=21).contains(&started), "ten in a second, and ten at first: {started}");
    }

    #[test]
    fn what_a_shard_had_is_free_when_it_leaves() {
        let mut gates = gates(|settings| settings.dependency[0].concurrency = 1);
        gates.ask(1, 0, false);
        gates.ask(2, 0, false);
        assert_eq!(gates.grant(0), [(1, 0)]);
        assert!(gates.grant(0).is_empty());
        gates.leave(1);
        assert_eq!(gates.grant(0), [(2, 0)]);
        assert!(gates.ended(1, 0, Ended::Done, 0).is_empty(), "its answers count no more");
    }
}
