//! One run: the peers, their actions, and the invariants.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anabranch::{
    Address, Config, Connection, Endpoint, EndpointBuilder, EndpointConfig, WebRtcDirectVersion,
};
use anabranch_testkit::simulator::{Conditions, Host, Network};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::plan::Plan;
use super::world::{DEAF, LURED, MOLE, NEIGHBOUR, NEWCOMERS, TRAP, World};
use crate::harness::{BULK, endpoint_config, finish};
use crate::meter;

const ECHO: &str = "/echo/1";

/// Maximum duration of an honest transfer, with losses and a move to another port.
const TRANSFER_LIMIT: Duration = Duration::from_secs(60);

/// How long the attack continues after the last honest peer has left.
const ALONE: Duration = Duration::from_secs(3);

/// Receive window of a substream here.
const WINDOW: u32 = 64 * 1024;

/// Memory of an unproven handshake: its inbox (`docs/reliability.md`) and its engine.
const HANDSHAKE: usize = (32 + 32) * 1024;

/// Memory of both sides of an honest connection with these windows, and their maximum number at
/// once.
const CONNECTION: usize = 768 * 1024;
const CONNECTIONS: usize = 4;

/// Memory of admission: two rate tables of 128 KiB, answers of 256 bytes, sightings.
const TABLES: usize = 512 * 1024;

/// Mean allocations per datagram of the attacker, in listener, network and attacker.
const WORK: u64 = 40;

/// The same for the idle honest connections while the attacker is alone.
const IDLE_WORK: u64 = 10_000;

/// The cost of an attack.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    /// Datagrams of the attacker, and those sent to unproven addresses.
    forged: u64,
    reflected: u64,
    /// Peak of live bytes, without those from before the attack and those of the attacker.
    memory: isize,
    /// While the attacker was alone: its datagrams, and allocations.
    forged_alone: u64,
    allocations: u64,
    /// Processor time per datagram.
    nanoseconds: u64,
}

impl Cost {
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            forged: self.forged.max(other.forged),
            reflected: self.reflected.max(other.reflected),
            memory: self.memory.max(other.memory),
            forged_alone: self.forged_alone.max(other.forged_alone),
            allocations: self.allocations.max(other.allocations),
            nanoseconds: self.nanoseconds.max(other.nanoseconds),
        }
    }

    fn check(&self, plan: &Plan) {
        let most = plan.max_handshakes * HANDSHAKE + CONNECTIONS * CONNECTION + TABLES;
        assert!(self.memory < most.cast_signed(), "{self:?}, of {most}");
        let most = IDLE_WORK + WORK * self.forged_alone;
        assert!(self.allocations < most, "{self:?}, of {most}");
        // A challenge and a response for each, and the first flights of honest peers.
        assert!(self.reflected < 2 * self.forged + 200, "{self:?}");
    }
}

/// Prints the plan when an invariant is violated.
struct Printed(Plan);

impl Drop for Printed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("ANABRANCH_SEED={}: {:#?}", self.0.seed, self.0);
        }
    }
}

pub(super) async fn run(seed: u64) -> Cost {
    let before = meter::live();
    let plan = Plan::draw(seed);
    let _printed = Printed(plan.clone());
    let cost = attacked(plan).await;
    let left = meter::live() - before;
    // Allocations of the runtime and of statics in their first use.
    assert!(left < 512 * 1024, "{left} bytes are left");
    cost
}

async fn attacked(plan: Plan) -> Cost {
    let network = Network::new(plan.seed);
    network.set_conditions(Conditions::round_trip(plan.round_trip));
    let server = network.host([10, 0, 0, 1]);
    let (listener, address) = listen(&server, plan.limits()).await;
    serve(&listener);
    let deaf = builder(&network.host(DEAF), endpoint_config()).dial_only();
    let deaf = deaf.expect("settings that work");
    let world = World::new(&network, &address, deaf, plan.clone());

    // Before the attack: a neighbour, a dialler connected to a malicious listener, a malicious
    // peer.
    let neighbour = Honest::new(&network, &server, &plan, NEIGHBOUR);
    let connection = neighbour.dial(&world, &address, 0).await;
    let trap_host = network.host(TRAP);
    let (trap, trap_address) = listen(&trap_host, endpoint_config()).await;
    serve(&trap);
    let victim = Honest::new(&network, &trap_host, &plan, LURED);
    let trapped = victim.dial(&world, &trap_address, 1).await;
    let uploading = upload(&trapped).await;
    let mole = builder(&network.host(MOLE), endpoint_config());
    let mole = mole.dial_only().expect("settings that work");
    let moles = mole.connect(&address).await.expect("a listener");
    world.settle(IpAddr::from(MOLE));
    let pulling = pull(&moles).await;

    let base = meter::live();
    meter::peak();
    let attack = attack(&world);
    let transfer = {
        let (world, plan) = (Arc::clone(&world), plan.clone());
        let (connection, host) = (connection.clone(), neighbour.host.clone());
        tokio::spawn(async move {
            for round in 0..4 {
                let moves = || {
                    if round == 2 && plan.roams {
                        world.network.rebind(&host);
                    }
                };
                echo(&connection, plan.transfer, "the neighbour", moves).await;
            }
        })
    };
    for n in 0..plan.newcomers {
        let newcomer = Honest::new(&network, &server, &plan, NEWCOMERS + n);
        let connection = newcomer.dial(&world, &address, n).await;
        echo(&connection, plan.transfer, "a newcomer", || {}).await;
        connection.close().await;
        finish([newcomer.endpoint]).await;
    }
    transfer.await.expect("the neighbour is served");
    uploading.abort();
    pulling.abort();

    let before = (forged(&world), meter::allocations(), processor_time());
    sleep(ALONE).await;
    let forged_alone = forged(&world) - before.0;
    let nanoseconds = (processor_time() - before.2).as_nanos() as u64;
    let own_memory = world.with_ledger(|ledger| ledger.own_memory());
    let cost = Cost {
        forged: forged(&world),
        reflected: world.with_ledger(|ledger| ledger.reflected),
        memory: meter::peak() - base - own_memory.cast_signed(),
        forged_alone,
        allocations: meter::allocations() - before.1,
        nanoseconds: nanoseconds / forged_alone.max(1),
    };
    attack.abort();
    if let Some(broken) = world.with_ledger(|ledger| ledger.broken.clone()) {
        panic!("{broken}");
    }
    cost.check(&world.plan);

    // The state of the attack, and delayed datagrams, expire.
    sleep(Duration::from_secs(60)).await;
    drop((connection, trapped, moles));
    let deaf = world.deaf.0.clone();
    finish([
        neighbour.endpoint,
        victim.endpoint,
        mole,
        deaf,
        listener,
        trap,
    ])
    .await;
    network.clear_tap();
    // Victims may answer the last datagrams of these connections.
    sleep(Duration::from_secs(60)).await;
    assert_eq!((network.sockets(), network.in_flight()), (0, 0));
    let tasks = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    assert_eq!(tasks, 0, "tasks are left");
    cost
}

fn forged(world: &World) -> u64 {
    world.with_ledger(|ledger| ledger.forged)
}

fn processor_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

/// Executes primitives until it is aborted.
fn attack(world: &Arc<World>) -> JoinHandle<()> {
    let world = Arc::clone(world);
    tokio::spawn(async move {
        let mut rng = StdRng::seed_from_u64(world.plan.seed ^ 0x5eed);
        let mut next = Instant::now();
        loop {
            let index = rng.random_range(0..world.plan.primitives.len());
            world.plan.primitives[index].perform(&world, &mut rng);
            let pace = world.plan.pace.as_micros() as u64;
            next += Duration::from_micros(rng.random_range(0..2 * pace));
            tokio::time::sleep_until(next).await;
        }
    })
}

fn builder(host: &Host, limits: EndpointConfig) -> EndpointBuilder {
    let mut config = Config::default();
    // Small windows, so that honest memory does not hide that of the attack.
    config.receive_window = WINDOW;
    config.max_receive_window = WINDOW;
    Endpoint::builder()
        .config(config)
        .endpoint_config(limits)
        .sockets(host.clone())
}

async fn listen(host: &Host, limits: EndpointConfig) -> (Endpoint, Address) {
    let endpoint = builder(host, limits)
        .protocol(ECHO)
        .protocol(BULK)
        .bind("0.0.0.0:4001")
        .await
        .expect("a socket");
    let address = endpoint.addresses().remove(0);
    (endpoint, address)
}

/// Accepts all peers, and echoes, or sends endlessly, as requested.
fn serve(endpoint: &Endpoint) {
    let endpoint = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(async move {
                let Ok(connection) = incoming.accept().await else {
                    return;
                };
                while let Ok(Some(mut substream)) = connection.accept().await {
                    tokio::spawn(async move {
                        if substream.protocol() == Some(BULK) {
                            while substream.write_all(&[7; 4096]).await.is_ok() {}
                            return;
                        }
                        let (mut reader, mut writer) = substream.into_split();
                        if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
                            let _ = writer.shutdown().await;
                        }
                    });
                }
            });
        }
    });
}

/// An honest peer.
struct Honest {
    host: Host,
    endpoint: Endpoint,
}

impl Honest {
    fn new(network: &Network, server: &Host, plan: &Plan, number: u8) -> Self {
        let host = network.host([10, 0, 0, number]);
        let conditions = Conditions {
            loss: plan.loss,
            ..Conditions::round_trip(plan.round_trip)
        };
        network.set_path(&host, server, conditions);
        let endpoint = builder(&host, endpoint_config()).dial_only();
        let endpoint = endpoint.expect("settings that work");
        Self { host, endpoint }
    }

    /// Dials once.
    async fn dial(&self, world: &World, address: &Address, number: u8) -> Connection {
        let begun = Instant::now();
        let version = match number % 2 {
            0 => WebRtcDirectVersion::V1,
            _ => WebRtcDirectVersion::V2,
        };
        let dialled = self.endpoint.connect_with(address, version).await;
        let connection =
            dialled.unwrap_or_else(|error| panic!("{} dials {begun:?}: {error}", self.host.ip()));
        world.settle(self.host.ip());
        connection
    }
}

/// Sends a pattern, and compares every echoed byte. `meanwhile` runs after the open, whose time
/// limit is shorter than a move to another port takes.
async fn echo(connection: &Connection, length: usize, who: &str, meanwhile: impl FnOnce()) {
    let sent: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
    let transfer = async {
        let substream = connection.open(ECHO).await.expect("a substream");
        meanwhile();
        let (mut reader, mut writer) = substream.into_split();
        let writing = async {
            writer.write_all(&sent).await?;
            writer.shutdown().await
        };
        let mut received = Vec::with_capacity(length);
        let (written, read) = tokio::join!(writing, reader.read_to_end(&mut received));
        written.unwrap_or_else(|error| panic!("{who} writes: {error}"));
        read.unwrap_or_else(|error| panic!("{who} reads: {error}"));
        assert!(received == sent, "{who} got something else");
    };
    if timeout(TRANSFER_LIMIT, transfer).await.is_err() {
        panic!("{who} waits for {length} bytes in vain");
    }
}

/// An upload that ends with its connection.
async fn upload(connection: &Connection) -> JoinHandle<()> {
    let mut substream = connection.open(ECHO).await.expect("a substream");
    tokio::spawn(async move {
        while substream.write_all(&[7; 4096]).await.is_ok() {
            sleep(Duration::from_millis(20)).await;
            let mut back = [0; 4096];
            if substream.read_exact(&mut back).await.is_err() {
                return;
            }
        }
    })
}

/// A download that ends with its connection.
async fn pull(connection: &Connection) -> JoinHandle<()> {
    let mut substream = connection.open(BULK).await.expect("a substream");
    tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 16];
        while substream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
            sleep(Duration::from_millis(20)).await;
        }
    })
}
