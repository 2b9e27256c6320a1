//! A UDP relay in front of the endpoint: a path that loses and delays packets, and that can be cut.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

/// Longer than any packet of a path.
const MAX_PACKET: usize = 2048;
/// Packets under way in one direction of a flow. A path drops what its queue has no room for.
const MAX_QUEUED: usize = 1024;
/// Bytes of packets under way in a relay, of all flows together: sixteen full queues. Without it
/// those of all flows could hold a gigabyte.
const MAX_HELD: usize = 32 * 1024 * 1024;
/// Clients at a time. Answers whoever sends from many addresses.
const MAX_FLOWS: usize = 256;
/// Silence of a client after which its flow is forgotten.
const IDLE: Duration = Duration::from_secs(60);

/// What a path does to packets, each way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    /// Packets lost, of a thousand.
    pub(crate) loss_per_mille: u16,
    pub(crate) delay: Duration,
    /// Which packets are lost depends on this alone, and on how many came before.
    pub(crate) seed: u64,
}

/// A relay, which ends when it is dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    flows: Flows,
    _tasks: JoinSet<()>,
}

type Flows = Arc<Mutex<HashMap<SocketAddr, Flow>>>;

impl Relay {
    /// Relays between clients of a new port of `ip` and `target`.
    ///
    /// # Errors
    /// Those of binding a socket.
    pub(crate) async fn bind(ip: IpAddr, target: SocketAddr, path: Path) -> io::Result<Self> {
        let front = Arc::new(UdpSocket::bind((ip, 0)).await?);
        let flows = Flows::default();
        let mut tasks = JoinSet::new();
        let address = front.local_addr()?;
        tasks.spawn(run(front, reachable(target), path, Arc::clone(&flows)));
        Ok(Self {
            address,
            flows,
            _tasks: tasks,
        })
    }

    /// Where clients send to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Drops every further packet of the client that the target knows as `seen`, both ways and
    /// without a word. Returns whether there is one.
    pub(crate) fn cut(&self, seen: SocketAddr) -> bool {
        let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let flow = flows.values().find(|flow| is_same(flow.seen, seen));
        if let Some(flow) = flow {
            flow.is_cut.store(true, Ordering::Relaxed);
            // ICE would go on from another address of the client.
            let same = flows.values().filter(|other| flow.is_user_of(other));
            same.for_each(|other| other.is_cut.store(true, Ordering::Relaxed));
        }
        flow.is_some()
    }
}

/// Nothing can be sent to the unspecified address.
fn reachable(target: SocketAddr) -> SocketAddr {
    let ip = match target.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, target.port())
}

fn is_same(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.ip().to_canonical() == b.ip().to_canonical()
}

/// The packets of one client. Its tasks end with it.
struct Flow {
    /// Our address toward the target, by which that knows the client.
    seen: SocketAddr,
    /// The USERNAME of its first STUN request, which all addresses of an ICE agent share.
    user: Option<Bytes>,
    is_cut: Arc<AtomicBool>,
    up: Lane,
    heard: Instant,
    _tasks: JoinSet<()>,
}

impl Flow {
    async fn new(
        front: &Arc<UdpSocket>,
        client: SocketAddr,
        target: SocketAddr,
        path: Path,
        number: u64,
        room: &Arc<Semaphore>,
    ) -> io::Result<Self> {
        let back = UdpSocket::bind((target.ip(), 0)).await?;
        back.connect(target).await?;
        let seen = back.local_addr()?;
        let (back, is_cut) = (Arc::new(back), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        let (up, queued) = Lane::new(path, 2 * number, &is_cut, room);
        tasks.spawn(deliver(queued, Arc::clone(&back), target));
        let (mut down, queued) = Lane::new(path, 2 * number + 1, &is_cut, room);
        tasks.spawn(deliver(queued, Arc::clone(front), client));
        tasks.spawn(async move {
            let mut buffer = [0; MAX_PACKET];
            loop {
                // ICMP reports here that nobody listens. It may come back.
                if let Ok(length) = back.recv(&mut buffer).await {
                    down.offer(&buffer[..length]);
                }
            }
        });
        Ok(Self {
            seen,
            user: None,
            is_cut,
            up,
            heard: Instant::now(),
            _tasks: tasks,
        })
    }

    fn is_user_of(&self, other: &Self) -> bool {
        self.user.is_some() && self.user == other.user
    }
}

/// The USERNAME of a STUN binding request (RFC 8489 sections 5 and 14.3).
fn username(packet: &[u8]) -> Option<&[u8]> {
    let (header, mut attributes) = packet.split_at_checked(20)?;
    if !header.starts_with(&[0, 1]) || header[4..8] != 0x2112_A442_u32.to_be_bytes() {
        return None;
    }
    while let Some((&[k0, k1, l0, l1], rest)) = attributes.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes([l0, l1]));
        if u16::from_be_bytes([k0, k1]) == 0x0006 {
            return rest.get(..length);
        }
        attributes = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

/// One direction of a flow: it decides what is lost, and when the rest is due.
struct Lane {
    path: Path,
    random: Random,
    is_cut: Arc<AtomicBool>,
    room: Arc<Semaphore>,
    queue: mpsc::Sender<Packet>,
}

/// A packet under way.
struct Packet {
    due: Instant,
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl Lane {
    fn new(
        path: Path,
        number: u64,
        is_cut: &Arc<AtomicBool>,
        room: &Arc<Semaphore>,
    ) -> (Self, mpsc::Receiver<Packet>) {
        let (queue, queued) = mpsc::channel(MAX_QUEUED);
        let lane = Self {
            path,
            random: Random(path.seed.wrapping_add(number << 32)),
            is_cut: Arc::clone(is_cut),
            room: Arc::clone(room),
            queue,
        };
        (lane, queued)
    }

    fn offer(&mut self, packet: &[u8]) {
        let is_lost = self.random.next() % 1000 < u64::from(self.path.loss_per_mille);
        if is_lost || self.is_cut.load(Ordering::Relaxed) {
            return;
        }
        // A full queue loses the packet, like that of a router: senders slow down by it.
        let Ok(place) = self.queue.try_reserve() else {
            return;
        };
        // At most `MAX_PACKET`.
        let length = packet.len() as u32;
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(length) else {
            return;
        };
        place.send(Packet {
            due: Instant::now() + self.path.delay,
            bytes: Bytes::copy_from_slice(packet),
            _room: room,
        });
    }
}

/// Sends what is due. Every packet is delayed by as much, so that the first is the next.
async fn deliver(mut queued: mpsc::Receiver<Packet>, socket: Arc<UdpSocket>, to: SocketAddr) {
    let is_connected = socket.peer_addr().is_ok();
    while let Some(packet) = queued.recv().await {
        sleep_until(packet.due).await;
        // An error is that of this packet, which is lost.
        let _ = match is_connected {
            true => socket.send(&packet.bytes).await,
            false => socket.send_to(&packet.bytes, to).await,
        };
    }
}

async fn run(front: Arc<UdpSocket>, target: SocketAddr, path: Path, flows: Flows) {
    let mut buffer = [0; MAX_PACKET];
    let mut sweep = interval(IDLE / 4);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut opened = 0;
    let room = Arc::new(Semaphore::new(MAX_HELD));
    loop {
        tokio::select! {
            _ = sweep.tick() => {
                let mut flows = flows.lock().unwrap_or_else(PoisonError::into_inner);
                flows.retain(|_, flow| flow.heard.elapsed() < IDLE);
            }
            received = front.recv_from(&mut buffer) => {
                // Of a client that is gone, which ICMP has reported.
                let Ok((length, client)) = received else { continue };
                let (is_new, is_full) = {
                    let flows = flows.lock().unwrap_or_else(PoisonError::into_inner);
                    (!flows.contains_key(&client), flows.len() >= MAX_FLOWS)
                };
                if is_new && is_full {
                    continue;
                }
                if is_new {
                    let flow = Flow::new(&front, client, target, path, opened, &room).await;
                    // The client repeats what finds no socket.
                    let Ok(mut flow) = flow else { continue };
                    opened += 1;
                    flow.user = username(&buffer[..length]).map(Bytes::copy_from_slice);
                    let mut flows = flows.lock().unwrap_or_else(PoisonError::into_inner);
                    let is_cut = |other: &Flow| other.is_cut.load(Ordering::Relaxed);
                    if flows.values().any(|other| flow.is_user_of(other) && is_cut(other)) {
                        flow.is_cut.store(true, Ordering::Relaxed);
                    }
                    flows.insert(client, flow);
                }
                let mut flows = flows.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(flow) = flows.get_mut(&client) {
                    flow.heard = Instant::now();
                    flow.up.offer(&buffer[..length]);
                }
            }
        }
    }
}

/// SplitMix64: the same numbers again for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }
}

/// The output function of SplitMix64.
pub(crate) fn mix(value: u64) -> u64 {
    let mixed = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const CLEAN: Path = Path {
        loss_per_mille: 0,
        delay: Duration::ZERO,
        seed: 1,
    };

    /// A relay to a socket, and a client of it.
    async fn relayed(path: Path) -> (Relay, UdpSocket, UdpSocket) {
        let target = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
        let relay = Relay::bind(LOCALHOST, target.local_addr().unwrap(), path)
            .await
            .unwrap();
        let client = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
        client.connect(relay.address()).await.unwrap();
        (relay, client, target)
    }

    async fn next(socket: &UdpSocket) -> (u8, SocketAddr) {
        let mut packet = [0; 1];
        let received = timeout(Duration::from_secs(10), socket.recv_from(&mut packet));
        let (_, from) = received.await.expect("a packet in time").unwrap();
        (packet[0], from)
    }

    /// Which of 200 packets that are sent one by one arrive, before one that shows the end.
    async fn arriving(seed: u64) -> Vec<u8> {
        let (_relay, client, target) = relayed(Path {
            loss_per_mille: 100,
            seed,
            ..CLEAN
        })
        .await;
        for number in 0..200 {
            client.send(&[number]).await.unwrap();
        }
        let mut arrived = Vec::new();
        // The last may be lost too: it is repeated until it is not.
        loop {
            client.send(&[255]).await.unwrap();
            let (mut number, _) = next(&target).await;
            while number != 255 {
                arrived.push(number);
                number = match timeout(Duration::from_millis(200), next(&target)).await {
                    Ok((number, _)) => number,
                    Err(_) => break,
                };
            }
            if number == 255 {
                return arrived;
            }
        }
    }

    #[tokio::test]
    async fn packets_are_lost_by_the_seed() {
        let [first, again, other] = [arriving(7).await, arriving(7).await, arriving(8).await];
        assert!((140..200).contains(&first.len()), "{}", first.len());
        assert_eq!(first, again);
        assert_ne!(first, other);
        assert!(first.is_sorted(), "{first:?}");
    }

    #[tokio::test]
    async fn packets_are_delayed_both_ways() {
        let delay = Duration::from_millis(40);
        let (_relay, client, target) = relayed(Path { delay, ..CLEAN }).await;
        let start = Instant::now();
        client.send(&[1]).await.unwrap();
        let (_, from) = next(&target).await;
        target.send_to(&[2], from).await.unwrap();
        assert_eq!(next(&client).await.0, 2);
        assert!(start.elapsed() >= 2 * delay, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_cut_flow_is_silent_both_ways_and_another_goes_on() {
        let (relay, client, target) = relayed(CLEAN).await;
        let other = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
        other.connect(relay.address()).await.unwrap();
        client.send(&[1]).await.unwrap();
        let (_, seen) = next(&target).await;
        assert!(relay.cut(seen));
        client.send(&[2]).await.unwrap();
        target.send_to(&[3], seen).await.unwrap();
        other.send(&[4]).await.unwrap();
        let (number, from) = next(&target).await;
        assert_eq!(number, 4, "the cut one has sent 2");
        target.send_to(&[5], from).await.unwrap();
        assert_eq!(next(&other).await.0, 5);
        let nothing = client.try_recv(&mut [0; 1]);
        assert_eq!(nothing.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(!relay.cut(relay.address()), "nobody is known by that one");
    }

    /// A binding request of the user `a:b`, after an attribute whose length is padded.
    const REQUEST: [u8; 36] = *b"\x00\x01\x00\x10\x21\x12\xA4\x42transactionX\
        \x80\x22\x00\x03abc\x00\x00\x06\x00\x03a:b\x00";

    #[test]
    fn the_user_of_a_request() {
        assert_eq!(username(&REQUEST), Some(&b"a:b"[..]));
        for length in 0..REQUEST.len() - 1 {
            assert_eq!(username(&REQUEST[..length]), None, "{length}");
        }
        assert_eq!(username(&[0x16; 40]), None);
    }

    #[tokio::test]
    async fn all_addresses_of_an_agent_are_cut_with_one() {
        let (relay, client, target) = relayed(CLEAN).await;
        let [second, third] = [(); 2].map(|()| std::net::UdpSocket::bind((LOCALHOST, 0)).unwrap());
        client.send(&REQUEST).await.unwrap();
        let (_, seen) = next(&target).await;
        second.send_to(&REQUEST, relay.address()).unwrap();
        next(&target).await;
        assert!(relay.cut(seen));
        second.send_to(&[1], relay.address()).unwrap();
        third.send_to(&REQUEST, relay.address()).unwrap();
        let other = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
        other.send_to(&[2], relay.address()).await.unwrap();
        assert_eq!(
            next(&target).await.0,
            2,
            "of an address of the one that is cut"
        );
    }

    /// Nothing of it arrives in a test.
    const ENDLESS: Path = Path {
        delay: Duration::from_secs(3600),
        ..CLEAN
    };

    #[test]
    fn a_queue_without_room_loses_packets() {
        let room = Arc::new(Semaphore::new(MAX_HELD));
        let (mut lane, queued) = Lane::new(ENDLESS, 0, &Arc::default(), &room);
        for _ in 0..2 * MAX_QUEUED {
            lane.offer(&[1]);
        }
        assert_eq!(queued.len(), MAX_QUEUED);
        assert_eq!(MAX_HELD - room.available_permits(), MAX_QUEUED);
    }

    #[test]
    fn all_queues_of_a_relay_together_have_a_bound() {
        let room = Arc::new(Semaphore::new(MAX_HELD));
        let mut lanes: Vec<_> = (0..2 * MAX_FLOWS as u64)
            .map(|number| Lane::new(ENDLESS, number, &Arc::default(), &room))
            .collect();
        for (lane, _) in &mut lanes {
            for _ in 0..MAX_QUEUED {
                lane.offer(&[1; MAX_PACKET]);
            }
        }
        let held = |lanes: &[(Lane, mpsc::Receiver<Packet>)]| {
            lanes.iter().map(|(_, queued)| queued.len()).sum::<usize>() * MAX_PACKET
        };
        assert_eq!(held(&lanes), MAX_HELD);
        // A flow that ends makes room for the others.
        lanes.remove(0);
        let (lane, queued) = lanes.last_mut().expect("others");
        lane.offer(&[1; MAX_PACKET]);
        assert_eq!(queued.len(), 1);
    }
}
