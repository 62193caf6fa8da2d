//! Ends the runtime's own actors under load, one after the other, and waits for each to come back.
//! In: which, how often, a seed. Out: how often each was restarted, and whether each posting counted exactly once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use perkey::clock::{Dice, Stopwatch, sleep};
use perkey::metrics::{Child, Metrics};
use perkey::settings::{Intensity, Settings};

use crate::check::check;
use crate::engine::Scene;
use crate::postings::Postings;
use crate::process::until;
use crate::{ChaosError, Verdict};

/// A child is back within this.
const BACK_WITHIN: Duration = Duration::from_secs(20);
/// The longest pause between two kills.
const PAUSE_MS: u64 = 30;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Whom to end.
    pub children: Vec<Child>,
    /// How often each.
    pub times: u32,
    /// The seed.
    pub seed: u64,
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
    let url = scene.finish(Duration::from_secs(120)).await?;
    check(&url, &given, &mut verdict).await?;
    Ok(verdict)
}

/// Restarts are not to run out: that they do is another test's.
fn settings() -> Settings {
    let mut settings = Settings::default();
    let often = Intensity {
        restarts: 1_000_000,
        backoff: Duration::from_millis(2),
        backoff_max: Duration::from_millis(20),
        ..Intensity::default()
    };
    let supervision = &mut settings.supervision;
    for intensity in
        [&mut supervision.key_actor, &mut supervision.ingress, &mut supervision.committer, &mut supervision.shard]
    {
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
        // A key's actor can only be ended where there is one: then another shard's is.
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

/// Restarts of such children so far, of all reasons.
fn restarts(metrics: &Metrics, child: Child) -> u64 {
    let label = format!("child=\"{}\"", child.as_str());
    let text = metrics.encode();
    let lines = text.lines().filter(|line| line.starts_with("perkey_restarts_total{") && line.contains(&label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}
