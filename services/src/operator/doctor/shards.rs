//! Checks the store's contents and owners: waiting messages, dead letters, sinks, the inbox's window.
//! In: facts. Out: findings.

use std::collections::BTreeSet;

use perkey::unstable::store::health::ShardHealth;
use perkey::unstable::store::lease::Fleet;
use perkey::{Millis, Settings, millis};

use super::super::cli::leases;
use super::facts::{Facts, StoreFacts};
use super::{Finding, error, note, ok, or_ok, warning};

/// The time after which a shard with work to do that does nothing is stalled, in milliseconds.
const STALLED: Millis = 60_000;
/// The time after which due work of a working shard is a problem, in milliseconds.
const OVERDUE: Millis = 300_000;
/// The time after which a held key was forgotten, in milliseconds.
const HELD_LONG: Millis = 3_600_000;
const HOUR: Millis = 3_600_000;
/// The number of dead letters that is more than a few.
const DEAD_MANY: u64 = 1_000;
/// The delay of a sink that is a problem, in seconds.
const SINK_LATE: u64 = 300;

/// All checks of this file.
pub(super) fn checks(facts: &Facts) -> Vec<Finding> {
    let Ok(store) = &facts.store else { return Vec::new() };
    let now = store.health.server.now.unwrap_or(store.asked.1);
    let mut all = owners(facts, store);
    all.extend(code(facts, store));
    all.extend(services(facts, store, now));
    all.extend(waiting(&facts.settings, store));
    all.extend(letters(&facts.settings, store));
    all.extend(held(store, now));
    all.extend(sinks(&facts.settings, store));
    all.extend(window(&facts.settings, store, now));
    all.extend(progress(store, now));
    all
}

fn owners(facts: &Facts, store: &StoreFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    let (recorded, wanted) = (store.rows.len(), facts.settings.ownership.shards);
    if recorded != wanted as usize {
        found.push(error(
            "shards",
            format!("the store has {recorded} shards, ownership.shards says {wanted}"),
            format!("set ownership.shards = {recorded}; budget-manager reshard gives the store another number"),
        ));
    }
    for row in store.rows.iter().filter(|row| row.unclean >= 2) {
        found.push(warning(
            "shards",
            format!("shard {} was taken {} times from a process that did not give it up", row.shard, row.unclean),
            "look at how these processes ended: a message may kill them",
        ));
    }
    match &store.fleet {
        Some(fleet) => found.extend(workers(&facts.settings, fleet)),
        None if !store.running => {
            found.push(note("shards", "no process runs the store", "start it with budget-manager up"));
        }
        None => {}
    }
    or_ok("shards", found, format!("all {recorded} shards have an owner"))
}

fn workers(settings: &Settings, fleet: &Fleet) -> Vec<Finding> {
    let alive: Vec<_> = fleet.workers.iter().filter(|row| row.is_alive()).collect();
    if alive.is_empty() {
        return vec![warning("shards", "no worker is alive: nothing is handled", "start budget-manager worker")];
    }
    let owned = |owner: &Option<String>| alive.iter().any(|row| Some(&row.worker.id) == owner.as_ref());
    let alone = fleet.shards.iter().filter(|row| !owned(&row.owner));
    let mut found: Vec<_> = alone
        .map(|row| match leases::problem(fleet, row) {
            Some(reason) => error("shards", format!("shard {} has no owner: {reason}", row.shard), "see the reason"),
            None => warning(
                "shards",
                format!("shard {} has no owner at this moment", row.shard),
                "look again: it is taken within ownership.lease_ttl, else the workers' logs say why not",
            ),
        })
        .collect();
    let ttl = millis(settings.ownership.lease_ttl);
    for row in alive.iter().filter(|row| u64::try_from(row.expires_in).is_ok_and(|left| left > ttl + 1_000)) {
        found.push(warning(
            "shards",
            format!("the lease of {} lasts {} ms more, ownership.lease_ttl is {ttl} ms", row.worker.id, row.expires_in),
            "give all workers the same settings; or the store's clock was set back",
        ));
    }
    found
}

fn code(facts: &Facts, store: &StoreFacts) -> Vec<Finding> {
    let Some(fleet) = &store.fleet else { return Vec::new() };
    let ours = &facts.code;
    let mut found = Vec::new();
    if let Some((shard, behind)) = fleet.shards.iter().find_map(|row| Some((row.shard, ours.behind(&row.code)?))) {
        found.push(error(
            "code",
            format!("this program does not take shard {shard}: {behind}"),
            "use the newer program, or one whose states are as new",
        ));
    }
    let alive = fleet.workers.iter().filter(|row| row.is_alive());
    let versions: BTreeSet<_> = alive.map(|row| (row.worker.code.to_string(), row.worker.version.as_str())).collect();
    if versions.len() > 1 {
        let shown: Vec<_> = versions.iter().map(|(code, version)| format!("{version} (code version {code})")).collect();
        found.push(warning(
            "code",
            format!("the workers are of different versions: {}", shown.join(", ")),
            "let a deploy that is under way come to its end: shards only move to the newer ones",
        ));
    }
    or_ok("code", found, format!("workers and shards have no newer states than this program, code version {ours}"))
}

fn services(facts: &Facts, store: &StoreFacts, now: Millis) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut dead = 0;
    for service in &store.health.services {
        let name = &service.service;
        dead += service.dead_letters;
        if !facts.services.iter().any(|known| **known == **name) {
            let what = format!(
                "{} messages, {} timers and {} dead letters wait for service {name:?}, which this program does not have",
                service.pending, service.timers, service.dead_letters
            );
            found.push(match service.pending + service.timers {
                0 => warning("services", what, "discard them (dlq:discard --service), or run a program that has it"),
                _ => error(
                    "services",
                    what,
                    format!("run a program that has it; or give them up: service:drop {name} --why TEXT"),
                ),
            });
        }
        let new = service.dead_at.is_some_and(|at| at.saturating_add(HOUR) > now);
        if service.dead_letters > 0 {
            let what = format!("{name} has {} dead letters", service.dead_letters);
            let advice = format!("budget-manager dlq:peek --service {name} shows why; replay or discard them");
            found.push(match new || service.dead_letters >= DEAD_MANY {
                true => {
                    warning("dead_letters", format!("{what}{}", if new { ", some of this hour" } else { "" }), advice)
                }
                false => note("dead_letters", what, advice),
            });
        }
    }
    if dead == 0 {
        found.push(ok("dead_letters", "there are none"));
    }
    found
}

fn waiting(settings: &Settings, store: &StoreFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut near = |what: String, count: u64, most: u64, setting: &str| {
        let text = format!("{what}: {count}, {setting} is {most}");
        let advice = "remove the cause of their wait (keys:top, dlq:peek); at the bound sources pause";
        if count >= most {
            found.push(error("pending", text, advice));
        } else if count.saturating_mul(5) >= most.saturating_mul(4) {
            found.push(warning("pending", text, advice));
        }
    };
    for row in &store.rows {
        near(
            format!("messages that wait in shard {}", row.shard),
            row.pending,
            settings.pending.max_per_shard,
            "pending.max_per_shard",
        );
    }
    for row in &store.rows {
        for (source, count) in &row.ahead {
            let what = format!("shard {}: {source}: stretches that are done above held positions", row.shard);
            near(what, *count, settings.ingress.ahead_max as u64, "ingress.ahead_max");
        }
    }
    if let Some(key) = &store.busiest {
        let what = format!("messages that wait for key {:?} of {}", key.of.key, key.of.service);
        near(what, key.pending, settings.pending.max_per_key, "pending.max_per_key");
    }
    let all: u64 = store.rows.iter().map(|row| row.pending).sum();
    or_ok("pending", found, format!("{all} messages wait, no bound is near"))
}

/// Checks whether dead letters are near their bound.
fn letters(settings: &Settings, store: &StoreFacts) -> Vec<Finding> {
    let most = settings.dlq.max;
    let near = store.rows.iter().filter(|row| row.dead_letters.saturating_mul(5) >= most.saturating_mul(4));
    let found = near.map(|row| {
        let text = format!("shard {} has {} dead letters, dlq.max is {most}", row.shard, row.dead_letters);
        let advice = "remove their cause, then replay or discard them (dlq:peek); at the bound sources pause";
        match row.dead_letters >= most {
            true => error("dead_letters", text, advice),
            false => warning("dead_letters", text, advice),
        }
    });
    found.collect()
}

fn held(store: &StoreFacts, now: Millis) -> Vec<Finding> {
    let keys: u64 = store.rows.iter().map(|row| row.held_keys).sum();
    let since = store.health.shards.iter().filter_map(|shard| shard.held_at).min();
    let Some(since) = since.filter(|_| keys > 0) else { return vec![ok("held_keys", "no key is held")] };
    let age = now.saturating_sub(since);
    let text = format!("{keys} keys are held by a dead letter, the longest for {} s", age / 1_000);
    let advice = "budget-manager dlq:peek shows the dead letters that hold them (holds_key): replay or discard them";
    vec![if age > HELD_LONG { warning("held_keys", text, advice) } else { note("held_keys", text, advice) }]
}

fn sinks(settings: &Settings, store: &StoreFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    let gone: BTreeSet<_> = store.sinks.iter().filter(|stat| !stat.configured).map(|stat| stat.sink.as_str()).collect();
    for sink in gone {
        found.push(warning(
            "sinks",
            format!("sink {sink} is in no settings, and commits are kept for it: the store grows"),
            format!("configure it again, or give it up: budget-manager outbox:retire {sink} --why TEXT"),
        ));
    }
    for stat in store.sinks.iter().filter(|stat| stat.configured) {
        let (most, late) = (settings.outbox.max_pending, stat.oldest_age_seconds.unwrap_or(0));
        let text = format!(
            "shard {} has {} events for {} still to publish, the oldest of {late} s ago",
            stat.shard, stat.pending, stat.sink
        );
        let advice = "find out why the sink takes so little; at outbox.max_pending the shard's sources pause";
        if stat.pending >= most {
            found.push(error("sinks", text, advice));
        } else if stat.pending.saturating_mul(5) >= most.saturating_mul(4) || late > SINK_LATE {
            found.push(warning("sinks", text, advice));
        }
    }
    or_ok("sinks", found, "every sink is configured and keeps up")
}

/// Checks how far back ids reach, and that commits behind that are removed.
fn window(settings: &Settings, store: &StoreFacts, now: Millis) -> Vec<Finding> {
    let (wanted, least) = (millis(settings.dedup.window), millis(settings.dedup.window_min));
    let most = settings.dedup.max_ids as u64;
    let age = |shard: &ShardHealth| now.saturating_sub(shard.oldest_at.unwrap_or(now));
    let mut found = Vec::new();
    let full = store.health.shards.iter().filter(|shard| shard.ids.saturating_mul(10) >= most.saturating_mul(9));
    if let Some((reach, shard)) =
        full.map(|shard| (age(shard), shard)).min_by_key(|(reach, _)| *reach).filter(|(reach, _)| *reach < wanted)
    {
        let text = format!(
            "shard {} remembers {} ids of the last {} s (dedup.max_ids {most})",
            shard.shard,
            shard.ids,
            reach / 1_000
        );
        let advice =
            "raise dedup.max_ids: a repeat that comes later, from anything but an ordered log, takes effect again";
        found.push(if reach < least { error("inbox", text, advice) } else { warning("inbox", text, advice) });
    }
    // Commits are kept for a sink that has not received their events.
    let kept = |shard: &ShardHealth| {
        store.sinks.iter().any(|stat| stat.shard == shard.shard && (stat.pending > 0 || !stat.configured))
    };
    let slack = (wanted / 10).max(HOUR);
    let late = store.health.shards.iter().filter(|shard| store.running && !kept(shard) && age(shard) > wanted + slack);
    // Commits are removed as others are written: a shard that is idle keeps its last ones.
    let late = late.filter(|shard| shard.newest_at.is_some_and(|at| at.saturating_add(HOUR) > now)).count();
    if late > 0 {
        found.push(warning(
            "inbox",
            format!("{late} shards have commits that are older than dedup.window and were not removed"),
            "look for \"trim\" in the workers' logs: the store grows",
        ));
    }
    or_ok("inbox", found, "ids reach back as far as dedup.window asks, and older commits are removed")
}

fn progress(store: &StoreFacts, now: Millis) -> Vec<Finding> {
    if !store.running {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (shard, row) in store.health.shards.iter().zip(&store.rows) {
        let idle = now.saturating_sub(shard.newest_at.unwrap_or(0));
        let due = shard.due_at.map_or(0, |due| now.saturating_sub(due));
        if idle > STALLED && (row.unread > 0 || due > STALLED) {
            found.push(warning(
                "progress",
                format!(
                    "shard {} has {} unread messages and something due, and took nothing for {} s",
                    row.shard,
                    row.unread,
                    idle / 1_000
                ),
                "look at readyz and the log of its owner: the store, a dependency or a handler holds it up",
            ));
        } else if due > OVERDUE {
            found.push(warning(
                "progress",
                format!("in shard {} something is due since {} s", row.shard, due / 1_000),
                "look at perkey_dependency_open and [[limit]]: it waits for a dependency of its handler",
            ));
        }
    }
    or_ok("progress", found, "no shard has work that it does not do")
}

#[cfg(test)]
mod tests {
    use perkey::unstable::store::ServiceKey;
    use perkey::unstable::store::health::ServiceHealth;
    use perkey::unstable::store::lease::{Code, Worker, WorkerRow};
    use perkey::unstable::store::query::WaitingKey;

    use super::super::super::cli::outbox::Stat;
    use super::super::Level::{Error, Note, Warning};
    use super::super::facts::tests::{NOW, found, row_of};
    use super::*;

    #[test]
    fn owners_are_missed() {
        assert_eq!(found(checks, |_, _| {}), []);
        assert_eq!(found(checks, |_, store| store.rows.push(row_of(1))), [("shards", Error)]);
        assert_eq!(found(checks, |_, store| store.rows[0].unclean = 2), [("shards", Warning)]);
        let fleet = |change: fn(&mut Fleet)| found(checks, move |_, store| change(store.fleet.as_mut().unwrap()));
        assert_eq!(fleet(|fleet| fleet.shards[0].owner = None), [("shards", Warning)]);
        assert_eq!(fleet(|fleet| fleet.workers.clear()), [("shards", Warning)]);
        assert_eq!(fleet(|fleet| fleet.workers[0].expires_in = 20_000), [("shards", Warning)]);
        assert_eq!(
            fleet(|fleet| (fleet.shards[0].owner, fleet.shards[0].code) = (None, Code::of([("orders", 9)]))),
            [("shards", Error), ("code", Error)]
        );
        let two = |fleet: &mut Fleet| {
            let worker = Worker { id: "x".to_owned(), code: Code::of([("orders", 7)]), ..Worker::default() };
            fleet.workers.push(WorkerRow { worker, expires_in: 9_000 });
        };
        assert_eq!(fleet(two), [("code", Warning)]);
        let stopped = |_: &mut Facts, store: &mut StoreFacts| (store.fleet, store.running) = (None, false);
        assert_eq!(found(checks, stopped), [("shards", Note)]);
    }

    #[test]
    fn what_waits_for_nobody_and_what_was_given_up_is_told() {
        let of = |service: &str, pending, timers, dead_letters, dead_at| {
            let service = service.to_owned();
            let row = ServiceHealth { service, pending, timers, dead_letters, dead_at: Some(dead_at) };
            found(checks, move |_, store| store.health.services = vec![row])
        };
        assert_eq!(of("orders", 5, 5, 0, 0), []);
        assert_eq!(of("gone", 0, 1, 0, 0), [("services", Error)]);
        assert_eq!(of("gone", 0, 0, 1, 0), [("services", Warning), ("dead_letters", Note)]);
        assert_eq!(of("orders", 0, 0, 1, NOW - 9), [("dead_letters", Warning)]);
        assert_eq!(of("orders", 0, 0, 1_000, 0), [("dead_letters", Warning)]);
    }

    #[test]
    fn bounds_are_seen_before_they_are_reached() {
        let pending = |count| found(checks, move |_, store| store.rows[0].pending = count);
        assert_eq!(pending(79_999), []);
        assert_eq!((pending(80_000), pending(100_000)), (vec![("pending", Warning)], vec![("pending", Error)]));
        let ahead = |count| found(checks, move |_, store| store.rows[0].ahead = [("kafka".into(), count)].into());
        assert_eq!(
            (ahead(1_638), ahead(1_639), ahead(2_048)),
            (vec![], vec![("pending", Warning)], vec![("pending", Error)])
        );
        let key = |pending| {
            let of = ServiceKey { service: "orders".into(), key: "k".into() };
            found(checks, move |_, store| store.busiest = Some(WaitingKey { of, pending, oldest_at: 0 }))
        };
        assert_eq!((key(7_999), key(8_000)), (vec![], vec![("pending", Warning)]));
        let dead = |count| found(checks, move |_, store| store.rows[0].dead_letters = count);
        assert_eq!(dead(799_999), []);
        assert_eq!((dead(800_000), dead(1_000_000)), (vec![("dead_letters", Warning)], vec![("dead_letters", Error)]));
        let held = |at| {
            found(checks, move |_, store| {
                store.rows[0].held_keys = 1;
                store.health.shards[0].held_at = Some(at);
            })
        };
        assert_eq!(
            (held(NOW - 9), held(NOW - HELD_LONG - 9)),
            (vec![("held_keys", Note)], vec![("held_keys", Warning)])
        );
    }

    #[test]
    fn sinks_that_are_gone_or_late_are_told() {
        let sink = |configured, pending, age| {
            let stat = Stat {
                sink: "kafka".to_owned(),
                configured,
                pending,
                oldest_age_seconds: Some(age),
                ..Stat::default()
            };
            found(checks, move |_, store| store.sinks = vec![stat])
        };
        assert_eq!(sink(true, 10, 9), []);
        assert_eq!((sink(false, 0, 0), sink(true, 1, 301)), (vec![("sinks", Warning)], vec![("sinks", Warning)]));
        assert_eq!(
            (sink(true, 800_000, 0), sink(true, 1_000_000, 0)),
            (vec![("sinks", Warning)], vec![("sinks", Error)])
        );
    }

    #[test]
    fn a_window_that_is_cut_short_and_commits_that_stay_are_told() {
        let shard = |ids, age: u64| {
            found(checks, move |_, store| {
                store.health.shards[0].ids = ids;
                store.health.shards[0].oldest_at = Some(NOW - age);
            })
        };
        let week = 7 * 24 * HOUR;
        assert_eq!((shard(400_000, 1_000), shard(500_000, week)), (vec![], vec![]));
        assert_eq!((shard(500_000, HOUR), shard(500_000, 1_000)), (vec![("inbox", Warning)], vec![("inbox", Error)]));
        assert_eq!((shard(9, week + HOUR), shard(9, week * 2)), (vec![], vec![("inbox", Warning)]));
    }

    #[test]
    fn a_shard_that_stands_still_is_told_while_somebody_runs_it() {
        let shard = |unread, idle: u64, due: u64, running| {
            found(checks, move |_, store| {
                (store.rows[0].unread, store.running) = (unread, running);
                let shard = &mut store.health.shards[0];
                (shard.newest_at, shard.latest_at) = (Some(NOW - idle), Some(NOW - idle));
                shard.due_at = Some(NOW - due);
            })
        };
        assert_eq!((shard(5, 1_000, 0, true), shard(0, 90_000, 0, true)), (vec![], vec![]));
        assert_eq!(shard(5, 90_000, 0, true), [("progress", Warning)]);
        assert_eq!(shard(0, 90_000, 90_000, true), [("progress", Warning)]);
        assert_eq!(shard(0, 1_000, OVERDUE + 9, true), [("progress", Warning)]);
        assert_eq!(shard(5, 90_000, 90_000, false), []);
    }
}
