//! Ten times more input than can be handled: the log stays full, memory stays flat, nothing is dropped.
//! In: a duration. Out: the numbers offered and handled, memory over time, and whether each posting counted once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use perkey::unstable::clock::Stopwatch;
use perkey::{Settings, sleep};

use crate::check::{check, progress};
use crate::engine::Scene;
use crate::postings::Postings;
use crate::process::until;
use crate::{ChaosError, Verdict};

/// Microseconds that a turn takes.
const PACE: u64 = 20_000;
/// The log's bound.
const UNREAD_MAX: u64 = 20_000;
/// The least ratio of offered to handled messages: a machine that is busy with other things offers less, and it is
/// still a flood.
const TIMES_MIN: f64 = 3.0;
/// Growth of memory in the second half that is noise: an allocator's arenas, the database's caches of 20 MB each, the
/// ids of handled messages. Messages that are offered and not handled would take several times as much.
const NOISE_KB: u64 = 24 << 10;
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// The options of the scenario.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// The duration in seconds.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The measurements while the log was full.
struct Flooded {
    fill: Duration,
    handled: u64,
    memory_kb: Vec<u64>,
}

/// Runs `plan`.
pub async fn flood(plan: &Plan) -> Result<Verdict, ChaosError> {
    let folder = tempfile::tempdir()?;
    let mut settings = Settings::default();
    settings.log.max_unread = UNREAD_MAX;
    // One actor per shard: the handler's pace bounds the messages handled per second.
    settings.actors.resident_max = settings.ownership.shards as usize;
    let scene = Scene::start(&settings, folder.path()).await?;
    scene.pace.store(PACE, Ordering::Relaxed);
    let mut given = Postings::new(plan.seed, 5_000);
    let mut verdict = Verdict::default();
    let stop = AtomicBool::new(false);
    let flooded = async {
        let flooded = measure(&scene.url, plan.seconds).await;
        stop.store(true, Ordering::Release);
        flooded
    };
    let (most, flooded) = tokio::select! {
        both = async { tokio::join!(scene.fill(&mut given, UNREAD_MAX, &stop), flooded) } => (both.0?, both.1?),
        reason = scene.engine.failed() => return Err(ChaosError::Stuck(format!("the engine gave up: {reason}"))),
    };
    judge(plan, most, &flooded, &mut verdict);
    scene.pace.store(0, Ordering::Relaxed);
    let url = scene.finish(Duration::from_secs(120)).await?;
    check(&url, &given, &mut verdict).await?;
    Ok(verdict)
}

async fn measure(url: &str, seconds: u64) -> Result<Flooded, ChaosError> {
    let watch = Stopwatch::start();
    until("the log did not fill", Duration::from_secs(60), async || progress(url).await.open >= UNREAD_MAX / 2).await?;
    let fill = watch.elapsed();
    let before = progress(url).await.passed;
    let watch = Stopwatch::start();
    let mut memory_kb = Vec::new();
    while watch.elapsed() < Duration::from_secs(seconds) {
        sleep(SAMPLE_EVERY).await;
        memory_kb.push(resident_kb()?);
    }
    Ok(Flooded { fill, handled: progress(url).await.passed - before, memory_kb })
}

fn judge(plan: &Plan, most: u64, flooded: &Flooded, verdict: &mut Verdict) {
    let Flooded { fill, handled, memory_kb } = flooded;
    let offered = (UNREAD_MAX / 2) as f64 / fill.as_secs_f64();
    let rate = *handled as f64 / plan.seconds as f64;
    let times = offered / rate.max(1.0);
    verdict.facts.push(format!("{offered:.0} messages/s offered, {rate:.0} handled: {times:.0} times as many"));
    verdict.expect(times >= TIMES_MIN, || format!("only {times:.1} times as many were offered as handled"));
    verdict.expect(*handled > 0, || "nothing was handled".to_owned());
    verdict.facts.push(format!("at most {most} unread, the bound is {UNREAD_MAX}"));
    verdict.expect(most <= UNREAD_MAX, || format!("{most} messages were unread, the bound is {UNREAD_MAX}"));
    let (first, second) = memory_kb.split_at(memory_kb.len() / 2);
    let most = |samples: &[u64]| samples.iter().max().copied().unwrap_or_default();
    let (first, second) = (most(first), most(second));
    let fact = format!("memory: at most {} MiB in the first half, {} MiB in the second", first >> 10, second >> 10);
    verdict.expect(second <= first + NOISE_KB, || fact.clone());
    verdict.facts.push(fact);
}

/// The memory of this process that is in RAM.
fn resident_kb() -> Result<u64, ChaosError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kb.ok_or_else(|| ChaosError::Stuck("/proc/self/status does not tell VmRSS".to_owned()))
}
