//! Checks the store's server, its settings, its clock, its disk, its versions.
//! In: facts. Out: findings.

use perkey::unstable::store::health::{Disk, ServerHealth};
use perkey::unstable::transport::kafka;

use super::facts::{Facts, StoreFacts};
use super::{Finding, error, note, ok, or_ok, warning};

/// The oldest PostgreSQL that the store is tested with.
const POSTGRES_LEAST: u32 = 150_000;
const GIB: u64 = 1 << 30;
/// The size above which SQLite's write-ahead log is not copied back in time: usually it stays at 32 MiB.
const WAL_MOST: u64 = 256 << 20;
/// The largest difference of clocks, in milliseconds.
const SKEW_MOST: u64 = 1_000;
const SKEW_WRONG: u64 = 60_000;
/// The age of transactions that is a problem; PostgreSQL's numbers last for about two thousand million.
const FROZEN_LATE: u64 = 1_000_000_000;
const FROZEN_WRONG: u64 = 1_800_000_000;

/// All checks of this file.
pub(super) fn checks(facts: &Facts) -> Vec<Finding> {
    let mut all: Vec<_> = facts.disk.iter().flat_map(disk).collect();
    let store = match &facts.store {
        Ok(store) => store,
        Err(reason) => {
            let advice = "start it once with the program that runs it, or mend the problem; nothing in it was checked";
            all.push(error("store", reason, advice));
            return all;
        }
    };
    let server = &store.health.server;
    all.extend(versions(facts, store));
    if facts.shared {
        all.extend(durability(server));
        all.extend(upkeep(facts, store));
        all.extend(clock(store));
    } else {
        all.extend(sqlite(server));
    }
    all.extend(times(store, facts.shared));
    all
}

fn disk(disk: &Disk) -> Vec<Finding> {
    let folder = disk.folder.display();
    if let Some(problem) = &disk.problem {
        return vec![error(
            "disk",
            format!("{folder} cannot be written: {problem}"),
            "make the folder writable for the user that runs the store: files are made in it beside the store's",
        )];
    }
    let share = disk.free.saturating_mul(100) / disk.total.max(1);
    let found = format!("{} of {} are free in {folder} ({share} %)", bytes(disk.free), bytes(disk.total));
    let advice =
        "make room: on a full disk nothing is lost and nothing is committed; commits are kept for dedup.window";
    let wide = (!disk.wide.is_empty()).then(|| {
        let found = format!("others than their owner may read or write {}", disk.wide.join(", "));
        warning("disk", found, "chmod 600 each of them: a store that is made today is its owner's alone")
    });
    let room = match (disk.free, share) {
        (free, _) if free < 100 << 20 => error("disk", found, advice),
        (free, share) if free < GIB || share < 5 => warning("disk", found, advice),
        _ => ok("disk", found),
    };
    wide.into_iter().chain([room]).collect()
}

fn versions(facts: &Facts, store: &StoreFacts) -> Vec<Finding> {
    let ServerHealth { version, format, .. } = store.health.server;
    let kept = if facts.shared {
        format!("PostgreSQL {}.{}", version / 10_000, version % 10_000)
    } else {
        format!("SQLite {}.{}.{}", version / 1_000_000, version / 1_000 % 1_000, version % 1_000)
    };
    let mut found = Vec::new();
    if facts.shared && version < POSTGRES_LEAST {
        found.push(error("versions", format!("the store is kept by {kept}"), "use PostgreSQL 15 or newer"));
    }
    let (own, code, library) = (env!("CARGO_PKG_VERSION"), &facts.code, kafka::health::library_version());
    let fine = format!("program {own}, code version {code}, store format {format}, {kept}, librdkafka {library}");
    or_ok("versions", found, fine)
}

fn durability(server: &ServerHealth) -> Vec<Finding> {
    let is = |name: &str, value: &str| server.settings.get(name).is_some_and(|found| found == value);
    let mut found = Vec::new();
    for (name, breaks) in [
        ("fsync", "a crash of the server can lose commits that were answered, or destroy the database"),
        ("full_page_writes", "a crash of the server can destroy pages, and commits in them"),
        ("synchronous_commit", "a crash of the server loses the last commits, which were answered and published"),
    ] {
        if is(name, "off") {
            let advice = format!("turn {name} on, for the server, the database and the role: {breaks}");
            found.push(error("postgres.durability", format!("{name} is off"), advice));
        }
    }
    let alone = server.settings.get("synchronous_standby_names").is_none_or(String::is_empty);
    if !alone && is("synchronous_commit", "local") {
        found.push(warning(
            "postgres.durability",
            "synchronous_commit is local: no commit waits for the synchronous standby",
            "set synchronous_commit to on: otherwise the standby, when it takes over, may lack commits",
        ));
    }
    if server.is_standby || is("default_transaction_read_only", "on") {
        let what = if server.is_standby { "the server is a standby" } else { "default_transaction_read_only is on" };
        found.push(error(
            "postgres.durability",
            format!("{what}: nothing can be written"),
            "name the primary in store.url",
        ));
    }
    let mut all = or_ok("postgres.durability", found, "commits are on the disk");
    if alone {
        all.push(note(
            "postgres.standby",
            "no standby is synchronous: when the server's disk is lost, so are commits since the last backup",
            "set synchronous_standby_names where the loss of a server must lose nothing",
        ));
    }
    all
}

fn upkeep(facts: &Facts, store: &StoreFacts) -> Vec<Finding> {
    let server = &store.health.server;
    let number = |name: &str| server.settings.get(name).and_then(|text| text.parse::<u64>().ok());
    let mut found = Vec::new();
    let most = facts.settings.store.transaction_age_max;
    if let Some(age) = store.oldest_transaction.filter(|age| *age > most) {
        found.push(warning(
            "postgres.transactions",
            format!("a transaction is open for {} s", age.as_secs()),
            "find it with the query in docs/postgres.md and end it: rows that commits replace in the meantime cannot be removed",
        ));
    }
    if number("idle_in_transaction_session_timeout") == Some(0) {
        found.push(note(
            "postgres.transactions",
            "idle_in_transaction_session_timeout is 0: a program that forgets its transaction slows every commit",
            "set it to some minutes for other programs; workers set their own",
        ));
    }
    if server.settings.get("autovacuum").is_some_and(|value| value == "off") {
        found.push(warning("postgres.vacuum", "autovacuum is off: the store grows without end", "turn autovacuum on"));
    }
    if server.frozen_age > FROZEN_LATE {
        let text = format!("{} transactions were not frozen yet", server.frozen_age);
        let advice = "run VACUUM FREEZE, and end whatever blocks vacuum: old transactions, slots";
        let judged = if server.frozen_age > FROZEN_WRONG { error } else { warning };
        found.push(judged("postgres.vacuum", text, advice));
    }
    for slot in server.slots.iter().filter(|slot| !slot.is_active && slot.kept_bytes > GIB) {
        found.push(warning(
            "postgres.slots",
            format!("replication slot {} is read by nobody and keeps {}", slot.name, bytes(slot.kept_bytes)),
            "bring its reader back, or drop it with pg_drop_replication_slot: it fills the disk",
        ));
    }
    let (open, room) = (server.sessions, number("max_connections").unwrap_or(0));
    if room > 0 && open * 5 >= room * 4 {
        found.push(warning(
            "postgres.sessions",
            format!("{open} of {room} sessions are taken"),
            "raise max_connections or lower store.connections: a worker that cannot connect stops its shards",
        ));
    }
    let size = bytes(server.bytes);
    let wal = server.wal_bytes.map_or_else(String::new, |wal| format!(", {} of write-ahead log", bytes(wal)));
    or_ok(
        "postgres.upkeep",
        found,
        format!("{size}{wal}, {open} of {room} sessions, nothing keeps vacuum from its work"),
    )
}

fn sqlite(server: &ServerHealth) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(mode) = server.settings.get("journal_mode").filter(|mode| *mode != "wal") {
        found.push(error(
            "sqlite",
            format!("the file's journal_mode is {mode}"),
            "start the store once: it is then wal; whatever changed it must not",
        ));
    }
    let wal = server.wal_bytes.unwrap_or(0);
    if wal > WAL_MOST {
        found.push(warning(
            "sqlite",
            format!("the write-ahead log has {}", bytes(wal)),
            "end the program that reads the file in one long transaction: until then the log grows, and at \
             store.wal_bytes_max nothing is written any more",
        ));
    }
    or_ok("sqlite", found, format!("{}, {} of write-ahead log", bytes(server.bytes), bytes(wal)))
}

/// Compares this machine's clock with the store's.
fn clock(store: &StoreFacts) -> Vec<Finding> {
    let (before, after) = store.asked;
    let Some(now) = store.health.server.now else { return Vec::new() };
    let (ahead, behind) = (before.saturating_sub(now), now.saturating_sub(after));
    let skew = ahead.max(behind);
    let found =
        format!("this machine's clock is {skew} ms {} the store's", if ahead > behind { "ahead of" } else { "behind" });
    let advice = "synchronise the clocks (NTP): timers, retries and windows go by the worker's";
    vec![if skew <= SKEW_MOST {
        ok("clock", "this machine's clock and the store's agree")
    } else if skew <= SKEW_WRONG {
        warning("clock", found, advice)
    } else {
        error("clock", found, advice)
    }]
}

/// Compares the clocks of the workers that wrote commits with each other and with now.
fn times(store: &StoreFacts, shared: bool) -> Vec<Finding> {
    let now = store.health.server.now.unwrap_or(store.asked.1);
    let whose = if shared { "a worker's clock" } else { "the clock" };
    let mut found = Vec::new();
    let ahead = store.health.shards.iter().filter_map(|shard| shard.latest_at).max().unwrap_or(0).saturating_sub(now);
    if ahead > SKEW_MOST {
        let text =
            format!("a commit has a time that is {} s ahead of now: {whose} was ahead, or was set back", ahead / 1_000);
        let advice = "synchronise the clocks (NTP); times that this commit set by its clock come late by as much";
        found.push(if ahead > SKEW_WRONG {
            error("clock.commits", text, advice)
        } else {
            warning("clock.commits", text, advice)
        });
    }
    let back = store.health.shards.iter().filter_map(|shard| Some(shard.latest_at?.saturating_sub(shard.newest_at?)));
    if let Some(back) = back.max().filter(|back| *back > SKEW_MOST && ahead <= SKEW_MOST) {
        found.push(warning(
            "clock.commits",
            format!("a shard's newest commit is {} s older than one before it: {whose} went back", back / 1_000),
            "synchronise the clocks (NTP): windows and delays are off by as much",
        ));
    }
    or_ok("clock.commits", found, "commits have times in their order, and none is ahead of now")
}

/// A size for people.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [(GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.iter().find(|(unit, _)| bytes >= *unit);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(unit, name)| format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use perkey::unstable::store::health::ReplicationSlot;

    use super::super::Level::{Error, Note, Warning};
    use super::super::facts::tests::{NOW, found, sound};
    use super::*;

    fn set(name: &'static str, value: &'static str) -> impl FnOnce(&mut Facts, &mut StoreFacts) {
        move |_, store| drop(store.health.server.settings.insert(name.to_owned(), value.to_owned()))
    }

    #[test]
    fn what_loses_commits_is_an_error() {
        assert_eq!(found(checks, |_, _| {}), []);
        for name in ["fsync", "full_page_writes", "synchronous_commit"] {
            assert_eq!(found(checks, set(name, "off")), [("postgres.durability", Error)], "{name}");
        }
        assert_eq!(found(checks, set("synchronous_commit", "local")), [("postgres.durability", Warning)]);
        assert_eq!(found(checks, set("synchronous_standby_names", "")), [("postgres.standby", Note)]);
        assert_eq!(found(checks, |_, store| store.health.server.is_standby = true), [("postgres.durability", Error)]);
        assert_eq!(found(checks, |_, store| store.health.server.version = 140_010), [("versions", Error)]);
    }

    #[test]
    fn what_wears_a_server_down_is_told() {
        assert_eq!(found(checks, set("autovacuum", "off")), [("postgres.vacuum", Warning)]);
        let idle = set("idle_in_transaction_session_timeout", "0");
        assert_eq!(found(checks, idle), [("postgres.transactions", Note)]);
        let old = |_: &mut Facts, store: &mut StoreFacts| store.oldest_transaction = Some(Duration::from_secs(61));
        assert_eq!(found(checks, old), [("postgres.transactions", Warning)]);
        assert_eq!(found(checks, |_, store| store.health.server.sessions = 80), [("postgres.sessions", Warning)]);
        let slot = ReplicationSlot { name: "s".to_owned(), is_active: false, kept_bytes: 2 << 30 };
        assert_eq!(found(checks, |_, store| store.health.server.slots = vec![slot]), [("postgres.slots", Warning)]);
        let frozen = |age| found(checks, |_, store: &mut StoreFacts| store.health.server.frozen_age = age);
        assert_eq!(frozen(1_200_000_000), [("postgres.vacuum", Warning)]);
        assert_eq!(frozen(1_900_000_000), [("postgres.vacuum", Error)]);
    }

    #[test]
    fn clocks_are_compared_both_ways() {
        let told = |now: u64| found(clock_alone, move |_, store| store.health.server.now = Some(now));
        assert_eq!((told(NOW - 900), told(NOW + 900)), (vec![], vec![]));
        assert_eq!((told(NOW - 3_000), told(NOW + 3_000)), (vec![("clock", Warning)], vec![("clock", Warning)]));
        assert_eq!(told(NOW + 90_000), [("clock", Error)]);
    }

    fn clock_alone(facts: &Facts) -> Vec<Finding> {
        facts.store.as_ref().map(clock).unwrap_or_default()
    }

    #[test]
    fn commits_tell_of_clocks_that_were_wrong() {
        let newest = |newest: u64, latest: u64| {
            found(checks, move |_, store| {
                (store.health.shards[0].newest_at, store.health.shards[0].latest_at) = (Some(newest), Some(latest));
            })
        };
        assert_eq!(newest(NOW + 5_000, NOW + 5_000), [("clock.commits", Warning)]);
        assert_eq!(newest(NOW + 500_000, NOW + 500_000), [("clock.commits", Error)]);
        assert_eq!(newest(NOW - 9_000, NOW - 1_000), [("clock.commits", Warning)]);
    }

    #[test]
    fn a_disk_that_is_full_or_not_writable_is_an_error() {
        let told = |free, total, problem: Option<&str>| {
            let problem = problem.map(str::to_owned);
            disk(&Disk { folder: PathBuf::from("/d"), free, total, problem, wide: Vec::new() }).remove(0).level
        };
        assert_eq!(told(50 << 30, 100 << 30, None), super::super::Level::Ok);
        assert_eq!((told(4 << 30, 100 << 30, None), told(1 << 20, 100 << 30, None)), (Warning, Error));
        assert_eq!(told(50 << 30, 100 << 30, Some("read-only")), Error);
    }

    #[test]
    fn a_file_is_checked_as_a_file_and_a_store_that_is_away_is_an_error() {
        let sqlite = |journal: &'static str, wal: u64| {
            found(checks, move |facts, store| {
                facts.shared = false;
                store.health.server.settings = [("journal_mode".to_owned(), journal.to_owned())].into();
                store.health.server.wal_bytes = Some(wal);
            })
        };
        assert_eq!(sqlite("wal", 32 << 20), []);
        assert_eq!((sqlite("delete", 0), sqlite("wal", GIB)), (vec![("sqlite", Error)], vec![("sqlite", Warning)]));
        let away = checks(&Facts { store: Err("gone".to_owned()), ..sound() });
        assert_eq!((away.len(), away[0].check, away[0].level), (1, "store", Error));
        assert_eq!([bytes(5), bytes(1_536), bytes(3 << 30)], ["5 B", "1.5 KiB", "3.0 GiB"]);
    }
}
