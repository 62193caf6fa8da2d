//! A steady load of postings, as the ledger workload has them: on a topic, on streams, or in the store's own log.
//! In: a seed, a rate. Out: records at that rate until told to stop; what must have come of them.

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

/// A store that is away is tried again for so long.
const STORE_WITHIN: Duration = Duration::from_secs(180);

/// Time between two batches.
const TICK: Duration = Duration::from_millis(5);

/// Where the load goes.
pub enum Way {
    /// To a topic.
    Topic(topics::Input),
    /// To streams.
    Streams(streams::Input),
    /// To the log of a store with so many shards.
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
                // Whether it was appended may be unknown; then it comes twice, which its ids make harmless.
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

/// How far the load is, for everybody to see.
#[derive(Debug, Default)]
pub struct Gauge {
    /// Records put, repeats included.
    pub put: AtomicU64,
    /// Different postings among them.
    pub unique: AtomicU64,
    /// Different postings that the fleet has taken.
    pub taken: AtomicU64,
    stop: AtomicBool,
}

/// How much, and of what.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The postings' seed.
    pub seed: u64,
    /// Accounts.
    pub accounts: u64,
    /// Records a second.
    pub rate: u64,
    /// How many postings may be put and not taken.
    pub ahead_max: u64,
}

/// A load that runs.
pub struct Load {
    gauge: Arc<Gauge>,
    tasks: JoinSet<Result<Postings, ChaosError>>,
}

impl Load {
    /// Starts one.
    pub fn start(way: Way, pace: Pace, gauge: Arc<Gauge>) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(run(way, pace, Arc::clone(&gauge)));
        Self { gauge, tasks }
    }

    /// Whether it ended by itself, which it does only when something is wrong.
    pub async fn failed(&mut self) -> ChaosError {
        match self.tasks.join_next().await {
            Some(Ok(Err(error))) => error,
            _ => ChaosError::Stuck("the load ended by itself".to_owned()),
        }
    }

    /// Stops it, waits until all of it is where it goes, and tells what it was.
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
        // What there is no room for is not made up for.
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
