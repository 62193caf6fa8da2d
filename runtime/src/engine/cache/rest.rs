//! The rests of a server that does not answer: it is left alone, so that its outage costs no request its time. Pure.
//! In: the outcomes of requests to it. Out: whether it may be asked now.

use std::time::Duration;

/// The rest after the first failure; each further one doubles it.
const FIRST: Duration = Duration::from_millis(100);
/// The longest time that it is left alone.
const LONGEST: Duration = Duration::from_secs(1);
/// The time after which a single question counts as one that nobody waits for any more.
const FORGOTTEN: Duration = Duration::from_secs(2);

/// Everything that is known of the server. Times are counted from any one moment.
#[derive(Debug, Default)]
pub(super) struct Rest(State);

#[derive(Debug, Default)]
enum State {
    /// It answers.
    #[default]
    Fine,
    /// It is left alone.
    Resting { until: Duration, failures: u32 },
    /// One question is on its way; others are not asked meanwhile.
    Trying { since: Duration, failures: u32 },
}

impl Rest {
    /// True where it may be asked at `now`; after a rest only one may.
    pub(super) fn may(&mut self, now: Duration) -> bool {
        match self.0 {
            State::Fine => true,
            State::Resting { until, failures } if until <= now => {
                self.0 = State::Trying { since: now, failures };
                true
            }
            State::Trying { since, failures } if since + FORGOTTEN <= now => {
                self.0 = State::Trying { since: now, failures };
                true
            }
            State::Resting { .. } | State::Trying { .. } => false,
        }
    }

    /// It answered.
    pub(super) fn succeeded(&mut self) {
        self.0 = State::Fine;
    }

    /// It did not answer. Returns whether it failed once more after a rest: a new connection may do better.
    pub(super) fn failed(&mut self, now: Duration) -> bool {
        let failures = match self.0 {
            State::Fine => 1,
            State::Trying { failures, .. } => failures.saturating_add(1),
            // It was asked before the rest began, so that this is nothing new.
            State::Resting { .. } => return false,
        };
        let pause = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(8)).min(LONGEST);
        self.0 = State::Resting { until: now + pause, failures };
        failures > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn after_a_failure_one_question_at_a_time_finds_out_whether_it_is_back() {
        let mut rest = Rest::default();
        assert!(rest.may(ms(0)) && rest.may(ms(0)));
        assert!(!rest.failed(ms(10)) && !rest.failed(ms(12)), "both were asked before");
        assert!(!rest.may(ms(109)) && rest.may(ms(110)) && !rest.may(ms(110)));
        assert!(rest.failed(ms(160)));
        assert!(!rest.may(ms(359)) && rest.may(ms(360)));
        rest.succeeded();
        assert!(rest.may(ms(361)) && rest.may(ms(361)));
    }

    #[test]
    fn rests_have_a_bound_and_a_question_that_was_dropped_is_asked_again() {
        let (mut rest, mut now) = (Rest::default(), ms(0));
        for _ in 0..100 {
            assert!(rest.may(now));
            rest.failed(now);
            now += LONGEST;
        }
        assert!(rest.may(now), "nobody says how it ended");
        assert!(!rest.may(now + ms(1_999)) && rest.may(now + ms(2_000)));
    }
}
