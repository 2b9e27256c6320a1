//! A network of simulated hosts in virtual time, at the level of UDP datagrams.
//!
//! Endpoints run on it unchanged: [`EndpointBuilder::sockets`](anabranch::EndpointBuilder::sockets)
//! replaces the system's sockets by those of a [`Host`]. Everything above the sockets, from ICE to
//! substreams, is the production code.
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
//! Datagrams arrive by tokio's clock. In a test with `#[tokio::test(start_paused = true)]` that
//! clock is virtual: it stands still while any task can run, and otherwise jumps to the next
//! arrival or timeout. Minutes on a slow path then cost only the CPU time of their work. tokio's
//! timers have a resolution of 1 ms, so a datagram is received up to 1 ms late, and a round trip
//! takes up to 2 ms longer than the sum of its latencies.
//!
//! # Seed
//! The fate of the n-th datagram from one host to another depends only on the network's seed, the
//! two addresses and n (jitter: on the time). Other datagrams do not influence it. Keys and
//! connection identifiers remain random, so two runs do not agree in every byte, and a connection
//! that sends one extra datagram meets every later fate one datagram earlier.
//!
//! Every datagram is logged by `tracing` at level TRACE with the target `anabranch::simulator`: its
//! first byte, and its delay unless it is lost. Dropping a [`Network`] during a panic prints its
//! seed to stderr.

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

use anabranch::udp::Ecn;

pub use conditions::{Burst, Conditions, Counters};
pub use socket::SimulatedSocket;
use state::{Arrived, Nat, State};

/// Hosts and the paths between them.
///
/// Clones are cheap and share one network.
///
/// # Drop
/// Dropping a clone does not close the network: hosts and sockets keep it alive. If the thread is
/// panicking, the first drop prints the seed to stderr.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

impl Network {
    /// Creates a network without hosts. Every random choice on it follows from `seed`.
    ///
    /// Also seeds the choices of every SCTP association on this thread, so that runs on a
    /// current-thread runtime repeat them.
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

    /// Returns the seed.
    pub fn seed(&self) -> u64 {
        self.shared.seed
    }

    /// Returns the host with this address, and adds it to the network if there is none.
    pub fn host(&self, ip: impl Into<IpAddr>) -> Host {
        let ip = ip.into();
        self.shared.state().hosts.entry(ip).or_default();
        Host {
            network: Arc::clone(&self.shared),
            ip,
        }
    }

    /// Sets the conditions of every path that has none of its own.
    ///
    /// Applies to datagrams sent from now on.
    pub fn set_conditions(&self, conditions: Conditions) {
        self.shared.state().conditions = conditions;
    }

    /// Sets the conditions of one direction, from `from` to `to`.
    ///
    /// Applies to datagrams sent from now on; the opposite direction keeps its conditions.
    pub fn set_link(&self, from: &Host, to: &Host, conditions: Conditions) {
        self.shared
            .state()
            .own_conditions
            .insert((from.ip, to.ip), conditions);
    }

    /// Sets the conditions of both directions between two hosts.
    ///
    /// Applies to datagrams sent from now on.
    pub fn set_path(&self, a: &Host, b: &Host, conditions: Conditions) {
        self.set_link(a, b, conditions);
        self.set_link(b, a, conditions);
    }

    /// Drops every datagram sent between two hosts, in both directions, for `duration` from now.
    ///
    /// Datagrams in flight still arrive. A second call replaces the end of the first.
    pub fn blackout(&self, a: &Host, b: &Host, duration: Duration) {
        let until = Instant::now() + duration;
        let mut state = self.shared.state();
        for (from, to) in [(a.ip, b.ip), (b.ip, a.ip)] {
            state.link(from, to).blackout_until = Some(until);
        }
    }

    /// Silently drops everything from and to the host (`true`), or restores it (`false`).
    ///
    /// Datagrams in flight to a silent host are dropped when they arrive.
    pub fn set_silent(&self, host: &Host, silent: bool) {
        let mut state = self.shared.state();
        if silent {
            state.silent.insert(host.ip);
        } else {
            state.silent.remove(&host.ip);
        }
    }

    /// Moves the host's sockets to new public ports, as a NAT does that has lost its mappings.
    ///
    /// Each socket gets its new port with the next datagram that it sends. Datagrams to the new
    /// ports reach it; datagrams to the old ones, also those in flight, do not.
    pub fn rebind(&self, host: &Host) {
        self.rebind_to(host, host.ip);
    }

    /// As [`Network::rebind`], with a new public address too, as when a phone leaves the Wi-Fi.
    ///
    /// The path and its conditions stay the same.
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

    /// Removes the host's address until [`Network::renumber`] assigns another.
    ///
    /// Meanwhile its sockets fail to send with `NetworkUnreachable`, and datagrams in flight to it
    /// do not arrive.
    pub fn unplug(&self, host: &Host) {
        let mut state = self.shared.state();
        state.translations.retain(|_, local| local.ip() != host.ip);
        if let Some(host) = state.hosts.get_mut(&host.ip) {
            host.is_unplugged = true;
        }
    }

    /// Replaces the host's address, as when a machine moves from one network to another.
    ///
    /// Sockets bound to a wildcard address send from the new address, with the same port, and are
    /// reachable only there. Sockets bound to the old address fail to send with `AddrNotAvailable`.
    /// The path and its conditions stay the same.
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

    /// Calls `tap` for every datagram that a socket sends, before any condition applies.
    ///
    /// The tap may change the datagram, drop it, or [`Network::inject`] others. It replaces an
    /// earlier tap.
    ///
    /// # Deadlocks
    /// The tap must not set or clear the tap, nor send on a socket of this network: both wait for
    /// the lock that is held while the tap runs.
    pub fn set_tap(&self, tap: impl FnMut(&mut TappedDatagram) -> Verdict + Send + 'static) {
        *self.shared.tap() = Some(Box::new(tap));
    }

    /// Removes the tap, if there is one.
    pub fn clear_tap(&self) {
        *self.shared.tap() = None;
    }

    /// Sends a datagram with a forged source, which need not exist.
    ///
    /// The conditions of the path from `source` to `destination` apply; the tap does not see it.
    pub fn inject(&self, source: SocketAddr, destination: SocketAddr, contents: impl Into<Bytes>) {
        self.shared
            .carry(None, source, destination, contents.into(), Ecn::NotEct);
    }

    /// Returns the sum of the counters of all paths since the network was created.
    pub fn counters(&self) -> Counters {
        let mut state = self.shared.state();
        state.settle_all(Instant::now());
        state
            .links
            .values()
            .fold(Counters::default(), |sum, link| sum + link.counters)
    }

    /// Returns the counters of the direction from `from` to `to`.
    pub fn link_counters(&self, from: &Host, to: &Host) -> Counters {
        let mut state = self.shared.state();
        state.settle_all(Instant::now());
        state.link(from.ip, to.ip).counters
    }

    /// Returns the number of datagrams in flight or in the receive buffer of a socket.
    pub fn in_flight(&self) -> usize {
        let mut state = self.shared.state();
        state.settle_all(Instant::now());
        state
            .ports
            .values()
            .map(|port| port.in_flight.len() + port.arrived.len())
            .sum()
    }

    /// Returns the number of sockets bound on all hosts.
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

/// A machine with one address, and the sockets of an endpoint that runs on it.
///
/// Clones are cheap and share one host. A host stays on its network after all clones are dropped.
#[derive(Clone)]
pub struct Host {
    network: Arc<Shared>,
    ip: IpAddr,
}

impl Host {
    /// Returns the address that the host was created with.
    ///
    /// [`Network::renumber`] and [`Network::rebind_to`] do not change it.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Binds a socket to the host's address or to the wildcard address of its family.
    ///
    /// Port 0 selects a free port of the ephemeral range.
    ///
    /// # Errors
    /// `AddrNotAvailable` if the address is another, and `AddrInUse` if the port is bound, or if
    /// no port is free.
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

    /// Sets the receive buffer of each socket, in bytes. Default: 2 MiB.
    ///
    /// A datagram takes 128 bytes more than its payload. Datagrams that do not fit are dropped.
    pub fn set_receive_buffer(&self, bytes: usize) {
        if let Some(host) = self.network.state().hosts.get_mut(&self.ip) {
            host.receive_buffer = bytes;
        }
    }

    /// Enables or disables segmentation offload (GSO and GRO): one call for up to 64 datagrams.
    ///
    /// Default: enabled.
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
    /// The source address, after address translation. May be changed.
    pub source: SocketAddr,
    /// The destination address. May be changed.
    pub destination: SocketAddr,
    /// The UDP payload. May be changed.
    pub contents: Vec<u8>,
}

/// What happens to a datagram after the tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is dropped.
    Drop,
    /// It is sent as the tap left it.
    Pass,
}

type Tap = Box<dyn FnMut(&mut TappedDatagram) -> Verdict + Send>;

/// State shared by the handles of a network and its sockets.
struct Shared {
    seed: u64,
    state: Mutex<State>,
    /// Not part of `state`, whose lock a tap takes that injects.
    tap: Mutex<Option<Tap>>,
    seed_printed: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code under this lock calls out, or panics between two changes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tap(&self) -> MutexGuard<'_, Option<Tap>> {
        // A panic of the tap leaves no broken state of ours.
        self.tap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_offload(&self, host: IpAddr) -> bool {
        self.state()
            .hosts
            .get(&host)
            .is_some_and(|host| host.offload)
    }

    /// Sends a datagram from the socket at `local`.
    fn send(&self, local: SocketAddr, destination: SocketAddr, contents: &[u8], ecn: Ecn) {
        let source = self.state().translate(local);
        let mut tap = self.tap();
        let Some(tap) = tap.as_mut() else {
            drop(tap);
            return self.carry(
                Some(local),
                source,
                destination,
                Bytes::copy_from_slice(contents),
                ecn,
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
                self.carry(
                    Some(local),
                    datagram.source,
                    datagram.destination,
                    contents,
                    ecn,
                );
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

    /// Sends a datagram on its path. `local` is the sending socket, `None` for a forged datagram.
    fn carry(
        &self,
        local: Option<SocketAddr>,
        source: SocketAddr,
        destination: SocketAddr,
        contents: Bytes,
        ecn: Ecn,
    ) {
        let waker = {
            let mut state = self.state();
            let from = local.map_or_else(|| state.locate(source), |local| local.ip());
            state.carry(Instant::now(), from, source, destination, contents, ecn)
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

    /// Returns at most `max` datagrams from the receive buffer of a socket.
    ///
    /// If there is none, returns the next arrival time and registers `waker`, which is woken when a
    /// later datagram is to arrive before that time.
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
            return Err(port.in_flight.first_key_value().map(|((at, _), _)| *at));
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
