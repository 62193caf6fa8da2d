//! Services and keys that operators pause start no turn, whatever comes, until they are resumed; others do not notice.
//! In: two handlers, commands, restarts. Out: the handled messages, in their order.

use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::clock::Clock;
use perkey::unstable::store::query::{DeadFilter, NewCommand, OperatorAction, Scope};
use perkey::unstable::store::sqlite::SqliteStore;
use perkey::unstable::store::{PendingKind, ServiceKey, Store};
use perkey::{Draft, Engine, Fault, Handler, Handlers, Key, Message, Settings, Turn};
use perkey_chaos::process::{built, until};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::support::{Counted, Counting, append, count, open, start, state};

const PATIENCE: Duration = Duration::from_secs(30);

/// Lists what it is told; asked to, it has itself told more by a timer.
struct Listing;

#[derive(Serialize, Deserialize)]
struct Word {
    key: String,
    word: String,
    timer: Option<String>,
}

impl Handler for Listing {
    const SERVICE: &'static str = "listing";
    type Message = Word;
    type State = Vec<String>;

    fn key(&self, word: &Word) -> Key {
        word.key.as_str().into()
    }

    async fn handle(&self, list: &mut Vec<String>, word: Word, turn: &mut Turn) -> Result<(), Fault> {
        if let Some(timer) = word.timer {
            let at = turn.now() + 2_500;
            turn.schedule("later", at, &Word { key: word.key, word: timer, timer: None })?;
        }
        list.push(word.word);
        Ok(())
    }
}

/// Another program's handler.
struct Another;

impl Handler for Another {
    const SERVICE: &'static str = "another";
    type Message = Word;
    type State = ();

    fn key(&self, word: &Word) -> Key {
        word.key.as_str().into()
    }

    async fn handle(&self, (): &mut (), _: Word, _: &mut Turn) -> Result<(), Fault> {
        Ok(())
    }
}

fn word(key: &str, word: &str, timer: Option<&str>) -> Message {
    let payload = json!({ "key": key, "word": word, "timer": timer }).to_string();
    let id = format!("{key}/{word}");
    Draft { id: &id, key, kind: "word", payload: payload.as_bytes(), ..Draft::default() }.build().unwrap()
}

fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.pending.spill_after = Duration::from_millis(200);
    settings
}

async fn began(store: &Arc<SqliteStore>) -> Engine {
    start(&settings(), store.clone(), Handlers::new().with(Listing).with(Counting)).await
}

pub(crate) fn scope(service: &str, key: Option<&str>) -> Scope {
    Scope { service: service.to_owned(), key: key.map(str::to_owned) }
}

pub(crate) async fn tell(store: &dyn Store, action: OperatorAction) {
    let (filter, who, why) = (DeadFilter::default(), "ann".to_owned(), "to look".to_owned());
    let new = NewCommand { action, filter, who, why, matched: 1, at: Clock::system().now() };
    let id = store.queries().command(new).await.unwrap();
    let done = async || {
        let state = store.queries().command_state(id).await.unwrap();
        state.shards_done == state.shards
    };
    until("the command is done", PATIENCE, done).await.unwrap();
}

async fn list(store: &dyn Store, key: &str) -> Vec<String> {
    state(store, "listing", key).await.unwrap_or_default()
}

/// Has the other service handle something, which takes as long as handling anything.
async fn others_go_on(store: &dyn Store, id: &str) {
    let before = state::<Counted>(store, "counting", "o").await.unwrap_or_default().n;
    append(store, settings().ownership.shards, "counting", &[count(id, "o", None)]).await;
    let counted = async || state::<Counted>(store, "counting", "o").await.unwrap_or_default().n > before;
    until("the other service goes on", PATIENCE, counted).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_service_starts_no_turn_until_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s.db")).await;
    let shards = settings().ownership.shards;
    let engine = began(&store).await;
    append(&*store, shards, "listing", &[word("a", "0", Some("rings"))]).await;
    until("it runs", PATIENCE, async || list(&*store, "a").await == ["0"]).await.unwrap();
    tell(&*store, OperatorAction::Pause(scope("listing", None))).await;
    let words: Vec<_> = (1..=30).map(|n| word(["a", "b"][n % 2], &n.to_string(), None)).collect();
    append(&*store, shards, "listing", &words).await;
    // They are spilled: no source waits for them.
    let spilled = async || store.queries().shards().await.unwrap().iter().map(|row| row.pending).sum::<u64>() == 30;
    until("they have rows", PATIENCE, spilled).await.unwrap();
    others_go_on(&*store, "o-1").await;
    engine.drain().await.unwrap();

    let engine = began(&store).await;
    others_go_on(&*store, "o-2").await;
    append(&*store, shards, "listing", &[word("c", "31", None)]).await;
    // The timer is due meanwhile.
    perkey::sleep(Duration::from_secs(3)).await;
    others_go_on(&*store, "o-3").await;
    assert_eq!((list(&*store, "a").await, list(&*store, "b").await), (vec!["0".to_owned()], Vec::new()));
    assert!(list(&*store, "c").await.is_empty());

    tell(&*store, OperatorAction::Resume(scope("listing", None))).await;
    let all = async || (list(&*store, "a").await.len(), list(&*store, "b").await.len()) == (17, 15);
    until("all are handled", PATIENCE, all).await.unwrap();
    until("the third key, too", PATIENCE, async || list(&*store, "c").await == ["31"]).await.unwrap();
    let numbers = |list: Vec<String>| list.into_iter().filter(|word| word != "rings").collect::<Vec<_>>();
    let expected = |rest: usize| (1..=30).filter(|n| n % 2 == rest).map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(numbers(list(&*store, "a").await)[1..], expected(0));
    assert_eq!(list(&*store, "b").await, expected(1));
    engine.idle().await;
    engine.drain().await.unwrap();
    assert_eq!(store.queries().count_dead(DeadFilter::default()).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_key_waits_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s.db")).await;
    let shards = settings().ownership.shards;
    let engine = began(&store).await;
    tell(&*store, OperatorAction::Pause(scope("listing", Some("a")))).await;
    let words: Vec<_> = (0..20).map(|n| word(["a", "b"][n % 2], &n.to_string(), None)).collect();
    append(&*store, shards, "listing", &words).await;
    until("the other key is handled", PATIENCE, async || list(&*store, "b").await.len() == 10).await.unwrap();
    let key = ServiceKey { service: "listing".into(), key: "a".into() };
    let shard = perkey::unstable::message::shard_of("a", shards);
    let rows = async || store.page(shard, key.clone(), 0, 100).await.unwrap();
    until("they are spilled", PATIENCE, async || rows().await.len() == 10).await.unwrap();
    assert!(rows().await.iter().all(|row| row.kind == PendingKind::Follower && row.attempt == 0));
    assert!(list(&*store, "a").await.is_empty());
    // A service that is resumed has no paused keys.
    tell(&*store, OperatorAction::Resume(scope("listing", None))).await;
    until("it is handled", PATIENCE, async || list(&*store, "a").await.len() == 10).await.unwrap();
    engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_service_that_no_program_has_is_given_up_by_an_operator() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("s.db")).await;
    let (mut settings, shards) = (settings(), settings().ownership.shards);
    // Both wait for longer than the test takes.
    settings.retry.base = Duration::from_secs(3_600);
    settings.retry.cap = Duration::from_secs(3_600);
    let engine = start(&settings, store.clone(), Handlers::new().with(Listing).with(Counting)).await;
    append(&*store, shards, "counting", &[count("fails", "c", Some("always")), count("behind", "c", None)]).await;
    append(&*store, shards, "listing", &[word("a", "0", Some("rings"))]).await;
    let waits = async || store.queries().waiting_keys(Some("counting".to_owned()), 9).await.unwrap();
    until("they wait", PATIENCE, async || waits().await.first().is_some_and(|key| key.pending == 2)).await.unwrap();
    until("it runs", PATIENCE, async || !list(&*store, "a").await.is_empty()).await.unwrap();
    tell(&*store, OperatorAction::Drop("counting".to_owned())).await;
    assert_eq!(waits().await.len(), 1, "what runs here is not given up");
    engine.drain().await.unwrap();

    let engine = start(&settings, store.clone(), Handlers::new().with(Another)).await;
    tell(&*store, OperatorAction::Drop("counting".to_owned())).await;
    tell(&*store, OperatorAction::Drop("listing".to_owned())).await;
    assert!(waits().await.is_empty());
    assert!(store.queries().scheduled(None, None, 9).await.unwrap().is_empty(), "the timer is gone");
    let letters = store.queries().peek(DeadFilter::default(), 9).await.unwrap();
    let mut ids: Vec<_> = letters.iter().map(|(_, letter)| letter.message.id()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["behind", "fails"], "nothing is lost");
    assert!(letters.iter().all(|(_, letter)| letter.error.contains("given up by ann") && !letter.holds_key));
    let rows = store.queries().shards().await.unwrap();
    let counted: u64 = rows.iter().map(|row| row.counters["dead_letters_now"]).sum();
    assert_eq!(counted, 2, "commits know how many there are");
    tell(&*store, OperatorAction::Discard).await;
    assert_eq!(store.queries().count_dead(DeadFilter::default()).await.unwrap(), 0);
    engine.drain().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_pauses_resumes_and_says_so() {
    let binary = tokio::task::spawn_blocking(built).await.unwrap().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let place = perkey_chaos::process::Place::new(&binary, dir.path());
    let run = async |args: &[&str]| {
        let output = place.run(args, PATIENCE).await.unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.code().unwrap(), text)
    };
    std::fs::write(dir.path().join("p.csv"), "id,account,amount,currency,at\np-1,a,1.00,EUR,2026-01-31\n").unwrap();
    assert_eq!(run(&["import", "--service", "balances", "p.csv"]).await.0, 0);
    let (code, text) = run(&["service:pause", "balances", "--why", "to look"]).await;
    assert!(code == 0 && text.contains("when a process runs the store"), "{code} {text}");
    assert_eq!(run(&["service:pause", "balances", "--why", "again"]).await.0, 3, "it is so already");
    assert_eq!(run(&["service:pause", "balance", "--why", "no such"]).await.0, 64);
    let (code, text) = run(&["key:resume", "--service", "balances", "--key", "a", "--why", "x"]).await;
    assert!(code == 64 && text.contains("service balances is paused"), "{code} {text}");
    let (_, text) = run(&["status"]).await;
    assert!(text.contains("service balances is paused since") && text.contains("to look"), "{text}");
    assert_eq!(run(&["service:resume", "balances", "--why", "seen"]).await.0, 0);
    assert_eq!(run(&["key:pause", "--service", "balances", "--key", "a", "--why", "x"]).await.0, 0);
    let (_, text) = run(&["status", "--output", "json"]).await;
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&status["paused"][0]["key"], &status["paused"][1]), (&json!("a"), &json!(null)));
    let (code, text) = run(&["service:drop", "balances", "--why", "gone"]).await;
    assert!(code == 64 && text.contains("this program has service balances"), "{code} {text}");
    let (code, text) = run(&["service:drop", "ghost", "--why", "gone"]).await;
    assert!(code == 3 && text.contains("Nothing waits for service ghost"), "{code} {text}");
}
