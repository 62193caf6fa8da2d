//! What is done to a fleet, and when: decided by dice, so that a seed does it again.
//! In: a scenario, a seed. Out: one act after another, each after a pause.

use std::time::Duration;

use perkey::clock::Dice;

use crate::fleet::servers::Server;
use crate::proxy::Mode;

/// What a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Workers are killed and come back.
    Kill,
    /// Workers are frozen for longer than their lease, and thawed.
    Freeze,
    /// Workers leave in order and come back, as at a deploy.
    Rolling,
    /// Kafka is restarted and killed.
    Kafka,
    /// PostgreSQL is restarted and killed.
    Postgres,
    /// A worker's line to a server is cut, or goes silent.
    Cut,
    /// Commits arrive and their answers do not.
    AnswerLost,
    /// PostgreSQL is away for long.
    Away,
    /// A transaction is held open by somebody else.
    Held,
    /// All of them, mixed; `Held` alone goes by itself.
    All,
}

impl Scenario {
    /// All, by name.
    pub const NAMED: [(&str, Self); 10] = [
        ("kill", Self::Kill),
        ("freeze", Self::Freeze),
        ("rolling", Self::Rolling),
        ("kafka", Self::Kafka),
        ("postgres", Self::Postgres),
        ("cut", Self::Cut),
        ("answer_lost", Self::AnswerLost),
        ("away", Self::Away),
        ("held", Self::Held),
        ("all", Self::All),
    ];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(known, _)| *known == name).map(|(_, scenario)| *scenario)
    }

    /// Whether it takes servers down, which only servers of its own may suffer.
    pub fn kills_servers(self) -> bool {
        matches!(self, Self::Kafka | Self::Postgres | Self::Away | Self::All)
    }

    /// Whether a worker's way to Kafka leads through a proxy.
    pub fn cuts_kafka(self) -> bool {
        matches!(self, Self::Cut | Self::All)
    }
}

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Topics.
    Kafka,
    /// The store's own log: PostgreSQL is all there is.
    Postgres,
}

/// One thing that is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    /// SIGKILL; it is started again after so long.
    Kill {
        /// Whom.
        worker: usize,
        /// When it comes back.
        back: Duration,
    },
    /// SIGSTOP, then SIGCONT.
    Freeze {
        /// Whom.
        worker: usize,
        /// For how long.
        hold: Duration,
        /// Whether what it has just sent to PostgreSQL is held back, too, and arrives when others own its shards.
        late: bool,
    },
    /// SIGTERM, then a start.
    Roll {
        /// Whom.
        worker: usize,
    },
    /// A server goes and comes back.
    Down {
        /// Which.
        server: Server,
        /// Whether it is killed.
        crash: bool,
        /// For how long.
        hold: Duration,
    },
    /// A worker's line to a server does something else for a while.
    Line {
        /// Whose.
        worker: usize,
        /// To where.
        server: Server,
        /// What it does.
        mode: Mode,
        /// For how long.
        hold: Duration,
    },
}

/// An endless course of acts.
#[derive(Clone, Debug)]
pub struct Course {
    scenario: Scenario,
    workers: usize,
    ttl: Duration,
    away: Duration,
    dice: Dice,
    done: usize,
}

impl Course {
    /// The course of a seed, for so many workers with leases of `ttl`.
    pub fn new(scenario: Scenario, workers: usize, ttl: Duration, away: Duration, seed: u64) -> Self {
        Self { scenario, workers: workers.max(1), ttl, away, dice: Dice::seeded(seed ^ 0x0066_6c65_6574), done: 0 }
    }

    /// What comes next, and how long before it nothing is done.
    pub fn next_act(&mut self) -> (Duration, Act) {
        let mut scenario = self.scenario;
        if scenario == Scenario::All {
            let any = [0, 1, 2, 3, 4, 5, 6].map(|at| Scenario::NAMED[at].1);
            scenario = any[self.dice.below(any.len() as u64) as usize];
        }
        let no = self.done;
        self.done += 1;
        let pause = self.between(300, 2_000);
        (self.pause(scenario, pause), self.act(scenario, no))
    }

    fn pause(&mut self, scenario: Scenario, pause: Duration) -> Duration {
        match scenario {
            Scenario::Rolling => Duration::from_secs(5),
            Scenario::AnswerLost => pause / 4,
            Scenario::Away => Duration::from_secs(10),
            _ => pause,
        }
    }

    fn act(&mut self, scenario: Scenario, no: usize) -> Act {
        let worker = no % self.workers;
        let turn = no / self.workers;
        match scenario {
            // At times it is back before its lease has ended, at times long after.
            Scenario::Kill => Act::Kill { worker, back: self.ttl.mul_f64(2.0 * self.dice.unit()) },
            Scenario::Freeze => Act::Freeze { worker, hold: self.ttl * 3, late: !(worker + turn).is_multiple_of(2) },
            Scenario::Rolling | Scenario::Held => Act::Roll { worker },
            Scenario::Kafka | Scenario::Postgres => {
                let server = if scenario == Scenario::Kafka { Server::Kafka } else { Server::Postgres };
                Act::Down { server, crash: no.is_multiple_of(2), hold: self.between(0, 3_000) }
            }
            Scenario::Away => Act::Down { server: Server::Postgres, crash: true, hold: self.away },
            Scenario::Cut => {
                let server = if no.is_multiple_of(2) { Server::Postgres } else { Server::Kafka };
                let mode = if (no / 2).is_multiple_of(2) { Mode::Freeze } else { Mode::Cut };
                // Shorter than the lease, or longer.
                Act::Line { worker: 0, server, mode, hold: self.ttl.mul_f64(0.1 + 2.0 * self.dice.unit()) }
            }
            Scenario::AnswerLost => {
                let hold = self.between(5, 400);
                Act::Line { worker, server: Server::Postgres, mode: Mode::Mute, hold }
            }
            Scenario::All => Act::Kill { worker, back: self.ttl },
        }
    }

    fn between(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.dice.below(to - from))
    }
}

impl std::fmt::Display for Act {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kill { worker, back } => write!(f, "w{worker} is killed, back after {} ms", back.as_millis()),
            Self::Freeze { worker, hold, late } => {
                let late = if *late { ", what it has sent arrives late" } else { "" };
                write!(f, "w{worker} is frozen for {} ms{late}", hold.as_millis())
            }
            Self::Roll { worker } => write!(f, "w{worker} is restarted in order"),
            Self::Down { server, crash, hold } => {
                let how = if *crash { "killed" } else { "stopped" };
                write!(f, "{} is {how}, back after {} ms", server.as_str(), hold.as_millis())
            }
            Self::Line { worker, server, mode, hold } => {
                write!(f, "the line from w{worker} to {}: {mode:?} for {} ms", server.as_str(), hold.as_millis())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_does_the_same_again_and_every_worker_has_its_turn() {
        let ttl = Duration::from_secs(3);
        for (name, scenario) in Scenario::NAMED {
            let acts = |seed| {
                let mut course = Course::new(scenario, 3, ttl, ttl, seed);
                (0..12).map(|_| course.next_act()).collect::<Vec<_>>()
            };
            assert_eq!(acts(5), acts(5), "{name}");
            assert_eq!(Scenario::named(name), Some(scenario));
        }
        let mut course = Course::new(Scenario::Freeze, 3, ttl, ttl, 1);
        let late: Vec<_> = (0..6).map(|_| course.next_act().1).collect();
        for worker in 0..3 {
            for late_one in [false, true] {
                assert!(late.contains(&Act::Freeze { worker, hold: ttl * 3, late: late_one }), "{late:?}");
            }
        }
    }
}
