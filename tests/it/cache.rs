//! The cache of answers in a real Redis, which is killed, stopped, flushed and lied to.
//! In: a Redis. Out: the records that were put, or nothing; never somebody else's, and never a long wait.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use perkey::unstable::clock::{Clock, Stopwatch};
use perkey::unstable::engine::cache::{self, ReplayCache};
use perkey::unstable::handler::CallId;
use perkey::unstable::metrics::Metrics;
use perkey::unstable::settings::CacheSettings;
use perkey::unstable::store::calls::{CallEnd, CallOutcome, CallRecord};
use perkey::{Millis, Settings, sleep};
use perkey_chaos::process::until;
use redis::aio::MultiplexedConnection;

use crate::cli::Cli;
use crate::servers;

/// Secrets of two stores.
const STORE: [u8; 32] = [1; 32];
const OTHER: [u8; 32] = [2; 32];
const MINUTE: Millis = 60_000;
/// A cache has remembered, or forgotten, within this.
const SOON: Duration = Duration::from_secs(10);
/// The time that a hundred requests may lose together to a Redis that does not answer: alone each would lose 50 ms.
const LOST_MAX: Duration = Duration::from_secs(2);

/// A cache with enough time that it forgets nothing for lack of it.
fn open(url: &str, secret: &[u8; 32]) -> (Arc<dyn ReplayCache>, Arc<Metrics>) {
    with(CacheSettings { url: url.to_owned(), timeout: Duration::from_secs(5), ..CacheSettings::default() }, secret)
}

/// A cache with the time that it has by default.
fn hasty(url: &str) -> (Arc<dyn ReplayCache>, Arc<Metrics>) {
    with(CacheSettings { url: url.to_owned(), ..CacheSettings::default() }, &STORE)
}

fn with(cache: CacheSettings, secret: &[u8; 32]) -> (Arc<dyn ReplayCache>, Arc<Metrics>) {
    let (settings, metrics) = (Settings { cache, ..Settings::default() }, Metrics::new());
    (cache::open(&settings, secret, &metrics).unwrap(), metrics)
}

fn record(id: u8, body: &str, lives: Millis) -> CallRecord {
    let now = Clock::system().now();
    let outcome = CallOutcome { end: CallEnd::Done, code: String::new(), body: body.to_owned().into() };
    let (id, fingerprint) = (CallId([id; 16]), [body.len().try_into().unwrap(); 32]);
    let message_id = String::new();
    CallRecord { id, fingerprint, message_id, accepted_at: now, expires_at: now + lives, outcome: Some(outcome) }
}

/// A database of its own in the Redis that all tests share, with nothing in it.
async fn database(no: u8) -> (String, MultiplexedConnection) {
    let url = format!("{}/{no}", servers::redis());
    let mut connection = connect(&url).await;
    redis::cmd("FLUSHDB").exec_async(&mut connection).await.unwrap();
    (url, connection)
}

async fn connect(url: &str) -> MultiplexedConnection {
    redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

/// Puts a record until it is found: a cache may forget.
async fn kept(cache: &Arc<dyn ReplayCache>, record: &CallRecord) {
    let found = async || {
        cache.put(vec![record.clone()]);
        sleep(Duration::from_millis(20)).await;
        cache.get(record.id).await.as_ref() == Some(record)
    };
    until("it was never found", SOON, found).await.unwrap();
}

async fn lost(cache: &Arc<dyn ReplayCache>, id: CallId) {
    until("it is still there", SOON, async || cache.get(id).await.is_none()).await.unwrap();
}

async fn the_key(connection: &mut MultiplexedConnection) -> String {
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(connection).await.unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys[0].clone()
}

fn count(metrics: &Metrics, name: &str) -> u64 {
    let text = metrics.encode();
    let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#')).unwrap().to_owned();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn what_is_put_is_found_by_every_gateway_until_it_expires() {
    let (url, mut connection) = database(1).await;
    let ((one, _), (other, metrics)) = (open(&url, &STORE), open(&url, &STORE));
    let long = record(1, "answer", MINUTE);
    kept(&one, &long).await;
    kept(&other, &long).await;
    assert!(count(&metrics, "idempotency_cache_hits_total") > 0);
    let left: i64 = redis::cmd("PTTL").arg(the_key(&mut connection).await).query_async(&mut connection).await.unwrap();
    assert!((1..=60_000).contains(&left), "{left}");
    let short = record(2, "answer", 400);
    one.put(vec![short.clone(), CallRecord { outcome: None, ..record(3, "", MINUTE) }]);
    lost(&one, short.id).await;
    assert_eq!(one.get(CallId([3; 16])).await, None, "a call that runs is not cached");
}

#[tokio::test]
async fn stores_that_share_a_redis_do_not_see_each_others_answers() {
    let (url, _) = database(2).await;
    let ((mine, _), (other, _)) = (open(&url, &OTHER), open(&url, &STORE));
    let (here, there) = (record(1, "here", MINUTE), record(1, "there!", MINUTE));
    kept(&mine, &here).await;
    assert_eq!(other.get(here.id).await, None);
    kept(&other, &there).await;
    kept(&mine, &here).await;
}

#[tokio::test]
async fn what_is_no_record_of_this_call_is_nothing() {
    let (url, mut connection) = database(3).await;
    let (cache, metrics) = open(&url, &STORE);
    let mine = record(1, "answer", MINUTE);
    kept(&cache, &mine).await;
    let key = the_key(&mut connection).await;
    let entry: Vec<u8> = redis::cmd("GET").arg(&key).query_async(&mut connection).await.unwrap();
    let torn = entry[..entry.len() / 2].to_vec();
    let mut changed = entry.clone();
    changed[30] ^= 1;
    for value in [b"garbage".to_vec(), torn, changed, [entry.clone(), entry.clone()].concat(), vec![7; 1 << 20]] {
        redis::cmd("SET").arg(&key).arg(value).exec_async(&mut connection).await.unwrap();
        assert_eq!(cache.get(mine.id).await, None);
    }
    redis::cmd("DEL").arg(&key).exec_async(&mut connection).await.unwrap();
    redis::cmd("LPUSH").arg(&key).arg("a list").exec_async(&mut connection).await.unwrap();
    assert_eq!(cache.get(mine.id).await, None);
    assert!(count(&metrics, "idempotency_cache_errors_total") >= 6);
    // Another call's entry under this call's key.
    redis::cmd("DEL").arg(&key).exec_async(&mut connection).await.unwrap();
    let another = record(2, "another", MINUTE);
    kept(&cache, &another).await;
    redis::cmd("RENAME").arg(the_key(&mut connection).await).arg(&key).exec_async(&mut connection).await.unwrap();
    assert_eq!(cache.get(mine.id).await, None);
    kept(&cache, &mine).await;
}

#[tokio::test]
async fn a_stale_entry_comes_with_its_own_fingerprint_and_expiry() {
    let (url, mut connection) = database(4).await;
    let (cache, _) = open(&url, &STORE);
    let (old, new) = (record(1, "old", MINUTE), record(1, "newer", 2 * MINUTE));
    kept(&cache, &old).await;
    let key = the_key(&mut connection).await;
    let entry: Vec<u8> = redis::cmd("GET").arg(&key).query_async(&mut connection).await.unwrap();
    kept(&cache, &new).await;
    redis::cmd("SET").arg(&key).arg(entry).exec_async(&mut connection).await.unwrap();
    let found = cache.get(new.id).await.unwrap();
    assert_eq!((found.fingerprint, found.expires_at), (old.fingerprint, old.expires_at));
}

#[tokio::test]
async fn a_flush_costs_only_what_was_cached() {
    let (url, mut connection) = database(5).await;
    let (cache, _) = open(&url, &STORE);
    let mine = record(1, "answer", MINUTE);
    kept(&cache, &mine).await;
    redis::cmd("FLUSHDB").exec_async(&mut connection).await.unwrap();
    assert_eq!(cache.get(mine.id).await, None);
    kept(&cache, &mine).await;
}

/// A Redis of its own, to be killed and stopped.
struct Own {
    port: u16,
    folder: tempfile::TempDir,
    process: Child,
}

fn free() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Own {
    fn start() -> Self {
        Self::with(&[])
    }

    fn with(more: &[&str]) -> Self {
        let (port, folder) = (free(), tempfile::tempdir().unwrap());
        let process = Self::run(port, &folder, more);
        Self { port, folder, process }
    }

    fn run(port: u16, folder: &tempfile::TempDir, more: &[&str]) -> Child {
        let mut server = Command::new("redis-server");
        server.args(more);
        server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]);
        server.arg(folder.path()).stdout(Stdio::null()).spawn().expect("`scripts/services up redis` installs it")
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.process.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A hundred requests that find nothing lose little time.
async fn nothing_is_lost_but_speed(cache: &Arc<dyn ReplayCache>) {
    let time = Stopwatch::start();
    for id in 0..100 {
        cache.put(vec![record(id, "answer", MINUTE)]);
        cache.get(CallId([id; 16])).await;
    }
    assert!(time.elapsed() < LOST_MAX, "{:?}", time.elapsed());
}

#[tokio::test]
async fn a_redis_that_is_killed_costs_no_time_and_is_used_again_when_it_is_back() {
    let mut server = Own::start();
    let (cache, metrics) = hasty(&server.url());
    let mine = record(1, "answer", 10 * MINUTE);
    kept(&cache, &mine).await;
    server.kill();
    lost(&cache, mine.id).await;
    nothing_is_lost_but_speed(&cache).await;
    assert!(count(&metrics, "idempotency_cache_errors_total") > 0);
    server.process = Own::run(server.port, &server.folder, &[]);
    kept(&cache, &mine).await;
}

#[tokio::test]
async fn a_redis_that_stands_still_costs_little_time_and_is_used_again_when_it_goes_on() {
    let server = Own::start();
    let (cache, _) = hasty(&server.url());
    let mine = record(1, "answer", 10 * MINUTE);
    kept(&cache, &mine).await;
    server.signal("STOP");
    nothing_is_lost_but_speed(&cache).await;
    assert_eq!(cache.get(mine.id).await, None);
    server.signal("CONT");
    kept(&cache, &mine).await;
}

#[tokio::test]
async fn a_server_that_never_answers_costs_no_time() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let (cache, _) = hasty(&url);
    nothing_is_lost_but_speed(&cache).await;
    let connected = listener.accept().await.unwrap();
    nothing_is_lost_but_speed(&cache).await;
    drop(connected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_is_asked_by_tls_where_its_certificate_is_trusted() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (tls, port) = (free(), free());
    let files = ["--tls-cert-file", cert.to_str().unwrap(), "--tls-key-file", key.to_str().unwrap()];
    let own = Own::with(&[&["--tls-port", &tls.to_string(), "--tls-auth-clients", "no"], &files[..]].concat());
    let cli = Cli::new().await;
    let set = [format!("cache.url=rediss://127.0.0.1:{tls}"), format!("gateway.listen=127.0.0.1:{port}")];
    let up =
        ["up", "--set", "admin.listen=127.0.0.1:0", "--set", &set[0], "--set", &set[1], "--set", "cache.timeout=5s"];
    let start = |trusted: bool| {
        let log = std::fs::File::create(cli.place.folder.join("up.log")).unwrap();
        let mut command = cli.place.command(&up);
        if trusted {
            command.env("SSL_CERT_FILE", &cert);
        }
        command.stderr(log).spawn().unwrap()
    };
    let log = || std::fs::read_to_string(cli.place.folder.join("up.log")).unwrap_or_default();
    let mut process = start(false);
    let refused = async || log().contains("cannot be reached") && log().contains("certificate");
    until("a certificate of nobody is refused", SOON, refused)
        .await
        .unwrap_or_else(|error| panic!("{error}: {}", log()));
    process.kill().await.unwrap();

    let process = start(true);
    let url = format!("http://127.0.0.1:{port}");
    let body = r#"{"account":"a","amount":5,"currency":"EUR"}"#;
    let mut plain = connect(&own.url()).await;
    let cached = async || {
        assert_eq!(
            cli.json(&["call", "POST", "/api/transactions", body, "--url", &url]).await.code,
            Some(0),
            "{}",
            log()
        );
        let keys: Vec<String> = redis::cmd("KEYS").arg("perkey:*").query_async(&mut plain).await.unwrap();
        !keys.is_empty()
    };
    until("an answer lies there", SOON, cached).await.unwrap_or_else(|error| panic!("{error}: {}", log()));
    drop(process);
}

#[tokio::test]
async fn a_wrong_address_is_a_matter_of_the_settings() {
    let cache = CacheSettings { url: "http://127.0.0.1".to_owned(), ..CacheSettings::default() };
    let settings = Settings { cache, ..Settings::default() };
    let refused = cache::open(&settings, &STORE, &Metrics::new()).unwrap_err().to_string();
    assert!(refused.contains("redis://host:port"), "{refused}");
}
