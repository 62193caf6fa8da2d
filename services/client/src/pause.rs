//! The pauses that a server asks for. Pure.
//! In: values of `Retry-After` and `grpc-retry-pushback-ms`. Out: durations, or the request not to try again.

use std::time::Duration;

/// The request in `grpc-retry-pushback-ms` of a gRPC answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Try again after exactly this time.
    After(Duration),
    /// Do not try again.
    Stop,
}

/// Reads `grpc-retry-pushback-ms`: a number of milliseconds; what is below 0, or no number, asks not to come again.
///
/// ```
/// use std::time::Duration;
/// use perkey_client::{Pushback, pushback};
///
/// assert_eq!(pushback("250"), Pushback::After(Duration::from_millis(250)));
/// assert_eq!(pushback("-1"), Pushback::Stop);
/// ```
pub fn pushback(value: &str) -> Pushback {
    match value.trim().parse::<i32>().map(u64::try_from) {
        Ok(Ok(millis)) => Pushback::After(Duration::from_millis(millis)),
        Ok(Err(_)) | Err(_) => Pushback::Stop,
    }
}

/// Reads `Retry-After`, seconds or an HTTP date; `now` in seconds since the epoch. `None` if it is neither.
pub(crate) fn retry_after(value: &str, now: u64) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number with too many digits is as good as for ever: the caller has a bound.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    http_date(value).map(|at| Duration::from_secs(at.saturating_sub(now)))
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Seconds since the epoch of an HTTP date, in the three forms that RFC 9110 has.
fn http_date(text: &str) -> Option<u64> {
    let text = text.replace([',', '-'], " ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let (day, month, year, time) = match words[..] {
        [_, day, month, year, time, "GMT"] => (day, month, year, time),
        [_, month, day, time, year] => (day, month, year, time),
        _ => return None,
    };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let day: u64 = day.parse().ok().filter(|day| (1..=31).contains(day))?;
    let year = match (year.len(), year.parse::<u64>().ok()?) {
        (2, year) if year < 70 => year + 2_000,
        (2, year) => year + 1_900,
        (_, year) => Some(year).filter(|year| (1970..10_000).contains(year))?,
    };
    let mut parts = time.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    if hour > 23 || minute > 59 || second > 60 || parts.next().is_some() {
        return None;
    }
    Some(((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

/// Days from the epoch to a day of the Gregorian calendar.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Years that begin in March have their leap day last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 719_469
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_of_all_forms_are_understood() {
        let at = 784_111_777;
        for (value, pause) in [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("120", Some(120)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(7)),
            ("Sun Nov  6 08:49:37 1994", Some(7)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
            ("Sun, 32 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49 GMT", None),
        ] {
            assert_eq!(retry_after(value, at - 7), pause.map(Duration::from_secs), "{value:?}");
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(days(1970, 1, 1), 0);
        assert_eq!(days(1972, 3, 1), 790);
        assert_eq!(days(2000, 2, 29), 11_016);
        assert_eq!(days(2026, 11, 22), 20_779);
    }

    #[test]
    fn a_pushback_is_a_pause_or_the_end() {
        assert_eq!(pushback("1500"), Pushback::After(Duration::from_millis(1_500)));
        assert_eq!(pushback("0"), Pushback::After(Duration::ZERO));
        for stop in ["-1", "", "soon", "99999999999"] {
            assert_eq!(pushback(stop), Pushback::Stop, "{stop:?}");
        }
    }
}
