//! Properties of the store in a SQLite file alone: its lock, its file, its tools, a full disk.
//! In: files in all states. Out: a store, or an error that says what to do.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use bytes::Bytes;
use perkey::StoreError;
use perkey::unstable::message::{Positions, Print, Taken};
use perkey::unstable::store::query::{Action, DeadFilter, ImportBatch, ImportProgress, NewCommand, Queries};
use perkey::unstable::store::sqlite::{Access, SqliteStore};
use perkey::unstable::store::{LogRow, Outcome, Part, Store};
use perkey_chaos::process::until;
use sqlx::{Connection, Row};

use crate::fixture::{Place, SqlitePlace, commit, committed, everything, full, setup, state, url};

async fn refused(url: &str, access: Access) -> String {
    SqliteStore::open(url, access).await.expect_err(url).to_string()
}

#[tokio::test]
async fn one_process_runs_a_store() {
    let place = SqlitePlace::new().await;
    assert!(SqliteStore::is_running(&place.url()));
    let second = SqliteStore::open(&place.url(), Access::Run).await.unwrap_err();
    assert!(matches!(&second, StoreError::Locked(text) if text.contains("store.db.lock")), "{second}");
    place.sqlite().close().await;
    assert!(!SqliteStore::is_running(&place.url()));
    let third = SqliteStore::open(&place.url(), Access::Run).await.unwrap();
    drop(third);
    let folder = tempfile::tempdir().unwrap();
    assert!(!SqliteStore::is_running(&url(&folder)), "a store that does not exist");
}

#[tokio::test]
async fn a_tool_looks_and_leaves_requests_while_the_store_runs() {
    let place = SqlitePlace::new().await;
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let epoch = store.take(1, "me").await.unwrap().epoch;
    committed(&store, &full(&identity, 1, epoch, 1, "a")).await;
    let tool = SqliteStore::open(&place.url(), Access::Tool).await.unwrap();
    assert_eq!(tool.count_dead(DeadFilter::default()).await.unwrap(), 1);
    assert_eq!(tool.explain("acct-a".to_owned()).await.unwrap().states.len(), 1);
    let command = NewCommand {
        action: Action::Discard,
        filter: DeadFilter::default(),
        who: "ann".into(),
        why: "old".into(),
        matched: 1,
        at: 3,
    };
    let id = tool.command(command).await.unwrap();
    assert_eq!(store.queries().open_commands(0, Vec::new()).await.unwrap()[0].as_ref().unwrap().id, id);
    let rows = vec![LogRow { target: 0, count: 1, messages: Bytes::from_static(b"x") }];
    let progress = ImportProgress { lines: 2, ..ImportProgress::default() };
    let batch = ImportBatch { service: "balances".into(), source: "f".into(), rows, progress, at: 4 };
    tool.append_import(batch).await.unwrap();
    assert_eq!(store.read_log(0, Positions::new(), 9).await.unwrap().len(), 1);
    let before = everything(&*place, &["a"]).await;
    assert!(tool.take(1, "tool").await.is_err());
    assert!(tool.prepare(setup()).await.is_err());
    assert!(matches!(tool.commit(&commit(1, epoch, 2)).await, Outcome::Unavailable(_)));
    assert_eq!(before, everything(&*place, &["a"]).await);
}

#[tokio::test]
async fn urls_that_name_no_store_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("sqlite://{}", folder.path().join(name).display());
    assert!(refused("postgres://user:secret@host/db", Access::Run).await.contains("sqlite:///path/to.db"));
    assert!(!refused("postgres://user:secret@host/db", Access::Run).await.contains("secret"));
    assert!(refused("sqlite::memory:", Access::Run).await.contains("would not survive"));
    assert!(refused("sqlite://", Access::Run).await.contains("names no file"));
    assert!(refused(&at("none/store.db"), Access::Run).await.contains("create it"));
    assert!(refused(&at(""), Access::Run).await.contains("directory"));
    assert!(refused(&at("none.db"), Access::Tool).await.contains("made by the process that runs it"));
    assert!(!folder.path().join("none.db").exists(), "looking makes no file");
    std::fs::write(folder.path().join("text.db"), "this is no database, and long enough to be sure of it".repeat(99))
        .unwrap();
    for access in [Access::Run, Access::Tool] {
        assert!(refused(&at("text.db"), access).await.contains("is not a SQLite database"));
    }
    std::fs::write(folder.path().join("empty.db"), "").unwrap();
    assert!(refused(&at("empty.db"), Access::Tool).await.contains("is not a store yet"));
    let store = SqliteStore::open(&at("empty.db"), Access::Run).await.unwrap();
    store.prepare(setup()).await.unwrap();
}

#[tokio::test]
async fn a_store_that_cannot_be_written_is_refused_at_the_start() {
    let place = SqlitePlace::new().await;
    place.sqlite().close().await;
    let file = place.folder.path().join("store.db");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o444)).unwrap();
    if std::fs::OpenOptions::new().write(true).open(&file).is_err() {
        let error = refused(&place.url(), Access::Run).await;
        assert!(error.contains("store.db") && error.contains("readonly"), "{error}");
    }
    // No user can make a file there, the super-user neither.
    let error = refused("sqlite:///proc/store.db", Access::Run).await;
    assert!(error.contains("must be writable"), "{error}");
}

#[tokio::test]
async fn the_files_of_a_store_are_their_owners_alone() {
    let place = SqlitePlace::new().await;
    let store = place.store();
    let epoch = store.take(0, "me").await.unwrap().epoch;
    committed(&store, &commit(0, epoch, 1)).await;
    let files: Vec<_> = std::fs::read_dir(place.folder.path()).unwrap().map(Result::unwrap).collect();
    let mut modes: Vec<_> = files
        .iter()
        .map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().permissions().mode() & 0o777))
        .collect();
    modes.sort();
    assert!(modes.iter().any(|(name, _)| name == "store.db-wal") && modes.len() >= 4, "{modes:?}");
    assert!(modes.iter().all(|(_, mode)| *mode == 0o600), "{modes:?}");
}

#[tokio::test]
async fn a_store_of_a_newer_program_is_refused() {
    let place = SqlitePlace::new().await;
    let mut connection = place.connection().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations SELECT 99, 'later', installed_on, 1, checksum, 0 FROM _sqlx_migrations LIMIT 1",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();
    place.sqlite().close().await;
    for access in [Access::Run, Access::Tool] {
        let error = SqliteStore::open(&place.url(), access).await.unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
    }
    assert!(!SqliteStore::is_running(&place.url()), "a refused start holds no lock");
}

#[tokio::test]
async fn a_store_of_an_older_program_is_brought_up_to_date_by_who_runs_it_and_refused_to_others() {
    let place = SqlitePlace::new().await;
    let mut connection = place.connection().await;
    let before = "ALTER TABLE commits DROP COLUMN prints; ALTER TABLE shards DROP COLUMN code_versions;
        DELETE FROM _sqlx_migrations WHERE version >= 9";
    sqlx::raw_sql(before).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    place.sqlite().close().await;
    for access in [Access::Tool, Access::Serve] {
        let error = SqliteStore::open(&place.url(), access).await.unwrap_err();
        assert!(matches!(error, StoreError::Older { found: 8, .. }), "{error}");
    }
    let store = SqliteStore::open(&place.url(), Access::Run).await.unwrap();
    store.prepare(setup()).await.unwrap();
    SqliteStore::open(&place.url(), Access::Tool).await.unwrap();
}

#[tokio::test]
async fn ids_of_a_store_of_before_prints_were_kept_are_there_without() {
    let place = SqlitePlace::new().await;
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let epoch = store.take(1, "me").await.unwrap().epoch;
    let written = full(&identity, 1, epoch, 1, "a");
    committed(&store, &written).await;
    drop(store);
    place.sqlite().close().await;
    let mut connection = place.connection().await;
    let before = "ALTER TABLE commits DROP COLUMN prints; DELETE FROM _sqlx_migrations WHERE version = 9";
    sqlx::raw_sql(before).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&place.url(), Access::Run).await.unwrap());
    store.prepare(setup()).await.unwrap();
    committed(&store, &full(&identity, 1, epoch, 2, "b")).await;
    let found = store.inbox(1, 0, 100).await.unwrap().commits;
    assert_eq!(found[0].ids, [Taken::from(written.parts[0].ids[0].id)]);
    assert_ne!(found[1].ids[0].print, Print::UNKNOWN);
}

#[tokio::test]
async fn a_full_disk_is_survived() {
    let place = SqlitePlace::new().await;
    let store = place.store();
    let epoch = store.take(0, "me").await.unwrap().epoch;
    let sqlite = place.sqlite();
    let mut connection = place.connection().await;
    let pages: u32 = sqlx::query("PRAGMA page_count").fetch_one(&mut connection).await.unwrap().get(0);
    sqlite.limit_pages(pages + 20).await.unwrap();
    let large = |no: u64| {
        let json = format!("\"{}\"", "x".repeat(60_000));
        let part = Part { state: Some(state(&format!("k{no}"), &json)), ..Part::default() };
        perkey::unstable::store::Commit { parts: vec![part], ..commit(0, epoch, no) }
    };
    committed(&store, &large(1)).await;
    let before = everything(&*place, &[]).await;
    for _ in 0..2 {
        let outcome = store.commit(&large(2)).await;
        assert!(matches!(&outcome, Outcome::Unavailable(text) if text.contains("full")), "{outcome:?}");
    }
    assert_eq!(before, everything(&*place, &[]).await);
    committed(&store, &commit(0, epoch, 2)).await;
    sqlite.limit_pages(pages + 2_000).await.unwrap();
    committed(&store, &large(3)).await;
}

#[tokio::test]
async fn another_process_that_writes_is_waited_for() {
    let place = SqlitePlace::new().await;
    let store = place.store();
    let epoch = store.take(0, "me").await.unwrap().epoch;
    let mut other = place.connection().await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let first = commit(0, epoch, 1);
    let under_way = store.commit(&first);
    assert_eq!(store.load(0, Vec::new()).await.unwrap(), [], "reading goes on");
    assert_eq!(store.queries().shards().await.unwrap()[0].commit_no, 0);
    sqlx::query("COMMIT").execute(&mut other).await.unwrap();
    assert!(matches!(under_way.await, Outcome::Committed));
}

#[tokio::test]
async fn what_was_committed_before_a_kill_is_there() {
    // The files as they are on disk, without anything being closed in order.
    let place = SqlitePlace::new().await;
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let epoch = store.take(1, "me").await.unwrap().epoch;
    for no in 1..=20 {
        committed(&store, &full(&identity, 1, epoch, no, &no.to_string())).await;
    }
    let copy = tempfile::tempdir().unwrap();
    for name in ["store.db", "store.db-wal"] {
        std::fs::copy(place.folder.path().join(name), copy.path().join(name)).unwrap();
    }
    let after = Arc::new(SqliteStore::open(&url(&copy), Access::Run).await.unwrap());
    after.prepare(setup()).await.unwrap();
    let taken = after.take(1, "next").await.unwrap();
    assert_eq!((taken.commit_no, taken.epoch, taken.unclean), (20, epoch + 1, 1));
    assert_eq!(after.inbox(1, 0, 1_000).await.unwrap().commits.len(), 20);
}

/// A commit that writes about `bytes` of state.
fn large(no: u64, epoch: u64, bytes: usize) -> perkey::unstable::store::Commit {
    let json = format!("\"{}\"", "x".repeat(bytes));
    let part = Part { state: Some(state(&format!("k{no}"), &json)), ..Part::default() };
    perkey::unstable::store::Commit { parts: vec![part], ..commit(0, epoch, no) }
}

/// The size of the write-ahead log; `None` if there is none.
fn wal(place: &SqlitePlace) -> Option<u64> {
    std::fs::metadata(place.folder.path().join("store.db-wal")).ok().map(|found| found.len())
}

#[tokio::test]
async fn a_closed_store_is_whole_in_its_one_file() {
    let place = SqlitePlace::new().await;
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let epoch = store.take(1, "me").await.unwrap().epoch;
    committed(&store, &full(&identity, 1, epoch, 1, "a")).await;
    // Connections that read have been opened, and are idle.
    assert_eq!(store.queries().shards().await.unwrap()[1].commit_no, 1);
    assert!(wal(&place).is_some_and(|bytes| bytes > 0));
    place.sqlite().close().await;
    assert_eq!(wal(&place), None, "it is gone");
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(place.folder.path().join("store.db"), copy.path().join("store.db")).unwrap();
    // A tool that looks, and leaves a request, leaves one file as well.
    let tool = SqliteStore::open(&url(&copy), Access::Tool).await.unwrap();
    assert_eq!(tool.queries().shards().await.unwrap()[1].commit_no, 1);
    tool.close().await;
    assert!(!copy.path().join("store.db-wal").exists());
    // With another program that has it open, but reads nothing just now.
    let store = SqliteStore::open(&url(&copy), Access::Run).await.unwrap();
    store.prepare(setup()).await.unwrap();
    let other = SqliteStore::open(&url(&copy), Access::Tool).await.unwrap();
    assert_eq!(other.queries().shards().await.unwrap()[1].commit_no, 1);
    store.take(1, "next").await.unwrap();
    store.close().await;
    assert_eq!(std::fs::metadata(copy.path().join("store.db-wal")).map_or(0, |found| found.len()), 0);
    other.close().await;
}

#[tokio::test]
async fn a_long_read_bounds_the_log_and_its_end_empties_it() {
    const MAX: u64 = 2 << 20;
    let place = SqlitePlace::new().await;
    let store = place.store();
    let epoch = store.take(0, "me").await.unwrap().epoch;
    place.sqlite().limit_wal(MAX);
    // Nobody reads for long: it is emptied whenever it is too large.
    for no in 1..=20 {
        committed(&store, &large(no, epoch, 300_000)).await;
    }
    assert!(wal(&place).is_some_and(|bytes| bytes < MAX + (1 << 20)), "{:?}", wal(&place));
    let mut reader = place.connection().await;
    sqlx::query("BEGIN").execute(&mut reader).await.unwrap();
    sqlx::query("SELECT count(*) FROM shards").fetch_one(&mut reader).await.unwrap();
    let mut no = 20;
    let refusal = loop {
        no += 1;
        match store.commit(&large(no, epoch, 300_000)).await {
            Outcome::Committed => assert!(no < 100, "nothing bounds it: {:?}", wal(&place)),
            refused => break refused,
        }
    };
    assert!(matches!(&refusal, Outcome::Unavailable(text) if text.contains("store.wal_bytes_max")), "{refusal:?}");
    assert!(store.take(1, "me").await.unwrap_err().to_string().contains("store.wal_bytes_max"));
    assert!(wal(&place).is_some_and(|bytes| bytes < MAX + (2 << 20)), "{:?}", wal(&place));
    sqlx::query("COMMIT").execute(&mut reader).await.unwrap();
    let soon = std::time::Duration::from_secs(60);
    let emptied = async || wal(&place).is_some_and(|bytes| bytes == 0);
    until("the log is not emptied though nobody reads and writes", soon, emptied).await.unwrap();
    let goes_on = async || matches!(store.commit(&large(no, epoch, 300_000)).await, Outcome::Committed);
    until("the store does not go on", soon, goes_on).await.unwrap();
}

#[tokio::test]
async fn a_page_of_large_commits_is_a_small_one() {
    crate::store_contract::pages_of_large_commits_are_bounded(&*SqlitePlace::new().await).await;
}
