//! A network of simulated hosts, datagram by datagram, in virtual time.
//!
//! Endpoints run on it unchanged: [`EndpointBuilder::sockets`](anabranch::EndpointBuilder::sockets)
//! gives them the sockets of a [`Host`] in place of those of the system. Everything above that, from ICE to
//! substreams, is what runs in production.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use anabranch::Endpoint;
//! use anabranch_testkit::simulator::{Conditions, Network};
//!
//! let network = Network::new(7);
//! network.set_conditions(Conditions {
//!     loss: 0.01,
//!     ..Conditions::round_trip(Duration::from_millis(50))
//! });
//! let server = network.host([10, 0, 0, 1]);
//! let client = network.host([10, 0, 0, 2]);
//! let listener = Endpoint::builder().sockets(server).bind("10.0.0.1:4001").await?;
//! let dialler = Endpoint::builder().sockets(client).dial_only()?;
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

use std::collections::BTreeMap;
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
mod endpoint;
mod link;
mod socket;
mod state;
#[cfg(test)]
mod tests;

pub use conditions::{Burst, Conditions, Counters};
pub use socket::SimulatedSocket;
use state::{Arrived, Nat, State};

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
        anabranch_sctp::fix_entropy(seed);
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
                is_own: false,
            });
        }
    }

    /// Takes the address of the host away: what its sockets send fails with `NetworkUnreachable`, until
    /// [`Network::renumber`]. What is under way to it does not arrive.
    pub fn unplug(&self, host: &Host) {
        let mut state = self.shared.state();
        state.translations.retain(|_, local| local.ip() != host.ip);
        if let Some(host) = state.hosts.get_mut(&host.ip) {
            host.is_unplugged = true;
        }
    }

    /// Gives the host another address in place of the one that it has, as when a machine goes from one network to
    /// another. Sockets that are bound to a wildcard send from the new one, with the same port, and are reached
    /// there only; those that are bound to the address are of no use any more. The path and its conditions stay the
    /// same.
    pub fn renumber(&self, host: &Host, ip: impl Into<IpAddr>) {
        let mut state = self.shared.state();
        state.translations.retain(|_, local| local.ip() != host.ip);
        if let Some(host) = state.hosts.get_mut(&host.ip) {
            host.is_unplugged = false;
            host.nat = Some(Nat {
                public: ip.into(),
                mappings: BTreeMap::new(),
                is_own: true,
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
