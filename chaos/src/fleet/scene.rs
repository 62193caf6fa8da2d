//! One run of a fleet: starts it, loads it, disturbs it as the course says, lets it rest, judges it.
//! In: a plan, servers. Out: a verdict with its figures.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use perkey::unstable::clock::Stopwatch;
use perkey::unstable::store::{Access, Opened, open};
use perkey::{Settings, sleep};
use sqlx::{Connection, PgConnection};

use crate::fleet::carrier::Carrier;
use crate::fleet::faults::{Act, Course, On, Scenario, Server};
use crate::fleet::judge::Progress;
use crate::fleet::load::{self, Gauge, Load, Pace};
use crate::fleet::meter::Meter;
use crate::fleet::servers::Servers;
use crate::fleet::workers::{Common, Memory, Worker};
use crate::fleet::{Plan, in_database, judge};
use crate::postings::Postings;
use crate::proxy::Mode;
use crate::{ChaosError, Verdict};

/// A fleet has divided its shards within this time.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// A fleet that takes nothing more for this long has stopped.
const STUCK_AFTER: Duration = Duration::from_secs(45);
/// The most records that are put and not taken, when the load is as large as the fleet can take.
const AHEAD_MAX: u64 = 100_000;
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A fault of a worker, after which others must own its shards.
pub(super) struct Fault {
    pub(super) at: Duration,
    pub(super) worker: String,
    pub(super) way: Way,
}

/// The way in which a worker left its shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The worker drained in order.
    Drained,
    /// The worker was killed, and was back before its lease had ended: it may have taken them itself.
    BackAtOnce,
    /// The worker was killed or frozen until others had to take them.
    Gone,
}

/// A fleet at work.
pub(super) struct Scene<'a> {
    pub(super) plan: &'a Plan,
    pub(super) servers: &'a Servers,
    pub(super) carrier: Carrier,
    pub(super) url: String,
    pub(super) workers: Vec<Worker>,
    pub(super) names: Vec<String>,
    pub(super) gauge: Arc<Gauge>,
    pub(super) meter: Meter,
    pub(super) memory: Memory,
    pub(super) watch: Stopwatch,
    pub(super) faults: Vec<Fault>,
    pub(super) returns: Vec<Duration>,
    pub(super) verdict: Verdict,
}

impl<'a> Scene<'a> {
    /// Starts the workers, and waits until each has its share of the shards.
    pub(super) async fn start(plan: &'a Plan, servers: &'a Servers, common: &Common) -> Result<Self, ChaosError> {
        let mut workers = Vec::new();
        for number in 0..plan.workers {
            let line = common.carrier.line(servers, number, plan.scenario.cuts_lines()).await?;
            workers.push(Worker::new(common, number, &servers.postgres, line).await?);
        }
        for worker in &mut workers {
            worker.start()?;
        }
        let watch = Stopwatch::start();
        let gauge = Arc::new(Gauge::default());
        let url = in_database(&servers.postgres, &common.database);
        let meter = Meter::start(&url, watch, Arc::clone(&gauge));
        let memory = Memory::watch(&workers, watch);
        let names = workers.iter().map(|worker| worker.name.clone()).collect();
        let mut scene = Self {
            plan,
            servers,
            carrier: common.carrier.clone(),
            url,
            workers,
            names,
            gauge,
            meter,
            memory,
            watch,
            faults: Vec::new(),
            returns: Vec::new(),
            verdict: Verdict::default(),
        };
        scene.settle().await?;
        Ok(scene)
    }

    /// Waits until every worker has shards, and all shards have an owner.
    async fn settle(&mut self) -> Result<(), ChaosError> {
        let watch = Stopwatch::start();
        loop {
            let (owned, shards) = {
                let timeline = self.meter.timeline();
                (timeline.owned(&self.names), timeline.0.len())
            };
            if shards > 0 && owned.iter().sum::<usize>() == shards && owned.iter().all(|owned| *owned > 0) {
                return Ok(());
            }
            self.revive().await?;
            if watch.elapsed() > SETTLED_WITHIN {
                let violation = format!("after {SETTLED_WITHIN:?} the workers own {owned:?} of {shards} shards");
                return Err(ChaosError::Stuck(self.with_logs(violation)));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Starts each worker again that ended by itself, which none should.
    async fn revive(&mut self) -> Result<(), ChaosError> {
        for worker in &mut self.workers {
            if let Some(violation) = worker.ended().await {
                if self.verdict.violations.len() > 20 {
                    return Err(ChaosError::Stuck(self.verdict.violations.join("\n")));
                }
                self.verdict.violations.push(violation);
                worker.start()?;
            }
        }
        Ok(())
    }

    fn with_logs(&self, mut text: String) -> String {
        for worker in &self.workers {
            text = format!("{text}\n{}: {}", worker.name, worker.tail());
        }
        text
    }

    /// Runs the scenario to its verdict.
    pub(super) async fn play(&mut self, say: &mut dyn FnMut(&str)) -> Result<Verdict, ChaosError> {
        let Plan { seed, accounts, rate, .. } = *self.plan;
        let all = rate == 0 || self.plan.scenario == Scenario::Held;
        let pace = Pace {
            seed,
            accounts,
            rate: if all { 1_000_000 } else { rate },
            ahead_max: if all { AHEAD_MAX } else { u64::MAX },
        };
        let way = match self.carrier.way()? {
            Some(way) => way,
            None => load::Way::Log(self.store().await?, self.shards()),
        };
        // The others' queue must not distort the measured throughput.
        let beside = match self.plan.scenario {
            Scenario::Held => None,
            _ => self.carrier.beside(seed).await?,
        };
        let mut load = Load::start(way, pace, Arc::clone(&self.gauge));
        let began = self.watch.elapsed();
        let acted = async {
            match self.plan.scenario {
                Scenario::Held => self.held(say).await,
                _ => self.disturb(say).await,
            }
        };
        tokio::select! {
            acted = acted => acted?,
            failed = load.failed() => return Err(failed),
        }
        let ended = self.watch.elapsed();
        let given = load.finish().await?;
        self.rest(&given).await?;
        self.figures(began, ended, &given).await;
        judge::database(&self.url, seed, &given, &mut self.verdict).await?;
        let published = match self.carrier.read().await? {
            Some(published) => published,
            None => judge::events(&*self.store().await?, self.shards()).await?,
        };
        judge::output(&published, seed, &given, &mut self.verdict);
        if let Some(beside) = beside {
            let mut verdict = Verdict::default();
            judge::output(&[beside.finish(given.unique()).await], seed, &given, &mut verdict);
            let beside = |text: String| format!("beside, in a queue that was full at times: {text}");
            let told = |of: Vec<String>| of.into_iter().map(beside);
            self.verdict.facts.extend(told(verdict.facts));
            self.verdict.violations.extend(told(verdict.violations));
        }
        for worker in &mut self.workers {
            let wrong = worker.leave().await?;
            self.verdict.violations.extend(wrong);
        }
        Ok(std::mem::take(&mut self.verdict))
    }

    async fn store(&self) -> Result<Opened, ChaosError> {
        let mut settings = Settings::default();
        settings.store.url.clone_from(&self.url);
        Ok(open(&settings, Access::Tool).await?)
    }

    fn shards(&self) -> u32 {
        u32::try_from(self.meter.timeline().0.len()).unwrap_or_default()
    }

    /// The progress of the fleet.
    async fn progress(&self) -> Result<Progress, ChaosError> {
        let mut progress = judge::progress(&self.url).await?;
        if self.plan.on == On::Postgres {
            // Consumers of the log read the commits: nothing is published.
            progress.unpublished = 0;
            let store = self.store().await?;
            let rows = store.queries().shards().await?;
            progress.waiting += rows.iter().map(|row| row.unread.cast_signed()).sum::<i64>();
            store.close().await;
        }
        Ok(progress)
    }

    async fn disturb(&mut self, say: &mut dyn FnMut(&str)) -> Result<(), ChaosError> {
        let Plan { scenario, on, workers, ttl, away, seed, seconds, .. } = *self.plan;
        let mut course = Course::new(scenario, on, workers, ttl, away, seed);
        let mut acts = 0;
        loop {
            let (pause, act) = course.next_act();
            // A deploy does not wait for the fleet; a worker whose takeover is measured must have its share first.
            if !matches!(act, Act::Roll { .. } | Act::Line { .. }) {
                self.settle().await?;
            }
            sleep(pause).await;
            if self.watch.elapsed() > Duration::from_secs(seconds) && acts > 0 {
                return Ok(());
            }
            let ahead = self.gauge.unique.load(Ordering::Relaxed).saturating_sub(self.taken());
            say(&format!("{:6.1} s  {act} ({ahead} put and not taken)", self.watch.elapsed().as_secs_f64()));
            self.perform(act).await?;
            self.revive().await?;
            acts += 1;
        }
    }

    fn taken(&self) -> u64 {
        self.gauge.taken.load(Ordering::Relaxed)
    }

    fn fault(&mut self, worker: usize, way: Way) {
        self.faults.push(Fault { at: self.meter.now(), worker: self.names[worker].clone(), way });
    }

    async fn perform(&mut self, act: Act) -> Result<(), ChaosError> {
        match act {
            Act::Kill { worker, back } => {
                self.fault(worker, if back < self.plan.ttl { Way::BackAtOnce } else { Way::Gone });
                self.workers[worker].kill().await?;
                sleep(back).await;
                self.workers[worker].start()
            }
            Act::Freeze { worker, hold, late } => self.freeze(worker, hold, late).await,
            Act::Roll { worker } => {
                self.fault(worker, Way::Drained);
                let wrong = self.workers[worker].leave().await?;
                self.verdict.violations.extend(wrong);
                self.workers[worker].start()
            }
            Act::Down { server, crash, hold } => {
                if crash {
                    self.servers.tell("kill", server).await?;
                    sleep(hold).await;
                }
                self.servers.tell("restart", server).await?;
                self.returns.push(self.meter.now());
                // The next act comes when each shard has committed again.
                sleep(self.plan.ttl * 2).await;
                Ok(())
            }
            Act::Line { worker, server, mode, hold } => {
                let Worker { postgres, broker, .. } = &self.workers[worker];
                let line = broker.as_ref().filter(|_| server != Server::Postgres).unwrap_or(postgres);
                line.set(mode);
                sleep(hold).await;
                line.set(Mode::Pass);
                Ok(())
            }
        }
    }

    /// Freezes a process; data held back on its line arrives while others own its shards and it still sleeps.
    async fn freeze(&mut self, worker: usize, hold: Duration, late: bool) -> Result<(), ChaosError> {
        let frozen = &self.workers[worker];
        if late {
            frozen.postgres.set(Mode::Freeze);
            // Long enough for commits to be on their way.
            sleep(Duration::from_millis(40)).await;
        }
        frozen.signal("-STOP").await?;
        self.fault(worker, Way::Gone);
        sleep(hold.mul_f64(0.7)).await;
        let frozen = &self.workers[worker];
        frozen.postgres.set(Mode::Pass);
        sleep(hold.mul_f64(0.3)).await;
        frozen.signal("-CONT").await
    }

    /// Compares the throughput beside a transaction that somebody else holds open with the throughput without.
    async fn held(&mut self, say: &mut dyn FnMut(&str)) -> Result<(), ChaosError> {
        let half = Duration::from_secs(self.plan.seconds) / 2;
        // Caches fill during the first seconds.
        sleep(half.mul_f64(0.2)).await;
        let before = self.throughput(half).await;
        say(&format!("{before:.0} messages/s without it"));
        let mut connection = PgConnection::connect(&self.url).await?;
        let sql = "BEGIN ISOLATION LEVEL REPEATABLE READ; CREATE TEMPORARY TABLE held (no bigint); SELECT count(*) FROM shards";
        sqlx::raw_sql(sql).execute(&mut connection).await?;
        let beside = self.throughput(half).await;
        let fact = format!("{before:.0} messages/s, and {beside:.0} beside a transaction held open for {half:?}");
        self.verdict.expect(beside >= before * 0.8, || format!("throughput fell by more than a fifth: {fact}"));
        self.verdict.facts.push(fact);
        Ok(())
    }

    async fn throughput(&self, during: Duration) -> f64 {
        let (taken, watch) = (self.taken(), Stopwatch::start());
        sleep(during).await;
        (self.taken() - taken) as f64 / watch.elapsed().as_secs_f64()
    }

    /// Waits until everything is taken and published, with every worker at work.
    async fn rest(&mut self, given: &Postings) -> Result<(), ChaosError> {
        self.settle().await?;
        let unique = given.unique() as i64;
        let done = Progress { taken: unique, ..Progress::default() };
        let (mut last, mut since) = (Progress::default(), Stopwatch::start());
        let began = Stopwatch::start();
        let ahead = given.unique() as u64 - self.taken();
        loop {
            let progress = self.progress().await?;
            if progress == done {
                let seconds = began.elapsed().as_secs_f64();
                self.verdict.facts.push(format!("at rest {seconds:.1} s after the load, which was {ahead} ahead"));
                return Ok(());
            }
            if progress != last {
                (last, since) = (progress, Stopwatch::start());
            }
            if since.elapsed() > STUCK_AFTER {
                // The verdict reports what is missing.
                let stopped = format!("the fleet stopped short of {unique}: {progress:?}");
                let stopped = self.with_logs(stopped);
                self.verdict.violations.push(stopped);
                return Ok(());
            }
            self.revive().await?;
            sleep(LOOK_EVERY).await;
        }
    }
}
