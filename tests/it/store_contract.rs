//! The promises of every store, written once and run on each driver.
//! In: a place with a prepared store. Out: the same behaviour everywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use perkey::testing::Statement;
use perkey::unstable::message::{Ahead, Position, Positions, Print, Stretch, Taken};
use perkey::unstable::store::query::{Action, DeadFilter, ImportBatch, ImportProgress, NewCommand, Scope};
use perkey::unstable::store::{
    CommandResult, Commit, DueTimers, Epoch, Identity, LogRow, Outcome, Part, PendingKind, RowSpan, ServiceKey, Setup,
    SourceAhead, StateWrite, Store, Timer, TimerWrite, Trim,
};
use perkey::{Column, ColumnKind, Draft, StoreError, Table};
use serde_json::{Value, json};

use crate::fixture::{
    POSTINGS, Place, SHARDS, commit, committed, everything, full, letter, message, pending, posting, row_write,
    runnable, service_key, setup, state, taken,
};

/// Runs each promise on each driver.
macro_rules! contract {
    ($($driver:ident: $place:expr;)* => $promises:tt) => {
        $(contract!(@driver $driver, $place, $promises);)*
    };
    (@driver $driver:ident, $place:expr, [$($promise:ident),* $(,)?]) => {
        mod $driver {
            $(#[tokio::test]
            async fn $promise() {
                super::$promise($place.await).await;
            })*
        }
    };
}
pub(crate) use contract;

contract! {
    memory: crate::fixture::MemoryPlace::new();
    sqlite: crate::fixture::SqlitePlace::new();
    postgres: crate::postgres_place::PostgresPlace::new();
    => [
        a_commit_is_complete_and_survives_a_restart,
        a_stale_epoch_writes_nothing,
        a_wrong_number_writes_nothing,
        commits_of_many_shards_stand_alone,
        a_refused_row_undoes_its_whole_commit,
        retake_shuts_out_and_tells_the_number,
        what_is_clean_ends_an_unclean_series_and_a_release_does_not,
        services_that_others_brought_have_numbers,
        the_inbox_is_the_window_and_what_waits,
        load_answers_in_the_order_asked,
        due_gives_keys_longest_due_first,
        orphans_have_no_row_that_is_due,
        a_page_is_a_key_in_order,
        dead_letters_are_found_by_every_filter,
        the_log_is_read_per_origin_in_order,
        the_log_gives_each_origin_its_share,
        trim_removes_only_what_was_passed,
        trim_removes_what_is_done_ahead_and_nothing_between,
        a_dropped_commit_lands_all_the_same,
        what_is_done_ahead_comes_with_its_commit,
        numbers_of_services_and_seqs_are_never_reused,
        another_number_of_shards_is_refused,
        tables_that_do_not_fit_are_refused,
        of_several_rows_of_a_key_the_last_counts,
        statements_run_in_order_after_all_rows,
        a_refused_statement_undoes_its_whole_commit,
        what_is_paused_is_told_until_it_is_resumed,
        a_forgotten_state_is_gone,
        timers_are_set_moved_and_removed,
        timers_of_schedules_are_told_apart,
        a_timer_of_a_key_that_waits_is_not_due,
        odd_text_survives,
        large_values_survive,
        an_import_is_written_with_its_progress,
        what_is_sent_goes_on_in_the_lane_of_imports,
        a_command_is_open_until_its_shard_is_done,
        events_are_numbered_on_and_paged,
    ]
}

async fn begin(place: &dyn Place, shard: u32) -> (Arc<dyn Store>, Identity, Epoch) {
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let epoch = store.take(shard, "me").await.unwrap().epoch;
    (store, identity, epoch)
}

fn with(part: Part, commit: Commit) -> Commit {
    Commit { parts: vec![part], ..commit }
}

fn seqs<T>(rows: &[T], seq: impl Fn(&T) -> u64) -> Vec<u64> {
    rows.iter().map(seq).collect()
}

async fn a_commit_is_complete_and_survives_a_restart(mut place: Box<impl Place>) {
    let (store, identity, epoch) = begin(&*place, 1).await;
    let written = full(&identity, 1, epoch, 1, "a");
    committed(&store, &written).await;
    let part = &written.parts[0];
    let shard = store.queries().shards().await.unwrap().swap_remove(1);
    assert_eq!((shard.owner.as_deref(), shard.commit_no, shard.epoch), (Some("me"), 1, epoch));
    assert_eq!((shard.pending, shard.dead_letters, shard.held_keys), (1, 1, 1));
    assert_eq!((&shard.positions, &shard.counters), (&written.positions, &written.counters));
    let inbox = store.inbox(1, 0, 100).await.unwrap();
    assert_eq!(inbox.commits[0].ids, part.ids);
    let keys = vec![service_key("acct-a"), service_key("wait-a"), service_key("dead-a")];
    let loaded = store.load(1, keys).await.unwrap();
    assert_eq!(loaded[0].state, Some((3, Bytes::from_static(b"{\"balance\":1}"))));
    assert_eq!((loaded[1].pending, loaded[2].held), (Some(RowSpan { first: 11, last: 11, count: 1 }), true));
    let events = store.queries().events(1, 0, 10).await.unwrap();
    assert_eq!((events[0].seq, &events[0].event), (1, &part.events[0]));
    assert_eq!(store.page(1, service_key("wait-a"), 0, 9).await.unwrap(), part.pending);
    assert_eq!(store.dead(1, DeadFilter::default(), None, 9).await.unwrap(), part.dead);
    let log = store.read_log(2, Positions::new(), 9).await.unwrap();
    assert_eq!((&*log[0].origin, log[0].no, &log[0].messages), ("1", 1, &written.log[0].messages));
    assert_eq!(store.queries().command_state(1).await.unwrap().affected, 3);
    let story = store.queries().explain("p-12".to_owned()).await.unwrap();
    assert_eq!((story.history, story.dead), (part.history.clone(), part.dead.clone()));
    let taken = store.queries().explain("m-a".to_owned()).await.unwrap();
    assert_eq!((taken.taken[0].0.no, &*taken.taken[0].1, taken.events.len()), (1, "balances", 1));
    let extra = json!({"a": [1]});
    let row = json!({"id": "m-a", "account": "acct-a", "amount": 5, "rate": null, "open": true, "extra": extra});
    assert_eq!(place.rows("postings").await, [row]);

    let before = everything(&*place, &["a"]).await;
    drop(store);
    place.restart().await;
    assert_eq!(before, everything(&*place, &["a"]).await);
}

async fn a_stale_epoch_writes_nothing(place: Box<impl Place>) {
    let (store, identity, stale) = begin(&*place, 1).await;
    store.take(1, "you").await.unwrap();
    let before = everything(&*place, &["a"]).await;
    let outcome = store.commit(&full(&identity, 1, stale, 1, "a")).await;
    assert!(matches!(outcome, Outcome::Fenced), "{outcome:?}");
    assert_eq!(before, everything(&*place, &["a"]).await);
}

/// Stretches of two sources, told apart by `n`; one is done for some services only.
fn ahead(n: u64) -> SourceAhead {
    let at = |no, index, mark| Position { no, index, mark };
    let stretch = |from, to| Stretch { from, to, services: Vec::new() };
    let part = Stretch { services: vec![1, 7], ..stretch(at(n + 70, 0, 0), at(n + 70, 0, 0)) };
    let kafka = vec![stretch(at(n + 2, 0, 99), at(n + 40, 0, 0)), part];
    let embedded = vec![stretch(at(n, 5, 0), at(n, u32::MAX, 0)), stretch(at(n + 1, 1, 0), at(n + 9, 0, 0))];
    BTreeMap::from([
        ("embedded".into(), BTreeMap::from([("import".into(), embedded)])),
        ("kafka".into(), BTreeMap::from([("t/0".into(), kafka.clone()), ("t/1".into(), kafka)])),
    ])
}

async fn what_is_done_ahead_comes_with_its_commit(mut place: Box<impl Place>) {
    let (store, identity, epoch) = begin(&*place, 1).await;
    let first = store.take(1, "me").await.unwrap();
    assert_eq!(first.ahead, SourceAhead::new());
    committed(&store, &Commit { ahead: ahead(1), ..full(&identity, 1, first.epoch, 1, "a") }).await;
    let second = store.take(1, "you").await.unwrap();
    assert_eq!(second.ahead, ahead(1));
    for stale in [epoch, first.epoch] {
        let outcome = store.commit(&Commit { ahead: ahead(2), ..commit(1, stale, 2) }).await;
        assert!(matches!(outcome, Outcome::Fenced), "{outcome:?}");
    }
    assert_eq!(store.retake(1, second.epoch).await.unwrap().ahead, ahead(1));
    drop(store);
    place.restart().await;
    // Several at once, which are written together where the store can.
    let store = place.store();
    let mut commits = Vec::new();
    for shard in 0..SHARDS {
        let taken = store.take(shard, "me").await.unwrap();
        assert_eq!(taken.ahead, if shard == 1 { ahead(1) } else { SourceAhead::new() });
        let ahead = if shard == 2 { SourceAhead::new() } else { ahead(10 + u64::from(shard)) };
        commits.push(Commit { ahead, ..commit(shard, taken.epoch, taken.commit_no + 1) });
    }
    let written = join_all(commits.iter().map(|commit| store.commit(commit))).await;
    assert!(written.iter().all(|outcome| matches!(outcome, Outcome::Committed)), "{written:?}");
    for commit in &commits {
        let taken = store.take(commit.shard, "me").await.unwrap();
        assert_eq!(taken.ahead, commit.ahead, "shard {}", commit.shard);
        committed(&store, &self::commit(commit.shard, taken.epoch, taken.commit_no + 1)).await;
        assert_eq!(store.take(commit.shard, "me").await.unwrap().ahead, SourceAhead::new(), "all is passed");
    }
}

async fn a_wrong_number_writes_nothing(place: Box<impl Place>) {
    let (store, identity, epoch) = begin(&*place, 1).await;
    committed(&store, &full(&identity, 1, epoch, 1, "a")).await;
    let before = everything(&*place, &["a", "b"]).await;
    for no in [0, 1, 3] {
        let outcome = store.commit(&full(&identity, 1, epoch, no, "b")).await;
        assert!(matches!(outcome, Outcome::Fenced), "{no}: {outcome:?}");
    }
    assert_eq!(before, everything(&*place, &["a", "b"]).await);
    committed(&store, &full(&identity, 1, epoch, 2, "b")).await;
}

async fn commits_of_many_shards_stand_alone(place: Box<impl Place>) {
    let store = place.store();
    let identity = store.prepare(setup()).await.unwrap();
    let mut commits = Vec::new();
    for (shard, tag) in (0..SHARDS).zip(["a", "b", "c", "d"]) {
        let epoch = store.take(shard, "me").await.unwrap().epoch;
        commits.push(full(&identity, shard, epoch, 1, tag));
    }
    commits[1].parts[0].rows.push(row_write(
        "acct-b",
        "bad",
        Some(json!({"id": "bad", "account": "acct-b"}).to_string()),
    ));
    commits[2].epoch += 1;
    // All are handed over before the first is awaited.
    let outcomes = join_all(commits.iter().map(|commit| store.commit(commit)).collect::<Vec<_>>()).await;
    assert!(matches!(outcomes[0], Outcome::Committed), "{outcomes:?}");
    assert!(matches!(outcomes[1], Outcome::Refused { permanent: false, .. }), "{outcomes:?}");
    assert!(matches!(outcomes[2], Outcome::Fenced), "{outcomes:?}");
    assert!(matches!(outcomes[3], Outcome::Committed), "{outcomes:?}");
    let numbers: Vec<u64> = store.queries().shards().await.unwrap().iter().map(|shard| shard.commit_no).collect();
    assert_eq!(numbers, [1, 0, 0, 1]);
    for (tag, there) in [("a", true), ("b", false), ("c", false), ("d", true)] {
        let story = store.queries().explain(format!("acct-{tag}")).await.unwrap();
        let seen = (!story.states.is_empty(), !story.events.is_empty(), !story.log.is_empty());
        assert_eq!(seen, (there, there, there), "{tag}");
    }
    let accounts: Vec<_> = place.rows("postings").await.iter().map(|row| row["account"].clone()).collect();
    assert_eq!(accounts, ["acct-a", "acct-d"]);
    assert_eq!(store.queries().command_state(1).await.unwrap().shards_done, 2);
}

async fn a_refused_row_undoes_its_whole_commit(place: Box<impl Place>) {
    let (store, identity, epoch) = begin(&*place, 0).await;
    let before = everything(&*place, &["a"]).await;
    for (column, value) in
        [("amount", json!(null)), ("amount", json!("much")), ("amount", json!(1.5)), ("open", json!(7))]
    {
        let mut row = json!({"id": "x", "account": "acct-a", "amount": 1, "open": true});
        row[column] = value;
        let mut refused = full(&identity, 0, epoch, 1, "a");
        refused.parts[0].rows.push(row_write("acct-a", "x", Some(row.to_string())));
        let outcome = store.commit(&refused).await;
        assert!(
            matches!(&outcome, Outcome::Refused { error, .. } if error.contains("postings")),
            "{outcome:?} for {row}"
        );
    }
    assert_eq!(before, everything(&*place, &["a"]).await);
    committed(&store, &full(&identity, 0, epoch, 1, "a")).await;
}

async fn retake_shuts_out_and_tells_the_number(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 2).await;
    let first = commit(2, epoch, 1);
    let under_way = store.commit(&first);
    let taken = store.retake(2, epoch).await.unwrap();
    assert_eq!((taken.commit_no, taken.epoch, taken.unclean), (1, epoch + 1, 0));
    assert!(matches!(under_way.await, Outcome::Committed));
    assert!(matches!(store.commit(&commit(2, epoch, 2)).await, Outcome::Fenced));
    committed(&store, &commit(2, taken.epoch, 2)).await;
    assert_eq!(store.retake(2, epoch).await, Err(StoreError::Fenced(2)));
}

async fn services_that_others_brought_have_numbers(place: Box<impl Place>) {
    let store = place.store();
    let ours = store.queries().services().await.unwrap();
    let newer = Setup { services: vec!["audit".into(), "newer".into()], ..setup() };
    let identity = store.prepare(newer).await.unwrap();
    assert_eq!(store.queries().services().await.unwrap(), identity.services);
    assert!(!ours.contains_key("newer") && ours.iter().all(|(name, no)| identity.services.get(name) == Some(no)));
}

async fn what_is_clean_ends_an_unclean_series_and_a_release_does_not(place: Box<impl Place>) {
    let (store, _, first) = begin(&*place, 3).await;
    let second = store.take(3, "b").await.unwrap();
    assert_eq!((second.epoch, second.unclean), (first + 1, 1));
    let again = store.take(3, "b").await.unwrap();
    assert_eq!((again.epoch, again.unclean), (first + 2, 1), "a process takes its own shard again");
    assert!(second.died && !again.died);
    let third = store.take(3, "c").await.unwrap();
    assert_eq!((third.unclean, third.died), (2, true));
    committed(&store, &Commit { clean: true, ..commit(3, third.epoch, 1) }).await;
    let fourth = store.take(3, "d").await.unwrap();
    assert_eq!((fourth.unclean, fourth.commit_no), (1, 1));
    // Who could not go on gives it back: what was in hand when others died is as suspect as before.
    committed(&store, &Commit { release: true, ..commit(3, fourth.epoch, 2) }).await;
    assert_eq!(store.queries().shards().await.unwrap()[3].owner, None);
    let fifth = store.take(3, "e").await.unwrap();
    assert_eq!((fifth.unclean, fifth.died, fifth.positions), (1, false, commit(3, 0, 2).positions));
    assert_eq!(fifth.counters["taken"], 20);
    committed(&store, &Commit { release: true, clean: true, ..commit(3, fifth.epoch, 3) }).await;
    let sixth = store.take(3, "f").await.unwrap();
    assert_eq!((sixth.unclean, sixth.died), (0, false));
}

async fn the_inbox_is_the_window_and_what_waits(place: Box<impl Place>) {
    let (store, identity, epoch) = begin(&*place, 0).await;
    for no in 1..=4 {
        let mut ids: Vec<Taken> =
            (0..3).map(|at| taken(&identity, &message(&format!("m-{no}-{at}"), "k", b""))).collect();
        // Of one nothing is known but the id; of a whole commit, as a program of before prints were kept wrote it.
        ids.iter_mut().take(if no == 4 { 3 } else { 1 }).for_each(|taken| *taken = taken.id.into());
        let mut part = Part { ids, ..Part::default() };
        if no == 1 {
            part.pending = vec![pending(1, "waits", None)];
            part.dead = vec![letter(2, "dead", false)];
        }
        committed(&store, &with(part, commit(0, epoch, no))).await;
    }
    committed(&store, &commit(0, epoch, 5)).await;
    let numbers =
        |rows: &perkey::unstable::store::InboxRows| rows.commits.iter().map(|commit| commit.no).collect::<Vec<_>>();
    let all = store.inbox(0, 0, 1_000).await.unwrap();
    assert_eq!(numbers(&all), [1, 2, 3, 4]);
    assert_eq!((all.commits[2].at, all.commits[2].ids.len(), all.pending), (1_003, 3, 1));
    assert_eq!(all.commits[2].ids[1], taken(&identity, &message("m-3-1", "k", b"")));
    let unknown = |commit: usize| all.commits[commit].ids.iter().filter(|taken| taken.print == Print::UNKNOWN).count();
    assert_eq!((unknown(2), unknown(3), all.commits[3].ids.len()), (1, 3, 3));
    let recent = store.inbox(0, 1_003, 1_000).await.unwrap();
    assert_eq!((numbers(&recent), recent.pending), (vec![3, 4], 1), "rows wait at any age");
    assert_eq!(numbers(&store.inbox(0, 0, 4).await.unwrap()), [3, 4], "the newest");
    assert_eq!(store.inbox(1, 0, 1_000).await.unwrap(), perkey::unstable::store::InboxRows::default());
}

async fn load_answers_in_the_order_asked(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let mut other = state("a", "{\"of\":\"audit\"}");
    other.service = "audit".into();
    let parts = vec![
        Part { state: Some(state("a", "{\"n\":1}")), ..Part::default() },
        Part { state: Some(state("a", "{\"n\":2}")), dead: vec![letter(9, "a", false)], ..Part::default() },
        Part { state: Some(other), ..Part::default() },
        Part { pending: [4, 6, 5].map(|seq| pending(seq, "b", None)).to_vec(), ..Part::default() },
        Part { dead: vec![letter(7, "c", true)], ..Part::default() },
    ];
    committed(&store, &Commit { parts, ..commit(0, epoch, 1) }).await;
    let asked = ["c", "none", "b", "a", "a"].map(service_key).to_vec();
    let found = store.load(0, asked).await.unwrap();
    assert_eq!(found.len(), 5);
    assert_eq!((found[0].held, found[0].dead, &found[0].state, found[0].pending), (true, true, &None, None));
    assert_eq!(found[1], perkey::unstable::store::KeyRow::default());
    assert_eq!((found[2].held, found[2].pending), (false, Some(RowSpan { first: 4, last: 6, count: 3 })));
    assert_eq!(
        (found[3].held, found[3].dead, &found[3].state),
        (false, true, &Some((3, Bytes::from_static(b"{\"n\":2}"))))
    );
    assert_eq!(found[4], found[3]);
    let mut audit = service_key("a");
    audit.service = "audit".into();
    assert_eq!(
        store.load(0, vec![audit]).await.unwrap()[0].state,
        Some((3, Bytes::from_static(b"{\"of\":\"audit\"}")))
    );
    assert!(store.load(0, Vec::new()).await.unwrap().is_empty());
    let thousand = (0..1_000).map(|n| service_key(&format!("k{n}"))).chain([service_key("b")]).collect();
    assert_eq!(store.load(0, thousand).await.unwrap()[1_000].pending, Some(RowSpan { first: 4, last: 6, count: 3 }));
}

async fn due_gives_keys_longest_due_first(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let rows = vec![
        pending(1, "late", Some(300)),
        pending(2, "first", Some(100)),
        pending(3, "first", None),
        pending(4, "second", Some(200)),
        pending(5, "orphan", None),
    ];
    committed(&store, &with(Part { pending: rows, ..Part::default() }, commit(0, epoch, 1))).await;
    let names = |due: &perkey::unstable::store::Due| due.keys.iter().map(|key| key.key.to_string()).collect::<Vec<_>>();
    let due = store.due(0, 200, runnable(), 10).await.unwrap();
    assert_eq!((names(&due), due.next), (vec!["first".to_owned(), "second".to_owned()], Some(300)));
    let due = store.due(0, 200, runnable(), 1).await.unwrap();
    assert_eq!((names(&due), due.next), (vec!["first".to_owned()], Some(200)), "what the limit left is next");
    let due = store.due(0, 1_000, runnable(), 10).await.unwrap();
    assert_eq!((due.keys.len(), due.next), (3, None));
    assert_eq!(store.due(0, 99, runnable(), 10).await.unwrap().next, Some(100));
    assert_eq!(store.due(1, 1_000, runnable(), 10).await.unwrap(), perkey::unstable::store::Due::default());
    // A retry is written again with its new time; a settled one is gone.
    let part = Part { pending: vec![pending(2, "first", Some(900))], settled: vec![4], ..Part::default() };
    committed(&store, &with(part, commit(0, epoch, 2))).await;
    let due = store.due(0, 300, runnable(), 10).await.unwrap();
    assert_eq!((names(&due), due.next), (vec!["late".to_owned()], Some(900)));
}

async fn orphans_have_no_row_that_is_due(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let rows = vec![
        pending(1, "c", None),
        pending(2, "a", None),
        pending(3, "a", None),
        pending(4, "waits", Some(50)),
        pending(5, "waits", None),
        pending(6, "b", None),
    ];
    committed(&store, &with(Part { pending: rows, ..Part::default() }, commit(0, epoch, 1))).await;
    let first = store.orphans(0, runnable(), None, 2).await.unwrap();
    assert_eq!(first, [service_key("a"), service_key("b")]);
    assert_eq!(store.orphans(0, runnable(), first.last().cloned(), 2).await.unwrap(), [service_key("c")]);
    assert!(store.orphans(0, runnable(), Some(service_key("c")), 2).await.unwrap().is_empty());
}

async fn a_page_is_a_key_in_order(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let rows: Vec<_> = [5, 2, 9, 7].into_iter().map(|seq| pending(seq, "k", (seq == 2).then_some(10))).collect();
    let other = pending(3, "other", None);
    let part = Part { pending: rows.into_iter().chain([other]).collect(), ..Part::default() };
    committed(&store, &with(part, commit(0, epoch, 1))).await;
    let page = store.page(0, service_key("k"), 0, 3).await.unwrap();
    assert_eq!(seqs(&page, |row| row.seq), [2, 5, 7]);
    assert_eq!(page[0], pending(2, "k", Some(10)), "every field comes back");
    assert_eq!(page[1].kind, PendingKind::Follower);
    assert_eq!(seqs(&store.page(0, service_key("k"), 7, 3).await.unwrap(), |row| row.seq), [9]);
    // Added and settled by the same commit: it never was.
    let parts = vec![
        Part { pending: vec![pending(20, "k", None)], settled: vec![9], ..Part::default() },
        Part { settled: vec![20], ..Part::default() },
    ];
    committed(&store, &Commit { parts, ..commit(0, epoch, 2) }).await;
    assert_eq!(seqs(&store.page(0, service_key("k"), 0, 9).await.unwrap(), |row| row.seq), [2, 5, 7]);
}

async fn dead_letters_are_found_by_every_filter(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let dead = vec![letter(4, "b", false), letter(1, "b", true), letter(3, "a", false), letter(2, "c", true)];
    committed(&store, &with(Part { dead, ..Part::default() }, commit(0, epoch, 1))).await;
    let found =
        async |filter: DeadFilter, limit| seqs(&store.dead(0, filter, None, limit).await.unwrap(), |row| row.seq);
    let any = DeadFilter::default;
    assert_eq!(found(any(), 9).await, [3, 1, 4, 2], "by key, then seq");
    assert_eq!(found(any(), 2).await, [3, 1]);
    let behind =
        async |key: &str, seq| seqs(&store.dead(0, any(), Some((key.into(), seq)), 9).await.unwrap(), |row| row.seq);
    assert_eq!((behind("", 9).await, behind("a", 3).await), (vec![3, 1, 4, 2], vec![1, 4, 2]), "behind a letter");
    assert_eq!((behind("b", 1).await, behind("b", 9).await, behind("c", 2).await), (vec![4, 2], vec![2], vec![]));
    assert_eq!(found(DeadFilter { key: Some("b".into()), ..any() }, 9).await, [1, 4]);
    assert_eq!(found(DeadFilter { service: Some("audit".into()), ..any() }, 9).await, [0; 0]);
    assert_eq!(found(DeadFilter { id: Some("p-2".into()), ..any() }, 9).await, [2]);
    assert_eq!(found(DeadFilter { since: Some(2_003), ..any() }, 9).await, [3, 4]);
    assert_eq!(found(DeadFilter { until: Some(2_002), ..any() }, 9).await, [1, 2]);
    assert_eq!(found(DeadFilter { error: Some("100% of 4".into()), ..any() }, 9).await, [4]);
    assert_eq!(found(DeadFilter { error: Some("1%0".into()), ..any() }, 9).await, [0; 0], "% is no wildcard");
    let queries = store.queries();
    let peeked: Vec<_> = queries.peek(any(), 3).await.unwrap().iter().map(|(shard, row)| (*shard, row.seq)).collect();
    assert_eq!(peeked, [(0, 4), (0, 3), (0, 2)], "newest first");
    assert_eq!(queries.count_dead(DeadFilter { key: Some("b".into()), ..any() }).await.unwrap(), 2);
    committed(&store, &with(Part { undead: vec![2, 3], ..Part::default() }, commit(0, epoch, 2))).await;
    assert_eq!(found(any(), 9).await, [1, 4]);
    let loaded = store.load(0, vec![service_key("b"), service_key("c")]).await.unwrap();
    assert_eq!((loaded[0].held, loaded[1].held), (true, false));
}

fn log_row(target: u32, count: u32, text: &str) -> LogRow {
    LogRow { target, count, messages: Bytes::copy_from_slice(text.as_bytes()) }
}

fn places(rows: &[perkey::unstable::store::StoredLogRow]) -> Vec<(&str, u64)> {
    rows.iter().map(|row| (&*row.origin, row.no)).collect()
}

async fn the_log_is_read_per_origin_in_order(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let other = store.take(1, "me").await.unwrap().epoch;
    for no in 1..=3 {
        let log = vec![log_row(2, 2, "to two"), log_row(3, 1, "to three")];
        committed(&store, &Commit { log, ..commit(0, epoch, no) }).await;
    }
    assert_eq!(places(&store.read_log(2, Positions::new(), 100).await.unwrap()), [("0", 1), ("0", 2), ("0", 3)]);
    committed(&store, &Commit { log: vec![log_row(2, 5, "late")], ..commit(1, other, 1) }).await;
    let at = |no, index| Positions::from([(Arc::from("0"), Position::new(no, index))]);
    for (from, expected) in [
        (at(1, 1), vec![("0", 2), ("0", 3), ("1", 1)]),
        (at(2, 0), vec![("0", 2), ("0", 3), ("1", 1)]),
        (at(3, 1), vec![("1", 1)]),
        (at(3, u32::MAX), vec![("1", 1)]),
        (at(9, 0), vec![("1", 1)]),
    ] {
        assert_eq!(places(&store.read_log(2, from.clone(), 100).await.unwrap()), expected, "{from:?}");
    }
    assert_eq!(store.read_log(3, Positions::new(), 100).await.unwrap()[0].messages, "to three");
    assert!(store.read_log(0, Positions::new(), 100).await.unwrap().is_empty());
}

async fn the_log_gives_each_origin_its_share(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let other = store.take(1, "me").await.unwrap().epoch;
    for no in 1..=20 {
        committed(&store, &Commit { log: vec![log_row(2, 10, "busy")], ..commit(0, epoch, no) }).await;
    }
    committed(&store, &Commit { log: vec![log_row(2, 10, "quiet")], ..commit(1, other, 1) }).await;
    let rows = store.read_log(2, Positions::new(), 40).await.unwrap();
    assert_eq!(places(&rows), [("0", 1), ("0", 2), ("1", 1)]);
    assert_eq!(store.read_log(2, Positions::new(), 1).await.unwrap().len(), 2, "a row is never cut");
    assert_eq!(store.read_log(2, Positions::new(), 10_000).await.unwrap().len(), 21);
}

async fn trim_removes_what_is_done_ahead_and_nothing_between(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    for no in 1..=7 {
        committed(&store, &Commit { log: vec![log_row(0, 2, "mine")], ..commit(0, epoch, no) }).await;
    }
    let left = async || {
        let rows = store.read_log(0, Positions::new(), 100).await.unwrap();
        rows.iter().map(|row| row.no).collect::<Vec<_>>()
    };
    let stretch = |from: (u64, u32), to: (u64, u32)| Stretch {
        from: Position::new(from.0, from.1),
        to: Position::new(to.0, to.1),
        services: Vec::new(),
    };
    let trim = async |stretches: &[Stretch]| {
        let log = Ahead::from([(Arc::from("0"), stretches.to_vec()), (Arc::from("1"), vec![stretch((1, 0), (9, 0))])]);
        store.trim(0, Trim { log, ..Trim::default() }).await.unwrap();
    };
    trim(&[stretch((2, 1), (4, 0)), stretch((6, 1), (6, 1))]).await;
    assert_eq!(left().await, [1, 2, 4, 5, 6, 7], "half a row keeps all of it");
    trim(&[stretch((2, 0), (2, 1)), stretch((4, 0), (5, 1))]).await;
    assert_eq!(left().await, [1, 6, 7]);
    let unread: Vec<_> = store.queries().unread(vec![0]).await.unwrap();
    assert_eq!(unread, [(0, 6)], "what is not there is not unread");
}

async fn trim_removes_only_what_was_passed(place: Box<impl Place>) {
    let (store, identity, epoch) = begin(&*place, 0).await;
    let read = |read: Stretch| Ahead::from([(Arc::from("0"), vec![read])]);
    for no in 1..=4 {
        let mut written = full(&identity, 0, epoch, no, &no.to_string());
        written.parts[0].history[0].at = 100 * no;
        written.log = vec![log_row(0, 2, "mine"), log_row(1, 2, "theirs")];
        committed(&store, &written).await;
    }
    let log = read(Stretch::up_to(Position::new(3, 0)));
    store.trim(0, Trim { log, commits_below: 3, history_before: 300 }).await.unwrap();
    assert_eq!(places(&store.read_log(0, Positions::new(), 100).await.unwrap()), [("0", 3), ("0", 4)]);
    assert_eq!(store.read_log(1, Positions::new(), 100).await.unwrap().len(), 4, "another reader's rows stay");
    let kept: Vec<u64> = store.inbox(0, 0, 100).await.unwrap().commits.iter().map(|commit| commit.no).collect();
    assert_eq!(kept, [3, 4]);
    for (no, lines) in [(2, 0), (3, 1)] {
        assert_eq!(store.queries().explain(format!("dead-{no}")).await.unwrap().history.len(), lines, "{no}");
    }
    let log = read(Stretch::up_to(Position::new(4, 1)));
    store.trim(0, Trim { log, ..Trim::default() }).await.unwrap();
    assert!(store.read_log(0, Positions::new(), 100).await.unwrap().is_empty());
    committed(&store, &commit(0, epoch, 5)).await;
}

async fn a_dropped_commit_lands_all_the_same(place: Box<impl Place>) {
    let (store, identity, epoch) = begin(&*place, 1).await;
    drop(store.commit(&full(&identity, 1, epoch, 1, "a")));
    assert_eq!(store.retake(1, epoch).await.unwrap().commit_no, 1);
    assert_eq!(store.queries().explain("acct-a".to_owned()).await.unwrap().states.len(), 1);
}

async fn numbers_of_services_and_seqs_are_never_reused(mut place: Box<impl Place>) {
    let (store, identity, epoch) = begin(&*place, 0).await;
    let fewer = Setup { services: vec!["new".into(), "audit".into()], ..setup() };
    let later = store.prepare(fewer).await.unwrap();
    assert_eq!(later.hash_key, identity.hash_key);
    assert_eq!(later.services["balances"], identity.services["balances"]);
    assert_eq!(later.services["audit"], identity.services["audit"]);
    assert!(!identity.services.values().any(|number| *number == later.services["new"]));
    let part = Part { pending: vec![pending(41, "k", None)], dead: vec![letter(42, "k", false)], ..Part::default() };
    committed(&store, &with(part, commit(0, epoch, 1))).await;
    let part = Part { settled: vec![41], undead: vec![42], ..Part::default() };
    committed(&store, &with(part, commit(0, epoch, 2))).await;
    drop(store);
    place.restart().await;
    let taken = place.store().take(0, "me").await.unwrap();
    assert_eq!((taken.last_seq, taken.commit_no), (42, 2));
}

async fn another_number_of_shards_is_refused(place: Box<impl Place>) {
    let refused = place.store().prepare(Setup { shards: SHARDS * 2, ..setup() }).await.unwrap_err();
    assert_eq!(refused, StoreError::Shards { recorded: SHARDS, wanted: SHARDS * 2 });
    assert!(refused.to_string().contains("shards = 4"), "{refused}");
    assert!(place.store().take(SHARDS, "me").await.is_err());
}

async fn tables_that_do_not_fit_are_refused(place: Box<impl Place>) {
    let store = place.store();
    const SPACED: &[Column] = &[Column::new("a b", ColumnKind::Text)];
    const OTHER_KIND: &[Column] = &[
        Column::new("id", ColumnKind::Text),
        Column::new("account", ColumnKind::Text),
        Column::new("amount", ColumnKind::Text),
        Column::nullable("rate", ColumnKind::Real),
        Column::nullable("open", ColumnKind::Boolean),
        Column::nullable("extra", ColumnKind::Json),
    ];
    for (table, word) in [
        (Table { columns: OTHER_KIND, ..POSTINGS }, "amount"),
        (Table { columns: &POSTINGS.columns[..3], ..POSTINGS }, "rate"),
        (Table { primary_key: &["id", "account"], ..POSTINGS }, "primary key"),
        (Table { name: "commits", ..POSTINGS }, "store's own"),
        (Table { name: "Postings; --", ..POSTINGS }, "lower-case"),
        (Table { name: "others", columns: SPACED, ..POSTINGS }, "lower-case"),
        (Table { name: "others", primary_key: &["nothing"], ..POSTINGS }, "not declared"),
        (Table { name: "others", primary_key: &["rate"], key_column: None, ..POSTINGS }, "nullable"),
    ] {
        let refused = store.prepare(Setup { tables: vec![table], ..setup() }).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Table { reason, .. } if reason.contains(word)), "{word}: {refused}");
    }
    store.prepare(setup()).await.unwrap();
}

async fn of_several_rows_of_a_key_the_last_counts(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let parts = vec![
        Part { rows: vec![posting("a", "1", 1), posting("a", "2", 1), posting("a", "3", 1)], ..Part::default() },
        Part {
            rows: vec![row_write("a", "2", None), posting("a", "1", 2), row_write("a", "3", None)],
            ..Part::default()
        },
        Part { rows: vec![posting("a", "3", 3)], ..Part::default() },
    ];
    committed(&store, &Commit { parts, ..commit(0, epoch, 1) }).await;
    let seen = async || {
        let rows = place.rows("postings").await;
        rows.iter()
            .map(|row| (row["id"].as_str().unwrap().to_owned(), row["amount"].as_i64().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(seen().await, [("1".to_owned(), 2), ("3".to_owned(), 3)]);
    let rows = vec![row_write("a", "1", None), row_write("a", "none", None), posting("a", "3", 4)];
    committed(&store, &with(Part { rows, ..Part::default() }, commit(0, epoch, 2))).await;
    assert_eq!(seen().await, [("3".to_owned(), 4)]);
}

fn statement(sql: &str, args: Value) -> Statement {
    Statement { sql: sql.to_owned(), args: args.as_array().unwrap().clone() }
}

async fn statements_run_in_order_after_all_rows(place: Box<impl Place>) {
    if !place.runs_sql() {
        return;
    }
    let (store, _, epoch) = begin(&*place, 0).await;
    let add = "UPDATE postings SET amount = amount + $1, rate = $2, open = $3 WHERE account = $4";
    let first = Part {
        rows: vec![posting("acct-a", "1", 1)],
        statements: vec![
            statement(add, json!([10, 0.5, false, "acct-a"])),
            statement("UPDATE postings SET amount = amount * 2, extra = $1", json!([null])),
        ],
        ..Part::default()
    };
    let second = Part {
        rows: vec![posting("acct-a", "2", 2)],
        statements: vec![statement("DELETE FROM postings WHERE id = $1 AND amount = 24", json!(["2"]))],
        ..Part::default()
    };
    committed(&store, &Commit { parts: vec![first, second], ..commit(0, epoch, 1) }).await;
    let rows = place.rows("postings").await;
    let seen: Vec<_> = rows.iter().map(|row| (row["id"].clone(), row["amount"].clone(), row["rate"].clone())).collect();
    let account = rows.iter().map(|row| row["account"].clone()).collect::<Vec<_>>();
    assert_eq!((seen, account), (vec![(json!("1"), json!(22), json!(0.5))], vec![json!("acct-a")]));
    // Under another's epoch nothing of it is written.
    let stale = Part { statements: vec![statement("DELETE FROM postings", json!([]))], ..Part::default() };
    let outcome = store.commit(&with(stale, commit(0, epoch - 1, 2))).await;
    assert!(matches!(outcome, Outcome::Fenced), "{outcome:?}");
    assert_eq!(place.rows("postings").await, rows);
    committed(&store, &commit(0, epoch, 2)).await;
}

async fn a_refused_statement_undoes_its_whole_commit(place: Box<impl Place>) {
    if !place.runs_sql() {
        return;
    }
    let (store, identity, epoch) = begin(&*place, 0).await;
    let before = everything(&*place, &["a"]).await;
    for sql in ["UPDATE no_such_table SET a = 1", "UPDATE postings SET amount = NULL", "INSERT INTO postings"] {
        let mut refused = full(&identity, 0, epoch, 1, "a");
        refused.parts[0].statements.push(statement(sql, json!([])));
        let outcome = store.commit(&refused).await;
        assert!(matches!(&outcome, Outcome::Refused { .. }), "{outcome:?} for {sql}");
    }
    assert_eq!(before, everything(&*place, &["a"]).await);
    committed(&store, &full(&identity, 0, epoch, 1, "a")).await;
}

async fn what_is_paused_is_told_until_it_is_resumed(place: Box<impl Place>) {
    let (store, _, _) = begin(&*place, 0).await;
    let scope = |service: &str, key: Option<&str>| Scope { service: service.into(), key: key.map(str::to_owned) };
    let tell = async |action, at| {
        let (filter, who, why) = (DeadFilter::default(), "ann".to_owned(), "odd \"words\"".to_owned());
        store.queries().command(NewCommand { action, filter, who, why, matched: 1, at }).await.unwrap();
    };
    tell(Action::Pause(scope("balances", Some("k%"))), 1).await;
    tell(Action::Pause(scope("balances", None)), 2).await;
    tell(Action::Pause(scope("audit", Some("k"))), 3).await;
    tell(Action::Pause(scope("balances", None)), 4).await;
    let pauses = store.queries().pauses().await.unwrap();
    let told: Vec<_> =
        pauses.iter().map(|pause| (pause.scope.clone(), pause.since, &*pause.who, &*pause.why)).collect();
    let why = "odd \"words\"";
    let expected = [
        (scope("audit", Some("k")), 3, "ann", why),
        (scope("balances", None), 2, "ann", why),
        (scope("balances", Some("k%")), 1, "ann", why),
    ];
    assert_eq!(told, expected);
    let paused: Vec<_> = expected.map(|(scope, ..)| scope).into();
    assert_eq!(store.inbox(0, 0, 9).await.unwrap().paused, paused);
    tell(Action::Resume(scope("balances", None)), 5).await;
    tell(Action::Resume(scope("audit", Some("other"))), 6).await;
    assert_eq!(store.inbox(0, 0, 9).await.unwrap().paused, [scope("audit", Some("k"))]);
}

async fn a_forgotten_state_is_gone(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let forgotten = |key: &str| StateWrite { state: None, ..state(key, "") };
    let parts = |states: Vec<StateWrite>| -> Vec<Part> {
        states.into_iter().map(|state| Part { state: Some(state), ..Part::default() }).collect()
    };
    let odd = "\0'%";
    let written = parts(["a", "b", "c", odd].map(|key| state(key, "{}")).to_vec());
    committed(&store, &Commit { parts: written, ..commit(0, epoch, 1) }).await;
    // Of several of one key the last counts, whichever it is; a missing one is not an error.
    let states = vec![
        forgotten("a"),
        state("b", "1"),
        forgotten("b"),
        forgotten("c"),
        state("c", "2"),
        forgotten(odd),
        forgotten("never"),
    ];
    committed(&store, &Commit { parts: parts(states), ..commit(0, epoch, 2) }).await;
    let stale = Commit { parts: parts(vec![forgotten("c")]), ..commit(0, epoch, 2) };
    assert!(matches!(store.commit(&stale).await, Outcome::Fenced));
    let keys = ["a", "b", "c", odd, "never"].map(service_key).to_vec();
    let rows = store.load(0, keys).await.unwrap();
    let found: Vec<_> = rows.iter().map(|row| row.state.as_ref().map(|(_, json)| json.to_vec())).collect();
    assert_eq!(found, [None, None, Some(b"2".to_vec()), None, None]);
}

fn timer(key: &str, name: &str, set: Option<u64>) -> TimerWrite {
    let ServiceKey { service, key: of } = service_key(key);
    let set = set.map(|at| (at, message(&format!("timer-{name}-{at}"), key, b"{}")));
    TimerWrite { service, key: of, name: name.into(), set }
}

fn timers(timers: Vec<TimerWrite>) -> Part {
    Part { timers, ..Part::default() }
}

fn names(due: &[Timer]) -> Vec<(&str, &str, u64)> {
    due.iter().map(|timer| (&*timer.of.key, &*timer.name, timer.due_at)).collect()
}

async fn timers_are_set_moved_and_removed(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let odd = "odd'%";
    let first = vec![timer("a", "x", Some(30)), timer("a", "y", Some(10)), timer(odd, "x", Some(20))];
    committed(&store, &with(timers(first), commit(0, epoch, 1))).await;
    let due = store.timers(0, 29, runnable(), 10).await.unwrap();
    assert_eq!((names(&due.timers), due.any, due.next), (vec![("a", "y", 10), (odd, "x", 20)], true, Some(30)));
    assert_eq!(due.timers[0].message, message("timer-y-10", "a", b"{}"));
    assert_eq!(names(&store.timers(0, 29, runnable(), 1).await.unwrap().timers), [("a", "y", 10)], "at most so many");
    assert_eq!(store.timers(1, 99, runnable(), 10).await.unwrap(), DueTimers::default(), "of another shard");
    let early = store.timers(0, 9, runnable(), 10).await.unwrap();
    assert_eq!((early.timers.len(), early.any, early.next), (0, false, Some(10)));
    // Of several writes of one timer the last counts; what is not there may be removed.
    let stale = with(timers(vec![timer("a", "x", None)]), commit(0, epoch, 1));
    assert!(matches!(store.commit(&stale).await, Outcome::Fenced));
    let then = vec![
        timer("a", "x", None),
        timer("a", "x", Some(5)),
        timer("a", "y", Some(1)),
        timer("a", "y", None),
        timer(odd, "x", None),
        timer("b", "never", None),
    ];
    let parts = then.into_iter().map(|write| timers(vec![write])).collect();
    committed(&store, &Commit { parts, ..commit(0, epoch, 2) }).await;
    let due = store.timers(0, 99, runnable(), 10).await.unwrap();
    assert_eq!((names(&due.timers), due.next), (vec![("a", "x", 5)], None));
    let listed = |key: &str| store.queries().scheduled(Some("balances".to_owned()), Some(key.to_owned()), 9);
    assert_eq!(listed("a").await.unwrap(), due.timers);
    assert!(listed("b").await.unwrap().is_empty());
    assert_eq!(store.queries().scheduled(None, None, 9).await.unwrap().len(), 1);
    assert_eq!(store.inbox(0, 0, 9).await.unwrap().pending, 0, "it waits, and is no message yet");
}

async fn timers_of_schedules_are_told_apart(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let other = store.take(1, "me").await.unwrap().epoch;
    let here =
        [("b", "cron:x"), ("a", "cron:z"), ("a", "cron:"), ("a", "cron"), ("a", "cron;"), ("a", "Cron:x"), ("a", "x")];
    let here = here.map(|(key, name)| timer(key, name, Some(10))).to_vec();
    committed(&store, &with(timers(here), commit(0, epoch, 1))).await;
    committed(&store, &with(timers(vec![timer("c", "cron:x", Some(10))]), commit(1, other, 1))).await;
    let found = |shard| {
        let timers = store.schedules(shard);
        async {
            names(&timers.await.unwrap())
                .into_iter()
                .map(|(k, n, at)| (k.to_owned(), n.to_owned(), at))
                .collect::<Vec<_>>()
        }
    };
    let expected =
        |all: &[(&str, &str)]| all.iter().map(|(k, n)| (k.to_string(), n.to_string(), 10)).collect::<Vec<_>>();
    assert_eq!(found(0).await, expected(&[("a", "cron:"), ("a", "cron:z"), ("b", "cron:x")]));
    assert_eq!(found(1).await, expected(&[("c", "cron:x")]));
    assert!(found(2).await.is_empty());
}

async fn a_timer_of_a_key_that_waits_is_not_due(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let (row, held) = (pending(7, "waits", Some(50)), letter(8, "held", true));
    let set = ["waits", "held", "free"].map(|key| timer(key, "t", Some(1))).to_vec();
    let part = Part { pending: vec![row], dead: vec![held], ..timers(set) };
    committed(&store, &with(part, commit(0, epoch, 1))).await;
    let due = store.timers(0, 10, runnable(), 10).await.unwrap();
    assert_eq!((names(&due.timers), due.any), (vec![("free", "t", 1)], true));
    let part = Part { settled: vec![7], undead: vec![8], ..timers(vec![timer("free", "t", None)]) };
    committed(&store, &with(part, commit(0, epoch, 2))).await;
    let due = store.timers(0, 10, runnable(), 10).await.unwrap().timers;
    assert_eq!(
        due.iter().map(|timer| &*timer.of.key).collect::<std::collections::BTreeSet<_>>(),
        ["held", "waits"].into()
    );
}

async fn odd_text_survives(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let json = "{ \"nul\" : \"\\u0000\", \"n\": 1e400, \"big\":12345678901234567890123, \"é\":\"\u{1F600}'\\\"--\" }";
    let key = "k'\"\\ \u{1F600}; DROP TABLE states --";
    let error = "e'\"\\\u{0}\u{1F600}\n";
    let extra = json!({"a": "\u{0}"});
    let row =
        |id: &str| json!({ "id": id, "account": key, "amount": i64::MIN, "rate": 0.1, "open": false, "extra": extra });
    let write = |id: &str| row_write(key, id, Some(row(id).to_string()));
    if !place.text_holds_nul() {
        let part = Part { rows: vec![write("\u{0}'\"")], ..Part::default() };
        let outcome = store.commit(&with(part, commit(0, epoch, 1))).await;
        assert!(matches!(outcome, Outcome::Refused { permanent: true, .. }), "{outcome:?}");
    }
    let id = if place.text_holds_nul() { "\u{0}'\"" } else { "'\"" };
    let mut dead = letter(1, key, true);
    dead.error = error.to_owned();
    let part =
        Part { state: Some(state(key, json)), dead: vec![dead.clone()], rows: vec![write(id)], ..Part::default() };
    committed(&store, &with(part, commit(0, epoch, 1))).await;
    let loaded = store.load(0, vec![service_key(key)]).await.unwrap();
    assert_eq!(loaded[0].state, Some((3, Bytes::copy_from_slice(json.as_bytes()))), "byte for byte");
    assert!(loaded[0].held);
    assert_eq!(
        store.dead(0, DeadFilter { key: Some(key.to_owned()), ..DeadFilter::default() }, None, 9).await.unwrap(),
        [dead]
    );
    assert_eq!(place.rows("postings").await, [row(id)]);
}

async fn large_values_survive(place: Box<impl Place>) {
    let (store, identity, epoch) = begin(&*place, 0).await;
    let large = message("large", "k", &vec![b'x'; 6 << 20]);
    let json = format!("\"{}\"", "s".repeat(3 << 20));
    let mut row = pending(1, "k", Some(1));
    row.message = large.clone();
    let mut written = full(&identity, 0, epoch, 1, "a");
    written.parts[0].events[0].message = large.clone();
    written.parts[0].pending = vec![row.clone()];
    written.parts[0].state = Some(state("k", &json));
    written.log = vec![LogRow {
        target: 0,
        count: 1,
        messages: perkey::unstable::transport::embedded::encode(&[("audit", &large)]),
    }];
    committed(&store, &written).await;
    assert_eq!(store.queries().events(0, 0, 9).await.unwrap()[0].event.message, large);
    assert_eq!(store.page(0, service_key("k"), 0, 9).await.unwrap(), [row]);
    assert_eq!(store.load(0, vec![service_key("k")]).await.unwrap()[0].state, Some((3, Bytes::from(json))));
    assert_eq!(store.read_log(0, Positions::new(), 9).await.unwrap()[0].messages, written.log[0].messages);
}

async fn an_import_is_written_with_its_progress(mut place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let progress =
        |lines| ImportProgress { lines, messages: lines - 1, rejects: 1, rejects_bytes: 80, lines_hash: "ab".into() };
    let batch = |lines, rows| ImportBatch {
        service: "balances".into(),
        source: "file.csv".to_owned(),
        rows,
        progress: progress(lines),
        at: 5,
    };
    let asked = || store.queries().import_progress("balances".to_owned(), "file.csv".to_owned());
    assert_eq!(asked().await.unwrap(), ImportProgress::default());
    store.queries().append_import(batch(11, vec![log_row(0, 7, "x"), log_row(1, 3, "y")])).await.unwrap();
    store.queries().append_import(batch(21, vec![log_row(0, 10, "z")])).await.unwrap();
    assert_eq!(asked().await.unwrap(), progress(21));
    assert_eq!(store.queries().unread_imports().await.unwrap(), 20);
    assert_eq!(places(&store.read_log(0, Positions::new(), 100).await.unwrap()), [("import", 1), ("import", 2)]);
    // A batch that cannot be written, here two rows for one place, leaves no progress behind.
    let twice = batch(31, vec![log_row(2, 5, "x"), log_row(2, 5, "y")]);
    assert!(store.queries().append_import(twice).await.is_err());
    assert_eq!(asked().await.unwrap(), progress(21));
    let read = |no, index| BTreeMap::from([(Arc::from("import"), Position::new(no, index))]);
    let positions = BTreeMap::from([(Arc::from("embedded"), read(1, 3))]);
    committed(&store, &Commit { positions, ..commit(0, epoch, 1) }).await;
    assert_eq!(store.queries().unread_imports().await.unwrap(), 20, "a row half read counts whole");
    let positions = BTreeMap::from([(Arc::from("embedded"), read(1, 6))]);
    committed(&store, &Commit { positions, ..commit(0, epoch, 2) }).await;
    assert_eq!(store.queries().unread_imports().await.unwrap(), 13);
    let unread: Vec<u64> = store.queries().shards().await.unwrap().iter().map(|shard| shard.unread).collect();
    assert_eq!(unread, [10, 3, 0, 0]);
    let log = Ahead::from([(Arc::from("import"), vec![Stretch::up_to(Position::new(2, 9))])]);
    store.trim(0, Trim { log, ..Trim::default() }).await.unwrap();
    drop(store);
    place.restart().await;
    let store = place.store();
    store.queries().append_import(batch(22, vec![log_row(0, 1, "w")])).await.unwrap();
    let rows = store.read_log(0, Positions::new(), 100).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert!(rows[0].no > 2, "a lane's numbers go on even when its rows are gone: {rows:?}");
}

async fn what_is_sent_goes_on_in_the_lane_of_imports(place: Box<impl Place>) {
    let (store, ..) = begin(&*place, 0).await;
    let queries = store.queries();
    queries.append(vec![log_row(0, 7, "x"), log_row(1, 3, "y")]).await.unwrap();
    let batch = ImportBatch {
        service: "balances".into(),
        source: "file.csv".to_owned(),
        rows: vec![log_row(0, 1, "z")],
        progress: ImportProgress { lines: 1, ..ImportProgress::default() },
        at: 5,
    };
    queries.append_import(batch.clone()).await.unwrap();
    queries.append(vec![log_row(0, 2, "w")]).await.unwrap();
    assert_eq!(queries.unread_imports().await.unwrap(), 13);
    let rows = store.read_log(0, Positions::new(), 100).await.unwrap();
    assert_eq!(places(&rows), [("import", 1), ("import", 2), ("import", 3)]);
    assert_eq!(rows[2].messages, "w");
    let progress = queries.import_progress("balances".to_owned(), "file.csv".to_owned()).await.unwrap();
    assert_eq!(progress, batch.progress, "an append is no part of an import");
    // Two rows for one place: all of it or nothing.
    let twice = vec![log_row(1, 1, "v"), log_row(2, 5, "x"), log_row(2, 5, "y")];
    assert!(queries.append(twice).await.is_err());
    assert_eq!(queries.unread_imports().await.unwrap(), 13);
}

async fn a_command_is_open_until_its_shard_is_done(place: Box<impl Place>) {
    let (store, _, epoch) = begin(&*place, 0).await;
    let filter = DeadFilter { key: Some("k".into()), until: Some(9), ..DeadFilter::default() };
    let new = NewCommand {
        action: Action::Replay,
        filter: filter.clone(),
        who: "ann".into(),
        why: "fixed".into(),
        matched: 2,
        at: 7,
    };
    let id = store.queries().command(new.clone()).await.unwrap();
    let second = store.queries().command(NewCommand { action: Action::Discard, ..new }).await.unwrap();
    let open: Vec<_> = store.queries().open_commands(0, Vec::new()).await.unwrap().into_iter().flatten().collect();
    assert_eq!(open.iter().map(|command| command.id).collect::<Vec<_>>(), [id, second]);
    assert_eq!((&open[0].action, &open[0].filter, open[0].who.as_str()), (&Action::Replay, &filter, "ann"));
    let result =
        |affected, done| Part { command: Some(CommandResult { command: id, affected, done }), ..Part::default() };
    committed(&store, &with(result(2, false), commit(0, epoch, 1))).await;
    assert_eq!(store.queries().open_commands(0, Vec::new()).await.unwrap().len(), 2);
    committed(&store, &with(result(1, true), commit(0, epoch, 2))).await;
    assert_eq!(store.queries().open_commands(0, Vec::new()).await.unwrap().len(), 1);
    assert_eq!(store.queries().open_commands(1, Vec::new()).await.unwrap().len(), 2);
    let state = store.queries().command_state(id).await.unwrap();
    assert_eq!((state.shards_done, state.shards, state.affected), (1, SHARDS, 3));
}

async fn events_are_numbered_on_and_paged(place: Box<impl Place>) {
    let (store, identity, epoch) = begin(&*place, 0).await;
    let mut next = 1;
    for no in 1..=4 {
        let mut written = full(&identity, 0, epoch, no, &format!("{no}"));
        written.first_seq = next;
        let event = written.parts[0].events[0].clone();
        written.parts[0].events = vec![event; if no == 2 { 0 } else { 2 }];
        next += written.events().count() as u64;
        committed(&store, &written).await;
    }
    let found = async |after, limit| seqs(&store.queries().events(0, after, limit).await.unwrap(), |row| row.seq);
    assert_eq!(found(0, 9).await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(found(1, 9).await, [2, 3, 4, 5, 6]);
    assert_eq!(found(2, 1).await, [3, 4]);
    assert_eq!(found(3, 1).await, [4]);
    assert_eq!(found(6, 9).await, [0; 0]);
    assert_eq!(store.take(0, "me").await.unwrap().outbox_seq, 6);
}

/// Of the databases: large commits come a few at a time, and reading on finds all of them.
pub(crate) async fn pages_of_large_commits_are_bounded(place: &dyn Place) {
    let (store, identity, epoch) = begin(place, 0).await;
    let payload = vec![b'x'; 3 << 20];
    for no in 1..=6 {
        let mut written = full(&identity, 0, epoch, no, &format!("{no}"));
        written.first_seq = no;
        let mut event = written.parts[0].events[0].clone();
        let id = format!("large-{no}");
        event.message = Draft { id: &id, key: "k", payload: &payload, ..Draft::default() }.build_unchecked().unwrap();
        written.parts[0].events = vec![event];
        committed(&store, &written).await;
    }
    let (mut from, mut pages) = (0, Vec::<Vec<u64>>::new());
    loop {
        let after = pages.iter().flatten().last().copied().unwrap_or(0);
        let rows = store.outbox(0, from, after, 256).await.unwrap();
        let Some(last) = rows.last() else { break };
        from = last.commit.no;
        pages.push(seqs(&rows, |row| row.seq));
    }
    // The commit that was read last is looked at again, and counts.
    assert_eq!(pages, [vec![1, 2], vec![3], vec![4], vec![5], vec![6]]);
    assert_eq!(seqs(&store.queries().events(0, 0, 256).await.unwrap(), |row| row.seq).len(), 6, "a tool's question");
}
