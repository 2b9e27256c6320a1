//! A network of simulated hosts, datagram by datagram, in virtual time.
//!
//! Endpoints run on it unchanged: [`EndpointBuilder::simulated`](crate::EndpointBuilder::simulated)
//! gives them the sockets of a [`Host`] in place of those of the system. Everything above that, from ICE to
//! substreams, is what runs in production.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use anabranch::Endpoint;
//! use anabranch::simulator::{Conditions, Network};
//!
//! let network = Network::new(7);
//! network.set_conditions(Conditions {
//!     loss: 0.01,
//!     ..Conditions::round_trip(Duration::from_millis(50))
//! });
//! let server = network.host([10, 0, 0, 1]);
//! let client = network.host([10, 0, 0, 2]);
//! let listener = Endpoint::builder().simulated(&server).bind("10.0.0.1:4001").await?;
//! let dialler = Endpoint::builder().simulated(&client).dial_only()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Time
//! Datagrams arrive by the clock of tokio. In a test with `#[tokio::test(start_paused = true)]` that
//! clock is virtual: it stands still while anything can run and jumps to the next arrival or
//! timeout otherwise, so that minutes of a slow path take as long as their work does. tokio's timers
//! count in milliseconds, so an arrival is noticed up to one late; a round trip is up to two longer
//! than its latencies.
//!
//! # The seed
//! What happens to the n-th datagram from one host to another follows from the seed of the network,
//! the addresses of the two, and n (jitter: from the time): no other datagram shifts it. Keys and identifiers of
//! connections are random still, so two runs do not agree in every byte, and a connection that sends one
//! datagram more meets each fate one later. Every datagram is traced, with the target
//! `anabranch::simulator`, its first byte, and no delay if it is lost. A panic while a [`Network`] exists prints its seed.
//!
//! # Features
//! Only with the feature `testing`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

mod conditions;
mod link;
mod socket;
#[cfg(test)]
mod tests;

pub use conditions::{Burst, Conditions, Counters};
use link::Link;
pub use socket::SimulatedSocket;

/// First of the ports that a socket gets which asks for none (RFC 6335 section 6).
const FIRST_EPHEMERAL_PORT: u16 = 49_152;

/// First of the ports that a rebound host is seen at.
const FIRST_TRANSLATED_PORT: u16 = 20_000;

/// Bytes that wait for a receiver before more are dropped; what endpoints ask the system for.
const RECEIVE_BUFFER: usize = 2 * 1024 * 1024;

/// What a waiting datagram takes beside its bytes.
const DATAGRAM_COST: usize = 128;

/// Hosts, and the paths between them.
///
/// Cheap to clone; every clone is the same network.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

impl Network {
    /// A network without hosts. Every random choice follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                seed,
                state: Mutex::new(State::new(seed)),
                tap: Mutex::new(None),
                seed_printed: AtomicBool::new(false),
            }),
        }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.shared.seed
    }

    /// The host with this address; it is made if there is none.
    pub fn host(&self, ip: impl Into<IpAddr>) -> Host {
        let ip = ip.into();
        self.shared.state().hosts.entry(ip).or_default();
        Host {
            network: Arc::clone(&self.shared),
            ip,
        }
    }

    /// Sets how all paths behave that have no conditions of their own, from now on.
    pub fn set_conditions(&self, conditions: Conditions) {
        self.shared.state().conditions = conditions;
    }

    /// Sets how the way from one host to another behaves, from now on. The way back is another.
    pub fn set_link(&self, from: &Host, to: &Host, conditions: Conditions) {
        self.shared
            .state()
            .own_conditions
            .insert((from.ip, to.ip), conditions);
    }

    /// Sets how the path between two hosts behaves, in both directions, from now on.
    pub fn set_path(&self, a: &Host, b: &Host, conditions: Conditions) {
        self.set_link(a, b, conditions);
        self.set_link(b, a, conditions);
    }

    /// Drops everything that is sent between two hosts, in both directions, for `duration` from
    /// now. What is under way arrives.
    pub fn blackout(&self, a: &Host, b: &Host, duration: Duration) {
        let until = Instant::now() + duration;
        let mut state = self.shared.state();
        for (from, to) in [(a.ip, b.ip), (b.ip, a.ip)] {
            state.link(from, to).blackout_until = Some(until);
        }
    }

    /// From now on nothing leaves or reaches the host, and nobody is told; or all does again.
    pub fn set_silent(&self, host: &Host, silent: bool) {
        let mut state = self.shared.state();
        if silent {
            state.silent.insert(host.ip);
        } else {
            state.silent.remove(&host.ip);
        }
    }

    /// From now on datagrams of the host appear from new ports of its address, as behind a NAT that
    /// has forgotten its mappings. Answers to the new ports reach it; what comes to the old ones does not.
    pub fn rebind(&self, host: &Host) {
        self.rebind_to(host, host.ip);
    }

    /// As [`Network::rebind`], with another address too, as when a telephone leaves the house. The
    /// path and its conditions stay the same.
    pub fn rebind_to(&self, host: &Host, public: impl Into<IpAddr>) {
        let mut state = self.shared.state();
        state.translations.retain(|_, local| local.ip() != host.ip);
        if let Some(host) = state.hosts.get_mut(&host.ip) {
            host.nat = Some(Nat {
                public: public.into(),
                mappings: BTreeMap::new(),
            });
        }
    }

    /// Shows every datagram to `tap` when it is sent, before any of the conditions. It may change
    /// or drop it, or [`Network::inject`] others. It must not set or clear the tap, nor send.
    pub fn set_tap(&self, tap: impl FnMut(&mut TappedDatagram) -> Verdict + Send + 'static) {
        *self.shared.tap() = Some(Box::new(tap));
    }

    /// Removes the tap.
    pub fn clear_tap(&self) {
        *self.shared.tap() = None;
    }

    /// Sends a datagram as if `source` had, which does not need to exist. The tap does not see it.
    pub fn inject(&self, source: SocketAddr, destination: SocketAddr, contents: impl Into<Bytes>) {
        self.shared
            .carry(None, source, destination, contents.into());
    }

    /// What has happened on all paths since the network was made.
    pub fn counters(&self) -> Counters {
        let mut state = self.shared.state();
        state.settle_all(Instant::now());
        state
            .links
            .values()
            .fold(Counters::default(), |sum, link| sum + link.counters)
    }

    /// What has happened on the way from one host to another.
    pub fn link_counters(&self, from: &Host, to: &Host) -> Counters {
        let mut state = self.shared.state();
        state.settle_all(Instant::now());
        state.link(from.ip, to.ip).counters
    }

    /// Datagrams that are under way, or have arrived and were not received yet.
    pub fn in_flight(&self) -> usize {
        let mut state = self.shared.state();
        state.settle_all(Instant::now());
        state
            .ports
            .values()
            .map(|port| port.under_way.len() + port.arrived.len())
            .sum()
    }

    /// Sockets that are bound, on all hosts.
    pub fn sockets(&self) -> usize {
        self.shared.state().ports.len()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.shared.seed_printed.swap(true, Ordering::Relaxed) {
            eprintln!("the simulated network had the seed {}", self.shared.seed);
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("seed", &self.shared.seed)
            .finish_non_exhaustive()
    }
}

/// A machine with one address.
///
/// Cheap to clone; every clone is the same host.
#[derive(Clone)]
pub struct Host {
    network: Arc<Shared>,
    ip: IpAddr,
}

impl Host {
    /// The address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Binds a socket to the address of the host or a wildcard, with port 0 for a free one.
    ///
    /// # Errors
    /// `AddrInUse` and `AddrNotAvailable`, as any system.
    pub fn bind(&self, address: SocketAddr) -> io::Result<SimulatedSocket> {
        let own = if address.ip().is_unspecified() {
            address.is_ipv4() == self.ip.is_ipv4()
        } else {
            address.ip() == self.ip
        };
        if !own {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let port = self.network.state().bind(self.ip, address.port())?;
        Ok(SimulatedSocket::new(
            Arc::clone(&self.network),
            SocketAddr::new(address.ip(), port),
            SocketAddr::new(self.ip, port),
        ))
    }

    /// Sets how many bytes may wait for a receiver, on each socket. Default: 2 MiB.
    pub fn set_receive_buffer(&self, bytes: usize) {
        if let Some(host) = self.network.state().hosts.get_mut(&self.ip) {
            host.receive_buffer = bytes;
        }
    }

    /// Sets whether several datagrams can be sent and received at once (GSO and GRO). Default: yes.
    pub fn set_offload(&self, offload: bool) {
        if let Some(host) = self.network.state().hosts.get_mut(&self.ip) {
            host.offload = offload;
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Host").field(&self.ip).finish()
    }
}

/// A datagram as the tap of a [`Network`] sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TappedDatagram {
    /// Where it seems to come from. May be changed.
    pub source: SocketAddr,
    /// Where it goes. May be changed.
    pub destination: SocketAddr,
    /// The payload of UDP. May be changed.
    pub contents: Vec<u8>,
}

/// What a tap does with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Drops it.
    Drop,
    /// Sends it on, as it is now.
    Pass,
}

type Tap = Box<dyn FnMut(&mut TappedDatagram) -> Verdict + Send>;

/// What the handles of a network and its sockets share.
struct Shared {
    seed: u64,
    state: Mutex<State>,
    /// Apart from the state, which a tap that injects needs.
    tap: Mutex<Option<Tap>>,
    seed_printed: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock calls out or panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tap(&self) -> MutexGuard<'_, Option<Tap>> {
        // A tap that panicked is as good as before.
        self.tap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_offload(&self, host: IpAddr) -> bool {
        self.state()
            .hosts
            .get(&host)
            .is_some_and(|host| host.offload)
    }

    /// Sends a datagram from the socket at `local`.
    fn send(&self, local: SocketAddr, destination: SocketAddr, contents: &[u8]) {
        let source = self.state().translate(local);
        let mut tap = self.tap();
        let Some(tap) = tap.as_mut() else {
            drop(tap);
            return self.carry(
                Some(local),
                source,
                destination,
                Bytes::copy_from_slice(contents),
            );
        };
        let mut datagram = TappedDatagram {
            source,
            destination,
            contents: contents.to_vec(),
        };
        match tap(&mut datagram) {
            Verdict::Pass => {
                let contents = Bytes::from(datagram.contents);
                self.carry(Some(local), datagram.source, datagram.destination, contents);
            }
            Verdict::Drop => {
                let mut state = self.state();
                let to = state.locate(destination);
                let link = state.link(local.ip(), to);
                link.counters.sent += 1;
                link.counters.sent_bytes += contents.len() as u64;
                link.counters.dropped_by_tap += 1;
            }
        }
    }

    /// Puts a datagram on its way. `local` is the socket that sends it, if one does.
    fn carry(
        &self,
        local: Option<SocketAddr>,
        source: SocketAddr,
        destination: SocketAddr,
        contents: Bytes,
    ) {
        let waker = {
            let mut state = self.state();
            let from = local.map_or_else(|| state.locate(source), |local| local.ip());
            state.carry(Instant::now(), from, source, destination, contents)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn blocked_until(
        &self,
        local: SocketAddr,
        destination: SocketAddr,
        length: usize,
    ) -> Option<Instant> {
        let mut state = self.state();
        let to = state.locate(destination);
        let conditions = state.conditions_of(local.ip(), to);
        state
            .link(local.ip(), to)
            .blocked_until(&conditions, Instant::now(), length)
    }

    /// What has arrived at a socket, at most `max`; or when the next datagram does, before which
    /// `waker` is woken if another overtakes it.
    fn receive(
        &self,
        local: SocketAddr,
        max: usize,
        waker: &Waker,
    ) -> Result<Vec<Arrived>, Option<Instant>> {
        let mut state = self.state();
        state.settle(local, Instant::now());
        let Some(port) = state.ports.get_mut(&local) else {
            return Err(None);
        };
        if port.arrived.is_empty() {
            port.waker = Some(waker.clone());
            return Err(port.under_way.first_key_value().map(|((at, _), _)| *at));
        }
        let count = max.min(port.arrived.len());
        let arrived: Vec<_> = port.arrived.drain(..count).collect();
        port.bytes -= arrived.iter().map(Arrived::cost).sum::<usize>();
        Ok(arrived)
    }

    fn unbind(&self, local: SocketAddr) {
        let waker = self.state().unbind(local);
        drop(waker);
    }
}

/// A datagram under way.
#[derive(Debug)]
struct UnderWay {
    /// The address of the sending host, which names the link.
    from: IpAddr,
    source: SocketAddr,
    destination: SocketAddr,
    contents: Bytes,
}

/// A datagram that waits for its receiver.
#[derive(Debug)]
struct Arrived {
    source: SocketAddr,
    contents: Bytes,
}

impl Arrived {
    fn cost(&self) -> usize {
        self.contents.len() + DATAGRAM_COST
    }
}

/// A bound socket.
#[derive(Debug, Default)]
struct Port {
    /// By the time of arrival, and by the order of sending.
    under_way: BTreeMap<(Instant, u64), UnderWay>,
    arrived: VecDeque<Arrived>,
    /// Cost of what has arrived.
    bytes: usize,
    waker: Option<Waker>,
}

/// A host that was rebound.
#[derive(Debug)]
struct Nat {
    public: IpAddr,
    /// Public by local address.
    mappings: BTreeMap<SocketAddr, SocketAddr>,
}

#[derive(Debug)]
struct HostState {
    next_port: u16,
    nat: Option<Nat>,
    receive_buffer: usize,
    offload: bool,
}

impl Default for HostState {
    fn default() -> Self {
        Self {
            next_port: FIRST_EPHEMERAL_PORT,
            nat: None,
            receive_buffer: RECEIVE_BUFFER,
            offload: true,
        }
    }
}

struct State {
    seed: u64,
    conditions: Conditions,
    own_conditions: BTreeMap<(IpAddr, IpAddr), Conditions>,
    links: BTreeMap<(IpAddr, IpAddr), Link>,
    hosts: BTreeMap<IpAddr, HostState>,
    ports: BTreeMap<SocketAddr, Port>,
    /// Local by public address, of the hosts that were rebound.
    translations: BTreeMap<SocketAddr, SocketAddr>,
    next_translated_port: u16,
    silent: BTreeSet<IpAddr>,
    /// Number of the next datagram, which tells apart those that arrive at once.
    next_order: u64,
}

impl State {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            conditions: Conditions::default(),
            own_conditions: BTreeMap::new(),
            links: BTreeMap::new(),
            hosts: BTreeMap::new(),
            ports: BTreeMap::new(),
            translations: BTreeMap::new(),
            next_translated_port: FIRST_TRANSLATED_PORT,
            silent: BTreeSet::new(),
            next_order: 0,
        }
    }

    fn bind(&mut self, ip: IpAddr, port: u16) -> io::Result<u16> {
        let port = if port == 0 { self.free_port(ip)? } else { port };
        let address = SocketAddr::new(ip, port);
        if self.ports.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.ports.insert(address, Port::default());
        Ok(port)
    }

    /// Counts up, so that a port is not soon used again.
    fn free_port(&mut self, ip: IpAddr) -> io::Result<u16> {
        let Some(host) = self.hosts.get_mut(&ip) else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        for _ in FIRST_EPHEMERAL_PORT..=u16::MAX {
            let port = host.next_port;
            host.next_port = port.checked_add(1).unwrap_or(FIRST_EPHEMERAL_PORT);
            if !self.ports.contains_key(&SocketAddr::new(ip, port)) {
                return Ok(port);
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    fn unbind(&mut self, local: SocketAddr) -> Option<Waker> {
        self.settle(local, Instant::now());
        let port = self.ports.remove(&local)?;
        for datagram in port.under_way.into_values() {
            self.link(datagram.from, local.ip()).counters.unreachable += 1;
        }
        self.translations.retain(|_, mapped| *mapped != local);
        if let Some(nat) = self
            .hosts
            .get_mut(&local.ip())
            .and_then(|host| host.nat.as_mut())
        {
            nat.mappings.remove(&local);
        }
        port.waker
    }

    /// The address that a socket is seen at.
    fn translate(&mut self, local: SocketAddr) -> SocketAddr {
        let Some(nat) = self
            .hosts
            .get_mut(&local.ip())
            .and_then(|host| host.nat.as_mut())
        else {
            return local;
        };
        if let Some(public) = nat.mappings.get(&local) {
            return *public;
        }
        let public = SocketAddr::new(nat.public, self.next_translated_port);
        self.next_translated_port = self
            .next_translated_port
            .checked_add(1)
            .unwrap_or(FIRST_TRANSLATED_PORT);
        nat.mappings.insert(local, public);
        self.translations.insert(public, local);
        public
    }

    /// The socket that is seen at an address.
    fn resolve(&self, public: SocketAddr) -> Option<SocketAddr> {
        let local = match self.translations.get(&public) {
            Some(local) => *local,
            None if self
                .hosts
                .get(&public.ip())
                .is_some_and(|host| host.nat.is_none()) =>
            {
                public
            }
            None => return None,
        };
        self.ports.contains_key(&local).then_some(local)
    }

    /// The host that is seen at an address.
    fn locate(&self, public: SocketAddr) -> IpAddr {
        self.translations.get(&public).unwrap_or(&public).ip()
    }

    fn conditions_of(&self, from: IpAddr, to: IpAddr) -> Conditions {
        self.own_conditions
            .get(&(from, to))
            .copied()
            .unwrap_or(self.conditions)
    }

    fn link(&mut self, from: IpAddr, to: IpAddr) -> &mut Link {
        let seed = self.seed;
        self.links
            .entry((from, to))
            .or_insert_with(|| Link::new(seed, from, to))
    }

    /// Puts a datagram on its way. Returns who has to be told that it arrives before others.
    fn carry(
        &mut self,
        now: Instant,
        from: IpAddr,
        source: SocketAddr,
        destination: SocketAddr,
        mut contents: Bytes,
    ) -> Option<Waker> {
        let receiver = self.resolve(destination);
        let to = self.locate(destination);
        let conditions = self.conditions_of(from, to);
        let silent = self.silent.contains(&from) || self.silent.contains(&to);
        let link = self.link(from, to);
        link.counters.sent += 1;
        link.counters.sent_bytes += contents.len() as u64;
        if silent {
            link.counters.dropped_by_blackout += 1;
            return None;
        }
        let number = link.counters.sent;
        let first = contents.first().copied();
        let length = contents.len();
        let carried = link.carry(&conditions, now, destination.ip(), length);
        tracing::trace!(
            target: "anabranch::simulator",
            %source, %destination, number, length, first, delay = ?carried.as_ref().map(|c| c.at - now),
        );
        let carried = carried?;
        if let Some(choice) = carried.corruption {
            let mut changed = contents.to_vec();
            link::corrupt(&mut changed, choice);
            contents = changed.into();
        }
        let Some((receiver, port)) =
            receiver.and_then(|receiver| Some((receiver, self.ports.get_mut(&receiver)?)))
        else {
            let copies = 1 + u64::from(carried.second.is_some());
            self.link(from, to).counters.unreachable += copies;
            return None;
        };
        debug_assert_eq!(receiver.ip(), to);
        let earliest = port.under_way.first_key_value().map(|((at, _), _)| *at);
        for at in [Some(carried.at), carried.second].into_iter().flatten() {
            let datagram = UnderWay {
                from,
                source,
                destination,
                contents: contents.clone(),
            };
            port.under_way.insert((at, self.next_order), datagram);
            self.next_order += 1;
        }
        if earliest.is_none_or(|earliest| carried.at < earliest) {
            port.waker.take()
        } else {
            None
        }
    }

    fn settle_all(&mut self, now: Instant) {
        let ports: Vec<_> = self.ports.keys().copied().collect();
        for port in ports {
            self.settle(port, now);
        }
    }

    /// Moves what has arrived at a socket by now into its buffer.
    fn settle(&mut self, local: SocketAddr, now: Instant) {
        let Some(port) = self.ports.get_mut(&local) else {
            return;
        };
        if port
            .under_way
            .first_key_value()
            .is_none_or(|((at, _), _)| *at > now)
        {
            return;
        }
        let later = port.under_way.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut port.under_way, later);
        let room = self
            .hosts
            .get(&local.ip())
            .map_or(0, |host| host.receive_buffer);
        let silent = self.silent.contains(&local.ip());
        for datagram in due.into_values() {
            let reached = self.resolve(datagram.destination) == Some(local);
            let length = datagram.contents.len();
            let arrived = Arrived {
                source: datagram.source,
                contents: datagram.contents,
            };
            let bytes = self.ports.get(&local).map_or(0, |port| port.bytes) + arrived.cost();
            let counters = &mut self.link(datagram.from, local.ip()).counters;
            if silent {
                counters.dropped_by_blackout += 1;
            } else if !reached {
                counters.unreachable += 1;
            } else if bytes > room {
                counters.dropped_by_receiver += 1;
            } else {
                counters.delivered += 1;
                counters.delivered_bytes += length as u64;
                if let Some(port) = self.ports.get_mut(&local) {
                    port.bytes = bytes;
                    port.arrived.push_back(arrived);
                }
            }
        }
    }
}
