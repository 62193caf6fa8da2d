//! The workers of a fleet: real processes with settings of their own, each behind a proxy.
//! In: the addresses of the servers. Out: processes to kill, freeze or drain; their memory and their metrics.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use perkey::sleep;
use perkey::unstable::clock::Stopwatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::ChaosError;
use crate::fleet::carrier::{Carrier, Line};
use crate::fleet::{host, in_database};
use crate::process::{Place, Running};
use crate::proxy::Proxy;

/// A drain ends within this time.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const SAMPLE_EVERY: Duration = Duration::from_millis(250);

/// The parameters that all workers share.
#[derive(Clone, Debug)]
pub struct Common {
    /// The binary.
    pub binary: PathBuf,
    /// The folder of their files.
    pub folder: PathBuf,
    /// The database's name.
    pub database: String,
    /// The carrier of the messages.
    pub carrier: Carrier,
    /// `ownership.lease_ttl`.
    pub ttl: Duration,
}

/// A worker, whether its process runs or not.
#[derive(Debug)]
pub struct Worker {
    /// `ownership.worker`.
    pub name: String,
    /// The proxy between the worker and PostgreSQL.
    pub postgres: Proxy,
    /// The proxy between the worker and the carrier of the messages, if there is one.
    pub broker: Option<Proxy>,
    place: Place,
    running: Option<Running>,
    pid: Arc<Mutex<Option<u32>>>,
}

impl Worker {
    /// Worker number `number`, which is not started yet.
    pub async fn new(common: &Common, number: usize, postgres: &str, line: Line) -> Result<Self, ChaosError> {
        let name = format!("w{number}");
        let proxy = Proxy::start("127.0.0.1:0", host(postgres)).await?;
        let url = postgres.replacen(host(postgres), &proxy.address().to_string(), 1);
        let url = in_database(&url, &common.database);
        std::fs::write(common.folder.join(format!("{name}.toml")), settings(common, &name, &line.address))?;
        let place = Place { binary: common.binary.clone(), folder: common.folder.clone(), url };
        Ok(Self { name, postgres: proxy, broker: line.proxy, place, running: None, pid: Arc::default() })
    }

    fn log(&self) -> String {
        format!("{}.log", self.name)
    }

    /// Starts its process.
    pub fn start(&mut self) -> Result<(), ChaosError> {
        let config = format!("{}.toml", self.name);
        let running = self.place.start(&self.log(), &["worker", "--config", &config])?;
        self.knows(Some(running.pid));
        self.running = Some(running);
        Ok(())
    }

    fn knows(&self, pid: Option<u32>) {
        *self.pid.lock().unwrap_or_else(PoisonError::into_inner) = pid;
    }

    /// Returns whether its process runs.
    pub fn is_alive(&mut self) -> bool {
        self.running.as_mut().is_some_and(Running::is_alive)
    }

    /// The way in which it ended, if it did so by itself.
    pub async fn ended(&mut self) -> Option<String> {
        let running = self.running.as_mut()?;
        if running.is_alive() {
            return None;
        }
        let status = running.ended().await.map_or_else(|error| error.to_string(), |status| status.to_string());
        self.running = None;
        self.knows(None);
        Some(format!("{} ended by itself with {status}: {}", self.name, self.tail()))
    }

    /// Ends its process with SIGKILL.
    pub async fn kill(&mut self) -> Result<(), ChaosError> {
        self.knows(None);
        if let Some(mut running) = self.running.take() {
            running.kill().await?;
        }
        Ok(())
    }

    /// Sends its process a signal.
    pub async fn signal(&self, signal: &str) -> Result<(), ChaosError> {
        let Some(running) = &self.running else { return Ok(()) };
        let status = Command::new("kill").args([signal, &running.pid.to_string()]).status().await?;
        if status.success() { Ok(()) } else { Err(ChaosError::Stuck(format!("{} did not get {signal}", self.name))) }
    }

    /// Tells its process to leave and waits until it has; returns what is wrong with the way it left, if anything.
    pub async fn leave(&mut self) -> Result<Option<String>, ChaosError> {
        let Some(mut running) = self.running.take() else { return Ok(None) };
        running.terminate().await?;
        let ended = running.ends(DRAIN_WITHIN).await;
        self.knows(None);
        let wrong = match ended {
            Ok(status) if status.success() => return Ok(None),
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        Ok(Some(format!("{} left with {wrong}: {}", self.name, self.tail())))
    }

    /// The metrics that its listener answers with, if it answers.
    pub async fn metrics(&self) -> Option<String> {
        let log = std::fs::read_to_string(self.place.folder.join(self.log())).ok()?;
        let (_, rest) = log.rsplit_once("http://")?;
        let (address, _) = rest.split_once("/metrics")?;
        let ask = async {
            let mut stream = TcpStream::connect(address).await.ok()?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n").await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            Some(answer)
        };
        tokio::time::timeout(ANSWER_WITHIN, ask).await.ok()?
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        self.place.tail(&self.log())
    }

    /// The lines of its log that contain `word`.
    pub fn told(&self, word: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.place.folder.join(self.log())).unwrap_or_default();
        log.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
    }
}

fn settings(common: &Common, name: &str, broker: &str) -> String {
    let Common { ttl, carrier, .. } = common;
    let (ttl, statement, heartbeat) = (ttl.as_millis(), ttl.as_millis() * 2 / 3, ttl.as_millis() / 10);
    let own = format!(
        r#"[store]
statement_timeout = "{statement}ms"

[ownership]
worker = "{name}"
lease_ttl = "{ttl}ms"
heartbeat = "{heartbeat}ms"

[admin]
listen = "127.0.0.1:0"
"#
    );
    own + &carrier.settings(broker)
}

/// The sum of a metric over the lines that have `label`.
pub fn total(metrics: &str, name: &str, label: &str) -> u64 {
    let of =
        |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label);
    metrics.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

/// The memory of each worker over time.
#[derive(Debug)]
pub struct Memory {
    samples: Arc<Mutex<Vec<(Duration, u64)>>>,
    _tasks: JoinSet<()>,
}

impl Memory {
    /// Starts watching the memory.
    pub fn watch(workers: &[Worker], watch: Stopwatch) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let pids: Vec<_> = workers.iter().map(|worker| Arc::clone(&worker.pid)).collect();
        let mut tasks = JoinSet::new();
        let into = Arc::clone(&samples);
        tasks.spawn(async move {
            loop {
                for pid in &pids {
                    let pid = *pid.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(kb) = pid.and_then(resident_kb) {
                        into.lock().unwrap_or_else(PoisonError::into_inner).push((watch.elapsed(), kb));
                    }
                }
                sleep(SAMPLE_EVERY).await;
            }
        });
        Self { samples, _tasks: tasks }
    }

    /// The most memory that a worker had between two times, in MiB.
    pub fn most(&self, from: Duration, to: Duration) -> u64 {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let within = samples.iter().filter(|(at, _)| (from..to).contains(at));
        within.map(|(_, kb)| kb >> 10).max().unwrap_or_default()
    }
}

fn resident_kb(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_adds_up_over_its_labels() {
        let text = "perkey_commits_total{outcome=\"fenced\"} 2\nperkey_commits_total{outcome=\"unknown\"} 3\n\
                    perkey_commits_total_x{outcome=\"fenced\"} 9\nperkey_up 1\n";
        assert_eq!(total(text, "perkey_commits_total", "outcome=\"fenced\""), 2);
        assert_eq!(total(text, "perkey_commits_total", ""), 5);
        assert_eq!(total(text, "perkey_up", ""), 1);
    }
}
