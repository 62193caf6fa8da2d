//! The wording of problems: what a value should have been, in the terms of the settings file. Pure.
//! In: text, a deserializer's message. Out: durations, addresses, reasons.

use std::time::Duration;

/// A description of a duration.
const DURATION: &str = "a duration such as 250ms, 5s, 15m, 2h or 7d";

/// The reason why a text is not a duration.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DurationError {
    /// It would be months, and is mostly meant as minutes.
    #[error("{text:?} would be months: write {minutes:?} for minutes, or \"months\" in full")]
    Months {
        /// The text.
        text: String,
        /// The duration in minutes.
        minutes: String,
    },
    /// It is not understood.
    #[error("{text:?} is not {DURATION}: {error}")]
    Unclear {
        /// The text.
        text: String,
        /// The parser's reason.
        error: humantime::DurationError,
    },
}

/// A duration as people write it, or the reason why it is not one. `15M` would be months: it is mostly meant as
/// minutes, so it is refused, and `15months` is the way to write the other.
pub fn duration(text: &str) -> Result<Duration, DurationError> {
    let months = |(at, _): (usize, &str)| {
        let before = text[..at].trim_end().ends_with(|c: char| c.is_ascii_digit());
        before && !text[at + 1..].starts_with(|c: char| c.is_alphabetic())
    };
    if text.match_indices('M').any(months) {
        let minutes = text.replace('M', "m");
        return Err(DurationError::Months { text: text.to_owned(), minutes });
    }
    humantime::parse_duration(text).map_err(|error| DurationError::Unclear { text: text.to_owned(), error })
}

/// Host and port of an address.
pub(crate) fn address(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    // An IPv6 address has colons of its own: it stands in brackets.
    let host = inner.or(Some(host).filter(|host| !host.contains([':', '[', ']'])))?;
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    Some((host, port.parse().ok()?)).filter(|_| digits && !host.is_empty() && !host.contains(char::is_whitespace))
}

/// The value that a deserializer wants, for people who do not know its types.
pub(super) fn wanted(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    if let Some(field) = line.strip_prefix("missing field ") {
        return format!("{} is missing", field.trim_matches('`'));
    }
    let Some((_, expected)) = line.rsplit_once("expected ") else { return line.to_owned() };
    let whole = |most: u64| format!("a whole number from 0 to {most} is wanted");
    match expected {
        "u8" => whole(u8::MAX.into()),
        "u16" => whole(u16::MAX.into()),
        "u32" => whole(u32::MAX.into()),
        // TOML has no larger numbers.
        "u64" | "usize" => whole(i64::MAX.unsigned_abs()),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number is wanted".to_owned(),
        "f32" | "f64" => "a number such as 1.5 is wanted".to_owned(),
        "a boolean" | "bool" => "true or false is wanted".to_owned(),
        "a duration" => format!("{DURATION} is wanted"),
        "a string" | "string" => "text in quotes is wanted".to_owned(),
        "a sequence" => "a list is wanted, such as [\"a\", \"b\"]".to_owned(),
        "a map" => "a section is wanted".to_owned(),
        _ if expected.starts_with("struct ") => "a section is wanted".to_owned(),
        words => format!("{} is wanted", words.replace("one of ", "").replace('`', "\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_never_taken_for_minutes() {
        for text in ["1M", "15M", "1h 15M", "15 M", "1M30s"] {
            let refused = duration(text).unwrap_err().to_string();
            assert!(refused.contains("months") && refused.contains(&text.replace('M', "m")), "{refused}");
        }
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(duration("2months"), Ok(humantime::parse_duration("2months").unwrap()));
        for text in ["", "soon", "5", "-1s", "5S", "1Ms"] {
            assert!(duration(text).unwrap_err().to_string().contains("15m"), "{text}");
        }
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (text, found) in [
            ("127.0.0.1:8080", ("127.0.0.1", 8080)),
            ("localhost:0", ("localhost", 0)),
            ("[::1]:80", ("::1", 80)),
            ("a.b:65535", ("a.b", 65_535)),
        ] {
            assert_eq!(address(text), Some(found), "{text}");
        }
        for text in
            ["", "8080", ":8080", "localhost", "localhost:70000", "localhost:+1", "::1:80", "[::1]", "a b:1", "h:"]
        {
            assert_eq!(address(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_wanted_is_said_without_types() {
        for (message, said) in [
            ("invalid type: string \"many\", expected u32\nin `a.b`", "a whole number from 0 to 4294967295 is wanted"),
            ("invalid value: integer `-1`, expected usize", "a whole number from 0 to 9223372036854775807 is wanted"),
            ("invalid type: string \"x\", expected a boolean", "true or false is wanted"),
            ("unknown variant `drop`, expected `skip` or `dead_letter`", "\"skip\" or \"dead_letter\" is wanted"),
            ("unknown variant `x`, expected one of `a`, `b`, `c`", "\"a\", \"b\", \"c\" is wanted"),
            ("missing field `service`", "service is missing"),
            ("invalid type: integer `5`, expected a string", "text in quotes is wanted"),
        ] {
            assert_eq!(wanted(message), said);
        }
    }
}
