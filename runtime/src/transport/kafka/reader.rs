//! The one thread that polls the one consumer.
//! In: partitions to read, by shard and opening; records. Out: batches in the shards' buffers, never waiting for one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::time::Duration;

use hashbrown::HashMap;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tracing::{info, warn};

use super::buffer::{ShardBuffer, bytes_of};
use super::error::KafkaFailure;
use super::orders::{Again, AssignerOrder, Generation, ReaderOrder, Reading, SharedConsumer};
use super::partition::AssignedPartition;
use super::record::KafkaRecord;
use super::start::{MADE_ANEW, ways_on};
use crate::clock::Stopwatch;
use crate::message::{Position, Positions, ShardNo};
use crate::transport::Delivery;

/// The longest that a poll waits for a record; also the most by which an order or a resume may be late.
const POLL: Duration = Duration::from_millis(10);
/// The most records polled before they are handed over.
const BATCH: usize = 1_024;
/// The most bytes polled before they are handed over.
const BATCH_BYTES: usize = 1 << 20;
/// The time between two commits to the group.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// The least time between two reports of the same kind of trouble.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// A shard whose source is open.
struct OpenShard {
    generation: Generation,
    buffer: Arc<ShardBuffer>,
    batch: Vec<Delivery>,
    batch_bytes: usize,
    paused: bool,
}

/// The reader's state.
pub(super) struct KafkaReader {
    client: SharedConsumer,
    remake: Box<dyn Fn() -> Result<SharedConsumer, KafkaFailure> + Send>,
    orders: Receiver<ReaderOrder>,
    /// True while both threads run.
    alive: Arc<AtomicBool>,
    assigner: Sender<AssignerOrder>,
    id_header: String,
    open_shards: BTreeMap<ShardNo, OpenShard>,
    partitions: HashMap<String, Vec<Option<AssignedPartition>>>,
    committed: Stopwatch,
    reported: Option<Stopwatch>,
}

impl KafkaReader {
    pub(super) fn new(
        client: SharedConsumer,
        remake: Box<dyn Fn() -> Result<SharedConsumer, KafkaFailure> + Send>,
        orders: Receiver<ReaderOrder>,
        alive: Arc<AtomicBool>,
        assigner: Sender<AssignerOrder>,
        id_header: String,
    ) -> Self {
        let committed = Stopwatch::start();
        let (open_shards, partitions) = (BTreeMap::new(), HashMap::new());
        Self { client, remake, orders, alive, assigner, id_header, open_shards, partitions, committed, reported: None }
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) {
        loop {
            loop {
                match self.orders.try_recv() {
                    Ok(ReaderOrder::Stop) | Err(TryRecvError::Disconnected) => return,
                    Ok(order) => self.obey(order),
                    Err(TryRecvError::Empty) => break,
                }
            }
            self.poll();
            self.hand_over();
            if self.committed.elapsed() >= COMMIT_EVERY {
                self.committed = Stopwatch::start();
                self.tell_group();
            }
        }
    }

    fn obey(&mut self, order: ReaderOrder) {
        match order {
            ReaderOrder::Open(shard, generation, buffer) => {
                self.close(shard);
                let batch = Vec::with_capacity(BATCH);
                let open = OpenShard { generation, buffer, batch, batch_bytes: 0, paused: false };
                self.open_shards.insert(shard, open);
            }
            ReaderOrder::Read(shard, generation, reading) => {
                if self.open_shards.get(&shard).is_some_and(|open| open.generation == generation) {
                    self.read(shard, reading);
                }
            }
            ReaderOrder::Close(shard, generation) => {
                if self.open_shards.get(&shard).is_some_and(|open| open.generation == generation) {
                    self.close(shard);
                }
            }
            ReaderOrder::Stop => {}
        }
    }

    fn read(&mut self, shard: ShardNo, reading: Reading) {
        let Reading { place, partition, last, .. } = &reading;
        let (partition, last) = (*partition, *last);
        let Ok(index) = usize::try_from(partition) else { return };
        let at = i64::try_from(reading.start.at).unwrap_or(i64::MAX);
        let paused = self.open_shards.get(&shard).is_some_and(|open| open.paused);
        let mut list = TopicPartitionList::with_capacity(1);
        let done = list
            .add_partition_offset(&place.topic, partition, Offset::Offset(at))
            .and_then(|()| self.client.incremental_assign(&list))
            .and_then(|()| if paused { self.client.pause(&list) } else { Ok(()) });
        if let Err(error) = done {
            self.report(shard, &format!("partition {} cannot be assigned: {error}", place.origin));
            // It may be assigned and not paused: left there, no later attempt would succeed.
            self.client.incremental_unassign(&list).ok();
            return self.again(vec![self.retry(shard, reading.place.topic, partition, last)]);
        }
        let assigned = AssignedPartition::new(shard, reading);
        let partitions = self.partitions.entry_ref(assigned.place.topic.as_str()).or_default();
        partitions.resize_with(partitions.len().max(index + 1), || None);
        partitions[index] = Some(assigned);
    }

    /// Ends a shard's opening: its partitions are no longer read, and records read for it are dropped.
    fn close(&mut self, shard: ShardNo) {
        if !self.open_shards.contains_key(&shard) {
            return;
        }
        self.tell_group();
        self.open_shards.remove(&shard);
        self.unassign(|assigned| assigned.shard == shard);
    }

    /// Takes partitions out of the assignment and returns them.
    fn unassign(&mut self, which: impl Fn(&AssignedPartition) -> bool) -> Vec<(i32, AssignedPartition)> {
        let mut taken = Vec::new();
        for partitions in self.partitions.values_mut() {
            for (partition, assigned) in (0..).zip(partitions.iter_mut()) {
                if assigned.as_ref().is_some_and(&which) {
                    taken.extend(assigned.take().map(|assigned| (partition, assigned)));
                }
            }
        }
        let mut list = TopicPartitionList::with_capacity(taken.len());
        for (partition, assigned) in &taken {
            list.add_partition(&assigned.place.topic, *partition);
            self.client.context().metrics().forget_kafka_lag(&assigned.place.topic, *partition);
        }
        if list.count() > 0
            && let Err(error) = self.client.incremental_unassign(&list)
        {
            warn!(%error, "partitions cannot be taken out of the assignment");
        }
        taken
    }

    // ---- records

    fn poll(&mut self) {
        // The consumer is used while assigned partitions change.
        let client = Arc::clone(&self.client);
        let (mut wait, mut bytes) = (POLL, 0);
        for _ in 0..BATCH {
            match client.poll(wait) {
                None => break,
                Some(Ok(record)) => bytes += self.take(&record),
                Some(Err(error)) => return self.failed(&error),
            }
            if bytes >= BATCH_BYTES {
                break;
            }
            wait = Duration::ZERO;
        }
    }

    /// Moves a record towards its shard; returns the bytes that it takes there.
    fn take(&mut self, message: &BorrowedMessage<'_>) -> usize {
        let index = usize::try_from(message.partition()).unwrap_or(usize::MAX);
        let assigned = self.partitions.get_mut(message.topic()).and_then(|partitions| partitions.get_mut(index));
        // `None`: it was polled for an opening that has ended since.
        let Some(Some(assigned)) = assigned else { return 0 };
        let record = KafkaRecord::of(message);
        if record.offset < assigned.next {
            return 0;
        }
        let mark = record.mark();
        // A later offset: the record that was taken last was removed by compaction, and cannot be compared.
        if let Some(known) = assigned.check.take().filter(|known| known.no == record.offset) {
            if known.mark == mark {
                assigned.next = record.offset + 1;
            } else {
                let reason =
                    format!("the record at {}, offset {} is another one: {MADE_ANEW}", assigned.origin, known.no);
                let entry = assigned.origin.rsplit_once('/').map_or(&*assigned.place.topic, |(entry, _)| entry);
                let (shard, reason) = (assigned.shard, ways_on(entry, &reason));
                self.lost(shard, reason);
            }
            return 0;
        }
        let position = Position { no: record.offset, index: 0, mark };
        let content = record.content(&assigned.place, &self.id_header);
        let delivery = Delivery { origin: Arc::clone(&assigned.origin), position, content };
        assigned.next = record.offset + 1;
        assigned.last = Some(position);
        let bytes = bytes_of(&delivery);
        if let Some(open) = self.open_shards.get_mut(&assigned.shard) {
            open.batch.push(delivery);
            open.batch_bytes += bytes;
        }
        bytes
    }

    /// Ends the shard's source; it is the operator's turn.
    fn lost(&mut self, shard: ShardNo, reason: String) {
        self.unassign(|assigned| assigned.shard == shard);
        if let Some(open) = self.open_shards.get(&shard) {
            open.buffer.lose(reason);
        }
    }

    /// Puts batches into the buffers, pauses the partitions of full buffers and resumes those of buffers with room.
    fn hand_over(&mut self) {
        let mut turned = Vec::new();
        for (shard, open) in &mut self.open_shards {
            if !open.batch.is_empty() {
                open.buffer.put(&mut open.batch, std::mem::take(&mut open.batch_bytes));
            }
            if if open.paused { open.buffer.has_room() } else { open.buffer.is_full() } {
                open.paused = !open.paused;
                turned.push((*shard, open.paused));
            }
        }
        for (shard, pause) in turned {
            let list = self.list_of(|assigned| assigned.shard == shard);
            let done = if pause { self.client.pause(&list) } else { self.client.resume(&list) };
            if let Err(error) = done {
                warn!(shard, pause, %error, "partitions cannot be paused or resumed");
            }
        }
    }

    fn list_of(&self, which: impl Fn(&AssignedPartition) -> bool) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for (topic, partitions) in &self.partitions {
            for (partition, assigned) in (0..).zip(partitions) {
                if assigned.as_ref().is_some_and(&which) {
                    list.add_partition(topic, partition);
                }
            }
        }
        list
    }

    /// Tells the group how far the store is. After a change of the number of shards, a shard's positions name
    /// partitions of other shards too; the shard does not speak for these.
    fn tell_group(&mut self) {
        let committed: BTreeMap<ShardNo, Positions> =
            self.open_shards.iter().map(|(shard, open)| (*shard, open.buffer.to_commit())).collect();
        let consumer = self.client.position().unwrap_or_else(|_| TopicPartitionList::new());
        let mut list = TopicPartitionList::new();
        for (topic, partitions) in &mut self.partitions {
            for (partition, assigned) in
                (0..).zip(partitions.iter_mut()).filter_map(|(no, assigned)| Some((no, assigned.as_mut()?)))
            {
                let known = committed.get(&assigned.shard).and_then(|positions| positions.get(&assigned.origin));
                assigned.committed = known.copied().or(assigned.committed);
                let consumer = consumer.find_partition(topic, partition).and_then(|found| found.offset().to_raw());
                let Some((end, tag)) = assigned.take_news(consumer.and_then(|raw| u64::try_from(raw).ok())) else {
                    continue;
                };
                let mut element = list.add_partition(topic, partition);
                element.set_metadata(tag);
                if let Err(error) = element.set_offset(Offset::Offset(i64::try_from(end).unwrap_or(i64::MAX))) {
                    warn!(%error, "a position cannot be committed to the group");
                }
            }
        }
        if list.count() > 0
            && let Err(error) = self.client.commit(&list, CommitMode::Async)
        {
            warn!(%error, "positions cannot be committed to the group");
        }
    }

    // ---- troubles

    fn failed(&mut self, error: &KafkaError) {
        if let KafkaError::MessageConsumptionFatal(_) = error {
            return self.remake(error);
        }
        let shards: Vec<ShardNo> = self.open_shards.keys().copied().collect();
        if self.reported.is_none_or(|reported| reported.elapsed() >= REPORT_EVERY) {
            self.reported = Some(Stopwatch::start());
            shards.iter().for_each(|shard| self.report(*shard, &error.to_string()));
        }
        let code = error.rdkafka_error_code();
        if code.is_some_and(|code| PLACE_IN_DOUBT.contains(&code)) {
            // The error does not say which partition: all of them are placed anew from where they are.
            let partitions = self.unassign(|_| true);
            self.place_anew(partitions);
        }
    }

    fn place_anew(&self, partitions: Vec<(i32, AssignedPartition)>) {
        let again = partitions.into_iter();
        let again = again
            .map(|(partition, assigned)| self.retry(assigned.shard, assigned.place.topic, partition, assigned.last));
        self.again(again.collect());
    }

    fn retry(&self, shard: ShardNo, topic: String, partition: i32, last: Option<Position>) -> Again {
        let generation = self.open_shards.get(&shard).map_or(Generation::default(), |open| open.generation);
        Again { shard, generation, topic, partition, last }
    }

    fn again(&self, again: Vec<Again>) {
        // An assigner that is gone was told to stop, as this thread was.
        self.assigner.send(AssignerOrder::Place(again)).ok();
    }

    fn report(&self, shard: ShardNo, reason: &str) {
        if let Some(open) = self.open_shards.get(&shard) {
            open.buffer.trouble(reason);
        }
    }

    /// Replaces the consumer, which is of no further use.
    fn remake(&mut self, error: &KafkaError) {
        warn!(%error, "the consumer failed for good and is made anew");
        let partitions = self.unassign(|_| true);
        match (self.remake)() {
            Ok(client) => {
                info!("the consumer was made anew");
                self.client = Arc::clone(&client);
                self.assigner.send(AssignerOrder::Use(client)).ok();
            }
            Err(reason) => warn!(%reason, "the consumer cannot be made anew"),
        }
        self.place_anew(partitions);
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        // Told to stop, or unwinding: no shard may wait for a thread that is gone, nor one whose order was not read
        // yet.
        self.alive.store(false, Ordering::SeqCst);
        self.open_shards.values().for_each(|open| open.buffer.abandon());
        for order in self.orders.try_iter() {
            if let ReaderOrder::Open(_, _, buffer) = order {
                buffer.abandon();
            }
        }
    }
}

/// Errors after which a partition is no longer read, or no longer the same one.
const PLACE_IN_DOUBT: &[RDKafkaErrorCode] = &[
    RDKafkaErrorCode::AutoOffsetReset,
    RDKafkaErrorCode::OffsetOutOfRange,
    RDKafkaErrorCode::LogTruncation,
    RDKafkaErrorCode::UnknownTopic,
    RDKafkaErrorCode::UnknownPartition,
    RDKafkaErrorCode::UnknownTopicOrPartition,
];
