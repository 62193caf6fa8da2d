//! Events of Kafka that an embedded log does not have: topics made anew, retention, foreign records, brokers that go
//! away.
//! In: topics of a real broker. Out: the behaviour in docs/kafka.md, case by case.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::message::{Position, Positions};
use perkey::unstable::metrics::Metrics;
use perkey::unstable::settings::{FirstStart, KafkaSettings};
use perkey::unstable::transport::kafka::{KafkaSink, KafkaTransport};
use perkey::unstable::transport::{Content, Outgoing, Sink, SinkTransport, Source, SourceError, Transport};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::fixture::{SHARDS, message};
use crate::kafka_topic::{Topic, Written};
use crate::sources::{assert_lost, behind, error, error_that_lasts, fetch, ids, is_dry, named, next};

const BOUND: Duration = Duration::from_secs(30);

fn transport(settings: &KafkaSettings) -> Arc<KafkaTransport> {
    KafkaTransport::new(settings, SHARDS, &Metrics::new()).unwrap()
}

async fn open(transport: &KafkaTransport, shard: u32, from: &Positions) -> Box<dyn Source> {
    transport.open(shard, from.clone()).await.unwrap()
}

#[tokio::test]
async fn a_topic_made_anew_stops_the_source_until_it_is_named_anew() {
    let topic = Topic::new(4).await;
    topic.fill(2, "a", 0..5);
    let from = behind(&fetch(&mut *open(&topic.transport(), 2, &Positions::new()).await, 5).await[4]);
    topic.delete().await;
    topic.create().await;
    // As long as before: only the record itself tells.
    topic.fill(2, "b", 0..8);
    let lost = error(&mut *open(&topic.transport(), 2, &from).await).await;
    assert_lost(&lost, &["offset 4 is another one", "re-created", &format!("\"{}#2\"", topic.name), "kafka.topics"]);
    // The second way on.
    let settings = KafkaSettings { topics: vec![format!("{}#2", topic.name)], ..topic.settings() };
    let all = fetch(&mut *open(&transport(&settings), 2, &from).await, 8).await;
    assert_eq!(ids(&all), named("b", 0..8));
    assert_eq!(&*all[0].origin, format!("{}#2/2", topic.name));
}

#[tokio::test]
async fn a_shorter_topic_made_anew_is_lost_at_once_and_while_it_is_read() {
    let topic = Topic::new(4).await;
    topic.fill(2, "a", 0..5);
    let transport = topic.transport();
    let mut source = open(&transport, 2, &Positions::new()).await;
    let from = behind(&fetch(&mut *source, 5).await[4]);
    topic.delete().await;
    topic.create().await;
    topic.fill(2, "b", 0..2);
    let while_read = error_that_lasts(&mut *source).await;
    assert_lost(&while_read, &["offset 4 was taken, but the partition now ends at 2"]);
    let lost = error(&mut *open(&topic.transport(), 2, &from).await).await;
    assert_lost(&lost, &["offset 4 was taken, but the partition now ends at 2", "re-created"]);
}

#[tokio::test]
async fn retention_may_take_what_was_taken_and_nothing_else() {
    let topic = Topic::new(4).await;
    topic.fill(2, "a", 0..10);
    let all = fetch(&mut *open(&topic.transport(), 2, &Positions::new()).await, 10).await;
    topic.cut(2, 6).await;
    let rest = fetch(&mut *open(&topic.transport(), 2, &behind(&all[5])).await, 4).await;
    assert_eq!(ids(&rest), named("a", 6..10));
    let lost = error(&mut *open(&topic.transport(), 2, &behind(&all[3])).await).await;
    assert_lost(&lost, &["offsets 4 to 5 were removed", "retention", "#2"]);
    // All of it gone, and all of it taken.
    topic.cut(2, 10).await;
    let mut source = open(&topic.transport(), 2, &behind(&all[9])).await;
    assert!(is_dry(&mut *source).await);
    topic.fill(2, "b", 0..1);
    assert_eq!(ids(&fetch(&mut *source, 1).await), ["b-0"]);
}

#[tokio::test]
async fn a_transactional_topic_that_retention_emptied_is_not_lost() {
    let topic = Topic::new(4).await;
    // Offsets 0 to 2, and 3 for the end; 4 and 5 were aborted, and 6 says so.
    topic.transact(2, "a", 0..3, true);
    topic.transact(2, "x", 0..2, false);
    let transport = topic.transport();
    let mut source = open(&transport, 2, &Positions::new()).await;
    let all = fetch(&mut *source, 3).await;
    assert_eq!(ids(&all), named("a", 0..3));
    assert!(is_dry(&mut *source).await);
    source.committed(&behind(&all[2]));
    await_committed(&topic, 2, 7).await;
    drop(source);
    topic.cut(2, 7).await;
    let mut source = open(&topic.transport(), 2, &behind(&all[2])).await;
    assert!(is_dry(&mut *source).await);
    topic.fill(2, "b", 0..1);
    assert_eq!(ids(&fetch(&mut *source, 1).await), ["b-0"]);
    // A store that is older than what the group was told is none of which that was said.
    let lost = error(&mut *open(&topic.transport(), 2, &behind(&all[1])).await).await;
    assert_lost(&lost, &["offsets 2 to 6 were removed"]);
}

#[tokio::test]
async fn a_setting_changes_no_records_fingerprint() {
    let topic = Topic::new(4).await;
    topic.fill(2, "a", 0..3);
    let all = fetch(&mut *open(&topic.transport(), 2, &Positions::new()).await, 3).await;
    let settings = KafkaSettings { id_header: "other".to_owned(), ..topic.settings() };
    let rest = fetch(&mut *open(&transport(&settings), 2, &behind(&all[0])).await, 2).await;
    assert_eq!(ids(&rest), [1, 2].map(|offset| format!("{}/2/{offset}", topic.name)));
}

#[tokio::test]
async fn the_first_start_is_where_the_settings_say_and_lasts() {
    let mut topic = Topic::new(4).await;
    topic.fill(2, "old", 0..3);
    topic.fill(3, "old", 0..3);
    let settings = KafkaSettings { first_start: FirstStart::Latest, ..topic.settings() };
    let mut source = open(&transport(&settings), 2, &Positions::new()).await;
    assert!(is_dry(&mut *source).await, "nothing old");
    // The group remembers where the topic was begun: what comes from now on is new.
    await_committed(&topic, 2, 3).await;
    drop(source);
    // Written while nobody reads, before anything of the partition was taken.
    topic.fill(2, "new", 0..2);
    topic.fill(3, "new", 0..2);
    for shard in [2, 3] {
        let all = fetch(&mut *open(&transport(&settings), shard, &Positions::new()).await, 2).await;
        assert_eq!(ids(&all), named("new", 0..2), "shard {shard}");
    }
    // A partition that came later is read from its beginning.
    topic.widen(7).await;
    topic.fill(6, "late", 0..2);
    let all = fetch(&mut *open(&transport(&settings), 2, &Positions::new()).await, 4).await;
    let seen: BTreeSet<&str> = ids(&all).into_iter().collect();
    assert_eq!(seen, BTreeSet::from(["late-0", "late-1", "new-0", "new-1"]));
    let earliest = fetch(&mut *open(&topic.transport(), 3, &Positions::new()).await, 5).await;
    assert_eq!(ids(&earliest)[0], "old-0");
}

#[tokio::test]
async fn a_partition_added_while_it_runs_is_read_from_its_beginning() {
    let mut topic = Topic::new(4).await;
    let transport = topic.transport();
    let mut source = open(&transport, 1, &Positions::new()).await;
    topic.fill(1, "a", 0..1);
    fetch(&mut *source, 1).await;
    topic.widen(6).await;
    topic.fill(5, "b", 0..3);
    let all = fetch(&mut *source, 3).await;
    assert_eq!(ids(&all), named("b", 0..3));
    assert_eq!(&*all[0].origin, format!("{}/5", topic.name));
}

#[tokio::test]
async fn partitions_that_are_no_multiple_of_the_shards_are_all_read_once() {
    // 4 shards: shard 0 reads partitions 0 and 4, shard 1 reads 1 and 5, the others one each.
    let topic = Topic::new(6).await;
    for partition in 0..6 {
        topic.fill(partition, &format!("p{partition}"), 0..4);
    }
    let transport = topic.transport();
    for (shard, partitions) in [vec![0, 4], vec![1, 5], vec![2], vec![3]].into_iter().enumerate() {
        let mut source = open(&transport, u32::try_from(shard).unwrap(), &Positions::new()).await;
        let all = fetch(&mut *source, 4 * partitions.len()).await;
        let origins: BTreeSet<&str> = all.iter().map(|delivery| &*delivery.origin).collect();
        let expected: Vec<String> = partitions.iter().map(|partition| format!("{}/{partition}", topic.name)).collect();
        assert_eq!(origins, expected.iter().map(String::as_str).collect());
        assert!(is_dry(&mut *source).await);
    }
}

#[tokio::test]
async fn fewer_partitions_than_shards_leave_shards_without_one() {
    let topic = Topic::new(2).await;
    let transport = topic.transport();
    topic.fill(0, "a", 0..1);
    assert!(is_dry(&mut *open(&transport, 3, &Positions::new()).await).await);
    assert_eq!(fetch(&mut *open(&transport, 0, &Positions::new()).await, 1).await.len(), 1);
}

#[tokio::test]
async fn foreign_records_are_read_as_the_documents_say() {
    let topic = Topic::new(1).await;
    let (key, payload) = (Some(&b"acct-1"[..]), Some(&b"{}"[..]));
    let plain = Written { key, payload, time: Some(1_234), ..Written::default() };
    topic.write(Written { headers: &[("id", b"m-1"), ("b3", b"1"), ("schema", b"\0\xff")], ..plain });
    topic.write(plain);
    topic.write(Written { key: None, ..plain });
    topic.write(Written { payload: None, headers: &[("ce_id", b"gone"), ("ce_type", b"removed")], ..plain });
    topic.write(Written { headers: &[("ce_id", b"\xff\xfe")], ..plain });
    topic.write(Written { headers: &[("id", &[b'x'; 300])], ..plain });
    topic.write(Written { headers: &[("ce_type", b"posted"), ("ce_id", b"last")], ..plain });
    let all = fetch(&mut *open(&topic.transport(), 0, &Positions::new()).await, 7).await;
    let read = |at: usize| match &all[at].content {
        Content::Unrouted(message) => message.clone(),
        other => panic!("{other:?}"),
    };
    let named = read(0);
    assert_eq!([named.id(), named.key(), named.kind()], ["m-1", "acct-1", &topic.name]);
    assert_eq!((named.source(), named.time()), (format!("kafka:{}", topic.name).as_str(), 1_234));
    assert_eq!(named.headers().collect::<Vec<_>>(), [("b3", "1")]);
    assert_eq!(read(1).id(), format!("{}/0/1", topic.name), "made of its place");
    assert_eq!(read(2).key(), "");
    assert_eq!([read(3).id(), read(3).kind()], ["gone", "removed"]);
    assert_eq!(read(3).payload(), b"");
    for (at, part) in [(4, "the id is not valid UTF-8"), (5, "the id has 300 bytes")] {
        let Content::Unreadable { message, reason } = &all[at].content else { panic!("{:?}", all[at]) };
        assert!(reason.contains(part), "{reason}");
        assert_eq!((message.id(), message.payload()), (format!("{}/0/{at}", topic.name).as_str(), &b"{}"[..]));
    }
    assert_eq!(read(6).id(), "last");
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_said_and_waited_for() {
    let topic = Topic::new(4).await;
    topic.delete().await;
    let transport = topic.transport();
    let mut source = open(&transport, 0, &Positions::new()).await;
    let missing = error(&mut *source).await;
    assert!(matches!(missing, SourceError::Unavailable { .. }), "{missing}");
    assert!(missing.to_string().contains(&format!("topic {} is not there", topic.name)), "{missing}");
    topic.create().await;
    topic.fill(0, "a", 0..3);
    let mut all = Vec::new();
    while all.len() < 3 {
        // It may be told once more before the topic is found.
        if let Ok(more) = tokio::time::timeout(BOUND, source.fetch(9)).await.expect("the topic is found") {
            all.extend(more);
        }
    }
    assert_eq!(ids(&all), named("a", 0..3));
}

#[tokio::test]
async fn brokers_that_are_away_are_told_of_and_waited_for() {
    let settings =
        KafkaSettings { brokers: "127.0.0.1:1".to_owned(), topics: vec!["t".to_owned()], ..KafkaSettings::default() };
    let transport = transport(&settings);
    let mut source = open(&transport, 0, &Positions::new()).await;
    let away = error(&mut *source).await;
    assert!(matches!(away, SourceError::Unavailable { .. }), "{away}");
    let mut told = 0;
    let spinning = async {
        loop {
            assert!(source.fetch(9).await.is_err());
            told += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(2), spinning).await.unwrap_err();
    assert!(told < 20, "told {told} times in 2 s");
}

#[tokio::test]
async fn a_shard_that_does_not_fetch_costs_bounded_memory_and_holds_up_nobody() {
    let topic = Topic::new(4).await;
    let payload = vec![b'x'; 10_000];
    for partition in [0, 1] {
        for at in 0..1_000 {
            let id = format!("p{partition}-{at}");
            let headers: &[(&str, &[u8])] = &[("id", id.as_bytes())];
            topic.enqueue(Written { partition, key: Some(b"k"), payload: Some(&payload), headers, time: None });
        }
    }
    topic.flush();
    // 10 MB each; a buffer holds a quarter of a megabyte, and what one poll more brings.
    let settings = KafkaSettings { buffer_bytes: 256 << 10, ..topic.settings() };
    let transport = transport(&settings);
    let mut slow = open(&transport, 0, &Positions::new()).await;
    let mut quick = open(&transport, 1, &Positions::new()).await;
    assert_eq!(fetch(&mut *quick, 1_000).await.len(), 1_000);
    let ready = slow.fetch(usize::MAX).await.unwrap();
    assert!(ready.len() <= 150, "{} messages of 10 KB were kept", ready.len());
    // Paused and resumed many times, each record once and in order.
    let mut all = ready;
    while all.len() < 1_000 {
        all.extend(tokio::time::timeout(BOUND, slow.fetch(7)).await.expect("it goes on").unwrap());
    }
    assert_eq!(ids(&all), named("p0", 0..1_000));
}

#[tokio::test]
async fn an_opening_ends_the_one_before_it() {
    let topic = Topic::new(4).await;
    topic.fill(2, "a", 0..10);
    let transport = topic.transport();
    let mut old = open(&transport, 2, &Positions::new()).await;
    let all = fetch(&mut *old, 10).await;
    let mut new = open(&transport, 2, &behind(&all[3])).await;
    assert_eq!(ids(&fetch(&mut *new, 6).await), named("a", 4..10));
    topic.fill(2, "b", 0..2);
    assert_eq!(ids(&fetch(&mut *new, 2).await), named("b", 0..2));
    // Dropped late, it takes nothing from its successor.
    assert!(is_dry(&mut *old).await);
    drop(old);
    topic.fill(2, "c", 0..2);
    assert_eq!(ids(&fetch(&mut *new, 2).await), named("c", 0..2));
}

#[tokio::test]
async fn the_group_is_told_what_is_committed() {
    let topic = Topic::new(4).await;
    topic.fill(2, "a", 0..10);
    let transport = topic.transport();
    let mut source = open(&transport, 2, &Positions::new()).await;
    let all = fetch(&mut *source, 10).await;
    assert_eq!(topic.committed(2), None, "nothing is committed by reading");
    source.committed(&behind(&all[3]));
    await_committed(&topic, 2, 4).await;
    // The last of it when the source is dropped.
    source.committed(&behind(&all[9]));
    drop(source);
    await_committed(&topic, 2, 10).await;
}

async fn await_committed(topic: &Topic, partition: i32, offset: i64) {
    for _ in 0..600 {
        if topic.committed(partition) == Some(offset) {
            return;
        }
        perkey::sleep(Duration::from_millis(50)).await;
    }
    panic!("waited 30 s for the group to have {offset}, and it has {:?}", topic.committed(partition));
}

#[tokio::test]
async fn positions_of_another_kind_are_gone_on_from_unchecked() {
    let topic = Topic::new(4).await;
    topic.fill(2, "a", 0..4);
    let from = Positions::from([(Arc::from(format!("{}/2", topic.name)), Position::new(1, 0))]);
    let all = fetch(&mut *open(&topic.transport(), 2, &from).await, 2).await;
    assert_eq!(ids(&all), named("a", 2..4));
}

#[tokio::test]
async fn an_event_comes_back_as_the_message_it_was() {
    let topic = Topic::new(4).await;
    let sink = KafkaSink::new(&topic.settings()).unwrap();
    let headers = [("traceparent", "00-1-2-01"), ("cause", "m-1"), ("x-tenant", "t")];
    let draft = perkey::Draft {
        id: "e-1",
        key: "acct-1",
        kind: "posted",
        source: "balances",
        time: 1_700_000_000_123,
        headers: &headers,
        payload: b"{\"n\":1}",
    };
    let sent = draft.build().unwrap();
    let event = Outgoing { seq: 1, topic: topic.name.as_str().into(), message: sent.clone() };
    let mut end = sink.open(0).await.unwrap();
    assert_eq!(end.send(&[event]).unwrap(), 1);
    tokio::time::timeout(BOUND, end.answers()).await.expect("it is confirmed").unwrap();
    // Where Kafka's Java clients put this key: its shard, as partitions and shards are as many.
    let shard = perkey::unstable::message::shard_of("acct-1", SHARDS);
    let all = fetch(&mut *open(&topic.transport(), shard, &Positions::new()).await, 1).await;
    assert!(matches!(&all[0].content, Content::Unrouted(read) if *read == sent), "{:?}", all[0]);
}

/// An event for a topic.
fn event(topic: &str, seq: u64) -> Outgoing {
    Outgoing { seq, topic: topic.into(), message: message(&format!("e-{seq}"), "k", b"{}") }
}

/// Brokers of librdkafka's own, which fail as they are told.
#[tokio::test]
async fn a_producer_that_failed_for_good_is_made_anew() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("out", 1, 1).unwrap();
    let settings = KafkaSettings { brokers: cluster.bootstrap_servers(), ..KafkaSettings::default() };
    let sink = KafkaSink::new(&settings).unwrap();
    let mut end = sink.open(0).await.unwrap();
    let event = |seq| event("out", seq);
    let answers = async |end: &mut dyn Sink| tokio::time::timeout(BOUND, end.answers()).await.expect("no end hangs");
    assert_eq!(end.send(&[event(1)]).unwrap(), 1);
    assert_eq!(answers(&mut *end).await.unwrap().len(), 1);
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    cluster.request_errors(RDKafkaApiKey::Produce, &[refused]);
    assert_eq!(end.send(&[event(2)]).unwrap(), 1);
    let broken = answers(&mut *end).await.unwrap_err();
    assert!(matches!(broken, perkey::unstable::transport::SinkError::Broken { .. }), "{broken}");
    assert!(end.send(&[event(3)]).is_err(), "it stays broken");
    // From the watermark, through a producer of a new identity.
    let mut end = sink.open(0).await.unwrap();
    assert_eq!(end.send(&[event(2), event(3)]).unwrap(), 2);
    let mut confirmed = 0;
    while confirmed < 2 {
        confirmed += answers(&mut *end).await.unwrap().len();
    }
}

#[tokio::test]
async fn a_producer_that_confirms_nothing_is_made_anew() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("out", 1, 1).unwrap();
    let answer_timeout = Duration::from_secs(1);
    let brokers = cluster.bootstrap_servers();
    let sink = KafkaSink::new(&KafkaSettings { brokers, answer_timeout, ..KafkaSettings::default() }).unwrap();
    let mut end = sink.open(0).await.unwrap();
    let event = |seq| event("out", seq);
    // Nothing is on its way: there is nothing to wait for.
    assert!(tokio::time::timeout(answer_timeout * 3, end.answers()).await.is_err(), "it is left alone");
    cluster.broker_down(1).unwrap();
    assert_eq!(end.send(&[event(1)]).unwrap(), 1);
    // However often the wait is begun anew.
    let mut broken = None;
    for _ in 0..100 {
        if let Ok(answered) = tokio::time::timeout(Duration::from_millis(50), end.answers()).await {
            broken = Some(answered.unwrap_err());
            break;
        }
    }
    assert!(broken.unwrap().to_string().contains("nothing was confirmed for 1s"));
    cluster.broker_up(1).unwrap();
    // A producer that is slow to find the broker on a busy machine is replaced, too: as a publisher would, try again.
    let mut confirmed = 0;
    for _ in 0..30 {
        let mut end = sink.open(0).await.unwrap();
        assert_eq!(end.send(&[event(1)]).unwrap(), 1);
        confirmed =
            tokio::time::timeout(BOUND, end.answers()).await.expect("it is answered").map_or(0, |all| all.len());
        if confirmed > 0 {
            break;
        }
    }
    assert_eq!(confirmed, 1);
}

#[tokio::test]
async fn a_broker_that_comes_back_is_gone_on_with() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("t", 4, 1).unwrap();
    let settings = KafkaSettings {
        brokers: cluster.bootstrap_servers(),
        topics: vec!["t".to_owned()],
        ..KafkaSettings::default()
    };
    let (transport, sink) = (transport(&settings), KafkaSink::new(&settings).unwrap());
    let shard = perkey::unstable::message::shard_of("k", SHARDS);
    let event = |seq| event("t", seq);
    let mut source = open(&transport, shard, &Positions::new()).await;
    let mut end = sink.open(shard).await.unwrap();
    let mut seen: Vec<String> = Vec::new();
    for round in 0..3 {
        assert_eq!(end.send(&[event(2 * round)]).unwrap(), 1);
        tokio::time::timeout(BOUND, end.answers()).await.expect("it is confirmed").unwrap();
        cluster.broker_down(1).unwrap();
        // Taken while nobody is there to write it to.
        assert_eq!(end.send(&[event(2 * round + 1)]).unwrap(), 1);
        let waits = tokio::time::timeout(Duration::from_millis(700), end.answers()).await;
        assert!(waits.is_err(), "an outage is no answer: {waits:?}");
        cluster.broker_up(1).unwrap();
        tokio::time::timeout(BOUND, end.answers()).await.expect("it is confirmed").unwrap();
        let expected = usize::try_from(2 * round + 2).unwrap();
        while seen.len() < expected {
            // That the broker was away may be told in between.
            let fetched = next(&mut *source, 9, &format!("{expected} events"), &seen).await;
            seen.extend(ids(&fetched.unwrap_or_default()).into_iter().map(str::to_owned));
        }
    }
    assert_eq!(seen, (0..6).map(|seq| format!("e-{seq}")).collect::<Vec<_>>());
}

#[test]
fn clients_that_cannot_be_made_say_why_and_tell_no_secret() {
    let settings = KafkaSettings {
        brokers: "127.0.0.1:1".to_owned(),
        security: "ssl".to_owned(),
        ca_file: "/no/such/file.pem".to_owned(),
        password: "hunter2".to_owned(),
        ..KafkaSettings::default()
    };
    let Err(failure) = KafkaTransport::new(&settings, SHARDS, &Metrics::new()) else { panic!("it must be refused") };
    let said = failure.to_string();
    assert!(said.contains("/no/such/file.pem") && !said.contains("hunter2"), "{said}");
    let properties = vec!["no.such.property=1".to_owned()];
    let settings = KafkaSettings { brokers: "127.0.0.1:1".to_owned(), properties, ..KafkaSettings::default() };
    let Err(failure) = KafkaSink::new(&settings) else { panic!("it must be refused") };
    let said = failure.to_string();
    assert!(said.contains("no.such.property"), "{said}");
}
