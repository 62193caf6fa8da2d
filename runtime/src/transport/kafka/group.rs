//! The offsets of the consumer group: where topics were begun, and up to where nothing is left to be read.
//! In: partitions, positions. Out: offsets; existing ones, written once more.

use std::collections::BTreeMap;

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::orders::{ANSWER, SharedConsumer};
use super::partition::tag;
use crate::message::Position;

/// Writes the offsets of these partitions once more, as they are, so that the group does not forget them.
pub(super) fn keep(client: &SharedConsumer, partitions: TopicPartitionList) -> KafkaResult<()> {
    let known = client.committed_offsets(partitions, ANSWER)?;
    let mut same = TopicPartitionList::new();
    for element in known.elements() {
        if let at @ Offset::Offset(_) = element.offset() {
            let mut again = same.add_partition(element.topic(), element.partition());
            again.set_metadata(element.metadata());
            again.set_offset(at)?;
        }
    }
    // An offset that the reader commits in between comes again with the partition's next record.
    if same.count() == 0 { Ok(()) } else { client.commit(&same, CommitMode::Async) }
}

/// The offset up to which no record lies behind `last`, as far as the group was told; else 0.
pub(super) fn seen(client: &SharedConsumer, topic: &str, partition: i32, last: Position) -> KafkaResult<u64> {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    let known = match client.committed_offsets(list, ANSWER) {
        // A client that may not read the group has told it nothing.
        Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) => return Ok(0),
        known => known?,
    };
    let elements = known.elements();
    let of_last = elements.iter().filter(|element| element.metadata() == tag(last));
    let offsets = of_last.filter_map(|element| u64::try_from(element.offset().to_raw()?).ok());
    Ok(offsets.max().unwrap_or(0))
}

/// The offsets at which the partitions of a topic were begun with its end. The group keeps them: until a partition's
/// first message is committed, nothing else would know which of its messages came after the first start.
pub(super) fn begun(client: &SharedConsumer, topic: &str, count: i32) -> KafkaResult<BTreeMap<i32, u64>> {
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, count - 1);
    let known = client.committed_offsets(list, ANSWER)?;
    let mut begun = BTreeMap::new();
    for element in known.elements() {
        if let Offset::Offset(at) = element.offset() {
            begun.insert(element.partition(), u64::try_from(at).unwrap_or(0));
        }
    }
    if begun.is_empty() {
        let mut list = TopicPartitionList::new();
        for partition in 0..count {
            let (_, high) = client.fetch_watermarks(topic, partition, ANSWER)?;
            list.add_partition_offset(topic, partition, Offset::Offset(high))?;
            begun.insert(partition, u64::try_from(high).unwrap_or(0));
        }
        client.commit(&list, CommitMode::Sync)?;
    }
    Ok(begun)
}
