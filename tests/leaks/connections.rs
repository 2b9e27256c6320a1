//! 2 000 connections through real endpoints on a simulated network.

use std::time::Duration;

use anabranch::{Address, Config, Connection, Endpoint, EndpointConfig, EngineFactory, RateLimit};
use anabranch_str0m::STR0M;
use anabranch_testkit::simulator::{Conditions, Host, Network};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{ALONE, LIMIT, assert_flat, live, many, tasks, until};

const PROTOCOL: &str = "/leak/1";

/// Concurrent connections.
const AT_ONCE: usize = 10;

/// How a connection, or an attempt, ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    DiallerCloses,
    ListenerCloses,
    BothClose,
    ClosedWithCode,
    DiallerDrops,
    ListenerDrops,
    BothDrop,
    /// With substreams that wait to be accepted, or for bytes, on either side.
    DroppedWithSubstreams,
    /// With a substream that is written faster than it is read.
    ClosedWithQueuedData,
    /// The dialler's host disappears during the connection.
    DiallerDies,
    /// The same during the handshake.
    DiallerDiesInHandshake,
    /// The dial is dropped after this many milliseconds. A handshake takes 120.
    DialDropped(u64),
    /// The listener's `accept` is dropped after this many.
    AcceptDropped(u64),
    Refused,
    Ignored,
    /// A dial without an answer.
    DialledInVain,
    /// The dialling endpoint is closed, or its last handle dropped.
    EndpointCloses,
    EndpointDropped,
}

fn ends() -> Vec<End> {
    let mut ends = vec![
        End::DiallerCloses,
        End::ListenerCloses,
        End::BothClose,
        End::ClosedWithCode,
        End::DiallerDrops,
        End::ListenerDrops,
        End::BothDrop,
        End::DroppedWithSubstreams,
        End::ClosedWithQueuedData,
        End::DiallerDies,
        End::DiallerDiesInHandshake,
        End::Refused,
        End::Ignored,
        End::DialledInVain,
        End::EndpointCloses,
        End::EndpointDropped,
    ];
    // Every phase: a datagram takes 10 ms.
    ends.extend((0..14).map(|step| End::DialDropped(step * 10 + 5)));
    ends.extend((0..10).map(|step| End::AcceptDropped(step * 10 + 5)));
    ends
}

struct World {
    network: Network,
    server: Endpoint,
    address: Address,
    engine: EngineFactory,
    /// A host for every connection of a batch, so that one of them can fall silent alone.
    hosts: Vec<Host>,
    incoming: mpsc::UnboundedReceiver<anabranch::Incoming>,
}

fn settings(engine: EngineFactory) -> EndpointConfig {
    let mut settings = EndpointConfig::default();
    settings.engine = engine;
    // Raises the limits for a thousand connections from one host.
    settings.first_contacts = RateLimit::new(Duration::from_millis(1), 100_000);
    settings
}

impl World {
    async fn new(engine: EngineFactory) -> Self {
        let network = Network::new(6);
        network.set_conditions(Conditions::round_trip(Duration::from_millis(20)));
        let mut config = Config::default();
        config.protocols = vec![PROTOCOL.to_owned()];
        let server = Endpoint::builder()
            .config(config)
            .endpoint_config(settings(engine))
            .sockets(network.host([10, 0, 0, 1]))
            .bind("10.0.0.1:4001")
            .await
            .unwrap();
        let hosts = (0..AT_ONCE)
            .map(|index| network.host([10, 0, 1, u8::try_from(index).unwrap()]))
            .collect();
        let (contacts, incoming) = mpsc::unbounded_channel();
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Some(contact) = accepting.accept().await {
                // The test may be over.
                let _ = contacts.send(contact);
            }
        });
        Self {
            address: server.addresses().remove(0),
            network,
            server,
            engine,
            hosts,
            incoming,
        }
    }

    fn dialler(&self, host: &Host) -> Endpoint {
        Endpoint::builder()
            .endpoint_config(settings(self.engine))
            .sockets(host.clone())
            .dial_only()
            .unwrap()
    }

    /// Runs `AT_ONCE` connections that end in the same way.
    async fn batch(&mut self, end: End) {
        let mut dialling = JoinSet::new();
        for host in &self.hosts {
            let (client, address) = (self.dialler(host), self.address.clone());
            let (network, host) = (self.network.clone(), host.clone());
            if end == End::DialledInVain {
                network.set_silent(&host, true);
            }
            dialling.spawn(async move {
                dial(end, &client, &address, &network, &host).await;
                client.close().await;
                assert!(client.is_idle(), "{end:?}");
            });
        }
        let mut accepting = JoinSet::new();
        loop {
            tokio::select! {
                contact = self.incoming.recv() => {
                    accepting.spawn(accept(end, contact.expect("a listener")));
                }
                ended = dialling.join_next() => match ended {
                    Some(result) => result.expect("no panic"),
                    None => break,
                },
            }
        }
        for host in &self.hosts {
            self.network.set_silent(host, false);
        }
        let ended = async {
            while let Some(result) = accepting.join_next().await {
                result.expect("no panic");
            }
        };
        timeout(LIMIT, ended).await.expect("an end");
        // First contacts that are still queued after their dialler has given up.
        while let Ok(contact) = self.incoming.try_recv() {
            contact.ignore();
        }
        let server = self.server.clone();
        until("the end of every connection", || {
            server.is_idle() && server.connections() == 0
        })
        .await;
        let network = self.network.clone();
        until("the end of every socket", || {
            network.sockets() == 1 && network.in_flight() == 0
        })
        .await;
    }

    /// Runs every way, until there were `count`.
    async fn run(&mut self, count: usize) {
        let mut left = count.div_ceil(AT_ONCE);
        for end in ends().into_iter().cycle() {
            if left == 0 {
                return;
            }
            left -= 1;
            self.batch(end).await;
        }
    }
}

async fn dial(end: End, client: &Endpoint, address: &Address, network: &Network, host: &Host) {
    let connecting = client.connect(address);
    match end {
        End::DialDropped(after) => {
            let _ = timeout(Duration::from_millis(after), connecting).await;
            return;
        }
        End::DiallerDiesInHandshake => {
            let dying = async {
                sleep(Duration::from_millis(45)).await;
                network.set_silent(host, true);
            };
            let (result, ()) = tokio::join!(connecting, dying);
            result.expect_err("silence");
            return;
        }
        End::AcceptDropped(_) => {
            // A listener that drops its `accept` sends nothing, so a check may be a first contact
            // again.
            let _ = timeout(Duration::from_secs(3), connecting).await;
            return;
        }
        End::Refused | End::Ignored | End::DialledInVain => {
            connecting.await.expect_err("not let in");
            return;
        }
        _ => {}
    }
    let connection = connecting.await.expect("a connection");
    let mut substream = connection.open(PROTOCOL).await.expect("a substream");
    substream.write_all(&[7; 1000]).await.expect("room");
    match end {
        End::DiallerCloses | End::BothClose => {
            drop(substream);
            connection.close().await;
        }
        End::ClosedWithCode => connection.close_with(7, "enough").await,
        End::DiallerDrops | End::BothDrop => {
            drop(substream);
            drop(connection);
            return;
        }
        End::ListenerCloses | End::ListenerDrops => {
            drop(substream);
            connection.closed().await;
        }
        End::DroppedWithSubstreams => {
            let mut more = Vec::new();
            for _ in 0..10 {
                more.push(connection.open(PROTOCOL).await.expect("a substream"));
            }
            sleep(Duration::from_millis(100)).await;
            drop((substream, more, connection));
            return;
        }
        End::ClosedWithQueuedData => {
            let _ = timeout(
                Duration::from_millis(200),
                substream.write_all(&[7; 4 << 20]),
            )
            .await;
            connection.close().await;
        }
        End::DiallerDies => {
            network.set_silent(host, true);
            connection.closed().await;
        }
        End::EndpointCloses => client.close().await,
        // The caller has the last handle of the endpoint.
        _ => {}
    }
    let ended = matches!(end, End::EndpointDropped) || connection.close_reason().is_some();
    assert!(ended, "{end:?}");
    assert!(
        end == End::EndpointDropped || connection.is_idle(),
        "{end:?}"
    );
}

async fn accept(end: End, incoming: anabranch::Incoming) {
    match end {
        End::Refused => return incoming.refuse(),
        End::Ignored => return incoming.ignore(),
        End::AcceptDropped(after) => {
            let _ = timeout(Duration::from_millis(after), incoming.accept()).await;
            return;
        }
        _ => {}
    }
    let Ok(connection) = incoming.accept().await else {
        return;
    };
    match end {
        End::ListenerCloses => {
            serve_one(&connection).await;
            connection.close().await;
        }
        End::ListenerDrops | End::BothDrop => {
            // Either side may be gone when the other is polled.
            serve_one(&connection).await;
            return;
        }
        End::BothClose => {
            serve_one(&connection).await;
            connection.close().await;
        }
        // Nothing reads the queued data.
        End::DroppedWithSubstreams | End::ClosedWithQueuedData => {
            let waiting = connection.accept().await;
            connection.closed().await;
            drop(waiting);
            // Substreams from before the end can still be accepted.
            while let Ok(Some(late)) = connection.accept().await {
                drop(late);
            }
        }
        _ => {
            serve_one(&connection).await;
            connection.closed().await;
        }
    }
    assert!(
        connection.close_reason().is_some() && connection.is_idle(),
        "{end:?}"
    );
}

/// Accepts one substream and reads its first bytes.
async fn serve_one(connection: &Connection) {
    if let Ok(Ok(Some(mut substream))) = timeout(Duration::from_secs(1), connection.accept()).await
    {
        let _ = substream.read_chunk(1000).await;
    }
}

async fn connections(engine: EngineFactory, count: usize) {
    let _alone = ALONE.lock().await;
    let mut world = World::new(engine).await;
    // Each way once, so that maps and buffers reach their size.
    world.run(ends().len() * AT_ONCE / 2).await;
    let had = tasks();
    world.run(count / 2).await;
    let first = live();
    world.run(count / 2).await;
    assert_eq!(tasks(), had, "tasks are left");
    // An entry, a waker or a task for each connection would be more.
    let slack = 64 * isize::try_from(count / 2).unwrap();
    assert_flat(&format!("{engine}"), first, live(), slack);
    let World {
        network, server, ..
    } = world;
    server.close().await;
    drop(server);
    sleep(LIMIT).await;
    assert_eq!((network.sockets(), network.in_flight(), tasks()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn of_1_200_connections_on_the_direct_engine_nothing_is_left() {
    connections(EngineFactory::DIRECT, many(1200)).await;
}

#[tokio::test(start_paused = true)]
async fn of_800_connections_on_str0m_nothing_is_left() {
    connections(STR0M, many(800)).await;
}
