//! The streams that are read, the intakes that feed them, and the exchanges that are written.
//! In: facts. Out: findings.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use perkey::Settings;
use perkey::unstable::settings::{next_life, topic_of};
use perkey::unstable::store::lease::WorkerRow;
use perkey::unstable::store::query::ShardRow;
use perkey::unstable::transport::rabbitmq::NAME;
use perkey::unstable::transport::rabbitmq::health::RabbitmqHealth;

use super::facts::{Facts, StoreFacts, written_exchanges};
use super::server::bytes;
use super::{Finding, error, note, ok, or_ok, warning};

/// The oldest RabbitMQ that streams and intakes are tested with.
const VERSION_LEAST: (u32, u32) = (3, 10);
/// Two segments of a stream: with less, next to nothing stays when a new one is begun.
const BYTES_LEAST: u64 = 1_000_000_000;
const DAY: Duration = Duration::from_secs(86_400);
/// The most names of missing objects that are shown.
const NAMES_MOST: usize = 3;

/// All checks of this file.
pub(super) fn checks(facts: &Facts) -> Vec<Finding> {
    let health = match &facts.rabbitmq {
        None => return Vec::new(),
        Some(Ok(health)) => health,
        Some(Err(reason)) => {
            let advice =
                "see rabbitmq.addresses, rabbitmq.tls, user and vhost; while it is away sources and sinks wait";
            return vec![error("rabbitmq", format!("the broker does not answer: {reason}"), advice)];
        }
    };
    let settings = &facts.settings;
    let store = facts.store.as_ref().ok();
    let mut all = vec![version(&health.version)];
    for entry in &settings.rabbitmq.streams {
        all.extend(stream(settings, topic_of(entry), health));
    }
    for name in &settings.rabbitmq.intakes {
        all.extend(intake(settings, name, health, store.is_some_and(is_worked_on)));
    }
    all.extend(exchanges(settings, health));
    all.extend(retention(settings));
    if let Some(store) = store {
        all.extend(positions(settings, &store.rows, health));
    }
    all
}

fn version(told: &str) -> Finding {
    if told.is_empty() {
        return ok("rabbitmq", "it answers; its version is not asked for by TLS");
    }
    let numbers = told.strip_prefix("RabbitMQ ").and_then(|numbers| {
        let mut numbers = numbers.split(['.', '-', '+']).map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    let advice = "use RabbitMQ 3.10 or newer: streams and intakes are tested from there on";
    match numbers {
        Some(numbers) if numbers < VERSION_LEAST => error("rabbitmq", format!("the broker is {told}"), advice),
        Some(_) => ok("rabbitmq", format!("{told} answers")),
        None => note("rabbitmq", format!("the broker says that it is {told:?}"), advice),
    }
}

/// Returns whether a process exists that moves the messages of intakes.
fn is_worked_on(store: &StoreFacts) -> bool {
    store.fleet.as_ref().map_or(store.running, |fleet| fleet.workers.iter().any(WorkerRow::is_alive))
}

/// The name of the queue that is shard `shard`'s part of a stream.
fn part(name: &str, shard: u32) -> String {
    format!("{name}-{shard}")
}

fn missing(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_MOST).map(String::as_str).collect::<Vec<_>>().join(", ");
    let are = if names.len() == 1 { "is" } else { "are" };
    match names.len().saturating_sub(NAMES_MOST) {
        0 => format!("{shown} {are} not there"),
        more => format!("{shown} and {more} more {are} not there"),
    }
}

/// The objects that a worker declares and that do not exist.
fn absent(
    settings: &Settings,
    check: &'static str,
    queues: &[String],
    exchanges: &[String],
    health: &RabbitmqHealth,
) -> Vec<Finding> {
    let is_gone = |name: &&String| health.queues.get(*name).is_some_and(Option::is_none);
    let mut gone: Vec<_> = queues.iter().filter(is_gone).cloned().collect();
    let unknown = exchanges.iter().filter(|name| health.exchanges.get(*name).is_some_and(|there| !there));
    gone.extend(unknown.map(|name| format!("exchange {name}")));
    if gone.is_empty() {
        return Vec::new();
    }
    vec![if settings.rabbitmq.declare {
        note(check, missing(&gone), "nothing: a worker declares them when it starts")
    } else {
        error(check, missing(&gone), "make them (docs/rabbitmq.md), or let workers do it: rabbitmq.declare = true")
    }]
}

fn stream(settings: &Settings, name: &str, health: &RabbitmqHealth) -> Vec<Finding> {
    let parts: Vec<_> = (0..settings.ownership.shards).map(|shard| part(name, shard)).collect();
    let found = absent(settings, "rabbitmq.streams", &parts, &[name.to_owned()], health);
    let there = parts.iter().filter(|part| matches!(health.queues.get(*part), Some(Some(_)))).count();
    or_ok("rabbitmq.streams", found, format!("{name}: all {there} streams and their exchange are there"))
}

fn intake(settings: &Settings, name: &str, health: &RabbitmqHealth, worked_on: bool) -> Vec<Finding> {
    const CHECK: &str = "rabbitmq.intakes";
    let (taken, dead) = (format!("{name}.intake"), format!("{name}.intake.dead"));
    let names = [taken.clone(), dead.clone()];
    let mut found = absent(settings, CHECK, &names, &names, health);
    let told = |queue: &str| health.queues.get(queue).and_then(Option::as_ref);
    if let Some(queue) = told(&taken)
        && worked_on
        && queue.consumers == 0
    {
        found.push(warning(
            CHECK,
            format!("nobody takes from {taken}, though workers live; {} messages wait there", queue.messages),
            "see that their settings name it in rabbitmq.intakes, and look at their logs",
        ));
    }
    if let Some(queue) = told(&dead)
        && queue.messages > 0
    {
        let why = if queue.consumers == 0 { "nobody takes them" } else { "they come faster than they are taken" };
        found.push(warning(
            CHECK,
            format!("{} messages wait in {dead}: {why}", queue.messages),
            "a worker makes dead letters of them (dlq:peek): see that one runs, and why they were given up",
        ));
    }
    or_ok(CHECK, found, format!("{taken} and {dead} are there"))
}

/// Checks the exchanges of events that go to no stream.
fn exchanges(settings: &Settings, health: &RabbitmqHealth) -> Vec<Finding> {
    const CHECK: &str = "rabbitmq.exchanges";
    let written = written_exchanges(settings);
    if written.is_empty() {
        return Vec::new();
    }
    let gone = written.iter().filter(|name| health.exchanges.get(**name).is_some_and(|there| !there));
    let found = gone.map(|name| {
        let advice =
            "create it and bind a queue to it, or take it out of [[publish]]: events to it become dead letters";
        error(CHECK, format!("exchange {name} is not there"), advice)
    });
    or_ok(CHECK, found.collect(), format!("all {} exchanges of [[publish]] are there", written.len()))
}

/// Checks the time for which declared streams keep unread messages.
fn retention(settings: &Settings) -> Vec<Finding> {
    const CHECK: &str = "rabbitmq.retention";
    let rabbitmq = &settings.rabbitmq;
    if !rabbitmq.declare || rabbitmq.streams.is_empty() {
        return Vec::new();
    }
    let (kept, mut found) = (rabbitmq.max_age, Vec::new());
    if kept > Duration::ZERO && kept < DAY {
        found.push(warning(
            CHECK,
            format!(
                "streams keep messages for {} min (rabbitmq.max_age): messages not read by then are lost",
                kept.as_secs() / 60
            ),
            "raise it above the longest time for which no worker may run",
        ));
    } else if kept.is_zero() || kept > settings.dedup.window {
        found.push(note(
            CHECK,
            "streams keep messages for longer than ids are remembered (rabbitmq.max_age, dedup.window)",
            "raise dedup.window if a stream may ever be begun anew (orders#2): older messages would take effect again",
        ));
    }
    if rabbitmq.max_bytes > 0 {
        let text =
            format!("streams of more than {} lose their oldest part (rabbitmq.max_bytes)", bytes(rabbitmq.max_bytes));
        let advice =
            "see that half of it holds the messages that come while no worker runs: those removed unread are lost";
        let told = if rabbitmq.max_bytes < BYTES_LEAST { warning } else { note };
        found.push(told(CHECK, text, advice));
    }
    or_ok(CHECK, found, "streams are declared to keep messages for as long as ids are remembered, at most")
}

/// Compares the store's positions with the records that there are to read.
fn positions(settings: &Settings, rows: &[ShardRow], health: &RabbitmqHealth) -> Vec<Finding> {
    const CHECK: &str = "rabbitmq.positions";
    let (mut found, mut count, mut left) = (Vec::new(), 0, BTreeSet::new());
    let mut furthest = BTreeMap::new();
    for (origin, position) in rows.iter().filter_map(|row| row.positions.get(NAME)).flatten() {
        let furthest = furthest.entry(&**origin).or_insert(position.no);
        *furthest = position.no.max(*furthest);
    }
    for (origin, no) in furthest {
        let Some((entry, shard)) = origin.rsplit_once('/') else { continue };
        let name = topic_of(entry);
        if !settings.rabbitmq.streams.iter().any(|read| topic_of(read) == name) {
            left.insert(name);
        }
        if !settings.rabbitmq.streams.iter().any(|read| read == entry) {
            continue;
        }
        count += 1;
        if health.queues.get(&format!("{name}-{shard}")).is_some_and(Option::is_none) {
            found.push(error(
                CHECK,
                format!("{name}-{shard} is not there, and was read up to {no}: later messages are gone"),
                format!("restore it, or begin it anew: write \"{}\" for it in rabbitmq.streams", next_life(entry)),
            ));
        }
    }
    found.extend(left.into_iter().map(|name| {
        note(
            CHECK,
            format!("stream {name} was read, and is not in rabbitmq.streams any more"),
            "name it there again if it was taken out by mistake: reading goes on where it ended",
        )
    }));
    or_ok(CHECK, found, format!("all {count} streams that were read are there"))
}

#[cfg(test)]
mod tests {
    use perkey::Publish;
    use perkey::unstable::message::Position;
    use perkey::unstable::settings::load::{Sources, load};
    use perkey::unstable::transport::rabbitmq::health::QueueHealth;

    use super::super::Level::{self, Error, Note, Warning};
    use super::super::facts::tests::found;
    use super::*;

    fn told_of(names: &[&str], told: Option<QueueHealth>) -> BTreeMap<String, Option<QueueHealth>> {
        names.iter().map(|name| ((*name).to_owned(), told)).collect()
    }

    /// A broker that has all that one shard needs.
    fn sound() -> RabbitmqHealth {
        let taken = Some(QueueHealth { messages: 0, consumers: 1 });
        RabbitmqHealth {
            version: "RabbitMQ 3.10.8".to_owned(),
            queues: told_of(&["s-0", "s.intake", "s.intake.dead"], taken),
            exchanges: ["s", "s.intake", "s.intake.dead", "x"].map(|name| (name.to_owned(), true)).into(),
        }
    }

    /// The findings about a stream with an intake and an exchange that is written.
    fn told(health: RabbitmqHealth, change: impl FnOnce(&mut Facts, &mut StoreFacts)) -> Vec<(&'static str, Level)> {
        found(checks, move |facts, store| {
            facts.settings.rabbitmq.addresses = "b:5672".to_owned();
            facts.settings.rabbitmq.streams = vec!["s#2".to_owned()];
            facts.settings.rabbitmq.intakes = vec!["s".to_owned()];
            facts.settings.publish = ["s", "x:{type}.{key}"].map(route).to_vec();
            facts.rabbitmq = Some(Ok(health));
            change(facts, store);
        })
    }

    fn route(topic: &str) -> Publish {
        let route = serde_json::json!({ "type": "*", "sink": "rabbitmq", "topic": topic });
        serde_json::from_value(route).unwrap()
    }

    fn as_it_is(_: &mut Facts, _: &mut StoreFacts) {}

    fn by_hand(facts: &mut Facts, _: &mut StoreFacts) {
        facts.settings.rabbitmq.declare = false;
    }

    #[test]
    fn a_broker_that_is_away_or_too_old_is_an_error() {
        assert_eq!(found(checks, as_it_is), []);
        assert_eq!(told(sound(), as_it_is), []);
        let away = |facts: &mut Facts, _: &mut StoreFacts| facts.rabbitmq = Some(Err("refused".to_owned()));
        assert_eq!(told(sound(), away), [("rabbitmq", Error)]);
        let of = |version: &str| told(RabbitmqHealth { version: version.to_owned(), ..sound() }, as_it_is);
        for new in ["RabbitMQ 3.10.0", "RabbitMQ 3.13.7", "RabbitMQ 4.0.0-rc.2", "RabbitMQ 4.0.0+2"] {
            assert_eq!(of(new), [], "{new}");
        }
        for old in ["RabbitMQ 3.9.29", "RabbitMQ 2.8.1"] {
            assert_eq!(of(old), [("rabbitmq", Error)], "{old}");
        }
        assert_eq!((of(""), of("Other 9.9")), (vec![], vec![("rabbitmq", Note)]));
    }

    #[test]
    fn what_is_missing_is_an_error_unless_a_worker_declares_it() {
        let without = |name: &str| {
            let mut health = sound();
            if health.queues.contains_key(name) {
                health.queues.insert(name.to_owned(), None);
            } else {
                health.exchanges.insert(name.trim_start_matches("exchange ").to_owned(), false);
            }
            health
        };
        for (name, check) in [
            ("s-0", "rabbitmq.streams"),
            ("exchange s", "rabbitmq.streams"),
            ("s.intake", "rabbitmq.intakes"),
            ("exchange s.intake", "rabbitmq.intakes"),
            ("s.intake.dead", "rabbitmq.intakes"),
            ("exchange s.intake.dead", "rabbitmq.intakes"),
        ] {
            assert_eq!(told(without(name), as_it_is), [(check, Note)], "{name}");
            assert_eq!(told(without(name), by_hand), [(check, Error)], "{name}");
        }
        assert_eq!(told(without("exchange x"), as_it_is), [("rabbitmq.exchanges", Error)]);
    }

    #[test]
    fn what_nobody_takes_is_told() {
        let of = |name: &'static str, messages, consumers| {
            let mut health = sound();
            health.queues.extend(told_of(&[name], Some(QueueHealth { messages, consumers })));
            health
        };
        assert_eq!(told(of("s.intake", 9, 1), as_it_is), []);
        assert_eq!(told(of("s.intake", 0, 0), as_it_is), [("rabbitmq.intakes", Warning)]);
        let stopped = |_: &mut Facts, store: &mut StoreFacts| (store.fleet, store.running) = (None, false);
        assert_eq!(told(of("s.intake", 9, 0), stopped), []);
        let dead = |_: &mut Facts, store: &mut StoreFacts| store.fleet.as_mut().unwrap().workers.clear();
        assert_eq!(told(of("s.intake", 9, 0), dead), []);
        for consumers in [0, 1] {
            assert_eq!(told(of("s.intake.dead", 1, consumers), as_it_is), [("rabbitmq.intakes", Warning)]);
        }
        assert_eq!(told(of("s.intake.dead", 0, 0), as_it_is), []);
    }

    #[test]
    fn streams_that_were_read_and_are_gone_are_told() {
        let at = |origin: &'static str, health: RabbitmqHealth| {
            told(health, move |_, store| {
                let positions = [(origin.into(), Position { no: 7, ..Position::default() })];
                store.rows[0].positions = [(NAME.into(), positions.into())].into();
            })
        };
        let gone = || RabbitmqHealth { queues: told_of(&["s-0"], None), ..sound() };
        assert_eq!(at("s#2/0", sound()), []);
        assert_eq!(at("s#2/0", gone()), [("rabbitmq.streams", Note), ("rabbitmq.positions", Error)]);
        // The life before, and a stream of another number of shards.
        assert_eq!((at("s/0", gone()), at("s#2/9", sound())), (vec![("rabbitmq.streams", Note)], vec![]));
        assert_eq!(at("former/0", sound()), [("rabbitmq.positions", Note)]);
    }

    #[test]
    fn streams_that_forget_too_soon_or_too_late_are_told() {
        let kept = |seconds, most| {
            told(sound(), move |facts, _| {
                facts.settings.rabbitmq.max_age = Duration::from_secs(seconds);
                facts.settings.rabbitmq.max_bytes = most;
            })
        };
        assert_eq!((kept(86_400, 0), kept(604_800, 0)), (vec![], vec![]));
        assert_eq!(kept(3_600, 0), [("rabbitmq.retention", Warning)]);
        assert_eq!(kept(604_801, 0), [("rabbitmq.retention", Note)]);
        assert_eq!(kept(0, 0), [("rabbitmq.retention", Note)]);
        assert_eq!(kept(86_400, 1 << 30), [("rabbitmq.retention", Note)]);
        assert_eq!(kept(86_400, 1 << 29), [("rabbitmq.retention", Warning)]);
    }

    #[test]
    fn only_so_many_names_are_shown() {
        let names: Vec<_> = (0..5).map(|shard| part("s", shard)).collect();
        assert_eq!(missing(&names[..1]), "s-0 is not there");
        assert_eq!(missing(&names[..3]), "s-0, s-1, s-2 are not there");
        assert_eq!(missing(&names), "s-0, s-1, s-2 and 2 more are not there");
    }

    #[test]
    fn the_shipped_file_for_a_fleet_is_sound() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/fleet-rabbitmq.toml");
        let defaults = crate::defaults::settings();
        let settings = load(&Sources { file: Some(file.into()), defaults, ..Sources::default() }).unwrap().settings;
        assert!(!settings.rabbitmq.streams.is_empty() && settings.rabbitmq.intakes == settings.rabbitmq.streams);
        assert!(settings.bind.iter().any(|bind| bind.source == NAME), "{:?}", settings.bind);
        let found = super::super::settings::checks(&settings);
        assert!(found.iter().all(|found| found.level == Level::Ok), "{found:?}");
        assert_eq!(retention(&settings)[0].level, Level::Ok);
    }
}
