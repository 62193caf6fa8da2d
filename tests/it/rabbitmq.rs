//! Events of RabbitMQ that an embedded log does not have: streams made anew, retention, foreign messages, broken lines.
//! In: streams of a real broker, behind a proxy that makes it fail. Out: the behaviour in docs/rabbitmq.md, case by
//! case.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lapin::ExchangeKind;
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use perkey::unstable::message::{Position, Positions, shard_of};
use perkey::unstable::metrics::Metrics;
use perkey::unstable::settings::RabbitmqSettings;
use perkey::unstable::transport::rabbitmq::{RabbitmqSink, RabbitmqTransport};
use perkey::unstable::transport::{
    Content, Delivery, Outgoing, Sink, SinkAnswer, SinkError, SinkTransport, Source, SourceError, Transport,
};
use perkey::{Draft, Message};
use perkey_chaos::proxy::{Mode, Proxy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::fixture::SHARDS;
use crate::rabbitmq_place::{Streams, Written, bytes, headed, said, text};
use crate::servers;
use crate::sink_contract::{by_key, event, expected, publish};
use crate::sources::{assert_lost, behind, error, error_that_lasts, fetch, ids, is_dry, named, next};

const BOUND: Duration = Duration::from_secs(30);

fn transport(settings: &RabbitmqSettings) -> Arc<RabbitmqTransport> {
    RabbitmqTransport::new(settings, SHARDS, &Metrics::new()).unwrap()
}

async fn open(transport: &RabbitmqTransport, shard: u32, from: &Positions) -> Box<dyn Source> {
    transport.open(shard, from.clone()).await.unwrap()
}

/// A broker that is reached by a proxy, and settings that lead there.
async fn proxied(settings: RabbitmqSettings) -> (Proxy, RabbitmqSettings) {
    let proxy = Proxy::start("127.0.0.1:0", &servers::rabbitmq()).await.unwrap();
    let addresses = proxy.address().to_string();
    (proxy, RabbitmqSettings { addresses, ..settings })
}

// ---- the source: where it goes on

#[tokio::test]
async fn a_stream_made_anew_stops_the_source_until_it_is_named_anew() {
    let streams = Streams::new(SHARDS).await;
    streams.fill(2, "a", 0..5).await;
    let from = behind(&fetch(&mut *open(&streams.transport(), 2, &Positions::new()).await, 5).await[4]);
    streams.delete(2).await;
    streams.create(2).await;
    // Longer than before: only the record itself tells.
    streams.fill(2, "b", 0..8).await;
    let lost = error(&mut *open(&streams.transport(), 2, &from).await).await;
    let anew = format!("\"{}#2\"", streams.name);
    assert_lost(&lost, &["offset 4 is another one", "made anew", &anew, "rabbitmq.streams"]);
    // The second way on.
    let settings = RabbitmqSettings { streams: vec![format!("{}#2", streams.name)], ..streams.settings() };
    let all = fetch(&mut *open(&transport(&settings), 2, &from).await, 8).await;
    assert_eq!(ids(&all), named("b", 0..8));
    assert_eq!(&*all[0].origin, format!("{}#2/2", streams.name));
}

#[tokio::test]
async fn a_shorter_stream_made_anew_is_lost_at_once_and_while_it_is_read() {
    let streams = Streams::new(SHARDS).await;
    let (before, mut shorter) = (streams.transport(), Vec::new());
    for shard in 0..3 {
        streams.fill(shard, "a", 0..5).await;
        let mut source = open(&before, shard, &Positions::new()).await;
        let from = behind(&fetch(&mut *source, 5).await[4]);
        shorter.push((source, from));
    }
    for shard in 0..3 {
        streams.delete(shard).await;
        streams.create(shard).await;
    }
    streams.fill(0, "b", 0..2).await;
    streams.fill(1, "b", 0..2).await;
    // While it is read; at once; while it is read, and empty.
    shorter[1].0 = open(&streams.transport(), 1, &shorter[1].1).await;
    let [(first, _), (second, _), (third, _)] = &mut shorter[..] else { panic!("three of them") };
    let all =
        tokio::join!(error_that_lasts(&mut **first), error_that_lasts(&mut **second), error_that_lasts(&mut **third),);
    for lost in [all.0, all.1, all.2] {
        assert_lost(&lost, &["offset 4 was taken", "made anew", "#2"]);
    }
}

#[tokio::test]
async fn retention_may_take_what_was_taken_and_nothing_else() {
    let (segment, most) = (AMQPValue::LongLongInt(50_000), AMQPValue::LongLongInt(100_000));
    let bounds = [("x-stream-max-segment-size-bytes", segment), ("x-max-length-bytes", most)];
    let streams = Streams::with(3, ExchangeKind::Direct, &bounds).await;
    let transport = streams.transport();
    let mut source = open(&transport, 2, &Positions::new()).await;
    let mut all = Vec::new();
    loop {
        let at = u32::try_from(all.len()).unwrap();
        assert!(at < 2_000, "retention removes something");
        // A segment is looked at when the next is begun, and begun between two batches.
        streams.fill_with(2, "a", at..at + 10, &[b'x'; 2_000]).await;
        all.extend(fetch(&mut *source, 10).await);
        if streams.first_offset(2).await >= 10 {
            break;
        }
    }
    loop {
        let first = streams.first_offset(2).await;
        let rest = fetch(&mut *open(&transport, 2, &behind(&all[first - 1])).await, all.len() - first).await;
        let lost = error(&mut *open(&transport, 2, &behind(&all[first - 4])).await).await;
        // It may have removed more in the meantime.
        if streams.first_offset(2).await == first {
            assert_eq!(ids(&rest), ids(&all[first..]), "all that was taken is gone, and nothing else");
            assert_lost(&lost, &[&format!("offsets {} to {}", first - 3, first - 1), "retention", "#2"]);
            break;
        }
    }
    streams.fill(2, "b", 0..1).await;
    assert_eq!(ids(&fetch(&mut *source, 1).await), ["b-0"], "whoever reads on notices nothing");
}

#[tokio::test]
async fn positions_of_another_kind_are_gone_on_from_unchecked() {
    let streams = Streams::new(SHARDS).await;
    streams.fill(2, "a", 0..4).await;
    let from = Positions::from([(Arc::from(format!("{}/2", streams.name)), Position::new(1, 0))]);
    let all = fetch(&mut *open(&streams.transport(), 2, &from).await, 2).await;
    assert_eq!(ids(&all), named("a", 2..4));
}

#[tokio::test]
async fn a_setting_changes_no_records_fingerprint() {
    let streams = Streams::new(SHARDS).await;
    streams.fill(2, "a", 0..3).await;
    let all = fetch(&mut *open(&streams.transport(), 2, &Positions::new()).await, 3).await;
    let settings = RabbitmqSettings { key_header: "other".to_owned(), ..streams.settings() };
    let rest = fetch(&mut *open(&transport(&settings), 2, &behind(&all[0])).await, 2).await;
    assert_eq!(ids(&rest), named("a", 1..3));
    let Content::Unrouted(message) = &rest[0].content else { panic!("{rest:?}") };
    assert_eq!(message.key(), "", "and the setting counts");
}

#[tokio::test]
async fn an_opening_takes_nothing_from_another() {
    let streams = Streams::new(SHARDS).await;
    streams.fill(2, "a", 0..10).await;
    let transport = streams.transport();
    let mut old = open(&transport, 2, &Positions::new()).await;
    let all = fetch(&mut *old, 10).await;
    let mut new = open(&transport, 2, &behind(&all[3])).await;
    assert_eq!(ids(&fetch(&mut *new, 6).await), named("a", 4..10));
    streams.fill(2, "b", 0..2).await;
    assert_eq!(ids(&fetch(&mut *new, 2).await), named("b", 0..2));
    // Dropped late, and in the middle of a fetch.
    timeout(Duration::from_millis(1), old.fetch(0)).await.unwrap_err();
    drop(old);
    streams.fill(2, "c", 0..2).await;
    assert_eq!(ids(&fetch(&mut *new, 2).await), named("c", 0..2));
    assert!(is_dry(&mut *new).await);
}

// ---- the source: what it holds, and what it waits for

#[tokio::test]
async fn a_shard_that_does_not_fetch_costs_bounded_memory_and_holds_up_nobody() {
    let streams = Streams::new(2).await;
    // The broker sends whole chunks, each of what was written at once: these have 10 messages at most.
    for at in (0..1_000).step_by(10) {
        streams.fill_with(0, "p0", at..at + 10, &[b'x'; 10_000]).await;
        streams.fill_with(1, "p1", at..at + 10, &[b'x'; 10_000]).await;
    }
    let settings = RabbitmqSettings { prefetch: 50, ..streams.settings() };
    // As many shards as streams: to ask for more of them takes its time.
    let transport = RabbitmqTransport::new(&settings, 2, &Metrics::new()).unwrap();
    let mut slow = open(&transport, 0, &Positions::new()).await;
    let mut quick = open(&transport, 1, &Positions::new()).await;
    let mut all = timeout(BOUND, slow.fetch(1)).await.expect("it is opened").unwrap();
    assert_eq!(fetch(&mut *quick, 1_000).await.len(), 1_000);
    let ready = timeout(BOUND, slow.fetch(usize::MAX)).await.expect("some are ready").unwrap();
    assert!(ready.len() < 60, "{} messages were kept", ready.len());
    all.extend(ready);
    // Asked for bit by bit, each record once and in order.
    while all.len() < 1_000 {
        all.extend(timeout(BOUND, slow.fetch(7)).await.expect("it goes on").unwrap());
    }
    assert_eq!(ids(&all), named("p0", 0..1_000));
}

#[tokio::test]
async fn a_stream_that_is_not_there_is_said_and_waited_for() {
    let streams = Streams::new(1).await;
    streams.delete(0).await;
    let transport = RabbitmqTransport::new(&streams.settings(), 1, &Metrics::new()).unwrap();
    let mut source = open(&transport, 0, &Positions::new()).await;
    let missing = error(&mut *source).await;
    assert!(matches!(missing, SourceError::Unavailable { .. }), "{missing}");
    assert!(missing.to_string().contains(&streams.stream(0)), "{missing}");
    streams.create(0).await;
    streams.fill(0, "a", 0..3).await;
    assert_eq!(ids(&patient(&mut *source, 3).await), named("a", 0..3));
}

/// Fetches until at least `count` deliveries have come; that it cannot be read may be told in between.
async fn patient(source: &mut dyn Source, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        match next(source, 50, &format!("{count} deliveries"), &all).await {
            Ok(more) => all.extend(more),
            Err(SourceError::Unavailable { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    all
}

#[tokio::test]
async fn a_line_that_breaks_is_gone_on_from_without_gap_or_repeat() {
    let streams = Streams::new(SHARDS).await;
    let settings = RabbitmqSettings { heartbeat: Duration::from_secs(1), ..streams.settings() };
    let (proxy, settings) = proxied(settings).await;
    let transport = transport(&settings);
    let mut source = open(&transport, 2, &Positions::new()).await;
    let mut seen = 0;
    for (round, mode) in [Mode::Cut, Mode::Freeze, Mode::Cut].into_iter().enumerate() {
        let tag = format!("r{round}");
        streams.fill(2, &tag, 0..300).await;
        let mut all = patient(&mut *source, 100).await;
        proxy.set(mode);
        streams.fill(2, &tag, 300..400).await;
        // What was read ahead may still come; then it is told, or noticed in silence.
        while let Ok(Ok(more)) = timeout(Duration::from_secs(4), source.fetch(50)).await {
            all.extend(more);
        }
        proxy.set(Mode::Pass);
        all.extend(patient(&mut *source, 400_usize.saturating_sub(all.len())).await);
        assert_eq!(ids(&all), named(&tag, 0..400), "after {mode:?}");
        let offsets: Vec<u64> = all.iter().map(|delivery| delivery.position.no).collect();
        assert_eq!(offsets, (seen..seen + 400).collect::<Vec<_>>());
        seen += 400;
    }
    assert!(is_dry(&mut *source).await);
}

// ---- the source: what a message is

#[tokio::test]
async fn foreign_messages_are_read_as_the_documents_say() {
    let streams = Streams::new(1).await;
    let plain = |headers: &[(&str, AMQPValue)]| Written { stream: 0, payload: b"{}", properties: headed(headers) };
    let named = plain(&[
        ("key", text("acct-1")),
        ("b3", text("1")),
        ("number", AMQPValue::LongInt(7)),
        ("schema", bytes(b"\0\xff")),
        ("x-tenant", text("t")),
        ("x-death", AMQPValue::FieldArray(FieldArray::default())),
        ("cloudEvents_sagaid", text("s-1")),
        ("traceparent", text("00-1-2-01")),
    ]);
    let properties = named.properties.clone().with_message_id("m-1".into()).with_type("posted".into());
    let properties = properties.with_timestamp(1_234).with_content_type("application/avro".into());
    let of_event = plain(&[
        ("cloudEvents:id", text("e-1")),
        ("cloudEvents:type", text("opened")),
        ("cloudEvents:source", text("bank")),
        ("cloudEvents:time", text("1970-01-01T00:00:01.5Z")),
        ("cloudEvents:partitionkey", text("acct-2")),
        ("key", text("acct-1")),
    ]);
    let media = of_event.properties.clone().with_message_id("m-2".into()).with_content_type("application/json".into());
    let all = [
        Written { properties, ..named },
        Written { payload: b"{}", ..Written::default() },
        Written { properties: media, ..of_event },
        plain(&[("cloudEvents_id", bytes(b"\xff\xfe"))]),
        plain(&[("cloudEvents_id", text(&"x".repeat(300)))]),
        plain(&[("key", text(&"k".repeat(257)))]),
        plain(&[("cloudEvents_id", text("last")), ("cloudEvents_type", text("posted"))]),
    ];
    streams.write(&all).await;
    let transport = RabbitmqTransport::new(&streams.settings(), 1, &Metrics::new()).unwrap();
    let all = fetch(&mut *open(&transport, 0, &Positions::new()).await, 7).await;
    let read = |at: usize| match &all[at].content {
        Content::Unrouted(message) => message.clone(),
        other => panic!("{other:?}"),
    };
    let named = read(0);
    assert_eq!([named.id(), named.key(), named.kind()], ["m-1", "acct-1", "posted"]);
    assert_eq!((named.source(), named.time()), (format!("rabbitmq:{}", streams.name).as_str(), 1_234_000));
    let headers: BTreeSet<_> = named.headers().collect();
    let kept = [("b3", "1"), ("content-type", "application/avro"), ("sagaid", "s-1"), ("traceparent", "00-1-2-01")];
    assert_eq!(headers, kept.into_iter().chain([("x-tenant", "t")]).collect());
    // Made of its place.
    let bare = read(1);
    assert_eq!([bare.id(), bare.key(), bare.kind()], [&*format!("{}/0/1", streams.name), "", &*streams.name]);
    assert_eq!((bare.headers().count(), bare.payload()), (0, &b"{}"[..]));
    let event = read(2);
    assert_eq!([event.id(), event.key(), event.kind(), event.source()], ["e-1", "acct-2", "opened", "bank"]);
    assert_eq!((event.time(), event.headers().count()), (1_500, 0));
    for (at, part) in [(3, "the id is not valid UTF-8"), (4, "the id has 300 bytes"), (5, "the key has 257 bytes")] {
        let Content::Unreadable { message, reason } = &all[at].content else { panic!("{:?}", all[at]) };
        assert!(reason.contains(part), "{reason}");
        assert_eq!((message.id(), message.payload()), (format!("{}/0/{at}", streams.name).as_str(), &b"{}"[..]));
    }
    assert_eq!(read(6).id(), "last");
}

/// All that a message says, its headers in any order: a table of AMQP has none.
fn whole(message: &Message) -> String {
    let headers: BTreeSet<_> = message.headers().collect();
    let names = [message.id(), message.key(), message.kind(), message.source()];
    format!("{names:?} {} {headers:?} {:?}", message.time(), message.payload())
}

#[tokio::test]
async fn an_event_comes_back_as_the_message_it_was() {
    let streams = Streams::new(SHARDS).await;
    let sink = RabbitmqSink::new(&streams.settings(), SHARDS).unwrap();
    let trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let headers = [trace, ("tracestate", "a=1"), ("cause", "m-é"), ("x-tenant", "t"), ("content-type", "text/plain")];
    let draft = Draft {
        id: "e-1",
        key: "acct-1",
        kind: "posted",
        source: "balances",
        time: 1_700_000_000_123,
        headers: &headers,
        payload: b"\0\xff{\"n\":1}",
    };
    let (long, empty) = ("x".repeat(256), b"");
    let sent = [
        draft.build().unwrap(),
        // A property of AMQP has a byte less than an id may have.
        Draft { id: &long, kind: &long, key: &long, headers: &[], payload: empty, ..draft }.build().unwrap(),
        Draft { id: "keyless", key: "", headers: &[], ..draft }.build_unchecked().unwrap(),
    ];
    let mut end = sink.open(0).await.unwrap();
    let events = (1..).zip(&sent).map(|(seq, sent)| (seq, streams.name.as_str().into(), sent.clone()));
    let events: Vec<_> = events.map(|(seq, topic, message)| Outgoing { seq, topic, message }).collect();
    let answers = publish(&mut *end, &events).await;
    assert!(answers.iter().all(|answer| matches!(answer, SinkAnswer::Confirmed(_))), "{answers:?}");
    let transport = streams.transport();
    for sent in &sent {
        // A key's shard is where it is handled; an event without one is where its id says.
        let shard = shard_of(if sent.key().is_empty() { sent.id() } else { sent.key() }, SHARDS);
        let mut source = open(&transport, shard, &Positions::new()).await;
        let mut found = false;
        while !found {
            let all = timeout(BOUND, source.fetch(9)).await.expect("it comes back").unwrap();
            found = all.iter().any(|delivery| match &delivery.content {
                Content::Unrouted(read) => read.id() == sent.id() && whole(read) == whole(sent),
                other => panic!("{other:?}"),
            });
        }
    }
}

// ---- the sink

fn refused(answers: &[SinkAnswer]) -> BTreeSet<u64> {
    let refused = |answer: &SinkAnswer| match answer {
        SinkAnswer::Refused(seq, reason) => {
            assert!(reason.contains("NO_ROUTE"), "{reason}");
            Some(*seq)
        }
        SinkAnswer::Confirmed(_) => None,
    };
    answers.iter().filter_map(refused).collect()
}

/// Sends with at most `window` events on their way; returns the answers.
async fn in_windows(end: &mut dyn Sink, events: &[Outgoing], window: usize) -> Vec<SinkAnswer> {
    let (mut sent, mut answers) = (0, Vec::new());
    while answers.len() < events.len() {
        let most = events.len().min(answers.len() + window);
        sent += end.send(&events[sent..most]).unwrap();
        answers.extend(timeout(BOUND, end.answers()).await.expect("answers must come").unwrap());
    }
    answers
}

/// A confirm alone does not tell: the client may hand a returned message to the confirm of another, and with a queue
/// that is quick it does so every few hundred events.
#[tokio::test]
async fn unroutable_events_are_refused_and_exactly_those() {
    let streams = Streams::new(1).await;
    let quick = format!("{}.beside", streams.name);
    streams.wire.queue(&quick, FieldTable::default()).await;
    streams.wire.bind(&quick, &streams.name, "quick").await;
    let sink = RabbitmqSink::new(&streams.settings(), SHARDS).unwrap();
    let mut ends = Vec::new();
    for shard in 0..3 {
        ends.push(sink.open(shard).await.unwrap());
    }
    let [first, second, third] = &mut ends[..] else { panic!("three of them") };
    let (mut seq, mut arrived) = (0, [BTreeSet::new(), BTreeSet::new()]);
    for (to, count, every, window) in [
        ("0", 200, 10, 200),
        ("0", 200, 10, 7),
        ("0", 200, 10, 64),
        ("0", 200, 10, 1),
        ("quick", 200, 10, 200),
        ("quick", 3_000, 2, 3_000),
        ("quick", 3_000, 2, 3_000),
    ] {
        let mut events = || -> Vec<Outgoing> {
            let first = seq;
            seq += count;
            let way = |seq| if seq % every == every - 1 { "nobody" } else { to };
            let topic = |seq| format!("{}:{}", streams.name, way(seq));
            (first..seq).map(|seq| event(&topic(seq), seq, &format!("k-{}", seq % 7), b"{}")).collect()
        };
        let events = [events(), events(), events()];
        // Three channels of one connection, each with returns of its own.
        let answers = tokio::join!(
            in_windows(&mut **first, &events[0], window),
            in_windows(&mut **second, &events[1], window),
            in_windows(&mut **third, &events[2], window),
        );
        for (events, answers) in events.iter().zip([answers.0, answers.1, answers.2]) {
            assert_eq!(answers.len(), events.len(), "each is answered once");
            let (lost, taken): (Vec<_>, Vec<_>) = events.iter().partition(|event| event.topic.ends_with(":nobody"));
            assert_eq!(refused(&answers), lost.iter().map(|event| event.seq).collect(), "{window} at once to {to}");
            assert_eq!(lost.len() as u64, count / every);
            arrived[usize::from(to == "quick")].extend(taken.iter().map(|event| event.message.id().to_owned()));
        }
    }
    let there: Vec<String> = streams.read(0).await.iter().map(|delivery| said(delivery).1).collect();
    assert_eq!((there.len(), there.into_iter().collect()), (arrived[0].len(), arrived[0].clone()));
    assert_eq!(streams.wire.count(&quick).await, arrived[1].len());
}

#[tokio::test]
async fn a_line_that_breaks_amid_confirms_loses_and_swaps_nothing() {
    for mode in [Mode::Cut, Mode::Mute] {
        let streams = Streams::with(1, ExchangeKind::Fanout, &[]).await;
        let settings = RabbitmqSettings { answer_timeout: Duration::from_secs(2), ..streams.settings() };
        let (proxy, settings) = proxied(settings).await;
        let sink = RabbitmqSink::new(&settings, SHARDS).unwrap();
        let keyed = |seq| event(&streams.name, seq, &format!("k-{}", seq % 37), b"{\"n\":1}");
        let events: Vec<Outgoing> = (1..6_001).map(keyed).collect();
        let mut end = sink.open(0).await.unwrap();
        let (mut sent, mut answered) = (0, BTreeSet::new());
        let broken = loop {
            match end.send(&events[sent..]) {
                Ok(more) => sent += more,
                Err(error) => break error,
            }
            match timeout(BOUND, end.answers()).await.expect("an end must not hang") {
                Ok(more) => answered.extend(more.into_iter().map(|answer| match answer {
                    SinkAnswer::Confirmed(seq) => seq,
                    SinkAnswer::Refused(..) => panic!("{answer:?}"),
                })),
                Err(error) => break error,
            }
            proxy.set(mode);
        };
        assert!(matches!(broken, SinkError::Broken { .. }), "{broken}");
        assert!(matches!(end.send(&events[..1]), Err(SinkError::Broken { .. })), "it stays broken");
        assert!(!answered.is_empty() && answered.len() < events.len(), "{} of them, then {mode:?}", answered.len());
        drop(end);
        proxy.set(Mode::Pass);
        // From the watermark.
        let watermark = events.iter().position(|event| !answered.contains(&event.seq)).unwrap();
        let answers = publish(&mut *sink.open(0).await.unwrap(), &events[watermark..]).await;
        assert!(answers.iter().all(|answer| matches!(answer, SinkAnswer::Confirmed(_))));
        let arrived: Vec<_> = streams.read(0).await.iter().map(said).collect();
        assert!(arrived.len() >= events.len());
        assert_eq!(by_key(arrived), expected(&events), "after {mode:?}");
    }
}

// ---- the broker, and the way to it

/// The error of a source that cannot be read.
async fn trouble(settings: &RabbitmqSettings) -> String {
    let transport = transport(settings);
    let error = error(&mut *open(&transport, 0, &Positions::new()).await).await;
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_broker_that_lets_nobody_in_is_said_without_the_password() {
    let streams = Streams::new(1).await;
    let password = RabbitmqSettings { password: "hunter2".to_owned(), ..streams.settings() };
    let vhost = RabbitmqSettings { vhost: "perkey_test_nowhere".to_owned(), ..streams.settings() };
    let away = RabbitmqSettings { addresses: "127.0.0.1:1".to_owned(), ..password.clone() };
    for (settings, part) in [(password, "ACCESS_REFUSED"), (vhost, "perkey_test_nowhere"), (away, "127.0.0.1:1")] {
        let said = trouble(&settings).await;
        assert!(said.contains(part) && said.contains(&settings.addresses) && !said.contains("hunter2"), "{said}");
    }
    // The next node is tried.
    streams.fill(0, "a", 0..1).await;
    let addresses = format!("127.0.0.1:1,{}", servers::rabbitmq());
    let transport = transport(&RabbitmqSettings { addresses, ..streams.settings() });
    assert_eq!(ids(&fetch(&mut *open(&transport, 0, &Positions::new()).await, 1).await), ["a-0"]);
}

#[tokio::test]
async fn transports_that_cannot_be_made_say_why_and_tell_no_secret() {
    let settings = RabbitmqSettings {
        addresses: "127.0.0.1:1".to_owned(),
        tls: true,
        ca_file: "/no/such/file.pem".to_owned(),
        password: "hunter2".to_owned(),
        ..RabbitmqSettings::default()
    };
    let Err(source) = RabbitmqTransport::new(&settings, SHARDS, &Metrics::new()) else { panic!("it must be refused") };
    let Err(sink) = RabbitmqSink::new(&settings, SHARDS) else { panic!("it must be refused") };
    for said in [source, sink].map(|failure| failure.to_string()) {
        assert!(said.contains("/no/such/file.pem") && !said.contains("hunter2"), "{said}");
    }
}

/// Speaks TLS before the broker, with a certificate that vouches for itself; returns its address and the certificate.
async fn behind_tls(tasks: &mut JoinSet<()>) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = config.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                // Who does not trust it goes.
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let mut broker = TcpStream::connect(servers::rabbitmq()).await.unwrap();
                tokio::io::copy_bidirectional(&mut client, &mut broker).await.ok();
            });
        }
    });
    (address, made.cert.pem())
}

#[tokio::test]
async fn tls_is_spoken_with_whom_the_file_vouches_for() {
    let streams = Streams::new(1).await;
    let mut tasks = JoinSet::new();
    let ((addresses, cert), (_, other)) = (behind_tls(&mut tasks).await, behind_tls(&mut tasks).await);
    let folder = tempfile::tempdir().unwrap();
    let with = |name: &str, pem: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, pem).unwrap();
        let (ca_file, addresses) = (file.display().to_string(), addresses.clone());
        RabbitmqSettings { addresses, tls: true, ca_file, ..streams.settings() }
    };
    let trusted = with("trusted.pem", &cert);
    let sink = RabbitmqSink::new(&trusted, 1).unwrap();
    let answers = publish(&mut *sink.open(0).await.unwrap(), &[event(&streams.name, 1, "k", b"{}")]).await;
    assert_eq!(answers, [SinkAnswer::Confirmed(1)]);
    let transport = RabbitmqTransport::new(&trusted, 1, &Metrics::new()).unwrap();
    assert_eq!(ids(&fetch(&mut *open(&transport, 0, &Positions::new()).await, 1).await), ["e-1"]);
    let said = trouble(&with("other.pem", &other)).await.to_lowercase();
    assert!(said.contains("certificate"), "{said}");
}
