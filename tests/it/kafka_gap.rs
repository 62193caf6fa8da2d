//! A record that a broker of Kafka does not take, for no reason that is the record's own: those behind it must not overtake it.
//! In: the brokers of librdkafka's own, which answer as they are told. Out: each key's events in their order.

use std::time::Duration;

use perkey::settings::KafkaSettings;
use perkey::transport::kafka::KafkaSink;
use perkey::transport::{Answer, Outgoing, Sink, SinkError, SinkTransport};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message as _};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::sink_contract::{by_key, event, expected, publish};

const BOUND: Duration = Duration::from_secs(30);
const TOPIC: &str = "out";

/// Key and id of everything that is in the topic's one partition, until `unique` ids have come.
fn arrived(brokers: &str, unique: usize) -> Vec<(String, String)> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "test");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut all = TopicPartitionList::new();
    all.add_partition_offset(TOPIC, 0, Offset::Beginning).unwrap();
    consumer.assign(&all).unwrap();
    let (mut pairs, mut seen) = (Vec::new(), std::collections::BTreeSet::new());
    while seen.len() < unique {
        let record = consumer.poll(BOUND).unwrap_or_else(|| panic!("{} of {unique} came", seen.len())).unwrap();
        let id = record.headers().unwrap().iter().find(|header| header.key == "ce_id").and_then(|header| header.value);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        seen.insert(text(id.unwrap()));
        pairs.push((text(record.key().unwrap()), text(id.unwrap())));
    }
    pairs
}

/// Sends until the end breaks; gives how many were confirmed without a gap.
async fn until_broken(end: &mut dyn Sink, events: &[Outgoing]) -> usize {
    let (mut sent, mut confirmed) = (0, std::collections::BTreeSet::new());
    let broken = loop {
        match end.send(&events[sent..]) {
            Ok(more) => sent += more,
            Err(error) => break error,
        }
        match tokio::time::timeout(BOUND, end.answers()).await.expect("an end must not hang") {
            Ok(more) => confirmed.extend(more.into_iter().map(|answer| match answer {
                Answer::Confirmed(seq) => seq,
                Answer::Refused(..) => panic!("{answer:?}"),
            })),
            Err(error) => break error,
        }
    };
    assert!(matches!(broken, SinkError::Broken { .. }), "{broken}");
    events.iter().take_while(|event| confirmed.contains(&event.seq)).count()
}

#[tokio::test]
async fn what_is_behind_a_record_that_failed_does_not_overtake_it() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 1, 1).unwrap();
    let brokers = cluster.bootstrap_servers();
    // A request for each record.
    let properties = vec!["batch.num.messages=1".to_owned()];
    let sink =
        KafkaSink::new(&KafkaSettings { brokers: brokers.clone(), properties, ..KafkaSettings::default() }).unwrap();
    let (good, unknown) = (RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN);
    cluster.request_errors(RDKafkaApiKey::Produce, &[good, good, good, unknown]);
    let events: Vec<Outgoing> = (1..301).map(|seq| event(TOPIC, seq, "k-0", b"{}")).collect();
    let watermark = until_broken(&mut *sink.open(0).await.unwrap(), &events).await;
    assert!(watermark < events.len());
    let answers = publish(&mut *sink.open(0).await.unwrap(), &events[watermark..]).await;
    assert!(answers.iter().all(|answer| matches!(answer, Answer::Confirmed(_))));
    assert_eq!(by_key(arrived(&brokers, events.len())), expected(&events));
}
