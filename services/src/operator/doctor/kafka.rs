//! The topics that are read and written.
//! In: facts. Out: findings.

use perkey::Settings;
use perkey::unstable::settings::next_life;
use perkey::unstable::store::query::ShardRow;
use perkey::unstable::transport::kafka::NAME;
use perkey::unstable::transport::kafka::health::{KafkaHealth, TopicHealth};

use super::facts::{Facts, read_topics, written_topics};
use super::server::bytes;
use super::{Finding, error, note, ok, or_ok, warning};

const DAY_MS: i64 = 86_400_000;
/// The producer's bound of a message's bytes, unless configured otherwise.
const PRODUCER_BYTES: i64 = 1_000_000;

/// All checks of this file.
pub(super) fn checks(facts: &Facts) -> Vec<Finding> {
    let health = match &facts.kafka {
        None => return Vec::new(),
        Some(Ok(health)) => health,
        Some(Err(reason)) => {
            let advice = "see kafka.brokers and kafka.security; while they are away sources and sinks wait";
            return vec![error("kafka", format!("the brokers do not answer: {reason}"), advice)];
        }
    };
    let settings = &facts.settings;
    let mut all = vec![ok("kafka", format!("{} brokers answer", health.brokers))];
    if let Some(problem) = &health.problem {
        let advice = "allow DescribeConfigs on the topics: without it their settings were not looked at";
        all.push(note("kafka", format!("the settings of topics cannot be read: {problem}"), advice));
    }
    let (read, written) = (read_topics(settings), written_topics(settings));
    for name in read.union(&written) {
        let Some(topic) = health.topics.get(*name) else {
            let advice = "create it, or take it out of the settings; topics are not made unasked";
            all.push(error("kafka.topics", format!("topic {name} is not there, or may not be looked at"), advice));
            continue;
        };
        let mut found = safety(name, topic);
        if read.contains(name) {
            found.extend(reading(settings, name, topic));
        }
        if written.contains(name) {
            found.extend(writing(settings, name, topic));
        }
        all.extend(or_ok(
            "kafka.topics",
            found,
            format!("{name}: {} partitions, {} replicas", topic.partitions, topic.replicas),
        ));
    }
    if let Ok(store) = &facts.store {
        all.extend(positions(settings, &store.rows, health));
    }
    all
}

fn number(topic: &TopicHealth, setting: &str) -> Option<i64> {
    topic.settings.get(setting)?.parse().ok()
}

fn safety(name: &str, topic: &TopicHealth) -> Vec<Finding> {
    let mut found = Vec::new();
    if topic.leaderless > 0 {
        let text = format!("{} partitions of {name} have no leader", topic.leaderless);
        found.push(error("kafka.topics", text, "bring their brokers back: nothing is read or written there"));
    }
    if topic.replicas < 2 {
        found.push(warning(
            "kafka.topics",
            format!("{name} has a replication factor of {}: the loss of a broker loses its records", topic.replicas),
            "use a replication factor of 3 and min.insync.replicas=2",
        ));
        return found;
    }
    match number(topic, "min.insync.replicas") {
        Some(least) if least < 2 => found.push(warning(
            "kafka.topics",
            format!("min.insync.replicas of {name} is {least}: a record is confirmed that only one broker has"),
            "set it to 2",
        )),
        Some(least) if usize::try_from(least).is_ok_and(|least| least >= topic.replicas) => found.push(warning(
            "kafka.topics",
            format!("min.insync.replicas of {name} is {least}, the number of its replicas: a single broker that is away stops it"),
            "set it to one less than the replication factor",
        )),
        _ => {}
    }
    if topic.settings.get("unclean.leader.election.enable").is_some_and(|value| value == "true") {
        let text = format!("unclean.leader.election.enable of {name} is true: confirmed records can be lost");
        found.push(warning("kafka.topics", text, "set it to false"));
    }
    found
}

fn reading(settings: &Settings, name: &str, topic: &TopicHealth) -> Vec<Finding> {
    let mut found = Vec::new();
    let window = i64::try_from(settings.dedup.window.as_millis()).unwrap_or(i64::MAX);
    match number(topic, "retention.ms") {
        Some(kept) if (0..DAY_MS).contains(&kept) => found.push(warning(
            "kafka.retention",
            format!("{name} keeps records for {} min: records not read by then are lost", kept / 60_000),
            "raise retention.ms above the longest time for which no worker may run",
        )),
        Some(kept) if kept < 0 || kept > window => found.push(note(
            "kafka.retention",
            format!("{name} keeps records for longer than ids are remembered (dedup.window)"),
            "raise dedup.window if the topic may ever be begun anew (topic#2): older records would take effect again",
        )),
        _ => {}
    }
    if let Some(most) = number(topic, "retention.bytes").filter(|most| *most >= 0) {
        let text = format!("{name} keeps {} per partition (retention.bytes)", bytes(most.unsigned_abs()));
        let advice = "see that this holds the records that come while no worker runs: those removed unread are lost";
        found.push(note("kafka.retention", text, advice));
    }
    if topic.settings.get("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
        found.push(warning(
            "kafka.retention",
            format!("{name} is compacted: of a key's records those that are not the last may be removed unread"),
            "use cleanup.policy=delete for a topic each of whose records counts",
        ));
    }
    let shards = settings.ownership.shards as usize;
    if shards > 0 && !topic.partitions.is_multiple_of(shards) {
        found.push(note(
            "kafka.topics",
            format!(
                "{name} has {} partitions, which is not a multiple of {shards} shards: most messages change shards",
                topic.partitions
            ),
            "choose a multiple where throughput matters (docs/kafka.md)",
        ));
    }
    let most = i64::try_from(settings.ingress.message_bytes_max).unwrap_or(i64::MAX);
    if let Some(larger) = number(topic, "max.message.bytes").filter(|larger| *larger > most.saturating_mul(2)) {
        let text = format!("{name} takes records of {larger} bytes, ingress.message_bytes_max is {most}");
        found.push(note("kafka.topics", text, "larger messages become dead letters: raise it if there are such"));
    }
    found
}

fn writing(settings: &Settings, name: &str, topic: &TopicHealth) -> Vec<Finding> {
    let entries = settings.kafka.properties.iter().filter_map(|entry| entry.split_once('='));
    let mut told = entries
        .filter(|(name, _)| name.trim() == "message.max.bytes")
        .filter_map(|(_, value)| value.trim().parse().ok());
    let sent = told.next_back().unwrap_or(PRODUCER_BYTES);
    match number(topic, "max.message.bytes").filter(|most| *most < sent) {
        Some(most) => vec![warning(
            "kafka.topics",
            format!("{name} takes records of {most} bytes, the producer sends up to {sent} (message.max.bytes)"),
            "raise max.message.bytes of the topic: the brokers refuse a whole batch for one record that is too large",
        )],
        None => Vec::new(),
    }
}

/// Compares the store's positions with the records that the partitions still have.
fn positions(settings: &Settings, rows: &[ShardRow], health: &KafkaHealth) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut count = 0;
    for (origin, position) in rows.iter().filter_map(|row| row.positions.get(NAME)).flatten() {
        let entry = origin.rsplit_once('/').map_or(&**origin, |(entry, _)| entry);
        let Some(first) = health.first.get(&**origin) else { continue };
        if !settings.kafka.topics.iter().any(|read| read == entry) {
            continue;
        }
        count += 1;
        if *first > position.no + 1 {
            found.push(error(
                "kafka.positions",
                format!(
                    "{origin} begins at {first}, and was read up to {}: the records between were removed unread",
                    position.no
                ),
                format!("restore the topic, or begin it anew: write {:?} for it in kafka.topics", next_life(entry)),
            ));
        }
    }
    or_ok("kafka.positions", found, format!("{count} partitions still have the record to read next"))
}

#[cfg(test)]
mod tests {
    use perkey::Publish;
    use perkey::unstable::message::Position;

    use super::super::Level::{Error, Note, Warning};
    use super::super::facts::tests::found;
    use super::super::{Level, facts::StoreFacts};
    use super::*;

    fn topic(settings: &[(&str, &str)]) -> TopicHealth {
        let named = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut all: std::collections::BTreeMap<_, _> =
            [("min.insync.replicas", "2"), ("retention.ms", "604800000"), ("max.message.bytes", "1048588")]
                .iter()
                .map(named)
                .collect();
        all.extend(settings.iter().map(named));
        TopicHealth { partitions: 4, leaderless: 0, replicas: 3, settings: all }
    }

    /// The findings about a topic that is read and written.
    fn told(
        topic: Option<TopicHealth>,
        change: impl FnOnce(&mut Facts, &mut StoreFacts),
    ) -> Vec<(&'static str, Level)> {
        found(checks, move |facts, store| {
            facts.settings.kafka.brokers = "b:9092".to_owned();
            facts.settings.kafka.topics = vec!["t#2".to_owned()];
            let route = serde_json::json!({ "type": "*", "sink": "kafka", "topic": "t" });
            facts.settings.publish = vec![serde_json::from_value::<Publish>(route).unwrap()];
            let topics = topic.into_iter().map(|topic| ("t".to_owned(), topic)).collect();
            let first = [("t#2/3".to_owned(), 8)].into();
            facts.kafka = Some(Ok(KafkaHealth { brokers: 3, topics, first, problem: None }));
            change(facts, store);
        })
    }

    #[test]
    fn topics_that_lose_records_are_told() {
        let of = |settings: &[(&str, &str)]| told(Some(topic(settings)), |_, _| {});
        assert_eq!(of(&[]), []);
        assert_eq!(told(None, |_, _| {}), [("kafka.topics", Error)]);
        assert_eq!(told(Some(TopicHealth { leaderless: 1, ..topic(&[]) }), |_, _| {}), [("kafka.topics", Error)]);
        assert_eq!(told(Some(TopicHealth { replicas: 1, ..topic(&[]) }), |_, _| {}), [("kafka.topics", Warning)]);
        for (name, value) in [
            ("min.insync.replicas", "1"),
            ("min.insync.replicas", "3"),
            ("unclean.leader.election.enable", "true"),
            ("max.message.bytes", "100000"),
        ] {
            assert_eq!(of(&[(name, value)]), [("kafka.topics", Warning)], "{name}={value}");
        }
        for (name, value, level) in [
            ("retention.ms", "3600000", Warning),
            ("retention.ms", "-1", Note),
            ("retention.ms", "704800000", Note),
            ("retention.bytes", "1000000", Note),
            ("cleanup.policy", "compact,delete", Warning),
        ] {
            assert_eq!(of(&[(name, value)]), [("kafka.retention", level)], "{name}={value}");
        }
        assert_eq!(of(&[("max.message.bytes", "9000000")]), [("kafka.topics", Note)]);
        let shards = |facts: &mut Facts, _: &mut StoreFacts| facts.settings.ownership.shards = 3;
        assert_eq!(told(Some(topic(&[])), shards), [("kafka.topics", Note)]);
    }

    #[test]
    fn what_was_removed_unread_is_an_error() {
        let at = |no| {
            told(Some(topic(&[])), move |_, store| {
                let positions = [("t#2/3".into(), Position { no, ..Position::default() })];
                store.rows[0].positions = [(NAME.into(), positions.into())].into();
            })
        };
        assert_eq!((at(7), at(6)), (vec![], vec![("kafka.positions", Error)]));
    }

    #[test]
    fn brokers_that_do_not_answer_are_an_error_and_closed_settings_a_note() {
        let away = |facts: &mut Facts, _: &mut StoreFacts| facts.kafka = Some(Err("timed out".to_owned()));
        assert_eq!(told(None, away), [("kafka", Error)]);
        let closed = |facts: &mut Facts, _: &mut StoreFacts| {
            if let Some(Ok(health)) = &mut facts.kafka {
                health.problem = Some("not allowed".to_owned());
            }
        };
        assert_eq!(told(Some(topic(&[])), closed), [("kafka", Note)]);
    }
}
