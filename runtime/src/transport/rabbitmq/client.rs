//! One connection for one purpose: made when it is needed, and made anew when the last one is gone.
//! In: the settings. Out: channels; errors with the node and its reason, without the password.
//!
//! No part of a connection that ended is mended: its user opens a channel of the next one and begins again from the
//! state of the store, or of the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::FieldTable;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionBuilder, ConnectionProperties, Consumer, Event};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use super::RabbitmqFailure;
use super::topology::{self, ANSWER, within};
use crate::clock::Stopwatch;
use crate::settings::RabbitmqSettings;
use crate::settings::rabbitmq::nodes;

/// The time for which declared objects are taken to exist, by other connections that are made at the same time.
const DECLARED_FOR: Duration = Duration::from_secs(10);

/// The time of the last declaration of all objects that the settings name; of several clients one makes it.
#[derive(Default)]
pub(super) struct Declared(Mutex<Option<Stopwatch>>);

/// The current connection, and the listener to its events.
struct HeldConnection {
    connection: Connection,
    _listener: JoinSet<()>,
}

/// A flag that is set while the broker takes nothing: it is short of memory or disk.
#[derive(Clone, Default)]
pub(super) struct Blocked(Arc<AtomicBool>);

impl Blocked {
    pub(super) fn is_now(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, blocked: bool) {
        self.0.store(blocked, Ordering::Release);
    }
}

/// A connection that is made when it is needed.
pub(super) struct Client {
    pub(super) settings: RabbitmqSettings,
    pub(super) shards: u32,
    purpose: &'static str,
    tls: OwnedTLSConfig,
    declared: Arc<Declared>,
    connection: Mutex<Option<HeldConnection>>,
    blocked: Blocked,
    /// True if a node took a connection and said nothing.
    silent: AtomicBool,
}

impl Client {
    /// A client that is not connected yet. The nodes need not be there; files that cannot be read are an error.
    pub(super) fn new(
        settings: &RabbitmqSettings,
        shards: u32,
        purpose: &'static str,
        declared: &Arc<Declared>,
    ) -> Result<Self, RabbitmqFailure> {
        let tls = tls(settings)?;
        let (settings, shards, declared) = (settings.clone(), shards.max(1), Arc::clone(declared));
        let (connection, blocked, silent) = (Mutex::new(None), Blocked::default(), AtomicBool::new(false));
        Ok(Self { settings, shards, purpose, tls, declared, connection, blocked, silent })
    }

    /// The flag that is set while the broker takes nothing, for the lifetime of this client.
    pub(super) fn blocked(&self) -> &Blocked {
        &self.blocked
    }

    /// Takes from a queue, by a channel of its own.
    pub(super) async fn consume(
        &self,
        queue: &str,
        prefetch: u16,
        arguments: FieldTable,
    ) -> Result<(Channel, Consumer), RabbitmqFailure> {
        let channel = self.channel().await?;
        within(channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let options = BasicConsumeOptions::default();
        let consumer = within(channel.basic_consume(queue.into(), "".into(), options, arguments)).await?;
        Ok((channel, consumer))
    }

    /// A channel of the current connection, or of a new one.
    pub(super) async fn channel(&self) -> Result<Channel, RabbitmqFailure> {
        // One at a time: of many callers that find the connection gone, the first makes the next.
        let mut held = self.connection.lock().await;
        let connected = held.as_ref().map(|held| &held.connection).filter(|connection| connection.status().connected());
        if let Some(connection) = connected {
            match within(connection.create_channel()).await {
                Ok(channel) => return Ok(channel),
                // Another connection would be blocked, too, and this one could not even say goodbye.
                Err(reason) if self.blocked.is_now() => return Err(RabbitmqFailure::Blocked(Box::new(reason))),
                Err(reason) => {
                    warn!(%reason, purpose = self.purpose, "no channel was given, connecting to RabbitMQ anew")
                }
            }
        }
        *held = None;
        self.blocked.set(false);
        let connected = self.connect().await?;
        let channel = within(connected.connection.create_channel()).await?;
        *held = Some(connected);
        Ok(channel)
    }

    /// Connects to the first node that answers, and declares the objects that must exist there.
    async fn connect(&self) -> Result<HeldConnection, RabbitmqFailure> {
        let mut failed = Vec::new();
        for (host, port) in nodes(&self.settings.addresses).unwrap_or_default() {
            let made = async {
                let connection = self.connect_to(&host, port).await?;
                self.declare(&connection).await?;
                Ok::<_, RabbitmqFailure>(connection)
            };
            match made.await {
                Ok(connection) => {
                    info!(node = format!("{host}:{port}"), purpose = self.purpose, "connected to RabbitMQ");
                    let (events, blocked) = (connection.events_listener(), self.blocked.clone());
                    let mut listener = JoinSet::new();
                    listener.spawn(watch(events, self.purpose, blocked));
                    return Ok(HeldConnection { connection, _listener: listener });
                }
                Err(failure) => failed.push((format!("{host}:{port}"), failure)),
            }
        }
        Err(RabbitmqFailure::Nodes(failed))
    }

    async fn declare(&self, connection: &Connection) -> Result<(), RabbitmqFailure> {
        if !self.settings.declare {
            return Ok(());
        }
        let mut declared = self.declared.0.lock().await;
        if declared.as_ref().is_none_or(|since| since.elapsed() > DECLARED_FOR) {
            topology::declare(connection, &self.settings, self.shards).await?;
            *declared = Some(Stopwatch::start());
        }
        Ok(())
    }

    async fn connect_to(&self, host: &str, port: u16) -> Result<Connection, RabbitmqFailure> {
        let settings = &self.settings;
        let userinfo = AMQPUserInfo { username: settings.username.clone(), password: settings.password.clone() };
        let heartbeat = u16::try_from(settings.heartbeat.as_secs()).ok();
        let uri = AMQPUri {
            scheme: if settings.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority { userinfo, host: host.to_owned(), port },
            vhost: settings.vhost.clone(),
            query: AMQPQueryString { heartbeat, ..AMQPQueryString::default() },
        };
        let name = format!("perkey {} of process {}", self.purpose, std::process::id());
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let builder = ConnectionBuilder::new()?;
        let builder = builder.with_uri(uri).with_properties(properties).with_tls_config(self.tls.clone());
        // The client waits without end for a node that takes a connection and says nothing, with a thread for each:
        // after the first such node, a node has to greet first.
        if self.silent.load(Ordering::Acquire) && !settings.tls {
            timeout(ANSWER, greeting(host, port))
                .await
                .map_err(|_| RabbitmqFailure::Silent(ANSWER))?
                .map_err(|error| RabbitmqFailure::Line(Arc::new(error)))?;
        }
        self.silent.store(true, Ordering::Release);
        let connection = timeout(ANSWER, builder.connect()).await.map_err(|_| RabbitmqFailure::Unanswered(ANSWER))?;
        self.silent.store(false, Ordering::Release);
        Ok(connection?)
    }
}

/// A node's name and version before login: it answers the protocol's header with its properties, which the client
/// library does not expose. `None` if the connection is made by TLS.
pub(super) async fn version(settings: &RabbitmqSettings) -> Result<String, RabbitmqFailure> {
    if settings.tls {
        return Ok(String::new());
    }
    let mut failed = Vec::new();
    for (host, port) in nodes(&settings.addresses).unwrap_or_default() {
        match timeout(ANSWER, greeting(&host, port)).await {
            Ok(Ok(said)) => return Ok(format!("{} {}", property("product", &said), property("version", &said))),
            Ok(Err(error)) => failed.push((format!("{host}:{port}"), RabbitmqFailure::Line(Arc::new(error)))),
            Err(_) => failed.push((format!("{host}:{port}"), RabbitmqFailure::Unanswered(ANSWER))),
        }
    }
    Err(RabbitmqFailure::Nodes(failed))
}

/// The first method of a node: as many bytes as its frame has.
async fn greeting(host: &str, port: u16) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((host, port)).await?;
    stream.write_all(b"AMQP\0\0\x09\x01").await?;
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let mut said = Vec::new();
    stream.take(size.into()).read_to_end(&mut said).await?;
    Ok(said)
}

/// A text of a table of properties: its name behind a byte of length, `S`, four bytes of length.
fn property(name: &str, table: &[u8]) -> String {
    let field = [&[u8::try_from(name.len()).unwrap_or_default()], name.as_bytes(), b"S"].concat();
    let found = table.windows(field.len()).position(|window| window == field).map(|at| &table[at + field.len()..]);
    let value = found.and_then(|rest| {
        let (length, rest) = rest.split_first_chunk::<4>()?;
        rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)
    });
    value.map_or_else(|| "?".to_owned(), |value| String::from_utf8_lossy(value).into_owned())
}

/// Follows the connection's events until it is gone.
async fn watch(events: impl futures_util::Stream<Item = Event>, purpose: &'static str, blocked: Blocked) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                warn!(purpose, %reason, "the broker takes nothing for now: it is short of memory or disk");
                blocked.set(true);
            }
            Event::ConnectionUnblocked => {
                info!(purpose, "the broker takes messages again");
                blocked.set(false);
            }
            _ => {}
        }
    }
}

/// The certificates for the connections; a file that cannot be read is named.
pub(super) fn tls(settings: &RabbitmqSettings) -> Result<OwnedTLSConfig, RabbitmqFailure> {
    let read = |setting, file: &str| {
        std::fs::read(file).map_err(|error| RabbitmqFailure::File {
            setting,
            file: file.to_owned(),
            error: Arc::new(error),
        })
    };
    let mut tls = OwnedTLSConfig::default();
    if !settings.ca_file.is_empty() {
        let text = String::from_utf8(read("ca_file", &settings.ca_file)?);
        tls.cert_chain = Some(text.map_err(|_| RabbitmqFailure::NotPem(settings.ca_file.clone()))?);
    }
    if !settings.cert_file.is_empty() {
        let (pem, key) = (read("cert_file", &settings.cert_file)?, read("key_file", &settings.key_file)?);
        tls.identity = Some(OwnedIdentity::PKCS8 { pem, key });
    }
    Ok(tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_is_found_in_a_table() {
        let table = b"\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x063.10.8";
        assert_eq!(
            (property("product", table), property("version", table)),
            ("RabbitMQ".to_owned(), "3.10.8".to_owned())
        );
        assert_eq!(property("platform", table), "?");
    }
}
