//! What a shard's ledger is made with.
//! In: nothing; plain data. Out: the same.

use std::sync::Arc;

use crate::handler::AfterDeadLetter;
use crate::pipeline::bindings::Bindings;
use crate::pipeline::retry::RetryPolicy;
use crate::settings::Settings;

/// What the ledger knows of a service.
#[derive(Clone, Debug)]
pub struct ServiceInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Its number in the store: part of its ids.
    pub number: u16,
    /// Its retry policy.
    pub retry: RetryPolicy,
    /// What happens behind a dead letter.
    pub after_dead_letter: AfterDeadLetter,
}

/// What a shard's ledger is made with.
#[derive(Clone, Debug)]
pub struct LedgerConfig {
    /// The settings.
    pub settings: Arc<Settings>,
    /// The services, in the order of their indices.
    pub services: Arc<[ServiceInfo]>,
    /// Names of the sources, in the order of their indices.
    pub sources: Arc<[Arc<str>]>,
    /// Where events go within the store.
    pub bindings: Arc<Bindings>,
    /// Key under which ids are hashed.
    pub hash_key: [u8; 32],
    /// Actors that this shard may have.
    pub actors_max: u32,
    /// Seed of the jitter.
    pub seed: u64,
}
