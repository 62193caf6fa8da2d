//! The meaning of a failed SQLite call for the data and for the caller.
//! In: an error of the driver. Out: refused, unavailable or unknown, with SQLite's own words.

use sqlx::Error;

use crate::store::{CommitOutcome, StoreError};

const ERROR: i32 = 1;
const CORRUPT: i32 = 11;
const TOOBIG: i32 = 18;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;
const RANGE: i32 = 25;
const NOTADB: i32 = 26;
const BUSY: i32 = 5;

/// A failed call.
#[derive(Clone, Debug)]
pub(super) enum SqliteFailure {
    /// The data was refused: the same data will fail again.
    Refused { permanent: bool, error: String },
    /// The store is not available now; the statement did nothing.
    Unavailable(String),
    /// The connection is gone: the call may have taken effect.
    Lost(String),
}

impl SqliteFailure {
    /// Sorts an error of a statement inside a transaction.
    pub(super) fn of(error: &Error) -> Self {
        let text = error.to_string();
        match code(error) {
            Some(TOOBIG | MISMATCH | RANGE) => Self::Refused { permanent: true, error: text },
            Some(CONSTRAINT | ERROR) => Self::Refused { permanent: false, error: text },
            Some(_) => Self::Unavailable(text),
            None => Self::Lost(text),
        }
    }

    /// Sorts an error of the COMMIT itself.
    pub(super) fn of_commit(error: &Error) -> Self {
        match code(error) {
            Some(BUSY) => Self::Unavailable(error.to_string()),
            Some(_) | None => Self::Lost(error.to_string()),
        }
    }

    /// The outcome of a commit that failed so.
    pub(super) fn outcome(self) -> CommitOutcome {
        match self {
            Self::Refused { permanent, error } => CommitOutcome::Refused { permanent, error },
            Self::Unavailable(text) => CommitOutcome::Unavailable(text),
            Self::Lost(text) => CommitOutcome::Unknown(text),
        }
    }
}

/// The error of a call that is not a commit.
pub(super) fn failed(error: Error) -> StoreError {
    match code(&error) {
        Some(CORRUPT) => StoreError::Corrupt(error.to_string()),
        Some(_) | None => StoreError::Unavailable(error.to_string()),
    }
}

/// The error of opening `path`.
pub(super) fn open_error(path: &std::path::Path, error: &Error) -> StoreError {
    let path = path.display();
    match code(error) {
        Some(NOTADB) => {
            StoreError::Url(format!("names {path}, which is not a SQLite database: name another file, or move it away"))
        }
        Some(CORRUPT) => StoreError::Corrupt(format!("{path}: {error}")),
        Some(_) | None => StoreError::Unavailable(format!("{path}: {error}")),
    }
}

/// The primary result code, when SQLite gave one.
fn code(error: &Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?;
    Some(code.parse::<i32>().ok()? & 0xff)
}
