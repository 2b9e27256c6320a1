//! Two endpoints on a network, and their transfers.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anabranch::{
    Address, ConnectError, Connection, Endpoint, EndpointConfig, FinishError, Finished, OpenError,
    Substream,
};
use anabranch_testkit::simulator::{Conditions, Host, Network};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

pub(crate) const ECHO: &str = "/echo/1";
pub(crate) const BULK: &str = "/bulk/1";

/// Longer than any operation takes, in virtual time.
pub(crate) const FOREVER: Duration = Duration::from_secs(3600);

/// Settings with the engine that `ANABRANCH_ENGINE` names, `direct` or `str0m`.
pub(crate) fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.engine = anabranch_str0m::from_env().expect("a known engine");
    config
}

pub(crate) fn round_trip(milliseconds: u64) -> Conditions {
    Conditions::round_trip(Duration::from_millis(milliseconds))
}

pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

/// Two endpoints on a network: one listens and serves, the other dials.
pub(crate) struct World {
    pub(crate) network: Network,
    pub(crate) hosts: [Host; 2],
    pub(crate) server: Endpoint,
    pub(crate) client: Endpoint,
    pub(crate) address: Address,
    /// The listener's side of each connection.
    pub(crate) served: mpsc::UnboundedReceiver<Result<Connection, ConnectError>>,
    /// Substreams that are being served.
    serving: Arc<AtomicUsize>,
}

impl World {
    pub(crate) async fn new(seed: u64, conditions: Conditions) -> Self {
        Self::with(endpoint_config(), seed, conditions).await
    }

    pub(crate) async fn with(config: EndpointConfig, seed: u64, conditions: Conditions) -> Self {
        let network = Network::new(seed);
        network.set_conditions(conditions);
        let hosts = [network.host([10, 0, 0, 1]), network.host([10, 0, 0, 2])];
        let builder = Endpoint::builder()
            .endpoint_config(config.clone())
            .sockets(hosts[0].clone())
            .protocol(ECHO)
            .protocol(BULK);
        let server = builder.bind("0.0.0.0:4001").await.unwrap();
        let client = Endpoint::builder()
            .endpoint_config(config)
            .sockets(hosts[1].clone())
            .dial_only()
            .unwrap();
        let address = server.addresses().remove(0);
        assert_eq!(address.socket_addr(), "10.0.0.1:4001".parse().unwrap());
        let serving = Arc::new(AtomicUsize::new(0));
        let (connections, served) = mpsc::unbounded_channel();
        tokio::spawn(serve(server.clone(), connections, Arc::clone(&serving)));
        Self {
            network,
            hosts,
            server,
            client,
            address,
            served,
            serving,
        }
    }

    pub(crate) async fn connect(&mut self) -> (Connection, Connection) {
        let ours = self.client.connect(&self.address).await.unwrap();
        let theirs = self.served.recv().await.unwrap().unwrap();
        (ours, theirs)
    }

    /// Closes everything and asserts that nothing is left.
    pub(crate) async fn finish(mut self, connections: [Connection; 2]) {
        timeout(FOREVER, async {
            let [ours, theirs] = connections;
            ours.close().await;
            theirs.close().await;
            self.client.close().await;
            self.server.close().await;
            for connection in [&ours, &theirs] {
                assert!(connection.is_idle());
                assert_eq!(connection.stats().substreams, 0);
                assert_eq!(connection.stats().violations, 0);
            }
            while let Some(other) = self.served.recv().await {
                if let Ok(other) = other {
                    assert!(other.close_reason().is_some() && other.is_idle());
                }
            }
        })
        .await
        .expect("everything closes");
        assert!(self.server.is_idle() && self.client.is_idle());
        sleep(Duration::from_secs(5)).await;
        assert_eq!(
            self.serving.load(Ordering::Relaxed),
            0,
            "a served substream hangs"
        );
        assert_eq!(self.network.in_flight(), 0);
        let before = self.network.counters();
        assert_eq!(
            before.sent + before.duplicated,
            before.ended(),
            "{before:?}"
        );
        assert_eq!(self.network.sockets(), 0);
        assert_eq!(self.network.counters(), before, "somebody still sends");
    }
}

async fn serve(
    server: Endpoint,
    connections: mpsc::UnboundedSender<Result<Connection, ConnectError>>,
    serving: Arc<AtomicUsize>,
) {
    while let Some(incoming) = server.accept().await {
        let (connections, serving) = (connections.clone(), Arc::clone(&serving));
        tokio::spawn(async move {
            let connection = match incoming.accept().await {
                Ok(connection) => connection,
                // The test may be over.
                Err(error) => return drop(connections.send(Err(error))),
            };
            let _ = connections.send(Ok(connection.clone()));
            while let Ok(Some(substream)) = connection.accept().await {
                serving.fetch_add(1, Ordering::Relaxed);
                let serving = Arc::clone(&serving);
                tokio::spawn(async move {
                    // The dialler checks the results.
                    let _ = serve_substream(substream).await;
                    serving.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
    }
}

async fn serve_substream(substream: Substream) -> io::Result<Finished> {
    let bulk = substream.protocol() == Some(BULK);
    let (mut reader, mut writer) = substream.into_split();
    if bulk {
        let mut received = 0_u64;
        while let Some(chunk) = reader.read_chunk(usize::MAX).await? {
            for byte in &chunk {
                if u64::from(*byte) != received % 251 {
                    writer.reset(77);
                    return Err(io::ErrorKind::InvalidData.into());
                }
                received += 1;
            }
        }
        writer.write_all(&received.to_be_bytes()).await?;
    } else {
        tokio::io::copy(&mut reader, &mut writer).await?;
    }
    Ok(writer.finish().await?)
}

/// The result of a transfer: how its write half ended.
pub(crate) type Transferred = Result<Finished, Failed>;

/// A failed transfer: the operation that failed, and why.
#[derive(Debug)]
pub(crate) enum Failed {
    Open(OpenError),
    #[expect(dead_code, reason = "for its Debug")]
    Io(io::Error),
    Finish(FinishError),
}

impl Failed {
    /// The name of an end that a path alone can cause; `None` for everything else, which is a bug.
    pub(crate) fn kind(&self) -> Option<&'static str> {
        match self {
            Self::Open(OpenError::TimedOut) => Some("open timed out"),
            Self::Finish(FinishError::TimedOut) => Some("no FIN_ACK in time"),
            _ => None,
        }
    }
}

impl From<OpenError> for Failed {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<FinishError> for Failed {
    fn from(error: FinishError) -> Self {
        Self::Finish(error)
    }
}

/// Sends `length` bytes, and asserts that each is echoed once and in its place.
pub(crate) async fn echo(connection: Connection, length: usize) -> Transferred {
    let data = pattern(length);
    let (mut reader, mut writer) = connection.open(ECHO).await?.into_split();
    let write = async {
        writer.write_all(&data).await?;
        Ok::<_, Failed>(writer.finish().await?)
    };
    let read = async {
        let mut position = 0;
        while let Some(chunk) = reader.read_chunk(usize::MAX).await? {
            assert_eq!(data.get(position..position + chunk.len()), Some(&chunk[..]));
            position += chunk.len();
        }
        assert_eq!(position, length, "a clean end of less than all");
        Ok::<_, Failed>(())
    };
    let (written, read) = tokio::join!(write, read);
    read?;
    written
}

/// Sends `length` bytes, and asserts that the peer has counted and verified them.
pub(crate) async fn bulk(connection: Connection, length: usize) -> Transferred {
    let mut substream = connection.open(BULK).await?;
    substream.write_all(&pattern(length)).await?;
    let outcome = substream.finish().await?;
    let mut count = Vec::new();
    substream.read_to_end(&mut count).await?;
    assert_eq!(count, (length as u64).to_be_bytes());
    Ok(outcome)
}

/// Connects under `conditions`, transfers, closes, and asserts that nothing is left.
pub(crate) async fn transfer_under(seed: u64, conditions: Conditions) {
    let mut world = World::new(seed, conditions).await;
    let (ours, theirs) = world.connect().await;
    let transfers = async {
        tokio::join!(
            echo(ours.clone(), 40_000),
            bulk(ours.clone(), 200_000),
            echo(ours.clone(), 0),
            bulk(ours.clone(), 1),
        )
    };
    let (first, second, third, fourth) = timeout(FOREVER, transfers).await.unwrap();
    for outcome in [first, second, third, fourth] {
        assert_eq!(outcome.unwrap(), Finished::Acked);
    }
    world.finish([ours, theirs]).await;
}

/// Measures the longest time in which less than 20 KB arrived from one host at another, which
/// acknowledgements and probes alone do not reach. Never completes.
pub(crate) async fn watch_pauses(
    network: &Network,
    from: &Host,
    to: &Host,
    longest: &Cell<Duration>,
) {
    let (mut last, mut at) = (0, Instant::now());
    loop {
        sleep(Duration::from_millis(10)).await;
        let delivered = network.link_counters(from, to).delivered_bytes;
        if delivered >= last + 20_000 {
            longest.set(longest.get().max(at.elapsed()));
            (last, at) = (delivered, Instant::now());
        }
    }
}
