//! The health of a store in SQLite, as SQLite and the file system tell it.
//! In: connections, the file's path. Out: [`StoreHealth`], [`Disk`].

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};

use super::{Disk, ServerHealth, StoreHealth, services, shards};
use crate::store::StoreError;
use crate::store::query::sql::{Cells, Sql, one};

const SERVER: &str = "SELECT sqlite_version(), (SELECT coalesce(max(version), 0) FROM _sqlx_migrations),
    (SELECT page_count FROM pragma_page_count) * (SELECT page_size FROM pragma_page_size),
    (SELECT journal_mode FROM pragma_journal_mode)";

/// The health of the store in the file at `path`.
pub(in crate::store) async fn health(db: &impl Sql, path: &Path) -> Result<StoreHealth, StoreError> {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    let server = one(&db.rows(SERVER, &[]).await?, |row| {
        Ok(ServerHealth {
            version: version(row.get(0)?),
            format: row.number(1)?,
            bytes: row.number(2)?,
            settings: [("journal_mode".to_owned(), row.get(3)?)].into(),
            // It is removed with the last connection.
            wal_bytes: Some(std::fs::metadata(wal).map_or(0, |found| found.len())),
            ..ServerHealth::default()
        })
    })?;
    Ok(StoreHealth { server, shards: shards(db).await?, services: services(db).await? })
}

/// The folder of the file at `path` and the room there; `None` where the system does not tell.
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

/// 3.50.2 as 3050002.
fn version(text: &str) -> u32 {
    let parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    parts.chain([0, 0]).take(3).fold(0, |version: u32, part: u32| version.saturating_mul(1_000).saturating_add(part))
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
