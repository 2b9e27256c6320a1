//! Scripted hostile peers against whole endpoints, on both engines, on a simulated network.
//!
//! Whatever an attacker does, in time it has no effect or ends its own connection with a typed
//! error. Each test also asserts that a neighbour on the same endpoint is still served, and that
//! nothing is left.
//!
//! Peers that misbehave at random are in `crates/testkit/src/fuzzing`.

mod client_hello;
mod datagrams;
mod identities;
mod key_limit;
mod noise;
mod peer;
mod sctp;
mod silence;
mod stun;
mod windows;

use anabranch_str0m::STR0M;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use anabranch::address::Address;
use anabranch::certificate::Certificate;
use anabranch::connection::{Config, Connection, Negotiation};
use anabranch::endpoint::{ConnectError, Endpoint, EndpointConfig, EngineFactory, Security};
use anabranch::identity::Identity;
use anabranch::substream::{Finished, Substream};
use anabranch_testkit::simulator::{Conditions, Host, Network};

/// Longer than everything that has to end.
const TEST_TIMEOUT: Duration = Duration::from_secs(600);

const ENGINES: [EngineFactory; 2] = [EngineFactory::DIRECT, STR0M];

/// The default of `EndpointConfig::connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const VICTIM: [u8; 4] = [10, 0, 0, 1];
const NEIGHBOUR: [u8; 4] = [10, 0, 0, 2];
const ATTACKER: [u8; 4] = [10, 0, 0, 3];

/// Credentials of the victim, its neighbour and the attacker.
static CREDENTIALS: LazyLock<[(Identity, Certificate); 3]> = LazyLock::new(|| {
    [1, 2, 3].map(|seed| {
        let identity = Identity::from_ed25519_seed([seed; 32]);
        let certificate = Certificate::derive(&identity);
        (identity, certificate)
    })
});

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

/// Outcome of an inbound handshake, and its duration.
type Accepted = (Result<Connection, ConnectError>, Duration);

/// A victim that listens and dials, an honest neighbour connected to it, and the attacker's host.
struct World {
    engine: EngineFactory,
    network: Network,
    attacker: Host,
    victim: Endpoint,
    address: Address,
    neighbour: Endpoint,
    connection: Connection,
    /// Outcomes of the victim's inbound handshakes.
    accepted: mpsc::UnboundedReceiver<Accepted>,
}

impl World {
    /// A world whose handshake includes Noise.
    async fn new(engine: EngineFactory) -> Self {
        Self::with(engine, Security::Noise).await
    }

    /// A world without Noise, for attacks after the handshake.
    async fn without_noise(engine: EngineFactory) -> Self {
        Self::with(engine, Security::CertificateHash).await
    }

    /// A world without Noise and with this `Config::max_unused_substreams`.
    async fn with_max_unused(engine: EngineFactory, max_unused_substreams: u32) -> Self {
        let mut config = Config::default();
        config.max_unused_substreams = max_unused_substreams;
        Self::configured(engine, Security::CertificateHash, config).await
    }

    async fn with(engine: EngineFactory, security: Security) -> Self {
        Self::configured(engine, security, Config::default()).await
    }

    async fn configured(engine: EngineFactory, security: Security, config: Config) -> Self {
        let network = Network::new(1);
        network.set_conditions(Conditions::round_trip(Duration::from_millis(20)));
        let builder = |ip: [u8; 4], who: usize| {
            let (identity, certificate) = CREDENTIALS[who].clone();
            Endpoint::builder()
                .identity(identity)
                .certificate(certificate)
                .security(security)
                .config({
                    let mut config = config.clone();
                    config.negotiation = Negotiation::None;
                    config
                })
                .endpoint_config({
                    let mut config = EndpointConfig::default();
                    config.engine = engine;
                    config
                })
                .sockets(network.host(ip))
        };
        let victim = builder(VICTIM, 0)
            .bind("10.0.0.1:4001")
            .await
            .expect("the port is free");
        let neighbour = builder(NEIGHBOUR, 1)
            .dial_only()
            .expect("a valid configuration");
        let address = victim.addresses().remove(0);
        let (report, accepted) = mpsc::unbounded_channel();
        tokio::spawn(accept(victim.clone(), report));
        let connection = neighbour.connect(&address).await.expect("a listener");
        let mut world = Self {
            engine,
            attacker: network.host(ATTACKER),
            network,
            victim,
            address,
            neighbour,
            connection,
            accepted,
        };
        // The neighbour's connection.
        let (theirs, _) = world.accepted.recv().await.expect("a connection");
        tokio::spawn(echo(theirs.expect("a connection")));
        world.assert_unharmed().await;
        world
    }

    /// Waits for the outcome of the victim's next inbound handshake.
    async fn outcome(&mut self) -> Accepted {
        timeout(TEST_TIMEOUT, self.accepted.recv())
            .await
            .expect("the handshake ends in time")
            .expect("the victim accepts")
    }

    /// Asserts that the neighbour is served without delay.
    async fn assert_unharmed(&self) {
        let data = pattern(30_000);
        let begin = Instant::now();
        let exchange = async {
            let mut substream = self.connection.open("").await.expect("a substream");
            substream.write_all(&data).await.expect("room");
            let outcome = substream.finish().await.expect("an end");
            assert_eq!(outcome, Finished::Acked);
            let mut echoed = Vec::new();
            substream.read_to_end(&mut echoed).await.expect("all");
            assert!(echoed == data);
        };
        timeout(Duration::from_secs(2), exchange)
            .await
            .expect("the neighbour is served in time");
        assert!(begin.elapsed() < Duration::from_secs(1));
    }

    /// Waits until no connection of the attacker is left, and asserts that the neighbour is served.
    async fn assert_only_the_neighbour_is_left(&self) {
        let gone = async {
            while self.victim.connections() > 1 {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(TEST_TIMEOUT, gone)
            .await
            .expect("the attacker's connections end");
        assert_eq!(self.victim.connections(), 1);
        self.assert_unharmed().await;
    }

    /// Closes everything and asserts that nothing is left.
    async fn finish(self) {
        self.assert_only_the_neighbour_is_left().await;
        let Self {
            network,
            victim,
            neighbour,
            connection,
            mut accepted,
            ..
        } = self;
        network.clear_tap();
        timeout(TEST_TIMEOUT, async {
            connection.close().await;
            neighbour.close().await;
            victim.close().await;
        })
        .await
        .expect("everything closes");
        assert!(connection.is_idle() && neighbour.is_idle() && victim.is_idle());
        assert_eq!(connection.stats().violations, 0);
        drop((connection, neighbour, victim));
        while let Some((result, _)) = accepted.recv().await {
            drop(result);
        }
        // Until closes whose last datagram was lost have timed out.
        sleep(Duration::from_secs(60)).await;
        assert_eq!((network.sockets(), network.in_flight()), (0, 0));
        let tasks = tokio::runtime::Handle::current().metrics();
        assert_eq!(tasks.num_alive_tasks(), 0, "a task is left");
    }
}

async fn accept(victim: Endpoint, report: mpsc::UnboundedSender<Accepted>) {
    while let Some(incoming) = victim.accept().await {
        let report = report.clone();
        tokio::spawn(async move {
            let begin = Instant::now();
            let result = incoming.accept().await;
            // The receiver is gone when the test has ended.
            let _ = report.send((result, begin.elapsed()));
        });
    }
}

async fn echo(connection: Connection) {
    while let Ok(Some(substream)) = connection.accept().await {
        tokio::spawn(echo_one(substream));
    }
}

/// Echoes a substream. Errors are ignored here: the other side detects a missing echo.
async fn echo_one(mut substream: Substream) -> Option<Finished> {
    let (reader, writer) = substream.split();
    tokio::io::copy(reader, writer).await.ok()?;
    substream.finish().await.ok()
}
