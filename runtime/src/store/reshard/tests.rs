//! Dealing out: what goes where, in which order, and what is refused.
//! In: shards and rows. Out: each id where its key is, numbers that only rise.

use super::*;
use crate::message::{Draft, Position};

const HASH_KEY: [u8; 32] = [7; 32];

fn message(id: &str, key: &str) -> Message {
    Draft { id, key, kind: "k", source: "s", ..Draft::default() }.build().unwrap()
}

fn taken(id: &str, key: &str) -> TakenId {
    TakenId::of(&message(id, key), 1, &HASH_KEY)
}

/// Another print for each key.
fn print(key: &str) -> [u8; 8] {
    let mut print = [9; 8];
    print[..key.len()].copy_from_slice(key.as_bytes());
    print
}

fn old(shard: ShardNo, commit_no: u64, outbox_seq: u64) -> Old {
    Old { shard, epoch: 5 + u64::from(shard), commit_no, outbox_seq, code: Code::numbered(1), ..Old::default() }
}

#[test]
fn every_id_goes_where_its_key_is_and_numbers_rise_from_the_highest() {
    let olds = [old(0, 40, 9), old(1, 17, 30)];
    let mut plan = Plan::new(&olds, 5);
    let keys: Vec<String> = (0..50).map(|n| format!("k{n}")).collect();
    let mut seen = BTreeMap::new();
    let mut numbers = [40; 5];
    for (no, keys) in (1..).zip(keys.chunks(10)) {
        let ids: Vec<u8> = keys.iter().flat_map(|key| taken("m", key).0).collect();
        // A row without prints, as an older program left it, stays one.
        let prints: Vec<u8> = keys.iter().filter(|_| no > 1).flat_map(|key| print(key)).collect();
        let row = ReshardRow { shard: 0, no, epoch: 5, at: 100 * no, ids, prints, ..ReshardRow::default() };
        for dealt in plan.deal(&row).unwrap() {
            assert!(dealt.no == numbers[dealt.shard as usize] + 1 && dealt.at == 100 * no, "{dealt:?}");
            numbers[dealt.shard as usize] = dealt.no;
            let taken = layout::taken(&dealt.ids, &dealt.prints).unwrap();
            seen.extend(taken.into_iter().map(|taken| (taken.id, (dealt.shard, taken.print.0))));
        }
    }
    assert_eq!(seen.len(), 50);
    for (at, key) in keys.iter().enumerate() {
        assert_eq!(seen[&taken("m", key)], (shard_of(key, 5), if at < 10 { [0; 8] } else { print(key) }), "{key}");
    }
    let shards = plan.shards(&olds);
    assert!(shards.iter().all(|row| row.epoch == 7 && row.outbox_seq == 30 && row.commit_no >= 40));
}

#[test]
fn what_has_no_key_stays_with_what_becomes_of_its_shard() {
    let plan = Plan::new(&[old(0, 0, 0)], 2);
    let keyless = Draft { id: "m", kind: "k", source: "s", ..Draft::default() }.build_unchecked().unwrap();
    let id = TakenId::of(&keyless, 0, &HASH_KEY);
    assert_eq!([plan.shard_of_id(&id, 0), plan.shard_of_id(&id, 3)], [0, 1]);
}

#[test]
fn waiting_rows_are_numbered_anew_in_their_order() {
    let mut plan = Plan::new(&[old(0, 0, 0), old(1, 0, 0)], 1);
    let places: Vec<_> = (0..4).map(|n| plan.place(&taken("m", &format!("k{n}")), n % 2)).collect();
    assert_eq!(places, [(0, 1), (0, 2), (0, 3), (0, 4)]);
    assert_eq!(plan.shards(&[old(0, 0, 0)])[0].last_seq, 4);
}

#[test]
fn every_new_shard_knows_where_each_origin_of_a_source_stands() {
    let (mut one, mut two) = (old(0, 3, 2), old(1, 4, 2));
    let at = |origins: &[(&str, u64)]| -> Positions {
        origins.iter().map(|(origin, no)| (Arc::from(*origin), Position::new(*no, 0))).collect()
    };
    one.positions = [("kafka".into(), at(&[("t/0", 10), ("t/1", 3)])), (log::NAME.into(), at(&[("0", 3)]))].into();
    two.positions = [("kafka".into(), at(&[("t/1", 20)]))].into();
    one.watermarks = [("kafka".into(), 2)].into();
    two.counters = [("taken".to_owned(), 4)].into();
    one.counters = [("taken".to_owned(), 3)].into();
    let olds = [one, two];
    let shards = Plan::new(&olds, 3).shards(&olds);
    for row in &shards {
        assert_eq!(row.positions[&Arc::from("kafka")], at(&[("t/0", 10), ("t/1", 20)]));
        assert_eq!(row.positions[&Arc::from(log::NAME)], Positions::new(), "its rows are gone");
        assert_eq!(row.watermarks[&Arc::from("kafka")], row.outbox_seq);
    }
    assert_eq!(shards.iter().filter_map(|row| row.counters.get("taken")).sum::<u64>(), 7);
}

#[test]
fn commits_come_in_the_order_of_time_and_of_their_shard() {
    let commits = vec![(0, 1, 50), (0, 2, 40), (1, 9, 45), (0, 3, 60)];
    assert_eq!(in_time(commits), [(1, 9, 45), (0, 1, 50), (0, 2, 50), (0, 3, 60)]);
}

#[test]
fn what_stands_in_the_way_says_what_to_do() {
    let fine = |to| obstacles(&[old(0, 1, 0)], &Found::default(), &[], to);
    assert_eq!(fine(4), [""; 0]);
    assert!(fine(1)[0].contains("already") && fine(0)[0].contains("1 to 256") && fine(300)[0].contains("1 to 256"));
    let mut row = old(0, 9, 9);
    row.owner = Some("a".to_owned());
    row.watermarks = [("kafka".into(), 8)].into();
    let found = Found { alive: vec!["a (1)".to_owned()], unread: 3, intake: 1, open_commands: 2 };
    let told = obstacles(&[row], &found, &["kafka".to_owned(), "other".to_owned()], 4);
    for word in ["a (1) run it", "not given up by a", "3 messages of the embedded log", "intake", "2 operator commands"]
    {
        assert!(told.iter().any(|line| line.contains(word)), "{word}: {told:?}");
    }
    assert_eq!(told.iter().filter(|line| line.contains("has not confirmed")).count(), 2, "{told:?}");
}
