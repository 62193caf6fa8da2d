//! A short queue beside the stream that workers publish to: it refuses messages when full, and its consumer pauses at
//! times.
//! In: the exchange. Out: the messages that the queue was given, in order.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use perkey::sleep;
use perkey::unstable::clock::{Dice, Stopwatch};
use tokio::task::JoinSet;

use crate::ChaosError;
use crate::fleet::streams::{AGAIN_AFTER, Line, beside, next, text};

/// The most messages that the queue holds.
const MOST: i64 = 200;
const PREFETCH: u16 = 100;
/// A queue that delivers nothing for this long is empty.
const SILENCE: Duration = Duration::from_secs(45);

/// The queue's consumer. When dropped, it stops.
pub(super) struct Beside {
    values: Arc<Mutex<Vec<Vec<u8>>>>,
    _tasks: JoinSet<()>,
}

impl Beside {
    /// Makes the queue behind `exchange`, and takes from it.
    pub(super) async fn start(address: &str, exchange: &str, seed: u64) -> Result<Self, ChaosError> {
        let queue = beside(exchange);
        let line = Line::open(address).await?;
        let mut arguments = text("x-queue-type", "quorum");
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(MOST));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        line.channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), arguments).await?;
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        line.channel.queue_bind(queue.as_str().into(), exchange.into(), "".into(), options, none).await?;
        let values = Arc::default();
        let (mine, address, dice) = (Arc::clone(&values), address.to_owned(), Dice::seeded(seed));
        let mut tasks = JoinSet::new();
        tasks.spawn(run(address, queue, mine, dice));
        Ok(Self { values, _tasks: tasks })
    }

    /// All messages, once `unique` different ones have come, or none has for long.
    pub(super) async fn finish(self, unique: usize) -> Vec<Vec<u8>> {
        let (mut last, mut since) = (0, Stopwatch::start());
        while since.elapsed() < SILENCE {
            {
                let values = locked(&self.values);
                if values.len() != last {
                    (last, since) = (values.len(), Stopwatch::start());
                }
                // Repeats are counted only now, as there are few of them.
                if values.len() >= unique && values.iter().collect::<HashSet<_>>().len() >= unique {
                    break;
                }
            }
            sleep(Duration::from_millis(500)).await;
        }
        std::mem::take(&mut locked(&self.values))
    }
}

fn locked(values: &Mutex<Vec<Vec<u8>>>) -> MutexGuard<'_, Vec<Vec<u8>>> {
    values.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Consumes over one connection after another.
async fn run(address: String, queue: String, values: Arc<Mutex<Vec<Vec<u8>>>>, mut dice: Dice) {
    loop {
        // Whatever the error is, the server comes back; messages that were not acknowledged come again.
        drop(consume(&address, &queue, &values, &mut dice).await);
        sleep(AGAIN_AFTER).await;
    }
}

/// Takes some thousands of messages, pauses until the queue is full, and so on.
async fn consume(address: &str, queue: &str, values: &Mutex<Vec<Vec<u8>>>, dice: &mut Dice) -> Result<(), ChaosError> {
    let line = Line::open(address).await?;
    line.channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = line.channel.basic_consume(queue.into(), "".into(), options, none).await?;
    loop {
        for _ in 0..3_000 + dice.below(5_000) {
            let delivery = next(&mut consumer, queue).await?;
            locked(values).push(delivery.data.clone());
            delivery.ack(BasicAckOptions::default()).await?;
        }
        sleep(Duration::from_millis(200 + dice.below(1_000))).await;
    }
}
