//! Ends the runtime's own actors under load, one after the other, and waits for each to come back.
//! In: kinds of actors, a number of kills, a seed. Out: the restarts of each kind, and whether each posting counted
//! once.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use perkey::unstable::clock::{Dice, Stopwatch};
use perkey::unstable::metrics::{Child, Metrics};
use perkey::unstable::settings::Intensity;
use perkey::unstable::transport::memory::MemorySink;
use perkey::{Publish, Settings, sleep};

use crate::check::check;
use crate::engine::{SINK, Scene};
use crate::postings::Postings;
use crate::process::until;
use crate::{ChaosError, Verdict};

/// An actor is back within this time.
const BACK_WITHIN: Duration = Duration::from_secs(20);
/// The longest pause between two kills.
const PAUSE_MS: u64 = 30;

/// Kinds of actors; on the command line one word names one kind or all.
type Children = Vec<Child>;

/// The options of the scenario.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// The kind of actors to end.
    #[arg(long = "child", value_name = "CHILD", default_value = "all", value_parser = one_or_all())]
    pub children: Children,
    /// The number of times each kind is ended.
    #[arg(long, default_value_t = 100)]
    pub times: u32,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

fn one_or_all() -> impl TypedValueParser<Value = Children> {
    let words = Child::ALL.iter().map(|child| child.as_str()).chain(["all"]);
    PossibleValuesParser::new(words).map(|word| {
        let named = |child: &Child| word == "all" || word == child.as_str();
        Child::ALL.iter().copied().filter(named).collect()
    })
}

/// Runs `plan`.
pub async fn children(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Verdict, ChaosError> {
    let folder = tempfile::tempdir()?;
    let settings = settings();
    let scene = Scene::start(&settings, folder.path()).await?;
    let mut given = Postings::new(plan.seed, 5_000);
    let mut verdict = Verdict::default();
    let stop = AtomicBool::new(false);
    let kills = async {
        let mut dice = Dice::seeded(plan.seed ^ 0x6368_696c);
        for child in &plan.children {
            let killed = kill(&scene, *child, plan.times, &mut dice).await;
            match killed {
                Ok(fact) => say(&fact),
                Err(error) => verdict.violations.push(error.to_string()),
            }
        }
        stop.store(true, Ordering::Release);
    };
    tokio::select! {
        (filled, ()) = async { tokio::join!(scene.fill(&mut given, 4_000, &stop), kills) } => filled.map(drop)?,
        reason = scene.engine.failed() => return Err(ChaosError::Stuck(format!("the engine gave up: {reason}"))),
    }
    scene.engine.idle().await;
    let (published, given_count) = (scene.sink.clone(), given.unique());
    let all = async || published_ids(&published) >= given_count;
    if let Err(error) = until("an event was not published", BACK_WITHIN, all).await {
        verdict.violations.push(error.to_string());
    }
    verdict.violations.extend(disorder(&published));
    let url = scene.finish(Duration::from_secs(120)).await?;
    check(&url, &given, &mut verdict).await?;
    Ok(verdict)
}

/// The number of different events that the sink has.
fn published_ids(sink: &MemorySink) -> usize {
    sink.records().iter().map(|(_, record)| record.message.id().to_owned()).collect::<HashSet<_>>().len()
}

/// For each account, the first event out of order, if there is one; repeats are removed.
fn disorder(sink: &MemorySink) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut last: HashMap<String, u64> = HashMap::new();
    let mut found = Vec::new();
    for (_, record) in sink.records() {
        let event: serde_json::Value = serde_json::from_slice(record.message.payload()).unwrap_or_default();
        let (n, key) = (event["n"].as_u64().unwrap_or(0), record.message.key().to_owned());
        if seen.insert(record.message.id().to_owned()) {
            let before = last.insert(key.clone(), n).unwrap_or(0);
            if n != before + 1 {
                found.push(format!("event {n} of {key} was published after {before}"));
            }
        }
    }
    found
}

/// The settings, with restarts that do not run out: another test covers that they do.
fn settings() -> Settings {
    let (service, kind, topic) = ("*".to_owned(), "balance.changed".to_owned(), "changes".to_owned());
    let publish = vec![Publish { service, kind, sink: SINK.to_owned(), topic }];
    let mut settings = Settings { publish, ..Settings::default() };
    let often = Intensity {
        restarts: 1_000_000,
        backoff: Duration::from_millis(2),
        backoff_max: Duration::from_millis(20),
        ..Intensity::default()
    };
    let supervision = &mut settings.supervision;
    for intensity in [
        &mut supervision.key_actor,
        &mut supervision.ingress,
        &mut supervision.committer,
        &mut supervision.dispatcher,
        &mut supervision.shard,
    ] {
        intensity.clone_from(&often);
    }
    settings
}

async fn kill(scene: &Scene, child: Child, times: u32, dice: &mut Dice) -> Result<String, ChaosError> {
    let watch = Stopwatch::start();
    let shards = Settings::default().ownership.shards;
    let first = restarts(&scene.metrics, child);
    let mut longest = Duration::ZERO;
    for no in 1..=times {
        sleep(Duration::from_millis(dice.below(PAUSE_MS))).await;
        let shard = dice.below(u64::from(shards)) as usize;
        until("a shard was not ready", BACK_WITHIN, async || scene.engine.health().await.ready).await?;
        let before = restarts(&scene.metrics, child);
        let back = Stopwatch::start();
        let what = format!("{} of shard {shard} was not restarted after kill {no}", child.as_str());
        // A key's actor can only be ended where there is one: if this shard has none, another shard's is.
        until(&what, BACK_WITHIN, async || {
            scene.engine.kill(shard, child).await;
            let wait = until("", Duration::from_millis(500), async || restarts(&scene.metrics, child) > before);
            wait.await.is_ok()
        })
        .await?;
        longest = longest.max(back.elapsed());
    }
    let restarted = restarts(&scene.metrics, child) - first;
    let (word, seconds) = (child.as_str(), watch.elapsed().as_secs_f64());
    let longest = longest.as_millis();
    Ok(format!("{word}: {times} kills, {restarted} restarts, the longest after {longest} ms, {seconds:.1} s in all"))
}

/// The number of restarts of such actors so far, for any reason.
fn restarts(metrics: &Metrics, child: Child) -> u64 {
    let label = format!("child=\"{}\"", child.as_str());
    let text = metrics.encode();
    let lines = text.lines().filter(|line| line.starts_with("perkey_restarts_total{") && line.contains(&label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}
