//! The promises of every store about calls: accepted once with their messages, answered with the commit of their
//! effect.
//! In: a place with a prepared store. Out: the same behaviour everywhere.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use perkey::Draft;
use perkey::unstable::handler::{CALL, CallId, call_of};
use perkey::unstable::message::{Positions, shard_of};
use perkey::unstable::store::calls::{CallEnd, CallOutcome, CallRecord, NewCall, Reply};
use perkey::unstable::store::{CommitOutcome, Part, Store};
use perkey::unstable::transport::embedded;

use crate::fixture::{Place, SHARDS, commit, committed, setup};
use crate::store_contract::contract;

contract! {
    memory: crate::fixture::MemoryPlace::new();
    sqlite: crate::fixture::SqlitePlace::new();
    postgres: crate::postgres_place::PostgresPlace::new();
    => [
        a_call_is_accepted_once_with_its_message,
        of_many_at_once_one_is_accepted,
        an_outcome_comes_with_its_commit_and_a_fenced_one_brings_none,
        an_expired_record_is_replaced_and_one_that_runs_is_not,
        records_are_counted_and_swept_when_their_time_is_over,
    ]
}

const LANE: &str = "call-0";

fn call(no: u8, key: &str, at: u64) -> NewCall {
    let id = CallId([no; 16]);
    let call_id = id.to_string();
    let message_id = format!("m-{no}-{at}-{key}");
    let headers = [("perkeycall", call_id.as_str())];
    let draft = Draft {
        id: &message_id,
        key,
        kind: CALL,
        headers: &headers,
        payload: b"{\"a\":\"\\u0000\"}",
        ..Draft::default()
    };
    NewCall {
        id,
        fingerprint: [no; 32],
        tenant: format!("t-{}", no % 2),
        service: "balances",
        message: draft.build().unwrap(),
        at,
        expires_at: at + 100,
    }
}

fn running(call: &NewCall) -> CallRecord {
    CallRecord {
        id: call.id,
        fingerprint: call.fingerprint,
        message_id: call.message.id().to_owned(),
        accepted_at: call.at,
        expires_at: call.expires_at,
        outcome: None,
    }
}

async fn accept(store: &Arc<dyn Store>, calls: &[NewCall]) -> Vec<Option<CallRecord>> {
    store.calls().accept(LANE.to_owned(), calls.to_vec()).await.unwrap()
}

async fn record(store: &Arc<dyn Store>, id: CallId) -> Option<CallRecord> {
    store.calls().records(vec![id]).await.unwrap().remove(0)
}

/// Ids of the messages in the log, in the order of their shards and numbers.
async fn logged(store: &Arc<dyn Store>) -> Vec<String> {
    let mut ids = Vec::new();
    for shard in 0..SHARDS {
        for row in store.read_log(shard, Positions::new(), 1_000).await.unwrap() {
            for (service, message) in embedded::decode(row.messages).unwrap() {
                assert_eq!((&*service, shard_of(message.key(), SHARDS)), ("balances", shard));
                assert!(call_of(&message).is_some());
                ids.push(message.id().to_owned());
            }
        }
    }
    ids.sort();
    ids
}

async fn a_call_is_accepted_once_with_its_message(place: Box<impl Place>) {
    let store = place.store();
    store.prepare(setup()).await.unwrap();
    let (one, two, again) = (call(1, "a", 10), call(2, "b", 10), call(1, "a", 20));
    assert_eq!(accept(&store, &[one.clone(), two.clone(), again.clone()]).await, [None, None, Some(running(&one))]);
    assert_eq!(accept(&store, &[again, call(3, "a", 20)]).await, [Some(running(&one)), None]);
    assert_eq!(logged(&store).await, ["m-1-10-a", "m-2-10-b", "m-3-20-a"]);
    assert_eq!(record(&store, two.id).await, Some(running(&two)));
    assert_eq!(record(&store, CallId([9; 16])).await, None);
    assert_eq!(store.queries().unread_imports().await.unwrap(), 3, "they count as unread");
}

async fn of_many_at_once_one_is_accepted(place: Box<impl Place>) {
    let store = place.store();
    store.prepare(setup()).await.unwrap();
    // The same five ids from each of eight, in other orders.
    let batches = (0..8_u64).map(|by| {
        let mut calls: Vec<_> = (1..=5).map(|no| call(no, &format!("k-{by}"), 10)).collect();
        calls.rotate_left(usize::try_from(by).unwrap() % 5);
        calls
    });
    let batches: Vec<_> = batches.collect();
    let answers = join_all(batches.iter().map(|calls| accept(&store, calls))).await;
    let new = answers.iter().flatten().filter(|answer| answer.is_none()).count();
    assert_eq!((new, logged(&store).await.len()), (5, 5));
}

fn done(call: CallId, body: &'static str) -> Reply {
    let outcome = CallOutcome { end: CallEnd::Done, code: String::new(), body: Bytes::from_static(body.as_bytes()) };
    Reply { call, outcome }
}

async fn an_outcome_comes_with_its_commit_and_a_fenced_one_brings_none(mut place: Box<impl Place>) {
    let store = place.store();
    store.prepare(setup()).await.unwrap();
    let (one, two) = (call(1, "a", 10), call(2, "b", 10));
    accept(&store, &[one.clone(), two.clone()]).await;
    let stale = store.take(1, "me").await.unwrap().epoch;
    let epoch = store.take(1, "you").await.unwrap().epoch;
    let refusal = CallOutcome { end: CallEnd::Refused, code: "no\u{0}".to_owned(), body: Bytes::from_static(b"why") };
    let replies = vec![done(one.id, "{\"n\": 1 }"), Reply { call: two.id, outcome: refusal.clone() }];
    let part = Part { replies, ..Part::default() };
    let under = |epoch| perkey::unstable::store::Commit { parts: vec![part.clone()], ..commit(1, epoch, 1) };
    assert!(matches!(store.commit(&under(stale)).await, CommitOutcome::Fenced));
    assert_eq!(record(&store, one.id).await.unwrap().outcome, None, "a stale epoch answers nobody");
    committed(&store, &under(epoch)).await;
    drop(store);
    place.restart().await;
    let store = place.store();
    let bytes = record(&store, one.id).await.unwrap().outcome.unwrap();
    assert_eq!((bytes.end, &bytes.body[..]), (CallEnd::Done, &b"{\"n\": 1 }"[..]), "byte for byte");
    assert_eq!(record(&store, two.id).await.unwrap(), CallRecord { outcome: Some(refusal), ..running(&two) });
}

async fn an_expired_record_is_replaced_and_one_that_runs_is_not(place: Box<impl Place>) {
    let store = place.store();
    store.prepare(setup()).await.unwrap();
    let (ended, runs) = (call(1, "a", 10), call(2, "b", 10));
    accept(&store, &[ended.clone(), runs.clone()]).await;
    let epoch = store.take(1, "me").await.unwrap().epoch;
    let part = Part { replies: vec![done(ended.id, "1")], ..Part::default() };
    committed(&store, &perkey::unstable::store::Commit { parts: vec![part], ..commit(1, epoch, 1) }).await;
    let early = accept(&store, &[call(1, "a", 109)]).await.remove(0).unwrap();
    assert_eq!(early.outcome.unwrap().end, CallEnd::Done, "not before its time");
    let late = [call(1, "a", 110), call(2, "b", 5_000)];
    assert_eq!(accept(&store, &late).await, [None, Some(running(&runs))]);
    assert_eq!(record(&store, ended.id).await, Some(running(&late[0])));
    let racers: Vec<_> = (0..16).map(|by| call(1, &format!("r-{by}"), 110)).collect();
    let again = join_all(racers.iter().map(|racer| accept(&store, std::slice::from_ref(racer)))).await;
    assert!(again.iter().all(|answer| answer[0].is_some()), "it is taken again already");
}

async fn records_are_counted_and_swept_when_their_time_is_over(place: Box<impl Place>) {
    let store = place.store();
    store.prepare(setup()).await.unwrap();
    let calls: Vec<_> = (1..=5).map(|no| call(no, "a", 10)).collect();
    accept(&store, &calls).await;
    let epoch = store.take(1, "me").await.unwrap().epoch;
    let replies = (1..=4).map(|no| done(CallId([no; 16]), "1")).collect();
    let part = Part { replies, ..Part::default() };
    committed(&store, &perkey::unstable::store::Commit { parts: vec![part], ..commit(1, epoch, 1) }).await;
    let counts = async |at| {
        let mut counts = store.calls().counts(at).await.unwrap();
        counts.sort();
        counts.into_iter().map(|count| (count.tenant, count.until, count.records)).collect::<Vec<_>>()
    };
    // Together, by the second: those of another lane, those that are known, and those that come again.
    let count = |tenant: &str, until, records| (tenant.to_owned(), until, records);
    assert_eq!(counts(999).await, [count("t-0", 1_000, 2), count("t-1", 1_000, 3)]);
    assert_eq!(counts(1_000).await, [], "what has expired does not count");
    let known = store.calls().accept("call-1".to_owned(), calls.clone()).await.unwrap();
    assert!(known.iter().all(Option::is_some), "{known:?}");
    store.calls().accept("call-1".to_owned(), vec![call(7, "a", 10), call(1, "a", 2_500)]).await.unwrap();
    let all = [count("t-0", 1_000, 2), count("t-1", 1_000, 4), count("t-1", 3_000, 1)];
    assert_eq!(counts(999).await, all);
    assert_eq!(store.calls().sweep(109, 10).await.unwrap(), 0, "not before their time");
    assert_eq!(counts(0).await, all);
    assert_eq!(store.calls().sweep(110, 2).await.unwrap(), 2, "bounded");
    assert_eq!(store.calls().sweep(1_000, 3).await.unwrap(), 1, "those that run stay");
    assert_eq!(counts(0).await, all[2..]);
}
