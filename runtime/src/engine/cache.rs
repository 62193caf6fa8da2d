//! The cache of answers that calls were given: it makes repeats faster, and is never an authority.
//! In: records of calls that have ended. Out: these records, or nothing.

#[cfg(feature = "redis")]
mod entry;
mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod rest;

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::handler::CallId;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::store::calls::CallRecord;

/// The reason why the cache of the settings cannot be had. The address is not shown: it may have a password in it.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The address is not one of Redis.
    #[cfg(feature = "redis")]
    #[error("cache.url is not an address of Redis: {WANTED}")]
    NotRedis,
    /// The address is one of Redis, and names none.
    #[cfg(feature = "redis")]
    #[error("cache.url does not name a Redis: {0}: {WANTED}")]
    Address(::redis::RedisError),
    /// The program cannot speak with Redis.
    #[cfg(not(feature = "redis"))]
    #[error("cache.url is set, and this program was built without Redis (feature `redis`): leave it empty")]
    WithoutRedis,
}

/// A description of an address of Redis.
#[cfg(feature = "redis")]
const WANTED: &str = "it must be redis://host:port (redis://user:password@host:port/database), or rediss:// for TLS";

/// A cache of ended calls. It may forget any of them at any time; its users compare fingerprint and expiry.
pub trait ReplayCache: Send + Sync + std::fmt::Debug {
    /// The record of a call, if the cache has it.
    fn get(&self, id: CallId) -> BoxFuture<'_, Option<CallRecord>>;

    /// Keeps records, each until it expires. It does not wait for anybody.
    fn put(&self, records: Vec<CallRecord>);
}

/// The cache that the settings ask for: Redis, or the process's own. `secret` is the store's
/// ([`CallStore::secret`](crate::store::calls::CallStore::secret)): others that share a Redis neither see its answers nor write
/// any. It is called within a Tokio runtime, and does not wait for Redis. The error says what is wrong with the settings.
pub fn open(settings: &Settings, secret: &[u8; 32], metrics: &Metrics) -> Result<Arc<dyn ReplayCache>, CacheError> {
    let (cache, metrics) = (&settings.cache, metrics.cache());
    if cache.url.is_empty() {
        return Ok(Arc::new(memory::MemoryCache::new(cache, metrics)));
    }
    #[cfg(feature = "redis")]
    return Ok(Arc::new(redis::RedisCache::open(cache, secret, metrics)?));
    #[cfg(not(feature = "redis"))]
    {
        drop((secret, metrics));
        Err(CacheError::WithoutRedis)
    }
}

/// Checks the settings of the cache; nothing is opened.
pub(crate) fn check(settings: &Settings) -> Result<(), CacheError> {
    #[cfg(feature = "redis")]
    if !settings.cache.url.is_empty() {
        redis::client(&settings.cache.url)?;
    }
    #[cfg(not(feature = "redis"))]
    if !settings.cache.url.is_empty() {
        return Err(CacheError::WithoutRedis);
    }
    Ok(())
}

/// True for a record that is worth its place: calls that still run may end in any way, and large answers are read from the store.
fn is_kept(record: &CallRecord, bytes_max: usize) -> bool {
    record.outcome.as_ref().is_some_and(|outcome| outcome.code.len() + outcome.body.len() <= bytes_max)
}
