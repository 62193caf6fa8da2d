//! The file of a SQLite store, and the lock that makes one process its owner.
//! In: `store.url`. Out: a path, a held lock, or what is wrong with either.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store::StoreError;

/// The file's mode: other users of the machine have no access to the store.
const OWNERS: u32 = 0o600;

/// The number of times that the lock is tried: a tool that only asks whether it is held has it for an instant.
const TRIES: u32 = 5;

/// The file that `url` names.
pub(super) fn path(url: &str) -> Result<PathBuf, StoreError> {
    let Some(rest) = url.strip_prefix("sqlite:") else {
        let scheme = url.split(':').next().unwrap_or("");
        return Err(StoreError::Url(format!(
            "has the scheme {scheme:?}; a store is sqlite:///path/to.db or postgres://host/database"
        )));
    };
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.is_empty() || path.contains(":memory:") {
        return Err(StoreError::Url(
            "names no file: a store in memory would not survive its process; use sqlite:///path/to.db".to_owned(),
        ));
    }
    if path.contains(['?', '#']) {
        return Err(StoreError::Url("has options after the path; a SQLite store takes none".to_owned()));
    }
    let path = Path::new(path);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let folder = folder.display();
        return Err(StoreError::Url(format!("lies in {folder}, which is not a directory: create it, or name another")));
    }
    if path.is_dir() {
        return Err(StoreError::Url(format!("names {}, which is a directory: name a file in it", path.display())));
    }
    // A file has one lock, by whatever link it is named.
    Ok(path.canonicalize().unwrap_or_else(|_| path.to_owned()))
}

/// Makes the file if it is missing, for its owner alone: SQLite gives the files beside it the same mode. If that fails,
/// SQLite reports the reason when it opens the file.
pub(super) fn make(path: &Path) {
    drop(OpenOptions::new().write(true).create_new(true).mode(OWNERS).open(path));
}

/// Takes the lock beside `path`, for as long as the file lives.
pub(super) async fn lock(path: &Path) -> Result<File, StoreError> {
    let beside = beside(path);
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(OWNERS).open(&beside);
    let file = file.map_err(|error| {
        StoreError::Unavailable(format!("{}: {error}: its directory must be writable", beside.display()))
    })?;
    for attempt in 1.. {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if attempt < TRIES => crate::clock::sleep(Duration::from_millis(20)).await,
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked(format!("it holds {}", beside.display()))),
            Err(TryLockError::Error(error)) => {
                return Err(StoreError::Unavailable(format!("{}: {error}", beside.display())));
            }
        }
    }
    Ok(file)
}

/// True if a process holds the lock.
pub(super) fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(beside(path)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}
