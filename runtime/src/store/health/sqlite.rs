//! What SQLite and the file system tell of a store.
//! In: a pool, the file's path. Out: [`Health`], [`Disk`].

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, Row, query};

use super::{Disk, Health, SERVICES, SHARDS, ServerHealth, ServiceHealth, ShardHealth, earlier};
use crate::store::StoreError;

const SERVER: &str = "SELECT sqlite_version(), (SELECT coalesce(max(version), 0) FROM _sqlx_migrations),
    (SELECT page_count FROM pragma_page_count) * (SELECT page_size FROM pragma_page_size),
    (SELECT journal_mode FROM pragma_journal_mode)";

/// What is told of the store in the file at `path`.
pub(in crate::store) async fn health(readers: &SqlitePool, path: &Path) -> Result<Health, StoreError> {
    let row = query(SERVER).fetch_one(readers).await.map_err(|error| failed(&error))?;
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    let server = ServerHealth {
        version: version(&text(&row, 0)?),
        format: number(&row, 1)?,
        bytes: number(&row, 2)?,
        settings: [("journal_mode".to_owned(), text(&row, 3)?)].into(),
        // It is removed with the last connection.
        wal_bytes: Some(std::fs::metadata(wal).map_or(0, |found| found.len())),
        ..ServerHealth::default()
    };
    let rows = query(SHARDS).fetch_all(readers).await.map_err(|error| failed(&error))?;
    let shards = rows.iter().map(shard).collect::<Result<_, _>>()?;
    let rows = query(AssertSqlSafe(SERVICES)).fetch_all(readers).await.map_err(|error| failed(&error))?;
    let services = rows.iter().map(service).collect::<Result<_, _>>()?;
    Ok(Health { server, shards, services })
}

/// The folder of the file at `path`, and what room it has; nothing where the system does not tell.
pub(in crate::store) fn disk(path: &Path) -> Option<Disk> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let found = statvfs(folder).ok()?;
    let problem = if found.f_flag.contains(StatVfsMountFlags::RDONLY) {
        Some("its file system is mounted read-only".to_owned())
    } else {
        access(folder, Access::WRITE_OK).err().map(|error| std::io::Error::from(error).to_string())
    };
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some(Disk {
        folder: folder.to_owned(),
        free: bytes(found.f_bavail),
        total: bytes(found.f_blocks),
        problem,
        wide: wide(path),
    })
}

fn wide(path: &Path) -> Vec<String> {
    let beside = |end: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        let mode = std::fs::metadata(&name).ok()?.permissions().mode() & 0o777;
        (mode & 0o077 != 0).then(|| format!("{} ({mode:o})", Path::new(&name).display()))
    };
    ["", "-wal", "-shm"].into_iter().filter_map(beside).collect()
}

fn shard(row: &SqliteRow) -> Result<ShardHealth, StoreError> {
    Ok(ShardHealth {
        shard: number(row, 0)?,
        ids: number(row, 1)?,
        oldest_at: maybe(row, 2)?,
        newest_at: maybe(row, 3)?,
        latest_at: maybe(row, 4)?,
        due_at: earlier(maybe(row, 5)?, maybe(row, 6)?),
        held_at: maybe(row, 7)?,
    })
}

fn service(row: &SqliteRow) -> Result<ServiceHealth, StoreError> {
    Ok(ServiceHealth {
        service: text(row, 0)?,
        pending: number(row, 1)?,
        timers: number(row, 2)?,
        dead_letters: number(row, 3)?,
        dead_at: maybe(row, 4)?,
    })
}

/// 3.50.2 as 3050002.
fn version(text: &str) -> u32 {
    let parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    parts.chain([0, 0]).take(3).fold(0, |version: u32, part: u32| version.saturating_mul(1_000).saturating_add(part))
}

fn text(row: &SqliteRow, at: usize) -> Result<String, StoreError> {
    row.try_get(at).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn maybe<T: TryFrom<i64>>(row: &SqliteRow, at: usize) -> Result<Option<T>, StoreError> {
    let raw: Option<i64> = row.try_get(at).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    Ok(raw.and_then(|raw| T::try_from(raw).ok()))
}

fn number<T: TryFrom<i64>>(row: &SqliteRow, at: usize) -> Result<T, StoreError> {
    maybe(row, at)?.ok_or_else(|| StoreError::Corrupt(format!("no number in column {at} of what the store tells")))
}

fn failed(error: &sqlx::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        assert_eq!((version("3.50.2"), version("3.51"), version("x")), (3_050_002, 3_051_000, 0));
    }

    #[test]
    fn a_folder_has_room_and_one_that_is_not_there_tells_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder.path().join("store.db")).unwrap();
        assert!(disk.free <= disk.total && disk.problem.is_none() && disk.folder == folder.path(), "{disk:?}");
        assert_eq!(super::disk(&folder.path().join("none/store.db")), None);
    }
}
