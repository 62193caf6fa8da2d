//! A TCP proxy between a worker and a server, which can lose the bytes it is given.
//! In: an address to listen at, a target, a mode. Out: bytes both ways; or a cut, a silence, a lost answer.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes passed on at once.
const CHUNK: usize = 64 << 10;

/// The treatment of the bytes that the proxy is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes it on.
    Pass,
    /// Closes all open connections and every new one.
    Cut,
    /// Passes nothing on and closes nothing, as a network that lost its way; bytes held back arrive when it passes on
    /// again.
    Freeze,
    /// Passes requests on and loses the answers. A connection that lost one is closed when the mode ends.
    Mute,
}

/// A running proxy. When dropped, it closes all connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    lost: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens at `listen` and passes on to `target`.
    pub async fn start(listen: &str, target: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let (mode, seen) = watch::channel(Mode::Pass);
        let lost = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        let line = Line { target: target.into(), mode: seen, lost: Arc::clone(&lost) };
        tasks.spawn(accept(listener, line));
        Ok(Self { address, mode, lost, _tasks: tasks })
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the mode.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// The number of connections that have lost an answer.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Line {
    target: Arc<str>,
    mode: watch::Receiver<Mode>,
    lost: Arc<AtomicU64>,
}

async fn accept(listener: TcpListener, line: Line) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) if *line.mode.borrow() != Mode::Cut => {
                    connections.spawn(line.clone().carry(client));
                }
                // Closed at once: the nearest thing to a refusal, as the port stays open.
                Ok(_) => {}
                Err(_) => return,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

impl Line {
    async fn carry(self, client: TcpStream) {
        let Ok(server) = TcpStream::connect(&*self.target).await else { return };
        let (client, server) = (split(client), split(server));
        let requests = self.clone().requests(client.0, server.1);
        let answers = self.answers(server.0, client.1);
        tokio::pin!(requests);
        tokio::select! {
            () = &mut requests => {}
            client_gone = answers => {
                // Bytes that the client sent before it left are passed on: the server may still act on them.
                if client_gone {
                    requests.await;
                }
            }
        }
    }

    async fn requests(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut chunk = vec![0; CHUNK];
        while let Some(read) = self.read(&mut from, &mut chunk).await {
            if self.may_pass().await.is_none() || to.write_all(&chunk[..read]).await.is_err() {
                return;
            }
        }
    }

    /// Passes answers on; returns whether it ended because the client no longer listens.
    async fn answers(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> bool {
        let mut chunk = vec![0; CHUNK];
        while let Some(read) = self.read(&mut from, &mut chunk).await {
            match self.may_pass().await {
                // An answer will be missing: the client would take the next one for it.
                Some(Mode::Mute) => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    self.mode.wait_for(|mode| *mode != Mode::Mute).await.ok();
                    return false;
                }
                Some(_) if to.write_all(&chunk[..read]).await.is_err() => return true,
                Some(_) => {}
                None => return false,
            }
        }
        false
    }

    /// Reads; `None` at the end, and once the line is cut.
    async fn read(&mut self, from: &mut OwnedReadHalf, chunk: &mut [u8]) -> Option<usize> {
        tokio::select! {
            read = from.read(chunk) => read.ok().filter(|read| *read > 0),
            _ = self.mode.wait_for(|mode| *mode == Mode::Cut) => None,
        }
    }

    /// Waits until the line passes something on; `None` when it is cut.
    async fn may_pass(&mut self) -> Option<Mode> {
        let mode = *self.mode.wait_for(|mode| *mode != Mode::Freeze).await.ok()?;
        (mode != Mode::Cut).then_some(mode)
    }
}

fn split(stream: TcpStream) -> (OwnedReadHalf, OwnedWriteHalf) {
    // A failure only slows the line down; nothing depends on it.
    stream.set_nodelay(true).ok();
    stream.into_split()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(100);

    /// A server that answers each byte with the next one and counts the bytes that came.
    async fn server() -> (String, Arc<AtomicU64>, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let came = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        let counted = Arc::clone(&came);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let came = Arc::clone(&counted);
                connections.spawn(async move {
                    while let Ok(byte) = stream.read_u8().await {
                        came.fetch_add(1, Ordering::SeqCst);
                        if stream.write_u8(byte + 1).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        (address, came, tasks)
    }

    async fn scene() -> (Proxy, TcpStream, Arc<AtomicU64>, JoinSet<()>) {
        let (address, came, tasks) = server().await;
        let proxy = Proxy::start("127.0.0.1:0", &address).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut client, 1).await, Some(2));
        (proxy, client, came, tasks)
    }

    async fn ask(client: &mut TcpStream, byte: u8) -> Option<u8> {
        client.write_u8(byte).await.ok()?;
        client.read_u8().await.ok()
    }

    async fn arrived(came: &AtomicU64, count: u64) {
        let all = async {
            while came.load(Ordering::SeqCst) < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), all).await.unwrap();
    }

    #[tokio::test]
    async fn a_cut_closes_what_is_open_and_lets_nothing_in() {
        let (proxy, mut client, came, _tasks) = scene().await;
        proxy.set(Mode::Cut);
        assert_eq!(client.read_u8().await.ok(), None, "it is closed");
        let mut another = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut another, 1).await, None);
        assert_eq!(came.load(Ordering::SeqCst), 1);
        proxy.set(Mode::Pass);
        let mut another = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(ask(&mut another, 5).await, Some(6));
    }

    #[tokio::test]
    async fn what_is_frozen_arrives_late() {
        let (proxy, mut client, came, _tasks) = scene().await;
        proxy.set(Mode::Freeze);
        assert!(timeout(SOON, ask(&mut client, 3)).await.is_err(), "nobody answers");
        assert_eq!(came.load(Ordering::SeqCst), 1, "nothing arrives");
        proxy.set(Mode::Pass);
        assert_eq!(client.read_u8().await.unwrap(), 4);
    }

    #[tokio::test]
    async fn what_was_sent_before_a_client_went_arrives_all_the_same() {
        let (proxy, mut client, came, _tasks) = scene().await;
        proxy.set(Mode::Freeze);
        client.write_u8(3).await.unwrap();
        drop(client);
        assert_eq!(came.load(Ordering::SeqCst), 1);
        proxy.set(Mode::Pass);
        arrived(&came, 2).await;
    }

    #[tokio::test]
    async fn a_muted_answer_is_lost_though_the_request_arrives() {
        let (proxy, mut client, came, _tasks) = scene().await;
        proxy.set(Mode::Mute);
        assert!(timeout(SOON, ask(&mut client, 3)).await.is_err(), "nobody answers");
        arrived(&came, 2).await;
        proxy.set(Mode::Pass);
        assert_eq!(client.read_u8().await.ok(), None, "it is closed");
        assert_eq!(proxy.lost(), 1);
    }
}
