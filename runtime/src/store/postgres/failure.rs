//! The meaning of a failed call for the data and for the caller.
//! In: an error of the driver. Out: a [`PgFailure`], with PostgreSQL's own words.

use sqlx::Error;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::store::{CommitOutcome, StoreError};

/// Classes of SQLSTATE that speak of the server, the connection or the moment; all others speak of the data.
const NOT_OF_THE_DATA: [&str; 10] = ["08", "25", "26", "28", "40", "53", "55", "57", "58", "XX"];
/// Classes that the same data will meet again: cardinality, data exceptions, limits.
const PERMANENT: [&str; 3] = ["21", "22", "54"];

/// The SQLSTATE of a missing right: the same data will pass once the role has it.
const LACKS_A_RIGHT: &str = "42501";

/// A failed call. Nothing was written, except perhaps for [`PgFailure::Lost`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PgFailure {
    /// The data was refused: the same data will fail again.
    Refused { permanent: bool, error: String },
    /// A deadlock or a failed serialization: the same call will pass.
    Again(String),
    /// Another transaction holds a lock that the call needs: the same call will pass once that is released.
    Locked(String),
    /// The server took longer than the statement may take.
    TooLong(String),
    /// The server has forgotten a prepared statement.
    Forgotten(String),
    /// Stored data is damaged.
    Corrupt(String),
    /// The store is not available now.
    Unavailable(String),
    /// The connection is gone: the call may have taken effect.
    Lost(String),
}

impl PgFailure {
    /// Sorts the error of a statement.
    pub(super) fn of(error: &Error) -> Self {
        let Some(said) = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>()) else {
            return Self::Lost(error.to_string());
        };
        let text = text(said);
        match said.severity() {
            // The session ended; whether its last statement did cannot be told from that.
            PgSeverity::Fatal | PgSeverity::Panic => Self::Lost(text),
            PgSeverity::Error
            | PgSeverity::Warning
            | PgSeverity::Notice
            | PgSeverity::Debug
            | PgSeverity::Info
            | PgSeverity::Log => Self::coded(said.code(), text),
        }
    }

    fn coded(code: &str, text: String) -> Self {
        let class = code.get(..2).unwrap_or_default();
        match code {
            "40001" | "40P01" => Self::Again(text),
            "55P03" => Self::Locked(text),
            "57014" => Self::TooLong(text),
            "26000" => Self::Forgotten(text),
            "XX001" | "XX002" => Self::Corrupt(text),
            LACKS_A_RIGHT => Self::Unavailable(text),
            _ if NOT_OF_THE_DATA.contains(&class) => Self::Unavailable(text),
            _ => Self::Refused { permanent: PERMANENT.contains(&class), error: text },
        }
    }

    /// True if the connection can still be used.
    pub(super) fn leaves_connection(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::Again(_) | Self::Locked(_) | Self::TooLong(_) => true,
            Self::Forgotten(_) | Self::Corrupt(_) | Self::Unavailable(_) | Self::Lost(_) => false,
        }
    }

    /// The outcome of a commit that failed so.
    pub(super) fn outcome(self) -> CommitOutcome {
        match self {
            Self::Refused { permanent, error } => CommitOutcome::Refused { permanent, error },
            Self::Again(text)
            | Self::Locked(text)
            | Self::TooLong(text)
            | Self::Forgotten(text)
            | Self::Corrupt(text)
            | Self::Unavailable(text) => CommitOutcome::Unavailable(text),
            Self::Lost(text) => CommitOutcome::Unknown(text),
        }
    }
}

impl From<PgFailure> for StoreError {
    /// The error of a call that is not a commit.
    fn from(failure: PgFailure) -> Self {
        match failure {
            PgFailure::Corrupt(text) => Self::Corrupt(text),
            PgFailure::Refused { error, .. } => Self::Refused(error),
            PgFailure::Again(text)
            | PgFailure::Locked(text)
            | PgFailure::TooLong(text)
            | PgFailure::Forgotten(text)
            | PgFailure::Unavailable(text)
            | PgFailure::Lost(text) => Self::Unavailable(text),
        }
    }
}

/// The server's message, with the table where the message does not name it. The detail is left out: it may quote a row.
fn text(said: &PgDatabaseError) -> String {
    if said.code() == LACKS_A_RIGHT {
        let rights = "scripts/rights.sql gives each role its rights, what a store is made of is its owner's to make";
        return format!("{} (SQLSTATE {LACKS_A_RIGHT}): {rights}", said.message());
    }
    match said.table() {
        Some(table) if !said.message().contains(table) => {
            format!("{} (table {table}, SQLSTATE {})", said.message(), said.code())
        }
        Some(_) | None => format!("{} (SQLSTATE {})", said.message(), said.code()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_sorted_by_what_they_speak_of() {
        let refused = |permanent| PgFailure::Refused { permanent, error: String::new() };
        for (code, failure) in [
            ("23505", refused(false)),
            ("23502", refused(false)),
            ("42P01", refused(false)),
            ("P0001", refused(false)),
            ("21000", refused(true)),
            ("22003", refused(true)),
            ("54000", refused(true)),
            ("40001", PgFailure::Again(String::new())),
            ("40P01", PgFailure::Again(String::new())),
            ("40003", PgFailure::Unavailable(String::new())),
            ("57014", PgFailure::TooLong(String::new())),
            ("26000", PgFailure::Forgotten(String::new())),
            ("25006", PgFailure::Unavailable(String::new())),
            ("53100", PgFailure::Unavailable(String::new())),
            ("55P03", PgFailure::Locked(String::new())),
            ("57P03", PgFailure::Unavailable(String::new())),
            ("58030", PgFailure::Unavailable(String::new())),
            ("XX000", PgFailure::Unavailable(String::new())),
            ("42501", PgFailure::Unavailable(String::new())),
            ("XX001", PgFailure::Corrupt(String::new())),
        ] {
            assert_eq!(PgFailure::coded(code, String::new()), failure, "{code}");
        }
    }

    #[test]
    fn a_lost_connection_is_unknown_to_a_commit() {
        let lost = PgFailure::of(&Error::Protocol("cut".to_owned()));
        assert!(!lost.leaves_connection());
        assert!(matches!(lost.outcome(), CommitOutcome::Unknown(_)));
    }
}
