//! The thread that asks the brokers: which partitions there are, and where reading each resumes.
//! In: openings and partitions in doubt. Out: partitions for the reader, troubles for the buffers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionList;
use tracing::warn;

use super::buffer::ShardBuffer;
use super::group;
use super::orders::{ANSWER, AssignerOrder, Generation, ReaderOrder, Reading, SharedConsumer};
use super::record::PartitionPlace;
use super::start::{OffsetBounds, PartitionLoss, Start, after, ways_on};
use crate::clock::Stopwatch;
use crate::message::{Position, Positions, ShardNo};
use crate::settings::{FirstStart, topic_of};
use crate::transport::again::{AGAIN, AGAIN_MAX, pause_after};

/// The interval between looks for new partitions.
const REFRESH: Duration = AGAIN_MAX;

/// The interval at which the group's offsets of partitions that are read are written again: it forgets them one by one,
/// each some days after it was written, and a partition without a taken record would lose its beginning.
const KEEP: Duration = Duration::from_secs(600);

/// Failures in a row before one is reported: a topic that was just made has no leaders for a moment.
const TOLD: u32 = 2;

struct Opening {
    generation: Generation,
    buffer: Arc<ShardBuffer>,
    from: Positions,
    /// Partitions that the reader has, by topic number.
    placed: BTreeSet<(usize, i32)>,
}

/// The assigner's state.
pub(super) struct Assigner {
    client: SharedConsumer,
    orders: Receiver<AssignerOrder>,
    /// True while both threads run.
    alive: Arc<AtomicBool>,
    reader: Sender<ReaderOrder>,
    /// Entries of `kafka.topics`.
    topics: Vec<String>,
    shards: u32,
    first_start: FirstStart,
    openings: BTreeMap<ShardNo, Opening>,
    looked: Option<Stopwatch>,
    /// The pause until the next look.
    pause: Duration,
    /// Looks in a row that did not place all partitions.
    failed: u32,
    /// True if an order came that says when to look again.
    asked: bool,
    stopped: bool,
    kept: Option<Stopwatch>,
}

/// The reason why a partition was not placed.
#[derive(Debug, thiserror::Error)]
enum NotPlaced {
    #[error(transparent)]
    Unanswered(#[from] KafkaError),
    #[error("topic {0} is not there, or may not be read: create it, or change kafka.topics")]
    NoTopic(String),
    #[error("{0} has no leader")]
    NoLeader(String),
    /// An operator has to decide.
    #[error("{}", ways_on(.entry, format_args!("{origin}: {loss}")))]
    Lost { entry: String, origin: String, loss: PartitionLoss },
}

impl Assigner {
    pub(super) fn new(
        client: SharedConsumer,
        orders: Receiver<AssignerOrder>,
        alive: Arc<AtomicBool>,
        reader: Sender<ReaderOrder>,
        settings: &crate::settings::KafkaSettings,
        shards: u32,
    ) -> Self {
        Self {
            client,
            orders,
            alive,
            reader,
            topics: settings.topics.clone(),
            shards: shards.max(1),
            first_start: settings.first_start,
            openings: BTreeMap::new(),
            looked: None,
            pause: REFRESH,
            failed: 0,
            asked: false,
            stopped: false,
            kept: None,
        }
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) {
        while !self.stopped {
            let rest = self.looked.map_or(Duration::ZERO, |looked| self.pause.saturating_sub(looked.elapsed()));
            match self.orders.recv_timeout(rest) {
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => {
                    self.asked = false;
                    let placed = self.look();
                    if placed && self.kept.is_none_or(|kept| kept.elapsed() >= KEEP) {
                        self.keep();
                    }
                    self.failed = if placed { 0 } else { self.failed + 1 };
                    if !self.asked {
                        self.looked = Some(Stopwatch::start());
                        self.pause = if placed { REFRESH } else { pause_after(self.failed) };
                    }
                }
            }
        }
    }

    fn obey(&mut self, order: AssignerOrder) {
        match order {
            AssignerOrder::Open(shard, generation, buffer, from) => {
                self.openings.insert(shard, Opening { generation, buffer, from, placed: BTreeSet::new() });
                self.looked = None;
                self.asked = true;
            }
            AssignerOrder::Place(again) => {
                for again in again {
                    let number = self.topics.iter().position(|entry| topic_of(entry) == again.topic);
                    let opening = self.openings.get_mut(&again.shard);
                    let opening = opening.filter(|opening| opening.generation == again.generation);
                    let (Some(number), Some(opening)) = (number, opening) else { continue };
                    if let Some(last) = again.last {
                        opening.from.insert(origin(&self.topics[number], again.partition).into(), last);
                    }
                    opening.placed.remove(&(number, again.partition));
                }
                // Not at once: the cause of the doubt may last.
                self.looked = Some(Stopwatch::start());
                self.pause = AGAIN;
                self.asked = true;
            }
            AssignerOrder::Close(shard, generation) => {
                if self.openings.get(&shard).is_some_and(|opening| opening.generation == generation) {
                    self.openings.remove(&shard);
                }
            }
            AssignerOrder::Use(client) => self.client = client,
            AssignerOrder::Stop => self.stopped = true,
        }
    }

    /// Places the partitions that are not placed; returns whether all are.
    fn look(&mut self) -> bool {
        let mut all = true;
        for number in 0..self.topics.len() {
            if self.openings.is_empty() {
                return true;
            }
            match self.partitions(number) {
                Ok(led) => all &= self.place(number, &led),
                Err(reason) => {
                    all = false;
                    let reason = reason.to_string();
                    self.openings
                        .values()
                        .filter(|_| self.failed >= TOLD)
                        .for_each(|opening| opening.buffer.trouble(&reason));
                }
            }
        }
        all
    }

    /// See [`group::keep`].
    fn keep(&mut self) {
        self.kept = Some(Stopwatch::start());
        let mut list = TopicPartitionList::new();
        for (number, partition) in self.openings.values().flat_map(|opening| &opening.placed) {
            list.add_partition(topic_of(&self.topics[*number]), *partition);
        }
        if list.count() > 0
            && let Err(error) = group::keep(&self.client, list)
        {
            warn!(%error, "the group's offsets cannot be kept, trying again later");
        }
    }

    /// For each partition of a topic, whether it has a leader.
    fn partitions(&self, number: usize) -> Result<Vec<bool>, NotPlaced> {
        let topic = topic_of(&self.topics[number]);
        let metadata = self.client.fetch_metadata(Some(topic), ANSWER)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let mut partitions: Vec<(i32, bool)> = found
            .filter(|found| found.error().is_none())
            .into_iter()
            .flat_map(|found| found.partitions())
            .map(|partition| (partition.id(), partition.leader() >= 0))
            .collect();
        if partitions.is_empty() {
            return Err(NotPlaced::NoTopic(topic.to_owned()));
        }
        partitions.sort_unstable();
        Ok(partitions.into_iter().map(|(_, led)| led).collect())
    }

    fn place(&mut self, number: usize, led: &[bool]) -> bool {
        let mut all = true;
        let mut begun = None;
        let count = i32::try_from(led.len()).unwrap_or(i32::MAX);
        for (partition, led) in (0..count).zip(led) {
            // A broker may take its time for each: an opening or closing must not wait for all of them.
            while let Ok(order) = self.orders.try_recv() {
                self.obey(order);
            }
            if self.stopped {
                return true;
            }
            let shard = partition.unsigned_abs() % self.shards;
            let wanted = self.openings.get(&shard).filter(|opening| !opening.placed.contains(&(number, partition)));
            let Some(opening) = wanted else { continue };
            let last = opening.from.get(origin(&self.topics[number], partition).as_str()).copied();
            let start = match last {
                _ if !led => Err(NotPlaced::NoLeader(origin(&self.topics[number], partition))),
                Some(last) => self.go_on(number, partition, last),
                None => self.begin(number, partition, count, &mut begun),
            };
            let Some(opening) = self.openings.get_mut(&shard) else { continue };
            match start {
                Ok(start) => {
                    opening.placed.insert((number, partition));
                    let reading = Reading { place: place_of(&self.topics[number], partition), partition, start, last };
                    // A reader that is gone was told to stop, as this thread was.
                    self.reader.send(ReaderOrder::Read(shard, opening.generation, reading)).ok();
                }
                Err(lost @ NotPlaced::Lost { .. }) => {
                    opening.buffer.lose(lost.to_string());
                    self.openings.remove(&shard);
                }
                Err(reason) => {
                    all = false;
                    if self.failed >= TOLD {
                        opening.buffer.trouble(&reason.to_string());
                    }
                }
            }
        }
        all
    }

    fn bounds(&self, topic: &str, partition: i32) -> KafkaResult<OffsetBounds> {
        let (low, high) = self.client.fetch_watermarks(topic, partition, ANSWER)?;
        let offset = |raw: i64| u64::try_from(raw).unwrap_or(0);
        Ok(OffsetBounds { low: offset(low), high: offset(high) })
    }

    fn go_on(&self, number: usize, partition: i32, last: Position) -> Result<Start, NotPlaced> {
        let entry = &self.topics[number];
        let bounds = self.bounds(topic_of(entry), partition)?;
        let start = after(last, bounds);
        // Offsets were removed that were never handed over; the consumer may have seen that no record lay there.
        if start.is_err()
            && bounds.low > last.no + 1
            && group::seen(&self.client, topic_of(entry), partition, last)? >= bounds.low
        {
            return Ok(Start { at: bounds.low, check: None });
        }
        start.map_err(|loss| NotPlaced::Lost { entry: entry.clone(), origin: origin(entry, partition), loss })
    }

    /// The start of a partition without a taken record.
    fn begin(
        &self,
        number: usize,
        partition: i32,
        count: i32,
        begun: &mut Option<BTreeMap<i32, u64>>,
    ) -> Result<Start, NotPlaced> {
        let topic = topic_of(&self.topics[number]);
        let OffsetBounds { low, high } = self.bounds(topic, partition)?;
        let at = match self.first_start {
            FirstStart::Earliest => low,
            FirstStart::Latest => {
                let begun = match begun {
                    Some(begun) => begun,
                    None => begun.insert(group::begun(&self.client, topic, count)?),
                };
                // A partition that came after the topic was begun is new: none of its records was ever passed over.
                begun.get(&partition).map_or(low, |at| (*at).clamp(low, high))
            }
        };
        Ok(Start { at, check: None })
    }
}

impl Drop for Assigner {
    fn drop(&mut self) {
        // Told to stop, or unwinding: no shard may wait for a thread that is gone, nor one whose order was not read
        // yet.
        self.alive.store(false, Ordering::SeqCst);
        self.openings.values().for_each(|opening| opening.buffer.abandon());
        for order in self.orders.try_iter() {
            if let AssignerOrder::Open(_, _, buffer, _) = order {
                buffer.abandon();
            }
        }
    }
}

/// The name of a partition in positions.
fn origin(entry: &str, partition: i32) -> String {
    format!("{entry}/{partition}")
}

fn place_of(entry: &str, partition: i32) -> PartitionPlace {
    let topic = topic_of(entry);
    PartitionPlace { origin: origin(entry, partition), topic: topic.to_owned(), source: format!("kafka:{topic}") }
}
