//! The brokers' facts about the topics that are read and written. Nothing is judged here.
//! In: the settings, topics, partitions. Out: plain values; a reason for each fact that could not be read.

use std::collections::BTreeMap;

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::metadata::{Metadata, MetadataTopic};

use super::orders::ANSWER;
use super::{KafkaFailure, client};
use crate::settings::{KafkaSettings, topic_of};

/// The brokers and the topics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KafkaHealth {
    /// The number of brokers.
    pub brokers: usize,
    /// The topics asked about, by name; those that do not exist are missing.
    pub topics: BTreeMap<String, TopicHealth>,
    /// First offset that each partition asked about still has, by its name in positions (`topic/3`).
    pub first: BTreeMap<String, u64>,
    /// The reason why the topics' settings could not be read.
    pub problem: Option<String>,
}

/// A topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicHealth {
    /// Its partitions.
    pub partitions: usize,
    /// Partitions without a leader.
    pub leaderless: usize,
    /// The number of copies of the partition with the fewest.
    pub replicas: usize,
    /// Its settings, by Kafka's names, with the brokers' defaults.
    pub settings: BTreeMap<String, String>,
}

/// Version of librdkafka in this program.
pub fn library_version() -> String {
    rdkafka::util::get_rdkafka_version().1
}

/// Asks the brokers about `topics` and about `partitions`, which are named as in positions.
pub async fn look(
    settings: &KafkaSettings,
    topics: Vec<String>,
    partitions: Vec<String>,
) -> Result<KafkaHealth, KafkaFailure> {
    client::check_files(settings)?;
    let config = client::admin(settings);
    let asked = topics.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let admin: AdminClient<DefaultClientContext> = config.create().map_err(KafkaFailure::refused)?;
        let metadata = admin.inner().fetch_metadata(None, ANSWER).map_err(KafkaFailure::Unanswered)?;
        let mut health = KafkaHealth { brokers: metadata.brokers().len(), ..KafkaHealth::default() };
        health.topics = asked.iter().filter_map(|name| Some((name.clone(), found(&metadata, name)?))).collect();
        for name in partitions {
            let Some((entry, partition)) = name.rsplit_once('/') else { continue };
            let Ok(partition) = partition.parse() else { continue };
            // A partition that no longer exists is reported by its topic.
            if let Ok((low, _)) = admin.inner().fetch_watermarks(topic_of(entry), partition, ANSWER) {
                health.first.insert(name, u64::try_from(low).unwrap_or(0));
            }
        }
        Ok::<_, KafkaFailure>((admin, health))
    });
    let (admin, mut health) = looked.await.map_err(KafkaFailure::Task)??;
    let resources: Vec<_> = health.topics.keys().map(|name| ResourceSpecifier::Topic(name)).collect();
    if resources.is_empty() {
        return Ok(health);
    }
    let described = admin.describe_configs(&resources, &AdminOptions::new().request_timeout(Some(ANSWER))).await;
    let described = described.unwrap_or_else(|error| {
        health.problem = Some(error.to_string());
        Vec::new()
    });
    for answer in described {
        match answer {
            Ok(ConfigResource { specifier: OwnedResourceSpecifier::Topic(name), entries }) => {
                let entries = entries.into_iter().filter(|entry| !entry.is_sensitive);
                let settings = entries.filter_map(|entry| Some((entry.name, entry.value?))).collect();
                health.topics.entry(name).and_modify(|topic| topic.settings = settings);
            }
            Ok(_) => {}
            Err(error) => health.problem = Some(error.to_string()),
        }
    }
    Ok(health)
}

fn found(metadata: &Metadata, name: &str) -> Option<TopicHealth> {
    let there = |topic: &&MetadataTopic| topic.name() == name && topic.error().is_none();
    let partitions = metadata.topics().iter().find(there)?.partitions();
    Some(TopicHealth {
        partitions: partitions.len(),
        leaderless: partitions.iter().filter(|partition| partition.leader() < 0).count(),
        replicas: partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0),
        settings: BTreeMap::new(),
    })
}
