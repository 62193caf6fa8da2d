//! The ledger workload as rows of the embedded log.
//! In: numbers of messages and keys, a seed. Out: messages, the same for the same seed.

use perkey::unstable::clock::Dice;
use perkey::unstable::message::shard_of;
use perkey::unstable::store::query::{ImportBatch, ImportProgress};
use perkey::unstable::store::{LogRow, Store};
use perkey::unstable::transport::embedded;
use perkey::{Draft, Message};

pub(crate) struct Workload {
    pub(crate) messages: Vec<Message>,
    pub(crate) unique: u64,
}

impl Workload {
    pub(crate) fn new(count: usize, keys: usize, seed: u64) -> Self {
        let mut dice = Dice::seeded(seed);
        let weights = (1..=keys).scan(0.0, |sum, rank| {
            *sum += (rank as f64).powf(-1.05);
            Some(*sum)
        });
        let weights: Vec<f64> = weights.collect();
        let total = weights[keys - 1];
        let mut messages: Vec<Message> = Vec::with_capacity(count);
        let mut unique = 0;
        while messages.len() < count {
            let repeat = messages.len() > 1_000 && dice.unit() < 0.05;
            if repeat {
                let back = 1 + dice.below(1_000) as usize;
                messages.push(messages[messages.len() - back].clone());
                continue;
            }
            let point = dice.unit() * total;
            let rank = weights.partition_point(|sum| *sum < point);
            messages.push(posting(&mut dice, rank));
            unique += 1;
        }
        Self { messages, unique }
    }

    pub(crate) async fn append(&self, store: &dyn Store, shards: u32) {
        for chunk in self.messages.chunks(1_000) {
            append(store, "balances", chunk, shards).await;
        }
    }
}

/// Appends messages for a service to the log, in one transaction.
pub(crate) async fn append(store: &dyn Store, service: &str, messages: &[Message], shards: u32) {
    let mut targets: Vec<Vec<(&str, &Message)>> = vec![Vec::new(); shards as usize];
    for message in messages {
        targets[shard_of(message.key(), shards) as usize].push((service, message));
    }
    let rows = (0..).zip(&targets).filter(|(_, mine)| !mine.is_empty()).map(|(target, mine)| LogRow {
        target,
        count: u32::try_from(mine.len()).expect("a small number"),
        messages: embedded::encode(mine),
    });
    let (rows, progress) = (rows.collect(), ImportProgress::default());
    let batch = ImportBatch { service: service.into(), source: "bench".into(), rows, progress, at: 0 };
    store.queries().append_import(batch).await.expect("the log takes it");
}

fn posting(dice: &mut Dice, rank: usize) -> Message {
    let id = uuid::Uuid::from_u64_pair(dice.below(u64::MAX), dice.below(u64::MAX));
    let id = uuid::Builder::from_random_bytes(id.into_bytes()).into_uuid().to_string();
    let account = format!("acct-{rank:05}");
    let amount = 1 + dice.below(10_000);
    let payload = format!(
        r#"{{"id":"{id}","account":"{account}","amount":{amount},"currency":"USD","at":"2026-01-02T03:04:05Z","memo":"{:0>48}"}}"#,
        amount
    );
    let draft = Draft { id: &id, key: &account, kind: "ledger.in", payload: payload.as_bytes(), ..Draft::default() };
    draft.build().expect("a message")
}
