//! The pipeline under simulation: hundreds of seeds, each with its own faults; and mistakes that must be noticed.
//! In: `PERKEY_SEED` for one seed, `PERKEY_SEEDS` for a number of them. Out: every promise kept, or the seed that broke one.

use std::sync::Arc;

use perkey::testing::{Faults, Report, Seen, Simulation};
use perkey::unstable::ledger::{self, Defect};
use perkey::unstable::store::memory::{self, MemoryStore};
use perkey::unstable::transport::Content;
use perkey::{
    AfterDeadLetter, Answer, Bind, Draft, Fault, Handler, IdWithin, Key, KeyFrom, Message, Publish, Schedule, Turn,
};
use serde::{Deserialize, Serialize};

/// Seeds that are run when nothing else is asked for.
const SEEDS: u64 = 600;
/// Events that sinks do not take for the moment, at least, over all of them.
const NACKS: u64 = 10_000;

#[derive(Deserialize)]
struct Step {
    key: String,
    #[serde(default)]
    fail: Option<String>,
    /// A timer of the key, and in how many milliseconds it fires; `None` cancels it.
    #[serde(default)]
    timer: Option<(String, Option<u64>)>,
    /// A key whose handler is sent a command and asked how it ended.
    #[serde(default)]
    ask: Option<String>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Steps {
    n: u64,
}

/// Counts, emits the count, and fails as its messages say.
async fn step(steps: &mut Steps, message: Step, turn: &mut Turn, emits: Option<&str>) -> Result<(), Fault> {
    steps.n += 1;
    if let Some(kind) = emits {
        turn.emit(kind, &serde_json::json!({ "key": message.key, "id": turn.id(), "n": steps.n }))?;
    }
    match &message.timer {
        Some((name, Some(after))) => {
            turn.schedule(name, turn.now() + after, &serde_json::json!({ "key": message.key }))?;
        }
        Some((name, None)) => turn.cancel(name)?,
        None => {}
    }
    if let Some(key) = &message.ask {
        turn.ask::<Watching>(&message.key, key.as_str(), &serde_json::json!({ "key": key }))?;
    }
    match message.fail.as_deref() {
        None => Ok(()),
        Some("reject") => Err(Fault::reject("as told")),
        Some("once") if turn.attempt() > 1 => Ok(()),
        // Without the hook that would write every panic of every seed to the log.
        Some("panic") if turn.attempt() < 3 => std::panic::resume_unwind(Box::new("as told")),
        Some("once") => Err(Fault::retry("as told")),
        Some(_) => Ok(()),
    }
}

macro_rules! stepping {
    ($name:ident, $service:literal, $needs:expr, $emits:expr, $schedules:expr, $after:expr) => {
        struct $name;

        impl Handler for $name {
            const SERVICE: &'static str = $service;
            const NEEDS: &'static [&'static str] = $needs;
            type Message = Step;
            type State = Steps;

            fn key(&self, message: &Step) -> Key {
                message.key.as_str().into()
            }

            async fn handle(&self, steps: &mut Steps, message: Step, turn: &mut Turn) -> Result<(), Fault> {
                step(steps, message, turn, $emits).await
            }

            fn answer(&self, answer: Answer) -> Result<Step, Fault> {
                Ok(Step { key: answer.name, fail: None, timer: None, ask: None })
            }

            fn schedules(&self) -> Vec<Schedule> {
                let schedule = |(name, cron, key): &(&str, &str, &str)| {
                    Schedule::new(name, cron, *key, &serde_json::json!({ "key": key }))
                };
                $schedules.iter().map(schedule).collect()
            }

            fn after_dead_letter(&self) -> AfterDeadLetter {
                $after
            }
        }
    };
}

/// On keys that are busy from the start, and on one that is not.
const TIMES: [(&str, &str, &str); 4] = [
    ("fast", "* * * * * *", "k0"),
    ("fast", "* * * * * *", "k1"),
    ("slow", "*/2 * * * * *", "k2"),
    ("slow", "*/2 * * * * *", "nobody's"),
];

stepping!(Counting, "counting", &[], Some("counted"), TIMES, AfterDeadLetter::Continue);
stepping!(Holding, "holding", &["vault"], Some("held"), TIMES[1..3], AfterDeadLetter::HoldKey);
stepping!(Watching, "watching", &["vault", "lamp"], Some("watched"), [("", "", ""); 0], AfterDeadLetter::Continue);

fn message(id: &str, key: &str, kind: &str, fail: Option<&str>) -> Message {
    let payload = serde_json::json!({ "key": key, "fail": fail }).to_string();
    Draft { id, key, kind, source: "test", payload: payload.as_bytes(), ..Draft::default() }.build().unwrap()
}

fn bind(source: &str, kind: &str, service: &str) -> Bind {
    let (source, kind, service) = (source.to_owned(), kind.to_owned(), service.to_owned());
    Bind { source, kind, service, key: KeyFrom::Record, id: IdWithin::Key }
}

fn publish(service: &str, kind: &str, sink: &str) -> Publish {
    let (service, kind, sink) = (service.to_owned(), kind.to_owned(), sink.to_owned());
    Publish { service, kind, sink, topic: "events".to_owned() }
}

/// Everything at once: three services, events between them, messages for several, for none, and for nobody.
fn scenario(seed: u64) -> Simulation {
    let count = 60 + seed % 140;
    let keys = 1 + seed % 13;
    let contents = (0..count).map(|n| {
        let (id, key) = (format!("m{n}"), format!("k{}", (n * 7 + n / 5) % keys));
        let fail = match (n * 31 + seed) % 60 {
            0 => Some("reject"),
            1 => Some("once"),
            2 => Some("panic"),
            _ => None,
        };
        match (n + seed) % 20 {
            0 => Content::Unrouted(message(&id, &key, "shared", fail)),
            1 => Content::Unrouted(message(&id, &key, "nobody's", fail)),
            2 if n % 3 == 1 => {
                let payload = serde_json::json!({ "key": key, "fail": fail }).to_string();
                let (key, kind) = (format!("record-{}", n % 5), "by another key");
                let draft = Draft { id: &id, key: &key, kind, payload: payload.as_bytes(), ..Draft::default() };
                Content::Unrouted(draft.build().unwrap())
            }
            2 if n % 3 == 0 => {
                let shown = Draft { id: &id, payload: b"?", ..Draft::default() }.build_unchecked().unwrap();
                Content::Unreadable { message: shown, reason: "no JSON".to_owned() }
            }
            3..=8 => Content::For("holding".into(), message(&id, &key, "step", fail)),
            9 | 10 => {
                let after = (n % 4 != 0).then_some((n * 37 + seed) % 400);
                let timer = (format!("t{}", n % 2), after);
                let ask = (n % 3 == 0).then(|| format!("asked-{}", n % 5));
                let payload = serde_json::json!({ "key": key, "fail": fail, "timer": timer, "ask": ask }).to_string();
                let draft = Draft { id: &id, key: &key, kind: "step", payload: payload.as_bytes(), ..Draft::default() };
                Content::For("counting".into(), draft.build().unwrap())
            }
            _ => Content::For("counting".into(), message(&id, &key, "step", fail)),
        }
    });
    // In some seeds a shard's first owner is its last: what it forgets, no takeover makes good.
    let stays = seed % 8 == 5;
    let all = Faults::all();
    let faults = Faults { crashes: !stays, freezes: !stays, drains: !stays, ..all };
    let simulation = Simulation::new(seed).handler(Counting).handler(Holding).handler(Watching).faults(faults);
    simulation.contents(contents).settings(|settings| {
        settings.bind = vec![bind("embedded", "counted", "watching"), bind("embedded", "held", "counting")];
        settings.publish = vec![publish("counting", "counted", "kafka"), publish("*", "held", "kafka")];
        if seed.is_multiple_of(3) {
            settings.publish.push(publish("*", "*", "second"));
            settings.kafka.dead_letter_topic = "dead".to_owned();
        }
        for source in ["log", "queue", "intake"] {
            let by_handler = bind(source, "by another key", "counting");
            settings.bind.push(Bind { key: KeyFrom::Handler, ..by_handler });
            settings.bind.push(bind(source, "shared", "counting"));
            settings.bind.push(bind(source, "shared", "holding"));
        }
    })
}

/// States and events agree with the effects: no turn worked on a state that was not its predecessor's.
fn counts(report: &Report) -> Result<(), String> {
    for (service, kind) in [("counting", "counted"), ("holding", "held"), ("watching", "watched")] {
        let events = report.events(kind);
        for (key, events) in &events {
            let n: Vec<_> = events.iter().map(|event| event["n"].as_u64().unwrap()).collect();
            if !n.iter().copied().eq(1..=n.len() as u64) {
                return Err(format!("{service}: the events of {key} count {n:?}"));
            }
            let state: Steps = report.state(service, key).unwrap();
            let effects = report.effects().iter().filter(|effect| &*effect.service == service && effect.key == *key);
            let effects = effects.count();
            if (state.n, effects) != (n.len() as u64, n.len()) {
                let (events, n) = (n.len(), state.n);
                return Err(format!("{service}: {key} has {n} in its state, {effects} effects, {events} events"));
            }
        }
    }
    Ok(())
}

/// Runs a seed; says what it broke.
fn run(seed: u64, store: Arc<MemoryStore>) -> Result<Report, String> {
    let report = scenario(seed).try_run_on(store).map_err(|broken| broken.to_string())?;
    counts(&report)?;
    Ok(report)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn every_seed_keeps_every_promise() {
    let seeds = match number("PERKEY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PERKEY_SEEDS").unwrap_or(SEEDS),
    };
    let whole = seeds.end - seeds.start >= SEEDS;
    let mut sum = Seen::default();
    let mut broken = Vec::new();
    for seed in seeds {
        match run(seed, Arc::new(MemoryStore::new())) {
            Ok(report) => sum = sum.plus(report.seen()),
            Err(problem) => broken.push(format!("PERKEY_SEED={seed} cargo test --test it every_seed\n  {problem}")),
        }
    }
    println!("{sum:?}");
    assert!(
        broken.is_empty(),
        "{} seeds failed; the first ones:\n{}",
        broken.len(),
        broken[..broken.len().min(10)].join("\n")
    );
    if whole {
        assert_eq!(sum.missing(), Vec::<&str>::new(), "the seeds do not reach these any more");
        assert!(sum.nacked >= NACKS, "only {} events were nacked", sum.nacked);
    }
}

/// Seeds, at most so many, until one notices what is wrong.
fn noticed(seeds: u64, store: impl Fn() -> MemoryStore) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| Some((seed, run(seed, Arc::new(store())).err()?)))
}

#[test]
fn every_planted_defect_is_noticed() {
    let defects = [
        Defect::AcknowledgeBeforeCommit,
        Defect::ReloadUncommitted,
        Defect::FollowersNotAppended,
        Defect::IdTakenAfterRun,
        Defect::AheadForgotten,
        Defect::PartForgotten,
        Defect::HighestPosition,
        Defect::WatermarkTooHigh,
        Defect::TimerLeavesEarly,
        Defect::ScheduleLost,
        Defect::NackOvertaken,
    ];
    // One alone, by its name, for whoever looks at that one.
    let only = std::env::var("PERKEY_DEFECT").ok();
    if only.is_none() {
        assert_eq!(noticed(300, MemoryStore::new), None, "without a defect nothing is noticed");
    }
    let mut missed = Vec::new();
    for defect in defects {
        if only.as_ref().is_some_and(|only| *only != format!("{defect:?}")) {
            continue;
        }
        ledger::plant(Some(defect));
        let found = noticed(3_000, MemoryStore::new);
        ledger::plant(None);
        println!("{defect:?}: {found:?}");
        if found.is_none() {
            missed.push(format!("{defect:?}"));
        }
    }
    for defect in [memory::StoreDefect::NoFence, memory::StoreDefect::PartNotFenced] {
        let found = noticed(3_000, || {
            let store = MemoryStore::new();
            store.plant(defect);
            store
        });
        println!("{defect:?}: {found:?}");
        if found.is_none() {
            missed.push(format!("{defect:?}"));
        }
    }
    assert_eq!(missed, Vec::<String>::new());
}
