//! Scripted peers that break rules, datagram by datagram, against whole endpoints on either engine, on a
//! simulated network. Whatever they do ends in a typed error of the one connection or in nothing at all, in
//! time; a neighbour on the same endpoint does not notice, and nothing is left.
//!
//! Those that break rules at random are in `src/fuzzing` and `direct/fuzzing`.

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

/// Longer than anything that is to end takes.
const FOREVER: Duration = Duration::from_secs(600);

const ENGINES: [EngineFactory; 2] = [EngineFactory::DIRECT, STR0M];

/// The default of `EndpointConfig::connect_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const VICTIM: [u8; 4] = [10, 0, 0, 1];
const NEIGHBOUR: [u8; 4] = [10, 0, 0, 2];
const ATTACKER: [u8; 4] = [10, 0, 0, 3];

/// Of the victim, its neighbour and the attacker.
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

/// What became of a connection that the attacker asked for, and how long it took.
type Accepted = (Result<Connection, ConnectError>, Duration);

/// A victim that listens and dials, an honest neighbour that is connected to it, and a host for the attacker.
struct World {
    engine: EngineFactory,
    network: Network,
    attacker: Host,
    victim: Endpoint,
    address: Address,
    neighbour: Endpoint,
    connection: Connection,
    /// What became of those that the attacker dialled.
    accepted: mpsc::UnboundedReceiver<Accepted>,
}

impl World {
    /// With Noise.
    async fn new(engine: EngineFactory) -> Self {
        Self::with(engine, Security::Noise).await
    }

    /// Where the handshake is done without Noise: for attacks that come behind it.
    async fn without_noise(engine: EngineFactory) -> Self {
        Self::with(engine, Security::CertificateHash).await
    }

    /// The same, with a limit that is sooner met.
    async fn with_unused(engine: EngineFactory, max_unused_substreams: u32) -> Self {
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
            .expect("a free port");
        let neighbour = builder(NEIGHBOUR, 1).dial_only().expect("an endpoint");
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
        // The neighbour's own.
        let (theirs, _) = world.accepted.recv().await.expect("a connection");
        tokio::spawn(echo(theirs.expect("a connection")));
        world.assert_unharmed().await;
        world
    }

    /// What became of the connection that the attacker has dialled.
    async fn outcome(&mut self) -> Accepted {
        timeout(FOREVER, self.accepted.recv())
            .await
            .expect("an outcome in time")
            .expect("the victim accepts")
    }

    /// The neighbour is served, and as fast as ever.
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
            .expect("a neighbour is not held up");
        assert!(begin.elapsed() < Duration::from_secs(1));
    }

    /// Nothing is left of the attacker, and the neighbour is still there.
    async fn assert_only_the_neighbour_is_left(&self) {
        let gone = async {
            while self.victim.connections() > 1 {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(FOREVER, gone).await.expect("the attacker is gone");
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
        timeout(FOREVER, async {
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
        // Whoever waits for a lost datagram of a close that is over.
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
            // The test may be over.
            let _ = report.send((result, begin.elapsed()));
        });
    }
}

async fn echo(connection: Connection) {
    while let Ok(Some(substream)) = connection.accept().await {
        tokio::spawn(echo_one(substream));
    }
}

/// Sends back what comes; the other side sees what goes wrong.
async fn echo_one(mut substream: Substream) -> Option<Finished> {
    let (reader, writer) = substream.split();
    tokio::io::copy(reader, writer).await.ok()?;
    substream.finish().await.ok()
}
