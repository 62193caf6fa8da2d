//! Decides whether an operation is tried again, and when. Pure.
//! In: the result of an attempt, and chance. Out: that it is over, or the pause before the next attempt.

use std::time::Duration;

/// The result of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// No connection: nothing was sent.
    NoConnection,
    /// No answer, or half of one: it is not known whether the operation took effect.
    Nothing,
    /// An answer.
    Answer {
        /// Its HTTP status.
        status: u16,
        /// True if it was given before, under the same key: then it is stored.
        replayed: bool,
        /// The code of its problem, if it is one.
        code: Option<String>,
        /// The time for which the server asks to be left alone.
        retry_after: Option<Duration>,
    },
}

/// The pauses between attempts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pauses {
    /// The bound of the first pause; that of each further one is twice as long.
    pub(crate) base: Duration,
    /// The longest pause, unless the server asks for a longer one.
    pub(crate) longest: Duration,
    /// The longest that a server may ask for.
    pub(crate) asked_max: Duration,
}

impl Came {
    /// Returns whether the same operation, under the same key, may have another result later.
    pub(crate) fn is_passing(&self) -> bool {
        let Self::Answer { status, replayed, code, retry_after } = self else { return true };
        let code = code.as_deref();
        // An answer that was stored once is the answer for ever.
        !replayed
            && match status {
                409 => code == Some("in_flight") || (code.is_none() && retry_after.is_some()),
                429 | 502 | 503 | 504 => true,
                500 => code == Some("internal"),
                _ => false,
            }
    }

    fn asked(&self) -> Option<Duration> {
        match self {
            Self::Answer { retry_after, .. } => retry_after.filter(|pause| !pause.is_zero()),
            Self::NoConnection | Self::Nothing => None,
        }
    }
}

impl Pauses {
    /// The pause before attempt number `next` (2 is the first retry); `unit` is uniform in `[0, 1)`.
    pub(crate) fn before(&self, next: u32, came: &Came, unit: f64) -> Duration {
        let most = self.base.saturating_mul(1 << next.saturating_sub(2).min(20)).min(self.longest);
        match came.asked() {
            None => most.mul_f64(unit),
            Some(asked) => {
                let asked = asked.min(self.asked_max);
                // Not sooner than asked; clients that were asked at once do not all come at once.
                asked + most.min(asked).mul_f64(unit)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSES: Pauses = Pauses {
        base: Duration::from_millis(100),
        longest: Duration::from_secs(5),
        asked_max: Duration::from_secs(60),
    };

    fn answer(status: u16, code: Option<&str>, replayed: bool, asked: Option<u64>) -> Came {
        let (code, retry_after) = (code.map(str::to_owned), asked.map(Duration::from_secs));
        Came::Answer { status, replayed, code, retry_after }
    }

    #[test]
    fn what_may_come_to_another_end_is_tried_again() {
        for (came, again) in [
            (Came::NoConnection, true),
            (Came::Nothing, true),
            (answer(200, None, false, None), false),
            (answer(201, None, true, None), false),
            (answer(400, Some("malformed"), false, None), false),
            (answer(409, Some("in_flight"), false, Some(1)), true),
            (answer(409, None, false, Some(1)), true),
            (answer(409, Some("already_exists"), false, Some(1)), false),
            (answer(409, Some("conflict"), true, None), false),
            (answer(422, Some("key_reused"), false, None), false),
            (answer(429, Some("rate_limited"), false, Some(1)), true),
            (answer(500, Some("failed"), false, None), false),
            (answer(500, Some("failed"), true, None), false),
            (answer(500, Some("internal"), false, None), true),
            (answer(500, None, false, None), false),
            (answer(502, None, false, None), true),
            (answer(503, Some("overloaded"), false, None), true),
            (answer(503, None, true, None), false),
            (answer(504, None, false, None), true),
        ] {
            assert_eq!(came.is_passing(), again, "{came:?}");
        }
    }

    #[test]
    fn pauses_are_drawn_from_nothing_to_twice_as_long_each_time() {
        let pause = |next, unit| PAUSES.before(next, &Came::Nothing, unit).as_millis();
        assert_eq!((pause(2, 0.0), pause(2, 0.5), pause(3, 0.5), pause(4, 0.5)), (0, 50, 100, 200));
        assert_eq!((pause(8, 0.5), pause(100, 0.5), pause(u32::MAX, 0.5)), (2_500, 2_500, 2_500));
    }

    #[test]
    fn a_server_is_not_asked_sooner_than_it_wants() {
        let pause = |asked, unit| PAUSES.before(2, &answer(503, None, false, Some(asked)), unit);
        assert_eq!(pause(3, 0.0), Duration::from_secs(3));
        assert_eq!(pause(3, 0.5), Duration::from_millis(3_050));
        assert_eq!(pause(0, 0.5), Duration::from_millis(50), "it does not say when");
        assert_eq!(pause(u64::MAX, 0.0), Duration::from_secs(60), "it may not ask for everything");
    }
}
