//! A steady load of postings, as the ledger workload has them: on a topic, on streams, or in the store's own log.
//! In: a seed, a rate. Out: records at that rate until told to stop; the postings that must have taken effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use perkey::unstable::clock::Stopwatch;
use perkey::unstable::store::Opened;
use perkey::{StoreError, sleep};
use tokio::task::JoinSet;

use crate::ChaosError;
use crate::engine::append;
use crate::fleet::record::Record;
use crate::fleet::{streams, topics};
use crate::postings::Postings;

/// The time for which an unavailable store is tried again.
const STORE_WITHIN: Duration = Duration::from_secs(180);

/// The time between two batches.
const TICK: Duration = Duration::from_millis(5);

/// The target of the load.
pub enum Way {
    /// A topic.
    Topic(topics::Input),
    /// Streams.
    Streams(streams::Input),
    /// The log of a store with this many shards.
    Log(Opened, u32),
}

impl Way {
    async fn put(&self, records: &[Record]) -> Result<(), ChaosError> {
        match self {
            Self::Topic(input) => {
                for record in records {
                    while !input.offer(record)? {
                        sleep(TICK).await;
                    }
                }
            }
            Self::Streams(input) => {
                for record in records {
                    input.put(record).await?;
                }
            }
            Self::Log(store, shards) if !records.is_empty() => {
                let messages = records.iter().map(Record::message).collect::<Result<Vec<_>, _>>()?;
                let watch = Stopwatch::start();
                // It may be unknown whether the batch was appended; then it comes twice, which its ids make harmless.
                while let Err(error) = append(&*store.store(), *shards, &messages).await {
                    let away = matches!(error, StoreError::Unavailable(_)) && watch.elapsed() < STORE_WITHIN;
                    if !away {
                        return Err(error.into());
                    }
                    sleep(TICK).await;
                }
            }
            Self::Log(..) => {}
        }
        Ok(())
    }

    async fn flush(&self, count: u64) -> Result<(), ChaosError> {
        match self {
            Self::Topic(input) => input.flush(count).await,
            Self::Streams(input) => input.flush(count).await,
            Self::Log(store, _) => {
                store.close().await;
                Ok(())
            }
        }
    }
}

/// The progress of the load, readable by everybody.
#[derive(Debug, Default)]
pub struct Gauge {
    /// The number of records put, repeats included.
    pub put: AtomicU64,
    /// The number of different postings among them.
    pub unique: AtomicU64,
    /// The number of different postings that the fleet has taken.
    pub taken: AtomicU64,
    stop: AtomicBool,
}

/// The rate and content of the load.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The postings' seed.
    pub seed: u64,
    /// The number of accounts.
    pub accounts: u64,
    /// Records a second.
    pub rate: u64,
    /// The most postings that may be put and not yet taken.
    pub ahead_max: u64,
}

/// A running load.
pub struct Load {
    gauge: Arc<Gauge>,
    tasks: JoinSet<Result<Postings, ChaosError>>,
}

impl Load {
    /// Starts a load.
    pub fn start(way: Way, pace: Pace, gauge: Arc<Gauge>) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(run(way, pace, Arc::clone(&gauge)));
        Self { gauge, tasks }
    }

    /// Waits until the load ends by itself, which it does only when something is wrong.
    pub async fn failed(&mut self) -> ChaosError {
        match self.tasks.join_next().await {
            Some(Ok(Err(error))) => error,
            _ => ChaosError::Stuck("the load ended by itself".to_owned()),
        }
    }

    /// Stops the load, waits until all of it has arrived, and returns the postings.
    pub async fn finish(mut self) -> Result<Postings, ChaosError> {
        self.gauge.stop.store(true, Ordering::Release);
        match self.tasks.join_next().await {
            Some(Ok(given)) => given,
            _ => Err(ChaosError::Stuck("the load ended by itself".to_owned())),
        }
    }
}

async fn run(way: Way, pace: Pace, gauge: Arc<Gauge>) -> Result<Postings, ChaosError> {
    let mut given = Postings::new(pace.seed, pace.accounts);
    let watch = Stopwatch::start();
    let (mut put, mut due) = (0, 0);
    while !gauge.stop.load(Ordering::Acquire) {
        let now_due = (watch.elapsed().as_secs_f64() * pace.rate as f64) as u64;
        let ahead = (given.unique() as u64).saturating_sub(gauge.taken.load(Ordering::Relaxed));
        // Records for which there is no room are not caught up on.
        let batch = (now_due - due).min(pace.ahead_max.saturating_sub(ahead));
        due = now_due;
        let mut records = Vec::new();
        for _ in 0..batch {
            let posting = given.make();
            let number = given.number(&posting.id).unwrap_or_default();
            records.push(Record::new(pace.seed, number, &posting));
        }
        way.put(&records).await?;
        put += batch;
        gauge.put.store(put, Ordering::Relaxed);
        gauge.unique.store(given.unique() as u64, Ordering::Relaxed);
        sleep(TICK).await;
    }
    way.flush(put).await?;
    Ok(given)
}
