//! The faults of a fleet and their times: decided by dice, so that the same seed repeats them.
//! In: a scenario, a seed. Out: one act after another, each after a pause.

use std::time::Duration;

use clap::ValueEnum;
use perkey::unstable::clock::Dice;

use crate::proxy::Mode;

/// The scenario of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Scenario {
    /// Workers are killed and come back.
    Kill,
    /// Workers are frozen for longer than their lease, and thawed.
    Freeze,
    /// Workers leave in order and come back, as at a deploy.
    Rolling,
    /// Kafka is restarted and killed.
    Kafka,
    /// RabbitMQ is restarted and killed.
    Rabbitmq,
    /// PostgreSQL is restarted and killed.
    Postgres,
    /// A worker's line to a server is cut, or goes silent.
    Cut,
    /// Commits arrive and their answers do not.
    AnswerLost,
    /// PostgreSQL is away for a long time.
    Away,
    /// Somebody else holds a transaction open.
    Held,
    /// Any of them but `away` and `held`, mixed.
    All,
}

impl Scenario {
    /// The word that names it.
    pub fn word(self) -> String {
        self.to_possible_value().map_or_else(String::new, |word| word.get_name().to_owned())
    }

    /// Returns whether the scenario takes servers down, so that the run needs servers of its own.
    pub fn kills_servers(self) -> bool {
        matches!(self, Self::Kafka | Self::Rabbitmq | Self::Postgres | Self::Away | Self::All)
    }

    /// Returns whether the scenario cuts a worker's line to the carrier of the messages.
    pub fn cuts_lines(self) -> bool {
        matches!(self, Self::Cut | Self::All)
    }

    /// Returns whether the scenario makes sense with this carrier: a server that no worker uses is not missed.
    pub fn goes_with(self, on: On) -> bool {
        match self {
            Self::Kafka => on == On::Kafka,
            Self::Rabbitmq => on == On::Rabbitmq,
            _ => true,
        }
    }
}

/// A server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// The store.
    Postgres,
    /// Source and sink.
    Kafka,
    /// Source and sink.
    Rabbitmq,
}

impl Server {
    /// The server's name in `scripts/services`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Kafka => "kafka",
            Self::Rabbitmq => "rabbitmq",
        }
    }

    /// The environment variable with the server's address.
    pub(super) fn variable(self) -> &'static str {
        match self {
            Self::Postgres => "PERKEY_TEST_POSTGRES",
            Self::Kafka => "PERKEY_TEST_KAFKA",
            Self::Rabbitmq => "PERKEY_TEST_RABBITMQ",
        }
    }
}

/// The carrier of the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum On {
    /// Topics of Kafka.
    Kafka,
    /// Streams of RabbitMQ.
    Rabbitmq,
    /// The store's own log: PostgreSQL is the only server.
    Postgres,
}

impl On {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        self.broker().unwrap_or(Server::Postgres).as_str()
    }

    /// The server that the carrier needs beside PostgreSQL.
    pub fn broker(self) -> Option<Server> {
        match self {
            Self::Kafka => Some(Server::Kafka),
            Self::Rabbitmq => Some(Server::Rabbitmq),
            Self::Postgres => None,
        }
    }

    /// The scenario in which the carrier's server fails.
    fn outage(self) -> Scenario {
        match self {
            Self::Kafka => Scenario::Kafka,
            Self::Rabbitmq => Scenario::Rabbitmq,
            Self::Postgres => Scenario::Postgres,
        }
    }
}

/// One act: something that is done to the fleet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    /// SIGKILL; the worker is started again after `back`.
    Kill {
        /// The worker's index.
        worker: usize,
        /// The time until it is started again.
        back: Duration,
    },
    /// SIGSTOP, then SIGCONT.
    Freeze {
        /// The worker's index.
        worker: usize,
        /// The time for which it is frozen.
        hold: Duration,
        /// True if what it has just sent to PostgreSQL is held back, too, and arrives when others own its shards.
        late: bool,
    },
    /// SIGTERM, then a start.
    Roll {
        /// The worker's index.
        worker: usize,
    },
    /// A server goes and comes back.
    Down {
        /// The server.
        server: Server,
        /// True if the server is killed, false if it is restarted in order.
        crash: bool,
        /// The time for which it is down.
        hold: Duration,
    },
    /// A worker's line to a server behaves differently for a while.
    Line {
        /// The worker's index.
        worker: usize,
        /// The server at the other end.
        server: Server,
        /// The behaviour of the line.
        mode: Mode,
        /// The time for which it lasts.
        hold: Duration,
    },
}

/// An endless sequence of acts.
#[derive(Clone, Debug)]
pub struct Course {
    scenario: Scenario,
    on: On,
    workers: usize,
    ttl: Duration,
    away: Duration,
    dice: Dice,
    done: usize,
}

impl Course {
    /// The course of a seed, for this many workers with leases of `ttl`.
    pub fn new(scenario: Scenario, on: On, workers: usize, ttl: Duration, away: Duration, seed: u64) -> Self {
        let dice = Dice::seeded(seed ^ 0x0066_6c65_6574);
        Self { scenario, on, workers: workers.max(1), ttl, away, dice, done: 0 }
    }

    /// The next act, and the pause before it.
    pub fn next_act(&mut self) -> (Duration, Act) {
        let mut scenario = self.scenario;
        if scenario == Scenario::All {
            use Scenario::{AnswerLost, Cut, Freeze, Kill, Postgres, Rolling};
            let any = [Kill, Freeze, Rolling, self.on.outage(), Postgres, Cut, AnswerLost];
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
            // Sometimes it is back before its lease has ended, sometimes long after.
            Scenario::Kill => Act::Kill { worker, back: self.ttl.mul_f64(2.0 * self.dice.unit()) },
            Scenario::Freeze => Act::Freeze { worker, hold: self.ttl * 3, late: !(worker + turn).is_multiple_of(2) },
            Scenario::Rolling | Scenario::Held => Act::Roll { worker },
            Scenario::Kafka | Scenario::Rabbitmq | Scenario::Postgres => {
                let broker = self.on.broker().filter(|_| scenario != Scenario::Postgres);
                let server = broker.unwrap_or(Server::Postgres);
                Act::Down { server, crash: no.is_multiple_of(2), hold: self.between(0, 3_000) }
            }
            Scenario::Away => Act::Down { server: Server::Postgres, crash: true, hold: self.away },
            Scenario::Cut => {
                let broker = self.on.broker().filter(|_| !no.is_multiple_of(2));
                let server = broker.unwrap_or(Server::Postgres);
                // Only one worker has a line to Kafka that can be cut.
                let worker = if self.on == On::Kafka { 0 } else { no / 4 % self.workers };
                let mode = if (no / 2).is_multiple_of(2) { Mode::Freeze } else { Mode::Cut };
                // Shorter than the lease, or longer.
                Act::Line { worker, server, mode, hold: self.ttl.mul_f64(0.1 + 2.0 * self.dice.unit()) }
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
                let late = if *late { ", its sent data arrives late" } else { "" };
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
        for &scenario in Scenario::value_variants() {
            let acts = |seed| {
                let mut course = Course::new(scenario, On::Kafka, 3, ttl, ttl, seed);
                (0..12).map(|_| course.next_act()).collect::<Vec<_>>()
            };
            assert_eq!(acts(5), acts(5), "{scenario:?}");
        }
        let mut course = Course::new(Scenario::Freeze, On::Kafka, 3, ttl, ttl, 1);
        let late: Vec<_> = (0..6).map(|_| course.next_act().1).collect();
        for worker in 0..3 {
            for late_one in [false, true] {
                assert!(late.contains(&Act::Freeze { worker, hold: ttl * 3, late: late_one }), "{late:?}");
            }
        }
    }

    #[test]
    fn what_carries_the_messages_is_what_fails() {
        let ttl = Duration::from_secs(3);
        for on in [On::Kafka, On::Rabbitmq, On::Postgres] {
            let acts = |scenario| {
                let mut course = Course::new(scenario, on, 3, ttl, ttl, 1);
                (0..200).map(|_| course.next_act().1).collect::<Vec<_>>()
            };
            let down = |act: &Act| matches!(act, Act::Down { server, .. } if Some(*server) == on.broker());
            assert_eq!(acts(Scenario::All).iter().any(down), on != On::Postgres, "{on:?}");
            let other = |act: &&Act| match act {
                Act::Down { server, .. } | Act::Line { server, .. } => {
                    *server != Server::Postgres && Some(*server) != on.broker()
                }
                _ => false,
            };
            for scenario in [Scenario::All, Scenario::Cut] {
                assert_eq!(acts(scenario).iter().find(other), None, "{on:?}");
            }
        }
    }

    #[test]
    fn each_line_of_each_worker_to_rabbitmq_and_postgres_is_cut_and_silenced() {
        let ttl = Duration::from_secs(3);
        let mut course = Course::new(Scenario::Cut, On::Rabbitmq, 2, ttl, ttl, 1);
        let lines: Vec<_> = (0..8)
            .map(|_| match course.next_act().1 {
                Act::Line { worker, server, mode, .. } => (worker, server, mode),
                other => panic!("{other}"),
            })
            .collect();
        for worker in 0..2 {
            for server in [Server::Postgres, Server::Rabbitmq] {
                for mode in [Mode::Freeze, Mode::Cut] {
                    assert!(lines.contains(&(worker, server, mode)), "{lines:?}");
                }
            }
        }
    }
}
