//! Kills the real process at random instants while it imports, and starts it again, until the file is handled.
//! In: the numbers of kills and lines, a seed. Out: a fact per kill, and whether each line counted exactly once.
//!
//! The instants are spread over the whole import: the work that is left decides how long the process lives.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use clap::{Args, ValueEnum};
use perkey::sleep;
use perkey::unstable::clock::{Dice, Stopwatch};
use perkey::unstable::store::sqlite::SqliteStore;

use crate::check::{check, progress};
use crate::postings::{Postings, SERVICE};
use crate::process::{Place, Running, binary, until};
use crate::{ChaosError, Verdict};

/// A run of either mode ends within this time after the last kill.
const REST_MAX: Duration = Duration::from_secs(600);
/// The share of the kills that must hit a process at work.
const HITS_MIN: f64 = 0.8;
/// The interval at which progress is read.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Small enough that an import beside a running process keeps pace with it.
const MAX_UNREAD: &str = "log.max_unread=4000";

/// The processes that do the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// `import` runs the engine itself.
    Import,
    /// `up` runs it, and an `import` beside it appends.
    Up,
}

/// The options of the scenario.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// The binary; if not given, it is built beside this one.
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// The processes that do the work.
    #[arg(long, value_enum, default_value_t = Mode::Import)]
    pub mode: Mode,
    /// The number of times a process is killed.
    #[arg(long, default_value_t = 50)]
    pub kills: u32,
    /// The number of lines in the file.
    #[arg(long, default_value_t = 100_000)]
    pub lines: usize,
    /// The number of accounts in the file.
    #[arg(long, default_value_t = 5_000)]
    pub accounts: u64,
    /// The seed.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Runs `plan` in a folder of its own; each line of the report goes to `say` as it comes.
pub async fn kill(plan: &Plan, say: &mut dyn FnMut(&str)) -> Result<Verdict, ChaosError> {
    let folder = tempfile::tempdir()?;
    let place = Place::new(&binary(plan.binary.as_deref()).await?, folder.path());
    let mut given = Postings::new(plan.seed, plan.accounts);
    given.write_csv(plan.lines, &mut BufWriter::new(File::create(folder.path().join("postings.csv"))?))?;
    say(&format!("{} lines, {} different postings, {} repeats", plan.lines, given.unique(), given.repeats()));
    let watch = Stopwatch::start();
    let mut verdict = Verdict::default();
    let mut scene = Scene {
        plan,
        place,
        dice: Dice::seeded(plan.seed ^ 0x6b69_6c6c),
        up: None,
        import: None,
        imported: false,
        life: Duration::from_millis(150) + Duration::from_micros(30) * plan.lines as u32 / plan.kills.max(1),
    };
    let hits = scene.kills(say, &mut verdict).await?;
    scene.rest(&mut verdict).await?;
    let needed = (f64::from(plan.kills) * HITS_MIN).ceil() as u32;
    verdict.expect(hits >= needed, || format!("only {hits} of {} kills hit a process at work", plan.kills));
    verdict.facts.push(format!("{hits} kills hit a process at work, {:.1} s in all", watch.elapsed().as_secs_f64()));
    check(&scene.place.url, &given, &mut verdict).await?;
    Ok(verdict)
}

struct Scene<'a> {
    plan: &'a Plan,
    place: Place,
    dice: Dice,
    up: Option<Running>,
    import: Option<Running>,
    imported: bool,
    /// The mean time that a process lives.
    life: Duration,
}

impl Scene<'_> {
    async fn kills(&mut self, say: &mut dyn FnMut(&str), verdict: &mut Verdict) -> Result<u32, ChaosError> {
        let mut hits = 0;
        for no in 1..=self.plan.kills {
            self.start().await?;
            let life = self.life.mul_f64(2.0 * self.dice.unit());
            // A faster process is killed when its share of the work is done: no kill comes too late.
            let share = (f64::from(no) - self.dice.unit()) / f64::from(self.plan.kills + 1) * 0.95;
            self.live(life, share, verdict).await?;
            let killed = self.strike().await?;
            let passed = progress(&self.place.url).await.passed as f64 / self.plan.lines as f64;
            say(&format!("kill {no}: {killed} after {} ms, {:.1} % handled", life.as_millis(), passed * 100.0));
            if passed < 1.0 && !killed.is_empty() {
                hits += 1;
            }
            // Ahead of the plan lives become shorter, behind it longer.
            let planned = f64::from(no) / f64::from(self.plan.kills + 1) * 0.95;
            self.life = self.life.mul_f64(if passed < planned { 1.25 } else { 0.8 });
        }
        Ok(hits)
    }

    /// Starts each process that does not run.
    async fn start(&mut self) -> Result<(), ChaosError> {
        if self.plan.mode == Mode::Up && self.up.is_none() {
            let args = ["up", "--set", "admin.listen=127.0.0.1:0", "--set", MAX_UNREAD];
            let up = self.up.insert(self.place.start("up.log", &args)?);
            let url = &self.place.url;
            until("`up` neither runs nor ends", REST_MAX, async || SqliteStore::is_running(url) || !up.is_alive())
                .await?;
        }
        if self.import.is_none() && !self.imported {
            let up = ["import", "--service", SERVICE, "postings.csv", "--set", MAX_UNREAD];
            let args = if self.plan.mode == Mode::Up { &up[..] } else { &up[..4] };
            self.import = Some(self.place.start("import.log", args)?);
        }
        Ok(())
    }

    /// Lets them work for `life`, or until this share of the lines has passed. A process that ends by itself must have
    /// a reason.
    async fn live(&mut self, life: Duration, share: f64, verdict: &mut Verdict) -> Result<(), ChaosError> {
        let url = self.place.url.clone();
        let lines = share * self.plan.lines as f64;
        let worked = async {
            while (progress(&url).await.passed as f64) < lines {
                sleep(LOOK_EVERY).await;
            }
        };
        let over = async {
            tokio::select! {
                () = sleep(life) => (),
                () = worked => (),
            }
        };
        let mut over = pin!(over);
        loop {
            let up = ended(&mut self.up);
            let import = ended(&mut self.import);
            tokio::select! {
                () = &mut over => return Ok(()),
                status = up => {
                    self.up = None;
                    let code = status?;
                    // An import that found no running process works on the store itself, and `up` is refused until it
                    // is done.
                    let refused = code == Some(4) && self.import.is_some();
                    verdict.expect(refused, || format!("`up` ended with {code:?}: {}", self.place.tail("up.log")));
                }
                status = import => {
                    self.import = None;
                    let code = status?;
                    verdict.expect(code == Some(0), || {
                        format!("`import` ended with {code:?}: {}", self.place.tail("import.log"))
                    });
                    self.imported = true;
                    if self.plan.mode == Mode::Import {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Kills one of the processes, or both; returns which.
    async fn strike(&mut self) -> Result<String, ChaosError> {
        let dice = self.dice.unit();
        let mut killed = Vec::new();
        if dice < 0.65
            && let Some(mut up) = self.up.take()
            && up.kill().await?
        {
            killed.push(format!("up {}", up.pid));
        }
        if (dice >= 0.5 || self.up.is_none() && killed.is_empty())
            && let Some(mut import) = self.import.take()
        {
            if import.kill().await? {
                killed.push(format!("import {}", import.pid));
            } else {
                self.imported = true;
            }
        }
        Ok(killed.join(" and "))
    }

    /// Lets the processes finish.
    async fn rest(&mut self, verdict: &mut Verdict) -> Result<(), ChaosError> {
        let watch = Stopwatch::start();
        while !self.imported {
            self.start().await?;
            self.live(Duration::from_millis(500), f64::INFINITY, verdict).await?;
            if watch.elapsed() > REST_MAX || !verdict.violations.is_empty() {
                return Err(ChaosError::Stuck(format!("the import did not end: {}", verdict.violations.join("; "))));
            }
        }
        if self.plan.mode == Mode::Import {
            return Ok(());
        }
        self.start().await?;
        let url = &self.place.url;
        until("messages were left unread", REST_MAX, async || progress(url).await.open == 0).await?;
        let Some(up) = &mut self.up else { return Ok(()) };
        up.terminate().await?;
        let status = up.ends(Duration::from_secs(30)).await?;
        verdict.expect(status.code() == Some(0), || {
            format!("`up` ended its drain with {status}: {}", self.place.tail("up.log"))
        });
        Ok(())
    }
}

/// The exit code of a process that ends; if there is no process, this never returns.
async fn ended(running: &mut Option<Running>) -> Result<Option<i32>, ChaosError> {
    match running {
        Some(running) => Ok(running.ended().await?.code()),
        None => std::future::pending().await,
    }
}
