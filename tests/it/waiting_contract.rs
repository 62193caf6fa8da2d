//! The promises of every store about long waits: other services' rows, dead letters in any number, operators' commands.
//! In: a place with a prepared store. Out: the same behaviour everywhere.

use std::sync::Arc;

use perkey::Table;
use perkey::unstable::message::TakenId;
use perkey::unstable::store::query::{DeadFilter, NewCommand, OperatorAction, Scope, Story};
use perkey::unstable::store::{
    CommandResult, Commit, DeadLetter, Due, DueTimers, Epoch, HistoryRow, Letters, OldLetters, Part, PendingRow,
    Runnable, ServiceKey, Setup, Store, TimerWrite,
};

use crate::fixture::{Place, SHARDS, commit, committed, letter, message, pending, runnable, setup};
use crate::store_contract::contract;

contract! {
    memory: crate::fixture::MemoryPlace::new();
    sqlite: crate::fixture::SqlitePlace::new();
    postgres: crate::postgres_place::PostgresPlace::new();
    => [
        what_others_have_is_not_due,
        paused_keys_are_not_due,
        what_waits_for_a_service_is_told,
        ids_are_found_among_rows_and_letters,
        letters_are_counted_and_old_ones_found,
        what_is_paused_outlives_the_command_that_said_so,
        a_command_is_kept_until_every_shard_has_done_it,
        strange_commands_are_passed_over,
        the_newest_lines_are_told_and_what_is_cut_is_said,
    ]
}

async fn begin(place: &dyn Place) -> (Arc<dyn Store>, Epoch) {
    let store = place.store();
    let tables: Vec<Table> = Vec::new();
    let services = ["balances", "audit", "ghost"].map(Arc::from).to_vec();
    store.prepare(Setup { services, tables, ..setup() }).await.unwrap();
    let epoch = store.take(0, "me").await.unwrap().epoch;
    (store, epoch)
}

fn of(service: &str, key: &str) -> ServiceKey {
    ServiceKey { service: service.into(), key: key.into() }
}

fn row(service: &str, seq: u64, key: &str, due_at: Option<u64>) -> PendingRow {
    PendingRow { service: service.into(), ..pending(seq, key, due_at) }
}

fn timer(service: &str, key: &str, due_at: u64) -> TimerWrite {
    let set = Some((due_at, message(&format!("timer-{key}"), key, b"{}")));
    TimerWrite { service: service.into(), key: key.into(), name: "t".into(), set }
}

fn keys(due: &Due) -> Vec<(&str, &str)> {
    due.keys.iter().map(|of| (&*of.service, &*of.key)).collect()
}

fn names(due: &DueTimers) -> Vec<(&str, &str)> {
    due.timers.iter().map(|timer| (&*timer.of.service, &*timer.of.key)).collect()
}

/// A ghost's rows come first by their time; two services' come behind them.
async fn haunted(store: &Arc<dyn Store>, epoch: Epoch) {
    let ghosts = (1..=100).map(|n| row("ghost", n, &format!("g{n}"), Some(n)));
    let mine =
        [row("balances", 201, "b", Some(300)), row("audit", 202, "a", Some(200)), row("balances", 203, "o", None)];
    let orphans = [row("ghost", 204, "orphan", None), row("audit", 205, "o", None)];
    let timers = (1..=100).map(|n| timer("ghost", &format!("t{n}"), n));
    let timers = timers.chain([timer("balances", "x", 300), timer("audit", "y", 200), timer("audit", "z", 900)]);
    let part =
        Part { pending: ghosts.chain(mine).chain(orphans).collect(), timers: timers.collect(), ..Part::default() };
    committed(store, &Commit { parts: vec![part], ..commit(0, epoch, 1) }).await;
}

async fn what_others_have_is_not_due(place: Box<impl Place>) {
    let (store, epoch) = begin(&*place).await;
    haunted(&store, epoch).await;
    let due = store.due(0, 300, runnable(), 9).await.unwrap();
    assert_eq!((keys(&due), due.next), (vec![("audit", "a"), ("balances", "b")], None));
    let due = store.due(0, 300, runnable(), 1).await.unwrap();
    assert_eq!((keys(&due), due.next), (vec![("audit", "a")], Some(300)));
    assert_eq!(store.due(0, 100, runnable(), 9).await.unwrap(), Due { keys: Vec::new(), next: Some(200) });
    let due = store.timers(0, 300, runnable(), 9).await.unwrap();
    assert_eq!((names(&due), due.any, due.next), (vec![("audit", "y"), ("balances", "x")], true, Some(900)));
    assert_eq!(names(&store.timers(0, 300, runnable(), 1).await.unwrap()), [("audit", "y")], "the longest due");
    let early = store.timers(0, 100, runnable(), 9).await.unwrap();
    assert_eq!((early.timers.len(), early.any, early.next), (0, false, Some(200)));
    let all = store.orphans(0, runnable(), None, 9).await.unwrap();
    assert_eq!(all, [of("audit", "o"), of("balances", "o")]);
    assert_eq!(store.orphans(0, runnable(), None, 1).await.unwrap(), all[..1]);
    assert_eq!(store.orphans(0, runnable(), Some(all[0].clone()), 9).await.unwrap(), all[1..]);
    let nobody = Runnable::default;
    assert_eq!(store.due(0, 300, nobody(), 9).await.unwrap(), Due::default());
    assert_eq!(store.timers(0, 300, nobody(), 9).await.unwrap(), DueTimers::default());
    assert!(store.orphans(0, nobody(), None, 9).await.unwrap().is_empty());
}

async fn paused_keys_are_not_due(place: Box<impl Place>) {
    let (store, epoch) = begin(&*place).await;
    haunted(&store, epoch).await;
    let without = ["a", "o", "y", "z"].map(|key| of("audit", key)).to_vec();
    let runnable = Runnable { without, ..runnable() };
    assert_eq!(keys(&store.due(0, 300, runnable.clone(), 9).await.unwrap()), [("balances", "b")]);
    let due = store.timers(0, 299, runnable.clone(), 9).await.unwrap();
    assert_eq!((due.timers.len(), due.any), (0, false), "a paused key's timer is none that is waited for");
    assert_eq!(store.orphans(0, runnable, None, 9).await.unwrap(), [of("balances", "o")]);
}

async fn what_waits_for_a_service_is_told(place: Box<impl Place>) {
    let (store, epoch) = begin(&*place).await;
    haunted(&store, epoch).await;
    let found = store.of_service(0, "ghost".into(), 2).await.unwrap();
    assert_eq!(found.pending.iter().map(|row| &*row.key).collect::<Vec<_>>(), ["g1", "g10"]);
    assert_eq!(found.timers.len(), 2);
    assert_eq!(found.pending[0], row("ghost", 1, "g1", Some(1)), "every field comes back");
    let all = store.of_service(0, "audit".into(), 9).await.unwrap();
    assert_eq!((all.pending.len(), all.timers.len()), (2, 2));
    assert_eq!(store.of_service(1, "ghost".into(), 9).await.unwrap(), perkey::unstable::store::OfService::default());
    let top = store.queries().waiting_keys(Some("audit".to_owned()), 9).await.unwrap();
    assert_eq!(top.iter().map(|key| key.of.clone()).collect::<Vec<_>>(), [of("audit", "a"), of("audit", "o")]);
    let waiting = store.queries().count_waiting(vec![0, 1]).await.unwrap();
    assert_eq!(waiting, [(0, 105), (1, 0)], "keys");
    let holds = DeadLetter { service: "balances".into(), ..letter(301, "b", true) };
    let passed = DeadLetter { service: "balances".into(), ..letter(302, "o", false) };
    let part = Part { dead: vec![holds, passed], ..Part::default() };
    committed(&store, &Commit { parts: vec![part], ..commit(0, epoch, 2) }).await;
    let waiting = store.queries().count_waiting(vec![0, 1]).await.unwrap();
    assert_eq!(waiting, [(0, 104), (1, 0)], "keys that are held wait for an operator");
    assert_eq!(store.queries().shards().await.unwrap()[0].waiting_keys, 104);
}

async fn ids_are_found_among_rows_and_letters(place: Box<impl Place>) {
    let (store, epoch) = begin(&*place).await;
    let odd = "odd '\u{241B}";
    let part = Part { pending: vec![pending(1, odd, None)], dead: vec![letter(2, "k", false)], ..Part::default() };
    committed(&store, &Commit { parts: vec![part], ..commit(0, epoch, 1) }).await;
    let (row, dead) = (pending(1, odd, None), letter(2, "k", false));
    let ask = |id: TakenId, message: &str| (id, message.to_owned());
    let (row_id, dead_id) = (row.message.id().to_owned(), dead.message.id().to_owned());
    let asked = vec![
        ask(TakenId([9; TakenId::BYTES]), &row_id),
        ask(dead.id, &dead_id),
        ask(row.id, &row_id),
        ask(TakenId([9; TakenId::BYTES]), "never"),
    ];
    assert_eq!(store.known(0, asked.clone()).await.unwrap(), [false, true, true, false]);
    assert_eq!(store.known(1, asked.clone()).await.unwrap(), [false; 4], "of another shard");
    let gone = Part { settled: vec![1], undead: vec![2], ..Part::default() };
    committed(&store, &Commit { parts: vec![gone], ..commit(0, epoch, 2) }).await;
    assert_eq!(store.known(0, asked).await.unwrap(), [false; 4]);
    assert!(store.known(0, Vec::new()).await.unwrap().is_empty());
}

async fn letters_are_counted_and_old_ones_found(place: Box<impl Place>) {
    let (store, epoch) = begin(&*place).await;
    let hash_key = store.prepare(setup()).await.unwrap().hash_key;
    let refused = letter(5, "r", false);
    let refused = DeadLetter { id: TakenId::outgoing(&refused.message, &hash_key), ..refused };
    let dead = vec![letter(1, "a", false), letter(2, "b", true), letter(3, "c", false), refused];
    committed(&store, &Commit { parts: vec![Part { dead, ..Part::default() }], ..commit(0, epoch, 1) }).await;
    assert_eq!(store.letters(0).await.unwrap(), Letters { count: 4, holding: 1, refused: 1 });
    assert_eq!(store.letters(1).await.unwrap(), Letters::default());
    // They were given up at 2,000 and their number.
    let old = store.old(0, 0, 2_003).await.unwrap();
    assert_eq!(
        (old.letters.iter().map(|old| old.seq).collect::<Vec<_>>(), old.last),
        (vec![1], Some(5)),
        "not what holds"
    );
    let dead = letter(1, "a", false);
    let first = &old.letters[0];
    assert_eq!((&*first.key, first.id, &*first.message_id), ("a", dead.id, dead.message.id()));
    let old = store.old(0, 1, 9_999).await.unwrap();
    assert_eq!(old.letters.iter().map(|old| old.seq).collect::<Vec<_>>(), [3, 5]);
    assert_eq!(store.old(0, 5, 9_999).await.unwrap(), OldLetters::default());
}

fn new(action: OperatorAction, at: u64) -> NewCommand {
    NewCommand { action, filter: DeadFilter::default(), who: "ann".into(), why: "to look".into(), matched: 1, at }
}

async fn done(store: &Arc<dyn Store>, shard: u32, command: i64) {
    let taken = store.take(shard, "me").await.unwrap();
    let part = Part { command: Some(CommandResult { command, affected: 0, done: true }), ..Part::default() };
    let commit = Commit { parts: vec![part], ..commit(shard, taken.epoch, taken.commit_no + 1) };
    committed(store, &commit).await;
}

async fn what_is_paused_outlives_the_command_that_said_so(place: Box<impl Place>) {
    let (store, _) = begin(&*place).await;
    let scope = Scope { service: "balances".to_owned(), key: Some("k".to_owned()) };
    let id = store.queries().command(new(OperatorAction::Pause(scope.clone()), 5)).await.unwrap();
    for shard in 0..SHARDS {
        done(&store, shard, id).await;
    }
    assert_eq!(store.queries().forget_commands(6, 9).await.unwrap(), 1);
    let paused = store.queries().pauses().await.unwrap();
    assert_eq!(paused.iter().map(|pause| (&pause.scope, &*pause.why)).collect::<Vec<_>>(), [(&scope, "to look")]);
    assert_eq!(store.inbox(0, 0, 9).await.unwrap().paused, std::slice::from_ref(&scope));
    store.queries().command(new(OperatorAction::Resume(scope), 7)).await.unwrap();
    assert!(store.queries().pauses().await.unwrap().is_empty());
}

async fn a_command_is_kept_until_every_shard_has_done_it(place: Box<impl Place>) {
    let (store, _) = begin(&*place).await;
    let ids = [1, 2, 3].map(|at| new(OperatorAction::Replay, at));
    let mut made = Vec::new();
    for command in ids {
        made.push(store.queries().command(command).await.unwrap());
    }
    for shard in 0..SHARDS {
        done(&store, shard, made[1]).await;
    }
    for shard in 1..SHARDS {
        done(&store, shard, made[0]).await;
    }
    let open = async |shard| -> Vec<i64> {
        let open = store.queries().open_commands(shard, Vec::new()).await.unwrap();
        open.into_iter().flatten().map(|command| command.id).collect()
    };
    assert_eq!((open(0).await, open(1).await), (vec![made[0], made[2]], vec![made[2]]));
    assert_eq!(store.queries().forget_commands(2, 9).await.unwrap(), 0, "one is open, another too young");
    assert_eq!(store.queries().forget_commands(9, 9).await.unwrap(), 1);
    assert_eq!(store.queries().command_state(made[1]).await.unwrap().shards_done, 0, "nothing is left of it");
    assert_eq!(store.queries().command_state(made[0]).await.unwrap().shards_done, SHARDS - 1);
    assert_eq!(open(0).await, [made[0], made[2]]);
    let next = store.queries().command(new(OperatorAction::Discard, 9)).await.unwrap();
    assert!(next > made[2], "numbers are not used again");
}

async fn strange_commands_are_passed_over(place: Box<impl Place>) {
    let (store, _) = begin(&*place).await;
    let mut made = Vec::new();
    for at in 0..250 {
        made.push(store.queries().command(new(OperatorAction::Replay, at)).await.unwrap());
    }
    let (strange, last) = made.split_at(249);
    let open = store.queries().open_commands(0, strange.to_vec()).await.unwrap();
    assert_eq!(open.into_iter().flatten().map(|command| command.id).collect::<Vec<_>>(), last);
}

async fn the_newest_lines_are_told_and_what_is_cut_is_said(place: Box<impl Place>) {
    let (store, epoch) = begin(&*place).await;
    let line = |at: u64| HistoryRow {
        service: "balances".into(),
        key: "k".into(),
        id: "m".to_owned(),
        at,
        attempt: 1,
        generation: 0,
        what: "fault".to_owned(),
        error: format!("no {at}"),
    };
    let most = Story::LINES_MAX as u64;
    for (no, lines) in [(1, 1..=most), (2, most + 1..=most + 5)] {
        let part = Part { history: lines.map(line).collect(), ..Part::default() };
        committed(&store, &Commit { parts: vec![part], ..commit(0, epoch, no) }).await;
        let story = store.queries().explain("m".to_owned()).await.unwrap();
        assert_eq!(story.history.len() as u64, most);
        let (first, last, cut) = if no == 1 { (1, most, vec![]) } else { (6, most + 5, vec!["history"]) };
        assert_eq!((story.history[0].at, story.history[story.history.len() - 1].at, story.cut), (first, last, cut));
    }
}
