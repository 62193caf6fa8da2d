//! The cache of answers in Redis, which the gateways of a fleet share.
//! In: records of calls that have ended. Out: these records, or nothing if Redis is slow, away or has something else.
//!
//! Nobody waits for Redis longer than `cache.timeout`. One task connects and writes; records that it has no room for
//! are not cached.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{Client, IntoConnectionInfo, RedisResult};
use tokio::sync::{Notify, mpsc};
use tracing::{debug, info, warn};

use super::entry::{CacheScope, OVERHEAD};
use super::rest::Rest;
use super::{CacheError, ReplayCache, is_kept};
use crate::clock::{Clock, Stopwatch, sleep};
use crate::handler::CallId;
use crate::metrics::CacheMetrics;
use crate::settings::{CacheSettings, is_redis};
use crate::store::calls::CallRecord;

/// Batches of records that wait to be written.
const WAITING_MAX: usize = 256;
/// Batches that are written at once.
const TOGETHER_MAX: usize = 32;
/// The time that a connection may take; nobody waits for it.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// The time between two attempts to connect.
const CONNECT_EVERY: Duration = Duration::from_millis(500);

/// A cache in Redis.
pub(super) struct RedisCache {
    shared: Arc<RedisShared>,
    waiting: mpsc::Sender<Vec<CallRecord>>,
}

struct RedisShared {
    scope: CacheScope,
    timeout: Duration,
    entry_bytes_max: usize,
    metrics: CacheMetrics,
    running: Stopwatch,
    rest: Mutex<Rest>,
    connection: Mutex<Option<ConnectionManager>>,
    renew: Notify,
}

impl RedisCache {
    pub(super) fn open(settings: &CacheSettings, secret: &[u8; 32], metrics: CacheMetrics) -> Result<Self, CacheError> {
        let client = client(&settings.url)?;
        let shared = Arc::new(RedisShared {
            scope: CacheScope::of(secret),
            timeout: settings.timeout,
            entry_bytes_max: settings.entry_bytes_max,
            metrics,
            running: Stopwatch::start(),
            rest: Mutex::default(),
            connection: Mutex::default(),
            renew: Notify::new(),
        });
        let (waiting, taken) = mpsc::channel(WAITING_MAX);
        spawn(keep(Arc::clone(&shared), client, taken));
        Ok(Self { shared, waiting })
    }
}

#[expect(clippy::disallowed_methods, reason = "the task outlives every actor, and ends with the cache")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

/// A client of the Redis that an address names, not connected yet.
pub(super) fn client(url: &str) -> Result<Client, CacheError> {
    if !is_redis(url) {
        return Err(CacheError::NotRedis);
    }
    let info = url.into_connection_info().map_err(CacheError::Address)?;
    Client::open(info.set_tcp_settings(TcpSettings::default().set_nodelay(true))).map_err(CacheError::Address)
}

impl std::fmt::Debug for RedisCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisCache").field("timeout", &self.shared.timeout).finish_non_exhaustive()
    }
}

impl ReplayCache for RedisCache {
    fn get(&self, id: CallId) -> BoxFuture<'_, Option<CallRecord>> {
        Box::pin(self.shared.get(id))
    }

    fn put(&self, records: Vec<CallRecord>) {
        let records: Vec<_> =
            records.into_iter().filter(|record| is_kept(record, self.shared.entry_bytes_max)).collect();
        if !records.is_empty() && self.waiting.try_send(records).is_err() {
            self.shared.metrics.add_error();
        }
    }
}

impl RedisShared {
    async fn get(&self, id: CallId) -> Option<CallRecord> {
        let key = self.scope.key(id);
        // No more is read than an entry can have, whatever is stored there.
        let most = OVERHEAD + self.entry_bytes_max;
        let entry: Vec<u8> = self
            .ask(async |mut connection| {
                redis::cmd("GETRANGE").arg(key).arg(0).arg(most).query_async(&mut connection).await
            })
            .await?;
        if entry.is_empty() {
            self.metrics.add_miss();
            return None;
        }
        let found = self.scope.decode(id, &entry);
        match found {
            Some(_) => self.metrics.add_hit(),
            None => self.metrics.add_error(),
        }
        found
    }

    async fn write(&self, records: Vec<CallRecord>) {
        let now = Clock::system().now();
        let mut pipe = redis::pipe();
        let mut empty = true;
        for record in &records {
            let left = record.expires_at.saturating_sub(now);
            if let Some(entry) = self.scope.encode(record).filter(|_| left > 0) {
                pipe.cmd("SET").arg(self.scope.key(record.id)).arg(entry).arg("PX").arg(left).ignore();
                empty = false;
            }
        }
        if !empty {
            self.ask(async |mut connection| pipe.query_async::<()>(&mut connection).await).await;
        }
    }

    /// Redis's answer, within the time that it may take and unless it is left alone.
    async fn ask<T>(&self, question: impl AsyncFnOnce(ConnectionManager) -> RedisResult<T>) -> Option<T> {
        let connection = lock(&self.connection).clone()?;
        if !lock(&self.rest).may(self.running.elapsed()) {
            return None;
        }
        let failed = match tokio::time::timeout(self.timeout, question(connection)).await {
            Ok(Ok(answer)) => {
                lock(&self.rest).succeeded();
                return Some(answer);
            }
            // Somebody else's value is stored there. Redis itself is well.
            Ok(Err(error)) if error.code() == Some("WRONGTYPE") => {
                lock(&self.rest).succeeded();
                self.metrics.add_error();
                return None;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.timeout),
        };
        self.metrics.add_error();
        if lock(&self.rest).failed(self.running.elapsed()) {
            debug!(error = failed, "the cache in redis is connected anew");
            self.renew.notify_one();
        }
        None
    }

    async fn connect(&self, client: &Client) -> RedisResult<()> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(self.timeout))
            .set_max_delay(CONNECT_EVERY)
            .set_number_of_retries(1);
        let connected = ConnectionManager::new_with_config(client.clone(), config).await?;
        *lock(&self.connection) = Some(connected);
        Ok(())
    }
}

/// Connects, and connects again if the connection does not answer; writes the records that are put. It ends with the
/// cache.
async fn keep(shared: Arc<RedisShared>, client: Client, mut waiting: mpsc::Receiver<Vec<CallRecord>>) {
    let mut away = false;
    let mut batches = Vec::new();
    loop {
        while lock(&shared.connection).is_none() {
            if waiting.is_closed() {
                return;
            }
            let error = match shared.connect(&client).await {
                Ok(()) if away => {
                    info!("the cache in redis is back");
                    away = false;
                    continue;
                }
                Ok(()) => continue,
                Err(error) => error,
            };
            if !away {
                warn!(%error, "the cache in redis cannot be reached: repeats are answered from the store");
                away = true;
            }
            shared.metrics.add_error();
            sleep(CONNECT_EVERY).await;
        }
        tokio::select! {
            () = shared.renew.notified() => *lock(&shared.connection) = None,
            count = waiting.recv_many(&mut batches, TOGETHER_MAX) => match count {
                0 => return,
                _ => shared.write(batches.drain(..).flatten().collect()).await,
            },
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_redis_is_refused_in_words_that_hide_passwords() {
        for url in ["http://h", "h:6379", "redis://u:secret@", "redis://u:secret@h:port"] {
            let refused = client(url).unwrap_err().to_string();
            assert!(refused.starts_with("cache.url ") && !refused.contains("secret"), "{refused}");
        }
        for scheme in ["redis", "rediss"] {
            assert!(client(&format!("{scheme}://user:secret@h:6379/3")).is_ok());
        }
    }
}
