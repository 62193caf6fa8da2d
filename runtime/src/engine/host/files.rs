//! The limit of open files, and so of connections, of the process.
//! In: the system's limits. Out: as many as it allows, and what does not fit into that.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the process's limit as far as it may; returns the limit.
pub fn raise_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    // Some systems say that there is no bound, and do not take it.
    let files = if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    files.unwrap_or(u64::MAX)
}

/// A process that may not open as many files as it may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the process may open {limit} files, its connections and its store may need {needed}: raise the limit (`ulimit -n`, \
     LimitNOFILE), or lower gateway.connections_max"
)]
pub struct TooFewFiles {
    limit: u64,
    needed: u64,
}

/// Says what is wrong where a process that needs so many files may not have them.
pub fn files_fit(limit: u64, needed: u64) -> Result<(), TooFewFiles> {
    if needed <= limit { Ok(()) } else { Err(TooFewFiles { limit, needed }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be() {
        let limit = getrlimit(Resource::Nofile);
        let Some(most) = limit.maximum else { return };
        setrlimit(Resource::Nofile, Rlimit { current: Some(most - 1), ..limit }).unwrap();
        assert_eq!((raise_files(), getrlimit(Resource::Nofile).current), (most, Some(most)));
    }

    #[test]
    fn what_does_not_fit_is_told_with_what_to_do() {
        assert_eq!(files_fit(1_024, 1_024), Ok(()));
        let told = files_fit(1_024, 2_300).unwrap_err().to_string();
        assert!(told.contains("1024 files") && told.contains("2300") && told.contains("connections_max"), "{told}");
    }
}
