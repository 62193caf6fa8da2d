//! Schedules: each time once, in the key that they are of, whatever restarts, fails or changes between.
//! In: handlers with schedules, engines on one store. Out: the messages that their keys have seen, and their timers.

use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::clock::Clock;
use perkey::unstable::message::shard_of;
use perkey::unstable::metrics::{Child, Metrics};
use perkey::unstable::settings::CronSettings;
use perkey::unstable::store::query::DeadFilter;
use perkey::unstable::store::sqlite::SqliteStore;
use perkey::unstable::store::{DeadLetter, Store};
use perkey::{Engine, EngineError, Fault, Handler, Handlers, Key, Schedule, Settings, Turn};
use perkey_chaos::process::until;
use serde_json::json;

use crate::support::{append, count, open, start, state};

/// Notes the times at which it should have been told what it is told.
struct Beats(Vec<Schedule>);

impl Handler for Beats {
    const SERVICE: &'static str = "beats";
    type Message = String;
    type State = Vec<(String, u64)>;

    fn key(&self, _: &String) -> Key {
        "heart".into()
    }

    fn schedules(&self) -> Vec<Schedule> {
        self.0.clone()
    }

    async fn handle(&self, beats: &mut Vec<(String, u64)>, said: String, turn: &mut Turn) -> Result<(), Fault> {
        match said.as_str() {
            "fail" => return Err(Fault::retry("as told")),
            "cancel" => turn.cancel("cron:beat")?,
            "schedule" => turn.schedule("cron:beat", turn.now(), &"beat")?,
            _ => {}
        }
        assert!(turn.now() >= turn.message().time(), "too early");
        beats.push((said, turn.message().time()));
        Ok(())
    }
}

fn beat(cron: &str) -> Schedule {
    Schedule::new("beat", cron, "heart", &"beat")
}

fn handlers(schedules: &[Schedule]) -> Handlers {
    Handlers::new().with(Beats(schedules.to_vec()))
}

async fn beats(store: &dyn Store) -> Vec<u64> {
    let beats: Vec<(String, u64)> = state(store, "beats", "heart").await.unwrap_or_default();
    beats.into_iter().map(|(_, at)| at).collect()
}

/// Waits until so many were seen.
async fn seen(store: &dyn Store, many: usize) {
    let enough = async || beats(store).await.len() >= many;
    until("the beats", Duration::from_secs(30), enough).await.unwrap();
}

/// The dead letters of the key.
async fn letters(store: &dyn Store) -> Vec<DeadLetter> {
    store.dead(home(), DeadFilter::default(), None, 100).await.unwrap()
}

fn home() -> u32 {
    shard_of("heart", Settings::default().ownership.shards)
}

/// Name, expression and next time of what is set.
async fn set(store: &dyn Store) -> Vec<(String, Option<String>, u64)> {
    let timers = store.queries().scheduled(None, None, 10).await.unwrap();
    timers.into_iter().map(|t| (t.name.to_string(), t.schedule().map(str::to_owned), t.due_at)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_time_comes_once_across_restarts_and_what_was_missed_comes_once_late() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, store) = (Settings::default(), open(&dir.path().join("s.db")).await);
    let schedules = [beat("* * * * * *")];
    let engine = start(&settings, store.clone(), handlers(&schedules)).await;
    seen(&*store, 2).await;
    engine.drain().await.unwrap();
    let before = beats(&*store).await;
    let next = set(&*store).await[0].2;
    // Nobody runs it when the next three should come.
    let passed = async || Clock::system().now() > next + 2_100;
    until("three have passed", Duration::from_secs(10), passed).await.unwrap();
    let started = Clock::system().now();
    let engine = start(&settings, store.clone(), handlers(&schedules)).await;
    seen(&*store, before.len() + 3).await;
    // It is lost and taken again, without a drain.
    engine.kill(home() as usize, Child::Shard).await;
    seen(&*store, before.len() + 5).await;
    engine.drain().await.unwrap();
    let all = beats(&*store).await;
    assert!(all.is_sorted_by(|a, b| a < b), "each time once, in order: {all:?}");
    assert!(all.iter().all(|at| at.is_multiple_of(1_000)), "each at its second: {all:?}");
    let late: Vec<_> = all[before.len()..].iter().filter(|at| **at < started).collect();
    assert_eq!(late, [&next], "of those that were missed the first comes, late: {all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_fails_does_not_stop_its_schedule() {
    let dir = tempfile::tempdir().unwrap();
    let (mut settings, store) = (Settings::default(), open(&dir.path().join("s.db")).await);
    settings.retry.attempts = 2;
    settings.retry.base = Duration::from_millis(5);
    let schedules = [Schedule::new("beat", "* * * * * *", "heart", &"fail")];
    let engine = start(&settings, store.clone(), handlers(&schedules)).await;
    let dead = async || letters(&*store).await;
    let enough = async || dead().await.len() >= 3;
    until("three dead letters", Duration::from_secs(30), enough).await.unwrap();
    engine.drain().await.unwrap();
    let letters = dead().await;
    let mut times: Vec<_> = letters.iter().map(|letter| letter.message.time()).collect();
    times.sort_unstable();
    assert!(times.is_sorted_by(|a, b| a < b), "one for each time: {times:?}");
    assert!(letters.iter().all(|letter| letter.history.len() == 2), "{letters:?}");
    let set = set(&*store).await;
    assert!(set.len() == 1 && set[0].2 > times[times.len() - 1], "{set:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_follows_its_handler_and_the_settings() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, store) = (Settings::default(), open(&dir.path().join("s.db")).await);
    let run = async |settings: &Settings, schedules: &[Schedule]| {
        let engine = start(settings, store.clone(), handlers(schedules)).await;
        engine.idle().await;
        engine.drain().await.unwrap();
        set(&*store).await
    };
    let newyear = beat("0 0 1 1 *").zone("Asia/Tokyo");
    let first = run(&settings, std::slice::from_ref(&newyear)).await;
    let expected = ("cron:beat".to_owned(), Some("0 0 1 1 * Asia/Tokyo".to_owned()));
    assert_eq!(first.iter().map(|(name, words, _)| (name.clone(), words.clone())).collect::<Vec<_>>(), [expected]);
    assert_eq!(run(&settings, std::slice::from_ref(&newyear)).await, first, "the same again changes nothing");
    let section = |cron: &str, enabled| CronSettings {
        service: "beats".to_owned(),
        name: "beat".to_owned(),
        cron: cron.to_owned(),
        zone: String::new(),
        enabled,
    };
    let with = |section| Settings { cron: vec![section], ..settings.clone() };
    let changed = run(&with(section("0 0 2 1 *", true)), std::slice::from_ref(&newyear)).await;
    assert_eq!(changed[0].1.as_deref(), Some("0 0 2 1 * Asia/Tokyo"));
    assert_eq!(changed[0].2 % (86_400_000), 54_000_000, "midnight in Tokyo is 15:00 UTC");
    assert_eq!(run(&with(section("", false)), std::slice::from_ref(&newyear)).await, [], "off");
    let other = Schedule::new("other", "@yearly", "head", &"beat");
    let both = run(&settings, &[newyear, other.clone()]).await;
    assert_eq!(both.len(), 2);
    let left = run(&settings, &[other]).await;
    assert_eq!(left.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["cron:other"], "one is removed");
    assert!(beats(&*store).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_cannot_set_or_cancel_what_a_schedule_sets() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, store) = (Settings::default(), open(&dir.path().join("s.db")).await);
    let engine = start(&settings, store.clone(), handlers(&[beat("@yearly")])).await;
    let message = |id: &str| {
        let (payload, draft) = (json!(id).to_string(), perkey::Draft { kind: "said", ..Default::default() });
        perkey::Draft { id, key: "heart", payload: payload.as_bytes(), ..draft }.build().unwrap()
    };
    append(&*store, settings.ownership.shards, "beats", &["cancel", "schedule"].map(message)).await;
    engine.idle().await;
    engine.drain().await.unwrap();
    let letters = letters(&*store).await;
    assert_eq!(letters.len(), 2, "{letters:?}");
    for letter in letters {
        let reason = "the timer \"cron:beat\" cannot be set or cancelled by a turn: names that begin with cron: ";
        assert!(letter.error.starts_with(reason), "{}", letter.error);
    }
    assert_eq!(set(&*store).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_tells_everything_that_is_wrong_with_schedules() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<SqliteStore> = open(&dir.path().join("s.db")).await;
    let bad = [beat("every day"), Schedule::new("late", "@daily", "heart", &"beat").zone("Nowhere")];
    let settings = Settings::default();
    let error = Engine::start(&settings, handlers(&bad), store.clone(), Metrics::new()).await.unwrap_err();
    let EngineError::Settings(text) = error else { panic!("{error}") };
    for part in [
        "schedule \"beat\" of beats: \"every day\" is not a cron expression: ",
        "schedule \"late\" of beats: there is no time zone \"Nowhere\"",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // Beside a handler without schedules nothing is wrong.
    let handlers = Handlers::new().with(crate::support::Counting).with(Beats(Vec::new()));
    let engine = start(&settings, store.clone(), handlers).await;
    append(&*store, settings.ownership.shards, "counting", &[count("1", "a", None)]).await;
    engine.idle().await;
    engine.drain().await.unwrap();
}
